"""Data sets in memory and their loaders: uint8 images on the device, whole batches augmented at once.

    train_set, test_set = data.load('CIFAR10', root='data', device=torch.device('cuda'))
    for sample in data.Loader(train_set, batch_size=128, seed=1, pad=4):
        ...
"""
import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from inputs import shapes
from layers import Sample
from utils import InputError

# Of CIFAR-10. As in the published code, CIFAR-100 uses them too, and so do the built-in shapes.
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
NORMALIZATIONS = {  # mean and deviation of red, green and blue in 0 ... 255
    'cifar10': (MEAN, STD),
    # Those of RepDistiller and mdistiller.
    'cifar100': tuple(tuple(255 * v for v in values)
                      for values in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))}
CLASSES = {'CIFAR10': 10, 'CIFAR100': 100, 'shapes': len(shapes.CLASSES)}
SIZE = 32  # side of an image
HELD_OUT_SEED = 1612_03928  # the same images in every run, whatever its --seed
TEST_BATCH = {'cpu': 200, 'cuda': 2000}
AT_ONCE = {'cpu': 1, 'cuda': 16}  # batches made at once: otherwise a GPU waits for launches


class Images(NamedTuple):
    """A whole split on one device."""
    images: Tensor  # (N, H, W, 3) uint8
    labels: Tensor  # (N,) int64


def load(name: str, root: str, device: torch.device, max_images: int = 0,
         val_images: int = 0) -> tuple[Images, Images]:
    """Training and test split of CIFAR10 or CIFAR100, downloaded to `root` if missing, or of shapes.

    max_images: only the first ones of each split; 0: all. val_images: this many training images are held out,
    and returned instead of the test split.
    """
    if name == 'shapes':
        splits: list[tuple] = [shapes.load(train, first=max_images or None) for train in (True, False)]
    else:
        splits = [_cifar(name, root, train) for train in (True, False)]
    first = slice(max_images or None)
    train, test = (Images(torch.from_numpy(x[first]).to(device),
                          torch.as_tensor(y[first], dtype=torch.int64).to(device)) for x, y in splits)
    if val_images:
        held = held_out(train.labels, val_images)
        return Images(*(t[~held] for t in train)), Images(*(t[held] for t in train))
    return train, test


def held_out(labels: Tensor, n: int) -> Tensor:
    """labels (N,) -> (N,) bool, True for n of them: each class in proportion, the same ones in every run."""
    classes, counts = labels.unique(return_counts=True)
    if not len(classes) <= n < len(labels):
        raise InputError(f'--val_images {n} does not fit {len(labels)} training images of {len(classes)} '
                         'classes: give at least one for each class, and fewer than there are')
    exact = counts.double() * n / len(labels)
    take = exact.floor().long()
    take[(exact - take).argsort(descending=True, stable=True)[:n - int(take.sum())]] += 1
    drawn = generator(HELD_OUT_SEED, 0, 0)
    held = torch.zeros_like(labels, dtype=torch.bool)
    for label, k in zip(classes, take.tolist(), strict=True):
        of_class = (labels == label).nonzero().flatten()
        held[of_class[torch.randperm(len(of_class), generator=drawn)[:k].to(labels.device)]] = True
    return held


def _cifar(name: str, root: str, train: bool) -> tuple[np.ndarray, Sequence[int]]:
    """A split, from files whose checksums torchvision compares, and which it downloads if there are none."""
    kind = getattr(datasets, name)
    folder = os.path.join(root, kind.base_folder)
    missing = not os.path.isdir(folder)
    new = [p for p in (Path(root), *Path(root).parents) if not p.exists()]
    try:
        with warnings.catch_warnings():  # numpy 2.4.0 and 2.4.1 warn about how these files were written
            warnings.simplefilter('ignore', np.exceptions.VisibleDeprecationWarning)
            split = kind(root, train=train, download=missing)
    except (OSError, RuntimeError, HTTPException) as e:  # no network, no such server, no room, ...
        with contextlib.suppress(OSError):
            for made in new:
                os.rmdir(made)
        why = (f'cannot be downloaded ({str(e).splitlines()[0]})' if missing else
               'is incomplete or damaged: delete the folder to download it again')
        raise InputError(f'{name} in {folder} {why}; or name another folder with --dataroot, or use '
                         '--dataset shapes') from None
    return np.ascontiguousarray(split.data), split.targets  # torchvision gives a view of (N, 3, 32, 32)


def crop_flip(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Images at `index` (B,), padded by reflection, cropped at `offset` (B, 2), mirrored by `flip` (B,).

    images (N, H, W, 3) -> (B, H, W, 3) of the same dtype. An offset (row, column) is in 0 ... 2 pad; `pad` is
    less than H and W. There is no padded copy: each pixel is read from the place of its reflection.
    """
    def source(size: int, start: Tensor) -> Tensor:
        i = torch.arange(size, device=images.device) + start[:, None] - pad  # (B, size)
        return size - 1 - (size - 1 - i.abs()).abs()

    rows, columns = source(images.shape[1], offset[:, 0]), source(images.shape[2], offset[:, 1])
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalize(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), (pixel - mean) / std, channels last in memory."""
    means, stds = _row(mean, std, images.shape[2], images.device)
    return images.flatten(2).float().sub_(means).div_(stds).view(images.shape).permute(0, 3, 1, 2)


@functools.cache  # a copy to the device in each step would wait for it
def _row(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    return torch.tensor([mean, std], device=device).repeat(1, width)  # a whole row: loops over 3 are slow


def parts(n: int, batch_size: int, rank: int, ranks: int) -> list[tuple[slice, float]]:
    """The part of a rank in each batch of n images, and its share in the gradient.

    With the share, n_part * ranks / n_batch, the mean of the ranks' gradients is that of the whole batch. A
    last batch of one image, or of fewer images than ranks, joins the one before it, since losses that compare
    images, and BN, need more.
    """
    if n < ranks:
        raise InputError(f'{n} images are too few for {ranks} ranks: give a smaller --ngpu')
    if batch_size < ranks:
        raise InputError(f'--batch_size {batch_size} is for all ranks together: give at least {ranks}')
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] < min(batch_size, max(ranks, 2)):
        starts.pop()
    found = []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        size = stop - start
        part = slice(start + rank * size // ranks, start + (rank + 1) * size // ranks)
        found.append((part, (part.stop - part.start) * ranks / size))
    return found


class RankLoader:
    """Base of the loaders: the parts of a rank in batches of n images."""

    def __init__(self, n: int, batch_size: int, rank: int, ranks: int):
        self.parts = parts(n, batch_size, rank, ranks)
        self.epoch = 1
        self.damaged = 0  # images that were skipped in the epoch

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def n_images(self) -> int:
        """Number of images of this rank in an epoch."""
        return sum(part.stop - part.start for part, _ in self.parts)


class Loader(RankLoader):
    """Batches of a split: with a seed, shuffled and augmented for epoch `epoch`; without, in its order.

    Augmentation is a random crop, after a reflected border of `pad` pixels, and with `flip` a random mirror.
    Order and augmentation have their own generators, from (seed, epoch, stream). So an epoch does not depend
    on earlier ones, or on the number of ranks. Each rank gets a part of each batch. Each image comes once.
    """

    def __init__(self, split: Images, batch_size: int, seed: int | None = None, pad: int = 0,
                 rank: int = 0, ranks: int = 1, flip: bool = True, normalization: str = 'cifar10'):
        super().__init__(len(split.labels), batch_size, rank, ranks)
        mean, std = NORMALIZATIONS[normalization]
        self.normalize = functools.partial(normalize, mean=mean, std=std)
        self.split, self.seed, self.pad, self.flip, self.device = split, seed, pad, flip, split.images.device

    def __iter__(self) -> Iterator[Sample]:
        images, labels = self.split
        if self.seed is None:
            for batch, (part, share) in enumerate(self.parts):
                yield Sample(self.normalize(images[part]), labels[part], self.epoch, batch, share)
            return
        draws = [draw.to(self.device) for draw in self._draws(self.seed)]
        n = AT_ONCE[self.device.type]
        batch = 0
        for some in (self.parts[i:i + n] for i in range(0, len(self.parts), n)):
            index, offset, flip = (torch.cat([draw[part] for part, _ in some]) for draw in draws)
            x = self.normalize(crop_flip(images, index, offset, flip, self.pad))
            sizes = [part.stop - part.start for part, _ in some]
            for x_b, y_b, (_, share) in zip(x.split(sizes), labels[index].split(sizes), some, strict=True):
                yield Sample(x_b, y_b, self.epoch, batch, share)
                batch += 1

    def _draws(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        order, augmentation = (generator(seed, self.epoch, stream) for stream in (0, 1))
        n = len(self.split.labels)
        return (torch.randperm(n, generator=order),
                torch.randint(2 * self.pad + 1, (n, 2), generator=augmentation),
                torch.rand(n, generator=augmentation) < (0.5 if self.flip else 0))


def generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    """A new CPU generator for one epoch: stream 0 is the order of the images, 1 their augmentation."""
    state = np.random.SeedSequence((seed, epoch, stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
