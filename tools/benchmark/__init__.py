"""Speed, memory and test errors of the real training step and loaders, next to a plain baseline.

    python -m tools.benchmark cifar --fast
    python -m tools.benchmark cifar --dataset CIFAR10 --dataroot data --dtype bfloat16
    python -m tools.benchmark imagenet --dtype bfloat16 --compile
    python -m tools.benchmark loader --imagenetpath ~/ILSVRC2012 --workers 4
    python -m tools.benchmark losses
    python -m tools.benchmark accuracy --teacher_id demo/1/teacher --fast

One JSON line on stdout, progress on stderr. The baseline does what the 2017 code did: PIL images transformed
one by one, in worker processes if there are any, float32, channels first, a teacher with BN, SGD without
fusion, every metric read in every step, and memory returned to the system as glibc does it. For `cifar` and
`imagenet` each side has a process of its own. Short blocks of both sides alternate; a ratio is the median
over rounds of ours / baseline in the same round, so a machine that slows down for a while slows both down.
`roofline_ratio` is our time over the shortest possible time on this machine. With --fast, cases show the gain
of each of its choices (`at_float`, `at_float_compiled`), and the time from the start of a process to the end
of its first step is measured. Where other programs use the same cores, set OMP_WAIT_POLICY=passive.
"""
import argparse
import json
import sys
from typing import Any

from tools.benchmark import accuracy, loader
from tools.benchmark.cifar import Cifar
from tools.benchmark.imagenet import ImageNet
from tools.benchmark.losses import Losses
from training import options

COMMANDS = {'cifar': Cifar(), 'imagenet': ImageNet(), 'losses': Losses(), 'loader': loader,
            'accuracy': accuracy}
HELP = {
    'cifar': 'step and loader of cifar.py, WRN-16-2 to WRN-16-1',
    'imagenet': 'step of imagenet.py on random images in memory, ResNet-34 to ResNet-18',
    'losses': 'step of cifar.py with each loss, without a baseline',
    'loader': 'loader of imagenet.py, from image files to batches',
    'accuracy': 'test errors of cifar.py over seeds; all other options are those of cifar.py'}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Measure training next to a plain baseline.')
    commands = parser.add_subparsers(dest='command', required=True, parser_class=_command)
    for name, command in COMMANDS.items():
        command.add_options(commands.add_parser(name, description=HELP[name], help=HELP[name]))
    opt, others = parser.parse_known_args(arguments)
    if opt.command == 'accuracy':
        if len(opt.seeds) < 2:
            parser.error(f'--seeds {opt.seeds}: give at least two, for a spread')
        opt.others = others
    elif others:
        parser.error(f'unrecognized arguments: {" ".join(others)}')
    return opt


def _command(prog: str, description: str, **_: Any) -> options.Parser:
    parser = options.Parser(description[0].upper() + description[1:] + '.')
    parser.prog = prog
    return parser


def main() -> None:
    opt = parse(sys.argv[1:])
    print(json.dumps(COMMANDS[opt.command].run(opt), allow_nan=False))
