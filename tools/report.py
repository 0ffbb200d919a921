"""Table and curves of runs, from their logs.

    python -m tools.report logs/resnet_16_1 logs/at_16_1_16_2
    python -m tools.report logs/demo --plot logs/demo/curves.png --title 'Ten shapes'

Runs that differ only in their seed share a row and a line: the median, and the range of all.
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

TERMS = {'AT': 'beta', 'KD': 'alpha'}  # what a student learns from its teacher, and the option that weighs it
NEEDED = {'dataset': str, 'depth': int, 'width': int | float, 'epochs': int, 'n_parameters': int,
          'test_acc': int | float, 'train_time': int | float}
# Options in which runs of one method may differ, with what logs of the published code leave out.
SETTINGS = {
    'batch_size': 128, 'lr': 0.1, 'epoch_step': [60, 120, 160], 'lr_decay_ratio': 0.2, 'weight_decay': 5e-4,
    'randomcrop_pad': 4, 'dtype': 'float', 'alpha': 0.0, 'temperature': 4.0, 'beta': 0.0,
    'beta_decay': 'none', 'map': 'sum', 'map_p': 2.0, 'at_groups': None, 'at_from_epoch': 1,
    'finetune': '', 'freeze': 1}

FORMATS = ('.png', '.svg')
# Okabe and Ito's colours, which colour-blind eyes tell apart, without the yellow, too light for a line.
COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLES = ('-', '--', '-.', ':')  # the next one each time the colours are used up


class Run(NamedTuple):
    """What a log says. Runs that agree in the first five fields differ only in their seed."""
    student: str
    teacher: str  # its network, its name where that is not known, '' without a teacher
    method: str
    length: str  # in epochs
    settings: tuple[str, ...]
    dataset: str
    n_parameters: int
    errors: dict[int, float]  # test error in % by epoch, ascending
    seconds: float  # of training, without the tests


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Print a table of the test errors of runs, and plot them.')
    parser.add_argument('logs', nargs='+', metavar='LOGS', help='folder of a run, or of folders of runs')
    parser.add_argument('--plot', type=_picture, metavar='FILE', help='write the curves to this .png or .svg')
    parser.add_argument('--title', default='', help="of the plot; the data set's name by default")
    return parser.parse_args(arguments)


def main() -> None:
    opt = parse(sys.argv[1:])
    runs = read(opt.logs)
    text = table(runs)
    if opt.plot:
        try:
            checkpoint.write_atomically(opt.plot, plot(runs, opt.plot.suffix[1:], opt.title))
        except OSError as e:
            raise InputError(f'cannot write {opt.plot}: {e.strerror}') from None
    print(text)


def _picture(name: str) -> Path:
    if Path(name).suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f'{name!r} does not end in {" or ".join(FORMATS)}')
    return Path(name)


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
    # The published code goes on in the same file when it is resumed: the later line of an epoch counts.
    records = {record['epoch']: record for record in checkpoint.read_log(log)}
    records = {epoch: records[epoch] for epoch in sorted(records)}
    if not records:
        raise InputError(f'{log} holds no epoch of a run')
    for epoch, record in records.items():
        if missing := [name for name, kind in NEEDED.items() if not isinstance(record.get(name), kind)]:
            raise InputError(f'{log} is no log of a run: epoch {epoch} has no {", ".join(missing)}')
    teacher = str(record.get('teacher_id') or record.get('teacher_params') or '')
    terms = [name for name, weight in TERMS.items() if record.get(weight)]
    settings = {name: record.get(name, default) for name, default in SETTINGS.items()}
    return Run(
        student=_name(record),
        teacher=_network(log, teacher) if teacher else '',
        method='+'.join(terms) or 'alone',
        length=str(epoch) if epoch == record['epochs'] else f'{epoch} of {record["epochs"]}',
        # The published code logs the list epoch_step as text, without spaces.
        settings=tuple(f'{value:g}' if isinstance(value, int | float) else str(value).replace(' ', '')
                       for value in settings.values()),
        dataset=record['dataset'],
        n_parameters=record['n_parameters'],
        errors={epoch: 100 - record['test_acc'] for epoch, record in records.items()},
        seconds=sum(record['train_time'] for record in records.values()))


def _network(log: Path, teacher: str) -> str:
    """The teacher's network by its own log, which lies beside the student's folder or where it was then."""
    name = Path(teacher).name
    for folder in (log.parent.parent / name, Path('logs', teacher), Path(teacher)):
        if (folder / checkpoint.LOG).is_file() and folder.resolve() != log.parent.resolve():
            for record in checkpoint.read_log(folder / checkpoint.LOG):
                if isinstance(record.get('width'), int | float):
                    return _name(record)
    return name


def _name(record: dict[str, Any]) -> str:
    if 'teacher_params' not in record:
        return f'WRN-{record["depth"]}-{record["width"]:g}'
    return f'ResNet-{record["depth"]}' + (f' x {record["width"]:g}' if record['width'] != 1 else '')


def group(runs: list[Run]) -> list[list[Run]]:
    """Runs that differ only in their seed together; networks alone first, large ones ahead.

    The method is followed by the settings in which groups of the same student, teacher and method differ.
    """
    datasets = sorted({run.dataset for run in runs})
    if len(datasets) > 1:
        raise InputError(f'the runs are of several data sets, {", ".join(datasets)}: report each alone')
    found: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.teacher != '', -run.n_parameters, run.student, run.teacher,
                                             [term in run.method.split('+') for term in TERMS])):
        alike = zip(*(other.settings for other in runs if other[:3] == run[:3]), strict=True)
        more = [f'{name} {value}' for name, value, values in zip(SETTINGS, run.settings, alike, strict=True)
                if len(set(values)) > 1]
        found.setdefault(run[:5], []).append(run._replace(method=', '.join([run.method, *more])))
    return list(found.values())


# --- table ----------------------------------------------------------------------------------------------


def table(runs: list[Run]) -> str:
    """Markdown, a row for each student, teacher and method: test error of the last epoch, and the least.

    The least one is chosen by the test set itself, so it is no estimate of the error on other images.
    """
    rows = [['student', 'teacher', 'method', 'data set', 'epochs', 'seeds', 'test error, %', 'least, %',
             'training']]
    for same in group(runs):
        errors = [list(run.errors.values()) for run in same]
        rows.append([same[0].student, same[0].teacher or '-', same[0].method, same[0].dataset, same[0].length,
                     str(len(same)), spread([e[-1] for e in errors]), spread([min(e) for e in errors]),
                     duration(median(run.seconds for run in same))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(map(str.ljust, row, widths))} |' for row in rows)


def spread(values: list[float]) -> str:
    """'7.93' or, of several, their median and range: '7.93 (7.80-8.11)'."""
    middle = f'{median(values):.2f}'
    return middle if len(values) == 1 else f'{middle} ({min(values):.2f}-{max(values):.2f})'


def duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


# --- curves ---------------------------------------------------------------------------------------------


def plot(runs: list[Run], kind: str, title: str = '') -> bytes:
    """Test error against epoch, a line for each row of the table; the file as 'png' or 'svg'."""
    groups = group(runs)
    content = io.BytesIO()
    with rc_context({'font.size': 11, 'svg.hashsalt': 'the same names every time'}):
        figure = Figure(figsize=(7.2, 4.5), layout='constrained')
        axes = figure.add_subplot(title=title or runs[0].dataset, xlabel='epoch', ylabel='test error, %')
        for i, (same, label) in enumerate(zip(groups, labels(groups), strict=True)):
            epochs = sorted({epoch for run in same for epoch in run.errors})
            errors = [[run.errors[epoch] for run in same if epoch in run.errors] for epoch in epochs]
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            axes.plot(epochs, [median(e) for e in errors], style, color=colour, label=label, linewidth=1.8,
                      marker='o' if len(epochs) <= 30 else '', markersize=4)
            axes.fill_between(epochs, [min(e) for e in errors], [max(e) for e in errors], color=colour,
                              alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color='0.9')
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()


def labels(groups: list[list[Run]]) -> list[str]:
    """A name for each line: what differs among the lines, their length only if nothing else does."""
    names = [(run.student, run.teacher and f'from {run.teacher}', run.method, f'{run.length} epochs')
             for run, *_ in groups]
    differs = [len(set(column) - {''}) > 1 for column in zip(*names, strict=True)]
    differs[3] &= len({name[:3] for name in names}) < len(names)
    return [', '.join(part for part, shown in zip(name, differs, strict=True) if shown and part) or name[0]
            for name in names]


if __name__ == '__main__':
    training.script(main)
