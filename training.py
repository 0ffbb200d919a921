"""One run: the torchnet Engine and its hooks, meters, checkpoint and log.

    folder = training.folder_of(opt)
    training.train(opt, folder, h, h_test, params, train_loader, test_loader, num_classes)
"""
import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchnet.engine import Engine
from torchnet.meter import AverageValueMeter
from tqdm import tqdm

import checkpoint
import data
import devices
import images
import options
import process
import resnet
import splits
import utils
from checkpoint import Folder
from data import Sample
from method import ADAPTOR, Method, Output
from progress import Board, Pace, Progress
from utils import InputError, Network, Params

Loader = data.Loader | images.Loader


# --- networks and their weights ---------------------------------------------------------------------------


def load(path: Path | str, dataset: str, num_classes: int, where: torch.device,
         classes: list[str] | None = None) -> tuple[Network, Params]:
    """A trained network, which must know the classes of the data set, if named by the same names, in order.

    Prints what it is.
    """
    f, params = resnet.load(path)
    trained_on = checkpoint.dataset_of(path)
    if trained_on not in (None, dataset):
        raise InputError(f'{path} was trained on {trained_on}, not on {dataset}: '
                         'give the same --dataset to both')
    n = len(params['fc.bias'])
    if n != num_classes:
        raise InputError(f'{path} knows {n} classes, {dataset} has {num_classes}')
    note = splits.same_classes(path, checkpoint.classes_of(path), classes) if classes else ''
    if not devices.rank():
        if note:
            process.say(note)
        print(f'{path}: {resnet.describe(params)}')
    return f, devices.to_device(params, where)


def load_teacher(path: Path | str, opt: argparse.Namespace, student: Params,
                 where: torch.device, classes: list[str] | None = None) -> tuple[Network, Params]:
    """A teacher: a trained network in the exported form, which computes the same with less work."""
    _, params = load(path, opt.dataset, len(student['fc.bias']), where, classes)
    n, n_student = resnet.n_groups(params), resnet.n_groups(student)
    opt.teacher = resnet.describe(params)  # for the log: the file may be gone when it is read
    compared = [name for name in options.GROUP_LOSSES if getattr(opt, name)]
    if compared and n != n_student:
        raise InputError(f'{path} has {n} groups to compare, the student {n_student}: give a teacher of as '
                         f'many, or leave out --{compared[0]}')
    f, params = resnet.network(resnet.fold(params))
    return f, devices.to_device(params, where)


def folder_of(opt: argparse.Namespace, classes: list[str] | None = None) -> Folder:
    """The run's folder, which only the machine of rank 0 need have."""
    def found() -> Folder:
        folder = Folder(opt)
        known = folder.state and folder.state['options'].get('classes')
        if classes and isinstance(known, list):
            splits.same_classes(folder.source, known, classes)
        return folder

    return devices.of_first_rank(found)


def resumed(folder: Folder, fresh: Params, adaptors: Params, where: torch.device) -> Params:
    """What is trained, student and adaptors, on the device: of the checkpoint to go on from, or fresh."""
    student = fresh
    if folder.state:
        student = devices.of_first_rank(lambda: resnet.load(folder.source)[1])
        if _kinds(student) != _kinds(fresh):
            raise InputError(f'{folder.source} holds a {resnet.describe(student)}: the options say another')
        saved = folder.state.get('adaptors')
        if adaptors and not (isinstance(saved, dict) and _kinds(saved) == _kinds(adaptors)):
            raise InputError(f'{folder.source} lacks the adaptors that --hint_beta goes on training: give '
                             'the options and the teacher of the run, or begin a new one by another --save')
        adaptors = {name: saved[name].detach().contiguous() for name in adaptors}
    return devices.to_device(student | adaptors, where)


def _kinds(params: dict[str, Any]) -> dict[str, Any]:
    return {name: isinstance(t, Tensor) and (t.shape, t.dtype, t.layout, t.is_meta)
            for name, t in params.items()}


# --- epochs ----------------------------------------------------------------------------------------------


class Meters:
    """Loss, accuracy and loss terms of an epoch: kept on the device, read once at the end, for all ranks."""

    def __init__(self, topk: tuple[int, ...] = (1,)):
        self.topk = topk
        self.rows: list[Tensor] = []  # (1 + topk + terms,): loss, right answers, each group of each term
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.n_images = 0  # of all ranks, once they are read

    def add(self, state: dict[str, Any]) -> None:
        output, labels = state['output'], state['sample'].labels
        best = output.logits.detach().topk(min(max(self.topk), output.logits.shape[1])).indices
        hits = best == labels[:, None]
        right = [hits[:, :k].sum() for k in self.topk]
        terms = [loss.detach() for losses in output.terms.values() for loss in losses]
        self.names = [name for name, losses in output.terms.items() for _ in losses]
        row = torch.stack([state['loss'].detach(), *right, *terms]).float()
        self.rows.append(row if len(labels) else torch.zeros_like(row))  # of no images the loss is NaN
        self.sizes.append(len(labels))

    def read(self) -> dict[str, Any]:
        """{'loss': mean over images, 'acc': %, '<term>_losses': [[mean, std] over batches, ...]}.

        'acc5' is top-5 accuracy. Waits for the device and the other ranks. Diverged: a loss is not finite.
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)[:, None]
        stacked = torch.stack(self.rows).double()
        k = len(self.topk)
        sums = torch.cat([stacked, torch.ones_like(stacked[:, :1])], 1) * sizes.to(stacked.device)
        sums[:, 1:1 + k] = stacked[:, 1:1 + k]  # counts already
        rows = [row for row in devices.summed(sums).tolist() if row[-1]]
        loss, accuracies = AverageValueMeter(), [AverageValueMeter() for _ in self.topk]
        terms = [AverageValueMeter() for _ in self.names]
        for batch_loss, *values, n in rows:
            if not math.isfinite(batch_loss):
                raise process.Diverged('the loss is not finite')
            loss.add(batch_loss, n)
            for meter, right in zip(accuracies, values[:k], strict=True):
                meter.add(100 * right, n)
            for meter, value in zip(terms, values[k:], strict=True):
                meter.add(value / n)
        self.n_images = int(sum(n for *_, n in rows))
        result: dict[str, Any] = {'loss': loss.value()[0]}
        for top, meter in zip(self.topk, accuracies, strict=True):
            result['acc' if top == 1 else f'acc{top}'] = meter.value()[0]
        for name, meter in zip(self.names, terms, strict=True):
            result.setdefault(name + '_losses', []).append([float(v) for v in meter.value()])
        return result


def evaluate(h_test: Method, loader: Loader, topk: tuple[int, ...] = (1,)) -> dict[str, float]:
    """{'loss': cross-entropy, 'acc': top-1 accuracy in %, ...} over each image once."""
    engine, meters = Engine(), Meters(topk)
    engine.hooks['on_forward'] = meters.add
    engine.test(h_test, loader)
    return meters.read()


def n_damaged(*loaders: Loader) -> list[int]:
    """How many images of all ranks were skipped by each loader in its last epoch."""
    return devices.summed(torch.tensor([loader.damaged for loader in loaders],
                                       device=loaders[0].device)).tolist()


def sgd(opt: argparse.Namespace, params: Params, lr: float) -> torch.optim.SGD:
    """SGD on every trainable tensor, BN and biases included, with a fresh momentum buffer."""
    trained = [t for t in params.values() if t.requires_grad]
    optimizer = torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=opt.weight_decay, fused=True)
    for t in trained:  # else it begins with unset memory, kept where a GradScaler skips the first step
        optimizer.state[t]['momentum_buffer'] = torch.zeros_like(t)
    return optimizer


def restore(optimizer: torch.optim.SGD, saved: dict[str, Any]) -> None:
    """Momentum from a saved state_dict, checked: the fused step would read past a buffer of another shape."""
    buffers = [state['momentum_buffer'] for state in optimizer.state.values()]
    try:
        if not all(isinstance(state, dict) for state in saved['state'].values()):
            raise TypeError
        momenta = [saved['state'][i]['momentum_buffer'] for i in range(len(buffers))]
        if any(m.shape != b.shape or m.is_complex() for m, b in zip(momenta, buffers, strict=True)):
            raise ValueError
        for buffer, momentum in zip(buffers, momenta, strict=True):
            buffer.copy_(momentum)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError):
        raise InputError('the momentum in the checkpoint to go on from does not fit its network') from None


class ScaledSGD:
    """SGD by gradients that are scaled up on their way, since small ones vanish in half precision."""

    def __init__(self, optimizer: torch.optim.SGD, scaler: torch.amp.GradScaler):
        self.optimizer, self.scaler = optimizer, scaler
        self.zero_grad = optimizer.zero_grad

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()


def train(opt: argparse.Namespace, folder: Folder, h: Method, h_test: Method, params: Params,
          train_loader: Loader, test_loader: Loader, num_classes: int, topk: tuple[int, ...] = (1,),
          classes: list[str] | None = None) -> None:
    """All epochs that are left of a run; after each, a line of the log and a checkpoint.

    `params` are the student and its adaptors. The learning rate drops at the start of the epochs in
    epoch_step, each time with a fresh momentum buffer, as in the published code. Accuracies are top-k of all
    `topk`. Rank 0 alone writes.
    """
    first = folder.state['epoch'] if folder.state else 0
    if first >= opt.epochs:
        if not devices.rank():
            folder.complete_log()
        process.say_once(f'{folder.source}: all {opt.epochs} epochs are done')
        return
    where = train_loader.device
    scaler = torch.amp.GradScaler(where.type)

    def optimizer_from(epoch: int, saved: dict[str, Any] | None = None) -> torch.optim.SGD | ScaledSGD:
        optimizer = sgd(opt, params, options.lr_at(opt, epoch))
        if saved is not None:
            restore(optimizer, saved)
        return ScaledSGD(optimizer, scaler) if opt.dtype == 'half' else optimizer

    def step(sample: Sample) -> tuple[Tensor, Output]:
        loss, output = h(sample)
        if sample.share != 1:  # the meters take the loss as it is
            loss.register_hook(lambda gradient: gradient * sample.share)
        if opt.dtype == 'half':
            loss.register_hook(scaler.scale)
        return loss, output

    optimizer = optimizer_from(first + 1, folder.state['optimizer'] if folder.state else None)
    if not devices.rank():
        folder.create()
    adaptors = {name: t for name, t in params.items() if name.startswith(ADAPTOR)}
    student = {name: t for name, t in params.items() if name not in adaptors}
    constants = vars(opt) | process.provenance(where) | {
        'cuda': where.type == 'cuda', 'num_classes': num_classes,
        'n_parameters': utils.n_parameters(student)}
    known: dict[str, Any] = {'num_classes': num_classes}
    if classes:
        constants['classes'], known['classes'] = splits.short_form(classes), classes
    engine, pace = Engine(), Pace()
    begun = 0.0  # when training in an epoch began, by a clock that nobody sets
    meters, bar, board = Meters(topk), None, None
    if opt.tensorboard and not devices.rank():
        board = Board(folder.path, first + 1)

    def on_start(state: dict[str, Any]) -> None:
        state['epoch'] = first

    def on_start_epoch(state: dict[str, Any]) -> None:
        nonlocal meters, bar, begun
        epoch = train_loader.epoch = state['epoch'] + 1
        if epoch in opt.epoch_step:
            state['optimizer'] = optimizer_from(epoch)
        meters = Meters(topk)
        bar = Progress(train_loader, f'epoch {epoch}/{opt.epochs}')
        begun = time.monotonic()

    def on_forward(state: dict[str, Any]) -> None:
        meters.add(state)
        bar.add(state['loss'], len(state['sample'].labels))

    def on_end_epoch(state: dict[str, Any]) -> None:
        epoch = state['epoch']
        result = {k if k.endswith('_losses') else f'train_{k}': v for k, v in meters.read().items()}
        train_time = time.monotonic() - begun
        bar.close()
        devices.same_statistics(params)
        tested = time.monotonic()
        result |= {f'test_{k}': v for k, v in evaluate(h_test, test_loader, topk).items()}
        result |= {'epoch': epoch, 'train_time': train_time, 'test_time': time.monotonic() - tested,
                   'images_per_second': meters.n_images / train_time,
                   'peak_memory': process.peak_memory(where),
                   'lr_epoch': options.lr_at(opt, epoch), 'beta_epoch': options.beta_at(opt, epoch),
                   'ranks': devices.ranks()}
        damaged = n_damaged(train_loader, test_loader)
        if any(damaged):
            result |= {'damaged_images': damaged}
        if not devices.rank():
            folder.save({'at_losses': []} | constants | result,
                        {'params': {name: t.detach() for name, t in student.items()},
                         'adaptors': {name: t.detach() for name, t in adaptors.items()},
                         'optimizer': state['optimizer'].state_dict(), 'epoch': epoch,
                         'options': vars(opt) | known})
            if board:
                board.add(result)
        pace.add()
        left = opt.epochs - epoch
        if not devices.rank():
            print(f'epoch {epoch}/{opt.epochs}: '
                  f'train loss {result["train_loss"]:.4f} accuracy {result["train_acc"]:.2f}, '
                  f'test loss {result["test_loss"]:.4f} accuracy {result["test_acc"]:.2f}, '
                  f'{train_time:.1f} s, {result["images_per_second"]:.0f} images/s'
                  + (f', {tqdm.format_interval(pace.seconds(left))} left' if left else ''), flush=True)
        if left and opt.max_hours:
            # The ranks' clocks differ: all stop if one of them says so.
            up = torch.tensor(float(pace.is_up(opt.max_hours)), device=where)
            if devices.summed(up).item():
                raise process.TimeIsUp(f'stopped after epoch {epoch} of {opt.epochs}, as the next might not '
                                       f'end within --max_hours {opt.max_hours:g}; go on with: '
                                       + process.resume_command(sys.argv, saved=True))

    for hook in (on_start, on_start_epoch, on_forward, on_end_epoch):
        engine.hooks[hook.__name__] = hook
    try:
        try:
            engine.train(step, train_loader, opt.epochs, optimizer)
        except process.Diverged as e:
            raise process.Diverged(f'{e} in epoch {train_loader.epoch}; {folder.last()}: '
                                   'try a lower --lr') from None
        except (MemoryError, RuntimeError) as e:
            if not process.is_out_of_memory(e):
                raise
            raise InputError(f'--batch_size {opt.batch_size} takes more memory than there is; '
                             f'{folder.last()}: give a smaller one, or share it among devices by --ngpu'
                             ) from None
    # Outside of the other: of a rank that Ctrl-C ended sooner this one may hear before its own Ctrl-C.
    except (KeyboardInterrupt, SystemExit):
        process.say_once(f'stopped in epoch {train_loader.epoch}; {folder.last()}; '
                         f'go on with: {process.resume_command(sys.argv, bool(folder.saved))}')
        raise
    finally:
        folder.close()
        if bar:
            bar.close()
        if board:
            board.close()
