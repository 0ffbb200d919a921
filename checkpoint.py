"""Files of a run: `model.pt7`, the checkpoint, and `log.txt`, one strict JSON line an epoch.

    state = checkpoint.read('logs/resnet_16_2_teacher/model.pt7')    # {'params': ..., 'epoch': 200, ...}

Reading runs no code from the file; writing leaves either the old file or the new one, whole.
"""
import argparse
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from utils import InputError

MODEL, LOG = 'model.pt7', 'log.txt'


# --- files -----------------------------------------------------------------------------------------------

def write_atomically(path: Path, content: bytes) -> None:
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


def read(path: Path | str) -> Any:
    """What torch.save wrote, on the CPU, if it is tensors and plain values only; else InputError."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise InputError(f'there is no file {path}') from None
    except Exception:  # damaged bytes raise any: RuntimeError, EOFError, UnpicklingError, KeyError, ...
        raise InputError(f'{path} is no whole file of weights: it is truncated, or holds more than tensors '
                         'and plain values, which is refused because loading it could run code') from None


def student(params: dict[str, Any]) -> dict[str, Any]:
    """The student alone, without the prefix of its names in the published code's runs with a teacher."""
    if not any(name.startswith('student.') for name in params):
        return params
    return {name.removeprefix('student.'): t for name, t in params.items() if name.startswith('student.')}


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The epochs of a log, ours or of the published code ('json_stats: {...}'); other lines are left out."""
    epochs = []
    try:
        lines = Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as e:
        raise InputError(f'cannot read the log {path}: {e.strerror}') from None
    for line in lines:
        try:
            record = json.loads(line.removeprefix('json_stats: '))
        except ValueError:
            continue
        if isinstance(record, dict) and 'epoch' in record:
            epochs.append(record)
    return epochs


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


# --- the folder of a run ---------------------------------------------------------------------------------


class Folder:
    """The folder of a run: never overwrites one, finds what to go on from, keeps its files in step."""

    def __init__(self, opt: argparse.Namespace):
        self.path = Path(opt.save)
        self.model, self.log = self.path / MODEL, self.path / LOG
        self.state: dict[str, Any] | None = None
        self.epochs: list[dict[str, Any]] = []
        self.source = self.model if opt.resume in ('', 'auto') else Path(opt.resume)
        if self.source.is_dir():
            self.source /= MODEL
        goes_on = opt.resume and self.source.resolve() == self.model.resolve()
        if (self.model.exists() or self.log.exists()) and not goes_on:
            raise InputError(f'{self.path} holds a run already: go on with it by --resume auto, '
                             'or name another folder by --save')
        if not opt.resume or opt.resume == 'auto' and not self.source.exists():
            return
        self.state = read(self.source)
        needed = {'params', 'optimizer', 'epoch', 'options'}
        if not isinstance(self.state, dict) or not needed <= self.state.keys():
            raise InputError(f'{self.source} is no checkpoint to go on from; weights and runs of the '
                             'published code can teach (--teacher_id) and be evaluated (--evaluate)')
        self._compare(opt)
        log = self.source.with_name(LOG)
        if log.exists():  # lines past the checkpoint belong to an epoch that is run again
            self.epochs = [e for e in read_log(log) if e['epoch'] <= self.state['epoch']]

    def _compare(self, opt: argparse.Namespace) -> None:
        before = self.state['options']
        changed = [name for name, value in vars(opt).items() if before.get(name, value) != value]
        for name in {'depth', 'width', 'dataset'} & set(changed):
            raise InputError(f'the run to go on with has {name} {before[name]}, not {getattr(opt, name)}')
        for name in set(changed) - {'save', 'resume', 'dataroot', 'device', 'gpu_id', 'nthread'}:
            print(f'note: the run goes on with --{name} {getattr(opt, name)}; it began with {before[name]}',
                  file=sys.stderr)

    def create(self) -> None:
        """Make the folder, before the first epoch rather than after it, and try to write there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / '.writable', b'')
            (self.path / '.writable').unlink()
        except OSError as e:
            raise InputError(f'--save {self.path}: nothing can be written there ({e.strerror})') from None

    def save(self, record: dict[str, Any], state: dict[str, Any]) -> None:
        """The log first: a kill between the two leaves a line too many, which a resumed run drops."""
        self.epochs.append(record)
        try:
            write_log(self.log, self.epochs)
            write(self.model, state)
        except OSError as e:
            kept = f'; {self.model} still holds the epoch before' if self.model.exists() else ''
            raise InputError(f'could not save epoch {record["epoch"]} in {self.path} ({e.strerror}){kept}; '
                             'make room, then go on with --resume auto') from None

    def last(self) -> str:
        """Where the last checkpoint is, for messages."""
        if not self.model.exists():
            return 'no epoch was finished, so there is no checkpoint'
        return f'{self.model} holds epoch {read(self.model)["epoch"]}'
