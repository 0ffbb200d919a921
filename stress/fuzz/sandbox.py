"""Cases in a child process with limits, which says what each of them did that it must not.

    for i, problem in sandbox.run(target, make, range(100)): ...     # problem: '' for a good end
"""
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from utils import InputError

HANGS = 60  # seconds on the clock without an end
BATCH = 250  # cases in a child
SLACK = 512 << 20  # addresses that are taken without memory behind them
LONGEST = 10_000  # characters of a sentence, those that do not print escaped
# What a reader has no reason to do.
FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.startfile', 'pty.spawn',
             'subprocess.Popen', 'socket.', 'ctypes.dlopen', 'webbrowser.')
CHANGES = ('os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate',
           'os.chmod',
           'os.chown', 'shutil.')


class Target(NamedTuple):
    """What is fed with cases. All of them are bytes, so that a file can keep one."""
    name: str
    crafted: Callable[[], dict[str, bytes]]  # the worst that came to mind, by name
    draw: Callable[[Random], bytes]  # a case at random
    run: Callable[[bytes, Path], None]  # to feed a case, in an empty folder; AssertionError: it ended badly
    factor: int = 16  # bytes of memory that a byte of a case may take
    free: int = 64 << 20  # and that any may
    seconds: int = 10  # of computing


def budget(target: Target, case: bytes) -> int:
    """Bytes of memory that a case may take."""
    return target.free + target.factor * len(case)


def run(target: Target, make: Callable[[Any], bytes], cases: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    """Each of `cases`, of which `make` makes the bytes, and what is wrong about it, or ''."""
    start = 0
    while start < len(cases):
        some = cases[start:start + BATCH]
        n = 0
        for problem in _child(target, make, some):
            yield some[n], problem
            n += 1
        start += n


def _child(target: Target, make: Callable[[Any], bytes], cases: Sequence[Any]) -> Iterator[str]:
    """What is wrong about each case, of all or up to the first that ends the child."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings(action='ignore'):  # of threads, which hold no lock here
            pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(reading)
                _serve(target, make, cases, Path(folder).resolve(), writing)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading) as answers:
            for _ in cases:
                ready, *_ = select.select([answers], [], [], HANGS)
                line = answers.readline() if ready else ''
                if line:
                    yield json.loads(line)
                    continue
                if not ready:
                    os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                yield (f'hangs for {HANGS} s' if not ready else
                       f'ends the process ({status}): ' + Path(folder,
                                                               'stderr').read_text(errors='replace')[-300:])
                return
        os.waitpid(pid, 0)


def _serve(target: Target, make: Callable[[Any], bytes], cases: Sequence[Any], folder: Path,
           answers: int) -> None:
    outer = folder / 'outer'
    outer.mkdir()
    os.mkfifo(outer / 'pipe')  # whoever opens it waits for ever
    errors = os.open(folder / 'stderr', os.O_RDWR | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = (open(n, 'w', buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)  # those of the parent are not here
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter('ignore', kind)  # as at a command line
    watch = Watch(folder)
    before = _outside(outer)
    for case in cases:
        content = make(case)
        inner = outer / 'inner'
        inner.mkdir()
        os.chdir(inner)
        problem = _one(target, content, inner, watch)
        os.chdir(folder)
        if not problem and watch.seen:
            problem = f'does {watch.seen[0]}'
        if new := {*_outside(outer)} - {*before}:
            problem = problem or 'writes outside of its folder'
            for name in new:
                os.remove(outer / name)
        said = os.lseek(errors, 0, os.SEEK_END)
        text = os.pread(errors, said, 0).decode(errors='replace')
        if not problem and (lines := [line for line in text.splitlines() if not line.startswith('note: ')]):
            problem = f'says on stderr: {lines[0][:300]}'
        os.ftruncate(errors, 0)
        shutil.rmtree(inner)
        os.write(answers, json.dumps(problem).encode() + b'\n')


def _one(target: Target, content: bytes, inner: Path, watch: 'Watch') -> str:
    Path('/proc/self/clear_refs').write_text('5')  # VmHWM begins anew
    start, resident = time.process_time(), _memory('VmRSS')
    resource.setrlimit(resource.RLIMIT_AS, (_memory('VmSize') + budget(target, content) + SLACK,
                                            resource.RLIM_INFINITY))
    try:
        with watch:
            target.run(content, inner)
        problem = ''
    except InputError as e:
        problem = _sentence(str(e)) or _refused_memory(e)
    except AssertionError as e:
        problem = str(e) or _where(e)
    except BaseException as e:
        problem = f'raises {type(e).__name__}: {str(e)[:200]} {_where(e)}'
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    new = _memory('VmHWM')
    if not problem and new - resident > budget(target, content):
        problem = f'takes {new - resident >> 20} MiB for {len(content)} bytes'
    if not problem and (took := time.process_time() - start) > target.seconds:
        problem = f'takes {took:.0f} s'
    return problem


def _sentence(text: str) -> str:
    if not text or len(text) > LONGEST:
        return f'ends in a message of {len(text)} characters: {text[:100]}'
    return '' if text.isprintable() else f'ends in no sentence: {text[:300]!a}'


def _refused_memory(e: BaseException | None) -> str:
    """Whether an error came of memory that the limit refused: without it, it would have been taken."""
    while e:
        if isinstance(e, MemoryError) or re.search(r"can't allocate|not enough memory|bad_alloc", str(e)):
            return f'asks for too much memory: {type(e).__name__} {str(e)[:100]} {_where(e)}'
        e = e.__cause__ or e.__context__
    return ''


def _where(e: BaseException) -> str:
    frames = traceback.extract_tb(e.__traceback__)
    ours = [frame for frame in frames if 'site-packages' not in frame.filename] or frames
    return f'at {Path(ours[-1].filename).name}:{ours[-1].lineno}' if ours else ''


def _memory(name: str) -> int:
    with open('/proc/self/status') as file:
        return int(re.search(rf'{name}:\s*(\d+) kB', file.read())[1]) << 10


def _outside(outer: Path) -> list[str]:
    return sorted(name for name in os.listdir(outer) if name != 'inner')


class Watch:
    """Hears, by Python's audit events, of programs, sockets, and files outside of a folder."""

    def __init__(self, folder: Path):
        self.inner = str(folder / 'outer' / 'inner')
        readable = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), '/proc/', '/dev/null',
                    '/dev/urandom',
                    '/sys/', '/usr/lib', '/usr/share', '/dev/shm/',
                    str(Path(__file__).resolve().parents[2]))
        self.readable = tuple({*readable, *(os.path.realpath(p) for p in readable)})
        self.on, self.seen = False, []
        sys.addaudithook(self.hear)

    def __enter__(self) -> None:
        self.on, self.seen = True, []

    def __exit__(self, *_) -> None:
        self.on = False

    def hear(self, event: str, values: tuple) -> None:
        if not self.on:
            return
        if event.startswith(FORBIDDEN):
            self.seen.append(f'{event}{values!r:.200}')
        elif event == 'open' and not isinstance(values[0], int) and values[0] != os.devnull:
            writes = values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if values[2] else False
            # A link in a folder of images is its owner's way to put images there.
            path = (os.path.realpath if writes else os.path.abspath)(os.fsdecode(values[0]))
            if not path.startswith(self.inner) and (writes or not path.startswith(self.readable)):
                self.seen.append(f'{"write to" if writes else "open"} {path}')
        elif event.startswith(CHANGES):
            paths = [os.path.realpath(os.fsdecode(v)) for v in values if isinstance(v, str | bytes)]
            if any(not path.startswith(self.inner) for path in paths[event == 'os.symlink':2]):
                self.seen.append(f'{event}{values!r:.200}')
