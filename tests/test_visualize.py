"""Attention figures: maps, gradients and pictures against loops, differences and PIL; files; bad input."""
import io
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import nin
import resnet
from helpers import call
from inputs import cifar as data
from inputs import images, shapes
from tools import looks, output, visualize
from training import checkpoint
from utils import InputError


def save(folder, params, dataset=None):
    """A run's folder as the training leaves it; without a data set, plain weights beside it."""
    if dataset is None:
        path = folder.with_suffix('.pth')
        torch.save(params, path)
        return path
    folder.mkdir()
    checkpoint.write(folder / 'model.pt7', {'params': params, 'options': {'dataset': dataset}})
    (folder / 'log.txt').write_text(json.dumps({'epoch': 1, 'dataset': dataset}) + '\n')
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Small networks by name: where their weights are."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(1)
    return {
        'teacher': save(folder / 'teacher', resnet.wide_resnet(10, 0.5, 10)[1], 'CIFAR10'),
        'student': save(folder / 'student', resnet.wide_resnet(10, 0.25, 10)[1], 'CIFAR10'),
        'shapes': save(folder / 'shapes', resnet.wide_resnet(10, 0.25, 10)[1], 'shapes'),
        'cifar100': save(folder / 'cifar100', resnet.wide_resnet(10, 0.25, 100)[1], 'CIFAR100'),
        'nin': save(folder / 'nin', nin.nin(8, 10)[1]),
        'nin_shapes': save(folder / 'nin_shapes', nin.nin(8, 10)[1], 'shapes'),
        'folded': save(folder / 'folded', resnet.fold(resnet.wide_resnet(10, 0.25, 10)[1])),
        'imagenet': save(folder / 'imagenet', resnet.resnet(18, 0.0625, 1000)[1]),
        'birds': save(folder / 'birds', resnet.resnet(18, 0.0625, 10)[1])}


@pytest.fixture(scope='module')
def networks(weights):
    return visualize.load([weights['teacher'], weights['student']])


def noise(height, width, seed=0):
    """An image (3, H, W) of smooth noise, in which a shift or a turn would show."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return torch.from_numpy(np.array(Image.fromarray(small).resize((width, height)))).permute(2, 0, 1)


def photo(path, height=40, width=60, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed).permute(1, 2, 0).numpy()).save(path)
    return path


# --- maps and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize('kind, of', [
    ('sum', lambda a: sum(abs(v) for v in a)), ('sum2', lambda a: sum(v * v for v in a)),
    ('sum4', lambda a: sum(v ** 4 for v in a)), ('max', lambda a: max(abs(v) for v in a))])
def test_maps_are_those_of_a_loop_in_float64(networks, kind, of):
    network, picture = networks[0], noise(32, 32).permute(1, 2, 0)
    seen = visualize.look(network, picture)
    x = ((picture.double() - torch.tensor(data.MEAN)) / torch.tensor(data.STD)).permute(2, 0, 1)[None]
    _, groups = network.f(x, {name: t.double() for name, t in network.params.items()}, False)
    for g, group in enumerate(groups):
        _, _, height, width = group.shape
        expected = torch.tensor([[of(group[0, :, i, j].tolist()) for j in range(width)]
                                 for i in range(height)])
        torch.testing.assert_close(seen.map(kind, g), expected / expected.max(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('name, label', [('teacher', ''), ('teacher', 'frog'), ('teacher', '3'), ('nin', '')])
def test_gradient_is_that_of_finite_differences(weights, name, label):
    network, = visualize.load([weights[name]])
    picture = noise(32, 32, seed=2).permute(1, 2, 0)
    seen = visualize.look(network, picture, label)
    x = ((picture.double() - torch.tensor(data.MEAN)) / torch.tensor(data.STD)).permute(2, 0, 1)
    params = {name: t.double() for name, t in network.params.items()}
    logits = network.f(x[None], params, False)[0]
    assert seen.guess == looks.CIFAR10[logits.argmax()]
    assert seen.probability == pytest.approx(logits.softmax(1).max().item(), abs=1e-4)
    target = {'': logits.argmax().item(), 'frog': 6, '3': 3}[label]
    places = [(c, i, j) for c in range(3) for i in (0, 9, 17, 31) for j in (0, 11, 20, 31)]
    steps = torch.zeros(len(places), 3, 32, 32, dtype=torch.float64)
    for n, place in enumerate(places):
        steps[n][place] = 1e-6

    def losses(x):
        return -network.f(x, params, False)[0].log_softmax(1)[:, target]

    expected = (losses(x + steps) - losses(x - steps)) / 2e-6
    found = torch.stack([seen.gradient[place] for place in places])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    q = torch.tensor([[sum(abs(seen.gradient[c, i, j].item()) for c in range(3)) for j in range(32)]
                      for i in range(32)])
    torch.testing.assert_close(seen.map('gradient', None), q / q.max())


def test_gradient_of_a_large_picture_is_averaged():
    gradient = torch.zeros(3, 224, 224)
    gradient[0, 4:8, 8:12] = -1
    gradient[1, 223, 223] = 8
    expected = torch.zeros(56, 56)
    expected[1, 2], expected[55, 55] = 1, 0.5
    assert torch.equal(looks.Look((), gradient, '', 1).map('gradient', None), expected)


def test_map_of_zeros_stays_zeros():
    seen = looks.Look((torch.zeros(4, 8, 8),), torch.zeros(3, 32, 32), '', 1)
    assert not seen.map('sum2', 0).any() and not seen.map('gradient', None).any()


# --- preparation -----------------------------------------------------------------------------------------


def test_picture_of_32_x_32_is_seen_as_it_is():
    image = noise(32, 32)
    assert torch.equal(visualize.prepare(image, 32), image.permute(1, 2, 0))


@pytest.mark.parametrize('height, width', [(64, 96), (131, 100), (20, 24)])
@pytest.mark.parametrize('size', [32, 224])
def test_preparation_is_that_of_pil(height, width, size):
    image = noise(height, width)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    if size == 32:
        side = min(height, width)
        left, top = round((width - side) / 2), round((height - side) / 2)
        pil = pil.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
    else:
        w, h = (256 * length // min(height, width) for length in (width, height))
        left, top = round((w - 224) / 2), round((h - 224) / 2)
        pil = pil.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    found = visualize.prepare(image, size)
    assert np.abs(found.numpy().astype(int) - np.array(pil)).max() <= 1


@pytest.mark.parametrize('name, size, mean, std', [
    ('teacher', 32, data.MEAN, data.STD), ('nin', 32, data.MEAN, data.STD),
    ('folded', 32, data.MEAN, data.STD), ('imagenet', 224, images.MEAN, images.STD)])
def test_each_network_gets_the_pixels_it_was_trained_on(weights, name, size, mean, std):
    network, = visualize.load([weights[name]])
    assert network.size == size
    inputs = []

    def f(x, params, mode):
        inputs.append((x.detach(), mode))
        return network.f(x, params, mode)

    picture = noise(size, size).permute(1, 2, 0)
    visualize.look(network._replace(f=f), picture)
    (x, mode), = inputs
    assert mode is False
    expected = (picture.double() - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(x[0].permute(1, 2, 0).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name, first', [
    ('teacher', 'airplane'), ('shapes', shapes.CLASSES[0]), ('cifar100', 'class 0'), ('nin', 'airplane'),
    ('imagenet', 'tench'), ('birds', 'class 0')])
def test_names_of_classes(weights, name, first):
    network, = visualize.load([weights[name]])
    assert network.classes[0] == first
    assert len(network.classes) == len(network.params['fc.bias'])


# --- figures ---------------------------------------------------------------------------------------------


def visible(page):
    return [text for text in page.findobj(Text) if text.get_text() and text.get_visible()]


def texts(page):
    return [text.get_text().replace('\N{NO-BREAK SPACE}', ' ') for text in visible(page)]


@pytest.mark.parametrize('options, n_rows', [
    ({}, 4), ({'style': 'bare'}, 4), ({'style': 'overlay', 'maps': ['max'], 'groups': [1]}, 1),
    ({'maps': ['sum', 'sum2', 'sum4', 'max', 'gradient'], 'groups': [0, 2]}, 9)])
def test_panels_and_their_labels(networks, options, n_rows):
    pictures = {'photos/a.b.jpg': noise(40, 60), 'c': noise(32, 32)}
    page = visualize.figure(pictures, networks, title='Ten % of $100', **options)
    shown = [axes for axes in page.axes if axes.images]
    assert len(shown) == len(pictures) * (1 + n_rows * len(networks))
    assert page.axes[-1].get_xlabel() == 'attention, relative to its largest value'
    found = texts(page)
    for expected in ('Ten % of $100', 'teacher\nWRN-10-0.5', 'student\nWRN-10-0.25', 'a.b\nas seen, 32 x 32',
                     'c\nas seen, 32 x 32'):
        assert found.count(expected) == 1
    for network in networks:
        for image in pictures.values():
            seen = visualize.look(network, visualize.prepare(image, 32))
            assert f'{seen.guess}, {100 * seen.probability:.1f} %' in found
    page.draw_without_rendering()
    boxes = [axes.get_position() for axes in shown]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1
                   for i, a in enumerate(boxes) for b in boxes[:i])


def test_rows_say_map_group_and_size(networks):
    pictures = {'a': noise(32, 32), 'b': noise(32, 32, seed=1)}
    page = visualize.figure(pictures, networks, ['sum4', 'gradient'], [1, 2], label='cat')
    found = [text for text in texts(page) if ' x ' in text and 'seen' not in text]
    assert [text.split('\n')[-2:] for text in found] == 2 * [
        ['group 1', '16 x 16'], ['group 2', '8 x 8'], ['of cat', '32 x 32']]
    assert sum('sum}^{\\,4}' in text for text in found) == 4


def test_one_map_is_named_once(networks):
    pictures = {'a': noise(32, 32), 'b': noise(32, 32, seed=1)}
    assert sum('group 1' in text for text in texts(visualize.figure(pictures, networks, ['sum2'], [1]))) == 1


@pytest.mark.parametrize('style', ['overlay', 'bare'])
def test_panels_show_picture_and_maps(networks, style):
    image = noise(40, 60)
    page = visualize.figure({'a': image}, networks, ['sum2'], [2], style)
    picture = visualize.prepare(image, 32)
    first, *shown = [axes.images[0] for axes in page.axes if axes.images]
    assert np.array_equal(first.get_array(), picture)
    for network, drawn in zip(networks, shown, strict=True):
        q = visualize.look(network, picture).map('sum2', 2)
        if style == 'bare':
            assert np.array_equal(drawn.get_array(), q) and drawn.get_clim() == (0, 1)
            continue
        smooth = Image.fromarray(q.numpy()).resize((32, 32), Image.Resampling.BILINEAR)
        gray = np.array(Image.fromarray(picture.numpy()).convert('L')) / 255
        colours = visualize.COLOURS(np.array(smooth))[..., :3]
        expected = 0.4 * gray[..., None] + 0.6 * colours
        assert np.abs(drawn.get_array() - expected).max() < 0.02  # of 256 colours


def test_files_open_and_are_the_same_every_time(networks):
    def page():
        return visualize.figure({'a $b$ \N{SNOWMAN}\udcff': noise(32, 32)}, networks, ['sum2'], [1])

    file, again = ({ending: output.drawn(page(), ending) for ending in output.PICTURES} for _ in range(2))
    assert file == again
    with Image.open(io.BytesIO(file['.png'])) as png:
        width, height = page().get_size_inches()
        assert png.format == 'PNG'
        assert png.size == pytest.approx((150 * width, 150 * height), abs=1)
        assert len(np.unique(np.asarray(png.convert('RGB').resize((50, 30))).reshape(-1, 3), axis=0)) > 100
    assert file['.pdf'].startswith(b'%PDF') and file['.pdf'].rstrip().endswith(b'%%EOF')
    svg = ElementTree.fromstring(file['.svg'])
    found = ' '.join(' '.join(text.itertext()) for text in svg.iter('{http://www.w3.org/2000/svg}text'))
    for expected in ('Where the networks look', 'teacher', 'student', 'group 1', '16 x 16', 'relative to'):
        assert expected in found
    seen = visualize.look(networks[0], noise(32, 32).permute(1, 2, 0))
    assert f'{seen.guess}, {100 * seen.probability:.1f}' in found


def test_long_names_stay_in_their_columns(networks):
    long = [network._replace(name='a student of many epochs that never end', classes=['long name ' * 9] * 10)
            for network in networks]
    page = visualize.figure({'a_name_without_a_space_' * 5: noise(32, 32)}, long, ['sum2'], [1], 'overlay')
    page.draw_without_rendering()
    boxes = [text.get_window_extent().padded(-1) for text in visible(page)]
    assert all(box.x0 >= 0 and box.x1 <= page.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# --- test images -----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """A data set of few shapes."""
    monkeypatch.setattr(shapes, 'N_TRAIN', 20)
    monkeypatch.setattr(shapes, 'N_TEST', 230)
    return shapes.load(train=False)


def shaped(weights, images):
    """Two networks that guess various classes of the images, now and then different ones."""
    network, = visualize.load([weights['shapes']])
    logits, _ = network.f(data.normalize(torch.from_numpy(images)), network.params, False)
    found = []
    for name, shift in (('student', 0.0), ('other', 0.3)):
        bias = network.params['fc.bias'] - logits.mean(0) + shift * logits.std(0) * torch.linspace(-1, 1, 10)
        found.append(network._replace(name=name, params=network.params | {'fc.bias': bias.detach()}))
    return found


def test_disputed_images_are_the_first_ones_with_other_guesses(weights, few):
    networks = shaped(weights, few[0])
    pictures = [torch.from_numpy(image) for image in few[0]]
    differ = [i for i, picture in enumerate(pictures)
              if len({looks.look(network, picture).guess for network in networks}) > 1]
    n = sum(i < 200 for i in differ) + 1  # the batches are of 200
    assert 5 < n < len(differ) < 150
    found = looks.disputed(networks, n, '.')
    assert list(found) == [f'test image {i}' for i in differ[:n]]
    for i, (image, truth) in zip(differ, found.values(), strict=False):
        assert torch.equal(image.permute(1, 2, 0), pictures[i])
        assert truth == shapes.CLASSES[few[1][i]]
    with pytest.raises(InputError, match=f'disagree on {len(differ)} '):
        looks.disputed(networks, len(differ) + 1, '.')


@pytest.mark.parametrize('names', [('teacher', 'shapes'), ('nin', 'nin'), ('imagenet', 'imagenet')])
def test_disputed_images_need_one_known_data_set(weights, names):
    found = [network for name in names for network in visualize.load([weights[name]])]
    with pytest.raises(InputError, match='--disputed'):
        looks.disputed(found, 1, '.')


def test_known_truths_mark_the_guesses(weights, few):
    networks = shaped(weights, few[0])
    known = looks.disputed(networks, 2, '.')
    pictures = {name: image for name, (image, _) in known.items()}
    guesses = {name: [looks.look(network, image.permute(1, 2, 0)).guess for network in networks]
               for name, image in pictures.items()}
    truths = {name: guesses[name][i] for i, name in enumerate(pictures)}  # each network is right once
    page = visualize.figure(pictures, networks, ['sum2'], [1], 'overlay', truths=truths)
    found = {text.get_text(): text.get_color() for text in visible(page)}
    assert {f'{truth}\n{name}' for name, truth in truths.items()} <= found.keys()
    marks = [(text[0], text[2:].split(',')[0], colour) for text, colour in found.items() if '%' in text]
    first, second = guesses.values()
    right, wrong = visualize.RIGHT, visualize.WRONG
    assert marks == [(mark, guess, colour) for (mark, colour), guess in zip(
        [right, wrong, wrong, right], [*first, *second], strict=True)]


# --- the command -----------------------------------------------------------------------------------------


def test_command(weights, tmp_path):
    photo(tmp_path / 'cat.jpg')
    done = call(visualize, 'cat.jpg', '--weights', weights['teacher'], weights['nin'], '--save', 'out.svg',
                '--maps', 'sum2', 'gradient', '--label', 'dog', cwd=tmp_path)
    assert (done.status, done.err) == (0, '')
    assert done.out.splitlines()[0].startswith('teacher: WRN-10-0.5, 10 classes')
    assert done.out.splitlines()[1].startswith('nin: NIN of width 8')
    assert done.out.splitlines()[2:] == ['out.svg: 1 photos']
    svg = (tmp_path / 'out.svg').read_text()
    assert all(f'>{text}<' in svg for text in ('cat', 'teacher', 'nin', 'of dog', 'group 2'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['cat.jpg', 'out.svg']


def test_command_with_test_images(weights, few, tmp_path):
    done = call(visualize, '--disputed', '3', '--weights', weights['shapes'], weights['nin_shapes'],
                '--maps', 'sum2', '--groups', '[2]', '--style', 'overlay', '--save', 'out.svg', cwd=tmp_path)
    assert (done.status, done.err) == (0, '')
    assert done.out.splitlines()[2:] == ['out.svg: 3 test images']
    assert (tmp_path / 'out.svg').read_text().count('test image ') == 3


def test_names_of_networks_by_default(weights, monkeypatch):
    teacher = weights['teacher']
    monkeypatch.chdir(teacher)
    loaded = visualize.load([teacher / 'model.pt7', '.', 'model.pt7'], ['a', 'b', 'c'])
    assert [network.name for network in loaded] == ['a', 'b', 'c']
    assert [visualize.load([source])[0].name for source in ('.', 'model.pt7', weights['nin'])] == [
        'teacher', 'teacher', 'nin']
    same = [str(teacher), str(teacher / 'model.pt7')]
    assert [network.name for network in visualize.load(same)] == same


def test_photos_of_a_folder_share_a_figure(weights, tmp_path):
    for i, name in enumerate(('b/2.png', 'a/1.JPEG', 'a/.hidden.png', '.trash/x.png', 'c.gif')):
        photo(tmp_path / 'photos' / name, seed=i)
    (tmp_path / 'photos' / 'notes.txt').write_text('no photo')
    done = call(visualize, 'photos', '--weights', weights['student'], '--names', 'A', '--groups', '[2]',
                '--style', 'bare', '--save', 'out.png', cwd=tmp_path)
    assert done.out.splitlines()[1:] == ['out.png: 3 photos']
    assert [path.name for path in visualize.find([tmp_path / 'photos'])] == ['1.JPEG', '2.png', 'c.gif']


@pytest.mark.parametrize('arguments, words', [
    (['gone.jpg'], ['cannot read', 'gone.jpg', 'No such file']),
    (['text.jpg'], ['text.jpg cannot be drawn', 'name another']),
    (['half.png'], ['half.png cannot be drawn']),
    (['thin.png', '--weights', 'imagenet'], ['thin.png cannot be drawn', 'too long and thin']),
    (['empty'], ['folder empty has no photos', 'name another']),
    (['a.png', '--weights', 'teacher', 'imagenet'], ['teacher has 3 groups', 'imagenet 4']),
    (['a.png', '--weights', 'gone.pth'], ['cannot read the weights gone.pth']),
    (['a.png', '--weights', 'text.jpg'], ['text.jpg is text, not weights']),
    (['a.png', '--weights', 'diverged.pth'], ['diverged', 'no finite numbers', 'take other weights']),
    (['a.png', '--weights', 'teacher', 'student', '--names', 'A'], ['1 names', '2 networks']),
    (['a.png', '--groups', '[3]'], ['no group 3', '0 to 2']),
    (['a.png', '--groups', 'first'], ["'first'", 'list of whole numbers']),
    (['a.png', '--maps', 'sum3'], ["'sum3'", 'sum4']),
    (['a.png', '--label', 'unicorn'], ["no class 'unicorn'", 'airplane', 'from 0 to 9']),
    (['a.png', '--label', '10'], ["no class '10'"]),
    (['a.png', '--label', 'cat', '--maps', 'sum2'], ['no effect without --maps']),
    (['a.png', '--groups', '[1]', '--maps', 'gradient'], ['no effect with --maps']),
    (['a.png', '--dataroot', 'x'], ['no effect without --disputed']),
    (['a.png', '--disputed', '4'], ['give PHOTO', '--disputed']),
    (['--disputed', '1', '--weights', 'teacher', 'shapes'], ['--disputed', 'CIFAR10', 'name photos']),
    (['a.png', '--save', 'out.gif'], ['.png, .svg, .pdf']),
    (['a.png', '--save', 'gone/out.png'], ['cannot write gone/out.png', 'No such file']),
    (['a.png', '--save', 'folder.png'], ['cannot write folder.png']),
    ([], ['PHOTO'])])
def test_bad_input_is_one_sentence(weights, tmp_path, arguments, words):
    photo(tmp_path / 'a.png')
    (tmp_path / 'text.jpg').write_text('not a photo, nor weights')
    (tmp_path / 'half.png').write_bytes((tmp_path / 'a.png').read_bytes()[:200])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'folder.png').mkdir()
    if 'thin.png' in arguments:
        Image.new('L', (1_000_000, 1)).save(tmp_path / 'thin.png')
    if 'diverged.pth' in arguments:
        params = torch.load(weights['nin'])
        torch.save(params | {'fc.bias': torch.full((10,), math.nan)}, tmp_path / 'diverged.pth')
    arguments = [weights.get(argument, argument) for argument in arguments]
    for option, value in (('--weights', weights['teacher']), ('--save', 'out.png')):
        arguments += [] if option in arguments else [option, value]
    before = sorted(tmp_path.iterdir())
    done = call(visualize, *arguments, cwd=tmp_path)
    line, = done.err.splitlines()
    assert done.status == 2
    assert all(word in line for word in words), line
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_that_gives_no_numbers_is_refused(networks):
    params = networks[0].params | {'fc.bias': torch.full((10,), math.inf)}
    with pytest.raises(InputError, match='no finite numbers'):
        visualize.look(networks[0]._replace(params=params), noise(32, 32).permute(1, 2, 0))
