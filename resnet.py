"""Functional residual networks: `logits, groups = f(x, params, mode, base='')`.

    f, params = resnet.wide_resnet(depth=16, width=1, num_classes=10)     # for CIFAR
    f, params = resnet.resnet(depth=18, width=1, num_classes=1000)        # for ImageNet
    f, params = resnet.load('resnet-34-export.hkl')
    logits, groups = f(torch.randn(2, 3, 224, 224), params, mode=False)

A network is a function and a flat dictionary of tensors. The names are an interface: checkpoints, exports and
logs of the published code carry the same ones. `load` reads them, NIN's too; `fold` brings a network into the
exported form, without BN: the same maps and logits for less work.
"""
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import folded
import nin
import utils
import weights
from folded import fold
from utils import InputError, Network, Params

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # of the ImageNet networks, by depth


# --- CIFAR: pre-activation wide ResNets ------------------------------------------------------------------


def wide_resnet(depth: int, width: float, num_classes: int) -> tuple[Network, Params]:
    """Pre-activation wide ResNet for 32 x 32 images (WRN-depth-width), depth 6n + 4.

    Its groups are the raw residual sums, before the next BN and ReLU: (N, 16 w, 32, 32), (N, 32 w, 16, 16),
    (N, 64 w, 8, 8). Any input of at least 4 x 4 is taken; logits come from the average over the last map.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f'a wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}')
    n = (depth - 4) // 6
    widths = [int(16 * width), int(32 * width), int(64 * width)]
    if widths[0] < 1:
        raise InputError(f'width {width} leaves a wide ResNet without channels; give at least 0.0625')
    return _wide_resnet(n, [16, *widths], num_classes)


def _wide_resnet(n: int, channels: Sequence[int], num_classes: int) -> tuple[Network, Params]:
    """n blocks in each group; `channels` of the first convolution and of the groups."""
    def block(n_in: int, n_out: int, strided: bool) -> dict[str, Any]:
        params: dict[str, Any] = {
            'conv0': utils.conv_params(n_in, n_out, 3), 'conv1': utils.conv_params(n_out, n_out, 3),
            'bn0': utils.bn_params(n_in), 'bn1': utils.bn_params(n_out)}
        if strided or n_in != n_out:
            params['convdim'] = utils.conv_params(n_in, n_out, 1)
        return params

    params: dict[str, Any] = {'conv0': utils.conv_params(3, channels[0], 3)}
    for g, (n_in, n_out) in enumerate(pairwise(channels)):
        params[f'group{g}'] = {f'block{b}': block(n_out if b else n_in, n_out, strided=g > 0 and not b)
                               for b in range(n)}
    params |= {'bn': utils.bn_params(channels[-1]), 'fc': utils.linear_params(channels[-1], num_classes)}
    return _wide_resnet_function(n), utils.flatten(params)


def _wide_resnet_function(n: int) -> Network:
    def block(x: Tensor, params: Params, base: str, mode: bool, stride: int) -> Tensor:
        o = F.relu(utils.batch_norm(x, params, base + '.bn0', mode), inplace=True)
        y = F.conv2d(o, params[base + '.conv0'], stride=stride, padding=1)
        y = F.relu(utils.batch_norm(y, params, base + '.bn1', mode), inplace=True)
        y = F.conv2d(y, params[base + '.conv1'], padding=1)
        shortcut = params.get(base + '.convdim')
        return y + (x if shortcut is None else utils.conv1x1(o, shortcut, stride))

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        x = F.conv2d(x, params[base + 'conv0'], padding=1)  # (N, 16, H, W)
        groups = []
        for g in range(3):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', mode, stride=2 if g and not b else 1)
            groups.append(x)  # (N, 16 w 2^g, H / 2^g, W / 2^g)
        x = F.relu(utils.batch_norm(x, params, base + 'bn', mode), inplace=True)
        return utils.classify(x, params, base), tuple(groups)

    return f


# --- ImageNet: post-activation ResNets -------------------------------------------------------------------


def resnet(depth: int, width: float, num_classes: int) -> tuple[Network, Params]:
    """ResNet-18 or 34 for 224 x 224 images; at width 1 it is that of torchvision, under other names.

    Its groups are taken after their last ReLU: (N, 64 w, 56, 56) ... (N, 512 w, 7, 7). The shortcut's
    convolution has BN; the published student has none there, which `load` and the function cope with.
    """
    if depth not in BLOCKS:
        raise InputError(f'a ResNet for ImageNet has depth {" or ".join(map(str, BLOCKS))}, not {depth}')
    widths = [int(n * width) for n in (64, 128, 256, 512)]
    if widths[0] < 1:
        raise InputError(f'width {width} leaves a ResNet without channels; give at least 1/64')
    return _resnet(BLOCKS[depth], [64, *widths], num_classes)


def _resnet(blocks: Sequence[int], channels: Sequence[int], num_classes: int) -> tuple[Network, Params]:
    """`channels` of the first convolution and of the groups."""
    def block(n_in: int, n_out: int, strided: bool) -> dict[str, Any]:
        params: dict[str, Any] = {'conv0': utils.conv_params(n_in, n_out, 3), 'bn0': utils.bn_params(n_out),
                  'conv1': utils.conv_params(n_out, n_out, 3), 'bn1': utils.bn_params(n_out)}
        if strided or n_in != n_out:
            params |= {'convdim': utils.conv_params(n_in, n_out, 1), 'bndim': utils.bn_params(n_out)}
        return params

    params = {'conv0': utils.conv_params(3, channels[0], 7), 'bn0': utils.bn_params(channels[0])}
    for g, (n_in, n_out) in enumerate(pairwise(channels)):
        params[f'group{g}'] = {f'block{b}': block(n_out if b else n_in, n_out, strided=g > 0 and not b)
                               for b in range(blocks[g])}
    params['fc'] = utils.linear_params(channels[-1], num_classes)
    return _resnet_function(blocks), utils.flatten(params)


def _resnet_function(blocks: Sequence[int]) -> Network:
    def block(x: Tensor, params: Params, base: str, mode: bool, stride: int) -> Tensor:
        y = F.conv2d(x, params[base + '.conv0'], stride=stride, padding=1)
        y = F.relu(utils.batch_norm(y, params, base + '.bn0', mode), inplace=True)
        y = F.conv2d(y, params[base + '.conv1'], padding=1)
        y = utils.batch_norm(y, params, base + '.bn1', mode)
        if base + '.convdim' in params:
            x = utils.conv1x1(x, params[base + '.convdim'], stride)
            if base + '.bndim.weight' in params:
                x = utils.batch_norm(x, params, base + '.bndim', mode)
        return F.relu(y + x, inplace=True)

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        x = F.conv2d(x, params[base + 'conv0'], stride=2, padding=3)  # (N, 64, H / 2, W / 2)
        x = F.relu(utils.batch_norm(x, params, base + 'bn0', mode), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        groups = []
        for g, n in enumerate(blocks):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', mode, stride=2 if g and not b else 1)
            groups.append(x)  # (N, 64 w 2^g, H / 2^(g+2), W / 2^(g+2))
        return utils.classify(x, params, base), tuple(groups)

    return f


# --- weights from files ----------------------------------------------------------------------------------


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
    return network(weights.read(path), str(path))


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
                f, expected = _wide_resnet(blocks[0], channels, num_classes)
                if family.startswith('folded'):
                    f, expected = folded.pre_activation(blocks), fold(expected)
            elif family == 'pre-activation ResNet':
                f = folded.pre_activation(blocks)
                expected = folded.pre_activation_params(blocks, channels, num_classes)
            else:
                f, expected = _resnet(blocks, channels, num_classes)
                if not any('.bndim.' in name for name in params):  # as in the published student
                    expected = {name: t for name, t in expected.items() if '.bndim.' not in name}
                if family.startswith('folded'):
                    f, expected = folded.post_activation(blocks), fold(expected)
    except RuntimeError:  # more numbers than torch can count
        raise InputError(f'{source} holds no network of this project: none has {channels} channels') from None
    return f, expected
