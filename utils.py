"""The method: attention maps, and the losses that transfer them.

    import utils
    loss = utils.distillation(logits, teacher_logits, labels, T=4, alpha=0.9)
    loss = loss + 1e3 * sum(utils.at_loss(a, b) for a, b in zip(groups, teacher_groups))

Sections and equations are those of Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017.
"""
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


class InputError(ValueError):
    """What the user gave cannot be used. The message is one sentence that says why and what to do instead."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A message that may quote a stranger's file: in one line, without the middle if it is long."""
    if len(text) > 1000:
        text = f'{text[:600]} ... {text[-300:]}'
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def full(x: Tensor) -> Tensor:
    """In float32 at least: a loss is not computed in half precision, whose squares overflow above 256."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- attention maps and losses ---------------------------------------------------------------------------


def attention_map(x: Tensor, p: float = 2, reduce: str = 'sum') -> Tensor:
    """Activations (N, C, H, W) of any dtype -> attention maps (N, H, W), float32 or better, not normalised.

    `p` from 1. Section 3.1: reduce='sum' with p=1 is F_sum, with p>1 F_sum^p; reduce='max' is F_max^p.
    """
    if p < 1:
        raise InputError(f'an attention map takes activations to a power from 1, not {p}')
    a = full(x)
    a = a.pow(p) if p % 2 == 0 else a.abs().pow(p)
    if reduce == 'sum':
        return a.sum(1)
    if reduce == 'max':
        return a.amax(1)
    raise InputError(f"an attention map reduces over channels by 'sum' or 'max', not by {reduce!r}")


def normalize(maps: Tensor) -> Tensor:
    """Maps (N, H, W) -> Q / ||Q||_2 of each image, (N, H*W). A map of zeros stays zeros.

    The map is first divided by its largest element, a constant to the gradient: the result does not depend
    on the scale of the activations, whereas the norm of unscaled fourth powers leaves the range of float32.
    """
    q = maps.flatten(1)
    scale = q.detach().amax(1, keepdim=True)
    return F.normalize(q / scale.where(scale > 0, 1), dim=1)


def at(x: Tensor, p: float = 2, reduce: str = 'sum') -> Tensor:
    """Activations (N, C, H, W) -> l2-normalised attention maps (N, H*W).

    A mean over channels in place of the sum, as in other implementations, gives the same map.
    """
    return normalize(attention_map(x, p, reduce))


def at_loss(x: Tensor, y: Tensor, p: float = 2, reduce: str = 'sum', norm: str = 'code') -> Tensor:
    """Attention transfer between student x (N, C, H, W) and teacher y (N, C', H', W').

    norm='code': mean((Q_x - Q_y)^2) over images and map elements, without the norm and the factor 1/2 of
    Eq. 2: this is the definition of the published code, to which its beta = 1e3 belongs. Divided by the
    elements of a batch of 128 maps, 1e3 is 0.008 at 32x32, 0.031 at 16x16, 0.122 at 8x8: the "beta of about
    0.1" of the paper. norm='paper': 1/2 ||Q_x - Q_y||_2 of each image, averaged, Eq. 2.
    Where the sizes differ, each map is reduced to the smaller height and width by averaging areas.
    """
    q_x, q_y = comparable(attention_map(x, p, reduce), attention_map(y, p, reduce))
    if norm == 'code':
        return (q_x - q_y).square().mean()
    if norm == 'paper':
        return _half_norm(q_x - q_y)
    raise InputError(f"attention maps are compared by the norm of the 'code' or the 'paper', not {norm!r}")


def map_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the attention maps (N, H, W) and (N, H', W') of each image, averaged: 1 for equal maps."""
    q_x, q_y = comparable(x, y)
    return (q_x * q_y).sum(1).mean()


def comparable(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (N, H, W) and (N, H', W') -> both averaged to the smaller height and width and l2-normalised."""
    x, y = same_size(x, y)
    return normalize(x), normalize(y)


def same_size(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, ..., H, W) and (N, ..., H', W') -> both averaged to the smaller height and width."""
    if len(x) != len(y):
        raise InputError(f'activations of {len(x)} and of {len(y)} images cannot be compared')
    size = min(x.shape[-2], y.shape[-2]), min(x.shape[-1], y.shape[-1])
    if x.shape[-2:] != y.shape[-2:]:
        x, y = F.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(y, size)
    return x, y


def distillation(y: Tensor, teacher_scores: Tensor, labels: Tensor, T: float, alpha: float) -> Tensor:
    """Knowledge distillation: alpha T^2 KL(softmax(teacher/T) || softmax(y/T)) + (1 - alpha) CE(y, labels).

    y and teacher_scores are logits (N, K), labels (N,) integers. The divergence is summed over classes and
    averaged over images. T = 4 and alpha = 0.9 are the paper's values for ResNets.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f'distillation has a weight alpha from 0 to 1, not {alpha}')
    return alpha * softened_divergence(y, teacher_scores, T) + (1 - alpha) * F.cross_entropy(full(y), labels)


def softened_divergence(y: Tensor, teacher_scores: Tensor, T: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(y/T)) of logits (N, K), summed over classes, averaged over images.

    A class that the teacher rules out, by a logit of -inf, adds nothing.
    """
    check_logits(y, teacher_scores, T)
    log_p = F.log_softmax(full(y) / T, dim=1)
    q = F.softmax(full(teacher_scores) / T, dim=1)
    return T**2 * F.kl_div(log_p, q, reduction='batchmean')


def check_logits(y: Tensor, teacher_scores: Tensor, T: float) -> None:
    if y.shape != teacher_scores.shape:
        raise InputError(f'logits {tuple(y.shape)} and teacher logits {tuple(teacher_scores.shape)} '
                         'differ in shape')
    if not T > 0:
        raise InputError(f'distillation has a temperature above 0, not {T}')


def full_activation_loss(x: Tensor, y: Tensor, adaptor: Tensor | None = None) -> Tensor:
    """Full-activation transfer (F-ActT, Table 1): student x (N, C, H, W), teacher y (N, C', H', W').

    An adaptor (C', C, 1, 1), a trained 1x1 convolution as in FitNets, brings the student to the channels of
    the teacher where they differ. The activations of an image are then l2-normalised as a whole, and the
    squared difference is summed over channels and averaged over images and positions, so that a weight of 1e3
    is to activations what it is to maps in `at_loss`. Unequal sizes are averaged down to the smaller one.
    """
    x = full(x) if adaptor is None else F.conv2d(full(x), adaptor)
    if x.shape[1] != y.shape[1]:
        raise InputError(f'activations of {x.shape[1]} and {y.shape[1]} channels need an adaptor')
    x, y = same_size(x, full(y))
    difference = F.normalize(x.flatten(1), dim=1) - F.normalize(y.flatten(1), dim=1)
    return difference.square().sum(1).mean() / math.prod(x.shape[2:])


# --- losses on the gradient with respect to the image (Section 3.2) ---------------------------------------


def input_gradient(x: Tensor, logits: Tensor, labels: Tensor, create_graph: bool = True) -> Tensor:
    """J (N, 3, H, W): gradient with respect to image x of its cross-entropy, Eq. 3.

    logits (N, K) were computed from x, which requires a gradient. The cross-entropy is summed over images, so
    that J does not depend on their number. Where BN takes the statistics of the batch, J has the paths
    through them: what an image does to the losses of the others. create_graph: J can be learned from.
    """
    loss = F.cross_entropy(full(logits), labels, reduction='sum')
    return torch.autograd.grad(loss, x, create_graph=create_graph)[0]


def gradient_loss(j_s: Tensor, j_t: Tensor) -> Tensor:
    """Gradient-based transfer, Eq. 4: 1/2 ||J_s - J_t||_2 of each image, averaged. (N, 3, H, W) each."""
    return _half_norm(j_s - j_t)


def symmetry_loss(j: Tensor, j_mirrored: Tensor) -> Tensor:
    """Symmetry norm, Eq. 6: 1/2 ||J(x) - flip(J(flip(x)))||_2 of each image, averaged; flip is left to right.

    j = J(x) and j_mirrored = J(flip(x)), the gradient with respect to flip(x): (N, 3, H, W) each.
    """
    return _half_norm(j - j_mirrored.flip(3))


def output_symmetry_loss(y: Tensor, y_mirrored: Tensor) -> Tensor:
    """1/2 ||y(x) - y(flip(x))||_2 of each image, averaged, of logits (N, K): goes with the symmetry norm."""
    return _half_norm(full(y) - full(y_mirrored))


def min_l2_loss(j: Tensor) -> Tensor:
    """min-l2 (Drucker & LeCun 1992): 1/2 ||J||_2 of each image, averaged. (N, 3, H, W)."""
    return _half_norm(j)


def _half_norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(full(t).flatten(1), dim=1).mean() / 2  # its gradient at 0 is 0


# --- losses of other papers ------------------------------------------------------------------------------
# Student x and teacher y: activations (N, C, H, W) and (N, C', H', W'), averaged to the smaller size, or
# embeddings (B, D) and (B, D'). A loss "over pairs" or "over triples" compares the images of a batch: two or
# more. It is refused for several ranks, each of which would compare only the images of its own part.


def fitnet_loss(x: Tensor, y: Tensor, regressor: Tensor) -> Tensor:
    """Hint of FitNets (Romero 2015): mean of (r(x) - y)^2; r is a trained 1x1 convolution, (C', C, 1, 1)."""
    x, y = same_size(full(x), full(y))
    return (F.conv2d(x, regressor) - y).square().mean()


def vid_loss(x: Tensor, y: Tensor, regressor: Iterable[Tensor], alpha: Tensor) -> Tensor:
    """Variational information distillation (Ahn 2019): mean of log(v) / 2 + (r(x) - y)^2 / (2 v).

    r is a chain of 1x1 convolutions with ReLU between them, v = softplus(alpha) + 1e-5, alpha (C',): trained.
    """
    x, y = same_size(full(x), full(y))
    for i, weight in enumerate(regressor):
        x = F.conv2d(F.relu(x) if i else x, weight)
    v = (F.softplus(alpha) + 1e-5)[:, None, None]
    return (v.log() + (x - y).square() / v).mean() / 2


def nst_loss(x: Tensor, y: Tensor) -> Tensor:
    """Neuron selectivity transfer (Huang 2017): squared MMD of l2-normalised channels, kernel (a . b)^2."""
    x, y = (_unit(a.flatten(2)) for a in same_size(full(x), full(y)))  # (N, C, H W)
    xx, yy, xy = ((a @ b.mT).square().mean() for a, b in ((x, x), (y, y), (x, y)))
    return xx + yy - 2 * xy


def sp_loss(x: Tensor, y: Tensor) -> Tensor:
    """Similarity preserving (Tung 2019): ||G_x - G_y||_F^2 / B^2 over pairs.

    G (B, B) is Q Q^T with l2-normalised rows; the rows of Q are the activations of an image.
    """
    g_x, g_y = (_unit(q @ q.T) for q in _batches(x, y))
    return (g_x - g_y).square().mean()


def rkd_distance_loss(x: Tensor, y: Tensor) -> Tensor:
    """Relational KD (Park 2019): smooth l1 of distances, divided by their mean, over pairs of embeddings."""
    def distances(e: Tensor) -> Tensor:
        d = torch.linalg.vector_norm(e[:, None] - e, dim=2)  # (B, B); its gradient at 0 is 0
        mean = d.sum() / (len(e) * (len(e) - 1))
        return d / mean.where(mean > 0, 1)

    d_x, d_y = map(distances, _batches(x, y))
    return F.smooth_l1_loss(d_x, d_y)


def rkd_angle_loss(x: Tensor, y: Tensor) -> Tensor:
    """Relational KD (Park 2019): smooth l1 of the cosines of angles, over triples of embeddings."""
    d_x, d_y = (_unit(e[:, None] - e) for e in _batches(x, y))  # directions, (B, B, D)
    return F.smooth_l1_loss(d_x @ d_x.mT, d_y @ d_y.mT)


def pkt_loss(x: Tensor, y: Tensor) -> Tensor:
    """Probabilistic knowledge transfer (Passalis 2018): mean of p_y log(p_y / p_x) over pairs of embeddings.

    p (B, B) is (1 + cosine) / 2, each row divided by its sum; in the logarithm, 1e-7 is added to it.
    """
    p_x, p_y = ((1 + c) / (1 + c).sum(1, keepdim=True) for c in map(_cosines, _batches(x, y)))
    return (p_y * ((p_y + 1e-7) / (p_x + 1e-7)).log()).mean()


def cc_loss(x: Tensor, y: Tensor) -> Tensor:
    """Correlation congruence (Peng 2019): mean of (K_x - K_y)^2 over pairs of embeddings.

    K is exp(-0.4 ||a - b||^2) of l2-normalised embeddings, as its Taylor series of order 2 in the cosine.
    """
    k_x, k_y = (math.exp(-0.8) * (1 + 0.8 * c + 0.32 * c**2) for c in map(_cosines, _batches(x, y)))
    return (k_x - k_y).square().mean()


def dkd_loss(y: Tensor, teacher_scores: Tensor, labels: Tensor, T: float, alpha: float = 1,
             beta: float = 8) -> Tensor:
    """Decoupled KD (Zhao 2022): alpha times KD of label or not, plus beta times KD among the other classes.

    y and teacher_scores are logits (N, K), labels (N,) integers; KD is `softened_divergence`.
    """
    check_logits(y, teacher_scores, T)
    order = (labels[:, None] + torch.arange(y.shape[1], device=y.device)) % y.shape[1]  # the label first
    y, t = (full(scores).gather(1, order) / T for scores in (y, teacher_scores))
    y_label, t_label = (torch.stack([s[:, 0], s[:, 1:].logsumexp(1)], 1) for s in (y, t))
    return T**2 * (alpha * softened_divergence(y_label, t_label, 1)
                   + beta * softened_divergence(y[:, 1:], t[:, 1:], 1))


def dist_loss(y: Tensor, teacher_scores: Tensor, T: float, beta: float = 1, gamma: float = 1) -> Tensor:
    """DIST (Huang 2022): T^2 (beta (1 - r of images over classes) + gamma (1 - r of classes over images)).

    r is the mean correlation of the softmax at T of logits (B, K); the second one is over pairs.
    """
    check_logits(y, teacher_scores, T)
    p, q = (F.softmax(scores / T, dim=1) for scores in _batches(y, teacher_scores))

    def correlation(a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)).mean()

    return T**2 * (beta * (1 - correlation(p, q)) + gamma * (1 - correlation(p.T, q.T)))


def standardize_logits(y: Tensor) -> Tensor:
    """Logits (N, K) minus their mean, divided by their unbiased deviation (Sun 2024)."""
    y = full(y)
    return (y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-7)


def _unit(x: Tensor) -> Tensor:
    """Divided by its l2 norm over the last dimension; zeros stay zeros, with a finite gradient."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.where(norm > 0, 1)


def _cosines(e: Tensor) -> Tensor:
    """(B, D) -> (B, B)."""
    return _unit(e) @ _unit(e).T


def _batches(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (B, ...) in full precision. InputError where they cannot be compared, or have one image."""
    if len(x) != len(y) or len(x) < 2:
        raise InputError('a loss that compares the images of a batch needs two or more, the same for both '
                         f'networks, not {len(x)} and {len(y)}: give another --batch_size')
    return full(x).flatten(1), full(y).flatten(1)
