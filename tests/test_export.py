"""Exported files: in every format the logits of the network; nothing is left where they are others."""
import hashlib
import os
import re
import sys

import h5py
import hickle
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch

import cifar
import resnet
from helpers import call, disk_of
from tools import export
from training import checkpoint
from utils import InputError
from weights import networks

FORMATS = ['.pth', '.hkl', '.safetensors', '.onnx']
KINDS = {'wide': 32, 'post-activation': 224, 'published student': 224, 'pre-activation': 224}


@pytest.fixture(scope='module', params=KINDS)
def source(request, tmp_path_factory):
    """Path of a network whose BN is not the identity, its tensors, and the size of its images."""
    torch.manual_seed(1)
    if request.param == 'wide':
        _, params = resnet.wide_resnet(10, 0.5, 5)
    elif request.param == 'pre-activation':
        params = resnet.pre_activation_params((2, 2, 2, 2), (64, 8, 16, 32, 64), 5)
    else:
        _, params = resnet.resnet(18, 0.125, 5)
    for name, t in params.items():
        if t.dim() == 1:
            t.uniform_(0.5, 1.5) if name.endswith(('weight', 'running_var', '.a')) else t.normal_(0, 0.3)
    if request.param == 'published student':
        params = {name: t for name, t in params.items() if '.bndim.' not in name}
    path = tmp_path_factory.mktemp('source') / 'weights.pth'
    torch.save(params, path)
    return path, params, KINDS[request.param]


@pytest.fixture
def small(tmp_path):
    torch.save(resnet.wide_resnet(10, 0.25, 5)[1], tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
        export.main()
    return run


def read(path):
    """The tensors of an exported file, by the package that others would use."""
    if path.suffix == '.pth':
        return torch.load(path, weights_only=True)
    arrays = hickle.load(str(path)) if path.suffix == '.hkl' else safetensors.numpy.load_file(path)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize('suffix', FORMATS)
def test_logits_are_those_of_the_network(source, run, capsys, tmp_path, suffix):
    path, params, size = source
    out = tmp_path / f'out{suffix}'
    run(path, out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'{path}: {networks.describe(params)}'
    found = re.fullmatch(rf'{re.escape(str(out))}: (\d+) bytes, sha256 (\w+), .* ([\d.e+-]+)', lines[1])
    assert int(found[1]) == out.stat().st_size
    assert found[2] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert 0 <= float(found[3]) < 1e-5
    assert os.listdir(tmp_path) == [out.name]

    x = torch.randn(5, 3, size, size)
    expected = resnet.load(path)[0](x, params, False)[0]
    if suffix == '.onnx':
        session = onnxruntime.InferenceSession(out)
        [logits] = session.run(None, {'image': x.numpy()})
        logits = torch.from_numpy(logits)
    else:
        f, loaded = resnet.load(out)
        assert not any('running' in name for name in loaded)
        logits = f(x, loaded, False)[0]
        others = read(out)
        assert others.keys() == loaded.keys() == resnet.fold(params).keys()
        assert all(torch.equal(t, others[name]) for name, t in loaded.items())
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_onnx_is_one_file_for_any_batch_with_our_names(source, run, tmp_path):
    path, params, size = source
    run(path, tmp_path / 'out.onnx')
    model = onnx.load(tmp_path / 'out.onnx', load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(t.external_data for t in model.graph.initializer)
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]
    assert not {n.op_type for n in model.graph.node} & {'BatchNormalization', 'Dropout'}
    shapes = {t.name: [d.dim_param or d.dim_value for d in t.type.tensor_type.shape.dim]
              for t in (*model.graph.input, *model.graph.output)}
    assert shapes == {'image': ['batch', 3, size, size], 'logits': ['batch', 5]}
    folded = resnet.fold(params)
    names = {t.name: tuple(t.dims) for t in model.graph.initializer}
    kernels = {name for name, t in folded.items() if t.dim() > 1}
    assert kernels <= names.keys()
    assert all(names[name] == folded[name].shape for name in kernels)


@pytest.mark.parametrize('suffix', FORMATS)
def test_an_export_names_its_data_set(small, run, tmp_path, suffix):
    """As far as other readers see, it holds the tensors alone; exported again it still does."""
    params = torch.load(small, weights_only=True)
    state = {'params': params, 'epoch': 1, 'options': {'dataset': 'CIFAR10'}}
    torch.save(state, tmp_path / 'a.pt7')
    for a, b in (('a.pt7', f'b{suffix}'), ('a.pt7', f'same{suffix}')):
        run(tmp_path / a, tmp_path / b)
    out = tmp_path / f'b{suffix}'
    assert out.read_bytes() == (tmp_path / f'same{suffix}').read_bytes()
    if suffix == '.onnx':
        known = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
        assert known == {'dataset': 'CIFAR10'}
        return
    run(out, tmp_path / f'c{suffix}')
    for path in (out, tmp_path / f'c{suffix}'):
        assert checkpoint.dataset_of(path) == 'CIFAR10'
        others = read(path)
        assert others.keys() == resnet.fold(params).keys()
        assert all(isinstance(t, torch.Tensor) for t in others.values())
    run(small, tmp_path / f'unknown{suffix}')
    assert checkpoint.dataset_of(tmp_path / f'unknown{suffix}') is None


@pytest.mark.parametrize('name', [7, 'x' * 1000, ['CIFAR10'], h5py.Empty('f4')], ids=str)
def test_an_attribute_of_another_kind_names_no_data_set(small, run, tmp_path, name):
    run(small, tmp_path / 'a.hkl')
    with h5py.File(tmp_path / 'a.hkl', 'a') as f:
        f.attrs['dataset'] = np.bytes_(name) if isinstance(name, str) else name
    assert checkpoint.dataset_of(tmp_path / 'a.hkl') is None
    resnet.load(tmp_path / 'a.hkl')


@pytest.mark.parametrize('suffix', FORMATS[:3])
def test_an_export_is_not_evaluated_on_another_data_set(small, run, tmp_path, suffix):
    state = {'params': resnet.wide_resnet(10, 0.25, 10)[1], 'options': {'dataset': 'CIFAR10'}}
    torch.save(state, tmp_path / 'a.pt7')
    run(tmp_path / 'a.pt7', tmp_path / f'b{suffix}')
    for name in ('a.pt7', f'b{suffix}'):
        done = call(cifar, '--evaluate', '--student_params', name, '--dataset', 'shapes', '--device', 'cpu',
                    cwd=tmp_path)
        assert done.status == 2 and len(done.errors) == 1 and 'CIFAR10, not on shapes' in done.err


@pytest.mark.parametrize('suffix', FORMATS)
def test_the_same_bytes_every_time(small, run, tmp_path, suffix):
    run(small, tmp_path / f'a{suffix}')
    run(small, tmp_path / f'b{suffix}')
    assert (tmp_path / f'a{suffix}').read_bytes() == (tmp_path / f'b{suffix}').read_bytes()


def test_a_run_and_its_export_can_be_exported(small, run, capsys, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    params = torch.load(small, weights_only=True)
    torch.save({'params': params, 'epoch': 1}, folder / 'model.pt7')
    (folder / 'log.txt').write_text('{"epoch": 1}\n')
    run(folder, tmp_path / 'a.hkl')
    run(tmp_path / 'a.hkl', tmp_path / 'b.safetensors')
    run(tmp_path / 'b.safetensors', tmp_path / 'c.onnx')
    assert capsys.readouterr().out.count('WRN-10-0.25') == 3


@pytest.mark.slow
def test_by_the_command_line(small, run_script, tmp_path):
    done = run_script('tools.export', 'weights.pth', 'out.onnx')
    assert (done.returncode, done.stderr) == (0, '')
    assert re.fullmatch(r'weights\.pth: .*\nout\.onnx: .*\n', done.stdout)
    done = run_script('tools.export', 'weights.pth', 'out.onnx')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'export.py: error: out.onnx exists already: remove it, or name another file\n'


def test_bad_input(small, run, capsys, tmp_path):
    (tmp_path / 'old.hkl').write_bytes(b'old')
    (tmp_path / 'page.pth').write_bytes(b'<html>')
    before = sorted(os.listdir(tmp_path))
    for arguments, words in (
            ((small, tmp_path / 'old.hkl'), 'old.hkl exists already'),
            ((small, tmp_path / 'no' / 'out.hkl'), 'cannot write .*out.hkl: No such file'),
            ((tmp_path / 'page.pth', tmp_path / 'out.hkl'), 'page.pth is a web page'),
            ((tmp_path / 'nothing', tmp_path / 'out.hkl'), 'No such file'),
            (('torchvision:nothing', tmp_path / 'out.hkl'), 'torchvision')):
        with pytest.raises(InputError, match=words):
            run(*arguments)
    for out in ('out.npz', 'out', 'out.PTH', '.onnx'):
        with pytest.raises(SystemExit) as end:
            run(small, tmp_path / out)
        assert end.value.code == 2
        assert 'does not end in .pth, .hkl, .safetensors, .onnx\n' in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / 'old.hkl').read_bytes() == b'old'


@pytest.mark.parametrize('suffix', FORMATS)
@pytest.mark.parametrize('change', [2e-4, float('nan')])
def test_other_logits_are_not_kept(small, run, monkeypatch, tmp_path, suffix, change):
    fold = resnet.fold

    def wrong(params):
        folded = fold(params)
        return folded | {'fc.bias': folded['fc.bias'] + change * torch.eye(5)[3]}

    monkeypatch.setattr(resnet, 'fold', wrong)
    with pytest.raises(InputError, match=f'nothing is written: as {suffix} .* (2.0e-04|nan),'):
        run(small, tmp_path / f'out{suffix}')
    assert os.listdir(tmp_path) == ['weights.pth']


@pytest.mark.parametrize('change', [1, float('nan')])
@pytest.mark.parametrize('n', [2, 3])
def test_a_file_for_one_size_of_batch_is_not_kept(small, run, monkeypatch, tmp_path, n, change):
    def load(path, f):
        logits = export._load_tensors(path, f)
        return lambda x: logits(x) + change if len(x) == n else logits(x)

    monkeypatch.setitem(export.FORMATS, '.pth', (export._write_pth, load))
    with pytest.raises(InputError, match='nothing is written'):
        run(small, tmp_path / 'out.pth')
    assert os.listdir(tmp_path) == ['weights.pth']


def test_a_disk_without_room_leaves_nothing(small, run, monkeypatch, tmp_path):
    content, _ = export.export(*resnet.load(small), '.onnx')
    monkeypatch.setattr(export, 'export', lambda *_: (content, 0.0))
    with disk_of(len(content) - 1), pytest.raises(InputError, match=r'cannot write .*out\.onnx: File too'):
        run(small, tmp_path / 'out.onnx')
    assert os.listdir(tmp_path) == ['weights.pth']


@pytest.mark.parametrize(('suffix', 'package'), [
    ('.hkl', 'hickle'), ('.safetensors', 'safetensors'), ('.onnx', 'onnx'), ('.onnx', 'onnxruntime')])
def test_a_missing_package_is_named(small, run, monkeypatch, tmp_path, suffix, package):
    for name in [name for name in sys.modules if name.split('.')[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'\{suffix} needs packages .*pip install .*{package}'):
        run(small, tmp_path / f'out{suffix}')
    assert os.listdir(tmp_path) == ['weights.pth']


def test_logits_of_another_shape_deviate():
    ones = torch.ones(2, 5)
    assert export._deviation(ones[:1], ones) == float('inf')
    assert export._deviation(ones, ones + 0.5) == pytest.approx(1 / 3)
    assert export._deviation(ones * 0.01, ones * 0.02) == pytest.approx(0.01)
