"""A script as a process: how it ends, what it then says, and what it runs on.

    exits.script(main)     # a mistake of the user ends with one sentence on stderr and status 2
"""
import contextlib
import errno
import importlib.metadata
import io
import itertools
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from layers import is_out_of_memory
from training import devices
from utils import InputError, one_line

PARENT = 'PARENT_OF_RUN'  # environment variable: the process without which this one ends


class Diverged(Exception):
    """The loss is not finite."""


class TimeIsUp(Exception):
    """A run ends unfinished, because --max_hours are over."""


def script(main: Callable[[], None]) -> None:
    """Run a script. An error that its user can fix is one sentence with status 2; divergence is status 1.

    A run that --max_hours ends has status 75, "try again later", so that no script takes it for finished.
    Under torchrun it has status 0, because torchrun would start it again at once.
    """
    _streams()
    signal.signal(signal.SIGTERM, _stop)
    if parent := os.environ.pop(PARENT, None):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored, as with nohup
        signal.signal(signal.SIGINT, _stop)
    try:
        main()
        sys.stdout.flush()
    except (InputError, OSError) as e:
        _end(2, f'error: {e}')
    except Diverged as e:
        _end(1, str(e), once=True)
    except TimeIsUp as e:
        _end(0 if 'TORCHELASTIC_RUN_ID' in os.environ else os.EX_TEMPFAIL, str(e), once=True)
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT)
    except (MemoryError, RuntimeError) as e:
        if is_out_of_memory(e):
            _end(2, 'error: no memory is left: give smaller batches, or end other programs')
        if type(e).__module__.startswith(('torch._dynamo.', 'torch._inductor.')):
            _end(2, f'error: torch.compile failed ({first_words(e)}): leave out --compile or --fast')
        if 'torch.use_deterministic_algorithms' in str(e):
            _end(2, f'error: {str(e).partition(",")[0]}: leave out --deterministic')
        if not devices.is_lost(e):
            raise
        if devices.WATCHED not in os.environ:  # devices.launch reports it itself
            print(f'{Path(sys.argv[0]).name}: rank {os.environ["RANK"]} has lost another rank, or waited too '
                  'long for one that hangs', file=sys.stderr, flush=True)
        time.sleep(1)  # torchrun reports the first rank that fails, which should not be this one
        _end(devices.LOST)


def _end(status: int, sentence: str = '', once: bool = False) -> NoReturn:
    """Exit after a sentence on stderr; once: only rank 0 prints it, because all ranks know it."""
    if sentence and not (once and devices.rank()):
        print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr, flush=True)
    if devices.ranks() > 1:  # the clean-up of this process would wait for ranks that wait for this one
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _stop(number: int, _: Any) -> None:
    """Handle SIGTERM or Ctrl-C. After a Ctrl-C, the process that waits for ranks sends them SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # a second signal would cut off the message
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, because another one may start on the same folder."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)  # for a step that does not return
    os._exit(128 + signal.SIGTERM)


# --- messages --------------------------------------------------------------------------------------------


def first_words(e: Exception) -> str:
    """Two lines of an error of torch.compile, because the first may only announce the second."""
    return one_line(' '.join(str(e).strip().splitlines()[:2]).strip())[:200] or type(e).__name__


class _Output(io.FileIO):
    """The file of stdout or stderr. It does not end a run when nobody can read it any more.

    The log holds all results, so a run continues after `| head -1` and without its terminal. A full disk is
    an error on stdout, once, because it may cut off the result of an evaluation.
    """
    broken = False

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as e:
            reported, self.broken = self.broken, True
            if self.fileno() == 1 and not reported and e.errno not in (errno.EPIPE, errno.EIO):
                raise
            return memoryview(content).nbytes


def _streams() -> None:
    """Let stdout and stderr take any text at any time, also in a process that has none (`>&-`)."""
    while (free := os.open(os.devnull, os.O_RDWR)) < 3:  # else the next file, a checkpoint, would be stdout
        pass
    os.close(free)
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, 'r+'))  # noqa: SIM115
        elif number and stream is getattr(sys, f'__{name}__'):
            stream.flush()
            buffer = io.BufferedWriter(_Output(number, 'w', closefd=False))
            errors = 'backslashreplace' if stream.errors == 'strict' else stream.errors  # for names of files
            by_line = number == 2 or stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, errors, line_buffering=by_line))


def print_first(line: str) -> None:
    """Print a line on stdout, from rank 0."""
    if not devices.rank():
        print(line, flush=True)


def say_first(sentence: str) -> None:
    """Print a sentence on stderr, from rank 0; nothing if it is empty."""
    if sentence and not devices.rank():
        print(sentence, file=sys.stderr, flush=True)


def resume_command(argv: list[str], saved: bool) -> str:
    """The command line that resumes the run of `argv`: the same one as long as no checkpoint is saved."""
    start = ['torchrun', '...'] if 'TORCHELASTIC_RUN_ID' in os.environ else ['python']
    if not saved:
        return shlex.join([*start, *argv])
    kept = [argument for before, argument in itertools.pairwise(['', *argv])
            if argument.split('=')[0] != '--resume' and before != '--resume']
    return shlex.join([*start, *kept, '--resume', 'auto'])


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit of this code (with '-dirty' if files differ from it), versions and device, for the log."""
    here = Path(__file__).resolve().parents[1]
    # Without these folders, git would take the repository around an unpacked archive.
    command = ['git', '--no-optional-locks', f'--git-dir={here / ".git"}', f'--work-tree={here}',
               'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    versions = {package: importlib.metadata.version(package) for package in ('torchvision', 'numpy')}
    versions |= {'torch': str(torch.__version__), 'python': platform.python_version()}
    if device.type == 'cuda':
        versions['cudnn'] = torch.backends.cudnn.version()
    return {'commit': commit, 'device_name': device_name(device)} | versions


def device_name(device: torch.device) -> str:
    """Such as 'NVIDIA H200', or 'AMD EPYC 7R13 Processor (AVX2), 2 threads'."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = f'{platform.machine()} CPU'
    with contextlib.suppress(OSError):  # only Linux has it
        if found := re.search('model name[^:]*:(.*)', Path('/proc/cpuinfo').read_text()):
            name = found[1].strip()
    return f'{name} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads'


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes so far: allocated on a CUDA device, or resident in this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
