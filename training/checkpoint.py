"""Files of a run: the checkpoint `model.pt7`, and `log.txt` with one strict JSON line for each epoch.

    state = checkpoint.read('logs/resnet_16_2_teacher/model.pt7')    # {'params': ..., 'epoch': 200, ...}

Reading runs no code from the file. Writing leaves either the whole old file or the whole new one.
"""
import argparse
import contextlib
import io
import json
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
FIXED = ('model', 'depth', 'width', 'dataset', 'val_images', 'freeze')  # options that cannot change
UNNOTED = ('save', 'resume', 'dataroot', 'imagenetpath', 'device', 'gpu_id', 'ngpu', 'nthread', 'max_hours',
           'tensorboard', 'compile')  # options that change no result


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write to a file next to `path`, flush it to disk, rename it to `path`. OSError as open()."""
    temporary = path.with_name(path.name + '.tmp')
    try:
        with open(temporary, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some network file systems cannot do it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name survives a power cut too
        finally:
            os.close(folder)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dictionaries, which `read` accepts."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The epochs of a log, ours or of the published code ('json_stats: {...}'); other lines are ignored."""
    epochs = []
    try:
        lines = Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as e:
        raise InputError(f'cannot read the log {path}: {e.strerror}') from None
    for line in lines:
        if '"epoch"' in line:  # faster than an error of json for every other line
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line.removeprefix('json_stats: '))
                if isinstance(record, dict) and type(record.get('epoch')) is int:
                    epochs.append(record)
    return epochs


def options_of(source: Path | str) -> dict[str, Any]:
    """What is known of the training of weights: options in the file, and in the log next to a checkpoint."""
    try:
        options = tensors.read_with_options(source)[1]
    except InputError:
        options = {}
    known = dict(options) if is_plain(options) else {}
    path = Path(source, MODEL) if Path(source).is_dir() else Path(source)
    log = path.with_name(LOG)
    if path.name == MODEL and log.exists() and (epochs := read_log(log)):
        known |= epochs[-1] | {'classes': known.get('classes')}  # the log has a short form of them
    return known


def dataset_of(source: Path | str) -> str | None:
    """The data set that weights were trained on, if it is known."""
    name = options_of(source).get('dataset')
    return name if isinstance(name, str) else None


def write_log(path: Path, epochs: list[dict[str, Any]]) -> None:
    """Write the epochs, one strict JSON line each: NaN and infinity become null."""
    strict = (json.loads(json.dumps(record), parse_constant=lambda _: None) for record in epochs)
    write_atomically(path, ''.join(json.dumps(record) + '\n' for record in strict).encode())


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings, lists and dictionaries, as a line of the log does.

    A few bytes of a hostile file can nest lists without end, or double them 40 times: both are limited.
    """
    budget = iter(range(100_000))

    def plain(value: Any, depth: int) -> bool:
        if depth > 10 or next(budget, None) is None:
            return False
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(inner, depth + 1) for key, inner in value.items())
        if isinstance(value, list | tuple):
            return all(plain(inner, depth + 1) for inner in value)
        return value is None or isinstance(value, bool | int | float | str)

    return plain(value, 1)


def is_checkpoint(state: Any) -> bool:
    """Whether a file holds all that a run resumes from."""
    kinds = {'params': dict, 'optimizer': dict, 'epoch': int, 'options': dict, 'record': dict}
    return (isinstance(state, dict) and all(type(state.get(name)) is kind for name, kind in kinds.items())
            and is_plain(state['options']) and is_plain(state['record'])
            and 0 < state['epoch'] < 2**31 and state['record'].get('epoch') == state['epoch'])


class Folder:
    """The folder of a run. It never overwrites another run, and finds the checkpoint to resume from."""

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
        own = opt.resume and self.source.resolve() == self.model.resolve()
        if any(self.found) and not own:
            raise InputError(f'{self.path} holds a run already: resume it with --resume auto, '
                             'or name another folder with --save')
        if not opt.resume or opt.resume == 'auto' and not any(self.found):
            return
        if opt.resume == 'auto' and not self.model.exists():
            raise InputError(f'{self.log} has epochs but {self.model} is gone: restore it, '
                             'or name another folder with --save')
        self.state = read(self.source)
        if not is_checkpoint(self.state):
            raise InputError(f'{self.source} is not a checkpoint to resume from; weights and runs of the '
                             'published code can teach, and can be evaluated with --evaluate')
        self.changes(opt)
        self.saved = self.state['epoch'] if own else 0
        log = self.source.with_name(LOG)
        # The checkpoint is saved before the log, so the log may lack the line of its epoch.
        before = [e for e in read_log(log) if e['epoch'] < self.state['epoch']] if log.exists() else []
        self.epochs = [*before, self.state['record']]
        if (n := self.state['epoch'] - len(self.epochs)) > 0:
            print(f'note: {log} lacks the lines of {n} epochs before {self.state["epoch"]}', file=sys.stderr)

    def changes(self, opt: argparse.Namespace) -> list[str]:
        """Options that differ from those of the run to resume; InputError for one that cannot change."""
        changed, before = [], self.state['options'] if self.state else {}
        for name, value in vars(opt).items():
            # Compared as text, because a hostile file may hold any type. --fast chooses dtype later.
            if name not in before or repr(before[name]) == repr(value) or (name, value) == ('dtype', ''):
                continue
            if name in FIXED or name == 'finetune' and not (before[name] and value):
                raise InputError(f'the run in {self.source} has {name} {before[name]!r}, not {value!r}')
            if name not in UNNOTED:
                changed.append(one_line(
                    f'the run resumes with --{name} {value}; it began with {before[name]}'))
        return changed

    def _found(self) -> list[tuple[int, int] | None]:
        """Which files there are. Every save changes it, because it replaces whole files."""
        return [(p.stat().st_ino, p.stat().st_mtime_ns) if p.exists() else None
                for p in (self.model, self.log)]

    def create(self) -> None:
        """Make the folder and lock it, before the first epoch, until close() or the end of this process.

        Uses lockf, not flock: it also works on network file systems, and forked workers do not inherit it.
        """
        import fcntl  # Windows has none, and can read weights without it
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.read(self.lock, 200).decode(errors='replace').strip()
                raise InputError(f'{self.path} is in use by another run, {owner}: wait for its end, or name '
                                 'another folder with --save') from None
            except OSError:
                print(f'note: {self.path} is on a file system without locks: nothing stops another run from '
                      'writing there', file=sys.stderr)
            os.truncate(self.lock, 0)
            os.write(self.lock, f'process {os.getpid()} on {os.uname().nodename}\n'.encode())
        except OSError as e:
            raise InputError(f'--save {self.path}: cannot write there ({e.strerror})') from None
        if self._found() != self.found:
            raise InputError(f'another run has written to {self.path} meanwhile: resume it with '
                             '--resume auto, or name another folder with --save')

    def close(self) -> None:
        """Let other runs write here."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def save(self, record: dict[str, Any], state: dict[str, Any]) -> None:
        """Save the checkpoint, which includes the line of its epoch, and the log."""
        self.epochs.append(record)
        try:
            write(self.model, state | {'record': record})
            self.saved = record['epoch']
            write_log(self.log, self.epochs)
        except OSError as e:
            then = 'add --resume auto' if self.saved else 'give the same command again'
            raise InputError(f'could not save epoch {record["epoch"]} in {self.path} ({e.strerror}); '
                             f'{self.last()}; make room, then {then}') from None

    def complete_log(self) -> None:
        """Add the last line of the log, if a run was killed after its checkpoint and before its log."""
        if self.saved and (not self.log.exists() or len(read_log(self.log)) < len(self.epochs)):
            self.create()
            write_log(self.log, self.epochs)
            self.close()

    def last(self) -> str:
        """Where the last checkpoint is, for messages."""
        return f'{self.model} holds epoch {self.saved}' if self.saved else 'there is no checkpoint yet'
