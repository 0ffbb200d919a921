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

import method
from tools.report import settings
from training import checkpoint
from utils import InputError, one_line

# Titles of losses and the options that weigh them, in the order in which methods name them.
TERMS = {loss.title: loss.option for loss in method.LOSSES}
NEEDED = {'dataset': str, 'depth': int, 'width': int | float, 'epochs': int, 'n_parameters': int,
          'test_acc': int | float, 'train_time': int | float}
NINS = {96: 'thin', 192: 'wide'}
IMAGENET = re.compile(r'(?:torchvision:resnet|resnet-)(18|34)(?:-export\.\w+)?')  # teachers without a log
HELD_OUT = 'held-out training images'


class Run(NamedTuple):
    """What a log says about a run. Runs whose first six fields are equal differ only in their seed."""
    student: str
    teacher: str  # its network, its name where that is not known, '' without a teacher
    method: str
    dataset: str  # of its first images only, another one
    length: str  # in epochs
    settings: tuple[tuple[str, str], ...]  # all other options that change training
    seed: int | None
    n_parameters: int
    errors: dict[int, float]  # test error in % by epoch, ascending
    top5: dict[int, float]
    times: dict[int, float]  # of training, in seconds, without the tests
    losses: dict[str, dict[str, dict[int, float]]]  # term -> group -> epoch -> mean, before its weight
    agreement: float | None  # % of test images with the same class by student and teacher, last epoch
    cosines: list[float]  # of attention maps of student and teacher, for each group, last epoch
    machine: str


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
    records = [settings.modern(record) for record in checkpoint.read_log(log)]
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
        settings=settings.of(last), seed=last.get('seed'), n_parameters=last['n_parameters'],
        errors={epoch: 100 - record['test_acc'] for epoch, record in known.items()},
        top5={epoch: 100 - record['test_acc5'] for epoch, record in known.items()
              if _is(record.get('test_acc5'), int | float)},
        times={record['epoch']: record['train_time'] for record in records}, losses=_losses(records),
        agreement=_number(last.get('test_agreement')), cosines=_cosines(last.get('test_map_cosines')),
        machine=one_line(str(last.get('device_name') or '')))


def _options(record: dict[str, Any]) -> tuple:
    return (record['epochs'], record.get('seed'), record.get('teacher_id'), record.get('teacher_params'),
            settings.of(record))


def _dataset(record: dict[str, Any]) -> str:
    n, held_out = record.get('max_images'), record.get('val_images')
    return (record['dataset'] + (f' (first {n} images)' if n else '')
            + (f' ({held_out} {HELD_OUT})' if held_out else ''))


def _number(value: Any) -> float | None:
    return value if _is(value, int | float) and math.isfinite(value) else None


def _cosines(values: Any) -> list[float]:
    """One for each group, or none."""
    found = [_number(value) for value in values] if isinstance(values, list) else []
    return [] if None in found else found


def _losses(records: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        for loss in method.LOSSES:
            values, groups = ([] if not isinstance(v, list) else v
                              for v in (record.get(f'{loss.name}_losses'), record.get('at_groups')))
            if loss.groups:
                parts = [f'group {g}' for g in groups or range(len(values))]
            else:
                parts = ['gradients', 'outputs'] if len(values) == 2 else ['']
            for part, value in zip(parts, values, strict=False):
                mean = value[0] if isinstance(value, list) and value else None
                if _is(mean, int | float) and math.isfinite(mean):  # without a teacher it is NaN
                    found.setdefault(loss.title, {}).setdefault(part, {})[record['epoch']] = mean
    return found


# --- names --------------------------------------------------------------------------------------------


def _name(kind: str, depth: Any, width: float, no_bn: Any, no_pool_relu: Any) -> str:
    if kind == 'NIN':
        return (f'NIN-{NINS.get(width, f"{width:g}")}' + (', no BN' if no_bn else '')
                + (', no ReLU before pooling' if no_pool_relu else ''))
    if kind == 'ResNet':
        return f'ResNet-{depth}' + (f' x {width:g}' if width != 1 else '')
    return f'{kind}-{depth}-{width:g}'


def _network(record: dict[str, Any]) -> str:
    model = 'resnet' if 'teacher_params' in record else record.get('model')
    kind = {'resnet': 'ResNet', 'nin': 'NIN'}.get(model, 'WRN')
    return _name(kind, record['depth'], record['width'], record.get('no_bn'), record.get('no_pool_relu'))


def _teacher(log: Path, record: dict[str, Any]) -> str:
    """The teacher's network as the student's log describes it, or by the teacher's own log; else its name.

    The own log also says whether a NIN has BN, which the student's log cannot: its teacher is folded.
    """
    teacher = str(record.get('teacher_id') or record.get('teacher_params') or '')
    if not teacher:
        return ''
    if known := IMAGENET.fullmatch(Path(teacher).name):
        return f'ResNet-{known[1]}'
    path = Path(teacher).parent if Path(teacher).name == checkpoint.MODEL else Path(teacher)
    own, described = _by_own_log(log, path, str(record.get('save') or '')), _described(record.get('teacher'))
    if own and (not described or set(described.split(', ')) <= set(own.split(', '))):
        return own
    return described or path.name


def _described(fields: Any) -> str:
    """The name of {'kind': 'WRN', 'depth': 16, 'width': 2}."""
    if not isinstance(fields, dict) or fields.get('kind') not in ('WRN', 'NIN', 'ResNet') or not (
            _is(fields.get('width'), int | float)):
        return ''
    return _name(fields['kind'], fields.get('depth'), fields['width'], no_bn=False,
                 no_pool_relu=fields.get('pool_relu') is False)


def _by_own_log(log: Path, path: Path, saved: str) -> str:
    """The network of the run in a folder. The first place to look is where it was, seen from the student."""
    places = [Path('logs') / path, path]
    moved = [log.parent / os.path.relpath(place, saved) for place in places if saved]
    for place in [*moved, *places]:
        found = place / checkpoint.LOG
        with contextlib.suppress(OSError, ValueError):  # no name of a file
            if found.is_file():
                for other in reversed(checkpoint.read_log(found)):
                    if all(_is(other.get(name), NEEDED[name]) for name in ('depth', 'width')):
                        return _network(other)
    return ''


# --- runs that belong together --------------------------------------------------------------------------


def group(runs: list[Run]) -> list[list[Run]]:
    """Groups of runs that differ only in their seed; small networks and few losses first."""
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


def alone(run: Run, groups: list[list[Run]]) -> list[Run]:
    """The runs of a run's student without a teacher or another loss, trained with the same options."""
    def training(other: Run) -> list[tuple[str, str]]:
        return [(name, value) for name, value in other.settings if name not in settings.METHOD]

    if run.method == 'alone' and not run.teacher:
        return []
    return next((same for same in groups if same[0][:5] == (run.student, '', 'alone', run.dataset, run.length)
                 and training(same[0]) == training(run)), [])
