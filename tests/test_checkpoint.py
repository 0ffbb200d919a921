"""Files of a run: whole at every moment, harmless to read, strict JSON; and the folder that keeps them."""
import argparse
import errno
import json
import math
import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from helpers import ROOT, Payload, disk_of
from training import checkpoint
from training.checkpoint import Folder, read, read_log, write, write_atomically, write_log
from utils import InputError


def some_state() -> dict:
    return {'params': {'conv0': torch.randn(4, 3, 3, 3), 'b': torch.arange(5), 'h': torch.ones(2).half()},
            'optimizer': {'state': {0: {'momentum_buffer': torch.randn(3, 2).t()}, 1: {}},
                          'param_groups': [{'lr': 0.1, 'params': [0, 1], 'fused': True, 'foreach': None}]},
            'epoch': 7, 'options': {'save': 'a/b', 'epoch_step': [60, 120], 'beta': 1e3, 'bad': math.inf}}


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


# --- writing ---------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    state, path = some_state(), tmp_path / 'model.pt7'
    write(path, state)
    assert equal(read(path), state)
    assert equal(torch.load(path, weights_only=True), state)  # no reader of ours is needed
    state['epoch'] = 8
    write(path, state)
    assert equal(read(str(path)), state)
    assert os.listdir(tmp_path) == ['model.pt7']


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / 'file'
    write_atomically(path, b'old, and longer')
    write_atomically(path, b'new')
    assert path.read_bytes() == b'new'
    assert os.listdir(tmp_path) == ['file']
    with pytest.raises(OSError):
        write_atomically(tmp_path / 'no folder' / 'file', b'')
    with pytest.raises(OSError):
        write_atomically(path / 'below a file', b'')
    assert path.read_bytes() == b'new'


KILLED = '''
    import itertools, json, os, random, signal, sys, time
    import torch
    from training import checkpoint
    from pathlib import Path

    torch.set_num_threads(1)  # threads do not survive a fork
    folder, n = Path(sys.argv[1]), 300_000
    model, log = folder / 'model.pt7', folder / 'log.txt'

    def save(i):
        checkpoint.write_log(log, [{'epoch': e, 'i': i, 'pad': 'x' * 500_000} for e in (1, 2)])
        checkpoint.write(model, {'epoch': i, 'params': {'w': torch.full((n,), float(i))}})

    save(0)
    start = time.monotonic()
    save(0)
    seconds = time.monotonic() - start
    draw, seen = random.Random(0), []
    begun, begin = os.pipe()
    for _ in range(30):
        child = os.fork()
        if not child:
            for i in itertools.count(1):
                os.write(begin, b'.')
                save(i)
        for _ in range(draw.randint(1, 2)):  # in the first saves, however slow the machine is
            os.read(begun, 1)
        time.sleep(draw.uniform(0, 1.5 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = checkpoint.read(model)
        assert state['params']['w'].shape == (n,)
        assert state['params']['w'].eq(state['epoch']).all(), state['epoch']
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert [r['epoch'] for r in records] == [1, 2]
        assert records[0]['i'] == records[1]['i'] and records[1]['pad'] == 'x' * 500_000
        seen.append(state['epoch'])
        os.set_blocking(begun, False)
        while True:  # beginnings that nobody waited for
            try:
                os.read(begun, 100)
            except BlockingIOError:
                break
        os.set_blocking(begun, True)
        save(0)  # over what the killed child left beside
    assert sum(map(bool, seen)) >= 5, seen
    assert sorted(p.name for p in folder.iterdir()) == ['log.txt', 'model.pt7']
    print('survived', len(seen))
'''


def test_files_are_whole_after_each_of_30_kills(tmp_path):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(KILLED), tmp_path], cwd=ROOT, text=True,
                          capture_output=True, timeout=200, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.stdout == 'survived 30\n', done.stderr


@pytest.mark.parametrize('room', [0, 1000, 100_000])
def test_full_disk_leaves_the_old_file_and_nothing_beside(tmp_path, room):
    path = tmp_path / 'model.pt7'
    write(path, some_state())
    before = path.read_bytes()
    with disk_of(room), pytest.raises(OSError) as error:
        write(path, {'w': torch.zeros(100_000)})
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['model.pt7']
    write(path, {'w': torch.zeros(100_000)})  # the test itself left no limit behind
    assert read(path)['w'].shape == (100_000,)


# --- reading ---------------------------------------------------------------------------------------------


def test_truncated_anywhere(tmp_path):
    write(tmp_path / 'whole', some_state())
    whole, part = (tmp_path / 'whole').read_bytes(), tmp_path / 'part'
    for n in {*range(64), *range(64, len(whole), 41), *range(len(whole) - 64, len(whole))}:
        part.write_bytes(whole[:n])
        with pytest.raises(InputError, match='truncated'):
            read(part)


def test_flipped_bytes_end_in_one_kind_of_error(tmp_path):
    """torch compares no checksums: a flipped byte of a tensor is another number, but no other error."""
    state, path = some_state(), tmp_path / 'model.pt7'
    write(path, state)
    whole, refused = path.read_bytes(), set()
    for i in [*range(600), *range(600, len(whole), 11), *range(len(whole) - 22, len(whole))]:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xff]) + whole[i + 1:])
        try:
            read(path)
        except InputError:
            refused.add(i)
    assert refused >= {0, 1, 2, 3}  # the signature of a zip file
    assert refused >= set(range(len(whole) - 22, len(whole) - 18))  # and that of its table's end
    assert len(refused) > 200


@pytest.mark.parametrize('saved_by', ['pickle', 'torch', 'torch, old format', 'within a checkpoint'])
def test_no_code_of_a_file_is_run(tmp_path, saved_by):
    mark, path = tmp_path / 'mark', tmp_path / 'model.pt7'
    if saved_by == 'pickle':
        path.write_bytes(pickle.dumps(Payload(mark)))
    elif saved_by == 'within a checkpoint':
        torch.save(some_state() | {'payload': Payload(mark)}, path)
    else:
        torch.save(Payload(mark), path, _use_new_zipfile_serialization=saved_by == 'torch')
    with pytest.raises(InputError, match='run code'):
        read(path)
    assert not mark.exists()
    if saved_by == 'pickle':  # the payload is one
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r'cannot read .*nowhere'):
        read(tmp_path / 'nowhere')
    for content in (b'', b'text\n', b'\x80', random.Random(0).randbytes(1000)):
        (tmp_path / 'file').write_bytes(content)
        with pytest.raises(InputError):
            read(tmp_path / 'file')
    with pytest.raises(InputError):
        read(tmp_path)


def test_a_flipped_bit_is_told(tmp_path):
    """Anywhere in the numbers: torch.load takes it for another number."""
    path, w = tmp_path / 'model.pt7', torch.arange(10_000.0)
    write(path, {'w': w})
    whole = path.read_bytes()
    start = whole.index(w.numpy().tobytes())
    for at in range(start, start + 40_000, 1999):
        for bit in (0, 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
            assert not torch.equal(torch.load(path, weights_only=True)['w'], w)
            with pytest.raises(InputError, match=r'model\.pt7 is damaged.*checksum'):
                read(path)
    path.write_bytes(whole)
    assert torch.equal(read(path)['w'], w)


# --- the log ---------------------------------------------------------------------------------------------


def test_read_log(tmp_path):
    log = tmp_path / 'log.txt'
    log.write_bytes(b'\n'.join([
        b'{"epoch": 1, "at_losses": [], "train_loss": 2.5}',
        b'json_stats: {"epoch": 2, "at_losses": [[NaN, NaN]], "test_acc": 50.0, "save": "caf\xc3\xa9"}',
        b'Namespace(lr=0.1)', b'', b'[1, 2]', b'3', b'null', b'"epoch"', b'{"other": 1}', b'\xff\xfe',
        b'==> id: logs/x (3/200), test_acc: 50',
        b'{"epoch": 3}\r',
        b'json_stats: {"epoch": 4, "train_lo']))
    epochs = read_log(log)
    assert [e['epoch'] for e in epochs] == [1, 2, 3]
    assert epochs[0] == {'epoch': 1, 'at_losses': [], 'train_loss': 2.5}
    assert math.isnan(epochs[1]['at_losses'][0][0]) and epochs[1]['save'] == 'café'
    log.write_text('')
    assert read_log(str(log)) == []


def test_read_log_without_a_log(tmp_path):
    for path in (tmp_path / 'log.txt', tmp_path):
        with pytest.raises(InputError, match='cannot read the log'):
            read_log(path)


def test_write_log_is_strict_json(tmp_path):
    log = tmp_path / 'log.txt'
    write_log(log, [{'epoch': 1, 'loss': math.nan, 'at_losses': [[1.5, math.inf], (-math.inf, 2)], 'n': None},
                    {'epoch': 2, 'name': 'café\nline', 'deep': {'x': [math.nan]}, 'on': 1, 'tiny': 5e-324}])

    def refuse(constant):
        raise AssertionError(constant)

    lines = log.read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {'epoch': 1, 'loss': None, 'at_losses': [[1.5, None], [None, 2]], 'n': None},
        {'epoch': 2, 'name': 'café\nline', 'deep': {'x': [None]}, 'on': 1, 'tiny': 5e-324}]
    assert log.read_text().endswith('\n')
    assert [e['epoch'] for e in read_log(log)] == [1, 2]


# --- the folder of a run ---------------------------------------------------------------------------------


def options(save, resume='', **changed) -> argparse.Namespace:
    return argparse.Namespace(**{'save': str(save), 'resume': str(resume), 'dtype': 'float',
                                 'depth': 10, 'width': 0.25,
                                 'dataset': 'shapes', 'lr': 0.1, 'dataroot': '.'} | changed)


def make_run(path: Path, epochs: int = 2) -> Path:
    folder = Folder(options(path))
    folder.create()
    for epoch in range(1, epochs + 1):
        state = {'params': {'w': torch.full((3,), float(epoch))}, 'optimizer': {}, 'epoch': epoch,
                 'options': vars(options(path))}
        folder.save({'epoch': epoch, 'train_loss': 1 / epoch}, state)
    folder.close()
    return path


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob('*')
            if p.is_file() and p.name != checkpoint.LOCK}


def test_save_and_go_on(tmp_path):
    run = make_run(tmp_path / 'a' / 'b', epochs=2)
    assert content(run).keys() == {'log.txt', 'model.pt7'}
    folder = Folder(options(run, 'auto'))
    assert folder.state['epoch'] == 2 and folder.state['params']['w'].tolist() == [2, 2, 2]
    assert [e['epoch'] for e in folder.epochs] == [1, 2]
    folder.create()
    folder.save({'epoch': 3}, folder.state | {'epoch': 3})
    assert [e['epoch'] for e in read_log(run / 'log.txt')] == [1, 2, 3]
    assert read(run / 'model.pt7')['epoch'] == 3
    assert folder.last().endswith('model.pt7 holds epoch 3')


@pytest.mark.parametrize('left', ['both', 'log.txt', 'model.pt7'])
def test_a_folder_with_a_run_is_refused(tmp_path, left):
    run = make_run(tmp_path / 'run')
    for path in run.iterdir():
        if left not in ('both', path.name):
            path.unlink()
    before = content(run)
    with pytest.raises(InputError, match='holds a run already.*--resume auto'):
        Folder(options(run))
    assert content(run) == before


def test_auto_begins_where_nothing_is(tmp_path):
    folder = Folder(options(tmp_path / 'new', 'auto'))
    assert folder.state is None and folder.epochs == []
    assert not (tmp_path / 'new').exists()  # nothing is made before create()
    folder.create()
    assert os.listdir(tmp_path / 'new') == ['.lock']
    assert 'no checkpoint' in folder.last()


def test_log_lines_past_the_checkpoint_are_dropped(tmp_path):
    """A run killed between log and checkpoint of epoch 3 runs that epoch again."""
    run = make_run(tmp_path / 'run')
    with open(run / 'log.txt', 'a') as log:
        log.write('{"epoch": 3, "train_loss": 9}\n{"epoch": 4, "trai')
    folder = Folder(options(run, 'auto'))
    assert [e['epoch'] for e in folder.epochs] == [1, 2]
    folder.save({'epoch': 3, 'train_loss': 0.25}, folder.state | {'epoch': 3})
    assert [(e['epoch'], e['train_loss']) for e in read_log(run / 'log.txt')] == [(1, 1), (2, 0.5), (3, 0.25)]


def test_lines_missing_from_a_log_are_noted(tmp_path, capsys):
    run = make_run(tmp_path / 'run', epochs=4)
    first, *_ = (run / 'log.txt').read_text().splitlines(keepends=True)
    (run / 'log.txt').write_text(first + '{"epoch": 2, "tr')
    folder = Folder(options(run, 'auto'))
    assert [e['epoch'] for e in folder.epochs] == [1, 4]
    assert capsys.readouterr().err == f'note: {run}/log.txt lacks the lines of 2 epochs before 4\n'


def other_process(run: Path) -> subprocess.Popen:
    """One that has made the folder its own, and waits."""
    code = 'import argparse, pathlib, sys, time\nfrom training import checkpoint\n' \
           'folder = checkpoint.Folder(argparse.Namespace(' \
           'save=pathlib.Path(sys.argv[1]), resume="auto", dtype="float"))\n' \
           'folder.create()\nprint(flush=True)\ntime.sleep(600)'
    process = subprocess.Popen([sys.executable, '-c', code, run], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'\n'
    return process


@pytest.mark.parametrize('begun', [False, True])
def test_two_processes_do_not_share_a_folder(tmp_path, begun):
    run = tmp_path / 'run'
    if begun:
        make_run(run)
    before = content(tmp_path)
    mine = Folder(options(run, 'auto'))
    with other_process(run) as process:
        with pytest.raises(InputError, match=f'in use by another run, process {process.pid} on .*--save'):
            mine.create()
        assert content(tmp_path) == before
        process.kill()
    mine.create()  # at once: the lock went with its process


def test_a_log_is_not_completed_while_another_run_writes(tmp_path):
    """A kill between checkpoint and log; then two runs start, the second with no epoch left to do."""
    run = make_run(tmp_path / 'run')
    lines = (run / 'log.txt').read_text().splitlines(keepends=True)
    (run / 'log.txt').write_text(''.join(lines[:-1]))
    mine = Folder(options(run, 'auto'))
    with other_process(run) as process:
        with pytest.raises(InputError, match='in use by another run'):
            mine.complete_log()
        process.kill()
    assert (run / 'log.txt').read_text() == ''.join(lines[:-1])
    mine.complete_log()
    assert (run / 'log.txt').read_text() == ''.join(lines) and mine.lock is None


def test_a_run_that_another_has_carried_on_meanwhile(tmp_path):
    run = make_run(tmp_path / 'run')
    late = Folder(options(run, 'auto')), Folder(options(tmp_path / 'new'))
    folder = Folder(options(run, 'auto'))
    folder.create()
    folder.save({'epoch': 3}, folder.state | {'epoch': 3})
    make_run(tmp_path / 'new')
    before = content(tmp_path)
    for other in late:
        with pytest.raises(InputError, match='another run has written .*--resume auto'):
            other.create()
    assert content(tmp_path) == before


@pytest.mark.parametrize('named', ['folder', 'file'])
def test_go_on_from_another_run_in_a_new_folder(tmp_path, named):
    run = make_run(tmp_path / 'run')
    before = content(run)
    folder = Folder(options(tmp_path / 'new', run if named == 'folder' else run / 'model.pt7'))
    assert folder.state['epoch'] == 2
    folder.create()
    folder.save({'epoch': 3}, folder.state | {'epoch': 3})
    assert [e['epoch'] for e in read_log(tmp_path / 'new' / 'log.txt')] == [1, 2, 3]
    assert content(run) == before


def test_another_run_is_not_overwritten_by_going_on(tmp_path):
    run, other = make_run(tmp_path / 'run'), make_run(tmp_path / 'other', epochs=3)
    with pytest.raises(InputError, match='holds a run'):
        Folder(options(other, run / 'model.pt7'))
    folder = Folder(options(run, run / 'model.pt7'))  # its own checkpoint, by name
    assert folder.state['epoch'] == 2
    folder = Folder(options(run, tmp_path / 'other' / '..' / 'run'))  # or in other words
    assert folder.state['epoch'] == 2 and folder.last().endswith('holds epoch 2')


def test_a_log_without_its_checkpoint_is_not_begun_anew(tmp_path):
    run = make_run(tmp_path / 'run')
    (run / 'model.pt7').unlink()
    before = content(run)
    with pytest.raises(InputError, match=r'model\.pt7 is gone'):
        Folder(options(run, 'auto'))
    assert content(run) == before


@pytest.mark.parametrize('lacks', ['options', 'optimizer', 'epoch', 'params', 'all'])
def test_weights_without_a_run_are_refused(tmp_path, lacks):
    run = make_run(tmp_path / 'run')
    state = read(run / 'model.pt7')
    write(run / 'model.pt7', {k: v for k, v in state.items() if k != lacks} if lacks != 'all' else [1, 2])
    with pytest.raises(InputError, match=r'to resume from.*teach.*--evaluate'):
        Folder(options(run, 'auto'))


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match='cannot read .*gone'):
        Folder(options(tmp_path / 'new', tmp_path / 'gone'))
    with pytest.raises(InputError, match=r'cannot read .*model\.pt7'):
        Folder(options(tmp_path / 'new', tmp_path))


@pytest.mark.parametrize(('name', 'value'), [('depth', 16), ('width', 1.0), ('dataset', 'CIFAR10')])
def test_another_network_or_data_set_is_refused(tmp_path, capsys, name, value):
    run = make_run(tmp_path / 'run')
    with pytest.raises(InputError, match=f'{name} .*not {value!r}'):
        Folder(options(run, 'auto', **{name: value}))
    assert capsys.readouterr() == ('', '')


def test_other_changes_are_noted(tmp_path, capsys):
    run = make_run(tmp_path / 'run')
    folder = Folder(options(tmp_path / 'new', run, dataroot='elsewhere'))
    assert folder.changes(options(tmp_path / 'new', run, dataroot='elsewhere', dtype='')) == []
    change, = folder.changes(options(run, 'auto', lr=0.5, new_option=3))
    assert '--lr 0.5' in change and '0.1' in change
    assert capsys.readouterr() == ('', '')


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('mine')
    for save in (tmp_path / 'file', tmp_path / 'file' / 'below', tmp_path / 'file' / 'far' / 'below'):
        with pytest.raises(InputError, match='--save .*cannot write'):
            Folder(options(save)).create()
    assert content(tmp_path) == {'file': b'mine'}


def test_full_disk_while_saving(tmp_path):
    run = make_run(tmp_path / 'run')
    before = read(run / 'model.pt7')
    folder = Folder(options(run, 'auto'))
    state = before | {'epoch': 3, 'params': {'w': torch.zeros(100_000)}}
    with disk_of(10_000), pytest.raises(InputError, match=r'save epoch 3 .*model\.pt7 holds epoch 2'):
        folder.save({'epoch': 3}, state)
    assert equal(read(run / 'model.pt7'), before)
    assert content(run).keys() == {'log.txt', 'model.pt7'}
    folder = Folder(options(run, 'auto'))
    assert folder.state['epoch'] == 2 and [e['epoch'] for e in folder.epochs] == [1, 2]
    fresh = Folder(options(tmp_path / 'fresh'))
    fresh.create()
    with disk_of(10_000), pytest.raises(InputError, match='could not save epoch 1') as error:
        fresh.save({'epoch': 1}, state | {'epoch': 1})
    assert 'no checkpoint' in str(error.value)
