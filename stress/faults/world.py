"""Runs in forks of this process, and what must hold of the folders that they leave."""
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import cifar
import imagenet
import training
from training import checkpoint, exits

EPOCHS = 4
CIFAR = ['--dataset', 'shapes', '--max_images', '64', '--depth', '10', '--width', '0.25',
         '--batch_size', '16', '--epochs', str(EPOCHS), '--epoch_step', '[3]', '--lr', '0.02',
         '--device', 'cpu', '--save', 'run', '--resume', 'auto']
IMAGENET = ['--dataset', 'folder', '--imagenetpath', '../images', '--width', '0.0625', '--batch_size', '4',
            '--nthread', '1', '--epochs', '2', '--epoch_step', '[2]', '--lr', '0.01', '--device', 'cpu',
            '--save', 'run', '--resume', 'auto']
FORK = multiprocessing.get_context('fork')


class Ended(NamedTuple):
    """A script that has ended."""
    status: int
    out: str
    err: str


class Started:
    """A script in a fork of this process, as at a command line; `prepare` runs there first."""

    def __init__(self, folder: Path, script: Any, words: list[str],
                 prepare: Callable[[], None] | None = None):
        sys.stdout.flush()
        self.files = [folder.parent / f'{folder.name}.{name}' for name in ('out', 'err')]
        for file in self.files:
            file.write_bytes(b'')
        ready, there = os.pipe()
        self.process = FORK.Process(target=self._run, args=(folder, script, words, prepare, there))
        self.process.start()
        os.close(there)
        os.read(ready, 1)  # its handlers of signals are in place
        os.close(ready)
        self.pid = self.process.pid

    def _run(self, folder: Path, script: Any, words: list[str], prepare: Callable[[], None] | None,
             there: int) -> None:
        for n, file in enumerate(self.files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), n)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [f'{script.__name__}.py', *words]

        def main() -> None:
            os.write(there, b'.')
            if prepare:
                prepare()
            script.main()
        exits.script(main)

    def send(self, sign: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, sign)

    def end(self) -> Ended:
        self.process.join(100)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError('it does not end')
        out, err = (file.read_text() for file in self.files)
        assert 'Traceback' not in err, err
        return Ended(self.process.exitcode, out, err)


class World(NamedTuple):
    """Where a round takes place, and what runs without a fault have given."""
    rng: random.Random
    home: Path
    seconds: float  # of a whole run
    whole: dict[str, Path]  # by script, a folder with the run whole
    half: Path  # with the run stopped after epoch 2

    def copy(self, of: Path | None = None) -> Path:
        """A folder of its own for a run: a new one, or a copy."""
        folder = Path(tempfile.mkdtemp(dir=self.home))
        if of:
            shutil.copytree(of, folder, dirs_exist_ok=True)
        return folder

    def moment(self, seconds: float) -> None:
        time.sleep(self.rng.uniform(0, seconds))

    def hook(self, action: Callable[[], None]) -> tuple[str, Callable[[], None]]:
        """Something that does the action when a run saves or evaluates, and in words when."""
        module, name, most = self.rng.choice([
            (os, 'replace', 2 * EPOCHS), (os, 'fsync', 4 * EPOCHS), (torch, 'save', EPOCHS),
            (checkpoint, 'write_log', EPOCHS), (training, 'evaluate', EPOCHS)])
        k, before = self.rng.randrange(most), self.rng.random() < 0.5

        def prepare() -> None:
            function, calls = getattr(module, name), iter(range(most + 1))

            def hooked(*arguments: Any, **more: Any) -> Any:
                now = next(calls, None) == k
                if now and before:
                    action()
                result = function(*arguments, **more)
                if now and not before:
                    action()
                return result
            setattr(module, name, hooked)
        return f'{"before" if before else "after"} {name} {k + 1}', prepare


def make_world(home: Path) -> World:
    home.chmod(0o711)  # for the user who may read alone
    draw = np.random.default_rng(0)
    for part, n in (('train', 6), ('val', 3)):
        for kind in 'ab':
            folder = home / 'images' / part / kind
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f'{i}.png')
    whole = {}
    for script, words in ((imagenet, IMAGENET), (cifar, CIFAR)):
        folder = whole[script.__name__] = home / f'whole_{script.__name__}'
        folder.mkdir()
        start = time.monotonic()
        done = Started(folder, script, words).end()
        assert (done.status, done.err) == (0, ''), done
    world = World(random.Random(), home, time.monotonic() - start, whole, home / 'half')
    world.half.mkdir()
    slow, calls = training.run.evaluate, iter(range(9))

    def prepare() -> None:
        training.run.evaluate = lambda *a: (
            slow(*a) if next(calls) < 2 else os.kill(os.getpid(), signal.SIGKILL))
    Started(world.half, cifar, CIFAR, prepare).end()
    assert sound(world.half, '') == 0
    return world


# --- what must hold ----------------------------------------------------------------------------------------


def bits(folder: Path) -> dict[str, bytes]:
    """Tensors of a checkpoint, momentum included."""
    state = torch.load(folder / 'run' / 'model.pt7', weights_only=True)
    found = {name: t.numpy().tobytes() for name, t in state['params'].items()}
    momenta = state['optimizer']['state']
    return found | {f'momentum {i}': s['momentum_buffer'].numpy().tobytes() for i, s in momenta.items()}


def content(folder: Path) -> dict[str, bytes]:
    """All files but the lock and what was half written."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and p.name != '.lock' and p.suffix != '.tmp'}


def sound(folder: Path, printed: str) -> int:
    """How many epochs are lost: of those that were told, not in checkpoint and log, which must be whole."""
    run = folder / 'run'
    records, epoch = [], 0
    if (run / 'log.txt').exists():
        records = [json.loads(line) for line in (run / 'log.txt').read_text().splitlines()]
    if (run / 'model.pt7').exists():
        epoch = torch.load(run / 'model.pt7', weights_only=True)['epoch']
    epochs = [record['epoch'] for record in records]
    assert epochs == list(range(1, len(epochs) + 1)), f'the log has epochs {epochs}'
    assert epoch - len(epochs) in (0, 1), f'the log has {len(epochs)} epochs, the checkpoint {epoch}'
    return max(0, max(told(printed), default=0) - epoch)


def told(printed: str) -> list[int]:
    """Epochs of which a run has said that they are done."""
    return [int(line.split()[1].split('/')[0]) for line in printed.splitlines() if line.startswith('epoch ')]


def goes_on(world: World, folder: Path, script: Any = cifar, words: list[str] = CIFAR) -> Ended:
    """The same command ends the run, which then is that without a fault."""
    done = Started(folder, script, words).end()
    assert done.status == 0, done
    whole = world.whole[script.__name__]
    assert bits(folder) == bits(whole), 'other bits than without a fault'
    here, there = ([json.loads(line) for line in (f / 'run' / 'log.txt').read_text().splitlines()]
                   for f in (folder, whole))
    for a in here:
        b = there[a['epoch'] - 1]
        assert all(a[k] == b[k] for k in ('epoch', 'train_loss', 'test_loss', 'test_acc')), (a, b)
        assert min(a['train_time'], a['test_time'], a['images_per_second']) >= 0, a
    assert len(here) == len(there) or 'lacks the lines' in done.err, done.err
    assert not list(folder.rglob('*.tmp'))
    return done


def one_sentence(done: Ended, *words: str) -> None:
    lines = [line for line in done.err.splitlines() if not line.startswith('note: ')]
    assert len(lines) == 1 and any(word in lines[0] for word in words), done
