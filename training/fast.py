"""What --fast chooses: the fastest safe --dtype and --compile on this machine, by measured rules."""
import argparse

import torch

import layers
import method
from training import exits

COMPILED_FROM = 3000  # steps: compiling takes 14 to 60 s, and saves 15 to 28 ms of an AT step


def chosen(opt: argparse.Namespace, device: torch.device, steps: int) -> argparse.Namespace:
    """The options with the choices of --fast, for a run of this many steps; 0: an evaluation.

    It chooses bfloat16 where that is faster. It compiles if that saves time, the run is long enough and a
    compiler works. Options that the user gave stay. Rank 0 prints the choice.
    """
    if not opt.fast:
        return opt
    dtype = opt.dtype or ('bfloat16' if gains_by_bfloat16(device) else 'float')
    why_not = '' if opt.compile else why_not_compiled(opt, device, steps)
    compiled = f'not compiled ({why_not})' if why_not else 'compiled'
    exits.print_first(f'fast: {dtype}' + (f', {compiled}' if steps else ''))
    return argparse.Namespace(**vars(opt) | {'dtype': dtype, 'compile': not why_not})


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32.

    Of CPUs, those with AMX, and AMD's with AVX512-BF16. On an Intel Xeon with AVX512-BF16 alone, a step of AT
    took 1.5 times as long in bfloat16 as in float32.
    """
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and 'Intel' not in exits.device_name(device)


def why_not_compiled(opt: argparse.Namespace, device: torch.device, steps: int) -> str:
    """The reason not to compile the step, or ''."""
    losses = method.active(opt)
    if any(loss.gradients for loss in losses):
        return 'losses on gradients cannot be compiled'
    if device.type == 'cpu' and not any(loss.teacher for loss in losses):
        return 'a student alone gains nothing from it on a CPU'
    if steps < COMPILED_FROM:
        return f'{steps:,} steps are too few to save time'
    try:  # a function of one line fails without a compiler, headers of Python, Triton, room on the disk, ...
        layers.compiled(lambda x: x.cos() + 1, [])(torch.ones(8, device=device))
    except Exception as e:
        return f'torch.compile fails here: {exits.first_words(e)}'
    return ''
