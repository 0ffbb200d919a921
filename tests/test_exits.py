"""A script as a process: its streams, and the commit that it logs."""
import functools
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from helpers import ROOT, SMALL, log_of
from training import exits

CPU = torch.device('cpu')


# --- streams that nobody reads ---------------------------------------------------------------------------


def shell(tmp_path, small, redirections, *arguments, **variables):
    """cifar.py in bash, within braces that the redirections close."""
    command = shlex.join([sys.executable, str(ROOT / 'cifar.py'), *map(str, arguments)])
    return subprocess.run(
        ['bash', '-c', f'{{ {command} {redirections}'], cwd=tmp_path, capture_output=True, timeout=300,
        env=os.environ | {'PYTHONPATH': small, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': ''} | variables)


@pytest.mark.parametrize('redirections', [
    '2>&1; echo $? >status; } | head -1', '2>&-; echo $? >status; }', '>&- 2>&- <&-; echo $? >status; }'])
def test_a_run_does_not_need_its_streams(tmp_path, small, redirections):
    """Its first line finds a reader at most. The numbers of closed files go to none of its own."""
    done = shell(tmp_path, small, redirections, *SMALL, '--epochs', 3, '--save', 'run', '--nthread', 1)
    assert (tmp_path / 'status').read_text() == '0\n'
    assert len(log_of(tmp_path / 'run')) == 3
    assert (tmp_path / 'run' / '.lock').read_text().count('\n') == 1
    assert b'rror' not in done.stderr
    assert (b'epoch 1/' in done.stdout or b'note' in done.stdout) == (not redirections.startswith('>&-'))


def test_a_full_disk_is_an_error_of_stdout(tmp_path, small):
    done = shell(tmp_path, small, '>/dev/full; echo $? >status; }', *SMALL, '--epochs', 3, '--save', 'run')
    assert (tmp_path / 'status').read_text() == '2\n'
    line, = done.stderr.decode().splitlines()
    assert 'No space left' in line and line.endswith('--save run --resume auto')
    done = shell(tmp_path, small, '>/dev/full; echo $? >status; }', *SMALL, '--evaluate', '--save', 'run')
    assert (tmp_path / 'status').read_text() == '2\n' and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('name', ['\xe9l\xe8ve', os.fsdecode(b'\xff')])
def test_names_that_stdout_cannot_spell(home, tmp_path, small, name):
    """In the encoding of a terminal, or in no encoding: the name of a file may be any bytes."""
    shutil.copytree(home / 'logs' / 'teacher', tmp_path / name)
    done = shell(tmp_path, small, '; echo $? >status; }', *SMALL, '--evaluate', '--student_params', name,
                 PYTHONIOENCODING='ascii')
    assert (tmp_path / 'status').read_text() == '0\n' and done.stderr == b''
    assert done.stdout.startswith(ascii(name)[1:-1].encode() + b': WRN')


# --- provenance ------------------------------------------------------------------------------------------


def run_git(folder, *arguments):
    env = {name: value for name, value in os.environ.items() if name not in ('GIT_DIR', 'GIT_WORK_TREE')}
    return subprocess.run(['git', '-C', folder, '-c', 'user.name=x', '-c', 'user.email=x@localhost',
                           '-c', 'commit.gpgsign=false', *arguments],
                          check=True, capture_output=True, text=True, env=env).stdout.strip()


def committed(folder) -> str:
    """The commit of a new repository that holds all of a folder."""
    run_git(folder, 'init')
    run_git(folder, 'add', '.')
    run_git(folder, 'commit', '-m', 'x', '--no-verify')
    commit = run_git(folder, 'rev-parse', 'HEAD')
    assert len(commit) == 40
    return commit


@pytest.mark.parametrize('named', ['not', 'by GIT_DIR'])
def test_an_archive_unpacked_in_another_repository_has_no_commit(tmp_path, monkeypatch, named):
    """Whether git would find that repository by itself, or by the environment, as in a hook."""
    (tmp_path / 'code/training').mkdir(parents=True)
    (tmp_path / 'code/training/exits.py').write_text('1\n')
    committed(tmp_path)
    if named == 'by GIT_DIR':
        monkeypatch.setenv('GIT_DIR', str(tmp_path / '.git'))
        monkeypatch.setenv('GIT_WORK_TREE', str(tmp_path))
    monkeypatch.setattr(exits, '__file__', str(tmp_path / 'code/training/exits.py'))
    assert exits.provenance(CPU)['commit'] is None
    monkeypatch.setattr(exits, '__file__', str(tmp_path / 'training/exits.py'))
    assert exits.provenance(CPU)['commit'] == run_git(tmp_path, 'rev-parse', 'HEAD')


def test_provenance(tmp_path, monkeypatch):
    (tmp_path / 'training').mkdir()
    code = tmp_path / 'training/exits.py'
    code.write_text('1\n')
    monkeypatch.setattr(exits, '__file__', str(code))
    git = functools.partial(run_git, tmp_path)
    found = exits.provenance(CPU)
    assert found['commit'] is None
    assert found['torch'] == torch.__version__
    assert found['python'].split('.')[:2] == [str(v) for v in sys.version_info[:2]]
    for package in ('torchvision', 'numpy'):
        assert __import__(package).__version__.startswith(found[package])  # + how it was built
    commit = committed(tmp_path)
    assert exits.provenance(CPU)['commit'] == commit
    (tmp_path / 'own run.txt').write_text('untracked')
    assert exits.provenance(CPU)['commit'] == commit
    git('worktree', 'add', tmp_path / 'other')
    monkeypatch.setattr(exits, '__file__', str(tmp_path / 'other/training/exits.py'))
    code.write_text('2\n')
    assert exits.provenance(CPU)['commit'] == commit
    monkeypatch.setattr(exits, '__file__', str(code))
    assert exits.provenance(CPU)['commit'] == commit + '-dirty'
    monkeypatch.setenv('PATH', '')
    assert exits.provenance(CPU)['commit'] is None
