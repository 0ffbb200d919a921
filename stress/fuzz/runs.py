"""Target: checkpoints to go on from."""
import argparse
import functools
import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

import cifar
import layers
import resnet
import training
from inputs import cifar as data
from stress.fuzz import mutate, pickles, tensors
from stress.fuzz.pickles import Raw, called, named, tensor
from stress.fuzz.sandbox import Target
from training import checkpoint
from utils import InputError

CPU = torch.device('cpu')
CLASSES = data.CLASSES['shapes']
ADAPTOR = {'adaptor:0': (1, 1, 1, 1)}
LARGEST = 432  # elements of a tensor


@functools.cache
def options() -> argparse.Namespace:
    return cifar.parse(['--save', 'run', '--depth', '10', '--width', str(tensors.TINY), '--dataset', 'shapes',
                        '--epochs', '3', '--device', 'cpu', '--resume', 'auto'])


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in resnet.wide_resnet(10, tensors.TINY, CLASSES)[1].items()}


def run_checkpoint(case: bytes, folder: Path) -> None:
    run, opt = folder / 'run', argparse.Namespace(**vars(options()))
    run.mkdir()
    (run / checkpoint.MODEL).write_bytes(case)
    errors = []

    def attempt(step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except InputError as e:
            errors.append(e)
        return None

    name = checkpoint.dataset_of(run)
    assert name is None or isinstance(name, str), f'the data set is {type(name).__name__}'
    attempt(resnet.load, run / checkpoint.MODEL)
    found = attempt(checkpoint.Folder, opt)
    if found:
        assert 1 <= found.state['epoch'] == found.epochs[-1]['epoch'], 'goes on from no epoch'
        for hints in ({}, ADAPTOR):
            attempt(go_on, opt, {k: torch.zeros(shape) for k, shape in hints.items()})
        found.complete_log()
        checkpoint.write_log(found.log, found.epochs)
    if errors:
        raise errors[0]


def go_on(opt: argparse.Namespace, hints: dict[str, torch.Tensor]) -> None:
    """As the scripts do, up to the first step, which is made of gradients of zeros."""
    params = {name: torch.zeros(shape) for name, shape in shapes().items()} | hints
    trained = layers.trainable(params)
    loader = data.Loader(data.Images(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1)), 1)
    run = training.Run(opt, checkpoint.Folder(opt), params, None, loader, loader, {'num_classes': CLASSES})
    for t in trained.values():
        t.grad = torch.zeros_like(t)
    run.optimizer.step()


def zeros(shape: tuple[int, ...]) -> Raw:
    stride, n = [], 1
    for size in reversed(shape):
        stride.insert(0, n)
        n *= size
    return tensor(shape, tuple(stride), LARGEST)


@functools.cache
def state() -> dict[str, Any]:
    """A checkpoint after the first epoch."""
    trained = [name for name in shapes() if not layers.is_statistic(name)]
    buffers = {i: {'momentum_buffer': zeros(shapes()[name])} for i, name in enumerate(trained)}
    return {'params': {name: zeros(shape) for name, shape in shapes().items()}, 'adaptors': {}, 'epoch': 1,
            'optimizer': {'state': buffers,
                          'param_groups': [{'lr': 0.1, 'params': list(range(len(trained)))}]},
            'options': vars(options()) | {'num_classes': CLASSES},
            'record': {'epoch': 1, 'test_acc': 50.0, 'at_losses': [[1.0, 0.1]], 'dataset': 'shapes'}}


def saved(value: dict[str, Any]) -> bytes:
    return pickles.saved(value, storages={'0': bytes(4 * LARGEST)})


def changed(**fields: Any) -> bytes:
    """The checkpoint with other fields, of a dictionary those that are given."""
    whole = dict(state())
    for name, v in fields.items():
        whole[name] = whole[name] | v if isinstance(v, dict) and isinstance(whole[name], dict) else v
    return saved(whole)


def craft_checkpoint() -> dict[str, bytes]:
    nested = Raw(b']' * 20_000 + b'a' * 19_999)
    within = Raw(b']q\x63h\x63a')  # a list that holds itself
    odd = {
        'laughs': pickles.LAUGHS, 'nested': nested, 'within': within, 'tensor': tensor(),
        'view': tensor((2**20, 2**20), (0, 0)), 'type': named('torch.float32'),
        'set': called('builtins.set', [1]), 'big': 2**2000, 'nan': float('nan'),
        'keys': {1: 2, None: 3, (1, 2): 4}, 'text': 'x' * 10_000, 'lines': 'a\nb\x1b[2J', 'tuple': (1, 2),
        'none': None, 'list': [1] * 10_000, 'surrogate': '\ud800', 'device': called('torch.device', 'cpu')}
    found = {'sound': saved(state())}
    for name, value in odd.items():
        found |= {
            f'option_{name}': changed(options={'lr': value}),
            f'record_{name}': changed(record={'x': value}),
            f'depth_{name}': changed(options={'depth': value}),
            f'dataset_{name}': changed(options={'dataset': value}),
            f'options_{name}': changed(options={'x': value}),
            f'momentum_{name}': momentum(value),
            f'adaptor_{name}': changed(adaptors={'adaptor:0': value}),
            f'epoch_{name}': changed(epoch=value),
            f'record_epoch_{name}': changed(record={'epoch': value}),
            f'optimizer_{name}': saved(state() | {'optimizer': {'state': value}}),
            f'params_{name}': saved(state() | {'params': value}),
            f'whole_{name}': pickles.saved(value)}
    for epoch in (0, -1, -5, True, 1.0, 2, 3, 4, 2**31, 2**62, 2**1000, '1'):
        found[f'epoch_{str(epoch)[:20]}'] = changed(epoch=epoch)
        found[f'both_epochs_{str(epoch)[:20]}'] = changed(epoch=epoch, record={'epoch': epoch})
    ones = (1, 1, 1, 1)
    meta = '_rebuild_meta_tensor_no_storage'
    kinds = {
        'complex': tensor(ones, ones, 3, kind='ComplexFloatStorage'),
        'long': tensor(ones, ones, 3, kind='LongStorage'),
        'double': tensor(ones, ones, 3, kind='DoubleStorage'),
        'bool': tensor(ones, ones, 24, kind='BoolStorage'),
        'view': tensor(ones, (0, 0, 0, 0)),
        'fine': zeros(ones),
        'meta': called(f'torch._utils.{meta}', named('torch.float32'), ones, ones, False),
        'parameter': called('torch._utils._rebuild_parameter', zeros(ones), True,
                            called('collections.OrderedDict'))}
    for name, value in kinds.items():
        found[f'adaptor_kind_{name}'] = changed(adaptors={'adaptor:0': value},
                                                optimizer=with_momentum(value, last=True))
    shape = next(iter(shapes().values()))
    for kind in ('ComplexFloat', 'Long', 'Bool', 'Double'):
        found[f'momentum_kind_{kind}'] = momentum(tensor(shape, (0,) * len(shape), 10, kind=f'{kind}Storage'))
    found['momentum_meta'] = momentum(
        called(f'torch._utils.{meta}', named('torch.float32'), shape, (1,) * len(shape), False))
    students = {f'student.{name}': t for name, t in state()['params'].items()}
    return found | {
        'states_list': saved(state() | {'optimizer': {'state': []}}),
        'states_few': saved(state() | {'optimizer': {'state': [{}]}}),
        'students': saved(state() | {'params': students})}


def with_momentum(value: Any, last: bool = False) -> dict[str, Any]:
    old = state()['optimizer']['state']
    return {'state': old | {len(old) if last else 0: {'momentum_buffer': value}}}


def momentum(value: Any) -> bytes:
    return changed(optimizer=with_momentum(value))


@functools.cache
def sound() -> bytes:
    content = io.BytesIO()
    params = {name: torch.zeros(shape) for name, shape in shapes().items()}
    torch.save(state() | {'params': params, 'optimizer': {}}, content)
    return content.getvalue()


def draw_checkpoint(rng: Random) -> bytes:
    if rng.random() < 0.2:
        return pickles.again(rng.choice((saved(state()), sound())), rng)
    whole = dict(state())
    for name in rng.sample(list(whole), rng.choice((1, 1, 1, 2))):
        if isinstance(whole[name], dict) and whole[name] and rng.random() < 0.8:
            whole[name] = mutate.changed(rng, whole[name], pickles.draw_value)
        else:
            whole[name] = pickles.draw_value(rng)
    return saved(whole)


TARGETS = [Target('checkpoint', craft_checkpoint, draw_checkpoint, run_checkpoint)]
