"""--check on a published folder made here, with one fault at a time, and on results/ itself."""
import hashlib
import json
import re
import shutil

import pytest

import cifar
from helpers import ROOT, SMALL, call, log_of
from tools import report
from tools.report import check
from training import checkpoint

COMMIT = '0123456789' * 4


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A project with a run, its weights and two documents, all in order."""
    folder = tmp_path_factory.mktemp('project')
    command = [*SMALL, '--epochs', 2, '--epoch_step', '[2]', '--lr', 0.05, '--sym_beta', 0.1,
               '--max_images', 40, '--save', 'results/a/run']
    assert call(cifar, *command, cwd=folder).status == 0
    run = folder / 'results' / 'a' / 'run'
    rewrite(run, lambda record: record | {'commit': COMMIT, 'train_time': 60.0})
    (run / '.lock').unlink()
    last = log_of(run)[-1]
    said = f'loss {last["test_loss"]:.4f} accuracy {last["test_acc"]:.2f} error {100 - last["test_acc"]:.2f}'
    (folder / 'results' / 'README.md').write_text(
        f'| run | sha256 | evaluated |\n|---|---|---|\n'
        f'| [run](a/run) | `{hashlib.sha256((run / "model.pt7").read_bytes()).hexdigest()}` | '
        f'`results/a/run: test {said}` |\n')
    (folder / 'README.md').write_text('<!-- report: results/a -->\n<!-- end of report -->\n')
    assert call(report, '--update', 'README.md', cwd=folder).status == 0
    return folder


def rewrite(run, change):
    """Log and checkpoint with another record for each epoch."""
    records = [change(record) for record in log_of(run)]
    (run / 'log.txt').write_text(''.join(json.dumps(record) + '\n' for record in records))
    checkpoint.write(run / 'model.pt7', checkpoint.read(run / 'model.pt7') | {'record': records[-1]})


def checked(folder, *arguments):
    done = call(report, '--check', 'results', *arguments, cwd=folder)
    assert not done.err
    return done.status, [line for line in done.out.splitlines() if 'FAULT' in line], done.out


def test_all_in_order(made):
    status, faults, out = checked(made)
    error = 100 - log_of(made / 'results' / 'a' / 'run')[-1]['test_acc']
    assert (status, faults) == (0, [])
    assert out.splitlines()[0] == (f'results/a/run: 2 epochs, seed 1, commit 0123456, test error {error:.2f}')
    assert f'results/a/run: weights evaluated, test error {error:.2f}' in out
    assert 'results/README.md: 1 weights with their checksums' in out
    assert re.search(r'\nREADME.md: 1 tables are those of their logs\n3 checked, 0 faults\n$', out)


def other_weight(run):
    """Weights of another network, in a file that is whole: only evaluating tells."""
    state = checkpoint.read(run / 'model.pt7')
    state['params']['fc.weight'] = -state['params']['fc.weight']
    checkpoint.write(run / 'model.pt7', state)


def other_record(run):
    state = checkpoint.read(run / 'model.pt7')
    checkpoint.write(run / 'model.pt7', state | {'record': state['record'] | {'test_acc': 99.0}})


def text(old, new, count=-1):
    def change(path):
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, count))
    return change


LOG, MODEL, README = 'results/a/run/log.txt', 'results/a/run/model.pt7', 'results/README.md'
FAULTS = {  # what is changed, how, what the fault says, which items have one
    'a line is cut': (LOG, lambda p: p.write_text(p.read_text()[:-30]), 'its 2 lines are not the epochs', 3),
    'an epoch lacks': (LOG, lambda p: p.write_text(p.read_text().partition('\n')[2]), 'not the epochs', 2),
    'it is unfinished': (LOG, text('"epochs": 2', '"epochs": 3'), 'ends after epoch 2 of 3', 2),
    'the tree was dirty': (LOG, text(COMMIT, COMMIT + '-dirty'), 'not one without changes', 1),
    'the seed changes': (LOG, text('"seed": 1', '"seed": 2', 1), 'seed is missing, or not the same', 1),
    'another learning rate': (LOG, text('"lr_epoch": [0.05', '"lr_epoch": [0.06'), 'lr_epoch of epoch 1', 1),
    'an accuracy out of range': (LOG, text('"train_acc": ', '"train_acc": 1'), 'train_acc of epoch', 1),
    'a NaN': (LOG, text('"train_loss": ', '"train_loss": null, "train_x": '), 'train_loss of epoch 1', 1),
    'a NaN that is none in JSON': (LOG, text('"test_loss": ', '"test_loss": NaN, "test_x": '), 'is nan', 2),
    'an infinite loss': (LOG, text('"train_loss": ', '"train_loss": Infinity, "train_x": '), 'is inf', 1),
    'an empty log': (LOG, lambda p: p.write_text(''), 'its 0 lines are not the epochs', 3),
    'a list as a text': (LOG, text('"epoch_step": [2]', '"epoch_step": "[2]"'), 'TypeError', 1),
    'another last line': (MODEL, lambda p: other_record(p.parent), 'does not belong to the last line', 2),
    'other weights': (MODEL, lambda p: other_weight(p.parent), 'its weights have test loss', 2),
    'a damaged checkpoint': (MODEL, lambda p: p.write_bytes(p.read_bytes()[:-99]), 'complete', 2),
    'another checksum': (README, lambda p: p.write_text(re.sub('`[0-9a-f]{9}', '`abcabcabc', p.read_text())),
                         'the sha256 of a/run is different', 1),
    'another error in the table of weights': (README, text('error ', 'error 1'), 'the log of a/run says', 1),
    'another figure in a table': ('README.md', text('| 2 ', '| 3 '), '--update', 1),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault(made, tmp_path, name):
    path, change, words, n = FAULTS[name]
    shutil.copytree(made, tmp_path / 'p')
    change(tmp_path / 'p' / path)
    status, faults, out = checked(tmp_path / 'p')
    assert status == 1 and len(faults) == n and any(words in fault for fault in faults), out
    assert out.endswith(f'3 checked, {n} faults\n')


def test_weights_without_a_row(made, tmp_path):
    shutil.copytree(made, tmp_path / 'p')
    shutil.copytree(made / 'results' / 'a' / 'run', tmp_path / 'p' / 'results' / 'b')
    status, faults, _ = checked(tmp_path / 'p')
    assert status == 1 and len(faults) == 1 and 'a/run, b' in faults[0]


@pytest.mark.parametrize('arguments', [
    ['--check', 'results', 'logs'], ['--check', 'results', '--csv', 'a.csv'], ['results', '--dataroot', 'x'],
    ['--check', 'nowhere'], ['--check', 'empty']])
def test_mistakes(tmp_path, arguments):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'empty').mkdir()
    done = call(report, *arguments, cwd=tmp_path)
    assert done.status == 2 and len(done.err.splitlines()) == 1 and not done.out


# --- what is published here ---------------------------------------------------------------------------------


def test_results():
    """All of results/, save that the weights of CIFAR are evaluated in the next test only."""
    status, faults, out = checked(ROOT)
    assert (status, faults) == (0, []), out
    assert len(re.findall(r'^results/.*: \d+ epochs, ', out, re.MULTILINE)) == len(
        list((ROOT / 'results').rglob('log.txt'))) > 20
    for log in (ROOT / 'results').rglob('log.txt'):
        assert not re.search(r'"/|~/', log.read_text())  # no paths of the machine where it was made
    assert sum(p.stat().st_size for p in (ROOT / 'results').rglob('*.pt7')) < 8e6


def test_weights_of_cifar(shared):
    assert list(check._run(ROOT / 'results' / 'weights' / 'wrn_16_1' / 'at', str(shared / 'data')))[-1] == (
        'weights evaluated, test error 9.16')
