"""Functional residual networks: `logits, groups = f(x, params, mode, base='')`.

    f, params = resnet.wide_resnet(depth=16, width=1, num_classes=10)
    logits, groups = f(torch.randn(2, 3, 32, 32), params, mode=True)

A network is a function and a flat dictionary of tensors. The names are an interface: checkpoints, exports and
logs of the published code carry the same ones.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
import utils
from utils import InputError, Network, Params


def wide_resnet(depth: int, width: float, num_classes: int) -> tuple[Network, Params]:
    """Pre-activation wide ResNet for 32 x 32 images (WRN-depth-width), depth 6n + 4.

    Its groups are the raw residual sums, before the next BN and ReLU: (N, 16 w, 32, 32), (N, 32 w, 16, 16),
    (N, 64 w, 8, 8). Any input of at least 4 x 4 is taken; logits come from the average over the last map.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f'a wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}')
    n = (depth - 4) // 6
    widths = [int(16 * width), int(32 * width), int(64 * width)]
    if widths[0] < 1:
        raise InputError(f'width {width} leaves a wide ResNet without channels; give at least 0.0625')

    def block(n_in: int, n_out: int) -> dict:
        params = {'conv0': utils.conv_params(n_in, n_out, 3), 'conv1': utils.conv_params(n_out, n_out, 3),
                  'bn0': utils.bn_params(n_in), 'bn1': utils.bn_params(n_out)}
        if n_in != n_out:
            params['convdim'] = utils.conv_params(n_in, n_out, 1)
        return params

    params = {'conv0': utils.conv_params(3, 16, 3)}
    for g, (n_in, n_out) in enumerate(zip([16, *widths[:2]], widths, strict=True)):
        params[f'group{g}'] = {f'block{b}': block(n_out if b else n_in, n_out) for b in range(n)}
    params |= {'bn': utils.bn_params(widths[2]), 'fc': utils.linear_params(widths[2], num_classes)}
    return _wide_resnet_function(n), utils.flatten(params)


def _wide_resnet_function(n: int) -> Network:
    def block(x: Tensor, params: Params, base: str, mode: bool, stride: int) -> Tensor:
        o = F.relu(utils.batch_norm(x, params, base + '.bn0', mode), inplace=True)
        y = F.conv2d(o, params[base + '.conv0'], stride=stride, padding=1)
        y = F.relu(utils.batch_norm(y, params, base + '.bn1', mode), inplace=True)
        y = F.conv2d(y, params[base + '.conv1'], padding=1)
        shortcut = params.get(base + '.convdim')
        return y + (x if shortcut is None else utils.conv1x1(o, shortcut, stride))

    def f(x: Tensor, params: Params, mode: bool, base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        x = F.conv2d(x, params[base + 'conv0'], padding=1)  # (N, 16, H, W)
        groups = []
        for g in range(3):
            for b in range(n):
                x = block(x, params, f'{base}group{g}.block{b}', mode, stride=2 if g and not b else 1)
            groups.append(x)  # (N, 16 w 2^g, H / 2^g, W / 2^g)
        x = F.relu(utils.batch_norm(x, params, base + 'bn', mode))
        x = x.mean((2, 3))
        return F.linear(x, params[base + 'fc.weight'], params[base + 'fc.bias']), tuple(groups)

    return f


# --- weights from files ----------------------------------------------------------------------------------


def load(path: Path | str) -> tuple[Network, Params]:
    """The network that a file of weights, a checkpoint or a run's folder holds, and its tensors, on the CPU.

    Runs of the published code are read as well; of a checkpoint with a student and a teacher, the student.
    InputError says what is wrong with a file that holds no network of this project.
    """
    path = Path(path)
    if path.is_dir():
        missing = [name for name in (checkpoint.LOG, checkpoint.MODEL) if not (path / name).is_file()]
        if missing:
            raise InputError(f'{path} is no finished epoch of a run: it has no {" and no ".join(missing)}')
        path = path / checkpoint.MODEL
    state = checkpoint.read(path)
    params = state.get('params', state) if isinstance(state, dict) else None
    if not isinstance(params, dict) or not params or not all(map(_is_weight, params.items())):
        raise InputError(f'{path} holds no dictionary of tensors by name')
    params = checkpoint.student(params)
    depth, width, num_classes = _dimensions(path, params)
    try:
        with torch.device('meta'):
            f, expected = wide_resnet(depth, width, num_classes)
    except InputError as e:
        raise InputError(f'{path} is no wide ResNet: {e}') from None
    wrong = [f'no {name}' for name in expected.keys() - params.keys()]
    wrong += [f'unknown {name}' for name in params.keys() - expected.keys()]
    wrong += [f'{name} of shape {tuple(params[name].shape)} for {tuple(t.shape)}'
              for name, t in expected.items() if name in params and params[name].shape != t.shape]
    if wrong:
        shown = ', '.join(sorted(wrong)[:4]) + (f' and {len(wrong) - 4} more' if len(wrong) > 4 else '')
        raise InputError(f'{path} looks like WRN-{depth}-{width:g} but its tensors differ: {shown}')
    return f, {name: params[name].detach().float() for name in expected}


def _is_weight(item: tuple) -> bool:
    name, t = item
    return (isinstance(name, str) and isinstance(t, Tensor) and t.layout == torch.strided
            and t.is_floating_point())


def _dimensions(path: Path, params: Params) -> tuple[int, float, int]:
    """Depth, width and number of classes of a wide ResNet, from the shapes of its tensors."""
    try:
        n = sum(f'group0.block{b}.conv0' in params for b in range(len(params)))
        # The last group shows a width most finely: int(16 w) of the first hides its fraction.
        return 6 * n + 4, params['group2.block0.conv0'].shape[0] / 64, params['fc.weight'].shape[0]
    except (KeyError, IndexError):
        raise InputError(f'{path} is no wide ResNet: it begins with {", ".join(list(params)[:3])}') from None
