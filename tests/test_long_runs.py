"""Long runs are looked after: time left, --max_hours, TensorBoard, the same bits in every run."""
import errno
import os
import re
import shlex
import time

import pytest
import torch

import cifar
import training
from helpers import SMALL, THREADS, call_cifar, log_of, run_ranks
from training import checkpoint, exits, progress


@pytest.fixture
def clock(monkeypatch):
    """Time as the list's only number says."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_pace(clock):
    """Epochs of 100, 40 and 70 seconds: 70 on average, 100 at most."""
    pace = progress.Pace()
    for seconds, left, up_at in ((100, 500, 200), (40, 350, 240), (70, 350, 310)):
        clock[0] += seconds
        pace.add()
        assert pace.seconds(5) == pytest.approx(left)
        assert pace.is_up((up_at - 1) / 3600) and not pace.is_up((up_at + 1) / 3600)
        assert pace.seconds(0) == 0


def slow(monkeypatch, seconds):
    """Each epoch seems to take that long."""
    add = progress.Pace.add

    def add_later(self):
        self.begun -= seconds
        self.first -= seconds
        self.last -= seconds
        add(self)
    monkeypatch.setattr(progress.Pace, 'add', add_later)


def test_max_hours(tmp_path, monkeypatch):
    """A run of 4 epochs in 3 sittings, of 1.2 hours each: the bits of one that was never stopped."""
    command = [*SMALL, '--epochs', 4, '--epoch_step', '[3]']
    assert call_cifar(*command, '--save', 'whole', cwd=tmp_path).status == 0
    slow(monkeypatch, 1800)
    more = ['--save', 'run', '--max_hours', '1.2']
    done = call_cifar(*command, *more, cwd=tmp_path)
    assert done.status == os.EX_TEMPFAIL == 75
    words = shlex.join(map(str, [*command, *more, '--resume', 'auto']))
    assert done.err == ('cifar.py: stopped after epoch 2 of 4, because another epoch might not end within '
                        f'--max_hours 1.2; resume with: python cifar.py {words}\n')
    first, second = done.out.splitlines()  # half an hour for each epoch, and what they really took
    assert re.search(r', 1:3\d:\d\d left$', first) and re.search(r', 1:[01]\d:\d\d left$', second)
    assert [e['epoch'] for e in log_of(tmp_path / 'run')] == [1, 2]
    done = call_cifar(*command, '--save', 'run', '--max_hours', 0.001, '--resume', 'auto', cwd=tmp_path)
    assert done.status == 75 and len(done.err.splitlines()) == 1  # no note of another option
    assert [e['epoch'] for e in log_of(tmp_path / 'run')] == [1, 2, 3]  # an epoch is done each time
    done = call_cifar(*command, *more, '--resume', 'auto', cwd=tmp_path)
    assert (done.status, done.err) == (0, '') and 'left' not in done.out
    whole, run = (checkpoint.read(tmp_path / name / 'model.pt7')['params'] for name in ('whole', 'run'))
    assert all(torch.equal(t, run[name]) for name, t in whole.items())


def test_max_hours_count_from_the_start_of_the_script(tmp_path, monkeypatch):
    """The data take an hour; the estimate of the time left does not count it."""
    now, late, load = time.monotonic, [0], cifar.load

    def load_slowly(*arguments):
        late[0] += 3600
        return load(*arguments)
    monkeypatch.setattr(time, 'monotonic', lambda: now() + late[0])
    monkeypatch.setattr(cifar, 'load', load_slowly)
    for hours, epochs in ((0.5, 1), (1.5, 2)):
        late[0] = 0
        done = call_cifar(*SMALL, '--epochs', 2, '--save', f'run{epochs}', '--max_hours', hours, cwd=tmp_path)
        assert done.status == (0 if epochs == 2 else 75) and '00:0' in done.out.splitlines()[0]
        assert len(log_of(tmp_path / f'run{epochs}')) == epochs


def test_torchrun_does_not_begin_anew_what_max_hours_ended(tmp_path, monkeypatch):
    slow(monkeypatch, 1800)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'a')
    done = call_cifar(*SMALL, '--epochs', 3, '--save', 'run', '--max_hours', 0.6, cwd=tmp_path)
    assert done.status == 0 and 'stopped after epoch 1 of 3' in done.err


@pytest.mark.ranks
def test_ranks_stop_together(tmp_path):
    command = [*SMALL, '--epochs', 3, '--max_hours', 1e-6, '--ngpu', 2]
    done = run_ranks(2, *command, '--save', 'run', folder=tmp_path, status=75)
    assert done.err.count('stopped after epoch 1') == 1
    done = run_ranks(2, *command, '--save', 'b', folder=tmp_path, TORCHELASTIC_RUN_ID='a')
    assert done.err.count('stopped after epoch 1') == 1
    assert [e['epoch'] for e in log_of(tmp_path / 'run')] == [1]


def test_time_left_in_a_run(tmp_path):
    done = call_cifar(*SMALL, '--epochs', 2, '--save', 'run', cwd=tmp_path)
    first, last = done.out.splitlines()
    assert re.search(r' images/s, 00:0\d left$', first) and last.endswith(' images/s')


# --- TensorBoard ------------------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    """What TensorBoard's own reader finds is what the log says, once an epoch, when a run goes on, too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    command = [*SMALL, '--sym_beta', 0.1, '--save', 'run', '--tensorboard', '--lr', 0.01]
    for more in (['--epochs', 2], ['--epochs', 3, '--resume', 'auto']):
        done = call_cifar(*command, *more, cwd=tmp_path)
        assert done.status == 0 and not done.errors
    events = EventAccumulator(str(tmp_path / 'run'))
    events.Reload()
    log = log_of(tmp_path / 'run')
    values = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}
    for name in ('train_loss', 'test_acc', 'images_per_second', 'peak_memory'):
        assert values[name] == [(e['epoch'], pytest.approx(e[name])) for e in log], name
    assert values['sym_losses/0'] == [(e['epoch'], pytest.approx(e['sym_losses'][0][0])) for e in log]
    assert 'epoch' not in values and len(log) == 3


def test_a_killed_epoch_is_not_drawn_twice(tmp_path):
    """Events after the last checkpoint are of a run that was killed before it saved."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
    call_cifar(*SMALL, '--save', 'run', '--epochs', 1, cwd=tmp_path)
    with SummaryWriter(tmp_path / 'run') as writer:
        writer.add_scalar('train_loss', 77.0, 2)
    assert call_cifar(*SMALL, '--save', 'run', '--epochs', 2, '--resume', 'auto', '--tensorboard',
                      cwd=tmp_path).status == 0
    events = EventAccumulator(str(tmp_path / 'run'))
    events.Reload()
    assert [e.value for e in events.Scalars('train_loss')] == [
        pytest.approx(log_of(tmp_path / 'run')[1]['train_loss'])]


def test_a_disk_that_is_full_ends_the_drawing_alone(tmp_path, monkeypatch):
    """TensorBoard's file cannot be written from its second epoch on; its thread hears of it first."""
    from tensorboard.summary.writer.record_writer import RecordWriter
    write, written = RecordWriter.write, []

    def full(self, data):
        written.append(data)
        if len(written) > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)
    monkeypatch.setattr(RecordWriter, 'write', full)
    done = call_cifar(*SMALL, '--epochs', 4, '--save', 'run', '--tensorboard', cwd=tmp_path)
    note = 'note: --tensorboard draws nothing more (No space left on device)\n'
    assert (done.status, done.err) == (0, note)
    assert [e['epoch'] for e in log_of(tmp_path / 'run')] == [1, 2, 3, 4] and len(written) == 31
    monkeypatch.setattr(RecordWriter, 'write', write)
    monkeypatch.setattr(RecordWriter, 'flush', lambda self: full(self, b''))  # from the beginning
    done = call_cifar(*SMALL, '--epochs', 2, '--save', 'other', '--tensorboard', cwd=tmp_path)
    assert (done.status, done.err.count('note: --tensorboard')) == (0, 1)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    done = call_cifar(*SMALL, '--save', 'run', '--tensorboard', cwd=tmp_path)
    assert done.status == 2 and done.err == (
        'cifar.py: error: --tensorboard needs a package that is not installed: pip install tensorboard\n')
    assert not (tmp_path / 'run').exists()


# --- the same bits -----------------------------------------------------------------------------------------


@pytest.fixture
def as_before():
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(THREADS)


ALL_LOSSES = ['--teacher_id', 'teacher', '--beta', 1e3, '--alpha', 0.5, '--hint_beta', 10, '--grad_beta', 1,
              '--sym_beta', 0.5, '--l2_beta', 0.1]


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_deterministic(tmp_path, monkeypatch, as_before, device):
    """Two runs of every loss have the same bits; on a CPU those of a run without the option, too."""
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    command = [*SMALL, '--lr', 0.01, '--epochs', 1, '--device', device]
    torch.set_num_threads(2)  # which share sums
    assert call_cifar(*command, '--save', 'teacher', cwd=tmp_path).status == 0
    bits = []
    for name, more in (('a', ['--deterministic']), ('b', ['--deterministic']), ('plain', [])):
        done = call_cifar(*command, *ALL_LOSSES, '--save', name, *more, cwd=tmp_path)
        assert (done.status, done.err) == (0, '')
        assert torch.are_deterministic_algorithms_enabled() == bool(more)
        bits.append(checkpoint.read(tmp_path / name / 'model.pt7')['params'])
    pairs = [bits[:2]] + [bits[1:]] * (device == 'cpu')
    assert all(torch.equal(t, b[name]) for a, b in pairs for name, t in a.items())
    assert log_of(tmp_path / 'a')[0]['deterministic'] is True


def test_what_cannot_be_deterministic_is_told(tmp_path, monkeypatch, as_before):
    """By the error that torch itself raises, of an operation that has no deterministic form on any device."""
    def evaluate(*_):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    monkeypatch.setattr(training.run, 'evaluate', evaluate)
    done = call_cifar(*SMALL, '--save', 'run', '--deterministic', cwd=tmp_path)
    assert done.status == 2 and done.err == (
        'cifar.py: error: put_ does not have a deterministic implementation: leave out --deterministic\n')


def test_device_name():
    name = exits.device_name(torch.device('cpu'))
    assert re.fullmatch(r'.{5,} \([A-Z0-9 ]+\), \d+ threads', name) and '\n' not in name
