"""The losses of other papers in the step, in runs, and on ranks: rows of the table like any other."""
import functools
import signal

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager

import cifar
import layers
import method
import resnet
import utils
from helpers import SMALL, call_cifar, log_of, run_ranks
from layers import Sample
from method import adaptors, training_step
from training import checkpoint

RIVALS = {'fitnet': 100, 'vid': 1, 'nst': 50, 'sp': 3e3, 'rkd_distance': 25, 'rkd_angle': 50, 'pkt': 3e4,
          'cc': 100, 'dkd': 1, 'dist': 1}
OF_GROUPS = ('fitnet', 'vid', 'nst', 'sp')
OF_A_BATCH = ('sp', 'rkd_distance', 'rkd_angle', 'pkt', 'cc', 'dist')
ALL = [word for name, weight in RIVALS.items() for word in (f'--{name}_weight', weight)]
STUDENT = [*SMALL, '--teacher_id', 'wide.pth', '--lr', 1e-3, '--batch_size', 16]


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(before)


def parse(*arguments):
    return cifar.parse(['--save', 'run', '--teacher_id', 'teacher', *map(str, arguments)])


def networks(opt):
    """A student with adaptors, and a wider teacher; the same for every option."""
    torch.manual_seed(0)
    f, student = resnet.wide_resnet(10, 0.25, 10)
    f_t, teacher = resnet.wide_resnet(10, 0.5, 10)
    torch.manual_seed(1)
    student |= adaptors(opt, f, student, f_t, teacher)
    layers.trainable(student)
    return f, student, f_t, teacher


def step(opt, epoch=1):
    """Loss and output of one step on six images, its networks, and the images."""
    f, student, f_t, teacher = networks(opt)
    torch.manual_seed(2)
    x, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    loss, output = training_step(opt, f, student, f_t, teacher)(Sample(x, labels, epoch))
    return loss, output, (f, student, f_t, teacher), (x, labels)


# --- one step --------------------------------------------------------------------------------------------


def test_the_rows_are_those_of_the_table():
    options = [f'{name}_weight' for name in RIVALS]
    assert [row.option for row in method.LOSSES if row.option.endswith('_weight')] == options
    assert [row.option for row in method.LOSSES if row.batch] == [f'{name}_weight' for name in OF_A_BATCH]


@pytest.mark.parametrize('name', RIVALS)
def test_what_a_row_compares(name):
    """Each group, or the last one's averages, or the logits; the weight multiplies the sum."""
    groups = ['--at_groups', '[2,0]'] if name in OF_GROUPS else []
    loss, output, (f, student, f_t, teacher), (x, labels) = step(parse(f'--{name}_weight', 7, *groups))
    (y_s, g_s), (y_t, g_t) = f(x, student, True), f_t(x, teacher, False)

    def trained(i):
        found = {key: t for key, t in student.items() if key.startswith(f'adaptor:{name}{i}')}
        alpha = found.pop(f'adaptor:vid{i}.alpha', None)
        return () if not found else found.values() if alpha is None else (list(found.values()), alpha)

    function = getattr(utils, f'{name}_loss')
    if name in OF_GROUPS:
        expected = [function(g_s[i], g_t[i], *trained(i)) for i in (2, 0)]
    elif name in ('dkd', 'dist'):
        expected = [function(y_s, y_t, *([labels] if name == 'dkd' else []), T=4)]
    else:
        expected = [function(g_s[-1].mean((2, 3)), g_t[-1].mean((2, 3)))]
    found, = output.losses.values()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss, F.cross_entropy(y_s, labels) + 7 * sum(expected))
    loss.backward()
    assert all(t.grad.abs().sum() > 0 for name, t in student.items() if name.startswith('adaptor'))


def test_adaptors_of_all_losses():
    """FitNets and VID have them also where the numbers of channels are equal."""
    opt = parse('--hint_beta', 1, '--fitnet_weight', 1, '--vid_weight', 1, '--at_groups', '[1]')
    f, student, f_t, teacher = networks(opt)
    shapes = {name: tuple(t.shape) for name, t in student.items() if name.startswith('adaptor')}
    vid = {'adaptor:vid1.conv0': (16, 8, 1, 1), 'adaptor:vid1.conv1': (16, 16, 1, 1),
           'adaptor:vid1.conv2': (16, 16, 1, 1), 'adaptor:vid1.alpha': (16,)}
    assert shapes == {'adaptor:1': (16, 8, 1, 1), 'adaptor:fitnet1': (16, 8, 1, 1), **vid}
    torch.testing.assert_close(F.softplus(student['adaptor:vid1.alpha']), torch.full((16,), 5.0))
    assert adaptors(opt, f_t, teacher, f_t, teacher).keys() == {'adaptor:fitnet1', *vid}


def test_together_they_are_the_sum_of_them():
    loss, output, *_ = step(parse(*ALL, '--beta', 10, '--alpha', 0.9))
    assert len(output.losses) == len(RIVALS) + 2
    kd = step(parse('--alpha', 0.9))[0].item()
    pairs = [('--beta', 10), *((f'--{name}_weight', weight) for name, weight in RIVALS.items())]
    without_adaptors = [pair for pair in pairs if pair[0] not in ('--vid_weight', '--fitnet_weight')]
    alone = sum(step(parse('--alpha', 0.9, *pair))[0].item() - kd for pair in without_adaptors)
    # These two draw their adaptors in turn.
    both = step(parse('--alpha', 0.9, '--fitnet_weight', 100, '--vid_weight', 1))[0].item()
    assert loss.item() == pytest.approx(alone + both, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('more', [['--dtype', 'bfloat16'], ['--compile']])
def test_all_of_them_in_bfloat16_and_compiled(monkeypatch, more):
    """Compiled in one piece; without the compiler of C++, which takes a minute."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=aot_eager, fullgraph=True))
    results = []
    for arguments in ([], more):
        opt = parse(*ALL, '--beta', 10, '--alpha', 0.5, '--kd_logits', 'standardized', *arguments)
        loss, output, (_, student, *_), _ = step(opt)
        loss.backward()
        results.append([loss, *(t for values in output.losses.values() for t in values)])
        assert all(t.dtype == torch.float32 for t in results[-1])
        assert all(t.grad.isfinite().all() for t in student.values() if t.requires_grad)
    close = {'rtol': 0.2, 'atol': 0.02} if '--dtype' in more else {}
    torch.testing.assert_close(results[0], results[1], **close)


# --- settings --------------------------------------------------------------------------------------------


def test_settings_reach_their_losses():
    _, output, (f, student, f_t, teacher), (x, labels) = step(parse(
        '--beta', 1, '--at_norm', 'paper', '--alpha', 0.5, '--kd_logits', 'standardized', '--temperature', 2,
        '--dkd_weight', 1, '--dkd_alpha', 2, '--dkd_beta', 3,
        '--dist_weight', 1, '--dist_beta', 4, '--dist_gamma', 5))
    (y_s, g_s), (y_t, g_t) = f(x, student, True), f_t(x, teacher, False)
    scores = [utils.standardize_logits(y) for y in (y_s, y_t)]
    torch.testing.assert_close(output.losses, {
        'at': [utils.at_loss(a, b, norm='paper') for a, b in zip(g_s, g_t, strict=True)],
        'kd': [utils.softened_divergence(*scores, 2)], 'dkd': [utils.dkd_loss(y_s, y_t, labels, 2, 2, 3)],
        'dist': [utils.dist_loss(y_s, y_t, 2, 4, 5)]})


def test_dkd_warms_up():
    opt = parse('--dkd_weight', 2, '--dkd_warmup', 4)
    for epoch, factor in ((1, 0.25), (2, 0.5), (4, 1), (5, 1)):
        loss, output, _, (_, labels) = step(opt, epoch)
        expected = F.cross_entropy(output.logits, labels) + 2 * factor * output.losses['dkd'][0]
        torch.testing.assert_close(loss, expected)
    assert method.dkd_rise(parse('--dkd_weight', 1), 1) == 1


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--beta', 1, '--at_norm', 'l1'], '--at_norm'), (['--dkd_weight', -1], '--dkd_weight'),
    *(([f'--{name}_weight', 1, '--ngpu', 2, '--gpu_id', '0,1'], f'--{name}_weight compares')
      for name in OF_A_BATCH),
    *(([f'--{name}_weight', 1, '--batch_size', 1], '--batch_size') for name in OF_A_BATCH)])
def test_what_is_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count('\n') == 1 and words in err


def test_ranks_of_another_launcher(monkeypatch, capsys):
    for name, value in (('RANK', '0'), ('WORLD_SIZE', '2'), ('MASTER_ADDR', 'x'), ('MASTER_PORT', '1')):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse('--sp_weight', 1)
    assert '--sp_weight compares' in capsys.readouterr().err
    parse('--nst_weight', 1)
    monkeypatch.setenv('WORLD_SIZE', '1')
    parse('--sp_weight', 1)


# --- runs ------------------------------------------------------------------------------------------------


def call(*arguments, cwd):
    return call_cifar(*STUDENT, '--max_images', 48, *arguments, cwd=cwd)


@pytest.fixture
def wide(tmp_path):
    """A folder with a teacher."""
    _, teacher = resnet.wide_resnet(10, 0.5, 10)
    torch.save(teacher, tmp_path / 'wide.pth')
    return tmp_path


def test_a_run_with_all_of_them_is_resumed_to_the_bit(wide):
    save, stop = checkpoint.Folder.save, [KeyboardInterrupt]

    def interrupted(self, *arguments):
        save(self, *arguments)
        if stop:
            raise stop.pop()

    run = [*ALL, '--dkd_warmup', 2, '--save']
    assert call(*run, 'whole', '--epochs', 2, cwd=wide).status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Folder, 'save', interrupted)
        assert call(*run, 'run', '--epochs', 2, cwd=wide).status == 128 + signal.SIGINT
    first = checkpoint.read(wide / 'run' / 'model.pt7')
    assert call(*run, 'run', '--epochs', 2, '--resume', 'auto', cwd=wide).status == 0
    whole, run = (checkpoint.read(wide / name / 'model.pt7') for name in ('whole', 'run'))
    assert len(run['adaptors']) == 3 + 3 * 4
    for part in ('params', 'adaptors'):
        for name, t in run[part].items():
            assert torch.equal(t, whole[part][name]) and not torch.equal(t, first[part][name])
    record = log_of(wide / 'run')[-1]
    lengths = {name: len(record[f'{name}_losses']) for name in RIVALS}
    assert lengths == {name: 3 if name in OF_GROUPS else 1 for name in RIVALS}


def test_adaptors_that_are_missing_on_resume(wide):
    run = ['--fitnet_weight', 100, '--save', 'run', '--epochs']
    assert call(*run, 1, cwd=wide).status == 0
    done = call(*run, 2, '--vid_weight', 1, '--resume', 'auto', cwd=wide)
    assert done.status == 2 and len(done.errors) == 1
    assert 'lacks the adaptors that --fitnet_weight and --vid_weight train' in done.errors[0]


def test_a_last_batch_of_one_image(wide):
    """It joins the batch before it. Where there is none, one sentence."""
    pkt = ['--pkt_weight', 1, '--epochs', 1, '--max_images']
    assert call(*pkt, 33, '--save', 'a', cwd=wide).status == 0
    done = call(*pkt, 1, '--save', 'b', cwd=wide)
    assert done.status == 2 and len(done.errors) == 1 and 'two or more' in done.errors[0]


@pytest.mark.ranks
def test_ranks_learn_as_one_process(wide):
    """The losses that are means over images, with regressors and variances that all ranks train."""
    exact = [word for name in ('fitnet', 'vid', 'nst', 'dkd') for word in (f'--{name}_weight', RIVALS[name])]
    for n in (1, 2):
        run_ranks(n, *STUDENT, '--batch_size', 55, *exact, '--at_norm', 'paper', '--beta', 1, '--alpha', 0.5,
                  '--kd_logits', 'standardized', '--epochs', 1, '--ngpu', n, '--save', n, folder=wide,
                  fixed_bn=True)
    one, two = (checkpoint.read(wide / n / 'model.pt7') for n in '12')
    for part in ('params', 'adaptors'):
        for name, t in one[part].items():
            torch.testing.assert_close(two[part][name], t, rtol=1e-5, atol=1e-5)
    logs = [log_of(wide / n)[0] for n in '12']
    for term in ('fitnet_losses', 'vid_losses', 'nst_losses', 'dkd_losses', 'at_losses', 'kd_losses'):
        means = [[mean for mean, _ in log[term]] for log in logs]
        assert means[1] == pytest.approx(means[0], rel=1e-4) and all(means[0])
