"""ImageNet networks, folded ones too, against torchvision's; the exported form against an nn.Module twin."""
import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import layers
import resnet
from utils import InputError
from weights import networks


def lived(model: nn.Module) -> nn.Module:
    """A model in evaluation mode whose BN has seen images and whose scales and shifts differ by channel."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
            module.momentum = None  # a plain mean over the batches
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 128, 128, generator=generator))
    return model.eval()


@pytest.fixture(scope='module', params=[18, 34])
def theirs(request) -> tuple[int, nn.Module]:
    torch.manual_seed(request.param)
    return request.param, lived(getattr(torchvision.models, f'resnet{request.param}')(num_classes=7))


def outputs(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and the output of each layer of torchvision's model."""
    groups = []
    hooks = [getattr(model, f'layer{g}').register_forward_hook(lambda *a: groups.append(a[2]))
             for g in (1, 2, 3, 4)]
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, groups


def same(found, expected, tolerance=1e-5):
    """Logits, and groups, agree to a fraction of their largest element."""
    for a, b in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1, b.abs().max().item()))


def double(params):
    return {name: t.double() for name, t in params.items()}


@pytest.mark.parametrize('size', [(64, 64), (224, 224), (75, 90)])
def test_equal_to_torchvision_folded_or_not(theirs, size):
    depth, model = theirs
    x = torch.randn(2, 3, *size)
    expected = outputs(model, x)
    f, params = networks.network(model.state_dict() | {})
    same(f(x, params, False), expected, 1e-6)
    folded = resnet.fold(params)
    assert not any('bn' in name for name in folded)
    f, folded = networks.network(folded)
    torch.testing.assert_close(f(x, folded, False)[0], expected[0], rtol=0, atol=1e-5)
    # Somewhere among 10^5 elements float32 is off by 1.5e-5 of the largest, in torchvision's own groups too.
    same(f(x, folded, False), expected, 3e-5)
    exact = outputs(copy.deepcopy(model).double(), x.double())
    same(f(x.double(), double(folded), False), exact, 2e-6)
    same(f(x, {'teacher.' + name: t for name, t in folded.items()}, False, 'teacher.'), expected, 3e-5)
    last = expected[0]
    assert last.std() > 0.1 and not torch.allclose(last[0], last[1], atol=1e-3)  # else nothing is shown


def test_the_bias_of_the_folded_shortcut_counts(theirs):
    """What the 2017 code left out."""
    _, model = theirs
    f, folded = networks.network(resnet.fold(networks.network(model.state_dict() | {})[1]))
    x = torch.randn(1, 3, 64, 64)
    _, groups = f(x, folded, False)
    for g in (1, 2, 3):
        without = folded | {f'group{g}.block0.conv_dim.bias': torch.zeros(64 * 2**g)}
        changed = [not torch.equal(a, b) for a, b in zip(groups, f(x, without, False)[1], strict=True)]
        assert changed == [i >= g for i in range(4)]


@pytest.mark.parametrize('depth', [18, 34])
def test_training_step_equals_torchvision(depth):
    """Gradients and running statistics of one step in float64."""
    model = getattr(torchvision.models, f'resnet{depth}')(num_classes=5).double().train()
    _, params = networks.network({name: t.clone() for name, t in model.state_dict().items()})
    f, fresh = resnet.resnet(depth, 1, 5)
    assert {n: t.shape for n, t in fresh.items()} == {n: t.shape for n, t in params.items()}
    trained = layers.trainable(params)
    x, labels = torch.randn(3, 3, 40, 40, dtype=torch.float64), torch.tensor([0, 3, 4])
    F.cross_entropy(f(x, params, True)[0], labels).backward()
    F.cross_entropy(model(x), labels).backward()
    theirs = networks.from_other_names(dict(model.named_parameters()))
    assert trained.keys() == theirs.keys()
    for name, t in trained.items():
        torch.testing.assert_close(t.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)
    for name, t in networks.from_other_names(dict(model.named_buffers()) | {
            'layer1.0.conv1.weight': x}).items():  # by which it knows torchvision's names
        if layers.is_statistic(name):
            torch.testing.assert_close(params[name], t, rtol=1e-9, atol=1e-12)


def test_published_numbers():
    _, params = resnet.resnet(34, 1, 1000)
    folded = resnet.fold(params)
    assert (len(folded), layers.n_parameters(folded)) == (74, 21_789_160)
    assert folded['conv0.weight'].shape == (64, 3, 7, 7)
    assert {name for name in folded if 'conv_dim' in name} == {
        f'group{g}.block0.conv_dim.{kind}' for g in (1, 2, 3) for kind in ('weight', 'bias')}
    assert sum(t.numel() for n, t in params.items() if not layers.is_statistic(n)) == sum(
        p.numel() for p in torchvision.models.resnet34().parameters())


@pytest.mark.parametrize(('depth', 'width'), [(18, 0.5), (34, 0.25), (18, 2), (18, 0.3)])
def test_other_widths(depth, width):
    f, params = resnet.resnet(depth, width, 6)
    x = torch.randn(2, 3, 64, 64)
    logits, groups = f(x, params, True)
    assert logits.shape == (2, 6)
    assert [g.shape[1:] for g in groups] == [(int(64 * 2**i * width), 16 >> i, 16 >> i) for i in range(4)]
    expected = f(x, params, False)
    for form in (params, resnet.fold(params)):
        f, again = networks.network(form)
        assert again.keys() == form.keys()
        same(f(x, again, False), expected)


@pytest.mark.parametrize('blocks', [(2, 2, 2, 2), (3, 4, 6, 5)])
def test_published_student(blocks):
    """No BN in its shortcuts, and five blocks in the last group of its ResNet-34."""
    _, params = resnet.resnet_of(blocks, (64, 16, 32, 64, 128), 5)
    params = {name: t for name, t in params.items() if 'bndim' not in name}
    for name, t in params.items():
        if layers.is_statistic(name):
            t.uniform_(0.5, 1.5)
    f, params = networks.network(params)
    x = torch.randn(2, 3, 64, 64)
    expected = f(x, params, False)
    f, folded = networks.network(resnet.fold(params))
    for g in (0, 1, 2, 3):
        assert not folded[f'group{g}.block0.conv_dim.bias'].any()  # at this width the first group has one too
    same(f(x, folded, False), expected)


@pytest.mark.parametrize(('depth', 'width'), [(10, 1), (16, 2), (22, 0.5)])
def test_folded_wide_resnet(depth, width):
    f, params = resnet.wide_resnet(depth, width, 4)
    for name, t in params.items():
        if 'bn' in name:
            t.uniform_(0.5, 1.5) if name.endswith(('weight', 'var')) else t.normal_(0, 0.3)
    x = torch.randn(3, 3, 32, 32)
    expected = f(x, params, False)
    folded = resnet.fold(params)
    assert not any('bn' in name for name in folded)
    f, folded = networks.network(folded)
    same(f(x, folded, False), expected)
    same(f(x, {'teacher.' + name: t for name, t in folded.items()}, False, 'teacher.'), expected)


def test_fold_leaves_what_has_no_bn():
    folded = resnet.fold(resnet.resnet(18, 0.25, 3)[1])
    again = resnet.fold(folded)
    assert again.keys() == folded.keys() and all(again[name] is folded[name] for name in folded)


# --- resnet-18-at-export -----------------------------------------------------------------------------------


class Affine(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(n) + 0.5), nn.Parameter(torch.randn(n) / 4)

    def forward(self, x):
        return x * self.a.view(1, -1, 1, 1) + self.b.view(1, -1, 1, 1)


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride, very_first):
        super().__init__()
        self.affine0 = None if very_first else Affine(n_in)
        self.affine1 = Affine(n_out)
        self.conv0 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv1 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.conv_dim = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if n_in != n_out else None

    def forward(self, x):
        u = x if self.affine0 is None else torch.relu(self.affine0(x))
        y = self.conv1(torch.relu(self.affine1(self.conv0(u))))
        return y + (x if self.conv_dim is None else self.conv_dim(u))


class Twin(nn.Module):
    """As interop describes it: ResNet-18, pre-activation, a * x + b for BN."""

    def __init__(self):
        super().__init__()
        self.conv0, self.affine0 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), Affine(64)
        widths = [64, 64, 128, 256, 512]
        for g in range(4):
            n_in, n_out = widths[g:g + 2]
            self.add_module(f'group{g}', nn.Sequential(
                Block(n_in, n_out, 2 if g else 1, not g), Block(n_out, n_out, 1, False)))
        self.affine_last, self.fc = Affine(512), nn.Linear(512, 1000)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.affine0(self.conv0(x))), 3, 2, 1)
        groups = []
        for g in range(4):
            x = getattr(self, f'group{g}')(x)
            groups.append(x)
        x = torch.relu(self.affine_last(x)).mean((2, 3))
        return self.fc(x), groups

    def exported(self):
        """{name: tensor} by the names of the export."""
        params = {}
        for name, t in self.state_dict().items():
            group, _, rest = name.partition('.')
            if group.startswith('group'):
                b, _, rest = rest.partition('.')
                name = f'{group}.block{b}.{rest}'
            if 'conv' in name:
                name = name.removesuffix('.weight')
            params[name] = t
        return params


EXPORT_KEYS = {
    'conv0', 'affine0.a', 'affine0.b', 'affine_last.a', 'affine_last.b', 'fc.weight', 'fc.bias',
    *(f'group{g}.block{b}.{name}' for g in range(4) for b in range(2) for name in (
        'conv0', 'conv1', 'affine0.a', 'affine0.b', 'affine1.a', 'affine1.b')
      if g or b or 'affine0' not in name),
    *(f'group{g}.block0.conv_dim' for g in (1, 2, 3))}


def test_at_export_against_its_twin():
    twin = Twin()
    exported = twin.exported()
    assert exported.keys() == EXPORT_KEYS and len(EXPORT_KEYS) == 56
    assert sum(t.numel() for t in exported.values()) == 11_687_720
    assert exported['group1.block0.affine0.a'].shape == (64,)
    f, params = networks.network(exported)
    assert networks.describe(params) == ('pre-activation ResNet-18 of width 1, 1000 classes, '
                                         '11,687,720 parameters')
    for size in (64, 97):
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            same(f(x, params, False), twin(x))


STEMS = {'ResNet-18': lambda channels: resnet.resnet_of((2, 2, 2, 2), channels, 5)[1],
         'folded ResNet-18': lambda channels: resnet.fold(resnet.resnet_of((2, 2, 2, 2), channels, 5)[1]),
         'pre-activation ResNet-18': lambda channels: resnet.pre_activation_params((2, 2, 2, 2), channels, 5),
         'WRN-10': lambda channels: resnet.wide_resnet_of(1, channels[:4], 5)[1],
         'folded WRN-10': lambda channels: resnet.fold(resnet.wide_resnet_of(1, channels[:4], 5)[1])}


@pytest.mark.parametrize('channels', [(8, 8, 16, 32, 64), (64, 8, 16, 32, 64), (6, 10, 12, 12, 30)], ids=str)
@pytest.mark.parametrize('kind', STEMS)
def test_networks_thinned_in_any_way(tmp_path, kind, channels):
    """Shapes decide: a first convolution and groups of any number of channels."""
    params = {name: torch.rand_like(t) / t[0].numel() for name, t in STEMS[kind](channels).items()}
    torch.save(params, tmp_path / 'weights')
    f, loaded = resnet.load(tmp_path / 'weights')
    assert all(torch.equal(t, loaded[name]) for name, t in params.items()) and loaded.keys() == params.keys()
    assert networks.describe(loaded).startswith(kind)
    x = torch.randn(2, 3, 64, 64)
    logits, groups = f(x, loaded, False)
    assert [g.shape[1] for g in groups] == list(channels[1:] if 'WRN' not in kind else channels[1:4])
    exported, smaller = networks.network(resnet.fold(loaded))
    torch.testing.assert_close(exported(x, smaller, False)[0], logits, rtol=1e-4, atol=1e-4)
    wrong = loaded | {'fc.weight': torch.ones(5, channels[-1] + 1)}
    with pytest.raises(InputError, match='fc.weight'):
        networks.network(wrong)


# --- what was found --------------------------------------------------------------------------------------


@pytest.mark.parametrize(('build', 'words'), [
    (lambda: resnet.resnet(18, 1, 1000)[1], 'ResNet-18 of width 1, 1000 classes, 11,699,112 parameters'),
    (lambda: resnet.fold(resnet.resnet(34, 1, 1000)[1]),
     'folded ResNet-34 of width 1, 1000 classes, 21,789,160 parameters'),
    (lambda: resnet.wide_resnet(16, 2, 10)[1], 'WRN-16-2, 10 classes, 693,498 parameters'),
    (lambda: resnet.fold(resnet.wide_resnet(16, 2, 10)[1]),
     'folded WRN-16-2, 10 classes, 691,226 parameters'),
    (lambda: resnet.resnet(18, 0.5, 67)[1], 'ResNet-18 of width 0.5, 67 classes, 2,837,123 parameters')])
def test_describe(build, words):
    assert networks.describe(build()) == words


def test_every_missing_or_unknown_name_is_told(theirs):
    _, model = theirs
    whole = networks.network(model.state_dict() | {})[1]
    for params in (whole, resnet.fold(whole)):
        for name in list(params)[::7]:
            less = {n: t for n, t in params.items() if n != name}
            with pytest.raises(InputError, match=rf'of width .*lacks.* {name}|lacks {name}|no network'):
                networks.network(less, 'it')
        with pytest.raises(InputError, match='^it looks like .*unknown more$'):
            networks.network(params | {'more': torch.ones(1)}, 'it')
    deeper = torchvision.models.resnet50().state_dict()
    with pytest.raises(InputError, match=r'group0\.block0\.bn3.*and \d+ more'):
        networks.network(dict(deeper), 'it')


@pytest.mark.parametrize('depth', [0, 17, 50, 101])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(InputError, match='18 or 34'):
        resnet.resnet(depth, 1, 10)


def test_width_without_channels():
    with pytest.raises(InputError, match='channels'):
        resnet.resnet(18, 0.01, 10)

