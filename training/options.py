"""Command-line options that the training scripts share, and combinations that cannot work.

Published names and defaults are kept. Types convert while parsing, so that the log holds values.
"""
import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import method
import utils
from training import devices
from weights import named


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option, if it has one that its help text does not explain."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or '(default' in str(action.help):
            return action.help
        return super()._get_help_string(action) if action.default != '' else action.help


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are one sentence, without the list of all options."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=Help)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {utils.one_line(message)}\n')

    def is_given(self, opt: argparse.Namespace, name: str) -> bool:
        """Whether an option has another value than its default."""
        return getattr(opt, name) != self.get_default(name)


def number(kind: type, holds: Callable[[float], bool], meaning: str) -> Callable[[str], float]:
    """The type of an option: text -> number; an error says what it must be."""
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f'{text!r} is not {meaning}')
        return value
    return convert


positive_int = number(int, lambda v: 1 <= v < 2**31, 'a whole number from 1 to 2147483647')
count = number(int, lambda v: 0 <= v < 2**31, 'a whole number from 0 to 2147483647')
positive = number(float, lambda v: 0 < v < math.inf, 'a finite number above 0')
weight = number(float, lambda v: 0 <= v < math.inf, 'a finite number from 0')
power = number(float, lambda v: 1 <= v < math.inf, 'a finite number from 1')
fraction = number(float, lambda v: 0 <= v <= 1, 'a number from 0 to 1')
width = number(float, lambda v: 0 < v <= 1000, 'a number above 0, up to 1000')
devices_count = number(int, lambda v: 1 <= v <= 1024, 'a whole number from 1 to 1024')


def path(text: str) -> str:
    """A file, folder or address. ~ is expanded, because shells do not expand it in --save=~/x."""
    return os.path.expanduser(text)


def file(text: str) -> Path:
    """As `path`, for files and folders only."""
    return Path(path(text))


def name_list(text: str) -> list[str]:
    """'layer2,layer3' -> ['layer2', 'layer3'], no name twice."""
    names = [name.strip() for name in text.split(',')]
    if len(names) != len(set(names)):
        raise argparse.ArgumentTypeError(f'{text!r} has a name twice')
    return names


def int_list(text: str) -> list[int]:
    """'[60,120,160]' or '60,120,160' -> [60, 120, 160], no number twice."""
    try:
        values = json.loads(text if text.strip().startswith('[') else f'[{text}]')
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of whole numbers such as [60,120,160]')
    if len(values) != len(set(values)):
        raise argparse.ArgumentTypeError(f'{text!r} has a number twice')
    return values


def network_name(*kinds: str) -> Callable[[str], str]:
    """The type of an option that names a kind of network of this project, or any other network."""
    def convert(text: str) -> str:
        if not text or text in kinds or named.is_name(text):
            return text
        raise argparse.ArgumentTypeError(f'{text!r} is not {", ".join((*kinds, named.FORMS))}')
    return convert


def add_names(group: argparse._ArgumentGroup) -> None:
    """Options of networks by name: torchvision:NAME, timm:NAME, PATH.py:FUNCTION."""
    group.add_argument('--groups', type=name_list, metavar='LIST',
                       help='--model by name: modules whose outputs are compared, such as layer2,layer3 '
                            '(default: the last stages of the usual families)')
    group.add_argument('--teacher_model', type=network_name(), default='', metavar='NAME',
                       help=f'the teacher is this network ({named.FORMS}), with the weights that are given')
    group.add_argument('--teacher_groups', type=name_list, metavar='LIST',
                       help='the same for --teacher_model')
    group.add_argument('--list_groups', action='store_true',
                       help='print the modules of --model by name that give maps, with (C, h, w), and exit')


def add_run_files(parser: Parser) -> None:
    parser.add_argument('--run_files', action='store_true',
                        help='networks of a file of your own: run the file that the weights name, if it has '
                             'not changed since the run')


def check_names(parser: Parser, opt: argparse.Namespace, teacher: str, shape: Iterable[str]) -> None:
    """As `check`, for networks by name, for which the options `shape` have no effect."""
    if not named.is_name(opt.model):
        for name in ('groups', 'list_groups'):
            if getattr(opt, name):
                parser.error(f'--{name} is for networks by name: --model {named.FORMS}')
    else:
        for name in shape:
            if parser.is_given(opt, name):
                parser.error(f'--{name} has no effect with --model {opt.model}')
    if opt.teacher_groups and not opt.teacher_model:
        parser.error('--teacher_groups needs --teacher_model')
    if opt.teacher_model and not getattr(opt, teacher):
        parser.error(f'--teacher_model {opt.teacher_model} needs its weights: add --{teacher}')


def add_method(parser: Parser, at_groups: list[int] | None = None) -> None:
    """Options of the losses, and their settings."""
    group = parser.add_argument_group('method (a weight of 0 turns a loss off)')
    for loss in method.LOSSES:
        group.add_argument(f'--{loss.option}', type=weight if loss.most > 1 else fraction, default=0.0,
                           metavar='W', help=loss.help)
    group.add_argument('--temperature', type=positive, default=4.0, metavar='T',
                       help='temperature, which softens the outputs of both networks (KD, DKD, DIST)')
    group.add_argument('--kd_logits', choices=['raw', 'standardized'], default='raw',
                       help='KD: logits as they are, or minus their mean and divided by their deviation')
    for name, default, what in (('dkd_alpha', 1.0, 'DKD: weight of the label against the other classes'),
                                ('dkd_beta', 8.0, 'DKD: weight of the other classes among themselves'),
                                ('dist_beta', 1.0, 'DIST: weight of the relation between classes'),
                                ('dist_gamma', 1.0, 'DIST: weight of the relation between images')):
        group.add_argument(f'--{name}', type=weight, default=default, metavar='W', help=what)
    group.add_argument('--dkd_warmup', type=count, default=0, metavar='EPOCHS',
                       help='DKD: its weight rises linearly in this many first epochs')
    group.add_argument('--beta_decay', choices=['none', 'linear', 'cosine', 'step'], default='none',
                       help='how beta and hint_beta decrease during training; step: they are multiplied by '
                            '--lr_decay_ratio at each of --epoch_step')
    group.add_argument('--map', choices=['sum', 'max'], default='sum',
                       help='attention map: sum (F_sum) or maximum (F_max) over channels')
    group.add_argument('--map_p', type=power, default=2.0, metavar='P',
                       help='attention map: activations are raised to this power')
    group.add_argument('--at_norm', choices=['code', 'paper'], default='code',
                       help='difference of two attention maps: mean of squares, as in the published code, '
                            'or half its norm, as in the paper (which needs a smaller beta)')
    group.add_argument('--at_groups', type=int_list, default=at_groups, metavar='LIST',
                       help='groups of layers to compare, counted from 0, such as [0,1,2]'
                            + ('' if at_groups else ' (default: all)'))
    group.add_argument('--at_from_epoch', type=positive_int, default=1, metavar='EPOCH',
                       help='first epoch with attention transfer (paper, ImageNet: 60)')


def add_training(parser: Parser, *, batch_size: int, epochs: int, epoch_step: list[int],
                 lr_decay_ratio: float, weight_decay: float, save: str = '') -> None:
    """Options of the optimizer, its schedule, and the folder of a run. save: a note on its default."""
    group = parser.add_argument_group('training')
    group.add_argument('--batch_size', '--batchSize', type=positive_int, default=batch_size, metavar='N',
                       help='number of images in a batch, on all devices together')
    group.add_argument('--lr', type=positive, default=0.1, help='highest learning rate')
    group.add_argument('--epochs', type=positive_int, default=epochs, metavar='N', help='number of epochs')
    group.add_argument('--weight_decay', '--weightDecay', type=weight, default=weight_decay, metavar='W',
                       help='weight decay of every parameter, including BN and biases')
    group.add_argument('--lr_schedule', choices=['step', 'linear', 'cosine'], default='step',
                       help='step: lr drops at --epoch_step; linear, cosine: lr falls to 0, batch by batch')
    group.add_argument('--warmup', type=weight, default=0.0, metavar='EPOCHS',
                       help='lr rises linearly from 0 during the first epochs; 0.5 is half an epoch')
    group.add_argument('--epoch_step', type=int_list, default=epoch_step, metavar='LIST',
                       help='step: lr drops at the start of these epochs, counted from 1, and the momentum '
                            'starts from zero')
    group.add_argument('--lr_decay_ratio', type=positive, default=lr_decay_ratio, metavar='R',
                       help='step: lr is multiplied by this at each of --epoch_step')
    group.add_argument('--seed', type=count, default=1, metavar='N',
                       help='seed of the initial weights, the order of the images and their augmentation')
    group.add_argument('--save', type=path, default='', metavar='FOLDER',
                       help='folder for the log and the checkpoint of this run' + save)
    group.add_argument('--resume', type=path, default='', metavar='FILE',
                       help='checkpoint to resume from; auto: the one in --save, or a new run if there is '
                            'none (default: a new run)')
    group.add_argument('--max_hours', type=positive, default=None, metavar='H',
                       help='stop (exit status 75) when another epoch might not end within H hours of the '
                            'start of the script (default: no limit)')
    group.add_argument('--tensorboard', action='store_true', help='write results for TensorBoard to --save')
    group.add_argument('--evaluate', action='store_true',
                       help='do not train: print loss and error of --student_params, --resume or --save')
    group.add_argument('--student_params', type=path, default='', metavar='FILE',
                       help='with --evaluate: weights (a file, the folder of a run, or an address)')


def add_device(parser: Parser, nthread: int, images: str) -> None:
    """Options of devices and arithmetic. images: what --nthread processes do."""
    group = parser.add_argument_group('device')
    group.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto',
                       help='auto: CUDA if it is available')
    group.add_argument('--cuda', action='store_const', const='cuda', dest='device',
                       help='the same as --device cuda')
    group.add_argument('--fast', action='store_true',
                       help='choose the fastest safe --dtype and --compile for this machine; a given --dtype '
                            'is kept')
    group.add_argument('--dtype', choices=['float', 'bfloat16', 'half'], default='float',
                       help='arithmetic of the networks; weights and losses are float32')
    group.add_argument('--compile', action='store_true', help='compile the training step with torch.compile')
    group.add_argument('--deterministic', action='store_true',
                       help='give the same bits in every run on CUDA too (slower)')
    group.add_argument('--gpu_id', type=int_list, default=[0], metavar='LIST',
                       help='numbers of the CUDA devices, such as 0,1 (default: the first --ngpu)')
    group.add_argument('--ngpu', type=devices_count, default=1, metavar='N',
                       help='number of devices; each one has its own process')
    group.add_argument('--nthread', type=count, default=nthread, metavar='N', help=images)


def parse(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """The options. With --fast, dtype is '' and compile is None if not given: `fast.chosen` decides later."""
    opt = parser.parse_args(arguments)
    if opt.fast:
        parser.set_defaults(dtype='', compile=None)
        opt = parser.parse_args(arguments)
    return opt


def check(parser: Parser, opt: argparse.Namespace, teacher: str, n_groups: int) -> None:
    """Exit with one sentence and status 2 if options cannot work together.

    `teacher` is the name of the option that gives the teacher, `n_groups` the number of groups of a network.
    """
    losses = method.active(opt)
    if opt.ngpu > 1 and opt.gpu_id == [0]:
        opt.gpu_id = list(range(opt.ngpu))
    if len(opt.gpu_id) != opt.ngpu:
        parser.error(f'--gpu_id names {len(opt.gpu_id)} devices, --ngpu {opt.ngpu}: give the same number')
    if opt.batch_size < opt.ngpu:
        parser.error(f'--batch_size {opt.batch_size} is for all {opt.ngpu} devices together: give more')
    if opt.student_params and not opt.evaluate:
        parser.error('--student_params is for --evaluate; use --resume to resume a run')
    if opt.evaluate:
        if not evaluated(opt):
            parser.error('--evaluate needs weights: add --student_params with a run or a file of weights')
        for name in (*(loss.option for loss in losses), teacher, 'finetune', 'max_hours', 'tensorboard',
                     'compile'):
            if getattr(opt, name, None):
                parser.error(f'--{name} is for training: leave it out with --evaluate')
    elif not opt.save:
        parser.error('a run needs a folder: add --save logs/NAME')
    if opt.tensorboard and not importlib.util.find_spec('tensorboard'):
        parser.error('--tensorboard needs a package that is not installed: pip install tensorboard')
    if opt.fast and opt.deterministic and devices.cuda_devices(opt):
        parser.error('--fast chooses kernels by speed, --deterministic by their order of sums: give one')
    check_schedule(parser, opt)
    check_losses(parser, opt, losses, teacher)
    if opt.at_from_epoch > opt.epochs:
        parser.error(f'--at_from_epoch {opt.at_from_epoch} is after the last of --epochs {opt.epochs}')
    most = math.inf if named.is_name(opt.model) else n_groups
    if opt.at_groups is not None and not (opt.at_groups and max(opt.at_groups) < most):
        parser.error(f'--at_groups {opt.at_groups}: the groups are 0 to {n_groups - 1}')


def check_losses(parser: Parser, opt: argparse.Namespace, losses: list[method.Loss], teacher: str) -> None:
    """As `check`, for the losses that are on."""
    learns = [loss.option for loss in losses if loss.teacher]
    gradients = [loss.option for loss in losses if loss.gradients]
    given = getattr(opt, teacher)
    if opt.compile and gradients:
        parser.error(f'--{gradients[0]} needs gradients of gradients, which torch.compile cannot compute: '
                     'leave out --compile')
    if opt.dtype == 'half' and gradients:
        parser.error(f'--{gradients[0]} needs gradients of images, most of which vanish in half precision: '
                     'use --dtype bfloat16 or float')
    if learns and not given:
        parser.error(f'--{learns[0]} needs a teacher: add --{teacher} with its run or its weights')
    if given and not learns:
        parser.error(f'--{teacher} is given but nothing is learned from it: add --beta 1e+3 for attention '
                     'transfer, --alpha 0.9 for distillation, or another loss that needs a teacher')
    batch = [loss.option for loss in losses if loss.batch]
    if batch and devices.several_ranks(opt):
        parser.error(f'--{batch[0]} compares the images of a batch, of which each rank has only a part: '
                     'use one device')
    if batch and opt.batch_size < 2:
        parser.error(f'--{batch[0]} compares the images of a batch: give a --batch_size above 1')
    for name in dict.fromkeys(name for loss in method.LOSSES for name in loss.settings):
        needs = [loss for loss in method.LOSSES if name in loss.settings]
        if parser.is_given(opt, name) and not set(needs) & set(losses):
            parser.error(f'--{name} has no effect without --{" or --".join(loss.option for loss in needs)}')


def check_schedule(parser: Parser, opt: argparse.Namespace) -> None:
    """As `check`, for the schedules of lr and beta; a note if their steps are after the last epoch."""
    if 0 in opt.epoch_step:
        parser.error('--epoch_step: epochs count from 1')
    if opt.warmup and opt.warmup >= opt.epochs:
        parser.error(f'--warmup {opt.warmup:g} leaves nothing of --epochs {opt.epochs}: give a smaller one')
    for name in ('epoch_step', 'lr_decay_ratio'):
        if parser.is_given(opt, name) and 'step' not in (opt.lr_schedule, opt.beta_decay):
            parser.error(f'--{name} has no effect with --lr_schedule {opt.lr_schedule}')
    # An empty --epoch_step asks for a constant learning rate.
    names = ('lr_schedule', 'beta_decay') if opt.epoch_step else ('beta_decay',)
    uses = [f'--{name} step' for name in names if getattr(opt, name) == 'step']
    never = min(opt.epoch_step, default=math.inf) > opt.epochs
    if uses and never and not (opt.evaluate or devices.is_rank()):
        print(f'note: --epoch_step {opt.epoch_step} has no epoch within --epochs {opt.epochs}, so '
              f'{" and ".join(uses)} change{"s" * (len(uses) == 1)} nothing; linear suits a short run',
              file=sys.stderr)


def evaluated(opt: argparse.Namespace) -> str:
    """Path of the weights to evaluate; '' if there is none."""
    return opt.student_params or (opt.save if opt.resume in ('', 'auto') else opt.resume)
