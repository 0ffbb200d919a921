"""CIFAR teachers and students, with every loss of the paper.

    python cifar.py --save logs/resnet_16_2_teacher --depth 16 --width 2
    python cifar.py --save logs/at_16_1_16_2 --teacher_id resnet_16_2_teacher --beta 1e+3
"""
import argparse
import sys
from pathlib import Path

import torch
from torchnet.engine import Engine

import layers
import nin
import resnet
import training
from inputs import cifar as data
from layers import Network, Params
from method import adaptors, evaluation_step, training_step
from training import devices, exits, fast, options
from utils import InputError
from weights import named, networks, tensors


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Train a network on CIFAR, alone or as the student of a teacher.')
    group = parser.add_argument_group('model')
    group.add_argument('--model', type=options.network_name('wrn', 'resnet', 'nin'), default='wrn',
                       metavar='NAME', help='the student: wrn (wide ResNet), resnet, nin '
                       f'(Network-in-Network), {named.FORMS}')
    group.add_argument('--depth', type=options.positive_int, default=16,
                       help='number of layers; wide ResNet: 6n + 4 (10, 16, 22, 28, 34, 40, ...); '
                            'ResNet: 6n + 2 (8, 20, 32, 56, 110, ...)')
    group.add_argument('--width', type=options.width, default=1.0,
                       help='wide ResNet and ResNet: multiplies 16, 32 and 64 channels (default: 1); '
                            'NIN: number of channels, 192 for the wide one (default: 96)')
    group.add_argument('--no_bn', action='store_true', help='NIN: use biases instead of BN')
    group.add_argument('--no_pool_relu', action='store_true', help='NIN: no ReLU before pooling')
    group.add_argument('--teacher_id', type=options.path, default='', metavar='RUN',
                       help='the teacher: the name of a run under logs/, the folder of a run, or weights '
                            '(file or address)')
    options.add_names(group)
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', choices=list(data.CLASSES), default='CIFAR10',
                       help='data set; shapes is built in and needs no download')
    group.add_argument('--dataroot', '--data_root', type=options.path, default='.', metavar='FOLDER',
                       help='folder that has CIFAR, or to which it is downloaded')
    group.add_argument('--normalization', choices=list(data.NORMALIZATIONS), default='cifar10',
                       help='mean and deviation of pixels: cifar10, as in the published code for both data '
                            'sets, or cifar100, as in RepDistiller and mdistiller')
    group.add_argument('--augment', choices=['crop_flip', 'flip', 'none'], default='crop_flip',
                       help='augmentation of training images: random crop and mirror, mirror only, or none')
    group.add_argument('--randomcrop_pad', type=options.count, default=4, metavar='PIXELS',
                       help='width of the border for the random crop, a reflection of the image')
    group.add_argument('--max_images', type=options.count, default=0, metavar='N',
                       help='use only the first N images of each split; 0: all')
    group.add_argument('--val_images', type=options.count, default=0, metavar='N',
                       help='hold out N training images, and test on them instead of the test set')
    options.add_method(parser)
    options.add_training(parser, batch_size=128, epochs=200, epoch_step=[60, 120, 160], lr_decay_ratio=0.2,
                         weight_decay=5e-4)
    options.add_device(parser, nthread=4, images='has no effect: the images are in memory')
    opt = options.parse(parser, arguments)
    if opt.model in ('resnet', 'nin'):
        depth, width = (nin.DEPTH, nin.THIN) if opt.model == 'nin' else (20, 1.0)
        parser.set_defaults(depth=depth, width=width)
        opt = options.parse(parser, arguments)
    check(parser, opt)
    return opt


def check(parser: options.Parser, opt: argparse.Namespace) -> None:
    """Exit with one sentence and status 2 if options cannot work together."""
    options.check_names(parser, opt, 'teacher_id', ('depth', 'width'))
    if opt.list_groups:
        return
    options.check(parser, opt, teacher='teacher_id', n_groups=3)
    if opt.randomcrop_pad > 31:
        parser.error(f'--randomcrop_pad {opt.randomcrop_pad}: an image of 32 x 32 has 31 pixels to reflect')
    if opt.augment != 'crop_flip' and parser.is_given(opt, 'randomcrop_pad'):
        parser.error(f'--randomcrop_pad has no effect with --augment {opt.augment}')
    if opt.model == 'nin' and opt.depth != nin.DEPTH:
        parser.error(f'--depth is for ResNets: a NIN has {nin.DEPTH} convolutions')
    if opt.model == 'nin' and opt.width % 1:
        parser.error(f'--width {opt.width:g}: a NIN needs a whole number of channels, 96 or 192 in the paper')
    if opt.model != 'nin' and (opt.no_bn or opt.no_pool_relu):
        parser.error(f'--{"no_bn" if opt.no_bn else "no_pool_relu"} is for --model nin')
    if opt.dataset == 'shapes' and parser.is_given(opt, 'dataroot'):
        parser.error('--dataroot has no effect with --dataset shapes, which is built in')
    if parser.is_given(opt, 'nthread') and not devices.is_rank():
        print('note: --nthread has no effect here: the images are in memory', file=sys.stderr)


def main() -> None:
    pace = training.Pace()  # --max_hours count from here
    opt = parse(sys.argv[1:])
    if opt.list_groups:
        print(named.candidates(opt.model, data.CLASSES[opt.dataset], data.SIZE))
        return
    with devices.start(opt) as device:
        if opt.evaluate:
            evaluate(opt, device)
            return

        folder = training.folder_of(opt)  # a new one, or what to resume from

        # Networks: functions, and flat dictionaries of tensors. Teachers are folded, those by name are not.
        num_classes = data.CLASSES[opt.dataset]
        torch.manual_seed(opt.seed)
        f_s, student = network(opt, num_classes)
        f_t: Network | None = None
        teacher: Params = {}
        if opt.teacher_id:
            f_t, teacher = training.load_teacher(find_teacher(opt.teacher_id), opt, f_s, student, device,
                                                 data.SIZE)
        facts = {'num_classes': num_classes, **networks.facts(f_s, f_t, teacher)}
        student |= adaptors(opt, f_s, student, f_t, teacher, data.SIZE)
        student = devices.to_device(student, device)
        layers.trainable(student, networks.statistics(f_s))
        f_s, student = devices.parallel(f_s, student)

        # Data: all images on the device, augmented batch by batch; each rank gets its part of a batch.
        train_set, test_set = load(opt, device)
        train_loader = loader(opt, train_set, opt.batch_size, opt.seed, opt.augment, opt.randomcrop_pad)
        test_loader = loader(opt, test_set, data.TEST_BATCH[device.type])
        opt = fast.chosen(opt, device, opt.epochs * len(train_loader))

        # The training step, h(sample) -> loss, output: what is special to attention transfer is in method.py.
        h = training_step(opt, f_s, student, f_t, teacher)
        h_test = evaluation_step(f_s, student, opt.dtype, f_t, teacher)
        run = training.Run(opt, folder, student, h_test, train_loader, test_loader, facts, pace=pace)

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
    """Print loss and error of trained weights."""
    path = options.evaluated(opt)
    model = opt.model if named.is_name(opt.model) else ''
    f, params = training.load(path, opt.dataset, data.CLASSES[opt.dataset], device, None, opt.val_images,
                              model, opt.groups, data.SIZE)
    _, test_set = load(opt, device)
    opt = fast.chosen(opt, device, steps=0)
    h_test = evaluation_step(f, params, opt.dtype)
    result = training.evaluate(h_test, loader(opt, test_set, data.TEST_BATCH[device.type]))
    exits.print_first(f'{path}: test loss {result["loss"]:.4f} accuracy {result["acc"]:.2f} '
                        f'error {100 - result["acc"]:.2f}')


def network(opt: argparse.Namespace, num_classes: int) -> tuple[Network, Params]:
    """The student, with fresh weights."""
    if named.is_name(opt.model):
        return named.build(opt.model, num_classes, data.SIZE, opt.groups)
    if opt.model == 'nin':
        return nin.nin(int(opt.width), num_classes, not opt.no_bn, not opt.no_pool_relu)
    build = resnet.wide_resnet if opt.model == 'wrn' else resnet.cifar_resnet
    return build(opt.depth, opt.width, num_classes)


def load(opt: argparse.Namespace, device: torch.device) -> tuple[data.Images, data.Images]:
    """Training and test images; only one rank downloads them."""
    with devices.first_rank_first():
        return data.load(opt.dataset, opt.dataroot, device, opt.max_images, opt.val_images)


def loader(opt: argparse.Namespace, split: data.Images, batch_size: int, seed: int | None = None,
           augment: str = 'none', pad: int = 0) -> data.Loader:
    """The batches of this rank."""
    return data.Loader(split, batch_size, seed, pad if augment == 'crop_flip' else 0, devices.rank(),
                       devices.ranks(), augment != 'none', opt.normalization)


def find_teacher(name: str) -> Path | str:
    """The run, file or address that --teacher_id names, under logs/ first."""
    if tensors.is_address(name):
        return name
    for path in (Path('logs', name), Path(name)):
        if path.exists():
            return path
    raise InputError(f'--teacher_id {name}: there is neither logs/{name} nor {name}; train the teacher '
                     'first, or give the path of its run or of its weights')


if __name__ == '__main__':
    exits.script(main)
