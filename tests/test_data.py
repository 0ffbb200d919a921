"""Augmentation against PIL, batches, and data sets that are there, damaged or missing."""
import hashlib
import io
import os
import pickle
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import datasets

from inputs import cifar as data
from inputs import shapes
from inputs.cifar import Images, Loader
from utils import InputError

CPU = torch.device('cpu')
MEAN, STD = np.array([125.3, 123.0, 113.9]) / 255, np.array([63.0, 62.1, 66.7]) / 255  # of the paper's recipe


def random_images(n, height, width):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def pixels(x):
    """What was normalised, (B, 3, H, W) -> whole numbers (B, H, W, 3)."""
    return np.rint((x.double().permute(0, 2, 3, 1).numpy() * STD + MEAN) * 255).astype(int)


# --- augmentation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('height', 'width', 'pad'), [
    (32, 32, 4), (32, 32, 0), (12, 20, 1), (9, 5, 3), (5, 4, 3), (2, 2, 1)])
def test_crop_flip_equals_pil_at_every_offset(height, width, pad):
    cases = [(row, column, mirror) for row in range(2 * pad + 1) for column in range(2 * pad + 1)
             for mirror in (False, True)]
    images = random_images(7, height, width)
    index = np.random.default_rng(1).integers(0, 7, len(cases))
    result = data.crop_flip(torch.from_numpy(images), torch.from_numpy(index),
                            torch.tensor([case[:2] for case in cases]),
                            torch.tensor([case[2] for case in cases]), pad)
    assert result.shape == (len(cases), height, width, 3) and result.dtype == torch.uint8
    for (row, column, mirror), i, ours in zip(cases, index, result, strict=True):
        padded = np.pad(images[i], ((pad, pad), (pad, pad), (0, 0)), mode='reflect')
        slow = Image.fromarray(padded).crop((column, row, column + width, row + height))
        if mirror:
            slow = ImageOps.mirror(slow)
        assert np.array_equal(ours, np.asarray(slow)), (row, column, mirror)


def test_crop_flip_by_hand():
    row = torch.tensor([[[1, 2, 3]]], dtype=torch.uint8).reshape(1, 1, 3, 1).expand(1, 3, 3, 3)
    index, middle = torch.tensor([0]), 2
    for column, mirror, expected in [(0, False, [3, 2, 1]), (1, False, [2, 1, 2]), (2, False, [1, 2, 3]),
                                     (3, False, [2, 3, 2]), (4, False, [3, 2, 1]), (3, True, [2, 3, 2]),
                                     (2, True, [3, 2, 1])]:
        ours = data.crop_flip(row, index, torch.tensor([[middle, column]]), torch.tensor([mirror]), 2)
        assert ours[0, 0, :, 0].tolist() == expected


def test_normalize():
    images = random_images(3, 5, 4)
    x = data.normalize(torch.from_numpy(images))
    assert x.shape == (3, 3, 5, 4) and x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = (images.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(x, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    again = data.normalize(torch.from_numpy(images))  # nothing was changed in place
    assert torch.equal(x, again)


# --- batches ---------------------------------------------------------------------------------------------


def plain(n, size=4):
    """Images of one colour: the number of the image, which is its label too."""
    numbers = torch.arange(n)
    return Images(numbers.to(torch.uint8)[:, None, None, None].repeat(1, size, size, 3), numbers)


def run(loader, epoch=1):
    loader.epoch = epoch
    batches = list(loader)
    assert all(batch.epoch == epoch for batch in batches)
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.labels for batch in batches])


@pytest.mark.parametrize(('n', 'batch_size', 'sizes'), [
    (50, 8, [8] * 6 + [2]), (16, 8, [8, 8]), (3, 8, [3]), (5, 1, [1] * 5)])
@pytest.mark.parametrize('seed', [None, 1])
def test_every_image_once_an_epoch(n, batch_size, sizes, seed):
    loader = Loader(plain(n), batch_size, seed, pad=2)
    assert [len(batch.labels) for batch in loader] == sizes == [len(batch.x) for batch in loader]
    assert len(loader) == len(sizes)
    assert loader.n_images == n
    for epoch in (1, 2):
        x, labels = run(loader, epoch)
        assert sorted(labels.tolist()) == list(range(n))
        assert np.array_equal(pixels(x), labels[:, None, None, None].expand(n, 4, 4, 3))  # the label's image
        assert x[:1].is_contiguous(memory_format=torch.channels_last)
    if seed is None:
        assert labels.tolist() == list(range(n))


def test_an_epoch_depends_on_seed_and_number_alone():
    split = Images(torch.from_numpy(random_images(40, 8, 8)), torch.arange(40))

    def same(a, b):
        return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

    first = run(Loader(split, 7, 5, pad=2), 3)
    loader = Loader(split, 7, 5, pad=2)
    for epoch in (1, 2):
        run(loader, epoch)
    next(iter(loader))  # and one that was broken off
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(run(loader, 3), first)
    assert same(run(loader, 3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(run(Loader(split, 16, 5, pad=2), 3), first)  # batches of another size, of the same draws
    seen = [run(Loader(split, 7, seed, pad=2), epoch) for seed in (0, 1, 2, 5, 2**70) for epoch in (1, 2, 3)]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert not torch.equal(a[1], b[1]) and not torch.equal(a[0], b[0])


@pytest.mark.parametrize(('rank', 'ranks'), [(0, 1), (1, 2)])
@pytest.mark.parametrize('n', [2, 3, 100])
def test_batches_made_together_are_the_same(monkeypatch, n, rank, ranks):
    split = Images(torch.from_numpy(random_images(45, 6, 6)), torch.arange(45))
    alone = list(Loader(split, 8, 1, 2, rank, ranks))
    monkeypatch.setitem(data.AT_ONCE, 'cpu', n)
    together = list(Loader(split, 8, 1, 2, rank, ranks))
    assert len(alone) == len(together) == 6
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.labels, b.labels) and a[2:] == b[2:]
        assert b.x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize('seed', [None, 1])
def test_batches_on_a_gpu_are_those_of_a_cpu(seed):
    split = Images(torch.from_numpy(random_images(300, 32, 32)), torch.arange(300))
    there = Images(*(t.cuda() for t in split))
    pairs = zip(Loader(split, 16, seed, 4), Loader(there, 16, seed, 4), strict=True)
    for a, b in pairs:
        assert b.x.is_cuda and torch.equal(a.labels, b.labels.cpu())
        torch.testing.assert_close(a.x, b.x.cpu())


def test_order_and_augmentation_have_streams_of_their_own(monkeypatch):
    generator, asked = data.generator, []
    monkeypatch.setattr(data, 'generator', lambda *key: asked.append(key) or generator(*key))
    run(Loader(plain(9), 4, 7, pad=1), 2)
    assert sorted(asked) == [(7, 2, 0), (7, 2, 1)]
    drawn = {torch.randint(2**40, (), generator=generator(*key)).item()
             for key in (*asked, (7, 3, 0), (8, 2, 0), (2, 7, 0), (72, 0, 0))}
    assert len(drawn) == 6


def test_order_is_a_fair_shuffle():
    loader = Loader(plain(40), 40, 0)
    places = np.array([run(loader, epoch)[1].tolist() for epoch in range(1, 301)])
    # the mean label at a place: 19.5, with a standard error of 11.5 / sqrt(300) = 0.67
    assert abs(places.mean(0) - 19.5).max() < 4 * 0.67
    assert (places[:, 1:] - places[:, :-1] == 1).mean() == pytest.approx(1 / 40, abs=0.006)


@pytest.fixture(scope='module')
def draws():
    """(row, column, mirrored) of each image in 3 epochs, read off pixels that tell where they came from."""
    n, size, pad = 3000, 12, 4
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(size)[:, None], np.arange(size)
    split = Images(torch.from_numpy(image).expand(n, size, size, 3), torch.arange(n))
    loader, found = Loader(split, 500, 1, pad), []
    for epoch in (1, 2, 3):
        x, labels = run(loader, epoch)
        middle = pixels(x)[:, 5:7, 5:7]  # where no reflection reaches
        mirror = middle[:, 0, 0, 1] > middle[:, 0, 1, 1]
        row = middle[:, 0, 0, 0] - 5 + pad
        column = np.where(mirror, middle[:, 0, 1, 1], middle[:, 0, 0, 1]) - 5 + pad
        found.append(np.stack([row, column, mirror], 1)[np.argsort(labels.numpy())])
    return np.array(found)  # (epochs, images, 3)


def test_offsets_and_flips_are_drawn_evenly_and_independently(draws):
    counts = np.zeros((9, 9, 2), int)
    np.add.at(counts, tuple(draws.reshape(-1, 3).T), 1)
    n = counts.sum()
    assert n == 9000
    chi_squared = ((counts - n / 162) ** 2 / (n / 162)).sum()
    assert 161 - 4 * np.sqrt(2 * 161) < chi_squared < 161 + 4 * np.sqrt(2 * 161)
    assert counts.sum((0, 1)) / n == pytest.approx([0.5, 0.5], abs=0.02)
    assert counts.sum((1, 2)) / n == pytest.approx([1 / 9] * 9, abs=0.015)
    assert counts.sum((0, 2)) / n == pytest.approx([1 / 9] * 9, abs=0.015)


def test_augmentation_differs_between_epochs_and_images(draws):
    for a, b in ((draws[0], draws[1]), (draws[1], draws[2]), (draws[0], draws[2]),
                 (draws[0, :-1], draws[0, 1:])):
        assert (a == b).all(1).mean() == pytest.approx(1 / 162, abs=0.008)


@pytest.mark.parametrize(('flip', 'expected'), [(True, {1, -1}), (False, {1})])
def test_images_are_mirrored_only_on_demand(flip, expected):
    """Without a border; each image is a slope to the right."""
    images = torch.arange(8, dtype=torch.uint8).expand(60, 8, 8).unsqueeze(3).repeat(1, 1, 1, 3)
    batches = [x for x, *_ in Loader(Images(images, torch.zeros(60)), 60, seed=1, flip=flip)]
    slopes = (batches[0][:, 0, 0, 7] - batches[0][:, 0, 0, 0]).sign().tolist()
    assert set(slopes) == expected


def test_the_first_images_of_a_split():
    whole, first = (data.load('shapes', '.', torch.device('cpu'), n) for n in (0, 7))
    for all_images, some in zip(whole, first, strict=True):
        assert len(some.images) == len(some.labels) == 7 < len(all_images.labels)
        assert torch.equal(some.images, all_images.images[:7])
        assert torch.equal(some.labels, all_images.labels[:7])


def test_without_seed_nothing_is_augmented():
    images = random_images(11, 32, 32)
    x, labels = run(Loader(Images(torch.from_numpy(images), torch.arange(11)), 4, pad=4))
    assert np.array_equal(pixels(x), images) and labels.tolist() == list(range(11))


# --- images that are held out ------------------------------------------------------------------------------


def quotas(counts, n):
    """Largest remainders, in whole numbers: of each class its floor, then one more where most is left."""
    total = sum(counts.values())
    found = {label: count * n // total for label, count in counts.items()}
    left = sorted(counts, key=lambda label: (-(counts[label] * n % total), label))
    for label in left[:n - sum(found.values())]:
        found[label] += 1
    return found


@pytest.mark.parametrize(('counts', 'n'), [
    ({0: 50, 1: 50}, 10), ({0: 50, 1: 50}, 11), ({3: 7, 5: 2, 9: 91}, 10), ({0: 2, 1: 2, 2: 2}, 5),
    ({0: 10, 1: 10, 2: 10}, 29), ({0: 10, 1: 10, 2: 10}, 3), ({0: 33, 1: 33, 2: 34}, 50), ({4: 9}, 1)])
def test_held_out_images_are_of_each_class_in_proportion(counts, n):
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)])
    labels = labels[torch.randperm(len(labels))]
    held = data.held_out(labels, n)
    assert held.dtype == torch.bool and held.shape == labels.shape and held.sum() == n
    assert {label: (labels[held] == label).sum().item() for label in counts} == quotas(counts, n)


@pytest.mark.parametrize('n', [2, 0, 10, 11])
def test_held_out_images_that_do_not_fit(n):
    """Fewer than classes, or none left to train with."""
    with pytest.raises(InputError, match=f'--val_images {n} ') as error:
        data.held_out(torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]), n)
    assert '10 training images of 3' in str(error.value)


def test_held_out_images_are_drawn_once_and_for_all():
    """Whatever the global generator has been through; spread over the whole of each class."""
    labels = torch.arange(1000) % 10
    state = torch.get_rng_state()
    held = data.held_out(labels, 100)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(data.held_out(labels, 100), held)
    places = held.nonzero().flatten()
    assert abs(places.float().mean() - 500) < 4 * 289 / 10  # uniform: 289 is its standard deviation
    by_class = [places[labels[places] == label] // 10 for label in range(10)]
    assert len({tuple(each.tolist()) for each in by_class}) == 10  # drawn for each class anew


@pytest.mark.parametrize('first', [0, 60])
def test_training_and_held_out_images_are_the_training_set(monkeypatch, first):
    monkeypatch.setattr(shapes, 'N_TRAIN', 150)
    monkeypatch.setattr(shapes, 'N_TEST', 50)
    whole, _ = data.load('shapes', '', CPU, first)
    train, held = data.load('shapes', '', CPU, first, 20)
    assert len(held.labels) == len(held.images) == 20 and len(train.labels) == len(whole.labels) - 20

    def rows(split):
        return [(label, image.numpy().tobytes()) for label, image in zip(split.labels.tolist(), split.images,
                                                                         strict=True)]

    assert len(set(rows(whole))) == len(whole.labels)  # no image comes twice
    assert not set(rows(train)) & set(rows(held))
    assert sorted(rows(train) + rows(held)) == sorted(rows(whole))
    mask = data.held_out(whole.labels, 20)
    assert rows(held) == [row for row, is_held in zip(rows(whole), mask, strict=True) if is_held]


# --- data sets -------------------------------------------------------------------------------------------


def test_shapes():
    train, test = data.load('shapes', 'nowhere', CPU)
    images, labels = shapes.load(train=False)
    assert torch.equal(test.images, torch.from_numpy(images)) and test.labels.tolist() == list(labels)
    assert train.images.shape == (shapes.N_TRAIN, 32, 32, 3) and train.images.dtype == torch.uint8
    assert train.labels.dtype == test.labels.dtype == torch.int64
    assert train.labels.unique().tolist() == list(range(data.CLASSES['shapes']))


@pytest.fixture(scope='module')
def cifar10(shared):
    return data.load('CIFAR10', str(shared / 'data'), CPU)


def planes(rows):
    """CIFAR's rows of 1024 red, 1024 green, 1024 blue -> (N, 32, 32, 3)."""
    return np.stack([rows[:, c * 1024:(c + 1) * 1024].reshape(-1, 32, 32) for c in range(3)], -1)


def test_cifar10(shared, cifar10):
    folder = shared / 'data/cifar-10-batches-py'
    train, test = cifar10
    assert len(train.images) == len(train.labels) == 50_000 and len(test.images) == len(test.labels) == 10_000
    for split, start, file in ((train, 0, 'data_batch_1'), (train, 40_000, 'data_batch_5'),
                               (test, 0, 'test_batch')):
        batch = pickle.loads((folder / file).read_bytes(), encoding='bytes')
        here = slice(start, start + 10_000)
        assert split.labels[here].tolist() == batch[b'labels']
        assert np.array_equal(split.images[here], planes(batch[b'data']))
    # the constants of the recipe are those of the training set
    sample = train.images[::5].flatten(0, 2)
    np.testing.assert_allclose(sample.float().mean(0), data.MEAN, atol=2)
    np.testing.assert_allclose(sample.float().std(0), data.STD, atol=2)


def fake(root, monkeypatch, name):
    """A data set of few random images that torchvision takes for CIFAR. Returns what the files hold."""
    kind = getattr(datasets, name)
    folder = root / kind.base_folder
    folder.mkdir()
    rng, content = np.random.default_rng(2), {}

    def write(file, batch):
        written = pickle.dumps(batch)
        (folder / file).write_bytes(written)
        return [file, hashlib.md5(written).hexdigest()]

    for attribute in ('train_list', 'test_list'):
        files = []
        for file, _ in getattr(kind, attribute):
            content[file] = {'data': rng.integers(0, 256, (6, 3072), dtype=np.uint8),
                             'fine_labels': rng.integers(0, 100, 6).tolist(),
                             'coarse_labels': [0] * 6, 'labels': rng.integers(0, 10, 6).tolist()}
            if name == 'CIFAR100':
                del content[file]['labels']
            files.append(write(file, content[file]))
        monkeypatch.setattr(kind, attribute, files)
    meta = write(kind.meta['filename'], {kind.meta['key']: list('abc')})
    monkeypatch.setattr(kind, 'meta', kind.meta | {'md5': meta[1]})
    return content


@pytest.mark.parametrize(('name', 'key'), [('CIFAR10', 'labels'), ('CIFAR100', 'fine_labels')])
def test_cifar_files(tmp_path, monkeypatch, name, key):
    content = fake(tmp_path, monkeypatch, name)
    *train_files, test_file = content.values()
    train, test = data.load(name, str(tmp_path), CPU)
    for split, files in ((train, train_files), (test, [test_file])):
        assert np.array_equal(split.images, np.concatenate([planes(file['data']) for file in files]))
        assert split.labels.tolist() == [label for file in files for label in file[key]]
        assert split.labels.dtype == torch.int64


def unusable(root, name='CIFAR10'):
    with pytest.raises(InputError) as error:
        data.load(name, str(root), CPU)
    assert '\n' not in str(error.value)
    return str(error.value)


class Response(io.BytesIO):
    url, length = None, 29


@pytest.fixture
def network(monkeypatch):
    """Every attempt to open an address ends as `network.ends` says; counts them."""
    class Network:
        tried = 0

        def ends(self):
            raise urllib.error.URLError(OSError(-2, 'Name or service not known'))

    state = Network()

    def urlopen(*_, **__):
        state.tried += 1
        return state.ends()

    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    return state


@pytest.mark.parametrize('content', [b'', b'wrong', b'<html>404</html>'])
@pytest.mark.parametrize(('name', 'file'), [
    ('CIFAR10', 'data_batch_1'), ('CIFAR10', 'data_batch_4'), ('CIFAR10', 'test_batch'),
    ('CIFAR100', 'train'), ('CIFAR100', 'test')])
def test_damaged_files_are_refused(tmp_path, monkeypatch, network, name, file, content):
    fake(tmp_path, monkeypatch, name)
    path = tmp_path / getattr(datasets, name).base_folder / file
    path.write_bytes(content)
    message = unusable(tmp_path, name)
    assert str(path.parent) in message and 'damaged' in message and '--dataroot' in message
    assert path.read_bytes() == content and not network.tried  # what the user has is left alone


@pytest.mark.parametrize('file', ['data_batch_2', 'test_batch', 'batches.meta'])
def test_incomplete_folder(tmp_path, monkeypatch, network, file):
    fake(tmp_path, monkeypatch, 'CIFAR10')
    folder = tmp_path / 'cifar-10-batches-py'
    (folder / file).unlink()
    message = unusable(tmp_path)
    assert str(folder) in message and '--dataroot' in message
    assert len(os.listdir(folder)) == 6 and not network.tried  # the others are left alone


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_no_network(tmp_path, network, name):
    message = unusable(tmp_path, name)
    assert network.tried
    assert getattr(datasets, name).base_folder in message and 'Name or service not known' in message
    assert '--dataroot' in message and '--dataset shapes' in message
    unusable(tmp_path / 'new', name)
    assert os.listdir(tmp_path) == []


def test_download_that_breaks_off(tmp_path, network):
    network.ends = lambda: Response(b'the first bytes of an archive')
    assert 'downloaded' in unusable(tmp_path)
    assert not (tmp_path / 'cifar-10-batches-py').exists()  # so that the next run downloads it again
    tried = network.tried
    unusable(tmp_path)
    assert network.tried > tried


def test_root_that_cannot_be_written(tmp_path, network):
    (tmp_path / 'file').touch()
    assert 'CIFAR10' in unusable(tmp_path / 'file')
