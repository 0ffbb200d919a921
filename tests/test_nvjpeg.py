"""A loader that decodes on the device: on a CPU images.Loader bit for bit; on a GPU nearly."""
import multiprocessing
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
import imagenet
from inputs import folders, images, nvjpeg
from pictures import claim_size, content, epoch_of, message_of, picture, pixels, same_epochs
from utils import InputError

CPU = torch.device('cpu')
N = 40  # more than are decoded at once
ODD = {2: 'PNG', 7: 'CMYK', 11: 'L', 20: 'progressive', 33: 'GIF'}


def file(i):
    """Every other JPEG has as many pixels of colour as of gray, the rest a quarter."""
    image, odd = picture(i, 120 + 6 * i, 300 - 4 * i), ODD.get(i)
    if odd in ('PNG', 'GIF'):
        return content(image, odd)
    return content(image.convert(odd if odd in ('CMYK', 'L') else 'RGB'), progressive=odd == 'progressive',
                   subsampling=2 * (i % 2))


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """JPEG, and some of everything else by the same ending; each of a label of its own."""
    root = tmp_path_factory.mktemp('split')
    files = [f'{i:02}.jpg' for i in range(N)]
    for i, name in enumerate(files):
        (root / name).write_bytes(file(i))
    return folders.Split(str(root), np.array(files, 'S'), torch.arange(N), list('abc'))


@pytest.fixture
def damaged(split, tmp_path):
    """Text, nothing, half a file, no file; a box beside the image; a JPEG that the decoder refuses, sound to
    a glance at its header."""
    root = shutil.copytree(split.root, tmp_path / 'damaged')
    (root / '03.jpg').write_text('<html>')
    (root / '04.jpg').write_bytes(b'')
    (root / '10.jpg').write_bytes((root / '10.jpg').read_bytes()[:-100])
    (root / '22.jpg').unlink()
    (root / '31.jpg').write_bytes(broken(31))
    boxes = np.array([[2, 3, 40 + i, 60 - i] for i in range(N)], float)
    boxes[17] = 900, 900, 5, 5
    return split._replace(root=str(root), boxes=boxes)


def broken(i):
    """No quantization tables: the header of a sound image, and its end."""
    data = file(i)
    start, stop = data.index(b'\xff\xdb'), data.index(b'\xff\xc0')
    return data[:start] + data[stop:]


BAD = [3, 4, 10, 17, 22, 31]


@pytest.fixture
def pair():
    """An images.Loader and a nvjpeg.Loader of the same options, closed after the test."""
    made = []

    def make(of, crop, seed, device=CPU, workers=0, batch_size=36, **options):
        made.extend(kind(of, batch_size, device, crop, seed, workers=workers, **options)
                    for kind in (images.Loader, nvjpeg.Loader))
        return made[-2:]

    yield make
    for one in made:
        one.close()
    assert not multiprocessing.active_children()


# --- on a CPU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('crop', 'seed'), [('resized', 1), ('random', 2), ('center', 1), ('center', None)])
def test_the_same_batches(pair, split, crop, seed, workers):
    boxes = np.array([[2, 3, 20 + i, 60 - i] for i in range(N)], float)
    for of in (split, split._replace(boxes=boxes)):
        plain, ours = pair(of, crop, seed, workers=workers)
        for number in (1, 2):
            expected, found = epoch_of(plain, number), epoch_of(ours, number)
            assert same_epochs(found, expected) and len(found[1]) == N
            assert found[0][:36].is_contiguous(memory_format=torch.channels_last)


def test_ranks_and_a_last_batch(pair, split):
    for rank in range(2):
        plain, ours = pair(split, 'random', 1, rank=rank, ranks=2, batch_size=12)
        assert same_epochs(epoch_of(ours), epoch_of(plain))
        assert [b.share for b in ours] == [b.share for b in plain]


@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_images_are_skipped_alike(pair, damaged, workers):
    for crop, seed in (('resized', 1), ('center', None)):
        for batch_size in (36, 1):
            plain, ours = pair(damaged, crop, seed, workers=workers, batch_size=batch_size, skip_damaged=True)
            assert same_epochs(epoch_of(ours, 3), epoch_of(plain, 3))
            assert ours.damaged == plain.damaged == len(BAD)
            if seed is None:
                assert epoch_of(ours)[1].tolist() == [i for i in range(N) if i not in BAD]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('i', BAD)
def test_a_damaged_image_is_named_alike(pair, damaged, i, workers):
    index = [0, i, 1]
    few = damaged._replace(paths=damaged.paths[index], labels=damaged.labels[index],
                           boxes=damaged.boxes[index])
    plain, ours = map(message_of, pair(few, 'center', None, workers=workers))
    assert ours == plain and ours.startswith(few.path(1)) and '--skip_damaged' in ours


def test_all_damaged(pair, split, tmp_path):
    of = split._replace(root=str(tmp_path))
    for crop, seed in (('center', None), ('random', 1)):
        plain, ours = map(message_of, pair(of, crop, seed, skip_damaged=True))
        assert ours == plain


def test_what_the_device_gets():
    """Whole JPEG of gray or YCbCr. What is cut off or stored as RGB other decoders may take otherwise."""
    jpeg = content(picture(1))
    for data in (jpeg, file(20), file(11), content(picture(1), subsampling=0)):
        assert nvjpeg.suits(data)
    adobe = b'\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00'
    for data in (b'', b'a text', jpeg[:2], jpeg[:-1], jpeg + b'\0', jpeg[:2] + nvjpeg.END, file(2), file(7),
                 jpeg[:2] + adobe + b'\x00' + jpeg[2:], claim_size(jpeg, 9000, 8000)):
        assert not nvjpeg.suits(data)
    assert nvjpeg.suits(jpeg[:2] + adobe + b'\x01' + jpeg[2:])


def test_a_refused_file_costs_no_other_one():
    data = [file(i) if i not in (4, 7) else broken(i) for i in range(9) if i != 2]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = nvjpeg.decode(data, CPU)
        assert nvjpeg.decode([], CPU) == []
    assert [image is None for image in found] == [d in (broken(4), broken(7)) for d in data]
    for image, d in zip(found, data, strict=True):
        assert image is None or torch.equal(image, images.decode(d))


def test_sound_jpeg_is_decoded_here_and_read_once(pair, split, monkeypatch):
    """All but the PNG, CMYK and GIF, in as few calls as may be."""
    calls, others = [], []
    decode, batch = nvjpeg.decode_jpeg, nvjpeg.Reader.batch
    _, ours = pair(split, 'center', None)
    monkeypatch.setattr(nvjpeg, 'decode_jpeg', lambda x, *args: calls.append(len(x)) or decode(x, *args))
    monkeypatch.setattr(nvjpeg.Reader, 'batch', lambda reader, number, index: (
        others.extend(index) or batch(reader, number, index)))
    epoch_of(ours)
    assert calls == [30, 3, 4] and others == [2, 7, 33]


def test_a_reader_can_be_sent_to_a_new_process(split):
    reader = pickle.loads(pickle.dumps(nvjpeg.Reader(split, 'random', 1, False)))
    index, reader.slots = [0, 1, 2], [None]
    files = reader[1, index, 0]
    assert torch.equal(reader.decoded(1, index, files, CPU)[0], reader.batch(1, index)[0])


def test_no_room_in_shared_memory(pair, split, monkeypatch):
    def share_memory_(_):
        raise RuntimeError('unable to allocate shared memory(shm) for file: No space left on device (28)')

    monkeypatch.setattr(torch.Tensor, 'share_memory_', share_memory_)
    assert '/dev/shm' in message_of(pair(split, 'random', 1, workers=1)[1])


def test_a_torchvision_without_decoder(split, monkeypatch):
    def refuse(*_):
        raise RuntimeError('decode_jpegs_cuda: torchvision not compiled with nvJPEG support')

    monkeypatch.setattr(nvjpeg, 'decode_jpeg', refuse)
    with pytest.raises(InputError, match='--decode'):
        nvjpeg.Loader(split, 4, CPU, 'center')


# --- on a GPU --------------------------------------------------------------------------------------------


@pytest.fixture
def cuda():
    return torch.device('cuda', torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize('workers', [0, 2])
def test_present_loader_on_cuda(split, cuda, workers):
    for crop, seed in (('resized', 1), ('random', 1), ('center', None)):
        loaders = [images.Loader(split, 12, device, crop, seed, workers=workers) for device in (CPU, cuda)]
        for a, b in zip(*loaders, strict=True):
            assert b.x.device == b.labels.device == cuda
            assert b.x.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(b.x.cpu(), a.x, rtol=1e-6, atol=1e-6)
            assert torch.equal(b.labels.cpu(), a.labels)
        for one in loaders:
            one.close()


@pytest.mark.gpu
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('crop', 'seed'), [('resized', 1), ('random', 1), ('center', None)])
def test_cuda_decodes_the_same_windows(pair, split, cuda, crop, seed, workers):
    """Each image by a few levels in the mean: another window or mirror would be tens of levels away.

    Where a pixel of colour serves four of gray, libjpeg interpolates and nvJPEG repeats it: that alone makes
    1.5 levels in these pictures, by box filters.
    """
    plain, _ = pair(split, crop, seed, workers=workers)
    _, ours = pair(split, crop, seed, cuda, workers=workers)
    for number in (1, 2):
        expected, found = epoch_of(plain, number), epoch_of(ours, number)
        assert found[0].device == found[1].device == cuda
        assert torch.equal(found[1].cpu(), expected[1])
        levels = np.abs(pixels(found[0].cpu()) - pixels(expected[0])).mean((1, 2, 3))
        assert (levels < torch.where(expected[1] % 2 == 1, 3, 1.5).numpy()).all(), levels


@pytest.mark.gpu
def test_cuda_skips_and_names_what_is_damaged(pair, damaged, split, cuda):
    files = [file(0), b'\xff\xd8 no picture \xff\xd9', file(1), file(20)]
    found = nvjpeg.decode(files, cuda)
    assert [image is None for image in found] == [False, True, False, False]
    shutil.copy(f'{split.root}/31.jpg', damaged.path(31))  # who knows what nvJPEG makes of it
    for crop, seed in (('resized', 1), ('center', None)):
        plain, _ = pair(damaged, crop, seed, skip_damaged=True)
        _, ours = pair(damaged, crop, seed, cuda, workers=2, skip_damaged=True)
        assert epoch_of(ours)[1].tolist() == epoch_of(plain)[1].tolist() and ours.damaged == len(BAD) - 1
    plain, _ = pair(damaged, 'center', None)
    _, ours = pair(damaged, 'center', None, cuda)
    assert message_of(ours) == message_of(plain)


@pytest.mark.gpu
def test_cuda_resizes_as_a_cpu(cuda):
    x = torch.from_numpy(np.array(picture(1, 500, 375))).permute(2, 0, 1)
    for height, width in ((224, 224), (256, 341), (600, 700), (10, 9)):
        ours = images.resize(x.to(cuda), height, width)
        assert ours.dtype == torch.uint8 and ours.shape == (3, height, width)
        assert (ours.cpu().int() - images.resize(x, height, width).int()).abs().max() <= 2
    large = torch.randint(256, (3, 8000, 8000), dtype=torch.uint8, device=cuda)  # of the most pixels
    assert images.resize(large, 224, 224).float().mean().item() == pytest.approx(127.5, abs=1)


@pytest.mark.gpu
def test_batches_stay_whole_while_the_next_are_decoded(pair, split, cuda):
    """A step that is slow on the device sees the batch it was given, though memory is used over again."""
    many = split._replace(paths=np.tile(split.paths, 6), labels=split.labels.repeat(6))
    _, ours = pair(many, 'resized', 1, cuda, workers=2, batch_size=20)
    whole = epoch_of(ours)
    sums = []
    for batch in ours:
        torch.cuda._sleep(50_000_000)
        sums.append(batch.x.double().sum((1, 2, 3)))
    torch.testing.assert_close(torch.cat(sums), whole[0].double().sum((1, 2, 3)))


@pytest.mark.gpu
def test_training_and_evaluation_with_decode_cuda(tmp_path):
    for part in ('train', 'val'):
        for i in range(8):
            path = tmp_path / 'images' / part / f'n0{i % 2}' / f'{i}.JPEG'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(picture(i, 70, 50))).save(path)
    common = ['--imagenetpath', 'images', '--width', '0.0625', '--batch_size', '4', '--nthread', '2',
              '--decode', 'cuda', '--epochs', '1', '--save', 'run']
    for more in ([], ['--evaluate']):
        done = helpers.call(imagenet, *common, *more, cwd=tmp_path)
        assert (done.status, done.err) == (0, '')
