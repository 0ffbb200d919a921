"""Settings and fixtures of all tests: `make test`, or `python -m pytest tests/test_utils.py -k name`."""

import os

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch is imported; else threads spin

import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from helpers import N_TEST, N_TRAIN, ROOT, SMALL, THREADS, call_cifar
from report_logs import write_demo
from training import devices

torch.set_num_threads(THREADS)

# Freed memory that is kept stays with the process: here with the tests that come after.
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


@pytest.fixture(scope='session')
def small(tmp_path_factory) -> str:
    """PYTHONPATH that makes the data set small in a process of its own."""
    folder = tmp_path_factory.mktemp('small')
    (folder / 'sitecustomize.py').write_text(
        f'from inputs import shapes\nshapes.N_TRAIN, shapes.N_TEST = {N_TRAIN}, {N_TEST}\n')
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture(scope='session')
def home(tmp_path_factory) -> Path:
    """A user's folder with a teacher under logs/, trained for two epochs. No test changes it."""
    folder = tmp_path_factory.mktemp('home')
    done = call_cifar(*SMALL, '--save', 'logs/teacher', '--epochs', 2, '--lr', 0.05, cwd=folder)
    assert (done.status, done.err) == (0, '')
    return folder


@pytest.fixture
def demo(tmp_path) -> Path:
    """Logs of three seeds: a teacher, and its students alone, by KD and by AT."""
    return write_demo(tmp_path / 'logs')
