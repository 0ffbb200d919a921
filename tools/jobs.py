"""Runs of many commands: several at once, in stages, those that are done left out.

    PRINT=1 bash recipes/table1.sh | python -m tools.jobs --jobs 4 --gpus 0,1

Each line of the input is a command, `cifar.py --save logs/a --depth 16`; a line `wait` begins a new stage,
which starts when all runs before have ended well. What a run prints goes to logs/a.out. Stopped and started
again, the same lines go on where they were: `--resume auto` is added to each.
"""
import argparse
import contextlib
import fcntl
import io
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

import torch

import cifar
import imagenet
from inputs import cifar as data
from inputs import folders
from training import checkpoint, exits, options
from utils import InputError

SCRIPTS = {'cifar.py': cifar, 'imagenet.py': imagenet}


class Job(NamedTuple):
    """A command."""
    words: list[str]
    opt: argparse.Namespace

    @property
    def out(self) -> Path:
        """What the run prints, beside its folder."""
        return Path(f'{Path(self.opt.save)}.out')

    @property
    def command(self) -> str:
        return shlex.join(['python', *self.words])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Run the commands of the input, a line each; a line `wait` parts stages.')
    parser.add_argument('--jobs', type=options.positive_int, default=1, metavar='N',
                        help='how many run at once')
    parser.add_argument('--gpus', type=options.int_list, default='', metavar='0,1',
                        help='GPUs that runs take in turn; without it each run has the GPU of its --gpu_id')
    parser.add_argument('--parent', type=options.positive_int, metavar='PID',
                        help='stop when this process, which started this one, is gone')
    return parser.parse_args(arguments)


def main() -> None:
    opt = parse(sys.argv[1:])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # runs are forks of this process, in which its threads would be missing
    if opt.jobs > 1 and 'OMP_NUM_THREADS' not in os.environ:  # runs on one CPU share its cores
        threads = max(threads // opt.jobs, 1)
    gpus = visible(opt.gpus)
    stages = read(sys.stdin)
    left = [[job for job in stage if not is_done(job)] for stage in stages]
    n, n_left = (sum(map(len, parts)) for parts in (stages, left))
    check_data(job for stage in left for job in stage)
    print(f'{n - n_left} of {n} runs are done', flush=True)
    for stage in left:
        if status := work(stage, opt, gpus, threads):
            sys.exit(status)


# --- before anything starts --------------------------------------------------------------------------------


def read(commands: Iterable[str]) -> list[list[Job]]:
    """The stages, every command parsed as its script will do it."""
    stages, taken = [[]], set()
    for line in commands:
        try:
            script, *words = shlex.split(line) or ['wait']
        except ValueError as e:
            raise InputError(f'{line.strip()}: cannot be split into words ({e})') from None
        if [script, *words] == ['wait']:
            stages.append([])
            continue
        if script not in SCRIPTS:
            raise InputError(f'{line.strip()}: a line begins with {" or ".join(SCRIPTS)}, or is `wait`')
        arguments, said = ['--resume', 'auto', *words], io.StringIO()  # a --resume of its own comes later
        try:
            with contextlib.redirect_stderr(said):
                opt = SCRIPTS[script].parse(arguments)
        except SystemExit:
            why = said.getvalue().partition('error: ')[2].strip()
            raise InputError(f'{why}; in: {line.strip()}') from None
        if not opt.save:
            raise InputError(f'{line.strip()}: add --save, beside which the output goes')
        folder = os.path.abspath(opt.save)
        if folder in taken:
            raise InputError(f'{opt.save} is the folder of two runs: give each its own --save')
        taken.add(folder)
        stages[-1].append(Job([script, *arguments], opt))
    if not taken:
        raise InputError('the input has no command: write one a line')
    return stages


def is_done(job: Job) -> bool:
    """Whether nothing is left to do. The folder may hold no run, or one of the same options."""
    if job.opt.evaluate:
        said = lines(job.out)
        return f'$ {job.command}' in said and said[-1].startswith(f'{options.evaluated(job.opt)}: test loss ')
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        folder = checkpoint.Folder(job.opt)
    if notes.getvalue():  # a table must not mix runs of several schedules
        note = notes.getvalue().splitlines()[0].removeprefix('note: ')
        raise InputError(f'{job.opt.save} holds another run ({note}): give the options of then, or another '
                         'folder, to a recipe by LOGS=folder')
    if folder.state is None or folder.state['epoch'] < job.opt.epochs:
        return False
    folder.complete_log()
    return True


def visible(gpus: list[int]) -> list[str]:
    """GPUs by their names for CUDA_VISIBLE_DEVICES, of which one that is set already leaves some."""
    if 'CUDA_VISIBLE_DEVICES' not in os.environ:
        return [str(gpu) for gpu in gpus]
    names = [name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if name]
    if gpus and max(gpus) >= len(names):
        raise InputError(f'--gpus {max(gpus)}: CUDA_VISIBLE_DEVICES leaves {len(names)}, counted from 0')
    return [names[gpu] for gpu in gpus]


def check_data(jobs: Iterable[Job]) -> None:
    """Find each data set once: runs that start at once would all download it to the same place."""
    found = {(job.opt.dataset, getattr(job.opt, 'imagenetpath', None) or job.opt.dataroot) for job in jobs}
    for dataset, folder in sorted(found):
        if dataset in folders.DATASETS:
            folders.load(dataset, folder, train=False)
        elif dataset != 'shapes':
            data.load(dataset, folder, torch.device('cpu'))


def lines(path: Path) -> list[str]:
    """Those that are not empty."""
    text = path.read_text(errors='replace') if path.exists() else ''
    return [line for line in text.split('\n') if line.strip()]


# --- work --------------------------------------------------------------------------------------------------


def work(stage: list[Job], opt: argparse.Namespace, gpus: list[str], threads: int) -> int:
    """Run all of a stage; the largest status of those that failed, else 75 or 0.

    75: some were stopped by --max_hours. What runs say is told once.
    """
    fork = multiprocessing.get_context('fork')  # else a run begins with 6 seconds of imports
    waiting, places, running, told, worst = list(stage), list(range(opt.jobs)), {}, set(), 0
    try:
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(0), places.pop(0)
                job.out.parent.mkdir(parents=True, exist_ok=True)
                gpu = gpus[place % len(gpus)] if gpus else None
                process = fork.Process(target=run, args=(job, gpu, threads, os.getpid()))
                with warnings.catch_warnings():  # of forks beside threads, which main() has left idle
                    warnings.simplefilter('ignore', DeprecationWarning)
                    process.start()
                running[process.sentinel] = job, place, process, time.monotonic()
                print(f'{job.opt.save}: started', flush=True)
            for sentinel in connection.wait(list(running), timeout=1):
                job, place, process, start = running.pop(sentinel)
                process.join()
                places.append(place)
                status, why = ended(job, process.exitcode, time.monotonic() - start)
                # A run that is to go on later must not hide one that has failed.
                worst = max(worst, status, key=lambda s: (s not in (0, os.EX_TEMPFAIL), s))
                if why and why not in told:
                    print(why, file=sys.stderr, flush=True)
                told.add(why)
            if opt.parent and os.getppid() != opt.parent:
                sys.exit(128 + signal.SIGTERM)
        return worst
    finally:
        if running:  # by Ctrl-C, SIGTERM, or an error here
            for _, _, process, _ in running.values():
                process.terminate()
            for _, _, process, _ in running.values():
                process.join()
            print(f'runs stopped: {len(running)}; the same command goes on with them', file=sys.stderr)


def ended(job: Job, code: int, seconds: float) -> tuple[int, str]:
    """Tell how a run ended: its status, and why it failed, or ''."""
    if code:
        status = code if code > 0 else 128 - code
        what = 'stopped' if code == os.EX_TEMPFAIL else 'failed'
        print(f'{job.opt.save}: {what} after {seconds:.0f} s with status {status}, see {job.out}', flush=True)
        why = (lines(job.out) or [''])[-1]
        return status, why if code > 0 else f'{job.opt.save} was ended by signal {-code}'
    if job.opt.evaluate:
        result = lines(job.out)[-1]
    else:
        error = 100 - checkpoint.read_log(Path(job.opt.save, checkpoint.LOG))[-1]['test_acc']
        result = f'test error {error:.2f} %'
    print(f'{job.opt.save}: done in {seconds:.0f} s, {result}', flush=True)
    return 0, ''


def run(job: Job, gpu: str | None, threads: int, parent: int) -> None:
    """A run in a process of its own, as at the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the runner ends its runs
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    out = os.fdopen(os.open(job.out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 'w', buffering=1)
    fcntl.flock(out, fcntl.LOCK_EX)  # a run of a runner that was killed may be about to end
    for n in (1, 2):
        os.dup2(out.fileno(), n)
    sys.stdout = sys.stderr = out
    print('$', job.command)
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = gpu
    sys.argv = job.words
    exits.script(SCRIPTS[job.words[0]].main)


def end_with(parent: int) -> None:
    """End this process when its parent is gone, since another one may start on the same folder."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)  # for a step that does not return
    os._exit(128 + signal.SIGTERM)


if __name__ == '__main__':
    exits.script(main)
