"""From tensors to the network that they belong to, which their names and shapes determine.

    f, params = networks.load('resnet-34-export.hkl')
    print(networks.describe(params))                     # folded ResNet-34 of width 1, 1000 classes, ...
"""
import re
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import layers
import nin
import resnet
from layers import Network, Params
from modules import Functional
from utils import InputError
from weights import named, tensors


class Kind(NamedTuple):
    """A kind of network: how to recognise its tensors, its names, and how to build it."""
    kind: str  # in logs
    name: str  # with its depth and width
    begins: tuple[str, ...]  # beginnings of names that no kind before it in KINDS has together
    groups: int  # 3 for images of 32 x 32, 4 for 224 x 224
    layers: tuple[int, int]  # that count for the depth: in a block, and outside of blocks
    unit: int  # channels of the last group at width 1
    outputs: tuple[str, ...]  # convolutions that determine its channels
    build: Callable[['Found'], tuple[Network, Params]]
    folded: Callable[[tuple[int, ...]], Network] | None = None  # the function after `resnet.fold`, by blocks
    lacks: tuple[tuple[str, str], ...] = ()  # what it may lack, and a part of a name that shows it is there


class Found(NamedTuple):
    """What names and shapes of tensors say about their network."""
    kind: Kind
    blocks: tuple[int, ...]  # in each group
    channels: tuple[int, ...]  # of `kind.outputs`
    num_classes: int
    lacks: tuple[str, ...]  # of `kind.lacks`

    @property
    def depth(self) -> int:
        in_block, others = self.kind.layers
        return in_block * sum(self.blocks) + others

    @property
    def width(self) -> float:
        return self.channels[-1] / self.kind.unit  # rounding affects the last group least

    def __str__(self) -> str:
        name = self.kind.name.format(depth=self.depth, width=self.width)
        return name + ''.join(f' without {what}' for what in self.lacks)


def _wide(found: Found) -> tuple[Network, Params]:
    return resnet.wide_resnet_of(found.blocks[0], found.channels, found.num_classes)


def _post_activation(found: Found) -> tuple[Network, Params]:
    return resnet.resnet_of(found.blocks, found.channels, found.num_classes)


def _cifar_resnet(found: Found) -> tuple[Network, Params]:
    return resnet.resnet_of(found.blocks, found.channels, found.num_classes, stem=3)


def _pre_activation(found: Found) -> tuple[Network, Params]:
    return resnet.pre_activation(found.blocks), resnet.pre_activation_params(
        found.blocks, found.channels, found.num_classes)


def _nin(found: Found) -> tuple[Network, Params]:
    return nin.nin(found.channels[0], found.num_classes, bn='BN' not in found.lacks,
                   pool_relu=POOL_RELU not in found.lacks)


OURS = ('torchvision:resnet18', 'torchvision:resnet34')
POOL_RELU = 'ReLU before pooling'
WIDE = 'conv0', *(f'group{g}.block0.conv1' for g in range(3))
IMAGENET = *WIDE, 'group3.block0.conv1'
FOLDED = tuple(f'{name}.weight' for name in IMAGENET)
KINDS = (
    Kind('WRN', 'WRN-{depth}-{width:g}', ('bn.',), 3, (2, 4), 64, WIDE, _wide),
    Kind('ResNet', 'ResNet-{depth} of width {width:g}', ('bn0.', 'group3.'), 4, (2, 2), 512, IMAGENET,
         _post_activation),
    Kind('ResNet', 'folded ResNet-{depth} of width {width:g}', ('conv0.', 'group3.'), 4, (2, 2), 512,
         FOLDED, _post_activation, folded=resnet.post_activation),
    Kind('ResNet', 'CIFAR ResNet-{depth} of width {width:g}', ('bn0.',), 3, (2, 2), 64, WIDE, _cifar_resnet),
    Kind('ResNet', 'folded CIFAR ResNet-{depth} of width {width:g}', ('conv0.',), 3, (2, 2), 64, FOLDED[:4],
         _cifar_resnet, folded=resnet.post_activation),
    Kind('ResNet', 'pre-activation ResNet-{depth} of width {width:g}', ('affine0.',), 4, (2, 2), 512,
         IMAGENET, _pre_activation),
    Kind('WRN', 'folded WRN-{depth}-{width:g}', ('affine_last.',), 3, (2, 4), 64, WIDE, _wide,
         folded=resnet.pre_activation),
    Kind('NIN', 'NIN of width {width:g}', ('group0.conv0',), 3, (3, 0), 1, ('group0.conv0',), _nin,
         lacks=(('BN', '.running_'), (POOL_RELU, '.conv2'))))  # folded, it is a NIN without BN


def load(path: Path | str, run_files: bool = False) -> tuple[Network, Params]:
    """The network in `path` and its tensors, on the CPU.

    Wide ResNets, ResNets and NIN from any file or address that `tensors.read` accepts: checkpoints and
    folders of runs, those of the published code (the student, not its teacher), the exports, torchvision's
    networks, ResNets and wide ResNets of RepDistiller and mdistiller. Checkpoints of networks of torchvision
    and timm too; those of a file of your own (PATH.py) if `run_files`, which runs it, and it is unchanged.
    InputError lists what is missing and what is unknown.
    """
    name = str(path)
    if name.startswith('torchvision:') and name not in OURS:
        f, fresh = named.build(name, 1000, 224)
        return f, named.fitted(tensors.read(name), fresh, name)
    params, known = tensors.read_with_options(path)
    if recipe := named.recipe_of(known):
        return named.rebuild(recipe, params, str(path), run_files)
    return network(params, str(path))


def network(params: Params, source: str = 'this dictionary') -> tuple[Network, Params]:
    """As `load`, for tensors in memory; `source` names them in messages."""
    params = from_other_names(params)
    found = _find(params, source)
    f, expected = _build(found, params, source)
    missing = [name for name in expected if name not in params]
    unknown = [name for name in params if name not in expected]
    shapes = [f'{name} is {tuple(params[name].shape)}, not {tuple(t.shape)}' for name, t in expected.items()
              if name in params and params[name].shape != t.shape]
    wrong = [f'{what} {_some(names)}' for what, names in (
        ('lacks', missing), ('has unknown', unknown), ('has other shapes:', shapes)) if names]
    if wrong:
        raise InputError(f'{source} looks like a {found} but {"; it ".join(wrong)}')
    return f, {name: params[name] for name in expected}


def describe(params: Params, f: Network | None = None) -> str:
    """One line with kind, depth, width, number of classes and number of parameters of a network."""
    name = f.recipe['model'] if isinstance(f, Functional) else _find(params)
    return f'{name}, {n_classes(params, f)} classes, {layers.n_parameters(params):,} parameters'


def fields(params: Params, f: Network | None = None) -> dict[str, Any] | None:
    """{'kind': 'WRN', 'ResNet' or 'NIN', 'depth': ..., 'width': ...}, for logs; None without tensors.

    A NIN also has 'pool_relu', but not 'bn': a teacher is folded, so it has no BN. For a network by name, the
    kind is its name, and there is its recipe.
    """
    if not params:
        return None
    if isinstance(f, Functional):
        return {'kind': f.recipe['model'], 'recipe': f.recipe}
    found = _find(params)
    known = {'kind': found.kind.kind, 'depth': found.depth, 'width': found.width}
    return known | ({'pool_relu': POOL_RELU not in found.lacks} if found.kind.lacks else {})


def facts(f_s: Network, f_t: Network | None, teacher: Params) -> dict[str, Any]:
    """What a log says about both networks, besides the options."""
    recipe = {'network': f_s.recipe} if isinstance(f_s, Functional) else {}
    return {'teacher': fields(teacher, f_t), **recipe}


def statistics(f: Network) -> frozenset[str]:
    """Tensors of a network by name that no gradient reaches; the names of our own ones tell."""
    return f.buffers if isinstance(f, Functional) else frozenset()


def fixed(f: Network, params: Params, n_groups: int) -> set[str]:
    """Tensors that fine-tuning leaves as they are: BN, the first `n_groups` groups and what lies before."""
    if isinstance(f, Functional):
        names = list(f.names)  # in the order of the module
        inside = tuple(f'{group}.' for group in f.groups[:n_groups])
        last = max((i for i, name in enumerate(names) if name.startswith(inside)), default=-1)
        return {f.names[name] for name in names[:last + 1]} | f.norms
    below = (*[f'group{g}.' for g in range(n_groups)], *['conv0'] * bool(n_groups))
    return {name for name in params if re.search(r'\bbn', name) or name.startswith(below)}


def image_size(params: Params, f: Network | None = None) -> int:
    """Side of the images of a network in pixels: 32 for CIFAR, 224 for ImageNet."""
    return f.recipe['size'] if isinstance(f, Functional) else 32 if n_groups(params) == 3 else 224


def n_groups(params: Params, f: Network | None = None) -> int:
    """Number of groups, whose outputs attention transfer compares."""
    return len(f.groups) if isinstance(f, Functional) else _find(params).kind.groups


def n_classes(params: Params, f: Network | None = None) -> int:
    return f.recipe['num_classes'] if isinstance(f, Functional) else len(params['fc.bias'])


def folded(f: Network, params: Params) -> tuple[Network, Params]:
    """The same network without BN. A network by name stays as it is."""
    return (f, params) if isinstance(f, Functional) else network(resnet.fold(params))


def from_other_names(params: Params) -> Params:
    """Rename tensors of torchvision, RepDistiller and mdistiller to our names; leave others as they are."""
    wide = 'block1.layer.0.conv1.weight' in params
    if not wide and 'layer1.0.conv1.weight' not in params:
        return params

    def rename(name: str) -> str:
        if wide:
            name = re.sub(r'^bn1\.', 'bn.', name)
        name = re.sub(r'^(?:layer|block)(\d)\.(?:layer\.)?(\d+)\.',
                      lambda m: f'group{int(m[1]) - 1}.block{m[2]}.', name)
        name = re.sub(r'\b(conv|bn)([12])\b', lambda m: f'{m[1]}{int(m[2]) - 1}', name)
        name = re.sub(r'downsample\.0|convShortcut', 'convdim', name).replace('downsample.1', 'bndim')
        return re.sub(r'(conv\w+)\.weight$', r'\1', name)

    return {rename(name): t for name, t in params.items() if not name.endswith('num_batches_tracked')}


# --- networks as modules ---------------------------------------------------------------------------------


class _Part(nn.Module):
    """Holds tensors whose names begin alike. Calling it runs its hooks: those of torch.nn.utils.prune."""

    def forward(self) -> None:
        pass


class Module(nn.Module):
    """A functional network as a module: `logits, groups = module(x)`; its state has the names of `params`.

    It can be pickled and copied, though its function cannot: the tensors determine the function.
    """

    def __init__(self, f: Network, params: Params):
        super().__init__()
        self.f, self.names = f, list(params)
        for name, t in params.items():
            *path, leaf = name.split('.')
            part: nn.Module = self
            for step in path:
                if step not in part._modules:
                    part.add_module(step, _Part())
                part = getattr(part, step)
            if layers.is_statistic(name):
                part.register_buffer(leaf, t)
            else:
                part.register_parameter(leaf, nn.Parameter(t))

    def tensors(self) -> Params:
        """By name. They are read as attributes, because replicas of nn.DataParallel have no parameters."""
        for part in self.modules():
            if isinstance(part, _Part):
                part()
        return {name: attrgetter(name)(self) for name in self.names}

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.f(x, self.tensors(), self.training)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != 'f'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.f, _ = network(self.tensors())


# --- recognition -----------------------------------------------------------------------------------------


def _find(params: Params, source: str = 'this dictionary') -> Found:
    kind = next((kind for kind in KINDS if all(
        any(name.startswith(begin) for name in params) for begin in kind.begins)), None)
    if kind is None:
        raise InputError(f'{source} holds no network of this project: its tensors are {_some(list(params))}')

    def output(name: str) -> int:
        t = params.get(name, params.get(name + '.weight'))
        if t is None or not t.dim() or not t.numel():
            raise InputError(f'{source} looks like a {kind.kind} but lacks {name}')
        return t.shape[0]

    blocks = []
    for g in range(kind.groups):
        found = {m[1] for name in params if (m := re.match(rf'group{g}\.block(\d+)\.', name))}
        blocks.append(max(len(found), 1))
    if kind.groups == 3:  # all have the same number, so a block that one group lacks is reported as missing
        blocks = [max(blocks)] * 3
    lacks = tuple(what for what, part in kind.lacks if not any(part in name for name in params))
    return Found(kind, tuple(blocks), tuple(map(output, kind.outputs)), output('fc.weight'), lacks)


def _some(names: Iterable[str]) -> str:
    names = sorted(name if name.isprintable() else ascii(name) for name in names)
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def _build(found: Found, params: Params, source: str) -> tuple[Network, Params]:
    """The network that was found, and tensors without content that have its shapes."""
    try:
        with torch.device('meta'):
            f, expected = found.kind.build(found)
            if not any('.bndim.' in name for name in params):  # as in the published student
                expected = {name: t for name, t in expected.items() if '.bndim.' not in name}
            if found.kind.folded:
                f, expected = found.kind.folded(found.blocks), resnet.fold(expected)
    except RuntimeError:  # more elements than torch can count
        raise InputError(f'{source} holds no network of this project: none has {found.channels} '
                         'channels') from None
    return f, expected
