"""The benchmark of loaders: both sides make the same of an image; workers, GPUs, refusals."""
import pytest
import torch
from PIL import Image

from helpers import call
from inputs import images
from tools import benchmark
from tools.benchmark import loader
from tools.benchmark.measure import SIDES

CPU = torch.device('cpu')


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, 'N_DRAWN', 3)
    loader.draw(tmp_path)
    return tmp_path


def test_both_sides_cut_and_normalise_an_image_alike(drawn):
    split = loader.load(drawn)
    assert split.paths.tolist() == [b'0/0.jpg', b'1/1.jpg', b'2/2.jpg']
    x, labels, *_ = next(loader.our_batches(images.Loader(split, 3, CPU, 'center', workers=0)))
    assert labels.tolist() == [0, 1, 2]
    plain = torch.stack([loader.PLAIN['center'](Image.open(split.path(i))) for i in range(3)])
    assert (x - plain).abs().mean() < 0.01  # of the standard deviation; one of 256 levels is 0.017
    for crop in loader.PLAIN:
        assert loader.PLAIN[crop](Image.open(split.path(0))).shape == (3, images.SIZE, images.SIZE)


@pytest.mark.parametrize('side', SIDES)
def test_loaders_work_with_workers(side, drawn):
    opt = benchmark.parse(['loader', '--workers', '1', '--batch_size', '2', '--steps', '1'])
    assert loader.contender(opt, 'resized', side, loader.load(drawn))() > 0


def test_folder_of_images_may_have_a_folder_train(drawn):
    (drawn / 'all').mkdir()
    for name in '012':
        (drawn / name).rename(drawn / 'all' / name)
    (drawn / 'all').rename(drawn / 'train')
    split = loader.load(drawn)
    assert split.root == str(drawn / 'train') and len(split.paths) == 3


@pytest.mark.parametrize('make, says', [
    (lambda path: None, 'No such file'),
    (lambda path: path.write_text(''), 'Not a directory'),
    (lambda path: path.mkdir(), 'contains no folders'),
    (lambda path: (path / 'train' / 'bird').mkdir(parents=True), 'has no image in it'),
])
def test_folder_without_images_ends_with_status_2_and_one_sentence(make, says, tmp_path):
    make(tmp_path / 'photos')
    done = call(benchmark, 'loader', '--imagenetpath', 'photos', '--workers', 1, cwd=tmp_path)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1)
    assert 'photos' in done.err and says in done.err
