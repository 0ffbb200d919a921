"""imagenet.py as its users meet it: teachers and students, evaluation, fine-tuning, mistakes."""
import json
import os
import re
import shlex
import shutil

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision import transforms

import helpers
import imagenet
import layers
import resnet
from helpers import Payload, listing, log_of, run_ranks
from inputs import folders
from tools import export
from training import checkpoint, devices
from utils import InputError
from weights import networks

SMALL = ['--width', '0.0625', '--batch_size', '8', '--nthread', '0', '--device', 'cpu', '--lr', '0.01',
         '--epoch_step', '[]']
CLASSES = ('n01', 'n02', 'n03')


def call(*arguments, cwd):
    return helpers.call(imagenet, *arguments, cwd=cwd)


def sound(*arguments, cwd):
    done = call(*arguments, cwd=cwd)
    assert (done.status, done.err) == (0, '')
    return done.out


def draw(path, seed, label=0):
    """A picture of a class: its colour, with coarse noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 120, (5, 6, 3))
    noise[..., label % 3] += 100
    Image.fromarray(noise.astype(np.uint8)).resize((70, 50)).save(path, 'JPEG')


def tree(root, classes=CLASSES, parts=(('train', 5), ('val', 3))):
    for part, n in parts:
        for label, name in enumerate(classes):
            for i in range(n):
                draw(root / part / name / f'{name}_{part}{i}.JPEG', 100 * label + 10 * i + len(part), label)
    return root


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Images in the layout of ILSVRC2012, and a teacher under logs/. No test changes it."""
    folder = tmp_path_factory.mktemp('home')
    tree(folder / 'images')
    sound(*SMALL, '--imagenetpath', 'images', '--depth', 34, '--epochs', 2, '--save', 'logs/r34', cwd=folder)
    return folder


# --- options -----------------------------------------------------------------------------------------------


def test_command_and_defaults_of_2017():
    opt = imagenet.parse(shlex.split('--imagenetpath ~/ILSVRC2012 --depth 18 --width 1 --teacher_params '
                                     'resnet-34-export.hkl --gpu_id 0,1 --ngpu 2 --beta 1e+3'))
    assert opt.imagenetpath == os.path.expanduser('~/ILSVRC2012')
    published = {
        'depth': 18, 'width': 1, 'teacher_params': 'resnet-34-export.hkl', 'batch_size': 256,
        'lr': 0.1, 'epochs': 100, 'weight_decay': 1e-4, 'epoch_step': [30, 60, 90], 'lr_decay_ratio': 0.1,
        'resume': '', 'alpha': 0, 'temperature': 4, 'beta': 1000, 'ngpu': 2, 'gpu_id': [0, 1]}
    assert {name: getattr(opt, name) for name in published} == published
    assert (opt.at_groups, opt.at_from_epoch, opt.finetune) == ([2, 3], 1, '')
    assert opt.nthread == min(4, len(os.sched_getaffinity(0)))
    assert opt.save == 'logs/imagenet_resnet_18_1_at'  # it did not ask for --save


def test_defaults_of_fine_tuning_give_way_to_options():
    command = ['--dataset', 'cub', '--dataroot', 'x', '--finetune', 'y']
    opt = imagenet.parse(command)
    assert (opt.epochs, opt.batch_size, opt.lr, opt.epoch_step, opt.freeze) == (60, 64, 0.01, [40], 1)
    opt = imagenet.parse([*command, '--epochs', '3', '--lr', '0.1', '--epoch_step', '[2]'])
    assert (opt.epochs, opt.batch_size, opt.lr, opt.epoch_step) == (3, 64, 0.1, [2])
    assert imagenet.parse(['--imagenetpath', 'x']).epochs == 100  # the parser is a new one


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], '--imagenetpath is missing'), (['--imagenetpath', 'x', '--depth', '50'], '--depth'),
    (['--imagenetpath', 'x', '--beta', '1'], '--teacher_params'),
    (['--imagenetpath', 'x', '--teacher_params', 'y'], '--beta'),
    (['--imagenetpath', 'x', '--teacher_params', 'y', '--beta', '1', '--at_groups', '4'], '0 to 3'),
    (['--imagenetpath', 'x', '--teacher_params', 'y', '--beta', '1', '--at_from_epoch', '101'], '101'),
    (['--imagenetpath', 'x', '--at_from_epoch', '60'], '--at_from_epoch'),
    (['--imagenetpath', 'x', '--freeze', '2'], '--finetune'),
    (['--imagenetpath', 'x', '--finetune', 'y', '--freeze', '5'], '4 groups'),
    (['--imagenetpath', 'x', '--dataset', 'cub'], '--finetune'),
    (['--imagenetpath', 'x', '--dataset', 'scenes'], '--finetune'),
    (['--imagenetpath', 'x', '--dataset', 'birds'], '--dataset'),
    (['--imagenetpath', 'x', '--evaluate'], '--student_params'),
    (['--imagenetpath', 'x', '--student_params', 'y'], '--evaluate'),
    (['--imagenetpath', 'x', '--evaluate', '--student_params', 'y', '--finetune', 'z'], '--finetune'),
    (['--imagenetpath', 'x', '--width', '1001'], '--width'),
    (['--imagenetpath', 'x', '--lr_schedule', 'cyclic'], 'cyclic'),
    (['--imagenetpath', 'x', '--warmup', '100'], '--warmup 100'),
    (['--imagenetpath', 'x', '--finetune', 'y', '--warmup', '60'], '--warmup 60'),
    (['--imagenetpath', 'x', '--val_images', '5'], '--val_images'),  # of CIFAR only
    (['--imagenetpath', 'x', '--ngpu', '3', '--gpu_id', '0,1'], '--gpu_id')])
def test_options_that_cannot_work(tmp_path, arguments, words):
    done = call(*arguments, cwd=tmp_path)
    assert (done.status, done.out) == (2, '')
    assert len(done.errors) == 1 and done.err.startswith('imagenet.py: error: ') and words in done.err
    assert os.listdir(tmp_path) == []


def test_classes_have_names(tmp_path):
    """Images of other classes are refused, as many as they may be, by whatever takes up a run."""
    tree(tmp_path / 'images', ('a', 'b', '\udcff'))
    tree(tmp_path / 'other', ('x1', 'x2', 'x3'))
    common = [*SMALL, '--dataset', 'folder', '--epochs', 1]
    sound(*common, '--dataroot', 'images', '--save', 'run', cwd=tmp_path)
    record, = log_of(tmp_path / 'run')
    state = checkpoint.read(tmp_path / 'run' / 'model.pt7')
    assert state['options']['classes'] == ['a', 'b', '\udcff']
    assert record['classes'] == state['record']['classes'] == folders.short_form(['a', 'b', '\udcff'])
    before = listing(tmp_path / 'run')
    for more in (['--evaluate', '--student_params', 'run'],
                 ['--evaluate', '--student_params', 'run/model.pt7'],
                 ['--teacher_params', 'run', '--alpha', 0.5, '--save', 'student'],
                 ['--resume', 'auto', '--save', 'run', '--epochs', 2], ['--resume', 'run', '--save', 'copy']):
        done = call(*common, '--dataroot', 'other', *more, cwd=tmp_path)
        assert (done.status, len(done.errors)) == (2, 1) and 'a, b, ' in done.err and 'x1, x2, x3' in done.err
        if '--resume' not in more:
            sound(*common, '--dataroot', 'images', *more, cwd=tmp_path)
    assert listing(tmp_path / 'run') == before
    sound(*common, '--dataroot', 'other', '--finetune', 'run', '--save', 'tuned', cwd=tmp_path)


def test_numbers_as_classes_of_foreign_weights(tmp_path):
    tree(tmp_path / 'images', [str(i) for i in range(11)], (('train', 1), ('val', 1)))
    _, params = resnet.resnet(18, 0.0625, 11)
    torch.save(params, tmp_path / 'foreign.pth')
    common = [*SMALL, '--dataset', 'folder', '--dataroot', 'images', '--epochs', 1]
    for more in (['--evaluate', '--student_params', 'foreign.pth'],
                 ['--teacher_params', 'foreign.pth', '--alpha', 0.5, '--save', 'student']):
        done = call(*common, *more, cwd=tmp_path)
        assert done.status == 0 and done.err.count('\n') == 1 and done.err.startswith('note: ')
        assert '10 is class 2' in done.err and 'foreign.pth' in done.err
    sound(*common, '--evaluate', '--student_params', 'student', cwd=tmp_path)


def test_files_that_are_left_out_are_told(tmp_path):
    tree(tmp_path / 'images', ('a', 'b'))
    (tmp_path / 'images/train/a/7').write_bytes(b'')
    done = call(*SMALL, '--dataset', 'folder', '--dataroot', 'images', '--epochs', 1, '--save', 'run',
                cwd=tmp_path)
    assert (done.status, done.err.count('\n')) == (0, 1)
    assert done.err.startswith('note: left out: 1 ') and 'train/a/7' in done.err


def test_stderr_is_empty_by_default(tmp_path, home, run_script):
    """Whatever the number of cores, and with more processes than these."""
    for i, more in enumerate(([], ['--nthread', (os.cpu_count() or 1) + 1])):
        done = run_script('imagenet.py', '--imagenetpath', home / 'images', *SMALL[:4], '--device', 'cpu',
                          '--epochs', 1, '--epoch_step', '[]', '--save', f'run{i}', *more)
        assert (done.returncode, done.stderr) == (0, '')
        assert log_of(tmp_path / f'run{i}')[0]['nthread'] == (more[1] if more else min(4, devices.n_cores()))


# --- training from scratch -------------------------------------------------------------------------------


def test_teacher_and_student_as_a_user_starts_them(tmp_path, home, run_script):
    """With worker processes, and the folder named by the options; then on, and evaluated."""
    (tmp_path / 'images').symlink_to(home / 'images')
    command = ['--imagenetpath', 'images', *SMALL[:4], *SMALL[8:], '--depth', 18, '--teacher_params',
               home / 'logs' / 'r34', '--beta', '1e+3', '--alpha', 0.5, '--at_from_epoch', 2, '--nthread', 2]
    done = run_script('imagenet.py', *command, '--epochs', 2, OMP_NUM_THREADS='1')
    assert (done.returncode, done.stderr) == (0, '')
    run = tmp_path / 'logs' / 'imagenet_resnet_18_0.0625_at_kd'
    first, last = log_of(run)
    assert 'ResNet-34 of width 0.0625, 3 classes' in done.stdout
    assert f'{run.relative_to(tmp_path)}: 15 images of 3 classes to train with, 9 to test' in done.stdout
    assert (first['at_losses'], len(last['at_losses'])) == ([], 2)  # the last two groups, from epoch 2
    assert (first['beta_epoch'], last['beta_epoch']) == (0, 1000)
    assert 0 <= last['test_acc'] <= last['test_acc5'] == 100  # of three classes
    assert last['num_classes'] == 3 and last['images_per_second'] > 0 and 'damaged_images' not in last
    assert checkpoint.read(run / 'model.pt7')['params'].keys() == resnet.resnet(18, 0.0625, 3)[1].keys()
    done = run_script('imagenet.py', *command, '--epochs', 3, '--resume', 'auto', OMP_NUM_THREADS='1')
    assert (done.returncode, done.stderr) == (0, 'note: the run resumes with --epochs 3; it began with 2\n')
    last = log_of(run)[-1]
    assert last['epoch'] == 3
    out = sound('--imagenetpath', 'images', '--evaluate', '--student_params', run, *SMALL[2:6], cwd=tmp_path)
    assert re.search(r'test loss ([\d.]+) top-1 error ([\d.]+) top-5 error ([\d.]+)$', out).groups() == (
        f'{last["test_loss"]:.4f}', f'{100 - last["test_acc"]:.2f}', '0.00')


def test_workers_and_an_interruption_change_no_bit(tmp_path, home):
    """Four epochs at once without workers; two with two workers, then two more."""
    command = ['--imagenetpath', home / 'images', *SMALL, '--teacher_params', home / 'logs' / 'r34',
               '--beta', 1e3]
    sound(*command, '--epochs', 4, '--save', 'whole', cwd=tmp_path)
    sound(*command, '--epochs', 2, '--save', 'parts', '--nthread', 2, cwd=tmp_path)
    done = call(*command, '--epochs', 4, '--save', 'parts', '--resume', 'auto', cwd=tmp_path)
    assert done.status == 0
    whole, parts = (checkpoint.read(tmp_path / name / 'model.pt7')['params'] for name in ('whole', 'parts'))
    assert all(torch.equal(t, parts[name]) for name, t in whole.items())


def test_loss_of_the_first_step_by_hand(tmp_path, home):
    """One batch of 15 images: cross-entropy and AT by other operations, on images cropped as in this run."""
    command = ['--imagenetpath', str(home / 'images'), *SMALL, '--batch_size', '15', '--teacher_params',
               str(home / 'logs' / 'r34'), '--beta', '1e3', '--epochs', '1', '--save', 'run']
    sound(*command, cwd=tmp_path)
    record, = log_of(tmp_path / 'run')
    opt = imagenet.parse(command)
    train_set, _ = imagenet.folders.load('imagenet', home / 'images')
    sample, = imagenet.loader(opt, train_set, torch.device('cpu'), 'resized', opt.seed)
    torch.manual_seed(1)
    f_s, student = resnet.resnet(18, 0.0625, 3)
    f_t, teacher = resnet.load(home / 'logs' / 'r34')
    (y, g_s), (_, g_t) = f_s(sample.x, student, True), f_t(sample.x, teacher, False)

    def maps(x):
        q = x.double().square().mean(1).flatten(1)
        return q / q.norm(dim=1, keepdim=True)

    losses = [(maps(a) - maps(b)).square().mean().item() for a, b in zip(g_s[2:], g_t[2:], strict=True)]
    assert [mean for mean, _ in record['at_losses']] == pytest.approx(losses, rel=1e-4)
    expected = F.cross_entropy(y.double(), sample.labels).item() + 1e3 * sum(losses)
    assert record['train_loss'] == pytest.approx(expected, rel=1e-5)


def test_evaluation_counts_every_image_once(tmp_path, home):
    """Against torchvision's transforms on PIL images, one at a time; batches of 4 of 9 images."""
    f, params = resnet.load(home / 'logs' / 'r34')
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    losses, wrong = [], 0
    for label, name in enumerate(CLASSES):
        for path in sorted((home / 'images' / 'val' / name).iterdir()):
            y, _ = f(transform(Image.open(path))[None], params, False)
            losses.append(F.cross_entropy(y, torch.tensor([label])).item())
            wrong += int(y.argmax()) != label
    out = sound('--imagenetpath', home / 'images', *SMALL, '--batch_size', 4, '--evaluate',
                '--student_params',
                home / 'logs' / 'r34' / 'model.pt7', cwd=tmp_path)
    loss, top1, _ = re.search(r'loss ([\d.]+) top-1 error ([\d.]+) top-5 error ([\d.]+)$', out).groups()
    assert float(loss) == pytest.approx(np.mean(losses), abs=2e-3)  # pixels differ by a level here and there
    assert float(top1) == pytest.approx(100 * wrong / 9, abs=0.01)
    again = sound('--imagenetpath', home / 'images', *SMALL, '--batch_size', 9, '--evaluate',
                  '--student_params',
                  home / 'logs' / 'r34' / 'model.pt7', cwd=tmp_path)
    assert again == out


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks(tmp_path, home, run_script):
    """The error of one process to the digit; what rank 1 stumbles on is told, or counted."""
    shutil.copytree(home / 'images', tmp_path / 'images')
    common = ['--imagenetpath', 'images', *SMALL]
    evaluate = [*common, '--evaluate', '--student_params', home / 'logs' / 'r34']

    def printed(n, *more):
        return run_ranks(n, *evaluate, '--ngpu', n, *more, folder=tmp_path, script=imagenet).out

    assert printed(1) == printed(2) != ''
    damaged = tmp_path / 'images' / 'val' / 'n03' / 'n03_val0.JPEG'  # image 6 of 0 ... 7 in the first batch
    damaged.write_text('no picture')
    done = run_script('imagenet.py', *evaluate, '--ngpu', 2, OMP_NUM_THREADS='1')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert re.search(r'^imagenet.py: error: .*n03_val0\.JPEG is damaged', done.stderr, re.MULTILINE)
    assert printed(1, '--skip_damaged') == printed(2, '--skip_damaged')
    assert printed(2, '--skip_damaged').endswith(' without 1 damaged images\n')
    run_ranks(2, *common, '--epochs', 1, '--skip_damaged', '--ngpu', 2, folder=tmp_path, script=imagenet)
    assert log_of(tmp_path / 'logs' / 'imagenet_resnet_18_0.0625')[0]['damaged_images'] == [0, 1]


def test_evaluation_needs_no_training_images(tmp_path, home):
    """Batches of one image, of which a damaged one leaves nothing."""
    shutil.copytree(home / 'images' / 'val', tmp_path / 'images' / 'val')
    common = ['--imagenetpath', 'images', *SMALL, '--batch_size', 1, '--evaluate', '--student_params',
              home / 'logs' / 'r34']
    whole = sound(*common, cwd=tmp_path)
    assert whole == sound('--imagenetpath', home / 'images', *common[2:], cwd=tmp_path)
    last = tmp_path / 'images' / 'val' / 'n03' / 'n03_val2.JPEG'
    last.write_bytes(b'')
    assert call(*common, cwd=tmp_path).status == 2
    left_out = sound(*common, '--skip_damaged', cwd=tmp_path)
    last.unlink()
    assert left_out.replace(' without 1 damaged images', '') == sound(*common, cwd=tmp_path) != whole


def test_published_student_is_evaluated_and_teaches(tmp_path, home):
    """No BN in its shortcuts; names prefixed in the checkpoint."""
    _, params = resnet.resnet(18, 0.0625, 3)
    params = {name: t for name, t in params.items() if 'bndim' not in name}
    both = {f'{who}.{name}': t for who in ('student', 'teacher') for name, t in params.items()}
    torch.save({'params': both, 'optimizer': {}, 'epoch': 1}, tmp_path / 'model.pt7')
    torch.save(resnet.fold(params), tmp_path / 'folded.pth')
    common = ['--imagenetpath', home / 'images', *SMALL]
    outs = [sound(*common, '--evaluate', '--student_params', name,
                  cwd=tmp_path).splitlines()[1].split(': ')[1]
            for name in ('model.pt7', 'folded.pth')]
    assert outs[0] == outs[1]
    out = sound(*common, '--teacher_params', 'model.pt7', '--alpha', 0.9, '--epochs', 1, '--save', 'x',
                cwd=tmp_path)
    assert 'ResNet-18' in out


def test_damaged_images(tmp_path):
    tree(tmp_path / 'images')
    for path in ('train/n02/n02_train1.JPEG', 'val/n03/n03_val0.JPEG'):
        (tmp_path / 'images' / path).write_text('no picture\n')
    command = ['--imagenetpath', 'images', *SMALL, '--epochs', 1, '--save', 'run']
    done = call(*command, cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1
    assert 'images/train/n02/n02_train1.JPEG' in done.err and '--skip_damaged' in done.err
    done = call(*command, '--skip_damaged', cwd=tmp_path)
    assert (done.status, done.err) == (0, '')
    record, = log_of(tmp_path / 'run')
    assert record['damaged_images'] == [1, 1]
    assert record['test_acc'] * 8 / 100 == pytest.approx(round(record['test_acc'] * 8 / 100))  # 8 were left


# --- fine-tuning -----------------------------------------------------------------------------------------


def cub(root):
    rows = {name: [] for name in ('images', 'image_class_labels', 'train_test_split', 'bounding_boxes')}
    for i in range(1, 19):
        label, file = i % 3, f'bird_{i}.jpg'
        folder = f'{label + 1:03}.Bird_{label}'
        draw(root / 'images' / folder / file, i, label)
        for name, row in zip(rows, (f'{folder}/{file}', label + 1, int(i > 6), f'{5.0 + i} 4.0 40.0 30.5'),
                             strict=True):
            rows[name].append(f'{i} {row}\n')
    for name, lines in rows.items():
        (root / f'{name}.txt').write_text(''.join(lines))


def scenes(root):
    for part, n in (('Train', 4), ('Test', 2)):
        names = []
        for label, name in enumerate(('airport', 'bakery', 'church')):
            for i in range(n):
                draw(root / 'Images' / name / f'{part}{i}.jpg', 10 * label + i, label)
                names.append(f'{name}/{part}{i}.jpg\n')
        (root / f'{part}Images.txt').write_text(''.join(names))


@pytest.mark.parametrize(('dataset', 'build'), [('cub', cub), ('scenes', scenes), ('folder', tree)])
def test_fine_tuning_of_teacher_and_student(tmp_path, home, dataset, build):
    """As in Table 4: the teacher is fine-tuned, then teaches the student."""
    build(tmp_path / 'data')
    _, r18 = resnet.resnet(18, 0.0625, 11)
    torch.save(r18, tmp_path / 'r18.pth')
    common = ['--dataset', dataset, '--dataroot', 'data', *SMALL, '--epochs', 2]
    sound(*common, '--depth', 34, '--finetune', home / 'logs' / 'r34', '--save', 'teacher', cwd=tmp_path)
    sound(*common, '--finetune', 'r18.pth', '--teacher_params', 'teacher', '--beta', 1e3, '--alpha', 0.9,
          '--save', 'student', cwd=tmp_path)
    params = checkpoint.read(tmp_path / 'student' / 'model.pt7')['params']
    assert params['fc.weight'].shape == (3, 32)
    for name, t in r18.items():
        fixed = 'bn' in name or name == 'conv0' or name.startswith('group0.')
        if not name.startswith('fc.'):
            assert torch.equal(params[name], t) == fixed, name
    log = log_of(tmp_path / 'student')
    assert (log[-1]['dataset'], log[-1]['finetune'], log[-1]['num_classes']) == (dataset, 'r18.pth', 3)
    done = call(*common, '--finetune', 'r18.pth', '--teacher_params', 'teacher', '--beta', 1e3, '--alpha',
                0.9,
                '--save', 'student', '--resume', 'auto', '--epochs', 3, cwd=tmp_path)
    assert done.status == 0
    again = checkpoint.read(tmp_path / 'student' / 'model.pt7')['params']
    assert [name for name in again if torch.equal(again[name], r18.get(name, r18['fc.bias']))] == [
        name for name in params if torch.equal(params[name], r18.get(name, r18['fc.bias']))]
    out = sound('--dataset', dataset, '--dataroot', 'data', *SMALL, '--evaluate', '--student_params',
                'student',
                cwd=tmp_path)
    assert f'top-1 error {100 - log_of(tmp_path / "student")[-1]["test_acc"]:.2f}' in out


@pytest.mark.parametrize(('freeze', 'groups'), [(0, []), (2, ['group0.', 'group1.'])])
def test_freeze(tmp_path, home, freeze, groups):
    before = checkpoint.read(home / 'logs' / 'r34' / 'model.pt7')['params']
    sound('--dataset', 'folder', '--dataroot', home / 'images', *SMALL, '--depth', 34, '--epochs', 1,
          '--save', 'x',
          '--finetune', home / 'logs' / 'r34', '--freeze', freeze, cwd=tmp_path)
    params = checkpoint.read(tmp_path / 'x' / 'model.pt7')['params']
    for name, t in before.items():
        fixed = 'bn' in name or name.startswith((*groups, 'conv0') if groups else 'never')
        assert torch.equal(params[name], t) == fixed, name


def test_only_the_head_may_be_missing(tmp_path, home):
    _, params = resnet.resnet(18, 0.0625, 11)
    _, wide = resnet.wide_resnet(10, 0.25, 3)
    files = {'folded': resnet.fold(params), 'other width': resnet.resnet(18, 0.125, 11)[1], 'wide': wide,
             'no bn': {name: t for name, t in params.items() if 'bndim' not in name},
             'other depth': resnet.resnet(34, 0.0625, 11)[1]}
    for name, weights in files.items():
        torch.save(weights, tmp_path / name)
        done = call('--dataset', 'folder', '--dataroot', home / 'images', *SMALL, '--finetune', name,
                    '--save', 'x',
                    cwd=tmp_path)
        assert done.status == 2 and len(done.errors) == 1 and f'--finetune {name} holds' in done.err
        assert not (tmp_path / 'x').exists()
    fresh = resnet.resnet(18, 0.0625, 3)[1]
    torch.save(params, tmp_path / 'r18.pth')
    begun = imagenet.pretrained(str(tmp_path / 'r18.pth'), None, fresh)
    assert begun.keys() == fresh.keys()
    assert all(torch.equal(t, (fresh if name.startswith('fc.') else params)[name]) for name,
               t in begun.items())


def test_a_backbone_without_head_is_fine_tuned(tmp_path, home):
    """All of the head is missing, or its bias alone; torchvision's names; a prefix."""
    theirs = torchvision.models.resnet18(num_classes=11).state_dict()
    _, fresh = resnet.resnet(18, 1, 3)
    begun = networks.network(dict(theirs))[1]
    for missing in (('fc.weight', 'fc.bias'), ('fc.bias',)):
        for prefix in ('', 'module.'):
            torch.save({prefix + n: t for n, t in theirs.items() if n not in missing}, tmp_path / 'body.pth')
            params = imagenet.pretrained(str(tmp_path / 'body.pth'), None, fresh)
            assert params.keys() == fresh.keys()
            assert all(torch.equal(t, (fresh if name.startswith('fc.') else begun)[name])
                       for name, t in params.items())
    _, small = resnet.resnet(18, 0.0625, 3)
    torch.save({n: t for n, t in small.items() if not n.startswith('fc.')}, tmp_path / 'small.pth')
    sound('--dataset', 'folder', '--dataroot', home / 'images', *SMALL, '--finetune', 'small.pth',
          '--save', 'x', '--epochs', 1, cwd=tmp_path)
    torch.save({n: t for n, t in small.items() if n != 'bn0.bias'}, tmp_path / 'small.pth')
    with pytest.raises(InputError, match='lacks bn0.bias'):
        imagenet.pretrained(str(tmp_path / 'small.pth'), None, small)


def test_going_on_as_it_began(tmp_path, home):
    common = ['--dataset', 'folder', '--dataroot', home / 'images', *SMALL, '--depth', 34, '--save', 'run']
    sound(*common, '--finetune', home / 'logs' / 'r34', '--epochs', 1, cwd=tmp_path)
    before = listing(tmp_path)
    for more, words in ((['--finetune', home / 'logs' / 'r34', '--freeze', 2], 'freeze 1, not 2'),
                        ([], 'has finetune ')):
        done = call(*common, *more, '--epochs', 2, '--resume', 'auto', cwd=tmp_path)
        assert done.status == 2 and len(done.errors) == 1 and words in done.err
    assert listing(tmp_path) == before


def test_photos_from_training_to_exports(tmp_path, shared):
    """The 64 photographs, to train and to test: no figure of a network, but the whole way of one."""
    for part in ('train', 'val'):
        (tmp_path / 'photos' / part).mkdir(parents=True)
        for folder in sorted((shared / 'data' / 'photos').glob('n*'))[:12]:
            (tmp_path / 'photos' / part / folder.name).symlink_to(folder)
    common = ['--imagenetpath', 'photos', '--width', 0.25, '--batch_size', 5, '--nthread', 0, '--lr', 0.02,
              '--epoch_step', '[]']
    sound(*common, '--depth', 34, '--epochs', 2, '--save', 'r34', cwd=tmp_path)
    student = [*common, '--teacher_params', 'r34', '--beta', 1e3, '--save', 'r18_at']
    sound(*student, '--epochs', 1, cwd=tmp_path)
    assert call(*student, '--epochs', 2, '--resume', 'auto', cwd=tmp_path).status == 0
    expected = sound(*common, '--evaluate', '--student_params', 'r18_at', cwd=tmp_path).splitlines()[-1]
    record = log_of(tmp_path / 'r18_at')[-1]
    assert (f'top-1 error {100 - record["test_acc"]:.2f} top-5 error {100 - record["test_acc5"]:.2f}'
            in expected)
    for ending in ('pth', 'hkl', 'safetensors', 'onnx'):
        done = helpers.call(export, 'r18_at', f'x.{ending}', cwd=tmp_path)
        assert done.status == 0 and 'sha256' in done.out
    for ending in ('pth', 'hkl', 'safetensors'):
        out = sound(*common, '--evaluate', '--student_params', f'x.{ending}', cwd=tmp_path)
        assert out.splitlines()[-1].partition('top-1')[2] == expected.partition('top-1')[2]
    session = onnxruntime.InferenceSession(str(tmp_path / 'x.onnx'))
    _, photos = imagenet.folders.load('imagenet', tmp_path / 'photos')
    wrong = 0
    for x, labels, *_ in imagenet.images.Loader(photos, 5, torch.device('cpu'), 'center', workers=0):
        logits, = session.run(['logits'], {'image': x.contiguous().numpy()})
        wrong += int((logits.argmax(1) != labels.numpy()).sum())
    assert f'top-1 error {100 * wrong / 12:.2f} ' in expected


# --- mistakes --------------------------------------------------------------------------------------------


def pickled_hkl(path, target):
    import pickle
    with h5py.File(path, 'w') as f:
        f.attrs['HICKLE_VERSION'] = '5.0.3'
        d = f.create_dataset('data/"conv0.weight"', data=np.frombuffer(pickle.dumps(Payload(target)),
                                                                       np.uint8))
        d.attrs['type'], d.attrs['base_type'] = np.void(pickle.dumps(Payload(target))), b'pickle'


def bad_weights(path, kind, folder):
    if kind == 'html':
        path.write_text('<!DOCTYPE html><html><body>404</body></html>')
    elif kind == 'pickled hkl':
        pickled_hkl(path, folder / 'written')
    elif kind == 'torch pickle':
        torch.save(Payload(folder / 'written'), path)
    elif kind == 'truncated hkl':
        with h5py.File(path, 'w') as f:
            f['data/"conv0.weight"'] = np.ones(1000, np.float32)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == 'other classes':
        torch.save(resnet.resnet(34, 0.0625, 7)[1], path)
    elif kind == 'three groups':
        torch.save(resnet.wide_resnet(10, 0.25, 3)[1], path)
    elif kind == 'no network':
        torch.save({'a.weight': torch.ones(2)}, path)
    elif kind == 'directory':
        path.mkdir()


@pytest.mark.parametrize('kind', ['html', 'pickled hkl', 'torch pickle', 'truncated hkl', 'other classes',
                                  'three groups', 'no network', 'missing', 'directory'])
def test_weights_that_cannot_be_used(tmp_path, home, kind):
    bad_weights(tmp_path / 'teacher.hkl', kind, tmp_path)
    before = listing(tmp_path)
    common = ['--imagenetpath', home / 'images', *SMALL]
    for arguments in (['--teacher_params', 'teacher.hkl', '--beta', 1, '--save', 'x'],
                      ['--evaluate', '--student_params', 'teacher.hkl']):
        done = call(*common, *arguments, cwd=tmp_path)
        if kind == 'three groups' and '--evaluate' in arguments:
            assert done.status == 0  # a wide ResNet is a network
            continue
        assert (done.status, len(done.errors)) == (2, 1)
        assert done.err.startswith('imagenet.py: error: ') and 'teacher.hkl' in done.err
    assert listing(tmp_path) == before  # and nothing was written by the file


def break_images(root, kind):
    if kind == 'no folder':
        shutil.rmtree(root)
    elif kind == 'no val':
        shutil.rmtree(root / 'val')
    elif kind == 'empty class':
        shutil.rmtree(root / 'train' / 'n02')
        (root / 'train' / 'n02').mkdir()
    elif kind == 'other classes':
        (root / 'val' / 'n02').rename(root / 'val' / 'n07')
    elif kind == 'text':
        (root / 'train' / 'n01' / 'n01_train0.JPEG').write_text('no picture\n')
    elif kind == 'truncated':
        path = root / 'train' / 'n01' / 'n01_train0.JPEG'
        path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(('kind', 'words'), [
    ('no folder', 'images'), ('no val', 'images/val'), ('empty class', 'images/train/n02'),
    ('other classes', 'n07'), ('text', 'n01_train0.JPEG'), ('truncated', 'n01_train0.JPEG')])
def test_images_that_cannot_be_used(tmp_path, kind, words):
    break_images(tree(tmp_path / 'images'), kind)
    done = call('--imagenetpath', 'images', *SMALL, '--epochs', 1, '--save', 'run', cwd=tmp_path)
    assert (done.status, len(done.errors)) == (2, 1)
    assert done.err.startswith('imagenet.py: error: ') and words in done.err
    assert not (tmp_path / 'run' / 'log.txt').exists()


def test_a_run_is_not_overwritten(tmp_path, home):
    before = listing(home / 'logs')
    done = call('--imagenetpath', 'images', *SMALL, '--save', 'logs/r34', cwd=home)
    assert done.status == 2 and '--resume auto' in done.err
    done = call('--imagenetpath', 'images', *SMALL, '--save', 'logs/r34', '--depth', 18, '--resume', 'auto',
                cwd=home)
    assert done.status == 2 and 'depth' in done.err
    assert listing(home / 'logs') == before


def test_interop_of_the_log(home):
    """Strict JSON, one line an epoch, with what the published code wrote."""
    for line in (home / 'logs' / 'r34' / 'log.txt').read_text().splitlines():
        record = json.loads(line)
        assert {'depth', 'width', 'imagenetpath', 'nthread', 'teacher_params', 'batch_size', 'lr', 'epochs',
                'weight_decay', 'epoch_step', 'lr_decay_ratio', 'resume', 'beta', 'cuda', 'save', 'ngpu',
                'gpu_id',
                'train_loss', 'train_acc', 'test_loss', 'test_acc', 'epoch', 'num_classes', 'n_parameters',
                'train_time', 'test_time', 'at_losses', 'test_acc5', 'train_acc5'} <= record.keys()
        assert record['n_parameters'] == layers.n_parameters(resnet.resnet(34, 0.0625, 3)[1])
    with pytest.raises(InputError):
        resnet.load(home / 'logs')
