"""The benchmark: figures from blocks by hand, refusals, and one tiny run by command line."""
import json

import pytest
import torch

import data
import shapes
from tools import benchmark


def blocks(**ours_and_baseline):
    return {case: dict(zip(benchmark.SIDES, sides, strict=True)) for case, sides in ours_and_baseline.items()}


def test_summary_takes_medians_and_ratios_round_by_round():
    # the machine is ten times slower in the second round: ratios of medians would be 200 / 100
    got = benchmark.summary(blocks(at=([300.0, 20.0, 200.0], [100.0, 10.0, 160.0]),
                                   loader=([6000.0, 2000.0, 5000.0], [600.0, 500.0, 500.0])))
    at = got['cases']['at']
    assert at['images_per_second'] == {'ours': 200, 'baseline': 100}
    assert at['quartiles'] == {'ours': [110, 250], 'baseline': [55, 130]}
    assert at['ratio'] == 2  # of 3, 2 and 1.25
    assert at['ratio_quartiles'] == [1.625, 2.5]
    assert got['cases']['loader']['ratio'] == 10
    assert got['loader_share'] == 0.04  # of 0.05, 0.01 and 0.04: 5000 images/s take 0.04 of the time of 200


def test_summary_of_one_round():
    got = benchmark.summary(blocks(at=([4.0], [2.0]), loader=([8.0], [1.0])))
    assert got['cases']['at'] == {'images_per_second': {'ours': 4, 'baseline': 2},
                                  'quartiles': {'ours': [4, 4], 'baseline': [2, 2]},
                                  'ratio': 2, 'ratio_quartiles': [2, 2]}
    assert got['loader_share'] == 0.5


def test_summary_refuses_sides_of_different_length():
    with pytest.raises(ValueError):
        benchmark.summary(blocks(at=([1.0, 2.0], [1.0]), loader=([1.0], [1.0])))


def test_baseline_normalises_as_our_loader():
    """Without the random crop and flip, both make the same numbers of the same pixels."""
    split = data.Images(torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8), torch.arange(4))
    plain = benchmark.PlainDataset(split)
    plain.transform.transforms[:3] = []
    x = torch.stack([plain[i][0] for i in range(4)])
    torch.testing.assert_close(x, data.normalize(split.images))


@pytest.mark.parametrize('case', benchmark.CASES)
def test_both_sides_train_by_the_same_loss(case, monkeypatch):
    """From the same weights on the same batch, one step of ours and one of the baseline agree."""
    opt = benchmark.parse(['cifar', '--batch_size', '4', '--device', 'cpu'])
    sample = data.Sample(torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4]), 1)
    made, networks = [], benchmark.networks

    def remember(*arguments):
        torch.manual_seed(3)
        made.append(networks(*arguments))
        return made[-1]

    monkeypatch.setattr(benchmark, 'networks', remember)
    monkeypatch.setattr(benchmark.devices, 'to_device', lambda params, device: params)  # no copies
    for side in (benchmark.our_training, benchmark.plain_training):
        assert side(opt, case, torch.device('cpu'))([sample]) == 4
    (_, ours, *_), (_, plain, *_) = made
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('arguments, names', [
    ([], 'command'),
    (['cifar', '--steps', '0'], '--steps'),
    (['cifar', '--rounds', '0'], '--rounds'),
    (['cifar', '--workers', '0'], '--workers'),
    (['cifar', '--dtype', 'half'], '--dtype'),
    (['cifar', '--dataroot', 'data'], '--dataroot'),
    (['cifar', '--step', '1'], '--step'),
])
def test_options_without_meaning_end_with_status_2_and_one_sentence(arguments, names, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.parse(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2 and names in message and message.count('\n') == 1


def test_batch_beyond_the_data_set(monkeypatch):
    split = data.Images(torch.zeros(3, 32, 32, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    monkeypatch.setattr(data, 'load', lambda *_: (split, split))
    opt = benchmark.parse(['cifar', '--batch_size', '4'])
    with pytest.raises(benchmark.InputError, match='--batch_size 4 is more than the 3 images of shapes'):
        benchmark.load(opt, torch.device('cpu'))


def test_peak_memory_counts_bytes_and_starts_workers(monkeypatch):
    split = data.Images(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    monkeypatch.setattr(benchmark, 'load', lambda *_: split)
    opt = benchmark.parse(['cifar', '--batch_size', '2', '--workers', '1', '--device', 'cpu'])
    peaks = benchmark.peak_memory(opt, 'ours') | benchmark.peak_memory(opt, 'baseline')
    assert list(peaks) == ['ours', 'baseline', 'baseline_worker']
    assert min(peaks.values()) > 50e6  # the interpreter and torch


def test_run_prints_one_strict_json_object(run_script):
    done = run_script('tools.benchmark', 'cifar', '--steps', 1, '--rounds', 1, '--batch_size', 4,
                      '--workers', 1, '--no_memory', '--device', 'cpu', OMP_WAIT_POLICY='passive')
    assert done.returncode == 0
    line, = done.stdout.splitlines()
    got = json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not strict JSON'))
    assert (got['device'], got['dtype'], got['batch'], got['dataset']) == ('cpu', 'float', 4, 'shapes')
    assert got['torch'] == torch.__version__ and got['threads'] >= 1
    assert list(got['cases']) == ['student', 'kd', 'at', 'loader']
    for case in got['cases'].values():
        assert case['ratio'] > 0
        assert all(case['images_per_second'][side] > 0 for side in benchmark.SIDES)
    assert got['loader_share'] > 0
    assert got['peak_memory'] == {'data_set': shapes.N_TRAIN * 32 * 32 * 3}
