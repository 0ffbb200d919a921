"""`python -m tools.benchmark ranks`: what several ranks cost on this CPU, and a model of many GPUs.

Measured: all-reduces and the AT step of imagenet.py with and without its exchange of gradients, by gloo, for
each number of ranks; `fit` is the time of an all-reduce as latency + traffic / bandwidth. Assumed: the speed
and the links of GPUs, given by options. The model takes what is assumed, and nothing of what is measured: a
CPU's ranks share its cores and its memory, so they tell little of GPUs.
"""
import argparse
import contextlib
import functools
import io
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import devices
import options
import process
import utils
from tools.benchmark import imagenet, measure, steps

TRAIN_IMAGES, EPOCHS = 1281167, 100  # of ImageNet, of the paper's schedule
GRADIENTS = 4 * 11689512  # bytes, of ResNet-18 in float32
GPUS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 256  # the paper's, of all GPUs together
# Of the multiplications of an AT step: twice ResNet-18's forward pass, of three times that and ResNet-34's.
BACKWARD = 2 * 1.814 / (3 * 1.814 + 3.664)
PATIENCE = timedelta(seconds=120)  # with a rank that does not answer
ASSUMED = {
    'gpu_images_per_second': (options.positive, 2000.0, 'AT step of one GPU at a large batch'),
    'fixed_ms': (options.weight, 5.0, 'of a step, however small its batch: starts of kernels'),
    'link_gbytes': (options.positive, 100.0, 'GB/s of a GPU to the next one in its machine'),
    'network_gbytes': (options.positive, 12.5, 'GB/s of a machine to the next one'),
    'gpus_per_machine': (options.positive_int, 8, 'beyond which the network counts'),
    'latency_us': (options.weight, 10.0, 'of a message; a ring of n sends 2 (n - 1) in turn'),
    'overlap': (options.fraction, 0.5, 'part of the all-reduce that the backward pass can hide'),
}


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--ranks', type=options.int_list, default='[1,2,4]', help='processes of a run')
    parser.add_argument('--bytes', type=options.int_list, default=f'[65536,1048576,8388608,{GRADIENTS}]',
                        help='sizes of all-reduces; the last by default: gradients of ResNet-18')
    parser.add_argument('--batch_size', type=options.positive_int, default=4, help='images of each rank')
    parser.add_argument('--image_size', type=options.positive_int, default=64, help='in pixels')
    measure.add_blocks(parser, steps=3, rounds=7)
    group = parser.add_argument_group('assumptions of the model')
    for name, (kind, value, meaning) in ASSUMED.items():
        group.add_argument(f'--{name}', type=kind, default=value, help=f'assumed: {meaning}')


def run(opt: argparse.Namespace) -> dict[str, Any]:
    assumed = {name: getattr(opt, name) for name in ASSUMED} | {
        'gradient_bytes': GRADIENTS, 'train_images': TRAIN_IMAGES, 'epochs': EPOCHS,
        'backward': measure.rounded(BACKWARD)}
    return {'benchmark': opt.command, 'device': 'cpu', **process.provenance(torch.device('cpu')),
            'threads': torch.get_num_threads(), 'backend': 'gloo', 'steps': opt.steps, 'rounds': opt.rounds,
            'batch_of_a_rank': opt.batch_size, 'image_size': opt.image_size,
            'measured': [point(n, ranks(opt, n)) for n in opt.ranks],
            'assumed': assumed,
            'model': {'batch_fixed': [modelled(opt, n, BATCH) for n in GPUS],
                      'batch_per_gpu_fixed': [modelled(opt, n, n * BATCH) for n in GPUS]}}


# --- measured ---------------------------------------------------------------------------------------------

Rounds = dict[tuple, list[float]]  # ('all-reduce', bytes) or ('step', 'with') -> seconds of each round


def ranks(opt: argparse.Namespace, n: int) -> Rounds:
    """What n ranks find, in fresh processes."""
    print(f'{n} ranks', file=sys.stderr, flush=True)
    with (tempfile.TemporaryDirectory() as folder,
          ProcessPoolExecutor(n, multiprocessing.get_context('spawn')) as pool):
        meeting = Path(folder, 'meeting').as_uri()
        # A rank waits for the others when it begins, so that each has a process of its own.
        return list(pool.map(functools.partial(rank, opt, n, meeting), range(n)))[0]


def rank(opt: argparse.Namespace, n: int, meeting: str, i: int) -> Rounds:
    torch.set_num_threads(max(torch.get_num_threads() // n, 1))
    dist.init_process_group('gloo', meeting, rank=i, world_size=n, timeout=PATIENCE)
    turns: dict[tuple, measure.Contender] = {}
    if n > 1:
        for size in opt.bytes:
            turns['all-reduce', size] = block(functools.partial(all_reduce, torch.ones(size // 4)), opt.steps)
        turns['step', 'with'] = block(step(opt, exchange=True), opt.steps)
    turns['step', 'without'] = block(step(opt, exchange=False), opt.steps)
    with contextlib.redirect_stderr(io.StringIO() if i else sys.stderr):
        found = measure.in_turns(turns, opt.rounds, 's')
    time.sleep(0.2)  # as in devices.start
    dist.destroy_process_group()
    return found


def all_reduce(t: torch.Tensor) -> None:
    """The mean over ranks, so that numbers stay as they are."""
    devices.summed(t).div_(devices.ranks())


def step(opt: argparse.Namespace, exchange: bool) -> Callable[[], None]:
    """Takes the step; without exchange each rank learns alone, but for the few bytes of meters."""
    f_s, student, f_t, teacher = steps.folded(imagenet.networks('at'))
    cpu = torch.device('cpu')
    student, teacher = devices.to_device(student, cpu), devices.to_device(teacher, cpu)
    if exchange:
        utils.trainable(student)
        f_s, student = devices.parallel(f_s, student)
    real = imagenet.real_options(argparse.Namespace(device='cpu', dtype='float', compile=False), 'at')
    consume = steps.our_training(real, f_s, student, f_t, teacher, (1,))
    sample = imagenet.batch(opt, 'ours', cpu)

    def once() -> None:
        consume([sample])

    return once


def block(once: Callable[[], None], n: int) -> measure.Contender:
    """Seconds of one of n in a row, after one as a warm-up, of the rank that takes longest."""
    def seconds() -> float:
        once()
        dist.barrier()
        start = time.perf_counter()
        for _ in range(n):
            once()
        longest = torch.tensor((time.perf_counter() - start) / n, dtype=torch.double)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        return longest.item()

    return seconds


def point(n: int, found: Rounds) -> dict[str, Any]:
    """Figures of n ranks. `exchange`: with - without in the same round, as a median its own."""
    sizes = {key[1]: measure.spread(values) for key, values in found.items() if key[0] == 'all-reduce'}
    without = found['step', 'without']
    step_seconds = {'without': without} | ({} if n == 1 else {
        'with': found['step', 'with'],
        'exchange': [a - b for a, b in zip(found['step', 'with'], without, strict=True)]})
    spreads = {name: measure.spread(values) for name, values in step_seconds.items()}
    return {'ranks': n,
            'all_reduce': [{'bytes': size, 'seconds': s.median, 'quartiles': [s.low, s.high]}
                           for size, s in sizes.items()],
            'fit': fit(n, list(sizes), [s.median for s in sizes.values()]),
            'step': {name: {'seconds': s.median, 'quartiles': [s.low, s.high]}
                     for name, s in spreads.items()}}


def fit(n: int, sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, float] | None:
    """Latency and bandwidth of seconds = latency + traffic(n, bytes) / bandwidth, by least squares of
    relative errors, since small times are to count as much as large ones.

    None for a single size, or if noise lets more bytes take no more time.
    """
    if len(sizes) < 2:
        return None
    times = np.array(seconds)
    columns = np.stack([np.ones(len(times)), [traffic(n, size) for size in sizes]], 1)
    (latency, slope), *_ = np.linalg.lstsq(columns / times[:, None], np.ones(len(times)), rcond=None)
    if slope * columns[:, 1].max() < 1e-6 * times.max():
        return None
    return {'latency_seconds': measure.rounded(latency), 'bytes_per_second': measure.rounded(1 / slope)}


# --- modelled ---------------------------------------------------------------------------------------------


def traffic(n: int, size: float) -> float:
    """Bytes that each of n ranks sends in an all-reduce of `size` bytes in a ring."""
    return 2 * (n - 1) / n * size


def modelled(opt: argparse.Namespace, n: int, batch: int) -> dict[str, Any]:
    """n GPUs, `batch` images of all together: the step, and hours of the schedule."""
    alone, _ = model_step(opt, 1, batch / n)
    seconds, exposed = model_step(opt, n, batch / n)
    n_steps = math.ceil(TRAIN_IMAGES / batch)
    hours = EPOCHS * n_steps * seconds / 3600
    one_gpu = EPOCHS * math.ceil(TRAIN_IMAGES / BATCH) * model_step(opt, 1, BATCH)[0] / 3600
    return {'gpus': n, 'batch': batch, 'compute_seconds': measure.rounded(alone),
            'exposed_seconds': measure.rounded(exposed), 'step_seconds': measure.rounded(seconds),
            'hours': measure.rounded(hours), 'gpu_hours': measure.rounded(n * hours),
            'efficiency': measure.rounded(one_gpu / (n * hours))}


def model_step(opt: argparse.Namespace, n: int, images: float) -> tuple[float, float]:
    """Seconds of a step with `images` on each of n GPUs, and those of them in which it waits for others."""
    compute = opt.fixed_ms / 1e3 + images / opt.gpu_images_per_second
    gbytes = opt.link_gbytes if n <= opt.gpus_per_machine else min(opt.link_gbytes, opt.network_gbytes)
    exchange = 2 * (n - 1) * opt.latency_us / 1e6 + traffic(n, GRADIENTS) / (gbytes * 1e9)
    exposed = exchange - min(opt.overlap * exchange, BACKWARD * compute)
    return compute + exposed, exposed
