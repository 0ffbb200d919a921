"""`python -m tools.benchmark losses`: the step of cifar.py with each loss, WRN-16-2 -> WRN-16-1, in turns."""
import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import method
from tools.benchmark import measure, steps
from tools.benchmark.cifar import Cifar
from tools.benchmark.measure import Consumer
from tools.benchmark.script import WARM_UP, Script, choose, replaced
from training import options

ALONE = 'student'


class Losses(Cifar):
    cases = {ALONE: [], **{row.name: [f'--{row.option}', str(min(row.most, 1.0))] for row in method.LOSSES}}
    without_teacher = frozenset([ALONE, *(row.name for row in method.LOSSES if not row.teacher)])

    def add_options(self, parser: options.Parser) -> None:
        measure.add_options(parser, batch_size=128, steps=5, rounds=5)
        Script.add_options(self, parser)
        parser.set_defaults(dataset='shapes', dataroot='.')

    def run(self, opt: argparse.Namespace) -> dict[str, Any]:
        device, chosen = choose(self.real_options(opt, 'at'), ours=True)
        uncompiled = {row.name for row in method.LOSSES if row.gradients}
        batches = self.batches(opt, 'ours', device)

        def block(consume: Consumer) -> float:
            return measure.images_per_second(batches(), consume, WARM_UP, opt.steps)

        contenders: dict[tuple[str, str], Callable[[], float]] = {}
        for case in self.cases:
            own = {'compile': False} if case in uncompiled else {}
            real = replaced(self.real_options(replaced(opt, **own), case), **chosen | own)
            consume = steps.training('ours', real, self.networks(opt, case), device)
            contenders[case, 'ours'] = partial(block, consume)
        speeds = {case: sides['ours'] for case, sides in measure.alternate(contenders, opt.rounds).items()}
        return measure.result(opt, device, **chosen, losses={
            case: figures(speeds[case], speeds['kd'], opt.batch_size) for case in self.cases})


def figures(speeds: list[float], of_kd: list[float], batch_size: int) -> dict[str, Any]:
    """Milliseconds a step and its ratio to KD, from images/s in the same rounds."""
    low, median, high = measure.spread(1000 * batch_size / speed for speed in speeds)
    ratio = measure.spread(kd / speed for speed, kd in zip(speeds, of_kd, strict=True))
    return {'milliseconds': median, 'quartiles': [low, high], 'ratio_to_kd': ratio.median}
