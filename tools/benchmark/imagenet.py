"""`python -m tools.benchmark imagenet`: the step of imagenet.py, on random images that are in memory.

Ours computes with channels last, as its loader gives them, and a folded teacher; the baseline with channels
first and a teacher with BN. Cases: the step with attention transfer, that of a student alone, and the
teacher alone.
"""
import argparse
import itertools
from collections.abc import Iterable
from typing import Any

import torch

import devices
import imagenet
import images
import options
import process
import resnet
from data import Sample
from tools.benchmark import measure, roofline, steps
from tools.benchmark.measure import SIDES, Consumer, Contender
from tools.benchmark.steps import Networks
from utils import Network, Params

TEACHER, STUDENT = 34, 18  # depths
NUM_CLASSES = 1000
CASES = ('at', 'student', 'teacher')
SMALLEST = 64  # with which a map of the last group has 2 x 2 elements
BATCH_SIZE = {'cpu': 16, 'cuda': 256}


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--batch_size', type=options.positive_int, help='None: 16 on a CPU, 256 on CUDA')
    parser.add_argument('--image_size', type=options.positive_int, default=images.SIZE, help='in pixels')
    measure.add_blocks(parser, steps=3, rounds=5)
    measure.add_ours(parser)


def run(opt: argparse.Namespace) -> dict[str, Any]:
    device = devices.device(real_options(opt, 'at'))
    opt.batch_size = opt.batch_size or BATCH_SIZE[device.type]
    memory = {} if opt.no_memory else measure.memory_of_sides(peak_memory, opt)
    consumers = {(case, side): (ours if side == 'ours' else plain)(opt, case, device)
                 for case in CASES for side in SIDES}
    sample = batch(opt, 'ours', device)
    learning = {case: consumers[case, 'ours'] for case in CASES if case != 'teacher'}
    compile_seconds = measure.compiled(learning, [sample]) if opt.compile else {}
    if opt.profile:
        measure.profile(opt.profile, (sample for _ in itertools.count()), learning['at'], device)
    machine = roofline.machine(device, opt.dtype)
    blocks = measure.alternate({key: contender(opt, key[1], device, consume)
                                for key, consume in consumers.items()}, opt.rounds)
    cases = measure.summary(blocks)
    for case in learning:
        counted = roofline.operations(real_options(opt, case), steps.folded(networks(case)), opt.batch_size,
                                      opt.image_size)
        cases[case] |= roofline.beside(blocks[case]['ours'], opt.batch_size, counted, machine)
    return {'benchmark': opt.command, 'device': device.type, **process.provenance(device),
            'threads': torch.get_num_threads(), 'dtype': opt.dtype, 'baseline_dtype': 'float',
            'batch': opt.batch_size, 'image_size': opt.image_size, 'steps': opt.steps, 'rounds': opt.rounds,
            'compile': opt.compile, 'compile_seconds': compile_seconds, **machine.figures(), 'cases': cases,
            'peak_memory': memory}


def real_options(opt: argparse.Namespace, case: str) -> argparse.Namespace:
    """The options of imagenet.py for a case, its own defaults included; nothing is read or saved.

    Only lr is lower: it costs no time, and the usual one might not bear labels by chance.
    """
    learns = ['--teacher_params', 'random', '--beta', '1e+3'] if case == 'at' else []
    return imagenet.parse(['--imagenetpath', 'nowhere', *learns, '--lr', '1e-4',
                           '--device', opt.device, '--dtype', opt.dtype, *['--compile'] * opt.compile])


def contender(opt: argparse.Namespace, side: str, device: torch.device, consume: Consumer) -> Contender:
    """Each call measures a block after a step as a warm-up."""
    sample = batch(opt, side, device)
    return lambda: measure.images_per_second((sample for _ in itertools.count()), consume, 1, opt.steps)


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
    return steps.plain_training(real_options(opt, case), f_s, student, f_t, teacher, imagenet.TOPK)


def forward(f: Network, params: Params, device: torch.device, dtype: str) -> Consumer:
    """Of a network in evaluation mode."""
    wait = steps.dropping(device)

    @torch.no_grad()
    def computed(sample: Sample) -> Sample:
        with devices.autocast(device, dtype):
            f(sample.x, params, False)
        return sample

    def consume(batches: Iterable[Sample]) -> int:
        return wait(map(computed, batches))

    return consume


def peak_memory(opt: argparse.Namespace, side: str) -> dict[str, int]:
    """{side: bytes} at most in AT steps: allocated on CUDA, else resident in the process."""
    device = devices.device(real_options(opt, 'at'))
    opt = argparse.Namespace(**vars(opt) | {'steps': 1})
    contender(opt, side, device, (ours if side == 'ours' else plain)(opt, 'at', device))()
    return {side: process.peak_memory(device)}
