"""`python -m tools.benchmark cifar`: the step and the loader of cifar.py."""
import argparse
import itertools
import resource
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

import cifar
import data
import devices
import options
import process
import resnet
from data import Sample
from tools.benchmark import measure, roofline, steps
from tools.benchmark.measure import SIDES, Blocks, Consumer, Contender
from tools.benchmark.steps import Networks
from utils import InputError

TEACHER, STUDENT = (16, 2), (16, 1)  # depth and width
CASES = {'student': [], 'kd': ['--alpha', '0.9'], 'at': ['--beta', '1e+3']}  # options of cifar.py
LOADER_BATCHES = 8  # batches of the loader alone, per step of a training block
MEMORY_STEPS = 4


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--dataset', choices=list(data.CLASSES), default='shapes')
    parser.add_argument('--dataroot', type=options.path, default='', metavar='FOLDER',
                        help='where CIFAR lies; . by default')
    parser.add_argument('--batch_size', type=options.positive_int, default=128)
    measure.add_blocks(parser, steps=10, rounds=7)
    parser.add_argument('--workers', type=options.positive_int, default=4,
                        help='processes that load images for the baseline')
    measure.add_ours(parser)


def run(opt: argparse.Namespace) -> dict[str, Any]:
    device = devices.device(real_options(opt, 'student'))
    memory = {} if opt.no_memory else measure.memory_of_sides(peak_memory, opt)
    split = load(opt, device)
    consumers = {(case, side): consumer(opt, case, side, device)
                 for case in [*CASES, 'loader'] for side in SIDES}
    ours = {case: consumers[case, 'ours'] for case in CASES}
    compile_seconds = measure.compiled(ours, sizes(opt, split)) if opt.compile else {}
    if opt.profile:
        measure.profile(opt.profile, our_batches(opt, split), ours['at'], device)
    machine = roofline.machine(device, opt.dtype)
    blocks = measure.alternate({key: contender(opt, *key, split, consume)
                                for key, consume in consumers.items()}, opt.rounds)
    cases = measure.summary(blocks)
    for case in CASES:
        made = steps.folded(networks(case, data.CLASSES[opt.dataset]))
        counted = roofline.operations(real_options(opt, case), made, opt.batch_size, split.images.shape[1])
        cases[case] |= roofline.beside(blocks[case]['ours'], opt.batch_size, counted, machine)
    return {'benchmark': opt.command, 'device': device.type, **process.provenance(device),
            'threads': torch.get_num_threads(), 'dtype': opt.dtype, 'baseline_dtype': 'float',
            'dataset': opt.dataset, 'batch': opt.batch_size, 'steps': opt.steps, 'rounds': opt.rounds,
            'workers': opt.workers, 'compile': opt.compile, 'compile_seconds': compile_seconds,
            **machine.figures(), 'cases': cases, 'loader_share': loader_share(blocks),
            'peak_memory': memory | {'data_set': split.images.nbytes}}


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
                        '--device', opt.device, '--dtype', opt.dtype, '--batch_size', str(opt.batch_size),
                        *['--compile'] * opt.compile])


def consumer(opt: argparse.Namespace, case: str, side: str, device: torch.device) -> Consumer:
    return steps.dropping(device) if case == 'loader' else training_of(side, opt, case, device)


def contender(opt: argparse.Namespace, case: str, side: str, split: data.Images,
              consume: Consumer) -> Contender:
    """Each call measures a block after a warm-up."""
    n = opt.steps * (LOADER_BATCHES if case == 'loader' else 1)
    if side == 'ours':
        return lambda: measure.images_per_second(our_batches(opt, split), consume, measure.WARM_UP, n)
    dataset, device = PlainDataset(split), split.images.device
    warm_up = measure.WARM_UP + steps.PREFETCH * opt.workers  # past what they got ready before
    return lambda: measure.images_per_second(
        steps.plain_batches(dataset, opt.batch_size, opt.workers, device), consume, warm_up, n)


def training_of(side: str, opt: argparse.Namespace, case: str, device: torch.device) -> Consumer:
    made = networks(case, data.CLASSES[opt.dataset])
    f_s, student, f_t, teacher = steps.folded(made) if side == 'ours' else made
    if side == 'ours':
        student, teacher = devices.to_device(student, device), devices.to_device(teacher, device)
        return steps.our_training(real_options(opt, case), f_s, student, f_t, teacher)
    student = {name: t.to(device) for name, t in student.items()}
    teacher = {name: t.to(device) for name, t in teacher.items()}
    return steps.plain_training(real_options(opt, case), f_s, student, f_t, teacher)


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
    """A batch of each size in an epoch: the last one may be smaller."""
    batches = {len(sample.labels): sample
               for sample in data.Loader(split, opt.batch_size, real_options(opt, 'student').seed)}
    return list(batches.values())


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


def peak_memory(opt: argparse.Namespace, side: str) -> dict[str, int]:
    """{side: bytes} at most in a few AT steps: allocated on CUDA, else resident in the main process.

    The baseline's workers are not part of its figure; 'baseline_worker' is the largest of them by itself,
    resident with the pages that it shares with the main process.
    """
    device = devices.device(real_options(opt, 'at'))
    opt = argparse.Namespace(**vars(opt) | {'steps': MEMORY_STEPS})
    contender(opt, 'at', side, load(opt, device), consumer(opt, 'at', side, device))()
    result = {side: process.peak_memory(device)}
    if side == 'baseline':
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result['baseline_worker'] = largest * (1 if sys.platform == 'darwin' else 1024)
    return result


def loader_share(blocks: Blocks) -> float:
    """Time of our loader in our AT step, loader included."""
    pairs = zip(blocks['at']['ours'], blocks['loader']['ours'], strict=True)
    return measure.spread(a / b for a, b in pairs).median
