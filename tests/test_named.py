"""Networks by name in the scripts: of torchvision, of timm, and of a file of the user."""
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode

import imagenet
import modules
import resnet
from helpers import N_TRAIN, call, call_cifar, log_of, run_ranks
from pictures import content, picture, write_image
from tools import export, report, visualize
from training import checkpoint
from utils import InputError
from weights import named, networks

OWN = '''
from torch import nn


def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def other(num_classes):
    return 1


def broken(num_classes):
    raise ValueError('no such thing')


def larger(num_classes):
    return net(num_classes + 1)
'''
ROOT = Path(__file__).resolve().parent.parent
SMALL = ['--dataset', 'shapes', '--batch_size', 20, '--device', 'cpu', '--epoch_step', '[]']
MINE = ['--model', 'mine.py:net', '--groups', '2,4']
SHUFFLE = 'torchvision:shufflenet_v2_x0_5'
SHUFFLE_GROUPS = 'stage2,stage3'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'mine.py').write_text(OWN)
    return tmp_path


def run(folder, *arguments):
    done = call_cifar(*SMALL, *arguments, cwd=folder)
    assert (done.status, done.errors) == (0, [])
    return done


def test_the_file_of_a_user_teaches_and_learns(folder):
    run(folder, '--save', 'logs/mine', '--epochs', 1, *MINE)
    known = log_of(folder / 'logs/mine')[-1]['network']
    assert (known['model'], known['groups'], len(known['sha256'])) == ('mine.py:net', ['2', '4'], 64)
    taught = ['--save', 'logs/s', '--teacher_id', 'mine', '--teacher_model', 'mine.py:net',
              '--teacher_groups', '2,4', '--beta', 1, '--hint_beta', 1, *MINE]
    run(folder, *taught, '--epochs', 1)
    run(folder, *taught, '--epochs', 3, '--resume', 'auto')
    whole = [*taught[:1], 'logs/whole', *taught[2:], '--epochs', 3]
    run(folder, *whole)
    resumed, straight = (torch.load(folder / 'logs' / name / 'model.pt7') for name in ('s', 'whole'))
    for name, t in straight['params'].items():
        assert torch.equal(resumed['params'][name], t)
    log = log_of(folder / 'logs/s')[-1]
    assert log['teacher']['kind'] == 'mine.py:net' and log['test_agreement'] >= 0
    done = run(folder, '--evaluate', '--student_params', 'logs/s', *MINE)
    assert f'test loss {log["test_loss"]:.4f}' in done.out


def test_training_is_that_of_the_module(folder):
    """An epoch of one batch: plain gradient descent on the module that the script has built."""
    one = ['--epochs', 1, '--batch_size', N_TRAIN, '--weight_decay', 0, '--augment', 'none', *MINE]
    run(folder, '--save', 'logs/a', *one)
    run(folder, '--save', 'logs/b', *one, '--lr', 0.2)
    a, b = (torch.load(folder / 'logs' / name / 'model.pt7')['params'] for name in 'ab')
    torch.manual_seed(1)
    names = {}
    exec(OWN, names)
    fresh = names['net'](10).state_dict()
    for name in a:
        if 'running' in name:
            torch.testing.assert_close(a[name], b[name])
        else:
            one, two = (params[name] - fresh[name] for params in (a, b))
            torch.testing.assert_close(two, 2 * one, rtol=1e-4, atol=1e-6)


def test_a_module_of_the_user_may_be_named_adaptor(folder):
    """Its tensors are those of the network, not of a loss."""
    (folder / 'own.py').write_text(textwrap.dedent('''
        from torch import nn

        class Net(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.adaptor = nn.Conv2d(3, n, 3)

            def forward(self, x):
                return self.adaptor(x).mean((2, 3))
        '''))
    own = ['--model', 'own.py:Net', '--groups', 'adaptor']
    run(folder, '--save', 'logs/own', '--epochs', 1, *own)
    saved = torch.load(folder / 'logs/own/model.pt7')
    assert saved['params'].keys() == {'adaptor.weight', 'adaptor.bias'} and not saved['adaptors']
    run(folder, '--evaluate', '--student_params', 'logs/own', *own)


@pytest.mark.parametrize('option', ['--groups', '--teacher_groups'])
def test_no_group_twice(option, tmp_path):
    done = call_cifar('--save', 'x', '--model', SHUFFLE, option, 'stage2,stage2', cwd=tmp_path)
    assert done.status == 2 and 'twice' in done.err


def test_a_changed_file_is_noted(folder):
    run(folder, '--save', 'logs/a', '--epochs', 1, *MINE)
    (folder / 'mine.py').write_text(OWN + '# changed\n')
    done = run(folder, '--save', 'logs/a', '--epochs', 2, '--resume', 'auto', *MINE)
    assert 'changed' in done.err


def test_weights_never_run_code(folder):
    """Not even the file that they were trained with, unless the command names it."""
    run(folder, '--save', 'logs/a', '--epochs', 1, *MINE)
    (folder / 'mine.py').write_text('open("ran", "w")\n' + OWN)
    for arguments in (['--evaluate', '--student_params', 'logs/a'],
                      ['--save', 'logs/b', '--teacher_id', 'a', '--beta', 1]):
        done = call_cifar(*SMALL, *arguments, cwd=folder)
        assert done.status == 2 and 'never runs code' in done.err
    for tool, arguments in TOOLS:
        for more in ([], ['--run_files']):  # which runs no file that has changed
            assert call(tool, *arguments, *more, cwd=folder).status == 2
    assert not (folder / 'ran').exists()


TOOLS = ((export, ['logs/a', 'a.safetensors']),
         (visualize, ['photo.png', '--weights', 'logs/a', '--save', 'a.png']))


def test_tools_run_a_file_if_they_are_told_to(folder):
    run(folder, '--save', 'logs/a', '--epochs', 1, *MINE)
    write_image(folder / 'photo.png')
    for tool, arguments in TOOLS:
        assert call(tool, *arguments, cwd=folder).status == 2
        assert call(tool, *arguments, '--run_files', cwd=folder).status == 0
    error = f'test loss {log_of(folder / "logs/a")[-1]["test_loss"]:.4f}'
    for weights in 'logs/a', 'a.safetensors':
        assert error in run(folder, '--evaluate', '--student_params', weights, *MINE).out


def test_torch_hub(folder):
    """In a process whose module utils is not ours."""
    (folder / 'utils.py').write_text('MINE = 1\n')
    (folder / 'mine.py').write_text(OWN + '\n\nclass Late(nn.Sequential):\n    def __init__(self, n):\n'
                                    '        import utils\n        assert utils.MINE\n'
                                    '        super().__init__(*net(n))\n')
    own = ['--model', 'mine.py:net', '--groups', '2,4']
    run(folder, '--save', 'logs/a', '--epochs', 1, *own)
    run(folder, '--save', 'logs/t', '--epochs', 1, '--model', SHUFFLE, '--groups', SHUFFLE_GROUPS)
    run(folder, '--save', 'logs/w', '--epochs', 1, '--depth', 10)
    saved = torch.load(folder / 'logs/a/model.pt7')
    saved['options']['network']['model'] = 'mine.py:Late'
    checkpoint.write(folder / 'logs/a/model.pt7', saved)
    code = f"""
import sys, torch, utils
def load(weights, **more):
    return torch.hub.load({str(ROOT)!r}, 'named_network', weights=weights, source='local', **more)

for weights, more in ('logs/t', {{}}), ('logs/a', {{'run_files': True}}):
    model = load(weights, **more)
    known = torch.load(weights + '/model.pt7')['params']
    state = model.state_dict()
    assert known and all(torch.equal(state[name], t) for name, t in known.items())
    assert model(torch.ones(2, 3, 32, 32)).shape == (2, 10) and not model.training
for weights, word in ('logs/a', 'never runs code'), ('logs/w', 'by name'):
    try:
        load(weights)
    except ValueError as e:
        assert word in str(e), e
    else:
        raise AssertionError(weights)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_knows_its_groups(folder):
    run(folder, '--save', 'logs/a', '--epochs', 1, *MINE)
    run(folder, '--evaluate', '--student_params', 'logs/a', *MINE[:2])
    taught = ['--teacher_id', 'a', '--teacher_model', MINE[1], '--beta', 1]
    run(folder, '--save', 'logs/b', '--epochs', 1, *taught, *MINE)
    (folder / 'mine.py').write_text(OWN + '# changed\n')
    assert 'changed' in run(folder, '--evaluate', '--student_params', 'logs/a', *MINE[:2]).err


def test_torchvision_needs_no_name_again(folder):
    """A run of a network of torchvision is evaluated, teaches, and is drawn, exported and reported."""
    model = ['--model', SHUFFLE, '--groups', SHUFFLE_GROUPS]
    run(folder, '--save', 'logs/t', '--epochs', 1, *model)
    log = log_of(folder / 'logs/t')[-1]
    done = run(folder, '--evaluate', '--student_params', 'logs/t')
    assert f'test loss {log["test_loss"]:.4f}' in done.out and SHUFFLE in done.out
    run(folder, '--save', 'logs/s', '--epochs', 1, '--teacher_id', 't', '--beta', 1, '--alpha', 0.5, *MINE)
    rows = call(report, 'logs/t', 'logs/s', cwd=folder).out
    assert f'mine.py:net from {SHUFFLE}' in rows and '| AT+KD' in rows
    done = call(visualize, '--disputed', 1, '--weights', 'logs/t', 'logs/t', '--names', 'a', 'b',
                '--save', 'x.png', cwd=folder)
    assert done.status == 2 and 'disagree' in done.err  # two equal networks: it has read and run both
    pytest.importorskip('onnxruntime')
    assert call(export, 'logs/t', 't.onnx', cwd=folder).status == 0
    for name in 't.pth', 't.hkl', 't.safetensors':
        assert call(export, 'logs/t', name, cwd=folder).status == 0
        done = run(folder, '--evaluate', '--student_params', name, *model)
        assert f'test loss {log["test_loss"]:.4f}' in done.out


def test_weights_from_elsewhere(folder):
    """A state dictionary with a prefix, under a name, of a module that was built by hand."""
    module = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    state = {f'module.{name}': t for name, t in module.state_dict().items()}
    torch.save({'state_dict': state, 'epoch': 3}, folder / 'theirs.pth')
    run(folder, '--save', 'logs/s', '--epochs', 1, '--teacher_id', 'theirs.pth', '--teacher_model', SHUFFLE,
        '--teacher_groups', SHUFFLE_GROUPS, '--beta', 1, *MINE)
    f, fresh = named.build(SHUFFLE, 10, 32, SHUFFLE_GROUPS.split(','))
    found = named.fitted({name.removeprefix('module.'): t for name, t in state.items()
                          if 'num_batches' not in name}, fresh, 'x')
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(f(x, found, False)[0], module.eval()(x))
    del fresh['fc.bias']
    with pytest.raises(InputError, match=r'fc\.bias'):
        named.fitted(found, fresh, 'x')


@pytest.mark.ranks
def test_two_ranks(folder):
    for n in (1, 2):
        run_ranks(n, *SMALL, *MINE, '--epochs', 1, '--save', f'logs/{n}', '--ngpu', n, folder=folder)
    one, two = (torch.load(folder / 'logs' / n / 'model.pt7')['params'] for n in '12')
    assert one.keys() == two.keys()  # BN sees the images of a rank: values differ
    assert [e['ranks'] for n in '12' for e in log_of(folder / 'logs' / n)] == [1, 2]


@pytest.mark.parametrize(('arguments', 'word'), [
    (['--model', 'mine.py:net'], '--groups'), (['--model', 'mine.py:nett'], 'net'),
    (['--model', 'mine.py:other', '--groups', 'a'], 'int'),
    (['--model', 'mine.py:broken', '--groups', 'a'], 'ValueError'),
    (['--model', 'mine.py:larger', '--groups', '2'], '11'), (['--model', 'no.py:net'], 'no.py'),
    ([*MINE[:2], '--groups', '2,99'], '99'), ([*MINE[:2], '--groups', '2,6'], 'map'),
    ([*MINE, '--depth', 22], '--depth'), (['--groups', '2'], '--groups'),
    (['--list_groups'], '--list_groups'),
    (['--teacher_model', 'mine.py:net'], '--teacher_id'), (['--teacher_groups', '2'], '--teacher_model'),
    (['--model', 'torchvision:resnet19'], 'resnet18'), (['--model', 'torchvision:vit_b_16'], 'height'),
    (['--model', 'vgg'], 'torchvision:NAME')])
def test_mistakes(folder, arguments, word):
    done = call_cifar(*SMALL, '--save', 'logs/x', *arguments, cwd=folder)
    assert done.status == 2 and word in done.errors[-1] and not (folder / 'logs').exists()


def test_list_of_groups(folder):
    done = call_cifar('--dataset', 'shapes', '--model', 'torchvision:resnet18', '--list_groups', cwd=folder)
    lines = [line.split() for line in done.out.splitlines()]
    assert done.status == 0
    assert [line[1:] for line in lines if line[0] == '*'] == [
        ['layer1', '64', 'x', '8', 'x', '8'], ['layer2', '128', 'x', '4', 'x', '4'],
        ['layer3', '256', 'x', '2', 'x', '2']]
    assert ['layer1.0.conv1', '64', 'x', '8', 'x', '8'] in lines


def test_timm(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    done = call_cifar(*SMALL, '--save', 'logs/x', '--model', 'timm:resnet18', cwd=folder)
    assert done.status == 2 and 'pip install timm' in done.err
    asked = []

    def create_model(name, num_classes):
        asked.append((name, num_classes))
        return torchvision.models.resnet18(num_classes=num_classes)

    fake = types.SimpleNamespace(create_model=create_model, list_models=lambda: ['resnet18'])
    monkeypatch.setitem(sys.modules, 'timm', fake)
    f, _ = named.build('timm:resnet18.a1_in1k', 7, 64)
    assert asked == [('resnet18.a1_in1k', 7)] and f.groups == ('layer1', 'layer2', 'layer3', 'layer4')


def test_a_network_of_timm():
    timm = pytest.importorskip('timm')
    f, params = named.build('timm:mobilenetv3_small_050', 5, 64)
    module = timm.create_model('mobilenetv3_small_050', num_classes=5)
    x = torch.randn(4, 3, 64, 64)
    expected = module.eval()(x)
    theirs = {name: t for name, t in module.state_dict().items() if 'num_batches' not in name}
    logits, groups = f(x, named.fitted(theirs, params, 'x'), False)
    torch.testing.assert_close(logits, expected)
    assert [tuple(g.shape[2:]) for g in groups] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert named.head(f, params) == {'classifier.weight', 'classifier.bias'}
    with pytest.raises(InputError, match='mobilenetv3_small_050'):
        named.build('timm:mobilenetv3_smal_050', 5, 64)


@pytest.mark.parametrize('recipe', [
    None, 1, 'torchvision:resnet18', {}, {'model': 'torchvision:resnet18'},
    {'model': ['torchvision:resnet18'], 'groups': [], 'num_classes': 10, 'size': 32},
    {'model': 'wrn', 'groups': [], 'num_classes': 10, 'size': 32},
    {'model': 'torchvision:resnet18', 'groups': [1], 'num_classes': 10, 'size': 32},
    {'model': 'torchvision:resnet18', 'groups': [], 'num_classes': 10**9, 'size': 32},
    {'model': 'torchvision:resnet18', 'groups': [], 'num_classes': 10, 'size': 10**6},
    {'model': 'torchvision:resnet18', 'groups': [], 'num_classes': True, 'size': 32}])
def test_recipes_that_are_none(recipe):
    assert named.recipe_of({'network': recipe}) is None
    assert named.recipe_of(recipe) is None


def test_a_hostile_recipe_ends_in_one_sentence(tmp_path):
    for model in ('torchvision:resnet18', 'torchvision:nothing', 'timm:x', '/etc/x.py:y'):
        recipe = {'model': model, 'groups': ['layer1'], 'num_classes': 10, 'size': 32}
        torch.save({'params': {'a.weight': torch.zeros(3, 3), 'b.weight': torch.zeros(3)},
                    'options': {'network': recipe}}, tmp_path / 'x.pth')
        with pytest.raises(InputError) as error:
            resnet.load(tmp_path / 'x.pth')
        assert '\n' not in str(error.value)


def test_a_small_file_asks_for_no_large_network(tmp_path):
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            t = func(*args, **kwargs or {})
            made.extend([t.numel()] if isinstance(t, torch.Tensor) and not t.is_meta else [])
            return t

    made = []
    for model in ('torchvision:regnet_y_400mf', 'torchvision:vgg11', 'timm:resnet10t'):
        recipe = {'model': model, 'groups': [], 'num_classes': 10, 'size': 32}
        torch.save({'params': {'fc.weight': torch.zeros(3, 3)}, 'options': {'network': recipe}},
                   tmp_path / 'x.pth')
        with pytest.raises(InputError, match='fit'), Sizes():
            resnet.load(tmp_path / 'x.pth')
    assert made and max(made) < 10_000


def test_regnet_from_its_file(tmp_path):
    """Which computes with the values of tensors while it is built."""
    f, params = named.build('torchvision:regnet_x_400mf', 10, 32)
    torch.save({'params': params, 'options': {'network': f.recipe}}, tmp_path / 'x.pth')
    again, found = resnet.load(tmp_path / 'x.pth')
    assert again.recipe == f.recipe and not any(t.is_meta for t in found.values())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(x, found, False)[0], f(x, params, False)[0], rtol=0, atol=0)


def draw_images(folder, root='images'):
    for split, n in (('train', 4), ('val', 2)):
        for name in 'ab':
            (folder / root / split / name).mkdir(parents=True)
            for i in range(n):
                write_image(folder / root / split / name / f'{i}.jpg', content(picture(i)))


def test_imagenet(tmp_path):
    """A network of torchvision teaches another on images of the user."""
    draw_images(tmp_path)
    teach = ['--dataset', 'folder', '--dataroot', 'images', '--batch_size', 4, '--epochs', 1, '--nthread', 0]
    shuffle = ['--model', SHUFFLE, '--groups', SHUFFLE_GROUPS]
    done = call(imagenet, *teach, *shuffle, '--save', 'logs/t', cwd=tmp_path)
    assert (done.status, done.errors) == (0, [])
    done = call(imagenet, *teach, '--depth', 18, '--width', 0.0625, '--teacher_params', 'logs/t', '--beta', 1,
                '--at_groups', '[0,1]', '--save', 'logs/s', cwd=tmp_path)
    assert done.status == 2 and 'groups' in done.err  # 2 and 4
    done = call(imagenet, *teach, *shuffle, '--teacher_params', 'logs/t', '--beta', 1, '--at_groups', '[0,1]',
                cwd=tmp_path)
    assert (done.status, done.errors) == (0, [])
    log = log_of(tmp_path / 'logs/folder_torchvision_shufflenet_v2_x0_5_at')
    assert log[-1]['teacher']['kind'] == SHUFFLE


def test_fine_tuning(tmp_path):
    """A new head. BN, the first groups and what lies before stay; the rest learns, with a teacher too."""
    draw_images(tmp_path)
    module = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    before = module.state_dict()
    torch.save({'model': {f'module.{name}': t for name, t in before.items()}}, tmp_path / 'five.pth')
    tune = ['--dataset', 'folder', '--dataroot', 'images', '--batch_size', 4, '--epochs', 1, '--nthread', 0,
            '--model', SHUFFLE, '--groups', SHUFFLE_GROUPS, '--finetune', 'five.pth']
    taught = ['--teacher_params', 't', '--beta', 1, '--at_groups', '[1]']
    for save, more in (('t', ['--freeze', 1]), ('s', taught)):
        done = call(imagenet, *tune, *more, '--save', save, cwd=tmp_path)
        assert (done.status, done.errors) == (0, [])
        after = torch.load(tmp_path / save / 'model.pt7')['params']
        assert after['fc.weight'].shape == (2, 1024)
        norms = {f'{path}.{leaf}' for path, part in module.named_modules()
                 if isinstance(part, torch.nn.BatchNorm2d) for leaf, _ in part.named_parameters()}
        for name, t in after.items():
            if not name.startswith('fc.'):
                kept = name in norms or 'running' in name or name.startswith(('conv1', 'stage2'))
                assert torch.equal(t, before[name]) == kept, name
    done = call(imagenet, *tune[:-1], 't', '--freeze', 3, '--save', 'x', cwd=tmp_path)
    assert done.status == 2 and '2 groups' in done.err
    other = ['--model', 'torchvision:resnet18', '--groups', 'layer2']
    done = call(imagenet, *tune, *other, '--save', 'x', cwd=tmp_path)
    assert done.status == 2 and '--finetune' in done.err and not (tmp_path / 'x').exists()


def test_what_fine_tuning_leaves():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4),
                              torch.nn.Conv2d(4, 4, 3))
    f, params = modules.functional(net, ['1', '3'])
    norm = {'2.weight', '2.bias'}
    below = {'0.weight', '0.bias', '1.weight', '1.bias'}
    assert networks.fixed(f, params, 0) == norm
    assert networks.fixed(f, params, 1) == norm | below
    assert networks.fixed(f, params, 2) == params.keys()


def test_head():
    """A backbone without its head, whose names then share a prefix, is enough."""
    f, fresh = named.build('torchvision:mobilenet_v3_small', 3, 224)
    head = named.head(f, fresh)
    assert head == {'classifier.3.weight', 'classifier.3.bias'}
    theirs = torchvision.models.mobilenet_v2().state_dict()
    f, fresh = named.build('torchvision:mobilenet_v2', 3, 224)
    body = {name.removeprefix('features.'): t for name, t in theirs.items() if name.startswith('features.')
            and 'num_batches' not in name}
    found = named.fitted(body, fresh, 'x', named.head(f, fresh))
    assert found.keys() == fresh.keys()
    assert all(torch.equal(t, (fresh if name.startswith('classifier') else theirs)[name])
               for name, t in found.items())


def test_the_example_of_the_readme(tmp_path):
    """Its commands, with weights that need no download."""
    draw_images(tmp_path, 'photos')
    text = (ROOT / 'README.md').read_text()
    commands = re.findall(r'^python imagenet.py (--dataset folder .*)$', text, re.MULTILINE)
    assert len(commands) == 3
    for name in ('resnet50', 'mobilenet_v3_small'):
        torch.save(torchvision.models.get_model(name).state_dict(), tmp_path / f'{name}.pth')
    for command in commands:
        command = re.sub(r'--finetune torchvision:(\w+)', r'--finetune \1.pth', command)
        done = call(imagenet, *command.split(), '--nthread', 0, '--batch_size', 8,
                    *([] if '--evaluate' in command else ['--epochs', 1]), cwd=tmp_path)
        assert (done.status, done.errors) == (0, [])
    assert log_of(tmp_path / 'logs/student')[-1]['teacher']['kind'] == 'torchvision:resnet50'
    assert 'top-1 error' in done.out
