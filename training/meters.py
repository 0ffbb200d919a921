"""Loss, accuracy and the losses of an epoch, and their evaluation on a test set."""
import math
from typing import Any

import torch
from torch import Tensor
from torchnet.engine import Engine
from torchnet.meter import AverageValueMeter

from inputs import cifar as data
from inputs import images
from layers import Function, Sample
from method import Output
from training import devices, exits

Loader = data.Loader | images.Loader


class Meters:
    """Measurements of an epoch. They stay on the device, and are read once at its end, for all ranks."""

    def __init__(self, topk: tuple[int, ...] = (1,)):
        self.topk = topk
        self.rows: list[Tensor] = []  # numbers of each batch, see `add`
        self.sizes: list[int] = []
        self.losses: list[str] = []  # name of each group of each loss
        self.likeness: list[str] = []
        self.n_images = 0  # of all ranks, known after `read`

    def add(self, output: Output, sample: Sample) -> None:
        """Add a batch: its loss, right answers for each of topk, losses, likeness."""
        labels = sample.labels
        best = output.logits.detach().topk(min(max(self.topk), output.logits.shape[1])).indices
        hits = best == labels[:, None]
        right = [hits[:, :k].sum() for k in self.topk]
        self.losses = [name for name, groups in output.losses.items() for _ in groups]
        self.likeness = [name for name, groups in output.likeness.items() for _ in groups]
        groups = [t for named in (output.losses, output.likeness) for part in named.values() for t in part]
        row = torch.stack([t.detach() for t in (output.loss, *right, *groups)]).float()
        self.rows.append(row if len(labels) else torch.zeros_like(row))  # without images the loss is NaN
        self.sizes.append(len(labels))

    def read(self) -> dict[str, Any]:
        """{'loss': mean over images, 'acc': %, 'NAME_losses': [[mean, std] over batches, ...], ...}.

        'acc5' is top-5 accuracy. 'agreement' and 'map_cosines' are means over images. Waits for the device
        and the other ranks. Diverged: a loss is not finite.
        """
        k = len(self.topk)
        sizes = torch.tensor(self.sizes, dtype=torch.float64)[:, None]
        stacked = torch.stack(self.rows).double()
        sums = torch.cat([stacked, torch.ones_like(stacked[:, :1])], 1) * sizes.to(stacked.device)
        sums[:, 1:1 + k] = stacked[:, 1:1 + k]  # right answers are counts already
        *columns, counts = zip(*(row for row in devices.summed(sums).tolist() if row[-1]), strict=True)
        if not all(map(math.isfinite, columns[0])):
            raise exits.Diverged('the loss is not finite')
        self.n_images = int(sum(counts))
        accuracies = ['acc' if top == 1 else f'acc{top}' for top in self.topk]
        result: dict[str, Any] = {}
        names = ['loss', *accuracies, *self.losses, *self.likeness]
        for i, (name, column) in enumerate(zip(names, columns, strict=True)):
            meter, is_loss = AverageValueMeter(), k < i <= k + len(self.losses)
            for value, n in zip(column, counts, strict=True):
                if is_loss:
                    meter.add(value / n)  # each batch counts the same, as in the published logs
                else:
                    meter.add(100 * value if 1 <= i <= k else value, n)
            mean, std = map(float, meter.value())
            if is_loss:
                result.setdefault(f'{name}_losses', []).append([mean, std])
            elif name == 'map_cosines':
                result.setdefault(name, []).append(mean)
            else:
                result[name] = mean
        return result


def evaluate(h_test: Function, loader: Loader, topk: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """{'loss': cross-entropy, 'acc': top-1 accuracy in %, ...}; each image counts once."""
    engine, meters = Engine(), Meters(topk)
    engine.hooks['on_forward'] = lambda state: meters.add(state['output'], state['sample'])
    engine.test(h_test, loader)
    return meters.read()


def n_damaged(*loaders: Loader) -> list[int]:
    """Number of images that each loader skipped in its last epoch, for all ranks."""
    return devices.summed(torch.tensor([loader.damaged for loader in loaders],
                                       device=loaders[0].device)).tolist()
