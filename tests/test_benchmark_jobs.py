"""Runs at once: rates worked by hand, tiny runs by command."""
import os
import shlex

import pytest

import cifar as script
from helpers import call, strictly
from tools import benchmark
from tools.benchmark import jobs


def test_rates_of_runs_at_once():
    found = [jobs.Measured(20, [8, 10], [5, 7], 'a CPU'), jobs.Measured(24, [12, 9], [9, 6], 'a CPU'),
             jobs.Measured(40, [30, 31], [4, 4], 'a CPU')]
    # the slower of both counts: 10, 12 and 31 s
    assert jobs.point(2, found) == {
        'jobs': 2, 'device_name': 'a CPU', 'runs_per_hour': 600, 'quartiles': [416.1, 660],
        'runs_per_hour_with_start': 300, 'start_seconds': 10, 'peak_memory': 9}
    assert jobs.best({1: {'runs_per_hour': 500}, 2: {'runs_per_hour': 600}, 4: {'runs_per_hour': 590}}) == 2


def test_commands_are_those_of_the_script(tmp_path):
    opt = benchmark.parse(['jobs', '--dataset', 'CIFAR10', '--dataroot', 'some data', '--images', '64',
                           '--device', 'cpu'])
    name, *words = shlex.split(jobs.command(opt, tmp_path / 'a', tmp_path / 'teacher.pt7', 3))
    real = script.parse(words)
    assert (name, real.depth, real.width, real.beta, real.seed) == ('cifar.py', 16, 1, 1e3, 3)
    assert (real.max_images, real.epochs, real.dataroot) == (64, 2, os.path.abspath('some data'))


def test_jobs_print_one_strict_json_object(tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    done = call(benchmark, 'jobs', '--jobs', '[2]', '--images', 16, '--batch_size', 8, '--epochs', 1,
                '--rounds', 1, '--device', 'cpu', cwd=tmp_path)
    assert done.status == 0
    got = strictly(done.out)
    point, = got['points']
    assert (got['best'], point['jobs'], got['images'], got['dataset']) == (2, 2, 16, 'shapes')
    assert 0 < point['runs_per_hour_with_start'] < point['runs_per_hour'] and point['start_seconds'] > 0
    assert point['peak_memory'] > 100e6 and 'threads' in point['device_name']
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_jobs_share_a_gpu(tmp_path):
    done = call(benchmark, 'jobs', '--jobs', '[2]', '--images', 64, '--batch_size', 32, '--epochs', 1,
                '--rounds', 1, '--device', 'cuda', cwd=tmp_path)
    got = strictly(done.out)
    assert got['device'] == 'cuda' and got['points'][0]['peak_memory'] > 1e6


def test_failing_runs_end_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, 'command', lambda *_: 'cifar.py --save a --depth 7')
    done = call(benchmark, 'jobs', '--jobs', '[1]', '--device', 'cpu', cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1)
    assert '1 runs at once failed' in done.err and '--jobs' in done.err


@pytest.mark.parametrize(('arguments', 'names'), [
    (['jobs', '--jobs', '[0]'], '--jobs'),
    (['jobs', '--jobs', '[]'], '--jobs'),
    (['jobs', '--epochs', '0'], '--epochs'),
    (['jobs', '--dataroot', 'data'], '--dataroot'),
])
def test_options_without_meaning(arguments, names, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.parse(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2 and names in message and message.count('\n') == 1
