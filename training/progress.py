"""What a user sees of a run while it goes on: a bar, the time that is left, TensorBoard.

    pace = Pace()
    ...                          # an epoch
    pace.add()
    print(pace.seconds(9))       # that nine more will take
"""
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from inputs import images
from inputs.cifar import Loader
from training import devices


class Pace:
    """How long epochs take, from now on."""

    def __init__(self) -> None:
        self.begun = self.last = time.monotonic()
        self.longest, self.epochs = 0.0, 0

    def add(self) -> None:
        """An epoch has ended."""
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        self.epochs += 1

    def seconds(self, epochs: int) -> float:
        """That so many epochs will take."""
        return epochs * (self.last - self.begun) / self.epochs

    def is_up(self, hours: float) -> bool:
        """Whether another epoch, as long as the longest, would end later than that."""
        return self.last + self.longest - self.begun > 3600 * hours


class Progress:
    """A bar with loss and images/s on a terminal. The loss comes from a copy that nobody waited for."""

    def __init__(self, loader: Loader | images.Loader, name: str):
        self.bar = tqdm(total=loader.n_images, desc=name, unit='img', leave=False,
                        disable=True if devices.rank() else None)
        self.pinned = torch.zeros((), pin_memory=loader.device.type == 'cuda')
        self.copied, self.shown = False, time.monotonic()

    def add(self, loss: Tensor, n: int) -> None:
        if not self.bar.disable and time.monotonic() - self.shown > 0.5:
            if self.copied:
                self.bar.set_postfix(loss=f'{self.pinned.item():.3f}', refresh=False)
            self.pinned.copy_(loss.detach(), non_blocking=True)
            self.copied, self.shown = True, time.monotonic()
        self.bar.update(n)

    def close(self) -> None:
        self.bar.close()


class Board:
    """TensorBoard's file of a run. It is only a picture: where it cannot be written, the run goes on."""

    def __init__(self, folder: Path, epoch: int):
        """`epoch` is the first that is drawn; later ones of a run before are taken back."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, and a package of its own
        threading.excepthook = _but_for_tensorboard
        self.writer: SummaryWriter | None = None
        try:
            self.writer = SummaryWriter(folder, purge_step=epoch)
        except OSError as e:
            self._give_up(e)

    def add(self, result: dict[str, Any]) -> None:
        """The numbers of an epoch's line of the log."""
        if not self.writer:
            return
        try:
            for name, value in scalars(result).items():
                self.writer.add_scalar(name, value, result['epoch'])
            self.writer.flush()
        except OSError as e:
            self._give_up(e)

    def close(self) -> None:
        if self.writer:
            try:
                self.writer.close()
            except OSError as e:
                self._give_up(e)

    def _give_up(self, e: OSError) -> None:
        print(f'note: --tensorboard draws nothing more ({e.strerror or e})', file=sys.stderr)
        self.writer = None


def _but_for_tensorboard(of: threading.ExceptHookArgs) -> None:
    """What its thread could not write is raised in the main thread, too."""
    if not type(of.thread).__module__.startswith('tensorboard.'):
        threading.__excepthook__(of)


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard draws of an epoch: its numbers, and the mean of each group of each loss."""
    values = {name: value for name, value in result.items() if isinstance(value, int | float)}
    del values['epoch']
    for name, parts in result.items():
        if isinstance(parts, list):  # losses of groups have a mean and a deviation
            values |= {f'{name}/{i}': part[0] if isinstance(part, list) else part
                       for i, part in enumerate(parts)}
    return values
