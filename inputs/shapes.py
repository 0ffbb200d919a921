"""The built-in data set: ten shapes among distractors, drawn in seconds, without a download.

    python cifar.py --dataset shapes --save logs/shapes_teacher

A picture is 32 x 32 and has one whole shape, at a random place, size, angle and colour. Its textured ground
also has blobs, lines, corners and arcs in similar colours. The label is the form of the shape. Colour and
place do not show it, so a network has to learn where to look.

Lengths are in pixels, x to the right and y down; the centre of a pixel is at + 0.5. Colours are in [0, 1]
until the end.
"""
from collections.abc import Callable
from math import cos, pi, sin, sqrt  # those of numpy 2 would turn float32 into float64

import numpy as np
from numpy.random import Generator

N_TRAIN = 5_000
N_TEST = 2_000
SIZE = 32

# The difficulty. A change to any of these makes another data set, whose results cannot be compared.
RADIUS = (7.0, 12.0)            # of the circle around a shape: smaller is harder
CONTRAST = (0.35, 0.60)         # how far, in RGB, a shape or a distractor is from the ground: lower is harder
DISTRACTORS = (1, 3)            # fewest and most in a picture
DISTRACTOR_RADIUS = (2.0, 4.0)  # nearer to RADIUS is harder
TEXTURE = (0.01, 0.04)          # amplitude of each of the waves in the ground: higher is harder
WAVES = 3                       # number of them
WAVELENGTH = (4.0, 16.0)        # hardest near the size of the parts of a shape
CLOUDS = 0.10                   # amplitude of slow changes of colour in the ground
NOISE = 0.04                    # amplitude of the noise in each pixel

_CHUNK = 250          # pictures drawn at once: the arrays stay in the cache
_GRID = 5             # random colours along each side of the clouds, interpolated in between
_GROUND = (0.3, 0.7)  # colour of the ground: far enough from 0 and 1 that little is clipped

# A figure is a function of u, v (m, S, S), its own coordinates in units of its radius, and of its form
# (m, 1, 1) in [0, 1], which varies within the class. It returns the signed distance to its edge, (m, S, S),
# negative inside. A shape is within the unit circle.
Figure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _wedge(u: np.ndarray, v: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Fold the plane to 0 <= angle <= pi / n, along the n axes of a regular figure."""
    sector = np.float32(2 * pi / n)
    angle = np.arctan2(v, u)
    angle = np.abs(angle - sector * np.rint(angle / sector))
    rho = np.hypot(u, v)
    return rho * np.cos(angle), rho * np.sin(angle)


def _star(u: np.ndarray, v: np.ndarray, form: np.ndarray) -> np.ndarray:
    x, y = _wedge(u, v, 5)
    notch = 0.42 + 0.08 * form  # radius of the inner corners
    nx, ny = notch * sin(pi / 5), 1 - notch * cos(pi / 5)  # normal to the edge from (1, 0) to one
    return ((x - 1) * nx + y * ny) / np.hypot(nx, ny)


def _cross(u: np.ndarray, v: np.ndarray, form: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.94, np.minimum(u, v) - (0.24 + 0.08 * form))


def _heart(u: np.ndarray, v: np.ndarray, form: np.ndarray) -> np.ndarray:
    k = 0.75  # half the diagonal of a square that stands on a corner, with a disc on each upper side
    u, v = np.abs(u), v - 0.1
    return np.minimum((u + np.abs(v) - k) / sqrt(2), np.hypot(u - k / 2, v + k / 2) - k / sqrt(2))


def _arrow(u: np.ndarray, v: np.ndarray, form: np.ndarray) -> np.ndarray:
    v = np.abs(v)
    head = np.maximum(-0.05 - u, 0.6 * u + 0.8 * v - 0.6)
    return np.minimum(head, np.maximum(np.abs(u + 0.45) - 0.5, v - (0.2 + 0.06 * form)))


def _strokes(u: np.ndarray, v: np.ndarray, angle: np.ndarray | np.floating) -> np.ndarray:
    """Two strokes from the origin, at +- angle to u; at pi / 2 they are one line."""
    c, s, v = np.cos(angle), np.sin(angle), np.abs(v)
    t = np.clip(u * c + v * s, 0, 1)
    return np.hypot(u - t * c, v - t * s) - 0.22


def _arc(u: np.ndarray, v: np.ndarray, form: np.ndarray) -> np.ndarray:
    u, v, angle = u + 0.5, np.abs(v), 0.8 + 0.6 * form
    c, s = np.cos(angle), np.sin(angle)
    return np.where(v * c < u * s, np.abs(np.hypot(u, v) - 1), np.hypot(u - c, v - s)) - 0.22


SHAPES: dict[str, Figure] = {
    'disc': lambda u, v, form: np.hypot(u, v) - 0.85,
    'ring': lambda u, v, form: np.abs(np.hypot(u, v) - (0.72 - 0.06 * form)) - (0.16 + 0.06 * form),
    'crescent': lambda u, v, form: np.maximum(
        np.hypot(u, v) - 1, 0.8 - np.hypot(u - (0.4 + 0.15 * form), v)),
    'triangle': lambda u, v, form: _wedge(-u, v, 3)[0] - 0.5,
    'square': lambda u, v, form: np.maximum(np.abs(u), np.abs(v)) - 0.7,
    'pentagon': lambda u, v, form: _wedge(-u, v, 5)[0] - 0.76,
    'star': _star, 'cross': _cross, 'heart': _heart, 'arrow': _arrow}
CLASSES = tuple(SHAPES)
FRAGMENTS: dict[str, Figure] = {
    'blob': lambda u, v, form: (np.hypot(u, v / (0.35 + 0.3 * form)) - 1) * (0.35 + 0.3 * form),
    'line': lambda u, v, form: _strokes(u, v, np.float32(pi / 2)),
    'corner': lambda u, v, form: _strokes(u + 0.5, v, 0.5 + 0.6 * form),
    'arc': _arc}


def mask(figure: Figure, x, y, radius, angle, form, size: int = SIZE) -> np.ndarray:
    """The part of each pixel that a figure covers, (m, size, size) float32 in [0, 1], in m places.

    Centre x, y and radius in pixels, angle in radians from x towards y, form in [0, 1], each of shape (m,).
    """
    x, y, radius, angle, form = (np.asarray(a, np.float64)[:, None] for a in (x, y, radius, angle, form))
    c, s = np.cos(angle) / radius, np.sin(angle) / radius
    dx, dy = np.arange(size) + 0.5 - x, np.arange(size) + 0.5 - y  # (m, size)

    def grid(along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
        return along_x.astype(np.float32)[:, None] + along_y.astype(np.float32)[:, :, None]

    d = figure(grid(c * dx, s * dy), grid(-s * dx, c * dy), form.astype(np.float32)[:, None])
    return np.clip(0.5 - d * radius.astype(np.float32)[:, None], 0, 1)  # an edge is one pixel wide


def make(n: int, seed: int, stream: int = 0, first: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """n pictures (n, 32, 32, 3) uint8 and labels (n,) int64: indices into CLASSES, balanced, in random order.

    With `first`, only the first of them are drawn. The pictures depend only on (n, seed, stream), and the
    streams of a seed are independent. Only uniform numbers are drawn, which do not depend on the version of
    numpy. Other hardware may round a pixel to the next value.
    """
    rng = Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
    labels = np.argsort(rng.random(n), kind='stable') % len(CLASSES)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for i in range(0, min(n, first or n), _CHUNK):
        images[i:i + _CHUNK] = _pictures(labels[i:i + _CHUNK], rng)
    return images[:first], labels[:first].astype(np.int64)


def load(train: bool, seed: int = 0, first: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The split of `--dataset shapes`: N_TRAIN pictures and labels of stream 1, or N_TEST of stream 2."""
    return make(N_TRAIN, seed, 1, first) if train else make(N_TEST, seed, 2, first)


def _pictures(labels: np.ndarray, rng: Generator) -> np.ndarray:
    n = len(labels)
    picture = _ground(n, rng)  # (n, 3, SIZE, SIZE)
    things = np.zeros_like(picture)  # added to the ground, so that its texture is visible in them
    count = DISTRACTORS[0] + _choice(rng, n, DISTRACTORS[1] - DISTRACTORS[0] + 1)
    for i in range(DISTRACTORS[1]):
        kind = np.where(i < count, _choice(rng, n, len(FRAGMENTS)), -1)
        _paint(things, FRAGMENTS, kind, DISTRACTOR_RADIUS, whole=False, rng=rng)
    _paint(things, SHAPES, labels, RADIUS, whole=True, rng=rng)  # last, so that nothing covers it
    picture += things
    picture += 2 * NOISE * (rng.random(picture.shape, np.float32) - 0.5)
    return np.rint(255 * np.clip(picture, 0, 1)).transpose(0, 2, 3, 1)


def _ground(n: int, rng: Generator) -> np.ndarray:
    """Waves and clouds, (n, 3, SIZE, SIZE), as one matrix product of columns and rows."""
    along = np.arange(SIZE) + 0.5
    angle, phase = 2 * pi * rng.random((2, n, WAVES, 1))
    k = 2 * pi / _uniform(rng, WAVELENGTH, n, WAVES, 1)
    a, b = k * np.cos(angle) * along, k * np.sin(angle) * along + phase  # sin(a + b), (n, WAVES, SIZE)
    colour = _uniform(rng, TEXTURE, n, WAVES, 1) * _direction(rng, n, WAVES)  # (n, WAVES, 3)
    colour = colour.transpose(0, 2, 1)[..., None]  # (n, 3, WAVES, 1)
    b = b[:, None]
    at = along / SIZE * (_GRID - 1)
    tent = np.maximum(0, 1 - np.abs(at - np.arange(_GRID)[:, None]))  # (_GRID, SIZE), linear interpolation
    grid = _uniform(rng, _GROUND, n, 3, 1, 1) + _uniform(rng, (-CLOUDS, CLOUDS), n, 3, _GRID, _GRID)
    rows = np.concatenate([np.sin(a), np.cos(a)], 1)[:, None].repeat(3, 1)  # (n, 3, 2 WAVES, SIZE)
    rows = np.concatenate([rows, grid @ tent], 2)  # (n, 3, 2 WAVES + _GRID, SIZE)
    tents = np.broadcast_to(tent, (n, 3, _GRID, SIZE))
    columns = np.concatenate([colour * np.cos(b), colour * np.sin(b), tents], 2)  # the same shape
    return columns.astype(np.float32).transpose(0, 1, 3, 2) @ rows.astype(np.float32)


def _paint(things: np.ndarray, figures: dict[str, Figure], kind: np.ndarray, size: tuple[float, float],
           whole: bool, rng: Generator) -> None:
    """Paint figures of kind (n,), -1 for none, over things (n, 3, SIZE, SIZE). whole: not cut off."""
    n = len(kind)
    radius = _uniform(rng, size, n)
    x, y = whole * radius + (SIZE - 2 * whole * radius) * rng.random((2, n))
    angle, form = 2 * pi * rng.random(n), rng.random(n)
    colour = _uniform(rng, CONTRAST, n, 1, 1, 1) * _direction(rng, n, 1).reshape(n, 3, 1, 1)
    for k, figure in enumerate(figures.values()):
        i = np.flatnonzero(kind == k)
        cover = mask(figure, x[i], y[i], radius[i], angle[i], form[i])[:, None]
        things[i] += cover * (colour[i].astype(np.float32) - things[i])


def _uniform(rng: Generator, bounds: tuple[float, float], *shape: int) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random(shape)


def _choice(rng: Generator, n: int, among: int) -> np.ndarray:
    return (among * rng.random(n)).astype(np.int64)


def _direction(rng: Generator, n: int, m: int) -> np.ndarray:
    """Unit vectors (n, m, 3)."""
    v = 2 * rng.random((n, m, 3)) - 1
    return v / np.sqrt((v * v).sum(-1, keepdims=True))
