"""Runs from hand-written logs: ours, old ones, and those of the published code."""
import pytest

import cifar
import imagenet
from helpers import SMALL, call, log_of
from report_logs import NAN, errors_of, rows_of, table_of, write_published, write_run
from tools.report import logs, settings
from utils import InputError


def test_published_logs(tmp_path):
    write_published(tmp_path / 'teacher', epoch=1, acc=90)
    write_published(tmp_path / 'teacher', epoch=1, acc=91)  # begun again
    write_published(tmp_path / 'teacher')
    with open(tmp_path / 'teacher' / 'log.txt', 'a') as log:
        log.write('json_stats: {"depth": 16, "wid')  # the machine went down
    for epoch in (1, 2):
        write_published(tmp_path / 'at', epoch, 92, teacher_id='teacher', save='logs/at', beta=1000.0,
                        width=1, n_parameters=175994)
    assert rows_of(table_of(tmp_path)) == {'WRN-16-1 from WRN-16-2, CIFAR10': [
        ['WRN-16-1', 'AT', '2', '1', '8.00', '7.93', '7.96', '25 s'],
        ['WRN-16-2', 'alone', '2', '1', '6.25', '6.31', '5.99', '25 s']]}
    assert errors_of(tmp_path / 'teacher') == [{1: 9, 2: 6.25}]


def test_a_resumed_run_is_one(tmp_path):
    """What lies after the checkpoint that it was taken up from is void; more epochs may be asked for."""
    for epoch, acc in [(1, 10), (2, 20), (3, 30), (2, 50), (3, 60), (4, 70)]:
        write_published(tmp_path / 'a', epoch, acc, epochs=4)
    write_published(tmp_path / 'a', 5, 80, epochs=5, resume='a/model.pt7')
    for epoch, acc in [(1, 10), (2, 20), (3, 30), (1, 50), (2, 60)]:
        write_published(tmp_path / 'b', epoch, acc, epochs=4)
    assert errors_of(tmp_path / 'a') == [{1: 90, 2: 50, 3: 40, 4: 30, 5: 20}]
    assert errors_of(tmp_path / 'b') == [{1: 50, 2: 40}]


@pytest.mark.parametrize(('first', 'other'), [
    ([1, 2], {}), ([1, 2], {'lr': 0.05}), ([1, 2], {'seed': 2}), ([1, 2], {'teacher_id': 't'}),
    ([1], {'depth': 40}), ([1, 2], {'width': 1}), ([1], {'dataset': 'CIFAR100'})])
def test_several_runs_in_one_log(tmp_path, first, other):
    """After the last epoch another run begins; before it, a run of another network or data set."""
    for epoch in first:
        write_published(tmp_path / 'a', epoch, 50)
    for epoch in (1, 2):
        write_published(tmp_path / 'a', epoch, 60, **other)
    assert errors_of(tmp_path) == [dict.fromkeys(first, 50), {1: 40, 2: 40}]


def test_runs_of_one_log_share_a_row(tmp_path):
    for acc in (90, 91, 95):
        for epoch in (1, 2):
            write_published(tmp_path / 'a', epoch, acc)
    assert [row[3:7] for row in rows_of(table_of(tmp_path))['Without a teacher, CIFAR10']] == [
        ['3', '9.00', '8.00', '5.00-10.00']]


def test_another_network_is_another_run_whatever_its_epoch(tmp_path):
    write_published(tmp_path / 'a', 1, 50)
    write_published(tmp_path / 'a', 2, 60, depth=40)
    assert errors_of(tmp_path) == [{1: 50}, {2: 40}]


def test_ours_and_a_published_run_of_the_same_options_share_a_row(tmp_path):
    write_published(tmp_path / 'a', epoch=1, epochs=1, acc=92)
    write_run(tmp_path / 'b', [94], dataset='CIFAR10', depth=16, width=2.0, n_parameters=693498, lr=0.1,
              map='sum', map_p=2.0, beta_decay='none', at_groups=None, epoch_step=[60, 120, 160],
              dtype='float', model='wrn', augment='crop_flip', max_images=0, hint_beta=0.0, compile=False)
    assert [row[3:7] for row in rows_of(table_of(tmp_path))['Without a teacher, CIFAR10']] == [
        ['2', '7.00', '7.00', '6.00-8.00']]


def test_an_accuracy_that_is_no_number_is_no_error(tmp_path):
    for epoch, acc in [(1, 90), (2, NAN), (3, 80)]:
        write_published(tmp_path / 'a', epoch, acc, epochs=3)
    assert errors_of(tmp_path) == [{1: 10, 3: 20}]
    write_published(tmp_path / 'b', 1, NAN)
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
    write_run(tmp_path / 'a', [50], **options)
    assert [run.student for run in logs.read([tmp_path])] == [name]


def test_the_teacher_is_found_as_it_lay_or_named_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / 'logs' / 'big', [50], depth=28, width=2.5)
    write_run(tmp_path / 'moved' / 'teachers' / '1', [50], model='nin', width=192)
    write_run(tmp_path / 'moved' / 'at' / '1', [50], teacher_id='x/teachers/1', save='x/at/1', beta=1.0)
    for i, teacher in enumerate(['big', 'logs/big', str(tmp_path / 'logs' / 'big' / 'model.pt7'),
                                 'some/weights.pt7']):
        write_run(tmp_path / 'elsewhere' / str(i), [50], teacher_id=teacher, save=f'run{i}', beta=1.0)
    assert [run.teacher for run in logs.read(['elsewhere'])] == [
        'WRN-28-2.5', 'WRN-28-2.5', 'WRN-28-2.5', 'weights.pt7']
    assert [run.teacher for run in logs.read(['moved'])] == ['NIN-wide', '']


def test_losses_are_those_of_their_groups(tmp_path):
    write_run(tmp_path / 'a', [50], at_losses=[[0.5, 0.1]], at_groups=[2], hint_losses=[[0.25, 0]],
              sym_losses=[[1, 0], [2, 0]], grad_losses=[[3, 0]], l2_losses=[[None, None]])
    write_published(tmp_path / 'b', 1, at_losses=[[NAN, NAN], [4, NAN], [5, 0]])
    write_published(tmp_path / 'b', 2, at_losses=[])
    first, second = logs.read([tmp_path])
    assert first.losses == {
        'AT': {'group 2': {1: 0.5}}, 'F-ActT': {'group 2': {1: 0.25}}, 'gradient AT': {'': {1: 3}},
        'symmetry': {'gradients': {1: 1}, 'outputs': {1: 2}}}
    assert second.losses == {'AT': {'group 1': {1: 4}, 'group 2': {1: 5}}}


@pytest.mark.parametrize(('teacher', 'name'), [
    ({'kind': 'WRN', 'depth': 40, 'width': 2}, 'WRN-40-2'),
    ({'kind': 'WRN', 'depth': 16, 'width': 1.5}, 'WRN-16-1.5'),
    ({'kind': 'ResNet', 'depth': 34, 'width': 1}, 'ResNet-34'),
    ({'kind': 'ResNet', 'depth': 18, 'width': 0.5}, 'ResNet-18 x 0.5'),
    ({'kind': 'NIN', 'depth': 9, 'width': 192}, 'NIN-wide'), ({'kind': 'NIN', 'width': 32.0}, 'NIN-32'),
    ({'kind': 'NIN', 'width': 96, 'pool_relu': False}, 'NIN-thin, no ReLU before pooling'),
    ({'kind': 'NIN', 'width': 96, 'pool_relu': True}, 'NIN-thin'),
    ('WRN-40-2', 'weights.hkl'), (None, 'weights.hkl')])
def test_a_teacher_from_a_file_by_what_the_student_s_log_says(tmp_path, teacher, name):
    write_run(tmp_path / 'at', [60], teacher_id='/gone/weights.hkl', teacher=teacher, beta=1e3)
    assert logs.read([tmp_path])[0].teacher == name


def test_what_the_student_s_log_says_of_its_teacher_counts(tmp_path):
    """Another run may have taken the teacher's folder since."""
    write_run(tmp_path / 'wrn', [50], depth=16, width=10.0)
    write_run(tmp_path / 'at', [60], teacher_id='wrn', save='logs/at', beta=1.0,
              teacher={'kind': 'WRN', 'depth': 16, 'width': 1})
    assert [run.teacher for run in logs.read([tmp_path / 'at'])] == ['WRN-16-1']


# --- which runs are the same ------------------------------------------------------------------------------


def two(tmp_path, first, second):
    """Methods and medians of the rows of two runs of different seeds."""
    write_run(tmp_path / 'a', [70], seed=1, **first)
    write_run(tmp_path / 'b', [90], seed=2, **second)
    return sorted((row[1], row[4]) for row in rows_of(table_of(tmp_path))['Without a teacher, shapes'])


@pytest.mark.parametrize('option', [
    {'mean_beta': 1.0}, {'mean_beta': 1e-9}, {'nesterov': True}, {'optimizer': 'adam'}, {'stages': [1, 2]},
    {'mixup': {'alpha': 0.2}}])
def test_an_option_that_the_report_does_not_know_makes_a_row_and_is_named(tmp_path, option):
    (name, value), = option.items()
    text = {'mean_beta': f'{value:g}'} if name == 'mean_beta' else {
        'nesterov': 'True', 'optimizer': 'adam', 'stages': '[1,2]', 'mixup': "{'alpha':0.2}"}
    assert two(tmp_path, {}, option) == [('alone', '30.00'), (f'alone, {name} {text[name]}', '10.00')]


def test_an_unknown_option_is_named_in_a_single_row_too(tmp_path):
    write_run(tmp_path / 'a', [70], mean_beta=1.0)
    assert rows_of(table_of(tmp_path))['Without a teacher, shapes'][0][1] == 'alone, mean_beta 1'


@pytest.mark.parametrize('off', [0, 0.0, False, None, '', 'none', []])
def test_an_unknown_option_that_is_off_is_as_if_it_were_not_there(tmp_path, off):
    assert two(tmp_path, {}, {'mean_beta': off}) == [('alone', '20.00')]


@pytest.mark.parametrize('option', [
    {'batch_size': 64}, {'lr': 0.05}, {'lr': 0.1 + 1e-9}, {'weight_decay': 1e-4}, {'lr_schedule': 'linear'},
    {'warmup': 1.0}, {'epoch_step': [1]}, {'dtype': 'bfloat16'}, {'augment': 'flip'}, {'randomcrop_pad': 2}])
def test_options_of_training_make_rows(tmp_path, option):
    assert len(two(tmp_path, {}, option)) == 2


def test_every_option_of_the_scripts_but_the_named_ones_makes_rows():
    """An option is added to a script, and the report needs no change."""
    for script, arguments in (cifar, ['--save', 'x']), (imagenet, ['--dataroot', 'x']):
        record = vars(script.parse(arguments))
        known = dict(settings.of(record))
        assert known.keys() - {'classes'} == record.keys() - settings.HARMLESS - settings.FIELDS
        assert not [name for name in record if settings.RESULTS.fullmatch(name)]
        for name in known:
            assert settings.of(record | {name: 'another'}) != settings.of(record)


def test_options_that_do_not_change_training_and_results_make_none(tmp_path):
    result = {'test_agreement': 90.0, 'mean_losses': [[1, 0]], 'peak_memory': 9, 'commit': 'abc',
              'device_name': 'a CPU', 'cuda': True, 'damaged_images': [1, 0], 'ranks': 2, 'cudnn': 91002}
    where = {'save': 'x', 'resume': 'auto', 'dataroot': 'd', 'device': 'cpu', 'gpu_id': [1], 'ngpu': 2,
             'nthread': 8, 'max_hours': 1.0, 'tensorboard': True, 'evaluate': False, 'student_params': 'f',
             'compile': True, 'fast': True, 'deterministic': True}
    assert two(tmp_path, {}, result | where) == [('alone', '20.00')]


def test_what_older_logs_lack_has_its_default(tmp_path):
    new = vars(cifar.parse(['--save', 'x', '--dataset', 'shapes']))
    new = {name: new[name] for name in new.keys() - {'depth', 'epochs', 'seed'}}
    assert two(tmp_path, {}, new) == [('alone', '20.00')]


def test_classes_of_a_folder_make_a_row_of_their_own(tmp_path):
    """They are named where they differ only."""
    of_folder = {'teacher_params': '', 'depth': 18, 'dataset': 'folder'}
    write_run(tmp_path / 'a', [70], **of_folder, classes='3, sha256 a')
    assert rows_of(table_of(tmp_path))['Without a teacher, folder'][0][1] == 'alone'
    write_run(tmp_path / 'b', [80], **of_folder, classes='3, sha256 b')
    assert [row[1] for row in rows_of(table_of(tmp_path))['Without a teacher, folder']] == [
        'alone, classes 3,sha256a', 'alone, classes 3,sha256b']


def test_a_real_run_has_no_unknown_options(tmp_path):
    """A result that a run logs under a new name belongs in settings.RESULTS."""
    done = call(cifar, *SMALL, '--epochs', 1, '--max_images', 16, '--save', 'run', cwd=tmp_path)
    assert done.status == 0
    record, = log_of(tmp_path / 'run')
    assert [name for name, _ in settings.of(record) if not settings.is_known(name)] == []
