"""Tensors by name from files of other programs, or from an address.

    params = tensors.read('resnet-34-export.hkl')    # {'conv0.weight': tensor, ...}, float32, on the CPU
    params = tensors.read('torchvision:resnet34')

The content of a file decides what it is, not its ending. No code of a file is run, and no other file is
opened for it. The sizes that it claims are compared with its own size before memory is allocated.
"""
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layers import Params
from utils import InputError
from weights import pickled
from weights.pickled import Unreadable

MODEL, LOG = 'model.pt7', 'log.txt'  # files of a run
ADDRESSES = ('torchvision:', 'http://', 'https://')  # their beginnings
NESTED = ('params', 'state_dict', 'model')  # preferred names of a network among other dictionaries
AGAIN = 'get it again'


def read(source: Path | str) -> Params:
    """Tensors by name, float32 and contiguous, on the CPU.

    `source`: the folder of a run; a file of torch.save, hickle 2 to 5 or safetensors; an address (http,
    https) of such a file, kept in torch.hub's cache; or torchvision:NAME, its default weights for ImageNet.
    `unwrap` finds the network in the file. InputError for anything else.
    """
    return read_with_options(source)[0]


def is_address(source: Path | str) -> bool:
    """Whether this is an address, not the path of a file or folder."""
    return str(source).startswith(ADDRESSES)


def read_with_options(source: Path | str) -> tuple[Params, dict[str, Any]]:
    """As `read`, and what the file says about the training: options of a run, or 'dataset' of an export."""
    if not is_address(source):
        return _file(_of_run(Path(source)))
    address = str(source)
    if address.startswith('torchvision:'):
        path = _torchvision(address.removeprefix('torchvision:'))
    else:
        name = re.split('[?#]', address)[0].rsplit('/', 1)[1][-100:]
        # Addresses of two files may end alike.
        path = _download(address, f'{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}')
    try:
        return _file(path)
    except Unreadable:
        raise
    except InputError as e:
        path.unlink(missing_ok=True)  # half a file, or a web page with an error
        raise InputError(f'{source}: {e}') from None


def unwrap(state: Any) -> Any:
    """The tensors of one network, by name, from what a program saved; returned unchanged if there is none.

    It removes a dictionary around them, under 'params', 'state_dict', 'model' or a single other name;
    prefixes that all names share, such as 'module.'; the teacher next to a student; and counters, such as
    'num_batches_tracked'. Statistics of BN may be under 'stats', as in the published code of 2017.
    """
    if not isinstance(state, dict):
        return state
    inner = {key: value for key, value in state.items() if _is_network(value)}
    if inner:
        keys = [key for key in NESTED if key in inner] or list(inner)
        if len(inner) > 1 and keys[0] not in NESTED:
            return state
        state = dict(inner[keys[0]])
        if keys[0] == 'params' and 'stats' in inner:
            state |= inner['stats']
    elif not _is_network(state):
        return state
    found = {name: t for name, t in state.items() if t.dim() or t.is_floating_point() or t.is_complex()}
    for _ in range(4):  # as in 'module._orig_mod.student.'
        prefix = next(iter(found), '').partition('.')[0] + '.'
        if any(name.startswith('student.') for name in found):
            prefix = 'student.'
        elif not all(name.startswith(prefix) for name in found) or all(name.count('.') < 2 for name in found):
            break  # in 'fc.weight' and 'fc.bias' alone, 'fc' is a layer
        found = {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    return found


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in value.items())


def _of_run(path: Path) -> Path:
    if not path.is_dir():
        return path
    missing = [name for name in (LOG, MODEL) if not (path / name).is_file()]
    if missing:
        raise InputError(f'{path} is not the folder of a run: it has no {" and no ".join(missing)}')
    return path / MODEL


def _torchvision(name: str) -> Path:
    from torchvision import models
    if name not in models.list_models(module=models):
        raise InputError(f'torchvision has no weights for {name!r}: give a name such as torchvision:resnet34')
    url = models.get_model_weights(name).DEFAULT.url
    file = url.rsplit('/', 1)[1]
    known = re.search(r'-([0-9a-f]{8,})\.', file)
    return _download(url, file, known and known[1])


def _download(url: str, name: str, sha256: str | None = None) -> Path:
    """The file in torch.hub's cache; `sha256`: the beginning of its checksum."""
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sha256)
        except Exception as e:  # OSError, HTTPException, a wrong checksum, a malformed address
            raise InputError(f'cannot download {url} ({e}): download it yourself and give the file') from None
    return path


def _file(path: Path) -> tuple[Params, dict[str, Any]]:
    kind = 'weights'
    found: Any
    options: Any
    try:
        with open(path, 'rb') as f:
            head = f.read(200)
        if head.startswith(b'\x89HDF\r\n\x1a\n'):
            kind, (found, options) = 'HDF5', _hickle(path)
        elif head[8:9] == b'{' and b'\0' in head[:8]:  # the length of the header, and the header
            kind, (found, options) = 'safetensors', _safetensors(path)
        elif head.startswith((b'PK\3\4', b'\x80')):
            found = pickled.read(path)
            options = found.get('options') if isinstance(found, dict) else None
            options = options if isinstance(options, dict) else {'dataset': getattr(found, 'dataset', None)}
        else:
            raise InputError(f'{path} {_mistaken(head)}')
        return _float32(unwrap(found), path), options
    except Exception as e:  # damaged bytes raise any: OSError, KeyError, RuntimeError, SafetensorError, ...
        damage = f'is not a complete file of {kind}: it is truncated or damaged, {AGAIN}'
        raise pickled.refusal(path, e, damage) from None


def _mistaken(head: bytes) -> str:
    """What a file with this beginning is, and what to do."""
    text = ' '.join(head.decode('latin1').removeprefix('\xef\xbb\xbf').split())
    if not head:
        return f'is empty: the download or copy went wrong, {AGAIN}'
    if text.startswith('<'):
        return 'is a web page, not weights: the download went wrong, open its address in a browser'
    if text.startswith('version https://git-lfs'):
        return "is a pointer of Git LFS, not weights: get the file itself with 'git lfs pull'"
    if text and text.isprintable() and text.isascii():
        return f'is text, not weights: it begins with {text[:40]!r}; {AGAIN}'
    return f'is not a file of torch.save, hickle or safetensors: {AGAIN}, or convert it'


def _float32(found: Any, path: Path) -> Params:
    if not _is_network(found):
        other = [f'{key!r} of {type(value).__name__}' for key, value in found.items()
                 if isinstance(key, str) and not isinstance(value, Tensor)] if isinstance(found, dict) else []
        raise InputError(f'{path} holds no dictionary of tensors by name'
                         + f', but {", ".join(other[:5])}: save the network alone' * bool(other))
    for name, t in found.items():
        if t.layout != torch.strided or t.device.type != 'cpu':
            raise InputError(f'{path} has {name!r} on {t.device} as {t.layout}: only dense tensors are read')
        if not t.is_floating_point():
            raise InputError(f'{path} has {name!r} of {t.dtype}: only floating-point tensors are read')
    _check_claim(sum(4 * t.numel() for t in found.values()), path)  # many tensors may share a storage
    return {name: t.detach().float().contiguous() for name, t in found.items()}


def _check_claim(n_bytes: int, path: Path) -> None:
    """InputError if tensors take more than 10 times the file: weights compress little, except zeros."""
    size = path.stat().st_size
    if n_bytes > max(64 << 20, 10 * size):
        raise InputError(f'{path} of {size:,} bytes claims {n_bytes:,} of tensors: it is damaged, {AGAIN}')


def _safetensors(path: Path) -> tuple[Params, dict[str, Any]]:
    try:
        from safetensors import safe_open
    except ModuleNotFoundError:
        raise Unreadable(f'{path} is a file of safetensors, which needs: pip install safetensors') from None
    # Not `load` of bytes, which never returns if memory runs out. The clones do not map the file.
    with safe_open(path, framework='pt') as f:
        return {name: f.get_tensor(name).clone() for name in f.keys()}, f.metadata() or {}  # noqa: SIM118


def _hickle(path: Path) -> tuple[Params, dict[str, Any]]:
    """Arrays of hickle 2 to 5, read as plain HDF5: hickle itself would unpickle parts of the file.

    Key k is at data_0/k/data_0 (2.x), data_0/'k'/data_0 (3.x), data/'k'/data (4.x) or data/"k" (5.x).
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise Unreadable(f'{path} is a file of HDF5, which needs: pip install h5py') from None

    def member(group: h5py.Group, name: str) -> Any:
        """None if there is nothing or a link, which is not followed: it may point to another file."""
        links, raw = group.id.links, name.encode('utf-8', 'surrogateescape')
        hard = b'/' not in raw and links.exists(raw) and links.get_info(raw).type == h5py.h5l.TYPE_HARD
        return group[name] if hard else None

    def check(dataset: Any, key: str) -> int:
        """Largest number of bytes that reading it takes; InputError if it is not a complete array."""
        if (not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in 'fiu' or dataset.shape is None
                or dataset.is_virtual or dataset.external):
            raise InputError(f'{path} has no array of numbers at {key!r}: nothing else is read, because it '
                             'could run code or open other files')
        size, stored = math.prod(dataset.shape), dataset.id.get_storage_size()
        filtered = dataset.id.get_create_plist().get_nfilters() > 0
        if stored < (bool(size) if filtered else size * dataset.dtype.itemsize):
            raise InputError(f'{path} lacks numbers of the array {key!r}: writing it was cut short, {AGAIN}')
        return max(8, dataset.dtype.itemsize) * max(size, math.prod(dataset.chunks or ()))

    with h5py.File(path, 'r') as f:
        inner = 'data_0' if f.id.links.exists(b'data_0') else 'data'
        top, found, options = member(f, inner), {}, {}
        if not isinstance(top, h5py.Group):
            raise InputError(f'{path} is a file of HDF5, but no dictionary from hickle 2 to 5')
        for key in top:
            array = member(top, key)
            if isinstance(array, h5py.Group):  # up to hickle 4
                array = member(array, inner)
            name = key[1:-1] if key[0] in '\'"' and key[0] == key[-1] else key
            found[name] = array, check(array, key)
        _check_claim(sum(n_bytes for _, n_bytes in found.values()), path)
        stored = f.attrs.get_id('dataset') if 'dataset' in f.attrs else None
        if stored and stored.dtype.kind == 'S' and stored.dtype.itemsize < 100 and not stored.shape:
            options = {'dataset': f.attrs['dataset'].decode('utf-8', 'replace')}
        # Converted while reading, from any byte order.
        return {name: torch.asarray(array.astype('f4' if array.dtype.kind == 'f' else 'i8')[()])
                for name, (array, _) in found.items()}, options
