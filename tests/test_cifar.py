"""The script as its users meet it: runs, teachers in every form, interruptions, mistakes."""
import json
import math
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cifar
import resnet
import utils
from helpers import N_TRAIN, ROOT, SMALL, Payload, call_cifar, listing, log_of
from inputs import cifar as data
from inputs import shapes
from training import checkpoint
from weights import tensors

# --- runs and their teachers -----------------------------------------------------------------------------


PUBLISHED = {
    'depth', 'width', 'dataset', 'dataroot', 'dtype', 'nthread', 'teacher_id', 'batch_size', 'lr', 'epochs',
    'weight_decay', 'epoch_step', 'lr_decay_ratio', 'resume', 'randomcrop_pad', 'temperature', 'alpha',
    'beta', 'cuda', 'save', 'ngpu', 'gpu_id', 'train_loss', 'train_acc', 'test_loss', 'test_acc', 'epoch',
    'num_classes', 'n_parameters', 'train_time', 'test_time', 'at_losses'}
OURS = {'seed', 'commit', 'torch', 'device_name', 'images_per_second', 'peak_memory'}


def test_teacher_and_student_as_a_user_starts_them(tmp_path, run_script, small):
    teacher = [*SMALL, '--save', 'logs/a/teacher', '--epochs', 2]
    done = run_script('cifar.py', *teacher, PYTHONPATH=small, OMP_NUM_THREADS='1')
    assert (done.returncode, done.stderr) == (0, '')
    assert [line.split(':')[0] for line in done.stdout.splitlines()] == ['epoch 1/2', 'epoch 2/2']
    student = [*SMALL, '--save', 'logs/new/deep/student', '--epochs', 1, '--teacher_id', 'a/teacher',
               '--beta', '1e+3', '--alpha', 0.9, '--seed', 3]
    done = run_script('cifar.py', *student, PYTHONPATH=small, OMP_NUM_THREADS='1')
    assert (done.returncode, done.stderr) == (0, '')
    for arguments, name, epochs in ((teacher, 'a/teacher', 2), (student, 'new/deep/student', 1)):
        run = tmp_path / 'logs' / name
        assert sorted(os.listdir(run)) == ['.lock', 'log.txt', 'model.pt7']
        log = log_of(run)
        assert [e['epoch'] for e in log] == list(range(1, epochs + 1))
        opt = vars(cifar.parse(list(map(str, arguments))))
        for e in log:
            assert {k: e[k] for k in opt} == opt
            assert e.keys() >= OURS
            assert e['commit'] is None or re.fullmatch(r'[0-9a-f]{40}(-dirty)?', e['commit'])
            assert e['torch'] == torch.__version__ and e['num_classes'] == 10
            assert e['images_per_second'] > 0 and e['peak_memory'] > 2**20
            assert 0 <= e['train_acc'] <= 100 and 0 <= e['test_acc'] <= 100
        assert len(log[0]['at_losses']) == (3 if 'student' in name else 0)
        known = {'kind': 'WRN', 'depth': 10, 'width': 0.25} if 'student' in name else None
        assert log[0]['teacher'] == known and ('test_agreement' in log[0]) == ('student' in name)
        params = checkpoint.read(run / 'model.pt7')['params']
        assert log[0]['n_parameters'] == sum(t.numel() for t in params.values())
        assert 'conv0' in params and 'fc.bias' in params  # without a prefix


def test_the_log_has_every_published_key(home):
    record = log_of(home / 'logs' / 'teacher')[-1]
    assert PUBLISHED - record.keys() == set()


def test_a_teacher_at_an_address(home, tmp_path, monkeypatch):
    """It is downloaded as --student_params is, and its data set is known there too."""
    monkeypatch.setattr(tensors, '_download', lambda *_: home / 'logs' / 'teacher' / 'model.pt7')
    address = 'http://localhost/~me/teacher.pt7'
    done = call_cifar(*SMALL, '--save', 'x', '--epochs', 1, '--teacher_id', address, '--beta', 1e3,
                      cwd=tmp_path)
    assert (done.status, done.err) == (0, '') and f'{address}: WRN-' in done.out
    assert log_of(tmp_path / 'x')[-1]['teacher_id'] == address
    done = call_cifar('--evaluate', '--student_params', address, '--dataset', 'CIFAR10', '--device', 'cpu',
                      cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1 and 'shapes, not on CIFAR10' in done.err


def test_teacher_in_each_form_gives_the_same_run(home, tmp_path):
    """As a name under logs/, as its folder, as its file: the same losses to the bit."""
    (tmp_path / 'logs').symlink_to(home / 'logs')
    run, losses = home / 'logs' / 'teacher', []
    for i, teacher in enumerate(('teacher', 'logs/teacher', run, run / 'model.pt7', 'teacher/model.pt7')):
        done = call_cifar(*SMALL, '--save', f'student{i}', '--epochs', 1, '--teacher_id', teacher, '--beta',
                          1e3, cwd=tmp_path)
        assert (done.status, done.err) == (0, '')
        record = log_of(tmp_path / f'student{i}')[-1]
        losses.append((record['train_loss'], record['at_losses'], record['test_loss']))
    assert len(losses) == 5 and all(x == losses[0] for x in losses)
    # and a student teaches the next
    done = call_cifar(*SMALL, '--save', 'next', '--epochs', 1, '--teacher_id', 'student0', '--beta', 1e3,
                      cwd=tmp_path)
    assert (done.status, done.err) == (0, '')
    assert log_of(tmp_path / 'next')[-1]['at_losses'] != losses[0][1]


def test_evaluate_prints_what_the_log_says(home):
    before, last = listing(home), log_of(home / 'logs' / 'teacher')[-1]
    for arguments in (['--save', 'logs/teacher'], ['--resume', 'logs/teacher/model.pt7'],
                      ['--resume', 'logs/teacher'], ['--save', 'logs/teacher', '--resume', 'auto']):
        done = call_cifar(*SMALL, '--evaluate', *arguments, cwd=home)
        assert (done.status, done.err) == (0, '')
        loss, acc, error = re.search(r'loss ([\d.]+) accuracy ([\d.]+) error ([\d.]+)$', done.out).groups()
        assert (loss, acc) == (f'{last["test_loss"]:.4f}', f'{last["test_acc"]:.2f}')
        assert float(error) == pytest.approx(100 - last['test_acc'], abs=0.006)
    assert listing(home) == before


def published_run(folder: Path, params: dict, prefixed: bool = True) -> Path:
    folder.mkdir(parents=True)
    if prefixed:
        _, other = resnet.wide_resnet(16, 0.5, 10)
        params = ({f'student.{k}': t for k, t in params.items()}
                  | {f'teacher.{k}': t for k, t in other.items()})
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([w], 0.1, momentum=0.9)
    w.sum().backward()
    optimizer.step()
    torch.save({'params': params, 'optimizer': optimizer.state_dict(), 'epoch': 2}, folder / 'model.pt7')
    record = {'depth': 10, 'width': 0.25, 'dataset': 'shapes', 'epoch_step': '[60,120,160]', 'cuda': True,
              'teacher_id': 'x' if prefixed else '', 'at_losses': [[math.nan, math.nan]] * 3}
    (folder / 'log.txt').write_text(''.join(
        'json_stats: ' + json.dumps(record | {'epoch': epoch}) + '\n' for epoch in (1, 2)))
    return folder


@pytest.mark.parametrize('prefixed', [True, False])
def test_a_run_of_the_published_code_teaches_and_is_evaluated(home, tmp_path, prefixed):
    params = checkpoint.read(home / 'logs' / 'teacher' / 'model.pt7')['params']
    run = published_run(tmp_path / 'logs' / 'old', params, prefixed)
    assert 'NaN' in (run / 'log.txt').read_text()
    ours = call_cifar(*SMALL, '--evaluate', '--save', home / 'logs' / 'teacher', cwd=tmp_path)
    done = call_cifar(*SMALL, '--evaluate', '--save', 'logs/old', cwd=tmp_path)
    assert (done.status, done.err) == (0, '')
    assert done.out.replace('logs/old', str(home / 'logs' / 'teacher')) == ours.out != ''
    losses = []
    for i, teacher in enumerate(('old', 'logs/old/model.pt7', home / 'logs' / 'teacher')):
        done = call_cifar(*SMALL, '--save', f's{i}', '--epochs', 1, '--teacher_id', teacher, '--alpha', 0.9,
                          cwd=tmp_path)
        assert (done.status, done.err) == (0, '')
        losses.append(log_of(tmp_path / f's{i}')[0]['train_loss'])
    assert losses[0] == losses[1] == losses[2]
    before = listing(tmp_path)
    done = call_cifar(*SMALL, '--save', 'logs/old', '--resume', 'auto', cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1 and 'can teach' in done.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize('width', ['0.3', '1.7', '0.0625'])
def test_a_run_of_any_width_is_evaluated_teaches_and_goes_on(tmp_path, width):
    arguments = [*SMALL, '--width', width]
    for more in ([*arguments, '--save', 'wide', '--epochs', 1], [*arguments, '--save', 'wide', '--evaluate'],
                 [*arguments, '--save', 'wide', '--epochs', 2, '--resume', 'auto'],
                 [*SMALL, '--save', 'student', '--epochs', 1, '--teacher_id', 'wide', '--alpha', 1]):
        assert call_cifar(*more, cwd=tmp_path).status == 0


def test_adaptors_stay_with_their_run(home, tmp_path):
    """They are trained, kept beside the student and gone on with; the student does without them."""
    _, teacher = resnet.wide_resnet(10, 0.5, 10)
    torch.save(teacher, tmp_path / 'wide.pth')
    hint = [*SMALL, '--teacher_id', 'wide.pth', '--hint_beta', 100, '--beta_decay', 'linear']
    assert call_cifar(*hint, '--save', 'whole', '--epochs', 2, cwd=tmp_path).status == 0
    # The law of decay knows the number of epochs: the run is cut short after the first.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Folder, 'save', stop_after(checkpoint.Folder.save))
        assert call_cifar(*hint, '--save', 'run', '--epochs', 2, cwd=tmp_path).status == 128 + signal.SIGINT
    first = checkpoint.read(tmp_path / 'run' / 'model.pt7')
    assert call_cifar(*hint, '--save', 'run', '--epochs', 2, '--resume', 'auto', cwd=tmp_path).status == 0
    whole, run = (checkpoint.read(tmp_path / name / 'model.pt7') for name in ('whole', 'run'))
    assert {name: tuple(t.shape) for name, t in run['adaptors'].items()} == {
        'adaptor:0': (8, 4, 1, 1), 'adaptor:1': (16, 8, 1, 1), 'adaptor:2': (32, 16, 1, 1)}
    for part in ('params', 'adaptors'):
        for name, t in run[part].items():
            assert torch.equal(t, whole[part][name]) and not torch.equal(t, first[part][name])
    assert not any('adaptor' in name for name in run['params'])
    record = log_of(tmp_path / 'run')[-1]
    assert len(record['hint_losses']) == 3
    assert record['n_parameters'] == sum(t.numel() for t in run['params'].values())

    for wrong in (None, {}, {'adaptor:0': 3}, run['adaptors'] | {'adaptor:0': torch.ones(9, 4, 1, 1)}):
        checkpoint.write(tmp_path / 'run' / 'model.pt7', run | {'adaptors': wrong})
        done = call_cifar(*hint, '--save', 'run', '--epochs', 3, '--resume', 'auto', cwd=tmp_path)
        assert done.status == 2 and len(done.errors) == 1 and 'lacks the adaptors' in done.errors[0]
    assert len(log_of(tmp_path / 'run')) == 2
    done = call_cifar(*SMALL, '--evaluate', '--student_params', 'run', cwd=tmp_path)
    assert done.status == 0 and f'error {100 - record["test_acc"]:.2f}' in done.out


def stop_after(save):
    def save_and_stop(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt
    return save_and_stop


def test_resume_auto_on_a_finished_run_does_nothing(home):
    before = listing(home)
    done = call_cifar(*SMALL, '--save', 'logs/teacher', '--epochs', 2, '--lr', 0.05, '--resume', 'auto',
                      cwd=home)
    assert (done.status, done.out) == (0, '')
    assert 'all 2 epochs are done' in done.err
    assert listing(home) == before


@pytest.mark.parametrize('lines', [0, 1])
def test_a_line_that_a_kill_left_out_of_the_log_is_added(home, tmp_path, lines):
    """Between the last checkpoint and its line of the log."""
    shutil.copytree(home / 'logs' / 'teacher', tmp_path / 'run')
    log = tmp_path / 'run' / 'log.txt'
    first, second = log.read_text().splitlines(keepends=True)
    log.write_text(first * lines)
    done = call_cifar(*SMALL, '--save', 'run', '--epochs', 2, '--lr', 0.05, '--resume', 'auto', cwd=tmp_path)
    assert done.status == 0 and log.read_text() == first * lines + second


# --- interruptions ---------------------------------------------------------------------------------------


def test_held_out_images_take_the_place_of_the_test_set(tmp_path, monkeypatch):
    """Errors of the log and of --evaluate are theirs, whatever the seed; no test image is looked at."""
    load = shapes.load
    monkeypatch.setattr(shapes, 'N_TRAIN', N_TRAIN)
    monkeypatch.setattr(shapes, 'load', lambda train, first=None: (
        load(train, first=first) if train else (np.zeros((0, 32, 32, 3), np.uint8), [])))
    command = [*SMALL, '--max_images', 120, '--val_images', 31]
    for seed in (1, 2):
        done = call_cifar(*command, '--save', f'run{seed}', '--epochs', 1, '--seed', seed, cwd=tmp_path)
        assert (done.status, done.err) == (0, '')
        record, = log_of(tmp_path / f'run{seed}')
        assert (record['val_images'], record['max_images']) == (31, 120)
        assert record['images_per_second'] * record['train_time'] == pytest.approx(89)
        images, labels = (torch.as_tensor(part) for part in load(True, first=120))
        held = data.held_out(labels, 31)
        f, params = resnet.load(tmp_path / f'run{seed}')
        with torch.no_grad():
            y = f(data.normalize(images[held]), params, False)[0]
        assert record['test_loss'] == pytest.approx(F.cross_entropy(y, labels[held]).item(), rel=1e-5)
        right = 100 * (y.argmax(1) == labels[held]).double().mean().item()
        assert record['test_acc'] == pytest.approx(right)
        done = call_cifar(*command, '--evaluate', '--save', f'run{seed}', cwd=tmp_path)
        assert f'test loss {record["test_loss"]:.4f} accuracy {right:.2f}' in done.out


@pytest.mark.parametrize(('of_teacher', 'noted'), [
    ([], True), (['--val_images', 20], True), (['--val_images', 31], False)])
def test_a_teacher_that_may_have_seen_the_held_out_images(tmp_path, of_teacher, noted):
    command = [*SMALL, '--epochs', 1]
    assert call_cifar(*command, *of_teacher, '--save', 'teacher', cwd=tmp_path).status == 0
    for more in (['--teacher_id', 'teacher', '--alpha', 0.9, '--save', 'student'],
                 ['--evaluate', '--student_params', 'teacher']):
        done = call_cifar(*command, '--val_images', 31, *more, cwd=tmp_path)
        assert (done.status, done.errors) == (0, [])
        assert done.err.count('\n') == done.err.count('held-out') == noted
    done = call_cifar(*command, '--teacher_id', 'teacher', '--alpha', 0.9, '--save', 'other', cwd=tmp_path)
    assert (done.status, done.err) == (0, '')


def test_signals_end_a_run_that_the_printed_command_goes_on_with(tmp_path, small):
    """SIGTERM, then the command that it printed, to which SIGINT comes."""
    arguments = [*SMALL, '--batch_size', '8', '--save', 'logs/a run', '--epochs', '1000', '--lr', '0.01']
    command = [sys.executable, str(ROOT / 'cifar.py'), *arguments]
    model, first = tmp_path / 'logs' / 'a run' / 'model.pt7', 1
    for sign, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        out, err, returned = started_and_stopped(command, sign, first + 1, tmp_path, small)
        assert out[0].startswith(f'epoch {first}/1000: ')
        assert returned == status
        message, = err.splitlines()
        stopped, path, held, command = re.fullmatch(
            r'stopped in epoch (\d+); (\S.*model\.pt7) holds epoch (\d+); resume with: (.*)',
            message).groups()
        assert tmp_path / path == model
        state = checkpoint.read(model)
        assert state['epoch'] == int(held) >= first + 1
        assert int(stopped) - int(held) in (0, 1)
        command = shlex.split(command)
        assert command == ['python', str(ROOT / 'cifar.py'), *arguments, '--resume', 'auto']
        first = state['epoch'] + 1
    epochs = [e['epoch'] for e in log_of(model.parent)]
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) >= first - 1 >= 4


def started_and_stopped(command, sign, epoch, cwd, small):
    """Start, wait for the line of `epoch` on stdout, send the signal: (lines of stdout, stderr, status)."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ.get("PATH", "")}'  # for `python`
    env = {**os.environ, 'PATH': path, 'PYTHONPATH': small, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(  # a shell's background job ignores SIGINT, and so would its children
        command, cwd=cwd, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    with process:
        guard = threading.Timer(200, process.kill)
        guard.start()
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith(f'epoch {epoch}/'):
                    break
            process.send_signal(sign)
            out, err = process.communicate()
        finally:
            guard.cancel()
            process.kill()
    print('$', shlex.join(command), *lines, out, err, sep='\n')
    return lines, err, process.returncode


def test_full_disk_while_saving(home, tmp_path):
    """A limit on the size of files that the log fits in and the checkpoint does not."""
    shutil.copytree(home / 'logs' / 'teacher', tmp_path / 'run')
    before = (tmp_path / 'run' / 'model.pt7').read_bytes()
    assert len(before) > 20_000
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard[1]))
    try:
        done = call_cifar(*SMALL, '--save', 'run', '--epochs', 4, '--resume', 'auto', '--lr', 0.05,
                          cwd=tmp_path)
        fresh = call_cifar(*SMALL, '--save', 'fresh', '--epochs', 1, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, hard)
    for result, epoch, then in ((done, 3, '--resume auto'), (fresh, 1, 'same command again')):
        assert result.status == 2 and len(result.errors) == 1
        assert f'could not save epoch {epoch}' in result.err and then in result.err
    assert (tmp_path / 'run' / 'model.pt7').read_bytes() == before
    assert 'model.pt7 holds epoch 2' in done.err and 'no checkpoint' in fresh.err
    assert not list(tmp_path.rglob('*.tmp'))
    again = call_cifar(*SMALL, '--save', 'run', '--epochs', 3, '--resume', 'auto', '--lr', 0.05, cwd=tmp_path)
    assert again.status == 0 and [e['epoch'] for e in log_of(tmp_path / 'run')] == [1, 2, 3]
    again = call_cifar(*SMALL, '--save', 'fresh', '--epochs', 1, cwd=tmp_path)
    assert again.status == 0 and [e['epoch'] for e in log_of(tmp_path / 'fresh')] == [1]


def test_divergence(home, tmp_path):
    done = call_cifar(*SMALL, '--save', 'new', '--lr', 1e30, '--epochs', 3, cwd=tmp_path)
    assert done.status == 1 and len(done.errors) == 1
    assert 'epoch 1' in done.err and 'no checkpoint' in done.err and '--lr' in done.err
    assert os.listdir(tmp_path / 'new') == ['.lock']
    shutil.copytree(home / 'logs' / 'teacher', tmp_path / 'run')
    before = listing(tmp_path / 'run')
    done = call_cifar(*SMALL, '--save', 'run', '--lr', 1e30, '--epochs', 5, '--resume', 'auto', cwd=tmp_path)
    assert done.status == 1 and len(done.errors) == 1
    assert 'epoch 3' in done.err and 'model.pt7 holds epoch 2' in done.err
    assert listing(tmp_path / 'run') == before
    done = call_cifar(*SMALL, '--save', 'run', '--epochs', 3, '--lr', 0.05, '--resume', 'auto', cwd=tmp_path)
    assert done.status == 0 and [e['epoch'] for e in log_of(tmp_path / 'run')] == [1, 2, 3]


def test_divergence_names_what_is_on(home, tmp_path):
    """Of a run that the temperature made diverge, the learning rate is not to blame."""
    command = [*SMALL, '--teacher_id', home / 'logs' / 'teacher', '--epochs', 1]
    done = call_cifar(*command, '--alpha', 0.9, '--temperature', 1e-40, '--save', 'kd', cwd=tmp_path)
    assert done.status == 1 and '--alpha' in done.err and '--temperature' in done.err
    assert '--beta' not in done.err
    done = call_cifar(*command, '--beta', 1e38, '--save', 'at', cwd=tmp_path)
    assert done.status == 1 and '--beta' in done.err and '--temperature' not in done.err


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def mess(home, tmp_path_factory) -> Path:
    """A folder of things that are no teachers."""
    folder = tmp_path_factory.mktemp('mess')
    run, logs = home / 'logs' / 'teacher', folder / 'logs'
    for name in ('teacher', 'nolog', 'noweights', 'truncated', 'foreign', 'pickled', 'cifar',
                 'onlylog', 'hundred'):
        shutil.copytree(run, logs / name)
    (logs / 'nolog' / 'log.txt').unlink()
    for name in ('noweights', 'onlylog'):
        (logs / name / 'model.pt7').unlink()
    whole = (run / 'model.pt7').read_bytes()
    (logs / 'truncated' / 'model.pt7').write_bytes(whole[:len(whole) // 2])
    state = checkpoint.read(run / 'model.pt7')
    torch.save(state | {'payload': Payload(folder / 'mark')}, logs / 'foreign' / 'model.pt7')
    (logs / 'pickled' / 'model.pt7').write_bytes(pickle.dumps(Payload(folder / 'mark')))
    log = (run / 'log.txt').read_text()
    (logs / 'cifar' / 'log.txt').write_text(log.replace('"shapes"', '"CIFAR10"'))
    _, hundred = resnet.wide_resnet(10, 0.25, 100)
    checkpoint.write(logs / 'hundred' / 'model.pt7', {'params': hundred, 'epoch': 1})
    state['options']['dataset'] = 'CIFAR10'
    checkpoint.write(folder / 'of_cifar.pt7', state)
    params = state['params']
    for name, content in {
            'list': [1, 2], 'number': 3, 'empty': {}, 'numbered': {0: torch.ones(2)},
            'one': {'w': torch.ones(2)},
            'four_groups': resnet.resnet(18, 0.125, 10)[1],
            'lacking': {k: t for k, t in params.items() if k != 'bn.bias'},
            'bent': params | {'bn.bias': torch.ones(3)}, 'more': params | {'extra': torch.ones(1)},
            'scalar': params | {'fc.weight': torch.tensor(1.0)}}.items():
        checkpoint.write(folder / f'{name}.pt7', content)
    (folder / 'file').write_text('a regular file')
    (folder / 'no_data').mkdir()
    return folder


AT, NEW = ['--beta', '1e3'], ['--save', 'new']


@pytest.mark.parametrize(('more', 'word'), [
    (['--depth', 17], '6n + 4'), (['--teacher_id', 'x', *AT], 'logs/x')])
def test_mistakes_are_told_before_data_are_downloaded(more, word, tmp_path, monkeypatch):
    def load(*_):
        raise utils.InputError('data first')

    monkeypatch.setattr(cifar.data, 'load', load)
    done = call_cifar(*NEW, *more, cwd=tmp_path)
    assert done.status == 2 and word in done.err

MISTAKES = {
    # what is given, and a word that the sentence has
    'unknown option': ([*NEW, '--learning_rate', '1'], '--learning_rate'),
    'abbreviation': ([*NEW, '--epoch', '1'], '--epoch'),
    'abbreviation of a flag': ([*NEW, '--eval'], '--eval'),
    'value too many': ([*NEW, 'shapes'], 'shapes'),
    'value missing': (['--save'], '--save'),
    'depth 17': ([*NEW, '--depth', '17'], '6n + 4'),
    'depth 4': ([*NEW, '--depth', '4'], '6n + 4'),
    'width 0.01': ([*NEW, '--width', '0.01'], 'width'),
    'width nan': ([*NEW, '--width', 'nan'], '--width'),
    'beta without a teacher': ([*NEW, *AT], '--teacher_id'),
    'alpha without a teacher': ([*NEW, '--alpha', '0.9'], '--teacher_id'),
    'teacher without a loss': ([*NEW, '--teacher_id', 'teacher'], '--beta'),
    'beta_decay without beta': ([*NEW, '--teacher_id', 'teacher', '--alpha', '1', '--beta_decay', 'cosine'],
                                '--beta_decay'),
    'temperature without alpha': ([*NEW, '--teacher_id', 'teacher', *AT, '--temperature', '2'], '--alpha'),
    'map without beta': ([*NEW, '--map', 'max'], '--beta'),
    'alpha above 1': ([*NEW, '--teacher_id', 'teacher', '--alpha', '1.5'], '--alpha'),
    'negative beta': ([*NEW, '--teacher_id', 'teacher', '--beta', '-1'], '--beta'),
    'group 3': ([*NEW, '--teacher_id', 'teacher', *AT, '--at_groups', '[0,3]'], '--at_groups'),
    'no group': ([*NEW, '--teacher_id', 'teacher', *AT, '--at_groups', '[]'], '--at_groups'),
    'no save': ([], '--save'),
    'epoch_step of words': ([*NEW, '--epoch_step', 'nonsense'], '--epoch_step'),
    'epoch_step of fractions': ([*NEW, '--epoch_step', '[60.5]'], '--epoch_step'),
    'epoch_step cut short': ([*NEW, '--epoch_step', '[60,120'], '--epoch_step'),
    'epoch_step twice the same': ([*NEW, '--epoch_step', '[60,60]'], '--epoch_step'),
    'no epochs': ([*NEW, '--epochs', '0'], '--epochs'),
    'no batch': ([*NEW, '--batch_size', '0'], '--batch_size'),
    'huge seed': ([*NEW, '--seed', '99999999999999999999'], 'seed'),
    'huge batch': ([*NEW, '--batch_size', '99999999999999999999'], 'batch_size'),
    'unknown schedule': ([*NEW, '--lr_schedule', 'cyclic'], 'cyclic'),
    'warm-up as long as the run': ([*NEW, '--warmup', '1'], '--warmup 1'),
    'all images held out': ([*NEW, '--val_images', str(N_TRAIN)], f'--val_images {N_TRAIN} '),
    'fewer images held out than classes': ([*NEW, '--val_images', '9'], '--val_images 9 '),
    'more images held out than taken': ([*NEW, '--max_images', '40', '--val_images', '41'],
                                        '--val_images 41'),
    'held out of a finished run': (['--save', 'logs/teacher', '--resume', 'auto', '--epochs', '3',
                                    '--val_images', '1000'], 'val_images'),
    'infinite lr': ([*NEW, '--lr', 'inf'], '--lr'),
    'wide border': ([*NEW, '--randomcrop_pad', '32'], '--randomcrop_pad'),
    'unknown data set': ([*NEW, '--dataset', 'MNIST'], 'MNIST'),
    'half on a CPU': ([*NEW, '--dtype', 'half'], '--dtype half'),
    'gpu without CUDA': ([*NEW, '--gpu_id', '7', '--device', 'cuda'], 'CUDA'),
    'two GPUs': ([*NEW, '--gpu_id', '0,1'], '--gpu_id'),
    'ngpu 2': ([*NEW, '--ngpu', '2', '--gpu_id', '1'], '--gpu_id names 1 devices'),
    'no such teacher': ([*NEW, '--teacher_id', 'nobody', *AT], 'logs/nobody'),
    'teacher is an empty folder': ([*NEW, '--teacher_id', 'no_data', *AT], 'log.txt'),
    'teacher without a log': ([*NEW, '--teacher_id', 'nolog', *AT], 'log.txt'),
    'teacher without weights': ([*NEW, '--teacher_id', 'noweights', *AT], 'model.pt7'),
    'truncated teacher': ([*NEW, '--teacher_id', 'truncated', *AT], 'truncated'),
    'foreign teacher': ([*NEW, '--teacher_id', 'foreign', *AT], 'run code'),
    'pickled teacher': ([*NEW, '--teacher_id', 'pickled', *AT], 'run code'),
    'teacher of another data set': ([*NEW, '--teacher_id', 'cifar', *AT], 'CIFAR10'),
    'file in a run of another data set': ([*NEW, '--teacher_id', 'logs/cifar/model.pt7', *AT], 'CIFAR10'),
    'file of another data set': ([*NEW, '--teacher_id', 'of_cifar.pt7', *AT], 'CIFAR10'),
    'teacher of 100 classes': ([*NEW, '--teacher_id', 'hundred', *AT], '100 classes'),
    'file of 100 classes': ([*NEW, '--teacher_id', 'logs/hundred/model.pt7', *AT], '100 classes'),
    'teacher is a text': ([*NEW, '--teacher_id', 'file', *AT], 'file'),
    **{f'teacher file: {name}': ([*NEW, '--teacher_id', f'{name}.pt7', *AT], f'{name}.pt7') for name in
       ('list', 'number', 'empty', 'numbered', 'one', 'lacking', 'bent', 'more', 'scalar')},
    'teacher of four groups': ([*NEW, '--teacher_id', 'four_groups.pt7', *AT], '4 groups to compare'),
    'teacher of four groups, F-ActT': ([*NEW, '--teacher_id', 'four_groups.pt7', '--hint_beta', '1'],
                                       'leave out --hint_beta'),
    'gradients compiled': ([*NEW, '--sym_beta', '1', '--compile'], '--compile'),
    'resume as a NIN': (['--save', 'logs/teacher', '--resume', 'auto', '--model', 'nin', '--depth', '9',
                         '--width', '8'], "model 'wrn', not 'nin'"),
    'save holds a run': (['--save', 'logs/teacher'], '--resume auto'),
    'save holds a log': (['--save', 'logs/onlylog'], '--resume auto'),
    'save is a file': (['--save', 'file'], '--save file'),
    'save below a file': (['--save', 'file/run'], '--save file/run'),
    'save far below a file': (['--save', 'file/a/run'], '--save file/a/run'),
    'no data': ([*NEW, '--dataset', 'CIFAR10', '--dataroot', 'no_data'], 'dataroot'),
    'no data, no folder': ([*NEW, '--dataset', 'CIFAR100', '--dataroot', 'absent/far'], 'dataroot'),
    'evaluate nothing': (['--evaluate'], '--student_params'),
    'evaluate auto': (['--evaluate', '--resume', 'auto'], '--student_params'),
    'evaluate no run': (['--evaluate', '--save', 'nowhere'], 'nowhere'),
    'evaluate without weights': (['--evaluate', '--save', 'logs/noweights'], 'model.pt7'),
    'evaluate truncated': (['--evaluate', '--resume', 'logs/truncated/model.pt7'], 'truncated'),
    'evaluate with a teacher': (['--evaluate', '--save', 'logs/teacher', '--teacher_id', 'x', *AT],
                                '--evaluate'),
    'resume from nothing': ([*NEW, '--resume', 'nowhere.pt7'], 'nowhere.pt7'),
    'resume from weights': ([*NEW, '--resume', 'logs/hundred'], 'can teach'),
    'resume from a foreign file': ([*NEW, '--resume', 'logs/foreign'], 'run code'),
    'resume over another run': (['--save', 'logs/onlylog', '--resume', 'logs/teacher'], 'holds a run'),
    'resume deeper': (['--save', 'logs/teacher', '--resume', 'auto', '--depth', '16'], 'depth 10, not 16'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_gives_one_sentence_and_changes_nothing(mess, monkeypatch, name):
    arguments, word = MISTAKES[name]
    no_network(monkeypatch)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    before = listing(mess)
    try:
        done = call_cifar(*SMALL, '--epochs', 1, *arguments, cwd=mess)
        after = listing(mess)
    finally:
        shutil.rmtree(mess / 'new', ignore_errors=True)  # for the next mistake
    assert done.status == 2 and len(done.errors) == 1, done.err
    assert all(line.endswith('parameters') for line in done.out.splitlines())  # what was read
    assert done.errors[0].startswith('cifar.py: error: ') and word in done.errors[0]
    assert after == before


def no_network(monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError('no network here')
    monkeypatch.setattr(urllib.request, 'urlopen', fail)


@pytest.mark.parametrize('name', ['abbreviation', 'pickled teacher', 'no data'])
def test_a_mistake_at_the_command_line(mess, run_script, small, name):
    arguments, word = MISTAKES[name]
    before = listing(mess)
    proxy = 'http://127.0.0.1:9'  # where nobody listens
    done = run_script('cifar.py', *SMALL, *arguments, cwd=mess, PYTHONPATH=small, PYTHONDONTWRITEBYTECODE='1',
                      https_proxy=proxy, http_proxy=proxy, no_proxy='')
    assert (done.returncode, done.stdout) == (2, '')
    line, = done.stderr.splitlines()
    assert line.startswith('cifar.py: error: ') and word in line
    assert listing(mess) == before


def test_notes_are_no_errors(home, tmp_path):
    shutil.copytree(home / 'logs' / 'teacher', tmp_path / 'run')
    done = call_cifar(*SMALL, '--save', 'run', '--resume', 'auto', '--epochs', 3, '--lr', 0.01, '--nthread',
                      2, cwd=tmp_path)
    assert done.status == 0 and done.errors == []
    assert sorted(line.split(' (')[0] for line in done.err.splitlines()) == sorted([
        'note: --nthread has no effect here: the images are in memory',
        'note: the run resumes with --epochs 3; it began with 2',
        'note: the run resumes with --lr 0.01; it began with 0.05'])


def test_help_shows_every_option_and_default(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit) as end:
        cifar.parse(['--help'])
    assert end.value.code == 0
    text, err = capsys.readouterr()
    assert err == ''
    for name in vars(cifar.parse(['--save', 'x'])):
        assert f'--{name}' in text
    assert '(default: [60, 120, 160])' in text and '(default: 4.0)' in text


@pytest.mark.parametrize('text', ['[60,120,160]', '60,120,160', ' [60, 120, 160] '])
def test_published_command_lines_are_understood(text):
    opt = cifar.parse(['--save', 'x', '--epoch_step', text, '--gpu_id', '1', '--cuda',
                       '--width', '2'])
    assert (opt.epoch_step, opt.gpu_id, opt.device, opt.width) == ([60, 120, 160], [1], 'cuda', 2.0)
