"""Table and curves of finished runs, from their logs.

    python -m tools.report logs/resnet_16_1 logs/at_16_1_16_2
    python -m tools.report results/demo --plot curves.png --title 'Ten shapes'

Runs that differ only in their seed share a row and a line: the median, and from the smallest to the largest.
"""
import argparse
import io
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

import checkpoint
import options
import training
from utils import InputError

Record = dict[str, Any]  # an epoch: all options and results

METHODS = ('alone', 'KD', 'AT', 'AT+KD')  # in the order of rows and lines
# Options that make two runs of one method different experiments, with what logs of the published code leave out.
SETTINGS = {'batch_size': 128, 'lr': 0.1, 'epoch_step': [], 'lr_decay_ratio': 0.2, 'weight_decay': 5e-4,
            'randomcrop_pad': 4, 'dtype': 'float', 'alpha': 0.0, 'temperature': 4.0, 'beta': 0.0,
            'beta_decay': 'none', 'map': 'sum', 'map_p': 2.0, 'at_groups': None}
NEEDED = ('dataset', 'depth', 'width', 'epochs', 'test_acc', 'train_time', 'n_parameters')

# Okabe and Ito's colours, told apart by colour-blind eyes, without the yellow that is too light for a line.
COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLES = ('-', '--', '-.', ':')  # once the colours are used up
FORMATS = ('.png', '.svg')


class Run(NamedTuple):
    """A finished or unfinished run."""
    epochs: dict[int, Record]  # by epoch, ascending
    teacher: str  # its network; its name where that is not known, '' without a teacher

    @property
    def last(self) -> Record:
        return self.epochs[max(self.epochs)]

    @property
    def errors(self) -> dict[int, float]:
        """Test error in % by epoch."""
        return {epoch: 100 - record['test_acc'] for epoch, record in self.epochs.items()}

    @property
    def method(self) -> str:
        return '+'.join(name for name, weight in (('AT', 'beta'), ('KD', 'alpha')) if self.last.get(weight)) or 'alone'

    @property
    def length(self) -> str:
        """Epochs, or how many of them are done."""
        done, asked = max(self.epochs), self.last['epochs']
        return str(done) if done == asked else f'{done} of {asked}'


class Group(NamedTuple):
    """Runs that differ only in their seed."""
    student: str
    teacher: str
    method: str  # followed by the settings that tell it from the other groups of this method
    length: str
    runs: list[Run]


def main() -> None:
    parser = options.Parser('Print a table of the test errors of runs, and plot them.')
    parser.add_argument('logs', nargs='+', metavar='LOGS', help='folder of a run, or of folders of runs')
    parser.add_argument('--plot', type=_picture, metavar='FILE', help='write the curves to a .png or .svg')
    parser.add_argument('--title', default='', help="of the plot; the data set's name by default")
    opt = parser.parse_args(sys.argv[1:])
    runs = read(opt.logs)
    text = table(runs)
    if opt.plot:
        try:
            checkpoint.write_atomically(opt.plot, plot(runs, opt.plot.suffix[1:], opt.title))
        except OSError as e:
            raise InputError(f'cannot write {opt.plot}: {e.strerror}') from None
    print(text)


def _picture(name: str) -> Path:
    path = Path(name)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f'{name!r} does not end in {" or ".join(FORMATS)}')
    return path


# --- reading ------------------------------------------------------------------------------------------


def read(folders: list[str]) -> list[Run]:
    """The runs in the folders and their sub-folders, each once; at least one in every folder."""
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f'there is no folder {folder}')
        logs = sorted(folder.rglob(checkpoint.LOG))
        if not logs:
            raise InputError(f'neither {folder} nor a folder in it holds a {checkpoint.LOG}')
        found |= {log.resolve(): log for log in logs}
    return [read_run(log) for log in found.values()]


def read_run(log: Path) -> Run:
    # The published code went on in the same file when a run was resumed: the later line of an epoch counts.
    epochs = {record['epoch']: record for record in checkpoint.read_log(log)}
    if not epochs:
        raise InputError(f'{log} holds no epoch of a run')
    for record in epochs.values():
        missing = [name for name in NEEDED if record.get(name) is None]
        if missing:
            raise InputError(f'{log} is no log of cifar.py: epoch {record["epoch"]} has no {", ".join(missing)}')
    run = Run(dict(sorted(epochs.items())), '')
    teacher = run.last.get('teacher_id') or ''
    return run._replace(teacher=_teacher(log, teacher)) if teacher else run


def _teacher(log: Path, name: str) -> str:
    """The teacher's network by its own log, which lies beside the student's or where it was when it taught."""
    for folder in (log.parent.parent / Path(name).name, Path('logs', name), Path(name)):
        if (folder / checkpoint.LOG).is_file():
            return network(read_run(folder / checkpoint.LOG).last)
    return Path(name).name


def network(record: Record) -> str:
    return f'WRN-{record["depth"]}-{record["width"]:g}'


# --- what belongs together -----------------------------------------------------------------------------


def group(runs: list[Run]) -> list[Group]:
    """Runs of one data set, those that differ only in their seed together; networks alone first, the largest ahead."""
    datasets = sorted({run.last['dataset'] for run in runs})
    if len(datasets) > 1:
        raise InputError(f'the runs are of different data sets ({", ".join(datasets)}): report each on its own')
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (network(run.last), run.teacher, run.method), run.length, settings(run)
        found.setdefault(key, []).append(run)
    groups = []
    for (who, length, own), members in found.items():
        others = [other for same, _, other in found if same == who]
        differ = [pair for i, pair in enumerate(own) if len({other[i] for other in others}) > 1]
        student, teacher, method = who
        more = ', '.join(f'{name} {value}' for name, value in differ)
        groups.append(Group(student, teacher, f'{method}, {more}' if more else method, length, members))
    return sorted(groups, key=lambda g: (
        g.teacher != '', -g.runs[0].last['n_parameters'], g.teacher, METHODS.index(g.runs[0].method), g.method, g.length))


def settings(run: Run) -> tuple[tuple[str, str], ...]:
    values = {name: run.last.get(name, default) for name, default in SETTINGS.items()}
    if isinstance(values['epoch_step'], str):  # as the published code logs it
        values['epoch_step'] = options.int_list(values['epoch_step'])
    return tuple((name, f'{value:g}' if isinstance(value, int | float) else str(value))
                 for name, value in values.items())


# --- table ----------------------------------------------------------------------------------------------


def table(runs: list[Run]) -> str:
    """Markdown, a row for each student, teacher and method."""
    head = ['student', 'teacher', 'method', 'data set', 'epochs', 'seeds', 'test error, %', 'at its best epoch, %',
            'training time']
    rows = [head]
    for g in group(runs):
        last, best = ([f(list(run.errors.values())) for run in g.runs] for f in (lambda errors: errors[-1], min))
        time = median(sum(record['train_time'] for record in run.epochs.values()) for run in g.runs)
        rows.append([g.student, g.teacher or '-', g.method, g.runs[0].last['dataset'], g.length, str(len(g.runs)),
                     spread(last), spread(best), duration(time)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(map(str.ljust, row, widths))} |' for row in rows)


def spread(values: list[float]) -> str:
    """'7.93' or, of several, median and range: '7.93 (7.80-8.11)'."""
    middle = f'{median(values):.2f}'
    return middle if len(values) == 1 else f'{middle} ({min(values):.2f}-{max(values):.2f})'


def duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


# --- curves ---------------------------------------------------------------------------------------------


def plot(runs: list[Run], kind: str, title: str = '') -> bytes:
    """Test error against epoch as a file of the kind 'png' or 'svg'."""
    groups = group(runs)
    names = labels(groups)
    with rc_context({'font.size': 11, 'svg.fonttype': 'none', 'svg.hashsalt': 'report'}):
        figure = Figure(figsize=(7.2, 4.5), layout='constrained')
        axes = figure.add_subplot()
        for i, (g, name) in enumerate(zip(groups, names, strict=True)):
            epochs = sorted({epoch for run in g.runs for epoch in run.epochs})
            errors = [[run.errors[epoch] for run in g.runs if epoch in run.epochs] for epoch in epochs]
            colour = COLOURS[i % len(COLOURS)]
            style = STYLES[i // len(COLOURS) % len(STYLES)]
            axes.plot(epochs, list(map(median, errors)), style, color=colour, linewidth=1.8, label=name,
                      marker='o' if len(epochs) <= 30 else '', markersize=4)
            if len(g.runs) > 1:
                axes.fill_between(epochs, list(map(min, errors)), list(map(max, errors)), color=colour, alpha=0.15,
                                  linewidth=0)
        axes.set_title(title or runs[0].last['dataset'])
        axes.set_xlabel('training, epochs')
        axes.set_ylabel('test error, %')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        axes.grid(color='0.9', linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()


def labels(groups: list[Group]) -> list[str]:
    """What tells the lines apart, a name for each."""
    columns = [[g.student for g in groups], [g.teacher for g in groups], [g.method for g in groups],
               [g.length for g in groups]]
    ...
