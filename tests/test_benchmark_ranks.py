"""Ranks: fit and model by figures worked by hand, two ranks that measure, and options that are refused."""
import argparse
import json
import multiprocessing

import pytest
import torch
from conftest import ROOT

import resnet
from tools import benchmark
from tools.benchmark import imagenet, ranks


def options_with(**changed):
    return argparse.Namespace(**vars(benchmark.parse(['ranks'])) | changed)


def test_traffic_of_a_ring():
    """Each rank sends n - 1 parts of n twice: to add them up, and to pass the sums round."""
    assert [ranks.traffic(n, 120) for n in (1, 2, 3, 4)] == [0, 120, 160, 180]


def test_fit_finds_the_line():
    """1 ms and 2 GB/s on 4 ranks: 8 MB are 12 MB of traffic, 6 ms."""
    assert ranks.fit(4, [8000000, 800000, 80000000], [0.007, 0.0016, 0.061]) == pytest.approx(
        {'latency_seconds': 0.001, 'bytes_per_second': 2e9})


def test_fit_has_the_least_relative_errors():
    sizes, seconds = [1000, 20000, 500000], [0.002, 0.005, 0.04]
    found = ranks.fit(2, sizes, seconds)

    def errors(latency=1.0, bandwidth=1.0):
        return sum(((found['latency_seconds'] * latency + size / found['bytes_per_second'] / bandwidth) / t
                    - 1)**2 for size, t in zip(sizes, seconds, strict=True))

    assert errors() > 1e-3
    assert all(errors() < errors(*factors) for factors in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)))


def test_no_fit_of_one_size():
    assert ranks.fit(2, [1000], [0.1]) is None and ranks.fit(1, [], []) is None


SLOW = {'fixed_ms': 10, 'gpu_images_per_second': 1000, 'link_gbytes': 0.46758048, 'network_gbytes': 0.1,
        'gpus_per_machine': 2, 'latency_us': 1000}


@pytest.mark.parametrize(('n', 'more', 'exposed'), [
    (1, {}, 0),
    (2, {'overlap': 0}, 0.102),                             # 2 messages of 1 ms, 46758048 bytes
    (2, {'overlap': 0.25}, 0.0765),
    (2, {'overlap': 1}, 0.102 - 0.1 * 3.628 / 9.106),       # no more than the backward pass hides
    (4, {'overlap': 0}, 0.006 + 1.5 * 0.46758048),          # over the network
    (4, {'overlap': 0, 'network_gbytes': 99}, 0.006 + 0.15),    # no faster than within a machine
])
def test_step_of_the_model(n, more, exposed):
    """90 images at 1000 a second and 10 ms: 0.1 s."""
    assert ranks.model_step(options_with(**SLOW | more), n, 90) == pytest.approx((0.1 + exposed, exposed))


def test_a_fit_to_noise_is_none():
    assert ranks.fit(2, [4, 8], [1.1e-4, 1e-4]) is None and ranks.fit(2, [4, 8], [1e-4, 1e-4]) is None
    assert ranks.fit(2, [4, 8], [1e-4, 1.1e-4]) is not None


def test_hours_of_the_model():
    """ImageNet has 5005 batches of 256 and 1252 of 1024, 100 epochs; a batch of 256 takes a second."""
    opt = options_with(gpu_images_per_second=256, fixed_ms=0, latency_us=0, link_gbytes=1e9)
    one, fixed, scaled = (ranks.modelled(opt, *case) for case in ((1, 256), (4, 256), (4, 1024)))
    assert [one['step_seconds'], one['hours'], one['gpu_hours'], one['efficiency']] == [1, 139.0, 139.0, 1]
    assert [fixed['step_seconds'], fixed['hours'], fixed['gpu_hours'], fixed['efficiency']] == [
        0.25, 34.76, 139.0, 1]
    assert [scaled['step_seconds'], scaled['hours'], scaled['gpu_hours']] == [1, 34.78, 139.1]
    assert scaled['efficiency'] == pytest.approx(5005 / 5008, abs=1e-4)


def test_the_published_model_is_this_one():
    found = json.loads((ROOT / 'results' / 'scaling' / 'ranks_cpu.json').read_text())
    opt = options_with(**{name: found['assumed'][name] for name in ranks.ASSUMED})
    for rows in found['model'].values():
        assert rows == [ranks.modelled(opt, row['gpus'], row['batch']) for row in rows]


def test_what_a_batch_does_not_shorten_costs_efficiency():
    """A batch of 256 in 1 + 1 s, one of 64 in 1 + 0.25 s."""
    opt = options_with(gpu_images_per_second=256, fixed_ms=1000, latency_us=0, link_gbytes=1e9)
    assert ranks.modelled(opt, 4, 256)['efficiency'] == 2 / (4 * 1.25)
    assert ranks.modelled(opt, 4, 1024)['efficiency'] == pytest.approx(1, abs=1e-3)


def test_figures_of_rounds():
    """The exchange is that of a round, not of medians: 2, 1 and 6 s, where medians are 2 s apart."""
    found = {('all-reduce', 4000): [0.3, 0.1, 0.2], ('all-reduce', 8000): [0.4, 0.4, 0.4],
             ('step', 'with'): [3, 5, 7], ('step', 'without'): [1, 4, 1]}
    point = ranks.point(2, found)
    assert point['ranks'] == 2
    assert point['all_reduce'][0] == {'bytes': 4000, 'seconds': 0.2,
                                      'quartiles': pytest.approx([0.15, 0.25])}
    assert point['fit'] == {'latency_seconds': pytest.approx(0, abs=1e-12), 'bytes_per_second': 20000}
    assert {name: value['seconds'] for name, value in point['step'].items()} == {
        'with': 5, 'without': 1, 'exchange': 2}


def test_two_ranks_measure(monkeypatch):
    """In forks, which need not import torch again, and with small networks."""
    fork = multiprocessing.get_context('fork')
    monkeypatch.setattr(multiprocessing, 'get_context', lambda _: fork)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)  # a fork has no other threads of OpenMP
    monkeypatch.setattr(imagenet, 'networks', lambda _: (
        *resnet.resnet(18, 0.0625, imagenet.NUM_CLASSES), *resnet.resnet(18, 0.125, imagenet.NUM_CLASSES)))
    opt = options_with(bytes=[400, 4000], batch_size=2, steps=1, rounds=2)
    found = ranks.ranks(opt, 2)
    assert set(found) == {('all-reduce', 400), ('all-reduce', 4000), ('step', 'with'), ('step', 'without')}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.values())
    alone = ranks.point(1, ranks.ranks(opt, 1))
    assert alone['all_reduce'] == [] and list(alone['step']) == ['without']


@pytest.mark.parametrize(('arguments', 'names'), [
    (['--ranks', '[0,2]'], '--ranks'),
    (['--ranks', '[]'], '--ranks'),
    (['--bytes', '[0]'], '--bytes'),
    (['--bytes', '[1002]'], '--bytes'),
    (['--overlap', '1.5'], '--overlap'),
    (['--link_gbytes', '0'], '--link_gbytes'),
    (['--image_size', '32'], '--image_size'),
])
def test_options_without_meaning(arguments, names, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.parse(['ranks', *arguments])
    message = capsys.readouterr().err
    assert end.value.code == 2 and names in message and message.count('\n') == 1
