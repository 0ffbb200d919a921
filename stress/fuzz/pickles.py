"""Target: .pth and .pt7, files of torch.save, made of opcodes of pickle."""
import functools
import io
import pickle
import struct
import tarfile
import zipfile
from random import Random
from typing import Any

import torch

from stress.fuzz import mutate
from stress.fuzz.sandbox import Target
from stress.fuzz.tensors import network, run_weights


class Raw(bytes):
    """Opcodes of pickle, which leave one value."""


def named(name: str) -> Raw:
    """A class or function by its dotted name."""
    return Raw(b'c' + '\n'.join(name.rsplit('.', 1)).encode('utf-8', 'replace') + b'\n')


def called(function: str, *arguments: Any) -> Raw:
    return Raw(named(function) + opcodes(arguments) + b'R')


def opcodes(value: Any) -> bytes:
    """Opcodes of protocol 2 for a value, without memory of those before: what torch.load takes."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b'N', True: b'\x88', False: b'\x89'}[value]
    if isinstance(value, int):
        if -2**31 <= value < 2**31:
            return b'J' + struct.pack('<i', value)
        number = value.to_bytes(min(value.bit_length() // 8 + 1, 255), 'little', signed=True)
        return b'\x8a' + bytes([len(number)]) + number
    if isinstance(value, float):
        return b'G' + struct.pack('>d', value)
    if isinstance(value, str):
        text = value.encode('utf-8', 'surrogatepass')
        return b'X' + struct.pack('<I', len(text)) + text
    if isinstance(value, tuple):
        return b'(' + b''.join(map(opcodes, value)) + b't'
    if isinstance(value, list):
        return b'](' + b''.join(map(opcodes, value)) + b'e'
    return b'}(' + b''.join(opcodes(k) + opcodes(v) for k, v in value.items()) + b'u'


# Lists each of which holds the one before it twice.
LAUGHS = Raw(b'(]q\0' + b''.join(b'](h%ch%ceq%c' % (i, i, i + 1) for i in range(40)) + b't')


def storage(n: int, kind: str = 'FloatStorage', key: str = '0', place: str = 'cpu') -> Raw:
    return Raw(opcodes(('storage', named(f'torch.{kind}'), key, place, n)) + b'Q')


def tensor(shape: Any = (2, 3), stride: Any = (3, 1), n: int = 6, offset: int = 0, kind: str = 'FloatStorage',
           key: str = '0', place: str = 'cpu') -> Raw:
    return called('torch._utils._rebuild_tensor_v2', storage(n, kind, key, place), offset, shape, stride,
                  False,
                  called('collections.OrderedDict'))


def zipped(pickled: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED,
           more: dict[str, bytes] | None = None) -> bytes:
    """A file of torch.save around a pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w', compression) as archive:
        entries = {'archive/data.pkl': pickled, 'archive/version': b'3\n', 'archive/byteorder': b'little'}
        entries |= {f'archive/data/{k}': v for k, v in (storages or {'0': bytes(24)}).items()}
        for name, data in (entries | (more or {})).items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return content.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    """A file of torch.save with a value that may have Raw in it."""
    return zipped(b'\x80\x02' + opcodes(value) + b'.', **options)


def legacy(value: Any, n: int = 6) -> bytes:
    """As torch before 1.6 wrote it."""
    head = b''.join(pickle.dumps(v, 2) for v in (0x1950a86a20f9469cfc6c, 1001, {
        'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}))
    raw = opcodes(value).replace(b'tQ', b'NtQ')  # a view of a storage comes last
    return (head + b'\x80\x02' + raw + b'.' + pickle.dumps(['0'], 2) + n.to_bytes(8, 'little') + bytes(24))


@functools.cache
def sound_torch() -> list[bytes]:
    def written(value: Any, **options: Any) -> bytes:
        content = io.BytesIO()
        torch.save(value, content, **options)
        return content.getvalue()

    few = {name: network()[name] for name in ('conv0', 'fc.weight', 'bn.bias')}
    return [written(few), written({'params': few, 'epoch': 1}), written(network()),
            written(few, _use_new_zipfile_serialization=False), saved({'x': tensor()}),
            legacy({'x': tensor()})]


def again_and_again(n: int, function: str, *arguments: Any) -> Raw:
    """A function called n times, each time with its last result as the first argument."""
    value, *more = arguments
    for _ in range(n):
        value = called(function, value, *more)
    return value


def craft_calls() -> dict[str, Any]:
    """Values that name code: to run it, or to take memory."""
    return {f'code_{name}': called(name, *arguments) for name, arguments in {
        'os.system': ('touch ../canary',), 'posix.system': ('touch ../canary',), 'builtins.eval': ('1',),
        'builtins.exec': ('open("../canary", "w")',), 'subprocess.Popen': ('touch ../canary',),
        'builtins.open': ('../canary', 'w'), 'builtins.getattr': ('', 'x'), 'torch.load': ('../pipe',),
        'torch.hub.load': ('x', 'y'), 'numpy.load': ('../pipe',), 'torch.serialization.load': ('../pipe',),
        'torch.storage._load_from_bytes': ('x',), '__builtin__.eval': ('1',)}.items()} | {
        'bytearray_2_60': called('builtins.bytearray', 2**60),
        'bytearray': called('builtins.bytearray', 2**31 - 1),
        'bytearrays': again_and_again(5, 'builtins.bytearray', 2**28),
        'hex': again_and_again(18, '_codecs.encode', called('_codecs.encode', 'x' * 1000, 'latin1'), 'hex'),
        'empty_tensor': called('torch.Tensor', 2**28),
        'empty_float': called('torch.FloatTensor', 30_000, 30_000),
        'tensor_again': called('torch.Tensor', called('torch.Size', [2**28])),
        'storage_alone': called('torch.UntypedStorage', 2**31 - 1),
        'typed': called('torch.FloatStorage', 2**29), 'set': called('builtins.set', [1]),
        'untyped': called('torch.storage.UntypedStorage', 2**28),
        'counter': called('collections.Counter', 'x' * 1000), 'string': 'x' * 100_000, 'laughs': LAUGHS}


def craft_tensors() -> dict[str, Any]:
    """Tensors of odd shapes, storages and kinds."""
    nothing = called('collections.OrderedDict')
    return {
        'view_2_60': tensor((2**60,), (0,)), 'view_2_64': tensor((2**32, 2**32), (0, 0)),
        'view_2_65': tensor((2**32, 2**33), (0, 0)), 'view_no_elements': tensor((2**62, 0, 2**62), (0, 0, 0)),
        'view_dims': tensor((1,) * 1000, (0,) * 1000), 'view_negative': tensor((-1,), (1,)),
        'view_back': tensor((3,), (-1,), offset=3), 'view_far': tensor((3,), (2**61,)),
        'view_long': tensor((2**27,), (1,)), 'view_strides': tensor((2, 2), (2**27, 1)),
        'offset': tensor(offset=2**62), 'offset_negative': tensor(offset=-5),
        'storage_2_60': tensor(n=2**60), 'storage_negative': tensor(n=-1),
        'storage_other': tensor(kind='DoubleStorage'), 'storage_missing': tensor(key='9'),
        'storage_up': tensor(key='../../../pipe'), 'place': tensor(place='cuda:7'),
        'place_odd': tensor(place='meta'), 'place_name': tensor(place='__import__("os")'),
        'half': tensor(kind='HalfStorage', n=12), 'complex': tensor(kind='ComplexFloatStorage', n=3),
        'quantized': called('torch._utils._rebuild_qtensor', storage(6, 'QUInt8Storage'), 0, (6,), (1,),
                            (named('torch.per_tensor_affine'), 1.0, 0), False, nothing),
        'meta': called('torch._utils._rebuild_meta_tensor_no_storage', named('torch.float32'), (2**50,), (1,),
                       False),
        'sparse': called('torch._utils._rebuild_sparse_tensor',
                         called('torch.serialization._get_layout', 'torch.sparse_coo'),
                         (tensor((1, 6), (6, 1), kind='LongStorage', n=3), tensor((6,), (1,)), (2**60,),
                          True)),
        'build': Raw(tensor() + opcodes((storage(6), 0, (2**27,), (1,))) + b'b'),
        'wrapper': called('torch._utils._rebuild_wrapper_subclass', named('torch.Tensor'),
                          named('torch.float32'), (2**50,), (1,), 0, named('torch.strided'), 'cpu', False),
        'nested_parameter': called('torch._utils._rebuild_parameter', tensor((2**60,), (0,)), True, nothing)}


def craft_networks() -> dict[str, bytes]:
    """Files whose names are those of a network, and whose shapes are not."""
    def empty(*shape: int) -> Raw:
        return tensor(shape, (0,) * len(shape))

    wide = {f'group{g}.block0.conv0': empty(2**60, 0, 3, 3) for g in range(3)}
    few = {'group2.block0.conv0': empty(64, 0), 'bn.x': tensor()}
    return {name: saved(value) for name, value in {
        'huge_network': wide | {'bn.weight': tensor(), 'fc.weight': tensor()},
        'huge_resnet': wide | {'bn0.weight': tensor(), 'fc.weight': tensor(),
                               'group3.block0.conv0': empty(2**60, 0, 3, 3)},
        'huge_nin': {'group0.conv0': empty(2**60, 0), 'fc.weight': tensor()},
        'no_classes': few | {'fc.weight': tensor((0, 3), (3, 1))},
        'many_classes': few | {'fc.weight': empty(2**62, 0)},
        'many_blocks': {f'group{g}.block{b}.x': tensor() for g in range(3) for b in range(1000)} | {
            'bn.x': tensor(), 'fc.weight': tensor(), 'group2.block0.conv0': tensor()},
        'names': {'\x1b[2J\n' + 'x' * 5000: tensor(), 'fc.weight': tensor()}}.items()}


def craft_archives() -> dict[str, bytes]:
    """Files that are odd as archives, or as pickles."""
    sound = {'x': tensor()}
    deflated = {'compression': zipfile.ZIP_DEFLATED}
    memo = b''.join(b'Nr' + struct.pack('<I', i) for i in range(10**5))
    return {
        'name_up': saved({'../../x': tensor()}, more={'../../canary': b'x', '/canary': b'x'}),
        'zip_bomb': saved({'x': tensor((2**24,), (1,), 2**24)}, storages={'0': bytes(2**26)}, **deflated),
        'zip_bomb_unused': saved(sound, more={'archive/data/1': bytes(2**27)}, **deflated),
        'pickle_bomb': zipped(b'\x80\x02' + b'}' * 2**25 + b'.', compression=zipfile.ZIP_DEFLATED),
        'pickle_long': zipped(b'\x80\x02' + b'}' * 2**21 + b'.'),
        'pickle_deep': saved(Raw(b']' * 10**5 + b'a' * (10**5 - 1))),
        'pickle_memo': zipped(b'\x80\x02' + memo + b'.'),
        'pickle_count': zipped(b'\x80\x02X' + b'\xff' * 4 + b'.'),
        'pickle_long1': zipped(b'\x80\x02\x8a\xff.'),
        'pickle_recursive': zipped(b'\x80\x02}q\x00X\x01\0\0\0xh\x00s.'),
        'two_pickles': saved(sound, more={'archive/DATA.PKL': b'\x80\x02}.'}),
        'script': saved(sound, more={'archive/constants.pkl': b'\x80\x02).', 'archive/code/x.py': b''}),
        'no_pickle': zipped(b''), 'comment': saved(sound) + b'PK\5\6' + bytes(18),
        'zip_in_front': b'PK\3\4' + bytes(100) + saved(sound), 'tar': tar('PK\3\4'),
        'zip_overlap': overlapping(saved({'x': tensor((2**60,), (0,))}))}


def craft_torch() -> dict[str, bytes]:
    values = craft_calls() | craft_tensors()
    old = {f'legacy_{name}': legacy({'x': value}) for name, value in values.items()
           if name.startswith(('code_os', 'view', 'offset', 'storage', 'byte'))}
    return {name: saved({'x': value}) for name, value in values.items()} | old | (
        craft_networks() | craft_archives())


def tar(name: str) -> bytes:
    """The format before the legacy one, whose parts are links."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w') as archive:
        for part in (name, 'storages', 'tensors', 'pickle'):
            info = tarfile.TarInfo(part)
            if part != name:
                info.type, info.linkname = tarfile.SYMTYPE, '../../../pipe'
            archive.addfile(info)
    return content.getvalue()


def overlapping(content: bytes) -> bytes:
    """A zip whose directory names the same bytes many times."""
    start = content.index(b'PK\1\2')
    end = content.index(b'PK\5\6')
    first = content[start:content.index(b'PK\1\2', start + 4)]
    directory = first * 20_000
    return content[:start] + directory + struct.pack('<4sHHHHIIH', b'PK\5\6', 0, 0, 20_000, 20_000,
                                                     len(directory),
                                                     start, 0) + content[end + 22:]


def draw_tensor(rng: Random) -> Raw:
    """A tensor of odd shape, or of another kind."""
    n = rng.randrange(5)

    def some() -> tuple[Any, ...]:
        return tuple(rng.choice((0, 1, 2, 3, 2, 1, rng.choice(mutate.INTS[:-1]))) for _ in range(n))

    kind = rng.choice(('Float', 'Float', 'Float', 'Half', 'Double', 'Long', 'Bool', 'BFloat16',
                       'ComplexFloat', 'QInt8',
                       'Untyped'))
    plain = rng.random() < 0.5
    return tensor(rng.choice((some(), (2, 3), (6,))), rng.choice((some(), (0,) * n, (3, 1), (1,))),
                  6 if plain else rng.choice(mutate.INTS[:-1]), 0 if plain else rng.choice((0, 1,
                                                                                            *mutate.INTS[:-1])),
                  f'{kind}Storage', place='cpu' if plain else rng.choice(('cpu', 'cuda', 'meta', 'x', '')))


def draw_value(rng: Random, depth: int = 3) -> Any:
    """A value as checkpoints have them, and pickles: tensors, calls, tuples, other keys."""
    kind = rng.randrange(10) if depth else 0
    if kind < 3:
        return mutate.scalar(rng)
    if kind < 5:
        return draw_tensor(rng)
    if kind == 5:
        return called(rng.choice(GLOBALS), *(draw_value(rng, depth - 1) for _ in range(rng.randrange(4))))
    if kind == 6:
        return named(rng.choice(GLOBALS))
    some = [draw_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 7:
        return some
    if kind == 8:
        return tuple(some)
    return {rng.choice(('x', 'state', 0, 1, None, 1.5, *mutate.TEXTS)): v for v in some}


GLOBALS = (
    'collections.OrderedDict', 'collections.Counter', 'torch.nn.parameter.Parameter', 'torch.Size',
    'torch.Tensor', 'torch.serialization._get_layout', 'torch.device', '_codecs.encode',
    'builtins.bytearray', 'builtins.set', 'builtins.complex', 'torch.float32', 'torch.FloatTensor',
    'torch.FloatStorage', 'torch.UntypedStorage', 'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_tensor_v3',
    'torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state',
    'torch.per_tensor_affine', 'torch._utils._rebuild_qtensor', 'torch._utils._rebuild_sparse_tensor',
    'os.system', 'builtins.eval', 'torch._utils._rebuild_meta_tensor_no_storage',
    'torch._utils._rebuild_wrapper_subclass', 'torch._utils._rebuild_device_tensor_from_numpy',
    'torch._tensor._rebuild_from_type_v2')


def again(content: bytes, rng: Random) -> bytes:
    """A zip of torch, one of its parts broken, its checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(n for n in parts if n.endswith('data.pkl')) if rng.random() < 0.8 else rng.choice(list(parts))
    if rng.random() < 0.05:
        parts[rng.choice(('../canary', 'archive/../../canary', '/canary', name.upper(), ''))] = b'x'
    parts[name] = mutate.broken(rng, parts[name])
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for n, data in parts.items():
            archive.writestr(zipfile.ZipInfo(n), data)
    return out.getvalue()


def draw_torch(rng: Random) -> bytes:
    kind = rng.randrange(10)
    if kind < 2:
        return mutate.drawn_from(sound_torch(), rng)
    if kind < 6:
        base = rng.choice(sound_torch())
        return again(base, rng) if base.startswith(b'PK') else mutate.broken(rng, base)
    names = list(network())
    value = {rng.choice((*names, *names, 'x', *mutate.TEXTS)):
             draw_tensor(rng) if rng.random() < 0.8 else draw_value(rng) for _ in range(rng.randrange(1, 5))}
    if rng.random() < 0.3:
        value = {rng.choice(('params', 'state_dict', 'x')): value}
    return legacy(value, rng.choice(mutate.INTS) % 2**64) if kind == 6 else saved(value)


TARGETS = [Target('torch', craft_torch, draw_torch, run_weights)]
