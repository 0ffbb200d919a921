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
from tools.benchmark import cifar, imagenet, sides
from tools.benchmark.sides import Prepared
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
    sides.ready(opt, side, cifar.real_options)
    blocks = []

    def block():
        blocks.append(1)
        return float(10 + len(blocks))

    return Prepared({'a': block, 'b': lambda: -1.0},
                    {'side': side, 'pid': os.getpid(), 'mapped': mapped(1 << 26)})


def failing_block():
    def bad_input():
        raise InputError('nothing like this here: give another')
    return Prepared({'a': bad_input}, {})


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
    with pytest.raises(InputError, match='SIGKILL'), sides.own_process(killed):
        pass


# --- what each side takes of the options -------------------------------------------------------------------


@pytest.mark.parametrize(('module', 'more'), [(cifar, []), (cifar, ['--dtype', 'bfloat16']), (imagenet, [])])
def test_fast_chooses_as_the_script_for_a_long_run(module, more, monkeypatch):
    asked = []

    def chosen(real, device, steps):
        asked.append((real.fast, real.dtype, device.type))
        assert steps >= sides.fast.COMPILED_FROM
        return argparse.Namespace(**vars(real) | {'dtype': real.dtype or 'bfloat16', 'compile': True})

    monkeypatch.setattr(sides.fast, 'chosen', chosen)
    opt = benchmark.parse([module.__name__.split('.')[-1], '--device', 'cpu', '--fast', *more])
    chosen, device = sides.ready(opt, 'ours', module.real_options)
    assert asked == [(True, more[1] if more else '', 'cpu')] and device.type == 'cpu'
    assert (chosen.dtype, chosen.compile, module.real_options(chosen, 'at').fast) == ('bfloat16', True, False)


def test_without_fast_our_side_is_in_float_and_eager():
    opt = benchmark.parse(['cifar', '--device', 'cpu'])
    chosen, _ = sides.ready(opt, 'ours', cifar.real_options)
    assert (chosen.dtype, chosen.compile) == ('float', False)


def test_the_baseline_takes_nothing_of_ours(monkeypatch):
    monkeypatch.setattr(sides.devices, 'keep_freed_memory', None)  # not to be called
    opt = benchmark.parse(['cifar', '--device', 'cpu', '--fast', '--dtype', 'bfloat16', '--compile'])
    plain, device = sides.ready(opt, 'baseline', cifar.real_options)
    assert (plain.fast, plain.dtype, plain.compile, device.type) == (False, 'float', False, 'cpu')


@pytest.mark.gpu
@pytest.mark.parametrize('side', ['ours', 'baseline'])
def test_float_is_float32_on_a_gpu(side):
    torch.backends.cudnn.allow_tf32 = True
    _, device = sides.ready(benchmark.parse(['cifar']), side, cifar.real_options)
    assert device.type == 'cuda' and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(('dtype', 'compiles', 'names'), [
    ('bfloat16', True, ['at_float', 'at_float_compiled']), ('bfloat16', False, ['at_float']),
    ('float', True, ['at_float']), ('float', False, [])])
def test_variants_show_what_fast_brings(dtype, compiles, names):
    got = cifar.variants(argparse.Namespace(dtype=dtype, compile=compiles))
    assert got == {name: {'dtype': 'float', 'compile': name == 'at_float_compiled'} for name in names}


# --- the time to the first step ----------------------------------------------------------------------------


def test_each_first_step_has_a_process_and_an_empty_cache(monkeypatch):
    started = []

    @contextlib.contextmanager
    def own_process(prepare, opt, cache):
        assert prepare is cifar.first_step and os.listdir(cache) == []
        started.append((opt.fast, opt.dtype, opt.compile, cache))
        yield

    monkeypatch.setattr(sides, 'own_process', own_process)
    opt = benchmark.parse(['cifar', '--fast'])
    assert list(cifar.time_to_first_step(opt, 'bfloat16', False)) == ['eager']
    seconds = cifar.time_to_first_step(opt, 'bfloat16', True)
    assert list(seconds) == ['eager', 'compiled'] and min(seconds.values()) >= 0
    assert [one[:3] for one in started] == [(False, 'bfloat16', compiles) for compiles in (0, 0, 1)]
    assert len({cache for *_, cache in started}) == 3 and not any(os.path.exists(one[3]) for one in started)


def test_a_first_step_is_one_batch_of_the_real_step(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'elsewhere')
    seen, training_of = [], cifar.training_of

    def counted(side, opt, case, device):
        consume = training_of(side, opt, case, device)
        return lambda batches: seen.append((side, case, consume(batches)))

    monkeypatch.setattr(cifar, 'training_of', counted)
    opt = benchmark.parse(['cifar', '--batch_size', '3', '--device', 'cpu'])
    assert cifar.first_step(opt, str(tmp_path)) == Prepared({}, {})
    assert seen == [('ours', 'at', 3)] and os.environ['TORCHINDUCTOR_CACHE_DIR'] == str(tmp_path)
