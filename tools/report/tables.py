"""Tables of runs: of each pair of student and teacher, or as a table of the paper.

    sections = tables.sections(logs.read(['logs/demo']))
    print(tables.markdown(sections))
"""
import csv
import io
import math
from collections.abc import Callable, Iterable
from statistics import mean, median, stdev
from string import Formatter
from typing import Any, NamedTuple

from tools.report import logs, paper
from tools.report.logs import Run
from tools.report.paper import Figure

AGAINST = ('Against alone: difference to the student alone of the same seed, in points of error; mean +- '
           'standard error of\nthe mean over the seeds that both have.')
ELSEWHERE = ('Reproduction: [trailmet-distillation](https://github.com/aryamaanthakur/'
             'trailmet-distillation), 200 epochs,\none seed, with Nesterov momentum and 45,000 training '
             'images.')
AGREEMENT = ('Same class: images to which student and teacher give the same class. Cosine: between '
             'the attention maps of\nstudent and teacher, for each group of layers. Both are means over '
             'images and seeds, in the last epoch.')
TIME = 'Training time, without tests, is the median over seeds. All runs above trained for '
Numbers = dict[str, Any]  # what is known about a row: errors in %, times in seconds, None for the rest


class Row(NamedTuple):
    method: str
    same: list[Run]  # empty if the paper has a figure but there is no run
    figure: Figure | None
    alone: list[Run]  # the same student without a teacher; empty if this row is the student alone

    @property
    def network(self) -> str:
        return self.same[0].student if self.same else self.figure.student

    @property
    def teacher(self) -> str:
        return self.same[0].teacher if self.same else self.figure.teachers[0]


class Section(NamedTuple):
    title: str
    rows: list[Row]


# --- rows -----------------------------------------------------------------------------------------------


def sections(runs: list[Run], table: int | None = None) -> list[Section]:
    """The rows of a table of the paper, or of all pairs; each group of runs is in at least one section."""
    return _pairs(runs) if table is None else _of_paper(runs, table)


def _pairs(runs: list[Run]) -> list[Section]:
    """A section for each student and teacher, in the order of Table 1: alone, methods, teacher."""
    groups, dataset = logs.group(runs), runs[0].dataset
    rows = [Row(logs.named(same[0].method, more), same, paper.find(same[0]), logs.alone(same[0], groups))
            for same, more in zip(groups, logs.differences(groups), strict=True)]
    pairs = list(dict.fromkeys((row.network, row.teacher) for row in rows if row.teacher))
    found = []
    for student, teacher in pairs:
        own = [row for row in rows if row.network == student and row.teacher in ('', teacher)]
        own += [row for row in rows if row.network == teacher != student and not row.teacher]
        found.append(Section(f'{student} from {teacher}, {dataset}', own))
    rest = [row for row in rows if not any(row.network in pair for pair in pairs)]
    return found + [Section(f'Without a teacher, {dataset}', rest)] * bool(rest)


def _of_paper(runs: list[Run], number: int) -> list[Section]:
    """The rows of a table in the paper's order, missing ones too; at the end the runs that are not in it."""
    datasets = {run.dataset for run in runs}
    known = []
    for name in sorted(datasets):
        groups = logs.group([run for run in runs if run.dataset == name])
        known += zip(groups, logs.differences(groups), strict=True)
    groups = [same for same, _ in known]
    found, rest = [], known
    for (title, dataset), figures in paper.parts(number, datasets).items():
        rows = []
        for figure in figures:
            fitting = [(same, more) for same, more in known if paper.fits(figure, same[0])]
            rest = [pair for pair in rest if pair not in fitting]
            for same, more in fitting:
                more = {name: value for name, value in more.items() if name not in figure.settings}
                rows.append(Row(logs.named(figure.label, more), same, figure, logs.alone(same[0], groups)))
            if not fitting:
                rows.append(Row(figure.label, [], figure, []))
        found.append(Section(f'Table {number}: {title}, {dataset}', rows))
    others = [Row(logs.named(same[0].method, more), same, None, logs.alone(same[0], groups))
              for same, more in rest]
    return found + [Section(f'Not in Table {number}', others)] * bool(others)


def numbers(row: Row) -> Numbers:
    def of(statistic: Callable, values: Iterable[float | None], least: int = 1) -> float | None:
        known = [value for value in values if value is not None]
        return statistic(known) if len(known) >= least else None

    against = paired(row.same, row.alone)
    errors = [run.error for run in row.same]
    cosines = zip(*(run.cosines for run in row.same if run.cosines), strict=True)
    return {
        'network': row.network, 'teacher': row.teacher, 'method': row.method,
        'epochs': row.same[0].length if row.same else None,
        # The published code logs no seed: each of its runs counts as one.
        'seeds': len({i if run.seed is None else (run.seed,) for i, run in enumerate(row.same)}),
        'runs': len(row.same), 'median': of(median, errors), 'mean': of(mean, errors),
        'min': of(min, errors, 2), 'max': of(max, errors, 2),
        'top5': of(median, (run.top5 for run in row.same)), 'against_alone': of(mean, against),
        'against_alone_error': of(standard_error, against, 2), 'paired_seeds': len(against),
        'paper': row.figure and row.figure.error, 'paper_top5': row.figure and row.figure.top5,
        'elsewhere': row.figure and row.figure.elsewhere,
        'seconds': of(median, (sum(run.times.values()) for run in row.same)),
        'agreement': of(mean, (run.agreement for run in row.same)),
        **{f'cosine_{i}': of(mean, values) for i, values in enumerate(cosines)}}


def paired(runs: list[Run], others: list[Run]) -> list[float]:
    """Error minus that of the other runs, for each seed that both have."""
    own, other = _by_seed(runs), _by_seed(others)
    return [own[seed] - other[seed] for seed in own if seed in other]


def _by_seed(runs: list[Run]) -> dict[int, float]:
    """The error for each known seed: the mean over its runs."""
    seeds = dict.fromkeys(run.seed for run in runs if run.seed is not None)
    return {seed: mean(run.error for run in runs if run.seed == seed) for seed in seeds}


def standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def csv_of(sections: list[Section]) -> str:
    """The numbers of all rows, with four decimals, empty where nothing is known."""
    text = io.StringIO()
    rows = [{'section': section.title} | {name: round(value, 4) if isinstance(value, float) else value
                                          for name, value in numbers(row).items()}
            for section in sections for row in section.rows]
    writer = csv.DictWriter(text, list({name: None for row in rows for name in row}), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --- text -----------------------------------------------------------------------------------------------


def markdown(sections: list[Section]) -> str:
    """Tables for each section, and what their columns mean."""
    parts, every = [], []
    for section in sections:
        rows = [numbers(row) for row in section.rows]
        every += rows
        alike = [row for row in rows if row['agreement'] is not None or 'cosine_0' in row]
        cosines = sorted({name for row in alike for name in row if name.startswith('cosine_')})
        agreement = AGREEMENT_COLUMNS | {name.replace('_', ', group '): f'{{{name}:.3f}}' for name in cosines}
        parts += [f'**{section.title}**', _table(section, rows, ERROR_COLUMNS)]
        parts += [_table(section, alike, agreement)] if alike else []
    runs = {id(run): run for section in sections for row in section.rows for run in row.same}.values()
    figures = [row.figure for section in sections for row in section.rows if row.figure and row.figure.error]
    notes = [f'{what(sections[0].title)} in the last epoch: median, mean and range over seeds.']
    notes += [AGAINST] if any(row['paired_seeds'] for row in every) else []
    if how := dict.fromkeys(paper.HOW[figure.table] for figure in figures):
        notes.append(f"The paper's figures: {' / '.join(how)}.")
    notes += [ELSEWHERE] if any(row['elsewhere'] for row in every) else []
    notes += [AGREEMENT] if any('same class, ' in part or 'cosine, ' in part for part in parts) else []
    notes += [TIME + trained(runs)] if runs else []
    return '\n\n'.join([*parts, '\n'.join(notes)])


def difference(value: float | None, error: float | None, n: int) -> str:
    """'-0.92 +- 0.15 (5 seeds)'."""
    around = '' if error is None else f' +- {error:.2f}'
    return f'{value:+.2f}{around} ({n} seed{"s" * (n > 1)})' if n else ''


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ''
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


# The cells of a column: a format of numbers, or a function of them.
ERROR_COLUMNS = {
    'epochs': '{epochs}',
    'seeds': lambda row: f'{row["seeds"]}' + f' ({row["runs"]} runs)' * (row['runs'] > row['seeds']),
    'median, %': lambda row: 'missing' if row['median'] is None else f'{row["median"]:.2f}',
    'mean': lambda row: f'{row["mean"]:.2f}' if row['runs'] > 1 else '',
    'range': '{min:.2f}-{max:.2f}', 'top-5, %': '{top5:.2f}',
    'against alone': lambda row: difference(row['against_alone'], row['against_alone_error'],
                                            row['paired_seeds']),
    'paper, %': '{paper:g}', 'paper, top-5, %': '{paper_top5:g}',
    'reproduction, %': '{elsewhere:g}', 'training time': lambda row: duration(row['seconds'])}
AGREEMENT_COLUMNS = {'epochs': '{epochs}', 'same class, %': '{agreement:.2f}'}


def _table(section: Section, rows: list[Numbers], columns: dict[str, Any]) -> str:
    """With a column of networks, unless all rows of the section have the network in its title."""
    names = {row.network for row in section.rows}
    first = {} if len(names) == 1 and names.pop() in section.title else {'network': '{network}'}
    columns = first | {'method': '{method}'} | columns
    return grid(list(columns), [[_cell(row, form) for form in columns.values()] for row in rows])


def _cell(row: Numbers, form: str | Callable[[Numbers], str]) -> str:
    if callable(form):
        return form(row)
    known = all(row.get(name) is not None for _, name, *_ in Formatter().parse(form) if name)
    return form.format_map(row) if known else ''


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, without empty columns."""
    cells = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in cells]
    lines = list(zip(*cells, strict=True))
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines)


def what(dataset: str) -> str:
    """What an error is, at the start of a sentence."""
    return 'Test error' if logs.HELD_OUT not in dataset else f'Error on {logs.HELD_OUT}, not on the test set,'


def trained(runs: Iterable[Run]) -> str:
    """The seconds of training on each machine, as the end of a sentence."""
    seconds: dict[str, float] = {}
    for run in runs:
        machine = run.machine or 'an unknown machine'
        seconds[machine] = seconds.get(machine, 0.0) + sum(run.times.values())
    return '; '.join(f'{total:,.0f} s on {machine}' for machine, total in sorted(seconds.items())) + '.'
