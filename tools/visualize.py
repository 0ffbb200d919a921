"""Where networks look: attention maps and gradients over photos, network beside network.

    python -m tools.visualize PHOTO --weights logs/teacher logs/student logs/student_at --save attention.png
    python -m tools.visualize photos --weights torchvision:resnet34 --maps sum2 --groups [3] --save maps.pdf
    python -m tools.visualize --disputed 4 --weights logs/student logs/student_at --save attention.png

A network sees a photo as it sees test images: the middle as 32 x 32 for CIFAR, the central crop of 224 x 224
for ImageNet. Each map is drawn relative to its own largest value, over the picture in gray (bilinear in
between) and bare (its elements as they are). Groups count from 0, as in names of tensors and in --at_groups.

Photos share a figure, one below another, as long as it has at most ROWS rows of maps; those left go to
attention-2.png, attention-3.png and so on.
"""
import argparse
import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from inputs import images
from tools.looks import GRADIENT, MAPS, Look, Network, disputed, load, look
from tools.photos import find, prepare, read, refusal
from training import checkpoint, exits, options
from utils import InputError
from weights.networks import describe

STYLES = {'both': ('overlay', 'bare'), 'overlay': ('overlay',), 'bare': ('bare',)}
FORMATS = {'.png': None, '.svg': {'Date': None}, '.pdf': {'CreationDate': None}}  # the same file every time
TITLE = 'Where the networks look'
ROWS = 24  # of maps in a figure of several photos


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Draw what networks attend to in photos, network beside network.')
    parser.add_argument('photos', nargs='*', type=options.path, metavar='PHOTO',
                        help='photo, or folder with photos in it')
    parser.add_argument('--disputed', type=options.count, default=0, metavar='N',
                        help='no photos, but the first N test images on which the networks disagree')
    parser.add_argument('--dataroot', type=options.path, default='.', metavar='FOLDER',
                        help='with --disputed: where CIFAR is, or is downloaded to')
    parser.add_argument('--weights', nargs='+', type=options.path, required=True, metavar='RUN',
                        help='runs, files of weights, or torchvision:resnet34; as a rule the teacher first')
    parser.add_argument('--save', type=_picture, required=True, metavar='FILE',
                        help=f'figure to write: {", ".join(FORMATS)}')
    parser.add_argument('--names', nargs='+', default=[], metavar='NAME',
                        help='of the networks; those of the folders or files by default')
    parser.add_argument('--maps', nargs='+', choices=[*MAPS, GRADIENT], default=['sum2', GRADIENT],
                        help='sum over channels of |A|, |A|^2, |A|^4; maximum of |A|; gradient of the loss')
    parser.add_argument('--groups', type=options.int_list, default=[], metavar='LIST',
                        help='such as [0,2]; all by default')
    parser.add_argument('--style', choices=STYLES, default='both',
                        help='maps over the picture in gray, bare, or both')
    parser.add_argument('--label', default='', metavar='CLASS',
                        help="class of the gradient's loss, name or number; each network's guess by default")
    parser.add_argument('--title', default=TITLE, help='of the figure')
    opt = parser.parse_args(arguments)
    if bool(opt.photos) == bool(opt.disputed):
        parser.error('give either PHOTO, one or several, or --disputed N for test images')
    if opt.dataroot != parser.get_default('dataroot') and not opt.disputed:
        parser.error('--dataroot has no effect without --disputed')
    if opt.label and GRADIENT not in opt.maps:
        parser.error('--label is the class of the gradient, which --maps leaves out: add it, or drop --label')
    if opt.groups and opt.maps == [GRADIENT]:
        parser.error('the gradient has no groups: drop --groups, or add --maps sum2')
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    if not opt.save.parent.is_dir():
        raise InputError(f'there is no folder {opt.save.parent} to write {opt.save.name} to: make it first')
    names = [str(path) for path in find(opt.photos)]
    networks = load(opt.weights, opt.names)
    for network in networks:
        print(f'{network.name}: {describe(network.params)}')
    n_rows = len(rows(networks, opt.maps, opt.groups))
    known: dict[str, tuple[Tensor, str]] = {}
    if opt.disputed:
        known = disputed(networks, opt.disputed, opt.dataroot)
        names = list(known)
    n = max(ROWS // n_rows, 1)
    for i in range(0, len(names), n):
        pictures = {name: known[name][0] if known else read(name) for name in names[i:i + n]}
        truths = {name: truth for name, (_, truth) in known.items()}
        drawn = figure(pictures, networks, opt.maps, opt.groups, opt.style, opt.label, opt.title, truths)
        path = opt.save.with_stem(f'{opt.save.stem}-{i // n + 1}') if i else opt.save
        try:
            checkpoint.write_atomically(path, content(drawn, path.suffix))
        except OSError as e:
            raise InputError(f'cannot write {path}: {e.strerror}') from None
        print(f'{path}: {len(pictures)} of {len(names)} {"test images" if known else "photos"}')


def _picture(name: str) -> Path:
    if Path(name).suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f'{name!r} does not end in {", ".join(FORMATS)}')
    return options.file(name)


# --- the figure ------------------------------------------------------------------------------------------

# Dark to bright in equal steps of lightness, so that gray prints and colour-blind eyes see the same order.
COLOURS = colormaps['inferno']
OPACITY = 0.6  # of a map over a picture
# Inches: side of a panel, and of one where a picture has one map; gap within a network, between networks,
# column of labels, margin
PANEL, LARGE, GAP, BETWEEN, LABELS, MARGIN = 1.6, 2.2, 0.06, 0.3, 1.15, 0.25
TOP, HEAD, BOTTOM = 1.15, 0.58, 0.85  # title and names, head of a photo's block, colour bar
SUBTITLE = 0.25
RIGHT, WRONG = ('\N{CHECK MARK}', '#1a6e3c'), ('\N{BALLOT X}', '#b3261e')  # a guess where the truth is known


class Page:
    """A figure in inches, from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure((width, height), facecolor='white')

    def text(self, x: float, y: float, string: str, **more) -> None:
        usual = {'ha': 'center', 'va': 'bottom', 'fontsize': 10, 'parse_math': False}
        self.figure.text(x / self.width, 1 - y / self.height, string, **usual | more)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes((x / self.width, 1 - (y + height) / self.height,
                                     width / self.width, height / self.height))

    def panel(self, x: float, y: float, side: float, image: Tensor, **more) -> None:
        axes = self.axes(x, y, side, side)
        axes.imshow(image.numpy(), interpolation='nearest', **more)
        axes.set_axis_off()


def rows(networks: Sequence[Network], maps: Sequence[str], groups: Sequence[int]) -> list[tuple]:
    """(map, group) of each row of panels; the gradient has no group. No groups: all."""
    n = networks[0].n_groups
    if wrong := [g for g in groups if g >= n]:
        raise InputError(f'there is no group {wrong[0]}: the networks have groups 0 to {n - 1}')
    return [(kind, group) for kind in dict.fromkeys(maps)
            for group in ([None] if kind == GRADIENT else groups or range(n))]


def figure(pictures: dict[str, Tensor], networks: Sequence[Network], maps: Sequence[str] = ('sum2', GRADIENT),
           groups: Sequence[int] = (), style: str = 'both', label: str = '', title: str = TITLE,
           truths: Mapping[str, str] = MappingProxyType({})) -> Figure:
    """A block for each picture (uint8 (3, H, W), by name): a row for each map, a column for each network.

    truths: classes of pictures by their names, where they are known. With one map and one style its label is
    below the title, and panels are large.
    """
    wanted, styles = rows(networks, maps, groups), STYLES[style]
    single = len(wanted) == len(styles) == 1
    side, labels, top = (LARGE, BETWEEN, TOP + SUBTITLE) if single else (PANEL, LABELS, TOP)
    column = len(styles) * (side + GAP) - GAP
    lefts = [MARGIN + side + labels + i * (column + BETWEEN) for i in range(len(networks))]
    height = top + len(pictures) * (HEAD + len(wanted) * (side + GAP)) + BOTTOM
    page = Page(lefts[-1] + column + MARGIN, height)
    middle = page.width / 2
    page.text(middle, 0.4, title, fontsize=14)
    for network, x in zip(networks, lefts, strict=True):
        page.text(x + column / 2, top - 0.25, _lines(network.name, column, 12), fontsize=12, weight='bold')
        page.text(x + column / 2, top - 0.05, describe(network.params).split(',')[0], color='0.35')
    y = top
    for name, image in pictures.items():
        try:
            picture = prepare(image, networks[0].size)
        except images.Damaged as e:
            raise refusal(name, e) from None
        looks = [look(network, picture, label) for network in networks]
        y += HEAD
        _heads(page, y, side, name, picture, truths.get(name, ''))
        for seen, x in zip(looks, lefts, strict=True):
            _guess(page, x, y, column, seen, truths.get(name, ''))
        for kind, group in wanted:
            drawn = [seen.map(kind, group) for seen in looks]
            said = _label(kind, group, networks[0], label, drawn[0])
            if not single:
                page.text(lefts[0] - 0.1, y + side / 2, '\n'.join(said), ha='right', va='center',
                          parse_math=True)
            elif y == top + HEAD:  # once
                page.text(middle, 0.4 + 0.28, ', '.join(said), color='0.35', parse_math=True)
            for q, x in zip(drawn, lefts, strict=True):
                for i, way in enumerate(styles):
                    place = x + i * (side + GAP), y, side
                    if way == 'overlay':
                        page.panel(*place, overlay(picture, q))
                    else:
                        page.panel(*place, q, cmap=COLOURS, vmin=0, vmax=1)
            y += side + GAP
    bar = page.axes(middle - 1.5, page.height - 0.63, 3, 0.13)
    page.figure.colorbar(ScalarMappable(cmap=COLOURS), bar, orientation='horizontal', ticks=[0, 0.5, 1])
    bar.set_xlabel('attention, relative to its largest value', fontsize=10)
    return page.figure


def _heads(page: Page, y: float, side: float, name: str, picture: Tensor, truth: str) -> None:
    """The picture, with its name or its class above it."""
    above, below = (truth, name) if truth else (Path(name).stem, f'as seen, {_size(picture)}')
    page.text(MARGIN + side / 2, y - 0.06, _lines(above, side), weight='bold' if truth else 'normal')
    page.panel(MARGIN, y, side, picture)
    page.text(MARGIN + side / 2, y + side + 0.2, below, color='0.35')


def _guess(page: Page, x: float, y: float, column: float, seen: Look, truth: str) -> None:
    """What a network guesses, above its column; right or wrong where the truth is known."""
    guess = f'{seen.guess}, {100 * seen.probability:.1f}\N{NO-BREAK SPACE}%'
    mark, colour = ('', 'black') if not truth else RIGHT if seen.guess == truth else WRONG
    page.text(x + column / 2, y - 0.06, _lines(f'{mark} {guess}'.strip(), column, n=3), color=colour)


def _label(kind: str, group: int | None, network: Network, label: str, q: Tensor) -> list[str]:
    """What a row of maps shows."""
    if kind == GRADIENT:
        target = network.classes[network.index(label)] if label else 'its guess'
        return ['gradient', r'$|\partial\,\mathrm{CE}/\partial\,x|$', f'of {target}', _size(q)]
    return [MAPS[kind][0], f'group {group}', _size(q)]


def overlay(picture: Tensor, q: Tensor) -> Tensor:
    """Map (h, w) from 0 to 1, bilinear in between, over a picture (H, W, 3) in gray: RGB from 0 to 1."""
    gray = picture.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    q = F.interpolate(q[None, None], picture.shape[:2], mode='bilinear')[0, 0]
    colour = torch.from_numpy(COLOURS(q.numpy()))[..., :3].float()
    return (1 - OPACITY) * gray[..., None] + OPACITY * colour


def _lines(string: str, inches: float, size: int = 10, n: int = 2) -> str:
    """At most n lines that fit a column's width."""
    string = string.encode(errors='replace').decode()  # names of files may be no text
    return '\n'.join(textwrap.wrap(string, int(105 * inches / size), max_lines=n, placeholder=' ...'))


def _size(image: Tensor) -> str:
    return f'{image.shape[0]} x {image.shape[1]}'


def content(page: Figure, ending: str) -> bytes:
    """The figure as a file."""
    file = io.BytesIO()
    with rc_context({'svg.hashsalt': 'the same names every time', 'svg.fonttype': 'none'}):
        page.savefig(file, format=ending[1:], dpi=150, metadata=FORMATS[ending])
    return file.getvalue()


if __name__ == '__main__':
    exits.script(main)
