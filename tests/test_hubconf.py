"""torch.hub's entry points, from a local folder as from GitHub, and the module that they give."""
import copy
import importlib
import io
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrizations, prune

import hubconf
import layers
import nin
import resnet
from helpers import ROOT
from weights import networks


@pytest.fixture
def files(tmp_path):
    networks = {
        'at': resnet.pre_activation_params((2, 2, 2, 2), (64, 64, 128, 256, 512), 9),
        'r34': resnet.resnet(34, 0.25, 9)[1],
        'folded34': resnet.fold(resnet.resnet(34, 0.25, 9)[1]), 'r18': resnet.resnet(18, 0.25, 9)[1],
        'wide': resnet.wide_resnet(10, 0.5, 9)[1], 'small': resnet.cifar_resnet(8, 0.5, 9)[1],
        'nin': nin.nin(12, 9, pool_relu=False)[1]}
    for name, params in networks.items():
        torch.save(params, tmp_path / f'{name}.pth')
    return tmp_path


@pytest.mark.parametrize(('entry', 'name', 'size'), [
    ('resnet18_at', 'at', 64), ('resnet34_folded', 'r34', 64), ('resnet34_folded', 'folded34', 64),
    ('wide_resnet', 'wide', 32), ('cifar_resnet', 'small', 32), ('nin', 'nin', 32)])
def test_entry_points(files, entry, name, size):
    model = getattr(hubconf, entry)(weights=str(files / f'{name}.pth'))
    f, params = resnet.load(files / f'{name}.pth')
    x = torch.randn(2, 3, size, size)
    logits, groups = model(x)
    expected, their_groups = f(x, params, False)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(groups) == len(their_groups)
    assert not model.training
    if name != 'r34':  # the one that is folded
        assert model.state_dict().keys() == params.keys()


@pytest.mark.parametrize(('entry', 'name'), [('resnet18_at', 'r18'), ('resnet34_folded', 'at'),
                                             ('wide_resnet', 'r18')])
def test_other_kinds_are_refused(files, entry, name):
    with pytest.raises(ValueError, match='ResNet-18 of width .* not a '):
        getattr(hubconf, entry)(weights=str(files / f'{name}.pth'))


# --- next to modules of the user --------------------------------------------------------------------------

NAMES = sorted({path.relative_to(ROOT).with_suffix('').parts[0] for path in ROOT.glob('*.py')}
               | {path.parent.name for path in ROOT.glob('*/__init__.py')})


def load(files, entry='wide_resnet', name='wide', folder=ROOT):
    return torch.hub.load(str(folder), entry, weights=str(files / f'{name}.pth'), source='local')


def package(model):
    """The module that the class of a model of torch.hub comes from."""
    return sys.modules[type(model).__module__]


@pytest.fixture
def checkout(tmp_path):
    """A function that copies what torch.hub runs into a folder."""
    def copied(name):
        folder = tmp_path / name
        folder.mkdir()
        for file in ('hubconf.py', 'utils.py', 'layers.py', 'modules.py', 'resnet.py', 'nin.py'):
            shutil.copy(ROOT / file, folder)
        shutil.copytree(ROOT / 'weights', folder / 'weights')
        return folder
    return copied


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's folder, which has modules of all our names; none of ours is imported."""
    def of_ours():
        return [name for name in sys.modules if name.partition('.')[0] in NAMES]

    ours = {name: sys.modules.pop(name) for name in of_ours()}
    folder = tmp_path / 'mine'
    folder.mkdir()
    for name in NAMES:
        (folder / f'{name}.py').write_text('mine = True')
    monkeypatch.syspath_prepend(folder)
    yield
    for name in of_ours():
        del sys.modules[name]
    sys.modules.update(ours)


@pytest.mark.parametrize('first', [0, 1])
def test_modules_of_the_user_stay_what_they_are(files, checkout, mine, first):
    """Those imported before torch.hub.load, every other one, and those imported after."""
    assert {'utils', 'layers', 'resnet', 'weights', 'nin', 'method', 'training', 'inputs'} < set(NAMES)
    before = {name: importlib.import_module(name) for name in NAMES[first::2]}
    modules, path = set(sys.modules), list(sys.path)
    model = load(files, folder=checkout('ours'))
    new = set(sys.modules) - modules
    assert sys.path == path
    assert {name for name in new if name.partition('.')[0] in [*NAMES, 'hubconf.py']} == set()
    assert any(name.startswith('attention_transfer_') for name in new)
    for name in NAMES:
        module = importlib.import_module(name)
        assert module.mine and before.get(name, module) is module
    # Functions of ours that import when they are called.
    f, params = package(model).resnet.load(str(files / 'wide.pth'))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x)[0], f(x, params, False)[0])
    with pytest.raises(OSError, match='signature'):  # by h5py
        package(model).tensors._hickle(files / 'wide.pth')


def test_checkouts_share_no_code(files, checkout):
    first, second = checkout('a'), checkout('b')
    text = (second / 'layers.py').read_text()
    assert text.count('EPS = 1e-5') == 1
    (second / 'layers.py').write_text(text.replace('EPS = 1e-5', 'EPS = 100.0'))
    x = torch.randn(2, 3, 32, 32)
    expected = load(files)(x)[0]
    models = [load(files, folder=folder) for folder in (first, second)]
    assert [Path(package(model).__file__).parent.parent for model in models] == [first, second]
    assert torch.equal(models[0](x)[0], expected) and not torch.allclose(models[1](x)[0], expected)
    assert type(load(files, folder=first)) is type(models[0]), 'the same files are the same classes'
    # torch.hub.load with force_reload replaces the files in a folder.
    (first / 'layers.py').write_text(text.replace('EPS = 1e-5', 'EPS = 10.00'))
    assert not torch.allclose(load(files, folder=first)(x)[0], expected)
    assert torch.equal(copy.deepcopy(models[0])(x)[0], expected)


ELSEWHERE = '''
    import sys
    sys.modules |= {'fcntl': None, 'resource': None}  # as on Windows
    import torch
    folder, weights, pickled = sys.argv[1:]
    try:
        torch.load(pickled, weights_only=False)
    except ModuleNotFoundError as e:
        print(str(e).partition('transfer_')[0])
    model = torch.hub.load(folder, 'wide_resnet', weights, source='local')
    x = torch.ones(1, 3, 32, 32)
    again = torch.load(pickled, weights_only=False)
    print(type(again) is type(model), torch.equal(model(x)[0], again(x)[0]), model(x)[0].shape)
'''


def test_in_another_process(files):
    """From another folder, without modules of Unix; a pickled module is read after torch.hub.load alone."""
    torch.save(load(files), files / 'module.pth')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(ELSEWHERE), ROOT, 'wide.pth', 'module.pth'],
        cwd=files, text=True, capture_output=True, timeout=400)
    assert (done.returncode, done.stdout) == (
        0, "No module named 'attention_\nTrue True torch.Size([1, 9])\n"), done.stderr


# --- the module -------------------------------------------------------------------------------------------


def pair():
    """A narrow network and the module of copies of its tensors."""
    f, params = resnet.wide_resnet(10, 0.5, 4)
    return f, params, networks.Module(f, {name: t.clone() for name, t in params.items()})


def pickled(module):
    content = io.BytesIO()
    torch.save(module, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


@pytest.mark.parametrize('copied', [copy.deepcopy, pickled, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=['deepcopy', 'torch.save', 'pickle'])
@pytest.mark.parametrize(('entry', 'name', 'size'), [
    ('resnet18_at', 'at', 64), ('resnet34_folded', 'folded34', 64), ('wide_resnet', 'wide', 32),
    ('nin', 'nin', 32)])
def test_copies(files, entry, name, size, copied):
    model = load(files, entry, name)
    again = copied(model)
    x = torch.randn(2, 3, size, size)
    assert type(again) is type(model) and not again.training
    expected = model(x)
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        for t in model.parameters():
            t.zero_()
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)


def test_replicas(monkeypatch):
    """By nn.DataParallel's function; only its copying from device to device is replaced."""
    replication = importlib.import_module('torch.nn.parallel.replicate')
    monkeypatch.setattr(replication, '_get_device_index', lambda device, _: device)
    monkeypatch.setattr(replication, '_broadcast_coalesced_reshape', lambda tensors, devices, detach: [
        [t * (device + 1) for t in tensors] for device in devices])
    f, params, module = pair()
    x = torch.randn(4, 3, 32, 32)
    for k, replica in enumerate(replication.replicate(module.eval(), [0, 1]), 1):
        assert not list(replica.parameters())
        torch.testing.assert_close(replica(x), f(x, {name: t * k for name, t in params.items()}, False))
    replica(x)[0].sum().backward()
    assert all(t.grad is not None and t.grad.any() for t in module.parameters())


def test_pruned():
    """Tensors are masked in each step, also after a step of the optimizer, and after the mask is gone."""
    f, params, module = pair()
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    block = module.group1.block0
    prune.l1_unstructured(block, 'conv0', amount=0.5)
    prune.random_unstructured(module, 'conv0', amount=0.5)
    for mask, name in ((block.conv0_mask, 'group1.block0.conv0'), (module.conv0_mask, 'conv0')):
        params[name] = params[name] * mask
    trained = layers.trainable({name: t.detach() for name, t in params.items()})
    optimizer = torch.optim.SGD(module.parameters(), 1)
    for _ in range(2):
        torch.testing.assert_close(module.eval()(x), f(x, params | trained, False))
        optimizer.zero_grad()
        F.cross_entropy(module(x)[0], labels).backward()
        optimizer.step()
        loss = F.cross_entropy(f(x, params | trained, False)[0], labels)
        grads = torch.autograd.grad(loss, trained.values())
        masks = {'conv0': module.conv0_mask, 'group1.block0.conv0': block.conv0_mask}
        trained = {name: (t - g * masks.get(name, 1)).detach().requires_grad_()
                   for (name, t), g in zip(trained.items(), grads, strict=True)}
    prune.remove(block, 'conv0')
    prune.remove(module, 'conv0')
    torch.testing.assert_close(copy.deepcopy(module)(x), f(x, params | trained, False))


def test_parametrized():
    f, params, module = pair()
    parametrizations.weight_norm(module.group0.block0, 'conv1')
    with torch.no_grad():
        module.group0.block0.parametrizations.conv1.original0.mul_(3)
    x = torch.randn(2, 3, 32, 32)
    expected = f(x, params | {'group0.block0.conv1': 3 * params['group0.block0.conv1']}, False)
    torch.testing.assert_close(module.eval()(x), expected)


def test_moved_and_frozen():
    f, params, module = pair()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    module = module.double().eval().requires_grad_(False)
    logits = module(x)[0]
    assert not logits.requires_grad
    torch.testing.assert_close(logits, f(x, {name: t.double() for name, t in params.items()}, False)[0])
    module.load_state_dict({name: torch.zeros_like(t) for name, t in params.items()})
    assert not module(x)[0].any()
    assert module.to('meta')(x.to('meta'))[0].shape == (2, 4)


def test_a_module_trains_as_its_function():
    f, params, module = pair()
    assert [name for name, _ in module.named_buffers()] == [n for n in params if layers.is_statistic(n)]
    trained = layers.trainable(params)
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    F.cross_entropy(f(x, params, True)[0], labels).backward()
    F.cross_entropy(module(x)[0], labels).backward()
    for name, t in module.named_parameters():
        assert torch.equal(t.grad, trained[name].grad)
    for name, t in module.named_buffers():
        assert torch.equal(t, params[name])
