"""The training step and its losses on activations and gradients, against loops in float64 and differences."""
import argparse
import contextlib
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

import cifar
import layers
import method
import nin
import resnet
import training
import utils
from layers import Sample
from method import ADAPTOR, adaptors, evaluation_step, training_step
from training import devices, exits
from utils import InputError

F64 = {'dtype': torch.float64}


def parse(*arguments, teacher=True):
    return cifar.parse(['--save', 'run', *(['--teacher_id', 'teacher'] if teacher else []),
                        *map(str, arguments)])


# --- full-activation transfer ----------------------------------------------------------------------------


def looped(x, y, adaptor):
    """The loss element by element: sum over channels, mean over images and positions."""
    n, _, height, width = x.shape
    total = 0.0
    for i in range(n):
        pairs = []
        for r in range(height):
            for c in range(width):
                student = x[i, :, r, c].tolist()
                if adaptor is not None:
                    student = (adaptor @ torch.tensor(student, **F64)).tolist()
                pairs += zip(student, y[i, :, r, c].tolist(), strict=True)
        norms = [math.sqrt(sum(p[k] ** 2 for p in pairs)) for k in (0, 1)]
        total += sum((a / norms[0] - b / norms[1]) ** 2 for a, b in pairs)
    return total / (n * height * width)


@pytest.mark.parametrize('channels', [(3, 3), (2, 5), (9, 4)])
def test_full_activation_loss(channels):
    x, y = (torch.randn(2, c, 3, 4, **F64) for c in channels)
    adaptor = None if channels[0] == channels[1] else torch.randn(channels[1], channels[0], **F64)
    weight = None if adaptor is None else adaptor[:, :, None, None]
    expected = looped(x, y, adaptor)
    assert utils.full_activation_loss(x, y, weight).item() == pytest.approx(expected, rel=1e-9)
    assert utils.full_activation_loss(1e3 * x, 1e-3 * y, weight).item() == pytest.approx(expected)
    inputs = [t.requires_grad_() for t in (x, y, weight) if t is not None]
    assert torch.autograd.gradcheck(utils.full_activation_loss, (x, y, *inputs[2:]))


def test_full_activation_loss_of_unequal_sizes_and_wrong_channels():
    x, y = torch.randn(2, 3, 8, 8, **F64), torch.randn(2, 3, 4, 4, **F64)
    pooled = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    assert utils.full_activation_loss(x, y).item() == pytest.approx(looped(pooled, y, None))
    assert utils.full_activation_loss(x, x).item() == 0
    with pytest.raises(InputError, match='3 and 2 channels need an adaptor'):
        utils.full_activation_loss(x, y[:, :2])
    with pytest.raises(InputError, match='2 and of 1 images'):
        utils.full_activation_loss(x, y[:1])
    assert utils.full_activation_loss(x.half() * 1e4, y).isfinite()


def test_adaptors_stand_where_channels_differ():
    f_s, student = resnet.wide_resnet(10, 0.5, 10)
    f_t, teacher = nin.nin(16, 10)
    hint = ['--hint_beta', 1]
    found = adaptors(parse(*hint), f_s, student, f_t, teacher)
    assert {name: tuple(t.shape) for name, t in found.items()} == {'adaptor:0': (16, 8, 1, 1),
                                                                   'adaptor:2': (16, 32, 1, 1)}
    assert list(adaptors(parse(*hint, '--at_groups', '[1,2]'), f_s, student, f_t, teacher)) == ['adaptor:2']
    assert adaptors(parse(*hint), f_s, student, f_s, student) == {}
    assert adaptors(parse('--beta', 1), f_s, student, f_t, teacher) == {}

def test_losses_that_are_on():
    """In the order of the table, whatever that of the options."""
    assert method.active(parse(teacher=False)) == []
    on = method.active(parse('--alpha', 0.5, '--beta', 1, '--l2_beta', 2))
    assert [loss.name for loss in on] == ['at', 'l2', 'kd']
    for loss in method.LOSSES:
        assert method.active(parse(f'--{loss.option}', 1, teacher=loss.teacher)) == [loss]


# --- gradients of gradients ------------------------------------------------------------------------------


def smooth(x, params, mode=False, base=''):
    """A network in whose second derivatives no kink spoils finite differences."""
    y = torch.tanh(F.conv2d(x, params['conv'], padding=1))
    return torch.tanh(y.flatten(1) @ params['first']) @ params['fc.weight'].T + params['fc.bias'], (y,)


def smooth_params(seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = {'conv': (2, 3, 3, 3), 'first': (2 * 4 * 4, 6), 'fc.weight': (4, 6), 'fc.bias': (4,)}
    return {name: torch.randn(shape, generator=draw, **F64) / 2 for name, shape in shapes.items()}


def images(n=3):
    return torch.randn(n, 3, 4, 4, **F64), torch.randint(4, (n,))


def by_differences(x, labels, params, step=1e-6):
    """J of each image, its cross-entropy moved pixel by pixel; nothing of autograd."""
    def loss(image, label):
        return -F.log_softmax(smooth(image[None], params)[0], 1)[0, label].item()

    j = torch.zeros_like(x)
    for i in range(len(x)):
        for k in range(x[i].numel()):
            moved = [x[i].clone() for _ in range(2)]
            for t, sign in zip(moved, (1, -1), strict=True):
                t.view(-1)[k] += sign * step
            j[i].view(-1)[k] = (loss(moved[0], labels[i]) - loss(moved[1], labels[i])) / (2 * step)
    return j


def norms(j):
    """Half the l2 norm of each image, averaged, in a loop."""
    return sum(math.sqrt(sum(v * v for v in image.flatten().tolist())) for image in j) / len(j) / 2


def test_input_gradient_against_differences():
    (x, labels), params = images(), smooth_params(1)
    x.requires_grad_()
    j = utils.input_gradient(x, smooth(x, params)[0], labels)
    torch.testing.assert_close(j, by_differences(x.detach(), labels, params), rtol=0, atol=1e-8)
    one = x[:1].detach().requires_grad_()  # an image's J does not depend on how many there are
    torch.testing.assert_close(utils.input_gradient(one, smooth(one, params)[0], labels[:1]), j[:1])


TERMS = {'grad': ['--grad_beta', 0.7], 'l2': ['--l2_beta', 0.7], 'sym': ['--sym_beta', 0.7]}


@pytest.mark.parametrize('name', TERMS)
def test_gradient_losses_against_differences(name):
    """Each loss from J by finite differences, and its gradient by finite differences of the loss."""
    (x, labels), student, teacher = images(), smooth_params(1), smooth_params(2)
    opt = parse(*TERMS[name], teacher=name == 'grad')
    layers.trainable(student)
    h = training_step(opt, smooth, student, smooth, teacher)
    loss, output = h(Sample(x, labels, 1))
    fixed = {key: t.detach() for key, t in student.items()}
    j = by_differences(x, labels, fixed)
    if name == 'grad':
        expected = [norms(j - by_differences(x, labels, teacher))]
    elif name == 'l2':
        expected = [norms(j)]
    else:
        logits = [smooth(t, fixed)[0] for t in (x, x.flip(3))]
        expected = [norms(j - by_differences(x.flip(3), labels, fixed).flip(3)), norms(logits[0] - logits[1])]
    assert [v.item() for v in output.losses[name]] == pytest.approx(expected, abs=1e-6)
    ce = F.cross_entropy(output.logits, labels).item()
    assert loss.item() == pytest.approx(ce + 0.7 * sum(expected), abs=1e-6)

    loss.backward()
    for key in student:
        for k in range(0, student[key].numel(), 7):
            values = []
            for sign in (1, -1):
                moved = {n: t.clone() for n, t in fixed.items()}
                moved[key].view(-1)[k] += sign * 1e-5
                h_moved = training_step(opt, smooth, moved, smooth, teacher)
                values.append(h_moved(Sample(x, labels, 1))[0].item())
            assert student[key].grad.view(-1)[k].item() == pytest.approx((values[0] - values[1]) / 2e-5,
                                                                         abs=1e-6)


def test_a_symmetric_image_has_no_symmetry_loss_and_finite_gradients():
    x, labels = images()
    x = x + x.flip(3)
    student = smooth_params(1)
    student['conv'] = student['conv'] + student['conv'].flip(3)
    first = student['first'].view(2, 4, 4, 6)
    student['first'] = (first + first.flip(2)).view(32, 6)
    layers.trainable(student)
    loss, output = training_step(parse('--sym_beta', 1, teacher=False), smooth, student)(Sample(x, labels, 1))
    assert sum(v.item() for v in output.losses['sym']) == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert all(t.grad.isfinite().all() for t in student.values())


def test_on_a_wide_resnet_the_gradient_loss_teaches_its_convolutions():
    """Through BN by the batch and ReLU, along a random change of all weights so small that no ReLU turns."""
    torch.manual_seed(5)
    f, student = resnet.wide_resnet(10, 0.25, 4)
    f_t, teacher = resnet.wide_resnet(10, 0.5, 4)
    student, teacher = ({name: t.double() for name, t in params.items()} for params in (student, teacher))
    x, labels = torch.randn(4, 3, 16, 16, **F64), torch.randint(4, (4,))
    opt = parse('--grad_beta', 1, '--sym_beta', 0.5, '--l2_beta', 0.1, '--beta', 10, '--alpha', 0.5)
    direction = {name: torch.randn_like(t) for name, t in layers.trainable(student).items()}
    loss, _ = training_step(opt, f, student, f_t, teacher)(Sample(x, labels, 1))
    loss.backward()
    slope = sum((student[name].grad * d).sum().item() for name, d in direction.items())
    values = []
    for sign in (1, -1):
        moved = {name: t.detach() + sign * 1e-9 * direction[name] if name in direction else t
                 for name, t in student.items()}
        values.append(training_step(opt, f, moved, f_t, teacher)(Sample(x, labels, 1))[0].item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-9, rel=1e-5)


# --- what the step asks and leaves behind ----------------------------------------------------------------


def test_the_mirrored_pass_leaves_no_trace_in_the_statistics():
    """The running statistics move as by one pass of the images, and are the tensors that they were."""
    x, labels = torch.randn(6, 3, 16, 16) + 1, torch.randint(10, (6,))
    torch.manual_seed(0)
    f, student = resnet.wide_resnet(10, 0.25, 10)
    plain = {name: t.clone() for name, t in student.items()}
    kept = {name: t for name, t in student.items() if layers.is_statistic(name)}
    layers.trainable(student)
    loss, _ = training_step(parse('--sym_beta', 1, teacher=False), f, student)(Sample(x, labels, 1))
    loss.backward()
    f(x, plain, True)
    for name, t in kept.items():
        assert student[name] is t
        assert torch.equal(t, plain[name])


def test_statistics_come_back_after_an_error():
    _, params = resnet.wide_resnet(10, 0.25, 10)
    before = dict(params)
    with contextlib.suppress(ZeroDivisionError), layers.statistics_aside(params):
        assert params['bn.running_mean'] is not before['bn.running_mean']
        raise ZeroDivisionError
    assert all(params[name] is t for name, t in before.items())


@pytest.mark.parametrize(('arguments', 'asked'), [
    (['--sym_beta', 1], 0), (['--l2_beta', 1], 0), ([], 0), (['--grad_beta', 1, '--sym_beta', 1], 1),
    (['--hint_beta', 1], 1), (['--alpha', 0.9, '--beta', 1], 1)])
def test_the_teacher_is_asked_only_where_something_is_learned_from_it(arguments, asked):
    questions = []

    def teacher(x, params, mode):
        questions.append(mode)
        return smooth(x, params)

    needs = any(name in arguments for name in ('--grad_beta', '--hint_beta', '--alpha'))
    student = smooth_params(1)
    layers.trainable(student)
    h = training_step(parse(*arguments, teacher=needs), smooth, student, teacher, smooth_params(2))
    x, labels = images()
    loss, _ = h(Sample(x, labels, 1))
    loss.backward()
    assert questions == [False] * asked and not x.requires_grad


def test_every_loss_at_once_is_the_sum_of_them():
    (x, labels), student, teacher = images(), smooth_params(1), smooth_params(2)
    weights = {'--beta': 10, '--hint_beta': 20, '--grad_beta': 0.3, '--sym_beta': 0.2, '--l2_beta': 0.1}
    layers.trainable(student)

    def terms(*arguments):
        return training_step(parse(*arguments), smooth, student, smooth, teacher)(Sample(x, labels, 1))

    loss, output = terms('--alpha', 0.9, *[v for pair in weights.items() for v in pair])
    assert list(output.losses) == ['at', 'hint', 'grad', 'sym', 'l2', 'kd']
    kd, _ = terms('--alpha', 0.9)
    alone = sum(terms('--alpha', 0.9, name, weight)[0].item() for name, weight in weights.items())
    assert loss.item() == pytest.approx(alone - (len(weights) - 1) * kd.item())


def test_hint_decays_as_beta_does():
    (x, labels), student, teacher = images(), smooth_params(1), smooth_params(2)
    opt = parse('--hint_beta', 1e3, '--beta_decay', 'linear', '--epochs', 10)
    h = training_step(opt, smooth, student, smooth, teacher)
    for epoch, factor in ((1, 1), (6, 0.5), (10, 0.1)):
        loss, output = h(Sample(x, labels, epoch))
        ce = F.cross_entropy(output.logits, labels).item()
        assert loss.item() - ce == pytest.approx(1e3 * factor * sum(v.item() for v in output.losses['hint']))


def test_an_adaptor_is_learned():
    f_s, student = resnet.wide_resnet(10, 0.25, 10)
    f_t, teacher = resnet.wide_resnet(10, 0.5, 10)
    opt = parse('--hint_beta', 100)
    params = student | adaptors(opt, f_s, student, f_t, teacher)
    layers.trainable(params)
    h = training_step(opt, f_s, params, f_t, teacher)
    loss, _ = h(Sample(torch.randn(4, 3, 16, 16), torch.randint(10, (4,)), 1))
    loss.backward()
    found = {name: t.grad.abs().sum() for name, t in params.items() if name.startswith(ADAPTOR)}
    assert list(found) == ['adaptor:0', 'adaptor:1', 'adaptor:2'] and all(found.values())


def test_groups_that_full_activation_transfer_compares():
    f_s, student = resnet.wide_resnet(10, 0.5, 10)
    f_t, teacher = resnet.wide_resnet(10, 1, 10)
    opt = parse('--hint_beta', 1, '--at_groups', '[1]')
    params = student | adaptors(opt, f_s, student, f_t, teacher)
    assert params.keys() - student.keys() == {ADAPTOR + '1'}
    layers.trainable(params)
    x = torch.randn(3, 3, 16, 16)
    _, output = training_step(opt, f_s, params, f_t, teacher)(Sample(x, torch.arange(3), 1))
    _, groups_s = f_s(x, student, True)
    _, groups_t = f_t(x, teacher, False)
    expected = looped(*(g[1].double().detach() for g in (groups_s, groups_t)),
                      params[ADAPTOR + '1'].double().detach().flatten(1))
    assert [loss.item() for loss in output.losses['hint']] == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize('dtype', ['float', 'bfloat16'])
def test_gradients_are_of_networks_in_the_precision_that_is_asked_for(dtype):
    """In each pass of student and teacher; what comes of them is float32."""
    seen = []

    def watched(x, params, mode, base=''):
        logits, groups = f(x, params, mode, base)
        seen.append(logits.dtype)
        return logits, groups

    f, student = resnet.wide_resnet(10, 0.5, 10)
    teacher = {name: t.clone() for name, t in student.items()}
    layers.trainable(student)
    opt = parse('--grad_beta', 1, '--sym_beta', 1, '--dtype', dtype)
    loss, output = training_step(opt, watched, student, watched, teacher)(
        Sample(torch.randn(4, 3, 16, 16), torch.arange(4), 1))
    loss.backward()
    assert seen == 3 * [layers.DTYPES[dtype]]
    assert {t.dtype for losses in output.losses.values() for t in [loss, *losses]} == {torch.float32}
    assert all(t.grad.dtype == torch.float32 for t in student.values() if t.requires_grad)


def test_compiled_it_is_the_same_step(monkeypatch):
    """In one piece for each size of a batch; without the compiler of C++, which takes a minute."""
    pieces = []

    def backend(graph, inputs):
        pieces.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend, fullgraph=True))
    x, labels = torch.randn(6, 3, 16, 16).contiguous(memory_format=torch.channels_last), torch.arange(6)
    results = []
    for more in ([], ['--compile']):
        torch.manual_seed(0)
        f, student = resnet.wide_resnet(10, 0.25, 10)
        f_t, teacher = resnet.wide_resnet(10, 0.5, 10)
        opt = parse('--beta', 10, '--hint_beta', 1, '--alpha', 0.5, *more)
        student |= adaptors(opt, f, student, f_t, teacher)
        layers.trainable(student)
        h = training_step(opt, f, student, f_t, teacher)
        results.append([])
        for n in (6, 4, 6, 4):
            loss, output = h(Sample(x[:n], labels[:n], 1))
            loss.backward()
            results[-1] += [loss, *output.losses['at'], *output.losses['hint']]
        results[-1] += [*student.values(), *(t.grad for t in student.values() if t.requires_grad)]
    torch.testing.assert_close(results[0], results[1])
    assert len(pieces) == 2


def test_a_compiler_that_fails_is_told_in_one_sentence(monkeypatch, capsys):
    def backend(graph, inputs):
        raise ValueError('no compiler here')

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend))
    student = smooth_params(1)
    h = training_step(parse('--compile', teacher=False), smooth, student)
    with pytest.raises(SystemExit) as ended:
        exits.script(lambda: h(Sample(*images(), 1)))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert 'no compiler here): leave out --compile' in err and err.count('\n') == 1


@pytest.mark.gpu
def test_cuda_graphs_make_the_same_steps():
    """For both sizes of batches, BN statistics included, and none is left out of the graphs."""
    counters.clear()
    results = []
    for more in ([], ['--compile']):
        torch.manual_seed(0)
        f, student = resnet.wide_resnet(10, 0.5, 10)
        f_t, teacher = resnet.wide_resnet(16, 0.5, 10)
        student, teacher = (devices.to_device(params, torch.device('cuda')) for params in (student, teacher))
        layers.trainable(student)
        opt = parse('--beta', 10, '--alpha', 0.5, '--lr', 0.01, *more)
        h, optimizer = training_step(opt, f, student, f_t, teacher), training.sgd(opt, student)
        losses = []
        for n in (16, 10) * 4:
            x, labels = torch.randn(n, 3, 32, 32), torch.randint(10, (n,))
            loss, _ = h(Sample(x.cuda().to(memory_format=torch.channels_last), labels.cuda(), 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        results.append([*losses, *student.values()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)
    assert not counters['inductor']['cudagraph_skips']

# --- evaluation ------------------------------------------------------------------------------------------


def alike(groups_s, groups_t):
    """Cosine of the maps of an image, group by group, in loops; those of the larger group are averaged."""
    found = []
    for a, b in zip(groups_s, groups_t, strict=True):
        size = min(a.shape[1], b.shape[1])
        maps = []
        for g in (a.double(), b.double()):
            k = g.shape[1] // size
            energy = [[sum(g[c, r, w].item() ** 2 for c in range(len(g))) for w in range(g.shape[2])]
                      for r in range(g.shape[1])]
            maps.append([sum(energy[k * i + u][k * j + v] for u in range(k) for v in range(k))
                         for i in range(size) for j in range(size)])
        dot = sum(p * q for p, q in zip(*maps, strict=True))
        found.append(dot / math.prod(math.sqrt(sum(p * p for p in m)) for m in maps))
    return found


def answering(f, asked):
    """The network, noting how many images it was asked for, and in which mode."""
    def watched(x, params, mode, base=''):
        asked.append((len(x), mode))
        return f(x, params, mode, base)
    return watched


def pooled(x, params, mode, base=''):
    """smooth() with maps of half the size."""
    logits, (y,) = smooth(x, params)
    return logits, (F.avg_pool2d(y, 2),)


@pytest.mark.parametrize('teacher', [smooth, pooled])
def test_agreement_and_cosines_against_loops(teacher):
    """Over batches of 4, 4 and 3, an image counts the same in each; the teacher is asked once for each."""
    x, labels = images(11)
    params = smooth_params(1), smooth_params(2)
    asked, asked_s = [], []
    h = evaluation_step(answering(smooth, asked_s), params[0], 'float', answering(teacher, asked), params[1])
    parts = zip(x.split(4), labels.split(4), strict=True)
    batches = [Sample(a, b, 1, i) for i, (a, b) in enumerate(parts)]
    results = [training.evaluate(h, batches) for _ in range(3)]
    assert asked == [(4, False), (4, False), (3, False)] and asked_s == 3 * asked
    assert results[0] == results[1] == results[2]
    found = results[0]
    (logits, groups), (logits_t, groups_t) = smooth(x, params[0]), teacher(x, params[1], False)
    same = [a.argmax() == b.argmax() for a, b in zip(logits, logits_t, strict=True)]
    assert 0 < sum(same) < 11 and found['agreement'] == pytest.approx(100 * sum(same).item() / 11)
    cosines = [alike([a], [b])[0] for a, b in zip(groups[0], groups_t[0], strict=True)]
    assert found['map_cosines'] == pytest.approx([sum(cosines) / 11], rel=1e-5)
    assert found['loss'] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.keys() == {'loss', 'acc', 'agreement', 'map_cosines'}


def test_maps_of_every_group_are_compared():
    f, student = resnet.wide_resnet(10, 0.25, 10)
    f_t, teacher = resnet.wide_resnet(16, 0.5, 10)
    x, labels = torch.randn(2, 3, 16, 16), torch.arange(2)
    found = training.evaluate(evaluation_step(f, student, 'float', f_t, teacher), [Sample(x, labels, 1)])
    by_image = [alike([g[i] for g in f(x, student, False)[1]], [g[i] for g in f_t(x, teacher, False)[1]])
                for i in (0, 1)]
    expected = [sum(pair) / 2 for pair in zip(*by_image, strict=True)]
    assert found['map_cosines'] == pytest.approx(expected, rel=1e-4)
    same = training.evaluate(evaluation_step(f, student, 'float', f, student), [Sample(x, labels, 1)])
    assert same['agreement'] == 100 and same['map_cosines'] == pytest.approx([1, 1, 1])


def test_groups_of_another_number_are_not_compared():
    def two(x, params, mode, base=''):
        logits, (y,) = smooth(x, params)
        return logits, (y, y)

    x, labels = images()
    found = training.evaluate(evaluation_step(smooth, smooth_params(1), 'float', two, smooth_params(2)),
                              [Sample(x, labels, 1)])
    assert found.keys() == {'loss', 'acc', 'agreement'}
    alone = training.evaluate(evaluation_step(smooth, smooth_params(1), 'float'), [Sample(x, labels, 1)])
    assert alone == {key: found[key] for key in ('loss', 'acc')}


# --- schedules -------------------------------------------------------------------------------------------


def test_learning_rate_drops_at_the_start_of_an_epoch():
    opt = parse(teacher=False)
    expected = {1: 0.1, 59: 0.1, 60: 0.02, 61: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 8e-4, 200: 8e-4}
    assert {e: method.learning_rate(opt, e) for e in expected} == pytest.approx(expected)
    opt = parse('--epoch_step', '[5,3]', '--lr_decay_ratio', '0.5', '--lr', '2', teacher=False)
    assert [method.learning_rate(opt, e) for e in range(1, 7)] == [2, 2, 1, 1, 0.5, 0.5]
    assert method.learning_rate(parse('--epoch_step', '[]', teacher=False), 200) == 0.1


@pytest.mark.parametrize(('kind', 'expected'), [
    ('none', [8, 8, 8, 8]), ('linear', [8, 6, 4, 2]), ('step', [8, 8, 4, 2]),
    ('cosine', [8, 4 + 4 * math.cos(math.pi / 4), 4, 4 - 4 * math.cos(math.pi / 4)])])
def test_beta(kind, expected):
    opt = parse('--beta', '8', '--epochs', '4', '--epoch_step', '3,4',
                '--lr_decay_ratio', '0.5', '--beta_decay', kind)
    assert [method.beta(opt, e) for e in (1, 2, 3, 4)] == pytest.approx(expected)
    assert method.beta(parse(teacher=False), 1) == 0


def test_a_new_row_gets_the_gradients_that_it_asks_for(monkeypatch):
    """Of student, teacher and mirrored images: what a step has depends on rows, not on names of options."""
    rows = {row.name: row for row in method.LOSSES}
    values = {}
    for name, new in (('grad', 'new_beta'), ('sym', 'other_beta')):
        row = rows[name]._replace(name='new', option=new)
        monkeypatch.setattr(method, 'LOSSES', (*rows.values(), row))
        for option in (row.option, rows[name].option):
            opt = parse(f'--{option}', 1, teacher=row.teacher)
            torch.manual_seed(0)
            networks = [resnet.wide_resnet(10, 0.25, 5) for _ in range(2)]
            (f_s, student), (f_t, teacher) = networks
            layers.trainable(student)
            h = training_step(opt, f_s, student, f_t, teacher)
            torch.manual_seed(1)
            values[option] = h(Sample(torch.randn(4, 3, 32, 32), torch.arange(4), 1, 0, 1.0))[0].item()
    assert values['new_beta'] == values['grad_beta'] and values['other_beta'] == values['sym_beta']


def rates(schedule, warmup):
    more = ['--epoch_step', '[2,3]', '--lr_decay_ratio', 0.5] if schedule == 'step' else []
    opt = parse('--lr', 0.4, '--lr_schedule', schedule, '--warmup', warmup, '--epochs', 4, *more,
                teacher=False)
    return functools.partial(method.learning_rate, opt)


# At the quarters of four epochs, by hand: --lr 0.4, halved at epochs 2 and 3, or over 2.5 epochs down to 0.
@pytest.mark.parametrize(('schedule', 'warmup', 'expected'), [
    ('step', 0, [0.4] * 4 + [0.2] * 4 + [0.1] * 8 + [0.1]),
    ('step', 0.5, [0, 0.2, 0.4, 0.4] + [0.2] * 4 + [0.1] * 8 + [0.1]),
    ('step', 1.5, [0, 0.4 / 6, 0.8 / 6, 0.2, 1.6 / 6, 2 / 6, 0.2, 0.2] + [0.1] * 8 + [0.1]),
    ('linear', 0, [0.4 * (16 - i) / 16 for i in range(17)]),
    ('linear', 1.5, [0.4 * i / 6 for i in range(6)] + [0.4 * (10 - i) / 10 for i in range(11)]),
    ('cosine', 0, [0.2 + 0.2 * math.cos(math.pi * i / 16) for i in range(17)]),
    ('cosine', 1.5, [0.4 * i / 6 for i in range(6)]
     + [0.2 + 0.2 * math.cos(math.pi * i / 10) for i in range(11)])])
def test_learning_rate_within_epochs(schedule, warmup, expected):
    rate = rates(schedule, warmup)
    found = [rate(epoch, quarter / 4) for epoch in (1, 2, 3, 4) for quarter in range(4)]
    assert [*found, rate(4, 1)] == pytest.approx(expected)


@given(st.sampled_from(['linear', 'cosine']), st.integers(1, 300), st.floats(0, 0.999),
       st.floats(1e-6, 1e3), st.floats(0, 1), st.floats(0, 1e-6))
def test_learning_rate_is_continuous_and_never_negative(schedule, epochs, part, lr, at, step):
    """It rises from 0, or starts at its peak, --lr, and ends at 0."""
    warmup = part * epochs
    opt = argparse.Namespace(lr=lr, lr_schedule=schedule, warmup=warmup, epochs=epochs)
    rate = functools.partial(method.learning_rate, opt)

    def at_time(time):
        epoch = min(int(time), epochs - 1)
        return rate(epoch + 1, time - epoch)

    times = [at * epochs, min(at * epochs + step, epochs)]
    values = [at_time(time) for time in times]
    steepest = lr * max(1 / warmup if warmup else 0, math.pi / 2 / (epochs - warmup))
    assert all(0 <= value <= lr for value in values)
    assert abs(values[1] - values[0]) <= steepest * (times[1] - times[0]) * (1 + 1e-6) + 1e-9 * lr
    assert at_time(warmup) == pytest.approx(lr) and rate(epochs, 1) == 0
    assert rate(1, 0) == (0 if warmup else lr)
    for epoch in range(1, min(epochs, 5)):
        assert rate(epoch, 1) == rate(epoch + 1, 0)  # an epoch begins as the one before has ended
