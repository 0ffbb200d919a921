"""Functional residual networks: `logits, groups = f(x, params, mode, base='')`.

    f, params = resnet.wide_resnet(depth=16, width=1, num_classes=10)     # for CIFAR
    f, params = resnet.cifar_resnet(depth=20, width=1, num_classes=100)   # for CIFAR, as in RepDistiller
    f, params = resnet.resnet(depth=18, width=1, num_classes=1000)        # for ImageNet
    f, params = resnet.load('resnet-34-export.hkl')
    logits, groups = f(torch.randn(2, 3, 224, 224), params, mode=False)

A network is a function and a flat dictionary of tensors. The names are an interface: checkpoints, exports and
logs of the published code have the same ones. `fold` brings a network into the exported form, without BN,
which gives the same maps and logits for less work.
"""
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import layers
from layers import Network, Params
from utils import InputError

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
    return wide_resnet_of(n, [16, *widths], num_classes)


def wide_resnet_of(n: int, channels: Sequence[int], num_classes: int) -> tuple[Network, Params]:
    """n blocks in each group; `channels` of the first convolution and of the groups."""
    def block(n_in: int, n_out: int, strided: bool) -> dict[str, Any]:
        params: dict[str, Any] = {
            'conv0': layers.conv_params(n_in, n_out, 3), 'conv1': layers.conv_params(n_out, n_out, 3),
            'bn0': layers.bn_params(n_in), 'bn1': layers.bn_params(n_out)}
        if strided or n_in != n_out:
            params['convdim'] = layers.conv_params(n_in, n_out, 1)
        return params

    params: dict[str, Any] = {'conv0': layers.conv_params(3, channels[0], 3)}
    for g, (n_in, n_out) in enumerate(pairwise(channels)):
        params[f'group{g}'] = {f'block{b}': block(n_out if b else n_in, n_out, strided=g > 0 and not b)
                               for b in range(n)}
    params |= {'bn': layers.bn_params(channels[-1]), 'fc': layers.linear_params(channels[-1], num_classes)}
    return _wide_resnet_function(n), layers.flatten(params)


def _wide_resnet_function(n: int) -> Network:
    def block(x: Tensor, params: Params, base: str, mode: bool, stride: int) -> Tensor:
        o = F.relu(layers.batch_norm(x, params, base + '.bn0', mode), inplace=True)
        y = F.conv2d(o, params[base + '.conv0'], stride=stride, padding=1)
        y = F.relu(layers.batch_norm(y, params, base + '.bn1', mode), inplace=True)
        y = F.conv2d(y, params[base + '.conv1'], padding=1)
        shortcut = params.get(base + '.convdim')
        return y + (x if shortcut is None else layers.conv1x1(o, shortcut, stride))

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        x = F.conv2d(x, params[base + 'conv0'], padding=1)  # (N, 16, H, W)
        groups = []
        for g in range(3):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', mode, stride=2 if g and not b else 1)
            groups.append(x)  # (N, 16 w 2^g, H / 2^g, W / 2^g)
        x = F.relu(layers.batch_norm(x, params, base + 'bn', mode), inplace=True)
        return layers.classify(x, params, base), tuple(groups)

    return f


# --- post-activation ResNets -------------------------------------------------------------------------------


def cifar_resnet(depth: int, width: float, num_classes: int) -> tuple[Network, Params]:
    """ResNet for 32 x 32 images, depth 6n + 2: that of RepDistiller and mdistiller, under other names.

    Its groups are taken after their last ReLU: (N, 16 w, 32, 32), (N, 32 w, 16, 16), (N, 64 w, 8, 8). The
    first convolution has 16 w channels, but at most 32. Width 4 gives ResNet-8x4 and 32x4.
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f'a ResNet for CIFAR has depth 6n + 2 (8, 14, 20, 32, 56, 110, ...), not {depth}')
    widths = [int(n * width) for n in (16, 32, 64)]
    if widths[0] < 1:
        raise InputError(f'width {width} leaves a ResNet without channels; give at least 0.0625')
    return resnet_of([(depth - 2) // 6] * 3, [min(widths[0], 32), *widths], num_classes, stem=3)


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
    return resnet_of(BLOCKS[depth], [64, *widths], num_classes)


def resnet_of(blocks: Sequence[int], channels: Sequence[int], num_classes: int,
              stem: int = 7) -> tuple[Network, Params]:
    """`channels` of the first convolution, which is stem x stem, and of the groups."""
    def block(n_in: int, n_out: int, strided: bool) -> dict[str, Any]:
        params: dict[str, Any] = {
            'conv0': layers.conv_params(n_in, n_out, 3), 'bn0': layers.bn_params(n_out),
            'conv1': layers.conv_params(n_out, n_out, 3), 'bn1': layers.bn_params(n_out)}
        if strided or n_in != n_out:
            params |= {'convdim': layers.conv_params(n_in, n_out, 1), 'bndim': layers.bn_params(n_out)}
        return params

    params = {'conv0': layers.conv_params(3, channels[0], stem), 'bn0': layers.bn_params(channels[0])}
    for g, (n_in, n_out) in enumerate(pairwise(channels)):
        params[f'group{g}'] = {f'block{b}': block(n_out if b else n_in, n_out, strided=g > 0 and not b)
                               for b in range(blocks[g])}
    params['fc'] = layers.linear_params(channels[-1], num_classes)
    return _resnet_function(blocks), layers.flatten(params)


def _resnet_function(blocks: Sequence[int]) -> Network:
    def block(x: Tensor, params: Params, base: str, mode: bool, stride: int) -> Tensor:
        y = F.conv2d(x, params[base + '.conv0'], stride=stride, padding=1)
        y = F.relu(layers.batch_norm(y, params, base + '.bn0', mode), inplace=True)
        y = F.conv2d(y, params[base + '.conv1'], padding=1)
        y = layers.batch_norm(y, params, base + '.bn1', mode)
        if base + '.convdim' in params:
            x = layers.conv1x1(x, params[base + '.convdim'], stride)
            if base + '.bndim.weight' in params:
                x = layers.batch_norm(x, params, base + '.bndim', mode)
        return F.relu(y + x, inplace=True)

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        x = _stem(x, params[base + 'conv0'])
        x = F.relu(layers.batch_norm(x, params, base + 'bn0', mode), inplace=True)
        x = _pool(x, params[base + 'conv0'])
        groups = []
        for g, n in enumerate(blocks):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', mode, stride=2 if g and not b else 1)
            groups.append(x)  # ImageNet: (N, 64 w 2^g, H / 2^(g+2), W / 2^(g+2))
        return layers.classify(x, params, base), tuple(groups)

    return f


def _stem(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The first convolution: 7x7 with stride 2 for ImageNet, 3x3 with stride 1 for CIFAR."""
    k = weight.shape[2]
    return F.conv2d(x, weight, bias, stride=2 if k == 7 else 1, padding=k // 2)


def _pool(x: Tensor, stem: Tensor) -> Tensor:
    """Pooling before the groups, for ImageNet only."""
    return F.max_pool2d(x, 3, stride=2, padding=1) if stem.shape[2] == 7 else x


# --- without BN: the exported forms, and teachers ----------------------------------------------------------


def fold(params: Params) -> Params:
    """The exported form, equal to the network in evaluation mode: BN folded into the convolution before it.

    Of a ResNet or NIN, `conv0.{weight,bias}` and so on, `conv_dim` for `convdim`. In a wide ResNet only `bn1`
    comes after a convolution, to go into `conv0.{weight,bias}`; `bn0` becomes `affine0.{a,b}`, and `bn`
    `affine_last`, for a * x + b. A network without BN statistics is returned as it is.
    """
    if not any(map(layers.is_statistic, params)):
        return dict(params)
    preactivation = 'bn.weight' in params
    folded: Params = {}
    for name, t in params.items():
        to = name.replace('convdim', 'conv_dim')
        if t.dim() == 4 and (not preactivation or name.endswith('.conv0')):
            bn = name.replace('.conv0', '.bn1') if preactivation else re.sub(r'\b(conv|linear)', 'bn', name)
            a, b = _affine(params, bn, t)
            folded |= {f'{to}.weight': (t * a[:, None, None, None]).to(t.dtype), f'{to}.bias': b.to(t.dtype)}
        elif t.dim() == 4 or name.startswith('fc.'):
            folded[to] = t
        elif preactivation and name.endswith(('bn0.weight', 'bn.weight')):
            bn = name.removesuffix('.weight')
            a, b = _affine(params, bn, t)
            to = 'affine_last' if bn == 'bn' else bn.replace('bn0', 'affine0')
            folded |= {f'{to}.a': a.to(t.dtype), f'{to}.b': b.to(t.dtype)}
    return folded


def _affine(params: Params, bn: str, conv: Tensor) -> tuple[Tensor, Tensor]:
    """BN in evaluation mode as a * x + b, in float64; a = 1 and b = 0 after a convolution without BN."""
    if bn + '.weight' not in params:  # the published student's shortcut
        return conv.new_ones(len(conv), dtype=torch.float64), conv.new_zeros(len(conv), dtype=torch.float64)
    weight, bias, mean, var = (params[f'{bn}.{name}'].double()
                               for name in ('weight', 'bias', 'running_mean', 'running_var'))
    a = weight / (var + layers.EPS).sqrt()
    return a, bias - a * mean


def post_activation(blocks: Sequence[int]) -> Network:
    """Of a post-activation ResNet whose BN lies in its convolutions."""
    def conv(x: Tensor, params: Params, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, params[name + '.weight'], params[name + '.bias'], stride, padding)

    def block(x: Tensor, params: Params, base: str, stride: int) -> Tensor:
        y = F.relu(conv(x, params, base + '.conv0', stride, padding=1), inplace=True)
        y = conv(y, params, base + '.conv1', padding=1)
        if base + '.conv_dim.weight' in params:
            x = layers.conv1x1(x, params[base + '.conv_dim.weight'], stride, params[base + '.conv_dim.bias'])
        return F.relu(y + x, inplace=True)

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        stem = params[base + 'conv0.weight']
        x = _pool(F.relu(_stem(x, stem, params[base + 'conv0.bias']), inplace=True), stem)
        groups = []
        for g, n in enumerate(blocks):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', stride=2 if g and not b else 1)
            groups.append(x)
        return layers.classify(x, params, base), tuple(groups)

    return f


def pre_activation(blocks: Sequence[int]) -> Network:
    """Of a pre-activation ResNet with affine maps for BN: resnet-18-at-export, or a folded wide ResNet."""
    def affine_relu(x: Tensor, params: Params, base: str) -> Tensor:
        """ReLU alone where `base` has no tensors: after a ReLU (the export), or with BN folded."""
        a = params.get(base + '.a')
        if a is None:
            return F.relu(x)
        x = torch.addcmul(params[base + '.b'][:, None, None], x, a[:, None, None])
        return F.relu(x, inplace=True)

    def block(x: Tensor, params: Params, base: str, stride: int) -> Tensor:
        o = affine_relu(x, params, base + '.affine0')
        weight, bias = params.get(base + '.conv0'), None
        if weight is None:
            weight, bias = params[base + '.conv0.weight'], params[base + '.conv0.bias']
        y = affine_relu(F.conv2d(o, weight, bias, stride, padding=1), params, base + '.affine1')
        y = F.conv2d(y, params[base + '.conv1'], padding=1)
        shortcut = params.get(base + '.conv_dim')
        return y + (x if shortcut is None else layers.conv1x1(o, shortcut, stride))

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        if base + 'affine0.a' in params:  # for ImageNet
            x = F.conv2d(x, params[base + 'conv0'], stride=2, padding=3)
            x = F.max_pool2d(affine_relu(x, params, base + 'affine0'), 3, stride=2, padding=1)
        else:
            x = F.conv2d(x, params[base + 'conv0'], padding=1)
        groups = []
        for g, n in enumerate(blocks):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', stride=2 if g and not b else 1)
            groups.append(x)
        x = affine_relu(x, params, base + 'affine_last')
        return layers.classify(x, params, base), tuple(groups)

    return f


def pre_activation_params(blocks: Sequence[int], channels: Sequence[int], num_classes: int) -> Params:
    """Tensors of the form of resnet-18-at-export: 56 of them, 11,687,720 parameters, for ResNet-18.

    `channels` of the first convolution and of the groups: (64, 64, 128, 256, 512) there.
    """
    def affine(n: int) -> Params:
        return {'a': torch.ones(n), 'b': torch.zeros(n)}

    params: dict[str, Any] = {'conv0': layers.conv_params(3, channels[0], 7), 'affine0': affine(channels[0])}
    for g, (n_in, n_out) in enumerate(pairwise(channels)):
        params[f'group{g}'] = {}
        for b in range(blocks[g]):
            block: dict[str, Any] = {'conv0': layers.conv_params(n_in, n_out, 3),
                                     'conv1': layers.conv_params(n_out, n_out, 3)}
            if g or b:
                block['affine0'] = affine(n_in)
            block['affine1'] = affine(n_out)
            if g and not b or n_in != n_out:  # a stride, or other channels
                block['conv_dim'] = layers.conv_params(n_in, n_out, 1)
            params[f'group{g}'][f'block{b}'] = block
            n_in = n_out
    params |= {'affine_last': affine(channels[-1]), 'fc': layers.linear_params(channels[-1], num_classes)}
    return layers.flatten(params)


def load(path: Path | str, run_files: bool = False) -> tuple[Network, Params]:
    """A trained network from a file, a run or an address: `weights.networks.load`."""
    from weights import networks  # it imports this module
    return networks.load(path, run_files)
