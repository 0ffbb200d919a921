"""The options in a log that change training. They decide which runs share a row.

    settings.of(record)    # (('alpha', '0'), ('beta', '1000'), ..., ('lr', '0.1'), ...)

All options count, except the few named here. So an option that the report does not know never joins two rows.
"""
import functools
import re
from typing import Any

import cifar
import imagenet
import method
from utils import one_line

# Options that say where and how a run computes, not what.
HARMLESS = {'save', 'resume', 'dataroot', 'imagenetpath', 'teacher', 'teacher_id', 'teacher_params', 'device',
            'cuda', 'gpu_id', 'ngpu', 'nthread', 'compile', 'fast', 'deterministic', 'max_hours',
            'tensorboard', 'evaluate', 'student_params', 'teacher_model', 'network', 'list_groups'}
# Options that have a field of their own in a Run.
FIELDS = {'model', 'depth', 'width', 'no_bn', 'no_pool_relu', 'dataset', 'max_images', 'val_images', 'epochs',
          'seed'}
# What a run measures, and what it ran on.
RESULTS = re.compile('(train|test)_.*|.*_losses|epoch|lr_epoch|beta_epoch|images_per_second|peak_memory|'
                     'ranks|damaged_images|num_classes|n_parameters|commit|device_name|torch|torchvision|'
                     'numpy|python|cudnn')
# Options of a loss; the others are options of training.
METHOD = {name for loss in method.LOSSES for name in (loss.option, *loss.settings)} | {
    'groups', 'teacher_groups'}


@functools.cache
def _defaults(of_imagenet: bool) -> dict[str, Any]:
    opt = imagenet.parse(['--imagenetpath', '.']) if of_imagenet else cifar.parse(['--save', '.'])
    known = {name: value for name, value in vars(opt).items() if name not in HARMLESS | FIELDS}
    # The published code compares all groups and has no option for it. Folders of images log their classes.
    return known | {'at_groups': None} | ({'classes': None} if of_imagenet else {})


def defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The options that change training in the script of a log, with values for those that older logs lack."""
    return _defaults('teacher_params' in record)


def is_known(name: str) -> bool:
    return name in _defaults(False) or name in _defaults(True)


def of(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The options of a run as text: those of its script, then unknown ones that are not off."""
    known = defaults(record)
    unknown = {name: record[name] for name in sorted(record.keys() - known.keys() - HARMLESS - FIELDS)
               if record[name] and record[name] != 'none' and not RESULTS.fullmatch(name)}
    values = {name: record.get(name, default) for name, default in known.items()} | unknown
    return tuple((one_line(name), text(value)) for name, value in values.items())


def text(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'{value:.15g}'
    # The published code logs the list epoch_step as text, without spaces.
    return 'all' if value is None else one_line(str(value).replace(' ', ''))
