"""`python -m tools.benchmark imagenet`: the step of imagenet.py, on random images that are in memory.

Ours computes with channels last, as its loader gives them, and a folded teacher; the baseline with channels
first and a teacher with BN. Cases: the step with attention transfer, that of a student alone, and the
teacher alone.
"""
import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

import imagenet
import layers
import resnet
from inputs import images
from layers import Network, Params, Sample
from tools.benchmark import measure, roofline, sides, steps
from tools.benchmark.measure import Consumer
from tools.benchmark.sides import Prepared
from tools.benchmark.steps import Networks
from training import devices, exits, options

TEACHER, STUDENT = 34, 18  # depths
NUM_CLASSES = 1000
CASES = ('at', 'student', 'teacher')
SMALLEST = 64  # with which a map of the last group has 2 x 2 elements
BATCH_SIZE = {'cpu': 16, 'cuda': 256}


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--batch_size', type=options.positive_int, help='None: 16 on a CPU, 256 on CUDA')
    parser.add_argument('--image_size', type=options.positive_int, default=images.SIZE, help='in pixels')
    measure.add_blocks(parser, steps=3, rounds=5)
    measure.add_profile(parser)
    sides.add_options(parser)


def run(opt: argparse.Namespace) -> dict[str, Any]:
    cuda = devices.cuda_devices(real_options(opt, 'at'))
    opt = sides.replaced(opt, batch_size=opt.batch_size or BATCH_SIZE['cuda' if cuda else 'cpu'])
    with sides.started(prepare, opt) as found:
        blocks = measure.alternate(sides.contenders(found), opt.rounds)
    facts, plain = found['ours'].facts, found['baseline'].facts
    cases = measure.summary(blocks)
    for case, counted in facts['operations'].items():
        cases[case] |= roofline.beside(blocks[case]['ours'], opt.batch_size, counted, facts['machine'])
    return {'benchmark': opt.command, **facts['described'], 'batch': opt.batch_size,
            'image_size': opt.image_size, 'steps': opt.steps, 'rounds': opt.rounds,
            'compile_seconds': facts['compile_seconds'], **facts['machine'].figures(), 'cases': cases,
            'peak_memory': facts['peak_memory'] | plain['peak_memory']}


def real_options(opt: argparse.Namespace, case: str) -> argparse.Namespace:
    """The options of imagenet.py for a case, its own defaults included; nothing is read or saved.

    Only lr is lower: it costs no time, and the usual one might not bear labels by chance.
    """
    learns = ['--teacher_params', 'random', '--beta', '1e+3'] if case == 'at' else []
    return imagenet.parse(['--imagenetpath', 'nowhere', *learns, '--lr', '1e-4', *sides.of_the_script(opt)])


# --- the process of each side -----------------------------------------------------------------------------


def prepare(opt: argparse.Namespace, side: str) -> Prepared:
    """The cases of a side. The step with AT is first: its peak of memory is then that of the process."""
    opt, device = sides.ready(opt, side, real_options)
    sample, seconds, peaks, contenders = batch(opt, side, device), {}, {}, {}
    for case in CASES:
        consume = (ours if side == 'ours' else plain)(opt, case, device)
        if opt.compile and case != 'teacher':
            seconds[case] = measure.compiled(case, consume, [sample])
        contenders[case] = partial(block, sample, consume, opt.steps)
        if case == 'at':
            block(sample, consume, 1)
            peaks[side] = exits.peak_memory(device)
            if opt.profile and side == 'ours':
                measure.profile(opt.profile, endless(sample), consume, device)
    facts = {'peak_memory': peaks}
    if side == 'ours':
        counted = {case: roofline.operations(real_options(opt, case), steps.folded(networks(case)),
                                             opt.batch_size, opt.image_size) for case in ('at', 'student')}
        facts |= {'described': sides.described(opt, device), 'compile_seconds': seconds,
                  'operations': counted, 'machine': roofline.machine(device, opt.dtype)}
    return Prepared(contenders, facts)


def block(sample: Sample, consume: Consumer, n: int) -> float:
    """Images/s of n steps, after one as a warm-up."""
    return measure.images_per_second(endless(sample), consume, 1, n)


def endless(sample: Sample) -> Iterator[Sample]:
    while True:
        yield sample


def batch(opt: argparse.Namespace, side: str, device: torch.device) -> Sample:
    x = torch.randn(opt.batch_size, 3, opt.image_size, opt.image_size)
    labels = torch.randint(NUM_CLASSES, (opt.batch_size,))
    if side == 'ours':
        x = x.contiguous(memory_format=torch.channels_last)
    return Sample(x.to(device), labels.to(device), 1)


def networks(case: str) -> Networks:
    f_s, student = resnet.resnet(STUDENT, 1, NUM_CLASSES) if case != 'teacher' else (None, {})
    f_t, teacher = resnet.resnet(TEACHER, 1, NUM_CLASSES) if case != 'student' else (None, {})
    return f_s, student, f_t, teacher


def ours(opt: argparse.Namespace, case: str, device: torch.device) -> Consumer:
    f_s, student, f_t, teacher = steps.folded(networks(case))
    student, teacher = devices.to_device(student, device), devices.to_device(teacher, device)
    if case == 'teacher':
        return forward(f_t, teacher, device, opt.dtype)
    return steps.our_training(real_options(opt, case), f_s, student, f_t, teacher, imagenet.TOPK)


def plain(opt: argparse.Namespace, case: str, device: torch.device) -> Consumer:
    f_s, student, f_t, teacher = networks(case)
    student = {name: t.to(device) for name, t in student.items()}
    teacher = {name: t.to(device) for name, t in teacher.items()}
    if case == 'teacher':
        return forward(f_t, teacher, device, 'float')
    real = real_options(opt, case)
    optimizer = steps.plain_sgd(real, student)
    return steps.plain_training(real, optimizer, f_s, student, f_t, teacher, imagenet.TOPK)


def forward(f: Network, params: Params, device: torch.device, dtype: str) -> Consumer:
    """Of a network in evaluation mode."""
    wait = steps.dropping(device)

    @torch.no_grad()
    def computed(sample: Sample) -> Sample:
        with layers.autocast(device, dtype):
            f(sample.x, params, False)
        return sample

    def consume(batches: Iterable[Sample]) -> int:
        return wait(map(computed, batches))

    return consume
