"""What is published in results/: logs that tell how they were made, and the weights that belong to them."""
import hashlib
import re

import pytest
from conftest import ROOT, call, log_of

import cifar
import resnet

RESULTS = ROOT / 'results'
WEIGHTS = RESULTS / 'weights'
LOGS = sorted(RESULTS.rglob('log.txt'))
# | [wrn_16_2](wrn_16_2) | sha256 | what --evaluate prints |
ROWS = re.findall(r'^\| \[[^\]]+\]\((\S+)\) +\| `(\w{64})` +\| `(.+?)` +\|$',
                  (WEIGHTS / 'README.md').read_text(), re.MULTILINE)


def short(path):
    return str(path.relative_to(RESULTS))


@pytest.mark.parametrize('log', LOGS, ids=short)
def test_logs_tell_seed_epochs_and_commit(log):
    text = log.read_text()
    assert not re.search(r'"/|~/', text)  # no paths of the machine where it was made
    for record in log_of(log.parent):
        assert re.fullmatch('[0-9a-f]{40}', record['commit']), 'from a tree without changes'
        assert isinstance(record['seed'], int) and record['epoch'] <= record['epochs']


def test_every_run_of_the_weights_has_a_row():
    assert sorted(folder for folder, *_ in ROWS) == sorted(
        str(path.parent.relative_to(WEIGHTS)) for path in WEIGHTS.rglob('model.pt7'))
    assert len(ROWS) >= 5 and sum(p.stat().st_size for p in WEIGHTS.rglob('*.pt7')) < 8e6


@pytest.mark.parametrize(('folder', 'sha256', 'line'), ROWS, ids=[row[0] for row in ROWS])
def test_weights_are_those_of_their_log(folder, sha256, line):
    assert hashlib.sha256((WEIGHTS / folder / 'model.pt7').read_bytes()).hexdigest() == sha256
    last = log_of(WEIGHTS / folder)[-1]
    acc = last['test_acc']
    assert line == (f'results/weights/{folder}: test loss {last["test_loss"]:.4f} accuracy {acc:.2f} '
                    f'error {100 - acc:.2f}')
    _, params = resnet.load(WEIGHTS / folder)
    assert resnet.describe(params).startswith(f'WRN-{last["depth"]}-{last["width"]:g}, 10 classes')


def test_evaluate_prints_the_line(shared):
    folder, _, line = next(row for row in ROWS if row[0].endswith('/at'))
    done = call(cifar, '--evaluate', '--student_params', f'results/weights/{folder}', '--dataroot',
                shared / 'data', '--device', 'cpu', cwd=ROOT)
    assert done.status == 0 and done.out.splitlines()[-1] == line
