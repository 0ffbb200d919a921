"""Ours and the baseline in a process each, so that each has an allocator and a peak of memory of its own.

    with sides.started(prepare, opt) as found:         # prepare(opt, side) runs in the process of that side
        speed = found['baseline'].measure('at')        # a block of a case that is prepared there
"""
import argparse
import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

from tools.benchmark.measure import SIDES, Contender
from training import exits
from utils import InputError

Prepared = tuple[dict[str, Contender], dict[str, Any]]  # the cases of a side, and facts for the report


class Side(NamedTuple):
    """A side as the main process sees it."""
    cases: list[str]
    facts: dict[str, Any]
    measure: Callable[[str], float]  # a block of a case


@contextlib.contextmanager
def started(prepare: Callable[..., Prepared], opt: argparse.Namespace) -> Iterator[dict[str, Side]]:
    """Both sides, prepared one after the other, so that neither slows down the other."""
    with contextlib.ExitStack() as stack:
        found = {}
        for side in SIDES:
            print(f'{side}: starts', file=sys.stderr, flush=True)
            found[side] = stack.enter_context(own_process(prepare, opt, side))
        yield found


@contextlib.contextmanager
def own_process(prepare: Callable[..., Prepared], *arguments: Any) -> Iterator[Side]:
    """A fresh process in which prepare(*arguments) has run; it ends with the block."""
    context = multiprocessing.get_context('spawn')  # a fork would inherit the threads and memory of torch
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            cases, facts = pool.submit(_in_child, _prepare, prepare, *arguments).result()
            yield Side(cases, facts, lambda case: pool.submit(_in_child, _measure, case).result())
        except BrokenProcessPool:
            raise InputError('a process of the benchmark was killed: if memory is short, give smaller '
                             'batches') from None
        finally:
            for child in multiprocessing.active_children():
                child.terminate()


_contenders: dict[str, Contender] = {}  # in the process of a side


def _prepare(prepare: Callable[..., Prepared], *arguments: Any) -> tuple[list[str], dict[str, Any]]:
    contenders, facts = prepare(*arguments)
    _contenders.update(contenders)
    return list(contenders), facts


def _measure(case: str) -> float:
    return _contenders[case]()


def _in_child(function: Callable, *arguments: Any) -> Any:
    """An error ends the benchmark as it ends a script: this process prints it, the other takes the status."""
    found = []
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report
        exits.script(lambda: found.append(function(*arguments)))
    return found[0]


def contenders(found: dict[str, Side]) -> dict[tuple[str, str], Contender]:
    """All cases of both sides, the sides of a case next to each other."""
    return {(case, side): partial(found[side].measure, case)
            for case in found['ours'].cases for side in SIDES if case in found[side].cases}
