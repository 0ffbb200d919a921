"""What all tests share: `make test`, or `python -m pytest tests/test_utils.py -k name`."""

import os

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch is imported; else threads spin

import contextlib
import io
import json
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
import torch
from torchnet.engine import Engine

import training
from training import devices, exits

ROOT = Path(__file__).resolve().parent.parent

# The order of a sum on the CPU depends on the number of threads: the same everywhere, here and in run_script.
# One, since two files of tests run at once: with two each on two cores they took a quarter longer.
THREADS = 1
torch.set_num_threads(THREADS)

# Freed memory that is kept stays with the process: here with the tests that come after.
KEEP_FREED_MEMORY = devices.keep_freed_memory
devices.keep_freed_memory = lambda: None

# The same examples in every run, and no deadline, which a busy machine would miss.
hypothesis.settings.register_profile('repeatable', derandomize=True, deadline=None)
hypothesis.settings.load_profile('repeatable')


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


def pytest_terminal_summary(terminalreporter):
    """A table in Markdown of what tests measured, a row for each record_property('row', {column: value})."""
    rows = [value for report in terminalreporter.stats.get('passed', [])
            for name, value in report.user_properties if name == 'row']
    if rows:
        for cells in (rows[0], ['---'] * len(rows[0]), *(row.values() for row in rows)):
            terminalreporter.write_line(f'| {" | ".join(map(str, cells))} |')


@pytest.fixture(autouse=True)
def seed():
    """A test that draws from the global generator sees the same numbers alone and among others."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder with recorded steps and CIFAR-10 beside the repository; without it the test is skipped."""
    folder = ROOT.parent / 'shared'
    if not folder.is_dir():
        pytest.skip('needs the folder ../shared (recorded steps, CIFAR-10) beside the repository')
    return folder


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


@pytest.fixture
def run_script(tmp_path):
    """Start a script as a user does: `run_script('cifar.py', '--depth', 16)`, or 'tools.report'."""

    def run(script, *args, cwd=tmp_path, timeout=300, **variables) -> subprocess.CompletedProcess:
        """script: a file of the repository, or a module for `python -m`; variables: added to its environment.

        The caller checks the exit status. Both outputs are also printed: pytest shows them if the test fails.
        """
        script = [str(ROOT / script)] if script.endswith('.py') else ['-m', script]
        command = [sys.executable, *script, *map(str, args)]
        env = {**os.environ, 'OMP_NUM_THREADS': str(THREADS), 'MPLBACKEND': 'Agg', 'PYTHONPATH': str(ROOT)}
        with subprocess.Popen(
            command, cwd=cwd, env={**env, **variables}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:  # a timeout or ctrl-c: ranks and loader workers end with their script
                os.killpg(process.pid, signal.SIGKILL)
                raise
        print(f'$ {" ".join(command)}\n{out}')
        print(err, file=sys.stderr)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run
