"""One run: devices, the torchnet Engine and its hooks, meters, checkpoint and log.

    folder = checkpoint.Folder(opt)
    training.train(opt, folder, h, h_test, params, train_loader, test_loader, num_classes)
"""
import argparse
import math
import platform
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchnet.engine import Engine
from torchnet.meter import AverageValueMeter, TimeMeter
from tqdm import tqdm

import options
import utils
from checkpoint import Folder
from data import Loader, Sample
from utils import InputError, Params

DTYPES = {'float': torch.float32, 'bfloat16': torch.bfloat16, 'half': torch.float16}


class Diverged(Exception):
    """The loss is not finite."""


class Output(NamedTuple):
    """What a step gives besides its loss."""
    logits: Tensor  # (B, K)
    terms: dict[str, list[Tensor]]  # losses by name, one per group, before their weights


class Term(NamedTuple):
    """A loss beside the classification loss: weight(epoch) * sum(losses(step)), one loss per group."""
    name: str
    weight: Callable[[int], float]
    losses: Callable[['Step'], list[Tensor]]


class Step(NamedTuple):
    """What losses are made of: logits and groups of the student and, where there is one, of the teacher."""
    y_s: Tensor  # (B, K)
    g_s: tuple[Tensor, ...]  # (B, C, H, W) each
    y_t: Tensor | None
    g_t: tuple[Tensor, ...]
    labels: Tensor  # (B,)


Method = Callable[[Sample], tuple[Tensor, Output]]


def script(main: Callable[[], None]) -> None:
    """Run a script: what its user can mend ends it with one sentence and status 2, divergence with 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    name = Path(sys.argv[0]).name
    try:
        main()
    except InputError as e:
        sys.exit(_say(f'{name}: error: {e}', 2))
    except torch.OutOfMemoryError:
        sys.exit(_say(f'{name}: error: the device has no memory left: give a smaller --batch_size', 2))
    except OSError as e:
        sys.exit(_say(f'{name}: error: {e}', 2))
    except Diverged as e:
        sys.exit(_say(f'{name}: {e}', 1))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _say(sentence: str, status: int = 0) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return status


# --- devices ---------------------------------------------------------------------------------------------


def device(opt: argparse.Namespace) -> torch.device:
    """The device that the options ask for."""
    if opt.device == 'cpu' or opt.device == 'auto' and not torch.cuda.is_available():
        if opt.dtype == 'half':  # CPU kernels gave NaN from finite input (torch 2.15)
            raise InputError('--dtype half needs a CUDA device; on a CPU use bfloat16 or float')
        if opt.dtype == 'bfloat16' and 'AVX512' not in torch.backends.cpu.get_cpu_capability():
            _say('note: this CPU may have no bfloat16 arithmetic: --dtype float may be many times faster')
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise InputError('--device cuda: torch finds no CUDA device here; use --device cpu')
    index = opt.gpu_id[0]
    if index >= torch.cuda.device_count():
        raise InputError(f'--gpu_id {index}: there are {torch.cuda.device_count()} CUDA devices, from 0')
    torch.cuda.set_device(index)
    torch.backends.cudnn.allow_tf32 = False  # --dtype float means float32
    return torch.device('cuda', index)


def to_device(params: Params, device: torch.device) -> Params:
    """Tensors on the device, convolutions with channels last, which both kinds of device compute faster."""
    return {name: t.to(device, memory_format=torch.channels_last if t.dim() == 4 else torch.contiguous_format)
            for name, t in params.items()}


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """The arithmetic of --dtype for whatever runs inside."""
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != 'float')


def evaluation(f: utils.Network, params: Params, dtype: str) -> Method:
    """Cross-entropy and logits of a network in evaluation mode."""
    @torch.no_grad()
    def h_test(sample: Sample) -> tuple[Tensor, Output]:
        with autocast(sample.x.device, dtype):
            logits, _ = f(sample.x, params, False)
        logits = logits.float()
        return F.cross_entropy(logits, sample.labels), Output(logits, {})
    return h_test


# --- epochs ----------------------------------------------------------------------------------------------


class Meters:
    """Loss, accuracy and loss terms of an epoch: kept on the device, read once at the end."""

    def __init__(self):
        self.rows: list[Tensor] = []  # (2 + terms,): loss, right answers, and each group of each term
        self.sizes: list[int] = []
        self.names: list[str] = []

    def add(self, state: dict[str, Any]) -> None:
        output, labels = state['output'], state['sample'].labels
        right = (output.logits.detach().argmax(1) == labels).sum()
        terms = [loss.detach() for losses in output.terms.values() for loss in losses]
        self.names = [name for name, losses in output.terms.items() for _ in losses]
        self.rows.append(torch.stack([state['loss'].detach(), right, *terms]).float())
        self.sizes.append(len(labels))

    def read(self) -> dict[str, Any]:
        """{'loss': mean over images, 'acc': %, '<term>_losses': [[mean, std] over batches, ...]}.

        Waits for the device. Diverged if a loss is not finite.
        """
        loss, acc = AverageValueMeter(), AverageValueMeter()
        terms = [AverageValueMeter() for _ in self.names]
        rows = torch.stack(self.rows).tolist()
        for (batch_loss, right, *losses), n in zip(rows, self.sizes, strict=True):
            if not math.isfinite(batch_loss):
                raise Diverged('the loss is not finite')
            loss.add(batch_loss * n, n)
            acc.add(100 * right, n)
            for meter, value in zip(terms, losses, strict=True):
                meter.add(value)
        result = {'loss': loss.value()[0], 'acc': acc.value()[0]}
        for name, meter in zip(self.names, terms, strict=True):
            result.setdefault(name + '_losses', []).append([float(v) for v in meter.value()])
        return result


def evaluate(h_test: Method, loader: Loader) -> dict[str, float]:
    """{'loss': cross-entropy, 'acc': top-1 accuracy in %} over each image once."""
    engine, meters = Engine(), Meters()
    engine.hooks['on_forward'] = meters.add
    engine.test(h_test, loader)
    return meters.read()


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
        momenta = [saved['state'][i]['momentum_buffer'] for i in range(len(buffers))]
        if any(m.shape != b.shape for m, b in zip(momenta, buffers, strict=True)):
            raise ValueError
        for buffer, momentum in zip(buffers, momenta, strict=True):
            buffer.copy_(momentum)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
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
          train_loader: Loader, test_loader: Loader, num_classes: int) -> None:
    """All epochs that are left of a run; after each, a line of the log and a checkpoint.

    The learning rate drops at the start of the epochs in epoch_step, each time with a fresh momentum buffer,
    as in the published code.
    """
    first = folder.state['epoch'] if folder.state else 0
    if first >= opt.epochs:
        _say(f'{folder.source}: all {opt.epochs} epochs are done')
        return
    where = train_loader.split.images.device
    scaler = torch.amp.GradScaler(where.type)

    def optimizer_from(epoch: int, saved: dict[str, Any] | None = None) -> torch.optim.SGD | ScaledSGD:
        optimizer = sgd(opt, params, options.lr_at(opt, epoch))
        if saved is not None:
            restore(optimizer, saved)
        return ScaledSGD(optimizer, scaler) if opt.dtype == 'half' else optimizer

    def step(sample: Sample) -> tuple[Tensor, Output]:
        loss, output = h(sample)
        if opt.dtype == 'half':
            loss.register_hook(scaler.scale)
        return loss, output

    optimizer = optimizer_from(first + 1, folder.state['optimizer'] if folder.state else None)
    folder.create()
    constants = vars(opt) | provenance(where) | {'cuda': where.type == 'cuda', 'num_classes': num_classes,
                                                 'n_parameters': utils.n_parameters(params)}
    engine, clock = Engine(), TimeMeter(unit=False)
    meters = bar = None

    def on_start(state: dict[str, Any]) -> None:
        state['epoch'] = first

    def on_start_epoch(state: dict[str, Any]) -> None:
        nonlocal meters, bar
        epoch = train_loader.epoch = state['epoch'] + 1
        if epoch in opt.epoch_step:
            state['optimizer'] = optimizer_from(epoch)
        meters = Meters()
        bar = Progress(train_loader, f'epoch {epoch}/{opt.epochs}')
        clock.reset()

    def on_forward(state: dict[str, Any]) -> None:
        meters.add(state)
        bar.add(state['loss'], len(state['sample'].labels))

    def on_end_epoch(state: dict[str, Any]) -> None:
        epoch = state['epoch']
        result = {f'train_{k}' if k in ('loss', 'acc') else k: v for k, v in meters.read().items()}
        train_time = clock.value()
        bar.close()
        clock.reset()
        result |= {f'test_{k}': v for k, v in evaluate(h_test, test_loader).items()}
        result |= {'epoch': epoch, 'train_time': train_time, 'test_time': clock.value(),
                   'images_per_second': train_loader.n_images / train_time,
                   'peak_memory': peak_memory(where),
                   'lr_epoch': options.lr_at(opt, epoch), 'beta_epoch': options.beta_at(opt, epoch)}
        folder.save({'at_losses': []} | constants | result,
                    {'params': {name: t.detach() for name, t in params.items()},
                     'optimizer': state['optimizer'].state_dict(), 'epoch': epoch,
                     'options': vars(opt) | {'num_classes': num_classes}})
        print(f'epoch {epoch}/{opt.epochs}: '
              f'train loss {result["train_loss"]:.4f} accuracy {result["train_acc"]:.2f}, '
              f'test loss {result["test_loss"]:.4f} accuracy {result["test_acc"]:.2f}, '
              f'{train_time:.1f} s, {result["images_per_second"]:.0f} images/s', flush=True)

    for hook in (on_start, on_start_epoch, on_forward, on_end_epoch):
        engine.hooks[hook.__name__] = hook
    try:
        engine.train(step, train_loader, opt.epochs, optimizer)
    except Diverged as e:
        raise Diverged(f'{e} in epoch {train_loader.epoch}; {folder.last()}: try a lower --lr') from None
    except (KeyboardInterrupt, SystemExit):
        _say(f'stopped in epoch {train_loader.epoch}; {folder.last()}; '
             f'go on with: {resume_command(sys.argv, bool(folder.saved))}')
        raise
    finally:
        if bar:
            bar.close()


def resume_command(argv: list[str], saved: bool) -> str:
    """The command line that goes on with the run of `argv`: the same while no checkpoint is saved."""
    if not saved:
        return shlex.join(['python', *argv])
    arguments = iter(argv)
    kept = []
    for argument in arguments:
        if argument == '--resume':
            next(arguments)
        elif not argument.startswith('--resume='):
            kept.append(argument)
    return shlex.join(['python', *kept, '--resume', 'auto'])


class Progress:
    """A bar with loss and images/s on a terminal. The loss comes from a copy that nobody waited for."""

    def __init__(self, loader: Loader, name: str):
        self.bar = tqdm(total=loader.n_images, desc=name, unit='img', leave=False, disable=None)
        self.pinned = torch.zeros((), pin_memory=loader.split.images.is_cuda)
        self.copied, self.shown = False, time.monotonic()

    def add(self, loss: Tensor, n: int) -> None:
        if not self.bar.disable and time.monotonic() - self.shown > 0.5:
            if self.copied:
                self.bar.set_postfix(loss=f'{self.pinned.item():.3f}', refresh=False)
            self.pinned.copy_(loss.detach(), non_blocking=True)
            self.copied, self.shown = True, time.monotonic()
        self.bar.update(n)

    def close(self) -> None:
        self.bar.close()


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit of this code (with '-dirty' where files differ from it), versions and device, for the log."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(['git', '-C', here, *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git('rev-parse', 'HEAD')
    if commit and git('--no-optional-locks', 'status', '--porcelain', '--untracked-files=no'):
        commit += '-dirty'
    name = f'{platform.machine()} CPU, {torch.get_num_threads()} threads'
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    return {'commit': commit, 'torch': str(torch.__version__), 'python': platform.python_version(),
            'device_name': name}


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: allocated on a CUDA device, else resident in this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
