"""--fast: what it chooses on which machine, what it says and logs, and how such runs are resumed."""
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import cifar
import imagenet
import layers
import resnet
from helpers import ROOT, SMALL, call_cifar, log_of
from tools import jobs
from training import devices, exits, fast, options

CPU, CUDA = torch.device('cpu'), torch.device('cuda')
AT = ['--teacher_id', 'teacher.pth', '--beta', 100]
LONG = fast.COMPILED_FROM


@pytest.fixture
def compiler(monkeypatch):
    """In place of torch.compile, which takes a minute: the functions that it was given, left as they are."""
    asked = []

    def eager(function, **options):
        asked.append(function)
        return function

    monkeypatch.setattr(torch, 'compile', eager)
    monkeypatch.setattr(fast, 'COMPILED_FROM', 1)
    monkeypatch.setattr(fast, 'gains_by_bfloat16', lambda device: False)
    return asked


@pytest.fixture
def folder(tmp_path):
    """With a teacher."""
    torch.save(resnet.wide_resnet(10, 0.5, 10)[1], tmp_path / 'teacher.pth')
    return tmp_path


@pytest.fixture
def processor(monkeypatch):
    """Make the CPU one of this name, with these instructions."""
    def pretend(name, avx512, amx=False):
        monkeypatch.setattr(exits, 'device_name', lambda device: name)
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx512)
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    return pretend


def parse(*arguments):
    return cifar.parse(['--save', 'x', '--fast', *map(str, arguments)])


def no_compiler(*_, **__):
    raise AssertionError('torch.compile must not be asked')


# --- rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('has', [False, True])
def test_bfloat16_where_the_machine_computes_in_it(monkeypatch, capsys, processor, has):
    monkeypatch.setattr(torch.compile, '__call__', no_compiler, raising=False)
    processor('AMD EPYC', avx512=has)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0) if has else (7, 5))
    assert fast.gains_by_bfloat16(CPU) is fast.gains_by_bfloat16(CUDA) is has
    for device in (CPU, CUDA):
        assert fast.chosen(parse(), device, 10).dtype == ('bfloat16' if has else 'float')
        for dtype in ('float', 'bfloat16', 'half'):  # what the user gave stays
            assert fast.chosen(parse('--dtype', dtype), device, 10).dtype == dtype
    assert capsys.readouterr().err == ''


def test_each_kind_of_device_is_asked_for_itself(monkeypatch, processor):
    processor('AMD EPYC', avx512=True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    assert fast.gains_by_bfloat16(CPU) and not fast.gains_by_bfloat16(CUDA)


@pytest.mark.parametrize(('name', 'avx512', 'amx', 'gains'), [
    ('Intel(R) Xeon(R)', True, True, True), ('Intel(R) Xeon(R)', True, False, False),
    ('AMD EPYC', True, False, True), ('AMD EPYC', False, False, False)])
def test_processors_that_gain_by_bfloat16(processor, name, avx512, amx, gains):
    processor(name, avx512, amx)
    assert fast.gains_by_bfloat16(CPU) is gains


@pytest.mark.parametrize(('arguments', 'device', 'steps', 'why'), [
    (AT, CPU, LONG, ''), (AT, CPU, LONG - 1, f'{LONG - 1:,} steps'), (AT, CUDA, LONG - 1, 'too few'),
    ([], CPU, LONG, 'student alone'), ([], CUDA, LONG, ''), ([*AT, '--grad_beta', 1], CPU, LONG, 'gradients'),
    (['--sym_beta', 1], CUDA, LONG, 'gradients'), (['--l2_beta', 1], CPU, LONG, 'gradients'),
    (['--teacher_id', 't', '--alpha', 0.9], CPU, LONG, ''), ([*AT, '--compile'], CPU, 1, '')])
def test_compiled_where_it_pays(monkeypatch, capsys, arguments, device, steps, why):
    """The function of one line is compiled for the device only where all other rules allow it."""
    probed = []
    monkeypatch.setattr(layers, 'compiled', lambda function, tensors: lambda x: probed.append(x.device))
    monkeypatch.setattr(torch, 'ones', lambda n, device: torch.zeros(n, device='meta'))  # there is no CUDA
    monkeypatch.setattr(fast, 'gains_by_bfloat16', lambda device: False)
    before = parse(*arguments)
    kept = dict(vars(before))
    opt = fast.chosen(before, device, steps)
    assert opt.compile is (not why) and vars(before) == kept  # nothing writes into the options
    assert vars(opt) == kept | {'dtype': 'float', 'compile': opt.compile}
    line = capsys.readouterr().out
    assert line.startswith('fast: float, ' + ('not compiled (' if why else 'compiled')) and why in line
    assert len(probed) == (not why and '--compile' not in arguments)


@pytest.mark.parametrize(('rank', 'lines'), [(0, 1), (1, 0)])
def test_the_first_rank_says_it(monkeypatch, capsys, rank, lines):
    monkeypatch.setattr(devices, 'rank', lambda: rank)
    fast.chosen(parse(), CPU, 1)
    out, err = capsys.readouterr()
    assert (out.count('\n'), err) == (lines, '')


def test_without_fast_nothing_is_chosen(capsys):
    opt = cifar.parse(['--save', 'x'])
    assert fast.chosen(opt, CPU, LONG) is opt and (opt.dtype, opt.compile) == ('float', False)
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(('error', 'words'), [
    (RuntimeError('no headers\nof Python'), 'no headers of Python'), (AssertionError(), 'AssertionError'),
    (OSError(28, 'No space left on device'), 'No space left'), (RuntimeError('\n \n'), 'RuntimeError'),
    (ImportError('x' * 9999), 'x' * 100)])
def test_a_compiler_that_fails_is_left_alone(monkeypatch, capsys, error, words):
    """Whatever it raises: one line says why."""
    def fail(function, **options):
        raise error

    monkeypatch.setattr(torch, 'compile', fail)
    opt = fast.chosen(parse(*AT), CPU, LONG)
    out, err = capsys.readouterr()
    assert opt.compile is False and words in out and len(out) < 300 and out.count('\n') == 1 and err == ''


def test_fast_and_deterministic(monkeypatch, capsys):
    """Refused where CUDA is used; on a CPU they agree."""
    monkeypatch.setattr(devices, 'cuda_devices', lambda opt: [])
    assert parse('--deterministic').deterministic
    monkeypatch.setattr(devices, 'cuda_devices', lambda opt: [0])
    for script, more in ((cifar, []), (imagenet, ['--imagenetpath', 'x'])):
        with pytest.raises(SystemExit) as end:
            script.parse(['--save', 'x', '--fast', '--deterministic', *more])
        err = capsys.readouterr().err
        assert end.value.code == 2 and '--deterministic' in err and err.count('\n') == 1
        assert script.parse(['--save', 'x', '--deterministic', *more]).deterministic


# --- runs --------------------------------------------------------------------------------------------------


def test_a_run_logs_what_was_chosen_and_is_resumed_without_a_note(folder, compiler, monkeypatch):
    """Compiled, as --fast decides when the run starts and when it is resumed; then on another machine."""
    command = [*SMALL, '--save', 'run', '--fast', *AT, '--resume', 'auto']
    for epochs, more in ((1, []), (2, [])):
        done = call_cifar(*command, '--epochs', epochs, *more, cwd=folder)
        assert done.status == 0 and done.errors == [] and '--dtype' not in done.err
        assert [line for line in done.out.splitlines() if 'fast' in line] == ['fast: float, compiled']
        assert '--compile' not in done.err
    log = log_of(folder / 'run')
    assert [(e['epoch'], e['fast'], e['dtype'], e['compile']) for e in log] == [
        (1, True, 'float', True), (2, True, 'float', True)]
    assert len(compiler) == 4  # the function of one line and the step, twice
    monkeypatch.setattr(fast, 'COMPILED_FROM', LONG)
    done = call_cifar(*command, '--epochs', 3, cwd=folder)
    assert 'compile' not in done.err and log_of(folder / 'run')[-1]['compile'] is False


def test_a_run_resumed_in_another_precision_prints_a_note(folder, compiler, monkeypatch):
    """--fast chooses bfloat16 on the second machine."""
    command = [*SMALL, '--save', 'run', '--fast', *AT, '--resume', 'auto']
    assert call_cifar(*command, '--epochs', 1, cwd=folder).status == 0
    monkeypatch.setattr(fast, 'gains_by_bfloat16', lambda device: True)
    done = call_cifar(*command, '--epochs', 2, cwd=folder)
    note, = [line for line in done.err.splitlines() if '--dtype' in line]
    assert done.status == 0 and note.startswith('note: ') and re.search('bfloat16.* float$', note)
    assert [e['dtype'] for e in log_of(folder / 'run')] == ['float', 'bfloat16']


def test_compiled_and_not_the_runs_are_the_same(folder, compiler):
    for name, more in (('plain', []), ('fast', ['--fast'])):
        assert call_cifar(*SMALL, '--save', name, *AT, '--epochs', 1, *more, cwd=folder).status == 0
    plain, compiled = (log_of(folder / name)[0] for name in ('plain', 'fast'))
    assert len(compiler) == 2 and compiled['compile']
    for key in ('train_loss', 'test_loss', 'test_agreement'):
        assert compiled[key] == pytest.approx(plain[key], rel=1e-4)


@pytest.mark.parametrize('more', [[], ['--dtype', 'float'], ['--compile'], ['--dtype', 'float', '--compile']])
def test_the_runner_takes_finished_fast_runs_as_done(folder, compiler, monkeypatch, more):
    """Though it cannot know what --fast chose when they started."""
    command = [*SMALL, '--save', 'run', '--fast', *AT, '--epochs', 1, *more]
    assert call_cifar(*command, cwd=folder).status == 0
    assert log_of(folder / 'run')[0]['compile'] is True
    monkeypatch.chdir(folder)
    job, = jobs.read([' '.join(map(str, ['cifar.py', *command]))])
    assert jobs.is_done(job)
    other, = jobs.read([' '.join(map(str, ['cifar.py', *command, '--lr', 0.3]))])
    with pytest.raises(options.utils.InputError, match='--lr 0.3'):
        jobs.is_done(other)


def test_evaluation_is_not_compiled(folder, monkeypatch, capsys):
    monkeypatch.setattr(torch, 'compile', no_compiler)
    done = call_cifar(*SMALL[:2], '--device', 'cpu', '--fast', '--evaluate', '--student_params',
                      'teacher.pth', cwd=folder)
    assert (done.status, done.err) == (0, '')
    assert [line for line in done.out.splitlines() if 'fast' in line] in (['fast: float'], ['fast: bfloat16'])


# --- at the command line -----------------------------------------------------------------------------------


@pytest.fixture
def eager(tmp_path, small):
    """PYTHONPATH of a small data set, for which compiling pays."""
    here = tmp_path / 'here'
    here.mkdir()
    (here / 'sitecustomize.py').write_text((small.split(os.pathsep)[0] + '/sitecustomize.py').join(
        ['exec(open("', '").read())\nimport training.fast\ntraining.fast.COMPILED_FROM = 1\n']))
    return {'PYTHONPATH': os.pathsep.join([str(here), str(ROOT)]),
            'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')}  # of no compiler that worked before


def lines_of(done):
    assert (done.returncode, done.stderr) == (0, '')
    return [line for line in done.stdout.splitlines() if line.startswith('fast: ')]


def test_cifar_without_a_compiler(folder, run_script, eager):
    """CXX names none: the run trains, and stderr is empty."""
    done = run_script('cifar.py', *SMALL, '--save', 'run', '--epochs', 1, '--fast', *AT, CXX='/nonexistent',
                      **eager)
    line, = lines_of(done)
    assert 'not compiled (torch.compile fails here: ' in line and '/nonexistent' in line
    record, = log_of(folder / 'run')
    assert (record['compile'], record['fast']) == (False, True)


@pytest.mark.slow
def test_imagenet_without_a_compiler(tmp_path, run_script, eager):
    """PATH lacks one."""
    for part in ('train', 'val'):
        for label in 'ab':
            (tmp_path / 'images' / part / label).mkdir(parents=True)
            pixels = np.random.default_rng(len(part)).integers(0, 256, (60, 60, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'images' / part / label / 'x.png')
    torch.save(resnet.resnet(18, 0.0625, 2)[1], tmp_path / 'teacher.pth')
    (tmp_path / 'empty').mkdir()
    done = run_script('imagenet.py', '--imagenetpath', 'images', '--width', 0.0625, '--nthread', 0,
                      '--device', 'cpu', '--epochs', 1, '--epoch_step', '[]', '--batch_size', 2,
                      '--save', 'run', '--fast', '--dtype', 'float', '--teacher_params', 'teacher.pth',
                      '--beta', 1, PATH=str(tmp_path / 'empty'), **eager)
    line, = lines_of(done)
    assert line.startswith('fast: float, not compiled (torch.compile fails here: ')
    record, = log_of(tmp_path / 'run')
    assert (record['dtype'], record['compile'], record['fast']) == ('float', False, True)
