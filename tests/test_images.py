"""Image files: layouts, decoding and crops against PIL and torchvision, workers that come to grief."""
import contextlib
import errno
import io
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision import datasets, transforms

from helpers import ROOT
from inputs import decoding, folders, images
from pictures import MEAN, STD, claim_size, content, epoch_of, message_of, picture, pixels, rgb, same_epochs
from utils import InputError

CPU = torch.device('cpu')
# --- decoding --------------------------------------------------------------------------------------------


def damage(data):
    with pytest.raises(images.Damaged) as error:
        images.decode(data)
    assert str(error.value) and '\n' not in str(error.value)
    return str(error.value)


FILES = {
    'jpeg': lambda i: content(i, quality=95), 'gray jpeg': lambda i: content(i.convert('L')),
    'subsampled': lambda i: content(i, subsampling=2), 'progressive': lambda i: content(i, progressive=True),
    'cmyk': lambda i: content(i.convert('CMYK')), 'png': lambda i: content(i, 'PNG'),
    'alpha': lambda i: content(i.convert('RGBA'), 'PNG'), 'palette': lambda i: content(i.convert('P'), 'PNG'),
    'one bit': lambda i: content(i.convert('1'), 'PNG'), 'bmp': lambda i: content(i, 'BMP'),
    'gray alpha': lambda i: content(i.convert('LA'), 'PNG'), 'webp': lambda i: content(i, 'WEBP'),
    'tiff': lambda i: content(i, 'TIFF'), 'pgm': lambda i: content(i.convert('L'), 'PPM'),
    'gif': lambda i: content(i, 'GIF')}


@pytest.mark.parametrize('form', FILES)
def test_decode_equals_pil(form):
    data = FILES[form](picture(3, 61, 45))
    x = images.decode(data)
    assert x.shape == (3, 45, 61) and x.dtype == torch.uint8
    assert np.array_equal(rgb(x), np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))


@pytest.mark.parametrize('form', ['PNG', 'TIFF'])
def test_sixteen_bits_of_gray_do_not_become_white(form):
    gray = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    x = images.decode(content(Image.fromarray(gray), form))
    assert np.array_equal(rgb(x), np.repeat((gray // 256)[..., None], 3, 2))


def test_exif_does_not_turn_the_image():
    image, exif = picture(1, 40, 20), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert images.decode(content(image, exif=exif)).shape == (3, 20, 40)


def test_damage():
    jpeg, png, gif = (content(picture(1), form) for form in ('JPEG', 'PNG', 'GIF'))
    assert 'no image' in damage(b'') and 'no image' in damage(b'a text\n') and 'no image' in damage(jpeg[:2])
    assert 'truncated' in damage(jpeg[:len(jpeg) // 2]).lower() and 'truncated' in damage(jpeg[:-20])
    for data in (jpeg, png, gif):
        for end in (10, 40, 100, len(data) // 2):
            damage(data[:end])
    assert 'no image' in damage(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')  # a program, to PIL
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damage(claim_size(jpeg, 65500, 65500))  # 12 GB if it were true
    assert '9000x8000 pixels are more than' in damage(claim_size(jpeg, 9000, 8000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    bomb = content(Image.new('1', (14000, 14000)), 'PNG')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        damage(bomb)
        assert damage(content(Image.new('1', (9000, 9000)), 'PNG')) == (
            'its 9000x9000 pixels are more than 64,000,000')


def test_pictures_of_text_are_small_files_without_damage():
    """A page of 300 and one of 600 dots per inch, and a screenshot."""
    for size, lines in (((2480, 3508), 60), ((4960, 7016), 120), ((3840, 2160), 40)):
        page = Image.new('1', size, 1)
        for i in range(lines):
            ImageDraw.Draw(page).text((200, 50 + i * size[1] // (lines + 5)), f'{i}: ' + 'words ' * 60)
        data = content(page, 'PNG')
        assert size[0] * size[1] > 100 * len(data)
        assert images.decode(data).shape == (3, size[1], size[0])
    assert 'too many for' in damage(content(Image.new('1', (7000, 7000)), 'PNG'))


def test_bits_that_fell_over_are_damage_or_an_image():
    rng = np.random.default_rng(0)
    for form in ('JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM'):
        data = content(picture(1), form)
        for _ in range(40):
            broken = bytearray(data)
            for place in rng.integers(len(data), size=3):
                broken[place] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try:
                    assert images.decode(bytes(broken)).shape[0] == 3
                except images.Damaged as e:
                    assert str(e)


# --- crops -----------------------------------------------------------------------------------------------


class Fixed:
    """Draws that are given: of draw_offset, then of the mirror."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, n):
        assert 0 <= self.values[0] < n
        return self.values.pop(0)

    def random(self):
        return self.values.pop(0)


def close(ours, pil):
    """Both resize in whole numbers of 8 bits, with weights rounded each in its own way."""
    difference = np.abs(rgb(ours) - np.asarray(pil))
    assert difference.shape == (224, 224, 3)
    assert difference.mean() < 0.5 and difference.max() <= 3


SIZES = [(500, 375), (375, 500), (256, 256), (60, 50), (300, 900), (257, 256), (224, 224), (3, 2), (341, 258)]


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_center_equals_torchvision(width, height):
    image = picture(5, width, height)
    expected = transforms.CenterCrop(224)(transforms.Resize(256)(image))
    close(images.crop(torch.from_numpy(np.array(image)).permute(2, 0, 1), 'center', None), expected)


@pytest.mark.parametrize(('width', 'height'), SIZES)
@pytest.mark.parametrize('mirror', [False, True])
def test_random_equals_pil(width, height, mirror):
    image = picture(6, width, height)
    resized = transforms.Resize(256)(image)
    top, left = (resized.height - 224) // 3, resized.width - 224
    expected = resized.crop((left, top, left + 224, top + 224))
    if mirror:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    draws = Fixed(top, left, 0.1 if mirror else 0.6)
    close(images.crop(torch.from_numpy(np.array(image)).permute(2, 0, 1), 'random', draws), expected)


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_resized_equals_pil(width, height):
    image = picture(7, width, height)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        top, left, h, w = images.draw_window(rng, height, width)
        mirrored = rng.random() < 0.5
        expected = image.crop((left, top, left + w, top + h)).resize((224, 224), Image.Resampling.BILINEAR)
        if mirrored:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        close(images.crop(x, 'resized', np.random.default_rng(seed)), expected)


def test_geometry_pixel_by_pixel():
    """At 256 x 256 nothing is resized: each pixel tells where it came from."""
    x = torch.stack([torch.arange(256)[:, None].expand(256, 256), torch.arange(256).expand(256, 256),
                     torch.zeros(256, 256, dtype=torch.int64)]).to(torch.uint8)
    assert torch.equal(images.crop(x, 'center', None), x[:, 16:240, 16:240])
    for top, left in ((0, 0), (32, 32), (5, 27)):
        cut = x[:, top:top + 224, left:left + 224]
        assert torch.equal(images.crop(x, 'random', Fixed(top, left, 0.5)), cut)
        assert torch.equal(images.crop(x, 'random', Fixed(top, left, 0.49)), cut.flip(2))
    seen = {images.draw_offset(np.random.default_rng(i), 225, 226) for i in range(200)}
    assert seen == {(top, left) for top in range(2) for left in range(3)}


def test_photos_as_torchvision_evaluates_them(shared):
    split = folders.classes_of(str(shared / 'data' / 'photos'))
    evaluate = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                                   transforms.Normalize(MEAN.tolist(), STD.tolist())])
    plain = datasets.ImageFolder(split.root, evaluate)
    batches = list(images.Loader(split, 24, CPU, 'center', workers=0))
    x, labels = torch.cat([b.x for b in batches]), torch.cat([b.labels for b in batches])
    expected = torch.stack([image for image, _ in plain])
    assert labels.tolist() == plain.targets
    levels = (x - expected).abs() * torch.tensor(STD * 255)[:, None, None]
    assert levels.mean() < 0.5 and levels.max() < 4


def test_windows_have_the_law_of_torchvision():
    law = transforms.RandomResizedCrop(224)
    for height, width in ((375, 500), (100, 400), (500, 333)):
        image, n = torch.empty(3, height, width), 4000
        theirs = np.array([law.get_params(image, law.scale, law.ratio) for _ in range(n)], float)
        rng = np.random.default_rng(0)
        ours = np.array([images.draw_window(rng, height, width) for _ in range(n)], float)
        for a, b in zip(ours.T, theirs.T, strict=True):
            both = np.sort(np.concatenate([a, b]))
            below = [np.searchsorted(np.sort(part), both, 'right') for part in (a, b)]
            distance = np.abs(below[0] - below[1]).max() / n
            assert distance < 1.95 * np.sqrt(2 / n)  # Kolmogorov-Smirnov, 1 in 1000
        area = ours[:, 2] * ours[:, 3] / (height * width)
        assert area.min() > 0.07 and area.max() <= 1
        assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
        assert (ours[:, :2] >= 0).all()


@pytest.mark.parametrize(('height', 'width'), [(1, 300), (300, 1), (40, 1000), (1000, 40), (1, 1), (2, 3)])
def test_windows_of_thin_images(height, width):
    law = transforms.RandomResizedCrop(224, scale=(3, 4))  # no window fits: the middle
    rng, image = np.random.default_rng(0), torch.empty(3, height, width)
    ours = {images.draw_window(rng, height, width) for _ in range(200)}
    assert all(h >= 1 and w >= 1 and t + h <= height and left + w <= width for t, left, h, w in ours)
    if min(height, width) > 2 or height == width == 1:
        assert tuple(law.get_params(image, law.scale, law.ratio)) in ours


def test_bounding_boxes():
    x = torch.arange(3 * 20 * 30).reshape(3, 20, 30)
    for box, (top, bottom, left, right) in {
            (3, 4, 10, 5): (4, 9, 3, 13), (0, 0, 30, 20): (0, 20, 0, 30), (-5, -5, 10, 10): (0, 5, 0, 5),
            (25, 15, 99, 99): (15, 20, 25, 30), (2.6, 3.4, 4.2, 2): (3, 5, 3, 7)}.items():
        assert torch.equal(images.cut_box(x, np.array(box, float)), x[:, top:bottom, left:right])
    for box in ((40, 0, 5, 5), (3, 3, 0, 5), (3, 3, 5, -2), (-9, -9, 5, 5), (3, 3, 0.2, 0.2)):
        with pytest.raises(images.Damaged, match='box'):
            images.cut_box(x, np.array(box, float))


def test_images_too_thin_to_enlarge():
    x = torch.zeros(3, 1, 60000, dtype=torch.uint8)
    with pytest.raises(images.Damaged, match='60000x1'):
        images.crop(x, 'center', None)
    assert images.crop(x, 'resized', np.random.default_rng(0)).shape == (3, 224, 224)


def test_normalize():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8))
    result = images.normalize(x)
    assert result.shape == (2, 3, 224, 224) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = (x.numpy() / 255 - MEAN) / STD
    np.testing.assert_allclose(result.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5)


# --- batches ---------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """23 images, each of a label of its own, with boxes."""
    root = tmp_path_factory.mktemp('split')
    files = [f'{i:02}.jpg' for i in range(23)]
    for i, file in enumerate(files):
        (root / file).write_bytes(content(picture(i, 40 + i, 60 - i)))
    return folders.Split(str(root), np.array(files, 'S'), torch.arange(23), list('abc'),
                         np.array([[2, 3, 20 + i, 30 - i] for i in range(23)], float))


@pytest.fixture
def loader(split):
    """Loaders that are closed after the test, which left no process behind."""
    made = []

    def make(batch_size=5, crop='random', seed=1, of=split, **options):
        made.append(images.Loader(of, batch_size, CPU, crop, seed, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('crop', images.CROPS)
def test_an_epoch_whatever_the_workers_batches_and_ranks(loader, crop):
    state = torch.get_rng_state()
    plain = loader(crop=crop, workers=0)
    first, second = epoch_of(plain), epoch_of(plain, 2)
    assert not torch.equal(first[1], second[1]) and sorted(first[1].tolist()) == list(range(23))
    assert [len(batch.labels) for batch in plain] == [5, 5, 5, 5, 3] and plain.n_images == 23
    by_label = [x[labels.argsort()] for x, labels in (first, second)]
    assert torch.equal(*by_label) == (crop == 'center')
    for workers, batch_size in ((1, 5), (3, 4)):
        other = loader(batch_size, crop, workers=workers)
        assert same_epochs(epoch_of(other, 2), second) and same_epochs(epoch_of(other, 1), first)
    ranks = [loader(crop=crop, workers=0, rank=rank, ranks=3) for rank in range(3)]
    batches = list(zip(*ranks, strict=True))
    everything = [part for parts in batches for part in parts]
    assert same_epochs((torch.cat([p.x for p in everything]), torch.cat([p.labels for p in everything])),
                       first)
    assert [sum(part.share for part in parts) for parts in batches] == pytest.approx([3] * len(batches))
    assert sum(rank.n_images for rank in ranks) == 23
    assert torch.equal(torch.get_rng_state(), state)
    assert not same_epochs(epoch_of(loader(crop=crop, seed=2, workers=0)), first)


def test_evaluation_is_in_order_and_equals_the_slow_way(loader, split):
    one = loader(crop='center', seed=None, workers=2)
    x, labels = epoch_of(one)
    assert labels.tolist() == list(range(23)) and len(one) == 5
    assert x.dtype == torch.float32 and x[:5].is_contiguous(memory_format=torch.channels_last)
    for i in (0, 9, 22):
        left, top, w, h = split.boxes[i].astype(int)
        image = Image.open(split.path(i)).crop((left, top, left + w, top + h))
        expected = np.asarray(transforms.CenterCrop(224)(transforms.Resize(256)(image)))
        assert np.abs(pixels(x[i:i + 1])[0] - expected).max() <= 3
    assert same_epochs(epoch_of(one, 2), (x, labels))


def filled(reader, epoch, n):
    """The first n images."""
    x = torch.empty(n, 224, 224, 3, dtype=torch.uint8)
    assert reader.fill(epoch, [*range(n)], x) == ([*range(n)], 0)
    return x


def test_mirrors_and_offsets_differ_between_images_and_epochs(loader, split):
    reader = images.Reader(split._replace(boxes=None), 'random', 1, False)
    reader.split = reader.split._replace(paths=reader.split.paths[[0] * 23])  # one image, drawn 23 times
    x, y = (filled(reader, epoch, 23) for epoch in (1, 2))
    assert len({image.numpy().tobytes() for image in torch.cat([x, y])}) > 40


def test_a_reader_can_be_sent_to_a_new_process(split):
    reader = pickle.loads(pickle.dumps(images.Reader(split, 'random', 1, False)))
    assert torch.equal(filled(reader, 1, 3), filled(images.Reader(split, 'random', 1, False), 1, 3))


@pytest.mark.gpu
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('crop', 'seed'), [('resized', 1), ('random', 1), ('center', None)])
def test_batches_on_a_gpu_are_those_of_a_cpu(split, workers, crop, seed):
    cuda = torch.device('cuda', torch.cuda.current_device())
    loaders = [images.Loader(split, 12, device, crop, seed, workers=workers) for device in (CPU, cuda)]
    for a, b in zip(*loaders, strict=True):
        assert b.x.device == b.labels.device == cuda
        assert b.x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(b.x.cpu(), a.x, rtol=1e-6, atol=1e-6)
        assert torch.equal(b.labels.cpu(), a.labels)
    for one in loaders:
        one.close()


# --- what goes wrong -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(split, tmp_path):
    """The split with images 3, 4 (text), 10 (truncated) and 22 (gone) damaged."""
    root = shutil.copytree(split.root, tmp_path / 'damaged')
    (root / '03.jpg').write_text('<html>')
    (root / '04.jpg').write_bytes(b'')
    (root / '10.jpg').write_bytes((root / '10.jpg').read_bytes()[:-100])
    (root / '22.jpg').unlink()
    return split._replace(root=str(root))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_damaged_image_is_named(loader, damaged, workers):
    said = message_of(loader(of=damaged, crop='center', seed=None, workers=workers))
    assert said.startswith(damaged.path(3)) and '--skip_damaged' in said and 'no image' in said
    assert re.search(r'(03|04|10|22)\.jpg is damaged', message_of(loader(of=damaged, workers=workers)))
    boxes = damaged.boxes.copy()
    boxes[0] = 100, 100, 5, 5
    assert '00.jpg is damaged (nothing' in message_of(loader(of=damaged._replace(boxes=boxes), crop='center',
                                                             seed=None, workers=workers))


@pytest.mark.parametrize('workers', [0, 2])
def test_skip_damaged(loader, damaged, split, workers):
    def options(batch_size):
        return {'of': damaged, 'batch_size': batch_size, 'workers': workers, 'skip_damaged': True}

    one = loader(**options(6))
    for number in (1, 2):  # the next sound ones, 5, 5, 11 and 0, in training
        _, order = epoch_of(loader(workers=0), number)
        x, labels = epoch_of(one, number)
        assert labels.tolist() == [{3: 5, 4: 5, 10: 11, 22: 0}.get(i, i) for i in order.tolist()]
        assert one.damaged == 4
        assert len({image.numpy().tobytes() for image in x}) == 23  # drawn anew
    one = loader(crop='center', seed=None, **options(6))
    whole, _ = epoch_of(loader(crop='center', seed=None, workers=0))
    x, labels = epoch_of(one)
    assert labels.tolist() == [i for i in range(23) if i not in (3, 4, 10, 22)] and one.damaged == 4
    assert torch.equal(x, whole[labels])
    one = loader(crop='center', seed=None, **options(1))  # batches of which nothing is left
    x, labels = epoch_of(one)
    assert torch.equal(x, whole[labels]) and (len(labels), one.damaged) == (19, 4)


def test_all_damaged(loader, split, tmp_path):
    of = split._replace(root=str(tmp_path))
    for crop, seed, words in (('center', None, 'all 23 images'), ('random', 1, 'No such file')):
        said = message_of(loader(of=of, crop=crop, seed=seed, workers=0, skip_damaged=True))
        assert str(tmp_path) in said and words in said


def test_an_epoch_broken_off(loader):
    whole = epoch_of(loader(workers=0), 2)
    one = loader(2, workers=2)
    next(iter(one))
    first = multiprocessing.active_children()
    assert len(first) == 2 and same_epochs(epoch_of(one, 2), whole)
    with pytest.raises(ZeroDivisionError):
        for _ in one:
            raise ZeroDivisionError
    left = iter(one)
    next(left)
    left.close()
    assert same_epochs(epoch_of(one, 2), whole)
    assert multiprocessing.active_children() == first or set(multiprocessing.active_children()) == set(first)
    held = iter(one)
    next(held)
    one.close()
    assert not multiprocessing.active_children()
    assert same_epochs(epoch_of(one, 2), whole)


def test_workers_end_with_their_loader(split):
    one = images.Loader(split, 5, CPU, 'random', 1, workers=1)
    list(one)
    del one
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('when', ['in an epoch', 'between'])
def test_a_killed_worker(loader, when):
    handler = signal.getsignal(signal.SIGCHLD)
    one = loader(1, workers=2)
    if when == 'between':
        epoch_of(one)
    batches = iter(one)
    if when == 'in an epoch':
        next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert signal.getsignal(signal.SIGCHLD) == handler  # nothing raises here, out of the blue
    with pytest.raises(InputError, match='killed.*--nthread'):
        list(batches)
    assert not multiprocessing.active_children()
    assert len(epoch_of(one)[1]) == 23


@pytest.mark.parametrize('error', [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_killed_while_it_hands_over_a_batch(loader, monkeypatch, error):
    """By what multiprocessing raises then, which a kill at such a moment brought to light."""
    def broken(self):
        raise error
        yield
    one = loader(1, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(images.DataLoader, '__iter__', broken)
        with pytest.raises(InputError, match='killed.*--nthread'):
            list(one)
    assert len(epoch_of(one)[1]) == 23


def test_in_a_thread(loader):
    found = []
    one = loader(workers=1)
    thread = threading.Thread(target=lambda: found.append(epoch_of(one)))
    thread.start()
    thread.join()
    assert same_epochs(found[0], epoch_of(loader(workers=0)))


def alive(pids):
    """Those that still run; a zombie is waiting for whoever inherited it."""
    states = []
    for pid in pids:
        with contextlib.suppress(OSError):
            states.append(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0])
    return [state for state in states if state != 'Z']


JOB = """
import multiprocessing, pickle, sys, torch
from inputs import images
def main():
    split = pickle.load(open('split', 'rb'))
    split = split._replace(labels=torch.from_numpy(split.labels))
    one = images.Loader(split, 1, torch.device('cpu'), 'random', 1, workers=2)
    while True:
        for i, _ in enumerate(one):
            if not i and one.epoch == 1:
                print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        one.epoch += 1
if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_a_script_that_is_stopped(split, tmp_path):
    (tmp_path / 'split').write_bytes(pickle.dumps(split._replace(labels=split.labels.numpy())))
    (tmp_path / 'job.py').write_text(JOB)
    jobs = {number: subprocess.Popen(
        [sys.executable, 'job.py'], cwd=tmp_path, text=True, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # which a shell's background ignores
        for number in (signal.SIGKILL, signal.SIGINT)}
    try:
        workers = [pid for job in jobs.values() for pid in job.stdout.readline().split()]
        assert len(workers) == len(alive(workers)) == 4
        for number, job in jobs.items():
            (os.killpg if number == signal.SIGINT else os.kill)(job.pid, number)
        err = {number: job.communicate(timeout=60)[1] for number, job in jobs.items()}
        assert [job.returncode for job in jobs.values()] == [-9, 130]
        assert 'Traceback' not in err[signal.SIGINT]
        end = time.monotonic() + 20  # an orphan looks for its parent every 5 s
        while alive(workers) and time.monotonic() < end:
            time.sleep(0.2)
        assert not alive(workers)
    finally:
        for job in jobs.values():
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job.stdout.close()
            job.stderr.close()


@pytest.fixture
def alarm():
    """Nothing waits for ever."""
    def late(*_):
        raise AssertionError('it waits')

    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.usefixtures('alarm')
def test_too_few_files_may_be_open(split, capfd):
    """Whatever the limit: a sentence or the batches, no image that is called damaged, nothing on stderr."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = []
    for more in range(1, 30, 2):
        one = images.Loader(split, 4, CPU, 'random', 1, workers=2, skip_damaged=True)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + more, limits[1]))
            found.append(f'{len(list(one))} batches, {one.damaged} damaged')
        except InputError as e:
            found.append('ulimit' if 'ulimit -n' in str(e) else str(e))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            one.close()
        assert not multiprocessing.active_children()
    assert set(found) == {'ulimit', '6 batches, 0 damaged'} and found[-1] != 'ulimit'
    assert capfd.readouterr() == ('', '')


@pytest.mark.usefixtures('alarm')
def test_what_a_worker_cannot_hand_over_ends_it(loader, monkeypatch):
    monkeypatch.setattr(images.Reader, 'fill', lambda *_: lambda: None)  # which cannot be pickled
    assert 'killed' in message_of(loader(workers=2))


@pytest.mark.parametrize('number', [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize('workers', [0, 1])
def test_faults_of_the_machine_skip_no_image(split, monkeypatch, number, workers):
    def fail(path, *_):
        raise OSError(number, os.strerror(number), path)

    one = images.Loader(split, 5, CPU, 'random', 1, workers=workers, skip_damaged=True)
    with monkeypatch.context() as patch:
        patch.setattr(images, 'open', fail, raising=False)
        said = message_of(one)
    one.close()
    assert 'damaged' not in said and os.strerror(number) in said and split.root in said
    assert ('ulimit -n' in said) == (number == errno.EMFILE)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('error', [
    MemoryError, lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you")])
def test_want_of_memory_skips_no_image(loader, monkeypatch, error, workers):
    def fail(*_):
        raise error()

    monkeypatch.setattr(images, 'crop', fail)
    said = message_of(loader(workers=workers, skip_damaged=True))
    assert 'memory' in said and '--nthread' in said


def test_files_of_the_machine_while_decoding(loader, monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), 'a module of PIL')

    monkeypatch.setattr(decoding, '_by_pil', fail)
    monkeypatch.setattr(decoding, 'END', b'none')
    assert 'ulimit -n' in message_of(loader(workers=0, skip_damaged=True))


@pytest.mark.usefixtures('alarm')
def test_more_workers_than_cores_are_no_warning(loader, recwarn, monkeypatch):
    one = loader(workers=(os.cpu_count() or 1) + 2)
    assert len(epoch_of(one)[1]) == 23
    assert not [w for w in recwarn if w.category is UserWarning]


def test_no_room_in_shared_memory(loader, monkeypatch):
    def share_memory_(_):
        raise RuntimeError('unable to allocate shared memory(shm) for file: No space left on device (28)')

    monkeypatch.setattr(torch.Tensor, 'share_memory_', share_memory_)
    assert '/dev/shm' in message_of(loader(workers=1))
