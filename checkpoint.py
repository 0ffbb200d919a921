"""Files of a run: `model.pt7`, the checkpoint, and `log.txt`, one strict JSON line an epoch.

    state = checkpoint.read('logs/resnet_16_2_teacher/model.pt7')    # {'params': ..., 'epoch': 200, ...}

Reading runs no code from the file; writing leaves either the old file or the new one, whole.
"""
import argparse
import contextlib
import errno
import io
import itertools
import json
import math
import os
import pickletools
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils import InputError, is_out_of_memory, one_line

MODEL, LOG, LOCK = 'model.pt7', 'log.txt', '.lock'
MAX_OPCODES = 1_000_000  # of a pickle: some 30 for a tensor, and a byte in it can become 100 of memory
HARMLESS = re.compile(  # what a pickle of tensors and plain values names
    r'collections (OrderedDict|Counter)|(__builtin__|builtins) (set|complex)|'
    r'torch(\.cuda)? \w+Storage|torch (Size|device|bool|[a-z]+\d+)|torch\.nn\.parameter Parameter|'
    r'torch\._utils _rebuild_(tensor|tensor_v2|parameter|sparse_tensor|meta_tensor_no_storage)|'
    r'torch\.serialization _get_layout')


# --- files -----------------------------------------------------------------------------------------------

def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path`, flush to disk, rename over it: at no moment half a file. OSError as open()."""
    beside = path.with_name(path.name + '.tmp')
    try:
        with open(beside, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some network file systems cannot do it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, outlives a power cut
        finally:
            os.close(folder)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dictionaries: what `read` takes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


class Unreadable(InputError):
    """This machine is why a file cannot be read: memory, its limits, a package. The file may be whole."""


def refusal(path: Path | str, e: Exception, damage: str) -> InputError:
    """What to say of an exception that reading `path` raised; `damage` if this machine is not the reason."""
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
    """What torch.save wrote, on the CPU, if it is tensors and plain values only; else InputError.

    Checksums are compared first: torch.load takes a flipped bit in a tensor for another number.
    """
    try:
        _check(Path(path))
        with warnings.catch_warnings(action='ignore'):  # what it says of foreign files, the error says below
            state = torch.load(path, map_location='cpu', weights_only=True)
        _drop_attributes(state)
        return state
    except Exception as e:  # damaged bytes raise any: RuntimeError, EOFError, UnpicklingError, KeyError, ...
        raise refusal(path, e, 'is no whole file of weights: it is truncated, or holds more than tensors and '
                               'plain values, which is refused because loading it could run code') from None


def _drop_attributes(state: Any) -> None:
    """Drop what a file gives an OrderedDict beyond its content: `items` or `get` would hide the method."""
    seen, left = set(), [state]
    while left:
        value = left.pop()
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            for name in getattr(value, '__dict__', {}).keys() - {'dataset', '_metadata'}:
                del vars(value)[name]
            left += value.values() if isinstance(value, dict) else value


def _check(path: Path) -> None:
    """InputError where torch.load would take a flipped bit for a number, or memory beyond the file's size."""
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
        raise InputError(f'{path} is a TorchScript archive, which holds code: load it by torch.jit.load, and '
                         'save the state_dict() of the model by torch.save')
    pickles = [entry for entry in entries if entry.filename.lower().endswith('data.pkl')]
    if not pickles:
        raise InputError(f'{path} is a zip archive of {", ".join(names[:3])}, not weights by torch.save: '
                         'unpack it, or save the state_dict() of the model by torch.save')
    if sum(entry.file_size for entry in entries) > size:  # torch.save does not compress
        raise InputError(f'{path} of {size:,} bytes claims to hold more: it is damaged, or compressed again '
                         'after torch.save; bring back a copy')
    if not any(entry.CRC for entry in entries):  # as after torch.serialization.set_crc32_options(False)
        for entry in entries:
            del entry.CRC  # zipfile compares none then
    if damaged := archive.testzip():
        raise InputError(f'{path} is damaged, the checksum of its part {damaged} does not fit: '
                         'bring back a copy')
    for entry in pickles:
        _check_pickle(io.BytesIO(archive.read(entry)), path, size)


def _check_pickle(stream: io.BytesIO, path: Path, size: int, grows: bool = False) -> None:
    """InputError or ValueError unless a pickle, up to its end, has what tensors and plain values need.

    torch.load runs no other code, but what it calls can take any memory: bytearray, Tensor, encode, ...
    grows: a tensor beyond the end of its storage would make it larger, as before torch 1.6.
    """
    number, of_tensor = 0, False  # after a storage come offset, shape and strides
    for i, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name == 'PROTO' and int(argument or 0) > 3:
            raise InputError(f'{path} is a pickle of protocol {argument}, not read because it could run '
                             'code: save the state_dict() of the model by torch.save and its own protocol 2')
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


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The epochs of a log, ours or of the published code ('json_stats: {...}'); other lines are left out."""
    epochs = []
    try:
        lines = Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as e:
        raise InputError(f'cannot read the log {path}: {e.strerror}') from None
    for line in lines:
        if '"epoch"' not in line:  # sooner told than by an error of JSON
            continue
        try:
            record = json.loads(line.removeprefix('json_stats: '))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get('epoch')) is int:
            epochs.append(record)
    return epochs


def classes_of(path: Path | str) -> list[str] | None:
    """The names of classes that a run's folder or a checkpoint knows; None where nothing tells."""
    try:
        state = read(Path(path) / MODEL if Path(path).is_dir() else path)
    except InputError:  # weights in another form
        return None
    known = state.get('options') if isinstance(state, dict) else None
    names = known.get('classes') if isinstance(known, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def write_log(path: Path, epochs: list[dict[str, Any]]) -> None:
    """Write the epochs, one strict JSON line each: what is not finite becomes null."""
    text = ''.join(json.dumps(_strict(record), allow_nan=False) + '\n' for record in epochs)
    write_atomically(path, text.encode())


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_plain(value: Any) -> bool:
    """Whether a value is of numbers, strings, lists and dictionaries as a line of the log has them.

    A few bytes of a stranger's pickle nest lists without end, or double them 40 times over.
    """
    level = [value]
    for _ in range(10):
        if len(level) > 100_000 or not all(
                v is None or isinstance(v, bool | int | float | str | list | tuple | dict) for v in level):
            return False
        inner = [v for v in level if isinstance(v, list | tuple | dict)]
        if not inner:
            return True
        if not all(isinstance(key, str) for v in inner if isinstance(v, dict) for key in v):
            return False
        parts = (part for v in inner for part in (v.values() if isinstance(v, dict) else v))
        level = list(itertools.islice(parts, 100_001))
    return False


# --- the folder of a run ---------------------------------------------------------------------------------


class Folder:
    """The folder of a run: never overwrites one, finds what to go on from, keeps its files in step."""

    def __init__(self, opt: argparse.Namespace):
        self.path = Path(opt.save)
        self.model, self.log = self.path / MODEL, self.path / LOG
        self.state: dict[str, Any] | None = None
        self.saved = 0  # epoch of the checkpoint in this folder
        self.lock: int | None = None
        self.epochs: list[dict[str, Any]] = []
        self.found = self._found()
        self.source = self.model if opt.resume in ('', 'auto') else Path(opt.resume)
        if self.source.is_dir():
            self.source /= MODEL
        goes_on = opt.resume and self.source.resolve() == self.model.resolve()
        if (self.model.exists() or self.log.exists()) and not goes_on:
            raise InputError(f'{self.path} holds a run already: go on with it by --resume auto, '
                             'or name another folder by --save')
        if not opt.resume:
            return
        if opt.resume == 'auto' and not self.source.exists():
            if self.log.exists():
                raise InputError(f'{self.log} has epochs but {self.model} is gone: bring it back, '
                                 'or name another folder by --save')
            return
        self.state = read(self.source)
        kinds = {'params': dict, 'optimizer': dict, 'epoch': int, 'options': dict, 'record': dict}
        if not isinstance(self.state, dict) or any(
                type(self.state.get(k)) is not kinds[k] for k in kinds) or not all(
                is_plain(self.state[k]) for k in ('options', 'record')) or not (
                0 < self.state['epoch'] < 2**31 and self.state['record'].get('epoch') == self.state['epoch']):
            raise InputError(f'{self.source} is no checkpoint to go on from; weights and runs of the '
                             'published code can teach, and be evaluated by --evaluate')
        self._compare(opt, self.state['options'])
        self.saved = self.state['epoch'] if goes_on else 0
        log = self.source.with_name(LOG)
        # The checkpoint is saved before the log: a kill between the two leaves a line to add.
        before = [e for e in read_log(log) if e['epoch'] < self.state['epoch']] if log.exists() else []
        self.epochs = [*before, self.state['record']]
        if (n := self.state['epoch'] - len(self.epochs)) > 0:
            print(f'note: {log} lacks the lines of {n} epochs before {self.state["epoch"]}', file=sys.stderr)

    def _compare(self, opt: argparse.Namespace, before: dict[str, Any]) -> None:
        undecided = () if opt.dtype else ('dtype', 'compile')  # what --fast chooses when the run starts
        for name, value in vars(opt).items():
            # By their text, since a stranger's file may hold values of any kind.
            if name in undecided or name not in before or repr(before[name]) == repr(value):
                continue
            if name in ('model', 'depth', 'width', 'dataset', 'freeze') or name == 'finetune' and not (
                    before[name] and value):
                raise InputError(f'the run in {self.source} has {name} {before[name]!r}, not {value!r}')
            if name not in ('save', 'teacher', 'resume', 'dataroot', 'imagenetpath', 'device', 'gpu_id',
                            'ngpu', 'nthread', 'max_hours', 'tensorboard'):
                print(one_line(f'note: the run goes on with --{name} {value}; it began with {before[name]}'),
                      file=sys.stderr)

    def _found(self) -> list[tuple[int, int] | None]:
        """Which files are there; another run would change it, since files are replaced as a whole."""
        return [(p.stat().st_ino, p.stat().st_mtime_ns) if p.exists() else None
                for p in (self.model, self.log)]

    def create(self) -> None:
        """Make the folder and lock it, before the first epoch, until close() or the end of this process.

        Of fcntl's two kinds the one that holds on network file systems, too, and not in forked workers.
        """
        import fcntl  # not on Windows, where weights can be read all the same
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.read(self.lock, 200).decode(errors='replace').strip()
                raise InputError(f'{self.path} belongs to another run, {owner}: wait for its end, or name '
                                 'another folder by --save') from None
            except OSError:
                print(f'note: {self.path} is on a file system without locks: nothing keeps another run from '
                      'writing there', file=sys.stderr)
            os.truncate(self.lock, 0)
            os.write(self.lock, f'process {os.getpid()} on {os.uname().nodename}\n'.encode())
        except OSError as e:
            raise InputError(f'--save {self.path}: nothing can be written there ({e.strerror})') from None
        if self._found() != self.found:
            raise InputError(f'another run has written in {self.path} meanwhile: go on with it by '
                             '--resume auto, or name another folder by --save')

    def close(self) -> None:
        """Let other runs write here."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def save(self, record: dict[str, Any], state: dict[str, Any]) -> None:
        """Checkpoint, which has the line of its epoch as well, and log."""
        self.epochs.append(record)
        try:
            write(self.model, state | {'record': record})
            self.saved = record['epoch']
            write_log(self.log, self.epochs)
        except OSError as e:
            then = 'go on with --resume auto' if self.saved else 'give the same command again'
            raise InputError(f'could not save epoch {record["epoch"]} in {self.path} ({e.strerror}); '
                             f'{self.last()}; make room, then {then}') from None

    def complete_log(self) -> None:
        """Add the line that a kill between the last checkpoint and its log left out."""
        if self.saved and (not self.log.exists() or len(read_log(self.log)) < len(self.epochs)):
            self.create()
            write_log(self.log, self.epochs)
            self.close()

    def last(self) -> str:
        """Where the last checkpoint is, for messages."""
        return f'{self.model} holds epoch {self.saved}' if self.saved else 'there is no checkpoint yet'
