"""A run: meters, optimizer, schedule, going on, log; each against a reference that uses none of them."""
import functools
import math
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cifar
import layers
import resnet
import training
from helpers import log_of, train
from inputs import cifar as data
from inputs import shapes
from layers import Sample
from method import Output, evaluation_step, training_step
from training import checkpoint, devices, exits, progress
from training.checkpoint import Folder
from utils import InputError

CPU = torch.device('cpu')
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]


def pictures(n: int, seed: int, size: int = 32, classes: int = 10, device=CPU) -> data.Images:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, size, size, 3), generator=g, dtype=torch.uint8)
    return data.Images(images.to(device), torch.randint(classes, (n,), generator=g).to(device))


# --- meters ----------------------------------------------------------------------------------------------


def fill(meters, losses, logits, labels, terms=None):
    terms = terms or [{}] * len(losses)
    for loss, y, label, term in zip(losses, logits, labels, terms, strict=True):
        output = Output(torch.tensor(loss, requires_grad=True), y,
                        {k: [torch.tensor(v) for v in values] for k, values in term.items()})
        meters.add(output, Sample(torch.zeros(len(label), 3, 1, 1), label, 1))


@pytest.mark.parametrize('sizes', [(4, 4, 1), (1, 5), (1,), (3,), (1, 1, 1)])
def test_meters(sizes):
    rng = np.random.default_rng(sum(sizes))
    losses = rng.uniform(0.5, 3, len(sizes)).astype(np.float32)
    logits = [torch.from_numpy(rng.standard_normal((n, 5), np.float32)) for n in sizes]
    labels = [torch.from_numpy(rng.integers(0, 2, n)) for n in sizes]
    at, kd = rng.uniform(size=(len(sizes), 3)), rng.uniform(size=(len(sizes), 1))
    meters = training.Meters()
    fill(meters, losses.tolist(), logits, labels,
         [{'at': a, 'kd': k} for a, k in zip(at, kd, strict=True)])
    result = meters.read()
    right = sum((y.numpy().argmax(1) == label.numpy()).sum() for y, label in zip(logits, labels, strict=True))
    assert result.keys() == {'loss', 'acc', 'at_losses', 'kd_losses'}
    assert result['loss'] == pytest.approx((losses * sizes).sum() / sum(sizes), rel=1e-6)
    assert result['acc'] == pytest.approx(100 * right / sum(sizes), rel=1e-12)
    for name, values in (('at_losses', at), ('kd_losses', kd)):
        assert len(result[name]) == values.shape[1]
        for (mean, std), column in zip(result[name], values.T, strict=True):
            assert mean == pytest.approx(column.mean(), rel=1e-6)
            if len(sizes) > 1:
                assert std == pytest.approx(column.std(ddof=1), rel=1e-4)
            else:
                assert not math.isfinite(std)  # one batch has no spread; the log says null
    assert all(type(v) is float for v in (result['loss'], result['acc'], *sum(result['at_losses'], [])))


def test_the_last_small_batch_counts_by_its_images():
    meters = training.Meters()
    y = torch.tensor([[1.0, 0.0]])
    fill(meters, [1.0, 1.0, 5.0], [y.repeat(4, 1), y.repeat(4, 1), y],
         [torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 0]), torch.tensor([1])])
    result = meters.read()
    assert result == {'loss': pytest.approx(13 / 9), 'acc': pytest.approx(100 * 6 / 9)}


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('at', [0, 2])
def test_a_loss_that_is_not_finite(bad, at):
    losses = [1.0, 2.0, 3.0]
    losses[at] = bad
    meters = training.Meters()
    fill(meters, losses, [torch.zeros(2, 3)] * 3, [torch.zeros(2, dtype=torch.int64)] * 3)
    with pytest.raises(exits.Diverged, match='not finite'):
        meters.read()


def test_likeness_counts_by_images():
    """In batches of 4, 4 and 1; the losses beside it still count by batches."""
    meters = training.Meters()
    for n, agreement, cosines in ((4, 75.0, (0.5, 0.25)), (4, 25.0, (1.0, -0.5)), (1, 100.0, (0.0, 1.0))):
        output = Output(torch.tensor(2.0), torch.zeros(n, 3), {'at': [torch.tensor(agreement)]},
                        {'agreement': [torch.tensor(agreement)],
                         'map_cosines': [torch.tensor(cosine) for cosine in cosines]})
        meters.add(output, Sample(torch.zeros(n, 3, 1, 1), torch.zeros(n, dtype=torch.int64), 1))
    result = meters.read()
    assert result['agreement'] == pytest.approx(500 / 9) and result['loss'] == 2 and result['acc'] == 100
    assert result['map_cosines'] == pytest.approx([6 / 9, 0])
    assert result['at_losses'][0][0] == pytest.approx(200 / 3)
    assert result.keys() == {'loss', 'acc', 'at_losses', 'agreement', 'map_cosines'}


def test_damaged_images_are_counted_by_loader():
    loaders = [data.Loader(pictures(4, 0, 4), 2) for _ in range(2)]
    loaders[0].damaged = 3
    assert training.n_damaged(*loaders) == [3, 0] and training.n_damaged(loaders[1]) == [0]


def test_evaluate_counts_each_image_once():
    split = pictures(10, seed=3, size=4)

    def h(sample):
        y = sample.x.mean((2, 3)) @ torch.arange(30.0).view(3, 10).sin()
        loss = F.cross_entropy(y, sample.labels)
        return loss * sample.share, Output(loss, y, {})

    y = h(Sample(data.normalize(split.images), split.labels, 1))[1].logits.double().numpy()
    log_p = y - np.log(np.exp(y).sum(1, keepdims=True))
    result = training.evaluate(h, data.Loader(split, 4))
    assert result['loss'] == pytest.approx(-log_p[np.arange(10), split.labels].mean(), rel=1e-6)
    assert result['acc'] == pytest.approx(100 * (y.argmax(1) == split.labels.numpy()).mean())


# --- optimizer and schedule ------------------------------------------------------------------------------


def test_sgd_against_numpy():
    """Momentum 0.9 without Nesterov; weight decay on every trainable tensor, BN and biases included."""
    opt = cifar.parse(['--save', 'unused', '--weight_decay', '0.05', '--lr', '0.3'])
    _, params = resnet.wide_resnet(10, 0.25, 10)
    layers.trainable(params)
    params['fc.bias'].data += 0.5  # a zero would not show its decay
    statistics = {k: t.clone() for k, t in params.items() if layers.is_statistic(k)}
    assert statistics and 'bn.weight' in params and 'group0.block0.bn0.bias' in params
    optimizer = training.sgd(opt, params)
    expected = {k: t.detach().double().numpy().copy() for k, t in params.items() if k not in statistics}
    buffers = {}
    for _ in range(3):
        for name, p in expected.items():
            gradient = torch.randn(p.shape)
            params[name].grad = gradient.clone()
            g = gradient.double().numpy() + 0.05 * p
            buffers[name] = 0.9 * buffers[name] + g if name in buffers else g
            expected[name] = p - 0.3 * buffers[name]
        optimizer.step()
    for name, p in expected.items():
        np.testing.assert_allclose(params[name].detach().numpy(), p, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, t in statistics.items():
        assert torch.equal(params[name], t) and not params[name].requires_grad, name


class Regression:
    """Softmax regression in float64 on 4 x 4 images: what a run does to it is done again by hand below."""

    def __init__(self, folder, *arguments, dtype='float', watch=lambda sample: None):
        self.opt = cifar.parse(['--save', str(folder), '--batch_size', '8', '--randomcrop_pad', '1',
                                *arguments])
        self.opt.dtype = dtype
        self.train_set, self.test_set = pictures(20, 0, 4, 3), pictures(7, 1, 4, 3)
        g = torch.Generator().manual_seed(2)
        self.params = {'w': torch.randn(3, 48, generator=g, dtype=torch.float64) / 7,
                       'b': torch.ones(3, dtype=torch.float64)}
        self.watch = watch

    def h(self, sample):
        self.watch(sample)
        y = sample.x.double().flatten(1) @ self.params['w'].t() + self.params['b']
        loss = F.cross_entropy(y, sample.labels)
        return loss * sample.share, Output(loss, y, {})

    def loader(self):
        return data.Loader(self.train_set, self.opt.batch_size, self.opt.seed, self.opt.randomcrop_pad)

    def run(self):
        layers.trainable(self.params)
        train(training.Run(self.opt, Folder(self.opt), self.params, torch.no_grad()(self.h), self.loader(),
                           data.Loader(self.test_set, 500), {'num_classes': 3}), self.h)
        return {k: t.detach().numpy() for k, t in self.params.items()}

    def by_hand(self, lr, weight_decay, epochs, drops=(), ratio=1, fresh=True, late=0, rate=None):
        """-> parameters, momentum, loss of each epoch; fresh=False and late=1 are what must not be done.

        rate: the learning rate of a batch, by the number of the batch in the run, in place of drops.
        """
        p = {k: t.detach().numpy().copy() for k, t in self.params.items()}
        buffers, means, batch = None, [], 0
        for epoch in range(1, epochs + 1):
            if epoch - late in drops:
                lr *= ratio
                buffers = None if fresh else buffers
            loader, total = self.loader(), 0.0
            loader.epoch = epoch
            for x, labels, *_ in loader:
                x, n = x.double().numpy().reshape(len(labels), -1), len(labels)
                y = x @ p['w'].T + p['b']
                q = np.exp(y - y.max(1, keepdims=True))
                q /= q.sum(1, keepdims=True)
                total -= np.log(q[np.arange(n), labels]).sum()
                q[np.arange(n), labels] -= 1
                g = {'w': q.T @ x / n + weight_decay * p['w'], 'b': q.sum(0) / n + weight_decay * p['b']}
                buffers = {k: 0.9 * buffers[k] + g[k] for k in g} if buffers else g
                p = {k: p[k] - (rate(batch) if rate else lr) * buffers[k] for k in p}
                batch += 1
            means.append(total / 20)
        return p, buffers, means


SCHEDULE = {'lr': 0.05, 'weight_decay': 0.02, 'epochs': 3, 'drops': [2], 'ratio': 0.2}
ARGUMENTS = ['--lr', '0.05', '--weight_decay', '0.02', '--epochs', '3', '--epoch_step', '[2]']


def test_learning_rate_drops_at_the_start_of_an_epoch_with_fresh_momentum(tmp_path):
    run = Regression(tmp_path / 'run', *ARGUMENTS)
    expected, momentum, losses = run.by_hand(**SCHEDULE)
    for wrong in ({'fresh': False}, {'late': 1}, {'fresh': False, 'late': 1}):
        assert np.abs(run.by_hand(**SCHEDULE, **wrong)[0]['w'] - expected['w']).max() > 1e-4, wrong
    params = run.run()
    log = log_of(tmp_path / 'run')
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-9, atol=1e-12)
    state = checkpoint.read(tmp_path / 'run' / 'model.pt7')
    assert state['epoch'] == 3
    for i, name in enumerate(expected):
        buffer = state['optimizer']['state'][i]['momentum_buffer'].numpy()
        np.testing.assert_allclose(buffer, momentum[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state['params'][name].numpy(), expected[name], rtol=1e-9, atol=1e-12)
    assert [e['epoch'] for e in log] == [1, 2, 3]
    assert [e['train_loss'] for e in log] == pytest.approx(losses, rel=1e-6)
    assert [e['lr_epoch'] for e in log] == [pytest.approx([lr, lr]) for lr in (0.05, 0.01, 0.01)]


@pytest.mark.parametrize('drop', [1, 3])
def test_drop_in_the_first_and_in_the_last_epoch(tmp_path, drop):
    arguments = [*ARGUMENTS[:-1], f'[{drop}]']
    run = Regression(tmp_path / 'run', *arguments)
    expected, _, _ = run.by_hand(**SCHEDULE | {'drops': [drop]})
    np.testing.assert_allclose(run.run()['w'], expected['w'], rtol=1e-9, atol=1e-12)


def test_linear_schedule_with_warm_up_batch_by_batch(tmp_path):
    """Three batches an epoch, half an epoch of warm-up; each batch has the rate at its middle."""
    def rate(batch, late=0.5):
        time = (batch + late) / 3
        return 0.05 * (time / 0.5 if time < 0.5 else (3 - time) / 2.5)

    run = Regression(tmp_path / 'run', *ARGUMENTS[:6], '--lr_schedule', 'linear', '--warmup', '0.5')
    settings = {k: SCHEDULE[k] for k in ('lr', 'weight_decay', 'epochs')}
    expected, _, losses = run.by_hand(**settings, rate=rate)
    for late in (0, 1):
        other = run.by_hand(**settings, rate=functools.partial(rate, late=late))[0]
        assert np.abs(other['w'] - expected['w']).max() > 1e-4
    params = run.run()
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-9, atol=1e-12)
    log = log_of(tmp_path / 'run')
    assert [e['train_loss'] for e in log] == pytest.approx(losses, rel=1e-6)
    assert sum([e['lr_epoch'] for e in log], []) == pytest.approx([0, 0.04, 0.04, 0.02, 0.02, 0])
    assert (log[0]['lr_schedule'], log[0]['warmup']) == ('linear', 0.5)


@pytest.mark.parametrize(('arguments', 'first', 'last'), [
    (['--epoch_step', '[2]'], 0.05, 0.01), (['--lr_schedule', 'linear'], 0.05 * 8.5 / 9, 0.05 * 0.5 / 9),
    (['--lr_schedule', 'cosine'], 0.025 + 0.025 * math.cos(math.pi / 18),
     0.025 - 0.025 * math.cos(math.pi / 18)),
    (['--lr_schedule', 'linear', '--warmup', '0.25'], 0.05 * (0.5 / 3) / 0.25, 0.05 * (0.5 / 3) / 2.75)])
def test_rate_of_the_first_and_last_batch(tmp_path, arguments, first, last):
    run = Regression(tmp_path / 'run', *ARGUMENTS[:6], *arguments)
    made = training.Run(run.opt, Folder(run.opt), layers.trainable(run.params), run.h, run.loader(),
                        run.loader(), {'num_classes': 3})
    for epoch, batch, expected in ((1, 0, first), (3, 2, last)):
        made.set_lr({'sample': Sample(None, None, epoch, batch)})
        assert [group['lr'] for group in made.optimizer.param_groups] == [pytest.approx(expected)]


def test_only_steps_begin_with_fresh_momentum(tmp_path):
    """--epoch_step drops beta too; under another schedule the momentum must not notice."""
    run = Regression(tmp_path / 'run', *ARGUMENTS[:6], '--lr_schedule', 'cosine')
    run.opt.epoch_step = [2, 3]
    expected, momentum, _ = run.by_hand(0.05, 0.02, 3, rate=lambda batch: (
        0.025 + 0.025 * math.cos(math.pi * (batch + 0.5) / 9)))
    np.testing.assert_allclose(run.run()['w'], expected['w'], rtol=1e-9, atol=1e-12)


def test_going_on_takes_learning_rate_and_weight_decay_from_the_options(tmp_path):
    """And the momentum from the checkpoint: what the log says is what was done."""
    Regression(tmp_path / 'run', '--lr', '0.05', '--epochs', '1', '--epoch_step', '[]').run()
    run = Regression(tmp_path / 'run', '--lr', '0.01', '--weight_decay', '0.3', '--epochs', '2',
                     '--epoch_step', '[]', '--resume', 'auto')
    state = checkpoint.read(tmp_path / 'run' / 'model.pt7')
    p = {k: t.numpy().copy() for k, t in state['params'].items()}
    buffers = [state['optimizer']['state'][i]['momentum_buffer'].numpy().copy() for i in (0, 1)]
    loader = run.loader()
    loader.epoch = 2
    for x, labels, *_ in loader:
        w, b = (torch.from_numpy(p[k]).requires_grad_() for k in 'wb')
        y = x.double().flatten(1) @ w.t() + b
        gradients = torch.autograd.grad(F.cross_entropy(y, labels), (w, b))
        for i, k in enumerate('wb'):
            buffers[i] = 0.9 * buffers[i] + gradients[i].numpy() + 0.3 * p[k]
            p[k] = p[k] - 0.01 * buffers[i]
    params = run.run()
    for k in 'wb':
        np.testing.assert_allclose(params[k], p[k], rtol=1e-9, atol=1e-12)
    assert log_of(tmp_path / 'run')[1]['lr_epoch'] == [0.01, 0.01]


# --- interruptions and divergence ------------------------------------------------------------------------


def interrupt(monkeypatch, where, error=KeyboardInterrupt):
    def stop(*_, **__):
        raise error
    name = {'bar': 'Progress', 'test': 'evaluate', 'optimizer': 'sgd'}.get(where)
    if name:
        monkeypatch.setattr(training.run, name, stop)
    else:
        monkeypatch.setattr(checkpoint, where, stop)


@pytest.mark.parametrize('where', ['step', 'bar', 'test', 'write_log', 'write'])
def test_an_interrupt_at_any_point_says_how_to_go_on(tmp_path, monkeypatch, capsys, where):
    arguments = ['--save', str(tmp_path / 'a run'), '--batch_size', '8', '--randomcrop_pad', '1', *ARGUMENTS]
    monkeypatch.setattr(sys, 'argv', ['cifar.py', *arguments])
    first = Regression(tmp_path / 'a run', *ARGUMENTS[:4], '--epochs', '1', '--epoch_step', '[2]')
    first.run()
    before = (tmp_path / 'a run' / 'model.pt7').read_bytes()
    capsys.readouterr()

    def watch(sample):
        if where == 'step' and sample.epoch == 2:
            raise KeyboardInterrupt

    run = Regression(tmp_path / 'a run', *ARGUMENTS, '--resume', 'auto', watch=watch)
    with monkeypatch.context() as patch:
        if where != 'step':
            interrupt(patch, where)
        with pytest.raises(KeyboardInterrupt):
            run.run()
    err = capsys.readouterr().err.splitlines()
    assert len([line for line in err if not line.startswith('note:')]) == 1
    saved = 2 if where == 'write_log' else 1  # the log is written after the checkpoint
    assert 'stopped in epoch 2' in err[-1] and f'model.pt7 holds epoch {saved}' in err[-1]
    assert ((tmp_path / 'a run' / 'model.pt7').read_bytes() == before) == (saved == 1)
    command = shlex.split(err[-1].partition('resume with: ')[2])
    assert command == ['python', 'cifar.py', *arguments, '--resume', 'auto']
    again = Regression(tmp_path / 'a run', *ARGUMENTS, '--resume', 'auto')
    again.run()
    assert [e['epoch'] for e in log_of(tmp_path / 'a run')] == [1, 2, 3]
    expected, _, _ = Regression(tmp_path / 'x', *ARGUMENTS).by_hand(**SCHEDULE)
    np.testing.assert_allclose(again.params['w'].detach(), expected['w'], rtol=1e-9, atol=1e-12)


def test_a_run_in_a_new_folder_stopped_in_its_first_epoch_goes_on_from_the_old_one(
        tmp_path, monkeypatch, capsys):
    old, new = tmp_path / 'old', tmp_path / 'new'
    Regression(old, *ARGUMENTS[:4], '--epochs', '1', '--epoch_step', '[2]').run()
    arguments = [*ARGUMENTS, '--resume', str(old / 'model.pt7')]
    monkeypatch.setattr(sys, 'argv', ['cifar.py', '--save', str(new), *arguments])
    capsys.readouterr()

    def watch(sample):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Regression(new, *arguments, watch=watch).run()
    command = shlex.split(capsys.readouterr().err.partition('resume with: ')[2])
    folder = Folder(cifar.parse(command[2:]))
    assert folder.state is not None, 'the command begins anew'
    assert folder.state['epoch'] == 1


@pytest.mark.parametrize('begun', ['anew', 'from another run'])
def test_an_interrupt_between_the_first_two_files(tmp_path, monkeypatch, capsys, begun):
    """Nothing of the new folder is whole yet: what is printed must still go on."""
    old, new, arguments, epoch = tmp_path / 'old', tmp_path / 'new', ARGUMENTS, 0
    if begun != 'anew':
        Regression(old, *ARGUMENTS[:4], '--epochs', '2', '--epoch_step', '[2]').run()
        arguments, epoch = [*ARGUMENTS, '--resume', str(old)], 2
    monkeypatch.setattr(sys, 'argv', ['cifar.py', '--save', str(new), *arguments])
    run = Regression(new, *arguments)
    capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 'write')
        run.run()
    command = shlex.split(capsys.readouterr().err.partition('resume with: ')[2])
    folder = Folder(cifar.parse(command[2:]))
    assert (folder.state['epoch'] if folder.state else 0) == epoch


@pytest.mark.parametrize(('given', 'kept'), [
    ([], []),
    (['--resume', 'auto'], []),
    (['--resume=auto', '--lr', '0.1'], ['--lr', '0.1']),
    (['--save', 'a b', '--resume', 'auto', '--beta', '1e+3'], ['--save', 'a b', '--beta', '1e+3']),
    (['--epoch_step', '[1, 2]', '--save=$x;'], ['--epoch_step', '[1, 2]', '--save=$x;'])])
def test_resume_command(given, kept):
    command = exits.resume_command(['some where/cifar.py', *given], True)
    assert shlex.split(command) == ['python', 'some where/cifar.py', *kept, '--resume', 'auto']
    shell = subprocess.run(['sh', '-c', f'printf "%s\\n" {command}'], capture_output=True, text=True)
    assert shell.stdout.splitlines() == shlex.split(command)
    again = exits.resume_command(['some where/cifar.py', *given], False)  # nothing is saved yet
    assert shlex.split(again) == ['python', 'some where/cifar.py', *given]


def test_resume_command_of_torchrun(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    command = exits.resume_command(['cifar.py', '--save', 'x'], True)
    assert command == 'torchrun ... cifar.py --save x --resume auto'


MEMORY = {
    'DefaultCPUAllocator: not enough memory: you tried to allocate 9999999999 bytes.': True,
    "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried": True,
    'std::bad_alloc': True, 'mat1 and mat2 shapes cannot be multiplied': False, '': False}


@pytest.mark.parametrize('text', MEMORY)
def test_errors_for_want_of_memory(monkeypatch, capsys, text):
    def main():
        raise RuntimeError(text)
    assert exits.is_out_of_memory(RuntimeError(text)) == MEMORY[text]
    assert exits.is_out_of_memory(MemoryError(text)) and exits.is_out_of_memory(torch.OutOfMemoryError())
    monkeypatch.setattr(sys, 'argv', ['a/cifar.py'])
    with pytest.raises(SystemExit if MEMORY[text] else RuntimeError) as end:
        exits.script(main)
    if MEMORY[text]:
        assert end.value.code == 2 and capsys.readouterr().err == (
            'cifar.py: error: no memory is left: give smaller batches, or end other programs\n')


def test_memory_that_torch_cannot_have(monkeypatch):
    """As torch says it here."""
    monkeypatch.setattr(sys, 'argv', ['cifar.py'])
    with pytest.raises(SystemExit, match='2'):
        exits.script(lambda: torch.empty(2**56))


def test_every_rank_knows_the_checkpoint_of_the_first(tmp_path, monkeypatch):
    """The sentence of a rank that fails says what is saved, and how to resume."""
    one = Regression(tmp_path / 'run', '--epochs', '2')
    layers.trainable(one.params)
    run = training.Run(one.opt, Folder(one.opt), one.params, one.h, one.loader(), one.loader(),
                       {'num_classes': 3})
    monkeypatch.setattr(devices, 'rank', lambda: 1)
    monkeypatch.setattr(run, 'results', lambda epoch: dict.fromkeys(
        ('train_loss', 'train_acc', 'test_loss', 'test_acc', 'train_time', 'images_per_second'), 1.0))
    run.end_epoch({'epoch': 1})
    assert run.folder.last().endswith('holds epoch 1')


@pytest.mark.parametrize('in_test', [False, True])
def test_divergence_names_the_epoch_and_keeps_the_checkpoint(tmp_path, in_test):
    run = Regression(tmp_path / 'run', *ARGUMENTS)
    h, kept = run.h, []

    def diverging(sample):
        loss, output = h(sample)
        if sample.epoch == 2 and torch.is_grad_enabled() or in_test and kept and not torch.is_grad_enabled():
            kept.append((tmp_path / 'run' / 'model.pt7').read_bytes())
            factor = 1 if in_test and torch.is_grad_enabled() else math.nan
            loss, output = loss * factor, output._replace(loss=output.loss * factor)
        return loss, output

    run.h = diverging
    with pytest.raises(exits.Diverged, match=r'epoch 2; .*model\.pt7 holds epoch 1'):
        run.run()
    assert kept[0] == (tmp_path / 'run' / 'model.pt7').read_bytes()
    assert [e['epoch'] for e in log_of(tmp_path / 'run')] == [1]


# --- going on is bit-identical ---------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(shapes, 'N_TRAIN', 80)
    monkeypatch.setattr(shapes, 'N_TEST', 50)


def start(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['cifar.py', '--dataset', 'shapes', '--depth', '10', '--width', '0.25',
                                      '--batch_size', '32', '--device', 'cpu', *map(str, arguments)])
    cifar.main()


def make_teacher(path, width=0.5):
    torch.manual_seed(7)
    checkpoint.write(path, resnet.wide_resnet(16, width, 10)[1])
    return path


SAME = {'train_time', 'test_time', 'images_per_second', 'peak_memory', 'resume', 'save', 'commit'}


@pytest.mark.parametrize('schedule', [['--epoch_step', '[2,4]'], ['--epoch_step', '[3]'],
                                      ['--lr_schedule', 'linear', '--warmup', '2.5']])
def test_going_on_is_bit_identical(tmp_path, monkeypatch, small, schedule):
    """Four epochs at once, and the same stopped in the third and gone on with, with AT, KD and a decay."""
    options = ['--teacher_id', make_teacher(tmp_path / 'teacher.pt7'), '--beta', '1e3', '--alpha', '0.5',
               '--beta_decay', 'cosine', '--epochs', '4', *schedule, '--lr', '0.05']
    start(monkeypatch, '--save', tmp_path / 'once', *options)
    add, count = progress.Progress.add, []

    def stop(self, loss, n):
        count.append(n)
        if len(count) == 3 + 3 + 2:  # batches of 32, 32, 16: within the third epoch
            raise KeyboardInterrupt
        add(self, loss, n)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, 'add', stop)
        with pytest.raises(KeyboardInterrupt):
            start(monkeypatch, '--save', tmp_path / 'twice', *options)
    assert [e['epoch'] for e in log_of(tmp_path / 'twice')] == [1, 2]
    torch.manual_seed(99)  # whatever the global generator has been through
    torch.rand(5)
    start(monkeypatch, '--save', tmp_path / 'twice', *options, '--resume', 'auto')

    once, twice = (checkpoint.read(tmp_path / name / 'model.pt7') for name in ('once', 'twice'))
    assert once['epoch'] == twice['epoch'] == 4
    assert once['params'].keys() == twice['params'].keys()
    for name, t in once['params'].items():
        assert torch.equal(t, twice['params'][name]), name
    assert once['optimizer']['param_groups'] == twice['optimizer']['param_groups']
    assert once['optimizer']['state'].keys() == twice['optimizer']['state'].keys()
    for i, buffers in once['optimizer']['state'].items():
        assert torch.equal(buffers['momentum_buffer'], twice['optimizer']['state'][i]['momentum_buffer'])
    logs = [[{k: v for k, v in e.items() if k not in SAME} for e in log_of(tmp_path / name)]
            for name in ('once', 'twice')]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    assert len({e['train_loss'] for e in logs[0]}) == 4  # it did learn
    assert [e['beta_epoch'] for e in logs[0]] == pytest.approx(
        [500 * (1 + math.cos(math.pi * e / 4)) for e in range(4)])


# --- what the log says -----------------------------------------------------------------------------------


def test_logged_losses_by_hand(tmp_path, monkeypatch, small):
    """One epoch that changes nothing: at_losses are those of the training batches, of no test batch."""
    teacher_file = make_teacher(tmp_path / 'teacher.pt7')
    start(monkeypatch, '--save', tmp_path / 'run', '--teacher_id', teacher_file, '--beta', '100',
          '--epochs', '1', '--lr', '1e-30', '--seed', '5', '--weight_decay', '0')
    record, = log_of(tmp_path / 'run')

    torch.manual_seed(5)
    f_s, student = resnet.wide_resnet(10, 0.25, 10)
    f_t, teacher = resnet.load(teacher_file)
    train_set, test_set = data.load('shapes', '', CPU)
    at, losses, right, sizes = [], [], 0, []
    with torch.no_grad():
        for x, labels, *_ in data.Loader(train_set, 32, seed=5, pad=4):
            y, g_s = f_s(x, student, True)
            _, g_t = f_t(x, teacher, False)
            at.append([at_by_hand(a, b) for a, b in zip(g_s, g_t, strict=True)])
            losses.append(F.cross_entropy(y, labels).item() + 100 * sum(at[-1]))
            right += (y.argmax(1) == labels).sum().item()
            sizes.append(len(labels))
        y, _ = f_s(data.normalize(test_set.images), student, False)  # its statistics are those of the epoch
    assert sizes == [32, 32, 16]
    at = np.stack([np.mean(at, 0), np.std(at, 0, ddof=1)], 1)
    assert np.array(record['at_losses']) == pytest.approx(at, rel=1e-3)
    assert record['train_loss'] == pytest.approx(np.dot(losses, sizes) / 80, rel=1e-5)
    assert record['train_acc'] == pytest.approx(100 * right / 80)
    assert record['test_loss'] == pytest.approx(F.cross_entropy(y, test_set.labels).item(), rel=1e-4)
    assert record['test_acc'] == pytest.approx(100 * (y.argmax(1) == test_set.labels).float().mean().item())
    assert record['beta'] == record['beta_epoch'] == 100 and record['lr_epoch'] == [1e-30, 1e-30]
    assert record['num_classes'] == 10
    assert record['n_parameters'] == sum(t.numel() for t in student.values())
    assert record['images_per_second'] == pytest.approx(80 / record['train_time'])
    assert record['train_time'] > 0 and record['test_time'] > 0 and record['peak_memory'] > 2**20


def at_by_hand(a, b) -> float:
    q = [np.square(t.double().numpy()).sum(1).reshape(len(t), -1) for t in (a, b)]
    q = [m / np.sqrt(np.square(m).sum(1, keepdims=True)) for m in q]
    return np.square(q[0] - q[1]).mean()


def test_without_a_teacher_there_are_no_at_losses(tmp_path):
    Regression(tmp_path / 'run', '--epochs', '1').run()
    record, = log_of(tmp_path / 'run')
    assert record['at_losses'] == []


# --- devices and half precision --------------------------------------------------------------------------


def test_device(monkeypatch):
    def parse(*arguments):
        return cifar.parse(['--save', 'unused', *arguments])

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert devices.device(parse()) == devices.device(parse('--device', 'cpu')) == CPU
    for arguments, words in [(['--cuda'], 'no CUDA device'), (['--device', 'cuda', '--gpu_id', '7'], 'CUDA'),
                             (['--dtype', 'half'], '--dtype half')]:
        with pytest.raises(InputError, match=words):
            devices.device(parse(*arguments))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda index: None)
    assert devices.device(parse('--device', 'cpu')) == CPU
    assert devices.device(parse()) == torch.device('cuda', 0)
    assert devices.device(parse('--gpu_id', '1', '--dtype', 'half')) == torch.device('cuda', 1)
    with pytest.raises(InputError, match='--gpu_id 7'):
        devices.device(parse('--gpu_id', '7'))
    with pytest.raises(InputError, match='--dtype half'):
        devices.device(parse('--device', 'cpu', '--dtype', 'half'))


def test_no_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda index: None)
    with pytest.raises((InputError, SystemExit)):
        devices.device(cifar.parse(['--save', 'unused', '--gpu_id', '[]']))


def test_to_device_keeps_names_and_values():
    params = {'conv': torch.randn(4, 3, 3, 3), 'fc': torch.randn(2, 4), 'n': torch.tensor(1)}
    moved = devices.to_device(params, CPU)
    assert list(moved) == list(params) and all(torch.equal(moved[k], t) for k, t in params.items())
    assert moved['conv'].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('device', DEVICES)
def test_scaled_sgd(device):
    """A power of two as scale changes no bit, and a gradient that overflows changes nothing."""
    def step(optimizer, w, factor, scaler=None):
        def closure():
            loss = (w * factor).square().sum()
            (scaler.scale(loss) if scaler else loss).backward()
            return loss
        optimizer.zero_grad()
        optimizer.step(closure)

    opt, half = cifar.parse(['--save', 'unused']), cifar.parse(['--save', 'unused', '--dtype', 'half'])
    plain, scaled = (torch.linspace(-1, 1, 9, device=device).requires_grad_() for _ in range(2))
    optimizer = training.sgd(opt, {'w': plain})
    scaler = torch.amp.GradScaler(device, init_scale=2.0**16, growth_interval=3)
    ours = training.sgd(half, {'w': scaled}, scaler)
    for factor in (1.0, 0.5, 1.5):
        step(optimizer, plain, factor)
        step(ours, scaled, factor, scaler)
        assert torch.equal(plain, scaled)
    assert scaler.get_scale() == 2.0**17  # grew after three
    before = scaled.detach().clone(), momentum(ours)
    step(ours, scaled, 1e18, scaler)  # finite, but not times 2^17
    assert torch.equal(scaled.detach(), before[0]) and torch.equal(momentum(ours), before[1])
    assert scaler.get_scale() == 2.0**16
    step(optimizer, plain, 1.0)
    step(ours, scaled, 1.0, scaler)
    assert torch.equal(plain, scaled)


def momentum(optimizer) -> torch.Tensor:
    return optimizer.state_dict()['state'][0]['momentum_buffer'].clone()


def test_scaled_run_equals_the_plain_one(tmp_path):
    """The scale is a power of two, so in float64 it leaves no trace."""
    plain = Regression(tmp_path / 'plain', *ARGUMENTS).run()
    scaled = Regression(tmp_path / 'scaled', *ARGUMENTS, dtype='half').run()
    for name in plain:
        assert np.array_equal(plain[name], scaled[name])


@pytest.mark.parametrize(('before', 'after'), [('half', 'half'), ('float', 'half'), ('half', 'float')])
def test_scaled_run_goes_on(tmp_path, before, after):
    whole = Regression(tmp_path / 'whole', *ARGUMENTS).run()
    Regression(tmp_path / 'run', *ARGUMENTS[:4], '--epochs', '2', '--epoch_step', '[2]', dtype=before).run()
    run = Regression(tmp_path / 'run', *ARGUMENTS, '--resume', 'auto', dtype=after).run()
    assert np.array_equal(run['w'], whole['w'])


def test_scaled_run_resumes_with_its_scale(tmp_path, monkeypatch):
    """To the bit. A step of epoch 2 overflows by the scale of then, not by one that begins anew.

    The scale doubles after each 4 steps without an overflow; there are 3 steps an epoch.
    """
    monkeypatch.setattr(torch.amp, 'GradScaler', functools.partial(
        torch.amp.GradScaler, init_scale=2.0**16, growth_interval=4))
    at_most = torch.finfo(torch.float64).max

    def run(folder, *more):
        part = Regression(tmp_path / folder, *ARGUMENTS[:4], '--epoch_step', '[2]', *more, dtype='half')
        plain = part.h

        def h(sample):
            loss, output = plain(sample)
            return loss * (at_most / 2.0**16.5 if (sample.epoch, sample.batch) == (2, 2) else 1), output

        part.h = h
        part.run()
        return checkpoint.read(tmp_path / folder / 'model.pt7')

    whole = run('whole', '--epochs', '3')
    half = run('part', '--epochs', '1')
    assert (half['scaler']['scale'], half['scaler']['_growth_tracker']) == (2.0**16, 3)
    resumed = run('part', '--epochs', '3', '--resume', 'auto')
    assert resumed['scaler'] == whole['scaler']
    assert (whole['scaler']['scale'], whole['scaler']['_growth_tracker']) == (2.0**16, 3)
    for name, t in whole['params'].items():
        assert torch.equal(resumed['params'][name], t)
    assert all(torch.equal(a['momentum_buffer'], b['momentum_buffer']) for a, b in zip(
        resumed['optimizer']['state'].values(), whole['optimizer']['state'].values(), strict=True))


class Watched(data.Loader):
    """From epoch `first`, third batch of an epoch to the last: waiting for the device is an error."""

    def __iter__(self):
        try:
            for i, sample in enumerate(super().__iter__()):
                if i == 2 and sample.x.is_cuda and self.epoch >= self.first:
                    torch.cuda.set_sync_debug_mode('error')
                yield sample
        finally:
            if self.device.type == 'cuda':
                torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(('device', 'dtype', 'more'), [
    ('cpu', 'float', []), *(pytest.param('cuda', d, [], marks=pytest.mark.gpu) for d in layers.DTYPES),
    pytest.param('cuda', 'bfloat16', ['--compile'], marks=pytest.mark.gpu)])
def test_no_step_waits_for_the_device(tmp_path, device, dtype, more):
    """A graph of CUDA is made in the first two epochs, of which each has one last batch."""
    opt = cifar.parse(['--save', str(tmp_path / 'run'), '--teacher_id', 'unused', '--alpha', '0.9', '--beta',
                       '1e3', '--depth', '10', '--width', '0.5', '--batch_size', '16', '--dtype', dtype,
                       '--device', device, '--epochs', '4' if more else '2', '--epoch_step', '[2]',
                       '--lr', '0.01', *more])
    where = devices.device(opt)
    f_s, student = resnet.wide_resnet(10, 0.5, 10)
    f_t, teacher = resnet.wide_resnet(16, 0.5, 10)
    student, teacher = devices.to_device(student, where), devices.to_device(teacher, where)
    layers.trainable(student)
    loader = Watched(pictures(72, 0, device=where), 16, seed=1, pad=4)
    loader.first = 4 if more else 1
    train(training.Run(opt, Folder(opt), student, evaluation_step(f_s, student, dtype), loader,
                       data.Loader(pictures(20, 1, device=where), 16), {'num_classes': 10}),
          training_step(opt, f_s, student, f_t, teacher))
    log = log_of(tmp_path / 'run')
    assert [e['epoch'] for e in log] == list(range(1, opt.epochs + 1))
    assert log[0]['dtype'] == dtype and len(log[0]['at_losses']) == 3
    saved = checkpoint.read(tmp_path / 'run' / 'model.pt7')['params']
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in saved.values())


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['bfloat16', 'half'])
def test_low_precision_is_near_float(tmp_path, monkeypatch, small, dtype):
    for name in ('float', dtype):
        start(monkeypatch, '--device', 'cuda', '--save', tmp_path / name, '--dtype', name, '--epochs', '2',
              '--lr', '0.01')
    plain, low = (log_of(tmp_path / name) for name in ('float', dtype))
    for a, b in zip(plain, low, strict=True):
        assert b['train_loss'] == pytest.approx(a['train_loss'], rel=0.05)
    start(monkeypatch, '--device', 'cuda', '--save', tmp_path / dtype, '--dtype', dtype, '--epochs', '3',
          '--lr', '0.01', '--resume', 'auto')
    assert [e['epoch'] for e in log_of(tmp_path / dtype)] == [1, 2, 3]
