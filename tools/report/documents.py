"""Tables in a document, between markers, that are made of logs or of the figures of tools.benchmark.

    <!-- report: results/demo -->
    <!-- end of report -->
    <!-- report: --benchmarks results/benchmark -->
    <!-- end of report -->

`python -m tools.report --update README.md` writes what is between them. Paths are relative to the document.
"""
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from utils import InputError

BEGIN, END = '<!-- report: ', '<!-- end of report -->'
TABLE = re.compile(rf'^{BEGIN}(?P<arguments>.+?) -->\n(?P<table>.*?){END}$', re.MULTILINE | re.DOTALL)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise InputError(f'{path} is not text in UTF-8') from None
    except OSError as e:
        raise InputError(f'cannot read {path}: {e.strerror}') from None


def updated(text: str, render: Callable[[list[str]], str]) -> str:
    """The document with new tables; `render` makes a table from the arguments in its marker."""
    def table(found: re.Match) -> str:
        try:
            arguments = shlex.split(found['arguments'])
        except ValueError:
            raise InputError(f'{BEGIN}{found["arguments"]} --> lacks a quotation mark') from None
        return f'{BEGIN}{found["arguments"]} -->\n{render(arguments)}\n{END}'

    n = len(TABLE.findall(text))
    if not n:
        raise InputError(f'the document has no table: put {BEGIN}LOGS --> and {END} around one')
    if not n == text.count(BEGIN) == text.count(END):
        raise InputError(f'each line {BEGIN}LOGS --> needs its line {END}, before the next one')
    return TABLE.sub(table, text)
