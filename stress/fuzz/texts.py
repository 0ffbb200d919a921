"""Targets: options of the scripts, and logs."""
import contextlib
import io
import json
from pathlib import Path
from random import Random

import cifar
import imagenet
from stress.fuzz import mutate
from stress.fuzz.sandbox import LONGEST, Target
from tools.report import logs
from training import checkpoint
from utils import InputError

SCRIPTS = {'cifar': cifar, 'imagenet': imagenet}
OPTIONS = [name for name in vars(cifar.parse(['--save', 'x'])) | vars(imagenet.parse(['--dataroot', 'x']))
           if name != 'help']
WORDS = ('wrn', 'nin', 'CIFAR10', 'shapes', 'imagenet', 'cub', 'folder', 'none', 'linear', 'step', 'max',
         'cpu',
         'half', 'auto', '[0,1]', '0,1', '[60,120]', '1e3', '0.9', '16', '10', '1', '2', 'logs/x', '--',
         '-h', '--help')


# --- options ---------------------------------------------------------------------------------------------


def run_options(case: bytes, _: Path) -> None:
    script, *arguments = json.loads(case.decode('utf-8', 'surrogatepass'))
    arguments = [text.replace('\0', '') for text in arguments]  # a command line has none
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            SCRIPTS[script].parse(arguments)
    except SystemExit as e:
        lines = [line for line in err.getvalue().splitlines() if not line.startswith('note: ')]
        if e.code == 0:
            assert {'-h', '--help'} & {*arguments}, 'ends with status 0'
        else:
            assert e.code == 2, f'ends with status {e.code}'
            assert len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < LONGEST, (
                f'ends in no sentence: {err.getvalue()[:300]!a}')


def draw_options(rng: Random) -> bytes:
    script = rng.choice(list(SCRIPTS))
    arguments = ['--save', 'logs/x'] if script == 'cifar' else ['--dataroot', 'x']
    for _ in range(rng.randrange(8)):
        name = '--' + rng.choice(OPTIONS)
        if rng.random() < 0.1:
            name = rng.choice((*mutate.TEXTS, name[:-1], name[1:], name + '='))
        kind = rng.randrange(5)
        text = (rng.choice(WORDS) if kind < 2 else str(rng.choice(mutate.INTS + mutate.FLOATS)) if kind == 2
                else rng.choice(mutate.TEXTS) if kind == 3 else json.dumps(mutate.value(rng)))
        arguments += rng.choice(([name, text], [name, text], [f'{name}={text}'], [name], [text]))
    return mutate.encoded(json.dumps([script, *arguments], ensure_ascii=False))


def craft_options() -> dict[str, bytes]:
    lists = {
        'ngpu': ['cifar', '--save', 'x', '--ngpu', '2147483647', '--batch_size', '2147483647'],
        'home': ['imagenet', '--dataroot', '~nobody_of_this_name/x'],
        'home_nul': ['imagenet', '--dataroot', '~a\0b'],
        'newline': ['cifar', '--save', 'x', 'two\nlines'],
        'escape': ['cifar', '--save', 'x', '\x1b[2J'],
        'long': ['cifar', '--save', 'x', 'y' * 100_000],
        'long_choice': ['cifar', '--save', 'x', '--dataset', 'y' * 100_000],
        'nested': ['cifar', '--save', 'x', '--epoch_step', '[' * 100_000],
        'digits': ['cifar', '--save', 'x', '--seed', '1' * 100_000],
        'huge_group': ['cifar', '--save', 'x', '--teacher_id', 't', '--beta', '1', '--at_groups',
                       '1' + '0' * 4000],
        'surrogate': ['cifar', '--save', 'x', '--model', '\udcff'],
        'percent': ['cifar', '--save', 'x', '--dataset', '%(prog)s %d'],
        'width': ['cifar', '--save', 'x', '--width', '1e308'],
    }
    return {name: mutate.encoded(json.dumps(words, ensure_ascii=False)) for name, words in lists.items()}


# --- logs ------------------------------------------------------------------------------------------------

RECORD = {
    'dataset': 'CIFAR10', 'depth': 16, 'width': 1.0, 'epochs': 3, 'n_parameters': 175994, 'test_acc': 90.5,
    'train_time': 1.5, 'epoch': 1, 'seed': 1, 'save': 'logs/a', 'teacher_id': '', 'beta': 1000.0,
    'alpha': 0.0,
    'at_losses': [[1.0, 0.1], [2.0, 0.2], [float('nan'), 0.1]], 'kd_losses': [[1.0, 0.1]],
    'at_groups': [0, 1, 2],
    'epoch_step': [60, 120], 'test_acc5': 99.0, 'max_images': 0, 'model': 'wrn', 'no_bn': False,
    'teacher': '',
    'lr': 0.1, 'grad_losses': [[1.0, 0.1], [1.0, 0.1]], 'map': 'sum', 'temperature': 4}
OLD = {key: RECORD[key] for key in ('dataset', 'depth', 'width', 'epochs', 'n_parameters', 'test_acc',
                                    'train_time',
                                    'epoch', 'at_losses')} | {'teacher_id': 'resnet_16_2_teacher',
                                                              'epoch_step': '[60,120,160]',
                                                              'train_loss': float('nan')}


def line_of(record: dict, old: bool = False) -> str:
    return ('json_stats: ' if old else '') + json.dumps(record) + '\n'


def run_logs(case: bytes, folder: Path) -> None:
    (folder / checkpoint.LOG).write_bytes(case)
    records = checkpoint.read_log(folder / checkpoint.LOG)
    assert all(isinstance(r, dict) and type(r['epoch']) is int for r in records)
    name = checkpoint.dataset_of(folder)
    assert name is None or isinstance(name, str), f'the data set is {type(name).__name__}'
    runs = logs.read([str(folder)])
    assert runs and all(run.errors for run in runs)
    with contextlib.suppress(InputError):  # of several data sets
        logs.differences(logs.group(runs))


def draw_logs(rng: Random) -> bytes:
    lines = []
    for epoch in range(1, rng.choice((2, 4))):
        old = rng.random() < 0.3
        record = (OLD if old else RECORD) | {'epoch': epoch}
        if rng.random() < 0.8:
            record = mutate.changed(rng, record)
        lines.append(line_of(record, old))
    content = ''.join(lines).encode()
    return mutate.broken(rng, content) if rng.random() < 0.3 else content


def craft_logs() -> dict[str, bytes]:
    def log(*changes: dict, old: bool = False) -> bytes:
        return ''.join(line_of((OLD if old else RECORD) | c, old) for c in changes or ({},)).encode()

    text = log().decode()
    found = {
        'sound': log({}, {'epoch': 2}), 'published': b'| epoch |\n' + log({}, {'epoch': 2}, old=True),
        'nothing': b'', 'nul': bytes(1000), 'nested': b'{"epoch":' + b'[' * 100_000,
        'nested_whole': text.replace('"wrn"', '[' * 900 + ']' * 900).encode(),
        'deep': text.replace('"wrn"', '[' * 90_000 + ']' * 90_000).encode(),
        'many_brackets': text.replace('"wrn"', '[' + ','.join(['[' * 900 + ']' * 900] * 500) + ']').encode(),
        'digits': text.replace('1.5', '1' * 100_000).encode(), 'infinite': text.replace('90.5',
                                                                                        '1e999').encode(),
        'big5': log({'train_time': 10**400}), 'twice': text.replace('{', '{"epoch": 7, ', 1).encode(),
        'lines': b'\n' * 1_000_000, 'wide': log() + '😀'.encode() * 500_000,
        'far': log({'epoch': 2**62, 'epochs': 2**63}), 'name': log({'save': 'a' * 100,
                                                                    'teacher_id': 'b' * 5000}),
        'parents': log({'save': 'x', 'teacher_id': '../../../etc/passwd'}),
        'null': log({'teacher_id': 'a\0b'}),
        'groups': log({'at_groups': 5}), 'text_losses': log({'at_losses': 7}),
        'acc5': log({'test_acc5': 'x'}),
        'line': log({'dataset': 'two\nlines', 'beta': 1.0}, {'dataset': 'three\n\x1blines'})}
    for key in ('n_parameters', 'depth', 'width', 'epochs', 'test_acc', 'max_images', 'seed', 'lr'):
        found |= {f'big_{key}': log({key: 10**400}), f'true_{key}': log({key: True}),
                  f'list_{key}': log({key: [1]})}
    return found


TARGETS = [Target('options', craft_options, draw_options, run_options),
           Target('logs', craft_logs, draw_logs, run_logs, factor=128)]  # '[]' are two bytes in a file
