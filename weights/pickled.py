"""Files of torch.save, read without running code: the one file to audit.

    state = pickled.read('logs/resnet_16_2_teacher/model.pt7')    # {'params': ..., 'epoch': 200, ...}
"""
import errno
import io
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from layers import is_out_of_memory
from utils import InputError

MAX_OPCODES = 1_000_000  # of a pickle: a tensor has about 30, and each may take 100 bytes of memory
HARMLESS = re.compile(  # what a pickle of tensors and plain values refers to
    r'collections (OrderedDict|Counter)|(__builtin__|builtins) (set|complex)|'
    r'torch(\.cuda)? \w+Storage|torch (Size|device|bool|[a-z]+\d+)|torch\.nn\.parameter Parameter|'
    r'torch\._utils _rebuild_(tensor|tensor_v2|parameter|sparse_tensor|meta_tensor_no_storage)|'
    r'torch\.serialization _get_layout')


class Unreadable(InputError):
    """The machine is why a file cannot be read: memory, a limit, a missing package. The file may be sound."""


def refusal(path: Path | str, e: Exception, damage: str) -> InputError:
    """The error for an exception while reading `path`; `damage` is its text if the file is the cause."""
    if isinstance(e, InputError):
        return e
    if is_out_of_memory(e):
        why = 'no memory is left: end other programs, or raise the limit of memory (ulimit -v)'
    elif isinstance(e, OSError) and e.errno in (errno.EMFILE, errno.ENFILE):
        why = 'too many files are open: raise the limit of open files (ulimit -n)'
    elif isinstance(e, OSError) and e.errno:
        why = os.strerror(e.errno)
    elif isinstance(e, ImportError):
        why = str(e)
    else:
        return InputError(f'{path} {damage}')
    return Unreadable(f'cannot read the weights {path}: {why}')


def read(path: Path | str) -> Any:
    """The content of a file of torch.save, on the CPU. InputError unless it is tensors and plain values only.

    Checksums are compared first, because torch.load accepts a flipped bit in a tensor.
    """
    try:
        _check(Path(path))
        with warnings.catch_warnings(action='ignore'):  # the error below says the same
            state = torch.load(path, map_location='cpu', weights_only=True)
        _drop_attributes(state)
        return state
    except Exception as e:  # damaged bytes raise any: RuntimeError, EOFError, UnpicklingError, KeyError, ...
        raise refusal(path, e, 'is not a complete file of weights: it is truncated, or holds more than '
                               'tensors and plain values, which could run code') from None


def _drop_attributes(state: Any) -> None:
    """Remove attributes that a file gives an OrderedDict: one named `items` would hide the method."""
    seen, left = set(), [state]
    while left:
        value = left.pop()
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            for name in getattr(value, '__dict__', {}).keys() - {'dataset', '_metadata'}:
                del vars(value)[name]
            left += value.values() if isinstance(value, dict) else value


def _check(path: Path) -> None:
    """InputError if a checksum is wrong, or if loading would take more memory than the size of the file."""
    size, content = path.stat().st_size, path.read_bytes()
    if content.startswith(b'PK\3\4'):  # of torch 1.6 and later
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_archive(archive, path, size)
    else:
        stream = io.BytesIO(content)
        for _ in range(5):  # a mark, versions of the format and of types, the value, names of its storages
            _check_pickle(stream, path, size, grows=True)


def _check_archive(archive: zipfile.ZipFile, path: Path, size: int) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith('/constants.pkl') for name in names):
        raise InputError(f'{path} is a TorchScript archive, which holds code: load it with torch.jit.load, '
                         'and save the state_dict() of the model with torch.save')
    pickles = [entry for entry in entries if entry.filename.lower().endswith('data.pkl')]
    if not pickles:
        raise InputError(f'{path} is a zip archive of {", ".join(names[:3])}, not weights from '
                         'torch.save: unpack it, or save the state_dict() of the model with torch.save')
    if sum(entry.file_size for entry in entries) > size:  # torch.save does not compress
        raise InputError(f'{path} of {size:,} bytes claims to hold more: it is damaged, or was compressed '
                         'after torch.save; restore a copy')
    if not any(entry.CRC for entry in entries):  # as after torch.serialization.set_crc32_options(False)
        for entry in entries:
            del entry.CRC  # zipfile then compares nothing
    if damaged := archive.testzip():
        raise InputError(f'{path} is damaged, the checksum of its part {damaged} is wrong: restore a copy')
    for entry in pickles:
        _check_pickle(io.BytesIO(archive.read(entry)), path, size)


def _check_pickle(stream: io.BytesIO, path: Path, size: int, grows: bool = False) -> None:
    """InputError or ValueError unless a pickle contains only what tensors and plain values need.

    torch.load runs no other code, but it calls functions that can take any memory: bytearray, encode, ...
    grows: a tensor that is larger than its storage would enlarge it, as before torch 1.6.
    """
    number, of_tensor = 0, False  # after a storage come offset, shape and strides
    for i, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name == 'PROTO' and int(argument or 0) > 3:
            raise InputError(f'{path} is a pickle of protocol {argument}, which is not read because it could '
                             'run code: save the state_dict() of the model with torch.save and its default '
                             'protocol')
        if opcode.name == 'GLOBAL' and not HARMLESS.fullmatch(str(argument)):
            raise InputError(f'{path} holds {str(argument).replace(" ", ".")}, which is refused because it '
                             'could run code: save tensors, numbers, strings, lists and dictionaries only')
        if i == MAX_OPCODES:
            raise ValueError
        if opcode.name in ('BININT', 'BININT1', 'BININT2', 'LONG1'):
            number = int(argument or 0)
        elif opcode.name in ('BINPERSID', 'REDUCE'):
            of_tensor = grows and opcode.name == 'BINPERSID'
        if (of_tensor or opcode.name == 'BINPERSID') and number > size:  # before it, elements of the storage
            raise ValueError
