"""Files of other programs: all read to the same tensors; hostile and damaged ones refused in one sentence."""
import http.server
import io
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import h5py
import hickle
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

import resnet
from helpers import ROOT, Payload
from utils import InputError
from weights import networks, tensors

SAFETENSORS = safetensors.torch.save({'x': torch.ones(1)})
LAYOUTS = ['2.x', '3.x', '4.x', '5.x']


def some_params() -> dict[str, torch.Tensor]:
    return {'conv0.weight': torch.randn(4, 3, 3, 3), 'conv0.bias': torch.randn(4), 'scale': torch.randn(()),
            'none': torch.zeros(0, 3)}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        t.dtype == torch.float32 and t.is_contiguous() and not t.requires_grad and torch.equal(t, b[name])
        for name, t in a.items())


def refused(path, *words) -> str:
    with pytest.raises(InputError) as error:
        tensors.read(path)
    message = str(error.value)
    assert str(path) in message and '\n' not in message
    for word in words:
        assert word in message
    return message


def place(f: h5py.File, layout: str, key: str) -> tuple[h5py.Group, str]:
    """Group and name in it where the layout has the array of a key; the header is written as well."""
    old = layout in ('2.x', '3.x')
    if old:
        f.attrs['CLASS'] = b'hickle' if layout == '2.x' else 'hickle'
        f.attrs['VERSION'] = 3 if layout == '2.x' else '3.4.9'
        f.attrs['type'] = [b'hickle']
    else:
        f.attrs['HICKLE_VERSION'] = '4.0.4' if layout == '4.x' else '5.0.3'
    top = f.require_group('data_0' if old else 'data')
    if old:
        top.attrs['type'] = [b'dict']
    if layout == '5.x':
        return top, f'"{key}"'
    group = top.require_group(key if layout == '2.x' else f"'{key}'")
    group.attrs['base_type'], group.attrs['key_base_type'] = b'ndarray', b'str'
    return group, 'data_0' if old else 'data'


def write_hickle(path: Path, layout: str, arrays: dict, **options) -> Path:
    with h5py.File(path, 'w') as f:
        for key, array in arrays.items():
            group, name = place(f, layout, key)
            dataset = group.create_dataset(name, data=array, **(options if np.ndim(array) else {}))
            dataset.attrs['type'] = [b'ndarray']
    return path


# --- hickle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_of_hickle(tmp_path, layout):
    params = some_params()
    arrays = {name: t.numpy() for name, t in params.items()}
    del arrays['none']  # compression needs an element
    for i, options in enumerate(({}, {'compression': 'gzip', 'shuffle': True}, {'chunks': True})):
        path = write_hickle(tmp_path / f'{i}.bin', layout, arrays, **options)
        assert equal(tensors.read(path), {name: params[name] for name in arrays})


def test_a_file_of_hickle_itself(tmp_path):
    params = some_params()
    hickle.dump({name: t.numpy() for name, t in params.items()}, str(tmp_path / 'a.hkl'), mode='w')
    hickle.dump({name: t.numpy() for name, t in params.items() if t.numel() > 1}, str(tmp_path / 'b.hkl'),
                mode='w', compression='gzip')
    assert equal(tensors.read(tmp_path / 'a.hkl'), params)
    assert equal(tensors.read(str(tmp_path / 'b.hkl')), {n: t for n, t in params.items() if t.numel() > 1})


@pytest.mark.parametrize('layout', LAYOUTS)
def test_numbers_of_other_kinds(tmp_path, layout):
    numbers = np.linspace(-3, 3, 12).reshape(3, 4)
    kinds = {'half': '<f2', 'double': '<f8', 'big': '>f4', 'bigger': '>f8'}
    counters = {'bn.num_batches_tracked': np.int64(7), 'unsigned': np.uint16(3), 'big': np.array(3, '>i4')}
    arrays = {name: numbers.astype(kind) for name, kind in kinds.items()}
    path = write_hickle(tmp_path / 'a.hkl', layout, {f'n.{name}': n for name, n in counters.items()} | arrays)
    expected = {k: torch.from_numpy(numbers.astype(d).astype('<f4')) for k, d in kinds.items()}
    assert equal(tensors.read(path), expected)
    write_hickle(path, layout, {'x': np.arange(3)})
    refused(path, "'x'", 'int64', 'floating-point')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_names_are_only_names(tmp_path, layout):
    names = ['', '..', '...', 'café', 'new\nline', '$(touch x)', "it's", 'a"b', '__class__', 'x' * 1000]
    names = [name for name in names if layout != '2.x' or name not in ('', '..')]  # HDF5 itself has no such
    lengths = {name: i for i, name in enumerate(names, 1)}
    path = write_hickle(tmp_path / 'a.hkl', layout, {name: np.ones(n, 'f4') for name, n in lengths.items()})
    assert {name: len(t) for name, t in tensors.read(path).items()} == lengths
    assert os.listdir(tmp_path) == ['a.hkl']


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('stored', ['bytes', 'string', 'text', 'array of bytes', 'opaque'])
def test_pickles_in_hdf5_are_not_loaded(tmp_path, layout, stored):
    mark, path = tmp_path / 'mark', tmp_path / 'a.hkl'
    pickled = pickle.dumps(Payload(mark), 0)  # protocol 0 is text, as Python 2's
    data = {'bytes': np.bytes_(pickled), 'string': [pickled], 'text': pickled.decode(),
            'array of bytes': np.frombuffer(pickled, np.uint8), 'opaque': np.void(pickled)}[stored]
    write_hickle(path, layout, {'fine': np.ones(2, 'f4')})
    with h5py.File(path, 'a') as f:
        group, name = place(f, layout, 'bad')
        dataset = group.create_dataset(name, data=data)
        for node in (dataset, group):
            node.attrs['type'], node.attrs['base_type'] = [b'pickle'], b'pickle'
        content = dataset[()]
    refused(path, 'bad')
    assert not mark.exists()
    if stored == 'string':
        content = content[0]  # the payload is one:
    pickle.loads(content if isinstance(content, bytes) else content.tobytes())
    assert mark.exists()


def test_hickle_itself_runs_the_code_that_is_refused_here(tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'a.hkl'
    with pytest.warns(hickle.lookup.SerializedWarning):
        hickle.dump({'conv0.weight': np.ones(3, 'f4'), 'note': Payload(mark)}, str(path), mode='w')
    refused(path, "'note'")
    assert not mark.exists()
    hickle.load(str(path))
    assert mark.exists()


def test_pickled_types_of_hickle_are_not_loaded(tmp_path):
    """hickle 5 unpickles the classes in its table of types before it looks at the data."""
    mark, path = tmp_path / 'mark', tmp_path / 'a.hkl'
    hickle.dump({'x': np.ones(3, 'f4')}, str(path), mode='w')
    with h5py.File(path, 'a') as f:
        table = f['hickle_types_table']
        name = f[f['data/"x"'].attrs['type']].name.rsplit('/', 1)[1]
        base = table[name].attrs['base_type']
        payload = np.frombuffer(pickle.dumps(Payload(mark), 0), 'S1')
        del table[name]
        table.create_dataset(name, data=payload[None])
        table[name].attrs['base_type'] = base
        f['data/"x"'].attrs['type'] = table[name].ref
    assert tensors.read(path)['x'].tolist() == [1, 1, 1]
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017 - whatever hickle makes of it
        hickle.load(str(path))
    assert mark.exists()


def foreign(f: h5py.File, group: h5py.Group, name: str, kind: str, folder: Path) -> None:
    """Put something else than an array of numbers where the layout has one."""
    f['elsewhere'] = np.ones(3, 'f4')
    if kind == 'external link':
        group[name] = h5py.ExternalLink(str(folder / 'other.hkl'), '/x')
    elif kind == 'soft link':
        group[name] = h5py.SoftLink('/elsewhere')
    elif kind == 'virtual':
        layout = h5py.VirtualLayout((3,), 'f4')
        layout[:] = h5py.VirtualSource(str(folder / 'other.hkl'), 'x', (3,))
        group.create_virtual_dataset(name, layout)
    elif kind == 'external storage':
        group.create_dataset(name, (3,), 'f4', external=[(str(folder / 'raw'), 0, 12)])
    elif kind == 'reference':
        group.create_dataset(name, data=f['elsewhere'].ref, dtype=h5py.ref_dtype)
    elif kind == 'group':
        group.create_group(name)['deeper'] = np.ones(3, 'f4')
    elif kind == 'type':
        group[name] = np.dtype('f4')
    elif kind == 'empty':
        group[name] = h5py.Empty('f4')
    elif kind == 'variable length':
        group.create_dataset(name, (2,), h5py.vlen_dtype('f4'))
    else:
        group[name] = {'compound': np.zeros(3, [('a', 'f4'), ('b', 'i4')]), 'complex': np.ones(3, 'c8'),
                       'bool': np.ones(3, bool), 'strings': np.array([b'a', b'b'])}[kind]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kind', [
    'external link', 'soft link', 'virtual', 'external storage', 'reference', 'group', 'type', 'empty',
    'variable length', 'compound', 'complex', 'bool', 'strings'])
def test_what_is_no_array_of_numbers(tmp_path, layout, kind):
    with h5py.File(tmp_path / 'other.hkl', 'w') as f:
        f['x'] = np.full(3, 42, 'f4')
    np.full(3, 42, 'f4').tofile(tmp_path / 'raw')
    path = write_hickle(tmp_path / 'a.hkl', layout, {'fine': np.ones(2, 'f4')})
    with h5py.File(path, 'a') as f:
        group, name = place(f, layout, 'bad')
        foreign(f, group, name, kind, tmp_path)
        if 'link' in kind or kind in ('virtual', 'external storage'):
            assert group[name][0] in (1, 42)  # HDF5 would follow
    refused(path, 'no array of numbers', 'bad')


LINKED = '''
    import sys
    from weights import tensors
    for path in sys.argv[1:]:
        try:
            tensors.read(path)
        except tensors.InputError:
            print('refused')
'''


def test_links_are_not_even_opened(tmp_path):
    """Opening a pipe that nobody writes to waits for ever."""
    os.mkfifo(tmp_path / 'pipe')
    places = ['data', 'data/"x"', "data/'x'/data", 'data_0', 'data_0/x/data_0']
    for i, where in enumerate(places):
        with h5py.File(tmp_path / str(i), 'w') as f:
            f[where] = h5py.ExternalLink(str(tmp_path / 'pipe'), '/x')
    paths = [tmp_path / str(i) for i in range(len(places))]
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(LINKED), *paths], cwd=ROOT, text=True,
                          capture_output=True, timeout=100)
    assert done.stdout == 'refused\n' * len(places), done.stderr


@pytest.mark.parametrize('content', ['nothing', 'another program', 'an array', 'an empty dictionary'])
def test_other_hdf5(tmp_path, content):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as f:
        if content == 'another program':
            f['model_weights/conv'] = np.ones(3, 'f4')
        elif content == 'an array':
            f['data'] = np.ones(3, 'f4')
        elif content == 'an empty dictionary':
            f.create_group('data')
    refused(path, 'no dictionary')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_truncated_hickle(tmp_path, layout):
    whole = write_hickle(tmp_path / 'a.hkl', layout, {
        'x': np.ones((40, 5), 'f4'), 'y': np.zeros(3, 'f4')}).read_bytes()
    part = tmp_path / 'part.hkl'
    for n in {*range(0, len(whole), 97), *range(16), *range(len(whole) - 8, len(whole))}:
        part.write_bytes(whole[:n])
        refused(part)


FLIPPED = '''
    import random, sys
    from pathlib import Path
    from weights import tensors
    from utils import InputError

    path, draw, refused = Path(sys.argv[1]), random.Random(0), 0
    whole = path.read_bytes()
    for i in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            tensors.read(path)
        except InputError:
            refused += 1
    print('refused', refused)
'''


@pytest.mark.parametrize('kind', ['2.x', '5.x', 'safetensors', 'torch'])
def test_flipped_bytes_end_in_one_kind_of_error(tmp_path, kind):
    path = tmp_path / 'weights'
    if kind in LAYOUTS:
        write_hickle(path, kind, {'x': np.ones((4, 5), 'f4'), 'y': np.zeros(3, 'f4')}, chunks=True)
    elif kind == 'torch':
        torch.save({'x': torch.ones(4, 5), 'y': torch.zeros(3)}, path)
    else:
        safetensors.torch.save_file({'x': torch.ones(4, 5), 'y': torch.zeros(3)}, path)
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(FLIPPED), path], cwd=ROOT, text=True,
                          capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 20


# --- claims ----------------------------------------------------------------------------------------------


def claiming(folder: Path) -> list[Path]:
    """Small files that claim to hold much."""
    def hdf5(name, write):
        with h5py.File(folder / name, 'w') as f:
            group, key = place(f, '5.x', 'x')
            write(group, key)
            f.flush()
        return folder / name

    def deflated(group, key):  # a chunk is there, most are not
        dataset = group.create_dataset(key, (2**40,), 'f4', chunks=(2**10,), compression='gzip')
        dataset[:5] = 1

    def large_chunk(group, key):
        group.create_dataset(key, (5,), 'f4', maxshape=(None,), chunks=(2**26,), compression='gzip')[:] = 1

    def linked(group, key):  # one array of zeros under many names
        group[key] = np.zeros((1000, 1000), 'f4')
        for i in range(500):
            group[f'"{i}"'] = group[key]

    paths = [
        hdf5('contiguous', lambda g, k: g.create_dataset(k, (2**58,), 'f4')),
        hdf5('beyond 64 bits', lambda g, k: g.create_dataset(k, (2**40, 2**40), 'f4', chunks=(1, 8))),
        hdf5('chunked', lambda g, k: g.create_dataset(k, (2**58,), 'f4', chunks=(1024,), fillvalue=1)),
        hdf5('filled', lambda g, k: g.create_dataset(k, (2**28,), 'f4', chunks=(1024,), compression='gzip',
                                                     fillvalue=1)),
        hdf5('deflated', deflated), hdf5('large chunk', large_chunk), hdf5('linked', linked)]
    torch.save({'x': torch.zeros(1).expand(2**40)}, folder / 'expanded')
    torch.save({f'x{i}': torch.zeros(1000).expand(1000, 1000, 1000) for i in range(9)}, folder / 'shared')
    torch.save({'x': torch.zeros(2**25 + 2**24)}, folder / 'zeros')
    with zipfile.ZipFile(folder / 'zeros') as stored, \
            zipfile.ZipFile(folder / 'bomb', 'w', zipfile.ZIP_DEFLATED) as bomb:
        for entry in stored.infolist():
            bomb.writestr(entry.filename, stored.read(entry))
    torch.save({'x': torch.zeros(5)}, folder / 'legacy', _use_new_zipfile_serialization=False)
    content = (folder / 'legacy').read_bytes()
    assert content.count(b'K\x05N') == content.count(b'\x05\0\0\0\0\0\0\0') == 1
    content = content.replace(b'K\x05N', b'\x8a\x08' + (2**60).to_bytes(8, 'little') + b'N')
    (folder / 'legacy').write_bytes(content.replace(b'\x05\0\0\0\0\0\0\0', (2**60).to_bytes(8, 'little')))
    header = json.dumps({'x': {'dtype': 'F32', 'shape': [2**58], 'data_offsets': [0, 2**60]}}).encode()
    for name, n in (('long array', len(header)), ('long header', 2**60), ('longest header', 2**64 - 1)):
        (folder / name).write_bytes(n.to_bytes(8, 'little') + header + b'\0' * 100)
    return [*paths, *(folder / name for name in ('expanded', 'shared', 'bomb', 'legacy', 'long array',
                                                 'long header'))]


CLAIMING = '''
    import re, sys
    from pathlib import Path
    import h5py, safetensors.torch, torch
    from weights import tensors
    from utils import InputError

    def peak():
        return int(re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1]) >> 10

    before = peak()
    for path in sys.argv[1:]:
        try:
            tensors.read(path)
            print(path, 'was read')
        except InputError as e:
            pass
        if peak() > before + 100:
            print(path, 'took', peak() - before, 'MiB')
            before = peak()
    torch.ones(50_000_000)
    assert peak() > before + 150
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads the peak of memory from /proc')
def test_claims_take_no_memory(tmp_path):
    paths = claiming(tmp_path)
    for path in paths:
        assert path.stat().st_size < 5e6
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(CLAIMING), *paths], cwd=ROOT, text=True,
                          capture_output=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    refused(tmp_path / 'longest header')


def test_content_that_was_never_written(tmp_path):
    path = tmp_path / 'a.hkl'
    for options in ({}, {'chunks': (10,)}, {'chunks': (10,), 'compression': 9}):
        with h5py.File(path, 'w') as f:
            group, name = place(f, '5.x', 'x')
            group.create_dataset(name, (100,), 'f4', **options)
        refused(path, "'\"x\"'", 'cut short')
    with h5py.File(path, 'a') as f:
        del f['data/"x"']
        f['data'].create_dataset('"x"', (100,), 'f4', chunks=(10,))[:50] = 1
    refused(path, 'cut short')


def test_zeros_that_compress_well_are_read(tmp_path):
    path = write_hickle(tmp_path / 'a.hkl', '5.x', {'x': np.zeros((1000, 1000), 'f4')}, compression='gzip')
    assert path.stat().st_size < 40_000
    assert equal(tensors.read(path), {'x': torch.zeros(1000, 1000)})


# --- torch and safetensors -------------------------------------------------------------------------------


def test_dictionaries_of_torch(tmp_path):
    path, params = tmp_path / 'weights', some_params()
    prefixed = {f'module.{name}': t for name, t in params.items()}
    both = {f'student.{n}': t for n, t in params.items()} | {f'teacher.{n}': t + 1 for n, t in params.items()}
    counted = params | {'bn1.num_batches_tracked': torch.tensor(5), 'flag': torch.tensor(True)}
    for content in (params, counted, {'params': params, 'optimizer': {'state': {}}, 'epoch': 3},
                    {'state_dict': params, 'best_acc1': 70.0, 'arch': 'resnet18'}, {'state_dict': prefixed},
                    prefixed, {'params': both}, {n: torch.nn.Parameter(t) for n, t in params.items()},
                    {name: t.double() for name, t in params.items()}):
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            assert equal(tensors.read(path), params)
    torch.save(params | {'module.x': torch.ones(1)}, path)  # a name like any other
    assert equal(tensors.read(path), params | {'module.x': torch.ones(1)})
    torch.save({'x': torch.arange(6.).view(2, 3).t()}, path)
    assert equal(tensors.read(path), {'x': torch.arange(6.).view(2, 3).t()})
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({name: t.to(dtype) for name, t in params.items()}, path)
        assert equal(tensors.read(path), {name: t.to(dtype).float() for name, t in params.items()})


@pytest.mark.parametrize(('content', 'word'), [
    ({}, 'no dictionary'), ([1], 'no dictionary'), ({'params': {}}, 'no dictionary'),
    ({0: torch.ones(1)}, 'no dictionary'), ({'a': torch.ones(1), 'epoch': 3}, 'no dictionary'),
    ({'x': torch.arange(3)}, "'x' of torch.int64"),
    ({'x': torch.tensor(1j)}, 'complex'), ({'x': torch.ones(2, 2).to_sparse()}, 'dense'),
    ({'x': torch.empty(2**50, device='meta')}, 'meta')], ids=str)
def test_other_contents_of_torch(tmp_path, content, word):
    torch.save(content, tmp_path / 'weights')
    refused(tmp_path / 'weights', word)


@pytest.mark.parametrize('zipped', [True, False])
def test_pickles_of_torch_are_not_loaded(tmp_path, zipped):
    mark, path = tmp_path / 'mark', tmp_path / 'weights.hkl'
    content = {'state_dict': some_params(), 'note': Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, 'run code')
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_safetensors(tmp_path):
    params, path = some_params(), tmp_path / 'weights.bin'
    more = {'n.num_batches_tracked': torch.tensor(3)}
    safetensors.torch.save_file(params | more, path, metadata={'format': 'pt'})
    read = tensors.read(path)
    assert equal(read, params)
    before = path.read_bytes()
    read['conv0.weight'].zero_()  # the tensors are the reader's own
    assert path.read_bytes() == before
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        safetensors.torch.save_file({name: t.to(dtype) for name, t in params.items()}, path)
        assert equal(tensors.read(path), {name: t.to(dtype).float() for name, t in params.items()})
    safetensors.torch.save_file({'x': torch.arange(3)}, path)
    refused(path, "'x' of torch.int64")


def test_truncated_safetensors_and_lying_headers(tmp_path):
    path = tmp_path / 'weights'
    whole = safetensors.torch.save({'x': torch.ones(4, 5), 'y': torch.zeros(3)})
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        refused(path)
    for entry in ({'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 80]}, {'dtype': 'F99', 'shape': []},
                  {'dtype': 'F32', 'shape': [20], 'data_offsets': [80, 160]},
                  {'dtype': 'F32', 'shape': [-1, -20], 'data_offsets': [0, 80]}, 3):
        header = json.dumps({'x': entry}).encode()
        path.write_bytes(len(header).to_bytes(8, 'little') + header + b'\0' * 80)
        refused(path, 'safetensors')


@pytest.mark.parametrize(('package', 'kind'), [('safetensors', 'safetensors'), ('h5py', 'HDF5')])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, kind):
    for name in [name for name in sys.modules if name.split('.')[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    path = tmp_path / 'weights'
    path.write_bytes(SAFETENSORS if kind == 'safetensors' else b'\x89HDF\r\n\x1a\n')
    refused(path, kind, f'pip install {package}')


def test_importing_needs_no_such_package():
    code = 'import sys, weights; print({"h5py", "hickle", "safetensors", "torchvision"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True, timeout=100)
    assert done.stdout == 'set()\n', done.stderr


# --- what is no file of weights --------------------------------------------------------------------------


@pytest.mark.parametrize(('content', 'word'), [
    (b'', 'empty'), (b'<!DOCTYPE html>\n<html>404</html>', 'web page'), (b'\n \xef\xbb\xbf', 'not a file'),
    (b'\xef\xbb\xbf \r\n<html lang="en">caf\xc3\xa9', 'web page'), (b'404: Not Found', "'404: Not Found'"),
    (b'{"message": "x"}', "'{"), (b'1234567 {"message": "x"}', "'1234567 {"), (b'\n', 'not a file'),
    (b'\0' * 1000, 'not a file'), (random.Random(0).randbytes(1000), 'not a file'), (b'PK\3\4', 'truncated'),
    (b'PK\5\6' + b'\0' * 18, 'not a file'), (b'\x80\x02.', 'truncated'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 87000000\n', "'git lfs pull'")])
def test_other_files(tmp_path, content, word):
    (tmp_path / 'weights.hkl').write_bytes(content)
    refused(tmp_path / 'weights.hkl', word)


def test_folders_and_missing_files(tmp_path):
    refused(tmp_path / 'nothing', 'No such file')
    refused(tmp_path, 'no log.txt', 'no model.pt7')
    params = some_params()
    torch.save({'params': params}, tmp_path / 'model.pt7')
    refused(tmp_path, 'no log.txt')
    (tmp_path / 'log.txt').touch()
    assert equal(tensors.read(tmp_path), params)
    assert equal(tensors.read(str(tmp_path)), params)


# --- addresses -------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `served` by http; {path: content}, of 'half' only the first half. torch's cache is its own."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            content = self.server.served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header('Content-Length', str(len(content or b'')))
            self.end_headers()
            self.wfile.write(content[:len(content) // 2] if 'half' in self.path else content or b'')

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.served, server.requests = {}, []
        server.address = f'http://127.0.0.1:{server.server_port}'
        server.cache = tmp_path / 'torch' / 'hub' / 'checkpoints'
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def saved(params) -> bytes:
    content = io.BytesIO()
    torch.save(params, content)
    return content.getvalue()


def test_addresses(server):
    a, b = some_params(), some_params()
    server.served = {'/a/model.pth': saved(a), '/b/model.pth?x=1': saved(b), '/c/': safetensors.torch.save(a)}
    for path, params in (('/a/model.pth', a), ('/b/model.pth?x=1', b), ('/c/', a)):
        assert equal(tensors.read(server.address + path), params)
    assert len(os.listdir(server.cache)) == 3
    assert equal(tensors.read(server.address + '/a/model.pth'), a)
    assert len(server.requests) == 3  # the second time from the cache


def test_failed_downloads_leave_nothing(server, tmp_path):
    server.served = {'/page': b'<html>', '/half.pth': saved(some_params()),
                     '/half.safetensors': safetensors.torch.save(some_params()),
                     '/half.hkl': write_hickle(tmp_path / 'a', '5.x', {'x': np.ones(500, 'f4')}).read_bytes()}
    for path, word in (('/page', 'web page'), ('/half.pth', 'truncated'), ('/half.safetensors', 'truncated'),
                       ('/half.hkl', 'truncated'), ('/nowhere', '404')):
        refused(server.address + path, word)
        assert os.listdir(server.cache) == []
    server.served['/nowhere'] = saved(some_params())
    tensors.read(server.address + '/nowhere')
    address = server.address
    server.shutdown()
    server.server_close()
    refused(address + '/other', 'cannot download', 'refused')
    refused('http://[', 'cannot download')


def test_torchvision(server, monkeypatch):
    """Its own weights from its own cache, whose checksum is in their name; a stranger's file is not taken."""
    state, requested = torchvision.models.resnet18().state_dict(), []
    expected = {name: t for name, t in state.items() if t.is_floating_point()}

    def download(url, path, sha256):
        requested.append((url, path, sha256))
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    for name in ('resnet18', 'resnet34', 'mobilenet_v3_small'):
        assert equal(tensors.read(f'torchvision:{name}'), expected)
        url, path, sha256 = requested.pop()
        assert url == torchvision.models.get_model_weights(name).DEFAULT.url
        assert Path(path) == server.cache / url.rsplit('/', 1)[1]
        assert sha256 in url and len(sha256) == 8
        tensors.read(f'torchvision:{name}')
        assert not requested
    for name in ('resnet19', '', 'resnet34/../../x', 'http://x'):
        with pytest.raises(InputError, match='has no weights'):
            tensors.read(f'torchvision:{name}')


def test_any_network_of_torchvision(server, monkeypatch):
    """Its weights for ImageNet make it a network of this project."""
    module = torchvision.models.shufflenet_v2_x0_5().eval()
    monkeypatch.setattr(torch.hub, 'download_url_to_file',
                        lambda url, path, sha256: torch.save(module.state_dict(), path))
    f, params = resnet.load('torchvision:shufflenet_v2_x0_5')
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(f(x, params, False)[0], module(x))
    assert '1000 classes' in networks.describe(params, f)


def test_another_checksum_is_refused(server):
    server.served = {'/resnet34-b627a593.pth': saved(some_params())}
    with pytest.raises(InputError, match='cannot download.*hash'):
        tensors._download(server.address + '/resnet34-b627a593.pth', 'resnet34-b627a593.pth', 'b627a593')
    assert os.listdir(server.cache) == []


def test_without_network(server, monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing answers there
    with pytest.raises(InputError, match='cannot download https://.*resnet34.*give the file'):
        tensors.read('torchvision:resnet34')
    assert os.listdir(server.cache) == []
