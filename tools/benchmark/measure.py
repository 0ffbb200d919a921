"""Blocks of ours and of the baseline in turns, and figures from them."""
import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from layers import Sample
from training import exits, options

SIDES = ('ours', 'baseline')
OPTIONS = ('dataset', 'batch_size', 'image_size', 'steps', 'rounds', 'workers')  # those in the result

Blocks = dict[str, dict[str, list[float]]]  # case -> side -> images/s of each round
Contender = Callable[[], float]  # one side of one case: measures a block, returns images/s
Consumer = Callable[[Iterable[Sample]], int]  # trains on samples, or drops them; returns the number of images


def add_options(parser: options.Parser, batch_size: int, steps: int, rounds: int) -> None:
    parser.add_argument('--batch_size', type=options.positive_int, default=batch_size,
                        help='images in a batch')
    parser.add_argument('--steps', type=options.positive_int, default=steps, help='steps of a block')
    parser.add_argument('--rounds', type=options.positive_int, default=rounds,
                        help='blocks of each case and side')


def result(opt: argparse.Namespace, device: torch.device, **figures: Any) -> dict[str, Any]:
    """The figures, after what was measured and where."""
    given = {name: getattr(opt, name) for name in OPTIONS if hasattr(opt, name)}
    return {'benchmark': opt.command, 'device': device.type, **exits.provenance(device),
            'threads': torch.get_num_threads(), **given, **figures}


def alternate(contenders: dict[tuple[str, str], Contender], rounds: int) -> Blocks:
    """A block of each (case, side) in each round, every other round in the reverse order."""
    blocks: Blocks = {case: {side: [] for c, side in contenders if c == case} for case, _ in contenders}
    order = list(contenders.items())
    for r in range(rounds):
        for (case, side), measured in order if r % 2 else reversed(order):
            speed = measured()
            blocks[case][side].append(speed)
            print(f'round {r + 1}/{rounds} {case} {side}: {speed:.4g} images/s', file=sys.stderr, flush=True)
    return blocks


def images_per_second(batches: Iterator[Sample], consume: Consumer, warm_up: int, steps: int) -> float:
    """Speed over `steps` batches after a warm-up. The iterator ends: no worker disturbs the next block."""
    with closing(batches):
        consume(itertools.islice(batches, warm_up))
        start = time.perf_counter()
        n = consume(itertools.islice(batches, steps))
        return n / (time.perf_counter() - start)


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
        speeds = {side: spread(sides[side]) for side in SIDES}
        ratio = spread(a / b for a, b in zip(sides['ours'], sides['baseline'], strict=True))
        cases[case] = {'images_per_second': {side: s.median for side, s in speeds.items()},
                       'quartiles': {side: [s.low, s.high] for side, s in speeds.items()},
                       'ratio': ratio.median, 'ratio_quartiles': [ratio.low, ratio.high]}
    return cases
