"""Images from files: decoding, crops, and a loader with worker processes.

    train_set, test_set = splits.load('cub', 'CUB_200_2011')
    for x, labels, epoch, share in images.Loader(train_set, 64, torch.device('cuda'), 'random', seed=1):
        ...
"""
import contextlib
import functools
import io
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.io import ImageReadMode, decode_jpeg

import data
from splits import Split
from utils import InputError, Sample

SIZE, SHORTER = 224, 256  # side of what the network gets, and shorter side of what it is cut from
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, for pixels of 0 ... 255
SCALE, RATIO = (0.08, 1), (3 / 4, 4 / 3)  # of a window's area in the image, and of its width to its height
MAX_PIXELS = 64_000_000
FREE_PIXELS = 16_000_000  # however small the file
MAX_PIXELS_PER_BYTE = 1000  # of more than FREE_PIXELS; photographs have 1 to 60, scans of text up to 700
MAX_SIDE = 65_535  # JPEG's; PIL takes memory for each row
MAX_SCANS = 200  # of a JPEG, which is gone through for each; common are 1 to 12
TRIES = 100  # damaged images in a row, after which the fault lies elsewhere
CROPS = ('resized', 'random', 'center')
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM')  # for others PIL may start programs


class Damaged(Exception):
    """An image that cannot be used; the message is the reason, without the name of the file."""


# --- one image -------------------------------------------------------------------------------------------


def decode(content: bytes) -> Tensor:
    """Content of an image file -> uint8 (3, H, W), RGB, not turned by EXIF, as torchvision's ImageFolder.

    Whatever its name says, the content tells the format. Damaged: no image or part of one, or MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads the header
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Damaged(f'its {width}x{height} pixels are more than {MAX_PIXELS:,}')
            if max(width, height) > MAX_SIDE:
                raise Damaged(f'its {width}x{height} pixels are too long and thin')
            if width * height > max(FREE_PIXELS, MAX_PIXELS_PER_BYTE * len(content)):
                raise Damaged(f'its {width}x{height} pixels are too many for {len(content):,} bytes')
            if image.format in ('JPEG', 'MPO') and content.count(b'\xff\xda') > MAX_SCANS:
                raise Damaged(f'it has more than {MAX_SCANS} scans')
            if image.format == 'JPEG' and image.mode in ('L', 'RGB'):
                with contextlib.suppress(RuntimeError):  # what this refuses PIL may take, or has words for
                    jpeg = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                    return decode_jpeg(jpeg, ImageReadMode.RGB)  # the pixels of PIL, sooner
            if image.mode.startswith('I'):  # 16 bits of gray, which PIL would clip to white
                gray = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                return torch.from_numpy(np.array(gray.convert('RGB'))).permute(2, 0, 1)
            return torch.from_numpy(np.array(image.convert('RGB'))).permute(2, 0, 1)
    except Exception as e:  # PIL lets out whatever comes of damage: SyntaxError, struct.error, ...
        reason = 'it holds no image' if isinstance(e, UnidentifiedImageError) else str(e).split('\n')[0]
        raise Damaged(reason or type(e).__name__) from None


def cut_box(image: Tensor, box: np.ndarray) -> Tensor:
    """What of an image (3, H, W) is in a box (left, top, width, height), rounded. Damaged if nothing is."""
    left, top, right, bottom = (max(round(float(v)), 0) for v in (*box[:2], *(box[:2] + box[2:])))
    image = image[:, top:bottom, left:right]
    if not image.numel():
        raise Damaged('nothing of it lies in its bounding box ' + ' '.join(f'{v:g}' for v in box))
    return image


def draw_window(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Window (top, left, height, width) of an image, by the law of torchvision's RandomResizedCrop.

    If none of 10 windows fits: the middle of the image, cut only where it is longer than RATIO.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_offset(rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
    """(top, left) of a crop of SIZE x SIZE, all places alike."""
    return int(rng.integers(height - SIZE + 1)), int(rng.integers(width - SIZE + 1))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) -> (3, height, width), bilinear with antialiasing."""
    if image.device.type != 'cpu':  # where torch resizes floats only
        x = F.interpolate(image[None].float(), (height, width), mode='bilinear', antialias=True)
        return x[0].round().to(torch.uint8)
    last = image[None].contiguous(memory_format=torch.channels_last)  # as planes it takes twice the time
    return F.interpolate(last, (height, width), mode='bilinear', antialias=True)[0]


def crop(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """What the network gets of an image, uint8 (3, H, W) -> (3, SIZE, SIZE). Small images are enlarged.

    kind 'resized': a window by draw_window, resized; 'random': the shorter side resized to SHORTER, the other
    in proportion, then a crop anywhere; both mirrored half of the time. 'center': resized alike, the central
    crop, no draws. Damaged if so long and thin that it would take more than MAX_PIXELS.
    """
    height, width = image.shape[1:]
    if kind == 'resized':
        top, left, height, width = draw_window(rng, height, width)
        image = resize(image[:, top:top + height, left:left + width], SIZE, SIZE)
    else:
        h, w = (SHORTER * side // min(height, width) for side in (height, width))
        if h * w > MAX_PIXELS // 8:  # some 120 times as long as wide
            raise Damaged(f'its {width}x{height} pixels are too long and thin')
        middle = round((h - SIZE) / 2), round((w - SIZE) / 2)  # to even, as torchvision does
        top, left = draw_offset(rng, h, w) if kind == 'random' else middle
        image = resize(image, h, w)[:, top:top + SIZE, left:left + SIZE]
    return image.flip(2) if kind != 'center' and rng.random() < 0.5 else image


# --- batches ---------------------------------------------------------------------------------------------


def normalize(x: Tensor) -> Tensor:
    """uint8 (B, SIZE, SIZE, 3) -> float32 (B, 3, SIZE, SIZE), (x - MEAN) / STD, channels last in memory."""
    mean, std = _mean_std(x.device)
    return x.flatten(2).float().sub_(mean).div_(std).view(x.shape).permute(0, 3, 1, 2)


@functools.cache
def _mean_std(device: torch.device) -> Tensor:
    return torch.tensor([MEAN, STD], device=device).repeat(1, SIZE)  # of a row, as loops over 3 are slow


Batch = tuple[Tensor, Tensor, int]  # x (B, SIZE, SIZE, 3) uint8, labels (B,), how many were damaged


class Reader(Dataset):
    """Makes batches, in a worker: reader[epoch, index] is that of the B images at index.

    The draws for an image follow from seed, epoch and index alone, whoever makes them.
    """

    def __init__(self, split: Split, kind: str, seed: int | None, skip_damaged: bool):
        self.split, self.kind, self.seed, self.skip_damaged = split, kind, seed, skip_damaged

    def __getitem__(self, task: tuple[int, list[int]]) -> Batch | InputError:
        try:
            return self.batch(*task)
        except InputError as e:
            return e  # raised here, it would bring the traceback of a worker

    def batch(self, epoch: int, index: list[int]) -> Batch:
        with quiet():
            return self._batch(epoch, index)

    def _batch(self, epoch: int, index: list[int]) -> Batch:
        x = shared((len(index), SIZE, SIZE, 3), len(index))
        taken: list[int] = []
        n_damaged, n = 0, len(self.split.paths)
        for i in index:
            for j in range(i, i + (1 if self.seed is None else min(n, TRIES))):  # i, and what may replace it
                try:
                    x[len(taken)] = self.image(j % n, self.rng(epoch, i)).permute(1, 2, 0)
                    taken.append(j % n)
                    break
                except (Damaged, OSError) as e:
                    reason = f'{self.split.path(j % n)} is damaged ({getattr(e, "strerror", e)})'
                if not self.skip_damaged:
                    raise InputError(f'{reason}: mend or delete it, or give --skip_damaged')
                n_damaged += j == i
            else:
                if self.seed is not None:
                    raise InputError(f'{reason}, as are all around it: see what befell {self.split.root}')
        return x[:len(taken)], self.split.labels[taken], n_damaged

    def rng(self, epoch: int, i: int) -> np.random.Generator:
        """What the draws for image i come from in an epoch."""
        return np.random.default_rng((self.seed or 0, epoch, 1, i))

    def image(self, i: int, rng: np.random.Generator) -> Tensor:
        """Image i of the split as the network gets it, uint8 (3, SIZE, SIZE)."""
        with warnings.catch_warnings(), open(self.split.path(i), 'rb') as file:
            warnings.simplefilter('ignore')  # of PIL, about EXIF that nobody reads
            return self.cut(decode(file.read()), i, rng)

    def cut(self, image: Tensor, i: int, rng: np.random.Generator) -> Tensor:
        """Image i, decoded, uint8 (3, H, W) -> (3, SIZE, SIZE): its bounding box and the crop."""
        if self.split.boxes is not None:
            image = cut_box(image, self.split.boxes[i])
        return crop(image, self.kind, rng)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without stderr, on which libjpeg and libtiff, past Python, comment on each damaged image."""
    try:
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is none
        yield
        return
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def shared(shape: tuple[int, ...], n: int) -> Tensor:
    """Room for n images, uint8; in a worker shared, so that the main process takes it as it is."""
    x = torch.empty(shape, dtype=torch.uint8)
    try:
        return x if get_worker_info() is None else x.share_memory_()
    except RuntimeError:
        raise InputError(f'shared memory (/dev/shm) has no room for {n} more images: enlarge it, or give '
                         'a smaller --batch_size or --nthread') from None


def _start(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
    sys.excepthook = lambda *_: None  # of the thread that hands out batches, when the main process is gone


class Loader(data.RankLoader):
    """Batches of image files: with a seed, in a new order each epoch; without, in the order of the split.

    Order and draws follow from (seed, epoch, image): an epoch is the same whatever went before it, and
    whatever the numbers of workers and of ranks, each of which gets a part of each batch. Worker processes
    start with the first epoch and stay until close(); with 0, this process does their work. One iteration at
    a time: a new one ends that before it. InputError names a damaged image; with skip_damaged the next sound
    one takes its place in training, and in evaluation it is left out; `damaged` counts them in the epoch.
    InputError as well if a worker is killed.
    """

    def __init__(
            self, split: Split, batch_size: int, device: torch.device, crop: str, seed: int | None = None,
            workers: int = 4, rank: int = 0, ranks: int = 1, skip_damaged: bool = False):
        if crop not in CROPS or (crop != 'center' and seed is None):
            raise InputError(f'no crop {crop!r} with seed {seed}: give one of {CROPS}, and a seed for draws')
        super().__init__(len(split.paths), batch_size, rank, ranks)
        self.device, self.seed, self.workers = device, seed, workers
        self.reader = Reader(split, crop, seed, skip_damaged)
        # Of an epoch, what the workers are asked for in turn. To hand over tensors takes a thread here, which
        # would tell in many lines that a worker was killed.
        self.tasks: list[tuple[int, list[int]]] = []
        self.pool: DataLoader | None = None
        self.batches: Iterator[Batch | InputError] | None = None

    def __iter__(self) -> Iterator[Sample]:
        n, epoch, self.damaged = len(self.reader.split.paths), self.epoch, 0
        order = (torch.arange(n) if self.seed is None else
                 torch.randperm(n, generator=data.generator(self.seed, epoch, 0)))
        self.tasks[:] = [(epoch, order[part].tolist()) for part, _ in self.parts]
        for i, (batch, (_, share)) in enumerate(zip(self._work(), self.parts, strict=True)):
            if isinstance(batch, InputError):
                raise batch
            self.damaged += batch[2]
            if self.damaged == self.n_images:
                raise InputError(f'all {self.n_images} images of {self.reader.split.root} are damaged')
            x, labels = (t.to(self.device, non_blocking=True) for t in batch[:2])
            yield Sample(normalize(x), labels, epoch, i, share)

    def close(self) -> None:
        """End the workers; a next epoch starts new ones."""
        self.pool = self.batches = None

    def _work(self) -> Iterator[Batch | InputError]:
        """What comes of the tasks. Nothing but self holds the iterator, so that close() frees the workers."""
        try:
            if self.pool is None:
                self.pool = DataLoader(
                    self.reader, batch_size=None, sampler=self.tasks, num_workers=self.workers,
                    persistent_workers=self.workers > 0, pin_memory=self.device.type == 'cuda',
                    worker_init_fn=_start, generator=torch.Generator())  # else it draws from the global one
            handler = signal.getsignal(signal.SIGCHLD)
            self.batches = iter(self.pool)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)  # DataLoader's raises wherever we are if a worker dies
            for _ in self.parts:
                yield next(self.batches)
        except (RuntimeError, EOFError, OSError) as e:  # the last two if it dies while it hands over a batch
            if isinstance(e, RuntimeError) and not str(e).startswith('DataLoader worker'):
                raise
            self.close()
            raise InputError('a process that reads images was killed, perhaps for want of memory: '
                             'give a smaller --nthread or --batch_size') from None
