"""`python -m tools.benchmark jobs`: runs per hour of cifar.py, by how many run at once.

Real runs of attention transfer, WRN-16-1 from a WRN-16-2 of random weights, by tools.jobs as in the recipes:
on one GPU, or on the cores of a CPU, which they share. `runs_per_hour` counts the epochs alone, as the logs
tell them, which is what a long run takes; `runs_per_hour_with_start` all that passes, imports and data set
too. `best` is the number at once that makes most runs per hour.
"""
import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import resnet
from inputs import cifar as data
from tools.benchmark import cifar, measure
from training import checkpoint, devices, exits, options
from utils import InputError

ROOT = Path(__file__).parents[2]
IMAGES = {'cpu': 512, 'cuda': 5000}


class Measured(NamedTuple):
    """Some runs at once."""
    wall: float  # seconds from before the first to after the last one
    epochs: list[float]  # seconds of all epochs of each run
    peak_memory: list[int]  # bytes, of each run
    device_name: str  # with the threads of a run on a CPU


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--jobs', type=options.int_list, default='[1,2,4]', help='how many run at once')
    parser.add_argument('--dataset', choices=list(data.CLASSES), default='shapes')
    parser.add_argument('--dataroot', type=options.path, default='', metavar='FOLDER',
                        help='where CIFAR lies; . by default')
    parser.add_argument('--images', type=options.positive_int, help='None: 512 on a CPU, 5000 on CUDA')
    parser.add_argument('--epochs', type=options.positive_int, default=2)
    parser.add_argument('--batch_size', type=options.positive_int, default=128)
    parser.add_argument('--rounds', type=options.positive_int, default=3)
    parser.add_argument('--dtype', choices=['float', 'bfloat16'], default='float')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')


def run(opt: argparse.Namespace) -> dict[str, Any]:
    device = devices.device(argparse.Namespace(device=opt.device, dtype=opt.dtype, gpu_id=[0],
                                               deterministic=False))
    opt.images = opt.images or IMAGES[device.type]
    found: dict[int, list[Measured]] = {n: [] for n in opt.jobs}

    def wall(n: int) -> float:
        found[n].append(runs(opt, n))
        return found[n][-1].wall

    measure.in_turns({(n, 'at once'): lambda n=n: wall(n) for n in opt.jobs}, opt.rounds, 's')
    points = {n: point(n, several) for n, several in found.items()}
    return {'benchmark': opt.command, 'device': device.type, **exits.provenance(device),
            'threads': torch.get_num_threads(), 'dtype': opt.dtype, 'dataset': opt.dataset,
            'images': opt.images, 'epochs': opt.epochs, 'batch': opt.batch_size, 'rounds': opt.rounds,
            'points': list(points.values()), 'best': best(points)}


def runs(opt: argparse.Namespace, n: int) -> Measured:
    """n runs at once, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, 'teacher.pt7')
        _, params = resnet.wide_resnet(*cifar.TEACHER, data.CLASSES[opt.dataset])
        checkpoint.write(teacher, {'params': params})
        saves = [Path(folder, f'run{i + 1}') for i in range(n)]
        lines = [command(opt, save, teacher, seed) for seed, save in enumerate(saves, 1)]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, '-m', 'tools.jobs', '--jobs', str(n)], input='\n'.join(lines),
                              capture_output=True, text=True, env=environment())
        wall = time.perf_counter() - start
        if done.returncode:
            raise InputError(f'{n} runs at once failed ({(done.stderr.splitlines() or ["no word"])[-1]}): '
                             'give --jobs fewer of them, or smaller ones')
        logs = [checkpoint.read_log(save / checkpoint.LOG) for save in saves]
    return Measured(wall, [sum(e['train_time'] + e['test_time'] for e in log) for log in logs],
                    [max(e['peak_memory'] for e in log) for log in logs], logs[0][-1]['device_name'])


def command(opt: argparse.Namespace, save: Path, teacher: Path, seed: int) -> str:
    """A line for tools.jobs. With lr so low that random labels of a random teacher do no harm."""
    depth, width = cifar.STUDENT
    dataroot = ['--dataroot', os.path.abspath(opt.dataroot)] if opt.dataroot else []
    return shlex.join(map(str, [
        'cifar.py', '--save', save, '--depth', depth, '--width', width, '--teacher_id', teacher,
        *cifar.CASES['at'], '--dataset', opt.dataset, *dataroot, '--max_images', opt.images,
        '--epochs', opt.epochs, '--epoch_step', '[]', '--batch_size', opt.batch_size, '--lr', '1e-3',
        '--seed', seed, '--dtype', opt.dtype, '--device', opt.device]))


def environment() -> dict[str, str]:
    """Where tools.jobs is found from any folder."""
    paths = filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
    return os.environ | {'PYTHONPATH': os.pathsep.join(paths)}


def point(n: int, found: list[Measured]) -> dict[str, Any]:
    """Figures of n runs at once, from all rounds."""
    without = measure.spread(3600 * n / max(m.epochs) for m in found)
    including = measure.spread(3600 * n / m.wall for m in found)
    return {'jobs': n, 'device_name': found[0].device_name,
            'runs_per_hour': without.median, 'quartiles': [without.low, without.high],
            'runs_per_hour_with_start': including.median,
            'start_seconds': measure.rounded(float(np.median([m.wall - max(m.epochs) for m in found]))),
            'peak_memory': max(peak for m in found for peak in m.peak_memory)}


def best(points: dict[int, dict[str, Any]]) -> int:
    """The number at once that makes most runs per hour, start-up left out."""
    return max(points, key=lambda n: points[n]['runs_per_hour'])
