"""`python -m tools.report --budget logs/budget`: what a teacher is worth at several numbers of epochs.

    panels = budget.read(logs.read(['logs/budget']))
    print(budget.markdown(panels))
"""
import itertools
import math
from statistics import median
from typing import NamedTuple

from tools.report import logs, tables
from tools.report.logs import Run
from utils import InputError

SCALED = 'epoch_step'  # differs along a curve: steps of the learning rate move in proportion to the epochs


class Curve(NamedTuple):
    """A method at several numbers of epochs."""
    name: str
    runs: dict[int, list[Run]]  # by number of epochs, ascending
    alone: dict[int, list[Run]]  # of the student alone, trained with the same options

    def errors(self, epochs: int) -> list[float]:
        return [run.error for run in self.runs.get(epochs, [])]


class Panel(NamedTuple):
    """A student and its teacher."""
    title: str
    curves: list[Curve]

    def budgets(self) -> list[int]:
        return sorted({epochs for curve in self.curves for epochs in curve.runs})


def read(runs: list[Run]) -> list[Panel]:
    """A panel for each student and teacher: the student alone, then with each method.

    It has the finished runs of methods that were trained for several numbers of epochs.
    """
    finished = [run for run in runs if run.length.isdigit()]
    groups = logs.group([_scaled(run) for run in finished])
    by_epochs = {same[0][:6]: _by_epochs(same[0], finished) for same in groups}
    groups = [same for same in groups if len(by_epochs[same[0][:6]]) > 1]
    panels = []
    for student, teacher in dict.fromkeys(same[0][:2] for same in groups if same[0].teacher):
        own = [same for same in groups if same[0].student == student and same[0].teacher in ('', teacher)]
        curves = []
        for same, more in zip(own, logs.differences(own), strict=True):
            alone = logs.alone(same[0], groups)
            curves.append(Curve(logs.named(same[0].method, more), by_epochs[same[0][:6]],
                                by_epochs[alone[0][:6]] if alone else {}))
        panels.append(Panel(f'{student} from {teacher}, {own[0][0].dataset}', curves))
    if not any(curve.alone for panel in panels for curve in panel.curves):
        raise InputError('--budget needs a student that was trained alone and with a teacher, for several '
                         'numbers of epochs, with the same options')
    return panels


def _scaled(run: Run) -> Run:
    """A run without what differs along its curve."""
    return run._replace(length='', settings=tuple(pair for pair in run.settings if pair[0] != SCALED))


def _by_epochs(curve: Run, runs: list[Run]) -> dict[int, list[Run]]:
    """The runs of a curve by their epochs. InputError: runs of the same epochs have different schedules."""
    found: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: int(run.length)):
        if _scaled(run)[:6] == curve[:6]:
            found.setdefault(int(run.length), []).append(run)
    for epochs, same in found.items():
        if len({run.settings for run in same}) > 1:
            raise InputError(f'--budget: runs of {curve.student}, {curve.method}, for {epochs} epochs have '
                             f'different {SCALED}: report each separately')
    return found


def epochs_alone(error: float, alone: dict[int, float]) -> str:
    """After how many epochs the student alone has an error, from its errors at some numbers of epochs.

    Linear in the logarithm of the epochs between two of them; '> 60' and '< 5' outside.
    """
    points = sorted(alone.items())
    first, last = points[0], points[-1]
    if error >= first[1]:
        return f'< {first[0]}' if error > first[1] else f'{first[0]:.1f}'
    for (left, high), (right, low) in itertools.pairwise(points):
        if low <= error:
            part = (high - error) / (high - low)
            return f'{math.exp(math.log(left) + part * math.log(right / left)):.1f}'
    return f'> {last[0]}'


# --- text -----------------------------------------------------------------------------------------------


def markdown(panels: list[Panel]) -> str:
    """Two tables for each panel, and what they mean."""
    parts = []
    for panel in panels:
        parts += [f'**{panel.title}: error, %, by epochs of training**', _median_errors(panel),
                  f'**{panel.title}: epochs that the student alone needs for the same error**', _saved(panel)]
    return '\n\n'.join([*parts, _notes(panels)])


def _median_errors(panel: Panel) -> str:
    def cell(errors: list[float]) -> str:
        around = f' ({min(errors):.2f}-{max(errors):.2f})' if len(errors) > 1 else ''
        return f'{median(errors):.2f}{around}' if errors else ''

    return tables.grid(['method', *map(str, panel.budgets())], [
        [curve.name, *(cell(curve.errors(epochs)) for epochs in panel.budgets())] for curve in panel.curves])


def _saved(panel: Panel) -> str:
    rows = []
    for curve in (curve for curve in panel.curves if curve.alone):
        alone = {epochs: median(run.error for run in runs) for epochs, runs in curve.alone.items()}
        rows.append([curve.name, *(epochs_alone(median(curve.errors(epochs)), alone) if curve.errors(epochs)
                                   else '' for epochs in panel.budgets())])
    return tables.grid(['method', *map(str, panel.budgets())], rows)


def _notes(panels: list[Panel]) -> str:
    cells = [runs for panel in panels for curve in panel.curves for runs in curve.runs.values()]
    seeds = sorted({len({run.seed for run in runs}) for runs in cells})
    count = ' to '.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    used = {id(run): run for runs in cells for run in runs}
    return (f'{tables.what(panels[0].title)} in the last epoch: median (range) over {count} '
            f'seed{"s" * (seeds[-1] > 1)}. Only finished runs count.\n'
            'Epochs of the student alone: where its medians, joined by lines over the logarithm of the '
            'epochs, reach the same error.\n">": its longest run does not reach it; "<": its shortest run is '
            f'better.\nAll runs above trained for {tables.trained(used.values())}')
