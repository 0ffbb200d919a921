"""Tables and curves of runs, from their logs, next to the paper's figures.

    python -m tools.report logs/resnet_16_1 logs/at_16_1_16_2
    python -m tools.report logs --table 1 --csv table1.csv
    python -m tools.report logs/demo --plot curves.png --x seconds --plot_losses losses.svg
    python -m tools.report --budget logs/budget --plot budget.png
    python -m tools.report --compare logs/compare --plot compare.png
    python -m tools.report --benchmarks results/benchmark
    python -m tools.report --update README.md
    python -m tools.report --check results --dataroot data

Runs that differ only in their seed share a row and a line.
"""
import argparse
import contextlib
import io
import sys
from pathlib import Path

from tools import output
from tools.report import benchmarks, budget, check, compare, curves, documents, logs, paper, tables
from training import options
from utils import InputError

MODES = {  # what to report, and the options that go with it
    'logs': ('table', 'csv', 'plot', 'x', 'plot_losses', 'title'), 'budget': ('plot', 'title'),
    'compare': ('plot', 'title'), 'choose': (), 'benchmarks': (), 'update': (), 'check': ('dataroot',)}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Report the test errors of runs as tables and curves.')
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument('logs', nargs='*', default='', type=options.path, metavar='LOGS',
                      help='log, folder of a run, or folder of several runs')
    mode.add_argument('--budget', nargs='+', type=options.path, metavar='FOLDER',
                      help='report error against the number of epochs, and how many epochs a teacher saves')
    mode.add_argument('--compare', type=options.path, metavar='FOLDER',
                      help='report losses that were compared with equal effort, as recipes/compare.sh does')
    mode.add_argument('--choose', type=options.path, metavar='FOLDER',
                      help='for each loss, print the options with the lowest error on held-out images')
    mode.add_argument('--benchmarks', type=options.file, metavar='FOLDER',
                      help='print the tables of a folder with the .json output of tools.benchmark')
    mode.add_argument('--update', type=options.file, metavar='FILE',
                      help='write the tables between the markers of this document again')
    mode.add_argument('--check', type=options.file, metavar='FOLDER',
                      help='recompute the logs and weights published there, and the tables of documents')
    parser.add_argument('--table', type=int, choices=list(paper.TABLES),
                        help='print the rows of this table of the paper instead of all pairs')
    parser.add_argument('--csv', type=output.file(), metavar='FILE', help='write the table as CSV, too')
    parser.add_argument('--plot', type=output.picture, metavar='FILE',
                        help=f'draw the test errors: {", ".join(output.PICTURES)}')
    parser.add_argument('--x', choices=curves.AXES, default='epoch', help='horizontal axis of --plot')
    parser.add_argument('--plot_losses', type=output.picture, metavar='FILE',
                        help='draw the losses besides classification, for each group of layers')
    parser.add_argument('--title', default='', help='title of the figures (default: the data set)')
    parser.add_argument('--dataroot', type=options.path, default='', metavar='FOLDER',
                        help='with --check: folder of CIFAR, to evaluate the weights on')
    opt = parser.parse_args(arguments)
    given = next((name for name in MODES if getattr(opt, name)), '')
    if not given:
        parser.error('the name of a folder or file is empty')
    allowed = MODES[given]
    for name, value in vars(opt).items():
        if value != parser.get_default(name) and name not in (given, *allowed):
            parser.error(f'--{name} has no effect with {"LOGS" if given == "logs" else f"--{given}"}')
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    if opt.update:
        before = documents.read(opt.update)
        after = documents.updated(before, lambda arguments: render(arguments, opt.update.parent))
        if after != before:
            output.write(opt.update, after.encode())
        print(f'{opt.update} is {"unchanged" if after == before else "updated"}')
    elif opt.check:
        sys.exit(check.check(opt.check, opt.dataroot, render) > 0)
    else:
        text = markdown(opt)
        for path, content in files(opt).items():
            output.write(path, content)
        print(text)


def render(arguments: list[str], folder: Path) -> str:
    """The tables that these arguments ask for, with paths relative to a folder."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            opt = parse(arguments)
        except SystemExit:
            why = said.getvalue().partition('error: ')[2].strip() or 'this is not a table'
            raise InputError(f'{why}; in the marker of {" ".join(arguments)}') from None
    if opt.update or opt.check or opt.choose:
        raise InputError(f'{" ".join(arguments)} is not for a document: give LOGS, --budget, --compare or '
                         '--benchmarks')
    return markdown(opt, folder)


def markdown(opt: argparse.Namespace, folder: Path = Path()) -> str:
    if opt.benchmarks:
        return benchmarks.markdown(benchmarks.read(folder / opt.benchmarks))
    if opt.budget:
        return budget.markdown(budget.read(logs.read(opt.budget, folder)))
    if opt.compare:
        return compare.markdown(compare.read(logs.read([opt.compare], folder)))
    if opt.choose:
        return '\n'.join(compare.chosen(logs.read([opt.choose])))
    return tables.markdown(tables.sections(logs.read(opt.logs, folder), opt.table))


def files(opt: argparse.Namespace) -> dict[Path, bytes]:
    """The contents of the files to write."""
    found = {}
    if opt.budget and opt.plot:
        found[opt.plot] = curves.budgets(budget.read(logs.read(opt.budget)), opt.title)
    elif opt.compare and opt.plot:
        found[opt.plot] = curves.comparison(compare.read(logs.read([opt.compare])), opt.title)
    elif opt.plot:
        found[opt.plot] = curves.errors(logs.read(opt.logs), opt.title, opt.x)
    if opt.plot_losses:
        found[opt.plot_losses] = curves.losses(logs.read(opt.logs), opt.title)
    contents = {path: output.drawn(figure, path.suffix) for path, figure in found.items()}
    if opt.csv:
        contents[opt.csv] = tables.csv_of(tables.sections(logs.read(opt.logs), opt.table)).encode()
    return contents
