"""Data sets of image files as their authors ship them: which files, of which classes.

    train_set, test_set = splits.load('cub', 'CUB_200_2011')
"""
import errno
import os
import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import InputError

LAYOUTS = {
    'imagenet': 'train/<synset>/*.JPEG and val/<synset>/*.JPEG',
    'cub': 'images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt and images/',
    'scenes': 'TrainImages.txt, TestImages.txt and Images/',
    'folder': 'train/<class>/* and val/<class>/* (or test/<class>/*)',
}
DATASETS = tuple(LAYOUTS)
PATH = r'((?!\.\.?/)[^/\0]+/(?!\.\.?$)[^/\0]+)'  # in a list: <class>/<file>, never upwards
ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


class Split(NamedTuple):
    """Names and labels of N images: arrays, which forked workers share; lists of objects they would copy."""
    root: str
    paths: np.ndarray  # (N,) bytes, relative to root
    labels: Tensor  # (N,) int64
    classes: list[str]
    boxes: np.ndarray | None = None  # (N, 4) float64: left, top, width, height in pixels

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[i]))


def load(dataset: str, root: str, train: bool = True) -> tuple[Split | None, Split]:
    """Training and test (or validation) split of one of DATASETS, its files in `root` as LAYOUTS says.

    Without `train`, of folders of classes only the test split is there, and need be.

    Classes are in the order of their names, those of CUB by their numbers. Hidden files are ignored and, in
    folders of classes, those without the ending of an image. InputError names what is missing or malformed.
    """
    try:
        if dataset == 'cub':
            return _cub(os.fspath(root))
        if dataset == 'scenes':
            return _scenes(os.fspath(root))
        last = 'test' if dataset == 'folder' and not os.path.isdir(os.path.join(root, 'val')) else 'val'
        train_set = classes_of(os.path.join(root, 'train')) if train else None
        test_set = classes_of(os.path.join(root, last))
        if train_set:
            _same(train_set.classes, test_set.classes, f'{train_set.root} and {test_set.root}')
        return train_set, test_set
    except OSError as e:
        raise InputError(f'{e.filename} cannot be read ({e.strerror}): the folder of {dataset} holds '
                         f'{LAYOUTS[dataset]}') from None


def classes_of(folder: str) -> Split:
    """All images in the folders of `folder`, each of them a class."""
    classes = sorted(entry.name for entry in _scan(folder) if entry.is_dir())
    if not classes:
        raise InputError(f'{folder} has no folders in it: sort the images into one for each class')
    paths = []
    for name in classes:
        files = sorted(entry.name for entry in _scan(os.path.join(folder, name))
                       if entry.name.lower().endswith(ENDINGS) and not entry.is_dir())
        if not files:
            raise InputError(f'{folder}/{name} has no image in it: add some, or delete it as a class')
        paths.append(np.array([os.fsencode(f'{name}/{file}') for file in files]))
    labels = np.repeat(np.arange(len(classes)), [len(part) for part in paths])
    return Split(folder, np.concatenate(paths), torch.from_numpy(labels), classes)


def _scan(folder: str) -> list[os.DirEntry]:
    """What is in a folder, but for hidden files, and for pipes and devices, whose reading may never end."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith('.') and (
            entry.is_file() or entry.is_dir() or not os.path.exists(entry.path))]  # no target


def _same(classes: list[str], others: list[str], where: str) -> None:
    if odd := sorted({*classes} ^ {*others}):
        few = ', '.join(odd[:3]) + (f' and {len(odd) - 3} more' if len(odd) > 3 else '')
        raise InputError(f'{where} differ in their classes: add {few} to one or take it from the other')


def _cub(root: str) -> tuple[Split, Split]:
    inner = os.path.join(root, 'CUB_200_2011')
    if os.path.isdir(inner) and not os.path.exists(os.path.join(root, 'images.txt')):
        root = inner
    number, real = '([0-9]{1,9})', r'(-?[0-9]{1,9}(?:\.[0-9]{0,20})?)'
    images, numbers, is_train, boxes = tables = [
        _table(os.path.join(root, f'{name}.txt'), f'{number} +{fields}', form) for name, fields, form in (
            ('images', PATH, '<id> <class>/<file>'), ('image_class_labels', number, '<id> <class>'),
            ('train_test_split', '([01])', '<id> <0 or 1>'),
            ('bounding_boxes', ' +'.join([real] * 4), '<id> <x> <y> <width> <height>'))]
    if odd := set().union(*tables) - set(images).intersection(*tables):
        raise InputError(f'image {min(odd, key=int)} is not in all lists of {root}: unpack CUB anew')
    pairs = sorted({(int(numbers[i][0]), path.split('/')[0]) for i, (path,) in images.items()})
    classes = [name for _, name in pairs]
    if [k for k, _ in pairs] != list(range(1, len({*classes}) + 1)):
        raise InputError(f'{root}/image_class_labels.txt must number the folders of images.txt from 1, '
                         'each by its own number: unpack CUB anew')

    def split(part: str) -> Split:
        ids = [i for i in images if is_train[i] == (part,)]
        return _listed(os.path.join(root, 'images'), [images[i][0] for i in ids], classes,
                       np.array([boxes[i] for i in ids], np.float64))

    return split('1'), split('0')


def _scenes(root: str) -> tuple[Split, Split]:
    lists = [os.path.join(root, name) for name in ('TrainImages.txt', 'TestImages.txt')]
    parts = [list(_table(path, PATH, '<class>/<file>')) for path in lists]
    classes, others = (sorted({path.split('/')[0] for path in part}) for part in parts)
    _same(classes, others, ' and '.join(lists))
    train, test = (_listed(os.path.join(root, 'Images'), part, classes) for part in parts)
    return train, test


def _table(path: str, pattern: str, form: str) -> dict[str, tuple[str, ...]]:
    """The fields of each line of a list, by the first of them."""
    table = {}
    if not os.path.isfile(path):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    with open(path, encoding='utf-8', errors='surrogateescape') as file:
        for number, line in enumerate(map(str.strip, file), 1):
            match = re.fullmatch(pattern, line)
            if line and (not match or match[1] in table):
                raise InputError(f'{path}, line {number}: {line[:80]!a} should be {form}, as in no line '
                                 'before: mend it or unpack the data set anew')
            if match:
                table[match[1]] = match.groups()[1:]
    return table


def _listed(root: str, names: list[str], classes: list[str], boxes: Any = None) -> Split:
    """The split of a list, all of whose images are there."""
    if not names:
        raise InputError(f'{os.path.dirname(root)}: the lists leave a split without images: unpack it anew')
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[name.split('/')[0]] for name in names]
    found = {f'{k}/{entry.name}' for k in {classes[i] for i in labels} for entry in _scan(f'{root}/{k}')}
    if missing := [name for name in names if name not in found]:
        raise InputError(f'{root}/{missing[0]} is missing, though listed: unpack the data set anew')
    return Split(root, np.array([*map(os.fsencode, names)]), torch.tensor(labels), classes, boxes)
