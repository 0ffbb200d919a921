"""Tables and curves of runs, from their logs, next to the paper's figures.

    python -m tools.report logs/resnet_16_1 logs/at_16_1_16_2
    python -m tools.report logs --table 1 --csv table1.csv
    python -m tools.report logs/demo --plot curves.png --x seconds --plot_losses losses.svg
    python -m tools.report --budget logs/budget --plot budget.png
    python -m tools.report --benchmarks results/benchmark
    python -m tools.report --update README.md
    python -m tools.report --check results --dataroot data

Runs that differ only in their seed share a row and a line. `--budget` compares numbers of epochs.
`--benchmarks` prints the figures of tools.benchmark. `--update` writes the tables of a document again,
between the lines `<!-- report: results/demo -->` and `<!-- end of report -->`. `--check` recomputes what is
published.
"""
import argparse
import sys
from pathlib import Path

from tools.report import benchmarks, budget, check, curves, documents, logs, paper, tables
from training import checkpoint, options
from utils import InputError

# Options that take the place of LOGS: what to do with the others, and which others they allow.
ALONE = {'update': ('LOGS and --table are given in the document', ()),
         'benchmarks': ('leave out LOGS and the other options', ()),
         'check': ('leave out LOGS and the other options', ('dataroot',)),
         'budget': ('leave out LOGS and the other options, except --plot and --title', ('plot', 'title'))}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Tell the test errors of runs: tables, and curves.')
    parser.add_argument('logs', nargs='*', type=options.path, metavar='LOGS',
                        help='log, folder of a run, or of folders of runs')
    parser.add_argument('--table', type=int, choices=list(paper.TABLES),
                        help="the rows of this table of the paper, in its order, rather than all pairs")
    parser.add_argument('--best_epoch', action='store_true',
                        help='also the error of the best epoch, which the test set itself chooses')
    parser.add_argument('--csv', type=options.file, metavar='FILE', help='write the table as CSV, too')
    parser.add_argument('--plot', type=_picture, metavar='FILE', help='draw the test errors: .png or .svg')
    parser.add_argument('--x', choices=list(curves.AXES), default='epoch', help='against what, in --plot')
    parser.add_argument('--plot_losses', type=_picture, metavar='FILE',
                        help="draw attention transfer's loss, and others, for each group: .png or .svg")
    parser.add_argument('--title', default='', help="of the drawings; the data set's name by default")
    parser.add_argument('--budget', type=options.path, metavar='FOLDER',
                        help='error against the number of epochs, and how many epochs a teacher saves')
    parser.add_argument('--benchmarks', type=options.file, metavar='FOLDER',
                        help='in place of runs, the tables of what tools.benchmark printed, .json each')
    parser.add_argument('--update', type=options.file, metavar='FILE',
                        help='write the tables in this document anew')
    parser.add_argument('--check', type=options.file, metavar='FOLDER',
                        help='recompute the logs and weights published there, and the tables of documents')
    parser.add_argument('--dataroot', type=options.path, metavar='FOLDER',
                        help='with --check: where CIFAR lies, to evaluate on')
    opt = parser.parse_args(arguments)
    alone = [name for name in ALONE if getattr(opt, name)]
    if opt.dataroot and not opt.check:
        parser.error('--dataroot has no effect without --check')
    if alone:
        instead, allowed = ALONE[alone[0]]
        allowed_values = {name: getattr(opt, name) for name in (alone[0], *allowed)}
        if vars(opt) != vars(parser.parse_args([])) | allowed_values:
            parser.error(f'--{alone[0]} stands alone: {instead}')
    if not alone and not opt.logs:
        parser.error('the following arguments are required: LOGS')
    if opt.x != parser.get_default('x') and not opt.plot:
        parser.error('--x has no effect without --plot')
    if opt.title and not (opt.plot or opt.plot_losses):
        parser.error('--title has no effect without --plot or --plot_losses')
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    if opt.update:
        before = documents.read(opt.update)
        after = documents.updated(before, opt.update.parent, parse)
        if after != before:
            _write(opt.update, after.encode())
        print(f'{opt.update} is {"unchanged" if after == before else "updated"}')
        return
    if opt.check:
        sys.exit(check.check(opt.check, opt.dataroot, parse) > 0)
    if opt.benchmarks:
        print(benchmarks.markdown(benchmarks.read(opt.benchmarks)))
        return
    if opt.budget:
        panels = budget.read(logs.read([opt.budget]))
        if opt.plot:
            _write(opt.plot, curves.budgets(panels, opt.plot.suffix[1:], opt.title))
        print(budget.markdown(panels))
        return
    runs = logs.read(opt.logs)
    sections = tables.sections(runs, opt.table)
    files = {}
    if opt.csv:
        files[opt.csv] = tables.csv(sections).encode()
    if opt.plot:
        files[opt.plot] = curves.errors(runs, opt.plot.suffix[1:], opt.title, opt.x)
    if opt.plot_losses:
        files[opt.plot_losses] = curves.losses(runs, opt.plot_losses.suffix[1:], opt.title)
    for path, content in files.items():
        _write(path, content)
    print(tables.markdown(sections, opt.best_epoch))


def _picture(name: str) -> Path:
    if Path(name).suffix not in curves.FORMATS:
        raise argparse.ArgumentTypeError(f'{name!r} does not end in {" or ".join(curves.FORMATS)}')
    return options.file(name)


def _write(path: Path, content: bytes) -> None:
    try:
        checkpoint.write_atomically(path, content)
    except OSError as e:
        raise InputError(f'cannot write {path}: {e.strerror}') from None
