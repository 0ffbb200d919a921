"""Photos to look at: found, read and cut to what a network sees of them.

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
    """Files as they are, and of folders the images in them and their sub-folders, by name."""
    found = []
    for path in map(Path, photos):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in folders.ENDINGS and p.is_file()
                        and not any(part.startswith('.') for part in p.relative_to(path).parts))
        if not inside:
            raise InputError(f'the folder {path} has no photos in it, as {", ".join(folders.ENDINGS[:3])}: '
                             'name another')
        found += inside
    return found


def read(path: Path | str) -> Tensor:
    """The image in a file, uint8 (3, H, W)."""
    try:
        with warnings.catch_warnings(action='ignore'):  # of PIL, about EXIF that nobody reads
            return images.decode(Path(path).read_bytes())
    except OSError as e:
        raise InputError(f'cannot read the photo {path}: {e.strerror}') from None
    except images.Damaged as e:
        raise refusal(path, e) from None


def refusal(name: Path | str, reason: images.Damaged) -> InputError:
    return InputError(f'{name} is no photo that can be drawn ({reason}): leave it out, or name another')


def prepare(image: Tensor, size: int) -> Tensor:
    """What a network for images of `size` sees of an image, uint8 (3, H, W) -> (size, size, 3).

    Damaged if the image is too long and thin.
    """
    if size == images.SIZE:
        image = images.crop(image, 'center', rng=None)  # which needs no draws
    else:
        image = images.resize(center_crop(image, min(image.shape[1:])), size, size)
    return image.permute(1, 2, 0)
