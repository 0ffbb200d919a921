"""`python -m tools.report --check results --dataroot data`: are published figures those of logs and weights?

Each log must be complete, of one commit without changes, and follow the schedule of its options. Weights must
have the checksum in their README, belong to the last epoch of their log and, where the data set is available,
give its test error. The tables of all documents must be those of their logs.
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
# The order of a sum may move one or two of 10,000 images to another class.
LOSS, ACCURACY = 1e-3, 0.03


class Fault(Exception):
    """A published figure is wrong."""


def check(folder: Path, dataroot: str, render: Callable[[list[str], Path], str]) -> int:
    """Recompute what is in the folder and in the documents next to it, and print it; the number of faults."""
    if not folder.is_dir():
        raise InputError(f'--check {folder}: there is no such folder')
    items = [(log.parent, _run, (log.parent, dataroot)) for log in sorted(folder.rglob(checkpoint.LOG))]
    items += [(path, _weights, (path,)) for path in sorted(folder.rglob('README.md'))]
    root = Path(os.path.relpath(folder.resolve().parent))
    items += [(path, _tables, (path, render))
              for path in sorted([*root.glob('*.md'), *root.glob('docs/*.md'), *folder.rglob('*.md')])
              if documents.TABLE.search(documents.read(path))]
    if not items:
        raise InputError(f'--check {folder}: it holds no log of a run, and no document with tables')
    n_faults = 0
    for name, function, arguments in items:
        try:
            for found in function(*arguments):
                print(f'{name}: {found}', flush=True)
        except (Fault, exits.Diverged, AttributeError, LookupError, TypeError, ValueError) as e:
            n_faults += 1
            unexpected = not isinstance(e, Fault | InputError | exits.Diverged)
            print(f'{name}: FAULT: {f"{type(e).__name__}: " * unexpected}{e}', flush=True)
    print(f'{len(items)} checked, {n_faults} faults')
    return n_faults


# --- runs ------------------------------------------------------------------------------------------------


def _run(run: Path, dataroot: str) -> Iterator[str]:
    records = checkpoint.read_log(run / checkpoint.LOG)
    n = len((run / checkpoint.LOG).read_text(errors='replace').splitlines())
    if [r['epoch'] for r in records] != list(range(1, n + 1)) or not n:
        raise Fault(f'its {n} lines are not the epochs 1, 2, 3, ...')
    first, last = records[0], records[-1]
    if last['epoch'] != last['epochs']:
        raise Fault(f'it ends after epoch {last["epoch"]} of {last["epochs"]}')
    for name in ('seed', 'commit', 'dataset', 'depth', 'width', 'lr', 'epochs', 'epoch_step', 'n_parameters'):
        if name not in last or any(r.get(name) != first[name] for r in records):
            raise Fault(f'{name} is missing, or not the same in all epochs')
    if not re.fullmatch('[0-9a-f]{40}', str(last['commit'])):
        raise Fault(f'its commit {last["commit"]} is not one without changes')
    for record in records:
        _epoch(record)
    yield (f'{n} epochs, seed {last["seed"]}, commit {last["commit"][:7]}, '
           f'test error {100 - last["test_acc"]:.2f}')
    if (run / checkpoint.MODEL).exists():
        if checkpoint.read(run / checkpoint.MODEL).get('record') != last:
            raise Fault(f'{checkpoint.MODEL} does not belong to the last line of its log')
        yield _evaluated(run, last, dataroot)


def _epoch(record: dict[str, Any]) -> None:
    """Results are finite numbers; learning rate and beta follow from the options."""
    epoch = record['epoch']
    for name in ('train_loss', 'test_loss', 'train_acc', 'test_acc'):
        value = record[name]
        if value is None or not 0 <= value < math.inf or name.endswith('acc') and value > 100:
            raise Fault(f'{name} of epoch {epoch} is {value}')
    opt = argparse.Namespace(**settings.defaults(record) | record)
    expected = {'lr_epoch': [method.learning_rate(opt, epoch, done) for done in (0, 1)],
                'beta_epoch': method.beta(opt, epoch)}
    for name, value in expected.items():
        if not np.allclose(record[name], value, rtol=1e-9, atol=1e-12):
            raise Fault(f'{name} of epoch {epoch} is {record[name]}, its options give {value}')


def _evaluated(run: Path, last: dict[str, Any], dataroot: str) -> str:
    """Evaluate the weights on the data set, if it is available."""
    dataset = last['dataset']
    if dataset not in data.CLASSES or dataset != 'shapes' and not dataroot:
        return f'weights are of its last epoch; give --dataroot to evaluate them on {dataset}'
    cpu = torch.device('cpu')
    f, params = training.load(run, dataset, last['num_classes'], cpu)
    _, images = data.load(dataset, dataroot or '.', cpu, last.get('max_images', 0),
                          last.get('val_images', 0))
    h_test = evaluation_step(f, params, last.get('dtype', 'float'))  # as the run did it
    found = training.evaluate(h_test, data.Loader(
        images, data.TEST_BATCH['cpu'], normalization=last.get('normalization', 'cifar10')))
    if abs(found['loss'] - last['test_loss']) > LOSS or abs(found['acc'] - last['test_acc']) > ACCURACY:
        raise Fault(f'its weights have test loss {found["loss"]:.4f} and accuracy {found["acc"]:.2f}, '
                    f'in its log they are {last["test_loss"]:.4f} and {last["test_acc"]:.2f}')
    return f'weights evaluated, test error {100 - found["acc"]:.2f}'


# --- documents -------------------------------------------------------------------------------------------


def _weights(path: Path) -> Iterator[str]:
    """The table of weights in a README: each checkpoint, its checksum, and what --evaluate prints."""
    folder, rows = path.parent, ROW.findall(documents.read(path))
    published = {model.parent.relative_to(folder).as_posix() for model in folder.rglob(checkpoint.MODEL)}
    if published != {name for name, *_ in rows}:
        raise Fault(f'its table does not have the runs with weights, {", ".join(sorted(published))}')
    for name, sha256, line in rows:
        if hashlib.sha256((folder / name / checkpoint.MODEL).read_bytes()).hexdigest() != sha256:
            raise Fault(f'the sha256 of {name} is different')
        last = checkpoint.read_log(folder / name / checkpoint.LOG)[-1]
        said = (f': test loss {last["test_loss"]:.4f} accuracy {last["test_acc"]:.2f} '
                f'error {100 - last["test_acc"]:.2f}')
        if not line.endswith(f'{name}{said}'):
            raise Fault(f'the log of {name} says{said}')
    yield f'{len(rows)} weights with their checksums'


def _tables(path: Path, render: Callable[[list[str], Path], str]) -> Iterator[str]:
    text = documents.read(path)
    if documents.updated(text, lambda arguments: render(arguments, path.parent)) != text:
        raise Fault(f'its tables are not those of the logs: python -m tools.report --update {path}')
    yield f'{len(documents.TABLE.findall(text))} tables are those of their logs'
