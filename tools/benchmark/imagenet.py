"""`python -m tools.benchmark imagenet`: the step of imagenet.py on random images, ResNet-34 -> ResNet-18."""
import argparse
import itertools

import torch

import imagenet
import resnet
from inputs import images
from layers import Sample
from tools.benchmark import measure, steps
from tools.benchmark.script import Batches, Script
from tools.benchmark.steps import Networks
from training import options

TEACHER, STUDENT = 34, 18  # depths
NUM_CLASSES = 1000


class ImageNet(Script):
    cases = {'at': ['--beta', '1e+3', '--teacher_params', 'random'], 'student': []}
    topk = imagenet.TOPK

    def add_options(self, parser: options.Parser) -> None:
        measure.add_options(parser, batch_size=16, steps=3, rounds=5)
        parser.add_argument('--image_size', type=options.positive_int, default=images.SIZE,
                            help='height and width of the images')
        super().add_options(parser)

    def real_options(self, opt: argparse.Namespace, case: str) -> argparse.Namespace:
        """The learning rate is low: with random labels the usual one may diverge."""
        return imagenet.parse(['--imagenetpath', 'nowhere', *self.cases[case], '--lr', '1e-4',
                               *steps.shared_options(opt)])

    def networks(self, opt: argparse.Namespace, case: str) -> Networks:
        f_s, student = resnet.resnet(STUDENT, 1, NUM_CLASSES)
        f_t, teacher = resnet.resnet(TEACHER, 1, NUM_CLASSES) if case == 'at' else (None, {})
        return f_s, student, f_t, teacher

    def batches(self, opt: argparse.Namespace, side: str, device: torch.device) -> Batches:
        """The same batch again and again, for ours with channels last, as the loader gives it."""
        x = torch.randn(opt.batch_size, 3, opt.image_size, opt.image_size)
        if side == 'ours':
            x = x.contiguous(memory_format=torch.channels_last)
        sample = Sample(x.to(device), torch.randint(NUM_CLASSES, (opt.batch_size,)).to(device), 1)
        return lambda: (sample for _ in itertools.count())
