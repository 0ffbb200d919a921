"""From tensors to the network that they belong to, told by their names and shapes.

    f, params = networks.load('resnet-34-export.hkl')
    print(networks.describe(params))                     # folded ResNet-34 of width 1, 1000 classes, ...
"""
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import nin
import resnet
import utils
from utils import InputError, Network, Params
from weights import tensors

FAMILIES = {  # how names begin that no network before it in this list has
    'bn.': 'wide ResNet', 'bn0.': 'ResNet', 'conv0.': 'folded ResNet', 'affine0.': 'pre-activation ResNet',
    'affine_last.': 'folded wide ResNet', 'group0.conv0': 'NIN'}


class Found(NamedTuple):
    """What the names and shapes of tensors tell of their network."""
    family: str
    blocks: tuple[int, ...]  # in each group
    channels: tuple[int, ...]  # of the first convolution and of the groups; of a NIN its width
    num_classes: int


def load(path: Path | str) -> tuple[Network, Params]:
    """The network in `path` and its tensors, on the CPU; the kind is told by their names.

    Wide ResNets, ResNets and NIN, of own checkpoints and runs' folders, those of the published code (of
    student and teacher, the student), the folded exports and resnet-18-at-export, torchvision's resnet18 and
    resnet34: from any file or address that `weights.read` takes. InputError lists what is missing and what is
    unknown.
    """
    return network(tensors.read(path), str(path))


def network(params: Params, source: str = 'this dictionary') -> tuple[Network, Params]:
    """As `load`, for tensors in memory; `source` names them in messages."""
    params = from_torchvision(params)
    found = _find(params, source)
    f, expected = _build(found, params, source)
    missing = [name for name in expected if name not in params]
    unknown = [name for name in params if name not in expected]
    shapes = [f'{name} is {tuple(params[name].shape)}, not {tuple(t.shape)}' for name, t in expected.items()
              if name in params and params[name].shape != t.shape]
    wrong = [f'{what} {_some(names)}' for what, names in (
        ('lacks', missing), ('has unknown', unknown), ('has other shapes:', shapes)) if names]
    if wrong:
        raise InputError(f'{source} looks like a {_name(found)} but {"; it ".join(wrong)}')
    return f, {name: params[name] for name in expected}


def describe(params: Params) -> str:
    """Kind, depth, width, number of classes and of parameters of a network's tensors, in a line."""
    found = _find(params, 'this dictionary')
    return f'{_name(found)}, {found.num_classes} classes, {utils.n_parameters(params):,} parameters'


def fields(params: Params) -> dict[str, Any] | None:
    """{'kind': 'WRN', 'ResNet' or 'NIN', 'depth': ..., 'width': ...}, for logs; None without tensors."""
    if not params:
        return None
    found = _find(params, 'this dictionary')
    n, last = sum(found.blocks), found.channels[-1]
    if 'NIN' in found.family:
        return {'kind': 'NIN', 'depth': nin.DEPTH, 'width': last}
    if 'wide' in found.family:
        return {'kind': 'WRN', 'depth': 2 * n + 4, 'width': last / 64}
    return {'kind': 'ResNet', 'depth': 2 * n + 2, 'width': last / 512}


def image_size(params: Params) -> int:
    """Side of the images that a network is made for, in pixels: 32 of CIFAR, 224 of ImageNet."""
    return 32 if n_groups(params) == 3 else 224


def n_groups(params: Params) -> int:
    """Number of groups, whose outputs attention transfer compares."""
    return len(_find(params, 'this dictionary').blocks)


def from_torchvision(params: Params) -> Params:
    """Names of torchvision's resnet18 and resnet34 -> ours; other names stay."""
    if 'layer1.0.conv1.weight' not in params:
        return params

    def rename(name: str) -> str:
        name = re.sub(r'^layer(\d)\.(\d+)\.', lambda m: f'group{int(m[1]) - 1}.block{m[2]}.', name)
        name = re.sub(r'\b(conv|bn)([12])\b', lambda m: f'{m[1]}{int(m[2]) - 1}', name)
        name = name.replace('downsample.0', 'convdim').replace('downsample.1', 'bndim')
        return re.sub(r'(conv\w+)\.weight$', r'\1', name)

    return {rename(name): t for name, t in params.items() if not name.endswith('num_batches_tracked')}


def _find(params: Params, source: str) -> Found:
    families = [family for prefix, family in FAMILIES.items()
                if any(name.startswith(prefix) for name in params)]
    if not families:
        raise InputError(f'{source} holds no network of this project: its tensors are {_some(list(params))}')
    family = families[0]

    def output(name: str) -> int:
        t = params.get(name, params.get(name + '.weight'))
        if t is None or not t.dim() or not t.numel():
            raise InputError(f'{source} looks like a {family} but lacks {name}')
        return t.shape[0]

    if family == 'NIN':  # folded, it is one without BN
        family += '' if any(map(utils.is_statistic, params)) else ' without BN'
        family += ' without ReLU before pooling' if any('.linear2' in name for name in params) else ''
        return Found(family, (1, 1, 1), (output('group0.conv0'),), output('fc.weight'))
    wide = 'wide' in family

    blocks = []
    for g in range(3 if wide else 4):
        found = {m[1] for name in params if (m := re.match(rf'group{g}\.block(\d+)\.', name))}
        blocks.append(max(len(found), 1))
    if wide:  # a block that one group lacks is then told as missing
        blocks = [max(blocks)] * 3
    kernel = '.weight' if family == 'folded ResNet' else ''
    channels = [output(f'conv0{kernel}')]
    channels += [output(f'group{g}.block0.conv1{kernel}') for g in range(len(blocks))]
    return Found(family, tuple(blocks), tuple(channels), output('fc.weight'))


def _some(names: Iterable[str]) -> str:
    names = sorted(name if name.isprintable() else ascii(name) for name in names)
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def _name(found: Found) -> str:
    n, last = sum(found.blocks), found.channels[-1]  # the last group shows a fraction of a width best
    if 'NIN' in found.family:
        return found.family.replace('NIN', f'NIN of width {last}')
    if 'wide' in found.family:
        return f'{"folded " if "folded" in found.family else ""}WRN-{2 * n + 4}-{last / 64:g}'
    return f'{found.family}-{2 * n + 2} of width {last / 512:g}'


def _build(found: Found, params: Params, source: str) -> tuple[Network, Params]:
    """The network that was found, and tensors without content of the shapes that it needs."""
    family, blocks, channels, num_classes = found
    try:
        with torch.device('meta'):
            if 'NIN' in family:
                f, expected = nin.nin(channels[0], num_classes, bn='without BN' not in family,
                                      pool_relu='without ReLU' not in family)
            elif 'wide' in family:
                f, expected = resnet.wide_resnet_of(blocks[0], channels, num_classes)
                if family.startswith('folded'):
                    f, expected = resnet.pre_activation(blocks), resnet.fold(expected)
            elif family == 'pre-activation ResNet':
                f = resnet.pre_activation(blocks)
                expected = resnet.pre_activation_params(blocks, channels, num_classes)
            else:
                f, expected = resnet.resnet_of(blocks, channels, num_classes)
                if not any('.bndim.' in name for name in params):  # as in the published student
                    expected = {name: t for name, t in expected.items() if '.bndim.' not in name}
                if family.startswith('folded'):
                    f, expected = resnet.post_activation(blocks), resnet.fold(expected)
    except RuntimeError:  # more numbers than torch can count
        raise InputError(f'{source} holds no network of this project: none has {channels} channels') from None
    return f, expected
