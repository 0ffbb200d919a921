"""The losses of other papers against loops in float64, written from the papers' formulas."""
import itertools
import math

import numpy as np
import pytest
import torch

import utils
from utils import InputError


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# --- references: one number at a time --------------------------------------------------------------------


def unit(v):
    norm = math.sqrt(math.fsum(a * a for a in v))
    return [a / norm if norm else a for a in v]


def dot(v, w):
    return math.fsum(a * b for a, b in zip(v, w, strict=True))


def smooth_l1(pairs):
    """Mean of d^2 / 2 where |d| < 1, else |d| - 1/2."""
    values = [d * d / 2 if abs(d := a - b) < 1 else abs(d) - 0.5 for a, b in pairs]
    return math.fsum(values) / len(values)


def shrunk(x, height, width):
    """Averages over equal parts of (N, C, H, W)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, height, h // height, width, w // width).mean((3, 5))


def convolved(x, weight):
    """1x1 convolution of one image's position after the other."""
    n, _, h, w = x.shape
    y = np.zeros((n, len(weight), h, w))
    for i, r, c in itertools.product(range(n), range(h), range(w)):
        y[i, :, r, c] = weight[:, :, 0, 0] @ x[i, :, r, c]
    return y


def slow_fitnet(x, y, regressor):
    x = convolved(x, regressor)
    return math.fsum((a - b) ** 2 for a, b in zip(x.flat, y.flat, strict=True)) / y.size


def slow_vid(x, y, regressor, alpha):
    """The negative logarithm of a normal density, but for its constant."""
    for i, weight in enumerate(regressor):
        x = convolved(np.maximum(x, 0) if i else x, weight)
    total = 0.0
    for i, c, r, k in np.ndindex(y.shape):
        variance = math.log(1 + math.exp(alpha[c])) + 1e-5
        density = math.exp(-(y[i, c, r, k] - x[i, c, r, k]) ** 2 / (2 * variance)) / math.sqrt(
            2 * math.pi * variance)
        total -= math.log(density) + math.log(2 * math.pi) / 2
    return total / y.size


def slow_nst(x, y):
    """MMD^2 of the channels' maps of each image."""
    total = 0.0
    for image, image_t in zip(x, y, strict=True):
        s, t = ([unit(channel.ravel()) for channel in a] for a in (image, image_t))
        for a, b, sign in ((s, s, 1), (t, t, 1), (s, t, -2)):
            total += sign * math.fsum(dot(v, w) ** 2 for v in a for w in b) / len(a) / len(b)
    return total / len(x)


def slow_sp(x, y):
    def rows(a):
        return [unit([dot(v.ravel(), w.ravel()) for w in a]) for v in a]
    return math.fsum((a - b) ** 2 for v, w in zip(rows(x), rows(y), strict=True)
                     for a, b in zip(v, w, strict=True)) / len(x) ** 2


def slow_distance(x, y):
    def distances(e):
        d = [math.dist(v, w) for v in e for w in e]
        mean = math.fsum(d) / (len(e) * (len(e) - 1))
        return [v / mean for v in d]
    return smooth_l1(list(zip(distances(x), distances(y), strict=True)))


def slow_angle(x, y):
    def cosines(e):
        triples = itertools.product(range(len(e)), repeat=3)
        return [dot(unit(e[i] - e[j]), unit(e[k] - e[j])) for i, j, k in triples]
    return smooth_l1(list(zip(cosines(x), cosines(y), strict=True)))


def slow_pkt(x, y):
    def p(e):
        k = [[(dot(unit(v), unit(w)) + 1) / 2 for w in e] for v in e]
        return [[a / math.fsum(row) for a in row] for row in k]
    return math.fsum(b * math.log((b + 1e-7) / (a + 1e-7)) for v, w in zip(p(x), p(y), strict=True)
                     for a, b in zip(v, w, strict=True)) / len(x) ** 2


def slow_cc(x, y):
    def kernel(e):
        return [math.exp(-0.8) * math.fsum((0.8 * dot(unit(v), unit(w))) ** p / math.factorial(p)
                                           for p in range(3)) for v in e for w in e]
    return math.fsum((a - b) ** 2 for a, b in zip(kernel(x), kernel(y), strict=True)) / len(x) ** 2


def softmax(scores, T):
    powers = [math.exp(s / T) for s in scores]
    return [power / math.fsum(powers) for power in powers]


def kl(q, p):
    return math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def slow_dkd(y, teacher, labels, T, alpha, beta):
    total = 0.0
    for s, t, label in zip(y, teacher, labels, strict=True):
        p, q = softmax(s, T), softmax(t, T)
        others = [[v / (1 - r[label]) for i, v in enumerate(r) if i != label] for r in (p, q)]
        total += alpha * kl((q[label], 1 - q[label]), (p[label], 1 - p[label])) + beta * kl(*others[::-1])
    return T * T * total / len(y)


def slow_dist(y, teacher, T, beta, gamma):
    p, q = (np.array([softmax(row, T) for row in scores]) for scores in (y, teacher))
    of_images = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    of_classes = [np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return T * T * (beta * (1 - np.mean(of_images)) + gamma * (1 - np.mean(of_classes)))


# --- losses on activations -------------------------------------------------------------------------------

GROUPS = {'nst': (utils.nst_loss, slow_nst), 'sp': (utils.sp_loss, slow_sp)}
EMBEDDINGS = {'rkd_distance': (utils.rkd_distance_loss, slow_distance),
              'rkd_angle': (utils.rkd_angle_loss, slow_angle),
              'pkt': (utils.pkt_loss, slow_pkt), 'cc': (utils.cc_loss, slow_cc)}
BATCH = {'sp': utils.sp_loss, **{name: loss for name, (loss, _) in EMBEDDINGS.items()}}


@pytest.mark.parametrize('name', GROUPS)
@pytest.mark.parametrize(('student', 'teacher'), [((3, 2, 4, 2), (3, 5, 4, 2)), ((2, 4, 2, 2), (2, 3, 4, 6))])
def test_losses_of_groups(name, student, teacher):
    loss, slow = GROUPS[name]
    x, y = normal(*student), normal(*teacher)
    small = y if name == 'sp' else torch.from_numpy(shrunk(y.numpy(), *student[2:]))
    assert loss(x, y).item() == pytest.approx(slow(x.numpy(), small.numpy()), rel=1e-9)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


@pytest.mark.parametrize('name', EMBEDDINGS)
@pytest.mark.parametrize(('student', 'teacher'), [((5, 3), (5, 7)), ((2, 4), (2, 2))])
def test_losses_of_embeddings(name, student, teacher):
    loss, slow = EMBEDDINGS[name]
    x, y = normal(*student), 3 * normal(*teacher)
    assert loss(x, y).item() == pytest.approx(slow(x.numpy(), y.numpy()), rel=1e-9, abs=1e-14)
    assert loss(10 * x, x).item() == pytest.approx(0, abs=1e-12)  # the scale of a network does not matter
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


def test_far_distances_count_linearly():
    """Smooth l1 beyond 1: one image far away from the others of the student."""
    x, y = normal(4, 2), normal(4, 2)
    x[0] += 1000
    y[1] += 1000
    assert utils.rkd_distance_loss(x, y).item() == pytest.approx(slow_distance(x.numpy(), y.numpy()))


def test_the_series_of_cc_is_near_its_kernel():
    x = normal(4, 3)
    zero = torch.zeros(4, 3, dtype=torch.float64)  # its kernel is constant, exp(-0.8)
    kernel = [math.exp(-0.4 * math.dist(unit(v), unit(w)) ** 2) - math.exp(-0.8)
              for v in x.tolist() for w in x.tolist()]
    exact = math.fsum(k * k for k in kernel) / len(kernel)
    assert utils.cc_loss(x, zero).item() == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize(('student', 'teacher'), [((2, 3, 2, 4), (2, 5, 2, 4)), ((2, 3, 4, 4), (2, 2, 2, 2)),
                                                  ((2, 3, 2, 2), (2, 3, 4, 4))])
def test_hints_and_vid(student, teacher):
    x, y = normal(*student), normal(*teacher)
    n, m = student[1], teacher[1]
    chain, alpha = [normal(m, n, 1, 1), normal(m, m, 1, 1), normal(m, m, 1, 1)], normal(m)
    size = [min(sizes) for sizes in zip(student[2:], teacher[2:], strict=True)]
    small = [shrunk(t.numpy(), *size) for t in (x, y)]
    assert utils.fitnet_loss(x, y, chain[0]).item() == pytest.approx(
        slow_fitnet(*small, chain[0].numpy()), rel=1e-9)
    assert utils.vid_loss(x, y, chain, alpha).item() == pytest.approx(
        slow_vid(*small, [t.numpy() for t in chain], alpha.tolist()), rel=1e-9)
    inputs = [t.requires_grad_() for t in (x, alpha, *chain)]
    assert torch.autograd.gradcheck(lambda x, alpha, *chain: utils.vid_loss(x, y, chain, alpha), inputs)
    assert torch.autograd.gradcheck(lambda x, weight: utils.fitnet_loss(x, y, weight), (x, chain[0]))


@pytest.mark.parametrize('name', BATCH)
@pytest.mark.parametrize('student', [torch.zeros(4, 3), torch.ones(4, 3), torch.eye(4)[[0, 0, 1, 1]]],
                         ids=['zeros', 'equal', 'twice'])
def test_images_that_a_network_cannot_tell_apart(name, student):
    """Embeddings of zeros, and equal ones, give a finite loss and moderate gradients."""
    x, y = student.clone().requires_grad_(), torch.randn(4, 5)
    loss = BATCH[name](x, y)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and x.grad.abs().max() < 100
    assert BATCH[name](torch.randn(4, 3), student).isfinite()


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('name', [*BATCH, 'nst', 'fitnet', 'vid'])
def test_half_precision_is_only_that_of_the_activations(name, dtype):
    x, y = (300 * torch.randn(3, 4, 2, 2)).to(dtype), (300 * torch.randn(3, 4, 2, 2)).to(dtype)
    weight = torch.randn(4, 4, 1, 1)
    if name in EMBEDDINGS:
        x, y = x.flatten(1), y.flatten(1)
    loss = {'nst': utils.nst_loss, 'fitnet': lambda x, y: utils.fitnet_loss(x, y, weight),
            'vid': lambda x, y: utils.vid_loss(x, y, [weight], weight[:, 0, 0, 0]), **BATCH}[name]
    found = loss(x, y)
    assert found.dtype == torch.float32 and found.isfinite()
    assert torch.equal(found, loss(x.float(), y.float()))


@pytest.mark.parametrize('name', BATCH)
@pytest.mark.parametrize('sizes', [(1, 1), (3, 2), (0, 0)])
def test_a_batch_of_one_image_is_refused(name, sizes):
    with pytest.raises(InputError, match='two or more'):
        BATCH[name](*(torch.randn(n, 3) for n in sizes))


def test_other_images_are_refused():
    x, y, weight = torch.randn(2, 3, 2, 2), torch.randn(1, 3, 2, 2), torch.ones(3, 3, 1, 1)
    for loss, more in ((utils.nst_loss, ()), (utils.fitnet_loss, (weight,)),
                       (utils.vid_loss, ([weight], torch.ones(3)))):
        with pytest.raises(InputError, match='2 and of 1 images'):
            loss(x, y, *more)


# --- the norm of attention transfer ----------------------------------------------------------------------


def test_the_paper_norm_of_attention_maps():
    x, y = normal(3, 2, 4, 4), normal(3, 5, 4, 4)
    maps = [[unit((image ** 2).sum(0).ravel()) for image in t.numpy()] for t in (x, y)]
    expected = math.fsum(math.dist(a, b) / 2 for a, b in zip(*maps, strict=True)) / 3
    assert utils.at_loss(x, y, norm='paper').item() == pytest.approx(expected, rel=1e-12)
    assert utils.at_loss(x, y, norm='code').item() == utils.at_loss(x, y).item() != pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: utils.at_loss(x, y, norm='paper'), x.requires_grad_())
    same = y.clone().requires_grad_()
    utils.at_loss(same, y, norm='paper').backward()
    assert same.grad.isfinite().all()
    with pytest.raises(InputError, match="'l1'"):
        utils.at_loss(x, y, norm='l1')


# --- losses on logits ------------------------------------------------------------------------------------


@pytest.mark.parametrize('T', [1, 4])
@pytest.mark.parametrize(('alpha', 'beta'), [(1, 8), (0.5, 0), (0, 2)])
def test_dkd(T, alpha, beta):
    y, teacher, labels = 3 * normal(6, 5), 3 * normal(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    expected = slow_dkd(y.tolist(), teacher.tolist(), labels.tolist(), T, alpha, beta)
    assert utils.dkd_loss(y, teacher, labels, T, alpha, beta).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda y: utils.dkd_loss(y, teacher, labels, T, alpha, beta),
                                    y.requires_grad_())


def test_dkd_puts_kd_together_again():
    """KD is the divergence of the label plus that of the other classes, times the teacher's doubt."""
    y, teacher, label = normal(1, 6), normal(1, 6), torch.tensor([2])
    doubt = 1 - softmax(teacher[0].tolist(), 4)[2]
    assert utils.dkd_loss(y, teacher, label, 4, 1, doubt).item() == pytest.approx(
        utils.softened_divergence(y, teacher, 4).item(), rel=1e-9)


@pytest.mark.parametrize('T', [1, 4])
@pytest.mark.parametrize(('beta', 'gamma'), [(1, 1), (2, 0), (0, 3)])
def test_dist(T, beta, gamma):
    y, teacher = 3 * normal(4, 5), 3 * normal(4, 5)
    assert utils.dist_loss(y, teacher, T, beta, gamma).item() == pytest.approx(
        slow_dist(y.tolist(), teacher.tolist(), T, beta, gamma), rel=1e-9)
    assert utils.dist_loss(y, y + 3, T, beta, gamma).item() == pytest.approx(0, abs=1e-9)
    assert torch.autograd.gradcheck(lambda y: utils.dist_loss(y, teacher, T, beta, gamma), y.requires_grad_())


def test_standardized_logits():
    y = 3 * normal(4, 5) + 7
    expected = [(row - row.mean()) / row.std(ddof=1) for row in y.numpy()]
    np.testing.assert_allclose(utils.standardize_logits(y), expected, rtol=1e-6)
    same = torch.ones(2, 3, requires_grad=True)
    utils.standardize_logits(same).square().sum().backward()
    assert same.grad.isfinite().all()
    assert utils.standardize_logits(y.half()).dtype == torch.float32


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float32])
def test_large_logits(dtype):
    """The student is certain of the wrong class, the teacher of the label."""
    y = torch.tensor([[60000., -60000., 0.], [-300., 0., 300.]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-60000., 60000., 1.], [300., 0., -300.]]).to(dtype)
    for loss in (utils.dkd_loss(y, teacher, torch.tensor([1, 0]), 4), utils.dist_loss(y, teacher, 4)):
        y.grad = None
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and y.grad.isfinite().all()


@pytest.mark.parametrize(('shape', 'T', 'word'), [
    ((2, 4), 4, 'shape'), ((3, 3), 4, 'shape'), ((2, 1), 4, 'shape'), ((2, 3), 0, 'temperature'),
    ((2, 3), math.nan, 'temperature')])
def test_what_losses_on_logits_refuse(shape, T, word):
    y, teacher = torch.randn(2, 3), torch.randn(*shape)
    with pytest.raises(InputError, match=word):
        utils.dkd_loss(y, teacher, torch.tensor([0, 1]), T)
    with pytest.raises(InputError, match=word):
        utils.dist_loss(y, teacher, T)


def test_dist_of_one_image_is_refused():
    with pytest.raises(InputError, match='two or more'):
        utils.dist_loss(torch.randn(1, 3), torch.randn(1, 3), 1)
