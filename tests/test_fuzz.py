"""Hostile and broken files: what was found once, what was thought of, and some at random; see stress/fuzz."""
import os
import subprocess
import sys

import pytest

from stress.fuzz.__main__ import CORPUS, case_of, kept
from stress.fuzz.sandbox import Target, run
from stress.fuzz.targets import TARGETS
from utils import InputError

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads memory from /proc')
AT_RANDOM = 50  # of each target


def ends(target: Target, cases: dict[str | int, bytes]) -> dict[str | int, str]:
    """What is wrong, by case."""
    return {case: problem for case, problem in run(target, lambda case: cases[case], list(cases)) if problem}


@pytest.mark.parametrize('target', TARGETS, ids=lambda target: target.name)
def test_what_was_found_once(target):
    found = {path.name: kept(path) for path in sorted((CORPUS / target.name).iterdir())}
    assert found and not ends(target, found)


@pytest.mark.parametrize('target', TARGETS, ids=lambda target: target.name)
def test_cases_at_random(target):
    assert not ends(target, {i: case_of(target, {}, 0, i) for i in range(AT_RANDOM)})


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.glob('*/*')) < 100_000
    assert {path.name for path in CORPUS.iterdir()} == {target.name for target in TARGETS}


def misbehaves(case: bytes, folder) -> None:
    """What a reader must not do, by name."""
    kind = case.decode()
    if kind == 'hang':
        open('../pipe').close()
    elif kind == 'memory':
        bytearray(b'x' * 240_000_000)
    elif kind == 'refused':
        try:
            bytearray(2**50)
        except MemoryError:
            raise InputError('it is damaged') from None
    elif kind == 'program':
        subprocess.run(['true'], check=True)
    elif kind == 'write':
        (folder / '..' / 'canary').write_text('x')
    elif kind == 'read':
        open('/etc/hostname').close()
    elif kind == 'talk':
        print('Corrupt data', file=sys.stderr, flush=True)
    elif kind == 'lines':
        raise KeyError('two\nlines')
    elif kind == 'exit':
        os._exit(3)
    elif kind == 'empty':
        raise InputError('')
    elif kind == 'fine':
        raise InputError('it is damaged: get it again')


def test_the_sandbox_tells_all_of_it(monkeypatch):
    monkeypatch.setattr('stress.fuzz.sandbox.HANGS', 5)
    # First memory: while a case hangs, the kernel may take pages back, and hide what the next case takes.
    words = {'memory': 'takes', 'hang': 'hangs', 'refused': 'too much memory', 'program': 'subprocess.Popen',
             'write': 'write to', 'read': 'open /etc/hostname', 'talk': 'says on stderr', 'lines': 'KeyError',
             'exit': 'ends the process', 'empty': 'message of 0', 'fine': '', 'nothing': ''}
    target = Target('x', dict, lambda rng: b'', misbehaves)
    for kind, problem in run(target, str.encode, list(words)):
        assert words[kind] in problem and bool(problem) == bool(words[kind]), (kind, problem)
