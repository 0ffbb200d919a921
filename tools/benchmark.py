"""Speed and memory of the real training step beside a plain baseline, measured in turns in one run.

    python -m tools.benchmark cifar
    python -m tools.benchmark cifar --dataset CIFAR10 --dataroot data --dtype bfloat16

One JSON line on stdout, progress on stderr. The baseline is what the published code did and many still do:
PIL images transformed one by one in worker processes, float32, channels first, SGD without fusion, and every
metric read in every step. Short blocks of ours and of the baseline alternate; a ratio is the median over
rounds of ours / baseline in the same round, so that a machine that slows down for a while slows down both.
Where other programs use the same cores, OMP_WAIT_POLICY=passive keeps threads from spinning for one another.
"""
import argparse
import itertools
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchnet.engine import Engine
from torchnet.meter import AverageValueMeter
from torchvision import transforms

import cifar
import data
import devices
import options
import resnet
import training
import utils
from data import Sample
from method import method
from utils import InputError, Network, Params

TEACHER, STUDENT = (16, 2), (16, 1)  # depth and width
CASES = {'student': [], 'kd': ['--alpha', '0.9'], 'at': ['--beta', '1e+3']}  # options of cifar.py
SIDES = ('ours', 'baseline')
LOADER_BATCHES = 8  # batches of the loader alone, per step of a training block
PREFETCH = 2  # batches that each worker of the baseline holds ready
MEMORY_STEPS = 4

Blocks = dict[str, dict[str, list[float]]]  # case -> side -> images/s of each round
Consumer = Callable[[Iterable[Sample]], int]  # trains on samples or drops them, waits; -> images


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Measure the speed and memory of training.')
    commands = parser.add_subparsers(dest='command', required=True, parser_class=_command)
    add_cifar(commands.add_parser('cifar', description='Step and loader of cifar.py: WRN-16-2 -> WRN-16-1.'))
    opt = parser.parse_args(arguments)
    if opt.dataset == 'shapes' and opt.dataroot:
        parser.error('--dataroot has no effect on --dataset shapes, which is built in: leave it out')
    return opt


def _command(prog: str, description: str, **_: Any) -> options.Parser:
    parser = options.Parser(description)
    parser.prog = prog
    return parser


def add_cifar(parser: options.Parser) -> None:
    parser.set_defaults(run=benchmark_cifar)
    parser.add_argument('--dataset', choices=list(data.CLASSES), default='shapes')
    parser.add_argument('--dataroot', default='', metavar='FOLDER', help='where CIFAR lies; . by default')
    parser.add_argument('--batch_size', type=options.positive_int, default=128)
    parser.add_argument('--steps', type=options.positive_int, default=10, help='training steps of a block')
    parser.add_argument('--rounds', type=options.positive_int, default=7, help='blocks of each case and side')
    parser.add_argument('--workers', type=options.positive_int, default=4,
                        help='processes that load images for the baseline')
    parser.add_argument('--dtype', choices=['float', 'bfloat16'], default='float',
                        help='arithmetic of our networks; the baseline stays float32')
    parser.add_argument('--no_memory', action='store_true', help='leave out the peaks, of a process each')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')


def main() -> None:
    opt = parse(sys.argv[1:])
    print(json.dumps(opt.run(opt), allow_nan=False))


def benchmark_cifar(opt: argparse.Namespace) -> dict[str, Any]:
    device = devices.device(real_options(opt, 'student'))
    memory = {}
    for side in () if opt.no_memory else SIDES:
        print(f'peak memory of {side}', file=sys.stderr, flush=True)
        memory |= in_fresh_process(peak_memory, opt, side)
    split = load(opt, device)
    blocks: Blocks = {case: {side: [] for side in SIDES} for case in [*CASES, 'loader']}
    contenders = [(case, side, contender(opt, case, side, split, device))
                  for case in blocks for side in SIDES]
    for r in range(opt.rounds):
        for case, side, measure in contenders if r % 2 else reversed(contenders):
            blocks[case][side].append(measure())
            print(f'round {r + 1}/{opt.rounds} {case} {side}: {blocks[case][side][-1]:.0f} images/s',
                  file=sys.stderr, flush=True)
    return {'benchmark': opt.command, 'device': device.type, **training.provenance(device),
            'threads': torch.get_num_threads(), 'dtype': opt.dtype, 'baseline_dtype': 'float',
            'dataset': opt.dataset, 'batch': opt.batch_size, 'steps': opt.steps, 'rounds': opt.rounds,
            'workers': opt.workers, **summary(blocks),
            'peak_memory': memory | {'data_set': split.images.nbytes}}


def load(opt: argparse.Namespace, device: torch.device) -> data.Images:
    split, _ = data.load(opt.dataset, opt.dataroot or '.', device)
    if opt.batch_size > len(split.labels):
        raise InputError(f'--batch_size {opt.batch_size} is more than the {len(split.labels)} images '
                         f'of {opt.dataset}')
    return split


def real_options(opt: argparse.Namespace, case: str) -> argparse.Namespace:
    """The options of cifar.py for a case, its own defaults included; nothing is read or saved."""
    teacher = ['--teacher_id', 'random'] if CASES[case] else []
    return cifar.parse(['--save', 'nowhere', *teacher, *CASES[case], '--dataset', opt.dataset,
                        '--device', opt.device, '--dtype', opt.dtype, '--batch_size', str(opt.batch_size)])


# --- what is measured ---------------------------------------------------------------------------------


def contender(opt: argparse.Namespace, case: str, side: str, split: data.Images,
              device: torch.device) -> Callable[[], float]:
    """One side of one case: each call measures a block, after a warm-up, and returns images/s."""
    steps = opt.steps * (LOADER_BATCHES if case == 'loader' else 1)
    if case == 'loader':
        consume = dropping(device)
    else:
        consume = (our_training if side == 'ours' else plain_training)(opt, case, device)
    if side == 'ours':
        return lambda: images_per_second(our_batches(opt, split), consume, 2, steps)
    dataset = PlainDataset(split)
    warm_up = 2 + PREFETCH * opt.workers  # past what the workers got ready while the step had not begun
    return lambda: images_per_second(plain_batches(opt, dataset, device), consume, warm_up, steps)


def images_per_second(batches: Iterator[Sample], consume: Consumer, warm_up: int, steps: int) -> float:
    """Speed over `steps` of endless batches, which end with the block: no worker disturbs the next one."""
    with closing(batches):
        consume(itertools.islice(batches, warm_up))
        start = time.perf_counter()
        n = consume(itertools.islice(batches, steps))
        return n / (time.perf_counter() - start)


def dropping(device: torch.device) -> Consumer:
    def consume(batches: Iterable[Sample]) -> int:
        n = sum(len(sample.labels) for sample in batches)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return n
    return consume


def networks(case: str, num_classes: int) -> tuple[Network, Params, Network | None, Params]:
    f_s, student = resnet.wide_resnet(*STUDENT, num_classes)
    f_t, teacher = resnet.wide_resnet(*TEACHER, num_classes) if CASES[case] else (None, {})
    return f_s, student, f_t, teacher


def our_batches(opt: argparse.Namespace, split: data.Images) -> Iterator[Sample]:
    real = real_options(opt, 'student')
    loader = data.Loader(split, real.batch_size, real.seed, real.randomcrop_pad)
    for loader.epoch in itertools.count(1):
        yield from loader


def our_training(opt: argparse.Namespace, case: str, device: torch.device) -> Consumer:
    """The step of cifar.py, with the optimizer and meters of training.train, read at the end of a block."""
    real = real_options(opt, case)
    f_s, student, f_t, teacher = networks(case, data.CLASSES[opt.dataset])
    student, teacher = devices.to_device(student, device), devices.to_device(teacher, device)
    utils.trainable(student)
    h = method(real, f_s, student, f_t, teacher)
    optimizer = training.sgd(real, student, real.lr)

    def consume(batches: Iterable[Sample]) -> int:
        engine, meters = Engine(), training.Meters()
        engine.hooks['on_forward'] = meters.add
        engine.train(h, batches, 1, optimizer)
        meters.read()
        return sum(meters.sizes)

    return consume


# --- the plain baseline: on purpose, no line of ours but the networks -----------------------------------


class PlainDataset(Dataset):
    """Uint8 images; each becomes a PIL image that is padded, cropped, mirrored and normalised by itself."""

    def __init__(self, split: data.Images):
        self.images, self.labels = split.images.cpu().numpy(), split.labels.tolist()
        self.transform = transforms.Compose([
            transforms.Pad(4, padding_mode='reflect'), transforms.RandomCrop(32),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(*np.array([data.MEAN, data.STD]) / 255)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def plain_batches(opt: argparse.Namespace, dataset: PlainDataset, device: torch.device) -> Iterator[Sample]:
    endless = RandomSampler(dataset, num_samples=1 << 40)  # one shuffled epoch after the other
    loader = DataLoader(dataset, opt.batch_size, sampler=endless, num_workers=opt.workers,
                        prefetch_factor=PREFETCH, pin_memory=device.type == 'cuda',
                        multiprocessing_context='fork' if sys.platform == 'linux' else None)
    for x, labels in loader:
        yield Sample(x.to(device, non_blocking=True), labels.to(device, non_blocking=True), 1)


def plain_training(opt: argparse.Namespace, case: str, device: torch.device) -> Consumer:
    real = real_options(opt, case)
    f_s, student, f_t, teacher = networks(case, data.CLASSES[opt.dataset])
    student = {name: t.to(device) for name, t in student.items()}
    teacher = {name: t.to(device) for name, t in teacher.items()}
    trained = [t.requires_grad_() for name, t in student.items() if 'running' not in name]
    optimizer = torch.optim.SGD(trained, real.lr, momentum=0.9, weight_decay=real.weight_decay)

    def attention(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).flatten(1))

    def h(sample: Sample) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
        if f_t is not None:
            with torch.no_grad():
                y_t, g_t = f_t(sample.x, teacher, False)
        y, g = f_s(sample.x, student, True)
        loss, at_losses = F.cross_entropy(y, sample.labels), []
        if real.alpha:
            T = real.temperature
            divergence = F.kl_div(F.log_softmax(y / T, 1), F.softmax(y_t / T, 1), reduction='batchmean')
            loss = real.alpha * T**2 * divergence + (1 - real.alpha) * loss
        if real.beta:
            at_losses = [(attention(a) - attention(b)).pow(2).mean() for a, b in zip(g, g_t, strict=True)]
            loss = loss + real.beta * sum(at_losses)
        return loss, (y, at_losses)

    def consume(batches: Iterable[Sample]) -> int:
        n, loss_meter, accuracy, at_meters = 0, AverageValueMeter(), AverageValueMeter(), {}

        def on_forward(state: dict[str, Any]) -> None:
            nonlocal n
            (y, at_losses), labels = state['output'], state['sample'].labels
            n += len(labels)
            loss_meter.add(state['loss'].item())
            accuracy.add((y.argmax(1) == labels).float().mean().item())
            for i, loss in enumerate(at_losses):
                at_meters.setdefault(i, AverageValueMeter()).add(loss.item())

        engine = Engine()
        engine.hooks['on_forward'] = on_forward
        engine.train(h, batches, 1, optimizer)
        return n

    return consume


# --- memory -------------------------------------------------------------------------------------------


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """Call before this process grows: on Linux a child's peak begins at what its parent holds then."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(opt: argparse.Namespace, side: str) -> dict[str, int]:
    """{side: bytes} at most in a few AT steps: allocated on CUDA, else resident in the main process.

    The baseline's workers are not part of its figure; 'baseline_worker' is the largest of them by itself,
    resident with the pages that it shares with the main process.
    """
    device = devices.device(real_options(opt, 'at'))
    opt = argparse.Namespace(**vars(opt) | {'steps': MEMORY_STEPS})
    contender(opt, 'at', side, load(opt, device), device)()
    result = {side: training.peak_memory(device)}
    if side == 'baseline':
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result['baseline_worker'] = largest * (1 if sys.platform == 'darwin' else 1024)
    return result


# --- blocks -> figures --------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Quartiles over rounds."""
    low: float
    median: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    return Spread(*(float(f'{q:.4g}') for q in np.quantile(list(values), (0.25, 0.5, 0.75)).tolist()))


def summary(blocks: Blocks) -> dict[str, Any]:
    """Images/s of each block -> medians, quartiles, and ratios ours / baseline of blocks of the same round.

    'loader_share' is the time of our loader in our AT step, loader included.
    """
    cases = {}
    for case, sides in blocks.items():
        speeds = {side: spread(values) for side, values in sides.items()}
        ratio = spread(a / b for a, b in zip(sides['ours'], sides['baseline'], strict=True))
        cases[case] = {'images_per_second': {side: s.median for side, s in speeds.items()},
                       'quartiles': {side: [s.low, s.high] for side, s in speeds.items()},
                       'ratio': ratio.median, 'ratio_quartiles': [ratio.low, ratio.high]}
    share = spread(a / b for a, b in zip(blocks['at']['ours'], blocks['loader']['ours'], strict=True))
    return {'cases': cases, 'loader_share': share.median}


if __name__ == '__main__':
    training.script(main)
