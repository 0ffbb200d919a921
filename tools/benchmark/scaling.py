"""`python -m tools.benchmark scaling`: how the AT step of cifar.py grows, and what a larger data set costs.

The teacher is WRN-16-2; one of the student's width and depth and the batch size changes at a time. An
exponent e says that seconds, or FLOPs, grow as the e-th power. Batches are random and in memory. Data sets
are random images, each in a fresh process; of them, start and peak memory, and the time from the start of an
epoch to its first batch.
"""
import argparse
import time
from typing import Any

import numpy as np
import torch

import data
import devices
import options
import process
import resnet
from data import Sample
from tools.benchmark import cifar, measure, roofline, steps
from tools.benchmark.measure import Contender
from tools.benchmark.steps import Networks

NUM_CLASSES = 10
DEPTH, WIDTH = cifar.STUDENT
BATCH_SIZE = {'cpu': 32, 'cuda': 128}
SIZE = 32  # pixels
LISTS = {'width': 'widths', 'depth': 'depths', 'batch_size': 'batch_sizes'}


def add_options(parser: options.Parser) -> None:
    parser.add_argument('--widths', type=options.int_list, default='[1,2,4]', help='of the student')
    parser.add_argument('--depths', type=options.int_list, default='[10,16,22,28]', help='of the student')
    parser.add_argument('--batch_sizes', type=options.int_list, default='[32,64,128,256]')
    parser.add_argument('--images', type=options.int_list, default='[1000,10000,50000]',
                        help='sizes of data sets')
    parser.add_argument('--batch_size', type=options.positive_int,
                        help='where it does not change; None: 32 on a CPU, 128 on CUDA')
    measure.add_blocks(parser, steps=1, rounds=5)
    parser.add_argument('--dtype', choices=['float', 'bfloat16'], default='float')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')


def run(opt: argparse.Namespace) -> dict[str, Any]:
    real = real_options(opt)
    device = devices.device(real)
    opt.batch_size = opt.batch_size or BATCH_SIZE[device.type]
    data_sets = [measure.in_fresh_process(data_set, opt, n) for n in opt.images]  # before this one grows
    points = {(axis, value): {'width': WIDTH, 'depth': DEPTH, 'batch_size': opt.batch_size} | {axis: value}
              for axis, name in LISTS.items() for value in getattr(opt, name)}
    seconds = measure.in_turns({key: step(opt, device, **point) for key, point in points.items()},
                               opt.rounds, 's')
    flops = {key: sum(o.flops for o in roofline.operations(
        real, networks(point['width'], point['depth']), point['batch_size'], SIZE))
        for key, point in points.items()}
    return {'benchmark': opt.command, 'device': device.type, **process.provenance(device),
            'threads': torch.get_num_threads(), 'dtype': opt.dtype, 'teacher': list(cifar.TEACHER),
            'depth': DEPTH, 'width': WIDTH, 'batch': opt.batch_size, 'steps': opt.steps, 'rounds': opt.rounds,
            'growth': {axis: growth({value: seconds[axis, value] for value in getattr(opt, name)},
                                    {value: flops[axis, value] for value in getattr(opt, name)})
                       for axis, name in LISTS.items()},
            'data_set': {'points': data_sets, 'exponents': {
                name: measure.exponent(opt.images, [point[name] for point in data_sets])
                for name in ('epoch_start_seconds', 'peak_memory')}}}


def real_options(opt: argparse.Namespace) -> argparse.Namespace:
    return cifar.real_options(argparse.Namespace(
        dataset='shapes', batch_size=opt.batch_size or 1, device=opt.device, dtype=opt.dtype, compile=False),
        'at')


def networks(width: int, depth: int) -> Networks:
    teacher = resnet.wide_resnet(*cifar.TEACHER, NUM_CLASSES)
    return steps.folded((*resnet.wide_resnet(depth, width, NUM_CLASSES), *teacher))


def step(opt: argparse.Namespace, device: torch.device, width: int, depth: int,
         batch_size: int) -> Contender:
    """Seconds of an AT step, over a block after a warm-up, at each call."""
    f_s, student, f_t, teacher = networks(width, depth)
    student, teacher = devices.to_device(student, device), devices.to_device(teacher, device)
    consume = steps.our_training(real_options(opt), f_s, student, f_t, teacher)
    x = torch.randn(batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last).to(device)
    sample = Sample(x, torch.randint(NUM_CLASSES, (batch_size,)).to(device), 1)

    def seconds() -> float:
        consume([sample])
        start = time.perf_counter()
        consume([sample] * opt.steps)
        return (time.perf_counter() - start) / opt.steps

    return seconds


def growth(seconds: dict[int, list[float]], flops: dict[int, int]) -> dict[str, Any]:
    """Points and exponents along one axis, from the seconds of each round and the FLOPs by value."""
    spreads = {value: measure.spread(found) for value, found in seconds.items()}
    points = [{'value': value, 'seconds': s.median, 'quartiles': [s.low, s.high], 'flops': flops[value]}
              for value, s in spreads.items()]
    return {'points': points, 'exponents': {
        name: measure.exponent(list(seconds), [point[name] for point in points])
        for name in ('seconds', 'flops')}}


def data_set(opt: argparse.Namespace, n: int) -> dict[str, Any]:
    """What n random images cost beside the steps; in a process of its own, of which the peak is."""
    device = devices.device(real_options(opt))
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(256, size=(n, SIZE, SIZE, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(NUM_CLASSES, size=n))
    start = time.perf_counter()
    loader = data.Loader(data.Images(images.to(device), labels.to(device)), opt.batch_size, seed=1, pad=4)
    wait(next(iter(loader)))
    started = time.perf_counter() - start
    epochs = []
    for loader.epoch in range(2, 2 + opt.rounds):
        start = time.perf_counter()
        wait(next(iter(loader)))
        epochs.append(time.perf_counter() - start)
    epoch = measure.spread(epochs)
    return {'value': n, 'bytes': images.nbytes, 'start_seconds': measure.rounded(started),
            'epoch_start_seconds': epoch.median, 'quartiles': [epoch.low, epoch.high],
            'peak_memory': process.peak_memory(device)}


def wait(sample: Sample) -> None:
    if sample.x.device.type == 'cuda':
        torch.cuda.synchronize(sample.x.device)
