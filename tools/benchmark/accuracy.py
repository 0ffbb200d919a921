"""`python -m tools.benchmark accuracy`: test errors of the same seeds, by cifar.py and by the plain baseline.

Attention transfer to WRN-16-1 from a trained teacher. A seed gives both sides the same initial weights, but
their loaders draw other orders and crops, so that errors differ seed by seed; the means over seeds should
differ no more than seeds do.
"""
import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import cifar
import method
import resnet
from inputs import cifar as data
from layers import Network, Params, Sample
from tools.benchmark import sides, steps
from tools.benchmark.cifar import CASES, STUDENT, PlainDataset
from training import checkpoint, devices, exits, options
from utils import InputError

SCRIPT = Path(__file__).parents[2] / 'cifar.py'
TESTED = 200  # images in a batch
EPOCH_STEP = [2, 3, 4]


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--teacher_id', required=True, metavar='RUN', help='as of cifar.py')
    parser.add_argument('--seeds', type=options.int_list, default='[1,2,3,4,5]')
    parser.add_argument('--dataset', choices=list(data.CLASSES), default='shapes')
    parser.add_argument('--dataroot', type=options.path, default='', metavar='FOLDER',
                        help='where CIFAR lies; . by default')
    parser.add_argument('--max_images', type=options.count, default=0, metavar='N', help='as of cifar.py')
    parser.add_argument('--epochs', type=options.positive_int, default=4)
    parser.add_argument('--lr_schedule', choices=['step', 'linear', 'cosine'], default='step',
                        help='as of cifar.py, for both sides')
    parser.add_argument('--warmup', type=options.weight, default=0.0, metavar='EPOCHS', help='as of cifar.py')
    parser.add_argument('--epoch_step', type=options.int_list,
                        help=f'as of cifar.py; None: {EPOCH_STEP} for --lr_schedule step')
    parser.add_argument('--batch_size', type=options.positive_int, default=128)
    parser.add_argument('--workers', type=options.count, default=0,
                        help='processes that load images for the baseline')
    sides.add_options(parser)


def run(opt: argparse.Namespace) -> dict[str, Any]:
    f_t, teacher = resnet.load(cifar.find_teacher(opt.teacher_id))
    with tempfile.TemporaryDirectory() as folder:
        real = [cifar.parse(arguments(opt, seed, Path(folder, str(seed)))) for seed in opt.seeds]
        device = devices.device(real[0])
        train_set, test_set = data.load(opt.dataset, opt.dataroot or '.', device, opt.max_images)
        errors: dict[str, list[float]] = {'ours': [], 'baseline': []}
        for one in real:
            last = by_the_script(arguments(opt, one.seed, one.save), Path(one.save))
            errors['ours'].append(round(100 - last['test_acc'], 4))
            errors['baseline'].append(plainly(one, f_t, teacher, train_set, test_set, opt.workers))
            print(f'seed {one.seed}: test error {errors["ours"][-1]:.2f} % by cifar.py, '
                  f'{errors["baseline"][-1]:.2f} % plainly', file=sys.stderr, flush=True)
    return {'benchmark': opt.command, 'device': device.type, **exits.provenance(device),
            'threads': torch.get_num_threads(), 'dtype': last['dtype'], 'compile': last['compile'],
            'dataset': opt.dataset, 'images': [len(s.labels) for s in (train_set, test_set)],
            'batch': opt.batch_size, 'epochs': opt.epochs, 'lr_schedule': opt.lr_schedule,
            'warmup': opt.warmup, 'epoch_step': real[0].epoch_step if opt.lr_schedule == 'step' else [],
            'seeds': opt.seeds, 'errors': errors, **compared(**errors)}


def arguments(opt: argparse.Namespace, seed: int, save: Path | str) -> list[str]:
    """Those of cifar.py."""
    depth, width = STUDENT
    step = EPOCH_STEP if opt.epoch_step is None and opt.lr_schedule == 'step' else opt.epoch_step
    return list(map(str, [
        '--save', save, '--seed', seed, '--depth', depth, '--width', width, '--teacher_id', opt.teacher_id,
        *CASES['at'], '--dataset', opt.dataset, *['--dataroot', opt.dataroot] * bool(opt.dataroot),
        '--max_images', opt.max_images, '--epochs', opt.epochs, '--batch_size', opt.batch_size,
        '--lr_schedule', opt.lr_schedule, '--warmup', opt.warmup,
        *([] if step is None else ['--epoch_step', step]), *sides.of_the_script(opt)]))


def by_the_script(arguments: list[str], save: Path) -> dict[str, Any]:
    """What the log says of the last epoch of a run."""
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f'cifar.py failed: {(done.stderr.splitlines() or ["no word"])[-1]}')
    return checkpoint.read_log(save / checkpoint.LOG)[-1]


def plainly(real: argparse.Namespace, f_t: Network, teacher: Params, train_set: data.Images,
            test_set: data.Images, workers: int) -> float:
    """The same run on the plain baseline."""
    device = train_set.images.device
    torch.manual_seed(real.seed)
    f_s, student = resnet.wide_resnet(real.depth, real.width, data.CLASSES[real.dataset])
    student, teacher = ({name: t.to(device) for name, t in params.items()} for params in (student, teacher))
    loader = DataLoader(PlainDataset(train_set), real.batch_size, shuffle=True, num_workers=workers)

    def batches(epoch: int, optimizer: torch.optim.SGD) -> Iterator[Sample]:
        for i, (x, labels) in enumerate(loader):
            optimizer.param_groups[0]['lr'] = method.learning_rate(real, epoch, (i + 0.5) / len(loader))
            yield Sample(x.to(device), labels.to(device), epoch)

    for epoch in range(1, real.epochs + 1):
        if epoch == 1 or real.lr_schedule == 'step' and epoch in real.epoch_step:
            optimizer = steps.plain_sgd(real, student)
            consume = steps.plain_training(real, optimizer, f_s, student, f_t, teacher)
        consume(batches(epoch, optimizer))
    wrong = 0
    with torch.no_grad():
        for x, labels in DataLoader(PlainDataset(test_set, augmented=False), TESTED, num_workers=workers):
            y, _ = f_s(x.to(device), student, False)
            wrong += (y.argmax(1).cpu() != labels).sum().item()
    return round(100 * wrong / len(test_set.labels), 4)


def compared(ours: list[float], baseline: list[float]) -> dict[str, Any]:
    """Means and standard deviations over seeds, and how far the means are apart beside the error of that."""
    mean = {'ours': float(np.mean(ours)), 'baseline': float(np.mean(baseline))}
    deviation = {'ours': float(np.std(ours, ddof=1)), 'baseline': float(np.std(baseline, ddof=1))}
    apart = mean['ours'] - mean['baseline']
    uncertain = float(np.hypot(*deviation.values())) / len(ours)**0.5
    return {'mean': {side: round(value, 4) for side, value in mean.items()},
            'deviation': {side: round(value, 4) for side, value in deviation.items()},
            'difference': round(apart, 4), 'standard_error': round(uncertain, 4)}
