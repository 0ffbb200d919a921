"""Curves of runs: for each group of runs the median over its seeds, in a band from minimum to maximum.

    curves.errors(logs.read(['logs/demo']), x='seconds').savefig('curves.svg')
"""
from collections.abc import Callable
from statistics import mean, median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tools.report import logs
from tools.report.budget import Panel
from tools.report.compare import Comparison
from tools.report.logs import Run
from utils import InputError

AXES = ('epoch', 'seconds')
UNITS = {'s': 1, 'min': 60, 'h': 3600}
# Okabe and Ito's colours, which colour-blind readers can distinguish; without yellow, too light for a line.
COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLES = ('-', '--', '-.', ':')  # the next one each time the colours are used up
STYLE = rc_context({'font.size': 11})


@STYLE
def errors(runs: list[Run], title: str = '', x: str = 'epoch') -> Figure:
    """Test error over epochs or seconds of training (median over seeds), with a panel for each data set.

    The error axis ends at four times the largest last error, which cuts off the first epochs.
    """
    datasets = sorted({run.dataset for run in runs})
    figure = Figure(figsize=(7.2 * len(datasets), 4.5), layout='constrained')
    for i, dataset in enumerate(datasets):
        heading = ', '.join(filter(None, (title, dataset if len(datasets) > 1 else ''))) or dataset
        axes = figure.add_subplot(1, len(datasets), 1 + i, title=heading, ylabel=_axis(dataset))
        _errors(axes, [run for run in runs if run.dataset == dataset], x)
    return figure


def _errors(axes: Axes, runs: list[Run], x: str) -> None:
    groups = logs.group(runs)
    unit, scale = 'epoch', 0
    if x == 'seconds':
        longest = max(median(sum(run.times.values()) for run in same) for same in groups)
        unit, scale = next(((u, s) for u, s in UNITS.items() if longest < 120 * s), ('h', 3600))
    axes.set_xlabel(f'time of training, {unit}' if scale else unit)
    for i, (same, label) in enumerate(zip(groups, labels(groups), strict=True)):
        def time(epoch: int, same: list[Run] = same) -> float:
            return median(sum(seconds for e, seconds in run.times.items() if e <= epoch)
                          for run in same if epoch in run.errors) / scale

        _line(axes, i, label, [run.errors for run in same], time if scale else int)
    axes.set_ylim(0, min(axes.get_ylim()[1], 4 * max(run.error for run in runs)) or None)
    axes.set_xlim(left=0 if scale else None)
    _dress(axes, whole=not scale)
    if len(groups) <= len(COLOURS):
        axes.legend(frameon=False)
    else:  # next to the lines, which it would hide
        axes.figure.set_figwidth(axes.figure.get_figwidth() + 3.8)
        axes.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))


@STYLE
def losses(runs: list[Run], title: str = '') -> Figure:
    """The loss of each term and group over epochs, before its weight."""
    groups = [same for same in logs.group(runs) if any(run.losses for run in same)]
    if not groups:
        raise InputError('no run has a loss to draw besides the classification loss: name runs with --beta '
                         'or another loss')
    terms = {term: sorted({part for same in groups for run in same for part in run.losses.get(term, {})})
             for term in logs.TERMS}
    terms = {term: parts for term, parts in terms.items() if parts}
    columns = max(map(len, terms.values()))
    height = 0.7 + 2.8 * len(terms) + 0.15 * len(groups)
    figure = Figure(figsize=(max(7.2, 3.4 * columns), height), layout='constrained')
    figure.suptitle(title or runs[0].dataset)
    drawn = {}
    for row, (term, parts) in enumerate(terms.items()):
        axes = None
        for column, part in enumerate(parts):
            axes = figure.add_subplot(len(terms), columns, 1 + row * columns + column, sharey=axes,
                                      title=', '.join(filter(None, (term, part))), xlabel='epoch')
            axes.set(yscale='log', ylabel='' if column else 'loss, before its weight')
            for i, (same, label) in enumerate(zip(groups, labels(groups), strict=True)):
                if known := [run.losses[term][part] for run in same if part in run.losses.get(term, {})]:
                    drawn[label] = _line(axes, i, label, known)
            _dress(axes, whole=True)
    figure.legend(drawn.values(), drawn.keys(), frameon=False, loc='outside lower center', ncols=2)
    return figure


@STYLE
def budgets(panels: list[Panel], title: str = '') -> Figure:
    """Test error in the last epoch over the number of epochs, on a logarithmic axis, for each method."""
    figure = Figure(figsize=(7.2 * len(panels), 4.5), layout='constrained')
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), 1 + i, title=title or panel.title, xscale='log',
                                  xlabel='epochs of training', ylabel=_axis(panel.title))
        for j, curve in enumerate(panel.curves):
            _line(axes, j, curve.name, [{epochs: error} for epochs in curve.runs
                                        for error in curve.errors(epochs)])
        axes.set_xticks(panel.budgets(), [str(epochs) for epochs in panel.budgets()])
        axes.minorticks_off()
        _dress(axes, whole=False)
        axes.legend(frameon=False)
    return figure


@STYLE
def comparison(found: Comparison, title: str = '') -> Figure:
    """The differences of losses to the student alone with their confidence intervals, the best one on top."""
    differences = {entry.name: found.differences(entry, 'alone') for entry in found.entries}
    differences = {name: values for name, values in differences.items() if values}
    figure = Figure(figsize=(7.2, 1.2 + 0.3 * len(differences)), layout='constrained')
    figure.suptitle(title or found.title, fontsize='medium')  # in the middle of the figure: names are long
    axes = figure.add_subplot(xlabel='difference to the student alone, points of error (95 % intervals)')
    axes.errorbar([mean(values) for values in differences.values()], list(differences),
                  xerr=[found.margin(values) or 0 for values in differences.values()], fmt='o', capsize=3)
    axes.axvline(0, color='0.5', linewidth=1)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    _dress(axes, whole=False)
    return figure


def labels(groups: list[list[Run]]) -> list[str]:
    """A name for each line: what differs among the lines, their length only if nothing else does."""
    names = [(run.student, run.teacher and f'from {run.teacher}', run.method, logs.named('', more)[2:],
              f'{run.length} epochs')
             for (run, *_), more in zip(groups, logs.differences(groups), strict=True)]
    differs = [len(set(column) - {''}) > 1 for column in zip(*names, strict=True)]
    differs[-1] &= len({name[:-1] for name in names}) < len(names)
    return [', '.join(part for part, shown in zip(name, differs, strict=True) if shown and part) or name[0]
            for name in names]


def _axis(dataset: str) -> str:
    return 'test error, %' if logs.HELD_OUT not in dataset else f'error on {logs.HELD_OUT}, %'


def _line(axes: Axes, i: int, label: str, series: list[dict[int, float]],
          x: Callable[[int], float] = int) -> Line2D:
    epochs = sorted({epoch for values in series for epoch in values})
    values = [[known[epoch] for known in series if epoch in known] for epoch in epochs]
    places = [x(epoch) for epoch in epochs]
    colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
    line, = axes.plot(places, [median(v) for v in values], style, color=colour, label=label, linewidth=1.8,
                      marker='o' if len(epochs) <= 30 else '', markersize=4)
    axes.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15,
                      linewidth=0)
    return line


def _dress(axes: Axes, whole: bool) -> None:
    if whole:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color='0.9')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
