"""Tables and curves from hand-written logs; every expected figure is worked out by hand."""
import io
import json

import pytest
from conftest import call
from PIL import Image

from tools import report
from utils import InputError


def write(folder, accuracies, seconds=60.0, **options):
    """The log of a run with a test accuracy an epoch. Options as ours; `folder` is made."""
    record = {'dataset': 'shapes', 'depth': 10, 'width': 1.0, 'teacher_id': '', 'alpha': 0.0, 'beta': 0.0,
              'epochs': len(accuracies), 'n_parameters': 1000, 'train_time': seconds, 'seed': 1, **options}
    lines = [json.dumps(record | {'epoch': i, 'test_acc': acc}) for i, acc in enumerate(accuracies, 1)]
    folder.mkdir(parents=True)
    (folder / 'log.txt').write_text('\n'.join(lines) + '\n')
    return folder


def published(folder, epoch=2, acc=93.75, epochs=2, **options):
    """A line of the published code's log, which has no seed, writes NaN, and its list of epochs as text."""
    record = {'depth': 16, 'width': 2, 'dataset': 'CIFAR10', 'teacher_id': '', 'alpha': 0, 'beta': 0,
              'temperature': 4, 'batch_size': 128, 'weight_decay': 5e-4, 'lr': 0.1, 'lr_decay_ratio': 0.2,
              'epoch_step': '[60,120,160]', 'randomcrop_pad': 4, 'dtype': 'float', 'epochs': epochs,
              'n_parameters': 693498, 'train_time': 12.5, 'at_losses': [[float('nan'), float('nan')]] * 3,
              'epoch': epoch, 'test_acc': acc, **options}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a') as log:
        log.write(f'json_stats: {json.dumps(record)}\n')


@pytest.fixture
def demo(tmp_path):
    """A teacher, and its students alone, by KD and by AT: three seeds, in a folder for each seed."""
    for seed, errors in enumerate([(8, 30, 55, 22), (6, 28, 40, 21), (7, 35, 52, 26)], 1):
        folder = tmp_path / 'logs' / str(seed)
        final = [100 - error for error in errors]
        write(folder / 'teacher', [50, 95, final[0]], depth=16, n_parameters=2000, seed=seed, epochs=3)
        write(folder / 'alone', [20, final[1]], seed=seed, seconds=20 * seed)
        for name, acc, method in [('kd', final[2], {'alpha': 0.9}), ('at', final[3], {'beta': 1e3})]:
            write(folder / name, [25, acc], seed=seed, teacher_id=f'gone/{seed}/teacher', **method)
    return tmp_path / 'logs'


def rows(text):
    """The cells of a Markdown table, without its two lines of heading."""
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines()[2:]]


def test_table_has_medians_and_ranges_of_seeds(demo):
    student = ['WRN-10-1', 'WRN-16-1']
    kd, at = '52.00 (40.00-55.00)', '22.00 (21.00-26.00)'
    assert rows(report.table(report.read([demo]))) == [
        ['WRN-16-1', '-', 'alone', 'shapes', '3', '3', '7.00 (6.00-8.00)', '5.00 (5.00-5.00)', '3 min'],
        ['WRN-10-1', '-', 'alone', 'shapes', '2', '3', '30.00 (28.00-35.00)', '30.00 (28.00-35.00)', '80 s'],
        [*student, 'KD', 'shapes', '2', '3', kd, kd, '2 min'],
        [*student, 'AT', 'shapes', '2', '3', at, at, '2 min']]


def test_table_is_markdown_in_columns_of_equal_width(demo):
    lines = report.table(report.read([demo])).splitlines()
    bars = [i for i, character in enumerate(lines[0]) if character == '|']
    assert all([i for i, character in enumerate(line) if character == '|'] == bars for line in lines)
    assert set(lines[1]) == set('|- ')


def test_one_run_has_no_range_and_two_have_their_mean(tmp_path):
    write(tmp_path / 'a', [60, 90.5])
    assert rows(report.table(report.read([tmp_path])))[0][5:8] == ['1', '9.50', '9.50']
    write(tmp_path / 'b', [60, 88.5], seed=2)
    assert rows(report.table(report.read([tmp_path])))[0][5:8] == ['2', *['10.50 (9.50-11.50)'] * 2]


def test_a_run_that_is_named_twice_counts_once(demo):
    runs = report.read([demo / '1' / 'teacher', demo, demo / '1' / '..' / '1' / 'at'])
    assert len(runs) == 12


def test_methods_are_named_by_the_weights_and_come_in_order(tmp_path):
    for name, weights in [('4', {'alpha': 0.9, 'beta': 10}), ('3', {'beta': 10}), ('2', {'alpha': 0.9})]:
        write(tmp_path / name, [50], teacher_id='t', **weights)
    write(tmp_path / '1', [50])
    assert [row[1:3] for row in rows(report.table(report.read([tmp_path])))] == [
        ['-', 'alone'], ['t', 'KD'], ['t', 'AT'], ['t', 'AT+KD']]


def test_runs_of_other_settings_are_other_rows_that_name_them(tmp_path):
    write(tmp_path / 'a', [50], teacher_id='t', beta=1e3, seed=1)
    write(tmp_path / 'b', [60], teacher_id='t', beta=1e3, seed=2)
    write(tmp_path / 'c', [70], teacher_id='t', beta=1e3, map_p=4.0, at_groups=[2])
    write(tmp_path / 'd', [80], teacher_id='t', alpha=0.9, lr=0.05)
    found = rows(report.table(report.read([tmp_path])))
    assert [(row[2], row[5], row[6]) for row in found] == [
        ('KD', '1', '20.00'),
        ('AT, map_p 2, at_groups None', '2', '45.00 (40.00-50.00)'),
        ('AT, map_p 4, at_groups [2]', '1', '30.00')]


def test_an_unfinished_run_is_not_mixed_with_finished_ones(tmp_path):
    write(tmp_path / 'a', [50, 60, 70])
    write(tmp_path / 'b', [50, 55], epochs=3, seed=2)
    assert sorted(row[4:7] for row in rows(report.table(report.read([tmp_path])))) == [
        ['2 of 3', '1', '45.00'], ['3', '1', '30.00']]


def test_published_logs(tmp_path):
    published(tmp_path / 'teacher', epoch=1, acc=90)
    published(tmp_path / 'teacher', epoch=1, acc=91)  # resumed: this epoch was run again
    published(tmp_path / 'teacher')
    with open(tmp_path / 'teacher' / 'log.txt', 'a') as log:
        log.write('json_stats: {"depth": 16, "wid')  # the machine went down
    for epoch in (1, 2):
        published(tmp_path / 'at', epoch, 92, teacher_id='teacher', beta=1000.0, width=1, n_parameters=175994)
    runs = report.read([tmp_path])
    assert rows(report.table(runs)) == [
        ['WRN-16-2', '-', 'alone', 'CIFAR10', '2', '1', '6.25', '6.25', '25 s'],
        ['WRN-16-1', 'WRN-16-2', 'AT', 'CIFAR10', '2', '1', '8.00', '8.00', '25 s']]
    assert next(run for run in runs if not run.teacher).errors == {1: 9, 2: 6.25}


def test_ours_and_a_published_run_of_the_same_options_share_a_row(tmp_path):
    published(tmp_path / 'a', epoch=1, epochs=1, acc=92)
    write(tmp_path / 'b', [94], dataset='CIFAR10', depth=16, width=2.0, n_parameters=693498, lr=0.1,
          map='sum', map_p=2.0, beta_decay='none', at_groups=None, epoch_step=[60, 120, 160], dtype='float')
    assert [row[5:7] for row in rows(report.table(report.read([tmp_path])))] == [['2', '7.00 (6.00-8.00)']]


def test_the_teacher_is_named_by_its_log_or_else_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'logs' / 'big', [50], depth=28, width=2.5)
    write(tmp_path / 'elsewhere' / 'student', [50], teacher_id='big', beta=1.0)
    write(tmp_path / 'elsewhere' / 'orphan', [50], teacher_id='some/weights.pt7', beta=1.0)
    assert {run.teacher for run in report.read(['elsewhere'])} == {'WRN-28-2.5', 'weights.pt7'}


@pytest.mark.parametrize(('seconds', 'text'), [
    (0.4, '0 s'), (119, '119 s'), (120, '2 min'), (7199, '120 min'), (7200, '2.0 h'), (12600, '3.5 h')])
def test_duration(seconds, text):
    assert report.duration(seconds) == text


# --- curves ---------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """All figures that a test draws."""
    drawn = []

    class Kept(report.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(report, 'Figure', Kept)
    return drawn


def names(*folders):
    return report.labels(report.group(report.read(folders)))


def test_lines_are_named_by_what_differs(demo, tmp_path):
    assert names(demo) == ['WRN-16-1, alone', 'WRN-10-1, alone', 'WRN-10-1, KD', 'WRN-10-1, AT']
    assert names(*demo.glob('*/at'), *demo.glob('*/kd')) == ['KD', 'AT']
    assert names(demo / '1' / 'at') == ['WRN-10-1']
    assert names(demo / '1' / 'teacher', demo / '1' / 'alone') == ['WRN-16-1', 'WRN-10-1']
    write(tmp_path / 'more' / 'at', [50], teacher_id='other', beta=1e3)
    assert names(demo / '1' / 'at', tmp_path / 'more') == ['from WRN-16-1', 'from other']
    write(tmp_path / 'longer' / 'alone', [50, 60, 70])
    assert names(demo / '1' / 'alone', tmp_path / 'longer') == ['2 epochs', '3 epochs']


def test_curves_are_medians_in_bands(demo, figures):
    image = Image.open(io.BytesIO(report.plot(report.read([demo]), 'png', 'A title')))
    assert image.format == 'PNG' and len(image.getcolors(1 << 20)) > 4
    axes, = figures[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == [text.get_text() for text in axes.get_legend().get_texts()]
    assert {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in lines.items()} == {
        'WRN-16-1, alone': ([1, 2, 3], [50, 5, 7]), 'WRN-10-1, alone': ([1, 2], [80, 30]),
        'WRN-10-1, KD': ([1, 2], [75, 52]), 'WRN-10-1, AT': ([1, 2], [75, 22])}
    bands = [band.get_datalim(axes.transData) for band in axes.collections]
    assert [(band.y0, band.y1) for band in bands] == [(5, 50), (28, 80), (40, 75), (21, 75)]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ('A title', 'epoch', 'test error, %')
    assert axes.get_ylim()[0] == 0
    assert len({line.get_color() for line in axes.lines}) == 4


def test_same_logs_same_svg_but_for_its_date(demo):
    def lines():
        svg = report.plot(report.read([demo]), 'svg')
        return [line for line in svg.splitlines() if b'<dc:date>' not in line]
    assert lines() == lines()


def test_more_lines_than_colours(tmp_path, figures):
    for i in range(9):
        write(tmp_path / str(i), [50, 60], width=i + 1)
    report.plot(report.read([tmp_path]), 'svg')
    pairs = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(pairs) == 9


# --- the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('ending', ['png', 'svg'])
def test_command_prints_the_table_and_writes_the_curves(demo, run_script, ending):
    done = run_script('tools.report', demo, '--plot', demo / f'curves.{ending}', '--title', 'Three seeds')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == report.table(report.read([demo])) + '\n'
    if ending == 'png':
        with Image.open(demo / 'curves.png') as image:
            assert min(image.size) > 500
    else:
        assert (demo / 'curves.svg').read_text().rstrip().endswith('</svg>')


def other_data_set(folder):
    write(folder / 'other', [50], dataset='CIFAR10')


def no_runs(folder):
    (folder / 'empty').mkdir(parents=True)


def no_epochs(folder):
    write(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('{"epoch": 1, "test_a')


def no_accuracy(folder):
    write(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('{"epoch": 1, "depth": 10, "width": 1}\n')


@pytest.mark.parametrize(('spoil', 'arguments', 'message'), [
    (None, [], 'the following arguments are required: LOGS'),
    (None, ['nowhere', '--plot', 'out.png'], 'there is no folder nowhere'),
    (None, ['runs/a/log.txt'], 'there is no folder runs/a/log.txt'),
    (no_runs, ['spoilt', '--plot', 'out.png'], 'neither spoilt nor a folder in it holds a log.txt'),
    (no_runs, ['runs', 'spoilt', '--plot', 'out.png'], 'neither spoilt nor a folder in it holds a log.txt'),
    (no_epochs, ['runs', 'spoilt', '--plot', 'out.png'], 'spoilt/a/log.txt holds no epoch of a run'),
    (no_accuracy, ['spoilt', '--plot', 'out.png'],
     'spoilt/a/log.txt is no log of a run: '
     'epoch 1 has no dataset, epochs, n_parameters, test_acc, train_time'),
    (other_data_set, ['runs', 'spoilt', '--plot', 'out.png'],
     'the runs are of several data sets, CIFAR10, shapes: report each alone'),
    (None, ['runs', '--plot', 'out.pdf'], "argument --plot: 'out.pdf' does not end in .png or .svg"),
    (None, ['runs', '--plot', 'missing/out.png'], 'cannot write missing/out.png: No such file or directory'),
])
def test_bad_input_ends_in_one_sentence(tmp_path, spoil, arguments, message):
    write(tmp_path / 'runs' / 'a', [50, 60])
    if spoil:
        spoil(tmp_path / 'spoilt')
    before = sorted(tmp_path.rglob('*'))
    done = call(report, *arguments, cwd=tmp_path)
    assert (done.status, done.out, done.err) == (2, '', f'tools.report.py: error: {message}\n')
    assert sorted(tmp_path.rglob('*')) == before


def test_table_of_several_data_sets_is_refused(tmp_path):
    write(tmp_path / 'runs', [50])
    other_data_set(tmp_path)
    with pytest.raises(InputError):
        report.table(report.read([tmp_path]))


def test_runs_of_imagenet_py(tmp_path):
    common = {'dataset': 'cub', 'width': 1.0, 'n_parameters': 10, 'epochs': 1, 'epoch': 1, 'train_time': 3.0}
    for name, more in {
            'r34': {'depth': 34, 'teacher_params': '', 'finetune': 'torchvision:resnet34', 'test_acc': 73.5},
            'r18_at': {'depth': 18, 'teacher_params': 'logs/r34', 'beta': 1000.0, 'test_acc': 73.0},
            'wide': {'depth': 18, 'width': 0.5, 'teacher_params': 'torchvision:resnet34', 'beta': 1.0,
                     'test_acc': 60.0}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'log.txt').write_text(json.dumps(common | more) + '\n')
    rows = [[cell.strip() for cell in row.split('|')[1:7]]
            for row in report.table(report.read([str(tmp_path)])).splitlines()[2:]]
    assert sorted(rows) == [['ResNet-18', 'ResNet-34', 'AT', 'cub', '1', '1'],
                            ['ResNet-18 x 0.5', 'torchvision:resnet34', 'AT', 'cub', '1', '1'],
                            ['ResNet-34', '-', 'alone', 'cub', '1', '1']]
