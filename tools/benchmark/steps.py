"""What the batches of each side come from and go through: our step, the plain one, or no step at all."""
import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchnet.engine import Engine
from torchnet.meter import AverageValueMeter

import layers
import resnet
import training as runs
from layers import Network, Params, Sample
from method import adaptors, training_step
from tools.benchmark.measure import Consumer
from training import devices
from weights import networks

Networks = tuple[Network | None, Params, Network | None, Params]  # f_s, student, f_t, teacher
PREFETCH = 2  # batches that each worker of the baseline prepares in advance


def shared_options(opt: argparse.Namespace) -> list[str]:
    """--device, --dtype, --fast and --compile, as a training script takes them."""
    dtype = ['--dtype', opt.dtype] if opt.dtype else []
    return ['--device', opt.device, *dtype, *['--fast'] * opt.fast, *['--compile'] * opt.compile]


def training(side: str, real: argparse.Namespace, made: Networks, device: torch.device,
             topk: tuple[int, ...] = (1,)) -> Consumer:
    """The step of a side with the options `real` of a script."""
    if side == 'ours':
        f_s, student, f_t, teacher = folded(made)
        student |= adaptors(real, f_s, student, f_t, teacher)
        student, teacher = devices.to_device(student, device), devices.to_device(teacher, device)
        return our_training(real, f_s, student, f_t, teacher, topk)
    f_s, student, f_t, teacher = made
    student, teacher = ({name: t.to(device) for name, t in params.items()} for params in (student, teacher))
    return plain_training(real, plain_sgd(real, student), f_s, student, f_t, teacher, topk)


def dropping(device: torch.device) -> Consumer:
    """No step: batches are awaited and dropped."""
    def consume(batches: Iterable[Sample]) -> int:
        n = sum(len(sample.labels) for sample in batches)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return n
    return consume


def folded(made: Networks) -> Networks:
    """With the teacher as training.load_teacher returns it."""
    f_s, student, f_t, teacher = made
    return (f_s, student, *(networks.network(resnet.fold(teacher)) if f_t else (None, {})))


def our_training(real: argparse.Namespace, f_s: Network, student: Params, f_t: Network | None,
                 teacher: Params, topk: tuple[int, ...] = (1,)) -> Consumer:
    """The step of a run with the options `real`; meters are read at the end of a block."""
    layers.trainable(student)
    h = training_step(real, f_s, student, f_t, teacher)
    optimizer = runs.sgd(real, student)

    def consume(batches: Iterable[Sample]) -> int:
        engine, meters = Engine(), runs.Meters(topk)
        engine.hooks['on_forward'] = lambda state: meters.add(state['output'], state['sample'])
        engine.train(h, batches, 1, optimizer)
        meters.read()
        return sum(meters.sizes)

    return consume


# --- the plain baseline: it uses our networks, and nothing else of ours ----------------------------------


def plain_batches(dataset: Dataset, batch_size: int, workers: int, device: torch.device) -> Iterator[Sample]:
    endless = RandomSampler(dataset, num_samples=1 << 40)  # one shuffled epoch after the other
    context = 'fork' if workers and sys.platform == 'linux' else None
    loader = DataLoader(dataset, batch_size, sampler=endless, num_workers=workers,
                        prefetch_factor=PREFETCH if workers else None, pin_memory=device.type == 'cuda',
                        multiprocessing_context=context)
    for x, labels in loader:
        yield Sample(x.to(device, non_blocking=True), labels.to(device, non_blocking=True), 1)


def plain_sgd(real: argparse.Namespace, student: Params) -> torch.optim.SGD:
    trained = [t.requires_grad_() for name, t in student.items() if 'running' not in name]
    return torch.optim.SGD(trained, real.lr, momentum=0.9, weight_decay=real.weight_decay)


def plain_training(real: argparse.Namespace, optimizer: torch.optim.SGD, f_s: Network, student: Params,
                   f_t: Network | None, teacher: Params, topk: tuple[int, ...] = (1,)) -> Consumer:
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
            groups = range(len(g)) if real.at_groups is None else real.at_groups
            at_losses = [(attention(g[i]) - attention(g_t[i])).pow(2).mean() for i in groups]
            loss = loss + real.beta * sum(at_losses)
        return loss, (y, at_losses)

    def consume(batches: Iterable[Sample]) -> int:
        meters, sizes = defaultdict(AverageValueMeter), []

        def on_forward(state: dict[str, Any]) -> None:
            (y, at_losses), labels = state['output'], state['sample'].labels
            sizes.append(len(labels))
            hits = y.topk(max(topk)).indices == labels[:, None]
            accuracies = [hits[:, :k].any(1).float().mean() for k in topk]
            for i, value in enumerate([state['loss'], *accuracies, *at_losses]):
                meters[i].add(value.item())

        engine = Engine()
        engine.hooks['on_forward'] = on_forward
        engine.train(h, batches, 1, optimizer)
        return sum(sizes)

    return consume
