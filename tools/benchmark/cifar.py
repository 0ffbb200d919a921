"""`python -m tools.benchmark cifar`: the step and the loader of cifar.py, WRN-16-2 -> WRN-16-1."""
import argparse
import itertools
from collections.abc import Iterator
from functools import partial

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
from tools.benchmark import measure, steps
from tools.benchmark.script import Batches, Script
from tools.benchmark.steps import Networks
from training import options
from utils import InputError

TEACHER, STUDENT = (16, 2), (16, 1)  # depth and width


class Cifar(Script):
    cases = {'at': ['--beta', '1e+3'], 'kd': ['--alpha', '0.9'], 'student': []}
    without_teacher = frozenset(['student'])
    loads = 8

    def add_options(self, parser: options.Parser) -> None:
        parser.add_argument('--dataset', choices=list(data.CLASSES), default='shapes', help='data set')
        parser.add_argument('--dataroot', type=options.path, default='.', metavar='FOLDER',
                            help='folder of CIFAR')
        measure.add_options(parser, batch_size=128, steps=10, rounds=7)
        parser.add_argument('--workers', type=options.positive_int, default=4,
                            help='processes that load images for the baseline')
        super().add_options(parser)

    def real_options(self, opt: argparse.Namespace, case: str) -> argparse.Namespace:
        return cifar.parse([
            '--save', 'nowhere', *self.cases[case],
            *['--teacher_id', 'random'] * (case not in self.without_teacher),
            '--dataset', opt.dataset, '--dataroot', opt.dataroot, '--batch_size', str(opt.batch_size),
            *steps.shared_options(opt)])

    def networks(self, opt: argparse.Namespace, case: str) -> Networks:
        num_classes = data.CLASSES[opt.dataset]
        f_s, student = resnet.wide_resnet(*STUDENT, num_classes)
        alone = case in self.without_teacher
        f_t, teacher = (None, {}) if alone else resnet.wide_resnet(*TEACHER, num_classes)
        return f_s, student, f_t, teacher

    def batches(self, opt: argparse.Namespace, side: str, device: torch.device) -> Batches:
        where = device if side == 'ours' else torch.device('cpu')
        split, _ = data.load(opt.dataset, opt.dataroot, where)
        if opt.batch_size > len(split.labels):
            raise InputError(f'--batch_size {opt.batch_size} is more than the {len(split.labels)} images '
                             f'of {opt.dataset}')
        if side == 'ours':
            return partial(epochs, data.Loader(split, opt.batch_size, seed=1, pad=4), opt.batch_size)
        return partial(steps.plain_batches, PlainDataset(split), opt.batch_size, opt.workers, device)


def epochs(loader: data.Loader, batch_size: int) -> Iterator[Sample]:
    """Batches of one epoch after the other, all of one size, since another one would be compiled again."""
    for loader.epoch in itertools.count(1):
        yield from (sample for sample in loader if len(sample.labels) == batch_size)


class PlainDataset(Dataset):
    """uint8 images; each one becomes a PIL image, which is augmented (if `augmented`) and normalised."""

    def __init__(self, split: data.Images, augmented: bool = True):
        self.images, self.labels = split.images.cpu().numpy(), split.labels.tolist()
        augmentation = [transforms.Pad(4, padding_mode='reflect'), transforms.RandomCrop(32),
                        transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([
            *augmentation * augmented, transforms.ToTensor(),
            transforms.Normalize(*np.array([data.MEAN, data.STD]) / 255)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]
