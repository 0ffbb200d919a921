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
from devices import autocast
from utils import Network, Params


class Output(NamedTuple):
    """What a step gives besides its loss."""
    logits: Tensor  # (B, K)
    terms: dict[str, list[Tensor]]  # losses by name, one per group, before their weights


class Step(NamedTuple):
    """What losses are made of: logits and groups of the student and, where there is one, of the teacher."""
    y_s: Tensor  # (B, K)
    g_s: tuple[Tensor, ...]  # (B, C, H, W) each
    y_t: Tensor | None
    g_t: tuple[Tensor, ...]
    labels: Tensor  # (B,)


class Term(NamedTuple):
    """A loss beside the classification loss: weight(epoch) * sum(losses(step)), one loss per group."""
    name: str
    weight: Callable[[int], float]
    losses: Callable[[Step], list[Tensor]]


Method = Callable[[Sample], tuple[Tensor, Output]]


def method(opt: argparse.Namespace, f_s: Network, student: Params, f_t: Network | None = None,
           teacher: Params | None = None, fixed_bn: bool = False) -> Method:
    """The training step: h(sample) -> loss to minimise, Output. Which losses are on is decided here, once.

    The teacher is asked only in epochs in which something is learned from it. fixed_bn: the student's BN
    keeps its running statistics, for fine-tuning.
    """
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

    def h(sample: Sample) -> tuple[Tensor, Output]:
        x, labels, epoch, _ = sample
        on = [term for term in terms if term.weight(epoch)]
        y_t, g_t = None, ()
        with autocast(x.device, opt.dtype):
            if on or opt.alpha:
                with torch.no_grad():
                    y_t, g_t = f_t(x, teacher, False)
            y_s, g_s = f_s(x, student, not fixed_bn)
        step = Step(y_s, g_s, y_t, g_t, labels)
        losses = {term.name: term.losses(step) for term in on}
        loss = classification(step) + sum(term.weight(epoch) * sum(losses[term.name]) for term in on)
        return loss, Output(y_s, losses)

    return h


def evaluation(f: Network, params: Params, dtype: str) -> Method:
    """Cross-entropy and logits of a network in evaluation mode."""
    @torch.no_grad()
    def h_test(sample: Sample) -> tuple[Tensor, Output]:
        with autocast(sample.x.device, dtype):
            logits, _ = f(sample.x, params, False)
        logits = logits.float()
        return F.cross_entropy(logits, sample.labels), Output(logits, {})
    return h_test
