"""Target: .hkl, files of HDF5."""
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from stress.fuzz import mutate
from stress.fuzz.sandbox import Target
from stress.fuzz.tensors import network, run_weights

Write = Callable[[h5py.File], Any]


def hdf5(write: Write, **options: Any) -> bytes:
    """A file as hickle 5 begins it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'a')
        with h5py.File(path, 'w', **options) as f:
            f.attrs['HICKLE_VERSION'] = '5.0.3'
            f.create_group('data')
            write(f)
        return path.read_bytes()


def put(f: h5py.File, *names: str, **options: Any) -> None:
    for name, t in network().items():
        if not names or name in names:
            f['data'].create_dataset(f'"{name}"', data=t.numpy(), **(options if t.dim() else {}))


@functools.cache
def sound_hickle() -> list[bytes]:
    few = ('conv0', 'fc.weight', 'bn.bias')
    old = hdf5(lambda f: [f.create_dataset(f"data/'{n}'/data", data=t.numpy()) for n, t in network().items()
                          if n in few])
    return [hdf5(lambda f: put(f, *few)), hdf5(lambda f: put(f, *few, compression='gzip', shuffle=True)), old,
            hdf5(lambda f: put(f, *few, chunks=True, fletcher32=True)),
            hdf5(lambda f: put(f, *few), libver='latest'),
            hdf5(put)]


def one(shape: Any = None, kind: str = 'f4', **options: Any) -> Write:
    return lambda f: f['data'].create_dataset('"x"', shape, kind, **options)


def part(shape: Any, n: int, **options: Any) -> Write:
    """Only its first n elements are written."""
    def write(f: h5py.File) -> None:
        f['data'].create_dataset('"x"', shape, 'f4', **options)[:n] = 1
    return write


def virtual(name: str) -> Write:
    def write(f: h5py.File) -> None:
        layout = h5py.VirtualLayout((3,), 'f4')
        layout[:] = h5py.VirtualSource(name, 'x', (3,))
        f['data'].create_virtual_dataset('"x"', layout)
    return write


def external(name: str, target: str) -> Write:
    """A link to another file, at `name`."""
    def write(f: h5py.File) -> None:
        del f['data']
        f[name] = h5py.ExternalLink(target, '/x')
    return write


def array(name: str) -> Write:
    return lambda f: f['data'].create_dataset(
        f'"{name}"'.replace('/', '|').encode('utf-8', 'surrogateescape'), data=np.ones(3, 'i4'))


def dense(f: h5py.File) -> None:
    f['data'].create_dataset('"y"', data=np.random.default_rng(0).standard_normal(2**18).astype('f4'))
    f['data'].create_dataset('"x"', data=np.zeros(2**24 + 2**23, 'f4'), compression=9)


def alike(f: h5py.File) -> None:
    f['data/"x"'] = np.zeros((100, 1000), 'f4')
    for i in range(2000):
        f[f'data/"{i}"'] = f['data/"x"']


def nested(f: h5py.File) -> None:
    f['data'].create_group('loop')
    f['data/loop/data'] = f['data']


# What claims or takes more memory than its file.
LARGE: dict[str, Write] = {
    'claims_2_60': one((2**58,)), 'claims_chunks': one((2**60,), chunks=(2**10,)),
    'past_64_bits': one((2**40, 2**40), chunks=(1, 8)),
    'filled': one((2**24,), chunks=(2**10,), fillvalue=3),
    'bomb': part((2**25,), 2**25, chunks=(2**20,), compression=9),
    'bomb_small': part((2**24 - 1000,), 2**24 - 1000, chunks=(2**20,), compression=9),
    'bomb_sparse': part((2**40,), 5, chunks=(2**10,), compression=9),
    'bomb_chunk': part((5,), 5, maxshape=(None,), chunks=(2**26,), compression=9), 'alike': alike,
    'dense': dense, 'loop': nested,
    'bomb_bytes': lambda f: f['data'].create_dataset('"x"', data=np.zeros(2**24, 'i1'), compression=9)}

# What is no array of numbers in this file.
OTHER: dict[str, Write] = {
    'integers': lambda f: f['data'].create_dataset('"x"', data=np.ones(10**6, 'i1')),
    'virtual': virtual('../pipe'), 'virtual_self': virtual('.'),
    'storage': one((3,), external=[('../pipe', 0, 12)]),
    'passwd': one((3,), external=[('/etc/passwd', 0, 12)]),
    'reference': lambda f: f['data'].create_dataset('"x"', data=f['data'].ref, dtype=h5py.ref_dtype),
    'soft': lambda f: f['data'].__setitem__('"x"', h5py.SoftLink('/data')),
    'vlen': lambda f: f['data'].create_dataset('"x"', (3,), h5py.vlen_dtype('f4')),
    'no_shape': lambda f: f['data'].__setitem__('"x"', h5py.Empty('f4')),
    'dimensions': one((1,) * 32, data=np.ones((1,) * 32, 'f4')),
    'no_elements': lambda f: f['data'].create_dataset('"group2.block0.conv0"', (2**60, 0, 3, 3), 'f4'),
    'bit_field': lambda f: f['data'].create_dataset('"x"', (3,), 'V4'),
    'quote': lambda f: f['data'].create_dataset('"', data=np.ones(3, 'f4')),
    'odd_float': lambda f: f['data'].create_dataset('"x"', data=np.ones(3, 'f2').astype(np.longdouble))}


def craft_hickle() -> dict[str, bytes]:
    found = LARGE | OTHER
    for name in ('..', '../../x', '/etc/passwd', 'a' * 60_000, 'x\n\x1b[2J', '\udcff'):
        found[f'name_{len(name)}_{name[:2].encode("utf-8", "replace").hex()}'] = array(name)
    for name in ('data', 'data/"x"', "data/'x'/data", 'data_0', 'data_0/x/data_0'):
        for target in ('../pipe', '/etc/passwd', 'weights'):
            found[f'link_{name}_{target}'.replace('/', '|')] = external(name, target)
    signature = b'\x89HDF\r\n\x1a\n'
    return {name: hdf5(write) for name, write in found.items()} | {
        'signature': signature, 'user_block': signature + bytes(504) + sound_hickle()[0]}


def draw_hickle(rng: Random) -> bytes:
    return mutate.drawn_from(sound_hickle(), rng)


TARGETS = [Target('hickle', craft_hickle, draw_hickle, run_weights)]
