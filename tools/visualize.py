"""Where networks look: attention maps and gradients over photos, network beside network.

    python -m tools.visualize PHOTO --weights logs/teacher logs/student logs/student_at --save attention.png
    python -m tools.visualize photos --weights torchvision:resnet34 --maps sum2 --groups [3] --save maps.pdf

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
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import center_crop

import resnet
import utils
from inputs import cifar as data
from inputs import folders, images, shapes
from training import checkpoint, exits, options
from utils import InputError, Params
from weights.networks import describe, image_size, n_groups

MAPS = {  # Section 3.1: sign, power and reduction over channels
    'sum': (r'$F_\mathrm{sum}$', 1, 'sum'), 'sum2': (r'$F_\mathrm{sum}^{\,2}$', 2, 'sum'),
    'sum4': (r'$F_\mathrm{sum}^{\,4}$', 4, 'sum'), 'max': (r'$F_\mathrm{max}$', 1, 'max')}
GRADIENT = 'gradient'  # Section 3.2
STYLES = {'both': ('overlay', 'bare'), 'overlay': ('overlay',), 'bare': ('bare',)}
FORMATS = {'.png': None, '.svg': {'Date': None}, '.pdf': {'CreationDate': None}}  # the same file every time
CIFAR10 = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
TITLE = 'Where the networks look'
ROWS = 24  # of maps in a figure of several photos
CELLS = 56  # at most, along each side of a drawn gradient


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Draw what networks attend to in photos, network beside network.')
    parser.add_argument('photos', nargs='+', type=options.path, metavar='PHOTO',
                        help='photo, or folder with photos in it')
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
    if opt.label and GRADIENT not in opt.maps:
        parser.error('--label is the class of the gradient, which --maps leaves out: add it, or drop --label')
    if opt.groups and opt.maps == [GRADIENT]:
        parser.error('the gradient has no groups: drop --groups, or add --maps sum2')
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    if not opt.save.parent.is_dir():
        raise InputError(f'there is no folder {opt.save.parent} to write {opt.save.name} to: make it first')
    paths = find(opt.photos)
    networks = load(opt.weights, opt.names)
    for network in networks:
        print(f'{network.name}: {describe(network.params)}')
    n_rows = len(rows(networks, opt.maps, opt.groups))
    n = max(ROWS // n_rows, 1)
    for i in range(0, len(paths), n):
        pictures = {str(path): read(path) for path in paths[i:i + n]}
        drawn = figure(pictures, networks, opt.maps, opt.groups, opt.style, opt.label, opt.title)
        path = opt.save.with_stem(f'{opt.save.stem}-{i // n + 1}') if i else opt.save
        try:
            checkpoint.write_atomically(path, content(drawn, path.suffix))
        except OSError as e:
            raise InputError(f'cannot write {path}: {e.strerror}') from None
        print(f'{path}: {len(pictures)} of {len(paths)} photos')


def _picture(name: str) -> Path:
    if Path(name).suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f'{name!r} does not end in {", ".join(FORMATS)}')
    return options.file(name)


# --- photos ----------------------------------------------------------------------------------------------


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
        raise _refusal(path, e) from None


def _refusal(name: Path | str, reason: images.Damaged) -> InputError:
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


# --- networks --------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network to be drawn."""
    name: str
    f: utils.Network
    params: Params
    size: int  # of its images
    n_groups: int
    classes: list[str]

    def index(self, label: str) -> int:
        """The class of this name or number."""
        if label in self.classes:
            return self.classes.index(label)
        if label.isdecimal() and int(label) < len(self.classes):
            return int(label)
        few = ', '.join(self.classes[:10]) + (', ...' if len(self.classes) > 10 else '')
        raise InputError(f'{self.name} knows no class {label!r}: give one of {few}, '
                         f'or a number from 0 to {len(self.classes) - 1}')


def load(sources: Sequence[str | Path], names: Sequence[str] = ()) -> list[Network]:
    """Networks from any weights that `resnet.load` takes, all with the same number of groups."""
    if names and len(names) != len(sources):
        raise InputError(f'{len(names)} names are given for {len(sources)} networks: give one for each')
    found = []
    for source, name in zip(sources, names or _names(sources), strict=True):
        f, params = resnet.load(source)
        size, n = image_size(params), len(params['fc.bias'])
        found.append(Network(name, f, params, size, n_groups(params),
                             class_names(checkpoint.dataset_of(source), size, n)))
    for network in found:
        if network.n_groups != found[0].n_groups:
            raise InputError(f'{found[0].name} has {found[0].n_groups} groups and {network.name} '
                             f'{network.n_groups}: side by side go networks of as many groups')
    return found


def _names(sources: Sequence[str | Path]) -> list[str]:
    """The name of the run's folder or of the file; the whole sources if names would be the same."""
    paths = [Path(str(source).removeprefix('torchvision:')) for source in sources]
    paths = [path.resolve().parent if path.name == checkpoint.MODEL else path for path in paths]
    names = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    return names if len({*names}) == len(names) else [str(source) for source in sources]


def class_names(dataset: str | None, size: int, n: int) -> list[str]:
    """Names of the n classes of a network for images of `size`; by the usual data set if it is not known."""
    if dataset == 'shapes' and n == len(shapes.CLASSES):
        return list(shapes.CLASSES)
    if dataset in ('CIFAR10', None) and (size, n) == (32, len(CIFAR10)):
        return CIFAR10
    if dataset in ('imagenet', None) and (size, n) == (images.SIZE, 1000):
        from torchvision.models import ResNet34_Weights
        return ResNet34_Weights.DEFAULT.meta['categories']
    return [f'class {i}' for i in range(n)]


class Look(NamedTuple):
    """What a network makes of a picture."""
    groups: tuple[Tensor, ...]  # activations (C, h, w)
    gradient: Tensor  # of the loss by the normalised picture, (3, size, size)
    guess: str  # the class it predicts
    probability: float

    def map(self, kind: str, group: int | None) -> Tensor:
        """One of MAPS of a group, (h, w), or sum |dCE/dx| over colours, (size, size); from 0 to 1.

        The gradient of a large picture is a few bright dots: it is averaged over areas, to CELLS x CELLS.
        """
        if kind == GRADIENT:
            q = utils.attention_map(self.gradient[None], p=1)
            q = F.avg_pool2d(q, max(q.shape[-1] // CELLS, 1))[0]
        else:
            _, p, reduce = MAPS[kind]
            q = utils.attention_map(self.groups[group][None], p, reduce)[0]
        return q / q.max().clamp(min=torch.finfo(q.dtype).tiny)


def look(network: Network, picture: Tensor, label: str = '') -> Look:
    """What a network makes of a picture as `prepare` gives it, uint8 (size, size, 3).

    The gradient is that of the cross-entropy with `label`, a class by name or number, or else with the guess.
    """
    normalize = images.normalize if network.size == images.SIZE else data.normalize
    x = normalize(picture[None]).requires_grad_()
    logits, groups = network.f(x, network.params, False)
    if not logits.isfinite().all():
        raise InputError(f'{network.name} gives no finite numbers: its training diverged, take other weights')
    probability, guess = logits.detach().softmax(1)[0].max(0)
    target = network.index(label) if label else int(guess)
    gradient = utils.input_gradient(x, logits, torch.tensor([target]), create_graph=False)
    return Look(tuple(g.detach()[0] for g in groups), gradient[0], network.classes[guess], probability.item())


# --- the figure ------------------------------------------------------------------------------------------

# Dark to bright in equal steps of lightness, so that gray prints and colour-blind eyes see the same order.
COLOURS = colormaps['inferno']
OPACITY = 0.6  # of a map over a picture
# Inches: side of a panel, gap within a network, between networks, column of labels, margin
PANEL, GAP, BETWEEN, LABELS, MARGIN = 1.6, 0.06, 0.3, 1.15, 0.25
TOP, HEAD, BOTTOM = 1.15, 0.58, 0.85  # title and names, head of a photo's block, colour bar


def rows(networks: Sequence[Network], maps: Sequence[str], groups: Sequence[int]) -> list[tuple]:
    """(map, group) of each row of panels; the gradient has no group. No groups: all."""
    n = networks[0].n_groups
    if wrong := [g for g in groups if g >= n]:
        raise InputError(f'there is no group {wrong[0]}: the networks have groups 0 to {n - 1}')
    return [(kind, group) for kind in dict.fromkeys(maps)
            for group in ([None] if kind == GRADIENT else groups or range(n))]


def figure(pictures: dict[str, Tensor], networks: Sequence[Network], maps: Sequence[str] = ('sum2', GRADIENT),
           groups: Sequence[int] = (), style: str = 'both', label: str = '', title: str = TITLE) -> Figure:
    """A block for each picture (uint8 (3, H, W), by name): a row for each map, a column for each network."""
    wanted, styles = rows(networks, maps, groups), STYLES[style]
    column = len(styles) * (PANEL + GAP) - GAP
    width = MARGIN + PANEL + LABELS + len(networks) * (column + BETWEEN) - BETWEEN + MARGIN
    height = TOP + len(pictures) * (HEAD + len(wanted) * (PANEL + GAP)) + BOTTOM
    lefts = [MARGIN + PANEL + LABELS + i * (column + BETWEEN) for i in range(len(networks))]
    page = Figure((width, height), facecolor='white')

    def text(x: float, y: float, string: str, **more) -> None:
        usual = {'ha': 'center', 'va': 'bottom', 'fontsize': 10, 'parse_math': False}
        page.text(x / width, 1 - y / height, string, **usual | more)

    def panel(x: float, y: float, image: Tensor, **more) -> None:
        axes = page.add_axes((x / width, 1 - (y + PANEL) / height, PANEL / width, PANEL / height))
        axes.imshow(image.numpy(), interpolation='nearest', **more)
        axes.set_axis_off()

    text(width / 2, 0.4, title, fontsize=14)
    for network, x in zip(networks, lefts, strict=True):
        text(x + column / 2, 0.9, _lines(network.name, column, 12), fontsize=12, weight='bold')
        text(x + column / 2, 1.1, describe(network.params).split(',')[0], color='0.35')
    y = TOP
    for name, image in pictures.items():
        try:
            picture = prepare(image, networks[0].size)
        except images.Damaged as e:
            raise _refusal(name, e) from None
        looks = [look(network, picture, label) for network in networks]
        y += HEAD
        text(MARGIN + PANEL / 2, y - 0.06, _lines(Path(name).stem, PANEL))
        panel(MARGIN, y, picture)
        text(MARGIN + PANEL / 2, y + PANEL + 0.2, f'as seen, {_size(picture)}', color='0.35')
        for seen, x in zip(looks, lefts, strict=True):
            guess = f'{seen.guess}, {100 * seen.probability:.1f}\N{NO-BREAK SPACE}%'
            text(x + column / 2, y - 0.06, _lines(guess, column, n=3))
        for kind, group in wanted:
            drawn = [seen.map(kind, group) for seen in looks]
            what = [MAPS[kind][0], f'group {group}'] if kind != GRADIENT else [
                'gradient', r'$|\partial\,\mathrm{CE}/\partial\,x|$',
                'of ' + (networks[0].classes[networks[0].index(label)] if label else 'its guess')]
            text(MARGIN + PANEL + LABELS - 0.1, y + PANEL / 2, '\n'.join([*what, _size(drawn[0])]),
                 ha='right', va='center', parse_math=True)
            for q, x in zip(drawn, lefts, strict=True):
                for i, way in enumerate(styles):
                    place = x + i * (PANEL + GAP), y
                    if way == 'overlay':
                        panel(*place, overlay(picture, q))
                    else:
                        panel(*place, q, cmap=COLOURS, vmin=0, vmax=1)
            y += PANEL + GAP
    bar = page.add_axes(((width / 2 - 1.5) / width, 0.5 / height, 3 / width, 0.13 / height))
    page.colorbar(ScalarMappable(cmap=COLOURS), bar, orientation='horizontal', ticks=[0, 0.5, 1])
    bar.set_xlabel('attention, relative to its largest value', fontsize=10)
    return page


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
