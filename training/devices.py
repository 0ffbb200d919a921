"""Devices and ranks: where a run computes, and in how many processes.

    with devices.start(opt) as device:
        f, params = devices.parallel(f, params)     # backward() then averages gradients over ranks

`--ngpu N` starts the script N times on this machine, one rank for each device. `torchrun` starts ranks on
several machines. Each rank computes its part of every batch, and DistributedDataParallel averages gradients.
"""
import argparse
import contextlib
import ctypes
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from layers import Network, Params
from utils import InputError

T = TypeVar('T')
RANKS = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')  # environment variables of a rank
LOST = 3  # exit status of a rank that ends because another rank is gone or hangs
WATCHED = 'WATCHED_RANK'  # environment variable of the ranks that `launch` started


def cuda_devices(opt: argparse.Namespace) -> list[int]:
    """Numbers of the CUDA devices that the options ask for; empty for the CPU."""
    if opt.device == 'cpu' or opt.device == 'auto' and not torch.cuda.is_available():
        if opt.dtype == 'half':  # CPU kernels gave NaN from finite input (torch 2.15)
            raise InputError('--dtype half needs a CUDA device; on a CPU use bfloat16 or float')
        return []
    if not torch.cuda.is_available():
        raise InputError('--device cuda: torch finds no CUDA device here; use --device cpu')
    if max(opt.gpu_id) >= (n := torch.cuda.device_count()):
        raise InputError(f'--gpu_id {max(opt.gpu_id)}: there are {n} CUDA devices, from 0')
    return opt.gpu_id


def device(opt: argparse.Namespace) -> torch.device:
    """The device of this rank."""
    numbers = cuda_devices(opt)
    torch.use_deterministic_algorithms(opt.deterministic)
    if not numbers:
        keep_freed_memory()
        if opt.dtype == 'bfloat16' and not torch.cpu._is_avx512_bf16_supported():
            print('note: this CPU may have no bfloat16 arithmetic: --dtype float may be many times faster',
                  file=sys.stderr)
        return torch.device('cpu')
    local = int(os.environ.get('LOCAL_RANK', 0))
    index = numbers[local] if local < len(numbers) else local  # torchrun may start more ranks than --ngpu
    torch.cuda.set_device(index)
    torch.backends.cudnn.allow_tf32 = False  # --dtype float means float32
    if opt.deterministic:  # cuBLAS reads it when it starts
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return torch.device('cuda', index)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory in the process: mapping it again in each step takes time."""
    if platform.libc_ver()[0] == 'glibc':
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def n_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def to_device(params: Params, device: torch.device) -> Params:
    """Tensors on the device, convolutions with channels last, which CPUs and GPUs compute faster."""
    return {name: t.to(device, memory_format=torch.channels_last if t.dim() == 4 else torch.contiguous_format)
            for name, t in params.items()}


# --- ranks -----------------------------------------------------------------------------------------------


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank() -> bool:
    """Whether `launch` or torchrun started this process as a rank."""
    return os.environ.keys() >= set(RANKS)


def several_ranks(opt: argparse.Namespace) -> bool:
    """Whether the options or the environment ask for more than one rank."""
    return opt.ngpu > 1 or is_rank() and os.environ['WORLD_SIZE'] != '1'


def is_lost(e: Exception) -> bool:
    """Whether an error of gloo, NCCL or their store says that another rank is gone or hangs."""
    return is_rank() and (isinstance(e, dist.DistError) or '/gloo/' in str(e)) and re.search(
        'peer|remote|timed? ?out|broken pipe|got 0 bytes', str(e), re.IGNORECASE) is not None


def launch(opt: argparse.Namespace) -> None:
    """Start --ngpu ranks of this script, wait for them and exit with their status; return if there is one.

    Rank 0 writes to the terminal. If another rank fails first, the end of its output is shown.
    """
    if opt.ngpu == 1 or is_rank():
        return
    cuda_devices(opt)  # reports an error once, before the ranks start
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    shared = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(opt.ngpu),
              'LOCAL_WORLD_SIZE': str(opt.ngpu), WATCHED: '1'}
    if 'OMP_NUM_THREADS' not in os.environ:  # ranks on one CPU share its cores
        shared['OMP_NUM_THREADS'] = str(max(torch.get_num_threads() // opt.ngpu, 1))
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile('w+')) for _ in range(opt.ngpu)]
        started = []
        for i, output in enumerate(outputs):
            own: dict[str, Any] = {'stdout': subprocess.DEVNULL, 'stderr': output} if i else {}
            environment = os.environ | shared | {'RANK': str(i), 'LOCAL_RANK': str(i)}
            started.append(subprocess.Popen([sys.executable, *sys.argv], env=environment, **own))
        failed, status = _wait(started)
        said = ''
        if status < 0:
            said = f'{signal.Signals(-status).name} ended rank {failed}: all ranks have ended'
        elif status == LOST:
            said = f'rank {failed} waited for a rank that hangs: all ranks have ended'
        elif failed and started[0].returncode != status:
            outputs[failed].seek(0)
            said = outputs[failed].read().strip() or f'rank {failed} has ended with status {status}'
            said = said if 'Traceback' in said else said.split('\n')[-1]
        if said:
            print(said, file=sys.stderr)
    sys.exit(128 - status if status < 0 else status)


def _wait(started: list[subprocess.Popen]) -> tuple[int, int]:
    """The rank whose failure ends the others, and its status; (0, 0) if all succeed."""
    try:
        while not any(p.poll() for p in started) and None in [p.returncode for p in started]:
            time.sleep(0.05)
        if any(p.returncode for p in started):
            time.sleep(2)  # the same error often ends rank 0 too, which then reports it
        failed = [i for i, p in enumerate(started) if p.poll()]
        failed.sort(key=lambda i: started[i].returncode == LOST)  # which may end before the rank that it lost
        return (failed[0], started[failed[0]].returncode) if failed else (0, 0)
    finally:
        for p in started:
            p.terminate()
        for p in started:
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:  # it waits for a rank that is gone
                p.kill()
                p.wait()


@contextlib.contextmanager
def start(opt: argparse.Namespace) -> Iterator[torch.device]:
    """Start the ranks, or join them; yields the device of this process.

    A rank that waits for one that hangs gives up after PyTorch's limit, 10 minutes on CUDA, 30 on a CPU.
    """
    launch(opt)
    here = os.environ.get('LOCAL_WORLD_SIZE', os.environ.get('WORLD_SIZE'))
    if is_rank() and opt.ngpu > 1 and here != str(opt.ngpu):
        raise InputError(f'--ngpu {opt.ngpu}, but another launcher started {here} ranks: leave out --ngpu, '
                         f'or unset {" ".join(RANKS)} if no other launcher is in use')
    where = device(opt)
    if not is_rank():
        yield where
        return
    _join(where)
    yield where
    # Gloo's threads need Python's lock to release their last tensors, and torch 2.6 holds it while it waits
    # for them. A rank that fails does not wait for the others at all (exits.script).
    time.sleep(0.2)
    dist.destroy_process_group()


def _join(where: torch.device) -> None:
    """Wait for the other ranks. A note says so after 10 seconds; a signal ends it."""
    address, n = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}', os.environ['WORLD_SIZE']
    us = f'rank {os.environ["RANK"]} (RANK, WORLD_SIZE={n} and MASTER_ADDR are in the environment)'
    note = threading.Timer(10, print, [f'note: {us} waits at {address} for the others'], {'file': sys.stderr})
    note.daemon = True
    if WATCHED not in os.environ:
        note.start()
    # PyTorch waits outside of Python, where Python's signal handlers cannot run. Nothing is to be saved yet.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)
                if callable(signal.getsignal(number))}  # not if it is ignored, as with nohup
    cuda = where.type == 'cuda'
    more: dict[str, Any] = {'device_id': where} if cuda else {}
    try:
        if os.environ.get('GROUP_WORLD_SIZE') == '1':  # torchrun on one machine
            # Its store still has the addresses of the ranks before a restart.
            store, more['rank'], more['world_size'] = next(dist.rendezvous('env://'))
            more['store'] = dist.PrefixStore(os.environ['TORCHELASTIC_RESTART_COUNT'], store)
        else:
            _note_of_restarts()
        dist.init_process_group('nccl' if cuda else 'gloo', **more)
    except (RuntimeError, ValueError) as e:
        if is_lost(e):
            raise
        raise InputError(f'{us} cannot reach the others at {address} ({str(e).splitlines()[0]}): MASTER_ADDR '
                         'and MASTER_PORT must be the machine of rank 0 and a free port there') from None
    finally:
        note.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _note_of_restarts() -> None:
    """On several machines each one counts its own restarts, so no number separates new addresses from old."""
    if os.environ['RANK'] == '0' and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True' and (
            os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0') != '0'):
        print('note: a restart by torchrun may fail on several machines: set '
              'TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them', file=sys.stderr)


def of_first_rank(make: Callable[[], T]) -> T:
    """The result of make() on rank 0, for all ranks: other machines may lack the files that it reads."""
    if ranks() == 1:
        return make()
    found: list[Any] = [None if rank() else make()]
    dist.broadcast_object_list(found)
    return found[0]


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 runs the block first (for instance a download), then the other ranks.

    The first rank of every other machine, which may not see the files of rank 0, runs it second.
    """
    turn = 0 if not rank() else 1 if os.environ.get('LOCAL_RANK') == '0' else 2
    for _ in range(turn):
        dist.barrier()
    yield
    for _ in range(2 - turn if ranks() > 1 else 0):
        dist.barrier()


class _Module(nn.Module):
    """A functional network as a module for DistributedDataParallel."""

    def __init__(self, f: Network, params: Params):
        super().__init__()
        self.f, self.params = f, params
        for name, t in params.items():
            if isinstance(t, nn.Parameter):
                self.register_parameter(name.replace('.', '/'), t)

    def forward(self, x: Tensor, mode: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.f(x, self.params, mode)


def parallel(f: Network, params: Params) -> tuple[Network, Params]:
    """f and params such that backward() gives every rank the mean of all ranks' gradients.

    BN uses the statistics of a rank's own images; those of rank 0 are saved (`same_statistics`).
    """
    if ranks() == 1:
        return f, params
    params = {name: nn.Parameter(t.detach()) if t.requires_grad else t for name, t in params.items()}
    module = DistributedDataParallel(_Module(f, params))
    # It warns about 1x1 convolutions, whose two layouts are the same in memory.
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')

    def parallel_f(x: Tensor, params: Params, mode: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        return module(x, mode) if torch.is_grad_enabled() else f(x, params, mode)

    return parallel_f, params


def same_statistics(params: Params) -> None:
    """Give every rank the running statistics of rank 0."""
    if ranks() > 1:
        for t in params.values():
            if not t.requires_grad:
                dist.broadcast(t, 0)


def summed(t: Tensor) -> Tensor:
    """The sum over ranks."""
    if ranks() > 1:
        dist.all_reduce(t)
    return t
