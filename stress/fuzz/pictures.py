"""Targets: images, and folders of them; data sets as their authors ship them."""
import functools
import io
import json
import os
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from inputs import cifar as data
from inputs import decoding, folders, images
from stress.fuzz import mutate, pickles
from stress.fuzz.sandbox import Target
from utils import InputError

CPU = torch.device('cpu')


def read_all(split: folders.Split, kinds: tuple[str, ...] = images.CROPS) -> None:
    """Every image by every crop, with damaged ones refused and left out; raises the first InputError."""
    errors = []
    for kind in kinds:
        seed = None if kind == 'center' else 1
        for skip in (False, True):
            try:
                for batch in images.Loader(split, 2, CPU, kind, seed, workers=0, skip_damaged=skip):
                    assert batch.x.shape[1:] == (3, images.SIZE, images.SIZE) and batch.x.isfinite().all()
            except InputError as e:
                errors.append(e)
    if errors:
        raise errors[0]


# --- one image -------------------------------------------------------------------------------------------


def run_image(case: bytes, folder: Path) -> None:
    (folder / 'x').mkdir()
    (folder / 'x' / 'x.jpg').write_bytes(case)
    box = np.array([[1, 1, 5, 5]], np.float64)
    for boxes, kinds in ((None, images.CROPS), (box, ('center',))):
        read_all(folders.Split(str(folder), np.array([b'x/x.jpg']), torch.zeros(1, dtype=torch.int64), ['x'],
                               boxes), kinds)


def picture(mode: str, form: str, size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(noise).convert('RGB').convert(mode).save(
        content, form, **options)
    return content.getvalue()


@functools.cache
def sound_images() -> list[bytes]:
    found = [picture(mode, form) for form, modes in {
        'JPEG': ('RGB', 'L', 'CMYK', 'YCbCr'), 'PNG': ('RGB', 'RGBA', 'P', 'L', 'LA', '1'), 'GIF': ('P', 'L'),
        'BMP': ('RGB', 'P', '1'), 'WEBP': ('RGB', 'RGBA'), 'PPM': ('RGB', 'L', '1'), 'TIFF': (
            'RGB', 'CMYK', 'F', 'I', '1')}.items() for mode in modes]
    frames = [Image.new('RGB', (9, 7), color) for color in ('red', 'green')]
    moving = io.BytesIO()
    frames[0].save(moving, 'GIF', save_all=True, append_images=frames[1:])
    return [*found, moving.getvalue(), png(9, 7, bytes(range(7)) * 19, 16, 0),
            picture('RGB', 'JPEG', progressive=True), picture('P', 'PNG', transparency=0),
            picture('RGB', 'TIFF', compression='tiff_lzw'), picture('RGB', 'TIFF', compression='jpeg'),
            picture('1', 'TIFF', compression='group4'), picture('RGB', 'WEBP', lossless=True),
            picture('RGB', 'JPEG', (300, 260)), picture('RGB', 'JPEG',
            exif=b'Exif\0\0' + b'II*\0' + b'\xff' * 40)]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png(width: int, height: int, pixels: bytes = b'', depth: int = 8, color: int = 2,
        more: bytes = b'') -> bytes:
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, color, 0, 0,
                                                              0)) + more
            + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b''))


def resized(content: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size."""
    start = next(i for i in range(len(content)) if content[i:i + 2] in (b'\xff\xc0', b'\xff\xc2'))
    return content[:start + 5] + struct.pack('>HH', height, width) + content[start + 9:]


def craft_image() -> dict[str, bytes]:
    flat = b'\0' * 1_000_000
    jpeg, slow = picture('RGB', 'JPEG'), picture('RGB', 'JPEG', progressive=True)
    start = slow.index(b'\xff\xda')
    found = {f'png_{w}x{h}_{d}_{c}': png(w, h, flat, d, c) for w, h in (
        (60_000, 60_000), (2**31 - 1, 2**31 - 1), (8000, 8000), (7000, 7000), (1, 60_000_000),
        (60_000_000, 1), (0, 5), (5, 0))
        for d, c in ((8, 2), (16, 6), (1, 0), (8, 3))}
    found |= {f'jpeg_{w}x{h}': resized(jpeg, w, h) for w, h in ((60_000, 60_000), (65_535, 900),
                                                                (8000, 8000), (0, 0), (9, 0))}
    found |= {f'bmp_{w}x{h}': b'BM' + struct.pack('<IHHIIiiHHIIiiII', 54, 0, 0, 54, 40, w, h, 1, 24, 0, 0, 0,
                                                  0, 0, 0)
              for w, h in ((60_000, 60_000), (8000, 8000), (2**31 - 1, 2**31 - 1), (5, -2**31), (-5, 5))}
    found |= {f'ppm_{w}x{h}': b'P6 %d %d 255\n' % (w, h) for w, h in ((60_000, 60_000), (8000, 8000),
                                                                      (10**400, 1), (0, 0))}
    found |= {f'gif_{w}x{h}': b'GIF89a' + struct.pack('<HHBBB', w, h, 0xf0, 0,
                                                      0) + bytes(6) + b',' + struct.pack(
        '<HHHHB', 0, 0, w, h, 0) + b'\x02\x02\x4c\x01\0;' for w, h in ((60_000, 60_000), (8000, 8000),
                                                                       (65_535, 65_535))}
    found |= {f'webp_{n}': content for n, content in enumerate((
        b'RIFF' + struct.pack('<I', 22) + b'WEBPVP8X' + struct.pack('<I',
                                                                    10) + b'\x10\0\0\0' + b'\xff\xff\xff' * 2,
        picture('RGB', 'WEBP')[:-20], b'RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff/' + b'\xff' * 20))}
    found |= {
        'flat': picture_flat((7900, 7900)), 'flat_1': picture_flat((8000, 8000), '1'),
        'flat_gif': picture_flat(
            (7900, 7900), 'P', 'GIF'), 'flat_jpeg': picture_flat((7900, 7900), 'L', 'JPEG'),
            'flat_tiff': picture_flat(
                (7900, 7900), '1', 'TIFF', compression='group4'), 'flat_webp': picture_flat((7900, 7900),
                                                                                            'RGB', 'WEBP',
                                                                                            lossless=True),
        'png_text': png(3, 3, bytes(30), more=chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(10**8)))),
        'png_texts': png(3, 3, bytes(30), more=chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(10**6))) * 100),
        'png_profile': png(3, 3, bytes(30), more=chunk(b'iCCP', b'x\0\0' + zlib.compress(bytes(10**8)))),
        'png_pixels': png(3, 3, bytes(10**8)), 'png_chunk': png(3, 3)[:33] + b'\xff\xff\xff\xffIDAT',
        'scans': resized(slow[:start] + slow[start:-2] * 1000 + b'\xff\xd9', 2000, 2000), 'empty': b'',
        'text': b'no image', 'eps':
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(../canary) (w) file\n',
        'fits': b'SIMPLE  =  T',
        'svg': b'<svg xmlns="http://www.w3.org/2000/svg"><image href="../pipe"/></svg>',
        'truncated': jpeg[:-30],
        'markers': jpeg[:2] + b'\xff\xe1\xff\xff' + bytes(65_533) + jpeg[2:],
        'fills': jpeg[:2] + b'\xff' * 10**5 + jpeg[2:],
        'tiff_loop': b'II*\0\x08\0\0\0' + b'\0\0' + b'\x08\0\0\0', 'tiff_count': tiff(273, 4, 2**32 - 1),
        'tiff_strips': tiff(278, 4, 2**31), 'tiff_size': tiff(256, 1, 2**32 - 1),
        'tiff_tag': tiff(700, 1, 2**32 - 1),
        'tiff_many': b'II*\0\x08\0\0\0\xff\xff' + bytes(12 * 65_535),
        'mpo': jpeg[:2] + b'\xff\xe2' + struct.pack(
            '>H', 60) + b'MPF\0II*\0\x08\0\0\0' + b'\xff' * 46 + jpeg[2:]}
    for mode, form in (('I', 'TIFF'), ('F', 'TIFF'), ('LA', 'PNG'), ('LA', 'TIFF'), ('CMYK', 'JPEG')):
        found[f'mode_{mode}_{form}'] = picture(mode, form)
    return found


def picture_flat(size: tuple[int, int], mode: str = 'RGB', form: str = 'PNG', **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, form, **options)
    return content.getvalue()


def tiff(tag: int, count: int, value: int) -> bytes:
    """A small TIFF, one tag of which claims a count and a value."""
    tags = {256: (1, 3), 257: (1, 3), 258: (1, 8), 259: (1, 1), 262: (1, 1), 273: (1, 200), 277: (1, 1),
            278: (1, 3),
            279: (1, 9)}
    tags[tag] = (count if count > 4 else 1, value) if count != 4 else (value, 8)
    return (b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(
        struct.pack('<HHII', name, 4, *tags[name]) for name in sorted(tags)) + bytes(200))


def draw_image(rng: Random) -> bytes:
    content = rng.choice(sound_images())
    return mutate.broken(rng, content, rng.choice((0, 0, 8, 20)) if len(content) > 30 else 0)


# --- folders of images, and CIFAR ------------------------------------------------------------------------

CIFAR = [*[f'data_batch_{i}' for i in range(1, 6)], 'test_batch', 'batches.meta']
JPEG = picture('RGB', 'JPEG').decode('latin1')
LINES = {'cub': {'images.txt': '1 001.a/x.jpg\n2 002.b/y.jpg\n3 001.a/z.jpg\n4 002.b/w.jpg\n',
                 'image_class_labels.txt': '1 1\n2 2\n3 1\n4 2\n',
                 'train_test_split.txt': '1 1\n2 1\n3 0\n4 0\n',
                 'bounding_boxes.txt': ''.join(f'{i} 1.0 1.0 5.0 5.0\n' for i in range(1, 5))},
         'scenes': {'TrainImages.txt': 'a/x.jpg\nb/y.jpg\n', 'TestImages.txt': 'a/z.jpg\nb/w.jpg\n'}}
FILES = {'cub': ['images/001.a/x.jpg', 'images/002.b/y.jpg', 'images/001.a/z.jpg', 'images/002.b/w.jpg'],
         'scenes': ['Images/a/x.jpg', 'Images/b/y.jpg', 'Images/a/z.jpg', 'Images/b/w.jpg'],
         'folder': ['train/a/x.jpg', 'train/b/y.png', 'test/a/x.jpg', 'test/b/y.gif'],
         'imagenet': ['train/n01/x.JPEG', 'train/n02/y.JPEG', 'val/n01/x.JPEG', 'val/n02/y.JPEG'],
         'CIFAR10': [f'cifar-10-batches-py/{name}' for name in CIFAR]}


def run_folder(case: bytes, folder: Path) -> None:
    dataset, entries = json.loads(case.decode('utf-8', 'surrogatepass'))
    root = folder / 'root'
    root.mkdir()
    for name, kind, content in entries:
        build(root, name, kind, content)
    if dataset == 'CIFAR10':
        for name in FILES[dataset]:  # none is missing, else it would be downloaded
            if not (root / name).exists():
                build(root, name, 'file', 'x')
        if all((root / name).exists() for name in FILES[dataset]):
            data.load('CIFAR10', str(root), CPU)
        return
    for split in folders.load(dataset, str(root)):
        for i in range(len(split.paths)):
            name = os.path.relpath(split.path(i), root)
            assert not {'..', ''} & {*name.split('/')}, f'takes {name!a}'
        read_all(split, ('center', 'resized'))


def build(root: Path, name: str, kind: str, content: str) -> None:
    """Make what a case describes, within its folder; what no file system takes is left out."""
    path = os.path.normpath(os.path.join(root, name.replace('\0', '')))
    raw = content.encode('utf-8', 'surrogatepass') if kind == 'text' else content.encode('latin1', 'replace')
    try:
        if not path.startswith(f'{root}/') or os.path.realpath(path) != path:  # beyond a link
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == 'link':
            os.symlink(content.replace('\0', ''), path)
        elif kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'folder':
            os.makedirs(path)
        else:
            with open(path, 'xb') as file:
                file.write(raw)
    except (OSError, ValueError):
        pass


def described(dataset: str, entries: list[tuple[str, str, str]]) -> bytes:
    return mutate.encoded(json.dumps([dataset, entries], ensure_ascii=False))


def sound_folder(dataset: str) -> list[tuple[str, str, str]]:
    return [*((name, 'text', text) for name, text in LINES.get(dataset, {}).items()),
            *((name, 'file', JPEG) for name in FILES[dataset])]


def craft_folder() -> dict[str, bytes]:
    found = {f'sound_{dataset}': described(dataset, sound_folder(dataset)) for dataset in FILES}
    for dataset, files in FILES.items():
        first = files[0]
        parent = os.path.dirname(first)
        for name, link in {'loop': os.path.basename(first), 'zero': '/dev/zero', 'tty': '/dev/tty',
                           'passwd': '/etc/passwd',
                           'pipe': '../../../../pipe', 'gone': 'nowhere', 'up': '..', 'self': '.'}.items():
            rest = [entry for entry in sound_folder(dataset) if entry[0] != first]
            found[f'{dataset}_link_{name}'] = described(dataset, [*rest, (first, 'link', link)])
            kept = [entry for entry in sound_folder(dataset) if not entry[0].startswith(parent)]
            found[f'{dataset}_class_{name}'] = described(dataset, [*kept, (parent, 'link', link)])
        rest = [entry for entry in sound_folder(dataset) if entry[0] != first]
        for kind in ('pipe', 'folder'):
            found[f'{dataset}_{kind}'] = described(dataset, [*rest, (first, kind, '')])
        found[f'{dataset}_empty'] = described(dataset, [*rest, (first, 'file', '')])
        code = pickles.opcodes([pickles.called('os.system', 'touch ../canary')]).decode('latin1')
        found[f'{dataset}_code'] = described(dataset, [*rest, (first, 'file', '\x80\x02' + code + '.')])
        for i, text in enumerate(('two\nlines', '\x1b[2J', '\udcff', ' ', 'x' * 250, '\\', '-rf', '...',
                                  '$(id)')):
            found[f'{dataset}_name_{i}'] = described(dataset, [*sound_folder(dataset), (
                f'{os.path.dirname(parent)}/{text}/{text[:200]}.jpg', 'file', JPEG)])
    for dataset, tables in LINES.items():
        for table, text in tables.items():
            rest = [entry for entry in sound_folder(dataset) if entry[0] != table]
            line = text.split('\n')[0]
            for name, odd in {
                    'up': line.replace('001.a', '..').replace('a/', '../'),
                    'root': line.replace('001.a', '/etc'),
                    'up_file': line.replace('x.jpg', '..'), 'nul': line.replace('a', 'a\0'),
                    'digits': '1' * 5000 + line[1:],
                    'label': line[:2] + '1' * 5000, 'box': line[:2] + ' '.join(['9' * 400] * 4),
                    'huge': line[:2] + ' '.join(
                        ['-9' * 100] * 4), 'long': line.replace('x.jpg', 'x' * 5000),
                        'spaces': line.replace(' ', '\u3000'),
                    'backslash': line.replace('/', '\\'), 'zero': '0 ' + line[2:],
                    'surrogate': line.replace('x', '\udcff'),
                    'arabic': line.replace('1', '١'), 'separator': line + '\u2028' + line,
                    'empty': ''}.items():
                found[f'{dataset}_{table}_{name}'] = described(
                    dataset, [*rest, (table, 'text', text.replace(line, odd, 1))])
            found[f'{dataset}_{table}_pipe'] = described(dataset, [*rest, (table, 'pipe', '')])
            found[f'{dataset}_{table}_zero'] = described(dataset, [*rest, (table, 'link', '/dev/zero')])
    return found


def draw_folder(rng: Random) -> bytes:
    dataset = rng.choice([*FILES, 'folder', 'cub', 'scenes'])
    entries = []
    for name, kind, content in sound_folder(dataset):
        if rng.random() < 0.1:
            parts = name.split('/')
            parts[rng.randrange(len(parts))] = rng.choice(mutate.TEXTS)[:250]
            name = '/'.join(parts)
        if rng.random() < 0.15:
            kind, content = rng.choice((
                ('link', rng.choice(('..', '.', 'a', '../b', '/etc/passwd', '../../../../pipe'))),
                ('pipe', ''),
                ('folder', ''), ('file', ''), ('file', rng.choice(sound_images()).decode('latin1')),
                ('text', 'x')))
        elif rng.random() < 0.3 and kind == 'text':
            lines = content.split('\n')
            i = rng.randrange(len(lines))
            if rng.random() < 0.5:
                lines[i] = mutate.broken(rng, lines[i].encode()).decode('utf-8', 'surrogateescape')
            else:
                words = lines[i].split(' ')
                words[rng.randrange(len(words))] = rng.choice(('..', '../..', 'a/..', './x', '1', '0', '-1',
                                                               '1e9', '٣', *(
                                                                   mutate.TEXTS)))
                lines[i] = ' '.join(words)
            content = '\n'.join(lines)
        elif rng.random() < 0.1 and kind == 'file':
            content = mutate.broken(rng, content.encode('latin1')).decode('latin1')
        if rng.random() < 0.95:
            entries.append((name, kind, content))
    return described(dataset, entries)


TARGETS = [Target('image', craft_image, draw_image, run_image, factor=12 * decoding.MAX_PIXELS_PER_BYTE,
                  free=12 * decoding.FREE_PIXELS, seconds=40),  # it is read four times
           Target('folder', craft_folder, draw_folder, run_folder)]
