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
import PIL
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from inputs import folders, images, nvjpeg
from inputs.folders import Split
from layers import Sample
from tools.benchmark import measure, steps
from tools.benchmark.measure import SIDES, Contender
from training import exits, options
from utils import InputError

CPU = torch.device('cpu')
NORMALIZED = transforms.ToTensor(), transforms.Normalize(*np.array([images.MEAN, images.STD]) / 255)
PLAIN = {  # by crop of images.Loader, what the baseline makes of an image
    'resized': transforms.Compose([transforms.RandomResizedCrop(images.SIZE),
                                   transforms.RandomHorizontalFlip(), *NORMALIZED]),
    'center': transforms.Compose([transforms.Resize(images.SHORTER), transforms.CenterCrop(images.SIZE),
                                  *NORMALIZED]),
}
MOST = 1024  # images, by chance, of a larger folder
N_DRAWN, N_CLASSES = 32, 8
HEIGHT, WIDTH = 375, 500  # the most frequent in ImageNet
FIELDS, NOISE = {4: 40, 16: 30, 64: 20, 256: 20}, 10  # amplitudes: of fields of n x n knots, of each pixel


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--imagenetpath', type=options.path, default='', metavar='FOLDER',
                        help='of images, <class>/* or train/<class>/*; without it some are drawn')
    parser.add_argument('--batch_size', type=options.positive_int, default=32)
    measure.add_blocks(parser, steps=4, rounds=7)
    parser.add_argument('--decode', choices=['cpu', 'cuda'], default='cpu',
                        help='where ours decodes; with cuda the batches of both sides end on the GPU')
    parser.add_argument('--workers', type=options.count, default=0,
                        help='processes of each side; 0: this one alone, with one thread')


def run(opt: argparse.Namespace) -> dict[str, Any]:
    if opt.decode == 'cuda' and not torch.cuda.is_available():
        raise InputError('--decode cuda needs a CUDA device: leave it out')
    device = torch.device(opt.decode)
    if not opt.workers:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not opt.imagenetpath:
            draw(Path(folder))
        split = load(opt.imagenetpath or folder)
        split = only(split, np.random.default_rng(0).permutation(len(split.paths))[:MOST])
        # Reading them once brings the files to memory: no side has to wait for the disk.
        sizes = [len(Path(split.path(i)).read_bytes()) for i in range(len(split.paths))]
        blocks = measure.alternate({(crop, side): contender(opt, crop, side, split)
                                    for crop in PLAIN for side in SIDES}, opt.rounds)
    return {'benchmark': opt.command, 'device': device.type, **exits.provenance(device),
            'torchvision': torchvision.__version__, 'pillow': PIL.__version__,
            'threads': torch.get_num_threads(),
            'dataset': Path(opt.imagenetpath).resolve().name if opt.imagenetpath else 'drawn',
            'images': len(sizes), 'mean_bytes': round(sum(sizes) / len(sizes)), 'batch': opt.batch_size,
            'steps': opt.steps, 'rounds': opt.rounds, 'workers': opt.workers,
            'cases': measure.summary(blocks)}


def load(path: str) -> Split:
    """All images of a folder of classes, or of its folder `train`."""
    root = Path(path)
    try:
        return folders.classes_of(str(root / 'train' if (root / 'train').is_dir() else root))
    except OSError as e:
        raise InputError(f'--imagenetpath {e.filename} cannot be read ({e.strerror}): it must be a folder of '
                         'images, <class>/* or train/<class>/*') from None


def only(split: Split, index: np.ndarray) -> Split:
    return split._replace(paths=split.paths[index], labels=split.labels[index])


def draw(folder: Path) -> None:
    """JPEG files of about 100 KB, as those of ImageNet: sums of random fields, from smooth to noise."""
    rng = np.random.default_rng(0)
    for i in range(N_DRAWN):
        pixels = torch.from_numpy(rng.normal(128, NOISE, (1, 3, HEIGHT, WIDTH)))
        for n, amplitude in FIELDS.items():
            field = torch.from_numpy(rng.normal(0, amplitude, (1, 3, n, n)))
            pixels += F.interpolate(field, (HEIGHT, WIDTH), mode='bicubic')
        path = folder / str(i % N_CLASSES) / f'{i}.jpg'
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(pixels[0].clip(0, 255).byte().permute(1, 2, 0).numpy())
        image.save(path, quality=90)


def contender(opt: argparse.Namespace, crop: str, side: str, split: Split) -> Contender:
    """Each call measures a block, after a warm-up past what workers got ready while nobody waited."""
    device = torch.device(opt.decode)
    warm_up = 1 + steps.PREFETCH * opt.workers
    if side == 'ours':
        # An epoch is a block with as much after it as workers prepare meanwhile: they never run out of work.
        index = np.arange(opt.batch_size * (2 * warm_up + opt.steps)) % len(split.paths)
        seed = None if crop == 'center' else 1
        kind = nvjpeg.Loader if opt.decode == 'cuda' else images.Loader
        batches = partial(our_batches, kind(only(split, index), opt.batch_size, device, crop, seed,
                                            opt.workers))
    else:
        dataset = ImageFolder(split.root, PLAIN[crop])
        dataset.samples = [(split.path(i), label) for i, label in enumerate(split.labels.tolist())]
        batches = partial(steps.plain_batches, dataset, opt.batch_size, opt.workers, device)
    return lambda: measure.images_per_second(batches(), steps.dropping(device), warm_up, opt.steps)


def our_batches(loader: images.Loader) -> Iterator[Sample]:
    """Of an epoch with draws of its own; the workers end with it, however early."""
    loader.epoch += 1
    with closing(loader):
        yield from loader
