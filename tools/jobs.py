"""Runs of many commands, several at a time; a run waits for its teacher, and finished runs are left out.

    PRINT=1 bash recipes/table1.sh | python -m tools.jobs --jobs 4 --gpus 0,1

Each line of the input is a command, `cifar.py --save logs/a --depth 16`. If its teacher (or other weights) is
the run of an earlier line, it starts when that run has finished, and it does not start if that run failed.
The output of a run goes to logs/a.out. `--resume auto` is added to each command: give the same lines again to
resume what was stopped.
"""
import argparse
import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import cifar
import imagenet
from inputs import cifar as data
from inputs import folders
from training import checkpoint, exits, options
from utils import InputError

SCRIPTS = {'cifar.py': cifar, 'imagenet.py': imagenet}
HERE = Path(__file__).resolve().parents[1]
WEIGHTS = ('teacher_id', 'teacher_params', 'finetune', 'student_params')  # options that may name a run


class Job(NamedTuple):
    """A command."""
    words: list[str]
    opt: argparse.Namespace
    after: frozenset[str]  # folders of the runs that must have finished before it starts

    @property
    def folder(self) -> str:
        return os.path.abspath(self.opt.save)

    @property
    def out(self) -> Path:
        """The output of the run, next to its folder."""
        return Path(f'{Path(self.opt.save)}.out')

    @property
    def command(self) -> str:
        return shlex.join(['python', *self.words])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Run the commands of the input, one on each line.')
    parser.add_argument('--jobs', type=options.positive_int, default=1, metavar='N',
                        help='number of runs at the same time')
    parser.add_argument('--gpus', type=options.int_list, default='', metavar='0,1',
                        help='GPUs that runs use in turn (default: the --gpu_id of each run)')
    parser.add_argument('--parent', type=options.positive_int, metavar='PID',
                        help='stop when this process, which started this one, has ended')
    return parser.parse_args(arguments)


def main() -> None:
    opt = parse(sys.argv[1:])
    gpus = visible(opt.gpus)
    jobs = read(sys.stdin)
    left = [job for job in jobs if not is_done(job)]
    check_data(left)
    print(f'{len(jobs) - len(left)} of {len(jobs)} runs are done', flush=True)
    runner = Runner(left, opt.jobs, gpus)
    try:
        while runner.step():
            time.sleep(0.1)
            if opt.parent and os.getppid() != opt.parent:
                sys.exit(128 + signal.SIGTERM)
    finally:
        runner.stop()
    if runner.status:
        sys.exit(runner.status)


# --- before anything starts --------------------------------------------------------------------------------


def read(commands: Iterable[str]) -> list[Job]:
    """The commands, each parsed by its script."""
    jobs: dict[str, Job] = {}
    for line in filter(str.strip, commands):
        try:
            script, *words = shlex.split(line)
        except ValueError as e:
            raise InputError(f'{line.strip()}: cannot be split into words ({e})') from None
        if script not in SCRIPTS:
            raise InputError(f'{line.strip()}: a line begins with {" or ".join(SCRIPTS)}')
        arguments = ['--resume', 'auto', *words]  # a --resume in the command comes later and counts
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                opt = SCRIPTS[script].parse(arguments)
            except SystemExit:
                why = said.getvalue().partition('error: ')[2].strip() or 'this is not a run'
                raise InputError(f'{why}; in: {line.strip()}') from None
        if opt.list_groups:
            raise InputError(f'this is not a run; in: {line.strip()}')
        if not opt.save:
            raise InputError(f'{line.strip()}: add --save, next to which the output goes')
        job = Job([script, *arguments], opt, frozenset(named(opt) & jobs.keys()))
        if job.folder in jobs:
            raise InputError(f'{opt.save} is the folder of two runs: give each its own --save')
        jobs[job.folder] = job
    if not jobs:
        raise InputError('the input has no command: write one on each line')
    return list(jobs.values())


def named(opt: argparse.Namespace) -> set[str]:
    """The folders of runs that the options may name as weights."""
    names = [getattr(opt, option, '').removesuffix(f'/{checkpoint.MODEL}') for option in WEIGHTS]
    return {os.path.abspath(path) for name in names if name for path in (name, f'logs/{name}')}


def is_done(job: Job) -> bool:
    """Whether nothing is left to do. The folder may hold no run, or one with the same options."""
    if job.opt.evaluate:
        said = lines(job.out)
        return f'$ {job.command}' in said and said[-1].startswith(f'{options.evaluated(job.opt)}: test loss ')
    folder = checkpoint.Folder(job.opt)
    if changes := folder.changes(job.opt):  # a table must not mix runs of several schedules
        raise InputError(f'{job.opt.save} holds a different run ({changes[0]}): give the options of that '
                         'run, or another folder (for a recipe, LOGS=folder)')
    if folder.state is None or folder.state['epoch'] < job.opt.epochs:
        return False
    folder.complete_log()
    return True


def visible(gpus: list[int]) -> list[str]:
    """The names of GPUs for CUDA_VISIBLE_DEVICES; if it is set, numbers count the GPUs in it."""
    if not os.environ.get('CUDA_VISIBLE_DEVICES'):
        return [str(gpu) for gpu in gpus]
    names = os.environ['CUDA_VISIBLE_DEVICES'].split(',')
    if gpus and max(gpus) >= len(names):
        raise InputError(f'--gpus {max(gpus)}: CUDA_VISIBLE_DEVICES has {len(names)} GPUs, counted from 0')
    return [names[gpu] for gpu in gpus]


def check_data(jobs: Iterable[Job]) -> None:
    """Load each data set once: runs that start together would all download it to the same place."""
    found = {(job.opt.dataset, getattr(job.opt, 'imagenetpath', None) or job.opt.dataroot) for job in jobs}
    for dataset, folder in sorted(found):
        if dataset in folders.DATASETS:
            folders.load(dataset, folder, train=False)
        elif dataset != 'shapes':
            data.load(dataset, folder, torch.device('cpu'))


def lines(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    text = path.read_text(errors='replace') if path.exists() else ''
    return [line for line in text.split('\n') if line.strip()]


# --- work --------------------------------------------------------------------------------------------------


class Runner:
    """Runs at work, at most `n_places` at the same time, on `gpus` in turn.

    status: the largest of the runs that failed, else 75 if --max_hours stopped some, else 0.
    """

    def __init__(self, jobs: list[Job], n_places: int, gpus: list[str]) -> None:
        self.waiting, self.n_places, self.status = list(jobs), n_places, 0
        self.free = list(range(n_places))  # places
        self.gpus = [{'CUDA_VISIBLE_DEVICES': gpu} for gpu in gpus] or [{}]
        self.running: dict[subprocess.Popen, tuple[Job, int, float]] = {}  # with place and start
        self.lost: dict[str, str] = {}  # --save of the runs that failed or were not started, by folder
        self.seconds: list[float] = []  # of the runs that ended
        self.environment = {**os.environ, exits.PARENT: str(os.getpid())}  # runs end with this process
        if n_places > 1:  # runs on one CPU share its cores
            self.environment.setdefault('OMP_NUM_THREADS', str(max(torch.get_num_threads() // n_places, 1)))

    def step(self) -> bool:
        """Start what can start and see what has ended; whether anything is left to do."""
        for job in list(self.waiting):
            ahead = {other.folder for other in (*self.waiting, *(job for job, *_ in self.running.values()))}
            if lost := job.after & self.lost.keys():
                self.waiting.remove(job)
                self.lost[job.folder] = job.opt.save
                print(f'{job.opt.save}: not started, {self.lost[min(lost)]} has not finished', flush=True)
            elif self.free and not job.after & ahead:
                self.waiting.remove(job)
                self.start(job, self.free.pop(0))
        for process in [process for process in self.running if process.poll() is not None]:
            job, place, begun = self.running.pop(process)
            self.free.append(place)
            self.seconds.append(time.monotonic() - begun)
            how = self.failed(job, process.returncode) if process.returncode else result(job)
            print(f'{job.opt.save}: {how}, after {self.seconds[-1]:.0f} s{self.left()}', flush=True)
        return bool(self.waiting or self.running)

    def start(self, job: Job, place: int) -> None:
        job.out.parent.mkdir(parents=True, exist_ok=True)
        script, *arguments = job.words
        with open(job.out, 'a') as out:
            print('$', job.command, file=out, flush=True)
            process = subprocess.Popen(
                [sys.executable, os.path.relpath(HERE / script), *arguments], stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, env=self.environment | self.gpus[place % len(self.gpus)])
        self.running[process] = job, place, time.monotonic()
        print(f'{job.opt.save}: started', flush=True)

    def failed(self, job: Job, code: int) -> str:
        """How a run failed; prints its last line."""
        status = code if code > 0 else 128 - code
        self.lost[job.folder] = job.opt.save
        self.status = max(self.status, status, key=lambda s: (s not in (0, os.EX_TEMPFAIL), s))
        print((lines(job.out) or [''])[-1] if code > 0 else f'{job.opt.save} was ended by signal {-code}',
              file=sys.stderr, flush=True)
        what = 'stopped' if code == os.EX_TEMPFAIL else 'failed'
        return f'{what} with status {status} (see {job.out})'

    def left(self) -> str:
        """The number of runs that are left, and the time if each takes the mean of those that ended."""
        mean, now = sum(self.seconds) / len(self.seconds), time.monotonic()
        rest = len(self.waiting) * mean + sum(max(mean - (now - t), 0) for *_, t in self.running.values())
        n = len(self.waiting) + len(self.running)
        return f'; {n} left, about {tqdm.format_interval(rest / min(self.n_places, n))}' if n else ''

    def stop(self) -> None:
        """End what still runs, after Ctrl-C, SIGTERM or an error."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()
        if self.running:
            print(f'{len(self.running)} runs stopped; give the same command again to resume', file=sys.stderr)


def result(job: Job) -> str:
    if job.opt.evaluate:
        return lines(job.out)[-1]
    return f'test error {100 - checkpoint.read_log(Path(job.opt.save, checkpoint.LOG))[-1]["test_acc"]:.2f} %'


if __name__ == '__main__':
    exits.script(main)
