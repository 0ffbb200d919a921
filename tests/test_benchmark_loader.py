"""The benchmark of loaders: both sides make the same of an image; workers, GPUs, refusals."""
import pytest
import torch
from PIL import Image

from helpers import call, strictly
from inputs import images
from tools import benchmark
from tools.benchmark import loader
from tools.benchmark.measure import SIDES

CPU = torch.device('cpu')


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, 'N_DRAWN', 3)
    monkeypatch.setattr(loader, 'N_CLASSES', 2)
    loader.draw(tmp_path)
    return tmp_path


def test_both_sides_cut_and_normalise_an_image_alike(drawn):
    split = loader.load(str(drawn))
    assert split.paths.tolist() == [b'0/0.jpg', b'0/2.jpg', b'1/1.jpg']
    x, labels, *_ = next(loader.our_batches(images.Loader(split, 3, CPU, 'center', workers=0)))
    assert labels.tolist() == [0, 0, 1]
    plain = torch.stack([loader.PLAIN['center'](Image.open(split.path(i))) for i in range(3)])
    assert (x - plain).abs().mean() < 0.01  # of the standard deviation; one of 256 levels is 0.017
    for crop in loader.PLAIN:
        assert loader.PLAIN[crop](Image.open(split.path(0))).shape == (3, images.SIZE, images.SIZE)


@pytest.mark.parametrize('side', SIDES)
def test_loaders_work_with_workers(side, drawn):
    opt = benchmark.parse(['loader', '--workers', '1', '--batch_size', '2', '--steps', '1'])
    assert loader.contender(opt, 'resized', side, loader.load(str(drawn)))() > 0


def test_folder_of_images_may_have_a_folder_train(drawn):
    (drawn / 'all').mkdir()
    (drawn / '0').rename(drawn / 'all' / '0')
    (drawn / '1').rename(drawn / 'all' / '1')
    (drawn / 'all').rename(drawn / 'train')
    split = loader.load(str(drawn))
    assert split.root == str(drawn / 'train') and len(split.paths) == 3


def test_loader_decodes_on_a_gpu_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    done = call(benchmark, 'loader', '--decode', 'cuda', cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1) and '--decode cuda' in done.err


@pytest.mark.gpu
@pytest.mark.parametrize('workers', [0, 1])
def test_loader_decodes_on_a_gpu(tmp_path, workers):
    done = call(benchmark, 'loader', '--batch_size', 2, '--steps', 1, '--rounds', 1, '--decode', 'cuda',
                '--workers', workers, cwd=tmp_path)
    got = strictly(done.out)
    assert (done.status, got['device']) == (0, 'cuda') and got['cases'].keys() == loader.PLAIN.keys()


@pytest.mark.parametrize('make, says', [
    (lambda path: None, 'cannot be read (No such file or directory)'),
    (lambda path: path.write_text(''), 'cannot be read (Not a directory)'),
    (lambda path: path.mkdir(), 'has no folders in it'),
    (lambda path: (path / 'train' / 'bird').mkdir(parents=True), 'has no image in it'),
])
def test_folder_without_images_ends_with_status_2_and_one_sentence(make, says, tmp_path):
    make(tmp_path / 'photos')
    done = call(benchmark, 'loader', '--imagenetpath', 'photos', '--workers', 1, cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1)
    assert 'photos' in done.err and says in done.err
