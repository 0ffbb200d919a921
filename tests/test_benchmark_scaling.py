"""Growth with size, and runs at once: exponents and rates worked by hand, tiny runs by command."""
import os
import shlex

import pytest
import torch
from conftest import call, strictly

import cifar as script
from tools import benchmark
from tools.benchmark import jobs, measure, roofline, scaling


def test_exponents():
    assert measure.exponent([1, 2, 4], [3, 12, 48]) == 2
    assert measure.exponent([32, 64], [5, 5]) == pytest.approx(0, abs=1e-9)
    # logarithms 0, 1, 2 -> 0, 2, 3: the slope of least squares is (3 - 0) / 2
    assert measure.exponent([1, 2, 4], [1, 4, 8]) == 1.5
    assert measure.exponent([7], [1]) is None


def test_growth_along_an_axis():
    got = scaling.growth({1: [2.0, 1.0, 9.0], 2: [8.0, 4.0, 20.0]}, {1: 10, 2: 80})
    assert got == {'points': [{'value': 1, 'seconds': 2, 'quartiles': [1.5, 5.5], 'flops': 10},
                              {'value': 2, 'seconds': 8, 'quartiles': [6, 14], 'flops': 80}],
                   'exponents': {'seconds': 2, 'flops': 3}}


def test_flops_grow_with_the_student_alone():
    """Of what a step of a student has, the teacher's part stays: the difference to it is the student's."""
    def flops(width, depth, batch):
        return sum(o.flops for o in roofline.operations(
            scaling.real_options(benchmark.parse(['scaling', '--device', 'cpu'])),
            scaling.networks(width, depth), batch, 32))

    assert flops(1, 16, 8) == 2 * flops(1, 16, 4)
    # one more block in each group: two 3x3 convolutions of equal width, forward and twice backward
    block = sum(2 * 2 * size**2 * 9 * n * n for n, size in ((16, 32), (32, 16), (64, 8)))
    assert flops(1, 22, 1) - flops(1, 16, 1) == flops(1, 16, 1) - flops(1, 10, 1) == 3 * block


def test_scaling_prints_one_strict_json_object(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, 'in_fresh_process', lambda function, *arguments: function(*arguments))
    done = call(benchmark, 'scaling', '--widths', '[1,2]', '--depths', '[10]', '--batch_sizes', '[2,4]',
                '--images', '[20,40]', '--batch_size', 2, '--rounds', 1, '--device', 'cpu', cwd=tmp_path)
    assert done.status == 0 and 'round 1/1 width 2: ' in done.err
    got = strictly(done.out)
    assert (got['benchmark'], got['threads'], got['batch']) == ('scaling', torch.get_num_threads(), 2)
    assert {axis: [p['value'] for p in found['points']] for axis, found in got['growth'].items()} == {
        'width': [1, 2], 'depth': [10], 'batch_size': [2, 4]}
    assert got['growth']['depth']['exponents'] == {'seconds': None, 'flops': None}
    assert got['growth']['batch_size']['exponents']['flops'] == 1
    assert [(p['value'], p['bytes']) for p in got['data_set']['points']] == [(20, 61440), (40, 122880)]
    assert min(p['epoch_start_seconds'] for p in got['data_set']['points']) > 0
    assert got['data_set']['points'][0]['peak_memory'] > 50e6


@pytest.mark.gpu
def test_scaling_on_a_gpu(tmp_path):
    done = call(benchmark, 'scaling', '--widths', '[1]', '--depths', '[10]', '--batch_sizes', '[2,4]',
                '--images', '[20]', '--rounds', 1, '--device', 'cuda', cwd=tmp_path)
    got = strictly(done.out)
    assert (got['device'], got['batch']) == ('cuda', 128)
    assert got['data_set']['points'][0]['peak_memory'] >= 61440


# --- runs at once ---------------------------------------------------------------------------------------


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
    (['scaling', '--widths', '[]'], '--widths'),
    (['scaling', '--batch_sizes', '[0,2]'], '--batch_sizes'),
    (['scaling', '--images', '[0]'], '--images'),
    (['scaling', '--depths', '[11]'], '--depths'),
    (['scaling', '--widths', '[2,2000]'], '2000 is no width'),
    (['scaling', '--compile'], '--compile'),
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
