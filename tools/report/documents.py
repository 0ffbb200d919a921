"""Tables in a document, between markers, which the logs fill, or the figures of tools.benchmark.

    <!-- report: results/demo -->
    <!-- end of report -->
    <!-- report: --benchmarks results/benchmark -->
    <!-- end of report -->

`python -m tools.report --update README.md` writes what lies between them. Paths are those from the document.
"""
import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from tools.report import benchmarks, budget, logs, tables
from utils import InputError

BEGIN, END = '<!-- report: {} -->', '<!-- end of report -->'
MARKER = re.compile(r'^<!-- (?:report: (?P<arguments>.*?)|end of report) -->$', re.MULTILINE)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise InputError(f'{path} is no text in UTF-8') from None
    except OSError as e:
        raise InputError(f'cannot read {path}: {e.strerror}') from None


def updated(text: str, folder: Path, parse: Callable[[list[str]], argparse.Namespace]) -> str:
    """The document with the table of its logs, which are found from `folder`, between each pair of markers.

    `parse` reads the arguments in a marker: LOGS with --table and --best_epoch, --budget or --benchmarks.
    """
    markers = list(MARKER.finditer(text))
    begins, ends = markers[::2], markers[1::2]
    if not markers:
        raise InputError(f'the document has no line {BEGIN.format("LOGS")}: put it, and {END}, round a table')
    if len(begins) != len(ends) or not all(m['arguments'] for m in begins) or any(
            m['arguments'] for m in ends):
        raise InputError(f'each line {BEGIN.format("LOGS")} needs its line {END}, before the next one')
    parts, at = [], 0
    for begin, end in zip(begins, ends, strict=True):
        parts += [text[at:begin.end()], f'\n{_table(begin["arguments"], folder, parse)}\n']
        at = end.start()
    return ''.join([*parts, text[at:]])


def _table(arguments: str, folder: Path, parse: Callable[[list[str]], argparse.Namespace]) -> str:
    try:
        opt = parse(shlex.split(arguments))
    except ValueError:  # a quotation mark without its other one
        raise InputError(f'{BEGIN.format(arguments)} has a quotation mark too many') from None
    if opt.benchmarks:
        return benchmarks.markdown(benchmarks.read(folder / opt.benchmarks))
    plain = ['--budget', str(opt.budget)] if opt.budget else opt.logs or ['-']
    if vars(opt) != vars(parse(plain)) | {'table': opt.table, 'best_epoch': opt.best_epoch}:
        raise InputError(f'{BEGIN.format(arguments)}: only LOGS with --table and --best_epoch, --budget or '
                         '--benchmarks are for a document')
    if opt.budget:
        return budget.markdown(budget.read(logs.read([opt.budget], folder)))
    return tables.markdown(tables.sections(logs.read(opt.logs, folder), opt.table), opt.best_epoch)
