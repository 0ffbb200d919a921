"""Tables of runs: of each pair of student and teacher, or as a table of the paper.

    sections = tables.sections(logs.read(['logs/demo']))
    print(tables.markdown(sections))
"""
import io
import math
from collections.abc import Callable, Iterable
from csv import DictWriter
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from tools.report import logs, paper
from tools.report.logs import Run
from tools.report.paper import Figure

AGAINST = ('Against alone: difference to the student alone of the same seed, in points of error; mean +- '
           'standard error of\nthe mean over the seeds that both have.')
BEST = ('The best epoch is chosen by the same images that give its error: that is too low an estimate for '
        'other images.')
AGREEMENT = ('Same class: images to which student and teacher give the same class. Cosine: between '
             'the attention maps of\nstudent and teacher, for each group of layers. Both are means over '
             'images and seeds, in the last epoch.')
TIME = 'Training time, without tests, is the median over seeds. All runs above trained for '


class Row(NamedTuple):
    network: str
    teacher: str
    method: str
    dataset: str
    same: list[Run]  # empty where the paper has a figure and no run is there
    figure: Figure | None
    alone: list[Run]  # the same student without a teacher; empty for a row that is this itself

    def last(self) -> list[float]:
        return [list(run.errors.values())[-1] for run in self.same]

    def best(self) -> list[float]:
        return [min(run.errors.values()) for run in self.same]

    def top5(self) -> list[float]:
        return [list(run.top5.values())[-1] for run in self.same if run.top5]

    def seconds(self) -> list[float]:
        return [sum(run.times.values()) for run in self.same]

    def against_alone(self) -> list[float]:
        """The difference to the student alone for each seed that both have."""
        own, other = _by_seed(self.same), _by_seed(self.alone)
        return [own[seed] - other[seed] for seed in own if seed in other]

    def agreement(self) -> list[float]:
        return [run.agreement for run in self.same if run.agreement is not None]

    def cosines(self) -> list[list[float]]:
        """Those of all runs for each group."""
        groups = max((len(run.cosines) for run in self.same), default=0)
        return [[run.cosines[i] for run in self.same if i < len(run.cosines)] for i in range(groups)]

    def seeds(self) -> int:
        """The published code logs no seed: each of its runs has its own."""
        return len({i if run.seed is None else (run.seed,) for i, run in enumerate(self.same)})


class Section(NamedTuple):
    title: str
    rows: list[Row]


# --- rows -----------------------------------------------------------------------------------------------


def sections(runs: list[Run], table: int | None = None) -> list[Section]:
    """The rows of a table of the paper, or else of all pairs; each group of runs is in one at least."""
    return _pairs(runs) if table is None else _of_paper(runs, table)


def _pairs(runs: list[Run]) -> list[Section]:
    """A section for each student and teacher, which reads as a line of Table 1: alone, methods, teacher."""
    groups = logs.group(runs)
    rows = [_row(same, same[0].method, more, paper.find(same[0]), groups)
            for same, more in zip(groups, logs.differences(groups), strict=True)]
    pairs = list(dict.fromkeys((row.network, row.teacher) for row in rows if row.teacher))
    found = []
    for student, teacher in pairs:
        own = [row for row in rows if row.network == student and row.teacher in ('', teacher)]
        own += [row for row in rows if row.network == teacher != student and not row.teacher]
        found.append(Section(f'{student} from {teacher}, {rows[0].dataset}', own))
    rest = [row for row in rows if not any(row.network in pair for pair in pairs)]
    return found + [Section(f'Without a teacher, {rows[0].dataset}', rest)] * bool(rest)


def _of_paper(runs: list[Run], number: int) -> list[Section]:
    """The rows of a table in the paper's order, missing ones too; in the end the runs that are in none."""
    datasets = {run.dataset for run in runs}
    groups = [same for name in sorted(datasets)
              for same in logs.group([run for run in runs if run.dataset == name])]
    known = list(zip(groups, logs.differences(groups), strict=True))
    found = []
    for (title, dataset), figures in paper.parts(number, datasets).items():
        rows = []
        for figure in figures:
            fitting = [(same, more) for same, more in known if paper.fits(figure, same[0])]
            for same, more in fitting:
                more = {name: value for name, value in more.items() if name not in figure.settings}
                rows.append(_row(same, figure.label, more, figure, groups))
            if not fitting:
                rows.append(Row(figure.student, figure.teachers[0], figure.label, figure.dataset, [], figure,
                                []))
        found.append(Section(f'Table {number}: {title}, {dataset}', rows))
    used = [row.same for section in found for row in section.rows]
    rest = [_row(same, same[0].method, more, None, groups) for same, more in known if same not in used]
    return found + [Section(f'Not in Table {number}', rest)] * bool(rest)


def _row(same: list[Run], method: str, more: dict[str, str], figure: Figure | None,
         groups: list[list[Run]]) -> Row:
    method = ', '.join([method, *(f'{name} {value}' for name, value in more.items())])
    return Row(same[0].student, same[0].teacher, method, same[0].dataset, same, figure,
               logs.alone(same[0], groups))


def _by_seed(runs: list[Run]) -> dict[int, float]:
    """The last error for each seed that is known: the mean over its runs."""
    seeds = dict.fromkeys(run.seed for run in runs if run.seed is not None)
    return {seed: mean(list(run.errors.values())[-1] for run in runs if run.seed == seed) for seed in seeds}


# --- text -----------------------------------------------------------------------------------------------


def markdown(sections: list[Section], best_epoch: bool = False) -> str:
    """Tables for each section, and what their columns mean. best_epoch: with the error of the best epoch."""
    parts = []
    for section in sections:
        parts += [f'**{section.title}**', _errors(section, best_epoch), _agreement(section)]
    return '\n\n'.join([*filter(None, parts), _notes(sections, best_epoch)])


def _network(section: Section) -> dict[str, Callable[[Row], str]]:
    """A column of networks, unless all rows have the network in the title."""
    same = len({row.network for row in section.rows}) == 1 and section.rows[0].network in section.title
    return {} if same else {'network': lambda row: row.network}


def _errors(section: Section, best_epoch: bool) -> str:
    columns = _network(section) | {
        'method': lambda row: row.method,
        'epochs': lambda row: row.same[0].length if row.same else '',
        'seeds': _seeds,
        'median, %': lambda row: _middle(row.last()) or 'missing',
        'mean': lambda row: f'{mean(row.last()):.2f}' if row.same else '',
        'range': lambda row: spread(row.last()),
        'best epoch, %': lambda row: _middle(row.best()) if best_epoch else '',
        'top-5, %': lambda row: _middle(row.top5()),
        'against alone': lambda row: difference(row.against_alone()),
        'paper, %': lambda row: f'{row.figure.error:g}' if row.figure and row.figure.error else '',
        'paper, top-5, %': lambda row: f'{row.figure.top5:g}' if row.figure and row.figure.top5 else '',
        'training time': lambda row: duration(median(row.seconds())) if row.same else ''}
    return grid(list(columns), [[cell(row) for cell in columns.values()] for row in section.rows])


def _agreement(section: Section) -> str:
    """A table of the rows that say how much student and teacher agree."""
    rows = [row for row in section.rows if row.agreement() or row.cosines()]
    if not rows:
        return ''
    n_groups = max(len(row.cosines()) for row in rows)
    columns = _network(section) | {
        'method': lambda row: row.method,
        'epochs': lambda row: row.same[0].length,
        'same class, %': lambda row: f'{mean(row.agreement()):.2f}' if row.agreement() else ''}
    columns |= {f'cosine, group {i}': lambda row, i=i: f'{mean(row.cosines()[i]):.3f}'
                if i < len(row.cosines()) else '' for i in range(n_groups)}
    return grid(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _notes(sections: list[Section], best_epoch: bool) -> str:
    """What the columns mean, and what the runs were trained on."""
    rows = [row for section in sections for row in section.rows]
    runs = {id(run): run for row in rows for run in row.same}.values()
    notes = [f'{what(rows[0].dataset)} in the last epoch: median, mean and range over seeds.']
    if any(row.against_alone() for row in rows):
        notes.append(AGAINST)
    if best_epoch:
        notes.append(BEST)
    if how := dict.fromkeys(paper.HOW[row.figure.table] for row in rows if row.figure and row.figure.error):
        notes.append(f"The paper's figures: {' / '.join(how)}.")
    if any(row.agreement() or row.cosines() for row in rows):
        notes.append(AGREEMENT)
    return '\n'.join([*notes, *([TIME + trained(runs)] if runs else [])])


def what(dataset: str) -> str:
    """What an error is, at the start of a sentence."""
    return 'Test error' if logs.HELD_OUT not in dataset else f'Error on {logs.HELD_OUT}, not on the test set,'


def trained(runs: Iterable[Run]) -> str:
    """The seconds of training on each machine, in a sentence's end."""
    seconds: dict[str, float] = {}
    for run in runs:
        machine = run.machine or 'an unknown machine'
        seconds[machine] = seconds.get(machine, 0.0) + sum(run.times.values())
    return ', '.join(f'{total:,.0f} s on {machine}' for machine, total in sorted(seconds.items())) + '.'


def difference(values: list[float]) -> str:
    """'-0.92 +- 0.15 (5 seeds)': the mean of differences with its standard error."""
    if not values:
        return ''
    error = f' +- {standard_error(values):.2f}' if len(values) > 1 else ''
    return f'{mean(values):+.2f}{error} ({len(values)} seed{"s" * (len(values) > 1)})'


def standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def spread(values: list[float]) -> str:
    """The least and the largest of several values."""
    return f'{min(values):.2f}-{max(values):.2f}' if len(values) > 1 else ''


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, without columns that are empty."""
    cells = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in cells]
    lines = list(zip(*cells, strict=True))
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines)


def _middle(values: list[float]) -> str:
    return f'{median(values):.2f}' if values else ''


def _seeds(row: Row) -> str:
    return f'{row.seeds()}' + (f' ({len(row.same)} runs)' if len(row.same) > row.seeds() else '')


def duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def csv(sections: list[Section]) -> str:
    """The same rows as numbers: errors in %, times in seconds, nothing where there is none."""
    text = io.StringIO()
    rows = [{'section': section.title, **_numbers(row)} for section in sections for row in section.rows]
    writer = DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _numbers(row: Row) -> dict[str, Any]:
    def of(statistic: Callable[[list[float]], float], values: list[float]) -> float | None:
        return round(statistic(values), 4) if values else None

    last, against = row.last(), row.against_alone()
    return {
        'network': row.network, 'teacher': row.teacher, 'method': row.method, 'dataset': row.dataset,
        'epochs': row.same[0].length if row.same else None, 'seeds': row.seeds(), 'runs': len(row.same),
        'last_median': of(median, last), 'last_mean': of(mean, last), 'last_min': of(min, last),
        'last_max': of(max, last), 'best_median': of(median, row.best()), 'last_top5': of(median, row.top5()),
        'against_alone': of(mean, against),
        'against_alone_error': of(standard_error, against) if len(against) > 1 else None,
        'paired_seeds': len(against),
        'agreement': of(mean, row.agreement()),
        'map_cosines': ' '.join(f'{mean(values):.4f}' for values in row.cosines()),
        'paper': row.figure and row.figure.error, 'paper_top5': row.figure and row.figure.top5,
        'seconds': of(median, row.seconds())}
