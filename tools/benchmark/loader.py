"""`python -m tools.benchmark loader`: image files -> normalised batches, without a network.

Without workers both sides compute in this process with one thread: images/s of one core.
"""
import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from inputs import folders, images
from inputs.folders import Split
from layers import Sample
from tools.benchmark import measure, steps
from tools.benchmark.measure import SIDES, Contender
from training import options

CPU = torch.device('cpu')
NORMALIZED = transforms.ToTensor(), transforms.Normalize(*np.array([images.MEAN, images.STD]) / 255)
PLAIN = {  # transforms of the baseline, by crop of images.Loader
    'resized': transforms.Compose([transforms.RandomResizedCrop(images.SIZE),
                                   transforms.RandomHorizontalFlip(), *NORMALIZED]),
    'center': transforms.Compose([transforms.Resize(images.SHORTER), transforms.CenterCrop(images.SIZE),
                                  *NORMALIZED]),
}
MOST = 1024  # images; of a larger folder, a random choice
N_DRAWN = 32


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--imagenetpath', type=options.path, default='', metavar='FOLDER',
                        help='folder of images, <class>/* or train/<class>/* (default: random images)')
    measure.add_options(parser, batch_size=32, steps=4, rounds=7)
    parser.add_argument('--workers', type=options.count, default=0,
                        help='processes of each side; 0: the process of the benchmark, with one thread')


def run(opt: argparse.Namespace) -> dict[str, Any]:
    if not opt.workers:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not opt.imagenetpath:
            draw(Path(folder))
        split = load(Path(opt.imagenetpath or folder))
        split = only(split, np.random.default_rng(0).permutation(len(split.paths))[:MOST])
        # Reading the files once brings them to memory: no side waits for the disk.
        sizes = [len(Path(split.path(i)).read_bytes()) for i in range(len(split.paths))]
        blocks = measure.alternate({(crop, side): contender(opt, crop, side, split)
                                    for crop in PLAIN for side in SIDES}, opt.rounds)
    return measure.result(opt, CPU, images=len(sizes), mean_bytes=round(sum(sizes) / len(sizes)),
                          dataset=Path(opt.imagenetpath).resolve().name if opt.imagenetpath else 'drawn',
                          cases=measure.summary(blocks))


def load(root: Path) -> Split:
    """All images of a folder of classes, or of its folder `train`."""
    return folders.classes_of(str(root / 'train' if (root / 'train').is_dir() else root))


def only(split: Split, index: np.ndarray) -> Split:
    return split._replace(paths=split.paths[index], labels=split.labels[index])


def draw(folder: Path) -> None:
    """JPEG files of about 100 KB and 500 x 375 pixels, like those of ImageNet: smooth fields with noise."""
    rng = np.random.default_rng(0)
    for i in range(N_DRAWN):
        pixels = torch.from_numpy(rng.normal(128, 10, (1, 3, 375, 500)))
        for n, amplitude in ((4, 40), (64, 25), (256, 20)):
            field = torch.from_numpy(rng.normal(0, amplitude, (1, 3, n, n)))
            pixels += F.interpolate(field, (375, 500), mode='bicubic')
        path = folder / str(i % 8) / f'{i}.jpg'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[0].clip(0, 255).byte().permute(1, 2, 0).numpy()).save(path, quality=90)


def contender(opt: argparse.Namespace, crop: str, side: str, split: Split) -> Contender:
    """Each call measures a block; the warm-up uses up what workers have prepared in the meantime."""
    warm_up = 1 + steps.PREFETCH * opt.workers
    if side == 'ours':
        # An epoch is longer than a block by what workers prepare meanwhile, so they never run out of work.
        index = np.arange(opt.batch_size * (2 * warm_up + opt.steps)) % len(split.paths)
        seed = None if crop == 'center' else 1
        batches = partial(our_batches, images.Loader(only(split, index), opt.batch_size, CPU, crop, seed,
                                                     opt.workers))
    else:
        dataset = ImageFolder(split.root, PLAIN[crop])
        dataset.samples = [(split.path(i), label) for i, label in enumerate(split.labels.tolist())]
        batches = partial(steps.plain_batches, dataset, opt.batch_size, opt.workers, CPU)
    return lambda: measure.images_per_second(batches(), steps.dropping(CPU), warm_up, opt.steps)


def our_batches(loader: images.Loader) -> Iterator[Sample]:
    """A new epoch; its workers end with it, however early."""
    loader.epoch += 1
    with closing(loader):
        yield from loader
