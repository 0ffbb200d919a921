"""Networks by name: torchvision:NAME, timm:NAME, or PATH.py:FUNCTION of a file of your own.

    f, params = named.build('torchvision:mobilenet_v3_small', num_classes=10, size=224)
    f.recipe    # {'model': 'torchvision:mobilenet_v3_small', 'groups': [...], 'num_classes': 10, 'size': 224}

Checkpoints and logs hold the recipe of such a network: how to build it again, never its code. For a file of
your own, that is its name and sha256.
"""
import builtins
import difflib
import hashlib
import re
import sys
import traceback
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import modules
from layers import Params
from modules import Functional
from utils import InputError
from weights import tensors

FORMS = 'torchvision:NAME, timm:NAME or PATH.py:FUNCTION'
LISTED = 12  # candidates in a message


def is_name(text: str) -> bool:
    """Whether this is the name of a network."""
    return text.startswith(('torchvision:', 'timm:')) or '.py:' in text


def build(name: str, num_classes: int, size: int,
          groups: Sequence[str] | None = None) -> tuple[Functional, Params]:
    """f and fresh params of a network, for images of `size` pixels; without `groups` the usual ones.

    InputError if the network does not exist, fails, or cannot be used.
    """
    module, sha256 = _module(name, num_classes)
    groups = list(groups or _default_groups(name, module, size))
    f, params = modules.functional(module, groups)
    images = torch.zeros(1, 3, size, size)
    logits, _ = _tried(name, lambda: f(images, params, False))
    if logits.shape[1] != num_classes:
        raise InputError(f'{name} gives {logits.shape[1]} logits, not one for each of {num_classes} classes')
    f.recipe = {'model': name, 'groups': groups, 'num_classes': num_classes, 'size': size}
    f.recipe |= {'sha256': sha256} if sha256 else {}
    return f, params


def rebuild(recipe: dict[str, Any], params: Params, source: str,
            run_files: bool = False) -> tuple[Functional, Params]:
    """The network of the recipe and the params in a file.

    InputError unless the params fit. This is checked before a network of a library takes memory, so a small
    file cannot ask for a large network. A file of your own is run only with `run_files`, if it is unchanged.
    """
    name, num_classes = recipe['model'], recipe['num_classes']
    if '.py:' in name:
        if not run_files:
            raise InputError(f'{source} is a network of {name}, and a file of weights never runs code: '
                             'if you trust that file, name it with --model or --teacher_model of cifar.py '
                             'and imagenet.py, or give --run_files to tools')
        if recipe.get('sha256') != hashlib.sha256(_read(name)).hexdigest():
            raise InputError(f'{source}: the file of {name} has changed since the run, so --run_files does '
                             'not run it')
    else:
        # RegNet computes with the values of tensors while it is built, and hybrids of timm run some layers.
        with torch.device('meta') if name.startswith('timm:') else _Weightless():
            module, _ = _module(name, num_classes)
        fitted(params, modules.functional(module, ())[1], source)
    f, fresh = build(name, num_classes, recipe['size'], recipe['groups'])
    return f, fitted(params, fresh, source)


class _Weightless(TorchFunctionMode):
    """With it, layers take no memory for their weights, which they make with torch.empty."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({'device': 'meta'} if func is torch.empty else {}))


def recipe_of(options: Any) -> dict[str, Any] | None:
    """The recipe among the options in a file; None if there is none."""
    recipe = options.get('network') if isinstance(options, dict) else None
    kinds = {'model': str, 'groups': list, 'num_classes': int, 'size': int}
    if not isinstance(recipe, dict) or any(type(recipe.get(k)) is not kind for k, kind in kinds.items()):
        return None
    limits = 0 < recipe['num_classes'] < 100_000 and 0 < recipe['size'] <= 1024
    names = all(isinstance(name, str) for name in recipe['groups'])
    return recipe if limits and names and is_name(recipe['model']) else None


def head(f: Functional, params: Params) -> set[str]:
    """Names of the tensors of the last layers: their shapes depend on the number of classes."""
    module, _ = _module(f.recipe['model'], f.recipe['num_classes'] + 1)
    _, other = modules.functional(module, ())
    return {name for name, t in params.items() if other[name].shape != t.shape}


def candidates(name: str, num_classes: int, size: int) -> str:
    """A line for each module that can be a group: its name and (C, h, w); a star marks the usual groups."""
    module, _ = _module(name, num_classes)
    shapes = _tried(name, lambda: modules.candidates(module, size))
    usual = modules.default_groups(module, shapes)
    return '\n'.join(f'{"*" if group in usual else " "} {group:40} {_shape(shape)}'
                     for group, shape in shapes.items())


def _default_groups(name: str, module: nn.Module, size: int) -> list[str]:
    shapes = _tried(name, lambda: modules.candidates(module, size))
    groups = modules.default_groups(module, shapes)
    if not groups:
        few = sorted(shapes, key=lambda group: group.count('.'))[:LISTED]
        listed = ', '.join(f'{group} ({_shape(shapes[group])})' for group in shapes if group in few)
        raise InputError(f'{name} is of no family with known groups: name some with --groups or '
                         f'--teacher_groups, such as {listed}; --list_groups prints all')
    return groups


def _shape(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))


# --- modules ---------------------------------------------------------------------------------------------


def _module(name: str, num_classes: int) -> tuple[nn.Module, str | None]:
    """The module, and the checksum of its file."""
    library, _, rest = name.partition(':')
    if library == 'torchvision':
        from torchvision import models
        _check(name, rest, models.list_models(module=models))
        with warnings.catch_warnings(action='ignore'):  # about how Inception and GoogLeNet begin
            return _tried(name, lambda: models.get_model(rest, weights=None, num_classes=num_classes)), None
    if library == 'timm':
        try:
            import timm
        except ModuleNotFoundError:
            raise InputError(f'{name} needs a package that is not installed: pip install timm') from None
        _check(name, rest.partition('.')[0], timm.list_models())
        return _tried(name, lambda: timm.create_model(rest, num_classes=num_classes)), None
    path, _, function = name.rpartition(':')
    source = _read(name)
    file = ModuleType('network_' + re.sub(r'\W', '_', Path(path).stem))
    file.__file__ = path
    vars(file)['__builtins__'] = builtins  # in torch.hub, `import` of our own files means these files
    sys.modules[file.__name__] = file  # for its own pickling and dataclasses
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for what it imports from there

    def made() -> Any:
        exec(compile(source, path, 'exec'), vars(file))
        _check(name, function, [key for key, value in vars(file).items() if callable(value)])
        return getattr(file, function)(num_classes)

    module = _tried(name, made)
    if not isinstance(module, nn.Module):
        raise InputError(f'{name} gives a {type(module).__name__}, not an nn.Module')
    return module, hashlib.sha256(source).hexdigest()


def _read(name: str) -> bytes:
    """The content of the file in PATH.py:FUNCTION."""
    path = name.rpartition(':')[0]
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise InputError(f'cannot read {path}: {e.strerror}') from None


def _check(name: str, wanted: str, known: list[str]) -> None:
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 3, 0)
        raise InputError(f'there is no network {name}; near are {", ".join(near) or "none"}')


def _tried(name: str, make: Any) -> Any:
    """make(), whose errors end in one sentence; those of a file of the user after their traceback."""
    try:
        return make()
    except InputError:
        raise
    except Exception as e:
        if '.py:' in name:
            traceback.print_exc()
        lines = str(e).strip().splitlines() or ['']
        raise InputError(f'{name} fails: {type(e).__name__}: {lines[0]}') from None


# --- weights ---------------------------------------------------------------------------------------------


def fitted(found: Params, fresh: Params, source: str, head: Collection[str] = ()) -> Params:
    """`found` by the names of `fresh`, without prefixes that all names of one of them share.

    The tensors named in `head` are those of `fresh`. InputError unless other names and shapes are the same.
    """
    body = {name: t for name, t in fresh.items() if name not in head}
    short = {key: name for names in (fresh, body)
             for key, name in zip(tensors.unwrap(names), names, strict=True)}
    params = {short.get(name, name): t for name, t in found.items()} | {name: fresh[name] for name in head}
    wrong = sorted(name for name in fresh.keys() | params.keys()
                   if name not in fresh or name not in params or fresh[name].shape != params[name].shape)
    if wrong:
        more = f' and {len(wrong) - 4} more' * (len(wrong) > 4)
        raise InputError(f'{source} does not fit the network: {", ".join(wrong[:4])}{more} are missing, '
                         'unknown or of different shapes')
    return {name: params[name].to(t.dtype) for name, t in fresh.items()}
