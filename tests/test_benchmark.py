"""The benchmark: equal work of both sides, refusals, tiny runs by command."""
import argparse
import contextlib

import pytest
import torch
from torchnet.engine import Engine

import layers
from helpers import call, strictly
from inputs import cifar as data
from inputs import images, shapes
from layers import Sample
from tools import benchmark
from tools.benchmark import cifar, imagenet, loader, measure, sides, steps
from tools.benchmark.measure import SIDES
from utils import InputError

CPU = torch.device('cpu')


# --- what both sides compute --------------------------------------------------------------------------


def test_baseline_normalises_as_our_loader():
    """Without the random crop and flip, both make the same numbers of the same pixels."""
    split = data.Images(torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8), torch.arange(4))
    plain = cifar.PlainDataset(split, augmented=False)
    x = torch.stack([plain[i][0] for i in range(4)])
    torch.testing.assert_close(x, data.normalize(split.images))


def remembering(monkeypatch, module):
    """Networks that `module` makes from here on, all with the same weights, in the order of their making."""
    made, networks = [], module.networks

    def remember(*arguments):
        torch.manual_seed(3)
        made.append(networks(*arguments))
        return made[-1]

    monkeypatch.setattr(module, 'networks', remember)
    monkeypatch.setattr(module.devices, 'to_device', lambda params, device: params)  # no copies
    return made


@pytest.fixture
def in_float64(monkeypatch):
    """Networks and batches; in float32 rounding may put a ReLU's input on the other side of 0."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('case', cifar.CASES)
def test_both_sides_train_by_the_same_loss(case, monkeypatch, in_float64):
    """From the same weights on the same batch, one step of ours and one of the baseline agree."""
    opt = benchmark.parse(['cifar', '--batch_size', '4', '--device', 'cpu'])
    sample = Sample(torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4]), 1)
    made = remembering(monkeypatch, cifar)
    for side in SIDES:
        assert cifar.training_of(side, opt, case, CPU)([sample]) == 4
    (_, ours, *_), (_, plain, *_) = made
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('case', ['at', 'student'])
def test_both_sides_train_an_imagenet_student_by_the_same_loss(case, monkeypatch, in_float64):
    """Loss and gradients agree, from the same weights on the same batch; the teacher of ours is folded."""
    losses = []

    class Recording(Engine):
        def train(self, h, *arguments):
            def recorded(sample):
                loss, output = h(sample)
                losses.append(loss.item())
                return loss, output
            super().train(recorded, *arguments)

    monkeypatch.setattr(steps, 'Engine', Recording)
    made = remembering(monkeypatch, imagenet)
    opt = benchmark.parse(['imagenet', '--batch_size', '4', '--image_size', '64', '--device', 'cpu'])
    for side in (imagenet.ours, imagenet.plain):
        torch.manual_seed(5)
        assert side(opt, case, CPU)([imagenet.batch(opt, side.__name__, CPU)]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    (_, ours, *_), (_, plain, *_) = made
    assert ours.keys() == plain.keys()
    for name, t in ours.items():
        if t.requires_grad:
            assert (t.grad - plain[name].grad).norm() < 1e-9 * t.grad.norm(), name


def test_both_sides_ask_an_equal_teacher(monkeypatch):
    remembering(monkeypatch, imagenet)
    monkeypatch.setattr(imagenet, 'forward', lambda f, params, *_: (f(x, params, False)[0], params))
    opt, x = benchmark.parse(['imagenet', '--device', 'cpu']), torch.randn(2, 3, 64, 64)
    (y, folded), (y_plain, params) = (side(opt, 'teacher', CPU) for side in (imagenet.ours, imagenet.plain))
    assert 'bn0.weight' in params and 'bn0.weight' not in folded
    assert (y - y_plain).norm() < 1e-3 * y_plain.norm() < float('inf')


def test_only_our_batch_has_channels_last():
    opt = benchmark.parse(['imagenet', '--batch_size', '2', '--image_size', '64'])
    strides = [imagenet.batch(opt, side, CPU).x.stride() for side in SIDES]
    assert strides == [(64 * 64 * 3, 1, 64 * 3, 3), (64 * 64 * 3, 64 * 64, 64, 1)]


# --- options and refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize('arguments, names', [
    ([], 'command'),
    (['cifar', '--steps', '0'], '--steps'),
    (['cifar', '--rounds', '0'], '--rounds'),
    (['cifar', '--workers', '0'], '--workers'),
    (['cifar', '--dtype', 'half'], '--dtype'),
    (['cifar', '--dataroot', 'data'], '--dataroot'),
    (['cifar', '--step', '1'], '--step'),
    (['cifar', '--profile', 'nowhere/trace.json'], '--profile nowhere/trace.json'),
    (['imagenet', '--profile', 'nowhere/trace.json'], '--profile nowhere/trace.json'),
    (['loader', '--compile'], '--compile'),
    (['imagenet', '--image_size', '63'], '--image_size 63'),
    (['imagenet', '--dtype', 'half'], '--dtype'),
    (['imagenet', '--workers', '1'], '--workers'),
    (['loader', '--workers', '-1'], '--workers'),
    (['loader', '--dtype', 'bfloat16'], '--dtype'),
])
def test_options_without_meaning_end_with_status_2_and_one_sentence(arguments, names, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.parse(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2 and names in message and message.count('\n') == 1


def test_defaults_are_those_of_the_scripts():
    real = imagenet.real_options(benchmark.parse(['imagenet', '--device', 'cpu']), 'at')
    assert (real.beta, real.alpha, real.at_groups, real.weight_decay) == (1e3, 0, [2, 3], 1e-4)
    assert benchmark.parse(['imagenet']).image_size == images.SIZE
    assert benchmark.parse(['loader']).workers == 0


def test_batch_beyond_the_data_set(monkeypatch):
    split = data.Images(torch.zeros(3, 32, 32, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    monkeypatch.setattr(data, 'load', lambda *_: (split, split))
    opt = benchmark.parse(['cifar', '--batch_size', '4'])
    with pytest.raises(InputError, match='--batch_size 4 is more than the 3 images of shapes'):
        cifar.load(opt, CPU)


# --- compiling and tracing ----------------------------------------------------------------------------


@pytest.mark.parametrize('module', [cifar, imagenet])
def test_compile_goes_to_the_real_options(module):
    for more in ([], ['--compile']):
        opt = benchmark.parse([module.__name__.split('.')[-1], '--device', 'cpu', *more])
        assert module.real_options(opt, 'at').compile == bool(more)


def test_our_process_compiles_and_traces_before_the_blocks(monkeypatch, tmp_path):
    """AT is first, so that the peak is its own; both sizes of batches have been seen when a block begins."""
    split = data.Images(torch.zeros(6, 32, 32, 3, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    events, plain = [], steps.dropping(CPU)
    monkeypatch.setattr(cifar, 'load', lambda *_: split)
    monkeypatch.setattr(cifar, 'training_of', lambda side, opt, case, device: lambda batches: plain(
        [events.append((side, case, len(sample.labels))) or sample for sample in batches]))
    monkeypatch.setattr(cifar.exits, 'peak_memory', lambda device: events.append('peak') or 7)
    monkeypatch.setattr(cifar.roofline, 'machine', lambda *_: None)
    got = cifar.prepare(benchmark.parse(['cifar', '--batch_size', '4', '--device', 'cpu', '--compile',
                                         '--profile', str(tmp_path / 'trace.json')]), 'ours')
    both = [('ours', 'at', 4), ('ours', 'at', 2)]
    traced = (both * 9)[:measure.WARM_UP + measure.PROFILED]
    assert events == [*both, *both * (cifar.MEMORY_STEPS // 2), 'peak', *traced,
                      *[('ours', case, n) for case in ('kd', 'student') for n in (4, 2)]]
    assert list(got.contenders) == ['at', 'kd', 'student', 'loader']
    assert got.facts['peak_memory'] == {'ours': 7, 'data_set': 6 * 32 * 32 * 3}
    assert list(got.facts['compile_seconds']) == ['at', 'kd', 'student'] and got.facts['variants'] == {}
    assert min(got.facts['compile_seconds'].values()) >= 0


def test_profile_writes_a_trace(tmp_path, capsys):
    opt = benchmark.parse(['cifar', '--batch_size', '2', '--device', 'cpu'])
    step = cifar.training_of('ours', opt, 'at', CPU)
    sample = Sample(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]), 1)
    path = tmp_path / 'trace.json'
    measure.profile(str(path), (sample for _ in range(9)), step, CPU)
    names = [event.get('name') for event in strictly(path.read_text())['traceEvents']]
    assert names.count('aten::_fused_sgd_') == measure.PROFILED
    assert str(path) in capsys.readouterr().err


@pytest.mark.gpu
def test_a_trace_of_a_gpu_has_its_kernels(tmp_path):
    device = torch.device('cuda')
    step = cifar.training_of('ours', benchmark.parse(['cifar', '--batch_size', '2']), 'at', device)
    sample = Sample(torch.randn(2, 3, 32, 32, device=device), torch.tensor([1, 2], device=device), 1)
    measure.profile(str(tmp_path / 'trace.json'), (sample for _ in range(9)), step, device)
    assert 'kernel' in {e.get('cat') for e in strictly((tmp_path / 'trace.json').read_text())['traceEvents']}


# --- memory -------------------------------------------------------------------------------------------


def test_peak_memory_counts_bytes_and_starts_workers(monkeypatch):
    split = data.Images(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    monkeypatch.setattr(cifar, 'load', lambda *_: split)
    monkeypatch.setattr(cifar.roofline, 'machine', lambda *_: None)
    opt = benchmark.parse(['cifar', '--batch_size', '2', '--workers', '1', '--device', 'cpu'])
    peaks = {side: cifar.prepare(opt, side).facts['peak_memory'] for side in SIDES}
    assert list(peaks['baseline']) == ['baseline', 'baseline_worker']
    assert min([peaks['ours']['ours'], *peaks['baseline'].values()]) > 50e6  # the interpreter and torch


@pytest.mark.parametrize('side', SIDES)
def test_peak_memory_of_imagenet(side, monkeypatch):
    monkeypatch.setattr(imagenet.roofline, 'machine', lambda *_: None)
    opt = benchmark.parse(['imagenet', '--batch_size', '2', '--image_size', '64', '--device', 'cpu'])
    got = imagenet.prepare(opt, side)
    assert list(got.contenders) == list(imagenet.CASES) and list(got.facts['peak_memory']) == [side]
    assert got.facts['peak_memory'][side] > 200e6  # the networks alone


# --- by command line ----------------------------------------------------------------------------------


@pytest.fixture
def report_of(run_script):
    """The JSON of one round of one step, after checks of what all subcommands have."""
    def run(command, *arguments, **variables):
        done = run_script('tools.benchmark', command, '--steps', 1, '--rounds', 1, *arguments,
                          OMP_WAIT_POLICY='passive', **variables)
        assert done.returncode == 0
        line, = done.stdout.splitlines()
        got = strictly(line)
        assert (got['benchmark'], got['device'], got['torch']) == (command, 'cpu', torch.__version__)
        assert (got['steps'], got['rounds']) == (1, 1) and got['threads'] >= 1
        for case in got['cases'].values():
            assert list(case)[:4] == ['images_per_second', 'quartiles', 'ratio', 'ratio_quartiles']
            assert list(case)[4:] in ([], ['flops', 'bytes', 'bound_seconds', 'roofline_ratio',
                                           'roofline_quartiles'])
            assert case['ratio'] > 0 and all(case['images_per_second'][side] > 0 for side in SIDES)
        return got
    return run


def test_cifar_prints_one_strict_json_object(report_of):
    got = report_of('cifar', '--batch_size', 4, '--workers', 1, '--device', 'cpu')
    assert (got['dtype'], got['batch'], got['dataset']) == ('float', 4, 'shapes')
    assert list(got['cases']) == ['at', 'kd', 'student', 'loader']
    assert [name for name, case in got['cases'].items() if 'flops' in case] == ['at', 'kd', 'student']
    assert got['bandwidth'] > 1e8 and got['matrix_rate'] > 1e8 and got['compile_seconds'] == {}
    assert got['loader_share'] > 0 and got['time_to_first_step'] == {}
    assert got['peak_memory'].keys() == {*SIDES, 'baseline_worker', 'data_set'}
    assert got['peak_memory']['data_set'] == shapes.N_TRAIN * 32 * 32 * 3


@pytest.fixture
def in_one_process(monkeypatch):
    """Both sides in this process, and nothing that is compiled."""
    @contextlib.contextmanager
    def own_process(prepare, *arguments):
        contenders, facts = prepare(*arguments)
        yield sides.Side(list(contenders), facts, lambda case: contenders[case]())

    monkeypatch.setattr(sides, 'own_process', own_process)
    monkeypatch.setattr(layers, 'compiled', lambda losses, tensors: losses)
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'elsewhere')


def test_fast_adds_variants_and_first_steps(in_one_process, monkeypatch, tmp_path):
    split = data.Images(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr(cifar, 'load', lambda *_: split)
    monkeypatch.setattr(sides.fast, 'chosen', lambda real, *_: argparse.Namespace(
        **vars(real) | {'dtype': 'bfloat16', 'compile': True}))
    done = call(benchmark, 'cifar', '--fast', '--batch_size', 2, '--workers', 1, '--steps', 1, '--rounds', 1,
                '--device', 'cpu', cwd=tmp_path)
    got = strictly(done.out)
    assert (got['dtype'], got['compile'], got['baseline_dtype']) == ('bfloat16', True, 'float')
    assert list(got['cases']) == ['at', 'at_float', 'at_float_compiled', 'kd', 'student', 'loader']
    for name, compiles in (('at_float', False), ('at_float_compiled', True)):
        case = got['cases'][name]
        assert (case['dtype'], case['compile']) == ('float', compiles)
        speeds = case['images_per_second']
        assert speeds['baseline'] == got['cases']['at']['images_per_second']['baseline']
        assert case['ratio'] == pytest.approx(speeds['ours'] / speeds['baseline'], rel=1e-2)
    assert list(got['compile_seconds']) == ['at', 'at_float_compiled', 'kd', 'student']
    assert list(got['time_to_first_step']) == ['eager', 'compiled']


def test_bad_input_in_a_side_ends_with_one_sentence(run_script):
    done = run_script('tools.benchmark', 'cifar', '--batch_size', 6000, '--device', 'cpu')
    assert (done.returncode, done.stdout) == (2, '')
    errors = [line for line in done.stderr.splitlines() if 'error' in line or 'Traceback' in line]
    assert len(errors) == 1 and '6000' in errors[0]


def test_imagenet_prints_one_strict_json_object(report_of):
    got = report_of('imagenet', '--batch_size', 2, '--image_size', 64, '--device', 'cpu')
    assert (got['dtype'], got['baseline_dtype'], got['batch'], got['image_size']) == ('float', 'float', 2, 64)
    assert list(got['cases']) == ['at', 'student', 'teacher']
    assert [name for name, case in got['cases'].items() if 'flops' in case] == ['at', 'student']
    assert list(got['peak_memory']) == list(SIDES)


def test_loader_prints_one_strict_json_object(report_of):
    got = report_of('loader', '--batch_size', 2)
    assert (got['dataset'], got['images'], got['batch'], got['workers']) == ('drawn', loader.N_DRAWN, 2, 0)
    assert got['threads'] == 1, 'without workers, the figure is that of one core'
    assert 80_000 < got['mean_bytes'] < 120_000
    assert list(got['cases']) == ['resized', 'center']
