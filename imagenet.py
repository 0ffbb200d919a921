"""ImageNet teachers and students, and fine-tuning on CUB, Scenes or any folder of images.

    python imagenet.py --imagenetpath ~/ILSVRC2012 --teacher_params resnet-34-export.hkl --beta 1e+3
    python imagenet.py --imagenetpath ~/ILSVRC2012 --evaluate --student_params resnet-18-at-export.pth
    python imagenet.py --dataset cub --dataroot ~/CUB_200_2011 --finetune torchvision:resnet18
"""
import argparse
import re
import sys

import torch
from torchnet.engine import Engine

import layers
import method
import modules
import resnet
import training
from inputs import folders, images
from layers import Network, Params
from method import adaptors, evaluation_step, training_step
from training import devices, exits, fast, options
from utils import InputError
from weights import named, networks, tensors

TOPK = (1, 5)
# The paper does not give its schedule of fine-tuning (Section 4.2.2): these take the place of the defaults.
FINETUNING = {'epochs': 60, 'batch_size': 64, 'lr': 0.01, 'epoch_step': [40]}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Train a ResNet on ImageNet, alone or with a teacher, or fine-tune one.')
    group = parser.add_argument_group('model')
    group.add_argument('--model', type=options.network_name('resnet'), default='resnet', metavar='NAME',
                       help=f'the student: resnet, or {named.FORMS}')
    group.add_argument('--depth', type=options.positive_int, choices=list(resnet.BLOCKS), default=18,
                       help='number of layers of the student')
    group.add_argument('--width', type=options.width, default=1.0,
                       help='multiplies 64, 128, 256 and 512 channels')
    group.add_argument('--teacher_params', type=options.path, default='', metavar='FILE',
                       help='the teacher: weights (file or address), the folder of a run, or '
                            'torchvision:resnet34')
    group.add_argument('--finetune', type=options.path, default='', metavar='FILE',
                       help='start from these weights, with a new last layer and fixed BN; changes these '
                            'defaults: ' + ', '.join(f'--{k} {v}' for k, v in FINETUNING.items()))
    group.add_argument('--freeze', type=options.count, default=1, metavar='GROUPS',
                       help='with --finetune: number of groups, from the first, that are not trained')
    options.add_names(group)
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', choices=folders.DATASETS, default='imagenet',
                       help='data set; folder: any images in train/<class>/ and val/<class>/')
    group.add_argument('--imagenetpath', '--dataroot', type=options.path, default='', metavar='FOLDER',
                       help='folder of the data set (required): train/<class>/ and val/<class>/; CUB and '
                            'Scenes as published')
    group.add_argument('--skip_damaged', action='store_true',
                       help='replace a damaged image by another one and count it, instead of stopping')
    options.add_method(parser, at_groups=[2, 3])
    options.add_training(parser, batch_size=256, epochs=100, epoch_step=[30, 60, 90], lr_decay_ratio=0.1,
                         weight_decay=1e-4, save=' (default: logs/<dataset>_resnet_<depth>_<width>_<losses>)')
    options.add_device(parser, min(4, devices.n_cores()), 'number of processes per device that load images')
    opt = options.parse(parser, arguments)
    if opt.finetune:
        parser.set_defaults(**FINETUNING)
        opt = options.parse(parser, arguments)
    options.check_names(parser, opt, 'teacher_params', ('depth', 'width'))
    if opt.list_groups:
        return opt
    if not opt.imagenetpath:
        parser.error(f'--imagenetpath is missing: name the folder of {opt.dataset}')
    if not opt.evaluate and not opt.save:
        losses = ''.join(f'_{loss.name}' for loss in method.active(opt))
        network = f'{opt.model}_{opt.depth}_{opt.width:g}' if opt.model == 'resnet' else opt.model
        opt.save = f'logs/{opt.dataset}_{re.sub("[^-.0-9A-Z_a-z]+", "_", network)}{losses}'
    options.check(parser, opt, teacher='teacher_params', n_groups=4)
    if opt.dataset in ('cub', 'scenes') and not opt.finetune and not opt.evaluate:
        parser.error(f'--dataset {opt.dataset} is for fine-tuning: add --finetune torchvision:resnet18, '
                     'a run or a file of weights')
    if parser.is_given(opt, 'freeze') and not opt.finetune:
        parser.error('--freeze has no effect without --finetune')
    n = len(opt.groups) if opt.groups else 4
    if opt.freeze > n:
        parser.error(f'--freeze {opt.freeze}: a network has {n} groups')
    return opt


def main() -> None:
    pace = training.Pace()  # --max_hours count from here
    opt = parse(sys.argv[1:])
    if opt.list_groups:
        print(named.candidates(opt.model, 1000, images.SIZE))
        return
    with devices.start(opt) as device:
        if opt.evaluate:
            evaluate(opt, device)
            return

        folder = training.folder_of(opt)  # a new one, or what to resume from

        # Data: lists of image files, which --nthread processes decode and crop.
        train_set, test_set = folders.load(opt.dataset, opt.imagenetpath)
        classes, num_classes = test_set.classes, len(test_set.classes)
        exits.say_first(folders.note_of(train_set, test_set))
        train_loader = loader(opt, train_set, device, 'random' if opt.finetune else 'resized', opt.seed)
        test_loader = loader(opt, test_set, device)
        opt = fast.chosen(opt, device, opt.epochs * len(train_loader))
        exits.print_first(f'{opt.save}: {len(train_set.labels)} images of {num_classes} classes to train '
                            f'with, {len(test_set.labels)} to test')

        # Networks: functions, and flat dictionaries of tensors. Teachers are folded, those by name are not.
        torch.manual_seed(opt.seed)
        f_s, student = network(opt, num_classes)
        if opt.finetune and not folder.state:
            with devices.first_rank_first():
                student = pretrained(opt.finetune, f_s, student)
        f_t: Network | None = None
        teacher: Params = {}
        if opt.teacher_params:
            f_t, teacher = training.load_teacher(opt.teacher_params, opt, f_s, student, device, images.SIZE,
                                                 classes)
        facts = {'num_classes': num_classes, 'classes': classes, **networks.facts(f_s, f_t, teacher)}
        student |= adaptors(opt, f_s, student, f_t, teacher, images.SIZE)
        student = devices.to_device(student, device)
        fixed = networks.fixed(f_s, student, opt.freeze) if opt.finetune else set()
        layers.trainable(student, fixed | networks.statistics(f_s))
        f_s, student = devices.parallel(f_s, student)

        # The training step, h(sample) -> loss, output: what is special to attention transfer is in method.py.
        h = training_step(opt, f_s, student, f_t, teacher, fixed_bn=bool(opt.finetune))
        h_test = evaluation_step(f_s, student, opt.dtype, f_t, teacher)
        run = training.Run(opt, folder, student, h_test, train_loader, test_loader, facts, TOPK, pace)

        # The loop is torchnet's: for each sample zero_grad, h, backward, step.
        engine = Engine()
        engine.hooks['on_start'] = run.start
        engine.hooks['on_start_epoch'] = run.start_epoch  # meters, progress bar; drops with fresh momentum
        engine.hooks['on_sample'] = run.set_lr            # the learning rate, batch by batch
        engine.hooks['on_forward'] = run.measure          # loss and accuracy, kept on the device
        engine.hooks['on_end_epoch'] = run.end_epoch      # test, checkpoint, one JSON line, one printed line
        with run:                                         # what ends it early says how to resume
            engine.train(h, train_loader, opt.epochs, run.optimizer)


def evaluate(opt: argparse.Namespace, device: torch.device) -> None:
    """Print loss and errors of trained weights."""
    path = options.evaluated(opt)
    _, test_set = folders.load(opt.dataset, opt.imagenetpath, train=False)
    exits.say_first(folders.note_of(test_set))
    model = opt.model if named.is_name(opt.model) else ''
    f, params = training.load(path, opt.dataset, len(test_set.classes), device, test_set.classes, 0, model,
                              opt.groups, images.SIZE)
    opt = fast.chosen(opt, device, steps=0)
    test_loader = loader(opt, test_set, device)
    result = training.evaluate(evaluation_step(f, params, opt.dtype), test_loader, TOPK)
    damaged, = training.n_damaged(test_loader)
    exits.print_first(f'{path}: test loss {result["loss"]:.4f} top-1 error {100 - result["acc"]:.2f} '
                        f'top-5 error {100 - result["acc5"]:.2f}'
                        + (f' without {damaged} damaged images' if damaged else ''))


def network(opt: argparse.Namespace, num_classes: int) -> tuple[Network, Params]:
    """The student, with fresh weights."""
    if opt.model == 'resnet':
        return resnet.resnet(opt.depth, opt.width, num_classes)
    return named.build(opt.model, num_classes, images.SIZE, opt.groups)


def loader(opt: argparse.Namespace, split: folders.Split, device: torch.device, crop: str = 'center',
           seed: int | None = None) -> images.Loader:
    """The batches of this rank."""
    return images.Loader(split, opt.batch_size, device, crop, seed, opt.nthread, devices.rank(),
                         devices.ranks(), opt.skip_damaged)


def pretrained(path: str, f: Network, fresh: Params) -> Params:
    """Tensors of a trained network, with or without a head, and the head of a fresh one."""
    found = tensors.read(path)
    if isinstance(f, modules.Functional):
        return named.fitted(found, fresh, f'--finetune {path}', named.head(f, fresh))
    head = {name: t for name, t in fresh.items() if name.startswith('fc.')}
    if not head.keys() <= found.keys():
        found = {name: t for name, t in found.items() if name not in head} | head
    f, params = networks.network(found, path)
    exits.print_first(f'{path}: {networks.describe(params, f)}')
    if {name: t.shape for name, t in (params | head).items()} != {name: t.shape for name, t in fresh.items()}:
        raise InputError(f'--finetune {path} holds a {networks.describe(params, f)}: it must be a ResNet '
                         'with BN, of the --depth and --width given')
    return params | head


if __name__ == '__main__':
    exits.script(main)
