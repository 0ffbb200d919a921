"""torchrun starts again a run of which a rank was killed; it goes on from its last epoch."""
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import N_TEST, N_TRAIN, ROOT, SMALL, log_of, ranks_of
from training import checkpoint

pytestmark = pytest.mark.ranks


@pytest.mark.slow
@pytest.mark.parametrize('restarts', [1, 0])
def test_a_killed_rank(tmp_path, restarts):
    """With a restart the run ends whole; without one all ends at once, and the same command goes on."""
    (tmp_path / 'sitecustomize.py').write_text(  # a rank that comes later than rank 0 finds what is left
        f'import os, time\nfrom inputs import shapes\nshapes.N_TRAIN, shapes.N_TEST = {N_TRAIN}, {N_TEST}\n'
        'if os.environ.get("RANK") == os.environ.get("TORCHELASTIC_RESTART_COUNT") == "1":\n'
        '    time.sleep(3)\n')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
               '--monitor-interval', '0.2', '--max-restarts', str(restarts), str(ROOT / 'cifar.py'), *SMALL,
               '--save', 'run', '--resume', 'auto', '--lr', '0.01', '--epochs', '8' if restarts else '1000']
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}',
                                            'OMP_NUM_THREADS': '1'}) as torchrun:
        lines = [torchrun.stdout.readline(), torchrun.stdout.readline()]
        ranks, start = ranks_of(torchrun.pid), time.monotonic()
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
    assert told == log == list(range(1, len(log) + 1))
    assert checkpoint.read(tmp_path / 'run' / 'model.pt7')['epoch'] == len(log)
    assert 'exitcode: -9' in err and err.count('cifar.py: ') == err.count('rank 0 has lost another rank') == 1
    if restarts:
        assert torchrun.returncode == 0 and len(log) == 8
    else:
        assert torchrun.returncode == 1 and len(log) < 1000 and time.monotonic() - start < 60
    for pid in ranks.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
