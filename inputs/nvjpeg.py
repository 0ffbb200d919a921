"""The loader of images.py, but that JPEG is decoded and cropped on the device, by nvJPEG on a GPU.

    for x, labels, epoch, share in nvjpeg.Loader(train_set, 256, torch.device('cuda'), 'resized', seed=1):
        ...

Order, windows and mirrors are those of images.Loader, and on a CPU the pixels too. On a GPU they differ by a
few levels: it computes in floats, and spreads colours over pixels in its own way.
"""
import contextlib
import io
import warnings
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from inputs import images
from inputs.decoding import END, MAX_PIXELS, Damaged
from inputs.folders import Split
from inputs.images import Batch, Task
from utils import InputError

AT_ONCE = 32  # files: their whole images lie on the device together

Files = list[int | bytes]  # of each file the content, or its size in the slot; 0: not for nvJPEG


def suits(content: bytes) -> bool:
    """Whether a file is a whole JPEG, gray or YCbCr. For all others images.decode has its ways and words."""
    if not content.endswith(END):  # a decoder may fill up what is missing
        return False
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=['JPEG']) as image:
            warnings.simplefilter('ignore')
            return (image.format == 'JPEG' and image.mode in ('L', 'RGB')
                    and image.info.get('adobe_transform') != 0  # of three channels: RGB as it is
                    and image.width * image.height <= MAX_PIXELS)
    except Exception:  # PIL lets out whatever comes of damage
        return False


def decode(files: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """JPEG files, uint8 on the CPU -> uint8 (3, H, W), RGB, on the device; None for what it refuses."""
    if not files:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of torchvision 0.29, in favour of torchcodec
        try:
            return decode_jpeg(files, ImageReadMode.RGB, device)
        except RuntimeError:  # nothing comes of all if one is refused
            half = len(files) // 2
    return decode(files[:half], device) + decode(files[half:], device) if half else [None]


class Reader(images.Reader):
    """Reads files, in a worker: reader[epoch, index, slot] are the B at index; decoded() makes the batch."""

    def work(self, epoch: int, index: list[int], x: Tensor) -> Files:  # type: ignore[override]
        """Write into the slot what it has room for."""
        room, start = x.view(-1).numpy(), 0
        found: Files = []
        for i in index:
            content = b''
            with contextlib.suppress(OSError), open(self.split.path(i), 'rb') as file:
                content = file.read()
            stop = start + len(content)
            if not suits(content):
                found.append(0)
            elif stop > len(room):
                found.append(content)
            else:
                room[start:stop] = np.frombuffer(content, np.uint8)
                found.append(len(content))
                start = stop
        return found

    def decoded(self, epoch: int, index: list[int], files: Files, x: Tensor, device: torch.device) -> Batch:
        """The batch of images.Reader, on the device, from what work() has returned and written into x.

        What is not for nvJPEG or refused by it, and what is damaged, goes the way of the CPU, one by one.
        """
        room, start = x.view(-1), 0
        contents, parts = [], []
        for file in files:
            if isinstance(file, bytes):
                contents.append(torch.frombuffer(bytearray(file), dtype=torch.uint8))
            else:
                contents.append(room[start:start + file])
                start += file
        for start in range(0, len(index), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            if device.type == 'cuda':  # torchvision decodes in another stream, which does not wait for what
                torch.cuda.current_stream(device).synchronize()  # this one has to read yet in freed memory
            whole = iter(decode([content for content in contents[some] if len(content)], device))
            for i, content in zip(index[some], contents[some], strict=True):
                image = next(whole) if len(content) else None
                parts.append(self.part(epoch, i, image))
        pixels, labels, n_damaged = zip(*parts, strict=True)
        return torch.cat([t.to(device) for t in pixels]), torch.cat(labels).to(device), sum(n_damaged)

    def part(self, epoch: int, i: int, image: Tensor | None) -> Batch:
        """The batch of image i alone, decoded or not."""
        if image is not None:
            with contextlib.suppress(Damaged):
                x = self.cut(image, i, self.rng(epoch, i)).permute(1, 2, 0)[None]
                return x, self.split.labels[i:i + 1], 0
        return self.batch(epoch, [i])


class Loader(images.Loader):
    """As images.Loader; its workers only read. InputError if torchvision cannot decode on the device.

    The device decodes a batch while it computes the step before: this process waits for the decoder only.
    """

    kind = Reader

    def __init__(self, split: Split, batch_size: int, device: torch.device, *args: Any, **options: Any):
        super().__init__(split, batch_size, device, *args, **options)
        file = io.BytesIO()
        Image.new('RGB', (images.SIZE, images.SIZE)).save(file, 'JPEG')
        if decode([torch.frombuffer(file.getbuffer(), dtype=torch.uint8)], device) == [None]:
            raise InputError(f'torchvision {torchvision.__version__} decodes no JPEG on {device}: leave out '
                             '--decode cuda')
        self.stream = torch.cuda.Stream(device) if device.type == 'cuda' else None

    def _batch(self, task: Task, result: Files) -> Batch:  # type: ignore[override]
        epoch, index, slot = task
        arguments = epoch, index, result, self.reader.slots[slot], self.device
        if not self.stream:
            return self.reader.decoded(*arguments)
        with torch.cuda.stream(self.stream):
            batch = self.reader.decoded(*arguments)
        step = torch.cuda.current_stream(self.device)
        step.wait_stream(self.stream)
        for t in batch[:2]:
            t.record_stream(step)  # else its memory would be taken for a next batch while the step reads it
        return batch
