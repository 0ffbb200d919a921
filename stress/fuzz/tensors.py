"""What all readers of tensors are fed to, and a target: .safetensors."""
import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import resnet
from stress.fuzz import mutate
from stress.fuzz.sandbox import Target
from weights import networks, tensors

TINY = 1 / 16  # width of a wide ResNet with one channel


@functools.cache
def network() -> dict[str, Tensor]:
    """Tensors of the smallest network."""
    torch.manual_seed(0)
    return resnet.wide_resnet(10, TINY, 2)[1]


def run_weights(case: bytes, folder: Path) -> None:
    path = folder / 'weights'
    path.write_bytes(case)
    params = tensors.read(path)
    assert params == {} or all(t.dtype == torch.float32 and t.is_contiguous() for t in params.values())
    sum(float(t.view(-1).sum()) for t in params.values())  # touches all of them
    _, params = networks.network(params, str(path))
    networks.describe(params)


# --- safetensors -----------------------------------------------------------------------------------------


def safe(header: Any, n: int = 24, length: int | None = None) -> bytes:
    """A file with a header, as text or of values, and n bytes of numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode('utf-8', 'surrogatepass')
    return (len(text) if length is None else length).to_bytes(8, 'little') + text + bytes(n)


ENTRY = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}
DTYPES = ('F32', 'F16', 'BF16', 'F64', 'I64', 'BOOL', 'U8', 'F8_E4M3', 'F8_E5M2', 'U64', 'C64', 'F4', 'F99',
          '', 'f32')


def craft_safetensors() -> dict[str, bytes]:
    text = json.dumps({'x': ENTRY})
    found = {f'length_{n:x}': safe({'x': ENTRY}, length=n) for n in (0, 1, 7, 2**31, 2**40, 2**60, 2**63,
                                                                     2**64 - 1)}
    found |= {f'shape_{i}': safe({'x': ENTRY | {'shape': shape}}) for i, shape in enumerate((
        [2**58], [2**60], [2**32, 2**32], [2**64], [2**62, 0, 2**62], [-1, -6], [1.5], 'x', None, [[]], [0],
        [1] * 5000,
        [0, 2**63], [0, 2**60, 2**60]))}
    found |= {f'offsets_{i}': safe({'x': ENTRY | {'data_offsets': o}}) for i, o in enumerate((
        [0, 2**60], [2**60, 2**60 + 24], [24, 0], [-24, 0], [0, 24, 48], [], None, [0.0, 24.0],
        [2**64, 2**64 + 24]))}
    found |= {f'dtype_{d}': safe({'x': ENTRY | {'dtype': d}}) for d in DTYPES}
    return found | {
        'overlap': safe({f'x{i}': ENTRY for i in range(1000)}),
        'twice': safe(f'{{"x": 1, {text[1:]}'.encode()),
        'same': safe((text[:-1] + ', ' + text[1:]).encode()), 'hole': safe({'x': ENTRY}, 1000), 'deep': safe(
            b'{"x":' + b'[' * 10**5), 'empty': safe({}),
            'metadata': safe({'__metadata__': {'x': 'y' * 10**5}, 'x': ENTRY}),
        'metadata_odd': safe({'__metadata__': 3, 'x': ENTRY}), 'name_up': safe({'../../canary': ENTRY}),
        'name_long': safe({'x' * 10**6: ENTRY | {'dtype': 'I32'}}), 'nul': safe({'\0': ENTRY}),
        'spaces': safe(
            text.encode() + b' ' * 10**6), 'none': safe({f'x{i}': ENTRY | {'shape': [0],
                                                                           'data_offsets': [0, 0]}
                                                         for i in range(10**4)}),
        'no_elements': safe({'group2.block0.conv0': ENTRY | {'shape': [2**60, 0], 'data_offsets': [0, 0]},
                             'bn.x': ENTRY, 'fc.weight': ENTRY | {'shape': [0], 'data_offsets': [0, 0]}})}


@functools.cache
def sound_safetensors() -> list[bytes]:
    few = {name: network()[name] for name in ('conv0', 'fc.weight', 'bn.bias')}
    return [safetensors.torch.save(network()), safetensors.torch.save(few),
            safetensors.torch.save(few, {'a': 'b'})]


def draw_safetensors(rng: Random) -> bytes:
    if rng.random() < 0.4:
        return mutate.drawn_from(sound_safetensors(), rng)
    header, offset = {}, 0
    for _ in range(rng.randrange(1, 5)):
        shape = [rng.choice((0, 1, 2, 3, 2, 1, rng.choice(mutate.INTS))) for _ in range(rng.randrange(5))]
        size = 4 * int(np.prod([n for n in shape if -10 < n < 10], dtype=np.int64))
        entry = {'dtype': rng.choice(('F32', 'F32', *DTYPES)), 'shape': shape,
                 'data_offsets': [offset, offset + size]}
        offset += size
        if rng.random() < 0.3:
            entry = mutate.changed(rng, entry)
        header[rng.choice((*network(), *mutate.TEXTS))] = entry
    return safe(json.dumps(header).encode(), max(offset, 0))


TARGETS = [Target('safetensors', craft_safetensors, draw_safetensors, run_weights)]
