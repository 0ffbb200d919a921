"""The loader of images.py with JPEG decoded and cropped on the GPU (nvJPEG). It has never run on a GPU.

    for sample in nvjpeg.Loader(train_set, 256, torch.device('cuda'), 'resized', seed=1):
        ...

Order, windows and mirrors are those of images.Loader. On a CPU the pixels are the same too. On a GPU they
differ by a few levels, because nvJPEG computes in floats and interpolates colours differently.
"""
import contextlib
import io
import warnings
from typing import Any

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

AT_ONCE = 32  # files whose whole images are on the device together


def suits(content: bytes) -> bool:
    """Whether a file is a complete JPEG, gray or YCbCr. images.Reader decodes all others."""
    if not content.endswith(END):  # a decoder may fill in what is missing
        return False
    try:
        with warnings.catch_warnings(action='ignore'):
            image = Image.open(io.BytesIO(content), formats=['JPEG'])
            return (image.format == 'JPEG' and image.mode in ('L', 'RGB')
                    and image.info.get('adobe_transform') != 0  # three channels that are RGB, not YCbCr
                    and image.width * image.height <= MAX_PIXELS)
    except Exception:  # PIL raises many types of errors on damaged files
        return False


def decode(files: list[bytes], device: torch.device) -> list[Tensor | None]:
    """JPEG files -> uint8 (3, H, W), RGB, on the device; None for a file that the decoder refuses."""
    if not files:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # torchvision 0.29 recommends torchcodec
        try:
            return decode_jpeg([torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files],
                               ImageReadMode.RGB, device)
        except RuntimeError:  # one refused file fails all of them
            return [image for file in files for image in decode([file], device)] if files[1:] else [None]


class Reader(images.Reader):
    """Reads files in a worker; decoded() makes the batch in the main process."""

    def work(self, epoch: int, index: list[int], x: Tensor) -> list[bytes]:  # type: ignore[override]
        """The content of the files at index, b'' for those that are not for nvJPEG."""
        contents = []
        for i in index:
            content = b''
            with contextlib.suppress(OSError), open(self.split.path(i), 'rb') as file:
                content = file.read()
            contents.append(content if suits(content) else b'')
        return contents

    def decoded(self, epoch: int, index: list[int], contents: list[bytes], device: torch.device) -> Batch:
        """The batch of images.Reader, on the device. The CPU decodes, one by one, what nvJPEG does not."""
        parts = []
        for start in range(0, len(index), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            if device.type == 'cuda':  # torchvision decodes in another stream, which may get memory that the
                torch.cuda.current_stream(device).synchronize()  # kernels of this one have not read yet
            whole = iter(decode([content for content in contents[some] if content], device))
            for i, content in zip(index[some], contents[some], strict=True):
                parts.append(self.part(epoch, i, next(whole) if content else None))
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
    """images.Loader with workers that only read. InputError if torchvision cannot decode on the device."""

    kind = Reader

    def __init__(self, split: Split, batch_size: int, device: torch.device, *args: Any, **options: Any):
        super().__init__(split, batch_size, device, *args, **options)
        file = io.BytesIO()
        Image.new('RGB', (8, 8)).save(file, 'JPEG')
        if decode([file.getvalue()], device) == [None]:
            raise InputError(f'torchvision {torchvision.__version__} cannot decode JPEG on {device}: leave '
                             'out --decode cuda')

    def _batch(self, task: Task, result: list[bytes]) -> Batch:  # type: ignore[override]
        epoch, index, _ = task
        return self.reader.decoded(epoch, index, result, self.device)
