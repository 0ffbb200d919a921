"""A run: what happens around the training step, as hooks of torchnet's Engine in the order of their calls."""
import argparse
import sys
import time
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import layers
import method
from inputs import folders
from layers import Function, Params
from training import devices, exits
from training.checkpoint import Folder
from training.half import ScaledSGD, scaled
from training.meters import Loader, Meters, evaluate, n_damaged
from training.progress import Board, Pace, Progress
from utils import InputError


class Run:
    """The epochs that are left of a run. After each, rank 0 writes a checkpoint and a line of the log.

    `student` includes the adaptors. If `folder` has a checkpoint to resume from,
    they take its values. `facts` are logged with the options. `topk`: the k of the top-k accuracies.
    """

    def __init__(self, opt: argparse.Namespace, folder: Folder, student: Params, h_test: Function,
                 train_loader: Loader, test_loader: Loader, facts: dict[str, Any],
                 topk: tuple[int, ...] = (1,), pace: Pace | None = None) -> None:
        self.opt, self.folder, self.h_test, self.topk = opt, folder, h_test, topk
        self.train_loader, self.test_loader, self.device = train_loader, test_loader, train_loader.device
        self.adaptors = {name: t for name, t in student.items() if name.startswith(method.ADAPTOR)}
        self.student = {name: t for name, t in student.items() if name not in self.adaptors}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=opt.dtype == 'half')
        self.optimizer = sgd(opt, student, self.scaler)
        self.first = 0  # epochs that are done
        self.network = facts.get('network', {})  # the recipe of a network by name
        self.classes = facts.get('classes', [])  # names, if the name of the data set does not define them
        if self.folder.state:
            self.restore(self.folder.state)
        self.facts = {'at_losses': [], **vars(opt), **facts,
                      'n_parameters': layers.n_parameters(self.student),
                      'cuda': self.device.type == 'cuda'}
        self.meters, self.pace, self.begun = Meters(topk), pace or Pace(), 0.0
        self.bar: Progress | None = None
        self.board: Board | None = None

    # --- hooks -------------------------------------------------------------------------------------------

    def start(self, state: dict[str, Any]) -> None:
        """Before the first epoch."""
        self.pace.start()
        state['epoch'] = self.first
        state['network'] = scaled(state['network'], self.scaler)

    def start_epoch(self, state: dict[str, Any]) -> None:
        """Reset the meters. Where the learning rate drops by steps, reset the momentum too, as in 2017."""
        epoch = self.train_loader.epoch = state['epoch'] + 1
        if self.opt.lr_schedule == 'step' and epoch in self.opt.epoch_step:
            for buffer in self.momentum().values():
                buffer.zero_()
        self.meters = Meters(self.topk)
        self.bar = Progress(self.train_loader, f'epoch {epoch}/{self.opt.epochs}')
        self.begun = time.monotonic()

    def set_lr(self, state: dict[str, Any]) -> None:
        """Before each batch, set the learning rate to its value at the middle of the batch."""
        sample = state['sample']
        done = (sample.batch + 0.5) / len(self.train_loader)
        for group in self.optimizer.param_groups:
            group['lr'] = method.learning_rate(self.opt, sample.epoch, done)

    def measure(self, state: dict[str, Any]) -> None:
        """After each batch, record loss and accuracy, which stay on the device."""
        self.meters.add(state['output'], state['sample'])
        self.bar.add(state['output'].loss, len(state['sample'].labels))

    def end_epoch(self, state: dict[str, Any]) -> None:
        """Test, save a checkpoint, write one JSON line, print one line."""
        epoch = state['epoch']
        result = self.results(epoch)
        if not devices.rank():
            self.folder.save(self.facts | result, self.checkpoint(epoch))
            if self.board:
                self.board.add(result)
        self.folder.saved = epoch  # on all ranks
        self.pace.add()
        left = self.opt.epochs - epoch
        exits.print_first(
            f'epoch {epoch}/{self.opt.epochs}: '
            f'train loss {result["train_loss"]:.4f} accuracy {result["train_acc"]:.2f}, '
            f'test loss {result["test_loss"]:.4f} accuracy {result["test_acc"]:.2f}, '
            f'{result["train_time"]:.1f} s, {result["images_per_second"]:.0f} images/s'
            + (f', {tqdm.format_interval(self.pace.seconds(left))} left' if left else ''))
        if left and self.opt.max_hours:
            self.stop_in_time(epoch)

    # --- what the hooks are made of ------------------------------------------------------------------------

    def results(self, epoch: int) -> dict[str, Any]:
        """Results of an epoch for the log: its meters, and the test."""
        result = {k if k.endswith('_losses') else f'train_{k}': v for k, v in self.meters.read().items()}
        trained = time.monotonic()
        self.bar.close()
        devices.same_statistics(self.student)
        result |= {f'test_{k}': v for k, v in evaluate(self.h_test, self.test_loader, self.topk).items()}
        result |= {'epoch': epoch,
                   'train_time': trained - self.begun, 'test_time': time.monotonic() - trained,
                   'images_per_second': self.meters.n_images / (trained - self.begun),
                   'peak_memory': exits.peak_memory(self.device),
                   'lr_epoch': [method.learning_rate(self.opt, epoch, done) for done in (0, 1)],
                   'beta_epoch': method.beta(self.opt, epoch), 'ranks': devices.ranks()}
        damaged = n_damaged(self.train_loader, self.test_loader)
        return result | ({'damaged_images': damaged} if any(damaged) else {})

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        """All that another process needs to resume after this epoch, or to use the student as a teacher."""
        return {'params': {name: t.detach() for name, t in self.student.items()},
                'adaptors': {name: t.detach() for name, t in self.adaptors.items()},
                'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict(), 'epoch': epoch,
                'options': {**vars(self.opt), 'num_classes': self.facts['num_classes'],
                            **({'network': self.network} if self.network else {}),
                            **({'classes': self.classes} if self.classes else {})}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take student, adaptors, momentum, loss scale and epoch from a checkpoint."""
        source = self.folder.source
        for change in self.folder.changes(self.opt):
            exits.say_first(f'note: {change}')
        before = state['options'].get('network')
        if isinstance(before, dict) and before.get('sha256') != self.network.get('sha256'):
            exits.say_first(f'note: the file of {self.opt.model} has changed since the run began')
        if isinstance(known := state['options'].get('classes'), list) and self.classes:
            folders.same_classes(source, known, self.classes)
        fill(self.student, state['params'], f'the network in {source} is not that of the options')
        if self.adaptors:
            rows = ' and '.join(f'--{row.option}' for row in method.active(self.opt) if row.adaptor)
            fill(self.adaptors, state.get('adaptors'), f'{source} lacks the adaptors that {rows} train')
        saved = state['optimizer'].get('state')
        saved = saved if isinstance(saved, dict) else {}
        momentum = {i: known.get('momentum_buffer') for i, known in saved.items() if isinstance(known, dict)}
        fill(self.momentum(), momentum, f'the momentum in {source} does not fit its network')
        if state.get('scaler'):
            self.scaler.load_state_dict(state['scaler'])
        self.first = state['epoch']

    def momentum(self) -> dict[int, Tensor]:
        """The momentum buffers, numbered as in a saved optimizer."""
        return {i: state['momentum_buffer'] for i, state in enumerate(self.optimizer.state.values())}

    def stop_in_time(self, epoch: int) -> None:
        """End the run if --max_hours are over. Clocks of ranks differ: all stop if one of them is over."""
        is_up = torch.tensor(float(self.pace.is_up(self.opt.max_hours)), device=self.device)
        if devices.summed(is_up).item():
            raise exits.TimeIsUp(f'stopped after epoch {epoch} of {self.opt.epochs}, because another epoch '
                                 f'might not end within --max_hours {self.opt.max_hours:g}; resume with: '
                                 + exits.resume_command(sys.argv, saved=True))

    # --- with run: -----------------------------------------------------------------------------------------

    def __enter__(self) -> 'Run':
        if not devices.rank():
            if self.first >= self.opt.epochs:
                self.folder.complete_log()
                exits.say_first(f'{self.folder.source}: all {self.opt.epochs} epochs are done')
            else:
                self.folder.create()
                self.facts |= exits.provenance(self.device)
                if self.classes:
                    self.facts['classes'] = folders.short_form(self.classes)
                self.board = Board(self.folder.path, self.first + 1) if self.opt.tensorboard else None
        return self

    def __exit__(self, kind: type | None, e: BaseException | None, traceback: TracebackType | None) -> None:
        """Whatever ended the run, report what is saved and how to resume; close its files."""
        epoch, last = self.train_loader.epoch, self.folder.last()
        try:
            if isinstance(e, exits.Diverged):
                smaller = ' or --'.join(['lr', *(loss.option for loss in method.active(self.opt))])
                raise exits.Diverged(f'{e} in epoch {epoch}; {last}: try a lower --{smaller}'
                                     + ', or a higher --temperature' * bool(self.opt.alpha)) from None
            if isinstance(e, MemoryError | RuntimeError) and layers.is_out_of_memory(e):
                raise InputError(f'--batch_size {self.opt.batch_size} needs more memory than there is; '
                                 f'{last}: give a smaller one, or more devices with --ngpu') from None
            if isinstance(e, OSError | KeyboardInterrupt | SystemExit):
                stopped = (f'stopped in epoch {epoch}; {last}; resume with: '
                           + exits.resume_command(sys.argv, bool(self.folder.saved)))
                if isinstance(e, OSError):
                    raise InputError(f'{e}; {stopped}') from None
                exits.say_first(stopped)
        finally:
            self.folder.close()
            for part in (self.bar, self.board):
                if part:
                    part.close()


def sgd(opt: argparse.Namespace, params: Params, scaler: torch.amp.GradScaler | None = None) -> ScaledSGD:
    """SGD on every trainable tensor, BN and biases included, with momentum 0.9 and buffers of zeros."""
    trained = [t for t in params.values() if t.requires_grad]
    optimizer = ScaledSGD(trained, scaler or torch.amp.GradScaler(enabled=False), lr=opt.lr, momentum=0.9,
                          weight_decay=opt.weight_decay, fused=True)
    for t in trained:  # otherwise it is unset memory, which stays if a GradScaler skips the first step
        optimizer.state[t]['momentum_buffer'] = torch.zeros_like(t)
    return optimizer


@torch.no_grad()
def fill(tensors: dict, values: Any, refusal: str) -> None:
    """Copy values into tensors; InputError unless names, shapes and types are the same.

    The fused step of the optimizer would read past the end of a buffer that is too small.
    """
    def kinds(found: Any) -> dict:
        return {name: isinstance(t, Tensor) and (t.shape, t.dtype, t.layout, t.is_meta)
                for name, t in found.items()}

    if not isinstance(values, dict) or kinds(values) != kinds(tensors):
        raise InputError(f'{refusal}: resume with the options and the teacher of the run, or start a new one '
                         'with another --save')
    for name, t in tensors.items():
        t.copy_(values[name])
