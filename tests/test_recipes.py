"""The recipes: every command parses, every row is there, teachers come first; smoke.sh runs them all."""
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import method
from helpers import ROOT, call, log_of
from tools import jobs, report
from utils import InputError

RECIPES = ROOT / 'recipes'
IMAGES = {4: {'CUB': 'cub folder', 'SCENES': 'scenes'}, 5: {'IMAGENET': 'imagenet'}}  # no table without
PAIRS = [('nin_thin', 'nin_wide'), ('wrn_16_1', 'wrn_16_2'), ('wrn_16_1', 'wrn_40_1'),
         ('wrn_16_2', 'wrn_40_2')]
NETWORKS = {'nin_thin': ('nin', 96), 'nin_wide': ('nin', 192), 'wrn_16_1': (16, 1), 'wrn_16_2': (16, 2),
            'wrn_40_1': (40, 1), 'wrn_40_2': (40, 2)}
WEIGHTS = ('beta', 'alpha', 'hint_beta', 'grad_beta', 'sym_beta', 'l2_beta')


def recipe(name, root=ROOT, **variables):
    settings = ('JOBS', 'GPUS', 'EPOCHS', 'EPOCHS_LIST', 'SCHEDULE', 'WARMUP', 'LR', 'PAIRS', 'SEEDS',
                'DATASET', 'LOGS', 'ARGS', 'PRINT', 'CUB', 'SCENES', 'DATAROOT', 'IMAGENET', 'TEACHER',
                'R18', 'R34')
    env = {k: v for k, v in os.environ.items() if k not in settings}
    done = subprocess.run(['bash', str(root / 'recipes' / f'{name}.sh')], text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=500,
                          env=env | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', **variables})
    print(done.stdout, done.stderr)
    return done


def stages(n, **variables):
    """As `stages_of`, of Table n."""
    return stages_of(recipe(f'table{n}', PRINT='1', **{**IMAGES.get(n, {}), **variables}))


def stages_of(done):
    """Options of the runs that a recipe printed: those that wait for no other run, then those that do."""
    assert (done.returncode, done.stderr) == (0, '')
    found = jobs.read(io.StringIO(done.stdout))
    assert all(job.opt.resume == 'auto' for job in found)
    parts = [[job.opt for job in found if bool(job.after) == waits] for waits in (False, True)]
    return [part for part in parts if part]


def row(opt):
    """A run by its network, its teacher's name, and what it learns with which weight."""
    network = (opt.model if opt.model == 'nin' else opt.depth, opt.width)
    weights = {name: getattr(opt, name) for name in WEIGHTS}
    return network, Path(opt.teacher_id).name, {name: weight for name, weight in weights.items() if weight}


# --- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('n', 'counts'), [(1, (6, 16)), (2, (2, 7)), (3, (4, 3)), (4, (4, 4)), (5, (4,))])
def test_number_of_runs_and_their_folders(n, counts):
    one = stages(n, SEEDS='7', LOGS='some logs')
    assert tuple(map(len, one)) == counts
    for opt in (opt for stage in one for opt in stage):
        assert opt.seed == 7 and re.fullmatch(r'some logs/7/\w+', opt.save)
    two = stages(n, SEEDS='3 11')
    assert tuple(map(len, two)) == tuple(2 * count for count in counts)
    assert {opt.save.split('/')[:3][-1] for stage in two for opt in stage} == {'3', '11'}
    assert all(opt.save.startswith(f'logs/table{n}/{opt.seed}/') for stage in two for opt in stage)


@pytest.mark.parametrize(('n', 'seeds'), [(1, 5), (2, 5), (3, 1), (4, 5), (5, 1)])
def test_seeds_of_the_paper(n, seeds):
    assert {opt.seed for stage in stages(n) for opt in stage} == set(range(1, seeds + 1))


@pytest.mark.parametrize('n', range(1, 6))
def test_teachers_come_first(n):
    """A teacher is an earlier run, with the same seed; in Table 5 it is given."""
    before, taught = {}, 0
    for stage in stages(n, SEEDS='1 2'):
        for opt in stage:
            teacher = getattr(opt, 'teacher_id', '') or getattr(opt, 'teacher_params', '')
            if n == 5:
                assert teacher in ('', 'torchvision:resnet34')
            elif teacher:
                assert before[teacher] == opt.seed
                taught += 1
        before |= {opt.save: opt.seed for opt in stage}
    assert taught or n == 5


def test_table1():
    alone, taught = stages(1, SEEDS='1')
    assert {Path(opt.save).name: row(opt) for opt in alone} == {
        name: (network, '', {}) for name, network in NETWORKS.items()}
    methods = [({'beta': 1e3}, 'none'), ({'hint_beta': 1e3}, 'linear'), ({'alpha': 0.9}, 'none'),
               ({'beta': 1e3, 'alpha': 0.9}, 'linear')]
    assert [(*row(opt), opt.beta_decay) for opt in taught] == [
        (NETWORKS[student], teacher, weights, decay)
        for student, teacher in PAIRS for weights, decay in methods]
    for opt in alone + taught:
        assert (opt.dataset, opt.lr, opt.weight_decay, opt.augment, opt.map, opt.map_p) == (
            'CIFAR10', 0.1, 5e-4, 'crop_flip', 'sum', 2)


def test_table2():
    alone, taught = stages(2, SEEDS='1')
    assert [row(opt) for opt in alone] == [((16, 2), '', {}), ((16, 1), '', {})]
    assert all(row(opt) == ((16, 1), 'wrn_16_2', {'beta': 1e3}) for opt in taught)
    assert [(opt.map, opt.map_p, opt.at_groups) for opt in taught] == [
        ('sum', 2, None), ('sum', 1, None), ('sum', 4, None), ('max', 1, None),
        ('sum', 2, [0]), ('sum', 2, [1]), ('sum', 2, [2])]


def test_runs_of_two_tables_may_share_a_folder():
    """A run of the same name has the same options."""
    runs = [{opt.save: opt for stage in stages(n, LOGS='logs/both') for opt in stage} for n in (1, 2)]
    both = runs[0].keys() & runs[1].keys()
    assert len(both) == 5 * 3 and all(runs[0][save] == runs[1][save] for save in both)


def test_table3():
    first, taught = stages(3)
    teacher, *others = first
    assert (row(teacher), teacher.no_bn, teacher.no_pool_relu) == ((('nin', 192), '', {}), False, True)
    students = others + taught
    assert [(Path(opt.teacher_id).name, *row(opt)[2]) for opt in students] == [
        ('',), ('', 'l2_beta'), ('', 'sym_beta'), *((Path(teacher.save).name, name)
                                                    for name in ('grad_beta', 'alpha', 'beta'))]
    for opt in students:
        assert (opt.model, opt.width, opt.no_bn, opt.no_pool_relu) == ('nin', 96, True, True)
        assert opt.weight_decay == 0
    assert {opt.augment for opt in first + taught} == {'flip'}
    given, = stages(3, TEACHER='the teacher')
    assert len(given) == 6 and {opt.teacher_id for opt in given} == {'', 'the teacher'}


def test_table4():
    first, taught = stages(4, SEEDS='1')
    assert [(o.dataset, o.imagenetpath, o.depth, o.finetune) for o in first] == [
        (name, folder, depth, f'torchvision:resnet{depth}')
        for name, folder in (('cub', 'cub folder'), ('scenes', 'scenes')) for depth in (34, 18)]
    assert [(o.dataset, o.depth, o.finetune, o.teacher_params, o.alpha, o.beta) for o in taught] == [
        (name, 18, 'torchvision:resnet18', f'logs/table4/1/{name}_r34', alpha, beta)
        for name in ('cub', 'scenes') for alpha, beta in ((0.9, 0), (0, 1e3))]
    assert {(o.epochs, *o.epoch_step, *o.at_groups) for o in first + taught} == {(60, 40, 2, 3)}


def test_demo():
    alone, taught = stages_of(recipe('demo', PRINT='1', SEEDS='7 8', LOGS='some logs'))
    assert [(opt.save, row(opt)) for opt in alone] == [
        (f'some logs/{seed}/{name}', ((depth, 1), '', {}))
        for seed in (7, 8) for name, depth in (('teacher', 16), ('alone', 10))]
    assert [(opt.save, *row(opt)[1:]) for opt in taught] == [
        (f'some logs/{seed}/{name}', 'teacher', weights) for seed in (7, 8) for name, weights in (
            ('at_kd', {'beta': 1e3, 'alpha': 0.9}), ('at', {'beta': 1e3}), ('kd', {'alpha': 0.9}))]
    schedules = [[(opt.epochs, opt.batch_size, opt.lr, opt.lr_schedule, opt.warmup) for opt in stage]
                 for stage in (alone[1::2], taught)]
    assert len({*schedules[0], *schedules[1]}) == 1  # what the students are compared by
    assert all(opt.dataset == 'shapes' and opt.fast and not opt.val_images for opt in alone + taught)
    (opt, *_), _ = stages_of(recipe('demo', PRINT='1'))
    assert (opt.seed, opt.save) == (1, 'logs/demo/1/teacher')


@pytest.mark.parametrize(('variables', 'expected'), [
    ({'CUB': 'a', 'SCENES': ''}, {('cub', 'a')}),
    ({'CUB': '', 'SCENES': 'b'}, {('scenes', 'b')}),
    ({'DATASET': 'cub', 'CUB': 'a'}, {('cub', 'a')}),
    ({'DATASET': 'scenes', 'SCENES': '', 'DATAROOT': 'c'}, {('scenes', 'c')}),
    ({'DATASET': 'folder', 'DATAROOT': 'c d'}, {('folder', 'c d')})])
def test_data_sets_of_table4(variables, expected):
    found = [opt for stage in stages(4, SEEDS='1', R18='x', R34='y', **variables) for opt in stage]
    assert {(opt.dataset, opt.imagenetpath) for opt in found} == expected
    assert [(opt.depth, opt.finetune) for opt in found] == [(34, 'y'), (18, 'x'), (18, 'x'), (18, 'x')]


def test_table5():
    found, = stages(5, TEACHER='my teacher')
    assert [(o.evaluate, o.student_params) for o in found] == [(True, 'my teacher')] + 3 * [(False, '')]
    assert [(o.teacher_params, o.beta, o.alpha, o.at_from_epoch) for o in found] == [
        ('', 0, 0, 1), ('', 0, 0, 1), ('my teacher', 1e3, 0, 60), ('my teacher', 0, 0.9, 1)]
    assert {(o.dataset, o.imagenetpath, o.depth, o.epochs, *o.epoch_step) for o in found} == {
        ('imagenet', 'imagenet', 18, 100, 30, 60, 90)}


def test_pairs_of_table1():
    """Only these, with the networks that they need, each once."""
    alone, taught = stages(1, SEEDS='1', PAIRS='wrn_16_2:wrn_40_2 wrn_16_1:wrn_16_2')
    assert [Path(opt.save).name for opt in alone] == ['wrn_16_2', 'wrn_40_2', 'wrn_16_1']
    assert [(row(opt)[:2]) for opt in taught] == 4 * [((16, 2), 'wrn_40_2')] + 4 * [((16, 1), 'wrn_16_2')]


@pytest.mark.parametrize('name', ['table1', 'table2', 'budget', 'compare'])
def test_one_teacher_for_all_seeds(name):
    """TEACHER teaches them, and the same students are trained as without it."""
    variables = {'PRINT': '1', 'SEEDS': '1 2', 'PAIRS': 'wrn_16_1:wrn_16_2'}
    own, shared = [{opt.save: opt for part in stages_of(recipe(name, **variables, **more)) for opt in part}
                   for more in ({}, {'TEACHER': 'the teacher'})]
    assert {opt.teacher_id for opt in shared.values()} - {''} == {'the teacher'}
    for opt in (opt for opt in own.values() if opt.teacher_id):
        opt.teacher_id = 'the teacher'
    assert shared == {save: opt for save, opt in own.items() if opt.width == 1}


def test_tune():
    """On held-out images, by schedules that its folders tell, with a seed of no table."""
    done = recipe('tune', PRINT='1')
    assert (done.returncode, done.stderr) == (0, '')
    found, taught = stages_of(done)
    assert {(opt.seed, opt.epochs, opt.val_images) for opt in found + taught} == {(11, 30, 5000)}
    for opt in found:
        assert opt.save == (f'logs/tune/11/wrn_{opt.depth}_{opt.width:g}_'
                            f'{opt.lr_schedule}_{opt.lr:g}_{opt.warmup:g}')
    tried = {(opt.lr_schedule, opt.lr) for opt in found if opt.width == 1}
    assert tried >= {('linear', 0.05), ('linear', 0.1), ('linear', 0.2), ('cosine', 0.1), ('cosine', 0.2)}
    assert len({opt.save for opt in found}) == len(found) == 8
    assert {opt.teacher_id for opt in taught} == {'logs/tune/11/wrn_16_2_linear_0.1_1'}
    assert {opt.beta_decay for opt in taught if opt.alpha and opt.beta} == {'none', 'linear', 'cosine'}
    assert {opt.beta for opt in taught if not opt.alpha} == {500, 1000, 2000}
    assert {opt.alpha for opt in taught if not opt.beta} == {0.9, 0.45}
    assert recipe('tune', PRINT='1', EPOCHS='2').stdout.count('--epochs 2 ') == 16


def test_evidence():
    """Every command parses; runs are fast and of one schedule, but for the paper's own."""
    done = recipe('evidence', PRINT='1')
    assert (done.returncode, done.stderr) == (0, '')
    runs = [job.opt for line in done.stdout.splitlines() for job in jobs.read(io.StringIO(line))]
    assert all(opt.fast for opt in runs)
    short = [opt for opt in runs if opt.save.startswith('logs/table1/')]
    assert {(o.lr_schedule, o.warmup) for o in short} == {('linear', 1)}
    assert all(opt.epochs == 30 or opt.save.endswith(f'_{opt.epochs}') for opt in short)
    own = [opt for opt in runs if opt.save.startswith('logs/paper/')]
    assert {(o.epochs, o.lr_schedule, o.warmup, tuple(o.epoch_step)) for o in own} == {
        (200, 'step', 0, (60, 120, 160))}
    assert {opt.seed for opt in runs if opt.save.endswith('/wrn_16_1_wrn_16_2_at_kd')} == {1, 2, 3, 4, 5}


def budget(**variables):
    done = recipe('budget', PRINT='1', **variables)
    assert (done.returncode, done.stderr) == (0, '')
    return [job.opt for job in jobs.read(io.StringIO(done.stdout))]


def test_budget():
    """A teacher for each seed; each method with each seed for each number of epochs."""
    runs = budget(LOGS='some logs')
    teachers = [opt for opt in runs if opt.width == 2]
    assert [(row(opt), opt.seed, opt.epochs) for opt in teachers] == [
        (((16, 2), '', {}), seed, 30) for seed in (1, 2, 3)]
    students = [opt for opt in runs if opt.width == 1]
    methods = [{}, {'beta': 1e3}, {'alpha': 0.9}, {'beta': 1e3, 'alpha': 0.9}]
    assert [(opt.seed, opt.epochs, row(opt)[2]) for opt in students] == [
        (seed, epochs, weights)
        for seed in (1, 2, 3) for epochs in (5, 10, 20, 30, 60) for weights in methods]
    assert len({opt.save for opt in students}) == 60
    for opt in students:
        assert opt.depth == 16 and opt.save.startswith(f'some logs/{opt.seed}/')
        assert opt.teacher_id == (f'some logs/{opt.seed}/wrn_16_2' if opt.alpha or opt.beta else '')
        assert opt.beta_decay == ('linear' if opt.alpha and opt.beta else 'none')
    assert {(opt.lr_schedule, opt.warmup, opt.lr) for opt in runs} == {('linear', 1, 0.1)}


def test_budget_has_settings():
    runs = budget(SEEDS='7', EPOCHS_LIST='2 20', EPOCHS='12', SCHEDULE='step')
    assert (runs[0].save, runs[0].seed, runs[0].epochs) == ('logs/budget/7/wrn_16_2', 7, 12)
    assert {(opt.epochs, *opt.epoch_step) for opt in runs[1:]} == {(2, 2), (20, 7, 13, 17)}
    assert {(opt.lr_schedule, opt.warmup) for opt in runs} == {('step', 0)}


def test_budget_repeats_no_run_of_table_1():
    """In the same folder, runs as long as the teacher are those of Table 1; others have their own names."""
    options = {'LOGS': 'logs/both', 'SEEDS': '1 2', 'EPOCHS': '30', 'SCHEDULE': 'linear', 'WARMUP': '1'}
    table = {opt.save: opt for part in stages(1, PAIRS='wrn_16_1:wrn_16_2', **options) for opt in part}
    runs = {opt.save: opt for opt in budget(**options)}
    both = table.keys() & runs.keys()
    assert len(both) == 2 * 5 and all(table[save] == runs[save] for save in both)
    assert both == {save for save, opt in runs.items() if opt.epochs == 30}


def test_compare_tries_three_weights_of_each_loss():
    runs = [opt for part in stages_of(recipe('compare', PRINT='1', LOGS='c')) for opt in part]
    assert {(opt.seed, opt.val_images, opt.epochs, opt.lr_schedule) for opt in runs} == {
        (11, 5000, 30, 'linear')}
    teacher, *students = runs
    assert teacher.save == 'c/choice/11/wrn_16_2' and {opt.teacher_id for opt in students} == {teacher.save}
    tried = {}
    for opt in students:
        (loss,) = method.active(opt)
        tried.setdefault((loss.title, opt.kd_logits), []).append(getattr(opt, loss.option))
    assert {title for title, _ in tried} == {loss.title for loss in method.LOSSES if not loss.gradients}
    some = {method.active(opt)[0].title: opt.at_groups for opt in students if opt.at_groups is not None}
    assert some == {'SP': [2], 'FitNets': [1]}  # as in RepDistiller
    for (title, _), (third, usual, triple) in tried.items():
        odds = [weight / (1 - weight) if title == 'KD' else weight for weight in (third, usual, triple)]
        assert [odds[1] / odds[0], odds[2] / odds[1]] == pytest.approx([3, 3], rel=0.05), title


@pytest.mark.parametrize(('student', 'network'), [
    ('wrn_10_1', (10, 1)), ('wrn_16_2', (16, 2)), ('wrn_40_1', (40, 1))])
def test_compare_with_other_networks_on_cifar100(student, network):
    teachers, students = stages_of(recipe('compare', PRINT='1', LOSSES='sp', PAIR=f'{student}:wrn_40_2',
                                          DATASET='CIFAR100', ARGS='--normalization cifar100'))
    assert [row(opt)[0] for opt in (*teachers, *students)] == [(40, 2)] + [network] * 3
    assert {(opt.dataset, opt.normalization) for opt in students} == {('CIFAR100', 'cifar100')}


@pytest.mark.slow
def test_compare_to_its_end(tmp_path):
    settings = {'LOSSES': 'kd', 'PAIR': 'wrn_10_1:wrn_16_1', 'DATASET': 'shapes', 'EPOCHS': '2',
                'VAL_IMAGES': '20', 'SEEDS': '1 2', 'ARGS': '--max_images 40 --batch_size 10',
                'LOGS': str(tmp_path)}
    done = recipe('compare', **settings)
    assert (done.returncode, done.stderr) == (0, '')
    assert all(re.search(rf'\| {name} .*\| 2 ', done.stdout) for name in ('alone', 'KD'))
    assert (tmp_path / 'compare.png').read_bytes().startswith(b'\x89PNG')
    assert len(list(tmp_path.glob('final/*/*/log.txt'))) == 6
    assert len(list(tmp_path.glob('choice/*/*/log.txt'))) == 4


# --- settings -----------------------------------------------------------------------------------------------


# Worked by hand: a drop at d of T comes at 1 + (d - 1) E / T, rounded; not twice, not at 1, not after E.
@pytest.mark.parametrize(('epochs', 'drops'), [
    (200, [60, 120, 160]), (400, [119, 239, 319]), (100, [31, 61, 81]), (50, [16, 31, 41]), (12, [5, 8, 11]),
    (4, [2, 3, 4]), (3, [2, 3]), (2, [2]), (1, [])])
def test_schedule(epochs, drops):
    for opt in (opt for n in (1, 3) for stage in stages(n, SEEDS='1', EPOCHS=str(epochs)) for opt in stage):
        assert (opt.epochs, opt.epoch_step) == (epochs, drops)


@pytest.mark.parametrize(('epochs', 'drops', 'begin'), [(10, [4, 7, 10], 7), (2, [2], 2), (1, [], 1)])
def test_schedule_of_table5(epochs, drops, begin):
    found, = stages(5, EPOCHS=str(epochs))
    assert [(o.epochs, o.epoch_step) for o in found[1:]] == 3 * [(epochs, drops)]
    assert found[2].at_from_epoch == begin


@pytest.mark.parametrize(('variables', 'expected'), [
    ({'SCHEDULE': 'linear'}, ('linear', 0, 0.1)), ({'SCHEDULE': 'cosine', 'LR': '0.2'}, ('cosine', 0, 0.2)),
    ({'SCHEDULE': 'linear', 'WARMUP': '1.5', 'EPOCHS': '30'}, ('linear', 1.5, 0.1)),
    ({'LR': '0.05', 'WARMUP': '2'}, ('step', 2, 0.05)), ({'SCHEDULE': 'step'}, ('step', 0, 0.1))])
def test_other_schedules(variables, expected):
    for opt in (opt for stage in stages(1, SEEDS='1', **variables) for opt in stage):
        assert (opt.lr_schedule, opt.warmup, opt.lr) == expected
        assert (opt.epochs, opt.epoch_step) == (int(variables.get('EPOCHS', 200)), [60, 120, 160])


def test_other_schedules_keep_learning_rates_that_a_table_has():
    """Without BN, and of fine-tuning."""
    (teacher, *others), taught = stages(3, SCHEDULE='linear')
    assert (teacher.lr, {opt.lr for opt in others + taught}) == (0.1, {0.01})
    assert {(opt.lr, opt.lr_schedule) for stage in stages(4, SCHEDULE='linear') for opt in stage} == {
        (0.01, 'linear')}
    assert {opt.lr for opt in stages(4, LR='0.02')[0]} == {0.02}


def test_schedule_of_table4():
    assert {(o.epochs, *o.epoch_step) for stage in stages(4, EPOCHS='6') for o in stage} == {(6, 5)}


def test_data_set_and_further_options():
    found = [opt for stage in stages(1, DATASET='CIFAR100', ARGS="--dataroot 'my data' --dtype bfloat16")
             for opt in stage]
    assert {(opt.dataset, opt.dataroot, opt.dtype) for opt in found} == {('CIFAR100', 'my data', 'bfloat16')}


@pytest.fixture
def copy(tmp_path):
    """A copy of the recipes in a folder with a space, and a PYTHON that tells how it was called."""
    root = tmp_path / 'a copy'
    (root / 'recipes').mkdir(parents=True)
    for path in RECIPES.glob('*.sh'):
        (root / 'recipes' / path.name).write_text(path.read_text())
    python = tmp_path / 'fake python'
    python.write_text('#!/usr/bin/env bash\n'
                      'for word in "$(pwd)" "$@"; do printf "<%s>" "$word"; done; echo\n'
                      'if [ "$2" = tools.jobs ]; then cat >lines; exit "${STATUS:-0}"; fi\n')
    python.chmod(0o755)
    return root, str(python)


def test_runner_then_report(copy):
    root, python = copy
    done = recipe('table2', root, PYTHON=python, JOBS='3', GPUS='0,1', LOGS='my logs', SEEDS='1')
    assert (done.returncode, done.stderr) == (0, '')
    train, table = done.stdout.splitlines()
    assert re.sub(r'\d{2,}', 'PID', train.removeprefix(f'<{root}>')) == (
        '<-m><tools.jobs><--parent><PID><--jobs><3><--gpus><0,1>')
    assert table == f'<{root}><-m><tools.report><--table><2><my logs><--plot><my logs/curves.png>'
    lines = (root / 'lines').read_text()
    assert lines == recipe('table2', PRINT='1', LOGS='my logs', SEEDS='1').stdout and lines.count('\n') == 9


def test_budget_then_its_report(copy):
    root, python = copy
    done = recipe('budget', root, PYTHON=python, LOGS='my logs', SEEDS='1', EPOCHS_LIST='5')
    *_, told = done.stdout.splitlines()
    assert told == f'<{root}><-m><tools.report><--budget><my logs><--plot><my logs/budget.png>'
    assert (root / 'lines').read_text().count('\n') == 5


def test_logs_in_the_home(copy):
    """A recipe makes no folder named ~."""
    root, python = copy
    done = recipe('table2', root, PYTHON=python, LOGS='~/my logs', SEEDS='1', HOME='/home/me')
    assert (done.returncode, done.stderr) == (0, '')
    assert '<--table><2></home/me/my logs><--plot></home/me/my logs/curves.png>' in done.stdout
    assert "--save '/home/me/my logs/1/" in (root / 'lines').read_text() and '~' not in done.stdout


def test_nothing_starts_where_a_recipe_fails(copy):
    root, python = copy
    path = root / 'recipes' / 'table1.sh'
    path.write_text(path.read_text().replace('    local seed network\n', '    false\n', 1))
    done = recipe('table1', root, PYTHON=python)
    assert (done.returncode, done.stdout) == (1, '')


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
def test_names_of_any_kind(locale):
    name = "d'été $x *"
    found = stages(1, LOGS=name, SEEDS='1', LC_ALL=locale)
    assert {str(Path(opt.save).parent) for stage in found for opt in stage} == {f'{name}/1'}


def test_one_after_the_other_unless_told(copy):
    root, python = copy
    done = recipe('table1', root, PYTHON=python)
    assert re.search('<--jobs><1><--gpus><>\n', done.stdout)


def test_no_report_of_what_failed(copy):
    root, python = copy
    done = recipe('table1', root, PYTHON=python, STATUS='3')
    assert done.returncode == 3 and 'tools.report' not in done.stdout


@pytest.mark.parametrize(('name', 'variables', 'words'), [
    ('table1', {'EPOCHS': '1e2'}, 'EPOCHS=1e2'), ('table3', {'EPOCHS': '0'}, 'EPOCHS=0'),
    ('table1', {'TEACHER': 'x'}, 'PAIRS'),
    ('budget', {'EPOCHS_LIST': '5 x'}, 'EPOCHS_LIST=5 x'),
    ('budget', {'EPOCHS_LIST': '05'}, 'EPOCHS_LIST=05'), ('budget', {'EPOCHS': '0'}, 'EPOCHS=0'),
    *(('table1', {'PAIRS': pairs}, f'PAIRS: {pairs.split()[-1]} is') for pairs in (
        'wrn_16_1', ':', 'wrn_16_1:', ':wrn_16_1', 'wrn_16_1:resnet18', 'wrn_16_1:wrn_16_2:wrn_40_1',
        'wrn_16_1:wrn_16_2 wrn_16_1')),
    *(('compare', {'PAIR': pair}, f'PAIR={pair}') for pair in (
        'wrn_16_1:resnet18', 'wrn_16_1', 'wrn_16_1:wrn_16_1')),
    ('compare', {'LOSSES': 'at xx'}, 'LOSSES=at xx'), ('table4', {}, 'CUB=folder'),
    ('table5', {}, 'IMAGENET=folder')])
def test_one_sentence(name, variables, words):
    done = recipe(name, **variables)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert done.stderr.startswith(f'{name}.sh: error: ') and words in done.stderr


def test_without_data(tmp_path):
    done = recipe('table1', SEEDS='1 2', LOGS=str(tmp_path / 'logs'), ARGS='--dataroot /dev/null/data')
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert done.stderr.startswith('jobs.py: error: CIFAR10 in /dev/null/data/')
    assert not (tmp_path / 'logs').exists()


@pytest.mark.parametrize(('variables', 'word'), [
    ({'SCHEDULE': 'cyclic'}, 'cyclic'), ({'WARMUP': '-1'}, '--warmup'), ({'LR': 'fast'}, '--lr'),
    ({'SCHEDULE': 'linear', 'WARMUP': '3', 'EPOCHS': '3'}, '--warmup 3')])
def test_schedules_that_cannot_work(variables, word):
    """They are options of the runs, which tools.jobs reads before one starts."""
    lines = recipe('table2', SEEDS='1', PRINT='1', **variables).stdout
    with pytest.raises(InputError, match=word):
        jobs.read(io.StringIO(lines))


def test_make_has_every_recipe():
    makefile = (ROOT / 'Makefile').read_text()
    phony = re.search(r'^\.PHONY:(.*)', makefile, re.MULTILINE)[1].split()
    for path in RECIPES.glob('*.sh'):
        if path.stem != 'common':
            rule = rf'^{path.stem}: .*\n\t\$\(recipe\)$'
            assert path.stem in phony and re.search(rule, makefile, re.MULTILINE)


@pytest.mark.slow
def test_demo_says_what_it_showed(tmp_path):
    """The whole demo, on few images: its table, its pictures, and three lines, the first from the logs."""
    logs = tmp_path / 'demo logs'
    done = recipe('demo', LOGS=str(logs), SEEDS='2 1',
                  ARGS='--max_images 100 --epochs 1 --warmup 0 --device cpu --dtype float')
    assert (done.returncode, done.stderr) == (0, '')
    *before, seen, pictures, following = done.stdout.splitlines()

    def error(name):
        return f'{sum(100 - log_of(logs / str(seed) / name)[-1]["test_acc"] for seed in (1, 2)) / 2:.1f} %'

    assert [seen.split(part)[1][:len(error(name)) + 1].strip(' ,.') for name, part in (
        ('at_kd', 'AT+KD: '), ('alone', 'alone '), ('teacher', 'teacher '))] == [
        error(name) for name in ('at_kd', 'alone', 'teacher')]
    assert seen.endswith('(medians of 2 seeds)')
    for name in ('curves.png', 'attention.png'):
        assert f'{logs}/{name}' in pictures and (logs / name).read_bytes().startswith(b'\x89PNG')
    assert ': 4 test images' in done.stdout and any('| AT+KD ' in line for line in before)
    target, *words = following.partition(': make ')[2].split()
    assert f'\n{target}: ' in (ROOT / 'Makefile').read_text()
    variables = dict(word.split('=') for word in words)
    assert [len(stage) for stage in stages(int(target.removeprefix('table')), **variables)] == [2, 4]


# --- all of it ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch):
    """Every row of every table runs and is in the report of its table; every loss runs."""
    logs = tmp_path / 'smoke logs'
    done = recipe('smoke', LOGS=str(logs), ARGS='--device cpu', JOBS='2')
    assert (done.returncode, done.stderr) == (0, '')
    n_runs = 1 + 22 + 9 + 7 + 4 + 4 + 3  # the first serves Tables 4 and 5 as weights from elsewhere
    first, *told = done.stdout.splitlines()
    assert first == f'0 of {n_runs} runs are done'
    assert sum(', after ' in line for line in told) == n_runs
    for n in (1, 2, 3):
        for opt in (opt for stage in stages(n, SEEDS='1', LOGS=str(logs / f'table{n}')) for opt in stage):
            log = log_of(Path(opt.save))
            assert [epoch['epoch'] for epoch in log] == [1, 2] and log[0]['dataset'] == 'shapes'
            assert {name: log[0][name] for name in WEIGHTS} == {name: getattr(opt, name) for name in WEIGHTS}
    last = [log_of(log.parent)[-1] for log in logs.rglob('log.txt')]
    assert all(any(record[loss.option] for record in last) for loss in method.LOSSES)
    at = log_of(logs / 'table5/1/r18_at')
    assert [epoch['beta_epoch'] for epoch in at] == [0, 1e3]
    assert log_of(logs / 'table4/1/folder_r18_kd')[1]['teacher_params'] == str(logs / 'table4/1/folder_r34')
    for n in range(1, 6):
        text = call(report, '--table', n, logs / f'table{n}', cwd=tmp_path).out
        assert '|' in text and ('missing' not in text or n in IMAGES)
