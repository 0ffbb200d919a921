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
    model = parser.add_argument_group('model')
    model.add_argument('--depth', type=options.positive_int, default=16, help='6n + 4: 10, 16, 22, 28, 34, 40, ...')
    model.add_argument('--width', type=options.positive, default=1.0)
    model.add_argument('--teacher_id', default='', metavar='RUN',
                       help="the teacher: a run's name under logs/, its folder, or a file of weights")
    images = parser.add_argument_group('data')
    images.add_argument('--dataset', choices=list(data.CLASSES), default='CIFAR10')
    images.add_argument('--dataroot', default='.', metavar='FOLDER', help='where CIFAR lies or is downloaded to')
    images.add_argument('--randomcrop_pad', type=options.count, default=4, metavar='PIXELS',
                        help='reflected border of the random crop')
    options.add_method(parser)
    options.add_training(parser, batch_size=128, epochs=200, epoch_step='[60,120,160]', lr_decay_ratio=0.2,
                         weight_decay=5e-4)
    options.add_device(parser)
    opt = parser.parse_args(arguments)
    options.check(parser, opt, teacher='teacher_id')
    return opt


def main() -> None:
    opt = parse(sys.argv[1:])
    device = training.device(opt)
    num_classes = data.CLASSES[opt.dataset]

    if opt.evaluate:
        f, params = resnet.load(opt.save if opt.resume in ('', 'auto') else opt.resume)
        _, test_set = data.load(opt.dataset, opt.dataroot, device)
        h_test = training.evaluation(f, training.to_device(params, device), opt.dtype)
        result = training.evaluate(h_test, data.Loader(test_set, data.TEST_BATCH))
        print(f'test loss {result["loss"]:.4f} accuracy {result["acc"]:.2f} error {100 - result["acc"]:.2f}')
        return

    torch.manual_seed(opt.seed)
    f_s, student = resnet.wide_resnet(opt.depth, opt.width, num_classes)
    f_t = teacher = None
    if opt.teacher_id:
        f_t, teacher = load_teacher(opt, num_classes)
        teacher = training.to_device(teacher, device)
    folder = training.Folder(opt)
    if folder.state:
        student = resume(folder, student)
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


def load_teacher(opt: argparse.Namespace, num_classes: int) -> tuple[utils.Network, utils.Params]:
    """The network of --teacher_id, which must know as many classes as the data set has."""
    path = next((p for p in (Path('logs', opt.teacher_id), Path(opt.teacher_id)) if p.exists()), None)
    if path is None:
        raise InputError(f'--teacher_id {opt.teacher_id}: there is neither logs/{opt.teacher_id} nor '
                         f'{opt.teacher_id}; train the teacher first, or give the path of its run or its weights')
    f, params = resnet.load(path)
    if len(params['fc.bias']) != num_classes:
        raise InputError(f'the teacher {path} knows {len(params["fc.bias"])} classes, {opt.dataset} has {num_classes}')
    return f, params


def resume(folder: training.Folder, student: utils.Params) -> utils.Params:
    """The student of the checkpoint, which must be the network that the options describe."""
    params = checkpoint.student(folder.state['params'])
    if {k: t.shape for k, t in params.items()} != {k: t.shape for k, t in student.items()}:
        raise InputError('the checkpoint to go on from holds another network than --depth and --width describe')
    return {name: params[name] for name in student}


if __name__ == '__main__':
    training.script(main)
