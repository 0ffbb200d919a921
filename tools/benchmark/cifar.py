"""`python -m tools.benchmark cifar`: the step and the loader of cifar.py."""
import argparse
import itertools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

import cifar
import resnet
from inputs import cifar as data
from layers import Sample
from tools.benchmark import measure, roofline, sides, steps
from tools.benchmark.measure import Blocks, Consumer
from tools.benchmark.sides import Prepared
from tools.benchmark.steps import Networks
from training import devices, exits, options
from utils import InputError

TEACHER, STUDENT = (16, 2), (16, 1)  # depth and width
CASES = {'at': ['--beta', '1e+3'], 'kd': ['--alpha', '0.9'], 'student': []}  # options of cifar.py
LOADER_BATCHES = 8  # batches of the loader alone, per step of a training block
MEMORY_STEPS = 4  # after which a process has had its peak of an AT step


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--dataset', choices=list(data.CLASSES), default='shapes')
    parser.add_argument('--dataroot', type=options.path, default='', metavar='FOLDER',
                        help='where CIFAR lies; . by default')
    parser.add_argument('--batch_size', type=options.positive_int, default=128)
    measure.add_blocks(parser, steps=10, rounds=7)
    parser.add_argument('--workers', type=options.positive_int, default=4,
                        help='processes that load images for the baseline')
    measure.add_profile(parser)
    sides.add_options(parser)


def run(opt: argparse.Namespace) -> dict[str, Any]:
    with sides.started(prepare, opt) as found:
        blocks = measure.alternate(sides.contenders(found), opt.rounds)
    facts, plain = found['ours'].facts, found['baseline'].facts
    described = facts['described']
    for name in facts['variants']:
        blocks[name]['baseline'] = blocks['at']['baseline']
    cases = measure.summary(blocks)
    for case, counted in facts['operations'].items():
        cases[case] |= roofline.beside(blocks[case]['ours'], opt.batch_size, counted, facts['machine'])
    for name, options_of_it in facts['variants'].items():
        cases[name] |= options_of_it
    first = time_to_first_step(opt, described['dtype'], described['compile']) if opt.fast else {}
    return {'benchmark': opt.command, **described, 'dataset': opt.dataset, 'batch': opt.batch_size,
            'steps': opt.steps, 'rounds': opt.rounds, 'workers': opt.workers,
            'compile_seconds': facts['compile_seconds'], **facts['machine'].figures(), 'cases': cases,
            'loader_share': loader_share(blocks), 'time_to_first_step': first,
            'peak_memory': facts['peak_memory'] | plain['peak_memory']}


# --- the process of each side -----------------------------------------------------------------------------


def prepare(opt: argparse.Namespace, side: str) -> Prepared:
    return ours(opt) if side == 'ours' else baseline(opt)


def ours(opt: argparse.Namespace) -> Prepared:
    """Our cases, compiled. The step with AT is first: its peak of memory is then that of the process."""
    fast = opt.fast
    opt, device = sides.ready(opt, 'ours', real_options)
    split, seconds = load(opt, device), {}

    def ready(name: str, case: str, its: argparse.Namespace) -> Consumer:
        consume = training_of('ours', its, case, device)
        if its.compile:
            seconds[name] = measure.compiled(name, consume, sizes(its, split))
        return consume

    consumers = {'at': ready('at', 'at', opt)}
    consumers['at'](itertools.islice(our_batches(opt, split), MEMORY_STEPS))
    peak = exits.peak_memory(device)
    if opt.profile:
        measure.profile(opt.profile, our_batches(opt, split), consumers['at'], device)
    extra = variants(opt) if fast else {}
    consumers |= {name: ready(name, 'at', sides.replaced(opt, **its)) for name, its in extra.items()}
    consumers |= {case: ready(case, case, opt) for case in CASES if case != 'at'}
    consumers['loader'] = steps.dropping(device)
    counted = {case: roofline.operations(
        real_options(opt, case), steps.folded(networks(case, data.CLASSES[opt.dataset])), opt.batch_size,
        split.images.shape[1]) for case in CASES}
    return Prepared({case: partial(our_block, opt, split, case, consume)
                     for case, consume in consumers.items()},
                    {'described': sides.described(opt, device), 'compile_seconds': seconds,
                     'variants': extra, 'operations': counted, 'machine': roofline.machine(device, opt.dtype),
                     'peak_memory': {'ours': peak, 'data_set': split.images.nbytes}})


def variants(opt: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options of AT steps that show what each choice of --fast brings; not those that it has chosen."""
    return {name: its for name, its in (('at_float', {'dtype': 'float', 'compile': False}),
                                        ('at_float_compiled', {'dtype': 'float', 'compile': True}))
            if its != {'dtype': opt.dtype, 'compile': opt.compile} and (opt.compile or not its['compile'])}


def baseline(opt: argparse.Namespace) -> Prepared:
    """The cases of the baseline; its images stay in the memory of the host."""
    opt, device = sides.ready(opt, 'baseline', real_options)
    split = load(opt, torch.device('cpu'))
    consumers = {case: training_of('baseline', opt, case, device) for case in CASES}
    plain_block(sides.replaced(opt, steps=MEMORY_STEPS), split, device, 'at', consumers['at'])
    peaks = peak_memory(device)
    consumers['loader'] = steps.dropping(device)
    return Prepared({case: partial(plain_block, opt, split, device, case, consume)
                     for case, consume in consumers.items()}, {'peak_memory': peaks})


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes of the baseline so far: allocated on CUDA, else resident in the process.

    Its workers are not part of that; 'baseline_worker' is the largest of them by itself, resident with the
    pages that it shares with the main process.
    """
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {'baseline': exits.peak_memory(device),
            'baseline_worker': largest * (1 if sys.platform == 'darwin' else 1024)}


def time_to_first_step(opt: argparse.Namespace, dtype: str, compiles: bool) -> dict[str, float]:
    """Seconds from the start of a process to the end of its first AT step: imports, data set, compiling."""
    seconds = {}
    for name in ['eager', 'compiled'] if compiles else ['eager']:
        its = sides.replaced(opt, fast=False, dtype=dtype, compile=name == 'compiled')
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            with sides.own_process(first_step, its, cache):
                seconds[name] = measure.rounded(time.perf_counter() - start)
        print(f'first step, {name}: after {seconds[name]} s', file=sys.stderr, flush=True)
    return seconds


def first_step(opt: argparse.Namespace, cache: str) -> Prepared:
    """Whatever is compiled goes to the folder `cache`."""
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = cache
    device = devices.device(real_options(opt, 'at'))
    batches = our_batches(opt, load(opt, device))
    training_of('ours', opt, 'at', device)(itertools.islice(batches, 1))
    return Prepared({}, {})


# --- steps and batches ------------------------------------------------------------------------------------


def load(opt: argparse.Namespace, device: torch.device) -> data.Images:
    split, _ = data.load(opt.dataset, opt.dataroot or '.', device)
    if opt.batch_size > len(split.labels):
        raise InputError(f'--batch_size {opt.batch_size} is more than the {len(split.labels)} images '
                         f'of {opt.dataset}')
    return split


def real_options(opt: argparse.Namespace, case: str) -> argparse.Namespace:
    """The options of cifar.py for a case, its own defaults included; nothing is read or saved."""
    teacher = ['--teacher_id', 'random'] if CASES[case] else []
    return cifar.parse(['--save', 'nowhere', *teacher, *CASES[case], '--dataset', opt.dataset,
                        '--batch_size', str(opt.batch_size), *sides.of_the_script(opt)])


def our_block(opt: argparse.Namespace, split: data.Images, case: str, consume: Consumer) -> float:
    """Images/s after a warm-up."""
    return measure.images_per_second(our_batches(opt, split), consume, measure.WARM_UP, length(opt, case))


def plain_block(opt: argparse.Namespace, split: data.Images, device: torch.device, case: str,
                consume: Consumer) -> float:
    """Images/s after a warm-up, which goes past what the workers got ready before."""
    batches = steps.plain_batches(PlainDataset(split), opt.batch_size, opt.workers, device)
    warm_up = measure.WARM_UP + steps.PREFETCH * opt.workers
    return measure.images_per_second(batches, consume, warm_up, length(opt, case))


def length(opt: argparse.Namespace, case: str) -> int:
    """Batches in a block."""
    return opt.steps * (LOADER_BATCHES if case == 'loader' else 1)


def training_of(side: str, opt: argparse.Namespace, case: str, device: torch.device) -> Consumer:
    made = networks(case, data.CLASSES[opt.dataset])
    f_s, student, f_t, teacher = steps.folded(made) if side == 'ours' else made
    if side == 'ours':
        student, teacher = devices.to_device(student, device), devices.to_device(teacher, device)
        return steps.our_training(real_options(opt, case), f_s, student, f_t, teacher)
    student = {name: t.to(device) for name, t in student.items()}
    teacher = {name: t.to(device) for name, t in teacher.items()}
    real = real_options(opt, case)
    return steps.plain_training(real, steps.plain_sgd(real, student), f_s, student, f_t, teacher)


def networks(case: str, num_classes: int) -> Networks:
    f_s, student = resnet.wide_resnet(*STUDENT, num_classes)
    f_t, teacher = resnet.wide_resnet(*TEACHER, num_classes) if CASES[case] else (None, {})
    return f_s, student, f_t, teacher


def our_batches(opt: argparse.Namespace, split: data.Images) -> Iterator[Sample]:
    real = real_options(opt, 'student')
    loader = data.Loader(split, real.batch_size, real.seed, real.randomcrop_pad)
    for loader.epoch in itertools.count(1):
        yield from loader


def sizes(opt: argparse.Namespace, split: data.Images) -> list[Sample]:
    """A batch of each size in a block: the last one of an epoch may be smaller."""
    batches = itertools.islice(our_batches(opt, split), measure.WARM_UP + opt.steps)
    return list({len(sample.labels): sample for sample in batches}.values())


class PlainDataset(Dataset):
    """Uint8 images; each becomes a PIL image that is augmented, if so, and normalised by itself."""

    def __init__(self, split: data.Images, augmented: bool = True):
        self.images, self.labels = split.images.cpu().numpy(), split.labels.tolist()
        drawn = [transforms.Pad(4, padding_mode='reflect'), transforms.RandomCrop(32),
                 transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([
            *drawn * augmented, transforms.ToTensor(),
            transforms.Normalize(*np.array([data.MEAN, data.STD]) / 255)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def loader_share(blocks: Blocks) -> float:
    """Time of our loader in our AT step, loader included."""
    pairs = zip(blocks['at']['ours'], blocks['loader']['ours'], strict=True)
    return measure.spread(a / b for a, b in pairs).median
