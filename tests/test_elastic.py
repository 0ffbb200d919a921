"""torchrun starts again a run of which a rank was killed; it goes on from its last epoch."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, log_of
from test_cifar import SMALL, small  # noqa: F401

import checkpoint


def ranks_of(pid: int) -> dict[str, int]:
    """The processes below a process that are ranks, by number."""
    found = {}
    for task in Path(f'/proc/{pid}/task').glob('*/children'):
        for child in task.read_text().split():
            words = Path(f'/proc/{child}/environ').read_text().split('\0')
            found |= {word.removeprefix('RANK='): int(child) for word in words if word.startswith('RANK=')}
    return found


def test_a_run_of_which_a_rank_was_killed_is_started_again(tmp_path, small):  # noqa: F811
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
               '--monitor-interval', '0.2', '--max-restarts', '1', str(ROOT / 'cifar.py'), *SMALL, '--save',
               'run', '--resume', 'auto', '--lr', '0.01', '--epochs', '8']
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {'PYTHONPATH': small, 'OMP_NUM_THREADS': '1'}) as torchrun:
        lines = [torchrun.stdout.readline(), torchrun.stdout.readline()]
        ranks = ranks_of(torchrun.pid)
        assert ranks.keys() == {'0', '1'}
        os.kill(ranks['1'], signal.SIGKILL)
        try:
            out, err = torchrun.communicate(timeout=200)
        finally:
            torchrun.terminate()  # which ends its ranks, too
    lines += out.splitlines()
    print(*lines, err, sep='\n')
    told = [int(line.split()[1].split('/')[0]) for line in lines if line.startswith('epoch ')]
    log = [e['epoch'] for e in log_of(tmp_path / 'run')]
    assert told == log == list(range(1, 9))
    assert checkpoint.read(tmp_path / 'run' / 'model.pt7')['epoch'] == 8
    assert torchrun.returncode == 0 and 'exitcode' in err
    for pid in ranks.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
