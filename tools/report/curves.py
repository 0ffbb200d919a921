"""Curves of runs: a line for each group of runs, the median over its seeds, in a band from least to largest.

    Path('curves.svg').write_bytes(curves.errors(logs.read(['logs/demo']), 'svg', x='seconds'))
"""
import io
from collections.abc import Callable
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tools.report import logs
from tools.report.budget import Panel
from tools.report.logs import Run
from utils import InputError

FORMATS = ('.png', '.svg')
AXES = ('epoch', 'seconds')
UNITS = {'s': 1, 'min': 60, 'h': 3600}
# Okabe and Ito's colours, which colour-blind eyes tell apart, without the yellow, too light for a line.
COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLES = ('-', '--', '-.', ':')  # the next one each time the colours are used up
STYLE = {'font.size': 11, 'svg.hashsalt': 'the same names every time'}


def errors(runs: list[Run], kind: str, title: str = '', x: str = 'epoch') -> bytes:
    """Test error against the epoch, or seconds of training (median over seeds); the file, 'png' or 'svg'.

    A panel for each data set. What lies above four times the largest last error, in first epochs, is cut off.
    """
    datasets = sorted({run.dataset for run in runs})
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2 * len(datasets), 4.5), layout='constrained')
        for i, dataset in enumerate(datasets):
            heading = ', '.join(filter(None, (title, dataset if len(datasets) > 1 else ''))) or dataset
            axes = figure.add_subplot(1, len(datasets), 1 + i, title=heading, ylabel=_axis(dataset))
            _errors(axes, [run for run in runs if run.dataset == dataset], x)
        return _file(figure, kind)


def _errors(axes: Axes, runs: list[Run], x: str) -> None:
    groups = logs.group(runs)
    unit, scale = 'epoch', None
    if x == 'seconds':
        longest = max(median(sum(run.times.values()) for run in same) for same in groups)
        unit = next((name for name, seconds in UNITS.items() if longest < 120 * seconds), 'h')
        scale = UNITS[unit]
    axes.set_xlabel(unit if scale is None else f'time of training, {unit}')
    for i, (same, label) in enumerate(zip(groups, labels(groups), strict=True)):
        _line(axes, i, label, [run.errors for run in same],
              None if scale is None else lambda epoch, same=same, scale=scale: median(
                  _until(run, epoch) for run in same if epoch in run.errors) / scale)
    last = max(list(run.errors.values())[-1] for run in runs)
    axes.set_ylim(0, min(axes.get_ylim()[1], 4 * last) or None)
    axes.set_xlim(left=0 if scale else None)
    _dress(axes, whole=scale is None)
    if len(groups) <= len(COLOURS):
        axes.legend(frameon=False)
    else:  # beside the lines, which it would hide
        axes.figure.set_figwidth(axes.figure.get_figwidth() + 3.8)
        axes.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))


def losses(runs: list[Run], kind: str, title: str = '') -> bytes:
    """The loss of each term and group, as attention transfer's, before its weight, against the epoch."""
    groups = [same for same in logs.group(runs) if any(run.losses for run in same)]
    if not groups:
        raise InputError('no run has a loss to draw beside classification: name runs with --beta or the like')
    terms = {term: list(dict.fromkeys(part for same in groups for run in same
                                      for part in run.losses.get(term, {}))) for term in logs.TERMS}
    terms = {term: sorted(parts) for term, parts in terms.items() if parts}
    columns = max(map(len, terms.values()))
    with rc_context(STYLE):
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
                    known = [run.losses[term][part] for run in same if part in run.losses.get(term, {})]
                    if known:
                        drawn[label] = _line(axes, i, label, known)
                _dress(axes, whole=True)
        figure.legend(drawn.values(), drawn.keys(), frameon=False, loc='outside lower center', ncols=2)
        return _file(figure, kind)


def budgets(panels: list[Panel], kind: str, title: str = '') -> bytes:
    """Test error in the last epoch against the number of epochs, on a logarithmic axis, for each method."""
    with rc_context(STYLE):
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
        return _file(figure, kind)


def labels(groups: list[list[Run]]) -> list[str]:
    """A name for each line: what differs among the lines, their length only if nothing else does."""
    names = [(run.student, run.teacher and f'from {run.teacher}', run.method,
              ', '.join(f'{name} {value}' for name, value in more.items()), f'{run.length} epochs')
             for (run, *_), more in zip(groups, logs.differences(groups), strict=True)]
    differs = [len(set(column) - {''}) > 1 for column in zip(*names, strict=True)]
    differs[-1] &= len({name[:-1] for name in names}) < len(names)
    return [', '.join(part for part, shown in zip(name, differs, strict=True) if shown and part) or name[0]
            for name in names]


def _axis(dataset: str) -> str:
    return 'test error, %' if logs.HELD_OUT not in dataset else f'error on {logs.HELD_OUT}, %'


def _until(run: Run, epoch: int) -> float:
    return sum(seconds for e, seconds in run.times.items() if e <= epoch)


def _line(axes: Axes, i: int, label: str, series: list[dict[int, float]],
          x: Callable[[int], float] | None = None) -> Line2D:
    epochs = sorted({epoch for values in series for epoch in values})
    values = [[known[epoch] for known in series if epoch in known] for epoch in epochs]
    places = [x(epoch) for epoch in epochs] if x else epochs
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


def _file(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()
