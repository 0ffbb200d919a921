"""The training step: which losses, between which tensors, with which weights.

    h = method.method(opt, f_s, student, f_t, teacher)
    loss, output = h(sample)

A new loss is a function in `utils`, an option in `options` and a term here.
"""
import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import options
import utils
from data import Sample
from devices import DTYPES, autocast
from utils import Network, Params


class Output(NamedTuple):
    """What a step gives besides its loss."""
    logits: Tensor  # (B, K)
    terms: dict[str, list[Tensor]]  # losses by name, one per group, before their weights


class Step(NamedTuple):
    """What losses are made of; of the teacher, of gradients and of mirrored images only where a loss asks."""
    labels: Tensor  # (B,)
    y_s: Tensor  # (B, K), logits
    g_s: tuple[Tensor, ...]  # (B, C, H, W) each, the groups' activations
    y_t: Tensor | None = None
    g_t: tuple[Tensor, ...] = ()
    j_s: Tensor | None = None  # (B, 3, H, W), d CE / d x
    j_t: Tensor | None = None
    y_m: Tensor | None = None  # of the student for mirrored images
    j_m: Tensor | None = None


class Term(NamedTuple):
    """A loss beside the classification loss: weight(epoch) * sum(losses(step)), one loss per group."""
    name: str
    weight: Callable[[int], float]
    losses: Callable[[Step], list[Tensor]]
    teacher: bool = True  # whether it compares with one


Method = Callable[[Sample], tuple[Tensor, Output]]
ADAPTOR = 'adaptor'  # their names, followed by the number of the group


def method(opt: argparse.Namespace, f_s: Network, student: Params, f_t: Network | None = None,
           teacher: Params | None = None, fixed_bn: bool = False) -> Method:
    """The training step: h(sample) -> loss to minimise, Output. Which losses are on is decided here, once.

    `student` has the adaptors of full-activation transfer as well. The teacher is asked only in epochs in
    which something is learned from it. fixed_bn: the student's BN keeps its running statistics, for
    fine-tuning. A second pass, of mirrored images, takes the statistics of its own batch where the first
    does, and leaves no trace in the running ones.
    """
    terms = terms_of(opt, student)
    # Autocast would convert the teacher's weights in every step, and compute its affine maps in float32.
    teacher = {name: t.to(DTYPES[opt.dtype]) for name, t in (teacher or {}).items()}
    gradients = bool(opt.grad_beta or opt.sym_beta or opt.l2_beta)

    def student_step(x: Tensor, labels: Tensor) -> Step:
        if not gradients:
            with autocast(x.device, opt.dtype):
                return Step(labels, *f_s(x, student, not fixed_bn))
        j_m = y_m = None
        x = x.detach().requires_grad_()
        with autocast(x.device, opt.dtype):
            y_s, g_s = f_s(x, student, not fixed_bn)
        j_s = utils.input_gradient(x, y_s, labels)
        if opt.sym_beta:
            mirrored = x.detach().flip(3).requires_grad_()
            with autocast(x.device, opt.dtype), utils.statistics_aside(student):
                y_m, _ = f_s(mirrored, student, not fixed_bn)
            j_m = utils.input_gradient(mirrored, y_m, labels)
        return Step(labels, y_s, g_s, j_s=j_s, y_m=y_m, j_m=j_m)

    def ask_teacher(x: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Logits, groups and, for gradient-based transfer, J."""
        x = x.detach().requires_grad_(bool(opt.grad_beta))
        with torch.set_grad_enabled(bool(opt.grad_beta)), autocast(x.device, opt.dtype):
            y_t, g_t = f_t(x, teacher, False)
        j_t = utils.input_gradient(x, y_t, labels, create_graph=False) if opt.grad_beta else None
        return y_t.detach(), tuple(g.detach() for g in g_t), j_t

    def classification(s: Step) -> Tensor:
        if opt.alpha:
            return utils.distillation(s.y_s, s.y_t, s.labels, opt.temperature, opt.alpha)
        return F.cross_entropy(utils.full(s.y_s), s.labels)

    def losses(x: Tensor, labels: Tensor, on: list[bool]) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Classification loss, logits, and the losses of the terms that are on."""
        present = [term for term, is_on in zip(terms, on, strict=True) if is_on]
        y_t = j_t = None
        g_t: tuple[Tensor, ...] = ()
        if opt.alpha or any(term.teacher for term in present):
            y_t, g_t, j_t = ask_teacher(x, labels)
        step = student_step(x, labels)._replace(y_t=y_t, g_t=g_t, j_t=j_t)
        return classification(step), step.y_s, [term.losses(step) for term in present]

    if opt.compile:
        losses = compiled(losses, [*student.values(), *teacher.values()])

    def h(sample: Sample) -> tuple[Tensor, Output]:
        weights = {term.name: term.weight(sample.epoch) for term in terms}
        loss, logits, found = losses(sample.x, sample.labels, [bool(weight) for weight in weights.values()])
        by_name = dict(zip([name for name, weight in weights.items() if weight], found, strict=True))
        loss = loss + sum(weights[name] * sum(of_groups) for name, of_groups in by_name.items())
        return loss, Output(logits, by_name)

    return h


def compiled(losses: Callable, tensors: list[Tensor]) -> Callable:
    """The function in one piece for each shape of its input; on CUDA a graph, launched as a whole.

    A graph reads and writes tensors where they lie. To the compiler those of a network are inputs, which it
    would copy in each step, and refuse where BN writes to them: they are said to stay where they are.
    """
    cuda = any(t.is_cuda for t in tensors)
    if cuda:
        for t in tensors:
            torch._dynamo.mark_static_address(t)
    return torch.compile(losses, dynamic=False, mode='reduce-overhead' if cuda else None)


def terms_of(opt: argparse.Namespace, student: Params) -> list[Term]:
    """The losses that the options switch on, beside classification and distillation."""
    def groups(s: Step) -> range | list[int]:
        return range(len(s.g_s)) if opt.at_groups is None else opt.at_groups

    def attention(s: Step) -> list[Tensor]:
        return [utils.at_loss(s.g_s[i], s.g_t[i], opt.map_p, opt.map) for i in groups(s)]

    def full_activation(s: Step) -> list[Tensor]:
        return [utils.full_activation_loss(s.g_s[i], s.g_t[i], student.get(ADAPTOR + str(i)))
                for i in groups(s)]

    terms = [
        Term('at', lambda epoch: options.beta_at(opt, epoch), attention),
        Term('hint', lambda epoch: opt.hint_beta * options.decay_at(opt, epoch), full_activation),
        Term('grad', lambda epoch: opt.grad_beta, lambda s: [utils.gradient_loss(s.j_s, s.j_t)]),
        Term('sym', lambda epoch: opt.sym_beta, lambda s: [
            utils.symmetry_loss(s.j_s, s.j_m), utils.output_symmetry_loss(s.y_s, s.y_m)], teacher=False),
        Term('l2', lambda epoch: opt.l2_beta, lambda s: [utils.min_l2_loss(s.j_s)], teacher=False)]
    return [term for term in terms if getattr(opt, options.LOSSES[term.name])]


def adaptors(opt: argparse.Namespace, f_s: Network, student: Params, f_t: Network | None,
             teacher: Params) -> Params:
    """Fresh 1x1 convolutions of full-activation transfer, for the groups whose numbers of channels differ.

    They are trained with the student and kept in its checkpoint, beside it: the student does without them.
    """
    if not opt.hint_beta:
        return {}

    @torch.no_grad()
    def channels(f: Network, params: Params) -> list[int]:
        _, groups = f(torch.zeros(1, 3, 64, 64, device=params['fc.bias'].device), params, False)
        return [g.shape[1] for g in groups]

    pairs = enumerate(zip(channels(f_s, student), channels(f_t, teacher), strict=True))
    return {f'{ADAPTOR}{i}': utils.conv_params(c_s, c_t, 1) for i, (c_s, c_t) in pairs
            if c_s != c_t and (opt.at_groups is None or i in opt.at_groups)}


def evaluation(f: Network, params: Params, dtype: str) -> Method:
    """Cross-entropy and logits of a network in evaluation mode."""
    @torch.no_grad()
    def h_test(sample: Sample) -> tuple[Tensor, Output]:
        with autocast(sample.x.device, dtype):
            logits, _ = f(sample.x, params, False)
        logits = logits.float()
        return F.cross_entropy(logits, sample.labels), Output(logits, {})
    return h_test
