"""What all tests share: `make test`, or `python -m pytest tests/test_utils.py -k name`."""

import os

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch is imported; else threads spin

import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# The order of a sum on the CPU depends on the number of threads: the same everywhere, here and in run_script.
THREADS = 2
torch.set_num_threads(THREADS)

# The same examples in every run, and no deadline, which a busy machine would miss.
hypothesis.settings.register_profile('repeatable', derandomize=True, deadline=None)
hypothesis.settings.load_profile('repeatable')


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


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
