"""The training step of a script next to the plain baseline: what `cifar` and `imagenet` have in common."""
import argparse
import itertools
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from layers import Sample
from tools.benchmark import measure, roofline, sides, steps
from tools.benchmark.measure import Consumer
from tools.benchmark.sides import Prepared
from tools.benchmark.steps import Networks
from training import devices, exits, fast, options

WARM_UP, MEMORY = 2, 4  # steps: before a block, until the peak of memory
Batches = Callable[[], Iterator[Sample]]


class Script(ABC):
    """A script to measure."""
    cases: dict[str, list[str]]  # options of the script by case; AT is first, for its peak of memory
    topk = (1,)
    loads = 0  # batches in a block of the loader alone, for each step of a training block

    @abstractmethod
    def real_options(self, opt: argparse.Namespace, case: str) -> argparse.Namespace:
        """Options of the script for a case, with its defaults. Nothing is read or saved."""

    @abstractmethod
    def networks(self, opt: argparse.Namespace, case: str) -> Networks:
        """Student and teacher of a case, as they begin."""

    @abstractmethod
    def batches(self, opt: argparse.Namespace, side: str, device: torch.device) -> Batches:
        """A function that starts the batches of a side; they never end."""

    def add_options(self, parser: options.Parser) -> None:
        parser.add_argument('--fast', action='store_true',
                            help='choose --dtype and --compile for our side as the training script does')
        parser.add_argument('--dtype', choices=['float', 'bfloat16'], default='',
                            help='arithmetic of our networks (default: float, or the choice of --fast)')
        parser.add_argument('--compile', action='store_true', help='compile our step; the baseline is not')
        parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto',
                            help='auto: CUDA if it is available')

    def run(self, opt: argparse.Namespace) -> dict[str, Any]:
        with sides.started(self.prepare, opt) as found:
            blocks = measure.alternate(sides.contenders(found), opt.rounds)
        ours, plain = (found[side].facts for side in measure.SIDES)
        for name in ours['variants']:
            blocks[name]['baseline'] = blocks['at']['baseline']
        cases = measure.summary(blocks)
        for case, least in ours['least'].items():
            cases[case] |= least | roofline.compared(blocks[case]['ours'], opt.batch_size,
                                                     least['bound_seconds'])
        for name, chosen in ours['variants'].items():
            cases[name] |= chosen
        first = self.time_to_first_step(opt, ours['chosen']) if opt.fast else {}
        return measure.result(
            opt, ours['device'], **ours['chosen'], baseline_dtype='float', cases=cases,
            **ours['machine']._asdict(), time_to_first_step=first,
            peak_memory={'ours': ours['peak_memory'], 'baseline': plain['peak_memory']})

    def prepare(self, opt: argparse.Namespace, side: str) -> Prepared:
        """The cases of a side, in its process."""
        ours = side == 'ours'
        device, chosen = choose(self.real_options(opt, 'at'), ours)
        batches = self.batches(opt, side, device)
        warm_up = WARM_UP + (0 if ours else steps.PREFETCH * getattr(opt, 'workers', 0))
        contenders: dict[str, Callable[[], float]] = {}
        facts = {'device': device, 'chosen': chosen,
                 'variants': variants(chosen) if ours and opt.fast else {}}

        def block(consume: Consumer, n: int) -> float:
            return measure.images_per_second(batches(), consume, warm_up, n)

        for name, its in {**dict.fromkeys(self.cases, chosen), **facts['variants']}.items():
            case = name if name in self.cases else 'at'
            real = replaced(self.real_options(opt, case), **its)
            consume = steps.training(side, real, self.networks(opt, case), device, self.topk)
            contenders[name] = partial(block, consume, opt.steps)
            if name == 'at':
                block(consume, MEMORY)
                facts['peak_memory'] = exits.peak_memory(device)
        if self.loads:
            contenders['loader'] = partial(block, steps.dropping(device), opt.steps * self.loads)
        if ours:
            facts['machine'] = roofline.machine(device, chosen['dtype'])
            facts['least'] = {case: roofline.least(roofline.operations(
                replaced(self.real_options(opt, case), **chosen), self.networks(opt, case), opt.batch_size,
                getattr(opt, 'image_size', 32)), facts['machine']) for case in self.cases}
        return contenders, facts

    def time_to_first_step(self, opt: argparse.Namespace, chosen: dict[str, Any]) -> dict[str, float]:
        """Seconds from the start of a process to the end of its first AT step, eager and compiled."""
        seconds = {}
        for name in ['eager', 'compiled'] if chosen['compile'] else ['eager']:
            its = chosen | {'compile': name == 'compiled'}
            with tempfile.TemporaryDirectory() as cache:
                start = time.perf_counter()
                with sides.own_process(self.first_step, opt, its, cache):
                    seconds[name] = measure.rounded(time.perf_counter() - start)
            print(f'first step, {name}: after {seconds[name]} s', file=sys.stderr, flush=True)
        return seconds

    def first_step(self, opt: argparse.Namespace, its: dict[str, Any], cache: str) -> Prepared:
        """Compiled code goes to the folder `cache`."""
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = cache
        real = replaced(self.real_options(opt, 'at'), **its)
        device = devices.device(real)
        consume = steps.training('ours', real, self.networks(opt, 'at'), device, self.topk)
        consume(itertools.islice(self.batches(opt, 'ours', device)(), 1))
        return {}, {}


def choose(real: argparse.Namespace, ours: bool) -> tuple[torch.device, dict[str, Any]]:
    """The device of a side, its --dtype and --compile: for ours the choice of --fast for a long run.

    The baseline is plain float32. On a CPU its allocator is not changed.
    """
    if ours:
        device = devices.device(real)
        real = fast.chosen(real, device, fast.COMPILED_FROM)
    else:
        real = replaced(real, fast=False, dtype='float', compile=False)
        device = devices.device(real) if devices.cuda_devices(real) else torch.device('cpu')
    return device, {'dtype': real.dtype, 'compile': real.compile}


def variants(chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of AT steps that show the gain of each choice of --fast; not those that it has chosen."""
    found = {'at_float': {'dtype': 'float', 'compile': False}}
    if chosen['compile']:
        found['at_float_compiled'] = {'dtype': 'float', 'compile': True}
    return {name: its for name, its in found.items() if its != chosen}


def replaced(opt: argparse.Namespace, **values: Any) -> argparse.Namespace:
    return argparse.Namespace(**vars(opt) | values)
