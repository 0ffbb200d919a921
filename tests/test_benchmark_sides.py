"""The two processes of a benchmark: blocks on demand, how they end, allocators, what --fast chooses."""
import argparse
import contextlib
import ctypes
import os
import platform
import signal
import sys

import pytest
import torch

from tools import benchmark
from tools.benchmark import COMMANDS, script, sides, steps
from utils import InputError

GLIBC = platform.libc_ver()[0] == 'glibc'


# --- what runs in the other process -----------------------------------------------------------------------


class Mallinfo2(ctypes.Structure):
    """What glibc's malloc holds; hblkhd are the bytes that it has mapped one by one."""
    _fields_ = [(name, ctypes.c_size_t) for name in (
        'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks',
        'keepcost')]


def mapped(bytes_of_tensor):
    """Bytes that are mapped for a tensor, which go back to the system when it is freed."""
    if not GLIBC:
        return None
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    before, _tensor = mallinfo2().hblkhd, torch.zeros(bytes_of_tensor, dtype=torch.uint8)
    return mallinfo2().hblkhd - before


def counting(opt, side):
    print(f'{side} says this')
    script.choose(COMMANDS['cifar'].real_options(opt, 'at'), side == 'ours')
    blocks = []

    def block():
        blocks.append(1)
        return float(10 + len(blocks))

    return ({'a': block, 'b': lambda: -1.0},
            {'side': side, 'pid': os.getpid(), 'mapped': mapped(1 << 26)})


def failing_block():
    def bad_input():
        raise InputError('nothing like this here: give another')
    return {'a': bad_input}, {}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


# --- processes --------------------------------------------------------------------------------------------


def test_both_sides_measure_in_processes_of_their_own(capfd):
    """Only ours keeps freed memory; both end with an error of the main process."""
    opt = benchmark.parse(['cifar', '--device', 'cpu'])
    with pytest.raises(KeyboardInterrupt), sides.started(counting, opt) as found:
        assert list(found) == ['ours', 'baseline'] == [side.facts['side'] for side in found.values()]
        pids = {side.facts['pid'] for side in found.values()}
        assert len(pids | {os.getpid()}) == 3
        asked = [found[side].measure(case) for side, case in (
            ('ours', 'a'), ('baseline', 'b'), ('ours', 'a'), ('baseline', 'a'))]
        assert asked == [11, -1, 12, 11], 'each keeps what it has between blocks'
        raise KeyboardInterrupt
    if GLIBC:
        assert found['ours'].facts['mapped'] == 0
        assert 1 << 26 <= found['baseline'].facts['mapped'] <= (1 << 26) + 8192
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    out, err = capfd.readouterr()
    assert out == '' and 'baseline says this' in err, 'stdout is for the report'


def test_bad_input_in_a_process_ends_all_with_its_sentence(capfd, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['tools.benchmark'])
    with pytest.raises(SystemExit) as end, sides.own_process(failing_block) as side:
        side.measure('a')
    assert end.value.code == 2
    assert capfd.readouterr().err == 'tools.benchmark: error: nothing like this here: give another\n'


def test_a_killed_process_is_told():
    with pytest.raises(InputError, match='killed'), sides.own_process(killed):
        pass


# --- what each side takes of the options -------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'more'), [
    ('cifar', []), ('cifar', ['--dtype', 'bfloat16']), ('imagenet', [])])
def test_fast_chooses_as_the_script_for_a_long_run(name, more, monkeypatch):
    asked = []

    def chosen(real, device, steps):
        asked.append((real.fast, real.dtype, device.type))
        assert steps >= script.fast.COMPILED_FROM
        return argparse.Namespace(**vars(real) | {'dtype': real.dtype or 'bfloat16', 'compile': True})

    monkeypatch.setattr(script.fast, 'chosen', chosen)
    opt = benchmark.parse([name, '--device', 'cpu', '--fast', *more])
    device, found = script.choose(COMMANDS[name].real_options(opt, 'at'), ours=True)
    assert asked == [(True, more[1] if more else '', 'cpu')] and device.type == 'cpu'
    assert found == {'dtype': 'bfloat16', 'compile': True}


@pytest.mark.parametrize('more', [[], ['--compile'], ['--dtype', 'bfloat16']])
def test_without_fast_our_side_takes_its_options(more):
    opt = benchmark.parse(['imagenet', '--device', 'cpu', *more])
    _, found = script.choose(COMMANDS['imagenet'].real_options(opt, 'at'), ours=True)
    assert found == {'dtype': 'bfloat16' if '--dtype' in more else 'float', 'compile': '--compile' in more}


def test_the_baseline_takes_nothing_of_ours(monkeypatch):
    monkeypatch.setattr(script.devices, 'keep_freed_memory', None)  # not to be called
    opt = benchmark.parse(['cifar', '--device', 'cpu', '--fast', '--dtype', 'bfloat16', '--compile'])
    device, found = script.choose(COMMANDS['cifar'].real_options(opt, 'at'), ours=False)
    assert (found, device.type) == ({'dtype': 'float', 'compile': False}, 'cpu')


@pytest.mark.gpu
@pytest.mark.parametrize('ours', [True, False])
def test_float_is_float32_on_a_gpu(ours):
    torch.backends.cudnn.allow_tf32 = True
    opt = benchmark.parse(['cifar'])
    device, _ = script.choose(COMMANDS['cifar'].real_options(opt, 'at'), ours)
    assert device.type == 'cuda' and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(('dtype', 'compiles', 'names'), [
    ('bfloat16', True, ['at_float', 'at_float_compiled']), ('bfloat16', False, ['at_float']),
    ('float', True, ['at_float']), ('float', False, [])])
def test_variants_show_what_fast_brings(dtype, compiles, names):
    got = script.variants({'dtype': dtype, 'compile': compiles})
    assert got == {name: {'dtype': 'float', 'compile': name == 'at_float_compiled'} for name in names}


# --- the time to the first step ----------------------------------------------------------------------------


def test_each_first_step_has_a_process_and_an_empty_cache(monkeypatch):
    started, command = [], COMMANDS['cifar']

    @contextlib.contextmanager
    def own_process(prepare, opt, its, cache):
        assert prepare == command.first_step and os.listdir(cache) == []
        started.append((its, cache))
        yield

    monkeypatch.setattr(sides, 'own_process', own_process)
    opt, chosen = benchmark.parse(['cifar', '--fast']), {'dtype': 'bfloat16', 'compile': False}
    assert list(command.time_to_first_step(opt, chosen)) == ['eager']
    seconds = command.time_to_first_step(opt, chosen | {'compile': True})
    assert list(seconds) == ['eager', 'compiled'] and min(seconds.values()) >= 0
    assert [its for its, _ in started] == [chosen | {'compile': compiles} for compiles in (0, 0, 1)]
    assert len({cache for _, cache in started}) == 3 and not any(os.path.exists(c) for _, c in started)


def test_a_first_step_is_one_batch_of_the_real_step(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'elsewhere')
    seen, training = [], steps.training

    def counted(side, real, *more):
        consume = training(side, real, *more)
        return lambda batches: seen.append((side, real.beta, consume(batches)))

    monkeypatch.setattr(steps, 'training', counted)
    opt = benchmark.parse(['cifar', '--batch_size', '3', '--device', 'cpu'])
    its = {'dtype': 'float', 'compile': False}
    assert COMMANDS['cifar'].first_step(opt, its, str(tmp_path)) == ({}, {})
    assert seen == [('ours', 1e3, 3)] and os.environ['TORCHINDUCTOR_CACHE_DIR'] == str(tmp_path)
