"""ResNets for CIFAR against a twin of modules, and networks with the names of RepDistiller and mdistiller."""
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cifar
import layers
import resnet
from helpers import SMALL, call_cifar, log_of
from inputs import cifar as data
from tools import report
from utils import InputError
from weights import networks


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(before)


# --- twins, with the names that those programs give ------------------------------------------------------


class Basic(nn.Module):
    """Two convolutions, each with BN, and ReLU after the sum."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        if stride > 1 or n_in != n_out:
            conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, 'downsample') else x))


class ResNet(nn.Module):
    def __init__(self, n, channels, classes):
        super().__init__()
        first, *_, last = channels
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Basic(n_out if k else n_in, n_out, 2 if g and not k else 1) for k in range(n)))
            for g, (n_in, n_out) in enumerate(itertools.pairwise(channels)))
        self.fc = nn.Linear(last, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            maps.append(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)), maps


class Preactivated(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if n_in != n_out else None

    def forward(self, x):
        o = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(o))))
        return y + (x if self.convShortcut is None else self.convShortcut(o))


class Group(nn.Module):
    def __init__(self, n, n_in, n_out, stride):
        super().__init__()
        self.layer = nn.Sequential(*(Preactivated(n_out if k else n_in, n_out, 1 if k else stride)
                                     for k in range(n)))

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, n, width, classes):
        super().__init__()
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            Group(n, channels[g], channels[g + 1], 2 if g else 1) for g in range(3))
        self.bn1, self.fc = nn.BatchNorm2d(channels[-1]), nn.Linear(channels[-1], classes)

    def forward(self, x):
        x, maps = self.conv1(x), []
        for group in (self.block1, self.block2, self.block3):
            x = group(x)
            maps.append(x)
        return self.fc(F.adaptive_avg_pool2d(torch.relu(self.bn1(x)), 1).flatten(1)), maps


CHANNELS = {1: (16, 16, 32, 64), 2: (32, 32, 64, 128), 4: (32, 64, 128, 256)}


def lived(model):
    """With BN tensors that a fresh network would not tell apart."""
    for name, t in model.state_dict().items():
        if t.is_floating_point() and ('bn' in name or 'downsample.1' in name):
            shift = name.endswith(('bias', 'mean'))
            t.copy_(torch.randn_like(t) / 10 if shift else torch.rand_like(t) + 0.5)
    return model


def same(found, model, x, tolerance=1e-4):
    (logits, groups), (expected, maps) = found, model(x)
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    for g, m in zip(groups, maps, strict=True):
        torch.testing.assert_close(g, m, rtol=tolerance, atol=tolerance)


# --- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize(('depth', 'width', 'size'), [(8, 4, 8), (20, 1, 16), (14, 2, 9)])
def test_equals_its_twin(depth, width, size, mode):
    """Values, statistics, and the gradient of every tensor."""
    model = lived(ResNet((depth - 2) // 6, CHANNELS[width], 7)).double().train(mode)
    f, params = resnet.cifar_resnet(depth, width, 7)
    state = {name: t.clone() for name, t in model.state_dict().items() if not name.endswith('tracked')}
    theirs = networks.from_other_names(state)
    assert {name: t.shape for name, t in theirs.items()} == {name: t.shape for name, t in params.items()}
    leaves = layers.trainable(theirs)
    x, labels = torch.randn(3, 3, size, size, dtype=torch.float64), torch.tensor([0, 6, 3])
    logits, groups = f(x, theirs, mode)
    expected, maps = model(x)
    for found, wanted in ((logits, expected), *zip(groups, maps, strict=True)):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for y, outputs in ((logits, groups), (expected, maps)):
        (F.cross_entropy(y, labels) + sum(o.square().mean() for o in outputs)).backward()
    gradients = networks.from_other_names({name: t.grad for name, t in model.named_parameters()})
    assert leaves.keys() == gradients.keys()
    for name, t in leaves.items():
        torch.testing.assert_close(t.grad, gradients[name], rtol=1e-8, atol=1e-9)
    after = networks.from_other_names(model.state_dict())
    assert all(torch.allclose(after[name], t.detach()) for name, t in theirs.items())


@pytest.mark.parametrize(('depth', 'width', 'n'), [
    (20, 1, 278_324), (32, 1, 472_756), (56, 1, 861_620), (110, 1, 1_736_564), (8, 4, 1_233_540),
    (32, 4, 7_433_860)])
def test_published_numbers_of_parameters(depth, width, n):
    """Of RepDistiller, for CIFAR-100, without the statistics of BN."""
    _, params = resnet.cifar_resnet(depth, width, 100)
    assert sum(t.numel() for name, t in params.items() if not layers.is_statistic(name)) == n


@pytest.mark.parametrize('depth', [1, 2, 10, 16, 18, 34])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(InputError, match='6n'):
        resnet.cifar_resnet(depth, 1, 10)


def test_width_without_channels():
    with pytest.raises(InputError, match='0.0625'):
        resnet.cifar_resnet(8, 0.06, 10)


def test_folded_it_is_the_same_network():
    f, params = resnet.cifar_resnet(14, 2, 7)
    params = networks.from_other_names(lived(ResNet(2, CHANNELS[2], 7)).state_dict())
    params = {name: t for name, t in params.items() if name.rpartition('.')[2] != 'num_batches_tracked'}
    x = torch.randn(2, 3, 16, 16)
    f_folded, folded = networks.network(resnet.fold(params))
    assert not any(map(layers.is_statistic, folded))
    (logits, groups), (expected, maps) = f_folded(x, folded, False), f(x, params, False)
    for found, wanted in ((logits, expected), *zip(groups, maps, strict=True)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert networks.describe(folded).startswith('folded CIFAR ResNet-14 of width 2, 7 classes')
    assert networks.n_groups(folded) == 3 and networks.image_size(folded) == 32


# --- files of other programs -----------------------------------------------------------------------------

FOREIGN = {
    'CIFAR ResNet-8 of width 4': lambda: ResNet(1, CHANNELS[4], 100),
    'CIFAR ResNet-20 of width 1': lambda: ResNet(3, CHANNELS[1], 100),
    'WRN-16-2': lambda: WideResNet(2, 2, 100), 'WRN-40-1': lambda: WideResNet(6, 1, 100)}


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('name', FOREIGN)
def test_checkpoints_of_repdistiller_and_mdistiller(tmp_path, name, prefix):
    """The state is under 'model', next to the epoch and an accuracy."""
    model = lived(FOREIGN[name]()).eval()
    state = {prefix + key: t for key, t in model.state_dict().items()}
    torch.save({'epoch': 240, 'model': state, 'best_acc': torch.tensor(75.61),
                'optimizer': torch.optim.SGD(model.parameters(), 0.1).state_dict()}, tmp_path / 'theirs.pth')
    f, params = resnet.load(tmp_path / 'theirs.pth')
    assert networks.describe(params).startswith(f'{name}, 100 classes')
    x = torch.randn(2, 3, 32, 32)
    same(f(x, params, False), model, x)


@pytest.mark.parametrize('name', FOREIGN)
def test_what_a_foreign_network_lacks_is_said_in_our_names(name):
    state = dict(FOREIGN[name]().state_dict())
    del state[[key for key in state if key.endswith('conv2.weight')][-1]]
    with pytest.raises(InputError, match=r'lacks group\d\.block\d\.conv1'):
        networks.network(state)


def test_a_network_with_other_blocks_is_refused():
    state = ResNet(1, CHANNELS[1], 10).state_dict() | {'layer1.0.conv3.weight': torch.zeros(16, 16, 1, 1)}
    with pytest.raises(InputError, match='unknown'):
        networks.network(state)


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_of_a_resnet_with_a_foreign_teacher(tmp_path):
    """It trains, resumes, is evaluated, teaches, and is in the report under its name."""
    torch.save({'model': lived(ResNet(1, CHANNELS[2], 10)).state_dict()}, tmp_path / 'theirs.pth')
    small = [*SMALL[:2], *SMALL[6:], '--max_images', 64, '--lr', 1e-3]
    student = [*small, '--model', 'resnet', '--depth', 8, '--width', 0.5]
    run = [*student, '--save', 'run', '--teacher_id', 'theirs.pth', '--beta', 1e3, '--vid_weight', 1]
    for command in ([*run, '--epochs', 1], [*run, '--epochs', 2, '--resume', 'auto'],
                    [*small, '--evaluate', '--student_params', 'run'],
                    [*student, '--save', 'next', '--epochs', 1, '--teacher_id', 'run', '--alpha', 0.9]):
        assert call_cifar(*command, cwd=tmp_path).status == 0
    record = log_of(tmp_path / 'run')[-1]
    assert record['teacher'] == {'kind': 'ResNet', 'depth': 8, 'width': 2} and len(record['at_losses']) == 3
    read, = report.logs.read([str(tmp_path / 'run')])
    assert (read.student, read.teacher) == ('ResNet-8 x 0.5', 'ResNet-8 x 2')
    done = call_cifar(*student[:-3], 14, '--save', 'run', '--resume', 'auto', '--epochs', 3, cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1


def test_options_of_a_resnet(capsys):
    opt = cifar.parse(['--save', 'run', '--model', 'resnet'])
    assert (opt.depth, opt.width) == (20, 1)
    for more in (['--no_bn'], ['--no_pool_relu'], ['--width', '1e9']):
        with pytest.raises(SystemExit) as end:
            cifar.parse(['--save', 'run', '--model', 'resnet', *more])
        assert end.value.code == 2 and more[0] in capsys.readouterr().err
    f, params = cifar.network(cifar.parse(['--save', 'run', '--model', 'resnet', '--depth', '8']), 10)
    assert networks.describe(params).startswith('CIFAR ResNet-8')


# --- normalisation ---------------------------------------------------------------------------------------


def test_normalisation_of_cifar100():
    """As torchvision's ToTensor and Normalize have it."""
    images = torch.randint(256, (2, 4, 4, 3), dtype=torch.uint8)
    mean = torch.tensor([0.5071, 0.4867, 0.4408], dtype=torch.float64)
    std = torch.tensor([0.2675, 0.2565, 0.2761], dtype=torch.float64)
    expected = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    split = data.Images(images, torch.arange(2))
    first, = data.Loader(split, 2, normalization='cifar100')
    for x in (data.normalize(images, *data.NORMALIZATIONS['cifar100']), first.x):
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)
    augmented, = data.Loader(split, 2, seed=1, flip=False, normalization='cifar100')
    order = augmented.labels
    torch.testing.assert_close(augmented.x.double(), expected[order], rtol=0, atol=1e-6)


def test_normalisation_of_a_run(tmp_path):
    runs = {}
    for kind in ('cifar10', 'cifar100'):
        small = [*SMALL, '--normalization', kind]
        assert call_cifar(*small, '--save', kind, '--epochs', 1, cwd=tmp_path).status == 0
        runs[kind] = log_of(tmp_path / kind)[-1]
        done = call_cifar(*small, '--evaluate', '--student_params', kind, cwd=tmp_path)
        assert f'test loss {runs[kind]["test_loss"]:.4f}' in done.out
    assert runs['cifar10']['test_loss'] != runs['cifar100']['test_loss']
    done = call_cifar(*SMALL, '--save', 'other', '--normalization', 'imagenet', cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1 and '--normalization' in done.errors[0]
