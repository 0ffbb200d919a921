"""Modules as networks: the same numbers as the module itself, and as our own functional network."""
import copy
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import layers
import method
import modules
import utils
from helpers import ROOT
from utils import InputError
from weights import networks


class Handmade(nn.Module):
    """What users write: a norm of its own, constants, tied weights, dropout, a layer that runs twice."""

    def __init__(self, classes=5):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(16, classes)
        self.tied = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.tied.weight
        self.register_buffer('level', torch.zeros(16))  # replaced in training mode
        self.register_buffer('spread', torch.ones(16))  # changed in place
        self.register_buffer('scale', torch.tensor([2.0]), persistent=False)
        self.register_buffer('order', torch.arange(15, -1, -1))

    def forward(self, x):
        x = self.norm(self.first(x * self.scale))
        x = self.body(self.body(x)) if self.training else self.body(self.body(x))
        if self.training:
            self.level = 0.9 * self.level + 0.1 * x.mean((0, 2, 3)).detach()
            self.spread.mul_(0.9).add_(0.1 * x.var((0, 2, 3)).detach())
        x = (x - self.level[:, None, None]) / self.spread[:, None, None]
        return self.head(self.again(self.tied(x.mean((2, 3)))[:, self.order]))


def vit():
    module = torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=4, num_heads=2,
                                                  hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(module.heads.head.weight, std=0.3)  # from zeros no gradient reaches the image
    return module


def swin():
    return torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5)


BLOCKS = [f'encoder.layers.encoder_layer_{i}' for i in (1, 3)]
CASES = {'handmade': (Handmade, ['norm', 'body']), 'vit': (vit, BLOCKS),
         'swin': (swin, ['features.1', 'features.3'])}


def images(n=6, size=32, classes=5):
    return torch.randn(n, 3, size, size), torch.arange(n) % classes


def loss_of(logits, groups, labels):
    return F.cross_entropy(logits, labels) + sum(10 * utils.attention_map(g).mean() for g in groups)


def step(loss, params, lr):
    """Plain gradient descent; returns the gradients by name."""
    trained = {name: t for name, t in params.items() if t.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    found = dict(zip(trained, gradients, strict=True))
    with torch.no_grad():
        for name, gradient in found.items():
            if gradient is not None:
                params[name] -= lr * gradient
    return found


# --- the same numbers --------------------------------------------------------------------------------------


def test_a_resnet_as_our_own_one():
    """After each of five training steps: logits, groups, gradients and running statistics."""
    module = torchvision.models.resnet18(num_classes=5)
    f, params = modules.functional(module, ['layer1', 'layer2', 'layer3', 'layer4'])
    ours, own = networks.network({name: t.clone() for name, t in networks.from_other_names(params).items()})
    assert params.keys() == {n for n in module.state_dict() if not n.endswith('num_batches_tracked')}
    layers.trainable(params, f.buffers)
    layers.trainable(own)
    close = {'rtol': 1e-5, 'atol': 1e-5}
    for _ in range(5):
        x, labels = images(8, 64)
        found, expected = f(x, params, True), ours(x, own, True)
        torch.testing.assert_close(found, expected, **close)
        gradients = step(loss_of(*found, labels), params, 0.01)
        own_gradients = step(loss_of(*expected, labels), own, 0.01)
        renamed = networks.from_other_names(gradients)
        assert renamed.keys() == own_gradients.keys()
        torch.testing.assert_close(renamed, {name: own_gradients[name] for name in renamed}, **close)
        renamed = networks.from_other_names(params)
        torch.testing.assert_close({n: renamed[n] for n in own}, own, **close)
    assert not torch.equal(params['bn1.running_mean'], torch.zeros(64))
    torch.testing.assert_close(f(x, params, False), ours(x, own, False), **close)


@pytest.mark.parametrize('case', CASES)
def test_training_is_that_of_the_module(case):
    """The module itself, trained by torch.optim, with the same draws of dropout and stochastic depth."""
    build, groups = CASES[case]
    module = build()
    f, params = modules.functional(module, groups)
    layers.trainable(params, f.buffers)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for seed in range(3):
        x, labels = images()
        torch.manual_seed(seed)
        logits, maps = f(x, params, True)
        torch.manual_seed(seed)
        expected = module.train()(x)
        torch.testing.assert_close(logits, expected)
        step(F.cross_entropy(logits, labels), params, 0.05)
        optimizer.zero_grad()
        F.cross_entropy(expected, labels).backward()
        optimizer.step()
    state = module.state_dict()
    torch.testing.assert_close(params, {name: state[name] for name in params})
    torch.testing.assert_close(f(x, params, False)[0], module.eval()(x))


def test_parameters_and_buffers_by_what_they_are():
    """Whatever their names; those that a state dictionary lacks, integers and second names are left out."""
    f, params = modules.functional(Handmade(), ['body'])
    assert f.buffers == {'norm.running_mean', 'norm.running_var', 'level', 'spread'}
    assert params.keys() - f.buffers == {n for n, _ in Handmade().named_parameters()}
    assert 'again.weight' not in params and 'tied.weight' in params
    assert layers.trainable(params, f.buffers).keys() == params.keys() - f.buffers


@pytest.mark.parametrize('case', CASES)
def test_statistics_change_in_training_mode_only(case):
    build, groups = CASES[case]
    f, params = modules.functional(build(), groups)
    before = {name: t.clone() for name, t in params.items()}
    same = {name: id(t) for name, t in params.items()}
    x, _ = images()
    f(x, params, False)
    torch.testing.assert_close(params, before, rtol=0, atol=0)
    with layers.statistics_aside(params):
        f(x, params, True)
    torch.testing.assert_close(params, before, rtol=0, atol=0)
    f(x, params, True)
    assert {name for name, t in params.items() if not torch.equal(t, before[name])} == f.buffers
    assert same == {name: id(t) for name, t in params.items()}


def test_the_module_and_deep_copies_stay_as_they_are():
    module = Handmade().train()
    state = {name: t.clone() for name, t in module.state_dict().items()}
    f, params = modules.functional(module, ['body', 'norm'])
    other, others = copy.deepcopy(f), copy.deepcopy(params)
    x, labels = images()
    layers.trainable(params, f.buffers)
    step(loss_of(*f(x, params, True), labels), params, 0.1)
    torch.testing.assert_close(dict(module.state_dict()), state, rtol=0, atol=0)
    assert module.training and not any(part._forward_hooks for part in module.modules())
    torch.testing.assert_close(others, {name: state[name] for name in others}, rtol=0, atol=0)
    logits, groups = other(x, others, False)
    torch.testing.assert_close(logits, module.eval()(x))
    assert len(groups) == 2
    copied = f.module(params)
    torch.testing.assert_close(copied(x), f(x, params, False)[0])
    assert type(copied) is Handmade and not any(part._forward_hooks for part in copied.modules())
    type(module)().load_state_dict(copied.state_dict())


def test_a_module_keeps_its_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x)).mean((2, 3))

    copied = modules.functional(Tied(), ['a'])[0].module(modules.functional(Tied(), ['a'])[1])
    assert copied.a.weight is copied.b.weight and len(list(copied.parameters())) == 3


# --- groups ------------------------------------------------------------------------------------------------


def test_tokens_become_maps():
    """Token 1 + 4 i + j of a block is element (i, j) of its map; token 0 is that of the class."""
    module = vit().eval()
    seen = []
    module.encoder.layers.encoder_layer_1.register_forward_hook(lambda *a: seen.append(a[2]))
    x, _ = images(2)
    module(x)
    f, params = modules.functional(module, BLOCKS[:1])
    _, (group,) = f(x, params, False)
    assert group.shape == (2, 16, 4, 4)
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(group[:, :, i, j], seen[0][:, 1 + 4 * i + j])


@pytest.mark.parametrize(('shape', 'size', 'expected'), [
    ((2, 8, 5, 5), (40, 40), (2, 8, 5, 5)), ((2, 5, 5, 8), (40, 40), (2, 8, 5, 5)),
    ((2, 5, 5, 5), (40, 40), (2, 5, 5, 5)), ((2, 8, 4, 6), (32, 48), (2, 8, 4, 6)),
    ((2, 4, 6, 8), (32, 48), (2, 8, 4, 6)), ((2, 7, 3, 5), (40, 64), (2, 7, 3, 5)),
    ((2, 16, 8), (40, 40), (2, 8, 4, 4)), ((2, 17, 8), (40, 40), (2, 8, 4, 4)),
    ((2, 21, 8), (40, 40), (2, 8, 4, 4)), ((2, 24, 8), (32, 48), (2, 8, 4, 6)),
    ((2, 25, 8), (32, 48), (2, 8, 4, 6)), ((2, 25, 8), (48, 32), (2, 8, 6, 4)),
    ((2, 8, 1, 1), (40, 40), (2, 8, 1, 1))])
def test_maps_of_outputs(shape, size, expected):
    assert modules.as_map(torch.zeros(shape), 'x', size).shape == expected


@pytest.mark.parametrize('output', [torch.zeros(2, 8), torch.zeros(2, 15, 8), torch.zeros(2, 3, 4, 4, 4),
                                    (torch.zeros(2, 8, 4, 4),), None])
def test_what_is_no_map_is_refused(output):
    with pytest.raises(InputError, match="'body'"):
        modules.as_map(output, 'body', (40, 40))


class Bad(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.layer, self.idle, self.output = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), output

    def forward(self, x):
        return self.output(self.layer(x))


@pytest.mark.parametrize(('output', 'groups', 'words'), [
    (lambda y: y, ['layer'], 'logits'), (lambda y: (y.mean((2, 3)),), ['layer'], 'tuple'),
    (lambda y: y.mean((2, 3)), ['idle'], 'idle')])
def test_networks_that_cannot_be_used(output, groups, words):
    f, params = modules.functional(Bad(output), groups)
    with pytest.raises(InputError, match=words):
        f(images()[0], params, False)


def test_a_group_that_is_not_there():
    with pytest.raises(InputError, match='layer4') as error:
        modules.functional(torchvision.models.resnet18(), ['layer5'])
    assert '\n' not in str(error.value) and 'ResNet' in str(error.value)


# --- how they compute --------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', CASES)
def test_autocast(case):
    build, groups = CASES[case]
    module = build().eval()
    f, params = modules.functional(module, groups)
    layers.trainable(params, f.buffers)  # without gradients torch computes attention in another way
    x, _ = images()
    with torch.autocast('cpu', torch.bfloat16):
        logits, maps = f(x, params, False)
        expected = module(x)
    assert torch.equal(logits, expected) and logits.dtype == torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16):
        logits, _ = f(x, params, True)
    assert logits.dtype == torch.bfloat16 and params[next(iter(params))].dtype == torch.float32


@pytest.mark.parametrize('case', ['vit', 'swin', 'smooth'])
def test_gradients_of_gradients(case):
    """The norm of the image's gradient, by finite differences along a random direction, in float64."""
    if case == 'smooth':
        groups, module = ['2'], nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    else:
        build, groups = CASES[case]
        module = build()
    f, params = modules.functional(module.double(), groups)
    names = layers.trainable(params, f.buffers)
    x, labels = images(3)
    x = x.double().requires_grad_()

    def norm():
        torch.manual_seed(0)
        return utils.min_l2_loss(utils.input_gradient(x, f(x, params, True)[0], labels))

    with method.twice_differentiable(True), layers.statistics_aside(params):
        found = torch.autograd.grad(norm(), list(names.values()), allow_unused=True)
        direction = [torch.randn_like(t) for t in names.values()]
        slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True) if g is not None)
        values, eps = [], 1e-5
        for sign in (1, -2):
            with torch.no_grad():
                for t, d in zip(names.values(), direction, strict=True):
                    t += sign * eps * d
            values.append(norm().item())
    torch.testing.assert_close(slope.item(), (values[0] - values[1]) / (2 * eps), rtol=1e-4, atol=1e-8)


COMPILED = '''
    import torch, layers, modules, utils
    from test_modules import CASES, images, loss_of, step

    for case, mode in (('handmade', False), ('vit', True)):
        build, groups = CASES[case]
        results = []
        for compiled in (False, True):
            torch.manual_seed(0)
            f, params = modules.functional(build(), groups)
            layers.trainable(params, f.buffers)
            net = torch.compile(f, backend='aot_eager', fullgraph=True, dynamic=False) if compiled else f
            for _ in range(2):
                x, labels = images()
                gradients = step(loss_of(*net(x, params, mode), labels), params, 0.1)
            results.append((gradients, params))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)

    results = []  # BN and replaced statistics in training mode
    for compiled in (False, True):
        torch.manual_seed(0)
        module = CASES['handmade'][0]()
        module.body[2].p = 0.0  # draws differ
        f, params = modules.functional(module, ['body'])
        net = torch.compile(f, backend='aot_eager', fullgraph=True, dynamic=False) if compiled else f
        results.append((net(images()[0], params, True), params))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    print('the same')
'''


@pytest.mark.slow
def test_compiled():
    """In a process of its own, since compiling leaves threads behind; without a compiler of C++."""
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(COMPILED)], cwd=ROOT / 'tests', text=True,
                          capture_output=True, timeout=600, stdin=subprocess.DEVNULL,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (done.returncode, done.stdout) == (0, 'the same\n'), done.stderr


# --- which groups ------------------------------------------------------------------------------------------


ROW = re.compile(r'^\| ([\w:]+) \| ([\w., ]+) \| ([\dx, ]+) \|$', re.MULTILINE)
TABLE = (ROOT / 'docs' / 'options.md').read_text().partition('| network | default groups')[2]


def test_the_table_has_the_usual_families():
    families = 'resnet', 'vgg', 'mobilenet', 'densenet', 'efficientnet', 'convnext', 'vit', 'swin'
    names = [name for name, _, _ in ROW.findall(TABLE)]
    assert len(names) == 16 and all(any(name.startswith(family) for name in names) for family in families)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'groups', 'shapes'), ROW.findall(TABLE))
def test_default_groups_of_the_table(name, groups, shapes):
    if name.startswith('timm:'):
        module = pytest.importorskip('timm').create_model(name.removeprefix('timm:'))
    else:
        module = torchvision.models.get_model(name, weights=None)
    found = modules.candidates(module, 224)
    assert modules.default_groups(module, found) == groups.split(', ')
    assert ['x'.join(map(str, found[group])) for group in groups.split(', ')] == shapes.split(', ')


def test_a_stem_is_no_stage():
    """RegNet's s4 is 1 x 1 for small images; its stem begins with s too."""
    module = pytest.importorskip('timm').create_model('regnetx_002')
    assert modules.default_groups(module, modules.candidates(module, 32)) == ['s1', 's2', 's3']


def test_candidates_in_the_order_of_the_forward_pass():
    found = modules.candidates(Handmade(), 32)
    assert list(found) == ['first', 'norm', 'body.0', 'body.1', 'body.2', 'body']
    assert set(found.values()) == {(16, 32, 32)} and modules.default_groups(Handmade(), found) == []
