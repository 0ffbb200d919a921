"""Runs, as their logs tell them: ours, and those of the published code.

    for same in logs.group(logs.read(['logs/demo'])):
        print(same[0].student, same[0].method, [run.errors for run in same])
"""
import contextlib
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint
import options
from utils import InputError

# The terms of a loss beside classification, and the options that weigh them, in the order of the names.
TITLES = {'at': 'AT', 'hint': 'F-ActT', 'grad': 'gradient AT', 'sym': 'symmetry', 'l2': 'min-l2', 'kd': 'KD'}
TERMS = {title: options.LOSSES[name] for name, title in TITLES.items()}
# Options in which runs of one method may differ, and runs of one network, with what older logs leave out.
METHOD = dict.fromkeys(TERMS.values(), 0.0) | {
    'temperature': 4.0, 'beta_decay': 'none', 'map': 'sum', 'map_p': 2.0, 'at_groups': None,
    'at_from_epoch': 1}
TRAINING = {
    'batch_size': 128, 'lr': 0.1, 'epoch_step': [60, 120, 160], 'lr_decay_ratio': 0.2, 'weight_decay': 5e-4,
    'augment': 'crop_flip', 'randomcrop_pad': 4, 'finetune': '', 'freeze': 1,
    'lr_schedule': 'step', 'warmup': 0.0, 'dtype': 'float', 'compile': False}
NEEDED = {'dataset': str, 'depth': int, 'width': int | float, 'epochs': int, 'n_parameters': int,
          'test_acc': int | float, 'train_time': int | float}
NINS = {96: 'thin', 192: 'wide'}
IMAGENET = re.compile(r'(?:torchvision:resnet|resnet-)(18|34)(?:-export\.\w+)?')  # teachers without a log

DESCRIBED = re.compile(r'(?:folded )?(WRN|ResNet)-([\d.-]+)(?: of width ([\d.]+))?,')  # as by resnet.describe


class Run(NamedTuple):
    """What a log says of a run. Runs that agree in the first six fields differ only in their seed."""
    student: str
    teacher: str  # its network, its name where that is not known, '' without a teacher
    method: str
    dataset: str  # of its first images only, another one
    length: str  # in epochs
    settings: tuple[tuple[str, str], ...]
    seed: int | None
    n_parameters: int
    errors: dict[int, float]  # test error in % by epoch, ascending
    top5: dict[int, float]
    times: dict[int, float]  # of training, in seconds, without the tests
    losses: dict[str, dict[str, dict[int, float]]]  # term -> group -> epoch -> mean, before its weight


# --- reading ------------------------------------------------------------------------------------------


def read(paths: list[str], base: Path = Path()) -> list[Run]:
    """The runs of logs, and in folders and their sub-folders, each once; at least one in every folder."""
    found = {}
    for path in (base / path for path in paths):
        if not path.exists():
            raise InputError(f'there is neither a folder nor a log {path}')
        logs = sorted(path.rglob(checkpoint.LOG)) if path.is_dir() else [path]
        if not logs:
            raise InputError(f'neither {path} nor a folder in it holds a {checkpoint.LOG}')
        found |= {log.resolve(): log for log in logs}
    return [run for log in found.values() for run in read_log(log)]


def read_log(log: Path) -> list[Run]:
    """The runs of a log: the published code appends to a file that is there."""
    records = checkpoint.read_log(log)
    if not records:
        raise InputError(f'{log} holds no epoch of a run')
    for record in records:
        if missing := [name for name, kind in NEEDED.items() if not _is(record.get(name), kind)]:
            raise InputError(f'{log} is no log of a run: '
                             f'epoch {record["epoch"]} has no {", ".join(missing)}')
    return [_run(log, run) for run in split(records)]


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; a number, too, that a float can hold."""
    return isinstance(value, kind) and not isinstance(value, bool) and not (
        isinstance(value, int) and abs(value) >= 2**63)


def split(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each run in a log, their epochs ascending.

    Where the epoch falls back, a run that was cut short was taken up again, from its checkpoint or from the
    start, and what it had done beyond is void; with other options, or from 1 after the last epoch, it is
    another run. So is another network or data set, whatever the epoch.
    """
    runs: list[list[dict[str, Any]]] = []
    for record in records:
        epoch = record['epoch']
        if runs:
            last = runs[-1][-1]
            same = _network(last) == _network(record) and _dataset(last) == _dataset(record)
            if same and epoch > last['epoch'] or same and _options(last) == _options(record) and not (
                    epoch == 1 and last['epoch'] == last['epochs']):
                runs[-1] = [r for r in runs[-1] if r['epoch'] < epoch] + [record]
                continue
        runs.append([record])
    return runs


def _run(log: Path, records: list[dict[str, Any]]) -> Run:
    last = records[-1]
    known = {record['epoch']: record for record in records if math.isfinite(record['test_acc'])}
    if not known:
        raise InputError(f'{log}: the test accuracy of no epoch is a number')
    epoch = last['epoch']
    return Run(
        student=_network(last), teacher=_teacher(log, last), dataset=_dataset(last),
        method='+'.join(name for name, weight in TERMS.items() if last.get(weight)) or 'alone',
        length=str(epoch) if epoch == last['epochs'] else f'{epoch} of {last["epochs"]}',
        settings=_settings(last), seed=last.get('seed'), n_parameters=last['n_parameters'],
        errors={epoch: 100 - record['test_acc'] for epoch, record in known.items()},
        top5={epoch: 100 - record['test_acc5'] for epoch, record in known.items()
              if _is(record.get('test_acc5'), int | float)},
        times={record['epoch']: record['train_time'] for record in records}, losses=_losses(records))


def _options(record: dict[str, Any]) -> tuple:
    return (record['epochs'], record.get('seed'), record.get('teacher_id'), record.get('teacher_params'),
            _settings(record))


def _dataset(record: dict[str, Any]) -> str:
    n, held_out = record.get('max_images'), record.get('val_images')
    return (record['dataset'] + (f' (first {n} images)' if n else '')
            + (f' ({held_out} held-out training images)' if held_out else ''))


def _settings(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _text(record.get(name, default))) for name, default in (METHOD | TRAINING).items())


def _text(value: Any) -> str:
    if _is(value, int | float):
        return f'{value:g}'
    # The published code logs the list epoch_step as text, without spaces.
    return 'all' if value is None else str(value).replace(' ', '')


def _losses(records: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        for name, term in TITLES.items():
            values, groups = ([] if not isinstance(v, list) else v
                              for v in (record.get(f'{name}_losses'), record.get('at_groups')))
            if options.LOSSES[name] in options.GROUP_LOSSES:
                parts = [f'group {g}' for g in groups or range(len(values))]
            else:
                parts = ['gradients', 'outputs'] if len(values) == 2 else ['']
            for part, value in zip(parts, values, strict=False):
                mean = value[0] if isinstance(value, list) and value else None
                if _is(mean, int | float) and math.isfinite(mean):  # without a teacher it is NaN
                    found.setdefault(term, {}).setdefault(part, {})[record['epoch']] = mean
    return found


# --- names --------------------------------------------------------------------------------------------


def _network(record: dict[str, Any]) -> str:
    depth, width = record['depth'], record['width']
    if 'teacher_params' in record:
        return f'ResNet-{depth}' + (f' x {width:g}' if width != 1 else '')
    if record.get('model') != 'nin':
        return f'WRN-{depth}-{width:g}'
    return (f'NIN-{NINS.get(width, f"{width:g}")}' + (', no BN' if record.get('no_bn') else '')
            + (', no ReLU before pooling' if record.get('no_pool_relu') else ''))


def _teacher(log: Path, record: dict[str, Any]) -> str:
    """The teacher's network by the log, or by its own, found as seen from there; else its name."""
    teacher = str(record.get('teacher_id') or record.get('teacher_params') or '')
    if not teacher:
        return ''
    if known := IMAGENET.fullmatch(Path(teacher).name):
        return f'ResNet-{known[1]}'
    if known := DESCRIBED.match(str(record.get('teacher') or '')):
        kind, number, width = known.groups()
        return f'{kind}-{number}' + (f' x {width}' if width and width != '1' else '')
    path = Path(teacher).parent if Path(teacher).name == checkpoint.MODEL else Path(teacher)
    places = [Path('logs') / path, path]
    saved = str(record.get('save') or '')
    moved = [log.parent / os.path.relpath(place, saved) for place in places if saved]
    for place in [*moved, *places]:
        found = place / checkpoint.LOG
        with contextlib.suppress(OSError, ValueError):  # no name of a file
            if found.is_file():
                for other in reversed(checkpoint.read_log(found)):
                    if all(_is(other.get(name), NEEDED[name]) for name in ('depth', 'width')):
                        return _network(other)
    return path.name


# --- runs that belong together --------------------------------------------------------------------------


def group(runs: list[Run]) -> list[list[Run]]:
    """Runs that differ only in their seed together; small networks and few terms first."""
    datasets = sorted({run.dataset for run in runs})
    if len(datasets) > 1:
        raise InputError(f'the runs are of several data sets, {", ".join(datasets)}: report each alone')
    found: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=_order):
        found.setdefault(run[:6], []).append(run)
    return list(found.values())


def _order(run: Run) -> tuple:
    terms = [term for term in TERMS if term in run.method.split('+')]
    return (run.n_parameters, run.student, run.teacher != '', run.teacher, len(terms),
            [list(TERMS).index(term) for term in terms], len(run.length), run.length, run.settings)


def differences(groups: list[list[Run]]) -> list[dict[str, str]]:
    """The settings that tell each group from others: of method, of those with the same student, teacher and
    method; of training, of all with the same student.
    """
    first = [same[0] for same in groups]
    return [{name: value for name, value in run.settings
             if any(dict(other.settings)[name] != value for other in first
                    if (other[:3] == run[:3] if name in METHOD else other.student == run.student))}
            for run in first]
