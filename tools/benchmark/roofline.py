"""The least time of a training step on this machine: its FLOPs and bytes, over what the machine can do.

The step runs once on tensors without content, so that nothing is computed, while convolutions and matrix
products are counted. In a perfectly fused step each of them, forward and each of its two backward, reads its
operands and writes its result once; all else (BN, ReLU, losses) rides on them for free. SGD goes over its
tensors once, the batch is read once as uint8. Each of these takes the longer of its arithmetic and its bytes.
"""
import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import layers
from layers import Sample
from method import training_step
from tools.benchmark import measure
from tools.benchmark.steps import Networks

aten = torch.ops.aten
MATRICES = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1}  # number of the first factor
COPIED = {'cpu': 1 << 27, 'cuda': 1 << 30}  # bytes: more than caches hold
MATRIX = {'cpu': 2048, 'cuda': 8192}  # rows
REPETITIONS = 9
CALLS = {'cpu': 1, 'cuda': 10}  # of a repetition, that starting them counts for nothing


class Operation(NamedTuple):
    flops: int
    bytes: int


class Machine(NamedTuple):
    """What a device reaches."""
    bandwidth: float  # bytes read and written per second, of a copy
    matrix_rate: float  # FLOP per second, of a matrix product in the dtype of the step

    def figures(self) -> dict[str, float]:
        return {name: measure.rounded(rate) for name, rate in self._asdict().items()}



# --- counting -----------------------------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """Convolutions and matrix products that run inside, as operations."""

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
        self.operations.append(Operation(2 * products, _bytes(tensors)))


def _products(weight: Tensor, out: Tensor) -> int:
    """Multiplications of a convolution with this result, (N, C, H, W), and of each of its gradients."""
    return out.numel() * math.prod(weight.shape[1:])


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def operations(real: argparse.Namespace, networks: Networks, batch: int, size: int) -> list[Operation]:
    """Of a training step by the options of a script, on `batch` images of `size` x `size` pixels."""
    f_s, student, f_t, teacher = networks
    real = argparse.Namespace(**vars(real) | {'compile': False})
    fake = FakeTensorMode()
    student, teacher = ({name: fake.from_tensor(t.detach()) for name, t in params.items()}
                        for params in (student, teacher))
    with fake, Counter() as counter:
        layers.trainable(student)
        x = torch.empty(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64)
        loss, _ = training_step(real, f_s, student, f_t, teacher)(Sample(x, labels, 1))
        loss.backward()
    # SGD reads parameter, gradient and momentum, and writes parameter and momentum.
    trained = [t for t in student.values() if t.requires_grad]
    return [Operation(0, batch * 3 * size * size), *counter.operations, Operation(0, 5 * _bytes(trained))]


def bound(counted: list[Operation], machine: Machine) -> float:
    """Seconds below which these operations cannot be, one after the other."""
    return sum(max(o.flops / machine.matrix_rate, o.bytes / machine.bandwidth) for o in counted)


# --- the machine --------------------------------------------------------------------------------------


def machine(device: torch.device, dtype: str) -> Machine:
    """Medians of several measurements."""
    a = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    b = torch.zeros_like(a)
    copy = _seconds(lambda: b.copy_(a), device)
    n = MATRIX[device.type]
    m = torch.ones(n, n, dtype=layers.DTYPES[dtype], device=device)
    return Machine(2 * a.numel() / copy, 2 * n**3 / _seconds(lambda: m @ m, device))


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    def times() -> Iterator[float]:
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            for _ in range(CALLS[device.type]):
                function()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            yield (time.perf_counter() - start) / CALLS[device.type]

    return float(np.median(list(times())[1:]))  # the first one warms up


# --- figures ------------------------------------------------------------------------------------------


def beside(speeds: list[float], batch: int, counted: list[Operation], machine: Machine) -> dict[str, Any]:
    """The roofline of a case, and our time over it; `speeds` are our images/s of each round."""
    least = bound(counted, machine)
    ratio = measure.spread(batch / speed / least for speed in speeds)
    return {'flops': sum(o.flops for o in counted), 'bytes': sum(o.bytes for o in counted),
            'bound_seconds': measure.rounded(least), 'roofline_ratio': ratio.median,
            'roofline_quartiles': [ratio.low, ratio.high]}
