"""torch.hub's entry points, from a local folder as from GitHub, and the module that they give."""
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

import hubconf
import nin
import resnet
import utils
from utils import InputError


@pytest.fixture
def files(tmp_path):
    networks = {
        'at': resnet.pre_activation_params((2, 2, 2, 2), (64, 64, 128, 256, 512), 9),
        'r34': resnet.resnet(34, 0.25, 9)[1],
        'folded34': resnet.fold(resnet.resnet(34, 0.25, 9)[1]), 'r18': resnet.resnet(18, 0.25, 9)[1],
        'wide': resnet.wide_resnet(10, 0.5, 9)[1], 'nin': nin.nin(12, 9, pool_relu=False)[1]}
    for name, params in networks.items():
        torch.save(params, tmp_path / f'{name}.pth')
    return tmp_path


@pytest.mark.parametrize(('entry', 'name', 'size'), [
    ('resnet18_at', 'at', 64), ('resnet34_folded', 'r34', 64), ('resnet34_folded', 'folded34', 64),
    ('wide_resnet', 'wide', 32), ('nin', 'nin', 32)])
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
    with pytest.raises(InputError, match='ResNet-18 of width .* not a '):
        getattr(hubconf, entry)(weights=str(files / f'{name}.pth'))


def test_through_torch_hub(files):
    """From another folder, in another process, whose path does not have this one."""
    code = (f"import torch\nm = torch.hub.load({str(ROOT)!r}, 'wide_resnet', 'wide.pth', source='local')\n"
            "print(m(torch.zeros(1, 3, 32, 32))[0].shape)")
    done = subprocess.run([sys.executable, '-c', code], cwd=files, text=True, capture_output=True,
                          timeout=200)
    assert (done.returncode, done.stdout) == (0, 'torch.Size([1, 9])\n')


def test_a_module_trains_as_its_function():
    f, params = resnet.wide_resnet(10, 0.5, 4)
    module = utils.Module(f, {name: t.clone() for name, t in params.items()}).train()
    assert [name for name, _ in module.named_buffers()] == [n for n in params if utils.is_statistic(n)]
    trained = utils.trainable(params)
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    F.cross_entropy(f(x, params, True)[0], labels).backward()
    F.cross_entropy(module(x)[0], labels).backward()
    for name, t in module.named_parameters():
        assert torch.equal(t.grad, trained[name].grad)
    for name, t in module.named_buffers():
        assert torch.equal(t, params[name])
