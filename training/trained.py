"""What a script starts from: trained networks to evaluate or to learn from, and the folder of the run."""
import argparse
from pathlib import Path

import torch

import method
import resnet
from inputs import folders
from layers import Network, Params
from training import checkpoint, devices, exits
from training.checkpoint import Folder
from utils import InputError
from weights import named, networks, tensors


def load(path: Path | str, dataset: str, num_classes: int, where: torch.device,
         classes: list[str] | None = None, val_images: int = 0, model: str = '',
         groups: list[str] | None = None, size: int = 0) -> tuple[Network, Params]:
    """A trained network, which must know the classes of the data set, in order; prints what it is.

    A note says if it may have been trained on the val_images images that are held out. With `model`, the name
    of a network, path has only its weights; without `groups`, a run of that network knows them.
    """
    with devices.first_rank_first():  # which downloads it
        f: Network
        known = checkpoint.options_of(path)
        if model:
            recipe = named.recipe_of(known) or {}
            same = recipe.get('model') == model
            built, fresh = named.build(model, num_classes, size,
                                       groups or (recipe['groups'] if same else None))
            f, params = built, named.fitted(tensors.read(path), fresh, str(path))
            if same and recipe.get('sha256') != built.recipe.get('sha256'):
                exits.say_first(f'note: the file of {model} has changed since the run of {path}')
        else:
            f, params = resnet.load(path)
    if isinstance(trained_on := known.get('dataset'), str) and trained_on != dataset:
        raise InputError(f'{path} was trained on {trained_on}, not on {dataset}: '
                         'give the same --dataset to both')
    if (n := networks.n_classes(params, f)) != num_classes:
        raise InputError(f'{path} knows {n} classes, {dataset} has {num_classes}')
    if classes:
        names = known.get('classes')
        exits.say_first(folders.same_classes(path, names if isinstance(names, list) else None, classes))
    if val_images and known.get('val_images') != val_images:
        exits.say_first(f'note: {path} may have been trained on the held-out images, because its own run did '
                        f'not have --val_images {val_images}: its error on them may be too low')
    exits.print_first(f'{path}: {networks.describe(params, f)}')
    return f, devices.to_device(params, where)


def load_teacher(path: Path | str, opt: argparse.Namespace, f_s: Network, student: Params,
                 where: torch.device, size: int, classes: list[str] | None = None) -> tuple[Network, Params]:
    """A teacher: a trained network in the exported form, which computes the same with less work."""
    f, params = load(path, opt.dataset, networks.n_classes(student, f_s), where, classes,
                     getattr(opt, 'val_images', 0), opt.teacher_model, opt.teacher_groups, size)
    n, n_student = networks.n_groups(params, f), networks.n_groups(student, f_s)
    compared = [loss.option for loss in method.active(opt) if loss.groups]
    if compared and n != n_student:
        raise InputError(f'{path} has {n} groups to compare, the student {n_student}: give a teacher of as '
                         f'many, or leave out --{compared[0]}')
    if compared and max(opt.at_groups or [0]) >= n:
        raise InputError(f'--at_groups {opt.at_groups}: the networks have the groups 0 to {n - 1}')
    f, params = networks.folded(f, params)
    return f, devices.to_device(params, where)


def folder_of(opt: argparse.Namespace) -> Folder:
    """The folder of the run; other machines than that of rank 0 may not have its files."""
    return devices.of_first_rank(lambda: Folder(opt))
