"""What a user sees of a run: a progress bar, the time that is left, TensorBoard.

    pace = Pace()
    pace.start()
    ...                          # an epoch
    pace.add()
    print(pace.seconds(9))       # that nine more epochs will take
"""
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from inputs import images
from inputs.cifar import Loader
from training import devices


class Pace:
    """How long epochs take, and how long the script has run."""

    def __init__(self) -> None:
        self.begun = self.first = self.last = time.monotonic()
        self.longest, self.epochs = 0.0, 0

    def start(self) -> None:
        """The first epoch begins."""
        self.first = self.last = time.monotonic()

    def add(self) -> None:
        """An epoch has ended."""
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        self.epochs += 1

    def seconds(self, epochs: int) -> float:
        """Time that this many epochs will take."""
        return epochs * (self.last - self.first) / self.epochs

    def is_up(self, hours: float) -> bool:
        """Whether another epoch, as long as the longest, would end more than `hours` after the beginning."""
        return self.last + self.longest - self.begun > 3600 * hours


class Progress:
    """A bar on a terminal with images/s and a loss, copied from the device without waiting for it."""

    def __init__(self, loader: Loader | images.Loader, name: str):
        self.bar = tqdm(total=loader.n_images, desc=name, unit='img', leave=False,
                        disable=True if devices.rank() else None)
        self.pinned = torch.zeros((), pin_memory=loader.device.type == 'cuda')
        self.copied, self.shown = False, time.monotonic()

    def add(self, loss: Tensor, n: int) -> None:
        """A batch of n images is done."""
        if not self.bar.disable and time.monotonic() - self.shown > 0.5:
            if self.copied:
                self.bar.set_postfix(loss=f'{self.pinned.item():.3f}', refresh=False)
            self.pinned.copy_(loss.detach(), non_blocking=True)
            self.copied, self.shown = True, time.monotonic()
        self.bar.update(n)

    def close(self) -> None:
        self.bar.close()


class Board:
    """TensorBoard's file of a run. If it cannot be written, a note says so, and the run continues."""

    def __init__(self, folder: Path, epoch: int):
        """`epoch` is the first that is drawn: later ones of an earlier run are removed."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, and needs a package
        threading.excepthook = _but_for_tensorboard
        self.writer: SummaryWriter | None = None
        with self.noting():
            self.writer = SummaryWriter(folder, purge_step=epoch)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            print(f'note: --tensorboard draws nothing more ({e.strerror or e})', file=sys.stderr)
            self.writer = None

    def add(self, result: dict[str, Any]) -> None:
        """The numbers of an epoch's line of the log."""
        with self.noting():
            if self.writer:
                for name, value in scalars(result).items():
                    self.writer.add_scalar(name, value, result['epoch'])
                self.writer.flush()

    def close(self) -> None:
        with self.noting():
            if self.writer:
                self.writer.close()


def _but_for_tensorboard(of: threading.ExceptHookArgs) -> None:
    """Do not print errors of its thread: they are raised in the main thread too."""
    if not type(of.thread).__module__.startswith('tensorboard.'):
        threading.__excepthook__(of)


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch that TensorBoard draws: of losses, the mean of each group."""
    values = {name: value for name, value in result.items() if isinstance(value, int | float)}
    del values['epoch']
    for name, parts in result.items():
        if isinstance(parts, list):  # each group of a loss has a mean and a deviation
            values |= {f'{name}/{i}': part[0] if isinstance(part, list) else part
                       for i, part in enumerate(parts)}
    return values
