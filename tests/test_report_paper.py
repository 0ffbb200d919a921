"""The paper's figures next to runs from hand-written logs."""
import pytest

from report_logs import rows_of, table_of, write_run
from tools.report import logs, paper


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
TAUGHT = R18 | {'teacher_params': 'torchvision:resnet34', 'beta': 1e3,
                'teacher': {'kind': 'ResNet', 'depth': 34, 'width': 1}}


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
    (THIN | {'beta': 1.0, 'at_norm': 'paper'}, {'model': 'nin', 'width': 192, 'no_pool_relu': True}, None),
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
        write_run(tmp_path / 'teacher', [50], **CIFAR | teacher)
        options = options | {'teacher_id': 'teacher', 'save': 'logs/student'}
    write_run(tmp_path / 'student', [50], **options)
    run, = logs.read([tmp_path / 'student'])
    figure = paper.find(run)
    assert (figure and figure.error) == error


def test_a_table_of_the_paper_shows_what_is_missing_and_what_is_not_in_it(tmp_path):
    write_run(tmp_path / 't', [93], **CIFAR | {'width': 2.0, 'n_parameters': 693498})
    for name, options in {'a': {'map': 'max', 'map_p': 1.0}, 'b': {}, 'c': {'beta_decay': 'cosine'}}.items():
        write_run(tmp_path / name, [91, 92], beta=1e3, teacher_id='t', save=f'logs/{name}', **CIFAR | options)
    text = table_of(tmp_path, number=2)
    assert rows_of(text) == {
        'Table 2: WRN-16-1 from WRN-16-2, CIFAR10': [
            ['alone', '', '0', 'missing', '8.77', ''],
            ['AT, F_sum', '', '0', 'missing', '7.99', ''],
            ['AT, F_sum^2, beta_decay cosine', '2', '1', '8.00', '7.93', '2 min'],
            ['AT, F_sum^2, beta_decay none', '2', '1', '8.00', '7.93', '2 min'],
            ['AT, F_sum^4', '', '0', 'missing', '8.09', ''],
            ['AT, F_max^1, beta_decay none', '2', '1', '8.00', '8.08', '2 min']],
        'Table 2: WRN-16-1 from WRN-16-2, one loss only, CIFAR10': [
            ['AT, first group', '0', 'missing', '8.11'],
            ['AT, second group', '0', 'missing', '7.96'],
            ['AT, third group', '0', 'missing', '7.97']],
        'Not in Table 2': [['WRN-16-2', 'alone', '1', '1', '7.00', '60 s']]}
    assert '| paper, % |' in text and "The paper's figures: 200 epochs, median of 5 seeds." in text


def test_table_3_in_the_order_of_the_paper(tmp_path):
    write_run(tmp_path / 'a', [80], **THIN | {'sym_beta': 1.0})
    text = table_of(tmp_path, number=3)
    assert [row[0] + ' ' + row[3] for row in next(iter(rows_of(text).values()))] == [
        'alone missing', 'min-l2 missing', 'gradient AT missing', 'KD missing', 'symmetry 20.00',
        'AT missing']
    assert "The paper's figures: one seed." in text and 'Not in' not in text


def test_top_5_where_logs_have_it(tmp_path):
    write_run(tmp_path / 'a', [70], **R18 | {'dataset': 'imagenet', 'test_acc5': 89.5})
    assert rows_of(table_of(tmp_path, number=5)) == {'Table 5: ResNet-18 from ResNet-34, imagenet': [
        ['ResNet-18', 'alone', '1', '1', '30.00', '10.50', '30.4', '10.8', '60 s'],
        ['ResNet-18', 'AT', '', '0', 'missing', '', '29.3', '10', ''],
        ['ResNet-34', 'alone', '', '0', 'missing', '', '26.1', '8.3', '']]}


def test_table_4_is_of_two_data_sets(tmp_path):
    for name in ('cub', 'scenes'):
        write_run(tmp_path / name, [70], **TAUGHT | {'dataset': name, 'finetune': 'x'})
    found = rows_of(table_of(tmp_path, number=4))
    assert {title: [row[4] for row in part] for title, part in found.items()} == {
        f'Table 4: ResNet-18 from ResNet-34, {name}': ['missing', 'missing', '30.00', 'missing']
        for name in ('cub', 'scenes')}


def test_options_are_named_within_a_data_set(tmp_path):
    for name, lr in ('cub', 0.01), ('scenes', 0.02):
        write_run(tmp_path / name, [70], **TAUGHT | {'dataset': name, 'finetune': 'x', 'lr': lr})
    assert 'AT, ' not in table_of(tmp_path, number=4)


def test_a_table_of_the_first_images_has_the_figures_and_says_so(tmp_path):
    write_run(tmp_path / 'alone', [60], **CIFAR | {'max_images': 512})
    found = rows_of(table_of(tmp_path, number=2))
    title, part = next(iter(found.items()))
    assert title == 'Table 2: WRN-16-1 from WRN-16-2, CIFAR10 (first 512 images)'
    assert [row[-2] for row in part] == ['8.77', '7.99', '7.93', '8.09', '8.08']


def test_a_table_of_other_data_has_its_rows_without_the_figures(tmp_path):
    write_run(tmp_path / 'alone', [60], **CIFAR | {'dataset': 'CIFAR100'})
    text = table_of(tmp_path, number=2)
    assert rows_of(text) == {'Table 2: WRN-16-1 from WRN-16-2, CIFAR100': [
        ['alone', '1', '1', '40.00', '60 s'],
        *([f'AT, {mapping}', '', '0', 'missing', '']
          for mapping in ('F_sum', 'F_sum^2', 'F_sum^4', 'F_max^1'))],
        'Table 2: WRN-16-1 from WRN-16-2, one loss only, CIFAR100': [
            [f'AT, {name} group', '0', 'missing'] for name in ('first', 'second', 'third')]}
    assert 'paper' not in text


@pytest.mark.parametrize('first', [0, 512])
def test_errors_on_held_out_images_have_no_figures(tmp_path, first):
    write_run(tmp_path / 'alone', [60], **CIFAR | {'val_images': 5000, 'max_images': first})
    text = table_of(tmp_path, number=2)
    assert 'paper, %' not in text and '5000 held-out' in next(iter(rows_of(text)))
