"""Runs and tables from hand-written logs; every expected figure is worked out by hand."""
import csv
import io
import json

import pytest
from conftest import ROOT, call, listing

from tools import report
from tools.report import documents, logs, paper, tables
from utils import InputError

NAN = float('nan')


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
              'n_parameters': 693498, 'train_time': 12.5, 'at_losses': [[NAN, NAN]] * 3, 'train_loss': NAN,
              'save': str(folder), 'epoch': epoch, 'test_acc': acc, **options}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a') as log:
        log.write(f'json_stats: {json.dumps(record)}\n')


def write_demo(folder):
    """A teacher, and its students alone, by KD and by AT: three seeds, in a folder for each seed."""
    for seed, errors in enumerate([(8, 30, 55, 22), (6, 28, 40, 21), (7, 35, 52, 26)], 1):
        place = folder / str(seed)
        final = [100 - error for error in errors]
        write(place / 'teacher', [50, 95, final[0]], depth=16, n_parameters=2000, seed=seed, epochs=3)
        write(place / 'alone', [20, final[1]], seed=seed, seconds=20 * seed)
        for name, acc, method in [('kd', final[2], {'alpha': 0.9}), ('at', final[3], {'beta': 1e3})]:
            write(place / name, [25, acc], seed=seed, teacher_id=f'logs/gone/{seed}/teacher',
                  save=f'logs/gone/{seed}/{name}', **method)
    return folder


@pytest.fixture
def demo(tmp_path):
    return write_demo(tmp_path / 'logs')


def table(*paths, number=None):
    return tables.markdown(tables.sections(logs.read(paths), number))


def rows(text):
    """The cells of the Markdown tables in a text by their titles, without the two lines of heading."""
    found = {}
    for part in text.split('**')[1:]:
        if '|' not in part:
            title = part
            continue
        lines = [line for line in part.splitlines() if line.startswith('|')]
        found[title] = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
    return found


def errors(*paths):
    """Of all runs, in the order of the files: their errors by epoch."""
    return [run.errors for run in logs.read(paths)]


# --- tables ---------------------------------------------------------------------------------------------


def test_a_pair_reads_as_a_line_of_table_1(demo):
    assert rows(table(demo)) == {'WRN-10-1 from WRN-16-1, shapes': [
        ['WRN-10-1', 'alone', '2', '3', '30.00', '31.00', '28.00-35.00', '30.00', '80 s'],
        ['WRN-10-1', 'AT', '2', '3', '22.00', '23.00', '21.00-26.00', '22.00', '2 min'],
        ['WRN-10-1', 'KD', '2', '3', '52.00', '49.00', '40.00-55.00', '52.00', '2 min'],
        ['WRN-16-1', 'alone', '3', '3', '7.00', '7.00', '6.00-8.00', '5.00', '3 min']]}


def test_columns_are_named_and_of_equal_width(demo):
    text = table(demo)
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in lines[0].strip('|').split('|')] == [
        'network', 'method', 'epochs', 'seeds', 'last epoch, %: median', 'mean', 'range', 'best epoch, %',
        'training time']
    bars = [i for i, character in enumerate(lines[0]) if character == '|']
    assert all([i for i, character in enumerate(line) if character == '|'] == bars for line in lines)
    assert set(lines[1]) == set('|- ')
    assert 'the test set itself' in text.splitlines()[-1]


def test_one_run_has_no_range_and_two_have_their_mean(tmp_path):
    write(tmp_path / 'a', [60, 90.5])
    assert list(rows(table(tmp_path)).values())[0][0][3:7] == ['1', '9.50', '9.50', '9.50']
    write(tmp_path / 'b', [60, 88.5], seed=2)
    assert list(rows(table(tmp_path)).values())[0][0][3:7] == ['2', '10.50', '10.50', '9.50-11.50']


def test_a_run_that_is_named_twice_counts_once_and_a_seed_that_ran_twice_is_told(demo, tmp_path):
    runs = logs.read([demo / '1' / 'teacher', demo, demo / '1' / '..' / '1' / 'at' / 'log.txt'])
    assert len(runs) == 12
    write(tmp_path / 'again', [25, 80], teacher_id='logs/gone/1/teacher', save='logs/gone/1/again', beta=1e3)
    (tmp_path / 'again').rename(demo / '1' / 'again')
    assert [row[3] for row in rows(table(demo))['WRN-10-1 from WRN-16-1, shapes']] == [
        '3', '3 (4 runs)', '3', '3']


def test_several_pairs_share_the_student_alone(tmp_path):
    """And what is in no pair stands apart; a network that teaches its like is there once."""
    write(tmp_path / 'alone', [50], n_parameters=10)
    for i, (name, depth) in enumerate([('a', 16), ('b', 22), ('c', 28)], 1):
        write(tmp_path / name, [50 + i], depth=depth, n_parameters=100 * i)
        if name != 'c':
            write(tmp_path / f'from_{name}', [60 + i], teacher_id=name, save=f'logs/from_{name}', beta=1e3,
                  n_parameters=10)
    write(tmp_path / 'self', [70], teacher_id='alone', save='logs/self', alpha=0.9, n_parameters=10)
    found = rows(table(tmp_path))
    assert {title: [row[:2] + row[4:5] for row in part] for title, part in found.items()} == {
        'WRN-10-1 from WRN-10-1, shapes': [['WRN-10-1', 'alone', '50.00'], ['WRN-10-1', 'KD', '30.00']],
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
        write(tmp_path / name, [50], teacher_id='t' if name in weights else '', **dict.fromkeys(options, 0.5))
    write(tmp_path / 'alone', [50])
    assert [row[1] for row in rows(table(tmp_path))['WRN-10-1 from t, shapes']] == [
        'alone', *alone, *weights]


def test_runs_of_other_settings_are_other_rows_that_name_them(tmp_path):
    write(tmp_path / 'a', [50], teacher_id='t', beta=1e3, seed=1)
    write(tmp_path / 'b', [60], teacher_id='t', beta=1e3, seed=2)
    write(tmp_path / 'c', [70], teacher_id='t', beta=1e3, map_p=4.0, at_groups=[2])
    write(tmp_path / 'd', [80], teacher_id='t', alpha=0.9)
    write(tmp_path / 'e', [90], teacher_id='u', beta=1e2)
    found = rows(table(tmp_path))
    assert [(row[1], row[3], row[4]) for row in found['WRN-10-1 from t, shapes']] == [
        ('AT, map_p 2, at_groups all', '2', '45.00'), ('AT, map_p 4, at_groups [2]', '1', '30.00'),
        ('KD', '1', '20.00')]
    assert [row[1] for row in found['WRN-10-1 from u, shapes']] == ['AT']


def test_training_that_differs_is_told_of_all_runs_of_a_student(tmp_path):
    """Else the pictures of one would look like those of the other, which stands beside it."""
    write(tmp_path / 'alone', [50], augment='none')
    write(tmp_path / 'at', [60], teacher_id='t', save='logs/at', beta=1e3)
    write(tmp_path / 't', [70], depth=16, lr=0.05)
    assert [row[1] for row in rows(table(tmp_path))['WRN-10-1 from WRN-16-1, shapes']] == [
        'alone, augment none', 'AT, augment crop_flip', 'alone']


def test_an_unfinished_run_is_not_mixed_with_finished_ones(tmp_path):
    write(tmp_path / 'a', [50, 60, 70])
    write(tmp_path / 'b', [50, 55], epochs=3, seed=2)
    assert sorted(row[2:5] for row in rows(table(tmp_path))['Without a teacher, shapes']) == [
        ['2 of 3', '1', '45.00'], ['3', '1', '30.00']]


@pytest.mark.parametrize(('seconds', 'text'), [
    (0.4, '0 s'), (119, '119 s'), (120, '2 min'), (7199, '120 min'), (7200, '2.0 h'), (12600, '3.5 h')])
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


def test_csv_has_the_same_rows_as_numbers(demo):
    found = list(csv.DictReader(io.StringIO(tables.csv(tables.sections(logs.read([demo]))))))
    assert [row['method'] for row in found] == ['alone', 'AT', 'KD', 'alone']
    assert found[1] == {
        'section': 'WRN-10-1 from WRN-16-1, shapes', 'network': 'WRN-10-1', 'teacher': 'WRN-16-1',
        'method': 'AT', 'dataset': 'shapes', 'epochs': '2', 'seeds': '3', 'runs': '3', 'last_median': '22',
        'last_mean': '23', 'last_min': '21', 'last_max': '26', 'best_median': '22', 'last_top5': '',
        'paper': '', 'paper_top5': '', 'seconds': '120.0'}


# --- reading --------------------------------------------------------------------------------------------


def test_published_logs(tmp_path):
    published(tmp_path / 'teacher', epoch=1, acc=90)
    published(tmp_path / 'teacher', epoch=1, acc=91)  # begun again
    published(tmp_path / 'teacher')
    with open(tmp_path / 'teacher' / 'log.txt', 'a') as log:
        log.write('json_stats: {"depth": 16, "wid')  # the machine went down
    for epoch in (1, 2):
        published(tmp_path / 'at', epoch, 92, teacher_id='teacher', save='logs/at', beta=1000.0, width=1,
                  n_parameters=175994)
    assert rows(table(tmp_path)) == {'WRN-16-1 from WRN-16-2, CIFAR10': [
        ['WRN-16-1', 'AT', '2', '1', '8.00', '8.00', '8.00', '7.93', '25 s'],
        ['WRN-16-2', 'alone', '2', '1', '6.25', '6.25', '6.25', '6.31', '25 s']]}
    assert errors(tmp_path / 'teacher') == [{1: 9, 2: 6.25}]


def test_a_resumed_run_is_one(tmp_path):
    """What lies after the checkpoint that it was taken up from is void; more epochs may be asked for."""
    for epoch, acc in [(1, 10), (2, 20), (3, 30), (2, 50), (3, 60), (4, 70)]:
        published(tmp_path / 'a', epoch, acc, epochs=4)
    published(tmp_path / 'a', 5, 80, epochs=5, resume='a/model.pt7')
    for epoch, acc in [(1, 10), (2, 20), (3, 30), (1, 50), (2, 60)]:
        published(tmp_path / 'b', epoch, acc, epochs=4)
    assert errors(tmp_path / 'a') == [{1: 90, 2: 50, 3: 40, 4: 30, 5: 20}]
    assert errors(tmp_path / 'b') == [{1: 50, 2: 40}]


@pytest.mark.parametrize(('first', 'other'), [
    ([1, 2], {}), ([1], {'lr': 0.05}), ([1], {'beta': 2.0}), ([1], {'epochs': 3}), ([1], {'seed': 2}),
    ([1], {'teacher_id': 't'}), ([1], {'depth': 40}), ([1, 2], {'width': 1}), ([1], {'dataset': 'CIFAR100'})])
def test_several_runs_in_one_log(tmp_path, first, other):
    """After the last epoch the same options are another run; before it, other ones."""
    for epoch in first:
        published(tmp_path / 'a', epoch, 50)
    for epoch in (1, 2):
        published(tmp_path / 'a', epoch, 60, **other)
    assert errors(tmp_path) == [dict.fromkeys(first, 50), {1: 40, 2: 40}]


def test_runs_of_one_log_share_a_row(tmp_path):
    for acc in (90, 91, 95):
        for epoch in (1, 2):
            published(tmp_path / 'a', epoch, acc)
    assert [row[3:7] for row in rows(table(tmp_path))['Without a teacher, CIFAR10']] == [
        ['3', '9.00', '8.00', '5.00-10.00']]


def test_another_network_is_another_run_whatever_its_epoch(tmp_path):
    published(tmp_path / 'a', 1, 50)
    published(tmp_path / 'a', 2, 60, depth=40)
    assert errors(tmp_path) == [{1: 50}, {2: 40}]


def test_ours_and_a_published_run_of_the_same_options_share_a_row(tmp_path):
    published(tmp_path / 'a', epoch=1, epochs=1, acc=92)
    write(tmp_path / 'b', [94], dataset='CIFAR10', depth=16, width=2.0, n_parameters=693498, lr=0.1,
          map='sum', map_p=2.0, beta_decay='none', at_groups=None, epoch_step=[60, 120, 160], dtype='float',
          model='wrn', augment='crop_flip', max_images=0, hint_beta=0.0, compile=False)
    assert [row[3:7] for row in rows(table(tmp_path))['Without a teacher, CIFAR10']] == [
        ['2', '7.00', '7.00', '6.00-8.00']]


def test_an_accuracy_that_is_no_number_is_no_error(tmp_path):
    for epoch, acc in [(1, 90), (2, NAN), (3, 80)]:
        published(tmp_path / 'a', epoch, acc, epochs=3)
    assert errors(tmp_path) == [{1: 10, 3: 20}]
    published(tmp_path / 'b', 1, NAN)
    with pytest.raises(InputError, match='the test accuracy of no epoch is a number'):
        logs.read([tmp_path])


@pytest.mark.parametrize(('options', 'name'), [
    ({'depth': 28, 'width': 2.5}, 'WRN-28-2.5'), ({'model': 'wrn', 'depth': 16, 'width': 2.0}, 'WRN-16-2'),
    ({'model': 'nin', 'depth': 9, 'width': 96.0}, 'NIN-thin'), ({'model': 'nin', 'width': 192}, 'NIN-wide'),
    ({'model': 'nin', 'width': 32.0, 'no_bn': True}, 'NIN-32, no BN'),
    ({'model': 'nin', 'width': 96, 'no_pool_relu': True, 'no_bn': False}, 'NIN-thin, no ReLU before pooling'),
    ({'model': 'nin', 'width': 96, 'no_pool_relu': True, 'no_bn': True},
     'NIN-thin, no BN, no ReLU before pooling'),
    ({'teacher_params': '', 'depth': 18}, 'ResNet-18'),
    ({'teacher_params': '', 'depth': 34, 'width': 0.5}, 'ResNet-34 x 0.5')])
def test_names_of_networks(tmp_path, options, name):
    write(tmp_path / 'a', [50], **options)
    assert [run.student for run in logs.read([tmp_path])] == [name]


def test_the_teacher_is_found_as_it_lay_or_named_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'logs' / 'big', [50], depth=28, width=2.5)
    write(tmp_path / 'moved' / 'teachers' / '1', [50], model='nin', width=192)
    write(tmp_path / 'moved' / 'at' / '1', [50], teacher_id='x/teachers/1', save='x/at/1', beta=1.0)
    for i, teacher in enumerate(['big', 'logs/big', str(tmp_path / 'logs' / 'big' / 'model.pt7'),
                                 'some/weights.pt7', 'torchvision:resnet34', '/w/resnet-34-export.hkl']):
        write(tmp_path / 'elsewhere' / str(i), [50], teacher_id=teacher, save=f'run{i}', beta=1.0)
    assert [run.teacher for run in logs.read(['elsewhere'])] == [
        'WRN-28-2.5', 'WRN-28-2.5', 'WRN-28-2.5', 'weights.pt7', 'ResNet-34', 'ResNet-34']
    assert [run.teacher for run in logs.read(['moved'])] == ['NIN-wide', '']


def test_losses_are_those_of_their_groups(tmp_path):
    write(tmp_path / 'a', [50], at_losses=[[0.5, 0.1]], at_groups=[2], hint_losses=[[0.25, 0]],
          sym_losses=[[1, 0], [2, 0]], grad_losses=[[3, 0]], l2_losses=[[None, None]])
    published(tmp_path / 'b', 1, at_losses=[[NAN, NAN], [4, NAN], [5, 0]])
    published(tmp_path / 'b', 2, at_losses=[])
    first, second = logs.read([tmp_path])
    assert first.losses == {
        'AT': {'group 2': {1: 0.5}}, 'F-ActT': {'group 2': {1: 0.25}}, 'gradient AT': {'': {1: 3}},
        'symmetry': {'gradients': {1: 1}, 'outputs': {1: 2}}}
    assert second.losses == {'AT': {'group 1': {1: 4}, 'group 2': {1: 5}}}


@pytest.mark.parametrize(('teacher', 'name'), [
    ('WRN-40-2, 10 classes, 2 parameters', 'WRN-40-2'), ('folded WRN-16-1.5, 10 classes', 'WRN-16-1.5'),
    ('ResNet-34 of width 1, 1000 classes', 'ResNet-34'),
    ('folded ResNet-18 of width 0.5, 3', 'ResNet-18 x 0.5'),
    ('NIN of width 192, 10 classes', 'weights.hkl'), (7, 'weights.hkl')])
def test_a_teacher_from_a_file_by_what_the_student_s_log_says(tmp_path, teacher, name):
    write(tmp_path / 'at', [60], teacher_id='/gone/weights.hkl', teacher=teacher, beta=1e3)
    assert logs.read([tmp_path])[0].teacher == name


# --- the paper's figures --------------------------------------------------------------------------------


def test_figures_of_the_paper():
    """Counted and summed by hand from the paper's tables."""
    listed = {number: [figure for figures in table.values() for figure in figures]
              for number, table in paper.TABLES.items()}
    assert {number: len(figures) for number, figures in listed.items()} == {1: 24, 2: 8, 3: 6, 4: 8, 5: 3}
    sums = {number: round(sum(figure.error for figure in figures), 2) for number, figures in listed.items()}
    assert sums == {1: 182.0, 2: 64.9, 3: 73.2, 4: 218.4, 5: 85.8}
    assert [figure.top5 for figure in listed[5]] == [10.8, 10.0, 8.3]
    assert all(figure.table == number for number, figures in listed.items() for figure in figures)


CIFAR = {'dataset': 'CIFAR10', 'depth': 16, 'width': 1.0, 'n_parameters': 175994}
THIN = CIFAR | {'model': 'nin', 'width': 96.0, 'depth': 9, 'no_bn': True, 'no_pool_relu': True,
                'augment': 'flip', 'weight_decay': 0.0}
R18 = {'teacher_params': '', 'depth': 18, 'at_groups': [2, 3], 'n_parameters': 11}
TAUGHT = R18 | {'teacher_params': 'torchvision:resnet34', 'beta': 1e3}


@pytest.mark.parametrize(('options', 'teacher', 'error'), [
    (CIFAR, None, 8.77),
    (CIFAR | {'epochs': 300}, None, 8.77),
    (CIFAR | {'dataset': 'CIFAR100'}, None, None),
    (CIFAR | {'max_images': 1000}, None, None),
    (CIFAR | {'augment': 'flip'}, None, None),
    (CIFAR | {'depth': 22}, None, None),
    (CIFAR | {'beta': 1e3}, {'width': 2.0}, 7.93),
    (CIFAR | {'beta': 1e3, 'alpha': 0.9, 'beta_decay': 'linear'}, {'width': 2.0}, 7.51),
    (CIFAR | {'beta': 1e3, 'map_p': 4.0}, {'width': 2.0}, 8.09),
    (CIFAR | {'beta': 1e3, 'map_p': 1.0}, {'width': 2.0}, 7.99),
    (CIFAR | {'beta': 1e3, 'map_p': 1.0, 'map': 'max'}, {'width': 2.0}, 8.08),
    (CIFAR | {'beta': 1e3, 'map_p': 2.0, 'map': 'max'}, {'width': 2.0}, None),
    (CIFAR | {'beta': 1e3, 'at_groups': [1]}, {'width': 2.0}, 7.96),
    (CIFAR | {'beta': 1e3, 'at_groups': [0, 1]}, {'width': 2.0}, None),
    (CIFAR | {'beta': 1e3}, {'depth': 40}, 8.25),
    (CIFAR | {'beta': 1e3, 'map_p': 4.0}, {'depth': 40}, None),
    (CIFAR | {'hint_beta': 1.0}, {'depth': 40}, 8.62),
    (CIFAR | {'grad_beta': 1.0}, {'depth': 40}, None),
    (CIFAR | {'width': 2.0, 'alpha': 0.9}, {'depth': 40, 'width': 2.0}, 6.08),
    (CIFAR | {'model': 'nin', 'width': 96, 'alpha': 0.9}, {'model': 'nin', 'width': 192}, 8.55),
    (THIN, None, 13.5), (THIN | {'l2_beta': 1.0}, None, 12.5), (THIN | {'sym_beta': 1.0}, None, 11.8),
    (THIN | {'grad_beta': 1.0}, {'model': 'nin', 'width': 192}, 12.1),
    (THIN | {'beta': 1.0}, {'model': 'nin', 'width': 192, 'no_pool_relu': True}, 11.2),
    (THIN | {'beta': 1.0}, {'model': 'nin', 'width': 96}, None),
    (THIN | {'augment': 'crop_flip'}, None, None), (THIN | {'weight_decay': 5e-4}, None, None),
    (THIN | {'no_bn': False}, None, None),
    (R18 | {'dataset': 'imagenet'}, None, 30.4), (TAUGHT | {'dataset': 'imagenet'}, None, 29.3),
    (TAUGHT | {'dataset': 'imagenet', 'at_groups': [0, 1, 2, 3]}, None, None),
    (R18 | {'dataset': 'imagenet', 'depth': 34, 'at_groups': None}, None, 26.1),
    (R18 | {'dataset': 'imagenet', 'finetune': 'torchvision:resnet18'}, None, None),
    (TAUGHT | {'dataset': 'cub'}, None, 27), (TAUGHT | {'dataset': 'scenes'}, None, 27.1),
    (TAUGHT | {'dataset': 'scenes', 'beta': 0.0, 'alpha': 0.9}, None, 28.1)])
def test_a_figure_stands_beside_runs_of_its_kind_only(tmp_path, options, teacher, error):
    if teacher:
        write(tmp_path / 'teacher', [50], **CIFAR | teacher)
        options = options | {'teacher_id': 'teacher', 'save': 'logs/student'}
    write(tmp_path / 'student', [50], **options)
    run, = logs.read([tmp_path / 'student'])
    figure = paper.find(run)
    assert (figure and figure.error) == error


def test_a_table_of_the_paper_shows_what_is_missing_and_what_is_not_in_it(tmp_path):
    write(tmp_path / 't', [93], **CIFAR | {'width': 2.0, 'n_parameters': 693498})
    for name, options in {'a': {'map': 'max', 'map_p': 1.0}, 'b': {}, 'c': {'beta_decay': 'cosine'}}.items():
        write(tmp_path / name, [91, 92], beta=1e3, teacher_id='t', save=f'logs/{name}', **CIFAR | options)
    student = 'WRN-16-1'
    text = table(tmp_path, number=2)
    assert rows(text) == {
        'Table 2: WRN-16-1 from WRN-16-2, CIFAR10': [
            [student, 'alone', '', '0', 'missing', '', '', '8.77', ''],
            [student, 'AT, F_sum', '', '0', 'missing', '', '', '7.99', ''],
            [student, 'AT, F_sum^2, beta_decay cosine', '2', '1', '8.00', '8.00', '8.00', '7.93', '2 min'],
            [student, 'AT, F_sum^2, beta_decay none', '2', '1', '8.00', '8.00', '8.00', '7.93', '2 min'],
            [student, 'AT, F_sum^4', '', '0', 'missing', '', '', '8.09', ''],
            [student, 'AT, F_max^1, beta_decay none', '2', '1', '8.00', '8.00', '8.00', '8.08', '2 min']],
        'Table 2: WRN-16-1 from WRN-16-2, one loss only, CIFAR10': [
            [student, 'AT, first group', '0', 'missing', '8.11'],
            [student, 'AT, second group', '0', 'missing', '7.96'],
            [student, 'AT, third group', '0', 'missing', '7.97']],
        'Not in Table 2': [['WRN-16-2', 'alone', '1', '1', '7.00', '7.00', '7.00', '60 s']]}
    assert '| paper, % (200 epochs, median of 5 seeds) |' in text


def test_table_3_in_the_order_of_the_paper(tmp_path):
    write(tmp_path / 'a', [80], **THIN | {'sym_beta': 1.0})
    text = table(tmp_path, number=3)
    assert [row[1] + ' ' + row[4] for row in next(iter(rows(text).values()))] == [
        'alone missing', 'min-l2 missing', 'gradient AT missing', 'KD missing', 'symmetry 20.00',
        'AT missing']
    assert 'paper, % (one seed)' in text and 'Not in' not in text


def test_top_5_where_logs_have_it(tmp_path):
    write(tmp_path / 'a', [70], **R18 | {'dataset': 'imagenet', 'test_acc5': 89.5})
    assert rows(table(tmp_path, number=5)) == {'Table 5: ResNet-18 from ResNet-34, imagenet': [
        ['ResNet-18', 'alone', '1', '1', '30.00', '30.00', '30.00', '10.50', '30.4', '10.8', '60 s'],
        ['ResNet-18', 'AT', '', '0', 'missing', '', '', '', '29.3', '10', ''],
        ['ResNet-34', 'alone', '', '0', 'missing', '', '', '', '26.1', '8.3', '']]}


def test_table_4_is_of_two_data_sets(tmp_path):
    for name in ('cub', 'scenes'):
        write(tmp_path / name, [70], **TAUGHT | {'dataset': name, 'finetune': 'x'})
    found = rows(table(tmp_path, number=4))
    assert {title: [row[4] for row in part] for title, part in found.items()} == {
        f'Table 4: ResNet-18 from ResNet-34, {name}': ['missing', 'missing', '30.00', 'missing']
        for name in ('cub', 'scenes')}


def test_a_table_of_the_first_images_has_the_figures_and_says_so(tmp_path):
    write(tmp_path / 'alone', [60], **CIFAR | {'max_images': 512})
    found = rows(table(tmp_path, number=2))
    title, part = next(iter(found.items()))
    assert title == 'Table 2: WRN-16-1 from WRN-16-2, CIFAR10 (first 512 images)'
    assert [row[-2] for row in part] == ['8.77', '7.99', '7.93', '8.09', '8.08']


def test_a_table_of_other_data_has_its_rows_without_the_figures(tmp_path):
    write(tmp_path / 'alone', [60], **CIFAR | {'dataset': 'CIFAR100'})
    text = table(tmp_path, number=2)
    assert rows(text) == {'Table 2: WRN-16-1 from WRN-16-2, CIFAR100': [
        ['WRN-16-1', 'alone', '1', '1', '40.00', '40.00', '40.00', '60 s'],
        *(['WRN-16-1', f'AT, {mapping}', '', '0', 'missing', '', '', '']
          for mapping in ('F_sum', 'F_sum^2', 'F_sum^4', 'F_max^1'))],
        'Table 2: WRN-16-1 from WRN-16-2, one loss only, CIFAR100': [
            ['WRN-16-1', f'AT, {name} group', '0', 'missing'] for name in ('first', 'second', 'third')]}
    assert 'paper' not in text


# --- documents ------------------------------------------------------------------------------------------


def test_the_tables_of_the_readme_are_those_of_the_logs():
    """If not: python -m tools.report --update README.md"""
    text = documents.read(ROOT / 'README.md')
    assert documents.updated(text, ROOT, report.parse) == text


def test_update_writes_the_tables_between_the_markers(demo, tmp_path):
    empty = '# Title\n<!-- report: logs/1 logs/2 -->\n{}<!-- end of report -->\nMiddle\n\n' \
            '<!-- report: logs/3/alone -->\n{}<!-- end of report -->\nEnd, 7.93 ± 1'
    document = tmp_path / 'document.md'
    document.write_text(empty.format('', 'old | table\n'))
    done = call(report, '--update', 'document.md', cwd=tmp_path)
    assert (done.status, done.out, done.err) == (0, 'document.md is updated\n', '')
    expected = empty.format(table(demo / '1', demo / '2') + '\n', table(demo / '3' / 'alone') + '\n')
    assert document.read_text() == expected
    before = listing(tmp_path)
    done = call(report, '--update', document, cwd='/')
    assert (done.out, listing(tmp_path)) == (f'{document} is unchanged\n', before)


BEGIN, END = '<!-- report: logs -->\n', '<!-- end of report -->\n'


@pytest.mark.parametrize(('text', 'message'), [
    ('Text\n', 'the document has no line <!-- report: LOGS -->'),
    (BEGIN, 'needs its line'), (END, 'needs its line'), (BEGIN + BEGIN + END, 'needs its line'),
    (BEGIN + END + END + BEGIN, 'needs its line'), (END + BEGIN, 'needs its line'),
    (BEGIN.replace('logs', 'nowhere') + END, 'there is neither a folder nor a log'),
    (BEGIN.replace('logs', 'logs --plot a.png') + END, 'only LOGS and --table, or --benchmarks, are'),
    (BEGIN.replace('logs', '--update a.md') + END, 'only LOGS and --table, or --benchmarks, are'),
    (BEGIN.replace('logs', "'logs") + END, 'has a quotation mark too many'),
    (BEGIN.replace('logs', 'logs --table 9') + END, '--table: invalid choice: 9'),
    (BEGIN.replace('logs', '--table 1') + END, 'the following arguments are required: LOGS')])
def test_a_document_that_cannot_be_updated_stays_as_it_is(demo, tmp_path, text, message):
    (tmp_path / 'document.md').write_text(BEGIN + END + text if 'Text' not in text else text)
    before = listing(tmp_path)
    done = call(report, '--update', 'document.md', cwd=tmp_path)
    assert (done.status, done.out, done.err.count('\n')) == (2, '', 1)
    assert message in done.err
    assert listing(tmp_path) == before


# --- the command ----------------------------------------------------------------------------------------


def test_command_prints_the_table_and_writes_files(demo, run_script):
    done = run_script('tools.report', demo, '--plot', demo / 'curves.png', '--title', 'Three seeds',
                      '--csv', demo / 'table.csv')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == table(demo) + '\n'
    assert (demo / 'table.csv').read_text() == tables.csv(tables.sections(logs.read([demo])))
    assert (demo / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def other_data_set(folder):
    write(folder / 'other', [50], dataset='CIFAR10')


def no_runs(folder):
    (folder / 'empty').mkdir(parents=True)


def no_epochs(folder):
    write(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('{"epoch": 1, "test_a')


def foreign(folder):
    write(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('{"epoch": 1, "depth": 10, "width": 1}\n')


def array(folder):
    write(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('[1, 2]\n{"epochs": [{"epoch": 1}]}\n"epoch"\n')


def picture(folder):
    folder.mkdir()
    (folder / 'log.txt').write_bytes(bytes(range(256)))


@pytest.mark.parametrize(('spoil', 'arguments', 'message'), [
    (None, [], 'the following arguments are required: LOGS'),
    (None, ['nowhere', '--plot', 'out.png'], 'there is neither a folder nor a log nowhere'),
    (no_runs, ['spoilt', '--plot', 'out.png'], 'neither spoilt nor a folder in it holds a log.txt'),
    (no_runs, ['runs', 'spoilt', '--csv', 'out.csv'], 'neither spoilt nor a folder in it holds a log.txt'),
    (no_epochs, ['runs', 'spoilt', '--plot', 'out.png'], 'spoilt/a/log.txt holds no epoch of a run'),
    (array, ['runs', 'spoilt', '--plot', 'out.png'], 'spoilt/a/log.txt holds no epoch of a run'),
    (picture, ['spoilt/log.txt'], 'spoilt/log.txt holds no epoch of a run'),
    (foreign, ['spoilt', '--plot', 'out.png'],
     'spoilt/a/log.txt is no log of a run: '
     'epoch 1 has no dataset, epochs, n_parameters, test_acc, train_time'),
    (other_data_set, ['runs', 'spoilt', '--plot', 'out.png'],
     'the runs are of several data sets, CIFAR10, shapes: report each alone'),
    (other_data_set, ['runs', 'spoilt', '--table', '1'],
     'Table 1 is of CIFAR10, the runs are of CIFAR10, shapes: report the others alone'),
    (None, ['runs', '--table', '6'],
     'argument --table: invalid choice: 6 (choose from 1, 2, 3, 4, 5)'),
    (None, ['runs', '--plot', 'out.pdf'], "argument --plot: 'out.pdf' does not end in .png or .svg"),
    (None, ['runs', '--plot', 'missing/out.png'], 'cannot write missing/out.png: No such file or directory'),
    (None, ['runs', '--plot_losses', 'out.png', '--csv', 'out.csv'],
     'no run has a loss to draw beside classification: name runs with --beta or the like'),
    (None, ['runs', '--x', 'seconds'], '--x has no effect without --plot'),
    (None, ['runs', '--title', 'A'], '--title has no effect without --plot or --plot_losses'),
    (None, ['runs', '--update', 'a.md'], '--update stands alone: LOGS and --table are given in the document'),
    (None, ['--update', 'a.md', '--table', '1'],
     '--update stands alone: LOGS and --table are given in the document'),
    (None, ['--update', 'a.md'], 'cannot read a.md: No such file or directory'),
])
def test_bad_input_ends_in_one_sentence(tmp_path, spoil, arguments, message):
    write(tmp_path / 'runs' / 'a', [50, 60])
    if spoil:
        spoil(tmp_path / 'spoilt')
    before = sorted(tmp_path.rglob('*'))
    done = call(report, *arguments, cwd=tmp_path)
    assert (done.status, done.out, done.err) == (2, '', f'tools.report.py: error: {message}\n')
    assert sorted(tmp_path.rglob('*')) == before


def test_a_document_that_is_no_text(tmp_path):
    (tmp_path / 'a.md').write_bytes(b'\xff\xfe')
    assert call(report, '--update', 'a.md', cwd=tmp_path).err == \
        'tools.report.py: error: a.md is no text in UTF-8\n'
