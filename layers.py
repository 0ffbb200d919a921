"""Functional networks: the types of what they take and give, what they are made of, and how they run.

    params = layers.flatten({'conv0': layers.conv_params(3, 16, 3), 'bn': layers.bn_params(16)})
    x = layers.batch_norm(F.conv2d(x, params['conv0'], padding=1), params, 'bn', mode=True)

A network is a function and a flat dictionary of tensors with dotted names.
"""
import errno
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import kaiming_normal_

Params = dict[str, Tensor]
Network = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]  # f(x, params, mode, base) -> logits, groups
Function = Callable[['Sample'], tuple[Tensor, Any]]  # h(sample) -> loss, output: what torchnet's Engine takes
DTYPES = {'float': torch.float32, 'bfloat16': torch.bfloat16, 'half': torch.float16}
EPS = 1e-5  # of BN, here and in torchvision


class Sample(NamedTuple):
    """A batch."""
    x: Tensor  # (B, 3, H, W) float32, normalised, channels last in memory
    labels: Tensor  # (B,) int64
    epoch: int  # from 1
    batch: int = 0  # number of the batch in the epoch, from 0
    share: float = 1.0  # part of the whole batch that this rank has, times the number of ranks


# --- what they are made of ----------------------------------------------------------------------------


def conv_params(n_in: int, n_out: int, k: int) -> Tensor:
    """Weight of a k x k convolution (n_out, n_in, k, k)."""
    return kaiming_normal_(torch.empty(n_out, n_in, k, k))


def linear_params(n_in: int, n_out: int) -> Params:
    """Weight (n_out, n_in) and zero bias of a linear layer."""
    return {'weight': kaiming_normal_(torch.empty(n_out, n_in)), 'bias': torch.zeros(n_out)}


def bn_params(n: int) -> Params:
    """Weight from uniform(0, 1) as in the published code, zero bias, and running statistics, (n,) each."""
    return {'weight': torch.rand(n), 'bias': torch.zeros(n),
            'running_mean': torch.zeros(n), 'running_var': torch.ones(n)}


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name is a running statistic of BN, which no gradient reaches."""
    return name.endswith(('running_mean', 'running_var'))


def converted(params: Params, dtype: torch.dtype) -> Params:
    """In another dtype. Where there is BN, vectors stay as they are: it needs all of them in float32."""
    bn = any(map(is_statistic, params))
    return {name: t if bn and t.dim() < 2 else t.to(dtype) for name, t in params.items()}


def flatten(tree: Mapping, prefix: str = '') -> Params:
    """Nested dictionaries -> {'group0.block0.conv0': tensor, ...}, in order of definition."""
    flat: Params = {}
    for name, value in tree.items():
        flat |= flatten(value, f'{prefix}{name}.') if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def trainable(params: Params, fixed: Collection[str] = ()) -> Params:
    """Mark tensors as leaves that take gradients, all but BN statistics and `fixed`; return those."""
    return {name: t.requires_grad_() for name, t in params.items()
            if not is_statistic(name) and name not in fixed}


def n_parameters(params: Params) -> int:
    """Number of elements, BN statistics included, as the published logs count them."""
    return sum(t.numel() for t in params.values())


def batch_norm(x: Tensor, params: Params, base: str, mode: bool) -> Tensor:
    """BN of x (N, C, H, W) by the tensors at `base`; mode True: by the batch, updating the statistics."""
    return F.batch_norm(x, params[base + '.running_mean'], params[base + '.running_var'],
                        params[base + '.weight'], params[base + '.bias'], training=mode, eps=EPS)


def classify(x: Tensor, params: Params, base: str) -> Tensor:
    """Logits (N, K) of the last activations (N, C, H, W): their average, and the linear layer `fc`."""
    return F.linear(x.mean((2, 3)), params[base + 'fc.weight'], params[base + 'fc.bias'])


@contextmanager
def statistics_aside(params: Params) -> Iterator[None]:
    """Inside, BN updates copies of the running statistics in `params`, which are then forgotten.

    Statistics are the tensors that no gradient reaches, because the names of a module are its own.
    """
    kept = {name: t for name, t in params.items() if not t.requires_grad}
    params |= {name: t.clone() for name, t in kept.items()}
    try:
        yield
    finally:
        params |= kept


def conv1x1(x: Tensor, weight: Tensor, stride: int = 1, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution of x (N, C, H, W) by weight (C', C, 1, 1), without padding.

    With fewer than 16 input channels, x is subsampled first, and the convolution has stride 1: there, oneDNN
    in torch 2.15 computes the strided weight gradient in too little memory (channels last, float32; below 16
    channels with AVX-512, below 8 with AVX2). It crashed, gave wrong gradients, or never returned.
    """
    if weight.shape[1] < 16:
        x, stride = x[:, :, ::stride, ::stride], 1
    return F.conv2d(x, weight, bias, stride)


# --- how they run -------------------------------------------------------------------------------------


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Inside, networks compute in --dtype."""
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != 'float')


def compiled(f: Callable, tensors: list[Tensor]) -> Callable:
    """The function in one piece for each shape of its input; on CUDA a graph, launched as a whole.

    A graph reads and writes tensors at fixed addresses. The compiler takes a network's tensors for inputs,
    which it would copy in each step, and refuse where BN writes to them: they are marked as staying in place.
    """
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)  # on a CPU beside nvcc it warns
    cuda = any(t.is_cuda for t in tensors)
    if cuda:
        for t in tensors:
            torch._dynamo.mark_static_address(t)
    return torch.compile(f, dynamic=False, mode='reduce-overhead' if cuda else None)


def is_out_of_memory(e: Exception) -> bool:
    """Whether memory, of a device or of this machine, is what was missing."""
    if isinstance(e, MemoryError | torch.OutOfMemoryError) or getattr(e, 'errno', 0) == errno.ENOMEM:
        return True
    return any(words in str(e) for words in ("can't allocate memory", 'not enough memory', 'bad_alloc',
                                             'Cannot allocate memory', 'memory allocation failed'))
