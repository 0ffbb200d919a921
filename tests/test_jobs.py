"""Many runs at the same time: what starts when, what is printed, what a stopped runner leaves behind."""
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import ROOT, call, listing, log_of
from tools import jobs

TINY = ['--dataset', 'shapes', '--depth', '10', '--width', '0.25', '--max_images', '32', '--batch_size', '16',
        '--device', 'cpu']


def line(save, *arguments, epochs=1):
    return shlex.join(['cifar.py', '--save', str(save), *TINY, '--epochs', str(epochs), '--epoch_step', '[]',
                       *map(str, arguments)])


def start(monkeypatch, cwd, lines, *arguments, **variables):
    """The runner in this process."""
    monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'.join(lines)))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return call(jobs, *arguments, cwd=cwd)


# --- order: runs that only say when they were there ------------------------------------------------------

# In place of a run, by the name of its folder.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
save, begin = Path(sys.argv[sys.argv.index('--save') + 1]), time.monotonic()
assert os.environ['PARENT_OF_RUN'] == str(os.getppid()) and sys.argv[1:3] == ['--resume', 'auto']
Path(f'{save.name}.begun').touch()
for awaited in json.loads(Path('awaited').read_text()).get(save.name, []):
    while not Path(awaited).exists():
        assert time.monotonic() < begin + 60
        time.sleep(0.01)
with open('events', 'a') as f:
    event = [save.name, *map(os.environ.get, ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')), begin]
    f.write(json.dumps([*event, time.monotonic()]) + '\\n')
Path(f'{save.name}.ended').touch()
if 'later' in save.name:
    sys.exit(os.EX_TEMPFAIL)
if 'bad' in save.name:
    print(f'a note\\ncifar.py: error: {save.name[-1]} is bad')
    sys.exit(int(save.name[-1]))
if 'killed' in save.name:
    os.kill(os.getpid(), signal.SIGKILL)
save.mkdir()
(save / 'log.txt').write_text('{"epoch": 1, "test_acc": 91.234}\\n')
"""


@pytest.fixture
def order(monkeypatch, tmp_path):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts/cifar.py').write_text(STAND_IN)
    monkeypatch.setattr(jobs, 'HERE', tmp_path / 'scripts')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 9)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def started(lines, *arguments, awaited=None, **variables):
        """awaited: {run: the runs, '<run>.begun' or '<run>.ended', before which it does not end}."""
        (tmp_path / 'awaited').write_text(json.dumps(awaited or {}))
        done = start(monkeypatch, tmp_path, lines, *arguments, **variables)
        events = (tmp_path / 'events').read_text().splitlines()
        return done, {name: rest for name, *rest in map(json.loads, events)}

    return started


def most_at_once(events):
    return max(sum(begin <= moment < end for *_, begin, end in events.values())
               for *_, moment, _ in events.values())


def test_one_after_the_other(order):
    done, events = order([line('a'), line('b'), '', line('c')])
    assert (done.status, done.err) == (0, '')
    assert list(events) == ['a', 'b', 'c'] and most_at_once(events) == 1
    assert {(gpu, threads) for gpu, threads, *_ in events.values()} == {(None, None)}
    assert re.fullmatch(r'0 of 3 runs are done\n(?:(\w): started\n\1: test error 8.77 %, after \d+ s'
                        r'(?:; \d left, about [\d:]+)?\n){3}', done.out)
    assert '; 1 left, about 00:0' in done.out


def test_students_wait_for_their_teachers(order):
    """By its name under logs, its folder or its weights, through several generations; others do not wait."""
    lines = [line('logs/a'), line('b'), line('c', '--teacher_id', 'a', '--beta', 1),
             line('d', '--teacher_id', 'c/model.pt7', '--beta', 1),
             line('e', '--teacher_id', 'b', '--beta', 1)]
    done, events = order(lines, '--jobs', 5, awaited={'a': ['b.ended', 'e.ended']})
    assert done.status == 0 and list(events) == ['b', 'e', 'a', 'c', 'd']
    ends, begins = ({name: event[i] for name, event in events.items()} for i in (3, 2))
    assert ends['b'] <= begins['e'] and ends['a'] <= begins['c'] and ends['c'] <= begins['d']


def test_a_run_that_goes_on_later_does_not_hide_one_that_failed(order):
    done, events = order([line('a_later'), line('b_bad1'), line('c_later')])
    assert done.status == 1 and len(events) == 3
    done, _ = order([line('later'), line('d')])
    assert done.status == os.EX_TEMPFAIL


def test_n_at_once_on_gpus_in_turn(order):
    """Four places on two GPUs: a run that ends makes room on its own GPU."""
    all_four = [f'{i}.begun' for i in range(4)]
    long = ['4.ended', '5.ended']  # for 0 and 2, both on the first GPU
    awaited = {'0': long, '1': all_four, '2': long, '3': all_four}
    done, events = order([line(i) for i in range(6)], '--jobs', 4, '--gpus', '5,7', awaited=awaited)
    assert done.status == 0 and most_at_once(events) == 4
    assert {name: gpu for name, (gpu, *_) in events.items()} == {
        '0': '5', '1': '7', '2': '5', '3': '7', '4': '7', '5': '7'}
    assert {threads for _, threads, *_ in events.values()} == {'2'}  # 9 cores among 4


def test_gpus_of_those_that_are_left(order, monkeypatch):
    """By their place among what CUDA_VISIBLE_DEVICES leaves."""
    given = {'CUDA_VISIBLE_DEVICES': '6,GPU-8a'}
    _, events = order([line('a'), line('b')], '--jobs', 2, '--gpus', '1,0', awaited={'a': ['b.begun']},
                      **given)
    assert {name: gpu for name, (gpu, *_) in events.items()} == {'a': 'GPU-8a', 'b': '6'}
    _, events = order([line('c')], **given)
    assert events['c'][0] == '6,GPU-8a'
    done = start(monkeypatch, Path(), [line('c')], '--gpus', '2', **given)
    assert (done.status, done.err) == (
        2, 'tools.jobs.py: error: --gpus 2: CUDA_VISIBLE_DEVICES has 2 GPUs, counted from 0\n')


def test_more_runs_than_cores_have_a_thread_each(order):
    _, events = order([line('a')], '--jobs', 10)
    assert events['a'][1] == '1'


def test_threads_that_are_given_stay(order):
    _, events = order([line('a')], '--jobs', 2, OMP_NUM_THREADS='9')
    assert events['a'][1] == '9'


def test_failures(order):
    """Students of a run that failed do not start, nor theirs; all others do."""
    lines = [line('bad1'), line('a'), line('b', '--teacher_id', 'bad1', '--beta', 1),
             line('c', '--teacher_id', 'b', '--beta', 1), line('d', '--teacher_id', 'a', '--beta', 1),
             line('x/bad2')]
    done, events = order(lines)
    assert (done.status, list(events)) == (2, ['bad1', 'a', 'd', 'bad2'])
    assert done.err.splitlines() == ['cifar.py: error: 1 is bad', 'cifar.py: error: 2 is bad']
    assert re.search(r'^x/bad2: failed with status 2 .*x/bad2.out', done.out, re.MULTILINE)
    assert [line for line in done.out.splitlines() if 'not started' in line] == [
        'b: not started, bad1 has not finished', 'c: not started, b has not finished']


def test_a_run_that_is_killed(order):
    done, _ = order([line('killed'), line('a')])
    assert (done.status, done.err) == (128 + 9, 'killed was ended by signal 9\n')
    assert 'a: test error' in done.out


# --- before anything starts ------------------------------------------------------------------------------


@pytest.mark.parametrize(('lines', 'sentence'), [
    ([], 'the input has no command: write one on each line'),
    ([' ', ''], 'the input has no command: write one on each line'),
    ([line('a'), 'rm -rf x'], 'rm -rf x: a line begins with cifar.py or imagenet.py'),
    (['cifar.py --save "a'], 'cifar.py --save "a: cannot be split into words (No closing quotation)'),
    ([line('a'), line('b', '--beta', 1)], '--beta needs a teacher: add --teacher_id with its run or its '
     'weights; in: ' + line('b', '--beta', 1)),
    (['cifar.py --seed x --save a'], "argument --seed: 'x' is not a whole number from 0 to 2147483647; in: "
     'cifar.py --seed x --save a'),
    ([line('a'), '', line('a')], 'a is the folder of two runs: give each its own --save'),
    ([line('a'), line('b/../a/')], 'b/../a/ is the folder of two runs: give each its own --save'),
    (['cifar.py --evaluate --student_params a'],
     'cifar.py --evaluate --student_params a: add --save, next to which the output goes'),
    (['imagenet.py --imagenetpath nowhere'],
     'nowhere/val cannot be read (No such file or directory): --dataset '
     'imagenet needs train/<synset>/*.JPEG and val/<synset>/*.JPEG'),
])
def test_mistakes(monkeypatch, tmp_path, lines, sentence):
    done = start(monkeypatch, tmp_path, lines)
    assert (done.status, done.out, done.err) == (2, '', f'tools.jobs.py: error: {sentence}\n')
    assert not listing(tmp_path)


def test_without_data_nothing_starts(monkeypatch, tmp_path):
    lines = [f'cifar.py --save {i} --dataroot /dev/null/data' for i in range(3)]
    done = start(monkeypatch, tmp_path, lines, '--jobs', 2)
    assert (done.status, done.out) == (2, '')
    assert re.fullmatch('tools.jobs.py: error: CIFAR10 in /dev/null/data/.* --dataroot.*\n', done.err)
    assert not listing(tmp_path)


# --- real runs -------------------------------------------------------------------------------------------


def runner(cwd, lines, *arguments, shell=False):
    """The runner in a process of its own, after `lines` have been written; shell: started by one."""
    (cwd / 'lines').write_text('\n'.join(lines) + '\n')
    command = shlex.join([sys.executable, '-m', 'tools.jobs', *map(str, arguments)])
    command = f'{command} --parent $$ < lines; exit' if shell else f'exec {command} < lines'
    return subprocess.Popen(
        ['bash', '-c', command], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})


def test_real_runs(monkeypatch, tmp_path):
    """Teacher, students, an evaluation; a second start does nothing, other options are refused."""
    folder = tmp_path / 'some runs'
    lines = [line('teacher'), line('alone'),
             line('at', '--teacher_id', 'teacher', '--beta', '1e3'),
             line('lost', '--teacher_id', 'x', '--beta', '1'),
             shlex.join(['cifar.py', '--evaluate', '--student_params', 'teacher', '--save', 'a b/e', *TINY])]
    folder.mkdir()
    done = start(monkeypatch, folder, lines, '--jobs', 2)
    assert (done.status, done.err) == (2, (
        'cifar.py: error: --teacher_id x: there is neither logs/x nor x; train the teacher first, or give '
        'the path of its run or of its weights\n'))
    log = {name: log_of(folder / name) for name in ('teacher', 'alone', 'at')}
    assert all(len(epochs) == 1 for epochs in log.values()) and not (folder / 'lost').exists()
    said = (folder / 'at.out').read_text().splitlines()
    assert said[0] == '$ python ' + lines[2].replace(' --save', ' --resume auto --save')
    assert said[1].startswith('teacher: WRN-10-0.25') and said[2].startswith('epoch 1/1: ')
    evaluated = (folder / 'a b/e.out').read_text().splitlines()[-1]
    assert evaluated.startswith(f'teacher: test loss {log["teacher"][0]["test_loss"]:.4f}')
    assert re.search(rf'^a b/e: {re.escape(evaluated)}, after', done.out, re.MULTILINE)
    assert f'\nat: test error {100 - log["at"][0]["test_acc"]:.2f} %, after' in done.out

    del lines[3]
    before = listing(folder)
    done = start(monkeypatch, folder, lines)
    assert (done.status, done.out, done.err) == (0, '4 of 4 runs are done\n', '')
    done = start(monkeypatch, folder, [line('alone', epochs=2)])
    assert (done.status, done.out) == (2, '')
    assert done.err == (
        'tools.jobs.py: error: alone holds a different run (the run resumes with --epochs 2; it began with '
        '1): give the options of that run, or another folder (for a recipe, LOGS=folder)\n')
    assert listing(folder) == before


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_stopped_again_and_again(monkeypatch, tmp_path):
    """By SIGTERM, by SIGKILL, and by the end of its shell; each time the next start goes on at once."""
    epochs, out = 40, tmp_path / 'run.out'
    lines = [line('run', epochs=epochs)]
    n_starts = 1

    def at_work():
        begun = out.read_text().split('$ python')[n_starts:] if out.exists() else []
        return bool(begun) and begun[0].count(f'/{epochs}: train') >= 3

    with runner(tmp_path, lines) as process:
        until(at_work)
        process.terminate()
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, '1 runs stopped; give the same command again to resume\n')
    assert re.search('resume with: python [^ ]*cifar.py --save run', out.read_text())
    for shell in (False, True):
        n_starts += 1
        assert log_of(tmp_path / 'run')[-1]['epoch'] < epochs - 5
        with runner(tmp_path, lines, shell=shell) as process:
            until(at_work)
            process.kill()
    done = start(monkeypatch, tmp_path, lines, '--jobs', 2)
    assert (done.status, done.err) == (0, '')
    assert [epoch['epoch'] for epoch in log_of(tmp_path / 'run')] == list(range(1, epochs + 1))
    told = [int(n) for n in re.findall(rf'^epoch (\d+)/{epochs}: train', out.read_text(), re.MULTILINE)]
    assert told == sorted(set(told)) and len(told) > epochs - 4  # none was computed twice
    assert out.read_text().count('resume with: python') == 3
