"""Blocks of ours and of the baseline in turns, and figures from them."""
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from layers import Sample
from training import options

SIDES = ('ours', 'baseline')
WARM_UP, PROFILED = 2, 3  # steps

Blocks = dict[str, dict[str, list[float]]]  # case -> side -> images/s of each round
Contender = Callable[[], float]  # one side of one case: measures a block, returns images/s or seconds
Consumer = Callable[[Iterable[Sample]], int]  # trains on samples or drops them, waits; -> images


def add_blocks(parser: options.Parser, steps: int, rounds: int) -> None:
    parser.add_argument('--steps', type=options.positive_int, default=steps, help='steps of a block')
    parser.add_argument('--rounds', type=options.positive_int, default=rounds,
                        help='blocks of each case and side')


def add_profile(parser: options.Parser) -> None:
    parser.add_argument('--profile', type=options.path, default='', metavar='FILE',
                        help='write a trace of some of our AT steps, .json or .json.gz for chrome://tracing')


def alternate(contenders: dict[tuple[str, str], Contender], rounds: int) -> Blocks:
    """A block of each (case, side) in each round, every other round in the reverse order."""
    blocks: Blocks = {}
    for (case, side), speeds in in_turns(contenders, rounds, 'images/s').items():
        blocks.setdefault(case, {})[side] = speeds
    return blocks


def in_turns(measurements: dict[tuple, Contender], rounds: int, unit: str) -> dict[tuple, list[float]]:
    """What each finds in each round, every other round in the reverse order."""
    found = {key: [] for key in measurements}
    order = list(measurements.items())
    for r in range(rounds):
        for key, measured in order if r % 2 else reversed(order):
            found[key].append(measured())
            print(f'round {r + 1}/{rounds} {" ".join(map(str, key))}: {found[key][-1]:.4g} {unit}',
                  file=sys.stderr, flush=True)
    return found


def images_per_second(batches: Iterator[Sample], consume: Consumer, warm_up: int, steps: int) -> float:
    """Speed over `steps` of more batches, which end with the block: no worker disturbs the next one."""
    with closing(batches):
        consume(itertools.islice(batches, warm_up))
        start = time.perf_counter()
        n = consume(itertools.islice(batches, steps))
        return n / (time.perf_counter() - start)


def compiled(name: str, consume: Consumer, samples: list[Sample]) -> float:
    """Seconds of the first steps, one for each size of a batch, in which they are compiled."""
    start = time.perf_counter()
    consume(samples)
    seconds = rounded(time.perf_counter() - start)
    print(f'{name} compiled in {seconds} s', file=sys.stderr, flush=True)
    return seconds


def profile(path: str, batches: Iterator[Sample], consume: Consumer, device: torch.device) -> None:
    """Write a trace of a few steps, after a warm-up, by torch.profiler."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == 'cuda')
    with closing(batches):
        consume(itertools.islice(batches, WARM_UP))
        with torch.profiler.profile(activities=kinds) as trace:
            consume(itertools.islice(batches, PROFILED))
    trace.export_chrome_trace(path)
    print(f'{PROFILED} steps are traced in {path}', file=sys.stderr, flush=True)


# --- blocks -> figures --------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Quartiles over rounds."""
    low: float
    median: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    return Spread(*(rounded(q) for q in np.quantile(list(values), (0.25, 0.5, 0.75)).tolist()))


def rounded(value: float) -> float:
    return float(f'{value:.4g}')


def summary(blocks: Blocks) -> dict[str, Any]:
    """Images/s of each block -> by case: medians, quartiles, and ratios ours / baseline within a round."""
    cases = {}
    for case, sides in blocks.items():
        speeds = {side: spread(values) for side, values in sides.items()}
        ratio = spread(a / b for a, b in zip(sides['ours'], sides['baseline'], strict=True))
        cases[case] = {'images_per_second': {side: s.median for side, s in speeds.items()},
                       'quartiles': {side: [s.low, s.high] for side, s in speeds.items()},
                       'ratio': ratio.median, 'ratio_quartiles': [ratio.low, ratio.high]}
    return cases
