"""Any nn.Module as a network of this project: `logits, groups = f(x, params, mode)`.

    f, params = modules.functional(torchvision.models.resnet18(), ['layer1', 'layer2', 'layer3', 'layer4'])
    logits, groups = f(torch.randn(2, 3, 224, 224), params, mode=True)

The groups are outputs of submodules, named as in `module.named_modules()`. The names in `params` are those of
the module's own state dictionary.
"""
import copy
import difflib
import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layers import Params
from utils import InputError

PREFIX = 5  # tokens that may come before those of the patches: a class token, and up to 4 registers
NUMBERED = ('layer', 'stage', 's')  # beginnings of the names of stages, such as layer1
TRUNKS = ('features', 'stages', 'layers', 'blocks', 'encoder.layers', 'trunk_output')  # parents of the stages
N_GROUPS = 4  # of default_groups, at most


class Functional:
    """A module as a function of its tensors.

    It holds two copies of the module, in training mode and in evaluation mode, without tensors of their own:
    each call lends them those in `params`. Only constants stay in the copies: integer buffers, and buffers
    that a state dictionary does not have. They follow the device of the images.
    """

    def __init__(self, module: nn.Module, groups: Sequence[str]) -> None:
        state = _state(module)
        names: dict[int, str] = {}  # one for each tensor, which may have several
        self.names = {name: names.setdefault(id(t), name) for name, t in state.items()}
        self.groups = tuple(groups)
        self.buffers = frozenset(names.values()) - {name for name, _ in module.named_parameters()}
        self.norms = frozenset(  # weights and biases of BN
            self.names[f'{part}.{leaf}'.lstrip('.')] for part, norm in module.named_modules()
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) for leaf, _ in norm.named_parameters())
        empty = {id(t): nn.Parameter(t.detach().to('meta')) if isinstance(t, nn.Parameter) else t.to('meta')
                 for t in state.values()}
        self.seen: dict[str, Tensor] = {}
        self.twins = {mode: self._twin(copy.deepcopy(module, dict(empty)), mode) for mode in (False, True)}
        self.device = next(iter(state.values())).device  # of the constants
        self.recipe: dict[str, Any] = {}  # how to build it again by name (weights/named.py)

    def _twin(self, module: nn.Module, mode: bool) -> nn.Module:
        for part in module.modules():
            # Counting batches costs time in each step, and matters to an average over all batches alone.
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.momentum is not None:
                part.num_batches_tracked = None
        for name in self.groups:
            module.get_submodule(name).register_forward_hook(partial(_keep, self.seen, name))
        return module.train(mode)

    def __call__(self, x: Tensor, params: Params, mode: bool,
                 base: str = '') -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (N, K), and groups (N, C, h, w), of images x (N, 3, H, W).

        mode True: BN takes the statistics of the batch and updates the running ones in `params`; dropout and
        stochastic depth are on.
        """
        if self.device != x.device:
            self._move(x.device)
        self.seen.clear()
        lent = {name: params[base + key] for name, key in self.names.items()}
        logits = functional_call(self.twins[mode], lent, (x,), tie_weights=False)
        if mode:
            for name in self.buffers:
                if lent[name] is not params[base + name]:  # the module replaced it by a new tensor
                    params[base + name].copy_(lent[name].detach())
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise InputError(f'{_title(self.twins[mode])} gives {_kind(logits)}, not logits (N, classes): '
                             'build it such that it returns one tensor of logits')
        groups = tuple(as_map(self.seen.pop(name, None), name, x.shape[2:]) for name in self.groups)
        return logits, groups

    @torch.compiler.disable
    def _move(self, device: torch.device) -> None:
        for part in (part for twin in self.twins.values() for part in twin.modules()):
            part._buffers |= {name: t.to(device) for name, t in part._buffers.items()
                              if t is not None and not t.is_meta}
        self.device = device

    def module(self, params: Params) -> nn.Module:
        """A copy of the module with these tensors, in evaluation mode, for programs that want a module."""
        module = copy.deepcopy(self.twins[False])
        for name in self.groups:
            hooks = module.get_submodule(name)._forward_hooks
            for number in [i for i, hook in hooks.items() if getattr(hook, 'func', None) is _keep]:
                del hooks[number]
        own = {key: params[key].detach() if key in self.buffers else nn.Parameter(params[key].detach())
               for key in self.names.values()}
        for name, key in self.names.items():
            parent, _, leaf = name.rpartition('.')
            setattr(module.get_submodule(parent), leaf, own[key])
        for part in module.modules():
            if (isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
                    and part.num_batches_tracked is None):
                part.num_batches_tracked = torch.tensor(0)
        return module


def functional(module: nn.Module, groups: Sequence[str]) -> tuple[Functional, Params]:
    """f and params of a module, which stays as it is: `logits, groups = f(x, params, mode)`.

    `params` are copies of the parameters and of the floating-point buffers of the module's state dictionary,
    by the module's own names. `groups` names the submodules whose outputs are the groups: activations
    (N, C, h, w) or (N, h, w, C), or tokens (N, L, C), from which maps (N, C, h, w) without class token are
    made. Of a submodule that runs several times, the last output counts; where the next layer changes the
    output in place, as an in-place ReLU does, the changed one. InputError if there is no such submodule or
    its output is no map.
    """
    known = [name for name, _ in module.named_modules() if name]
    for name in groups:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0) or known[:3]
            raise InputError(f'{_title(module)} has no module {name!r}; near are {", ".join(near)}')
    f = Functional(module, groups)
    state = _state(module)
    return f, {key: state[key].detach().clone() for key in dict.fromkeys(f.names.values())}


def as_map(output: object, name: str, size: Sequence[int]) -> Tensor:
    """The output of a submodule as activations (N, C, h, w); `size` of the image is (H, W).

    Which dimensions are h and w is seen from the shape of the image, whose aspect maps share.
    """
    aspect = size[0] / size[1]
    if isinstance(output, Tensor) and output.dim() == 4 and 0 not in output.shape:
        _, a, b, c = output.shape
        channels_last = abs(math.log(a / b / aspect)) < abs(math.log(b / c / aspect))
        return output.permute(0, 3, 1, 2) if channels_last else output
    if isinstance(output, Tensor) and output.dim() == 3:
        for k in range(PREFIX + 1):
            n = output.shape[1] - k
            h = round(math.sqrt(max(n, 0) * aspect))
            if h and n % h == 0 and round(n // h * aspect) == h:
                return output[:, k:].transpose(1, 2).unflatten(2, (h, n // h))
    if output is None:
        raise InputError(f'the module {name!r} does not run in a forward pass: it gives no group')
    raise InputError(f'the module {name!r} gives {_kind(output)}, which is no map: a group is a tensor '
                     '(N, C, h, w), or (N, tokens, C) with h x w tokens')


# --- which groups ----------------------------------------------------------------------------------------


def candidates(module: nn.Module, size: int) -> dict[str, tuple[int, int, int]]:
    """(C, h, w) of every submodule that gives maps larger than 1 x 1, in the order in which they finish.

    size: height and width of the images.
    """
    found: dict[str, tuple[int, int, int]] = {}
    probe = copy.deepcopy(module).eval()
    outputs: dict[str, Tensor] = {}
    for name, part in probe.named_modules():
        if name:
            part.register_forward_hook(partial(_keep, outputs, name))
    first = next(probe.parameters())
    with torch.no_grad():
        probe(torch.zeros(1, 3, size, size, device=first.device, dtype=first.dtype))
    for name, output in outputs.items():
        try:
            channels, h, w = as_map(output, name, (size, size)).shape[1:]
        except InputError:
            continue
        if h > 1 and w > 1:
            found[name] = channels, h, w
    return found


def default_groups(module: nn.Module, shapes: dict[str, tuple[int, int, int]]) -> list[str]:
    """The groups of the usual families; `shapes` as `candidates` gives them. Empty for other networks.

    The last stage of each size of map, without pooling layers, of the last four sizes; of a transformer whose
    maps all have one size, four blocks at equal distances, the last block being the fourth.
    """
    parts = dict(module.named_modules())
    trunks = [name for name in NUMBERED if f'{name}2' in parts]
    trunks += [f'{name}.' for name in TRUNKS if name in parts]
    if not trunks:
        return []
    number = r'\d+' if trunks[0] in NUMBERED else r'[^.]+'
    stages = [name for name in shapes if re.fullmatch(re.escape(trunks[0]) + number, name)
              and 'Pool' not in type(parts[name]).__name__]
    sizes = {shapes[name][1:]: name for name in stages}
    if len(sizes) > 1:
        return list(sizes.values())[-N_GROUPS:]
    n = len(stages)
    return [stages[(i + 1) * n // N_GROUPS - 1] for i in range(N_GROUPS)] if n >= N_GROUPS else []


# --- helpers ---------------------------------------------------------------------------------------------


def _state(module: nn.Module) -> Params:
    """The floating-point tensors of the state dictionary themselves."""
    state = module.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}


def _keep(outputs: dict, name: str, module: nn.Module, inputs: object, output: object) -> None:
    """A forward hook, once its first two arguments are given."""
    outputs.pop(name, None)  # such that the order is that of the last calls
    outputs[name] = output


def _title(module: nn.Module) -> str:
    return type(module).__name__


def _kind(output: object) -> str:
    return f'a tensor {tuple(output.shape)}' if isinstance(output, Tensor) else f'a {type(output).__name__}'
