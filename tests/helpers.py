"""What several files of tests use: scripts called in this process, their logs, and ranks."""
import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import os
import re
import resource
import shlex
import signal
import socket
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torchnet.engine import Engine

import cifar
import training
from inputs import shapes
from method import training_step
from training import devices, exits

ROOT = Path(__file__).resolve().parent.parent

# The order of a sum on the CPU depends on the number of threads: the same everywhere, here and in run_script.
# One, since two files of tests run at once: with two each on two cores they took a quarter longer.
THREADS = 1

SMALL = ['--dataset', 'shapes', '--depth', '10', '--width', '0.25', '--batch_size', '64',
         '--epoch_step', '[]', '--device', 'cpu']
N_TRAIN, N_TEST = 192, 100  # in place of 10,000 and 4,000

KEEP_FREED_MEMORY = devices.keep_freed_memory  # conftest.py replaces it


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """What stderr says beside notes."""
        return [line for line in self.err.splitlines() if not line.startswith('note: ')]


def call(script, *arguments, cwd) -> Done:
    """A script's module within this process, as at a command line: a start of Python costs seconds."""
    status, out, err = 0, io.StringIO(), io.StringIO()
    name, handler = f'{script.__name__}.py', signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), \
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter('default')  # as at a command line: a warning is a line on stderr
        # Of Python 3.12; a command line shows no DeprecationWarning.
        warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
        patch.setattr(warnings, 'showwarning', lambda message, *_: print(f'warning: {message}', file=err))
        patch.chdir(cwd)
        patch.setattr(sys, 'argv', [name, *map(str, arguments)])
        try:
            exits.script(script.main)
        except SystemExit as e:
            status = e.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    print(f'$ {name} {shlex.join(map(str, arguments))}\n{out.getvalue()}{err.getvalue()}')
    return Done(status, out.getvalue(), err.getvalue())


def call_cifar(*arguments, cwd) -> Done:
    """The script on a small data set, within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, 'N_TRAIN', N_TRAIN)
        patch.setattr(shapes, 'N_TEST', N_TEST)
        return call(cifar, *arguments, cwd=cwd)


def train(run: training.Run, h) -> None:
    """The loop of the training scripts."""
    engine = Engine()
    engine.hooks = {'on_start': run.start, 'on_start_epoch': run.start_epoch, 'on_sample': run.set_lr,
                    'on_forward': run.measure, 'on_end_epoch': run.end_epoch}
    with run:
        engine.train(h, run.train_loader, run.opt.epochs, run.optimizer)


def strictly(line: str) -> dict:
    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')
    return json.loads(line, parse_constant=refuse)


def log_of(folder: Path) -> list[dict]:
    return [strictly(line) for line in (folder / 'log.txt').read_text().splitlines()]


def listing(folder: Path) -> dict:
    """Everything in a folder but its lock, to see that nothing has changed."""
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
            for p in folder.rglob('*') if p.name != '.lock'}


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', path.read_text(), re.MULTILINE | re.DOTALL)


@contextlib.contextmanager
def disk_of(n_bytes: int):
    """Writing past n_bytes of a file fails, as on a full disk (Python ignores SIGXFSZ by itself)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, 'payload ran')


# --- ranks -------------------------------------------------------------------------------------------------


def ranks_of(pid: int) -> dict[str, int]:
    """The processes below a process that are ranks, by number."""
    found = {}
    for task in Path(f'/proc/{pid}/task').glob('*/children'):
        for child in task.read_text().split():
            words = Path(f'/proc/{child}/environ').read_text().split('\0')
            found |= {word.removeprefix('RANK='): int(child) for word in words if word.startswith('RANK=')}
    return found


RANKS = multiprocessing.get_context('forkserver')
RANKS.set_forkserver_preload(['pytest', 'torchnet.engine', 'torchvision'])  # what takes seconds to import


def start_ranks(n: int, target, *arguments) -> list[multiprocessing.Process]:
    """Processes of target(rank, *arguments) in the environment of n ranks; with 0 one process without ranks.

    They are forks of a process that has only imported torch. A fork of this one can hang: earlier tests may
    have started threads in it.
    """
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    started = [RANKS.Process(target=be_rank, args=(n, rank, port, target, arguments))
               for rank in range(n or 1)]
    for each in started:
        each.start()
    return started


def be_rank(n, rank, port, target, arguments):
    torch.set_num_threads(1)
    if n:
        os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(n),
                       'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    target(rank, *arguments)


def run_ranks(n, *arguments, folder, fixed_bn=False, script=cifar, status=0, **variables) -> Done:
    """A script with n ranks on a small data set; with 0 in one process without ranks.

    Each rank must end with `status`. What all ranks print is returned. variables: added to the environment.
    With fixed BN the gradient of an image does not depend on the other images.
    """
    with tempfile.TemporaryDirectory() as printed:
        streams = [Path(printed, name) for name in ('out', 'err')]
        started = start_ranks(n, run_rank, folder, script.__name__, arguments, fixed_bn, variables, streams)
        end = time.monotonic() + 120
        for each in started:
            each.join(max(end - time.monotonic(), 0))
        found = [each.exitcode for each in started]
        for each in started:
            each.kill()  # one that waits for another that is gone
        done = Done(status, *(stream.read_text() for stream in streams))
    print(done.out, done.err)
    assert found == [status] * len(started), found
    return done


def run_rank(rank, folder, script, arguments, fixed_bn, variables, streams):
    for i, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), i)
    os.environ |= variables
    own = Path(folder, f'machine{rank}')  # where there is one
    os.chdir(own if own.exists() else folder)
    shapes.N_TRAIN, shapes.N_TEST = N_TRAIN, N_TEST
    module = importlib.import_module(script)
    if fixed_bn:
        module.training_step = functools.partial(training_step, fixed_bn=True)
    sys.argv = [f'{script}.py', *map(str, arguments)]
    exits.script(module.main)
