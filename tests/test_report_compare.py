"""Losses compared with equal effort, from hand-written logs; every expected figure is worked out by hand."""
import math
import re
from statistics import mean, stdev

import pytest

from helpers import call
from report_logs import rows_of, write_run
from tools import report
from tools.report import compare, curves, logs
from utils import InputError

HELD_OUT = {  # errors of seeds 11 and 12 by weight
    'beta': {333: (31, 33), 1000: (29, 30), 3000: (28, 32)}, 'alpha': {0.75: (35,), 0.9: (34.5,)},
    'hint_beta': {100: (40,)}}
ERRORS = {'alone': (30, 34, 29), 'beta': (26, 29.5, 25), 'alpha': (29, 35, 30)}  # of seeds 1, 2 and 3
WEIGHTS = {'beta': 1000, 'alpha': 0.9}


def write_choice(folder, seed, name, error, **more):
    write_run(folder / 'choice' / str(seed) / name, [100 - error], seed=seed, val_images=500,
              teacher_id=f'x/choice/{seed}/wrn_16', save=f'x/choice/{seed}/{name}', **more)


def write_comparison(folder, **more):
    for seed in 11, 12:
        write_run(folder / 'choice' / str(seed) / 'wrn_16', [90], depth=16, n_parameters=2000, seed=seed,
                  val_images=500)
    for loss, by_weight in HELD_OUT.items():
        for weight, errors in by_weight.items():
            for seed, error in enumerate(errors, 11):
                write_choice(folder, seed, f'{loss}_{weight}', error, **{loss: weight})
    for seed in 1, 2, 3:
        place = folder / 'final' / str(seed)
        write_run(place / 'wrn_16', [93], depth=16, n_parameters=2000, seed=seed)
        for loss, errors in ERRORS.items():
            taught = {} if loss == 'alone' else {loss: WEIGHTS[loss], 'teacher_id': f'x/final/{seed}/wrn_16',
                                                 'save': f'x/final/{seed}/{loss}'}
            write_run(place / loss, [100 - errors[seed - 1]], seed=seed, **taught, **more)
    return folder


def read(folder):
    return compare.read(logs.read([folder]))


def test_table(tmp_path):
    text = compare.markdown(read(write_comparison(tmp_path / 'x')))
    (title, rows), = rows_of(text).items()
    assert title == 'WRN-10-1 from WRN-16-1, shapes, 1 epochs'
    # differences of AT: -4, -4.5, -4; of KD: -1, 1, 1; of AT to KD: -3, -5.5, -5
    assert rows == [
        ['alone', '', '', '3', '31.00', '29.00-34.00', '', ''],  # its difference to KD is that of KD to it
        ['AT', '333 (32.00), 1000 (29.50), 3000 (30.00)', '1000', '3', '26.83', '25.00-29.50',
         '-4.17 +- 0.17 (3 seeds)', '-4.50 +- 0.76 (3 seeds), not distinguishable'],
        ['KD', '0.75 (35.00), 0.9 (34.50)', '0.9', '3', '31.33', '29.00-35.00',
         '+0.33 +- 0.67 (3 seeds), not distinguishable', ''],
        ['F-ActT', '100 (40.00)', '', '0', 'missing', '', '', '']]
    assert '3 differences' in text and 'Bonferroni' in text


def test_weights_are_chosen_for_one_pair(tmp_path):
    """Not from runs of two comparisons in one folder."""
    folder = write_comparison(tmp_path / 'x')
    assert compare.chosen(logs.read([folder]))
    write_choice(folder, 11, 'other', 20, beta=1000, depth=22, n_parameters=3000)
    with pytest.raises(InputError, match='students'):
        compare.chosen(logs.read([folder]))


def test_margin(tmp_path):
    comparison = read(write_comparison(tmp_path / 'x'))
    # Student's t with 2 degrees of freedom has the quantile (2p - 1) sqrt(2 / (4 p (1 - p)))
    p = 1 - 0.05 / (2 * 3)
    t = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    values = [-4.0, -4.5, -4.0]
    assert comparison.margin(values) == pytest.approx(t * stdev(values) / math.sqrt(3), rel=1e-4)
    assert comparison.margin([1.0]) is None


@pytest.mark.parametrize('freedom', [1, 2, 4, 9, 100])
@pytest.mark.parametrize('p', [0.5, 0.9, 0.975, 0.999])
def test_quantile(p, freedom):
    stats = pytest.importorskip('scipy.stats')  # comes with scikit-image
    assert compare.quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-3, abs=1e-9)


def test_seeds_that_only_one_has_are_not_compared(tmp_path):
    folder = write_comparison(tmp_path / 'x')
    for path in (folder / 'final' / '3' / 'alone').iterdir():
        path.unlink()
    entries = read(folder).entries
    at, = (entry for entry in entries if entry.name == 'AT')
    assert read(folder).differences(at, 'alone') == [-4.0, -4.5]
    assert mean(run.error for run in at.runs) == pytest.approx(26.8333, abs=1e-3)


def test_other_settings_of_a_loss_are_another_loss(tmp_path):
    folder = write_comparison(tmp_path / 'x')
    write_choice(folder, 11, 'max', 40, beta=1e3, map='max')
    assert {entry.name: entry.tried for entry in read(folder).entries}['AT, map max'] == {'1000': 40.0}


@pytest.mark.parametrize(('more', 'word'), [
    ({'beta': 500, 'teacher_id': 'x/final/1/wrn_16', 'save': 'x/final/1/more'}, 'weights'),
    ({'lr': 0.3}, 'training'), ({'dataset': 'CIFAR10'}, 'data')])
def test_what_cannot_be_compared(tmp_path, more, word):
    folder = write_comparison(tmp_path / 'x')
    write_run(folder / 'final/1/more', [60], seed=4, **more)
    with pytest.raises(InputError, match=word):
        read(folder)


def test_nothing_to_compare(tmp_path):
    write_run(tmp_path / 'x', [60])
    done = call(report, '--compare', 'x', cwd=tmp_path)
    assert done.status == 2 and re.search('finished', done.err)


def test_choice(tmp_path):
    folder = write_comparison(tmp_path / 'x')
    write_choice(folder, 11, 'at_kd', 25, beta=1e3, alpha=0.9, beta_decay='linear')
    done = call(report, '--choose', folder / 'choice', cwd=tmp_path)
    assert (done.status, set(done.out.splitlines())) == (0, {
        '--alpha 0.9', '--beta 1000', '--beta 1000 --alpha 0.9 --beta_decay linear', '--hint_beta 100'})
    done = call(report, '--choose', folder / 'final', cwd=tmp_path)
    assert done.status == 2 and '--val_images' in done.err


def test_picture_and_document(tmp_path):
    folder = write_comparison(tmp_path / 'x')
    done = call(report, '--compare', folder, '--plot', 'compare.svg', cwd=tmp_path)
    assert done.status == 0 and '</svg>' in (tmp_path / 'compare.svg').read_text()
    figure = curves.comparison(read(folder))
    figure.canvas.draw()
    title = figure._suptitle.get_window_extent()
    assert title.x0 > 0 and title.x1 < figure.bbox.x1
    document = tmp_path / 'comparison.md'
    document.write_text('<!-- report: --compare x -->\n<!-- end of report -->\n')
    assert call(report, '--update', document, cwd=tmp_path).status == 0
    assert compare.markdown(read(folder)) in document.read_text()
