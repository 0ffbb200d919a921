"""Network-in-Network against a twin of modules; its weights in files, folded, and beside wide ResNets."""
import itertools

import pytest
import torch
from torch import nn

import cifar
import layers
import nin
import resnet
from helpers import call, log_of
from tools import export
from utils import InputError
from weights import networks

KINDS = list(itertools.product([True, False], repeat=2))  # with BN, with ReLU before pooling


class Twin(nn.Module):
    """Nine convolutions in a row, with what follows each; the groups end where pooling begins."""

    def __init__(self, channels, classes, bn, pool_relu):
        super().__init__()
        blocks = []
        for first in (3, channels, channels):
            parts = []
            for i, (n_in, kernel) in enumerate([(first, 3), (channels, 1), (channels, 1)]):
                parts.append(nn.Conv2d(n_in, channels, kernel, padding=kernel // 2, bias=not bn))
                if bn:
                    parts.append(nn.BatchNorm2d(channels))
                if i < 2 or pool_relu:
                    parts.append(nn.ReLU())
            blocks.append(nn.Sequential(*parts))
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(channels, classes)

    def forward(self, x):
        maps = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            maps.append(block(nn.MaxPool2d(2)(maps[-1])))
        return self.head(nn.AdaptiveAvgPool2d(1)(maps[-1]).flatten(1)), maps


def pair(bn, pool_relu, channels=12):
    """Ours and the twin with the same weights, BN's drawn at random, in float64."""
    f, params = nin.nin(channels, 5, bn, pool_relu)
    params = {name: (torch.rand(t.shape) + 0.5 if t.dim() == 1 else t).double() for name, t in params.items()}
    twin = Twin(channels, 5, bn, pool_relu).double()
    own = [t for name, t in params.items() if not layers.is_statistic(name)]
    with torch.no_grad():
        for theirs, ours in zip(twin.parameters(), own, strict=True):
            theirs.copy_(ours)
        statistics = [t for name, t in params.items() if layers.is_statistic(name)]
        others = [t for name, t in twin.named_buffers() if 'num_batches' not in name]
        for theirs, ours in zip(others, statistics, strict=True):
            theirs.copy_(ours)
    return f, params, twin


@pytest.mark.parametrize(('bn', 'pool_relu'), KINDS)
@pytest.mark.parametrize('mode', [True, False])
def test_the_network_is_that_of_modules(bn, pool_relu, mode):
    f, params, twin = pair(bn, pool_relu)
    layers.trainable(params)
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    logits, groups = f(x, params, mode)
    expected, maps = twin.train(mode)(x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert [tuple(g.shape) for g in groups] == [(6, 12, 32, 32), (6, 12, 16, 16), (6, 12, 8, 8)]
    for ours, theirs in zip(groups, maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert all((g.min() >= 0) == pool_relu for g in groups)
    (logits.square().sum() + groups[1].sum()).backward()
    (expected.square().sum() + maps[1].sum()).backward()
    own = [t for name, t in params.items() if not layers.is_statistic(name)]
    for ours, theirs in zip(own, twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8)
    if bn:
        for name, theirs in (('mean', twin.blocks[2][7].running_mean), ('var',
                                                                        twin.blocks[2][7].running_var)):
            torch.testing.assert_close(params[f'group2.bn2.running_{name}'], theirs)


@pytest.mark.parametrize(('width', 'bn', 'trained'), [
    (96, True, 226_474), (192, True, 895_306),  # "0.2M" and "1M" of Table 1
    (96, False, 223_776 + 970 + 9 * 96)])  # convolutions, linear layer, biases
def test_number_of_parameters(width, bn, trained):
    _, params = nin.nin(width, 10, bn)
    assert layers.n_parameters(layers.trainable(params)) == trained


@pytest.mark.parametrize(('bn', 'pool_relu'), KINDS)
@pytest.mark.parametrize('ending', ['.pth', '.safetensors', '.onnx'])
def test_a_file_tells_which_nin_it_holds(tmp_path, bn, pool_relu, ending):
    f, params, _ = pair(bn, pool_relu)
    params = {name: t.float() for name, t in params.items()}
    x = torch.randn(3, 3, 32, 32)
    torch.save(params, tmp_path / 'own.pth')
    f_loaded, loaded = resnet.load(tmp_path / 'own.pth')
    assert list(loaded) == list(params)
    torch.testing.assert_close(f_loaded(x, loaded, False), f(x, params, False), rtol=0, atol=0)
    assert networks.describe(loaded) == (
        'NIN of width 12' + ('' if bn else ' without BN')
        + ('' if pool_relu else ' without ReLU before pooling')
        + f', 5 classes, {layers.n_parameters(params):,} parameters')
    for form in (loaded, resnet.fold(loaded)):
        assert networks.fields(form) == {'kind': 'NIN', 'depth': 9, 'width': 12, 'pool_relu': pool_relu}
    content, deviation = export.export(f, params, ending)
    assert deviation < 1e-5
    if ending != '.onnx':
        (tmp_path / f'out{ending}').write_bytes(content)
        assert 'without BN' in networks.describe(resnet.load(tmp_path / f'out{ending}')[1])


@pytest.mark.parametrize(('bn', 'pool_relu'), KINDS)
def test_folded_it_has_the_same_maps(bn, pool_relu):
    f, params, _ = pair(bn, pool_relu)
    folded = resnet.fold(params)
    f_folded, folded = networks.network(folded)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(f_folded(x, folded, False), f(x, params, False), rtol=0, atol=1e-10)
    assert not any(map(layers.is_statistic, folded)) and networks.image_size(folded) == 32


def test_damaged_files_are_refused():
    _, params = nin.nin(8, 10)
    for change, said in (({'group1.conv1': None}, 'lacks group1.conv1'), ({'group1.extra': torch.ones(1)},
                                                                          'unknown'),
                         ({'group1.conv2': torch.ones(8, 7, 1, 1)}, r'group1.conv2 is \(8, 7, 1, 1\)'),
                         ({'group0.conv0': None}, 'no network of this project')):
        wrong = {name: t for name, t in (params | change).items() if t is not None}
        with pytest.raises(InputError, match=said):
            networks.network(wrong)
    with pytest.raises(InputError, match='at least 1 channel'):
        nin.nin(0, 10)


def test_a_mirrored_image_has_mirrored_groups_under_mirrored_filters():
    """Max-pooling of 2x2 has no side, as one of 3x3 with stride 2 would."""
    f, params, _ = pair(True, True)
    mirrored = {name: t.flip(3) if t.dim() == 4 else t for name, t in params.items()}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for ours, other in zip(f(x, params, False)[1], f(x.flip(3), mirrored, False)[1], strict=True):
        torch.testing.assert_close(ours, other.flip(3))


def test_teacher_and_student_of_different_families(tmp_path):
    short = ['--dataset', 'shapes', '--max_images', 24, '--batch_size', 16, '--epochs', 1, '--epoch_step',
             '[]']
    teachers = {'nin': ['--model', 'nin', '--width', 12], 'wrn': ['--depth', 10, '--width', 0.5]}
    for name, options in teachers.items():
        assert call(cifar, '--save', tmp_path / name, *options, *short, cwd=tmp_path).status == 0
    for teacher, student in (('wrn', ['--model', 'nin', '--width', 8]), ('nin', ['--depth', 10, '--width',
                                                                                 0.25])):
        done = call(cifar, '--save', tmp_path / f'from_{teacher}', *student, *short, '--teacher_id',
                    tmp_path / teacher, '--beta', '1e3', '--alpha', 0.5, '--hint_beta', 10, cwd=tmp_path)
        assert done.status == 0 and not done.errors
        record = log_of(tmp_path / f'from_{teacher}')[-1]
        assert len(record['at_losses']) == len(record['hint_losses']) == 3
        done = call(cifar, '--evaluate', '--student_params', tmp_path / f'from_{teacher}', '--dataset',
                    'shapes',
                    '--max_images', 24, cwd=tmp_path)
        assert f'error {100 - record["test_acc"]:.2f}' in done.out
    records = {name: log_of(tmp_path / name)[-1] for name in teachers}
    assert (records['nin']['model'], records['nin']['width'], records['nin']['depth']) == ('nin', 12, 9)
    assert records['wrn']['model'] == 'wrn'
