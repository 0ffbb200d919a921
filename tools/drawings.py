"""Pictures of four of CIFAR-10's classes, drawn here: something to look at where no photograph is at hand.

    from tools import drawings
    pictures = drawings.draw()    # {'airplane': tensor, 'ship': tensor, 'truck': tensor, 'frog': tensor}

Networks trained on photographs have never seen the like; what they make of them is no measure of anything.
"""
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = 320
Colour = tuple[int, int, int]
WHITE, RED, BLACK, GLASS = (238, 240, 242), (195, 45, 40), (28, 28, 30), (60, 80, 105)


def draw() -> dict[str, Tensor]:
    """The pictures by name, uint8 (3, SIZE, SIZE), the same every time."""
    pictures = {}
    for paint in (_airplane, _ship, _truck, _frog):
        name = paint.__name__.removeprefix('_')
        pictures[name] = torch.from_numpy(np.array(paint())).permute(2, 0, 1)
    return pictures


def _ground(top: Colour, bottom: Colour) -> Image.Image:
    """From one colour to another, with some noise, as photographs have."""
    t = np.linspace(0, 1, SIZE)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 6, (SIZE, SIZE, 1))
    return Image.fromarray(((1 - t) * top + t * bottom + noise).clip(0, 255).astype(np.uint8))


def _airplane() -> Image.Image:
    image = _ground((90, 140, 205), (170, 200, 235))
    pen = ImageDraw.Draw(image)
    pen.polygon([(130, 150), (190, 150), (120, 250), (95, 250)], (150, 155, 165))
    pen.polygon([(140, 145), (190, 145), (150, 80), (130, 80)], (130, 135, 145))
    pen.polygon([(30, 150), (60, 140), (45, 85), (22, 85)], RED)
    pen.rounded_rectangle((25, 130, 280, 168), 19, WHITE)
    pen.polygon([(265, 131), (300, 152), (265, 167)], WHITE)
    for x in range(80, 250, 17):
        pen.rectangle((x, 141, x + 7, 148), GLASS)
    return image


def _ship() -> Image.Image:
    image = _ground((185, 205, 225), (225, 232, 238))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 205, SIZE, SIZE), (40, 85, 120))
    for y in range(215, SIZE, 14):
        pen.line([(0, y), (SIZE, y + 5)], (70, 115, 150), 3)
    pen.polygon([(25, 170), (300, 165), (268, 235), (55, 235)], (150, 40, 35))
    pen.polygon([(25, 170), (300, 165), (294, 180), (30, 185)], WHITE)
    pen.rectangle((90, 125, 230, 168), WHITE)
    pen.rectangle((110, 95, 200, 125), WHITE)
    pen.rectangle((135, 55, 160, 95), RED)
    pen.line([(245, 165), (245, 60)], BLACK, 4)
    for x in range(100, 225, 20):
        pen.rectangle((x, 138, x + 9, 149), GLASS)
    return image


def _truck() -> Image.Image:
    image = _ground((150, 190, 225), (215, 225, 230))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 235, SIZE, SIZE), (105, 105, 105))
    pen.rectangle((20, 75, 205, 225), WHITE)
    pen.rectangle((20, 75, 205, 90), RED)
    pen.polygon([(210, 120), (265, 120), (295, 170), (298, 225), (210, 225)], RED)
    pen.polygon([(222, 132), (260, 132), (280, 170), (222, 170)], GLASS)
    pen.rectangle((15, 222, 302, 238), BLACK)
    for x in (65, 120, 250):
        pen.ellipse((x - 26, 212, x + 26, 264), BLACK)
        pen.ellipse((x - 11, 227, x + 11, 249), (170, 170, 170))
    return image


def _frog() -> Image.Image:
    image = _ground((70, 120, 50), (95, 80, 50))
    pen = ImageDraw.Draw(image)
    pen.ellipse((70, 120, 250, 260), (90, 150, 50))
    pen.ellipse((85, 80, 235, 190), (100, 165, 60))
    for x in (115, 205):
        pen.ellipse((x - 25, 60, x + 25, 115), (110, 170, 60))
        pen.ellipse((x - 13, 72, x + 13, 100), BLACK)
    pen.arc((110, 110, 210, 165), 10, 170, (50, 80, 30), 5)
    for x in (80, 240):
        pen.ellipse((x - 40, 200, x + 40, 270), (80, 140, 45))
    return image
