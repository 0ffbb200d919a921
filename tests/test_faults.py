"""A round of each fault of stress/faults.py; `make faults` does 200."""
import re
import subprocess
import sys

import pytest
import torch

from helpers import ROOT
from stress.faults import kinds, world


@pytest.mark.slow
def test_each_fault_once():
    """In a process of its own, since runs are forks: of this one, other tests have used the threads."""
    n = len(kinds.FAULTS)
    command = [sys.executable, '-m', 'stress.faults', '--rounds', str(n), '--seed', '1']
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=400)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, '')
    assert f'| all | {n} | {n} | 0 |' in done.stdout
    for name in kinds.FAULTS:
        assert re.search(rf'^\d+: {re.escape(name)}\b.*: ok$', done.stdout, re.MULTILINE)


def folder_with(tmp_path, lines, epoch):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'log.txt').write_text(lines)
    if epoch:
        torch.save({'epoch': epoch}, tmp_path / 'run' / 'model.pt7')
    return tmp_path


@pytest.mark.parametrize(('lines', 'epoch', 'told', 'lost'), [
    ('', 0, '', 0), ('{"epoch": 1}\n', 1, 'epoch 1/4: \n', 0), ('{"epoch": 1}\n', 2, 'epoch 1/4: \n', 0),
    ('{"epoch": 1}\n', 1, 'epoch 1/4: \nepoch 2/4: \nepoch 3/4: ', 2)])
def test_the_reader_counts_what_is_lost(tmp_path, lines, epoch, told, lost):
    assert world.sound(folder_with(tmp_path, lines, epoch), told) == lost


@pytest.mark.parametrize(('lines', 'epoch'), [
    ('{"epoch": 1}\n', 0), ('{"epoch": 2}\n', 2), ('{"epoch": 1}\n', 3), ('{"epoch": 1}\n{"epoch": 1}\n', 2)])
def test_the_reader_sees_what_does_not_fit(tmp_path, lines, epoch):
    with pytest.raises(AssertionError, match='the log has'):
        world.sound(folder_with(tmp_path, lines, epoch), '')


def test_the_reader_sees_half_a_line(tmp_path):
    with pytest.raises(ValueError, match='delimiter|Expecting|Unterminated'):
        world.sound(folder_with(tmp_path, '{"epoch": 1', 1), '')
