"""The benchmark: equal work of both sides, refusals, tiny runs by command."""
import argparse
import contextlib
import itertools

import pytest
import torch
from torchnet.engine import Engine

import layers
import method
from helpers import call, strictly
from inputs import cifar as data
from inputs import images
from layers import Sample
from tools import benchmark
from tools.benchmark import COMMANDS, cifar, loader, losses, script, sides, steps
from tools.benchmark.measure import SIDES

CPU = torch.device('cpu')


# --- what both sides compute --------------------------------------------------------------------------


def test_baseline_normalises_as_our_loader():
    """Without the random crop and flip, both make the same numbers of the same pixels."""
    split = data.Images(torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8), torch.arange(4))
    plain = cifar.PlainDataset(split, augmented=False)
    x = torch.stack([plain[i][0] for i in range(4)])
    torch.testing.assert_close(x, data.normalize(split.images))


class Made:
    """Keeps the networks of a script, which begin with the same weights for both sides."""

    def __init__(self, monkeypatch, command):
        self.networks, networks = [], type(command).networks

        def made(*arguments):
            torch.manual_seed(3)
            self.networks.append(networks(*arguments))
            return self.networks[-1]

        monkeypatch.setattr(type(command), 'networks', made)
        monkeypatch.setattr(steps.devices, 'to_device', lambda params, device: params)  # no copies


@pytest.fixture
def in_float64(monkeypatch):
    """Networks and batches; in float32 rounding may put a ReLU's input on the other side of 0."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(('name', 'case'), [('cifar', 'at'), ('cifar', 'kd'), ('cifar', 'student'),
                                            ('imagenet', 'at'), ('imagenet', 'student')])
def test_both_sides_train_by_the_same_loss(name, case, monkeypatch, in_float64):
    """From the same weights on the same batch, loss and gradients agree; the teacher of ours is folded."""
    losses = []

    class Recording(Engine):
        def train(self, h, *arguments):
            def recorded(sample):
                loss, output = h(sample)
                losses.append(loss.item())
                return loss, output
            super().train(recorded, *arguments)

    monkeypatch.setattr(steps, 'Engine', Recording)
    command, size = COMMANDS[name], {'cifar': 32, 'imagenet': 64}[name]
    made = Made(monkeypatch, command)
    opt = benchmark.parse([name, '--batch_size', '4', '--device', 'cpu'])
    sample = Sample(torch.randn(4, 3, size, size), torch.tensor([1, 2, 3, 4]), 1)
    for side in SIDES:
        real = command.real_options(opt, case)
        consume = steps.training(side, real, command.networks(opt, case), CPU, command.topk)
        assert consume([sample]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    (_, ours, f_t, _), (_, plain, *_) = made.networks
    assert ours.keys() == plain.keys() and (f_t is None) == (case == 'student')
    for name, t in ours.items():
        if t.requires_grad:
            assert (t.grad - plain[name].grad).norm() < 1e-9 * t.grad.norm(), name


def test_only_our_batch_has_channels_last():
    opt = benchmark.parse(['imagenet', '--batch_size', '2', '--image_size', '64'])
    strides = [next(COMMANDS['imagenet'].batches(opt, side, CPU)()).x.stride() for side in SIDES]
    assert strides == [(64 * 64 * 3, 1, 64 * 3, 3), (64 * 64 * 3, 64 * 64, 64, 1)]


def test_our_batches_have_one_size_and_go_through_all_epochs():
    split = data.Images(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.arange(8))
    samples = list(itertools.islice(cifar.epochs(data.Loader(split, 3, seed=1, pad=4), 3), 5))
    assert [sample.epoch for sample in samples] == [1, 1, 2, 2, 3]
    assert {len(sample.labels) for sample in samples} == {3}


# --- options and refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize('arguments, names', [
    ([], 'command'),
    (['cifar', '--steps', '0'], '--steps'),
    (['cifar', '--rounds', '0'], '--rounds'),
    (['cifar', '--workers', '0'], '--workers'),
    (['cifar', '--dtype', 'half'], '--dtype'),
    (['cifar', '--step', '1'], '--step'),
    (['loader', '--compile'], '--compile'),
    (['imagenet', '--image_size', '0'], '--image_size'),
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
    real = COMMANDS['imagenet'].real_options(benchmark.parse(['imagenet', '--device', 'cpu']), 'at')
    assert (real.beta, real.alpha, real.at_groups, real.weight_decay) == (1e3, 0, [2, 3], 1e-4)
    assert benchmark.parse(['imagenet']).image_size == images.SIZE


@pytest.mark.slow
@pytest.mark.parametrize('arguments', [['--batch_size', '6000'], ['--dataroot', 'data']])
def test_bad_input_in_a_side_ends_with_one_sentence(run_script, arguments):
    done = run_script('tools.benchmark', 'cifar', '--device', 'cpu', *arguments)
    assert (done.returncode, done.stdout) == (2, '')
    errors = [line for line in done.stderr.splitlines() if 'error' in line or 'Traceback' in line]
    assert len(errors) == 1 and arguments[0] in errors[0]


# --- the process of a side ----------------------------------------------------------------------------


def test_at_comes_first_so_that_the_peak_of_memory_is_its_own(monkeypatch):
    events, plain = [], steps.dropping(CPU)
    split = data.Images(torch.zeros(6, 32, 32, 3, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    monkeypatch.setattr(data, 'load', lambda *_: (split, split))
    monkeypatch.setattr(steps, 'training', lambda side, real, *_: lambda batches: plain(
        [events.append((side, real.beta, real.compile)) or sample for sample in batches]))
    monkeypatch.setattr(script.exits, 'peak_memory', lambda device: events.append('peak') or 7)
    monkeypatch.setattr(script.roofline, 'machine', lambda *_: script.roofline.Machine(1.0, 1.0))
    opt = benchmark.parse(['cifar', '--batch_size', '4', '--device', 'cpu', '--compile'])
    contenders, facts = COMMANDS['cifar'].prepare(opt, 'ours')
    assert events == [('ours', 1e3, True)] * (script.WARM_UP + script.MEMORY) + ['peak']
    assert list(contenders) == ['at', 'kd', 'student', 'loader'] and facts['peak_memory'] == 7
    assert list(facts['least']) == ['at', 'kd', 'student'] and facts['variants'] == {}


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize(('arguments', 'least'), [
    (['cifar', '--workers', '1'], 50e6), (['imagenet', '--image_size', '64'], 200e6)])
def test_peak_memory_counts_bytes(arguments, least, side, monkeypatch):
    """The interpreter and torch; for ImageNet also the networks."""
    split = data.Images(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    monkeypatch.setattr(data, 'load', lambda *_: (split, split))
    monkeypatch.setattr(script.roofline, 'machine', lambda *_: script.roofline.Machine(1.0, 1.0))
    opt = benchmark.parse([*arguments, '--batch_size', '2', '--device', 'cpu'])
    assert COMMANDS[arguments[0]].prepare(opt, side)[1]['peak_memory'] > least


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
        for case in got.get('cases', {}).values():
            assert list(case)[:4] == ['images_per_second', 'quartiles', 'ratio', 'ratio_quartiles']
            assert list(case)[4:] in ([], ['flops', 'bytes', 'bound_seconds', 'roofline_ratio',
                                           'roofline_quartiles'])
            assert case['ratio'] > 0 and all(case['images_per_second'][side] > 0 for side in SIDES)
        return got
    return run


@pytest.mark.slow
def test_cifar_prints_one_strict_json_object(report_of):
    got = report_of('cifar', '--batch_size', 4, '--workers', 1, '--device', 'cpu')
    assert (got['dtype'], got['batch_size'], got['dataset']) == ('float', 4, 'shapes')
    assert list(got['cases']) == ['at', 'kd', 'student', 'loader']
    assert [name for name, case in got['cases'].items() if 'flops' in case] == ['at', 'kd', 'student']
    assert got['bandwidth'] > 1e8 and got['matrix_rate'] > 1e8 and got['time_to_first_step'] == {}
    assert list(got['peak_memory']) == list(SIDES)


def test_fast_adds_variants_and_first_steps(monkeypatch, tmp_path):
    """Both sides in this process, and nothing is compiled."""
    @contextlib.contextmanager
    def own_process(prepare, *arguments):
        contenders, facts = prepare(*arguments)
        yield sides.Side(list(contenders), facts, lambda case: contenders[case]())

    split = data.Images(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr(sides, 'own_process', own_process)
    monkeypatch.setattr(layers, 'compiled', lambda losses, tensors: losses)
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'elsewhere')
    monkeypatch.setattr(data, 'load', lambda *_: (split, split))
    monkeypatch.setattr(script.fast, 'chosen', lambda real, *_: argparse.Namespace(
        **vars(real) | {'dtype': 'bfloat16', 'compile': True}))
    done = call(benchmark, 'cifar', '--fast', '--batch_size', 2, '--workers', 1, '--steps', 1, '--rounds', 1,
                '--device', 'cpu', cwd=tmp_path)
    got = strictly(done.out)
    assert (got['dtype'], got['compile'], got['baseline_dtype']) == ('bfloat16', True, 'float')
    assert list(got['cases']) == ['at', 'kd', 'student', 'at_float', 'at_float_compiled', 'loader']
    for name, compiles in (('at_float', False), ('at_float_compiled', True)):
        case = got['cases'][name]
        assert (case['dtype'], case['compile']) == ('float', compiles)
        speeds = case['images_per_second']
        assert speeds['baseline'] == got['cases']['at']['images_per_second']['baseline']
        assert case['ratio'] == pytest.approx(speeds['ours'] / speeds['baseline'], rel=1e-2)
    assert list(got['time_to_first_step']) == ['eager', 'compiled']


@pytest.mark.slow
def test_losses_prints_one_strict_json_object(report_of):
    got = report_of('losses', '--batch_size', 4)
    assert list(got['losses']) == ['student', *(row.name for row in method.LOSSES)]
    assert got['losses']['kd']['ratio_to_kd'] == 1
    for found in got['losses'].values():
        low, high = found['quartiles']
        assert 0 < low <= found['milliseconds'] <= high and found['ratio_to_kd'] > 0


def test_figures_of_a_loss():
    found = losses.figures([100.0, 50.0, 80.0], [200.0, 50.0, 120.0], 10)
    assert found['milliseconds'] == 125  # of 100, 200 and 125
    assert found['ratio_to_kd'] == 1.5  # of 2, 1 and 1.5


@pytest.mark.slow
def test_imagenet_prints_one_strict_json_object(report_of):
    got = report_of('imagenet', '--batch_size', 2, '--image_size', 64, '--device', 'cpu')
    assert (got['dtype'], got['baseline_dtype'], got['batch_size'],
            got['image_size']) == ('float', 'float', 2, 64)
    assert list(got['cases']) == ['at', 'student']
    assert all('flops' in case for case in got['cases'].values())
    assert list(got['peak_memory']) == list(SIDES)


def test_loader_prints_one_strict_json_object(report_of):
    got = report_of('loader', '--batch_size', 2)
    assert (got['dataset'], got['images'], got['batch_size']) == ('drawn', loader.N_DRAWN, 2)
    assert got['threads'] == 1, 'without workers, the figure is that of one core'
    assert 80_000 < got['mean_bytes'] < 120_000
    assert list(got['cases']) == ['resized', 'center']
