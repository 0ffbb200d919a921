"""Functional Network-in-Network for CIFAR: `logits, groups = f(x, params, mode, base='')`.

    f, params = nin.nin(width=96, num_classes=10)      # thin, 0.2M parameters
    f, params = nin.nin(width=192, num_classes=10)     # wide, 1M parameters
    logits, groups = f(torch.randn(2, 3, 32, 32), params, mode=False)

The names of the tensors tell the network: `group0.conv0` with `group0.bn0.*`, or without BN
`group0.conv0.weight` and `.bias`; the last convolution of a group is `conv2`, or `linear2` where no ReLU
follows.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import layers
from layers import Network, Params
from utils import InputError

DEPTH = 9  # convolutions
THIN = 96  # channels


def nin(width: int, num_classes: int, bn: bool = True, pool_relu: bool = True) -> tuple[Network, Params]:
    """Network-in-Network of three groups of 3x3, 1x1 and 1x1 convolutions, all of `width` channels.

    The paper names a thin one of 0.2M and a wide one of 1M parameters (Table 1), which widths 96 and 192 give
    (226,474 and 895,306 trainable ones, with BN). bn=False: biases in place of BN; pool_relu=False: no ReLU
    before pooling (both Table 3). Between groups 2x2 max-pooling, which a mirrored image passes mirrored, and
    in the end the average of the last map and a linear layer.

    Its groups are what is pooled: (N, width, 32, 32), (N, width, 16, 16), (N, width, 8, 8) for 32 x 32.
    """
    if width < 1:
        raise InputError(f'a NIN has at least 1 channel, not {width}; the paper has 96 and 192')
    params: dict[str, Any] = {}
    n_in = 3
    for g in range(3):
        group = params[f'group{g}'] = {}
        for layer, k in zip(_layers(pool_relu), (3, 1, 1), strict=True):
            weight = layers.conv_params(n_in, width, k)
            if bn:
                group |= {layer: weight, f'bn{layer[-1]}': layers.bn_params(width)}
            else:
                group[layer] = {'weight': weight, 'bias': torch.zeros(width)}
            n_in = width
    params['fc'] = layers.linear_params(width, num_classes)
    return function(pool_relu), layers.flatten(params)


def _layers(pool_relu: bool) -> tuple[str, str, str]:
    return 'conv0', 'conv1', 'conv2' if pool_relu else 'linear2'


def function(pool_relu: bool) -> Network:
    """The network as a function of its tensors, with or without BN."""
    def convolution(x: Tensor, params: Params, group: str, layer: str, mode: bool) -> Tensor:
        name, bn = f'{group}.{layer}', f'{group}.bn{layer[-1]}'
        weight, bias = params.get(name), None
        if weight is None:
            weight, bias = params[name + '.weight'], params[name + '.bias']
        if weight.shape[2] == 3:
            x = F.conv2d(x, weight, bias, padding=1)
        else:
            x = layers.conv1x1(x, weight, bias=bias)
        return x if bias is not None else layers.batch_norm(x, params, bn, mode)

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        groups = []
        for g in range(3):
            for layer in _layers(pool_relu):
                x = convolution(x, params, f'{base}group{g}', layer, mode)
                if layer != 'linear2':
                    x = F.relu(x, inplace=True)
            groups.append(x)  # (N, width, H / 2^g, W / 2^g)
            if g < 2:
                x = F.max_pool2d(x, 2)
        return layers.classify(x, params, base), tuple(groups)

    return f
