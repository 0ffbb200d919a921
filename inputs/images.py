"""Images from files: crops, and a loader with worker processes.

    train_set, test_set = folders.load('cub', 'CUB_200_2011')
    for sample in images.Loader(train_set, 64, torch.device('cuda'), 'random', seed=1):
        ...
"""
import contextlib
import errno
import functools
import math
import multiprocessing.queues
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from inputs import cifar as data
from inputs.decoding import MAX_PIXELS, Damaged, decode
from inputs.folders import Split
from layers import Sample, is_out_of_memory
from utils import InputError

SIZE, SHORTER = 224, 256  # side of the crop; shorter side of the image that it is cut from
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, for pixels of 0 ... 255
SCALE, RATIO = (0.08, 1), (3 / 4, 4 / 3)  # area of a window in the image; its width divided by its height
TRIES = 100  # damaged images in a row that are skipped
CROPS = ('resized', 'random', 'center')
PREFETCH = 2  # batches that a worker is ahead

# Errors that belong to one file. All others belong to the machine: no image is skipped because of them.
OF_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
           errno.ENAMETOOLONG}
REMEDIES = {
    errno.EMFILE: 'raise the limit `ulimit -n`, or give a smaller --nthread',
    errno.ENFILE: 'end other programs, or give a smaller --nthread',
    errno.EAGAIN: 'raise the limit `ulimit -u`, or give a smaller --nthread',
    errno.ENOMEM: 'give a smaller --nthread or --batch_size, or end other programs',
    errno.ENOSPC: 'enlarge the shared memory /dev/shm, or give a smaller --batch_size or --nthread'}
LIMITS = {  # messages of torch and of threading
    'unable to allocate shared memory': errno.ENOSPC, 'Too many open files': errno.EMFILE,
    "can't start new thread": errno.EAGAIN}


# --- one image -------------------------------------------------------------------------------------------


def cut_box(image: Tensor, box: np.ndarray) -> Tensor:
    """The part of an image (3, H, W) in a box (left, top, width, height), rounded. Damaged if it is empty."""
    left, top, right, bottom = (max(round(float(v)), 0) for v in (*box[:2], *(box[:2] + box[2:])))
    image = image[:, top:bottom, left:right]
    if not image.numel():
        raise Damaged('nothing of it is in its bounding box ' + ' '.join(f'{v:g}' for v in box))
    return image


def draw_window(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Window (top, left, height, width) of an image, drawn as in torchvision's RandomResizedCrop.

    If none of 10 windows fits, it is the middle of the image, cut only where it is longer than RATIO.
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
    """(top, left) of a crop of SIZE x SIZE, drawn uniformly."""
    return int(rng.integers(height - SIZE + 1)), int(rng.integers(width - SIZE + 1))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) -> (3, height, width), bilinear with antialiasing."""
    last = image[None].contiguous(memory_format=torch.channels_last)  # twice as fast as planes
    return F.interpolate(last, (height, width), mode='bilinear', antialias=True)[0]


def crop(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """The input of the network from an image, uint8 (3, H, W) -> (3, SIZE, SIZE). Small images are enlarged.

    kind 'resized': a window by draw_window, resized. 'random': the shorter side is resized to SHORTER, the
    other in proportion, and the crop is anywhere. Both are mirrored half of the time. 'center': resized like
    'random', and cropped in the middle, without draws. Damaged if the image is so thin that resizing it would
    take more than MAX_PIXELS.
    """
    height, width = image.shape[1:]
    if kind == 'resized':
        top, left, height, width = draw_window(rng, height, width)
        image = resize(image[:, top:top + height, left:left + width], SIZE, SIZE)
    else:
        h, w = (SHORTER * side // min(height, width) for side in (height, width))
        if h * w > MAX_PIXELS // 8:  # about 120 times as long as wide
            raise Damaged(f'its {width}x{height} pixels are too long and thin')
        middle = round((h - SIZE) / 2), round((w - SIZE) / 2)  # to even, as torchvision does
        top, left = draw_offset(rng, h, w) if kind == 'random' else middle
        image = resize(image, h, w)[:, top:top + SIZE, left:left + SIZE]
    return image.flip(2) if kind != 'center' and rng.random() < 0.5 else image


# --- batches ---------------------------------------------------------------------------------------------


normalize = functools.partial(data.normalize, mean=MEAN, std=STD)  # (B, H, W, 3) -> (B, 3, H, W)
Task = tuple[int, list[int], int]  # epoch, numbers of images, number of a slot


class Reader(Dataset):
    """Makes batches in a worker: reader[epoch, index, slot] writes the B images at index into a slot.

    The main process shares the slots, so a worker hands over only numbers. If a worker handed over tensors,
    an error in its queue would make the main process wait for ever. The draws for an image depend only on
    seed, epoch and index.
    """

    def __init__(self, split: Split, kind: str, seed: int | None, skip_damaged: bool):
        self.split, self.kind, self.seed, self.skip_damaged = split, kind, seed, skip_damaged
        self.slots: list[Tensor] = []

    def __getitem__(self, task: Task) -> Any:
        """The result of fill(), or an InputError: raising it here would add the traceback of a worker."""
        epoch, index, slot = task
        try:
            return self.fill(epoch, index, self.slots[slot])
        except InputError as e:
            return e
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
            return machine_fault('images cannot be read', errno.ENOMEM)

    def fill(self, epoch: int, index: list[int], x: Tensor) -> tuple[list[int], int]:
        """Write images into x (B or more, SIZE, SIZE, 3); return their numbers, and how many were damaged."""
        taken: list[int] = []
        n_damaged, n = 0, len(self.split.paths)
        with quiet():
            for i in index:
                for j in range(i, i + (1 if self.seed is None else min(n, TRIES))):  # i, and its replacements
                    try:
                        rng = np.random.default_rng((self.seed or 0, epoch, 1, i))
                        x[len(taken)] = self.image(j % n, rng).permute(1, 2, 0)
                        taken.append(j % n)
                        break
                    except (Damaged, OSError) as e:
                        reason = self.damage(j % n, e)
                    if not self.skip_damaged:
                        raise InputError(f'{reason}: fix or delete it, or give --skip_damaged')
                    n_damaged += j == i
                else:
                    if self.seed is not None:
                        raise InputError(f'{reason}, and so are all images near it: check {self.split.root}')
        return taken, n_damaged

    def damage(self, i: int, e: Damaged | OSError) -> str:
        """The sentence that image i is damaged. InputError if the cause is the machine."""
        if isinstance(e, OSError) and e.errno not in OF_FILE:
            raise machine_fault(f'{self.split.path(i)} cannot be read', e.errno or 0)
        return f'{self.split.path(i)} is damaged ({getattr(e, "strerror", e)})'

    def image(self, i: int, rng: np.random.Generator) -> Tensor:
        """Image i as input of the network, uint8 (3, SIZE, SIZE)."""
        with warnings.catch_warnings(), open(self.split.path(i), 'rb') as file:
            warnings.simplefilter('ignore')  # PIL warns about EXIF, which is not used
            image = decode(file.read())
        if self.split.boxes is not None:
            image = cut_box(image, self.split.boxes[i])
        return crop(image, self.kind, rng)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard stderr, to which libjpeg and libtiff write comments about damaged images."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there is no stderr, or too many files are open
            kept = os.dup(2)
            stack.callback(os.close, kept)
            nothing = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nothing)
            os.dup2(nothing, 2)
            stack.callback(os.dup2, kept, 2)
        yield


def machine_fault(what: str, number: int) -> InputError:
    """The error that something is impossible because of a limit of the machine or of its file system."""
    remedy = REMEDIES.get(number, 'check the disk or the network, then resume the run')
    return InputError(f'{what} ({os.strerror(number)}): {remedy}')


def _iter(pool: DataLoader) -> Iterator[Any]:
    """iter(pool). If it fails, delete the unfinished iterator at once, without its messages."""
    try:
        return iter(pool)
    except (OSError, RuntimeError) as e:
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        e.__traceback__ = None  # it refers to the iterator
        sys.unraisablehook = hook
        raise


def _start(_: int) -> None:
    """Prepare a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
    sys.excepthook = lambda *_: None  # for the thread that hands over batches, when the main process is gone
    # The main process would wait for a batch that this thread fails to hand over. It notices a worker's end.
    multiprocessing.queues.Queue._on_queue_feeder_error = lambda *_: os._exit(1)  # type: ignore[attr-defined]


class Loader(data.RankLoader):
    """Batches of image files: with a seed, in a new order each epoch; without, in the order of the split.

    Order and draws depend only on (seed, epoch, image), not on earlier epochs or the numbers of workers and
    ranks. Each rank gets a part of each batch. Workers start with the first epoch and stay until close();
    with 0 workers, this process does their work. Only one iteration runs at a time: a new one ends the last.

    InputError names a damaged image. With skip_damaged, the next sound image replaces it in training, and
    evaluation leaves it out; `damaged` counts them in the epoch. InputError also if a worker is killed, or if
    the machine has reached a limit.
    """

    def __init__(
            self, split: Split, batch_size: int, device: torch.device, crop: str, seed: int | None = None,
            workers: int = 4, rank: int = 0, ranks: int = 1, skip_damaged: bool = False):
        super().__init__(len(split.paths), batch_size, rank, ranks)
        self.device, self.seed, self.workers = device, seed, workers
        self.reader = Reader(split, crop, seed, skip_damaged)
        self.n_slots = PREFETCH * workers + 1  # the step reads one more
        # Tasks of an epoch. DataLoader samples from this list: a thread that handed over tensors would print
        # many lines when a worker is killed.
        self.tasks: list[Task] = []
        self.pool: DataLoader | None = None
        self.processes: set[Any] = set()  # the workers
        self.results: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Sample]:
        n, epoch, self.damaged = len(self.reader.split.paths), self.epoch, 0
        order = (torch.arange(n) if self.seed is None else
                 torch.randperm(n, generator=data.generator(self.seed, epoch, 0)))
        self.tasks[:] = [(epoch, order[part].tolist(), i % self.n_slots)
                         for i, (part, _) in enumerate(self.parts)]
        results = zip(self.tasks, self._results(), self.parts, strict=True)
        for i, ((_, _, slot), result, (_, share)) in enumerate(results):
            if isinstance(result, InputError):
                raise result
            taken, n_damaged = result
            x, labels = self.reader.slots[slot][:len(taken)], self.reader.split.labels[taken]
            if self.device.type == 'cuda':
                x, labels = (t.pin_memory().to(self.device, non_blocking=True) for t in (x, labels))
            self.damaged += n_damaged
            if self.damaged == self.n_images:
                raise InputError(f'all {self.n_images} images of {self.reader.split.root} are damaged')
            yield Sample(normalize(x), labels, epoch, i, share)

    def close(self) -> None:
        """End the workers. The next epoch starts new ones."""
        self.pool = self.results = None
        self.reader.slots = []

    def _results(self) -> Iterator[Any]:
        """Results of the tasks. Only self refers to the iterator, so that close() ends the workers."""
        others = set(multiprocessing.active_children()) - self.processes
        try:
            handler = signal.getsignal(signal.SIGCHLD)
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', 'This DataLoader will create')  # more workers than cores
                self.pool = self.pool or self._open()
                self.results = _iter(self.pool)
                self.processes = set(multiprocessing.active_children()) - others
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)  # DataLoader's own raises anywhere if a worker dies
            for _ in self.parts:
                yield next(self.results)
        except (RuntimeError, EOFError, OSError) as e:  # EOFError: a worker died while it sent a batch
            limit = e.errno if isinstance(e, OSError) else next(
                (number for words, number in LIMITS.items() if words in str(e)), None)
            if isinstance(e, RuntimeError) and limit is None and not str(e).startswith('DataLoader worker'):
                raise
            self.close()
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()  # SIGTERM may be lost in a process that has just been forked
                worker.join()
            if limit in REMEDIES:
                raise machine_fault('processes that read images cannot work', limit) from None
            raise InputError('a process that reads images was killed, perhaps because memory ran out: '
                             'give a smaller --nthread or --batch_size') from None

    def _open(self) -> DataLoader:
        """Make the slots, and the DataLoader that starts the workers."""
        largest = max(part.stop - part.start for part, _ in self.parts)
        for _ in range(self.n_slots):
            x = torch.empty((largest, SIZE, SIZE, 3), dtype=torch.uint8)
            self.reader.slots.append(x.share_memory_() if self.workers else x)
        return DataLoader(
            self.reader, batch_size=None, sampler=self.tasks, num_workers=self.workers,
            persistent_workers=self.workers > 0, prefetch_factor=PREFETCH if self.workers else None,
            worker_init_fn=_start, generator=torch.Generator())  # without one, it draws from the global one
