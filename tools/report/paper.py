"""The figures of the paper, to show next to ours: test errors in %, of Tables 1 to 5.

    figure = paper.find(run)
"""
from typing import NamedTuple

from tools.report.logs import HELD_OUT, Run
from utils import InputError


class Figure(NamedTuple):
    """An error in the paper, and what a run must have in common with it. The number of epochs may differ."""
    table: int
    label: str  # of its row
    student: str
    teachers: tuple[str, ...]  # any of them
    method: str
    error: float | None  # None for a data set that is not in the paper
    top5: float | None
    dataset: str
    settings: dict[str, str]
    elsewhere: float | None = None  # the error in an independent reproduction


# How the paper obtained the figures of a table.
HOW = {1: '200 epochs, median of 5 seeds', 2: '200 epochs, median of 5 seeds', 3: 'one seed',
       4: 'fine-tuned', 5: '100 epochs, one crop'}

# trailmet-distillation: the steps of the paper, but Nesterov momentum and 45,000 training images.
ELSEWHERE = {('WRN-16-1', '', 'alone'): 8.85, ('WRN-16-1', 'WRN-16-2', 'AT'): 7.96,
             ('WRN-16-2', '', 'alone'): 5.99}

AT_KD = {'map': 'sum', 'map_p': '2', 'at_norm': 'code', 'kd_logits': 'raw'}
CIFAR = AT_KD | {'at_groups': 'all', 'augment': 'crop_flip'}
PLAIN = CIFAR | {'augment': 'flip', 'weight_decay': '0'}
IMAGENET = AT_KD | {'at_groups': '[2,3]'}

Parts = dict[tuple[str, str], list[Figure]]  # of a table, by title and data set

PAIRS = {  # Table 1: the student alone, with each method, the teacher
    ('NIN-thin', 'NIN-wide'): (9.38, 8.93, 9.05, 8.55, 8.33, 7.28),
    ('WRN-16-1', 'WRN-16-2'): (8.77, 7.93, 8.51, 7.41, 7.51, 6.31),
    ('WRN-16-1', 'WRN-40-1'): (8.77, 8.25, 8.62, 8.39, 8.01, 6.58),
    ('WRN-16-2', 'WRN-40-2'): (6.31, 5.85, 6.24, 6.08, 5.71, 5.23)}
GROUPS = {'first': ('[0]', 8.11), 'second': ('[1]', 7.96), 'third': ('[2]', 7.97)}  # Section 4.1
MAPPINGS = {'F_sum': ('sum', '1', 7.99), 'F_sum^2': ('sum', '2', 7.93), 'F_sum^4': ('sum', '4', 8.09),
            'F_max^1': ('max', '1', 8.08)}  # Table 2
NINS = {'min-l2': 12.5, 'gradient AT': 12.1, 'KD': 12.1, 'symmetry': 11.8, 'AT': 11.2}  # Table 3
FINETUNED = {'cub': (28.5, 27.0, 27.0, 26.5), 'scenes': (28.2, 28.1, 27.1, 26.0)}  # Table 4: R18, KD, AT, R34


def _figure(table: int, student: str, teacher: str, method: str, error: float, settings: dict[str, str],
            dataset: str = 'CIFAR10', label: str = '', top5: float | None = None) -> Figure:
    return Figure(table, label or method, student, (teacher,), method, error, top5, dataset, settings)


def _tables() -> dict[int, Parts]:
    tables: dict[int, Parts] = {number: {} for number in HOW}
    for (student, teacher), (alone, at, hint, kd, both, best) in PAIRS.items():
        methods = {'AT': at, 'F-ActT': hint, 'KD': kd, 'AT+KD': both}
        tables[1][f'{student} from {teacher}', 'CIFAR10'] = [
            figure._replace(elsewhere=ELSEWHERE.get((figure.student, *figure.teachers, figure.method)))
            for figure in (
                _figure(1, student, '', 'alone', alone, CIFAR),
                *(_figure(1, student, teacher, method, error, CIFAR) for method, error in methods.items()),
                _figure(1, teacher, '', 'alone', best, CIFAR))]
    pair = 'WRN-16-1', 'WRN-16-2'
    tables[2]['WRN-16-1 from WRN-16-2', 'CIFAR10'] = [_figure(2, 'WRN-16-1', '', 'alone', 8.77, CIFAR)] + [
        _figure(2, *pair, 'AT', error, CIFAR | {'map': name, 'map_p': p}, label=f'AT, {mapping}')
        for mapping, (name, p, error) in MAPPINGS.items()]
    tables[2]['WRN-16-1 from WRN-16-2, one loss only', 'CIFAR10'] = [
        _figure(2, *pair, 'AT', error, CIFAR | {'at_groups': groups}, label=f'AT, {name} group')
        for name, (groups, error) in GROUPS.items()]
    thin = 'NIN-thin, no BN, no ReLU before pooling'
    wide = 'NIN-wide', 'NIN-wide, no ReLU before pooling'
    tables[3][f'{thin}, horizontal flips only', 'CIFAR10'] = [_figure(3, thin, '', 'alone', 13.5, PLAIN)] + [
        _figure(3, thin, '', method, error, PLAIN)._replace(
            teachers=('',) if method in ('min-l2', 'symmetry') else wide)
        for method, error in NINS.items()]
    small, large = 'ResNet-18', 'ResNet-34'
    for dataset, (alone, kd, at, best) in FINETUNED.items():
        tables[4]['ResNet-18 from ResNet-34', dataset] = [
            _figure(4, small, '', 'alone', alone, {}, dataset),
            _figure(4, small, large, 'KD', kd, {}, dataset),
            _figure(4, small, large, 'AT', at, IMAGENET, dataset),
            _figure(4, large, '', 'alone', best, {}, dataset)]
    trained = {'finetune': ''}
    tables[5]['ResNet-18 from ResNet-34', 'imagenet'] = [
        _figure(5, small, '', 'alone', 30.4, trained, 'imagenet', top5=10.8),
        _figure(5, small, large, 'AT', 29.3, trained | IMAGENET, 'imagenet', top5=10.0),
        _figure(5, large, '', 'alone', 26.1, trained, 'imagenet', top5=8.3)]
    return tables


TABLES = _tables()


def fits(figure: Figure, run: Run) -> bool:
    """Whether student, teacher, method, mapping and data agree."""
    return (run.student == figure.student and run.teacher in figure.teachers and run.method == figure.method
            and run.dataset == figure.dataset and figure.settings.items() <= dict(run.settings).items())


def parts(number: int, datasets: set[str]) -> Parts:
    """The rows of a table for runs of these data sets, without figures for data sets that it does not have.

    Runs on the first images of a data set keep the figures, as runs of few epochs do: the title says so.
    Errors on held-out training images have none.
    """
    table = TABLES[number]
    known = {dataset for _, dataset in table}
    if datasets <= known:
        return table
    if len(datasets) > 1:
        raise InputError(f'Table {number} has {" and ".join(sorted(known))}, the runs have '
                         f'{", ".join(sorted(datasets))}: report the others separately')
    dataset, = datasets
    own = {'dataset': dataset}
    if dataset.partition(' (first ')[0] not in known or HELD_OUT in dataset:
        own |= {'error': None, 'top5': None, 'elsewhere': None}
    return {(title, dataset): [figure._replace(**own) for figure in figures]
            for (title, _), figures in table.items()}


def find(run: Run) -> Figure | None:
    """The figure to show next to a run's, if the paper has one."""
    figures = (figure for table in TABLES.values() for part in table.values() for figure in part)
    return next((figure for figure in figures if fits(figure, run)), None)
