"""Where networks look: attention maps and gradients over photos, with a column for each network.

    python -m tools.visualize PHOTO --weights logs/teacher logs/student logs/student_at --save attention.png
    python -m tools.visualize photos --weights torchvision:resnet34 --maps sum2 --groups [3] --save maps.pdf
    python -m tools.visualize --disputed 4 --weights logs/student logs/student_at --save attention.png

A network sees a photo as it sees test images: the middle as 32 x 32 for CIFAR, the central crop of 224 x 224
for ImageNet. Each map is drawn relative to its own largest value, over the picture in gray (bilinear in
between) or bare (its elements as they are). Groups count from 0, as in tensor names and in --at_groups.
"""
import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from tools import output
from tools.looks import GRADIENT, MAPS, Network, disputed, load, look
from tools.photos import find, prepare, read
from training import exits, options
from utils import InputError
from weights.networks import describe

TITLE = 'Where the networks look'
# Dark to bright in equal steps of lightness: gray prints and colour-blind readers show the same order.
COLOURS = colormaps['inferno']
OPACITY = 0.6  # of a map over a picture
RIGHT, WRONG = ('\N{CHECK MARK}', '#1a6e3c'), ('\N{BALLOT X}', '#b3261e')  # a guess where the truth is known


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Draw where networks look in photos, with a column for each network.')
    parser.add_argument('photos', nargs='*', type=options.path, metavar='PHOTO', default='',
                        help='photo, or folder of photos')
    parser.add_argument('--disputed', type=options.count, default=0, metavar='N',
                        help='instead of photos, draw the first N test images on which the networks disagree')
    parser.add_argument('--dataroot', type=options.path, default='.', metavar='FOLDER',
                        help='with --disputed: folder of CIFAR, which is downloaded if it is not there')
    parser.add_argument('--weights', nargs='+', type=options.path, required=True, metavar='RUN',
                        help='runs, files of weights, or torchvision:resnet34; usually the teacher first')
    parser.add_argument('--save', type=output.picture, required=True, metavar='FILE',
                        help=f'figure to write: {", ".join(output.PICTURES)}')
    parser.add_argument('--names', nargs='+', default='', metavar='NAME',
                        help='names of the networks (default: those of the folders or files)')
    parser.add_argument('--maps', nargs='+', choices=[*MAPS, GRADIENT], default=['sum2', GRADIENT],
                        help='sum over channels of |A|, |A|^2, |A|^4; maximum of |A|; gradient of the loss')
    parser.add_argument('--groups', type=options.int_list, default='', metavar='[0,2]',
                        help='groups of layers (default: all)')
    parser.add_argument('--style', choices=['overlay', 'bare'], default='overlay',
                        help='maps over the picture in gray, or maps alone')
    parser.add_argument('--label', default='', metavar='CLASS',
                        help="class of the gradient's loss, name or number (default: each network's guess)")
    parser.add_argument('--title', default=TITLE, help='title of the figure')
    options.add_run_files(parser)
    opt = parser.parse_args(arguments)
    if bool(opt.photos) == bool(opt.disputed):
        parser.error('give PHOTO, one or several, or --disputed N for test images')
    if opt.photos and parser.is_given(opt, 'dataroot'):
        parser.error('--dataroot has no effect without --disputed')
    if opt.groups and set(opt.maps) == {GRADIENT}:
        parser.error(f'--groups has no effect with --maps {GRADIENT} alone')
    if opt.label and GRADIENT not in opt.maps:
        parser.error(f'--label has no effect without --maps {GRADIENT}')
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    paths = find(opt.photos)
    networks = load(opt.weights, opt.names, opt.run_files)
    for network in networks:
        print(f'{network.name}: {describe(network.params, network.f)}')
    known = disputed(networks, opt.disputed, opt.dataroot) if opt.disputed else {}
    pictures = {name: image for name, (image, _) in known.items()}
    pictures |= {str(path): read(path) for path in paths}
    truths = {name: truth for name, (_, truth) in known.items()}
    page = figure(pictures, networks, opt.maps, opt.groups, opt.style, opt.label, opt.title, truths)
    output.write(opt.save, output.drawn(page, opt.save.suffix))
    print(f'{opt.save}: {len(pictures)} {"test images" if known else "photos"}')


# --- the figure ------------------------------------------------------------------------------------------


def figure(pictures: dict[str, Tensor], networks: Sequence[Network], maps: Sequence[str] = ('sum2', GRADIENT),
           groups: Sequence[int] = (), style: str = 'overlay', label: str = '', title: str = TITLE,
           truths: Mapping[str, str] = MappingProxyType({})) -> Figure:
    """A block for each picture (uint8 (3, H, W), by name): a row for each map, a column for each network.

    truths: the true classes of pictures by name, where they are known.
    """
    wanted = rows(networks, maps, groups)
    n_rows, n_columns = len(pictures) * len(wanted), 1 + len(networks)
    labels = len(wanted) > 1  # one map is named once, at the top
    page = Figure((2.1 * n_columns + 0.8 * labels, 1.6 + 2.1 * n_rows + 0.4 * len(pictures)),
                  layout='constrained')
    page.suptitle(title, fontsize=14, parse_math=False)
    head, *grid = page.subplots(1 + n_rows, n_columns, height_ratios=[0.25, *[1] * n_rows])
    for axes in (*head, *np.ravel(grid)):
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, network in zip(head[1:], networks, strict=True):
        kind = describe(network.params, network.f).split(',')[0]
        _write(axes, f'{_lines(network.name)}\n{kind}', weight='bold', parse_math=False)
    for i, (name, image) in enumerate(pictures.items()):
        block = np.array(grid[i * len(wanted):(i + 1) * len(wanted)])
        picture, truth = prepare(image, networks[0].size, name), truths.get(name, '')
        above, below = (truth, name) if truth else (Path(name).stem, f'as seen, {_size(picture)}')
        block[0, 0].imshow(picture.numpy())
        block[0, 0].set_title(f'{_lines(above)}\n{below}', fontsize=10, parse_math=False)
        for network, column in zip(networks, block.T[1:], strict=True):
            seen = look(network, picture, label)
            guess = f'{seen.guess}, {100 * seen.probability:.1f}\N{NO-BREAK SPACE}%'
            mark, colour = ('', 'black') if not truth else RIGHT if seen.guess == truth else WRONG
            column[0].set_title(_lines(f'{mark} {guess}'.strip(), n=3), color=colour, fontsize=10,
                                parse_math=False)
            for axes, (kind, group) in zip(column, wanted, strict=True):
                q = seen.map(kind, group)
                shown = overlay(picture, q) if style == 'overlay' else q
                axes.imshow(shown.numpy(), cmap=COLOURS, vmin=0, vmax=1)  # colours are for q alone
                if network is networks[0] and (labels or not i):
                    _write(axes if labels else head[0], _label(kind, group, network, label, q), left=labels)
    bar = page.colorbar(ScalarMappable(cmap=COLOURS), ax=list(np.ravel(grid)), location='bottom', aspect=25,
                        shrink=0.5, fraction=0.13 / page.get_figheight(), pad=0.02, ticks=[0, 0.5, 1])
    bar.set_label('attention, relative to its largest value')
    return page


def rows(networks: Sequence[Network], maps: Sequence[str], groups: Sequence[int]) -> list[tuple]:
    """(map, group) of each row of panels; the gradient has no group. Without groups: all."""
    n = networks[0].n_groups
    if wrong := [g for g in groups if g >= n]:
        raise InputError(f'there is no group {wrong[0]}: the networks have groups 0 to {n - 1}')
    return [(kind, group) for kind in dict.fromkeys(maps)
            for group in ([None] if kind == GRADIENT else groups or range(n))]


def _write(axes: Axes, text: str, left: bool = False, **more: Any) -> None:
    """Text in an empty panel, or to the left of a map."""
    x, alignment = (-0.05, 'right') if left else (0.5, 'center')
    axes.text(x, 0.5, text, ha=alignment, va='center', transform=axes.transAxes, **more)


def _label(kind: str, group: int | None, network: Network, label: str, q: Tensor) -> str:
    """What a row of maps shows."""
    if kind == GRADIENT:
        target = network.classes[network.index(label)] if label else 'its guess'
        return f'gradient\n$|\\partial\\,\\mathrm{{CE}}/\\partial\\,x|$\nof {target}\n{_size(q)}'
    return f'{MAPS[kind][0]}\ngroup {group}\n{_size(q)}'


def overlay(picture: Tensor, q: Tensor) -> Tensor:
    """Map (h, w) from 0 to 1, bilinear in between, over a picture (H, W, 3) in gray: RGB from 0 to 1."""
    gray = picture.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    q = F.interpolate(q[None, None], picture.shape[:2], mode='bilinear')[0, 0]
    colour = torch.from_numpy(COLOURS(q.numpy()))[..., :3].float()
    return (1 - OPACITY) * gray[..., None] + OPACITY * colour


def _lines(string: str, n: int = 2) -> str:
    """At most n lines of the width of a column."""
    string = string.encode(errors='replace').decode()  # file names may not be text
    return '\n'.join(textwrap.wrap(string, 22, max_lines=n, placeholder=' ...'))


def _size(image: Tensor) -> str:
    return f'{image.shape[0]} x {image.shape[1]}'


if __name__ == '__main__':
    exits.script(main)
