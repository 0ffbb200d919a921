"""The roofline: operations counted against figures worked by hand and loops over shapes."""
import argparse

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import layers
import resnet
from layers import Sample
from method import training_step
from tools import benchmark
from tools.benchmark import COMMANDS, roofline, steps
from tools.benchmark.roofline import Machine, Operation

CIFAR = COMMANDS['cifar']


def counted(function):
    with roofline.Counter() as counter:
        function()
    return [tuple(operation) for operation in counter.operations]


@pytest.mark.parametrize(('c_in', 'c_out', 'kernel', 'stride', 'size', 'size_out'), [
    (3, 5, 1, 1, 4, 4), (3, 5, 3, 1, 4, 4), (2, 4, 3, 2, 8, 4), (2, 4, 1, 2, 8, 4)])
def test_a_convolution_and_its_gradients(c_in, c_out, kernel, stride, size, size_out):
    x = torch.randn(2, c_in, size, size, requires_grad=True)
    weight = torch.randn(c_out, c_in, kernel, kernel, requires_grad=True)

    def step():
        F.conv2d(x, weight, stride=stride, padding=kernel // 2).sum().backward()

    n_x, n_out, n_w = 2 * c_in * size**2, 2 * c_out * size_out**2, c_out * c_in * kernel**2
    flops = 2 * n_out * c_in * kernel**2
    # each reads two of input, weight and result (or their gradients) and writes the third
    assert counted(step) == [(flops, 4 * (n_x + n_out + n_w))] * 3
    x.requires_grad_(False)
    assert len(counted(step)) == 2, 'nothing is computed for images'


def test_a_convolution_worked_by_hand():
    # 3x3, stride 2: 5 maps of 2 x 2, each element 27 products; 48 inputs, 135 weights, 20 results
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 3, 3)
    assert counted(lambda: F.conv2d(x, weight, stride=2, padding=1)) == [(1080, 812)]
    x, weight = x.bfloat16(), weight.bfloat16()
    assert counted(lambda: F.conv2d(x, weight, stride=2, padding=1)) == [(1080, 406)]


def test_matrix_products():
    x, weight, bias = torch.randn(2, 3), torch.randn(5, 3, requires_grad=True), torch.zeros(5)
    product = (60, 4 * (6 + 15 + 10))
    assert counted(lambda: F.linear(x, weight, bias).sum().backward()) == [product, product]
    assert counted(lambda: torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5))) == [(240, 4 * (24 + 40 + 30))]


def test_a_tiny_network():
    """A 1x1 convolution of 3 to 2 channels, its mean, a layer of 2 classes: a step worked by hand."""
    def f(x, params, mode):
        return F.conv2d(x, params['conv']).mean((2, 3)) @ params['fc'], ()

    student = {'conv': torch.randn(2, 3, 1, 1), 'fc': torch.randn(2, 2)}
    real = CIFAR.real_options(benchmark.parse(['cifar', '--device', 'cpu']), 'student')
    got = roofline.operations(real, (f, student, None, {}), 1, 4)
    convolution = (2 * 16 * 2 * 3, 4 * (48 + 32 + 6))
    matrix = (2 * 2 * 2, 4 * (2 + 4 + 2))
    assert [tuple(o) for o in got] == [
        (0, 48), convolution, matrix, matrix, matrix, convolution, (0, 5 * 4 * 10)]


def test_flops_of_wrn_16_1_forward():
    """A loop over its convolutions, from shapes alone."""
    f, params = resnet.wide_resnet(16, 1, 10)
    got = counted(lambda: f(torch.randn(3, 3, 32, 32), params, False))
    products, n_in, size = 32 * 32 * 16 * 27, 16, 32
    for n_out in (16, 32, 64):
        size //= 1 if n_out == 16 else 2
        products += size**2 * n_out * n_in * (9 + (n_out != n_in))
        products += 3 * size**2 * n_out * n_out * 9
        n_in = n_out
    products += 64 * 10
    assert sum(flops for flops, _ in got) == 3 * 2 * products


@pytest.mark.parametrize('case', CIFAR.cases)
def test_flops_of_a_step_are_those_of_torch(case):
    opt = benchmark.parse(['cifar', '--device', 'cpu', '--batch_size', '2'])
    real, networks = CIFAR.real_options(opt, case), CIFAR.networks(opt, case)
    f_s, student, f_t, teacher = steps.folded(networks)
    got = roofline.operations(real, networks, 2, 32)
    assert not any(t.requires_grad for t in student.values()), 'they are left alone'
    layers.trainable(student)
    with FlopCounterMode(display=False) as counter:
        x = torch.randn(2, 3, 32, 32)
        loss, _ = training_step(real, f_s, student, f_t, teacher)(Sample(x, torch.tensor([1, 2]), 1))
        loss.backward()
    assert sum(o.flops for o in got) == counter.get_total_flops()


def test_bfloat16_halves_what_activations_take():
    opt = benchmark.parse(['cifar', '--device', 'cpu', '--batch_size', '8'])
    single, half = (roofline.operations(argparse.Namespace(**vars(CIFAR.real_options(opt, 'at')) | {
        'dtype': dtype}), CIFAR.networks(opt, 'at'), 8, 32) for dtype in ('float', 'bfloat16'))
    assert [o.flops for o in single] == [o.flops for o in half]
    assert [o.bytes for o in single[1:-1]] == [2 * o.bytes for o in half[1:-1]]
    assert (single[0], single[-1]) == (half[0], half[-1])


def test_imagenet_counts_the_folded_teacher_and_the_student():
    opt = benchmark.parse(['imagenet', '--device', 'cpu', '--batch_size', '2', '--image_size', '64'])
    got = {case: roofline.operations(COMMANDS['imagenet'].real_options(opt, case),
                                     COMMANDS['imagenet'].networks(opt, case), 2, 64)
           for case in ('student', 'at')}
    assert len(got['at']) - len(got['student']) == 37  # 33 convolutions, 3 shortcuts, the last layer
    assert got['at'][-1] == got['student'][-1]


def test_the_bound_is_the_longer_of_arithmetic_and_bytes():
    machine = Machine(bandwidth=100, matrix_rate=1000)
    operations = [Operation(5000, 100), Operation(1000, 300), Operation(0, 50)]
    assert roofline.least(operations, machine) == {'flops': 6000, 'bytes': 450, 'bound_seconds': 5 + 3 + 0.5}
    assert roofline.compared([2.0, 1.0, 4.0], 34, 8.5) == {  # 17, 34 and 8.5 s a step
        'roofline_ratio': 2, 'roofline_quartiles': [1.5, 3]}


def test_rates_of_the_machine(monkeypatch):
    """Medians without the first of nine times; the dtype is that of the step."""
    made, ones, times = [], torch.ones, iter([[90, *[4] * 5, 1, 1, 9], [900, *[8] * 8]])
    monkeypatch.setitem(roofline.MATRIX, 'cpu', 64)
    monkeypatch.setitem(roofline.COPIED, 'cpu', 1 << 16)
    monkeypatch.setattr(torch, 'ones', lambda *a, **k: made.append(k['dtype']) or ones(*a, **k))
    monkeypatch.setattr(roofline.timeit, 'repeat', lambda run, number, repeat: [run(), next(times)][1])
    found = roofline.machine(torch.device('cpu'), 'bfloat16')
    assert found == pytest.approx((2 * 2**16 / 4, 2 * 64**3 / 8), rel=1e-3)
    assert made == [torch.uint8, torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float', 'bfloat16'])
def test_rates_of_a_gpu(dtype):
    got = roofline.machine(torch.device('cuda'), dtype)
    assert got.bandwidth > 1e10 and got.matrix_rate > 1e11
