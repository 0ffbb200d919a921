"""Wide ResNets against a twin of modules, and the files that hold their weights."""
import collections
import math
import pickle
import struct
import zipfile

import pytest
import torch
from torch import nn

import layers
import resnet
from helpers import Payload
from utils import InputError

# --- a pre-activation wide ResNet of modules -------------------------------------------------------------


class Unit(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.norm_in, self.norm_mid = nn.BatchNorm2d(n_in), nn.BatchNorm2d(n_out)
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if n_in != n_out else None

    def forward(self, x):
        activated = torch.relu(self.norm_in(x))
        residual = self.second(torch.relu(self.norm_mid(self.first(activated))))
        return residual + (x if self.skip is None else self.skip(activated))


class Twin(nn.Module):
    def __init__(self, blocks, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages, last = [], 16
        for stage, n in enumerate(channels):
            units = [Unit(last if k == 0 else n, n, 2 if stage > 0 and k == 0 else 1) for k in range(blocks)]
            stages.append(nn.Sequential(*units))
            last = n
        self.stages = nn.ModuleList(stages)
        self.norm, self.head = nn.BatchNorm2d(last), nn.Linear(last, classes)

    def forward(self, x):
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.norm(x)), 1)
        return self.head(torch.flatten(x, 1)), maps

    def named(self):
        """{name in the functional network: parameter or buffer}"""
        modules = {'conv0': self.stem, 'bn': self.norm, 'fc': self.head}
        for g, stage in enumerate(self.stages):
            for b, unit in enumerate(stage):
                modules |= {f'group{g}.block{b}.{name}': module for name, module in (
                    ('conv0', unit.first), ('conv1', unit.second), ('convdim', unit.skip),
                    ('bn0', unit.norm_in), ('bn1', unit.norm_mid)) if module is not None}
        found = {}
        for name, module in modules.items():
            if isinstance(module, nn.Conv2d):
                found[name] = module.weight
            else:
                found |= {f'{name}.{k}': t for k, t in module.state_dict(keep_vars=True).items()
                          if k != 'num_batches_tracked'}
        return found


def randomised(params):
    """In float64, with statistics and biases that a fresh network would not tell apart."""
    return {name: torch.rand_like(t, dtype=torch.float64) + 0.5 if 'bn' in name and 'bias' not in name
            else torch.randn_like(t, dtype=torch.float64) * 0.1 if 'bias' in name else t.double()
            for name, t in params.items()}


@pytest.mark.parametrize('mode', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize(('depth', 'width', 'channels', 'shape'), [
    (10, 1, (16, 32, 64), (2, 3, 32, 32)), (16, 2, (32, 64, 128), (2, 3, 8, 8)),
    (10, 0.5, (8, 16, 32), (3, 3, 9, 7)), (16, 1.5, (24, 48, 96), (2, 3, 8, 8)),
    (10, 0.25, (4, 8, 16), (2, 3, 8, 8)), (10, 0.3, (4, 9, 19), (2, 3, 8, 8))])
@pytest.mark.parametrize('base', ['', 'student.'])
def test_equals_its_twin(depth, width, channels, shape, mode, base):
    f, params = resnet.wide_resnet(depth, width, 7)
    params = randomised(params)
    twin = Twin((depth - 4) // 6, channels, 7).double().train(mode)
    named = twin.named()
    assert named.keys() == params.keys()
    for name, t in named.items():
        assert t.shape == params[name].shape
        t.data.copy_(params[name])
    layers.trainable(params)

    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    logits, groups = f(x, {base + name: t for name, t in params.items()}, mode, base)
    expected, maps = twin(x)
    assert len(groups) == 3
    assert [g.shape[1] for g in groups] == list(channels)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    for g, m in zip(groups, maps, strict=True):
        torch.testing.assert_close(g, m, rtol=1e-9, atol=1e-9)

    labels = torch.arange(shape[0])
    for y, outputs in ((logits, groups), (expected, maps)):
        (nn.functional.cross_entropy(y, labels) + sum(o.square().mean() for o in outputs)).backward()
    for name, t in named.items():
        torch.testing.assert_close(params[name].detach(), t.detach(), rtol=1e-9, atol=1e-9)  # the statistics
        assert params[name].requires_grad == t.requires_grad
        if t.requires_grad:
            torch.testing.assert_close(params[name].grad, t.grad, rtol=1e-8, atol=1e-9)


def test_projections_only_where_channels_change():
    for width, groups in ((1, '12'), (2, '012'), (0.5, '012')):
        _, params = resnet.wide_resnet(16, width, 10)
        assert [n for n in params if 'convdim' in n] == [f'group{g}.block0.convdim' for g in groups]


def test_smallest_input():
    f, params = resnet.wide_resnet(10, 1, 10)
    logits, groups = f(torch.randn(1, 3, 4, 4), params, False)
    assert logits.isfinite().all() and [g.shape[2:] for g in groups] == [(4, 4), (2, 2), (1, 1)]


# --- parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('depth', 'width', 'published', 'n_trainable'), [
    (16, 1, 175_994, 175_066), (16, 2, 693_498, 691_674),
    (40, 1, 566_650, 563_930), (40, 2, 2_248_954, 2_243_546)])
def test_published_numbers_of_parameters(depth, width, published, n_trainable):
    _, params = resnet.wide_resnet(depth, width, 10)
    assert layers.n_parameters(params) == published
    assert sum(t.numel() for t in layers.trainable(params).values()) == n_trainable


BN = ['weight', 'bias', 'running_mean', 'running_var']


def test_names_and_shapes():
    _, params = resnet.wide_resnet(16, 1, 10)
    expected = {'conv0': (16, 3, 3, 3), 'fc.weight': (10, 64), 'fc.bias': (10,)}
    expected |= {f'bn.{k}': (64,) for k in BN}
    expected |= {'group1.block0.convdim': (32, 16, 1, 1), 'group2.block0.convdim': (64, 32, 1, 1)}
    for block, n_in, n_out in [
            ('group0.block0', 16, 16), ('group0.block1', 16, 16), ('group1.block0', 16, 32),
            ('group1.block1', 32, 32), ('group2.block0', 32, 64), ('group2.block1', 64, 64)]:
        expected |= {f'{block}.conv0': (n_out, n_in, 3, 3), f'{block}.conv1': (n_out, n_out, 3, 3)}
        expected |= {f'{block}.bn0.{k}': (n_in,) for k in BN} | {f'{block}.bn1.{k}': (n_out,) for k in BN}
    assert {name: tuple(t.shape) for name, t in params.items()} == expected


@pytest.mark.parametrize('depth', [-2, 4, 9, 11, 17, 18, 41])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(InputError, match=f'6n . 4.*not {depth}$'):
        resnet.wide_resnet(depth, 1, 10)


def test_width_without_channels():
    with pytest.raises(InputError, match='channels'):
        resnet.wide_resnet(10, 0.05, 10)
    assert resnet.wide_resnet(10, 0.0625, 10)[1]['group0.block0.conv0'].shape == (1, 16, 3, 3)


def test_initialisation():
    _, params = resnet.wide_resnet(10, 4, 10)
    for name, t in params.items():
        if t.dim() > 1 and t.numel() > 5000:
            assert t.std().item() == pytest.approx(math.sqrt(2 / t[0].numel()), rel=0.05), name
            assert abs(t.mean().item()) < 0.05 * t.std().item(), name
        elif name.endswith(('bn.weight', 'bn0.weight', 'bn1.weight')):
            assert t.min() >= 0 and t.max() <= 1 and t.unique().numel() > len(t) // 2, name
        elif name.endswith(('bias', 'running_mean')):
            assert not t.any(), name
        elif name.endswith('running_var'):
            assert t.eq(1).all(), name
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in params.values())
    torch.manual_seed(3)
    a, b = (resnet.wide_resnet(10, 1, 10)[1] for _ in range(2))
    torch.manual_seed(3)
    c = resnet.wide_resnet(10, 1, 10)[1]
    assert all(torch.equal(t, c[name]) for name, t in a.items())
    assert not torch.equal(a['conv0'], b['conv0'])


# --- weights from files ----------------------------------------------------------------------------------


def network(depth=10, width=1, classes=5):
    _, params = resnet.wide_resnet(depth, width, classes)
    return {name: t.float() for name, t in randomised(params).items()}


def optimizer_state(params):
    return {'state': {i: {'momentum_buffer': torch.ones_like(t)} for i, t in enumerate(params.values())},
            'param_groups': [{'lr': 0.1, 'params': list(range(len(params)))}]}


def check_loaded(path, params, depth, width, classes):
    before = torch.get_rng_state()
    f, loaded = resnet.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.keys() == params.keys()
    assert all(torch.equal(loaded[name], t) for name, t in params.items())
    kinds = {(t.dtype, t.device.type, t.requires_grad) for t in loaded.values()}
    assert kinds == {(torch.float32, 'cpu', False)}
    g, _ = resnet.wide_resnet(depth, width, classes)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(f(x, loaded, False)[0], g(x, params, False)[0])


@pytest.mark.parametrize(('depth', 'width', 'classes'), [
    (10, 1, 5), (16, 2, 10), (22, 0.5, 100), (10, 1.5, 5), (10, 0.3, 5), (10, 1.1, 5), (10, 0.0625, 5)])
def test_load_checkpoint_and_folder(tmp_path, depth, width, classes):
    params = network(depth, width, classes)
    state = {'params': params, 'optimizer': optimizer_state(params), 'epoch': 3, 'options': {'depth': depth}}
    torch.save(state, tmp_path / 'model.pt7')
    (tmp_path / 'log.txt').write_text('{"epoch": 3}\n')
    for path in (tmp_path / 'model.pt7', tmp_path, str(tmp_path)):
        check_loaded(path, params, depth, width, classes)


def test_load_plain_dictionaries(tmp_path):
    params = network()
    for content in (params, collections.OrderedDict(params), dict(reversed(params.items())),
                    {name: nn.Parameter(t) for name, t in params.items()},
                    {name: t.double() for name, t in params.items()},
                    {'params': {'student.' + name: t for name, t in params.items()}}):
        torch.save(content, tmp_path / 'weights.pth')
        check_loaded(tmp_path / 'weights.pth', params, 10, 1, 5)
    torch.save({name: t.half() for name, t in params.items()}, tmp_path / 'half.pth')
    check_loaded(tmp_path / 'half.pth', {name: t.half().float() for name, t in params.items()}, 10, 1, 5)


@pytest.mark.parametrize('zipped', [True, False])
def test_load_run_of_the_published_code_with_a_teacher(tmp_path, zipped):
    params, teacher = network(), network(16, 2)
    both = collections.OrderedDict(
        [('teacher.' + name, t) for name, t in teacher.items()] +
        [('student.' + name, t.requires_grad_(not layers.is_statistic(name))) for name, t in params.items()])
    torch.save({'params': both, 'optimizer': optimizer_state(both), 'epoch': 200}, tmp_path / 'model.pt7',
               _use_new_zipfile_serialization=zipped)
    (tmp_path / 'log.txt').write_text('json_stats: {"epoch": 200, "at_losses": [[NaN, NaN]]}\n')
    check_loaded(tmp_path, {name: t.detach() for name, t in params.items()}, 10, 1, 5)


class OldTensor:
    """A tensor as torch pickled it in 2017."""

    def __init__(self, t):
        self.t = t.contiguous()

    def __reduce__(self):
        return torch._utils._rebuild_tensor, (self, 0, tuple(self.t.shape), tuple(self.t.stride()))


def write_as_in_2017(path, params):
    """torch.save of a GPU's tensors before there were zip files: pickles, then bytes of each storage."""
    tensors = {}

    class Pickler(pickle.Pickler):
        inside = None

        def persistent_id(self, value):
            if not isinstance(value, OldTensor):
                return None
            if self.inside is not value:  # first the tensor, then, among its arguments, its storage
                self.inside = value
                return None
            key = str(id(value))
            tensors[key] = value.t
            return 'storage', torch.cuda.FloatStorage, key, 'cuda:0', value.t.numel(), None

    with open(path, 'wb') as f:
        for header in (0x1950a86a20f9469cfc6c, 1001, {'protocol_version': 1001, 'little_endian': True,
                       'type_sizes': {'short': 2, 'int': 4, 'long': 8}}):
            pickle.dump(header, f, 2)
        old = {name: OldTensor(t) for name, t in params.items()}
        Pickler(f, 2).dump({'params': old, 'optimizer': {'state': {140: {}}}, 'epoch': 200})
        pickle.dump(sorted(tensors), f, 2)
        for key in sorted(tensors):
            f.write(struct.pack('<q', tensors[key].numel()) + tensors[key].numpy().tobytes())


def test_load_tensors_of_a_gpu_as_written_in_2017(tmp_path):
    params = network()
    write_as_in_2017(tmp_path / 'model.pt7', params)
    check_loaded(tmp_path / 'model.pt7', params, 10, 1, 5)


def test_load_tensors_of_a_gpu(tmp_path):
    params = network()
    torch.save({'params': params}, tmp_path / 'cpu')
    with zipfile.ZipFile(tmp_path / 'cpu') as cpu, zipfile.ZipFile(tmp_path / 'gpu', 'w') as gpu:
        for entry in cpu.infolist():
            content = cpu.read(entry)
            if entry.filename.endswith('data.pkl'):
                assert content.count(b'X\3\0\0\0cpu') == 1
                content = content.replace(b'X\3\0\0\0cpu', b'X\6\0\0\0cuda:1')
            gpu.writestr(entry, content)
    check_loaded(tmp_path / 'gpu', params, 10, 1, 5)


def refused(path, *words):
    with pytest.raises(InputError) as error:
        resnet.load(path)
    message = str(error.value)
    assert str(path) in message and '\n' not in message
    for word in words:
        assert word in message


def test_missing_files(tmp_path):
    refused(tmp_path / 'nothing', 'No such file')
    refused(tmp_path, 'no log.txt', 'no model.pt7')
    (tmp_path / 'log.txt').touch()
    refused(tmp_path, 'no model.pt7')
    (tmp_path / 'log.txt').unlink()
    torch.save(network(), tmp_path / 'model.pt7')
    refused(tmp_path, 'no log.txt')


def test_truncated_files(tmp_path):
    torch.save({'params': network()}, tmp_path / 'model.pt7')
    whole = (tmp_path / 'model.pt7').read_bytes()
    part = tmp_path / 'part.pt7'
    for n in (0, 1, 2, 4, 30, 64, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 22, len(whole) - 1):
        part.write_bytes(whole[:n])
        refused(part)


def test_foreign_pickles_run_no_code(tmp_path):
    victim, path = tmp_path / 'written', tmp_path / 'model.pt7'
    for content in (Payload(victim), {'params': network(), 'epoch': Payload(victim)}):
        torch.save(content, path)
        refused(path)
        torch.save(content, path, _use_new_zipfile_serialization=False)
        refused(path)
    path.write_bytes(pickle.dumps(Payload(victim)))
    refused(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert victim.exists()


@pytest.mark.parametrize('content', [
    b'<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n', b'just text', b'\n', b'\0' * 1000,
    b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'])
def test_other_files(tmp_path, content):
    (tmp_path / 'model.pt7').write_bytes(content)
    refused(tmp_path / 'model.pt7')


@pytest.mark.parametrize('content', [
    {}, {'params': {}}, [], None, 3, torch.ones(2), {'params': 3}, {'epoch': 3}, {'conv0': [1, 2]},
    {0: torch.ones(2)}, {'student.conv0': torch.ones(2)}, {'conv0': torch.ones(2)},
    {'params': {'group0.block0.conv0': torch.ones(()), 'fc.weight': torch.ones(())}},
    {'group0.block0.conv0': torch.ones(0, 16, 3, 3), 'fc.weight': torch.ones(5, 0)}], ids=str)
def test_other_contents(tmp_path, content):
    torch.save(content, tmp_path / 'model.pt7')
    refused(tmp_path / 'model.pt7')


def test_tensors_that_differ_are_named(tmp_path):
    path = tmp_path / 'model.pt7'

    def save(changes):
        torch.save({k: t for k, t in (network() | changes).items() if t is not None}, path)

    for name in network():
        save({name: None})
        refused(path, *([name] if name[6:] != '.block0.conv0' and name != 'fc.weight' else []))  # tell sizes
    save({'conv1.weight': torch.ones(1)})
    refused(path, 'unknown conv1.weight', 'WRN-10-1')
    save({'group1.block0.convdim': torch.ones(32, 16, 3, 3)})
    refused(path, 'group1.block0.convdim', '(32, 16, 3, 3)', '(32, 16, 1, 1)')
    save({'bn.bias': torch.ones(())})
    refused(path, 'bn.bias', '()', '(64,)')
    save({'fc.bias': torch.ones(6)})
    refused(path, 'fc.bias', '(6,)', '(5,)')
    save({f'group0.block0.bn0.{k}': None for k in BN} | {'fc.bias': None, 'more': torch.ones(1)})
    refused(path, 'lacks fc.bias, group0.block0.bn0.bias', 'and 1 more', 'unknown more')
    save({f'bn.{k}': None for k in BN})
    refused(path, 'no network of this project')
