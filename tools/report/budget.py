"""`python -m tools.report --budget logs/budget`: what a teacher is worth at several numbers of epochs.

    panels = budget.read(logs.read(['logs/budget']))
    print(budget.markdown(panels))
"""
import math
from statistics import median
from typing import NamedTuple

from tools.report import logs, tables
from tools.report.logs import Run
from utils import InputError

# Drops of the learning rate come in proportion to the epochs, so they do not tell curves apart.
SCALED = 'epoch_step'


class Curve(NamedTuple):
    """A method at several numbers of epochs."""
    name: str
    runs: dict[int, list[Run]]  # by epochs, ascending
    alone: dict[int, list[Run]]  # those of the student alone, trained with the same options

    def errors(self, epochs: int) -> list[float]:
        return _errors(self.runs.get(epochs, []))


class Panel(NamedTuple):
    """A student and its teacher."""
    title: str
    curves: list[Curve]
    n_unfinished: int

    def budgets(self) -> list[int]:
        return sorted({epochs for curve in self.curves for epochs in curve.runs})


def read(runs: list[Run]) -> list[Panel]:
    """A panel for each student and teacher: the student alone, then with each method."""
    finished = [run for run in runs if run.length.isdigit()]
    groups = logs.group([_scaled(run) for run in finished])
    by_epochs = {id(same): _by_epochs(same, finished) for same in groups}
    panels = []
    for student, teacher in dict.fromkeys(same[0][:2] for same in groups if same[0].teacher):
        own = [same for same in groups if same[0].student == student and same[0].teacher in ('', teacher)]
        curves = [Curve(', '.join([same[0].method, *(f'{name} {value}' for name, value in more.items())]),
                        by_epochs[id(same)], by_epochs.get(id(logs.alone(same[0], groups)), {}))
                  for same, more in zip(own, logs.differences(own), strict=True)]
        n_unfinished = sum(run.student == student and run.teacher in ('', teacher)
                           and not run.length.isdigit() for run in runs)
        panels.append(Panel(f'{student} from {teacher}, {own[0][0].dataset}', curves, n_unfinished))
    if not any(curve.alone for panel in panels for curve in panel.curves):
        raise InputError('--budget needs a student that was trained alone and with a teacher, with the same '
                         'options')
    return panels


def _scaled(run: Run) -> Run:
    """A run without what differs along its curve."""
    return run._replace(length='', settings=tuple(pair for pair in run.settings if pair[0] != SCALED))


def _by_epochs(curve: list[Run], runs: list[Run]) -> dict[int, list[Run]]:
    """The runs of a curve by their epochs. InputError: runs of the same epochs have different schedules."""
    own = [run for run in runs if _scaled(run)[:6] == curve[0][:6]]
    found: dict[int, list[Run]] = {}
    for run in sorted(own, key=lambda run: int(run.length)):
        found.setdefault(int(run.length), []).append(run)
    for epochs, same in found.items():
        if len({run.settings for run in same}) > 1:
            raise InputError(f'--budget: runs of {same[0].student}, {same[0].method}, for {epochs} epochs '
                             f'have different {SCALED}: report each alone')
    return found


def _errors(runs: list[Run]) -> list[float]:
    return [list(run.errors.values())[-1] for run in runs]


def epochs_alone(error: float, alone: dict[int, float]) -> str:
    """After how many epochs the student alone has an error, by its errors at some numbers of epochs.

    Linear in the logarithm of the epochs between two of them; '> 60' and '< 5' outside.
    """
    points = sorted(alone.items())
    first, last = points[0], points[-1]
    if error >= first[1]:
        return f'< {first[0]}' if error > first[1] else f'{first[0]:.1f}'
    for (left, high), (right, low) in zip(points, points[1:], strict=False):
        if low <= error:
            part = (high - error) / (high - low)
            return f'{math.exp(math.log(left) + part * math.log(right / left)):.1f}'
    return f'> {last[0]}'


# --- text -----------------------------------------------------------------------------------------------


def markdown(panels: list[Panel]) -> str:
    """Two tables for each panel, and what they say."""
    parts = []
    for panel in panels:
        parts += [f'**{panel.title}: error, %, by epochs of training**', _median_errors(panel),
                  f'**{panel.title}: epochs that the student alone needs for the same error**', _saved(panel)]
    return '\n\n'.join([*parts, _notes(panels)])


def _median_errors(panel: Panel) -> str:
    def cell(errors: list[float]) -> str:
        around = tables.spread(errors)
        return (f'{median(errors):.2f}' + (f' ({around})' if around else '')) if errors else ''

    return tables.grid(['method', *map(str, panel.budgets())], [
        [curve.name, *(cell(curve.errors(epochs)) for epochs in panel.budgets())] for curve in panel.curves])


def _saved(panel: Panel) -> str:
    rows = []
    for curve in (curve for curve in panel.curves if curve.alone):
        alone = {epochs: median(_errors(runs)) for epochs, runs in curve.alone.items()}
        rows.append([curve.name, *(epochs_alone(median(curve.errors(epochs)), alone) if curve.errors(epochs)
                                   else '' for epochs in panel.budgets())])
    return tables.grid(['method', *map(str, panel.budgets())], rows)


def _notes(panels: list[Panel]) -> str:
    cells = [runs for panel in panels for curve in panel.curves for runs in curve.runs.values()]
    seeds = sorted({len({run.seed for run in runs}) for runs in cells})
    count = ' to '.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    notes = [f'{tables.what(cells[0][0].dataset)} in the last epoch: median (range) over {count} '
             f'seed{"s" * (seeds[-1] > 1)}.',
             'Epochs of the student alone: where its medians, joined by lines over the logarithm of the '
             'epochs, reach the same error.\n">": its longest run does not reach it; "<": its shortest run '
             'is better.']
    if n := sum(panel.n_unfinished for panel in panels):
        notes.append(f'{n} unfinished run{"s" * (n > 1)} left out.')
    used = {id(run): run for runs in cells for run in runs}
    return '\n'.join([*notes, f'All runs above trained for {tables.trained(used.values())}'])
