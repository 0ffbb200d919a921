"""Networks to be drawn, and what they see in pictures: attention maps, gradients, guesses.

    network, = looks.load(['logs/student'])
    seen = looks.look(network, picture)    # seen.guess, seen.map('sum2', 2)
"""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import layers
import resnet
import utils
from inputs import cifar as data
from inputs import images, shapes
from layers import Params
from training import checkpoint
from utils import InputError
from weights.networks import image_size, n_classes, n_groups

MAPS = {  # Section 3.1: sign, power and reduction over channels
    'sum': (r'$F_\mathrm{sum}$', 1, 'sum'), 'sum2': (r'$F_\mathrm{sum}^{\,2}$', 2, 'sum'),
    'sum4': (r'$F_\mathrm{sum}^{\,4}$', 4, 'sum'), 'max': (r'$F_\mathrm{max}$', 1, 'max')}
GRADIENT = 'gradient'  # Section 3.2
CIFAR10 = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
CELLS = 56  # most cells along a side of a drawn gradient


class Network(NamedTuple):
    """A network to be drawn."""
    name: str
    f: layers.Network
    params: Params
    size: int  # of its images
    n_groups: int
    classes: list[str]
    dataset: str | None  # that it was trained on, if its log or checkpoint says so
    normalization: str = 'cifar10'  # of images of 32 x 32

    def index(self, label: str) -> int:
        """The class with this name or number."""
        if label in self.classes:
            return self.classes.index(label)
        if label.isdecimal() and int(label) < len(self.classes):
            return int(label)
        raise InputError(f'{self.name} has no class {label!r}: give a name, such as '
                         f'{", ".join(self.classes[:10])}, or a number from 0 to {len(self.classes) - 1}')


def load(sources: Sequence[str | Path], names: Sequence[str] = (), run_files: bool = False) -> list[Network]:
    """Networks from any weights that `resnet.load` takes, for one size of images and with as many groups."""
    if names and len(names) != len(sources):
        raise InputError(f'{len(names)} names are given for {len(sources)} networks: give one for each')
    found = []
    for source, name in zip(sources, names or _names(sources), strict=True):
        f, params = resnet.load(source, run_files)
        size, known = image_size(params, f), checkpoint.options_of(source)
        dataset, normalization = (x if isinstance(x := known.get(key), str) else None
                                  for key in ('dataset', 'normalization'))
        classes = class_names(dataset, size, n_classes(params, f))
        found.append(Network(name, f, params, size, n_groups(params, f), classes, dataset,
                             normalization if normalization in data.NORMALIZATIONS else 'cifar10'))
    for network in found:
        if network.n_groups != found[0].n_groups:
            raise InputError(f'{found[0].name} has {found[0].n_groups} groups and {network.name} '
                             f'{network.n_groups}: networks in a figure need the same number of groups')
        if network.size != found[0].size:
            raise InputError(f'{found[0].name} takes images of {found[0].size} pixels and {network.name} of '
                             f'{network.size}: networks in a figure need the same size')
    return found


def _names(sources: Sequence[str | Path]) -> list[str]:
    """The names of the runs' folders or of the files; the whole sources if names would be the same."""
    paths = [Path(str(source).removeprefix('torchvision:')).resolve() for source in sources]
    paths = [path.parent if path.name == checkpoint.MODEL else path for path in paths]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    return names if len({*names}) == len(names) else [str(source) for source in sources]


def class_names(dataset: str | None, size: int, n: int) -> list[str]:
    """Names of n classes; without a data set, those of the usual one for images of this size."""
    if (dataset, n) == ('shapes', len(shapes.CLASSES)):
        return list(shapes.CLASSES)
    if dataset in ('CIFAR10', None) and (size, n) == (32, len(CIFAR10)):
        return CIFAR10
    if dataset in ('imagenet', None) and (size, n) == (images.SIZE, 1000):
        from torchvision.models import ResNet34_Weights
        return ResNet34_Weights.DEFAULT.meta['categories']
    return [f'class {i}' for i in range(n)]


def disputed(networks: Sequence[Network], n: int, dataroot: str) -> dict[str, tuple[Tensor, str]]:
    """The first n test images that the networks classify differently: (3, 32, 32) and true class, by name."""
    names = {network.dataset for network in networks}
    if len(names) > 1 or not names <= data.CLASSES.keys():
        raise InputError('--disputed needs networks that were all trained on one of '
                         f'{", ".join(data.CLASSES)}: name photos instead')
    _, test_set = data.load(names.pop(), dataroot, torch.device('cpu'))
    found: list[int] = []
    for i, (pixels, _) in enumerate(zip(*(t.split(data.TEST_BATCH['cpu']) for t in test_set), strict=True)):
        if len(found) < n:
            with torch.no_grad():
                guesses = torch.stack([t.f(normalized(t, pixels), t.params, False)[0].argmax(1)
                                       for t in networks])
            differ = (guesses != guesses[0]).any(0).nonzero().flatten()
            found += [i * data.TEST_BATCH['cpu'] + int(k) for k in differ]
    if len(found) < n:
        raise InputError(f'the networks disagree on {len(found)} test images: give a smaller --disputed')
    return {f'test image {i}': (test_set.images[i].permute(2, 0, 1), networks[0].classes[test_set.labels[i]])
            for i in found[:n]}


def normalized(network: Network, pictures: Tensor) -> Tensor:
    """uint8 (B, size, size, 3) -> what the network takes, (B, 3, size, size)."""
    if network.size == images.SIZE:
        return images.normalize(pictures)
    return data.normalize(pictures, *data.NORMALIZATIONS[network.normalization])


class Look(NamedTuple):
    """What a network sees in a picture."""
    groups: tuple[Tensor, ...]  # activations (C, h, w)
    gradient: Tensor  # of the loss with respect to the normalised picture, (3, size, size)
    guess: str  # the class it predicts
    probability: float

    def map(self, kind: str, group: int | None) -> Tensor:
        """One of MAPS of a group (h, w), or sum |dCE/dx| over colours (size, size); from 0 to 1.

        The gradient of a large picture is a few bright dots: it is averaged over areas, to CELLS x CELLS.
        """
        if kind == GRADIENT:
            q = utils.attention_map(self.gradient[None], p=1)
            q = F.avg_pool2d(q, max(q.shape[-1] // CELLS, 1))[0]
        else:
            _, p, reduce = MAPS[kind]
            q = utils.attention_map(self.groups[group][None], p, reduce)[0]
        return q / q.max().clamp(min=torch.finfo(q.dtype).tiny)


def look(network: Network, picture: Tensor, label: str = '') -> Look:
    """What a network sees in a picture that `photos.prepare` made, uint8 (size, size, 3).

    The gradient is that of the cross-entropy with `label`, a class by name or number, or with the guess.
    """
    x = normalized(network, picture[None]).requires_grad_()
    logits, groups = network.f(x, network.params, False)
    if not logits.isfinite().all():
        raise InputError(f'{network.name} gives no finite numbers: its training diverged, take other weights')
    probability, guess = logits.detach().softmax(1)[0].max(0)
    target = network.index(label) if label else int(guess)
    gradient = utils.input_gradient(x, logits, torch.tensor([target]), create_graph=False)
    return Look(tuple(g.detach()[0] for g in groups), gradient[0], network.classes[guess], probability.item())
