"""Whether what is published is what its logs, weights and data say.

    python -m tools.report --check results --dataroot data

The logs in a folder are whole, of one clean commit and of the schedule they name; weights have the checksum
that their README gives, are those of their log's last epoch and, where their data set is at hand, have its
test error; the tables of all documents are those of their logs.
"""
import argparse
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import method
import training
from inputs import cifar as data
from method import evaluation_step
from tools.report import documents, settings
from training import checkpoint, exits
from utils import InputError

# | [wrn_16_2](wrn_16_2) | `sha256` | `what --evaluate prints` |
ROW = re.compile(r'^\| \[[^\]]+\]\((\S+)\) +\| `(\w{64})` +\| `(.+?)` +\|$', re.MULTILINE)
# Of 10,000 images the order of a sum may move one or two over the border between classes.
LOSS, ACCURACY = 1e-3, 0.03


class Fault(Exception):
    """What is published is not so."""


def check(folder: Path, dataroot: str | None, parse: Callable[[list[str]], argparse.Namespace]) -> int:
    """Print what was recomputed of the folder and of the documents beside it; the number of faults."""
    if not folder.is_dir():
        raise InputError(f'--check {folder}: there is no such folder')
    items = [(log.parent, _run, (log.parent, dataroot)) for log in sorted(folder.rglob(checkpoint.LOG))]
    items += [(path, _weights, (path,)) for path in sorted(folder.rglob('README.md'))]
    beside = Path(os.path.relpath(folder.resolve().parent))
    for path in sorted([*beside.glob('*.md'), *beside.glob('docs/*.md'), *folder.rglob('*.md')]):
        if documents.MARKER.search(documents.read(path)):
            items.append((path, _tables, (path, parse)))
    if not items:
        raise InputError(f'--check {folder}: it holds no log of a run, and no document with tables')
    n_faults = 0
    for name, function, arguments in items:
        try:
            for found in function(*arguments):
                print(f'{name}: {found}', flush=True)
        except (Fault, InputError, exits.Diverged) as e:
            n_faults += 1
            print(f'{name}: FAULT: {e}', flush=True)
        except (AttributeError, LookupError, TypeError, ValueError) as e:  # not what a run writes
            n_faults += 1
            print(f'{name}: FAULT: a value of another kind ({type(e).__name__}: {e})', flush=True)
    print(f'{len(items)} checked, {n_faults} faults')
    return n_faults


# --- runs ------------------------------------------------------------------------------------------------


def _run(run: Path, dataroot: str | None) -> Iterator[str]:
    records = checkpoint.read_log(run / checkpoint.LOG)
    n = len((run / checkpoint.LOG).read_text(errors='replace').splitlines())
    if not records or len(records) != n:
        raise Fault(f'of {n} lines {len(records)} are epochs')
    first, last = records[0], records[-1]
    if [r['epoch'] for r in records] != list(range(1, n + 1)):
        raise Fault('its epochs are not 1, 2, 3, ...')
    if last['epoch'] != last.get('epochs'):
        raise Fault(f'it ends after epoch {last["epoch"]} of {last.get("epochs")}')
    for name in ('seed', 'commit', 'dataset', 'depth', 'width', 'lr', 'epochs', 'epoch_step', 'n_parameters'):
        if name not in last or any(r.get(name) != first[name] for r in records):
            raise Fault(f'{name} is missing, or not the same in all epochs')
    if not re.fullmatch('[0-9a-f]{40}', str(last['commit'])):
        raise Fault(f'its commit {last["commit"]} is none without changes')
    for record in records:
        _epoch(record)
    yield (f'{n} epochs, seed {last["seed"]}, commit {last["commit"][:7]}, '
           f'test error {100 - last["test_acc"]:.2f}')
    if (run / checkpoint.MODEL).exists():
        state = checkpoint.read(run / checkpoint.MODEL)
        if state.get('record') != last:
            raise Fault(f'{checkpoint.MODEL} is not of the last line of its log')
        yield _evaluated(run, last, dataroot)


def _epoch(record: dict[str, Any]) -> None:
    """Learning rate and beta are those of the options, and numbers are in their ranges."""
    for name in ('train_loss', 'test_loss', 'train_acc', 'test_acc', 'beta_epoch'):
        value = record.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0 or (
                name.endswith('acc') and value > 100):
            raise Fault(f'{name} of epoch {record["epoch"]} is {value}')
    opt = argparse.Namespace(**settings.defaults(record) | record)
    epoch = record['epoch']
    laws = {'lr_epoch': [method.learning_rate(opt, epoch, done) for done in (0, 1)],
            'beta_epoch': method.beta(opt, epoch)}
    for name, law in laws.items():
        if not np.allclose(record[name], law, rtol=1e-9, atol=1e-12):
            raise Fault(f'{name} of epoch {epoch} is {record[name]}, by its options {law}')


def _evaluated(run: Path, last: dict[str, Any], dataroot: str | None) -> str:
    """Evaluate the weights on the data set, if it is at hand."""
    dataset = last['dataset']
    if dataset not in data.CLASSES or dataset != 'shapes' and dataroot is None:
        return f'weights are of its last epoch; give --dataroot to evaluate them on {dataset}'
    cpu = torch.device('cpu')
    f, params = training.load(run, dataset, last['num_classes'], cpu)
    _, images = data.load(dataset, dataroot or '.', cpu, last.get('max_images', 0),
                          last.get('val_images', 0))
    h_test = evaluation_step(f, params, 'float')
    found = training.evaluate(h_test, data.Loader(images, data.TEST_BATCH['cpu']))
    if abs(found['loss'] - last['test_loss']) > LOSS or abs(found['acc'] - last['test_acc']) > ACCURACY:
        raise Fault(f'evaluated, its weights have test loss {found["loss"]:.4f} and accuracy '
                    f'{found["acc"]:.2f}, by its log {last["test_loss"]:.4f} and {last["test_acc"]:.2f}')
    return f'weights evaluated, test error {100 - found["acc"]:.2f}'


# --- documents -------------------------------------------------------------------------------------------


def _weights(path: Path) -> Iterator[str]:
    """The table of weights in a README: every checkpoint below, its checksum, and what --evaluate prints."""
    folder, rows = path.parent, ROW.findall(documents.read(path))
    published = {model.parent.relative_to(folder).as_posix() for model in folder.rglob(checkpoint.MODEL)}
    if published != {name for name, *_ in rows}:
        raise Fault(f'its table has not the runs whose weights are there, {", ".join(sorted(published))}')
    for name, sha256, line in rows:
        if hashlib.sha256((folder / name / checkpoint.MODEL).read_bytes()).hexdigest() != sha256:
            raise Fault(f'the sha256 of {name} is another')
        last = checkpoint.read_log(folder / name / checkpoint.LOG)[-1]
        said = (f': test loss {last["test_loss"]:.4f} accuracy {last["test_acc"]:.2f} '
                f'error {100 - last["test_acc"]:.2f}')
        if not line.endswith(f'{name}{said}'):
            raise Fault(f'the log of {name} says{said}')
    yield f'{len(rows)} weights with their checksums'


def _tables(path: Path, parse: Callable[[list[str]], argparse.Namespace]) -> Iterator[str]:
    text = documents.read(path)
    if documents.updated(text, path.parent, parse) != text:
        raise Fault(f'its tables are not those of the logs: python -m tools.report --update {path}')
    yield f'{len(documents.MARKER.findall(text)) // 2} tables are those of their logs'
