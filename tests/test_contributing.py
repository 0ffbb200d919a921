"""'How to add a loss' of CONTRIBUTING.md, done as it says, in a copy of the repository."""
import os
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

from helpers import ROOT, THREADS, code_blocks, log_of

GUIDE = ROOT / 'CONTRIBUTING.md'
SMALL = ['--max_images', '40', '--batch_size', '8', '--lr', '0.01']  # added to each training
PYTEST = ['-m', 'pytest', '-n', '0', '-q', '-p', 'no:cacheprovider']


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """The repository with the guide's function, row and test."""
    folder = tmp_path_factory.mktemp('copy')
    for path in (*ROOT.glob('*.py'), ROOT / 'pyproject.toml'):
        shutil.copy(path, folder)
    for name in ('inputs', 'weights', 'training', 'tools', 'tests'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    function, row, test = (textwrap.dedent(block) for block in code_blocks(GUIDE, 'python'))
    with open(folder / 'utils.py', 'a') as file:
        file.write('\n\n' + function)
    with open(folder / 'tests' / 'test_utils.py', 'a') as file:
        file.write('\n\n' + test)
    text = (folder / 'method.py').read_text()
    begin, table, rest = text.partition('\nLOSSES = (\n')
    rows, end, rest = rest.partition('\n)\n')
    assert table and end
    rows = f'{rows}\n{textwrap.indent(row.rstrip(), 4 * " ")}'
    (folder / 'method.py').write_text(begin + table + rows + end + rest)
    return folder


def run(folder, *arguments):
    """A command in the copy; what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': str(THREADS), 'PYTHONPATH': str(folder), 'COLUMNS': '200'})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_guide(copy):
    """A teacher, and a student with the new loss, which has a row in the report."""
    lines = [line for block in code_blocks(GUIDE, 'sh') for line in block.splitlines()]
    *trainings, report = [shlex.split(line)[1:] for line in lines]
    for command in trainings:
        run(copy, *command, *SMALL)
    first, last = log_of(copy / 'logs' / 'mean')
    assert first['mean_beta'] == 1
    for record in (first, last):
        assert len(record['mean_losses']) == 3 and all(mean > 0 for mean, _ in record['mean_losses'])
    assert 'mean_losses' not in log_of(copy / 'logs' / 'teacher')[-1]
    rows = [[cell.strip() for cell in line.split('|')] for line in run(copy, *report).splitlines()]
    error = f'{100 - last["test_acc"]:.2f}'
    assert [row for row in rows if 'mean activations' in row and error in row]


def test_the_option_is_in_the_help(copy):
    found = run(copy, 'cifar.py', '--help')
    assert '--mean_beta' in found and 'weight of the loss on mean activations' in found


@pytest.mark.slow
def test_the_new_test_and_the_old_ones_pass(copy):
    run(copy, *PYTEST, 'tests/test_utils.py', 'tests/test_options.py', '-k',
        'mean_loss or published_defaults')
    run(copy, '-m', 'ruff', 'check', '--no-cache', 'utils.py', 'method.py', 'tests/test_utils.py')


def test_the_new_test_fails_on_a_broken_function(copy, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(copy, broken, ignore=shutil.ignore_patterns('logs', '__pycache__'))
    text = (broken / 'utils.py').read_text()
    changed = text.replace('full(y).mean((1, 2, 3))).square()', 'full(y).mean((1, 2, 3))).abs()')
    assert changed != text
    (broken / 'utils.py').write_text(changed)
    with pytest.raises(AssertionError, match='test_mean_loss'):
        run(broken, *PYTEST, 'tests/test_utils.py', '-k', 'mean_loss')
