"""Files of a run: `model.pt7`, the checkpoint, and `log.txt`, one strict JSON line an epoch.

    state = checkpoint.read('logs/resnet_16_2_teacher/model.pt7')    # {'params': ..., 'epoch': 200, ...}

Reading runs no code from the file; writing leaves either the old file or the new one, whole.
"""
import argparse
import contextlib
import io
import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from utils import InputError, one_line
from weights import tensors
from weights.pickled import read
from weights.tensors import LOG, MODEL

LOCK = '.lock'
UNDECIDED = ('dtype', ''), ('compile', None)  # as parsed with --fast, before a run starts


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


def dataset_of(source: Path | str) -> str | None:
    """The data set that weights were trained on: from the log or options of a run, or from an export.

    None where nothing names it.
    """
    if not tensors.is_address(source):
        path = Path(source)
        model = path / MODEL if path.is_dir() else path
        log = model.with_name(LOG)
        if log.exists() and model.name == MODEL and (epochs := read_log(log)):
            return _text(epochs[-1].get('dataset'))
    try:
        return tensors.read_export(source)[1]
    except InputError:
        return None


def classes_of(path: Path | str) -> list[str] | None:
    """The names of classes that a run's folder or a checkpoint knows; None where nothing tells."""
    try:
        state = read(Path(path) / MODEL if Path(path).is_dir() else path)
    except InputError:  # weights in another form
        return None
    known = state.get('options') if isinstance(state, dict) else None
    names = known.get('classes') if isinstance(known, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


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
        for name, value in vars(opt).items():
            # By their text, since a stranger's file may hold values of any kind.
            if (name, value) in UNDECIDED or name not in before or repr(before[name]) == repr(value):
                continue
            fixed = name in ('model', 'depth', 'width', 'dataset', 'val_images', 'freeze')
            if fixed or name == 'finetune' and not (before[name] and value):
                raise InputError(f'the run in {self.source} has {name} {before[name]!r}, not {value!r}')
            if name not in ('save', 'resume', 'dataroot', 'imagenetpath', 'device', 'gpu_id',
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
