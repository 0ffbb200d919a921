"""Data sets of image files as their authors publish them: which files there are, and of which classes.

    train_set, test_set = folders.load('cub', 'CUB_200_2011')
"""
import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import InputError, one_line

LAYOUTS = {
    'imagenet': 'train/<synset>/*.JPEG and val/<synset>/*.JPEG',
    'cub': 'images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt and images/',
    'scenes': 'TrainImages.txt, TestImages.txt and Images/',
    'folder': 'train/<class>/* and val/<class>/* (or test/<class>/*)',
}
DATASETS = tuple(LAYOUTS)
PATH = r'((?!\.\.?/)[^/\0]+/(?!\.\.?$)[^/\0]+)'  # <class>/<file> in a list, without '..'
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


class Split(NamedTuple):
    """Names and labels of N images. They are arrays, because forked workers would copy lists of objects."""
    root: str
    paths: np.ndarray  # (N,) bytes, relative to root
    labels: Tensor  # (N,) int64
    classes: list[str]
    boxes: np.ndarray | None = None  # (N, 4) float64: left, top, width, height in pixels
    left_out: tuple[int, str] = (0, '')  # number of files that are not images, and one of them

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[i]))


def load(dataset: str, root: str, train: bool = True) -> tuple[Split | None, Split]:
    """Training and test (or validation) split of one of DATASETS, from files in `root` as in LAYOUTS.

    Without `train`, only the test split of folders of classes is read. Classes are sorted by name, those of
    CUB by number. Images in sub-folders of a class belong to it. Hidden files are ignored. Files without the
    ending of an image are counted, and so are links to folders within a class. InputError names what is
    missing or malformed.
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
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = sorted(entry.name for entry in _scan(os.fspath(root)) if entry.is_dir())
        raise InputError(f'{e.filename} cannot be read ({e.strerror}): --dataset {dataset} needs '
                         f'{LAYOUTS[dataset]}'
                         + (f'; {root} contains the folders {few(names)}' if names else '')) from None


def note_of(*splits: Split | None) -> str:
    """A note about files that are left out, or ''."""
    some = [split for split in splits if split and split.left_out[0]]
    n = sum(split.left_out[0] for split in some)
    return one_line(f'note: left out: {n} files in the folders of classes, such as {some[0].left_out[1]}; '
                    f'names of images end in {", ".join(ENDINGS)}') if some else ''


def classes_of(folder: str) -> Split:
    """All images in the folders of `folder`. Each folder is a class."""
    classes = sorted(entry.name for entry in _scan(folder) if entry.is_dir())
    if not classes:
        raise InputError(f'{folder} contains no folders: sort the images into one for each class')
    paths, n_left_out, example = [], 0, ''
    for name in classes:
        files, others = _files(folder, name)
        if not files:
            raise InputError(f'{folder}/{name} has no image in it: add some, or delete the folder')
        if others:
            n_left_out, example = n_left_out + len(others), example or os.path.join(folder, others[0])
        paths.append(np.array([os.fsencode(file) for file in files]))
    if len(classes) == 1 and any(path.count(b'/') > 1 for path in paths[0].tolist()):
        raise InputError(f'{folder} has a single class, {classes[0]}, with folders in it: if these are the '
                         f'classes, move them up to {folder}')
    labels = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(part) for part in paths]))
    return Split(folder, np.concatenate(paths), labels, classes, None, (n_left_out, example))


def _files(folder: str, name: str) -> tuple[list[str], list[str]]:
    """Images of a class, relative to `folder`, in the order of torchvision's ImageFolder; other files."""
    images: dict[str, list[str]] = {}
    inner, others = [name], []
    for part in inner:  # the loop adds folders to it
        images[part] = []
        for entry in _scan(os.path.join(folder, part)):
            path = f'{part}/{entry.name}'
            if entry.is_dir() and not entry.is_symlink():
                inner.append(path)
            elif entry.name.lower().endswith(ENDINGS) and not entry.is_dir():
                images[part].append(path)
            else:
                others.append(path)
    return [path for part in sorted(images) for path in sorted(images[part])], sorted(others)


def _scan(folder: str) -> list[os.DirEntry]:
    """Entries of a folder, without hidden files, and without pipes and devices, which may never end."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith('.') and (
            entry.is_file() or entry.is_dir() or not os.path.exists(entry.path))]  # a broken link


def few(names: Sequence[str]) -> str:
    """The first names of many, for messages."""
    return ', '.join(map(str, names[:3])) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def same_classes(path: Path | str, known: list[str] | None, classes: list[str]) -> str:
    """InputError if weights were trained on classes with other names. Returns a note, or ''.

    `known` is None for weights of other programs. If the names are numbers, such weights may have the classes
    in another order, because names are sorted as text here.
    """
    if known is not None:
        if odd := [names for names in zip_longest(known, classes, fillvalue='none') if names[0] != names[1]]:
            theirs, ours = map(few, zip(*odd, strict=True))
            raise InputError(f'{path} was trained on the classes {theirs}, where these images have {ours}: '
                             'give images of the same classes')
        return ''
    numbers = sorted(classes, key=int) if all(name.isdecimal() for name in classes) else classes
    moved = next((i for i, name in enumerate(classes) if name != numbers[i]), None)
    return '' if moved is None else one_line(
        f'note: names of classes are sorted as text, so that {classes[moved]} is class {moved}: if {path} '
        'sorts them as numbers, give all names the same number of digits')


def short_form(classes: list[str]) -> str:
    """Names of classes for a line of the log: their number and a hash. The checkpoint has the names."""
    return f'{len(classes)}, sha256 {hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:16]}'


def _same(classes: list[str], others: list[str], where: str) -> None:
    if odd := sorted({*classes} ^ {*others}):
        one, two = min(classes, others, key=len), max(classes, others, key=len)
        if len(one) == 1 < len(two):  # as in Tiny-ImageNet, which lists the classes in a text file
            raise InputError(f'{where} differ in their classes: {few(two)}, and only {one[0]}: sort the '
                             f'images in {one[0]} into a folder for each class')
        raise InputError(f'{where} differ in their classes: add {few(odd)} to one, or remove it')


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
        raise InputError(f'image {min(odd, key=int)} is not in all lists of {root}: unpack CUB again')
    pairs = sorted({(int(numbers[i][0]), path.split('/')[0]) for i, (path,) in images.items()})
    classes = [name for _, name in pairs]
    if [k for k, _ in pairs] != list(range(1, len({*classes}) + 1)):
        raise InputError(f'{root}/image_class_labels.txt must number the folders of images.txt from 1, '
                         'each by its own number: unpack CUB again')

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
    """{first field: the other fields} of the lines of a list."""
    table = {}
    if not os.path.isfile(path):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    with open(path, encoding='utf-8', errors='surrogateescape') as file:
        for number, line in enumerate(map(str.strip, file), 1):
            match = re.fullmatch(pattern, line)
            if line and (not match or match[1] in table):
                raise InputError(f'{path}, line {number}: {line[:80]!a} should be {form}, and not repeat '
                                 'an earlier line: fix it or unpack the data set again')
            if match:
                table[match[1]] = match.groups()[1:]
    return table


def _listed(root: str, names: list[str], classes: list[str], boxes: Any = None) -> Split:
    """The split with the images of a list; InputError if one is missing."""
    if not names:
        raise InputError(f'{os.path.dirname(root)}: the lists leave a split without images: unpack it again')
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[name.split('/')[0]] for name in names]
    found = {f'{k}/{entry.name}' for k in {classes[i] for i in labels} for entry in _scan(f'{root}/{k}')}
    if missing := [name for name in names if name not in found]:
        raise InputError(f'{root}/{missing[0]} is missing, but listed: unpack the data set again')
    return Split(root, np.array([*map(os.fsencode, names)]), torch.tensor(labels), classes, boxes)
