"""Files of a run: `model.pt7`, the checkpoint, and `log.txt`, one strict JSON line an epoch.

    state = checkpoint.read('logs/resnet_16_2_teacher/model.pt7')    # {'params': ..., 'epoch': 200, ...}

Reading runs no code from the file; writing leaves either the old file or the new one, whole.
"""
import io
import json
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils import InputError

MODEL, LOG = 'model.pt7', 'log.txt'


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename over it: no moment has half a file there. OSError as from open()."""
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
    """What torch.save wrote, on the CPU; tensors and plain values only. InputError names a file that is not that."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise InputError(f'there is no file {path}') from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError,
            ImportError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise InputError(f'{path} is no whole file of weights: it is truncated, or holds more than tensors and '
                         'plain values, which is refused because loading it could run code') from None


def student(params: dict[str, Any]) -> dict[str, Any]:
    """Without the prefix that names carry in the published code's runs with a teacher; the teacher is left out."""
    if not any(name.startswith('student.') for name in params):
        return params
    return {name.removeprefix('student.'): t for name, t in params.items() if name.startswith('student.')}


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The epochs of a log, ours or of the published code ('json_stats: {...}'); lines that are no JSON are left out."""
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
