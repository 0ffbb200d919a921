"""State dictionaries of other programs: wrappings are looked through, and what is in the way is named."""
import argparse
import collections
import errno
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import layers
import resnet
from helpers import ROOT
from training import checkpoint
from utils import InputError
from weights import tensors


def some_params() -> dict[str, torch.Tensor]:
    _, params = resnet.wide_resnet(10, 0.25, 5)
    return {name: torch.rand_like(t) for name, t in params.items()}


def prefixed(prefix, params) -> dict[str, torch.Tensor]:
    return {prefix + name: t for name, t in params.items()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def refused(path, *words) -> str:
    with pytest.raises(InputError) as error:
        tensors.read(path)
    for word in (str(path), *words):
        assert word in str(error.value)
    return str(error.value)


# --- what surrounds a network ----------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model.', 'net.', 'backbone.encoder.',
                                    'student.', 'module._orig_mod.', '_orig_mod.module.student.'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_prefixes_that_all_names_share(tmp_path, prefix, suffix):
    params, path = some_params(), tmp_path / f'weights{suffix}'
    save = torch.save if suffix == '.pth' else safetensors.torch.save_file
    save(prefixed(prefix, params), path)
    assert equal(tensors.read(path), params)
    save(prefixed(prefix, params) | {'more': torch.ones(1)}, path)  # now the names do not share it
    assert prefix + 'conv0' in tensors.read(path) or 'student' in prefix


@pytest.mark.parametrize('key', ['params', 'state_dict', 'model', 'model_state_dict', 'net', 'weights'])
def test_one_level_of_nesting(tmp_path, key):
    params = some_params()
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], 0.1, momentum=0.9)
    for more in ({}, {'epoch': 3, 'optimizer': optimizer.state_dict(), 'best_acc': 91.5, 'arch': 'wrn'}):
        for inner in (params, prefixed('_orig_mod.', params), collections.OrderedDict(params)):
            torch.save({key: inner, **more}, tmp_path / 'weights')
            assert equal(tensors.read(tmp_path / 'weights'), params)


def test_of_several_networks_the_usual_one(tmp_path):
    params, other = some_params(), some_params()
    for content in ({'model_ema': other, 'model': params}, {'state_dict_ema': other, 'state_dict': params},
                    {'adaptors': {'a': torch.ones(1)}, 'params': params}):
        torch.save(content, tmp_path / 'weights')
        assert equal(tensors.read(tmp_path / 'weights'), params)
    torch.save({'generator': params, 'critic': other}, tmp_path / 'weights')
    refused(tmp_path / 'weights', "'generator' of dict", "'critic' of dict", 'alone')
    torch.save(params | {'epoch': 3}, tmp_path / 'weights')
    refused(tmp_path / 'weights', "'epoch' of int", 'alone')


def test_states_of_torch_itself(tmp_path):
    """DataParallel, an average of weights, which has a counter next to the network, and BN with counters."""
    network = nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    expected = {name: t for name, t in network.state_dict().items() if t.is_floating_point()}
    for module in (network, nn.DataParallel(network), torch.optim.swa_utils.AveragedModel(network),
                   torch.compile(network)):
        torch.save(module.state_dict(), tmp_path / 'weights')
        assert equal(tensors.read(tmp_path / 'weights'), expected)


def test_a_layer_is_no_prefix():
    head = {'fc.weight': torch.ones(5, 3), 'fc.bias': torch.ones(5)}
    assert tensors.unwrap(head) == head


def test_a_long_name_takes_no_time():
    name = 'a.' * 1_000_000 + 'b'
    assert len(next(iter(tensors.unwrap({name: torch.ones(1)})))) > 1_000_000


@pytest.mark.parametrize('prefix', ['', 'student.'])
def test_runs_of_2017_keep_statistics_apart(tmp_path, prefix):
    f, params = resnet.wide_resnet(10, 0.25, 5)[0], some_params()
    x = torch.randn(2, 3, 32, 32)
    expected = f(x, params, False)[0]
    parts = [{n: t for n, t in params.items() if layers.is_statistic(n) == kind} for kind in (False, True)]
    parts = [prefixed(prefix, part) for part in parts]
    if prefix:
        parts = [part | {name.replace('student', 'teacher'): t + 1 for name, t in part.items()}
                 for part in parts]
    torch.save({'params': parts[0], 'stats': parts[1], 'optimizer': {}, 'epoch': 200}, tmp_path / 'model.pt7',
               _use_new_zipfile_serialization=False)
    found, loaded = resnet.load(tmp_path / 'model.pt7')
    assert equal(loaded, params)
    assert torch.equal(found(x, loaded, False)[0], expected)


class Attributes:
    """An OrderedDict whose attributes the file gives."""

    def __init__(self, content, **attributes):
        self.content, self.attributes = content, attributes

    def __reduce__(self):
        return collections.OrderedDict, (list(self.content.items()),), self.attributes


@pytest.mark.parametrize('name', ['items', 'keys', 'values', 'get', '__iter__', 'dataset'])
def test_attributes_that_hide_methods(tmp_path, name):
    params, path = some_params(), tmp_path / 'model.pt7'
    hostile = Attributes(params, **{name: 5})
    options = Attributes({'dataset': 'CIFAR10'}, **{name: 5})
    state = {'options': options, 'epoch': 3, 'params': hostile, 'more': [({'x': hostile},)]}
    for content in (hostile, Attributes(state, **{name: 5})):
        torch.save(content, path)
        assert equal(tensors.read(path), params)
        assert checkpoint.dataset_of(path) == (None if content is hostile else 'CIFAR10')
        with pytest.raises(InputError, match='not a checkpoint'):
            checkpoint.Folder(argparse.Namespace(save=tmp_path, resume='auto'))


# --- what is in the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(('value', 'word'), [
    (argparse.Namespace(lr=0.1), 'argparse.Namespace'), (np.float64(3), 'numpy'), (np.zeros(3), 'numpy'),
    (torch.optim.SGD([torch.ones(1)], 0.1), 'torch.optim.sgd.SGD'), (ROOT, 'Path'), (slice(3), 'slice')],
    ids=str)
def test_a_type_that_is_refused_is_named(tmp_path, value, word, zipped):
    content = {'state_dict': some_params(), 'args': value}
    torch.save(content, tmp_path / 'weights', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'weights', word, 'run code')


def test_pickles_of_a_later_protocol(tmp_path):
    torch.save(some_params(), tmp_path / 'weights', pickle_protocol=4)
    refused(tmp_path / 'weights', 'protocol 4', 'torch.save')
    (tmp_path / 'weights').write_bytes(pickle.dumps({'x': np.ones(3)}, 5))
    refused(tmp_path / 'weights', 'protocol 5', 'torch.save')


def test_without_checksums(tmp_path):
    params, path = some_params(), tmp_path / 'weights'
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(params, path)
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    assert equal(tensors.read(path), params)
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, 'truncated')


def test_archives_that_are_no_weights(tmp_path):
    path, network = tmp_path / 'weights', nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.jit.save(torch.jit.script(network), path)
    refused(path, 'TorchScript', 'state_dict()')
    with open(path, 'wb') as f:
        np.savez_compressed(f, conv0=np.ones(3))
    refused(path, 'zip archive of conv0.npy')
    torch.save(some_params(), tmp_path / 'inner.pth')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / 'inner.pth', 'inner.pth')
    refused(path, 'zip archive of inner.pth', 'unpack')
    zipfile.ZipFile(path, 'w').writestr('x/y', b'')
    refused(path, 'zip archive')


# --- limits of the machine -------------------------------------------------------------------------------


LIMITED = '''
    import resource, sys
    import h5py, safetensors
    from weights import tensors

    limit, *paths = sys.argv[1:]
    for path in paths:
        tensors.read(path)
    if limit == 'files':
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    else:
        with open('/proc/self/statm') as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
    for path in paths:
        try:
            tensors.read(path)
        except tensors.InputError as e:
            print(e)
'''


def write(path, kind, params):
    if kind == 'hickle':
        with h5py.File(path, 'w') as f:
            for name, t in params.items():
                f[f'data/"{name}"'] = t.numpy()
    elif kind == 'safetensors':
        safetensors.torch.save_file(params, path)
    else:
        torch.save(params, path, _use_new_zipfile_serialization=kind == 'torch')


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits are those of Linux')
@pytest.mark.parametrize(('limit', 'word'), [('files', 'ulimit -n'), ('memory', 'ulimit -v')])
def test_a_limit_is_no_damage(tmp_path, limit, word):
    kinds = ['torch', 'torch before 1.6', 'hickle', 'safetensors']
    for kind in kinds:
        write(tmp_path / kind, kind, {'x': torch.randn(20 << 20 if limit == 'memory' else 2)})
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(LIMITED), limit, *(tmp_path / kind for kind in kinds)],
        cwd=ROOT, text=True, capture_output=True, timeout=200, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    lines = done.stdout.splitlines()
    assert [word in line and f'{tmp_path / kind}:' in line for line, kind in zip(lines, kinds, strict=True)
            ] == [True] * 4, done
    assert 'truncated' not in done.stdout and 'damaged' not in done.stdout


@pytest.mark.parametrize(('error', 'word'), [
    (OSError(errno.ENOMEM, 'x'), 'no memory'), (OSError(errno.ENFILE, 'x'), 'ulimit -n'),
    (OSError(errno.EIO, 'x'), 'Input/output'), (MemoryError(), 'no memory')])
def test_what_a_limit_leaves_in_the_cache(tmp_path, monkeypatch, error, word):
    """A download that could not be read is kept, unless it is the file that is wrong."""
    path = tmp_path / 'weights'
    torch.save(some_params(), path)
    monkeypatch.setattr(tensors, '_download', lambda *_: path)

    def fail(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tensors, '_float32', lambda *_: fail(_))
        with pytest.raises(InputError, match=word):
            tensors.read('http://localhost/weights')
    assert equal(tensors.read('http://localhost/weights'), tensors.read(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match='truncated'):
        tensors.read('http://localhost/weights')
    assert not path.exists()


WITHOUT = '''
    import sys
    import torch, torchvision, numpy, tqdm
    for name in ('fcntl', 'resource'):
        sys.modules[name] = None
    sys.path.insert(0, sys.argv[1])
    import hubconf, resnet, weights
    import tools.export
    print(resnet.load(sys.argv[2])[1].keys() == torch.load(sys.argv[2]).keys())
'''


def test_reading_needs_no_module_of_unix(tmp_path):
    torch.save(some_params(), tmp_path / 'weights')
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(WITHOUT), ROOT, tmp_path / 'weights'],
                          text=True, capture_output=True, timeout=200)
    assert done.stdout == 'True\n', done.stderr
