"""`python -m tools.benchmark accuracy`: test errors with cifar.py and with the plain baseline, seed by seed.

Attention transfer to WRN-16-1 from a trained teacher. Both sides start a seed from the same weights, but
their loaders draw different orders and crops, so errors differ seed by seed. The difference between the means
over seeds should be no larger than twice its standard error.
"""
import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch.utils.data import DataLoader

import cifar
import method
import resnet
from inputs import cifar as data
from layers import Network, Params, Sample
from tools.benchmark import measure, steps
from tools.benchmark.cifar import PlainDataset
from tools.report import settings
from training import checkpoint, devices, options
from utils import InputError

SCRIPT = Path(__file__).parents[2] / 'cifar.py'
DEFAULTS = ('--dataset', 'shapes', '--epochs', '4', '--lr_schedule', 'linear', '--beta', '1e+3')
# Options that may change training: the baseline has them, too, or (dtype) they are what is measured.
ALLOWED = {'depth', 'width', 'dataset', 'max_images', 'beta', 'at_groups', 'alpha',
           'temperature', 'batch_size', 'lr', 'epochs', 'weight_decay', 'lr_schedule', 'warmup', 'epoch_step',
           'lr_decay_ratio', 'seed', 'dtype'}
LOGGED = ('dataset', 'batch_size', 'epochs', 'lr_schedule', 'warmup', 'epoch_step')  # in the result


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--seeds', type=options.int_list, default='[1,2,3,4,5]', help='seeds of the runs')
    parser.add_argument('--workers', type=options.count, default=0,
                        help='processes that load images for the baseline')


def run(opt: argparse.Namespace) -> dict[str, Any]:
    """opt.others: options of cifar.py, after DEFAULTS."""
    errors: dict[str, list[float]] = {side: [] for side in measure.SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in opt.seeds:
            words = [*DEFAULTS, *opt.others, '--seed', str(seed), '--save', str(Path(folder, str(seed)))]
            real = cifar.parse(words)
            check(real)
            f_t, teacher = resnet.load(cifar.find_teacher(real.teacher_id))
            device = devices.device(real)
            train_set, test_set = data.load(real.dataset, real.dataroot, device, real.max_images)
            last = by_the_script(words, Path(real.save))
            errors['ours'].append(round(100 - last['test_acc'], 4))
            errors['baseline'].append(plainly(real, f_t, teacher, train_set, test_set, opt.workers))
            print(f'seed {seed}: test error {errors["ours"][-1]:.2f} % with cifar.py, '
                  f'{errors["baseline"][-1]:.2f} % with the baseline', file=sys.stderr, flush=True)
    return measure.result(
        opt, device, dtype=last['dtype'], compile=last['compile'], **{name: last[name] for name in LOGGED},
        images=[len(s.labels) for s in (train_set, test_set)], seeds=opt.seeds, errors=errors,
        **compared(**errors))


def check(real: argparse.Namespace) -> None:
    """InputError for an option that would change training on one side only."""
    default = vars(cifar.parse([*DEFAULTS, '--teacher_id', real.teacher_id, '--save', '.']))
    for name, value in vars(real).items():
        if value != default[name] and name not in ALLOWED | settings.HARMLESS:
            raise InputError(f'--{name}: the baseline does not have this option')


def by_the_script(words: list[str], save: Path) -> dict[str, Any]:
    """The line of the last epoch in the log of a run of cifar.py."""
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f'cifar.py failed: {(done.stderr.splitlines() or ["no message"])[-1]}')
    return checkpoint.read_log(save / checkpoint.LOG)[-1]


def plainly(real: argparse.Namespace, f_t: Network, teacher: Params, train_set: data.Images,
            test_set: data.Images, workers: int) -> float:
    """Test error in % of the same run on the plain baseline."""
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
        for x, labels in DataLoader(PlainDataset(test_set, augmented=False), 200, num_workers=workers):
            y, _ = f_s(x.to(device), student, False)
            wrong += (y.argmax(1).cpu() != labels).sum().item()
    return round(100 * wrong / len(test_set.labels), 4)


def compared(ours: list[float], baseline: list[float]) -> dict[str, Any]:
    """Means and standard deviations over seeds, and the difference of the means with its standard error."""
    deviation = {'ours': stdev(ours), 'baseline': stdev(baseline)}
    error = (sum(value**2 for value in deviation.values()) / len(ours))**0.5
    return {'mean': {'ours': round(mean(ours), 4), 'baseline': round(mean(baseline), 4)},
            'deviation': {side: round(value, 4) for side, value in deviation.items()},
            'difference': round(mean(ours) - mean(baseline), 4), 'standard_error': round(error, 4)}
