"""Runs, read from their logs: ours, and those of the published code.

    for same in logs.group(logs.read(['logs/demo'])):
        print(same[0].student, same[0].method, [run.errors for run in same])
"""
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import method
from tools.report import settings
from training import checkpoint
from utils import InputError, one_line

# Titles of losses and the options of their weights, in the order in which methods name them.
TERMS = {loss.title: loss.option for loss in method.LOSSES}
NEEDED = {'dataset': str, 'depth': int, 'width': int | float, 'epochs': int, 'n_parameters': int,
          'test_acc': int | float, 'train_time': int | float}
OTHERS = {'seed': int, 'test_acc5': int | float, 'test_agreement': int | float, 'device_name': str,
          'model': str, 'save': str, 'teacher_id': str, 'teacher_params': str}
NINS = {96: 'thin', 192: 'wide'}
HELD_OUT = 'held-out training images'


class Run(NamedTuple):
    """What a log says about a run. Runs with the same first six fields differ only in their seed."""
    student: str
    teacher: str  # its network, or its name if the network is not known; '' without a teacher
    method: str
    dataset: str  # --max_images and --val_images make it a different one
    length: str  # in epochs
    settings: tuple[tuple[str, str], ...]  # all other options that change training
    seed: int | None
    n_parameters: int
    errors: dict[int, float]  # test error in % by epoch, ascending
    top5: float | None  # the same for top-5, in the last epoch
    times: dict[int, float]  # training time in seconds by epoch, without tests
    losses: dict[str, dict[str, dict[int, float]]]  # term -> group -> epoch -> mean, before its weight
    agreement: float | None  # % of test images that student and teacher give the same class, last epoch
    cosines: list[float]  # of attention maps of student and teacher, for each group, last epoch
    machine: str

    @property
    def error(self) -> float:
        """Test error in % in the last epoch."""
        return list(self.errors.values())[-1]


# --- reading ------------------------------------------------------------------------------------------


def read(paths: list[str], base: Path = Path()) -> list[Run]:
    """The runs of these logs, and of the logs in these folders, each once."""
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
    """The runs of a log: the published code appends to an existing log."""
    records = checkpoint.read_log(log)
    if not records:
        raise InputError(f'{log} holds no epoch of a run')
    for record in records:
        kinds = NEEDED | {name: kind for name, kind in OTHERS.items() if record.get(name) is not None}
        if wrong := [name for name, kind in kinds.items() if not _is(record.get(name), kind)]:
            raise InputError(f'{log} is not the log of a run: '
                             f'epoch {record["epoch"]} has no {", ".join(wrong)}')
    try:
        return [_run(log, run) for run in split(records)]
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as e:
        raise InputError(f'{log} is not the log of a run: {one_line(str(e))}') from None


def _is(value: Any, kind: Any) -> bool:
    """Whether a value has a type; numbers must fit into a float."""
    return isinstance(value, kind) and not isinstance(value, bool) and (
        not isinstance(value, int) or abs(value) < 2**63)


def split(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each run in a log, their epochs ascending.

    A run that was interrupted repeats epochs when it resumes or starts again: the later lines count. Epoch 1
    after a finished run begins another run, and so does another network or data set.
    """
    runs: list[list[dict[str, Any]]] = []
    for record in records:
        last = runs[-1][-1] if runs else record
        same = _network(last) == _network(record) and _dataset(last) == _dataset(record)
        if runs and same and (record['epoch'] > 1 or last['epoch'] < last['epochs']):
            runs[-1] = [r for r in runs[-1] if r['epoch'] < record['epoch']] + [record]
        else:
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
        settings=settings.of(last), seed=last.get('seed'), n_parameters=last['n_parameters'],
        errors={epoch: 100 - record['test_acc'] for epoch, record in known.items()},
        top5=100 - last['test_acc5'] if 'test_acc5' in last else None,
        times={record['epoch']: record['train_time'] for record in records}, losses=_losses(records),
        agreement=last.get('test_agreement'), cosines=[float(c) for c in last.get('test_map_cosines') or []],
        machine=one_line(last.get('device_name') or ''))


def _dataset(record: dict[str, Any]) -> str:
    n, held_out = record.get('max_images'), record.get('val_images')
    return (record['dataset'] + (f' (first {n} images)' if n else '')
            + (f' ({held_out} {HELD_OUT})' if held_out else ''))


def _losses(records: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        for loss in method.LOSSES:
            values = record.get(f'{loss.name}_losses') or []
            if loss.groups:
                parts = [f'group {g}' for g in record.get('at_groups') or range(len(values))]
            else:
                parts = ['gradients', 'outputs'] if len(values) == 2 else ['']
            for part, (mean, _) in zip(parts, values, strict=False):
                if mean is not None and math.isfinite(mean):  # the published code logs NaN without a teacher
                    found.setdefault(loss.title, {}).setdefault(part, {})[record['epoch']] = mean
    return found


# --- names --------------------------------------------------------------------------------------------


def _name(kind: str, depth: Any, width: float, no_bn: Any = False, no_pool_relu: Any = False) -> str:
    if kind == 'NIN':
        return (f'NIN-{NINS.get(width, f"{width:g}")}' + (', no BN' if no_bn else '')
                + (', no ReLU before pooling' if no_pool_relu else ''))
    if kind == 'ResNet':
        return f'ResNet-{depth}' + (f' x {width:g}' if width != 1 else '')
    return f'{kind}-{depth}-{width:g}'


def _network(record: dict[str, Any]) -> str:
    model = record.get('model') or ('resnet' if 'teacher_params' in record else 'wrn')
    if ':' in model:
        return model
    kind = {'resnet': 'ResNet', 'nin': 'NIN'}.get(model, 'WRN')
    return _name(kind, record['depth'], record['width'], record.get('no_bn'), record.get('no_pool_relu'))


def _teacher(log: Path, record: dict[str, Any]) -> str:
    """The teacher's network, from the student's log or from the teacher's own; else the teacher's name."""
    teacher = record.get('teacher_id') or record.get('teacher_params')
    if not teacher:
        return ''
    if isinstance(fields := record.get('teacher'), dict):
        if ':' in fields['kind']:
            return fields['kind']
        return _name(fields['kind'], fields.get('depth'), fields['width'],
                     no_pool_relu=not fields.get('pool_relu', True))
    path = Path(teacher).parent if Path(teacher).name == checkpoint.MODEL else Path(teacher)
    places = [Path('logs') / path, path]
    if record.get('save'):  # where the teacher was, as seen from the student: both may have been moved
        places = [log.parent / os.path.relpath(place, record['save']) for place in places] + places
    own = next((place for place in places if (place / checkpoint.LOG).is_file()), None)
    return _network(checkpoint.read_log(own / checkpoint.LOG)[-1]) if own else path.name


# --- runs that belong together --------------------------------------------------------------------------


def group(runs: list[Run]) -> list[list[Run]]:
    """Groups of runs that differ only in their seed; small networks and few losses first."""
    datasets = sorted({run.dataset for run in runs})
    if len(datasets) > 1:
        raise InputError(f'the runs have several data sets, {", ".join(datasets)}: report each one alone')
    found: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=_order):
        found.setdefault(run[:6], []).append(run)
    return list(found.values())


def _order(run: Run) -> tuple:
    terms = [i for i, term in enumerate(TERMS) if term in run.method.split('+')]
    return (run.n_parameters, run.student, run.teacher != '', run.teacher, len(terms), terms,
            len(run.length), run.length, run.settings)


def differences(groups: list[list[Run]]) -> list[dict[str, str]]:
    """The settings to name for each group: unknown options, and those in which it differs from other groups.

    An option of a loss is compared with groups of the same student, teacher and method, an option of training
    with all groups of the same student.
    """
    first = [same[0] for same in groups]
    return [{name: value for name, value in run.settings
             if not settings.is_known(name) or any(
                 dict(other.settings).get(name) != value for other in first
                 if (other[:3] == run[:3] if name in settings.METHOD else other.student == run.student))}
            for run in first]


def named(method: str, more: dict[str, str]) -> str:
    """'AT, map_p 4': a method with the settings to name."""
    return ', '.join([method, *(f'{name} {value}' for name, value in more.items())])


def alone(run: Run, groups: list[list[Run]]) -> list[Run]:
    """The runs of a run's student without a teacher or another loss, trained with the same options."""
    def training(other: Run) -> list[tuple[str, str]]:
        return [(name, value) for name, value in other.settings if name not in settings.METHOD]

    if run.method == 'alone' and not run.teacher:
        return []
    return next((same for same in groups if same[0][:5] == (run.student, '', 'alone', run.dataset, run.length)
                 and training(same[0]) == training(run)), [])
