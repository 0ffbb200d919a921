"""What the options accept, refuse and mean; published names and defaults; schedules."""
import argparse
import math
import re
import shlex
import string
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import cifar
import imagenet
import method
from tools import export, report, visualize
from training import devices, options
from utils import InputError

RUN = ['--save', 'run']
STUDENT = [*RUN, '--teacher_id', 'teacher']


def refused(capsys, *arguments):
    """The one line on stderr with which parsing ends."""
    with pytest.raises(SystemExit) as end:
        cifar.parse(list(arguments))
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == '' and err.endswith('\n') and err.count('\n') == 1
    return err


# --- types -----------------------------------------------------------------------------------------------

# With digits of other scripts, a minus that is none, and what ends a line or a string.
texts = st.text(string.printable + '\0\x85\u0661\uff11\xb2\xbd\u2212\ud800\u2028')

NUMBERS = {
    'positive_int': (['1', '200', ' 7 '], ['0', '-1', '1.0', '1e3', 'nan', 'inf', '', 'one', '[1]', '0x10']),
    'count': (['0', '4', '2147483647'], ['-1', '2147483648', '0.5', 'nan', 'inf', '', 'x']),
    'positive': (['0.1', '1e-5', '3', '1e+3'], ['0', '-0', '-1', 'nan', 'inf', '-inf', '1e999', '', '1,5']),
    'weight': (['0', '1e+3', '5e-4', '0.0'], ['-1e-9', 'nan', 'inf', '1e400', '', 'x', '0.1.2']),
    'fraction': (['0', '1', '0.9', '1e-3'], ['1.0001', '-0.1', 'nan', 'inf', '', '90%'])}


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers(name):
    convert = getattr(options, name)
    accepted, not_accepted = NUMBERS[name]
    kind = int if name in ('positive_int', 'count') else float
    for text in accepted:
        value = convert(text)
        assert type(value) is kind and value == kind(text)
    for text in not_accepted:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            convert(text)


@given(texts | st.floats().map(str) | st.integers().map(str))
@example('9' * 5000)
@example('1_0')
@example('\uff11')
def test_numbers_refuse_in_one_way(text):
    ranges = {'positive_int': (1, math.inf), 'count': (0, math.inf), 'weight': (0, 1e309),
              'positive': (5e-324, 1e309), 'fraction': (0, 1)}
    for name, (low, high) in ranges.items():
        try:
            value = getattr(options, name)(text)
        except argparse.ArgumentTypeError as e:
            assert repr(text) in str(e)
        else:
            assert low <= value <= high and math.isfinite(value)


@pytest.mark.parametrize(('text', 'value'), [
    ('[60,120,160]', [60, 120, 160]), ('60,120,160', [60, 120, 160]), ('[ 60 , 120 ]', [60, 120]),
    (' [1]', [1]), ('7', [7]), ('0', [0]), ('[]', []), ('', []), ('3,1,2', [3, 1, 2])])
def test_int_list(text, value):
    assert options.int_list(text) == value


@pytest.mark.parametrize('text', [
    '[60,120', '60]', '60;120', '60 120', '[60,,120]', '[60,]', '60.0', '1e2', '[-1]', '[true]', 'null',
    '"60"', '[[60]]', '{"a": 1}', '[1,1]', '0,1,0', 'nan', 'Infinity', 'x', '[1],[2]',
    '9' * 5000, '[' * 100_000])
def test_int_list_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError):
        options.int_list(text)


@given(texts | st.text('0123456789,[] .-"e') | st.lists(st.integers()).map(str))
def test_int_list_refuses_in_one_way(text):
    try:
        values = options.int_list(text)
    except argparse.ArgumentTypeError as e:
        assert repr(text) in str(e)
    else:
        assert all(type(v) is int and v >= 0 for v in values) and len(set(values)) == len(values)
        digits = text.replace('[', '').replace(']', '').split(',')
        assert values == [int(d) for d in digits if d.strip()]


@given(st.lists(st.integers(min_value=0), unique=True))
def test_int_list_reads_lists(values):
    assert options.int_list(str(values)) == options.int_list(str(values)[1:-1]) == values


# --- published names and defaults ------------------------------------------------------------------------

PUBLISHED = {
    'depth': 16, 'width': 1.0, 'dataset': 'CIFAR10', 'dataroot': '.', 'dtype': 'float', 'nthread': 4,
    'teacher_id': '', 'batch_size': 128, 'lr': 0.1, 'epochs': 200, 'weight_decay': 0.0005,
    'epoch_step': [60, 120, 160], 'lr_decay_ratio': 0.2, 'resume': '', 'randomcrop_pad': 4, 'temperature': 4,
    'alpha': 0, 'beta': 0, 'ngpu': 1, 'gpu_id': [0]}


def test_published_defaults():
    opt = vars(cifar.parse(RUN))
    assert {name: opt[name] for name in PUBLISHED} == PUBLISHED
    # what is new changes nothing as long as it is not given
    new = {'save': 'run', 'device': 'auto', 'seed': 1, 'evaluate': False, 'beta_decay': 'none', 'map': 'sum',
           'map_p': 2, 'at_groups': None, 'at_from_epoch': 1, 'student_params': '', 'model': 'wrn',
           'no_bn': False, 'no_pool_relu': False, 'augment': 'crop_flip', 'max_images': 0, 'compile': False,
           'max_hours': None, 'tensorboard': False, 'deterministic': False,
           'lr_schedule': 'step', 'warmup': 0,
           'val_images': 0, 'fast': False, 'at_norm': 'code', 'kd_logits': 'raw',
           'normalization': 'cifar10', 'groups': None, 'teacher_model': '', 'teacher_groups': None,
           'list_groups': False,
           'dkd_alpha': 1, 'dkd_beta': 8, 'dkd_warmup': 0, 'dist_beta': 1, 'dist_gamma': 1}
    new |= {loss.option: 0 for loss in method.LOSSES if loss.option not in PUBLISHED}
    assert opt == PUBLISHED | new


def test_published_commands():
    opt = cifar.parse(shlex.split(
        '--save logs/at --teacher_id resnet_16_2_teacher --beta 1e+3 --depth 40 --width 2 '
        '--dataset CIFAR100 --cuda --gpu_id 1 --epoch_step "[60,120]" --alpha 0.9'))
    assert (opt.save, opt.teacher_id, opt.beta, opt.alpha) == ('logs/at', 'resnet_16_2_teacher', 1000, 0.9)
    assert (opt.depth, opt.width, opt.dataset, opt.device) == (40, 2, 'CIFAR100', 'cuda')
    assert (opt.gpu_id, opt.epoch_step) == ([1], [60, 120])


def test_names_of_options_before_may_2018():
    opt = cifar.parse([*RUN, '--batchSize', '64', '--weightDecay', '1e-4', '--data_root', 'data'])
    assert (opt.batch_size, opt.weight_decay, opt.dataroot) == (64, 1e-4, 'data')
    assert not {'batchSize', 'weightDecay', 'data_root'} & vars(opt).keys()


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--dep', '16'], '--dep'), (['--batch', '64'], '--batch'), (['--unknown'], '--unknown'),
    (['word'], 'word'),
    (['--depth', '16.5'], "--depth: '16.5' is not a whole number from 1"),
    (['--alpha', '1.5'], "--alpha: '1.5' is not a number from 0 to 1"),
    (['--beta', '-1'], "--beta: '-1' is not a finite number from 0"),
    (['--lr', 'nan'], "--lr: 'nan' is not a finite number above 0"),
    (['--epoch_step', '[60,120'], "'[60,120' is not a list of whole numbers"),
    (['--gpu_id', '0,0'], "'0,0' has a number twice"), (['--dataset', 'MNIST'], 'CIFAR10'),
    (['--dtype', 'double'], 'bfloat16'), (['--lr'], '--lr')])
def test_errors_of_the_parser(capsys, arguments, words):
    err = refused(capsys, *RUN, *arguments)
    assert 'error: ' in err and words in err


@pytest.mark.parametrize(('script', 'arguments'), [(cifar, RUN), (imagenet, ['--imagenetpath', 'x'])])
def test_help_explains_every_option_and_shows_its_default(monkeypatch, script, arguments):
    parsers, parse = [], options.Parser.parse_args
    monkeypatch.setattr(options.Parser, 'parse_args',
                        lambda self, *a: parsers.append(self) or parse(self, *a))
    script.parse(arguments)
    formatter = options.Help('')
    for action in parsers[0]._actions:
        text = formatter._expand_help(action)
        assert len(text) > 8 and not re.search(r'default: (None|False|\)|$)', text), action.dest
        assert ('(default: ' in text) >= (action.default not in (None, False, '', '==SUPPRESS==')
                                          or action.default == 0 and action.default is not False), action.dest


# --- combinations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], '--save'),
    (['--resume', 'auto'], '--save'),
    (['--evaluate'], '--student_params'),
    (['--evaluate', '--resume', 'auto'], '--student_params'),
    (['--evaluate', '--save', 'run', '--teacher_id', 'x'], '--teacher_id'),
    (['--evaluate', '--save', 'run', '--beta', '1'], '--beta'),
    (['--evaluate', '--save', 'run', '--max_hours', '1'], '--max_hours is for training'),
    (['--evaluate', '--save', 'run', '--tensorboard'], '--tensorboard is for training'),
    (['--evaluate', '--resume', 'x', '--teacher_id', 'x', '--alpha', '0.9'], '--alpha'),
    ([*RUN, '--beta', '1'], '--teacher_id'),
    ([*RUN, '--alpha', '0.5'], '--teacher_id'),
    (STUDENT, '--beta 1e+3'),
    ([*RUN, '--beta_decay', 'linear'], '--beta_decay'),
    ([*STUDENT, '--alpha', '0.9', '--beta_decay', 'cosine'], '--beta_decay'),
    ([*STUDENT, '--alpha', '0.9', '--map', 'max'], '--map '),
    ([*STUDENT, '--alpha', '0.9', '--map_p', '4'], '--map_p'),
    ([*STUDENT, '--alpha', '0.9', '--at_groups', '0'], '--at_groups'),
    ([*STUDENT, '--beta', '1', '--temperature', '3'], '--temperature'),
    ([*STUDENT, '--beta', '1', '--at_groups', '[]'], '--at_groups'),
    ([*STUDENT, '--beta', '1', '--at_groups', '[1,3]'], '0 to 2'),
    ([*RUN, '--randomcrop_pad', '32'], '--randomcrop_pad'),
    ([*RUN, '--ngpu', '2', '--gpu_id', '1'], 'gpu_id'),
    ([*RUN, '--ngpu', '3', '--batch_size', '2'], '--batch_size 2'),
    ([*RUN, '--gpu_id', '0,1'], '--gpu_id'),
    ([*RUN, '--epoch_step', '[0,60]'], '--epoch_step'),
    ([*RUN, '--width', '1e9'], '--width'), ([*RUN, '--ngpu', '1025'], '--ngpu'),
    ([*RUN, '--dataset', 'shapes', '--dataroot', 'data'], '--dataroot'),
    ([*RUN, '--hint_beta', '1'], '--hint_beta needs a teacher'),
    ([*RUN, '--grad_beta', '1'], '--grad_beta needs a teacher'),
    ([*STUDENT, '--sym_beta', '1'], 'nothing is learned from it'),
    ([*STUDENT, '--grad_beta', '1', '--at_groups', '[0]'], '--at_groups has no effect without --beta or'),
    ([*STUDENT, '--grad_beta', '1', '--compile'], '--compile'),
    ([*RUN, '--sym_beta', '1', '--compile'], '--compile'),
    ([*RUN, '--compile', '--l2_beta', '1'], '--compile'),
    ([*RUN, '--dtype', 'half', '--l2_beta', '1'], 'half precision'),
    (['--evaluate', '--save', 'run', '--l2_beta', '1'], '--l2_beta'),
    ([*STUDENT, '--hint_beta', '1', '--at_from_epoch', '3'], '--at_from_epoch has no effect without --beta'),
    ([*RUN, '--augment', 'flip', '--randomcrop_pad', '2'], '--augment flip'),
    ([*RUN, '--model', 'nin', '--depth', '16'], '--depth'),
    ([*RUN, '--model', 'nin', '--width', '1.5'], '--width 1.5'),
    ([*RUN, '--no_bn'], '--model nin'),
    ([*RUN, '--no_pool_relu'], '--model nin'),
    ([*RUN, '--model', 'vgg'], 'nin'),
    ([*RUN, '--gpu_id', '[]'], '--gpu_id'),
    ([*RUN, '--gpu_id', ''], '--gpu_id')])
def test_combinations_that_cannot_work(capsys, arguments, words):
    assert words in refused(capsys, *arguments)


@pytest.mark.parametrize('arguments', [
    ['--evaluate', '--save', 'run'], ['--evaluate', '--resume', 'file'],
    [*STUDENT, '--hint_beta', '1e3', '--beta_decay', 'linear', '--at_groups', '[1]', '--compile'],
    [*STUDENT, '--grad_beta', '1', '--alpha', '0.9', '--beta', '1e3'], [*RUN, '--sym_beta', '1', '--l2_beta',
                                                                        '1'],
    [*RUN, '--model', 'nin', '--width', '192', '--no_bn', '--no_pool_relu', '--augment', 'none'],
    [*RUN, '--resume', 'auto'], [*STUDENT, '--beta', '1e3', '--alpha', '0.9', '--beta_decay', 'step'],
    [*STUDENT, '--beta', '1', '--map', 'max', '--map_p', '1', '--at_groups', '[2,0]'],
    [*STUDENT, '--alpha', '0.9', '--temperature', '3'], [*RUN, '--randomcrop_pad', '31'],
    [*RUN, '--randomcrop_pad', '0'], [*RUN, '--epoch_step', '[]'], [*RUN, '--map_p', '2.0']])
def test_combinations_that_work(capsys, arguments):
    cifar.parse(arguments)
    assert capsys.readouterr() == ('', '')


PATHS = [(cifar, ['--teacher_id', '--beta', '1', '--save', 'x'], 'teacher_id'), (cifar, ['--save'], 'save'),
         (cifar, ['--save', 'x', '--resume'], 'resume'), (cifar, ['--save', 'x', '--dataroot'], 'dataroot'),
         (cifar, ['--evaluate', '--student_params'], 'student_params'),
         (imagenet, ['--imagenetpath'], 'imagenetpath'), (imagenet, ['--dataroot'], 'imagenetpath'),
         (imagenet, ['--imagenetpath', 'x', '--finetune'], 'finetune'),
         (imagenet, ['--imagenetpath', 'x', '--beta', '1', '--teacher_params'], 'teacher_params'),
         (export, ['b.hkl'], 'source'), (report, [], 'logs'), (report, ['x', '--csv'], 'csv'),
         (report, ['--check'], 'check'), (report, ['--check', 'x', '--dataroot'], 'dataroot'),
         (visualize, ['x', '--save', 'x.png', '--weights'], 'weights')]


@pytest.mark.parametrize('joined', [False, True])
@pytest.mark.parametrize(('script', 'arguments', 'name'), PATHS)
def test_every_option_that_takes_a_path_expands_a_tilde(monkeypatch, script, arguments, name, joined):
    monkeypatch.setenv('HOME', '/home/of me')
    for text, expected in (('~/x', '/home/of me/x'), ('a/~/x', 'a/~/x'), ('~nobody.here/x', '~nobody.here/x'),
                           ('http://x/~y', 'http://x/~y')):
        option = next((word for word in arguments[-1:] if word.startswith('--')), None)
        if name == 'teacher_id':
            words = [f'{arguments[0]}={text}', *arguments[1:]]
        elif option and joined:
            words = [*arguments[:-1], f'{option}={text}']
        else:
            words = [text, *arguments] if name == 'source' else [*arguments, text]
        value = getattr(script.parse(words), name)
        expected = Path(expected) if isinstance(value, Path) else expected
        assert (value[0] if isinstance(value, list) else value) == expected


def test_files_to_write_are_in_the_home(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert export.parse(['x', '~/b.hkl']).out == Path('/home/me/b.hkl')
    assert report.parse(['x', '--plot', '~/b.png']).plot == Path('/home/me/b.png')
    assert visualize.parse(['x', '--weights', 'x', '--save', '~/b.png']).save == Path('/home/me/b.png')


@pytest.mark.parametrize(('script', 'arguments'), [(cifar, RUN), (imagenet, ['--imagenetpath', 'x'])])
def test_what_names_a_file_has_the_type_of_a_path(monkeypatch, script, arguments):
    parsers, parse = [], options.Parser.parse_args
    monkeypatch.setattr(options.Parser, 'parse_args',
                        lambda self, *a: parsers.append(self) or parse(self, *a))
    script.parse(arguments)
    paths = [action for action in parsers[0]._actions if action.metavar in ('FILE', 'FOLDER', 'RUN')]
    assert len(paths) >= 5 and all(action.type is options.path for action in paths)


def test_option_without_effect_is_said(capsys):
    cifar.parse([*RUN, '--nthread', '2'])
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('note: --nthread') and err.count('\n') == 1


@pytest.mark.parametrize(('arguments', 'told'), [
    (['--epochs', '10'], ['--lr_schedule step changes']),
    (['--epochs', '10', '--beta_decay', 'step'], ['--lr_schedule step and --beta_decay step change ']),
    (['--epochs', '10', '--lr_schedule', 'linear', '--beta_decay', 'step'], ['so --beta_decay step ch']),
    (['--epoch_step', '[]', '--beta_decay', 'step'], ['so --beta_decay step ch']),
    (['--epoch_step', '[201]', '--beta_decay', 'step'], ['--lr_schedule step and --beta_decay step change ']),
    (['--epoch_step', '[200]', '--beta_decay', 'step'], []),
    (['--epoch_step', '[300,200]', '--beta_decay', 'step'], []),
    (['--epoch_step', '[]'], []),
    (['--epoch_step', '[]', '--lr_schedule', 'step', '--beta_decay', 'linear'], []),
    (['--epochs', '10', '--lr_schedule', 'cosine'], [])])
def test_steps_that_never_come_are_said_once(capsys, arguments, told):
    cifar.parse([*STUDENT, '--beta', '1', *arguments])
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == err.count('note: ') == len(told)
    assert all(words in err for words in told)


@pytest.mark.parametrize('seed', ['0', '1', '18446744073709551615', '18446744073709551616', '1' + '0' * 30])
def test_a_seed_that_is_accepted_works(capsys, seed):
    try:
        opt = cifar.parse([*RUN, '--seed', seed])
    except SystemExit:
        assert int(seed) >= 2**31 and '--seed' in capsys.readouterr().err
    else:
        torch.manual_seed(opt.seed)  # as the script does


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert devices.device(cifar.parse(RUN)) == torch.device('cpu')
    for arguments, words in (['--cuda'], 'no CUDA device'), (['--dtype', 'half'], 'half'):
        with pytest.raises(InputError, match=words):
            devices.device(cifar.parse([*RUN, *arguments]))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda _: None)
    assert devices.device(cifar.parse([*RUN, '--gpu_id', '1'])) == torch.device('cuda', 1)
    assert devices.device(cifar.parse([*RUN, '--device', 'cpu'])) == torch.device('cpu')
    with pytest.raises(InputError, match='there are 2 CUDA devices'):
        devices.device(cifar.parse([*RUN, '--gpu_id', '2']))


def test_a_nin_has_its_own_depth_and_width():
    opt = cifar.parse([*RUN, '--model', 'nin'])
    assert (opt.depth, opt.width) == (9, 96)
    assert cifar.parse([*RUN, '--model', 'nin', '--width', '192']).width == 192
    assert (cifar.parse(RUN).depth, cifar.parse(RUN).width) == (16, 1)


# --- the table of losses ---------------------------------------------------------------------------------

# Of each setting that needs a loss, a value that is not its default.
OTHER = {'beta_decay': 'linear', 'map': 'max', 'map_p': '3', 'at_groups': '[0]', 'at_from_epoch': '2',
         'temperature': '3', 'at_norm': 'paper', 'kd_logits': 'standardized', 'dkd_alpha': '2',
         'dkd_beta': '2', 'dkd_warmup': '2', 'dist_beta': '2', 'dist_gamma': '2'}
LOSSES = pytest.mark.parametrize('loss', method.LOSSES, ids=lambda loss: loss.name)


def on(loss):
    """The options that switch a loss on, and nothing else."""
    return [*(STUDENT if loss.teacher else RUN), f'--{loss.option}', '1']


def test_rows_are_told_apart():
    for column in ('name', 'option', 'title', 'help', 'losses'):
        assert len({getattr(loss, column) for loss in method.LOSSES}) == len(method.LOSSES)
    assert {name for loss in method.LOSSES for name in loss.settings} == OTHER.keys()


@pytest.mark.parametrize('script', [cifar, imagenet])
def test_every_loss_has_an_option(capsys, monkeypatch, script):
    """Off by default, with its help."""
    monkeypatch.setenv('COLUMNS', '1000')
    with pytest.raises(SystemExit):
        script.parse(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    opt = script.parse([*RUN, *(['--imagenetpath', 'x'] if script is imagenet else [])])
    for loss in method.LOSSES:
        assert getattr(opt, loss.option) == 0
        assert f'--{loss.option} W {loss.help} (default: 0.0)' in text


@LOSSES
def test_a_loss_is_accepted_and_what_it_needs_is_asked_for(capsys, loss):
    opt = cifar.parse(on(loss))
    assert method.active(opt) == [loss] and capsys.readouterr() == ('', '')
    bare = [word for word in on(loss) if word not in ('--teacher_id', 'teacher')]
    if loss.teacher:
        assert f'--{loss.option} needs a teacher' in refused(capsys, *bare)
    else:
        assert 'nothing is learned from it' in refused(capsys, *bare, '--teacher_id', 'teacher')
    for more in (['--compile'], ['--dtype', 'half']):
        if loss.gradients:
            assert more[0] in refused(capsys, *on(loss), *more)
        else:
            cifar.parse([*on(loss), *more])
    above = [*on(loss)[:-1], '1.001']
    if loss.most == 1:
        assert f'--{loss.option}' in refused(capsys, *above)
    else:
        assert getattr(cifar.parse(above), loss.option) == 1.001
    assert '--evaluate' in refused(capsys, '--evaluate', *on(loss))


@pytest.mark.parametrize('name', OTHER)
@LOSSES
def test_a_setting_needs_its_loss(capsys, loss, name):
    command = [*on(loss), f'--{name}', OTHER[name]]
    if name in loss.settings:
        assert str(getattr(cifar.parse(command), name)).startswith(OTHER[name])
        return
    err = refused(capsys, *command)
    assert f'--{name} has no effect without --' in err
    for each in method.LOSSES:
        assert (f'--{each.option}' in err.partition('without')[2].split()) == (name in each.settings)


# --- schedules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--lr_schedule', 'exponential'], 'exponential'), (['--warmup', '-1'], '--warmup'),
    (['--warmup', 'nan'], '--warmup'), (['--warmup', '200'], '--warmup 200'),
    (['--warmup', '2', '--epochs', '2', '--epoch_step', '[]'], '--warmup 2'),
    (['--warmup', '2.5', '--epochs', '2', '--lr_schedule', 'linear'], '--warmup 2.5'),
    (['--lr_schedule', 'linear', '--epoch_step', '[5]'], '--epoch_step'),
    (['--lr_schedule', 'cosine', '--lr_decay_ratio', '0.3'], '--lr_decay_ratio')])
def test_schedules_that_cannot_work(capsys, arguments, words):
    assert words in refused(capsys, *RUN, *arguments)
    with pytest.raises(SystemExit) as end:
        imagenet.parse(['--imagenetpath', 'x', *RUN, *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and words in err and err.count('\n') == 1


def test_schedules_that_work(capsys):
    cifar.parse([*RUN, '--lr_schedule', 'linear', '--warmup', '1.5', '--epochs', '2'])
    cifar.parse([*RUN, '--lr_schedule', 'step', '--warmup', '0.5'])
    cifar.parse([*STUDENT, '--beta', '1', '--lr_schedule', 'cosine', '--beta_decay', 'step', '--epoch_step',
                 '[5]'])
    assert capsys.readouterr() == ('', '')


def test_steps_that_never_come_are_noted(capsys, monkeypatch):
    cifar.parse([*RUN, '--epochs', '30'])
    err = capsys.readouterr().err
    assert err.startswith('note: ') and '--epochs 30' in err and err.count('\n') == 1
    cifar.parse([*RUN, '--epochs', '30', '--lr_schedule', 'linear'])
    cifar.parse(['--evaluate', *RUN, '--epochs', '30'])
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    cifar.parse([*RUN, '--epochs', '30'])
    assert capsys.readouterr() == ('', '')
