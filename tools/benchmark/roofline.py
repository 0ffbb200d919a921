"""The shortest possible training step on this machine, from its memory bandwidth and matrix throughput.

The step runs once on tensors without content, which computes nothing, and its convolutions and matrix
products are counted. Each of them, forward and backward, reads its operands and writes its result once. SGD
reads and writes its tensors once, and the batch is read once as uint8. Each of these takes the longer of its
arithmetic and its memory traffic; everything else is assumed to be free.
"""
import argparse
import math
import timeit
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import layers
from layers import Sample
from method import training_step
from tools.benchmark import measure
from tools.benchmark.steps import Networks, folded

aten = torch.ops.aten
MATRICES = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1}  # position of the first factor
COPIED = {'cpu': 1 << 27, 'cuda': 1 << 30}  # bytes: more than caches hold
MATRIX = {'cpu': 2048, 'cuda': 8192}  # rows


class Operation(NamedTuple):
    flops: int
    bytes: int


class Machine(NamedTuple):
    """What a device reaches."""
    bandwidth: float  # bytes read and written per second, of a copy
    matrix_rate: float  # FLOP per second, of a matrix product in the dtype of the step


class Counter(TorchDispatchMode):
    """Collects the convolutions and matrix products that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is aten.convolution.default:
            x, weight = args[:2]
            self._add(_products(weight, result), x, weight, result)
        elif func is aten.convolution_backward.default:
            grad, x, weight = args[:3]
            for grad_of, other in zip(result[:2], (weight, x), strict=True):
                if grad_of is not None:
                    self._add(_products(weight, grad), grad, other, grad_of)
        elif func in MATRICES:
            a, b = args[MATRICES[func]:][:2]
            self._add(result.numel() * a.shape[-1], a, b, result)
        return result

    def _add(self, products: int, *tensors: Tensor) -> None:
        self.operations.append(Operation(2 * products, sum(t.nbytes for t in tensors)))


def _products(weight: Tensor, out: Tensor) -> int:
    """Multiplications of a convolution with this result (N, C, H, W), and of each of its gradients."""
    return out.numel() * math.prod(weight.shape[1:])


def operations(real: argparse.Namespace, networks: Networks, batch: int, size: int) -> list[Operation]:
    """The operations of a training step with the options of a script, on images (batch, 3, size, size)."""
    f_s, student, f_t, teacher = folded(networks)
    real = argparse.Namespace(**vars(real) | {'compile': False})
    fake = FakeTensorMode()
    student, teacher = ({name: fake.from_tensor(t.detach()) for name, t in params.items()}
                        for params in (student, teacher))
    with fake, Counter() as counter:
        trained = layers.trainable(student)
        x = torch.empty(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64)
        loss, _ = training_step(real, f_s, student, f_t, teacher)(Sample(x, labels, 1))
        loss.backward()
    # SGD reads parameter, gradient and momentum, and writes parameter and momentum.
    sgd = Operation(0, 5 * sum(t.nbytes for t in trained.values()))
    return [Operation(0, batch * 3 * size * size), *counter.operations, sgd]


def least(counted: list[Operation], machine: Machine) -> dict[str, float]:
    """FLOP and bytes of operations, and the seconds that they take at least, one after the other."""
    seconds = sum(max(o.flops / machine.matrix_rate, o.bytes / machine.bandwidth) for o in counted)
    return {'flops': sum(o.flops for o in counted), 'bytes': sum(o.bytes for o in counted),
            'bound_seconds': measure.rounded(seconds)}


def machine(device: torch.device, dtype: str) -> Machine:
    """Medians of several measurements."""
    def seconds(function: Callable[[], Any]) -> float:
        def run() -> None:
            function()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
        return median(timeit.repeat(run, number=1, repeat=9)[1:])  # the first one warms up

    a = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    b = torch.zeros_like(a)
    n = MATRIX[device.type]
    m = torch.ones(n, n, dtype=layers.DTYPES[dtype], device=device)
    return Machine(measure.rounded(2 * a.numel() / seconds(lambda: b.copy_(a))),
                   measure.rounded(2 * n**3 / seconds(lambda: m @ m)))


def compared(speeds: list[float], batch: int, bound_seconds: float) -> dict[str, Any]:
    """Our time over the roofline, from our images/s of each round."""
    ratio = measure.spread(batch / speed / bound_seconds for speed in speeds)
    return {'roofline_ratio': ratio.median, 'roofline_quartiles': [ratio.low, ratio.high]}
