"""What a student is taught by one anchor of the teacher's route: one pure function for each loss.

Logits are (B, K), labels (B,) int64; every loss is computed in float32 at least, whatever the precision of the networks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.layers import at_least_float32

UNLABELLED = -1
"""Label of a sample whose class is not known; terms that need labels leave it out."""


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher are compared element by element, but have shapes {tuple(student.shape)} and {tuple(teacher.shape)}")
    return at_least_float32(student), at_least_float32(teacher)


def _labelled_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of (B,) values over the samples that have a label; 0 if none has."""
    known = labels != UNLABELLED
    return torch.where(known, values, 0.0).sum() / known.sum().clamp_min(1)


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """H(y, p_s), the mean over the samples that have a label, 0 if none has.

    Args:
        student: (B, K) logits.
        labels: (B,) classes, -1 where unknown.
    """
    return F.cross_entropy(at_least_float32(student), labels, ignore_index=UNLABELLED, reduction="sum") / (labels != UNLABELLED).sum().clamp_min(1)


def soft_cross_entropy(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """H(p_t, p_s) = -sum_k p_t log p_s of each sample: the congruence loss that hardness is measured by.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        tau: temperature of both softmaxes.

    Returns:
        (B,) in nats, at least the entropy of p_t.
    """
    student, teacher = _pair(student, teacher)
    return -((teacher / tau).softmax(1) * (student / tau).log_softmax(1)).sum(1)


def kl_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """KL(p_t || p_s) of each sample, (B, K) logits -> (B,) in nats; see `soft_cross_entropy`."""
    student, teacher = _pair(student, teacher)
    return _divergence((student / tau).log_softmax(1), (teacher / tau).log_softmax(1))


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between (B, K) log-probabilities, (B,)."""
    return (teacher.exp() * (teacher - student)).sum(1)


def kd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """tau^2 KL(p_t^tau || p_s^tau), the mean over the batch (Hinton et al. 2015).

    Gradients are about as large at any temperature, thanks to the factor tau^2.
    """
    student, teacher = _pair(student, teacher)
    logs = (student / tau).log_softmax(1), (teacher / tau).log_softmax(1)
    return tau**2 * F.kl_div(*logs, reduction="batchmean", log_target=True)


def squared_distance(student: Tensor, teacher: Tensor, normalise: bool = False) -> Tensor:
    """||e_t - e_s||^2 / d of each sample: the congruence loss of hints and mimicking.

    Args:
        student: (B, ...) embeddings or feature maps of d elements a sample.
        teacher: of the same shape.
        normalise: bring both to unit length first; the distance is then (2 - 2 cos) / d.

    Returns:
        (B,), the mean over the d elements.
    """
    student, teacher = _pair(student, teacher)
    student, teacher = student.flatten(1), teacher.flatten(1)
    if normalise:
        student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    return (student - teacher).square().mean(1)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1/(2 n) ||v_t - r(u_s)||^2 (FitNets, Romero et al. 2015, equation 3).

    Here n counts all elements of the batch, B C H W, so that the loss is half of what is usually called the mean squared error.

    Args:
        student: (B, ...) regressed features r(u_s).
        teacher: (B, ...) features v_t.
    """
    return squared_distance(student, teacher).mean() / 2


def mimic_loss(student: Tensor, teacher: Tensor, normalise: bool = False) -> Tensor:
    """||e_t - e_s||^2, the mean over batch and dimensions (mimicking of embeddings); see `squared_distance`."""
    return squared_distance(student, teacher, normalise).mean()


def decoupled_divergences(student: Tensor, teacher: Tensor, labels: Tensor, tau: float = 4.0) -> tuple[Tensor, Tensor]:
    """Split KL(p_t || p_s) = TCKD + (1 - p_t,y) NCKD into its two divergences (Zhao et al. 2022, equation 7).

    The target logit is taken out before the softmax over the others, where the published code subtracts 1000 from it.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) classes; what comes out for an unknown one (-1) is finite and means nothing.
        tau: temperature.

    Returns:
        TCKD, between target and not, and NCKD, among the classes that are not the target: both (B,) in nats. NCKD is 0 if K = 2.
    """
    student, teacher = _pair(student, teacher)
    target = labels.clamp_min(0).unsqueeze(1)
    others = torch.arange(student.shape[1] - 1, device=student.device)
    others = others + (others >= target)  # (B, K - 1) classes without the target
    binary, rest = [], []
    for logits in (student / tau, teacher / tau):
        without = logits.gather(1, others)
        binary.append(torch.cat([logits.gather(1, target), without.logsumexp(1, keepdim=True)], dim=1).log_softmax(1))
        rest.append(without.log_softmax(1))
    return _divergence(*binary), _divergence(*rest)


def dkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0) -> Tensor:
    """tau^2 (alpha TCKD + beta NCKD), the mean over labelled samples (Zhao et al. 2022); see `decoupled_divergences`.

    The warm-up factor is not part of it.
    """
    target, rest = decoupled_divergences(student, teacher, labels, tau)
    return tau**2 * _labelled_mean(alpha * target + beta * rest, labels)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two (N, D) matrices, (N,) in [-1, 1].

    It is 0, with no gradient, where a row is constant up to rounding and the correlation is not defined.
    """
    centred = [rows - rows.mean(1, keepdim=True) for rows in (first, second)]
    lengths = [torch.linalg.vector_norm(rows, dim=1) for rows in centred]
    floor = 8 * torch.finfo(first.dtype).eps
    varies = [length > floor * torch.linalg.vector_norm(rows, dim=1) for length, rows in zip(lengths, (first, second), strict=True)]
    is_defined = varies[0] & varies[1]
    scale = [torch.where(is_defined, length, 1.0).unsqueeze(1) for length in lengths]
    return torch.where(is_defined, (centred[0] / scale[0] * (centred[1] / scale[1])).sum(1), 0.0)


def dist_loss(student: Tensor, teacher: Tensor, beta: float = 2.0, gamma: float = 2.0, tau: float = 4.0) -> Tensor:
    """tau^2 (beta (1 - mean row correlation) + gamma (1 - mean column correlation)) (DIST, Huang et al. 2022).

    Rows are samples (relations between classes), columns are classes (relations within a class), of the softened probabilities. The factor tau^2 is
    that of the implementations in use; it is not in the paper's formula.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        beta: weight of the rows.
        gamma: weight of the columns; their part is a constant for a batch of one sample.
        tau: temperature.
    """
    student, teacher = _pair(student, teacher)
    p_s, p_t = (student / tau).softmax(1), (teacher / tau).softmax(1)
    between, within = 1 - pearson(p_s, p_t).mean(), 1 - pearson(p_s.T, p_t.T).mean()
    return tau**2 * (beta * between + gamma * within)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of the attention maps of one pair of layers (Zagoruyko & Komodakis 2017, with p = 2).

    An attention map is the mean over channels of the squared activations, flattened and brought to unit length. The mean over the H W places is the
    benchmarks', for whom the weight 1000 is meant; the paper has the norm of the difference.

    Args:
        student: (B, C, H, W) features.
        teacher: (B, C', H', W') features; the larger of the two is pooled to the size of the smaller before it is squared.
    """
    student, teacher = pooled_to_equal(at_least_float32(student), at_least_float32(teacher))
    maps_s, maps_t = (F.normalize(maps.square().mean(1).flatten(1), dim=1) for maps in (student, teacher))
    return (maps_s - maps_t).square().mean()


def pooled_to_equal(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pool (B, C, H, W) and (B, C', H', W') by adaptive averages to the smaller height and the smaller width of the two."""
    height, width = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    pooled = [maps if maps.shape[2:] == (height, width) else F.adaptive_avg_pool2d(maps, (height, width)) for maps in (first, second)]
    return pooled[0], pooled[1]


def contrast_loss(student: Tensor, teacher: Tensor, labels: Tensor, tau: float = 0.07) -> Tensor:
    """InfoNCE between student and teacher embeddings of a batch, both directions averaged (after CRD, Tian et al. 2020).

    A sample's positive is itself in the other network; negatives are the batch's samples of other classes. CRD draws 16,384 negatives from a memory
    of the whole training set and scores each by noise-contrastive estimation; here they are as many as the batch gives, without a memory, and are
    scored together in one softmax.

    Args:
        student: (B, d) projected features, of any length.
        teacher: (B, d) projected features.
        labels: (B,) classes; a sample of unknown class (-1) is a negative of all others.
        tau: temperature.

    Returns:
        Scalar in nats; 0 if no sample has a negative.
    """
    student, teacher = _pair(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        similarity = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / tau  # (B, B)
    is_same = (labels[:, None] == labels) & (labels != UNLABELLED)
    is_same = is_same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarity, own = similarity.masked_fill(is_same, -torch.inf), torch.arange(len(labels), device=labels.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
