"""Data sets of image files: layouts of their authors, built here, and what may be wrong with them."""
import os
import shutil

import numpy as np
import pytest
import torch
from torchvision import datasets

from inputs import folders
from pictures import content, picture, write_image
from utils import InputError

CLASSES = {'train': {'n01': 3, 'n02': 2, 'n10': 1}, 'val': {'n01': 1, 'n02': 1, 'n10': 2}}


@pytest.fixture
def tree(tmp_path):
    for part, classes in CLASSES.items():
        for name, n in classes.items():
            for i in range(n):
                write_image(tmp_path / part / name / f'{name}_{i}.{("JPEG", "png", "Jpg")[i]}')
    return tmp_path


CUB = {  # id: (folder, file, class, is training image, box)
    7: ('001.Crow', 'a.jpg', 1, 1, '10.0 5.0 30.0 20.5'),
    2: ('001.Crow', 'b c.jpg', 1, 0, '0.0 0.0 60.0 50.0'),
    3: ('002.Jay', 'a.jpg', 2, 1, '-3.0 -1.0 200.0 200.0'),
    10: ('002.Jay', 'b.jpg', 2, 0, '1 2 3 4')}


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / 'CUB_200_2011'
    rows = {'images': '{i} {0}/{1}', 'image_class_labels': '{i} {2}', 'train_test_split': '{i} {3}',
            'bounding_boxes': '{i} {4}'}
    for folder, file, *_ in CUB.values():
        write_image(root / 'images' / folder / file)
    for name, row in rows.items():
        (root / f'{name}.txt').write_text(''.join(row.format(*CUB[i], i=i) + '\n' for i in CUB))
    return root


@pytest.fixture
def scenes(tmp_path):
    for name in ('bar/a.jpg', 'bar/b.jpg', 'attic/x y.jpg', 'attic/z.jpg', 'attic/unlisted.jpg'):
        write_image(tmp_path / 'Images' / name)
    (tmp_path / 'TrainImages.txt').write_text('bar/a.jpg\nattic/x y.jpg\n')
    (tmp_path / 'TestImages.txt').write_text('bar/b.jpg\r\nattic/z.jpg')  # no end of line, as shipped
    return tmp_path


def unusable(dataset, root):
    with pytest.raises(InputError) as error:
        folders.load(dataset, str(root))
    message = str(error.value)
    assert '\n' not in message and ': ' in message  # what is wrong: what to do
    return message


def names(split):
    return [os.fsdecode(path) for path in split.paths]


@pytest.mark.parametrize('dataset', ['imagenet', 'folder'])
def test_folders_as_torchvision_reads_them(tree, dataset):
    for extra in ('train/n01/.DS_Store', 'train/n01/notes.txt', 'train/n02/._n02_0.JPEG', 'train/list.txt',
                  'val/n01/Thumbs.db', 'train/.cache/x.jpg'):
        write_image(tree / extra, b'not an image')
    for split, part in zip(folders.load(dataset, str(tree)), ('train', 'val'), strict=True):
        for extra in tree.glob(f'{part}/**/.*'):  # torchvision would take hidden files for images
            shutil.rmtree(extra) if extra.is_dir() else extra.unlink()
        expected = datasets.ImageFolder(str(tree / part))
        assert split.classes == expected.classes == sorted(CLASSES[part])
        assert [split.path(i) for i in range(len(split.paths))] == [path for path, _ in expected.samples]
        assert split.labels.tolist() == expected.targets and split.labels.dtype == torch.int64
        assert split.paths.dtype.kind == 'S' and split.boxes is None


def test_every_ending_and_names_of_any_bytes(tmp_path):
    endings = (*folders.ENDINGS, '.JPEG', '.Jpg')
    files = {f'{i}{ending}'.encode() for i, ending in enumerate(endings)} | {b'\xff \xc3\xa9.jpg'}
    for part in ('train', 'val'):
        folder = os.fsencode(tmp_path) + f'/{part}/a b'.encode()
        os.makedirs(folder)
        for file in files:
            with open(os.path.join(folder, file), 'wb') as f:
                f.write(content(picture(1)))
        os.symlink('gone.jpg', os.path.join(folder, b'link.jpg'))  # is damaged, once it is read
    train, _ = folders.load('folder', str(tmp_path))
    assert {path.split(b'/')[1] for path in train.paths.tolist()} == files | {b'link.jpg'}
    assert all(os.path.exists(train.path(i)) != ('link' in train.path(i)) for i in range(len(train.paths)))


def test_folder_takes_test_for_val(tree):
    (tree / 'val').rename(tree / 'test')
    assert folders.load('folder', tree)[1].root == str(tree / 'test')
    assert str(tree / 'val') in unusable('imagenet', tree)


def test_folders_that_cannot_be_used(tree, tmp_path):
    message = unusable('imagenet', tree / 'nowhere')
    assert str(tree / 'nowhere/train') in message and 'val/<synset>/*.JPEG' in message
    write_image(tree / 'file')
    assert 'file' in unusable('imagenet', tree / 'file')
    (tree / 'val/n99').mkdir()
    assert str(tree / 'val/n99') in unusable('imagenet', tree) and 'no image' in unusable('imagenet', tree)
    write_image(tree / 'val/n99/a.jpg')
    assert 'n99' in unusable('imagenet', tree) and str(tree / 'train') in unusable('imagenet', tree)
    for i in range(5):
        write_image(tree / f'val/m{i}/a.jpg')
    assert 'm0, m1, m2 and 3 more' in unusable('imagenet', tree)
    shutil.rmtree(tree / 'val')
    write_image(tree / 'val/ILSVRC2012_val_00000001.JPEG')  # as it comes out of the archive
    assert 'one for each class' in unusable('imagenet', tree)
    shutil.rmtree(tree / 'train')
    assert str(tree / 'train') in unusable('folder', tree)


def test_sub_folders_as_torchvision_reads_them(tree):
    for i, name in enumerate(('more/1.jpg', 'more/x/2.png', 'more-b/1.jpg', 'a/0.jpg', 'more/x/a/1.bmp')):
        write_image(tree / 'train/n01' / name, content(picture(i), 'PNG'))
    write_image(tree / 'train/n02/.hidden/1.jpg')
    train, _ = folders.load('folder', tree)
    shutil.rmtree(tree / 'train/n02/.hidden')
    expected = datasets.ImageFolder(str(tree / 'train'))
    assert [train.path(i) for i in range(len(train.paths))] == [path for path, _ in expected.samples]
    assert train.labels.tolist() == expected.targets and train.left_out == (0, '')
    assert folders.note_of(train, None) == ''


def test_what_is_left_out_is_counted(tree):
    for name in ('2.jfif', '3.jpg?w=300', '7', 'more/8.txt'):
        write_image(tree / 'train/n01' / name)
    write_image(tree / 'val/n02/list.csv')
    for link in ('up', 'self'):  # to folders, which may lead anywhere
        (tree / 'train/n02' / link).symlink_to('..' if link == 'up' else '.')
    train, test = folders.load('folder', tree)
    assert b'n01/2.jfif' in train.paths.tolist() and len(train.paths) == 7
    assert train.left_out == (5, str(tree / 'train/n01/3.jpg?w=300')) and test.left_out[0] == 1
    note = folders.note_of(train, test)
    assert note.startswith('note: ') and ' 6 ' in note and '3.jpg?w=300' in note and '.jfif' in note
    assert folders.note_of(None, test).count(' 1 ') == 1


def test_layouts_of_others_are_named(tree):
    """Tiny-ImageNet with its images of all classes in one folder; other names; a folder too many."""
    for name in CLASSES['train']:
        for file in list((tree / 'train' / name).iterdir()):
            write_image(tree / 'train' / name / 'images' / file.name)
            file.unlink()
    (tree / 'val').rename(tree / 'sorted')
    write_image(tree / 'val/val_annotations.txt', b'val_0.JPEG n01 0 0 9 9')
    write_image(tree / 'val/images/val_0.JPEG')
    message = unusable('imagenet', tree)
    assert 'only images' in message and 'n01, n02, n10' in message and str(tree / 'val') in message
    shutil.rmtree(tree / 'val')
    (tree / 'sorted').rename(tree / 'valid')
    for dataset in ('imagenet', 'folder'):
        assert 'train, valid' in unusable(dataset, tree)
    for part in ('train', 'valid'):
        (tree / part).rename(tree / 'away')
        (tree / part.removesuffix('id')).mkdir()
        (tree / 'away').rename(tree / part.removesuffix('id') / 'images')
    assert 'single class, images' in unusable('folder', tree)


def test_names_of_classes():
    names = [str(i) for i in range(12)]
    assert folders.same_classes('x', names, names) == folders.same_classes('x', None, names[:10]) == ''
    note = folders.same_classes('file.pth', None, sorted(names))
    assert '10 is class 2' in note and 'file.pth' in note and note.startswith('note: ')
    assert folders.same_classes('x', None, [*sorted(names), 'twelve']) == ''
    assert folders.same_classes('x', None, [f'{i:02}' for i in range(12)]) == ''
    for known, said in ((['a', 'b'], 'a, b, none'), (['1', 'b', '3'], 'classes b, where .* have 2:'),
                        (['3', '1', '2'], '3, 1, 2'), ([str(i) for i in range(9)], '0, 1, 2 and 6 more')):
        with pytest.raises(InputError, match=said):
            folders.same_classes('x', known, ['1', '2', '3'])
    assert folders.short_form(names) != folders.short_form(sorted(names))
    assert '12' in folders.short_form(names)
    assert folders.short_form(['\udcff']).startswith('1, ')


@pytest.mark.parametrize('inside', [True, False])
def test_cub(cub, inside):
    train, test = folders.load('cub', str(cub if inside else cub.parent))
    assert names(train) == ['001.Crow/a.jpg', '002.Jay/a.jpg'] and train.labels.tolist() == [0, 1]
    assert names(test) == ['001.Crow/b c.jpg', '002.Jay/b.jpg'] and test.labels.tolist() == [0, 1]
    assert train.boxes.tolist() == [[10, 5, 30, 20.5], [-3, -1, 200, 200]] and train.boxes.dtype == np.float64
    assert train.classes == test.classes == ['001.Crow', '002.Jay']
    assert os.path.exists(train.path(0)) and train.root == str(cub / 'images')


@pytest.mark.parametrize(('file', 'old', 'new', 'said'), [
    ('images.txt', '7 001.Crow/a.jpg', '7', "images.txt, line 1: '7'"),
    ('images.txt', '2 001', 'x 001', 'images.txt, line 2'),
    ('images.txt', '3 002', '7 002', 'images.txt, line 3'),
    ('images.txt', '002.Jay/a.jpg', '../a.jpg', 'images.txt, line 3'),
    ('images.txt', '002.Jay/a.jpg', '002.Jay/..', 'images.txt, line 3'),
    ('images.txt', '002.Jay/a.jpg', '/etc/a.jpg', 'images.txt, line 3'),
    ('images.txt', '002.Jay/a.jpg', '/a.jpg', 'images.txt, line 3'),
    ('images.txt', '002.Jay/a.jpg', '002.Jay/q.jpg', 'images/002.Jay/q.jpg is missing'),
    ('images.txt', '10 002.Jay/b.jpg\n', '', 'image 10 '),
    ('image_class_labels.txt', '7 1', '7 one', 'image_class_labels.txt, line 1'),
    ('image_class_labels.txt', '7 1\n', '', 'image 7 '),
    ('image_class_labels.txt', '7 1', '7 2', 'image_class_labels.txt'),
    ('image_class_labels.txt', '3 2\n10 2', '3 1\n10 1', 'image_class_labels.txt'),
    ('image_class_labels.txt', '3 2\n10 2', '3 3\n10 3', 'image_class_labels.txt'),
    ('train_test_split.txt', '2 0', '2 2', 'train_test_split.txt, line 2'),
    ('train_test_split.txt', '10 0', '11 0', 'image 10 '),
    ('train_test_split.txt', '7 1\n2 0\n3 1', '7 0\n2 0\n3 0', 'without images'),
    ('bounding_boxes.txt', '1 2 3 4', '1 2 3', 'bounding_boxes.txt, line 4'),
    ('bounding_boxes.txt', '1 2 3 4', '1 2 3 nan', 'bounding_boxes.txt, line 4'),
    ('bounding_boxes.txt', '10 1 2 3 4\n', '10 1 2 3 4\n\n12 1 2 3 4\n', 'image 12 ')])
def test_cub_with_a_fault(cub, file, old, new, said):
    text = (cub / file).read_text()
    assert text.count(old) == 1
    (cub / file).write_text(text.replace(old, new))
    message = unusable('cub', cub)
    assert said in message and str(cub) in message


@pytest.mark.parametrize('missing', [
    'images.txt', 'image_class_labels.txt', 'train_test_split.txt', 'bounding_boxes.txt', 'images/002.Jay'])
def test_cub_without(cub, missing):
    (cub / missing).rename(cub / 'away')
    message = unusable('cub', cub)
    assert str(cub / missing) in message and 'train_test_split.txt' in message


def test_scenes(scenes):
    train, test = folders.load('scenes', str(scenes))
    assert names(train) == ['bar/a.jpg', 'attic/x y.jpg'] and train.labels.tolist() == [1, 0]
    assert names(test) == ['bar/b.jpg', 'attic/z.jpg'] and test.labels.tolist() == [1, 0]
    assert train.classes == test.classes == ['attic', 'bar']
    assert os.path.exists(test.path(1)) and test.boxes is None


@pytest.mark.parametrize(('train', 'said'), [
    ('', 'differ'), ('bar/a.jpg\n', 'attic'), ('bar/a.jpg\nattic/q.jpg\n', 'Images/attic/q.jpg is missing'),
    ('bar/a.jpg\nattic/z.jpg\nbar/a.jpg', 'TrainImages.txt, line 3'), ('bar\n', 'TrainImages.txt, line 1'),
    ('bar/a.jpg\nattic/../bar/a.jpg', 'TrainImages.txt, line 2'), ('bar/a.jpg\n./z.jpg', 'line 2'),
    ('bar/a.jpg\nattic/z.jpg\nzoo/a.jpg', 'zoo'), (None, 'TrainImages.txt')])
def test_scenes_with_a_fault(scenes, train, said):
    if train is None:
        (scenes / 'TrainImages.txt').unlink()
    else:
        (scenes / 'TrainImages.txt').write_text(train)
    message = unusable('scenes', scenes)
    assert said in message and str(scenes) in message
