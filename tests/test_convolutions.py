"""stress/convolutions.py finds what is wrong, and nothing in the 1x1 convolutions of narrow networks."""
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import layers
import nin
import resnet
from stress import convolutions as sweep
from weights import networks


@pytest.mark.slow
@pytest.mark.parametrize('isa', ['AVX2', 'ALL'])
def test_narrow_networks(run_script, isa):
    """In a process of its own: the checks of memory are switched on when it starts."""
    done = run_script('stress.convolutions', '--short', '--ours', ONEDNN_MAX_CPU_ISA=isa)
    assert done.returncode == 0
    assert done.stdout.endswith(f'0 of {len(list(sweep.short_shapes()))} shapes are not right\n')


def overwrites(x, weight, stride):
    torch.as_strided(x.detach(), (1,), (1,), x.storage_offset() + x.numel()).zero_()
    return sweep.library(x, weight, stride)


def reads_too_much(x, weight, stride):
    return sweep.library(x, weight, stride) + torch.as_strided(x.detach(), (x.numel() + 1,), (1,)).sum()


def wrong_gradient(x, weight, stride):
    return sweep.library(x, weight * 2 - weight.detach(), stride)


FAULTS = {'1 weight gradient, second to weight': wrong_gradient,
          '1 output': reads_too_much,
          '1 memory before or after an input': overwrites,
          '1 crash (SIGSEGV)': lambda *_: os.kill(os.getpid(), signal.SIGSEGV),
          '1 crash (SIGABRT)': lambda *_: os.abort(),
          '1 hang': lambda *_: time.sleep(60),
          '1 error': lambda *_: os._exit(1)}


@pytest.mark.parametrize('found', FAULTS)
def test_faults_are_found(monkeypatch, found):
    """In the second of three shapes; the others are right, and checked."""
    def convolution(x, weight, stride):
        return (FAULTS[found] if x.shape[1] == 5 else sweep.library)(x, weight, stride)

    monkeypatch.setattr(sweep, 'LIMIT', 2)
    shapes = [sweep.Shape(1, 2, 'channels_last', 'float32', n_in, 8, 8, 2) for n_in in (16, 5, 17)]
    lines, n_wrong = sweep.table(sweep.sweep(shapes, convolution))
    assert n_wrong == 1 and lines[-1] == '1 of 3 shapes are not right'
    assert len(lines) == 4 and lines[2].startswith(f'| 1 | 2 | channels_last | float32 | 5 | 1 | {found} |')


class Convolutions(TorchFunctionMode):
    """Notes the kernel, stride and channels of every convolution."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d:
            weight, stride = args[1], (kwargs or {}).get('stride', args[3] if len(args) > 3 else 1)
            self.found.append((weight.shape[2], stride, weight.shape[1]))
        return function(*args, **(kwargs or {}))


def pre_activation():
    blocks = resnet.BLOCKS[18]
    return resnet.pre_activation(blocks), resnet.pre_activation_params(blocks, (64, 8, 16, 32, 64), 7)


@pytest.mark.parametrize('build', [
    lambda: resnet.wide_resnet(10, 0.25, 7), lambda: resnet.resnet(18, 0.125, 7), lambda: nin.nin(4, 7),
    pre_activation], ids=['wide ResNet', 'ResNet', 'NIN', 'pre-activation ResNet'])
@pytest.mark.parametrize('fold', [False, True], ids=['', 'folded'])
def test_no_narrow_convolution_is_strided(build, fold):
    f, params = build()
    if fold:
        f, params = networks.network(resnet.fold(params))
    with Convolutions() as seen:
        f(torch.randn(2, 3, 32, 32), params, False)
    assert seen.found
    assert not [c for c in seen.found if c[0] == 1 and c[1] != 1 and c[2] < 16]


def test_conv1x1_of_many_channels_stays_strided():
    with Convolutions() as seen:
        layers.conv1x1(torch.randn(1, 16, 4, 4), torch.randn(3, 16, 1, 1), 2)
    assert seen.found == [(1, 2, 16)]
