"""The helpers of functional networks against loops in float64."""
import itertools
import math

import numpy as np
import pytest
import torch

import layers


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('n_in', [1, 3, 7, 8, 9, 16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_conv1x1(layout, n_in, stride):
    x, weight = normal(2, n_in, 5, 4).contiguous(memory_format=layout), normal(6, n_in, 1, 1)
    x.requires_grad_()
    weight.requires_grad_()
    a, k = x.detach().numpy(), weight.detach().numpy()
    y = layers.conv1x1(x, weight, stride)
    height, width = -(-5 // stride), -(-4 // stride)
    assert y.shape == (2, 6, height, width)
    upstream = normal(*y.shape)
    g = upstream.numpy()
    expected, to_x, to_weight = np.zeros(y.shape), np.zeros(x.shape), np.zeros(weight.shape)
    for i, o, c, r, s in itertools.product(range(2), range(6), range(n_in), range(height), range(width)):
        expected[i, o, r, s] += k[o, c, 0, 0] * a[i, c, r * stride, s * stride]
        to_x[i, c, r * stride, s * stride] += g[i, o, r, s] * k[o, c, 0, 0]
        to_weight[o, c, 0, 0] += g[i, o, r, s] * a[i, c, r * stride, s * stride]
    np.testing.assert_allclose(y.detach(), expected, atol=1e-12)
    y.backward(upstream)
    np.testing.assert_allclose(x.grad, to_x, atol=1e-12)
    np.testing.assert_allclose(weight.grad, to_weight, atol=1e-12)


def test_batch_norm():
    x = normal(4, 3, 5, 2) * 3 + 1
    params = {'net.bn0.weight': normal(3), 'net.bn0.bias': normal(3),
              'net.bn0.running_mean': normal(3), 'net.bn0.running_var': normal(3).exp()}
    old = {name: t.numpy().copy() for name, t in params.items()}
    weight, bias, mean, var = (old[name].reshape(1, 3, 1, 1) for name in params)
    a = x.numpy()

    y = layers.batch_norm(x, params, 'net.bn0', False)
    np.testing.assert_allclose(y, (a - mean) / np.sqrt(var + 1e-5) * weight + bias, rtol=1e-10)
    assert all(np.array_equal(t, old[name]) for name, t in params.items())

    y = layers.batch_norm(x, params, 'net.bn0', True)
    batch_mean, n = np.zeros((1, 3, 1, 1)), 4 * 5 * 2
    squares = np.zeros((1, 3, 1, 1))
    for c in range(3):
        batch_mean[0, c] = a[:, c].sum() / n
        squares[0, c] = ((a[:, c] - batch_mean[0, c]) ** 2).sum()
    np.testing.assert_allclose(
        y, (a - batch_mean) / np.sqrt(squares / n + 1e-5) * weight + bias, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(params['net.bn0.running_mean'], (0.9 * mean + 0.1 * batch_mean).ravel())
    np.testing.assert_allclose(params['net.bn0.running_var'], (0.9 * var + 0.1 * squares / (n - 1)).ravel())
    for name in ('weight', 'bias'):
        assert np.array_equal(params[f'net.bn0.{name}'], old[f'net.bn0.{name}'])


def test_flatten_keeps_names_order_and_tensors():
    a, b, c, d = torch.ones(4).unbind()
    tree = {'z': a, 'group0': {'block0': {'conv0': b, 'bn0': {'weight': c}}}, 'empty': {}, 'a': d}
    flat = layers.flatten(tree)
    assert list(flat) == ['z', 'group0.block0.conv0', 'group0.block0.bn0.weight', 'a']
    assert [t is u for t, u in zip(flat.values(), (a, b, c, d), strict=True)] == [True] * 4
    assert list(layers.flatten(tree, 'student.'))[1] == 'student.group0.block0.conv0'


def test_trainable_leaves_statistics_alone():
    params = {'conv0': torch.ones(2, 3), **{f'bn.{name}': t for name, t in layers.bn_params(5).items()}}
    leaves = layers.trainable(params)
    assert list(leaves) == ['conv0', 'bn.weight', 'bn.bias']
    assert all(leaves[name] is params[name] and params[name].requires_grad for name in leaves)
    assert not params['bn.running_mean'].requires_grad and not params['bn.running_var'].requires_grad
    assert layers.n_parameters(params) == 6 + 4 * 5


@pytest.mark.parametrize(('name', 'is_one'), [
    ('bn.running_mean', True), ('student.group0.block1.bn0.running_var', True), ('bn.weight', False),
    ('bn.bias', False), ('conv0', False), ('running_mean.weight', False)])
def test_is_statistic(name, is_one):
    assert layers.is_statistic(name) is is_one


def test_new_tensors():
    weight = layers.conv_params(64, 200, 3)  # kaiming: variance 2 / fan-in
    assert weight.shape == (200, 64, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    linear = layers.linear_params(300, 200)
    assert linear['weight'].std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert linear['bias'].tolist() == [0] * 200
    bn = layers.bn_params(10_000)
    assert 0 <= bn['weight'].min() < 0.01 and 0.99 < bn['weight'].max() <= 1
    assert bn['weight'].mean().item() == pytest.approx(0.5, abs=0.02)
    assert bn['weight'].var().item() == pytest.approx(1 / 12, rel=0.05)
    assert not bn['bias'].any() and not bn['running_mean'].any() and bn['running_var'].eq(1).all()
