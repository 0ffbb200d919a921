"""Entry points of torch.hub: trained networks as modules, `logits, groups = model(x)`.

    model = torch.hub.load('.', 'resnet18_at', weights='resnet-18-at-export.pth', source='local')

`weights` is a file or an address, in any form that `resnet.load` reads. The modules are in evaluation mode.
Images for ImageNet are RGB in [0, 1], normalised by mean (0.485, 0.456, 0.406) and standard deviation
(0.229, 0.224, 0.225), 224 x 224, cut from the middle after the shorter side was brought to 256.

torch.hub runs this file in a process whose own modules may be called `utils` or `weights`, too. The files of
this folder are therefore imported into a package, attention_transfer_ and a checksum of the folder's path and
of these files; `import utils` in one of them, at any time, means `utils` of that package. Other modules
neither see them nor are seen by them, and another checkout, or this one after a change, is another package.

A module can be copied and pickled. A process that unpickles it calls torch.hub.load of the same files first:
multiprocessing by spawn does, if that call is at the top level of the script.
"""
import builtins as _builtins
import hashlib as _hashlib
import sys as _sys
from importlib.machinery import ModuleSpec as _ModuleSpec
from importlib.machinery import PathFinder as _PathFinder
from importlib.machinery import SourceFileLoader as _SourceFileLoader
from pathlib import Path as _Path
from types import ModuleType as _ModuleType
from typing import Any as _Any

from torch.nn import Module as _Module

dependencies = ['torch']


def resnet18_at(weights: str) -> _Module:
    """The published student, trained with attention transfer (29.3 / 10.0 % error): resnet-18-at-export."""
    return _load(weights, 'pre-activation ResNet-18')


def resnet34_folded(weights: str) -> _Module:
    """The published teacher (26.7 / 8.7 % error): resnet-34-export, or another ResNet-34, which is folded."""
    return _load(weights, 'folded ResNet-34')


def wide_resnet(weights: str) -> _Module:
    """A wide ResNet for CIFAR, of a run or a file, folded or not."""
    return _load(weights, 'WRN-')


def cifar_resnet(weights: str) -> _Module:
    """A ResNet for CIFAR, of a run or a file (of RepDistiller or mdistiller too), folded or not."""
    return _load(weights, 'CIFAR ResNet-')


def nin(weights: str) -> _Module:
    """A Network-in-Network for CIFAR, of a run or a file, folded or not."""
    return _load(weights, 'NIN')


def named_network(weights: str, run_files: bool = False) -> _Module:
    """The network of torchvision, timm or your own file in a run: its own module, which gives logits only.

    run_files: run your file, if it has not changed since the run.
    """
    f, params = _networks.load(weights, run_files)
    if not hasattr(f, 'module'):
        raise _networks.InputError(f'{weights} holds a {_networks.describe(params, f)}, '
                                   'not a network by name')
    return f.module(params)


def _load(weights: str, kind: str) -> _Module:
    f, params = _networks.load(weights)
    if kind.startswith('folded'):
        f, params = _networks.folded(f, params)
    found = _networks.describe(params, f)
    if kind not in found:
        raise _networks.InputError(f'{weights} holds a {found}, not a {kind.rstrip("-")}')
    return _networks.Module(f, params).eval()


# --- the package -----------------------------------------------------------------------------------------

_OURS = ('utils', 'layers', 'modules', 'resnet', 'nin', 'weights')  # what is imported for the functions above
_FOLDER = _Path(__file__).resolve().parent


def _name_of_package() -> str:
    checksum = _hashlib.sha256(str(_FOLDER).encode('utf-8', 'surrogateescape'))
    for name in _OURS:
        for path in sorted(_FOLDER.glob(f'{name}.py')) + sorted(_FOLDER.glob(f'{name}/*.py')):
            checksum.update(path.read_bytes())
    return f'attention_transfer_{checksum.hexdigest()[:16]}'


_PACKAGE = _name_of_package()


def _import(name: str, globals: _Any = None, locals: _Any = None, fromlist: _Any = (),
            level: int = 0) -> _Any:
    """What `import` does in the files of the package."""
    top = name.partition('.')[0]
    if top not in _OURS:
        return _builtins.__import__(name, globals, locals, fromlist, level)
    module = _builtins.__import__(f'{_PACKAGE}.{name}', globals, locals, fromlist)
    return module if fromlist else getattr(module, top)


class _Loader(_SourceFileLoader):
    """Gives a module its own `import`; Python looks that up in the built-in names of a module."""

    def exec_module(self, module: _ModuleType) -> None:
        vars(module)['__builtins__'] = vars(_builtins) | {'__import__': _import}
        super().exec_module(module)


class _Finder:
    """Finds the modules of the package, and no other ones."""

    @staticmethod
    def find_spec(name: str, path: _Any, target: _Any = None) -> _ModuleSpec | None:
        spec = _PathFinder.find_spec(name, path) if name.startswith(_PACKAGE + '.') else None
        if spec and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec


if _PACKAGE not in _sys.modules:
    _package = _ModuleType(_PACKAGE)
    _package.__path__ = [str(_FOLDER)]
    _sys.meta_path.insert(0, _Finder)
    _sys.modules.setdefault(_PACKAGE, _package)  # another thread may have been faster
_networks = _import('weights', fromlist=['networks']).networks
