"""Tables from hand-written logs. Every expected figure is worked out by hand."""
import csv
import io

import numpy as np
import pytest

from report_logs import rows_of, table_of, write_published, write_run
from tools.report import logs, tables
from utils import InputError

# --- tables ---------------------------------------------------------------------------------------------


def test_a_pair_reads_as_a_line_of_table_1(demo):
    assert rows_of(table_of(demo)) == {'WRN-10-1 from WRN-16-1, shapes': [
        ['WRN-10-1', 'alone', '2', '3', '30.00', '31.00', '28.00-35.00', '', '80 s'],
        ['WRN-10-1', 'AT', '2', '3', '22.00', '23.00', '21.00-26.00', '-8.00 +- 0.58 (3 seeds)', '2 min'],
        ['WRN-10-1', 'KD', '2', '3', '52.00', '49.00', '40.00-55.00', '+18.00 +- 3.79 (3 seeds)', '2 min'],
        ['WRN-16-1', 'alone', '3', '3', '7.00', '7.00', '6.00-8.00', '', '3 min']]}


def test_columns_are_named_and_of_equal_width(demo):
    text = table_of(demo)
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in lines[0].strip('|').split('|')] == [
        'network', 'method', 'epochs', 'seeds', 'median, %', 'mean', 'range', 'against alone',
        'training time']
    bars = [i for i, character in enumerate(lines[0]) if character == '|']
    assert all([i for i, character in enumerate(line) if character == '|'] == bars for line in lines)
    assert set(lines[1]) == set('|- ')


def test_one_run_has_no_range_and_two_have_their_mean(tmp_path):
    write_run(tmp_path / 'a', [60, 90.5])
    assert list(rows_of(table_of(tmp_path)).values())[0][0][3:6] == ['1', '9.50', '2 min']
    write_run(tmp_path / 'b', [60, 88.5], seed=2)
    assert list(rows_of(table_of(tmp_path)).values())[0][0][3:7] == ['2', '10.50', '10.50', '9.50-11.50']


def test_a_run_that_is_named_twice_counts_once_and_a_seed_that_ran_twice_is_told(demo, tmp_path):
    runs = logs.read([demo / '1' / 'teacher', demo, demo / '1' / '..' / '1' / 'at' / 'log.txt'])
    assert len(runs) == 12
    write_run(tmp_path / 'again', [25, 80], teacher_id='logs/gone/1/teacher', save='logs/gone/1/again',
              beta=1e3)
    (tmp_path / 'again').rename(demo / '1' / 'again')
    assert [row[3] for row in rows_of(table_of(demo))['WRN-10-1 from WRN-16-1, shapes']] == [
        '3', '3 (4 runs)', '3', '3']


def test_several_pairs_share_the_student_alone(tmp_path):
    """And what is in no pair stands apart; a network that teaches its like is there once."""
    write_run(tmp_path / 'alone', [50], n_parameters=10)
    for i, (name, depth) in enumerate([('a', 16), ('b', 22), ('c', 28)], 1):
        write_run(tmp_path / name, [50 + i], depth=depth, n_parameters=100 * i)
        if name != 'c':
            write_run(tmp_path / f'from_{name}', [60 + i], teacher_id=name, save=f'logs/from_{name}',
                      beta=1e3, n_parameters=10)
    write_run(tmp_path / 'self', [70], teacher_id='alone', save='logs/self', alpha=0.9, n_parameters=10)
    found = rows_of(table_of(tmp_path))
    same = found.pop('WRN-10-1 from WRN-10-1, shapes')  # which needs no column of networks
    assert [row[:1] + row[3:4] for row in same] == [['alone', '50.00'], ['KD', '30.00']]
    assert {title: [row[:2] + row[4:5] for row in part] for title, part in found.items()} == {
        'WRN-10-1 from WRN-16-1, shapes': [
            ['WRN-10-1', 'alone', '50.00'], ['WRN-10-1', 'AT', '39.00'], ['WRN-16-1', 'alone', '49.00']],
        'WRN-10-1 from WRN-22-1, shapes': [
            ['WRN-10-1', 'alone', '50.00'], ['WRN-10-1', 'AT', '38.00'], ['WRN-22-1', 'alone', '48.00']],
        'Without a teacher, shapes': [['WRN-28-1', 'alone', '47.00']]}


def test_methods_are_named_by_their_weights_and_come_in_the_order_of_table_1(tmp_path):
    weights = {'AT': ['beta'], 'F-ActT': ['hint_beta'], 'gradient AT': ['grad_beta'], 'KD': ['alpha'],
               'AT+KD': ['alpha', 'beta']}
    alone = {'symmetry': ['sym_beta'], 'min-l2': ['l2_beta'], 'symmetry+min-l2': ['l2_beta', 'sym_beta']}
    for name, options in (weights | alone).items():
        write_run(tmp_path / name, [50], teacher_id='t' if name in weights else '',
                  **dict.fromkeys(options, 0.5))
    write_run(tmp_path / 'alone', [50])
    assert [row[0] for row in rows_of(table_of(tmp_path))['WRN-10-1 from t, shapes']] == [
        'alone', *alone, *weights]


def test_runs_of_other_settings_are_other_rows_that_name_them(tmp_path):
    write_run(tmp_path / 'a', [50], teacher_id='t', beta=1e3, seed=1)
    write_run(tmp_path / 'b', [60], teacher_id='t', beta=1e3, seed=2)
    write_run(tmp_path / 'c', [70], teacher_id='t', beta=1e3, map_p=4.0, at_groups=[2])
    write_run(tmp_path / 'd', [80], teacher_id='t', alpha=0.9)
    write_run(tmp_path / 'e', [90], teacher_id='u', beta=1e2)
    found = rows_of(table_of(tmp_path))
    assert [(row[0], row[2], row[3]) for row in found['WRN-10-1 from t, shapes']] == [
        ('AT, map_p 2, at_groups all', '2', '45.00'), ('AT, map_p 4, at_groups [2]', '1', '30.00'),
        ('KD', '1', '20.00')]
    assert [row[0] for row in found['WRN-10-1 from u, shapes']] == ['AT']


def test_training_that_differs_is_told_of_all_runs_of_a_student(tmp_path):
    """Else the pictures of one would look like those of the other, which stands beside it."""
    write_run(tmp_path / 'alone', [50], augment='none')
    write_run(tmp_path / 'at', [60], teacher_id='t', save='logs/at', beta=1e3)
    write_run(tmp_path / 't', [70], depth=16, lr=0.05)
    assert [row[1] for row in rows_of(table_of(tmp_path))['WRN-10-1 from WRN-16-1, shapes']] == [
        'alone, augment none', 'AT, augment crop_flip', 'alone']


def test_an_unfinished_run_is_not_mixed_with_finished_ones(tmp_path):
    write_run(tmp_path / 'a', [50, 60, 70])
    write_run(tmp_path / 'b', [50, 55], epochs=3, seed=2)
    assert sorted(row[2:5] for row in rows_of(table_of(tmp_path))['Without a teacher, shapes']) == [
        ['2 of 3', '1', '45.00'], ['3', '1', '30.00']]


# --- differences to the student alone ---------------------------------------------------------------------


def against(folder, **alone):
    """Column 'against alone' by method: AT of seeds 1 to 4 with 20, 23, 26 and 50 %, alone of 2 to 5."""
    for seed, error in enumerate([20, 23, 26, 50], 1):
        write_run(folder / f'at{seed}', [100 - error], seed=seed, teacher_id='t', beta=1e3)
    for seed, error in alone.pop('errors', {2: 24, 3: 28, 4: 50, 5: 90}).items():
        write_run(folder / f'alone{seed}', [100 - error], seed=seed, **alone)
    header, _, *lines = [line for line in table_of(folder).splitlines() if line.startswith('|')]
    if 'against alone' not in header:
        return {}
    names = [cell.strip() for cell in header.split('|')]
    cells = [dict(zip(names, map(str.strip, line.split('|')), strict=True)) for line in lines]
    return {row['method']: row['against alone'] for row in cells}


def test_differences_are_those_of_the_seeds_that_both_have(tmp_path):
    differences = np.array([23 - 24, 26 - 28, 50 - 50])
    error = np.std(differences, ddof=1) / np.sqrt(3)
    assert against(tmp_path) == {'alone': '', 'AT': f'{np.mean(differences):+.2f} +- {error:.2f} (3 seeds)'}
    assert f'{error:.2f}' == '0.58'


def test_one_seed_has_a_difference_without_an_error(tmp_path):
    assert against(tmp_path, errors={3: 27}) == {'alone': '', 'AT': '-1.00 (1 seed)'}


@pytest.mark.parametrize('other', [
    {'errors': {9: 10}}, {'width': 2.0}, {'lr': 0.05}, {'epochs': 5}, {'lr_schedule': 'linear'},
    {'optimizer': 'adam'}, {'alpha': 0.9}])
def test_no_difference_to_other_seeds_networks_and_training(tmp_path, other):
    assert not any(against(tmp_path, **other).values())


def test_options_of_a_loss_do_not_separate_a_method_from_the_student_alone(tmp_path):
    write_run(tmp_path / 'alone', [70])
    for i, more in enumerate([{'map_p': 4.0}, {'beta_decay': 'linear', 'alpha': 0.9}, {'at_groups': [1]}]):
        write_run(tmp_path / str(i), [72 + i], teacher_id='t', beta=1e3, **more)
    assert [row[4] for row in rows_of(table_of(tmp_path))['WRN-10-1 from t, shapes']] == [
        '', '-4.00 (1 seed)', '-2.00 (1 seed)', '-3.00 (1 seed)']


def test_a_seed_that_ran_twice_counts_once_with_its_mean(tmp_path):
    write_run(tmp_path / 'again', [60], seed=2)  # 40 and 24 %
    assert against(tmp_path, errors={2: 24})['AT'] == '-9.00 (1 seed)'


def test_runs_without_a_seed_have_no_pairs(tmp_path):
    write_published(tmp_path / 'alone')
    write_published(tmp_path / 'kd', teacher_id='t', alpha=0.9)
    assert 'against alone' not in table_of(tmp_path)


# --- agreement, held-out images, machines -----------------------------------------------------------------


def test_agreement_with_the_teacher_has_a_table_of_its_own(tmp_path):
    """Of the last epoch, which is what `write` gives every line; means over seeds that have it."""
    write_run(tmp_path / 'alone', [70])
    for seed, (same, cosines) in enumerate([(80.0, [0.9, 0.8, 0.5]), (85.0, [0.8, 0.7, 0.4])], 1):
        write_run(tmp_path / f'at{seed}', [60, 70], seed=seed, teacher_id='t', beta=1e3, test_agreement=same,
                  test_map_cosines=cosines)
    write_run(tmp_path / 'kd', [70], teacher_id='t', alpha=0.9, test_agreement=71.25)
    lines = table_of(tmp_path).split('\n\n')[2].splitlines()
    assert [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if '--' not in line] == [
        ['method', 'epochs', 'same class, %', 'cosine, group 0', 'cosine, group 1', 'cosine, group 2'],
        ['AT', '2', '82.50', '0.850', '0.750', '0.450'], ['KD', '1', '71.25', '', '', '']]
    text = tables.csv_of(tables.sections(logs.read([tmp_path])))
    found, = (row for row in csv.DictReader(io.StringIO(text)) if row['method'] == 'AT')
    assert [found['agreement'], *(found[f'cosine_{i}'] for i in range(3))] == ['82.5', '0.85', '0.75', '0.45']


def test_held_out_images_are_not_mixed_with_the_test_set(tmp_path):
    write_run(tmp_path / 'tune' / 'a', [70], val_images=5000)
    text = table_of(tmp_path / 'tune')
    assert list(rows_of(text)) == ['Without a teacher, shapes (5000 held-out training images)']
    assert 'not on the test set' in text and 'Test error' not in text
    write_run(tmp_path / 'a', [70])
    assert 'Test error' in table_of(tmp_path / 'a')
    with pytest.raises(InputError, match='held-out'):
        table_of(tmp_path)


def test_seconds_and_machines(tmp_path):
    """Two runs of two epochs of 600 s on a GPU, one of 60 s elsewhere, one that logs no machine."""
    for seed in (1, 2):
        write_run(tmp_path / f'a{seed}', [50, 60], seconds=600, seed=seed, device_name='NVIDIA H200')
    write_run(tmp_path / 'b', [50], seed=3, device_name='a CPU')
    write_run(tmp_path / 'c', [50], seed=4)
    assert table_of(tmp_path).endswith(' 2,400 s on NVIDIA H200; 60 s on a CPU; 60 s on an unknown machine.')


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('seconds', 'text'), [
    (0.4, '0 s'), (119, '119 s'), (120, '2 min'), (7199, '120 min'), (7200, '2.0 h'), (12600, '3.5 h')])
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


def test_csv_has_the_same_rows_as_numbers(demo):
    found = list(csv.DictReader(io.StringIO(tables.csv_of(tables.sections(logs.read([demo]))))))
    assert [row['method'] for row in found] == ['alone', 'AT', 'KD', 'alone']
    assert found[1] == {
        'section': 'WRN-10-1 from WRN-16-1, shapes', 'network': 'WRN-10-1', 'teacher': 'WRN-16-1',
        'method': 'AT', 'epochs': '2', 'seeds': '3', 'runs': '3', 'median': '22', 'mean': '23',
        'min': '21', 'max': '26', 'top5': '', 'against_alone': '-8', 'against_alone_error': '0.5774',
        'paired_seeds': '3', 'paper': '', 'paper_top5': '', 'elsewhere': '', 'seconds': '120.0',
        'agreement': ''}
