"""What --fast chooses: the fastest safe --dtype and --compile of this machine, by measured rules."""
import argparse

import torch

import method
from training import exits

COMPILED_FROM = 3000  # steps: compiling takes 14 to 60 s, and saves 15 to 28 ms of an AT step


def chosen(opt: argparse.Namespace, device: torch.device, steps: int) -> argparse.Namespace:
    """The options of a run of this many steps, with what --fast chooses; what the user gave stays.

    bfloat16 where the device computes in it; compiled where that saves time, the run is long enough to pay
    for it and a compiler works. Rank 0 prints the choice. Without steps it is an evaluation.
    """
    if not opt.fast:
        return opt
    dtype = opt.dtype or ('bfloat16' if has_bfloat16(device) else 'float')
    why_not = '' if opt.compile else why_not_compiled(opt, device, steps)
    compiled = f'not compiled ({why_not})' if why_not else 'compiled'
    exits.print_first(f'fast: {dtype}' + (f', {compiled}' if steps else ''))
    return argparse.Namespace(**vars(opt) | {'dtype': dtype, 'compile': not why_not})


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by instructions of its own."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported()  # processors with AMX have it too


def why_not_compiled(opt: argparse.Namespace, device: torch.device, steps: int) -> str:
    """The reason, empty if the step is to be compiled."""
    losses = method.active(opt)
    if any(loss.gradients for loss in losses):
        return 'losses on gradients cannot be compiled'
    if device.type == 'cpu' and not any(loss.teacher for loss in losses):
        return 'a student alone gains nothing from it on a CPU'
    if steps < COMPILED_FROM:
        return f'{steps:,} steps are too few to pay for it'
    try:  # no compiler, no headers of Python, no Triton, a full disk, ...: a function of one line shows it
        method.compiled(lambda x: x.cos() + 1, [])(torch.ones(8, device=device))
    except Exception as e:
        return f'torch.compile fails here: {exits.first_words(e)}'
    return ''
