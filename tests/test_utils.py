"""The method against loops in float64, written from the paper's formulas."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import utils
from utils import InputError

MAPS = [(1, 'sum'), (2, 'sum'), (4, 'sum'), (1, 'max'), (2, 'max'), (3, 'sum'), (1.5, 'max')]


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """Two threads on tensors this small wait for each other a hundred times as long as they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


# --- references: one number at a time --------------------------------------------------------------------


def slow_map(a, p, reduce):
    """Section 3.1: F_sum^p or F_max^p of each image, (N, C, H, W) -> (N, H, W)."""
    a = a.detach().double().numpy()
    n, c, h, w = a.shape
    result = np.zeros((n, h, w))
    for i, y, x in itertools.product(range(n), range(h), range(w)):
        powers = [math.pow(abs(a[i, k, y, x]), p) for k in range(c)]
        result[i, y, x] = math.fsum(powers) if reduce == 'sum' else max(powers)
    return result


def slow_normalize(maps):
    """Each map as a vector over its l2 norm; a map of zeros as it is."""
    rows = []
    for q in maps:
        elements = [q[y][x] for y in range(len(q)) for x in range(len(q[0]))]
        norm = math.sqrt(math.fsum(v * v for v in elements))
        rows.append([v / norm if norm else v for v in elements])
    return np.array(rows)


def slow_shrink(maps, height, width):
    """Averages over areas: cell y covers the rows that touch [y, y + 1) * H / height, columns likewise."""
    n, h, w = maps.shape
    result = np.zeros((n, height, width))
    for i, y, x in itertools.product(range(n), range(height), range(width)):
        rows = [r for r in range(h) if r * height < (y + 1) * h and (r + 1) * height > y * h]
        columns = [c for c in range(w) if c * width < (x + 1) * w and (c + 1) * width > x * w]
        result[i, y, x] = math.fsum(maps[i, r, c] for r in rows for c in columns) / (len(rows) * len(columns))
    return result


def slow_at_loss(x, y, p, reduce):
    q_x, q_y = slow_map(x, p, reduce), slow_map(y, p, reduce)
    height, width = min(q_x.shape[1], q_y.shape[1]), min(q_x.shape[2], q_y.shape[2])
    q_x, q_y = (slow_normalize(slow_shrink(q, height, width)) for q in (q_x, q_y))
    return math.fsum((a - b) ** 2 for a, b in zip(q_x.flat, q_y.flat, strict=True)) / q_x.size


# --- attention maps and losses ---------------------------------------------------------------------------


@pytest.mark.parametrize(('p', 'reduce'), MAPS)
@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (1, 1, 3, 3), (2, 7, 1, 1)])
def test_attention_map(shape, p, reduce):
    x = normal(*shape)
    maps = utils.attention_map(x, p, reduce)
    assert maps.shape == (shape[0], *shape[2:])
    np.testing.assert_allclose(maps, slow_map(x, p, reduce), rtol=1e-12)
    q = utils.at(x, p, reduce)
    assert q.shape == (shape[0], shape[2] * shape[3])
    np.testing.assert_allclose(q, slow_normalize(slow_map(x, p, reduce)), rtol=1e-12)


def test_maps_by_hand():
    x = torch.tensor([[[[1., 0.]], [[-2., 2.]]]])  # two channels of 1 x 2
    assert utils.attention_map(x, 1).tolist() == [[[3, 2]]]
    assert utils.attention_map(x).tolist() == [[[5, 4]]]
    assert utils.attention_map(x, 4).tolist() == [[[17, 16]]]
    assert utils.attention_map(x, 1, 'max').tolist() == [[[2, 2]]]
    assert utils.at(torch.tensor([[[[0.]], [[5.]]]])).tolist() == [[1]]


@pytest.mark.parametrize(('p', 'reduce'), MAPS)
@pytest.mark.parametrize(('small', 'large'), [
    ((2, 3, 4, 4), (2, 3, 4, 4)), ((3, 2, 5, 4), (3, 7, 5, 4)), ((2, 3, 4, 4), (2, 5, 8, 8)),
    ((2, 3, 4, 4), (2, 2, 7, 5)), ((2, 3, 8, 2), (2, 4, 3, 6)), ((1, 2, 1, 1), (1, 3, 3, 4))])
def test_at_loss(small, large, p, reduce):
    x, y = normal(*small), normal(*large)
    expected = pytest.approx(slow_at_loss(x, y, p, reduce), rel=1e-10, abs=1e-30)
    assert utils.at_loss(x, y, p, reduce).item() == expected
    assert utils.at_loss(y, x, p, reduce).item() == expected
    assert utils.at_loss(x.float(), y.float(), p, reduce).item() == pytest.approx(
        slow_at_loss(x, y, p, reduce), rel=1e-4, abs=1e-12)


def test_at_loss_is_a_mean_of_squares():
    x = torch.tensor([[[[1., 0.]]], [[[1., 0.]]]])
    y = torch.tensor([[[[0., 3.]]], [[[7., 0.]]]])
    assert utils.at_loss(x, y).item() == pytest.approx((1 + 1 + 0 + 0) / 4)


def test_default_map_is_the_sum_of_squares():
    x, y = normal(2, 3, 4, 4), normal(2, 3, 4, 4)
    assert utils.at_loss(x, y).item() == pytest.approx(slow_at_loss(x, y, 2, 'sum'))
    np.testing.assert_allclose(utils.at(x), slow_normalize(slow_map(x, 2, 'sum')))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize(('p', 'reduce'), MAPS)
def test_half_precision_above_256(dtype, p, reduce):
    x, y = normal(2, 8, 3, 3).mul(2000).to(dtype), normal(2, 8, 3, 3).mul(30).to(dtype)
    assert x.abs().max() > 256  # whose square is not finite in half precision
    maps = utils.attention_map(x, p, reduce)
    assert maps.dtype == utils.at(x, p, reduce).dtype == torch.float32
    assert maps.isfinite().all()
    np.testing.assert_allclose(maps, slow_map(x, p, reduce), rtol=1e-5)
    loss = utils.at_loss(x, y, p, reduce)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_at_loss(x, y, p, reduce), rel=1e-4)


@given(st.floats(-6, 6), st.sampled_from([(1, 'sum'), (2, 'sum'), (4, 'sum'), (4, 'max')]),
       st.sampled_from([torch.float32, torch.float64]))
def test_scale_of_activations_does_not_matter(exponent, kind, dtype):
    torch.manual_seed(1)
    x, y = normal(2, 3, 4, 4, dtype=dtype), normal(2, 5, 6, 5, dtype=dtype)
    scale = 10 ** exponent
    torch.testing.assert_close(utils.at(scale * x, *kind), utils.at(x, *kind), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(utils.at_loss(scale * x, y, *kind), utils.at_loss(x, y, *kind),
                               rtol=1e-4, atol=0)


@pytest.mark.parametrize('scale', [1e-6, 1e6])
@pytest.mark.parametrize(('p', 'reduce'), MAPS)
def test_gradient_at_extreme_scales(scale, p, reduce):
    x, y = normal(2, 3, 4, 4, dtype=torch.float32), normal(2, 3, 4, 4, dtype=torch.float32)
    exact = x.double().requires_grad_()
    utils.at_loss(exact, y.double(), p, reduce).backward()
    scaled = (scale * x).requires_grad_()
    utils.at_loss(scaled, y, p, reduce).backward()
    torch.testing.assert_close(scaled.grad.double() * scale, exact.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(('p', 'reduce'), MAPS)
def test_map_of_zeros(p, reduce):
    x = torch.zeros(2, 3, 4, 4)
    x[1] = torch.randn(3, 4, 4)
    x.requires_grad_()
    assert utils.at(x, p, reduce)[0].tolist() == [0] * 16
    loss = utils.at_loss(x, torch.randn(2, 3, 4, 4), p, reduce)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and x.grad[1].any()


def test_powers_below_1_are_refused():
    """The gradient of such a power at 0 is infinite."""
    with pytest.raises(InputError, match='power'):
        utils.attention_map(torch.ones(1, 1, 1, 1), p=0.5)


@pytest.mark.parametrize('reduce', ['sum', 'max'])
@pytest.mark.parametrize('p', [1, 1.5, 2])
def test_zero_activations_leave_the_gradient_finite(p, reduce):
    x = torch.randn(2, 3, 4, 4).relu().requires_grad_()  # the option takes any power above 0
    utils.at_loss(x, torch.randn(2, 3, 4, 4), p, reduce).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(('p', 'reduce'), MAPS)
@pytest.mark.parametrize('large', [(2, 3, 4, 2), (2, 2, 5, 3)])
def test_gradients_against_finite_differences(large, p, reduce):
    x, y = normal(2, 3, 4, 2).requires_grad_(), normal(*large).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: utils.at_loss(x, y, p, reduce), (x, y))
    assert torch.autograd.gradcheck(lambda x: utils.at(x, p, reduce), x)


def test_unknown_reduction():
    with pytest.raises(InputError, match="'mean'"):
        utils.at(torch.ones(1, 1, 2, 2), reduce='mean')


# --- distillation ----------------------------------------------------------------------------------------


def slow_softmax(scores, T):
    powers = [math.exp((s - max(scores)) / T) for s in scores]
    return [power / math.fsum(powers) for power in powers]


def slow_distillation(y, teacher, labels, T, alpha):
    total = 0
    for s, t, label in zip(y.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = slow_softmax(s, T), slow_softmax(t, T)
        divergence = math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        total += alpha * T * T * divergence - (1 - alpha) * math.log(slow_softmax(s, 1)[label])
    return total / len(labels)


@pytest.mark.parametrize('T', [1, 2.5, 4, 20])
@pytest.mark.parametrize('alpha', [0, 0.3, 0.9, 1])
def test_distillation(T, alpha):
    y, teacher = (3 * normal(6, 5)).requires_grad_(), 3 * normal(6, 5)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    loss = utils.distillation(y, teacher, labels, T, alpha)
    assert loss.item() == pytest.approx(slow_distillation(y, teacher, labels, T, alpha), rel=1e-10)
    assert torch.autograd.gradcheck(lambda y: utils.distillation(y, teacher, labels, T, alpha), y)


def test_distillation_at_both_ends_of_alpha():
    y, teacher, labels = normal(4, 3), normal(4, 3), torch.tensor([0, 2, 1, 1])
    cross_entropy = sum(-math.log(slow_softmax(row, 1)[i]) for row, i in zip(y.tolist(), labels, strict=True))
    for other in (teacher, -teacher):
        assert utils.distillation(y, other, labels, 4, 0).item() == pytest.approx(cross_entropy / 4)
    assert utils.distillation(y, y, labels, 4, 1).item() == pytest.approx(0, abs=1e-12)
    assert torch.equal(utils.distillation(y, teacher, labels, 4, 1),
                       utils.distillation(y, teacher, labels.flip(0), 4, 1))
    assert utils.distillation(y, teacher, labels, 4, 1) > 0
    # KL(teacher || student), not the other way round
    assert utils.distillation(y, teacher, labels, 1, 1).item() != pytest.approx(
        utils.distillation(teacher, y, labels, 1, 1).item(), rel=1e-3)


def test_a_class_that_the_teacher_rules_out():
    """By hand: the teacher says (1/2, 1/2, 0), the student 1/3 each: KL is log(3/2), its gradient p - q."""
    y, teacher = torch.zeros(1, 3, requires_grad=True), torch.tensor([[0, 0, -math.inf]])
    loss = utils.distillation(y, teacher, torch.tensor([2]), 1, 1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1.5))
    torch.testing.assert_close(y.grad, torch.tensor([[-1 / 6, -1 / 6, 1 / 3]]))
    y.grad = None
    loss = utils.distillation(y, teacher, torch.tensor([2]), 1, 0)
    loss.backward()
    assert torch.equal(loss, F.cross_entropy(y, torch.tensor([2])))
    torch.testing.assert_close(y.grad, torch.tensor([[1 / 3, 1 / 3, -2 / 3]]))


@pytest.mark.parametrize(('shape', 'T', 'alpha', 'word'), [
    ((2, 4), 4, 0.9, 'shape'), ((3, 3), 4, 0.9, 'shape'), ((2, 1), 4, 0.9, 'shape'), ((3,), 4, 0.9, 'shape'),
    ((2, 3), 0, 0.9, 'temperature'), ((2, 3), -4, 0.9, 'temperature'), ((2, 3), math.nan, 0.9, 'temperature'),
    ((2, 3), 4, -0.1, 'alpha'), ((2, 3), 4, 1.1, 'alpha'), ((2, 3), 4, math.nan, 'alpha')])
def test_what_distillation_refuses(shape, T, alpha, word):
    """Shapes that could be broadcast, too."""
    with pytest.raises(InputError, match=word):
        utils.distillation(normal(2, 3), normal(*shape), torch.tensor([0, 1]), T, alpha)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('T', [1, 4])
def test_distillation_of_large_logits(dtype, T):
    y = torch.tensor([[60000., -60000., 0.], [-300., 0., 300.]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-60000., 60000., 1.], [300., 0., -300.]]).to(dtype)
    loss = utils.distillation(y, teacher, torch.tensor([1, 0]), T, 0.9)
    assert loss.dtype == torch.float32
    # the teacher is certain: T^2 KL = T (largest - taught), and the labels agree with the teacher
    (a, b), (c, d) = y[0, :2].tolist(), (y[1, 2].item(), y[1, 0].item())
    expected = ((0.9 * T + 0.1) * (a - b) + (0.9 * T + 0.1) * (c - d)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    loss.backward()
    assert y.grad.isfinite().all() and y.grad.any()
