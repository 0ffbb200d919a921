"""CIFAR teachers and students, with every loss of the paper.

    python cifar.py --save logs/resnet_16_2_teacher --depth 16 --width 2
    python cifar.py --save logs/at_16_1_16_2 --teacher_id resnet_16_2_teacher --beta 1e+3
"""
import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
import data
import options
import resnet
import training
import utils
from training import Output, Step, Term
from utils import InputError


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Train a wide ResNet on CIFAR, alone or as the student of a teacher.')
    group = parser.add_argument_group('model')
    group.add_argument('--depth', type=options.positive_int, default=16,
                       help='6n + 4: 10, 16, 22, 28, 34, 40, ...')
    group.add_argument('--width', type=options.positive, default=1.0, help='times 16, 32, 64 channels')
    group.add_argument('--teacher_id', default='', metavar='RUN',
                       help="the teacher: a run's name under logs/, its folder, or a file of weights")
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', choices=list(data.CLASSES), default='CIFAR10')
    group.add_argument('--dataroot', default='.', metavar='FOLDER',
                       help='where CIFAR lies or is downloaded to')
    group.add_argument('--randomcrop_pad', type=options.count, default=4, metavar='PIXELS',
                       help='reflected border of the random crop')
    options.add_method(parser)
    options.add_training(parser, batch_size=128, epochs=200, epoch_step='[60,120,160]', lr_decay_ratio=0.2,
                         weight_decay=5e-4)
    options.add_device(parser)
    opt = parser.parse_args(arguments)
    options.check(parser, opt, teacher='teacher_id', n_groups=3)
    if opt.randomcrop_pad > 31:
        parser.error(f'--randomcrop_pad {opt.randomcrop_pad}: an image of 32 x 32 has 31 pixels to reflect')
    if opt.width > 1000:
        parser.error(f'--width {opt.width:g} is no width of a network; the paper has 1 and 2')
    if opt.dataset == 'shapes' and opt.dataroot != parser.get_default('dataroot'):
        parser.error('--dataroot has no effect with --dataset shapes, which is built in')
    if opt.nthread != parser.get_default('nthread'):
        print('note: --nthread has no effect here: the images are held in memory', file=sys.stderr)
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    device = training.device(opt)
    num_classes = data.CLASSES[opt.dataset]

    if opt.evaluate:
        path = Path(opt.save if opt.resume in ('', 'auto') else opt.resume)
        f, params = load(path, opt.dataset)
        _, test_set = data.load(opt.dataset, opt.dataroot, device)
        h_test = training.evaluation(f, training.to_device(params, device), opt.dtype)
        result = training.evaluate(h_test, data.Loader(test_set, data.TEST_BATCH))
        loss, acc = result['loss'], result['acc']
        print(f'{path}: test loss {loss:.4f} accuracy {acc:.2f} error {100 - acc:.2f}')
        return

    torch.manual_seed(opt.seed)
    f_s, student = resnet.wide_resnet(opt.depth, opt.width, num_classes)
    f_t, teacher = load(find_teacher(opt.teacher_id), opt.dataset) if opt.teacher_id else (None, {})
    folder = checkpoint.Folder(opt)
    if folder.state:
        _, loaded = resnet.load(folder.source)
        if {name: t.shape for name, t in loaded.items()} != {name: t.shape for name, t in student.items()}:
            raise InputError(f'{folder.source} holds another network than --depth and --width describe')
        student = loaded
    teacher = training.to_device(teacher, device)
    student = training.to_device(student, device)
    utils.trainable(student)

    train_set, test_set = data.load(opt.dataset, opt.dataroot, device)
    train_loader = data.Loader(train_set, opt.batch_size, opt.seed, opt.randomcrop_pad)
    test_loader = data.Loader(test_set, data.TEST_BATCH)

    h = method(opt, f_s, student, f_t, teacher)
    h_test = training.evaluation(f_s, student, opt.dtype)
    training.train(opt, folder, h, h_test, student, train_loader, test_loader, num_classes)


def method(opt: argparse.Namespace, f_s: utils.Network, student: utils.Params,
           f_t: utils.Network | None = None, teacher: utils.Params | None = None) -> training.Method:
    """The training step: h(sample) -> loss to minimise, Output. Which losses are on is decided here, once."""
    terms = []
    if opt.beta:
        def attention(s: Step) -> list[Tensor]:
            groups = range(len(s.g_s)) if opt.at_groups is None else opt.at_groups
            return [utils.at_loss(s.g_s[i], s.g_t[i], opt.map_p, opt.map) for i in groups]
        terms.append(Term('at', lambda epoch: options.beta_at(opt, epoch), attention))

    def classification(s: Step) -> Tensor:
        if opt.alpha:
            return utils.distillation(s.y_s, s.y_t, s.labels, opt.temperature, opt.alpha)
        return F.cross_entropy(utils.full(s.y_s), s.labels)

    def h(sample: data.Sample) -> tuple[Tensor, Output]:
        x, labels, epoch = sample
        y_t, g_t = None, ()
        with training.autocast(x.device, opt.dtype):
            if f_t is not None:
                with torch.no_grad():
                    y_t, g_t = f_t(x, teacher, False)
            y_s, g_s = f_s(x, student, True)
        step = Step(y_s, g_s, y_t, g_t, labels)
        losses = {term.name: term.losses(step) for term in terms}
        loss = classification(step) + sum(term.weight(epoch) * sum(losses[term.name]) for term in terms)
        return loss, Output(y_s, losses)

    return h


def find_teacher(name: str) -> Path:
    """The run or file that --teacher_id names, under logs/ first."""
    for path in (Path('logs', name), Path(name)):
        if path.exists():
            return path
    raise InputError(f'--teacher_id {name}: there is neither logs/{name} nor {name}; train the teacher '
                     'first, or give the path of its run or of its weights')


def load(path: Path, dataset: str) -> tuple[utils.Network, utils.Params]:
    """A trained network, which must know the classes of the data set."""
    f, params = resnet.load(path)
    trained_on = checkpoint.dataset_of(path)
    if trained_on not in (None, dataset):
        raise InputError(f'{path} was trained on {trained_on}, not on {dataset}: '
                         'give the same --dataset to both')
    n = len(params['fc.bias'])
    if n != data.CLASSES[dataset]:
        raise InputError(f'{path} knows {n} classes, {dataset} has {data.CLASSES[dataset]}')
    return f, params


if __name__ == '__main__':
    training.script(main)
