"""Photos: found, read, and cut to the picture that a network sees.

    for path in photos.find(['folder', 'photo.jpg']):
        picture = photos.prepare(photos.read(path), size=32)
"""
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torchvision.transforms.functional import center_crop

from inputs import folders, images
from utils import InputError


def find(photos: Sequence[str | Path]) -> list[Path]:
    """Files, and all images in folders and their sub-folders, sorted by name."""
    found = []
    for path in map(Path, photos):
        inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in folders.ENDINGS
                        and not any(part.startswith('.') for part in p.relative_to(path).parts))
        if path.is_dir() and not inside:
            raise InputError(f'the folder {path} has no photos in it: name another')
        found += inside if path.is_dir() else [path]
    return found


def read(path: Path | str) -> Tensor:
    """The image in a file, uint8 (3, H, W)."""
    try:
        with warnings.catch_warnings(action='ignore'):  # PIL warns about EXIF, which is not used
            return images.decode(Path(path).read_bytes())
    except OSError as e:
        raise InputError(f'cannot read the photo {path}: {e.strerror}') from None
    except images.Damaged as e:
        raise InputError(f'{path} cannot be drawn ({e}): leave it out, or name another photo') from None


def prepare(image: Tensor, size: int, name: str = 'the image') -> Tensor:
    """What a network for images of `size` sees of an image, uint8 (3, H, W) -> (size, size, 3)."""
    try:
        if size == images.SIZE:
            image = images.crop(image, 'center', rng=None)  # draws nothing
        else:
            image = images.resize(center_crop(image, min(image.shape[1:])), size, size)
    except images.Damaged as e:
        raise InputError(f'{name} cannot be drawn ({e}): leave it out, or name another photo') from None
    return image.permute(1, 2, 0)
