"""Content of an image file -> pixels, or the reason why it cannot be used.

    x = decoding.decode(Path('a.jpg').read_bytes())    # uint8 (3, H, W)
"""
import contextlib
import io
import re
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

MAX_PIXELS = 64_000_000
FREE_PIXELS = 16_000_000  # allowed in a file of any size
MAX_PIXELS_PER_BYTE = 1000  # above FREE_PIXELS; photographs have 1 to 60, scans of text up to 700
MAX_SIDE = 65_535  # as in JPEG; PIL needs memory for each row
MAX_SCANS = 200  # of a JPEG, because each takes time; 1 to 12 are common
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM')  # PIL may start programs for others
END = b'\xff\xd9'  # of a JPEG
PNG = b'\x89PNG\r\n\x1a\n'
PIXEL_CHUNKS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')  # of a PNG
DEEP = re.compile(r'(?<!BGR);16|\b65535\)')  # in PIL's arguments for its decoder: 16 bits a channel

# The memory that a decoder needs: WebP has two canvases of four bytes, and copies follow.
BYTES_PER_PIXEL, BYTES_AT_LEAST = 20, 64 << 20


class Damaged(Exception):
    """An image that cannot be used. The message is the reason, without the name of the file."""


def decode(content: bytes) -> Tensor:
    """Content of an image file -> uint8 (3, H, W), RGB, not rotated by EXIF, like torchvision's ImageFolder.

    The content decides the format, not the name. Of 16 bits a channel, the upper 8 are used. Damaged: no
    complete image, more than MAX_PIXELS, or pixels whose white is unknown, which would become black or white
    everywhere. MemoryError and OSError: the machine is the cause, and the image may be sound.
    """
    n_pixels = MAX_PIXELS // 2  # until the header is read; a WebP takes 8 bytes for each pixel before that
    if content.startswith(PNG):
        content = _pixel_chunks(content)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads the header
            _check(image, content)
            n_pixels = image.width * image.height
            # torchvision gives the same pixels as PIL, but faster. PIL decodes or explains what it refuses.
            # torchvision 0.21 never frees the memory of an image that is cut off.
            if image.format == 'JPEG' and image.mode in ('L', 'RGB') and content.endswith(END):
                with contextlib.suppress(RuntimeError):
                    jpeg = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                    return decode_jpeg(jpeg, ImageReadMode.RGB)
            return _by_pil(image)
    except Damaged:
        raise
    except Exception as e:  # PIL raises many types on damage: SyntaxError, struct.error, ...
        if isinstance(e, OSError) and e.errno:  # from the machine: PIL loads its modules when it needs them
            raise
        # Some decoders report damage when memory is missing, others ask for too much on damage: is there any?
        np.empty(BYTES_AT_LEAST + BYTES_PER_PIXEL * n_pixels, np.uint8)
        reason = 'it holds no image' if isinstance(e, UnidentifiedImageError) else str(e).split('\n')[0]
        raise Damaged(reason or type(e).__name__) from None


def _check(image: Image.Image, content: bytes) -> None:
    """Damaged if, by its header, decoding takes too much time or memory, or gives black or white only."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Damaged(f'its {width}x{height} pixels are more than {MAX_PIXELS:,}')
    if max(width, height) > MAX_SIDE:
        raise Damaged(f'its {width}x{height} pixels are too long and thin')
    if width * height > max(FREE_PIXELS, MAX_PIXELS_PER_BYTE * len(content)):
        raise Damaged(f'its {width}x{height} pixels are too many for {len(content):,} bytes')
    if image.format in ('JPEG', 'MPO') and content.count(b'\xff\xda') > MAX_SCANS and (
            n_scans(content) > MAX_SCANS):
        raise Damaged(f'it has more than {MAX_SCANS} scans')
    kind = {'F': 'floats', 'I': '32-bit or signed integers'}.get(image.mode)
    if kind and not (image.mode == 'I' and image.format in ('PNG', 'PPM')):  # there they have 16 bits
        raise Damaged(f'its pixels are {kind}, and nothing says which value is white: convert it to 8 bits')


def _by_pil(image: Image.Image) -> Tensor:
    """Pixels of an image whose header is read, (3, H, W)."""
    tiles: Any = getattr(image, 'tile', [])  # parts of the file: (decoder, box, offset, arguments)
    deep = image.mode.startswith('I') or bool(DEEP.search(str([tile[3] for tile in tiles[:1]])))
    if image.mode.startswith('I'):  # 16 bits of gray: PIL would clip them to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    x = torch.from_numpy(np.array(image.convert('RGB'))).permute(2, 0, 1)
    if deep and x.max() <= 64:  # for instance 12 bits in 16
        raise Damaged('no pixel reaches a quarter of the range of 16 bits, so it may have fewer bits: '
                      'convert it to 8 bits')
    return x


def n_scans(content: bytes) -> int:
    """Number of scans of a JPEG, not counting those within its segments or after its end."""
    n, at = 0, 0
    while 0 <= (at := content.find(b'\xff', at)) < len(content) - 1:
        marker = content[at + 1]
        if marker == 0xd9:
            break
        if marker == 0xff:  # a fill byte
            at += 1
        elif marker <= 0x01 or 0xd0 <= marker <= 0xd8:  # a byte of a scan, or a marker without a segment
            at += 2
        else:
            n += marker == 0xda
            at += 2 + int.from_bytes(content[at + 2:at + 4])
    return n


def _pixel_chunks(content: bytes) -> bytes:
    """A PNG without texts, colour profile and so on, which PIL refuses if they are large or damaged."""
    kept, at = [PNG], len(PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at:at + 4])
        if content[at + 4:at + 8] in PIXEL_CHUNKS:
            kept.append(content[at:end])
        at = end
    return b''.join(kept)
