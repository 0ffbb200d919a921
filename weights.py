"""Tensors by name from files that other programs wrote, or from an address.

    params = weights.read('resnet-34-export.hkl')    # {'conv0.weight': tensor, ...}, float32, on the CPU
    params = weights.read('torchvision:resnet34')

The content tells what a file is, not its ending. No code of a file is run, no other file is opened for it,
and what it claims to hold is compared with its size before there is memory for it.
"""
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoint
from utils import InputError, Params

TORCHVISION = ('resnet18', 'resnet34')
AGAIN = 'get it again'


def read(source: Path | str) -> Params:
    """Tensors by name, float32 and contiguous, on the CPU.

    `source`: a run's folder; a file of torch.save, hickle 2 to 5 or safetensors; an address (http, https) of
    such a file, kept in torch.hub's cache; or torchvision:resnet34, torchvision:resnet18. Of a checkpoint the
    parameters, of a student and its teacher the student; counters (integers without dimensions) are left out.
    InputError says what anything else is, and what to do.
    """
    address = str(source)
    if address.startswith('torchvision:'):
        path = _torchvision(address.removeprefix('torchvision:'))
    elif address.startswith(('http://', 'https://')):
        name = re.split('[?#]', address)[0].rsplit('/', 1)[1][-100:]
        # Addresses of two files may end alike.
        path = _download(address, f'{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}')
    else:
        return _file(_of_run(Path(source)))
    try:
        return _file(path)
    except InputError as e:
        path.unlink(missing_ok=True)  # half a file, or a page that says why there is none: not to be kept
        raise InputError(f'{source}: {e}') from None


# --- where the file is -----------------------------------------------------------------------------------


def _of_run(path: Path) -> Path:
    if not path.is_dir():
        return path
    missing = [name for name in (checkpoint.LOG, checkpoint.MODEL) if not (path / name).is_file()]
    if missing:
        raise InputError(f'{path} is no finished epoch of a run: it has no {" and no ".join(missing)}')
    return path / checkpoint.MODEL


def _torchvision(name: str) -> Path:
    if name not in TORCHVISION:
        raise InputError(f'of torchvision {" and ".join(TORCHVISION)} can be read, not {name}')
    from torchvision.models import get_model_weights
    url = get_model_weights(name).DEFAULT.url
    file = url.rsplit('/', 1)[1]
    known = re.search(r'-([0-9a-f]{8,})\.', file)
    return _download(url, file, known and known[1])


def _download(url: str, name: str, sha256: str | None = None) -> Path:
    """The file in torch.hub's cache; `sha256`: how its checksum begins."""
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sha256)
        except Exception as e:  # OSError, HTTPException, another checksum, an address that is none
            raise InputError(f'cannot download {url} ({e}): fetch it otherwise and give the file') from None
    return path


# --- what the file is ------------------------------------------------------------------------------------


def _file(path: Path) -> Params:
    try:
        with open(path, 'rb') as f:
            head = f.read(200)
    except OSError as e:
        raise InputError(f'cannot read the weights {path}: {e.strerror}') from None
    if head.startswith(b'\x89HDF\r\n\x1a\n'):
        found = _hickle(path)
    elif head[8:9] == b'{' and b'\0' in head[:8]:  # the length of the header, and the header
        found = _safetensors(path)
    elif head.startswith((b'PK\3\4', b'\x80')):
        found = _torch(path)
    else:
        raise InputError(f'{path} {_mistaken(head)}')
    return _float32(found, path)


def _mistaken(head: bytes) -> str:
    """What a file is that begins so, and what to do."""
    text = ' '.join(head.decode('latin1').removeprefix('\xef\xbb\xbf').split())
    if not head:
        return f'is empty: the download or copy went wrong, {AGAIN}'
    if text.startswith('<'):
        return 'is a web page, not weights: the download went wrong, open its address in a browser'
    if text.startswith('version https://git-lfs'):
        return "is a pointer of Git LFS, not weights: fetch the file itself by 'git lfs pull'"
    if text and text.isprintable() and text.isascii():
        return f'is text, not weights: it begins with {text[:40]!r}; {AGAIN}'
    return f'is no file of weights by torch.save, hickle or safetensors: {AGAIN}, or convert it'


def _float32(found: Any, path: Path) -> Params:
    if not isinstance(found, dict) or not found or not all(
            isinstance(name, str) and isinstance(t, Tensor) for name, t in found.items()):
        raise InputError(f'{path} holds no dictionary of tensors by name')
    found = checkpoint.student(found)
    if all(name.startswith('module.') for name in found):  # of DataParallel
        found = {name.removeprefix('module.'): t for name, t in found.items()}
    params = {}
    for name, t in found.items():
        if t.layout != torch.strided or t.device.type != 'cpu':
            raise InputError(f'{path} has {name!r} on {t.device} as {t.layout}: only dense tensors are read')
        if t.is_floating_point():
            params[name] = t.detach()
        elif t.dim() or t.is_complex():
            raise InputError(f'{path} has {name!r} of {t.dtype}: only floating-point tensors are read')
    _check_claim(sum(4 * t.numel() for t in params.values()), path)  # many tensors may share few numbers
    return {name: t.float().contiguous() for name, t in params.items()}


def _check_claim(n_bytes: int, path: Path) -> None:
    """Weights compress little: none takes 10 times its file, unless it is small and all zeros."""
    size = path.stat().st_size
    if n_bytes > max(64 << 20, 10 * size):
        raise InputError(f'{path} of {size:,} bytes claims {n_bytes:,} of tensors: it is damaged, {AGAIN}')


# --- by kind ---------------------------------------------------------------------------------------------


def _torch(path: Path) -> Any:
    """{name: tensor} itself, or under 'params' as in checkpoints here, or under 'state_dict'."""
    state = checkpoint.read(path)
    for name in ('params', 'state_dict'):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            return state[name]
    return state


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load
    except ImportError:
        raise InputError(f'{path} is of safetensors, which needs: pip install safetensors') from None
    try:
        return load(path.read_bytes())
    except Exception:  # SafetensorError, KeyError of a type of numbers, ...
        raise InputError(f'{path} is no whole file of safetensors: it is truncated, {AGAIN}') from None


def _hickle(path: Path) -> Any:
    """Arrays of hickle 2 to 5 by plain HDF5; hickle itself would unpickle what the file tells it to.

    Key k lies at data_0/k/data_0 (2.x), data_0/'k'/data_0 (3.x), data/'k'/data (4.x) or data/"k" (5.x).
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f'{path} is of HDF5, which needs: pip install h5py') from None

    def member(group: h5py.Group, name: str) -> Any:
        """None where there is nothing, or a link, which is not followed: it may lead to another file."""
        links, raw = group.id.links, name.encode('utf-8', 'surrogateescape')
        hard = b'/' not in raw and links.exists(raw) and links.get_info(raw).type == h5py.h5l.TYPE_HARD
        return group[name] if hard else None

    def check(dataset: Any, key: str) -> int:
        """The bytes that reading it takes, at most; refuses what is no array, or not whole."""
        if (not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in 'fiu' or dataset.shape is None
                or dataset.is_virtual or dataset.external):
            raise InputError(f'{path} has no array of numbers at {key!r}: nothing else is read, since it '
                             'could run code or open other files')
        size, stored = math.prod(dataset.shape), dataset.id.get_storage_size()
        filtered = dataset.id.get_create_plist().get_nfilters() > 0
        if stored < (bool(size) if filtered else size * dataset.dtype.itemsize):
            raise InputError(f'{path} lacks numbers of the array {key!r}: its writing was cut short, {AGAIN}')
        return max(8, dataset.dtype.itemsize) * max(size, math.prod(dataset.chunks or ()))

    try:
        with h5py.File(path, 'r') as f:
            inner = 'data_0' if f.id.links.exists(b'data_0') else 'data'
            top, found = member(f, inner), {}
            if not isinstance(top, h5py.Group):
                raise InputError(f'{path} is of HDF5, but no dictionary that hickle 2 to 5 wrote')
            for key in top:
                dataset = member(top, key)
                if isinstance(dataset, h5py.Group):  # up to hickle 4
                    dataset = member(dataset, inner)
                name = key[1:-1] if key[0] in '\'"' and key[0] == key[-1] else key
                found[name] = dataset, check(dataset, key)
            _check_claim(sum(n_bytes for _, n_bytes in found.values()), path)
            # Converted while reading, whatever the order of its bytes.
            return {name: torch.asarray(dataset.astype('f4' if dataset.dtype.kind == 'f' else 'i8')[()])
                    for name, (dataset, _) in found.items()}
    except InputError:
        raise
    except Exception:  # damaged bytes raise any: OSError, KeyError, RuntimeError, TypeError, ...
        raise InputError(f'{path} is no whole HDF5 file: it is truncated or damaged, {AGAIN}') from None
