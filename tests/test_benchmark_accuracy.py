"""Accuracy beside the plain baseline: figures by hand, the plain run, both sides by command, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cifar
import resnet
from helpers import call, strictly
from inputs import cifar as data
from tools import benchmark
from tools.benchmark import accuracy
from training import checkpoint

CPU = torch.device('cpu')


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(5)
    path = tmp_path / 'teacher.pt7'
    checkpoint.write(path, {'params': resnet.wide_resnet(10, 1, 10)[1]})
    return path


def test_means_and_how_far_they_are_apart():
    got = accuracy.compared([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert got == {'mean': {'ours': 2, 'baseline': 3}, 'deviation': {'ours': 1, 'baseline': 1.7321},
                   'difference': -1, 'standard_error': 1.1547}  # sqrt((1 + 3) / 3)


@pytest.mark.parametrize(('more', 'rates'), [
    (['--epoch_step', '[2]', '--lr', '0.05'], [[0.05, 0.05], [0.01, 0.01]]),
    # two batches an epoch, each takes the rate at its middle: after 1/4, 3/4, 5/4 and 7/4 epochs
    (['--lr_schedule', 'linear', '--lr', '0.04'], [[0.035, 0.025], [0.015, 0.005]]),
    (['--lr_schedule', 'linear', '--lr', '0.04', '--warmup', '1'], [[0.01, 0.03], [0.03, 0.01]]),
])
def test_the_plain_run_is_a_loop_of_momentum_sgd(more, rates, teacher):
    """Beside a loop without Engine, meters and optimizer, by the loss of Eq. 2 as the code writes it."""
    splits = data.load('shapes', '.', CPU, 24)
    real = cifar.parse(['--save', 'nowhere', '--depth', '10', '--teacher_id', str(teacher), '--beta', '1e3',
                        '--dataset', 'shapes', '--batch_size', '16', '--epochs', '2', '--seed', '3',
                        *more])
    torch.manual_seed(3)
    f_s, student = resnet.wide_resnet(10, 1.0, 10)
    f_t, params = resnet.load(teacher)
    trained = [t.requires_grad_() for name, t in student.items() if 'running' not in name]
    loader = torch.utils.data.DataLoader(accuracy.PlainDataset(splits[0]), 16, shuffle=True)
    momenta = [torch.zeros_like(t) for t in trained]
    for of_epoch in rates:
        if '--epoch_step' in more:  # steps begin with fresh momentum, as published
            momenta = [torch.zeros_like(t) for t in trained]
        for lr, (x, labels) in zip(of_epoch, loader, strict=True):
            y, maps = f_s(x, student, True)
            loss = F.cross_entropy(y, labels)
            for a, b in zip(maps, f_t(x, params, False)[1], strict=True):
                a, b = (m.square().mean(1).flatten(1) for m in (a, b))
                difference = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
                loss = loss + 1e3 * difference.square().mean()
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                for t, momentum, gradient in zip(trained, momenta, gradients, strict=True):
                    momentum.mul_(0.9).add_(gradient + 5e-4 * t)
                    t.sub_(lr * momentum)
    images = (splits[1].images.numpy() - np.array(data.MEAN)) / np.array(data.STD)
    y = f_s(torch.from_numpy(images).permute(0, 3, 1, 2).float(), student, False)[0]
    wrong = sum(int(a) != int(b) for a, b in zip(y.argmax(1), splits[1].labels, strict=True))
    assert accuracy.plainly(real, f_t, params, *splits, workers=0) == round(100 * wrong / 24, 4)


@pytest.mark.slow
def test_both_sides_by_command(teacher, tmp_path):
    done = call(benchmark, 'accuracy', '--teacher_id', teacher.name, '--seeds', '[1,2]', '--max_images', 16,
                '--batch_size', 8, '--epochs', 1, '--lr_schedule', 'linear', '--fast', '--dtype', 'float',
                '--device', 'cpu', cwd=tmp_path)
    assert done.status == 0, done.err
    got = strictly(done.out)
    assert (got['seeds'], got['images'], got['dataset']) == ([1, 2], [16, 16], 'shapes')
    assert (got['dtype'], got['compile'], got['lr_schedule']) == ('float', False, 'linear')
    errors = got['errors']['ours'] + got['errors']['baseline']
    assert len(errors) == 4 and all(0 <= e <= 100 and e * 16 % 100 == 0 for e in errors)
    assert done.err.count('test error') == 2 and list(tmp_path.iterdir()) == [teacher]


def test_all_other_options_are_those_of_the_script():
    opt = benchmark.parse(['accuracy', '--teacher_id', 'a', '--seeds', '[3,4]', '--dataset', 'CIFAR10',
                           '--fast'])
    assert (opt.seeds, opt.others) == ([3, 4], ['--teacher_id', 'a', '--dataset', 'CIFAR10', '--fast'])
    real = cifar.parse([*accuracy.DEFAULTS, *opt.others, '--save', 'x'])
    assert (real.depth, real.width, real.beta, real.epochs, real.lr_schedule) == (16, 1, 1e3, 4, 'linear')
    assert (real.dataset, real.fast) == ('CIFAR10', True)


def test_a_failing_run_ends_with_its_sentence(tmp_path):
    done = call(benchmark, 'accuracy', '--teacher_id', 'missing', '--device', 'cpu', cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1) and 'missing' in done.err


@pytest.mark.parametrize(('arguments', 'names'), [
    ([], '--teacher_id'), (['--teacher_id', 'a', '--seeds', '[1]'], '--seeds'),
    (['--teacher_id', 'a', '--dataroot', 'data'], '--dataroot'), (['--teacher_id', 'a', '--no'], '--no'),
    (['--teacher_id', 'a', '--warmup', '4'], '--warmup'),
    (['--teacher_id', 'a', '--map_p', '4'], '--map_p')])
def test_options_without_meaning(arguments, names, tmp_path):
    done = call(benchmark, 'accuracy', *arguments, '--device', 'cpu', cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1) and names in done.err
