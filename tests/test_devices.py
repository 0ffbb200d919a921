"""Ranks: several gloo processes on a CPU train and evaluate as one process does."""
import contextlib
import datetime
import fnmatch
import functools
import os
import platform
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import cifar
import helpers
import layers
import resnet
from helpers import N_TEST, N_TRAIN, ROOT, SMALL, log_of, ranks_of, run_ranks, start_ranks
from inputs import cifar as data
from inputs import shapes
from training import checkpoint, devices, exits
from utils import InputError


def most(a, b):
    """The largest difference of an element of two dictionaries of tensors."""
    assert a.keys() == b.keys()
    return max((t - b[name]).abs().max().item() for name, t in a.items())


def row(ranks, deviation, of_move, loss):
    """Of the table that `make test-distributed` prints."""
    return {'ranks': ranks, 'largest deviation of a weight': f'{deviation:.1e}',
            'as part of the largest move': f'{of_move:.1e}',
            "of an epoch's loss, relative": '' if loss is None else f'{loss:.1e}'}


@pytest.mark.ranks
def test_ranks_train_as_one_process(tmp_path, record_property):
    """192 images in batches of 55, 55, 55 and 27, 12 steps; evaluation of 100: not divisible by 3 either.

    A fifth run has another number of ranks in each of its three epochs.
    """
    _, teacher = resnet.wide_resnet(10, 0.25, 10)
    torch.save(teacher, tmp_path / 'teacher.pth')
    command = [*SMALL, '--lr', 1e-3, '--batch_size', 55, '--teacher_id', 'teacher.pth', '--beta', '1e3',
               '--alpha', '0.5', '--resume', 'auto']
    runs = {'one process': [0], '1': [1], '2': [2], '3': [3], '4': [4], '2, then 3, then 1': [2, 3, 1]}
    for name, numbers in runs.items():
        for epochs, n in zip([3] if len(numbers) == 1 else [1, 2, 3], numbers, strict=True):
            run_ranks(n, *command, '--epochs', epochs, '--ngpu', n or 1, '--save', name, folder=tmp_path,
                      fixed_bn=True)
        assert sorted(os.listdir(tmp_path / name)) == ['.lock', 'log.txt', 'model.pt7']
    logs = {name: log_of(tmp_path / name) for name in runs}
    params = {name: checkpoint.read(tmp_path / name / 'model.pt7')['params'] for name in runs}
    one_log, one = logs.pop('one process'), params.pop('one process')
    torch.manual_seed(1)
    moved = most(one, resnet.wide_resnet(10, 0.25, 10)[1])
    assert one_log[-1]['train_loss'] < 0.98 * one_log[0]['train_loss'] and moved > 1e-3  # it has learned
    for name, log in logs.items():
        expected = runs[name] if len(runs[name]) == 3 else runs[name] * 3
        assert [e['ranks'] for e in log] == expected and {e['ranks'] for e in one_log} == {1}
        deviation = most(params[name], one)
        loss = max(abs(a[key] / b[key] - 1) for a, b in zip(log, one_log, strict=True)
                   for key in ('train_loss', 'test_loss'))
        record_property('row', row(name, deviation, deviation / moved, loss))
        assert deviation < 1e-5 and deviation < 1e-3 * moved and loss < 1e-5
        for a, b in zip(log, one_log, strict=True):
            assert [m for m, _ in a['at_losses']] == pytest.approx([m for m, _ in b['at_losses']], rel=1e-4)
            assert (a['train_acc'], a['test_acc']) == (b['train_acc'], b['test_acc'])


@pytest.mark.ranks
def test_bn_takes_the_images_of_a_rank(tmp_path, record_property):
    """BN as usual, 12 steps of 3 ranks, beside one process that computes the parts in turn.

    The gradient is the mean over all images; the statistics that are kept are those of rank 0.
    """
    run_ranks(3, *SMALL, '--epochs', 3, '--lr', 1e-3, '--batch_size', 55, '--ngpu', 3, '--save', 'run',
              folder=tmp_path)
    saved = checkpoint.read(tmp_path / 'run' / 'model.pt7')['params']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, 'N_TRAIN', N_TRAIN)
        patch.setattr(shapes, 'N_TEST', N_TEST)
        split, test = data.load('shapes', '', torch.device('cpu'))
    opt = cifar.parse([*SMALL, '--save', 'unused'])
    torch.manual_seed(opt.seed)
    f, params = resnet.wide_resnet(10, 0.25, 10)
    initial = {name: t.clone() for name, t in params.items()}
    trained = list(layers.trainable(params).values())
    momenta = [torch.zeros_like(t) for t in trained]
    loaders = [data.Loader(split, 55, opt.seed, opt.randomcrop_pad, rank, 3) for rank in range(3)]
    for epoch in (1, 2, 3):
        for loader in loaders:
            loader.epoch = epoch
        for parts in zip(*loaders, strict=True):
            loss = 0
            for rank, part in enumerate(parts):
                with contextlib.ExitStack() as stack:
                    if rank:
                        stack.enter_context(layers.statistics_aside(params))
                    y, _ = f(part.x, params, True)
                loss = loss + F.cross_entropy(y, part.labels, reduction='sum')
            gradients = torch.autograd.grad(loss / sum(len(part.labels) for part in parts), trained)
            with torch.no_grad():
                for t, m, g in zip(trained, momenta, gradients, strict=True):
                    m.mul_(0.9).add_(g + opt.weight_decay * t)
                    t.sub_(1e-3 * m)
    with torch.no_grad():
        y, _ = f(data.normalize(test.images), saved, False)
    told = log_of(tmp_path / 'run')[-1]['test_loss']
    assert told == pytest.approx(F.cross_entropy(y, test.labels).item(), rel=1e-5)  # by all ranks
    params = {name: t.detach() for name, t in params.items()}
    deviation, moved = most(saved, params), most(params, initial)
    record_property('row', row('3, BN of each rank, by hand', deviation, deviation / moved, None))
    assert deviation < 1e-5 and deviation < 1e-3 * moved


@pytest.mark.ranks
def test_ranks_learn_activations_and_gradients_as_one_process(tmp_path):
    """Adaptors are trained by all ranks; gradients of gradients pass through a rank's own images only."""
    _, teacher = resnet.wide_resnet(10, 0.5, 10)
    torch.save(teacher, tmp_path / 'teacher.pth')
    states = []
    for n in (1, 2):
        run_ranks(n, *SMALL, '--epochs', 1, '--lr', 1e-3, '--batch_size', 55, '--teacher_id', 'teacher.pth',
                  '--hint_beta', 100, '--grad_beta', 1, '--sym_beta', 0.5, '--l2_beta', 0.1, '--ngpu', n,
                  '--save', n, folder=tmp_path, fixed_bn=True)
        states.append(checkpoint.read(tmp_path / str(n) / 'model.pt7'))
    one, two = states
    assert list(one['adaptors']) == ['adaptor:0', 'adaptor:1', 'adaptor:2']
    for part in ('params', 'adaptors'):
        for name, t in one[part].items():
            torch.testing.assert_close(two[part][name], t, rtol=1e-5, atol=1e-5)
    logs = [log_of(tmp_path / n)[0] for n in '12']
    for term in ('hint_losses', 'grad_losses', 'sym_losses', 'l2_losses'):
        means = [[mean for mean, _ in log[term]] for log in logs]
        assert means[1] == pytest.approx(means[0], rel=1e-4) and all(means[0])


@pytest.mark.ranks
def test_ranks_follow_a_schedule_by_batches_as_one_process(tmp_path):
    """With its learning rates, and the likeness of student and teacher on 31 held-out images."""
    torch.manual_seed(1)  # the student's: a teacher of other weights would agree on every image, or on none
    _, teacher = resnet.wide_resnet(10, 0.25, 10)
    torch.save({name: t + 0.2 * t.std() * torch.randn_like(t) if t.dim() > 1 else t
                for name, t in teacher.items()}, tmp_path / 'teacher.pth')
    for n in (1, 2):
        run_ranks(n, *SMALL, '--epoch_step', '[60,120,160]', '--lr_schedule', 'linear', '--warmup', 0.5,
                  '--lr', 1e-3, '--epochs', 2, '--batch_size', 55, '--teacher_id', 'teacher.pth', '--beta',
                  100, '--val_images', 31, '--ngpu', n, '--save', n, folder=tmp_path, fixed_bn=True)
    one, two = (log_of(tmp_path / n) for n in '12')
    for a, b in zip(one, two, strict=True):
        assert a['lr_epoch'] == b['lr_epoch'] and b['ranks'] == 2
        assert b['train_loss'] == pytest.approx(a['train_loss'], rel=1e-5)
        assert b['test_agreement'] == pytest.approx(a['test_agreement'], rel=1e-6)
        assert b['test_map_cosines'] == pytest.approx(a['test_map_cosines'], rel=1e-5)
    assert [e['lr_epoch'] for e in one] == [pytest.approx([0, 1e-3 / 1.5]), pytest.approx([1e-3 / 1.5, 0])]
    assert 0 < one[0]['test_agreement'] < 100 and len(one[0]['test_map_cosines']) == 3
    params = [checkpoint.read(tmp_path / n / 'model.pt7')['params'] for n in '12']
    assert most(*params) < 1e-5


@pytest.mark.ranks
def test_a_run_of_two_ranks_goes_on_with_one(tmp_path):
    """BN as usual: the saved statistics, of rank 0, are what all ranks evaluate by."""
    command = [*SMALL, '--save', 'run', '--resume', 'auto']
    run_ranks(2, *command, '--epochs', 2, '--ngpu', 2, folder=tmp_path)
    run_ranks(1, *command, '--epochs', 3, folder=tmp_path)
    log = log_of(tmp_path / 'run')
    assert [(e['epoch'], e['ranks'], e['ngpu']) for e in log] == [(1, 2, 2), (2, 2, 2), (3, 1, 1)]
    outputs = [run_ranks(n, *SMALL, '--evaluate', '--student_params', 'run', '--ngpu', n, folder=tmp_path).out
               for n in (1, 2, 3)]
    assert outputs[0] == outputs[1] == outputs[2]
    assert f'test loss {log[2]["test_loss"]:.4f} accuracy {log[2]["test_acc"]:.2f}' in outputs[0]


@pytest.mark.ranks
def test_machines_without_the_folder_of_rank_0(tmp_path):
    """Two ranks, each in a folder of its own: the run goes on from what the first has saved."""
    whole, run_ = tmp_path / 'whole', tmp_path / 'run'
    for folder in (whole / 'machine0', whole / 'machine1', run_ / 'machine0', run_ / 'machine1'):
        folder.mkdir(parents=True)
    command = [*SMALL, '--save', 'run', '--resume', 'auto', '--ngpu', 2]
    run_ranks(2, *command, '--epochs', 2, '--epoch_step', '[5]', folder=whole)
    for epochs in (1, 2):
        run_ranks(2, *command, '--epochs', epochs, '--epoch_step', '[5]', folder=run_)
        assert os.listdir(run_ / 'machine1') == []
    assert [e['epoch'] for e in log_of(run_ / 'machine0' / 'run')] == [1, 2]
    a, b = (checkpoint.read(f / 'machine0' / 'run' / 'model.pt7')['params'] for f in (whole, run_))
    assert all(torch.equal(t, b[name]) for name, t in a.items())


def download(rank, folder):
    """Of two machines with two ranks each."""
    os.environ['LOCAL_RANK'] = str(rank % 2)
    dist.init_process_group('gloo')
    with devices.first_rank_first():
        for what in ('begins', 'ends'):
            with open(folder / 'order', 'a') as f:
                f.write(f'{rank} {what}\n')
            time.sleep(0.2)
    dist.barrier()
    time.sleep(0.2)  # as in devices.start
    dist.destroy_process_group()


@pytest.mark.ranks
def test_the_first_rank_of_a_machine_goes_first(tmp_path):
    for each in start_ranks(4, download, tmp_path):
        each.join(60)
        assert each.exitcode == 0
    lines = (tmp_path / 'order').read_text().splitlines()
    assert lines[:4] == ['0 begins', '0 ends', '2 begins', '2 ends']
    assert sorted(lines[4:]) == ['1 begins', '1 ends', '3 begins', '3 ends']


def sleeper(rank, folder):
    """Rank 0 computes; rank 1 is there, and then hangs. The time to wait for it is cut to seconds."""
    dist.init_process_group = functools.partial(dist.init_process_group,
                                                timeout=datetime.timedelta(seconds=6))
    os.chdir(folder)
    sys.argv = ['cifar.py', *map(str, SMALL), '--max_images', '40', '--save', 'run', '--ngpu', '2']
    sys.stderr = open(folder / f'err{rank}', 'w', buffering=1)  # noqa: SIM115
    if rank:
        data.load = lambda *_: time.sleep(200)
    exits.script(cifar.main)


@pytest.mark.ranks
def test_a_rank_that_hangs_is_given_up(tmp_path):
    ranks = start_ranks(2, sleeper, tmp_path)
    ranks[0].join(100)
    for rank in ranks:
        rank.kill()
        rank.join()
    assert ranks[0].exitcode == devices.LOST
    assert (tmp_path / 'err0').read_text().splitlines() == [
        'cifar.py: rank 0 has lost another rank, or waited too long for one that hangs']


@pytest.mark.parametrize(('rank', 'store', 'restarts', 'noted'), [
    ('0', 'True', '3', True), ('1', 'True', '3', False), ('0', 'False', '3', False),
    ('0', 'True', '0', False)])
def test_restarts_on_several_machines(monkeypatch, capsys, rank, store, restarts, noted):
    """In the environment that torchrun gives with and without TORCH_DISABLE_SHARE_RDZV_TCP_STORE."""
    for name, value in (('RANK', rank), ('TORCHELASTIC_USE_AGENT_STORE', store),
                        ('TORCHELASTIC_MAX_RESTARTS', restarts)):
        monkeypatch.setenv(name, value)
    devices._note_of_restarts()
    assert ('TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1' in capsys.readouterr().err) == noted


def test_devices_that_are_not_there_are_told_once(monkeypatch):
    """By the process that would start the ranks."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    opt = cifar.parse(['--save', 'x', '--ngpu', '2'])
    with pytest.raises(InputError, match='--gpu_id 1: there are 1 CUDA devices'):
        devices.launch(opt)


def test_waiting_for_ranks_sees_any_of_them_fail():
    """Processes of their own kind: one ends well, one fails, one would wait for ever."""
    def start(code):
        return subprocess.Popen([sys.executable, '-c', code])

    started = [start('import time; time.sleep(600)'), start('pass'), start('import sys; sys.exit(3)')]
    begin = time.monotonic()
    assert devices._wait(started) == (2, 3) and time.monotonic() - begin < 30
    assert started[0].returncode == -signal.SIGTERM
    assert devices._wait([start('pass'), start('pass')]) == (0, 0)
    lost = f'import sys; sys.exit({devices.LOST})'
    assert devices._wait([start(lost), start('import sys; sys.exit(2)')]) == (1, 2)
    assert devices._wait([start('import sys; sys.exit(1)'), start('pass')]) == (0, 1)


KILLED = 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'
LOST = f'import sys; sys.exit({devices.LOST})'


@pytest.mark.parametrize(('first', 'second', 'status', 'told'), [
    (KILLED, LOST, 128 + 9, 'SIGKILL ended rank 0: *'),
    (LOST, KILLED, 128 + 9, 'SIGKILL ended rank 1: *'),
    (LOST, 'import time; time.sleep(600)', devices.LOST,
     'rank 0 waited for a rank that hangs: *'),
    (LOST, 'import sys; print("note", file=sys.stderr); sys.exit("error")', 1, 'error'),
    (LOST, 'import sys; sys.exit(143)', 143, 'rank 1 has ended with status 143'),
    (LOST, '1 / 0', 1, 'Traceback*ZeroDivisionError: division by zero'),
    ('import sys; sys.exit("error")', LOST, 1, 'error'),
    ('import sys; sys.exit("error")', 'import sys; sys.exit("error")', 1, 'error'),
])
def test_why_ranks_end_is_told_once(tmp_path, monkeypatch, capfd, first, second, status, told):
    """Ranks that import nothing; one that has lost another says nothing itself."""
    script = tmp_path / 'script.py'
    script.write_text(f'import os\nexec([{first!r}, {second!r}][int(os.environ["RANK"])])\n')
    monkeypatch.setattr(sys, 'argv', [str(script)])
    with pytest.raises(SystemExit) as end:
        devices.launch(cifar.parse([*SMALL, '--save', 'x', '--ngpu', '2']))
    assert end.value.code == status
    assert fnmatch.fnmatch(capfd.readouterr().err.strip(), told)


@pytest.mark.ranks
def test_a_mistake_is_told_once(tmp_path, run_script, small):
    done = run_script('cifar.py', *SMALL, '--save', '/dev/null/x', '--ngpu', 2, PYTHONPATH=small)
    assert done.returncode == 2
    assert '/dev/null/x' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(('rank', 'arguments', 'word'), [
    ('x', [], 'rank x'), ('0', ['--ngpu', 2], '--ngpu 2')])
def test_the_environment_of_another_launcher(run_script, small, rank, arguments, word):
    n = '1' if arguments else '2'
    done = run_script('cifar.py', *SMALL, '--save', 'x', *arguments, PYTHONPATH=small, RANK=rank,
                      WORLD_SIZE=n, MASTER_ADDR='127.0.0.1', MASTER_PORT='29876')
    assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_that_dies_ends_the_others(tmp_path, small):
    command = [sys.executable, str(ROOT / 'cifar.py'), *SMALL, '--epochs', '1000', '--ngpu', '2', '--save',
               'x']
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {'PYTHONPATH': small, 'OMP_NUM_THREADS': '1'}) as process:
        assert process.stdout.readline().startswith('epoch 1/')
        found = ranks_of(process.pid)
        assert found.keys() == {'0', '1'}
        start = time.monotonic()
        os.kill(found['1'], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGKILL and time.monotonic() - start < 60
        line, = err.splitlines()
        assert line.startswith('SIGKILL ended rank 1: ')
        for pid in found.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize('group', [True, False])
def test_ctrl_c_of_ranks_says_how_to_go_on(tmp_path, small, group):
    """A terminal gives it to all of them, a scheduler to the first process alone. Right after an epoch."""
    command = [sys.executable, str(ROOT / 'cifar.py'), *SMALL, '--epochs', '1000', '--ngpu', '2', '--save',
               'x']
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {'PYTHONPATH': small, 'OMP_NUM_THREADS': '1'},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                          start_new_session=True) as process:
        assert process.stdout.readline().startswith('epoch 1/')
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        line, = err.splitlines()
        assert line.startswith('stopped in epoch ') and line.endswith(
            f'resume with: python {ROOT}/cifar.py {shlex.join(command[2:])} --resume auto')


TORCH_SAYS = {
    '[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:5] Connection closed by peer [127.0.0.1]:3': True,
    '[/a/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer.': True,
    '[/a/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation': True,
    '[/a/gloo/transport/tcp/pair.cc:9] op.preamble.length <= op.nbytes. 8 vs 4': False,
    'CUDA error: peer access is not supported between these two devices': False,
    'some timeout of another library': False}


@pytest.mark.parametrize('text', TORCH_SAYS)
def test_what_torch_says_of_a_rank_that_is_gone(monkeypatch, text):
    assert not devices.is_lost(RuntimeError(text))  # without ranks
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    assert devices.is_lost(RuntimeError(text)) == TORCH_SAYS[text]
    assert devices.is_lost(dist.DistStoreError('Timed out after 5 seconds waiting for clients. 1/2 joined.'))
    assert not devices.is_lost(dist.DistNetworkError('The server socket has failed to listen: EADDRINUSE'))


# --- shares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('n', 'batch_size', 'ranks'), [
    (10, 4, 1), (10, 4, 3), (9, 4, 3), (100, 7, 4), (3, 100, 3), (8, 8, 8), (5, 2, 2)])
def test_parts_of_all_ranks_are_the_whole(n, batch_size, ranks):
    found = [data.parts(n, batch_size, rank, ranks) for rank in range(ranks)]
    seen = []
    for batch in zip(*found, strict=True):
        sizes = [part.stop - part.start for part, _ in batch]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        assert sum(share for _, share in batch) == pytest.approx(ranks)
        for (_, share), size in zip(batch, sizes, strict=True):
            assert share / ranks == pytest.approx(size / sum(sizes))
        seen += [i for part, _ in batch for i in range(part.start, part.stop)]
    assert seen == list(range(n))


def test_one_rank_gets_whole_batches():
    assert data.parts(10, 4, 0, 1) == [(slice(0, 4), 1), (slice(4, 8), 1), (slice(8, 10), 1)]


def test_no_last_batch_of_one_image():
    """BN and losses that compare images need two; batches of one are left if they are asked for."""
    assert data.parts(9, 4, 0, 1) == [(slice(0, 4), 1), (slice(4, 9), 1)]
    assert data.parts(1, 4, 0, 1) == [(slice(0, 1), 1)]
    assert len(data.parts(3, 1, 0, 1)) == 3


def test_without_ranks():
    assert (devices.rank(), devices.ranks()) == (0, 1)
    t = torch.ones(2)
    assert devices.summed(t) is t


# --- freed memory ------------------------------------------------------------------------------------------


FAULTS = """
import resource
import torch
from training import devices

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
devices.keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_memory_is_kept():
    """In a process of its own, for which it cannot be taken back; a page has 4 KB, or with luck 2 MB."""
    done = subprocess.run([sys.executable, '-c', FAULTS], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {'OMP_NUM_THREADS': '1'})
    without, kept = map(int, done.stdout.split())
    assert without >= 10 * 64 // 2 and kept < without / 20


@pytest.mark.parametrize('libc', ['', 'musl'])
def test_other_allocators_are_left_alone(monkeypatch, libc):
    monkeypatch.setattr(platform, 'libc_ver', lambda: (libc, ''))
    monkeypatch.setattr(devices.ctypes, 'CDLL', None)  # not to be called
    helpers.KEEP_FREED_MEMORY()


def test_memory_is_kept_on_a_cpu_only(monkeypatch):
    kept = []
    monkeypatch.setattr(devices, 'keep_freed_memory', lambda: kept.append(1))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda index: None)
    devices.device(cifar.parse(['--save', 'x']))
    assert kept == []
    devices.device(cifar.parse(['--save', 'x', '--device', 'cpu']))
    assert kept == [1]
