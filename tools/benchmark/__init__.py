"""Speed and memory of the real training step and loaders beside a plain baseline, in turns in one run;
whether both end with the same test errors; how many runs at once are best.

    python -m tools.benchmark cifar --fast
    python -m tools.benchmark cifar --dataset CIFAR10 --dataroot data --dtype bfloat16
    python -m tools.benchmark imagenet --batch_size 64
    python -m tools.benchmark imagenet --dtype bfloat16 --compile --profile trace.json.gz
    python -m tools.benchmark loader --imagenetpath ~/ILSVRC2012 --workers 4
    python -m tools.benchmark accuracy --teacher_id demo/1/teacher --fast --lr_schedule linear
    python -m tools.benchmark jobs --jobs [1,2,4]

One JSON line on stdout, progress on stderr. The baseline is what the published code did and many still do:
PIL images transformed one by one, in worker processes if there are any, float32, channels first, a teacher
with BN, SGD without fusion, every metric read in every step, and memory freed to the system as glibc does it.
For `cifar` and `imagenet` each side has a process of its own. Short blocks of ours and of the baseline
alternate; a ratio is the median over rounds of ours / baseline in the same round, so that a machine that
slows down for a while slows down both. `roofline_ratio` is our time over the least time of the step on this
machine. What `--compile` compiles is compiled before the blocks. `--fast` chooses as for a long run; `cifar`
then adds what its choices bring one by one (`at_float`, `at_float_compiled`), and the time from the start of
a process to the end of its first step. Where other programs use the same cores, OMP_WAIT_POLICY=passive
keeps threads from spinning for one another.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools.benchmark import accuracy, cifar, imagenet, jobs, loader
from training import options

COMMANDS = {
    'cifar': (cifar, 'Step and loader of cifar.py: WRN-16-2 -> WRN-16-1.'),
    'imagenet': (imagenet, 'Step of imagenet.py on random images in memory: ResNet-34 -> ResNet-18.'),
    'loader': (loader, 'Loader of imagenet.py: image files -> batches for the network.'),
    'accuracy': (accuracy, 'Test errors by cifar.py and by the plain baseline, over seeds.'),
    'jobs': (jobs, 'Runs per hour of cifar.py, several at once.'),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Measure the speed and memory of training.')
    commands = parser.add_subparsers(dest='command', required=True, parser_class=_command)
    for name, (module, description) in COMMANDS.items():
        module.add_options(commands.add_parser(name, description=description))
    opt = parser.parse_args(arguments)
    if opt.command in ('cifar', 'accuracy', 'jobs') and opt.dataset == 'shapes' and opt.dataroot:
        parser.error('--dataroot has no effect on --dataset shapes, which is built in: leave it out')
    if opt.command == 'accuracy' and len(opt.seeds) < 2:
        parser.error(f'--seeds {opt.seeds}: a spread needs at least two')
    if opt.command in ('cifar', 'imagenet') and opt.profile and not Path(opt.profile).parent.is_dir():
        parser.error(f'--profile {opt.profile}: there is no folder {Path(opt.profile).parent}; make it first')
    if opt.command == 'jobs' and not (opt.jobs and min(opt.jobs)):
        parser.error('--jobs needs whole numbers from 1')
    if opt.command == 'imagenet' and opt.image_size < imagenet.SMALLEST:
        parser.error(f'--image_size {opt.image_size} leaves BN a single pixel: '
                     f'give at least {imagenet.SMALLEST}')
    return opt


def _command(prog: str, description: str, **_: Any) -> options.Parser:
    parser = options.Parser(description)
    parser.prog = prog
    return parser


def main() -> None:
    opt = parse(sys.argv[1:])
    print(json.dumps(COMMANDS[opt.command][0].run(opt), allow_nan=False))
