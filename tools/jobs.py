"""Runs of many commands: several at once, in stages, those that are done left out.

    PRINT=1 bash recipes/table1.sh | python -m tools.jobs --jobs 4 --gpus 0,1

Each line of the input is a command, `cifar.py --save logs/a --depth 16`. A run waits for its teacher, if that
is the run of an earlier line; a line `wait` begins a new stage, which starts when all runs before have ended
well. What a run prints goes to logs/a.out. Stopped and started again, the same lines resume where they were:
`--resume auto` is added to each.
"""
import argparse
import contextlib
import fcntl
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TextIO

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
    after: frozenset[str]  # folders of the runs that must have ended well before it starts

    @property
    def folder(self) -> str:
        return os.path.abspath(self.opt.save)

    @property
    def out(self) -> Path:
        """What the run prints, beside its folder."""
        return Path(f'{Path(self.opt.save)}.out')

    @property
    def command(self) -> str:
        return shlex.join(['python', *self.words])


class Started(NamedTuple):
    """A run that has been started."""
    job: Job
    place: int
    process: subprocess.Popen
    begun: float


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
    shared = {}
    if opt.jobs > 1 and 'OMP_NUM_THREADS' not in os.environ:  # runs on one CPU share its cores
        shared['OMP_NUM_THREADS'] = str(max(torch.get_num_threads() // opt.jobs, 1))
    gpus = visible(opt.gpus)
    jobs = [job for stage in read(sys.stdin) for job in stage]
    left = [job for job in jobs if not is_done(job)]
    check_data(left)
    print(f'{len(jobs) - len(left)} of {len(jobs)} runs are done', flush=True)
    if status := work(left, len(jobs), opt, gpus, shared):
        sys.exit(status)


# --- before anything starts --------------------------------------------------------------------------------


def read(commands: Iterable[str]) -> list[list[Job]]:
    """The stages, every command parsed as its script will do it."""
    stages: list[list[Job]] = [[]]
    before: set[str] = set()  # folders of the stages before
    taken: set[str] = set()
    for line in commands:
        try:
            script, *words = shlex.split(line) or ['wait']
        except ValueError as e:
            raise InputError(f'{line.strip()}: cannot be split into words ({e})') from None
        if [script, *words] == ['wait']:
            stages.append([])
            before |= taken
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
        stages[-1].append(Job([script, *arguments], opt, frozenset(before | named(opt) & taken)))
        taken.add(folder)
    if not taken:
        raise InputError('the input has no command: write one a line')
    return stages


def named(opt: argparse.Namespace) -> set[str]:
    """Folders that may be those of the runs whose weights a run begins with."""
    names = [getattr(opt, option, '').removesuffix(f'/{checkpoint.MODEL}') for option in WEIGHTS]
    return {os.path.abspath(path) for name in names if name for path in (name, f'logs/{name}')}


def is_done(job: Job) -> bool:
    """Whether nothing is left to do. The folder may hold no run, or one of the same options."""
    if job.opt.evaluate:
        said = lines(job.out)
        return f'$ {job.command}' in said and said[-1].startswith(f'{options.evaluated(job.opt)}: test loss ')
    folder = checkpoint.Folder(job.opt)
    if changes := folder.changes(job.opt):  # a table must not mix runs of several schedules
        raise InputError(f'{job.opt.save} holds another run ({changes[0]}): give the options of then, or '
                         'another folder, to a recipe by LOGS=folder')
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


def work(jobs: list[Job], n: int, opt: argparse.Namespace, gpus: list[str], shared: dict[str, str]) -> int:
    """Do all the runs that are left of n; the largest status of those that failed, else 75 or 0.

    75: some were stopped by --max_hours. What runs say is told once. `shared` is added to their environment.
    """
    waiting, failed, told, worst = list(jobs), list[Job](), set[str](), 0
    places, running, seconds = list(range(opt.jobs)), list[Started](), list[float]()
    try:
        while True:
            ahead = {job.folder for job in (*waiting, *failed, *(run.job for run in running))}
            ready = [job for job in waiting if not job.after & ahead]
            if not ready and not running:
                break
            for job in ready:
                if places and (out := output(job)):
                    waiting.remove(job)
                    place = places.pop(0)
                    gpu = {'CUDA_VISIBLE_DEVICES': gpus[place % len(gpus)]} if gpus else {}
                    with out:
                        running.append(Started(job, place, start(job, out, shared | gpu), time.monotonic()))
                    print(f'{job.opt.save}: started', flush=True)
            time.sleep(0.1)
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                places.append(run.place)
                seconds.append(time.monotonic() - run.begun)
                status, why = ended(run.job, run.process.returncode, seconds[-1])
                failed += [run.job] if status else []
                # A run that is to resume later must not hide one that has failed.
                worst = max(worst, status, key=lambda s: (s not in (0, os.EX_TEMPFAIL), s))
                if why and why not in told:
                    print(why, file=sys.stderr, flush=True)
                told.add(why)
                lost = {job.folder for job in failed}
                n_next = sum(not job.after & lost for job in waiting)
                print(f'{n - len(waiting) - len(running) - len(failed)} of {n} runs are done'
                      + time_left(seconds, n_next, running, opt.jobs), flush=True)
            if opt.parent and os.getppid() != opt.parent:
                sys.exit(128 + signal.SIGTERM)
        if waiting:
            print(f'{len(waiting)} runs were not started: they wait for runs that failed', flush=True)
        return worst
    finally:
        if running:  # by Ctrl-C, SIGTERM, or an error here
            for run in running:
                run.process.terminate()
            for run in running:
                run.process.wait()
            print(f'runs stopped: {len(running)}; the same command goes on with them', file=sys.stderr)


def output(job: Job) -> TextIO | None:
    """The file for what a run prints, locked; None while a run of an earlier runner still writes there."""
    job.out.parent.mkdir(parents=True, exist_ok=True)
    out = open(job.out, 'a')  # noqa: SIM115
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the run ends, which has this file as well
    except BlockingIOError:
        out.close()
        return None
    return out


def start(job: Job, out: TextIO, more: dict[str, str]) -> subprocess.Popen:
    """Start a run as at the command line; it ends with this process."""
    print('$', job.command, file=out, flush=True)
    script, *arguments = job.words
    return subprocess.Popen(
        [sys.executable, os.path.relpath(HERE / script), *arguments], stdin=subprocess.DEVNULL, stdout=out,
        stderr=out, env=os.environ | more | {exits.PARENT: str(os.getpid())})


def time_left(seconds: list[float], n_waiting: int, running: list[Started], n_places: int) -> str:
    """The time left, if each run takes the mean of those that ended and no place stays empty."""
    mean, now = sum(seconds) / len(seconds), time.monotonic()
    work = n_waiting * mean + sum(max(mean - (now - run.begun), 0) for run in running)
    n = min(n_places, n_waiting + len(running))
    return f', about {tqdm.format_interval(work / n)} left' if n else ''


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


if __name__ == '__main__':
    exits.script(main)
