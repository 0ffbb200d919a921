"""Networks without BN: the exported forms, and frozen teachers.

    params = folded.fold(params)      # the same maps and logits, for less work

`pre_activation` and `post_activation` are the networks that such tensors belong to.
"""
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import utils
from utils import Network, Params


def fold(params: Params) -> Params:
    """The exported form, equal to the network in evaluation mode: BN folded into the convolution before it.

    Of a ResNet or NIN, `conv0.{weight,bias}` and so on, `conv_dim` for `convdim`. In a wide ResNet only `bn1`
    comes after a convolution, to go into `conv0.{weight,bias}`; `bn0` becomes `affine0.{a,b}`, and `bn`
    `affine_last`, for a * x + b. A network without BN statistics is returned as it is.
    """
    if not any(map(utils.is_statistic, params)):
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
    a = weight / (var + utils.EPS).sqrt()
    return a, bias - a * mean


def post_activation(blocks: Sequence[int]) -> Network:
    """Of a post-activation ResNet whose BN lies in its convolutions."""
    def conv(x: Tensor, params: Params, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, params[name + '.weight'], params[name + '.bias'], stride, padding)

    def block(x: Tensor, params: Params, base: str, stride: int) -> Tensor:
        y = F.relu(conv(x, params, base + '.conv0', stride, padding=1), inplace=True)
        y = conv(y, params, base + '.conv1', padding=1)
        if base + '.conv_dim.weight' in params:
            x = utils.conv1x1(x, params[base + '.conv_dim.weight'], stride, params[base + '.conv_dim.bias'])
        return F.relu(y + x, inplace=True)

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        x = F.relu(conv(x, params, base + 'conv0', stride=2, padding=3), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        groups = []
        for g, n in enumerate(blocks):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', stride=2 if g and not b else 1)
            groups.append(x)
        return utils.classify(x, params, base), tuple(groups)

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
        return y + (x if shortcut is None else utils.conv1x1(o, shortcut, stride))

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
        return utils.classify(x, params, base), tuple(groups)

    return f


def pre_activation_params(blocks: Sequence[int], channels: Sequence[int], num_classes: int) -> Params:
    """Tensors of the form of resnet-18-at-export: 56 of them, 11,687,720 parameters, for ResNet-18.

    `channels` of the first convolution and of the groups: (64, 64, 128, 256, 512) there.
    """
    def affine(n: int) -> Params:
        return {'a': torch.ones(n), 'b': torch.zeros(n)}

    params: dict[str, Any] = {'conv0': utils.conv_params(3, channels[0], 7), 'affine0': affine(channels[0])}
    for g, (n_in, n_out) in enumerate(pairwise(channels)):
        params[f'group{g}'] = {}
        for b in range(blocks[g]):
            block: dict[str, Any] = {'conv0': utils.conv_params(n_in, n_out, 3),
                                     'conv1': utils.conv_params(n_out, n_out, 3)}
            if g or b:
                block['affine0'] = affine(n_in)
            block['affine1'] = affine(n_out)
            if g and not b or n_in != n_out:  # a stride, or other channels
                block['conv_dim'] = utils.conv_params(n_in, n_out, 1)
            params[f'group{g}'][f'block{b}'] = block
            n_in = n_out
    params |= {'affine_last': affine(channels[-1]), 'fc': utils.linear_params(channels[-1], num_classes)}
    return utils.flatten(params)
