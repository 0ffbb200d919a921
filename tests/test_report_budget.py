"""Error against the number of epochs, from hand-written logs; every expected figure is worked out by hand."""
import math

import numpy as np
import pytest

from helpers import call, listing
from report_logs import rows_of, write_run
from tools import report
from tools.report import budget, curves, logs

ERRORS = {  # of seeds 1, 2 and 3 by epochs
    'alone': {5: (40, 44, 42), 10: (30, 33, 28), 20: (22, 20, 21), 40: (10, 12, 14)},
    'AT': {5: (36, 30, 33), 10: (21, 20, 25), 20: (12, 15, 18), 40: (9, 8, 7)},
    'KD': {5: (50, 51, 52), 20: (20.5, 20.5, 20.5)}}
WEIGHTS = {'alone': {}, 'AT': {'beta': 1e3}, 'KD': {'alpha': 0.9}}


def write_budget(folder, **more):
    write_run(folder / '1' / 'teacher', [95], depth=16, n_parameters=2000, epochs=1)
    for method, budgets in ERRORS.items():
        for epochs, errors in budgets.items():
            for seed, error in enumerate(errors, 1):
                taught = {'teacher_id': 'x/1/teacher', **WEIGHTS[method]} if method != 'alone' else {}
                save = f'{seed}/{method}_{epochs}'
                write_run(folder / save, [50] * (epochs - 1) + [100 - error], seed=seed, save=f'x/{save}',
                          seconds=1.0, **taught, **more)
    return folder


@pytest.fixture
def demo(tmp_path):
    return write_budget(tmp_path / 'budget')


def panels(folder):
    return budget.read(logs.read([folder]))


def test_medians_and_ranges(demo):
    found = rows_of(budget.markdown(panels(demo)))
    title = 'WRN-10-1 from WRN-16-1, shapes'
    assert found[f'{title}: error, %, by epochs of training'] == [
        ['alone', '42.00 (40.00-44.00)', '30.00 (28.00-33.00)', '21.00 (20.00-22.00)', '12.00 (10.00-14.00)'],
        ['AT', '33.00 (30.00-36.00)', '21.00 (20.00-25.00)', '15.00 (12.00-18.00)', '8.00 (7.00-9.00)'],
        ['KD', '51.00 (50.00-52.00)', '', '20.50 (20.50-20.50)', '']]


def test_how_many_epochs_a_teacher_saves(demo):
    """Alone has 42, 30, 21, 12 after 5, 10, 20, 40. AT's 33 is 3 of 4 parts of the way from 42 to 30."""
    found = rows_of(budget.markdown(panels(demo)))
    title = 'WRN-10-1 from WRN-16-1, shapes: epochs that the student alone needs for the same error'
    assert found[title] == [
        ['AT', f'{5 * 2 ** 0.75:.1f}', '20.0', f'{20 * 2 ** (2 / 3):.1f}', '> 40'],
        ['KD', '< 5', '', f'{20 * 2 ** (0.5 / 9):.1f}', '']]
    assert f'{5 * 2 ** 0.75:.1f}' == '8.4'


@pytest.mark.parametrize('error', [41.9, 35.0, 30.0, 25.5, 21.0, 20.9, 13.0, 12.1])
def test_interpolation_as_by_numpy(error):
    alone = {5: 42.0, 10: 30.0, 20: 21.0, 40: 12.0}
    expected = np.exp(np.interp(-error, [-e for e in alone.values()], np.log(list(alone))))
    assert budget.epochs_alone(error, alone) == f'{expected:.1f}'


@pytest.mark.parametrize(('error', 'text'), [
    (42.0, '5.0'), (42.1, '< 5'), (12.0, '40.0'), (11.9, '> 40'), (25.0, '10.0'), (20.0, '28.3')])
def test_the_ends_and_a_curve_that_rises(error, text):
    """It is reached for the first time: 25 at 10 epochs, although it is 28 at 20 again."""
    assert budget.epochs_alone(error, {5: 42.0, 10: 25.0, 20: 28.0, 40: 12.0}) == text
    assert math.isclose(20 * 2 ** 0.5, 28.28, abs_tol=0.01)


def test_notes_tell_seeds_and_machines(demo):
    text = budget.markdown(panels(demo))
    epochs = sum(3 * sum(budgets) for budgets in ERRORS.values())
    assert 'over 3 seeds.' in text
    assert text.endswith(f'All runs above trained for {epochs} s on an unknown machine.')


def test_unfinished_runs_are_left_out(demo):
    write_run(demo / '4' / 'alone_5', [1, 1], seed=4, epochs=5)
    assert panels(demo)[0].curves[0].errors(5) == [40, 44, 42]


def test_other_training_is_another_curve_with_no_baseline(demo):
    for epochs in (5, 10):
        write_run(demo / f'cosine_{epochs}', [70] * epochs, teacher_id='x/1/teacher', save='x/cosine',
                  beta=1e3, lr_schedule='cosine')
    names = [curve.name for curve in panels(demo)[0].curves]
    assert 'AT, lr_schedule cosine' in names and len(names) == 4
    saved = list(rows_of(budget.markdown(panels(demo))).values())[1]
    assert 'AT, lr_schedule cosine' not in [row[0] for row in saved]


def test_a_method_with_one_number_of_epochs_is_no_curve(demo):
    """As other methods of a folder that has Table 1 too."""
    write_run(demo / 'hint', [50] * 5, teacher_id='x/1/teacher', save='x/hint', hint_beta=1.0)
    write_run(demo / 'other', [50] * 5, teacher_id='other', save='x/other', beta=1e3)
    panel, = panels(demo)
    assert [curve.name for curve in panel.curves] == ['alone', 'AT', 'KD']


def test_drops_in_proportion_make_one_curve_and_others_are_refused(tmp_path):
    for epochs, step in [(5, [2]), (10, [4])]:
        for seed in (1, 2):
            write_run(tmp_path / f'{seed}/alone_{epochs}', [50] * epochs, seed=seed, epoch_step=step)
            write_run(tmp_path / f'{seed}/at_{epochs}', [60] * epochs, seed=seed, epoch_step=step, beta=1.0,
                      teacher_id='t')
    panel, = panels(tmp_path)
    assert [(curve.name, list(curve.runs)) for curve in panel.curves] == [('alone', [5, 10]), ('AT', [5, 10])]
    write_run(tmp_path / '3/alone_5', [50] * 5, seed=3, epoch_step=[3])
    done = call(report, '--budget', tmp_path, cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1) and 'epoch_step' in done.err


def test_held_out_errors_are_called_so(tmp_path):
    for n in (1, 2):
        write_run(tmp_path / f'alone_{n}', [50] * n, val_images=100)
        write_run(tmp_path / f'at_{n}', [60] * n, val_images=100, teacher_id='t', beta=1.0)
    text = budget.markdown(panels(tmp_path))
    assert 'not on the test set' in text and 'Test error' not in text


def test_the_drawing(demo, monkeypatch):
    drawn = []

    class Kept(curves.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(curves, 'Figure', Kept)
    curves.budgets(panels(demo))
    axes, = drawn[0].axes
    assert {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines} == {
        'alone': [(5, 42), (10, 30), (20, 21), (40, 12)], 'AT': [(5, 33), (10, 21), (20, 15), (40, 8)],
        'KD': [(5, 51), (20, 20.5)]}
    assert axes.get_xscale() == 'log'
    assert [label.get_text() for label in axes.get_xticklabels()] == ['5', '10', '20', '40']
    areas = [area.get_datalim(axes.transData) for area in axes.collections]
    assert [(area.y0, area.y1) for area in areas] == [(10, 44), (7, 36), (20.5, 52)]


def test_the_command_prints_and_draws(demo, tmp_path):
    done = call(report, '--budget', 'budget', '--plot', 'budget.svg', '--title', 'A title', cwd=tmp_path)
    assert (done.status, done.out, done.err) == (0, budget.markdown(panels(demo)) + '\n', '')
    assert b'</svg>' in (tmp_path / 'budget.svg').read_bytes()


def test_several_folders_are_one_panel(demo):
    parts = [demo / '1', demo / '2', demo / '3']
    done = call(report, '--budget', *parts, cwd=demo)
    assert done.status == 0 and done.out == call(report, '--budget', demo, cwd=demo).out


def test_in_a_document(demo, tmp_path):
    document = tmp_path / 'document.md'
    document.write_text('<!-- report: --budget budget -->\n<!-- end of report -->\n')
    assert call(report, '--update', document, cwd='/').status == 0
    assert budget.markdown(panels(demo)) in document.read_text()


@pytest.mark.parametrize('arguments', [
    ['budget', '--budget', 'budget'], ['--budget', 'budget', '--table', '1'], ['--budget', 'nowhere'],
    ['--budget', 'budget', '--csv', 'a.csv'], ['--budget', 'budget/1/AT_5'], ['--budget', 'budget/1/teacher'],
    ['--budget', 'budget', '--benchmarks', 'x']])
def test_mistakes(demo, tmp_path, arguments):
    before = listing(tmp_path)
    done = call(report, *arguments, cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1)
    assert listing(tmp_path) == before
