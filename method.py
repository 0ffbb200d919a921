"""The method: one table of losses, the steps made of them, and what changes with the epoch.

    h = training_step(opt, f_s, student, f_t, teacher)
    loss, output = h(sample)                              # torchnet's Engine calls it for every batch

A new loss is a function in `utils`, a row of LOSSES and a test.
"""
import argparse
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import layers
import utils
from layers import Network, Params, Sample


class Step(NamedTuple):
    """What losses are made of; the teacher, gradients and mirrored images only where a loss needs them."""
    labels: Tensor  # (B,)
    y_s: Tensor  # (B, K), logits of the student
    g_s: tuple[Tensor, ...]  # (B, C, H, W) each, activations of its groups
    student: Params
    y_t: Tensor | None = None  # the same of the teacher
    g_t: tuple[Tensor, ...] = ()
    j_s: Tensor | None = None  # (B, 3, H, W), d CE / d x
    j_t: Tensor | None = None
    y_m: Tensor | None = None  # of the student for mirrored images
    j_m: Tensor | None = None


class Output(NamedTuple):
    """What a step gives besides the loss to minimise."""
    loss: Tensor  # mean over the images of this rank
    logits: Tensor  # (B, K)
    losses: dict[str, list[Tensor]]  # by name, one per group, before their weights
    likeness: dict[str, list[Tensor]] = {}  # of student and teacher, means over images


# --- what changes with the epoch ---------------------------------------------------------------------------


def learning_rate(opt: argparse.Namespace, epoch: int, done: float = 0.0) -> float:
    """Learning rate in an epoch, from 1, of which a fraction `done` is over.

    'step' multiplies --lr by lr_decay_ratio at the start of each of epoch_step; 'linear' and 'cosine' let it
    fall from the end of the warm-up to 0 at the end of the run.
    """
    time = epoch - 1 + done
    if time < opt.warmup:
        return opt.lr * time / opt.warmup
    left = (opt.epochs - time) / (opt.epochs - opt.warmup)
    if opt.lr_schedule == 'linear':
        return opt.lr * left
    if opt.lr_schedule == 'cosine':
        return opt.lr * (1 - math.cos(math.pi * left)) / 2
    return opt.lr * steps(opt, epoch)


def steps(opt: argparse.Namespace, epoch: int) -> float:
    """The factor lr_decay_ratio for each of epoch_step that has begun."""
    return opt.lr_decay_ratio ** sum(step <= epoch for step in opt.epoch_step)


def beta_decay(opt: argparse.Namespace, epoch: int) -> float:
    """Factor on beta and hint_beta in an epoch, from 1; linear and cosine end at 0, after the last one."""
    done = (epoch - 1) / opt.epochs
    if opt.beta_decay == 'linear':
        return 1 - done
    if opt.beta_decay == 'cosine':
        return (1 + math.cos(math.pi * done)) / 2
    return steps(opt, epoch) if opt.beta_decay == 'step' else 1.0


def beta_factor(opt: argparse.Namespace, epoch: int) -> float:
    """Factor on beta in an epoch, from 1: 0 before --at_from_epoch."""
    return beta_decay(opt, epoch) if epoch >= opt.at_from_epoch else 0.0


def beta(opt: argparse.Namespace, epoch: int) -> float:
    """Weight of attention transfer in an epoch, from 1."""
    return opt.beta * beta_factor(opt, epoch)


def dkd_rise(opt: argparse.Namespace, epoch: int) -> float:
    """Factor on the weight of DKD in an epoch, from 1: it rises linearly to 1 in epoch --dkd_warmup."""
    return min(epoch / opt.dkd_warmup, 1.0) if opt.dkd_warmup else 1.0


# --- the table of losses -----------------------------------------------------------------------------------


def compared(s: Step, opt: argparse.Namespace) -> list[tuple[int, Tensor, Tensor]]:
    """(number, student's activations, teacher's) of the groups that --at_groups names, or of all."""
    groups = range(len(s.g_s)) if opt.at_groups is None else opt.at_groups
    return [(i, s.g_s[i], s.g_t[i]) for i in groups]


def of_groups(loss: Callable[[Tensor, Tensor], Tensor]) -> 'Losses':
    """The losses of a row that compares activations (B, C, H, W) group by group."""
    return lambda s, opt: [loss(x, y) for _, x, y in compared(s, opt)]


def of_embeddings(loss: Callable[[Tensor, Tensor], Tensor]) -> 'Losses':
    """The loss of a row that compares embeddings (B, C): the last group, averaged over positions."""
    return lambda s, opt: [loss(*(utils.full(g[-1]).mean((2, 3)) for g in (s.g_s, s.g_t)))]


def vid(s: Step, opt: argparse.Namespace) -> list[Tensor]:
    def trained(i: int, name: str) -> Tensor:
        return s.student[f'{ADAPTOR}vid{i}.{name}']

    return [utils.vid_loss(x, y, [trained(i, f'conv{k}') for k in range(3)], trained(i, 'alpha'))
            for i, x, y in compared(s, opt)]


def softened(s: Step, opt: argparse.Namespace) -> list[Tensor]:
    change = utils.standardize_logits if opt.kd_logits == 'standardized' else utils.full
    return [utils.softened_divergence(change(s.y_s), change(s.y_t), opt.temperature)]


def vid_adaptor(c_s: int, c_t: int) -> Params:
    """Three convolutions, as in the authors' code, and a variance that begins at 5."""
    convs = {f'conv{k}': layers.conv_params(n, c_t, 1) for k, n in enumerate((c_s, c_t, c_t))}
    alpha = torch.full((c_t,), 5.0).expm1().log()
    return {f'{ADAPTOR}vid{{}}.{name}': t for name, t in (convs | {'alpha': alpha}).items()}


Losses = Callable[[Step, argparse.Namespace], list[Tensor]]


class Loss(NamedTuple):
    """A row: weight * factor(opt, epoch) * sum(losses(step, opt)) is added to the classification loss."""
    name: str  # NAME_losses in the log
    option: str  # the weight; 0 switches the loss off
    title: str  # in reports
    losses: Losses
    help: str
    settings: tuple[str, ...] = ()  # options that have an effect only with such losses
    teacher: bool = False  # needs a teacher
    groups: bool = False  # compares group by group: both networks have the same number of groups
    gradients: bool = False  # needs gradients of the images: of the student, and of the teacher if it has one
    mirrored: bool = False  # needs the student's answers to mirrored images too
    batch: bool = False  # compares the images of a batch: not for several ranks, nor for one image
    # Fresh tensors that are trained with the student, for the channels of a group of student and teacher; the
    # number of the group replaces {} in their names.
    adaptor: Callable[[int, int], Params] | None = None
    factor: Callable[[argparse.Namespace, int], float] = lambda opt, epoch: 1.0
    most: float = math.inf  # largest weight


LOSSES = (
    Loss('at', 'beta', 'AT',
         lambda s, opt: [utils.at_loss(x, y, opt.map_p, opt.map, opt.at_norm)
                         for _, x, y in compared(s, opt)],
         'weight of attention transfer (paper: 1e+3)',
         ('beta_decay', 'map', 'map_p', 'at_norm', 'at_groups', 'at_from_epoch'),
         teacher=True, groups=True, factor=beta_factor),
    Loss('hint', 'hint_beta', 'F-ActT',
         lambda s, opt: [utils.full_activation_loss(x, y, s.student.get(f'{ADAPTOR}{i}'))
                         for i, x, y in compared(s, opt)],
         'weight of full-activation transfer (F-ActT)', ('beta_decay', 'at_groups'),
         teacher=True, groups=True, factor=beta_decay,
         adaptor=lambda c_s, c_t: {ADAPTOR + '{}': layers.conv_params(c_s, c_t, 1)} if c_s != c_t else {}),
    Loss('grad', 'grad_beta', 'gradient AT', lambda s, opt: [utils.gradient_loss(s.j_s, s.j_t)],
         'weight of gradient-based attention transfer (Eq. 4)', teacher=True, gradients=True),
    Loss('sym', 'sym_beta', 'symmetry',
         lambda s, opt: [utils.symmetry_loss(s.j_s, s.j_m), utils.output_symmetry_loss(s.y_s, s.y_m)],
         'weight of the symmetry norm (Eq. 6), which needs no teacher', gradients=True, mirrored=True),
    Loss('l2', 'l2_beta', 'min-l2', lambda s, opt: [utils.min_l2_loss(s.j_s)],
         'weight of the norm of the gradient (min-l2), which needs no teacher', gradients=True),
    Loss('kd', 'alpha', 'KD', softened,
         'weight of distillation (paper: 0.9); the cross-entropy has the weight 1 - alpha',
         ('temperature', 'kd_logits'), teacher=True, most=1.0),
    Loss('fitnet', 'fitnet_weight', 'FitNets',
         lambda s, opt: [utils.fitnet_loss(x, y, s.student[f'{ADAPTOR}fitnet{i}'])
                         for i, x, y in compared(s, opt)],
         'weight of the hints of FitNets (about 1)', ('at_groups',),
         teacher=True, groups=True,
         adaptor=lambda c_s, c_t: {ADAPTOR + 'fitnet{}': layers.conv_params(c_s, c_t, 1)}),
    Loss('vid', 'vid_weight', 'VID', vid, 'weight of variational information distillation (usual: 1)',
         ('at_groups',), teacher=True, groups=True, adaptor=vid_adaptor),
    Loss('nst', 'nst_weight', 'NST', of_groups(utils.nst_loss),
         'weight of neuron selectivity transfer (usual: 50)', ('at_groups',), teacher=True, groups=True),
    Loss('sp', 'sp_weight', 'SP', of_groups(utils.sp_loss), 'weight of similarity preserving (usual: 3e+3)',
         ('at_groups',), teacher=True, groups=True, batch=True),
    Loss('rkd_distance', 'rkd_distance_weight', 'RKD-D', of_embeddings(utils.rkd_distance_loss),
         'weight of relational KD by distances (usual: 25)', teacher=True, batch=True),
    Loss('rkd_angle', 'rkd_angle_weight', 'RKD-A', of_embeddings(utils.rkd_angle_loss),
         'weight of relational KD by angles (usual: 50)', teacher=True, batch=True),
    Loss('pkt', 'pkt_weight', 'PKT', of_embeddings(utils.pkt_loss),
         'weight of probabilistic knowledge transfer (usual: 3e+4)', teacher=True, batch=True),
    Loss('cc', 'cc_weight', 'CC', of_embeddings(utils.cc_loss),
         'weight of correlation congruence (no usual one)', teacher=True, batch=True),
    Loss('dkd', 'dkd_weight', 'DKD',
         lambda s, opt: [utils.dkd_loss(s.y_s, s.y_t, s.labels, opt.temperature, opt.dkd_alpha,
                                        opt.dkd_beta)],
         'weight of decoupled KD (usual: 1)', ('temperature', 'dkd_alpha', 'dkd_beta', 'dkd_warmup'),
         teacher=True, factor=dkd_rise),
    Loss('dist', 'dist_weight', 'DIST',
         lambda s, opt: [utils.dist_loss(s.y_s, s.y_t, opt.temperature, opt.dist_beta, opt.dist_gamma)],
         'weight of DIST (usual: 1)', ('temperature', 'dist_beta', 'dist_gamma'), teacher=True, batch=True),
)
ADAPTOR = 'adaptor:'  # how the names of all adaptors begin; no tensor of a module has such a name


def active(opt: argparse.Namespace) -> list[Loss]:
    """The losses that the options switch on."""
    return [loss for loss in LOSSES if getattr(opt, loss.option)]


def adaptors(opt: argparse.Namespace, f_s: Network, student: Params, f_t: Network | None,
             teacher: Params, size: int = 64) -> Params:
    """Fresh adaptors of the losses that are on, for the groups that are compared, of size x size images.

    They are trained with the student and kept in its checkpoint; the student does not need them afterwards.
    """
    rows = [row for row in active(opt) if row.adaptor]
    if not rows:
        return {}

    @torch.no_grad()
    def channels(f: Network, params: Params) -> list[int]:
        device = next(iter(params.values())).device
        _, groups = f(torch.zeros(1, 3, size, size, device=device), params, False)
        return [g.shape[1] for g in groups]

    pairs = list(enumerate(zip(channels(f_s, student), channels(f_t, teacher), strict=True)))
    return {name.format(i): t for row in rows for i, (c_s, c_t) in pairs
            if opt.at_groups is None or i in opt.at_groups for name, t in row.adaptor(c_s, c_t).items()}


# --- the steps ---------------------------------------------------------------------------------------------


def training_step(opt: argparse.Namespace, f_s: Network, student: Params, f_t: Network | None = None,
                  teacher: Params | None = None, fixed_bn: bool = False) -> layers.Function:
    """h(sample) -> loss to minimise, Output. Which losses are on is decided here, once.

    `student` holds the adaptors too. The teacher runs only in epochs in which something is learned from it.
    fixed_bn: BN of the student keeps its running statistics. The loss has the rank's share as a factor.
    """
    rows = active(opt)
    teacher = teacher or {}
    if opt.dtype != 'float':  # autocast would convert weights in every step, and take float32 for affine maps
        teacher = layers.converted(teacher, layers.DTYPES[opt.dtype])

    def losses(x: Tensor, labels: Tensor, on: tuple[bool, ...]) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Cross-entropy, logits, and the losses of the rows that are on."""
        present = [row for row, is_on in zip(rows, on, strict=True) if is_on]
        step = ask_student(opt, f_s, student, x, labels, not fixed_bn)
        if any(row.teacher for row in present):
            y_t, g_t, j_t = ask_teacher(opt, f_t, teacher, x, labels)
            step = step._replace(y_t=y_t, g_t=g_t, j_t=j_t)
        cross_entropy = F.cross_entropy(utils.full(step.y_s), labels)
        return cross_entropy, step.y_s, [row.losses(step, opt) for row in present]

    if opt.compile:
        losses = layers.compiled(losses, [*student.values(), *teacher.values()])

    def h(sample: Sample) -> tuple[Tensor, Output]:
        weights = {row.name: getattr(opt, row.option) * row.factor(opt, sample.epoch) for row in rows}
        on = tuple(bool(weight) for weight in weights.values())
        loss, logits, found = losses(sample.x, sample.labels, on)
        by_name = dict(zip([name for name, weight in weights.items() if weight], found, strict=True))
        loss = (1 - opt.alpha) * loss
        for name, of_groups in by_name.items():
            loss = loss + weights[name] * sum(of_groups)
        return loss * sample.share, Output(loss, logits, by_name)

    return h


def ask_student(opt: argparse.Namespace, f: Network, student: Params, x: Tensor, labels: Tensor,
                mode: bool) -> Step:
    """Logits, groups and, where a loss needs them, gradients of images x (B, 3, H, W) and of mirrored ones.

    The pass of mirrored images takes the statistics of its own batch where the first pass does, and does not
    change the running ones.
    """
    gradients = any(row.gradients for row in active(opt))
    x = x.detach().requires_grad_(gradients)
    with layers.autocast(x.device, opt.dtype), twice_differentiable(gradients):
        y_s, g_s = f(x, student, mode)
    step = Step(labels, y_s, g_s, student)
    if gradients:
        step = step._replace(j_s=utils.input_gradient(x, y_s, labels))
    if any(row.mirrored for row in active(opt)):
        mirrored = x.detach().flip(3).requires_grad_()
        with (layers.autocast(x.device, opt.dtype), twice_differentiable(gradients),
              layers.statistics_aside(student)):
            y_m, _ = f(mirrored, student, mode)
        step = step._replace(y_m=y_m, j_m=utils.input_gradient(mirrored, y_m, labels))
    return step


def twice_differentiable(needed: bool) -> AbstractContextManager:
    """Inside, attention of transformers is computed by the one kernel that has gradients of gradients."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()


def ask_teacher(opt: argparse.Namespace, f: Network, teacher: Params, x: Tensor,
                labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Logits, groups and, for gradient-based transfer, the gradient of the images x (B, 3, H, W)."""
    gradients = any(row.gradients and row.teacher for row in active(opt))
    x = x.detach().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients), layers.autocast(x.device, opt.dtype):
        y_t, g_t = f(x, teacher, False)
    j_t = utils.input_gradient(x, y_t, labels, create_graph=False) if gradients else None
    return y_t.detach(), tuple(g.detach() for g in g_t), j_t


def evaluation_step(f: Network, params: Params, dtype: str, f_t: Network | None = None,
                    teacher: Params | None = None) -> layers.Function:
    """h(sample) -> cross-entropy, Output in evaluation mode; with a teacher, how alike the two are.

    'agreement' is the percentage of images that both give the same class, 'map_cosines' the cosine of their
    attention maps F_sum^2, a number for each group. The teacher's answers are kept by the batch's number, so
    its images must be the same in each epoch. They take memory of the CPU: 54 MB for CIFAR and a wide ResNet,
    830 MB for ImageNet and a ResNet.
    """
    answers: dict[int, list[Tensor]] = {}

    def ask(f: Network, params: Params, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with layers.autocast(x.device, dtype):
            logits, groups = f(x, params, False)
        return logits.float(), [utils.attention_map(g) for g in groups] if f_t else []

    @torch.no_grad()
    def h(sample: Sample) -> tuple[Tensor, Output]:
        logits, maps = ask(f, params, sample.x)
        likeness = {}
        if f_t:
            if sample.batch not in answers:
                y_t, maps_t = ask(f_t, teacher, sample.x)
                answers[sample.batch] = [t.cpu() for t in (y_t.argmax(1), *maps_t)]
            classes, *maps_t = (t.to(sample.x.device) for t in answers[sample.batch])
            likeness['agreement'] = [100 * (logits.argmax(1) == classes).float().mean()]
            if len(maps) == len(maps_t):
                likeness['map_cosines'] = [utils.map_cosine(a, b) for a, b in zip(maps, maps_t, strict=True)]
        loss = F.cross_entropy(logits, sample.labels)
        return loss, Output(loss, logits, {}, likeness)

    return h
