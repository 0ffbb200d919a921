"""Image files that tests make, and what loaders make of them."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from utils import InputError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # as everyone writes them


def picture(seed, width=60, height=50, mode='RGB'):
    """A smooth picture, which JPEG keeps well, other for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def content(image, form='JPEG', **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_image(path, data=b''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data or content(picture(len(path.name))))


def claim_size(data, width, height):
    """JPEG data whose header claims another size."""
    i = data.index(b'\xff\xc0') + 5
    return data[:i] + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + data[i + 4:]


def pixels(x):
    """What was normalised, (B, 3, H, W) -> whole numbers (B, H, W, 3)."""
    return np.rint((x.double().permute(0, 2, 3, 1).numpy() * STD + MEAN) * 255).astype(int)


def rgb(tensor):
    return tensor.permute(1, 2, 0).numpy().astype(int)


def epoch_of(loader, number=1):
    loader.epoch = number
    batches = list(loader)
    assert all(batch.epoch == number for batch in batches)
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.labels for batch in batches])


def same_epochs(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def message_of(loader):
    with pytest.raises(InputError) as error:
        list(loader)
    assert '\n' not in str(error.value)
    return str(error.value)
