"""The built-in shapes: drawn as defined, the same every time, and told apart by their form alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from inputs import shapes

FIGURES = shapes.SHAPES | shapes.FRAGMENTS


@pytest.fixture(scope='module')
def split():
    return shapes.load(train=True), shapes.load(train=False)


def one(figure, x, y, radius, angle, form, size):
    return shapes.mask(figure, [x], [y], [radius], [angle], [form], size)[0]


def drawn_by_pil(name, x, y, radius, angle, form, size, fine=8):
    """The shape as polygons and circles, filled by PIL on a grid `fine` times as dense, and averaged down."""
    image = Image.new('L', (size * fine, size * fine))
    draw = ImageDraw.Draw(image)

    def place(points):  # from the shape's own units to PIL's, in which a pixel's centre is a whole number
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return (np.asarray(points) @ turn * radius + (x, y)) * fine - 0.5

    def polygon(*points):
        draw.polygon([tuple(p) for p in place(points)], fill=255)

    def circle(u, v, r, fill=255):
        (cx, cy), r = place([(u, v)])[0], r * radius * fine
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)

    def around(n, r, shift=0.0):
        at = 2 * np.pi * (np.arange(n) + shift) / n
        return list(zip(r * np.cos(at), r * np.sin(at), strict=True))

    if name == 'disc':
        circle(0, 0, 0.85)
    elif name == 'ring':
        circle(0, 0, 0.88)
        circle(0, 0, 0.56 - 0.12 * form, fill=0)
    elif name == 'crescent':
        circle(0, 0, 1)
        circle(0.4 + 0.15 * form, 0, 0.8, fill=0)
    elif name == 'triangle':
        polygon(*around(3, 1))
    elif name == 'square':
        polygon((-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7))
    elif name == 'pentagon':
        polygon(*around(5, 0.76 / np.cos(np.pi / 5)))
    elif name == 'star':
        points = zip(around(5, 1), around(5, 0.42 + 0.08 * form, shift=0.5), strict=True)
        polygon(*[p for pair in points for p in pair])
    elif name == 'cross':
        w = 0.24 + 0.08 * form
        polygon((-0.94, -w), (0.94, -w), (0.94, w), (-0.94, w))
        polygon((-w, -0.94), (w, -0.94), (w, 0.94), (-w, 0.94))
    elif name == 'heart':
        polygon((0, -0.65), (0.75, 0.1), (0, 0.85), (-0.75, 0.1))
        circle(-0.375, -0.275, 0.75 / np.sqrt(2))
        circle(0.375, -0.275, 0.75 / np.sqrt(2))
    elif name == 'arrow':
        w, base = 0.2 + 0.06 * form, 0.63 / 0.8
        polygon((-0.95, -w), (0, -w), (0, w), (-0.95, w))
        polygon((1, 0), (-0.05, base), (-0.05, -base))
    else:
        raise AssertionError(f'no reference for {name}')
    return np.asarray(image.reduce(fine), np.float64) / 255


@pytest.mark.parametrize('name', shapes.CLASSES)
@pytest.mark.parametrize('form', [0.0, 0.6, 1.0])
def test_mask_is_what_pil_draws(name, form):
    for x, y, radius, angle in [(90, 110, 80, 0), (101.3, 94.7, 71.5, 0.9), (100, 100, 60, 4)]:
        ours = one(shapes.SHAPES[name], x, y, radius, angle, form, 200)
        reference = drawn_by_pil(name, x, y, radius, angle, form, 200)
        assert np.abs(ours - reference).sum() < 0.01 * reference.sum()  # PIL's own steps are the most of it


def lens(r, s, d):
    """Area that two circles of radius r and s at the distance d have in common."""
    a, b = (d * d + r * r - s * s) / (2 * d), (d * d + s * s - r * r) / (2 * d)
    return sum(q * q * np.arccos(c / q) - c * np.sqrt(q * q - c * c) for q, c in [(r, a), (s, b)])


@pytest.mark.parametrize(('name', 'area'), [
    ('disc', np.pi * 0.85**2),
    ('ring', np.pi * (0.88**2 - 0.50**2)),
    ('crescent', np.pi - lens(1, 0.8, 0.475)),
    ('triangle', 3 * np.sqrt(3) / 4),
    ('square', 1.4**2),
    ('pentagon', 5 * 0.76**2 * np.tan(np.pi / 5)),
    ('star', 5 * 0.46 * np.sin(np.pi / 5)),
    ('cross', 4 * (2 * 0.94 * 0.28 - 0.28**2)),
    ('heart', 0.75**2 * (2 + np.pi / 2)),
    ('arrow', 1.05 * 0.7875 + 0.90 * 0.46),
    ('blob', np.pi * 0.5),
    ('line', 2 * 0.44 + np.pi * 0.22**2),
])
def test_area(name, area):
    cover = one(FIGURES[name], 150, 150, 110, 0.3, 0.5, 300)
    assert cover.sum() / 110**2 == pytest.approx(area, rel=0.005)


@pytest.mark.parametrize('name', FIGURES)
def test_mask_at_the_size_of_a_picture_is_the_average_of_a_fine_one(name):
    small = one(FIGURES[name], 15.2, 17.1, 8.3, 0.7, 0.4, 32)
    fine = one(FIGURES[name], 15.2 * 16, 17.1 * 16, 8.3 * 16, 0.7, 0.4, 512)
    fine = fine.reshape(32, 16, 32, 16).mean((1, 3))
    assert small.shape == (32, 32) and small.dtype == np.float32
    assert small.min() >= 0 and small.max() <= 1
    assert np.abs(small - fine).max() < 0.4  # at the sharpest tips
    assert np.abs(small - fine).sum() < 0.05 * fine.sum()


@pytest.mark.parametrize('name', FIGURES)
def test_a_quarter_turn_goes_from_x_to_y(name):
    level, turned = (one(FIGURES[name], 20, 20, 12, angle, 0.5, 40) for angle in (0.3, 0.3 + np.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(level, -1), atol=1e-3)


@pytest.mark.parametrize('name', shapes.CLASSES)
def test_shape_lies_within_its_circle(name):
    at = np.arange(32) + 0.5 - 16
    outside = np.hypot(at, at[:, None]) > 10.75
    for form in (0, 0.5, 1):
        cover = one(shapes.SHAPES[name], 16, 16, 10, 0.4, form, 32)
        assert cover[outside].sum() < 0.01 * cover.sum()  # the soft edge of the star's tips


def test_masks_are_drawn_one_by_one():
    x, y, radius, angle, form = np.random.default_rng(0).uniform(0.1, 1, (5, 6)) * [[32], [32], [9], [6], [1]]
    together = shapes.mask(shapes.SHAPES['star'], x, y, radius, angle, form)
    for i in range(6):
        alone = one(shapes.SHAPES['star'], x[i], y[i], radius[i], angle[i], form[i], 32)
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_type_shape_and_balance():
    for n in (0, 7, 10, 263):
        images, labels = shapes.make(n, seed=1)
        assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
        assert labels.shape == (n,) and labels.dtype == np.int64
        count = np.bincount(labels, minlength=10)
        assert len(count) == 10 and count.max() - count.min() <= (n % 10 > 0)
    assert len(set(shapes.CLASSES)) == 10


def test_same_seed_same_pictures():
    images, labels = shapes.make(300, seed=5)
    again = shapes.make(300, seed=5)
    assert (images == again[0]).all() and (labels == again[1]).all()
    for other in (shapes.make(300, seed=6), shapes.make(300, seed=5, stream=1)):
        assert (labels != other[1]).any()
        assert (images != other[0]).any((1, 2, 3)).all()


@pytest.mark.parametrize('first', [1, 7, 300])
def test_the_first_pictures_are_those_of_all(first):
    whole, some = shapes.make(520, seed=3), shapes.make(520, seed=3, first=first)
    for a, b in zip(whole, some, strict=True):
        assert len(b) == first and np.array_equal(a[:first], b)


def test_draws_do_not_depend_on_the_version_of_numpy():
    assert shapes.make(20, seed=0)[1].tolist() == [7, 6, 1, 4, 3, 8, 1, 4, 8, 9, 5, 5, 6, 9, 2, 7, 0, 2, 3, 0]


def test_train_and_test_are_disjoint(split):
    (train, train_labels), (test, test_labels) = split
    assert len(train) == shapes.N_TRAIN and len(test) == shapes.N_TEST
    assert (np.bincount(train_labels) == shapes.N_TRAIN // 10).all()
    assert (np.bincount(test_labels) == shapes.N_TEST // 10).all()
    seen = {image.tobytes() for image in train}
    assert len(seen) == shapes.N_TRAIN
    assert seen.isdisjoint(image.tobytes() for image in test)


def test_splits_of_the_same_size_have_nothing_in_common(monkeypatch):
    monkeypatch.setattr(shapes, 'N_TRAIN', 40)
    monkeypatch.setattr(shapes, 'N_TEST', 40)
    (train, train_labels), (test, test_labels) = (shapes.load(train, seed=3) for train in (True, False))
    assert (train_labels != test_labels).any() and (train != test).any((1, 2, 3)).all()
    assert (shapes.load(train=True, seed=4)[0] != train).any((1, 2, 3)).all()


def test_pictures_hold_one_whole_shape_of_their_label(monkeypatch):
    for knob, value in [('TEXTURE', (0, 0)), ('CLOUDS', 0), ('NOISE', 0), ('DISTRACTORS', (0, 0))]:
        monkeypatch.setattr(shapes, knob, value)
    images, labels = shapes.make(3000, seed=2)
    images = images.astype(np.float64)
    ground = np.median(images, (1, 2), keepdims=True)
    away = np.abs(images - ground).max(-1)
    cover = away / away.max((1, 2), keepdims=True)
    assert (cover[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()  # no shape reaches a corner
    low, high = shapes.RADIUS
    radius2 = (high**3 - low**3) / (3 * (high - low))  # mean of its square
    for k, figure in enumerate(shapes.SHAPES.values()):
        unit = one(figure, 50, 50, 40, 0, 0.5, 100).sum() / 40**2
        assert cover[labels == k].sum((1, 2)).mean() == pytest.approx(unit * radius2, rel=0.1)


def test_colour_does_not_tell_the_class(split):
    """Nearest class mean, of each picture's mean colour and of its spread, scaled to unit variance."""
    (train, train_labels), (test, test_labels) = split

    def accuracy(statistic):
        x, y = statistic(train), statistic(test)
        x, y = (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)
        means = np.stack([x[train_labels == k].mean(0) for k in range(10)])
        return (np.square(y[:, None] - means).sum(-1).argmin(1) == test_labels).mean()

    mean = accuracy(lambda images: images.mean((1, 2)))
    both = accuracy(lambda images: np.concatenate([images.mean((1, 2)), images.std((1, 2))], 1))
    assert mean < 0.125  # chance is 0.1, with a standard error of 0.005
    assert both < 0.16   # a larger shape spreads the colours a little more
