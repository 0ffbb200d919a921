"""`python -m tools.report --compare logs/compare`: losses compared with equal effort.

Runs on held-out training images choose the weight of each loss. Runs with the chosen weight on the test set
give its error, and differences to the student alone and to KD with the same seeds.
"""
import math
from statistics import mean
from typing import NamedTuple

import numpy as np

from tools.report import logs, settings, tables
from tools.report.logs import Run
from utils import InputError

REFERENCES = ('alone', 'KD')
CONFIDENCE = 0.95


class Entry(NamedTuple):
    """A loss."""
    name: str
    tried: dict[str, float]  # weights, ascending: error in % on held-out images, mean over seeds
    weight: str  # of the runs below
    runs: list[Run]  # on the test set; empty if there are none yet


class Comparison(NamedTuple):
    title: str
    entries: list[Entry]  # the student alone first, then by error; losses without runs last

    def differences(self, entry: Entry, reference: str) -> list[float]:
        """Error minus that of 'alone' or 'KD', for each seed that both have; each pair counts once."""
        other = next((other.runs for other in self.entries if other.name == reference), [])
        return [] if entry.name in (reference, 'alone') else tables.paired(entry.runs, other)

    @property
    def n_differences(self) -> int:
        return sum(bool(self.differences(entry, reference)) for entry in self.entries
                   for reference in REFERENCES)

    def margin(self, values: list[float]) -> float | None:
        """Half of the confidence interval around the mean of some differences; None for fewer than two.

        All differences of the comparison are inside their intervals together with CONFIDENCE (Bonferroni).
        """
        if len(values) < 2:
            return None
        p = 1 - (1 - CONFIDENCE) / (2 * self.n_differences)
        return quantile(p, len(values) - 1) * tables.standard_error(values)


def read(runs: list[Run]) -> Comparison:
    """The comparison of one student and teacher. InputError: several of them, or different training."""
    runs = [run for run in runs if run.length.isdigit() and (run.teacher or run.method == 'alone')]
    taught = [run for run in runs if run.teacher]
    runs = [run for run in runs if run.student in {other.student for other in taught}]
    test = [run for run in runs if logs.HELD_OUT not in run.dataset]
    _check(runs, test)
    if not any(run.method == 'alone' for run in test) or not taught:
        raise InputError('--compare needs finished runs of a student alone and with a teacher')
    tried: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        weights = tried.setdefault(name(run), {})
        if run not in test:
            weights.setdefault(weight(run), []).append(run.error)
    entries = [_entry(loss, weights, [run for run in test if name(run) == loss])
               for loss, weights in tried.items()]
    first = taught[0]
    return Comparison(f'{first.student} from {first.teacher}, {test[0].dataset}, {first.length} epochs',
                      sorted(entries, key=_order))


def _check(runs: list[Run], compared: list[Run]) -> None:
    """InputError unless runs differ only in their losses and seeds, and `compared` have one data set."""
    for what, values in (('students', {run.student for run in runs}),
                         ('teachers', {run.teacher for run in runs if run.teacher}),
                         ('data sets', {run.dataset for run in compared}),
                         ('lengths', {run.length for run in runs}),
                         ('ways of training', {_training(run) for run in runs})):
        if len(values) > 1:
            raise InputError('losses are compared by runs that differ only in their losses and seeds; these '
                             f'have {len(values)} {what}: give each comparison its own folder')


def _entry(loss: str, tried: dict[str, list[float]], runs: list[Run]) -> Entry:
    used = {weight(run) for run in runs}
    if len(used) > 1:
        raise InputError(f'--compare: the runs of {loss} on the test set have several weights, '
                         f'{", ".join(sorted(used))}')
    held_out = {w: mean(errors) for w, errors in sorted(tried.items(), key=lambda item: _number(item[0]))}
    return Entry(loss, held_out, ''.join(used), runs)


def _order(entry: Entry) -> tuple:
    return entry.name != 'alone', not entry.runs, mean([run.error for run in entry.runs] or [0]), entry.name


def _training(run: Run) -> tuple:
    return tuple((option, value) for option, value in run.settings if option not in settings.METHOD)


def _number(text: str) -> list[float]:
    return [float(part) for part in text.split(', ') if part]


def own_options(run: Run) -> dict[str, str]:
    """The options of losses in which a run differs from the defaults."""
    default = {option: settings.text(value) for option, value in settings.defaults({}).items()}
    return {option: value for option, value in run.settings
            if option in settings.METHOD and value != default.get(option)}


def name(run: Run) -> str:
    """The method, and settings of its losses other than their weights: 'AT+KD, beta_decay linear'."""
    return ', '.join([run.method, *(f'{option} {value}' for option, value in own_options(run).items()
                                    if option not in logs.TERMS.values())])


def weight(run: Run) -> str:
    """The weights of the losses: '1000', or '1000, 0.9' of AT+KD."""
    own = dict(run.settings)
    return ', '.join(own[option] for term, option in logs.TERMS.items() if term in run.method.split('+'))


def chosen(runs: list[Run]) -> list[str]:
    """For each loss, its options with the lowest error on held-out images, as a command line has them."""
    found: dict[str, dict[str, list[Run]]] = {}
    runs = [run for run in runs if run.teacher and run.length.isdigit() and logs.HELD_OUT in run.dataset]
    _check(runs, runs)
    for run in runs:
        found.setdefault(name(run), {}).setdefault(weight(run), []).append(run)
    if not found:
        raise InputError('--choose needs finished runs of students with a teacher and --val_images')
    best = [min(by_weight.values(), key=lambda same: mean(run.error for run in same))[0]
            for by_weight in found.values()]
    return [' '.join(f'--{option} {value}' for option, value in own_options(run).items()) for run in best]


def quantile(p: float, freedom: int) -> float:
    """The value below which Student's t with some degrees of freedom is with probability p, from 0.5.

    With t = sqrt(freedom) tan(a), the density in a is proportional to cos(a)^(freedom - 1), on (-pi/2, pi/2).
    """
    a = np.linspace(0, math.pi / 2, 1_000_001)
    density = np.cos(a) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(2 * p - 1, below / below[-1], a))


# --- text -----------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """A row for each loss, and what the columns mean."""
    rows = [_row(comparison, entry) for entry in comparison.entries]
    columns = ['loss', 'tried on held-out images: weight (error, %)', 'weight', 'seeds', 'error, %: mean',
               'range', *(f'against {reference}' for reference in REFERENCES)]
    used = [run for entry in comparison.entries for run in entry.runs]
    notes = [f'{tables.what(used[0].dataset)} in the last epoch. The weight of each loss is the one with the '
             'lowest error on held-out\ntraining images.',
             'Against: mean difference to the run of the same seed, with its standard error. "Not '
             f'distinguishable": its {CONFIDENCE:.0%}',
             "confidence interval contains 0 (Student's t). The intervals hold for the "
             f'{comparison.n_differences} differences of the table',
             f'together (Bonferroni). All runs on the test set trained for {tables.trained(used)}']
    return '\n\n'.join([f'**{comparison.title}**', tables.grid(columns, rows), '\n'.join(notes)])


def _row(comparison: Comparison, entry: Entry) -> list[str]:
    errors = [run.error for run in entry.runs]
    tried = ', '.join(f'{w or "-"} ({error:.2f})' for w, error in entry.tried.items())
    return [entry.name, tried, entry.weight, str(len(errors)), f'{mean(errors):.2f}' if errors else 'missing',
            f'{min(errors):.2f}-{max(errors):.2f}' if len(errors) > 1 else '',
            *(_against(comparison, comparison.differences(entry, reference)) for reference in REFERENCES)]


def _against(comparison: Comparison, values: list[float]) -> str:
    margin = comparison.margin(values)
    unclear = margin is not None and abs(mean(values)) <= margin
    error = tables.standard_error(values) if len(values) > 1 else None
    text = tables.difference(mean(values) if values else None, error, len(values))
    return text + ', not distinguishable' * unclear
