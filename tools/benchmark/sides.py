"""Ours and the baseline in a process each, which measure blocks when asked.

    with sides.started(prepare, opt) as found:         # prepare(opt, side) runs in the process of that side
        speed = found['baseline'].measure('at')        # a block of a case that is prepared there

So each side has an allocator and a peak of memory of its own.
"""
import argparse
import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from tools.benchmark.measure import SIDES, Contender
from training import devices, exits, fast, options
from utils import InputError


class Prepared(NamedTuple):
    """What a side has ready in its process."""
    contenders: dict[str, Contender]  # by case
    facts: dict[str, Any]  # for the report


class Side(NamedTuple):
    """A side as the main process sees it."""
    cases: list[str]
    facts: dict[str, Any]
    measure: Callable[[str], float]  # a block of a case


@contextlib.contextmanager
def started(prepare: Callable[..., Prepared], opt: argparse.Namespace) -> Iterator[dict[str, Side]]:
    """Both sides, prepared one after the other, so that neither slows the other down."""
    with contextlib.ExitStack() as stack:
        found = {}
        for side in SIDES:
            print(f'{side}: starts', file=sys.stderr, flush=True)
            found[side] = stack.enter_context(own_process(prepare, opt, side))
        yield found


@contextlib.contextmanager
def own_process(prepare: Callable[..., Prepared], *arguments: Any) -> Iterator[Side]:
    """A fresh process in which prepare(*arguments) has run; it ends with the block."""
    context = multiprocessing.get_context('spawn')  # a fork would inherit torch's threads and memory
    pipe, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, prepare, arguments))
    child.start()
    theirs.close()  # else the end of the child would not be noticed

    def answer() -> Any:
        try:
            return pipe.recv()
        except EOFError:
            child.join()
        if child.exitcode < 0:
            raise InputError(f'{signal.Signals(-child.exitcode).name} ended a process of the benchmark: '
                             'if memory is short, give smaller batches')
        sys.exit(child.exitcode)  # it has said why

    def measure(case: str) -> float:
        pipe.send(case)
        return answer()

    try:
        yield Side(*answer(), measure)
    except BaseException:
        child.terminate()
        raise
    finally:
        pipe.close()
        child.join()


def _serve(pipe: Connection, prepare: Callable[..., Prepared], arguments: tuple) -> None:
    """The process of a side, until the pipe is closed; errors end it as they end a script."""
    def main() -> None:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report
            contenders, facts = prepare(*arguments)
            pipe.send((list(contenders), facts))
            with contextlib.suppress(EOFError):
                while True:
                    pipe.send(contenders[pipe.recv()]())

    exits.script(main)


def contenders(found: dict[str, Side]) -> dict[tuple[str, str], Contender]:
    """All cases of both sides, the sides of a case next to each other."""
    return {(case, side): partial(found[side].measure, case)
            for case in found['ours'].cases for side in SIDES if case in found[side].cases}


# --- options and devices of both sides -------------------------------------------------------------------


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--fast', action='store_true',
                        help='choose --dtype and --compile for our side as the training script does')
    parser.add_argument('--dtype', choices=['float', 'bfloat16'],
                        help='arithmetic of our networks; None: float, or what --fast chooses')
    parser.add_argument('--compile', action='store_true', help='compile our step; the baseline is not')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')


def of_the_script(opt: argparse.Namespace) -> list[str]:
    """These options as a training script takes them."""
    dtype = ['--dtype', opt.dtype] if opt.dtype else []
    return ['--device', opt.device, *dtype, *['--fast'] * opt.fast, *['--compile'] * opt.compile]


def ready(opt: argparse.Namespace, side: str, real_options: Callable[..., argparse.Namespace]
          ) -> tuple[argparse.Namespace, torch.device]:
    """Options and device of a side.

    Of ours the dtype is filled in, and what --fast chooses for a run that is long enough to be compiled. The
    baseline takes nothing of ours: on a CPU its allocator stays as it comes.
    """
    if side == 'baseline':
        opt = replaced(opt, fast=False, dtype='float', compile=False)
        real = real_options(opt, 'at')
        return opt, devices.device(real) if devices.cuda_devices(real) else torch.device('cpu')
    real = real_options(opt, 'at')
    device = devices.device(real)
    real = fast.chosen(real, device, fast.COMPILED_FROM)
    return replaced(opt, fast=False, dtype=real.dtype, compile=real.compile), device


def described(opt: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What our side ran on, for the report."""
    return {'device': device.type, **exits.provenance(device), 'threads': torch.get_num_threads(),
            'dtype': opt.dtype, 'compile': opt.compile, 'baseline_dtype': 'float'}


def replaced(opt: argparse.Namespace, **values: Any) -> argparse.Namespace:
    return argparse.Namespace(**vars(opt) | values)
