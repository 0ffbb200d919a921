"""Compares convolutions of many shapes with float64: `python -m stress.convolutions`, half an hour.

It finds shapes for which the library is wrong, crashes, hangs or writes past its memory on this processor.
Each is checked in a separate process: the output, both gradients, and the gradients of the input gradient,
which gradient-based transfer needs. `ONEDNN_MAX_CPU_ISA=AVX2` shows what a processor without AVX-512 does.
"""
import faulthandler
import itertools
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import layers
from training import exits, options

LIMIT = 20  # seconds for one shape
GROUP = 40  # shapes that share a process, as long as all of them are right
TOLERANCE = {'float32': 1e-4, 'bfloat16': 5e-2}  # of the largest element
CHANNELS = [*range(1, 18), 24, 32, 64]
FEW = [1, 8, 16, 64]
GUARD = 4096  # elements of NaN before and after each input

# glibc aborts at the `free` of memory whose end was overwritten, and fills new memory with large numbers.
# Without mmap, which would take long, it does so for large memory too.
CHECKED = {'LD_PRELOAD': 'libc_malloc_debug.so.0', 'MALLOC_CHECK_': '3', 'MALLOC_PERTURB_': '128',
           'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '4000000000'}


class Shape(NamedTuple):
    kernel: int
    stride: int
    layout: str
    dtype: str
    n_in: int
    n_out: int
    size: int
    batch: int


def all_shapes() -> Iterator[Shape]:
    """Every number of channels on one side against a few on the other."""
    channels = sorted({*itertools.product(CHANNELS, FEW), *itertools.product(FEW, CHANNELS)})
    for kernel, stride, layout, dtype, (n_in, n_out), size in itertools.product(
            (1, 3, 7), (1, 2), ('channels_last', 'contiguous'), ('float32', 'bfloat16'), channels,
            (8, 14, 16, 28, 32, 56)):
        if kernel < 7 or n_in == 3:  # the first convolution of an ImageNet network
            yield from (Shape(kernel, stride, layout, dtype, n_in, n_out, size, batch) for batch in (1, 5))


def short_shapes() -> Iterator[Shape]:
    """Those of the 1x1 convolutions of narrow networks."""
    for stride, dtype, n_in, n_out, size in itertools.product(
            (1, 2), ('float32', 'bfloat16'), (1, 4, 7, 8, 12, 15), (3, 16), (16, 56)):
        yield Shape(1, stride, 'channels_last', dtype, n_in, n_out, size, 2)


def library(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


def ours(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return layers.conv1x1(x, weight, stride) if weight.shape[2] == 1 else library(x, weight, stride)


class Guarded:
    """A copy of a tensor, in the same layout, between NaN, which show whether its surroundings are used."""

    def __init__(self, t: Tensor):
        n = t.numel()
        self.memory = torch.full((n + 2 * GUARD,), torch.nan, dtype=t.dtype)
        self.tensor = self.memory.as_strided(t.shape, t.stride(), GUARD).copy_(t)

    def intact(self) -> bool:
        return bool(self.memory[:GUARD].isnan().all() and self.memory[-GUARD:].isnan().all())


def results(convolution, tensors: Sequence[Tensor], stride: int, dtype: torch.dtype) -> dict[str, Tensor]:
    x, weight, upstream, direction = (t.detach().requires_grad_() for t in tensors)
    with torch.autocast('cpu', dtype, enabled=dtype == torch.bfloat16):
        y = convolution(x, weight, stride)
    to_x, to_weight = torch.autograd.grad(y, (x, weight), upstream.to(y.dtype), create_graph=True)
    second = torch.autograd.grad(to_x, (weight, upstream), direction)
    return dict(zip(('output', 'input gradient', 'weight gradient', 'second to weight', 'second to upstream'),
                    (y, to_x, to_weight, *second), strict=True))


def check(shape: Shape, convolution) -> str:
    """What is wrong, or nothing."""
    layout = torch.channels_last if shape.layout == 'channels_last' else torch.contiguous_format
    dtype, side = getattr(torch, shape.dtype), -(-shape.size // shape.stride)
    generator = torch.Generator().manual_seed(0)
    of_x = shape.batch, shape.n_in, shape.size, shape.size
    of_weight = shape.n_out, shape.n_in, shape.kernel, shape.kernel
    of_y = shape.batch, shape.n_out, side, side
    tensors = [torch.randn(dims, generator=generator).bfloat16().float().contiguous(memory_format=layout)
               for dims in (of_x, of_weight, of_y, of_x)]
    guarded = [Guarded(t) for t in tensors]
    found = results(convolution, [g.tensor for g in guarded], shape.stride, dtype)
    expected = results(library, [t.double() for t in tensors], shape.stride, torch.float64)
    wrong = [name for name, e in expected.items()
             if not (found[name] - e).abs().max() <= TOLERANCE[shape.dtype] * e.abs().max()]
    return ', '.join(wrong + ['memory before or after an input'] * (not all(g.intact() for g in guarded)))


def checked_in_child(shapes: Sequence[Shape], convolution, threads: int) -> tuple[list[str], int]:
    """What is wrong with each shape before the process ends, and the signal that ends it early, or 0."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        torch.set_num_threads(threads)
        faulthandler.disable()  # pytest's, which would tell of each crash
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what glibc says when it aborts
        for shape in shapes:
            signal.alarm(LIMIT)  # not caught: it also ends what never returns from the library
            os.write(write, (check(shape, convolution) + '\n').encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        wrong = lines.read().splitlines()
    return wrong, os.WTERMSIG(os.waitpid(pid, 0)[1])


def sweep(shapes: Iterable[Shape], convolution) -> Iterator[tuple[Shape, str]]:
    """Each shape and what is wrong with it, or nothing. A group that ends early is checked one by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # forks do not have the other threads
    check(Shape(1, 1, 'contiguous', 'float32', 1, 1, 1, 1), library)  # the first time takes a second, once
    shapes = iter(shapes)
    while group := list(itertools.islice(shapes, GROUP)):
        wrong, ended = checked_in_child(group, convolution, threads)
        if not ended and len(wrong) == len(group):
            yield from zip(group, wrong, strict=True)
            continue
        for shape in group:
            wrong, ended = checked_in_child([shape], convolution, threads)
            if ended:
                yield shape, 'hang' if ended == signal.SIGALRM else f'crash ({signal.Signals(ended).name})'
            else:
                yield shape, wrong[0] if wrong else 'error'


def table(checked: Iterable[tuple[Shape, str]]) -> tuple[list[str], int]:
    """Rows in Markdown of the shapes that are not right, and their number; sizes and so on are counted."""
    rows: dict[tuple, Counter[str]] = defaultdict(Counter)
    for shape, wrong in checked:
        rows[shape[:5]][wrong] += 1
    bad = {key: counts for key, counts in rows.items() if counts.keys() != {''}}
    lines = ['| kernel | stride | layout | dtype | channels in | shapes | not right |', '|---' * 7 + '|']
    for key, counts in bad.items():
        what = '; '.join(f'{n} {wrong}' for wrong, n in sorted(counts.items()) if wrong)
        lines.append(f'| {" | ".join(map(str, key))} | {counts.total()} | {what} |')
    n_wrong = sum(counts.total() - counts[''] for counts in bad.values())
    n = sum(counts.total() for counts in rows.values())
    return [*lines, f'{n_wrong} of {n} shapes are not right'], n_wrong


def main() -> None:
    parser = options.Parser('Compare convolutions with float64.')
    parser.add_argument('--ours', action='store_true', help='1x1 convolutions by layers.conv1x1, not torch')
    parser.add_argument('--short', action='store_true', help='a few shapes of narrow networks')
    opt = parser.parse_args()
    if 'MALLOC_CHECK_' not in os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | CHECKED)
    shapes = short_shapes() if opt.short else all_shapes()
    lines, n_wrong = table(sweep(shapes, ours if opt.ours else library))
    print('\n'.join(lines))
    sys.exit(n_wrong > 0)


if __name__ == '__main__':
    exits.script(main)
