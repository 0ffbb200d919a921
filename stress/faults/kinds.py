"""The faults: each function does runs harm and returns how many epochs were lost, and what was done."""
import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import cifar
import imagenet
from stress.faults.world import CIFAR, IMAGENET, Started, World, content, goes_on, one_sentence, sound, told
from tools import export

SIGNALS = {'SIGKILL': signal.SIGKILL, 'SIGTERM': signal.SIGTERM, 'Ctrl-C': signal.SIGINT}
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}



def by_signal(world: World, sign: int) -> tuple[int, str]:
    phase = world.rng.choice(['training', 'training', 'saving', 'saving', 'evaluating', 'exporting'])
    if phase in ('evaluating', 'exporting'):
        return reading(world, sign, phase)
    folder, prepare, when = world.copy(), None, 'at a random time'
    if phase == 'saving':
        when, prepare = world.hook(lambda: os.kill(os.getpid(), sign))
    started = Started(folder, cifar, CIFAR, prepare)
    if phase == 'training':
        world.moment(world.seconds)
        started.send(sign)
    done = started.end()
    assert done.status in (STATUS[sign], 0), done
    if done.status in (130, 143) and (done.err or done.out):
        one_sentence(done, 'resume with: python cifar.py')
    lost = sound(folder, done.out)
    goes_on(world, folder)
    return lost, f'{phase}, {when}'


def reading(world: World, sign: int, phase: str) -> tuple[int, str]:
    """Evaluating and exporting change nothing, and can be done again."""
    folder = world.copy(world.whole['cifar'])
    before = content(folder)
    script, words = (export, ['run', 'net.pth']) if phase == 'exporting' else (
        cifar, [*CIFAR[:4], '--evaluate', '--student_params', 'run'])
    started = Started(folder, script, words)
    world.moment(0.3)
    started.send(sign)
    done = started.end()
    assert done.status in (STATUS[sign], 0), done
    after = content(folder)
    made = after.pop('net.pth', None)
    assert after == before
    (folder / 'net.pth').unlink(missing_ok=True)
    again = Started(folder, script, words).end()
    assert again.status == 0, again
    if phase == 'exporting':
        assert made in (None, (folder / 'net.pth').read_bytes()), 'half an export'
    return 0, phase


def paused(world: World) -> tuple[int, str]:
    folder = world.copy()
    started = Started(folder, cifar, CIFAR)
    for _ in range(2):
        world.moment(world.seconds / 2)
        started.send(signal.SIGSTOP)
        world.moment(0.2)
        started.send(signal.SIGCONT)
    assert started.end().status == 0
    goes_on(world, folder)
    return 0, ''


def full_disk(world: World) -> tuple[int, str]:
    """By a limit on the size of a file, from the first epoch or from the third on."""
    folder = world.copy(world.rng.choice([None, world.half]))
    limit = world.rng.randrange((world.whole['cifar'] / 'run' / 'model.pt7').stat().st_size)

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = Started(folder, cifar, CIFAR, prepare).end()
    assert done.status == 2, done
    one_sentence(done, 'could not save epoch', 'cannot write')
    lost = sound(folder, '')
    goes_on(world, folder)
    return lost, f'{limit} bytes'


def full_file_system(world: World) -> tuple[int, str]:
    """A small tmpfs, filled up but for some room. Root alone can mount it; others get a limit on files."""
    folder = world.copy(world.half)
    room = world.rng.randrange(0, 160_000)
    (folder / 'disk').mkdir()
    mounted = os.system(f'mount -t tmpfs -o size=1m tmpfs {folder}/disk 2>/dev/null') == 0
    try:
        if not mounted:
            lost, limit = full_disk(world)
            return lost, f'no tmpfs, but a limit of {limit}'
        shutil.copytree(folder / 'run', folder / 'disk' / 'run')
        with contextlib.suppress(OSError), open(folder / 'disk' / 'filler', 'wb', buffering=0) as filler:
            used = sum(p.stat().st_size for p in (folder / 'disk' / 'run').iterdir())
            filler.write(bytes(max(0, 2**20 - used - room)))
        words = [*CIFAR, '--save', 'disk/run']
        done = Started(folder, cifar, words).end()
        assert done.status in (0, 2), done
        if done.status:
            one_sentence(done, 'could not save epoch', 'cannot write')
        shutil.rmtree(folder / 'run')
        shutil.copytree(folder / 'disk' / 'run', folder / 'run')
    finally:
        if mounted:
            os.system(f'umount {folder}/disk')
    lost = sound(folder, done.out)
    goes_on(world, folder)
    return lost, f'{room} bytes left'


def read_only(world: World) -> tuple[int, str]:
    """Of a user who may read alone; root, whom nothing stops, becomes another."""
    folder = world.copy(world.half)
    before = content(folder)
    paths = [folder, folder / 'run', *(folder / 'run').iterdir()]
    for path in paths:
        path.chmod(0o555)

    def prepare() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
    done = Started(folder, cifar, CIFAR, prepare).end()
    for path in paths:
        path.chmod(0o755)
    assert done.status == 2 and content(folder) == before, done
    one_sentence(done, 'cannot write')
    goes_on(world, folder)
    return 0, ''


def clock_back(world: World) -> tuple[int, str]:
    """By hours, again and again."""
    folder = world.copy()
    jump = world.rng.randrange(1, 10)

    def prepare() -> None:
        real, calls = time.time, iter(range(10**9))
        time.time = lambda: real() - 3600 * (next(calls) // jump)
        time.time_ns = lambda: int(1e9 * time.time())
    assert Started(folder, cifar, CIFAR, prepare).end().status == 0
    goes_on(world, folder)
    return 0, ''


def cut_log(world: World) -> tuple[int, str]:
    folder = world.copy(world.half)
    log = folder / 'run' / 'log.txt'
    n = world.rng.randrange(log.stat().st_size)
    os.truncate(log, n)
    n_whole = len(log.read_text().split('\n')) - 1
    done = goes_on(world, folder)
    assert ('lacks the lines of 1 epochs' in done.err) == (n_whole == 0), done.err
    return 0, f'at byte {n}'


def cut_checkpoint(world: World) -> tuple[int, str]:
    folder = world.copy(world.half)
    model = folder / 'run' / 'model.pt7'
    n = 4096 * world.rng.randrange(model.stat().st_size // 4096 + 1)
    os.truncate(model, n)
    return damaged(world, folder), f'at byte {n}'


def flipped(world: World) -> tuple[int, str]:
    folder = world.copy(world.half)
    model = folder / 'run' / 'model.pt7'
    whole = bytearray(model.read_bytes())
    n = world.rng.randrange(len(whole))
    whole[n] ^= 1 << world.rng.randrange(8)
    model.write_bytes(whole)
    return damaged(world, folder), f'byte {n}'


def damaged(world: World, folder: Path) -> int:
    """The damage is told, or is none; with the checkpoint brought back the run goes on."""
    before = content(folder)
    done = Started(folder, cifar, CIFAR).end()
    if done.status:
        assert done.status == 2 and content(folder) == before, done
        one_sentence(done, 'model.pt7')
        shutil.copy(world.half / 'run' / 'model.pt7', folder / 'run')
    goes_on(world, folder)
    return 0


def two_runs(world: World) -> tuple[int, str]:
    folder = world.copy(world.rng.choice([None, world.half]))
    first = Started(folder, cifar, CIFAR)
    world.moment(world.seconds)
    (twin := folder.with_name(f'{folder.name}.twin')).symlink_to(folder)
    second = Started(twin, cifar, CIFAR)
    ends = [second.end(), first.end()]
    assert 0 in [done.status for done in ends], ends
    for done in ends:
        if done.status:
            assert done.status == 2, done
            one_sentence(done, 'in use by another run', 'another run has written')
    both = told(ends[0].out + ends[1].out)
    assert len(both) == len(set(both)), f'both runs did epochs: {both}'
    lost = sound(folder, ends[0].out + ends[1].out)
    goes_on(world, folder)
    return lost, ''


def worker_killed(world: World) -> tuple[int, str]:
    folder = world.copy()
    started = Started(folder, imagenet, IMAGENET)
    world.moment(world.seconds)
    for task in Path(f'/proc/{started.pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for pid in task.read_text().split():
                if b'git' not in Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')[0]:
                    os.kill(int(pid), signal.SIGKILL)
    done = started.end()
    assert done.status in (0, 2), done
    if done.status:
        one_sentence(done, 'a process that reads images was killed')
    lost = sound(folder, done.out)
    goes_on(world, folder, imagenet, IMAGENET)
    return lost, ''


def no_memory(world: World) -> tuple[int, str]:
    """By a limit on the address space, a little above what is taken already."""
    folder = world.copy(world.rng.choice([None, world.half]))
    more = world.rng.randrange(0, 24 * 2**20)

    def prepare() -> None:
        taken = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, taken + more))
    done = Started(folder, cifar, CIFAR, prepare).end()
    assert done.status in (0, 2), done
    if done.status:
        one_sentence(done, '--batch_size 16', 'give smaller batches', 'could not save epoch')
    lost = sound(folder, done.out)
    goes_on(world, folder)
    return lost, f'{more // 2**20} MB more'


FAULTS: dict[str, Callable[[World], tuple[int, str]]] = {
    **{name: (lambda world, sign=sign: by_signal(world, sign)) for name, sign in SIGNALS.items()},
    'SIGSTOP and SIGCONT': paused, 'file-size limit': full_disk, 'full disk, a tmpfs': full_file_system,
    'read-only folder': read_only, 'clock jumping back': clock_back, 'log cut in mid-line': cut_log,
    'checkpoint cut at 4 KB': cut_checkpoint, 'flipped bit in a checkpoint': flipped,
    'two runs on one folder': two_runs, 'worker killed': worker_killed, 'out of memory': no_memory}
