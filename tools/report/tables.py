"""Tables of runs: of each pair of student and teacher, or as a table of the paper.

    sections = tables.sections(logs.read(['logs/demo']))
    print(tables.markdown(sections))
"""
import io
from collections.abc import Callable
from csv import DictWriter
from statistics import mean, median
from typing import Any, NamedTuple

from tools.report import logs, paper
from tools.report.logs import Run
from tools.report.paper import Figure

NOTE = ('Test errors; median, mean and range over seeds are of the last epoch. The best epoch is chosen by\n'
        'the test set itself: its error (median over seeds) is too low an estimate of that on other images.')


class Row(NamedTuple):
    network: str
    teacher: str
    method: str
    dataset: str
    same: list[Run]  # empty where the paper has a figure and no run is there
    figure: Figure | None

    def last(self) -> list[float]:
        return [list(run.errors.values())[-1] for run in self.same]

    def best(self) -> list[float]:
        return [min(run.errors.values()) for run in self.same]

    def top5(self) -> list[float]:
        return [list(run.top5.values())[-1] for run in self.same if run.top5]

    def seconds(self) -> list[float]:
        return [sum(run.times.values()) for run in self.same]

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
    rows = [_row(same, same[0].method, more, paper.find(same[0]))
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
                rows.append(_row(same, figure.label, more, figure))
            if not fitting:
                rows.append(Row(figure.student, figure.teachers[0], figure.label, figure.dataset, [], figure))
        found.append(Section(f'Table {number}: {title}, {dataset}', rows))
    used = [row.same for section in found for row in section.rows]
    rest = [_row(same, same[0].method, more, None) for same, more in known if same not in used]
    return found + [Section(f'Not in Table {number}', rest)] * bool(rest)


def _row(same: list[Run], method: str, more: dict[str, str], figure: Figure | None) -> Row:
    method = ', '.join([method, *(f'{name} {value}' for name, value in more.items())])
    return Row(same[0].student, same[0].teacher, method, same[0].dataset, same, figure)


# --- text -----------------------------------------------------------------------------------------------


def markdown(sections: list[Section]) -> str:
    """A table for each section, and what its columns mean."""
    return '\n\n'.join([*(f'**{section.title}**\n\n{_markdown(section)}' for section in sections), NOTE])


def _markdown(section: Section) -> str:
    figures = [row.figure for row in section.rows if row.figure]
    how = ' / '.join(dict.fromkeys(paper.HOW[figure.table] for figure in figures))
    columns: dict[str, Callable[[Row], str]] = {
        'network': lambda row: row.network,
        'method': lambda row: row.method,
        'epochs': lambda row: row.same[0].length if row.same else '',
        'seeds': _seeds,
        'last epoch, %: median': lambda row: _middle(row.last()) or 'missing',
        'mean': lambda row: f'{mean(row.last()):.2f}' if row.same else '',
        'range': lambda row: f'{min(row.last()):.2f}-{max(row.last()):.2f}' if len(row.same) > 1 else '',
        'best epoch, %': lambda row: _middle(row.best()),
        'last epoch, top-5, %': lambda row: _middle(row.top5()),
        f'paper, % ({how})': lambda row: f'{row.figure.error:g}' if row.figure and row.figure.error else '',
        'paper, top-5, %': lambda row: f'{row.figure.top5:g}' if row.figure and row.figure.top5 else '',
        'training time': lambda row: duration(median(row.seconds())) if row.same else ''}
    return grid(list(columns), [[cell(row) for cell in columns.values()] for row in section.rows])


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

    last = row.last()
    return {
        'network': row.network, 'teacher': row.teacher, 'method': row.method, 'dataset': row.dataset,
        'epochs': row.same[0].length if row.same else None, 'seeds': row.seeds(), 'runs': len(row.same),
        'last_median': of(median, last), 'last_mean': of(mean, last), 'last_min': of(min, last),
        'last_max': of(max, last), 'best_median': of(median, row.best()), 'last_top5': of(median, row.top5()),
        'paper': row.figure and row.figure.error, 'paper_top5': row.figure and row.figure.top5,
        'seconds': of(median, row.seconds())}
