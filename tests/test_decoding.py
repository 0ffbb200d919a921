"""Pixels of image files: what is dark or white by mistake, what follows the end of a file, memory."""
import io
import multiprocessing
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from inputs import decoding
from pictures import content, picture, rgb

GRAY = np.arange(256).reshape(16, 16)


def refused(data, word):
    with pytest.raises(decoding.Damaged, match=word) as error:
        decoding.decode(data)
    assert '\n' not in str(error.value)


def tiff(pixels, bits, kind=1):
    """An uncompressed TIFF of gray or RGB; kind 1: unsigned, 2: signed, 3: float."""
    height, width, channels = (*pixels.shape, 1)[:3]
    data = pixels.tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
            (262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, 8), (277, 3, 1, channels),
            (278, 3, 1, height), (279, 4, 1, len(data)), (339, 3, 1, kind)]
    more = b''
    if channels == 3:  # three numbers take more room than the tag has
        where = 8 + len(data) + 2 + 12 * len(tags) + 4
        tags[2], tags[9] = (258, 3, 3, where), (339, 3, 3, where + 6)
        more = struct.pack('<6H', *[bits] * 3, *[kind] * 3)
    table = struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *tag) for tag in tags) + bytes(4)
    return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + table + more


def png16(pixels):
    """A PNG of 16 bits a channel, gray or RGB."""
    height, width, channels = (*pixels.shape, 1)[:3]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    head = struct.pack('>IIBBBBB', width, height, 16, 2 if channels == 3 else 0, 0, 0, 0)
    return decoding.PNG + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


# --- pixels of more than 8 bits --------------------------------------------------------------------------


@pytest.mark.parametrize(('data', 'word'), [
    (content(Image.fromarray(GRAY.astype(np.int32)), 'TIFF'), 'integers'),
    (content(Image.fromarray((GRAY * 257).astype(np.int32)), 'TIFF', compression='tiff_lzw'), 'integers'),
    (tiff(GRAY.astype('<u4'), 32), 'integers'), (tiff(GRAY.astype('<i2'), 16, 2), 'integers'),
    (content(Image.fromarray((GRAY / 255).astype(np.float32)), 'TIFF'), 'floats'),
    (content(Image.fromarray(GRAY.astype(np.float32)), 'TIFF'), 'floats'),
    (content(Image.fromarray(GRAY.astype(np.float32)), 'PPM'), 'floats')])
def test_pixels_whose_white_is_not_known_are_refused(data, word):
    refused(data, word)


@pytest.mark.parametrize('bits', [8, 10, 12, 14])
@pytest.mark.parametrize('form', ['TIFF', 'LZW', 'PNG', 'RGB TIFF', 'RGB PNG', 'PPM', 'P6'])
def test_few_bits_in_sixteen_are_refused(bits, form):
    x = (GRAY << bits >> 8).astype('<u2')
    if bits == 8:
        assert x.max() == 255
    colour = np.stack([x, x[::-1], x], 2)
    refused({'TIFF': lambda: content(Image.fromarray(x), 'TIFF'),
             'LZW': lambda: content(Image.fromarray(x), 'TIFF', compression='tiff_lzw'),
             'PNG': lambda: content(Image.fromarray(x), 'PNG'), 'RGB PNG': lambda: png16(colour),
             'RGB TIFF': lambda: tiff(colour, 16),
             'PPM': lambda: b'P5 16 16 65535\n' + x.astype('>u2').tobytes(),
             'P6': lambda: b'P6 16 16 65535\n' + colour.astype('>u2').tobytes()}[form](), '16 bits')


def test_sixteen_bits_that_are_used():
    """By their upper half, whatever the format and the order of bytes."""
    x = (GRAY * 256 + 77).astype(np.uint16)
    colour = np.stack([x, x[::-1], x.T], 2)
    gray = np.repeat(GRAY[..., None], 3, 2)
    for data in (content(Image.fromarray(x), 'TIFF'), content(Image.fromarray(x), 'PNG'), png16(x),
                 tiff(x.astype('<u2'), 16), b'P5 16 16 65535\n' + x.astype('>u2').tobytes()):
        assert np.array_equal(rgb(decoding.decode(data)), gray)
    for data in (png16(colour), tiff(colour.astype('<u2'), 16)):
        assert np.array_equal(rgb(decoding.decode(data)), colour >> 8)
    twelve = b'P5 16 16 4095\n' + (GRAY * 16).astype('>u2').tobytes()  # a header that says so
    assert np.abs(rgb(decoding.decode(twelve)) - gray).max() <= 1


def test_dark_pictures_of_eight_bits_stay():
    """Also 16 bits a pixel of BMP, which are five or six a channel."""
    dark = Image.fromarray((GRAY // 16).astype(np.uint8))
    assert np.array_equal(rgb(decoding.decode(content(dark, 'PNG')))[..., 0], GRAY // 16)
    pixels = np.full((16, 16), 0b00001_000010_00001, '<u2').tobytes()
    head = struct.pack('<IiiHHIIiiII', 40, 16, 16, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack('<III', 0xf800, 0x07e0, 0x001f)
    bmp = b'BM' + struct.pack('<IHHI', 66 + len(pixels), 0, 0, 66) + head + masks + pixels
    assert 0 < decoding.decode(bmp).max() < 64


# --- after the end, and beside the pixels ----------------------------------------------------------------


@pytest.mark.parametrize('options', [{}, {'progressive': True}])
@pytest.mark.parametrize('more', [
    b'\xff\xda' * 300, b'\0', b'\xff\xd8' + b'\xff\xda\0\2' * 900 + b'\xff\xd9'])
def test_what_follows_a_jpeg_does_not_matter(options, more):
    """A film of a telephone, for instance."""
    data = content(picture(3), **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    assert np.array_equal(rgb(decoding.decode(data + more)), expected)
    segment = b'\xff\xe1\x04\xb2' + b'\xff\xda' * 600  # in a thumbnail, for instance
    assert np.array_equal(rgb(decoding.decode(data[:2] + segment + data[2:])), expected)


def test_scans_of_a_jpeg():
    plain, slow = content(picture(3)), content(picture(3), progressive=True)
    assert decoding.n_scans(plain) == 1 and decoding.n_scans(slow) == slow.count(b'\xff\xda') == 10
    start = slow.index(b'\xff\xda')
    many = slow[:start] + slow[start:-2] * 30 + slow[-2:]
    assert decoding.n_scans(many) == 300
    refused(many, '200 scans')
    assert decoding.n_scans(b'') == decoding.n_scans(b'\xff') == decoding.n_scans(b'\xff\xd9\xff\xda') == 0
    assert decoding.n_scans(b'\xff\xff\xda') == 1


def test_text_and_profile_of_a_png_do_not_matter():
    image, info = picture(4), PngImagePlugin.PngInfo()
    expected = np.asarray(image)
    info.add_text('a', 'x' * 5_000_000, zip=True)
    info.add_itxt('b', 'x' * 5_000_000, zip=True)
    noise = np.random.default_rng(0).integers(256, size=2_000_000, dtype=np.uint8).tobytes()
    for options in ({'pnginfo': info}, {'icc_profile': noise}, {'icc_profile': bytes(2_000_000)}):
        assert np.array_equal(rgb(decoding.decode(content(image, 'PNG', **options))), expected)
    data = content(image, 'PNG')
    for name, inner in ((b'zTXt', b'a\0\0no zlib'), (b'iCCP', b'a'), (b'eXIf', bytes(9)), (b'acTL', b'')):
        assert np.array_equal(rgb(decoding.decode(data[:33] + chunk(name, inner) + data[33:])), expected)
    clear = picture(5).convert('RGBA')
    clear.putalpha(7)
    palette = picture(5).convert('P')
    for image, options in ((clear, {}), (palette, {'transparency': 3})):
        data = content(image, 'PNG', **options)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
        assert np.array_equal(rgb(decoding.decode(data)), expected)


# --- memory ----------------------------------------------------------------------------------------------


def child(work):
    """What work() returns in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading) as answer:
        return answer.read()


def decoded(data, margin):
    """What becomes of an image in a process that can take only that many bytes more."""
    taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (taken + margin,) * 2)
    try:
        decoding.decode(data)
    except Exception as e:
        return type(e).__name__
    return 'sound'


def decoded_by_children(data, margins):
    return {child(lambda n=margin: decoded(data, n << 20)) for margin in margins}


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'WEBP'])
def test_without_memory_no_image_is_damaged(form):
    data = content(Image.new('RGB', (4000, 3900), 'red'), form)  # more than malloc keeps for later
    broken = content(picture(1), form)[:-100]
    with multiprocessing.get_context('spawn').Pool(1) as new:  # this process may keep much freed memory
        found = new.apply(decoded_by_children, (data, (1, 17, 33, 49, 65, 81, 95)))
        assert new.apply(decoded_by_children, (broken, (1024,))) == {'Damaged'}
    assert found <= {'MemoryError', 'sound'} and ('MemoryError' in found or form == 'JPEG')


def test_whoever_asks_for_too_much_memory_is_damaged(monkeypatch):
    def claim(*_):
        raise MemoryError

    data = content(picture(1), 'PNG')
    monkeypatch.setattr(Image.Image, 'convert', claim)
    refused(data, 'MemoryError')


def test_torch_decodes_no_jpeg_that_is_cut_off(monkeypatch):
    """Its version 0.21 would keep 3 MB of memory for each such image of a million pixels."""
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(decoding, 'decode_jpeg', fail)
    refused(content(picture(1))[:-2], 'truncated')
    refused(content(picture(1))[:-100], 'truncated')
    assert torch.equal(*(decoding.decode(content(picture(1)) + more) for more in (b'\0', b'\n')))
