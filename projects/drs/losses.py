"""What networks are trained with so that they keep their answer under noise: the recipes that dual smoothing is combined with.

A classifier F maps (B, ...) noised sub-images to (B, K) logits; noise is (m, B, ...), m draws for every image, in the units of the images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Classify = Callable[[Tensor], Tensor]
_FLOOR = 1e-6  # of probabilities, as the published code has it


def noised_logits(classify: Classify, images: Tensor, noise: Tensor) -> Tensor:
    """Classify each image under each of its noises in one pass, (B, ...) and (m, B, ...) -> (m, B, K)."""
    return classify((images + noise).flatten(0, 1)).unflatten(0, noise.shape[:2])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over draws and images: Gaussian augmentation (Cohen et al. 2019).

    Args:
        logits: (m, B, K).
        labels: (B,) int64.
    """
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))


def mean_probabilities(logits: Tensor) -> Tensor:
    """Soft smoothed classifier, (m, B, K) -> (B, K): the mean of the softmax over draws."""
    return logits.softmax(-1).mean(0)


def consistency(logits: Tensor, weight: float, entropy: float) -> Tensor:
    """Consistency regularisation (Jeong & Shin 2020): weight · mean_k KL(Fbar || F_k) + entropy · H(Fbar), Fbar the mean over draws.

    Args:
        logits: (m, B, K).
        weight: lambda; published 10 or 20, and 15 under dual smoothing.
        entropy: eta; published 0.5, and 0.75 under dual smoothing.
    """
    each = logits.softmax(-1).clamp_min(_FLOOR)
    mean = each.mean(0)
    divergence = (mean * (mean.log() - each.log())).sum(-1).mean()
    return weight * divergence - entropy * (mean * mean.log()).sum(-1).mean()


def smooth_adversary(
    classify: Classify, images: Tensor, labels: Tensor, noise: Tensor, steps: int, step_size: float, epsilon: float | None = None
) -> list[Tensor]:
    """Climb -log mean_k F_y(x + e_k) along its normalised gradient (SmoothAdv, Salman et al. 2019; SmoothMix, Jeong et al. 2021).

    Args:
        classify: the classifier.
        images: (B, ...) in [0, 1].
        labels: (B,) int64.
        noise: (m, B, ...), the same at every step.
        steps: T.
        step_size: l2 length of a step.
        epsilon: radius of the l2 ball around the images that adversaries stay in; None: anywhere in [0, 1].

    Returns:
        The T adversaries on the way, each (B, ...) in [0, 1], without gradients.
    """
    adversary, path = images.detach(), []
    for _ in range(steps):
        with torch.enable_grad():
            point = adversary.detach().requires_grad_(True)
            chosen = mean_probabilities(noised_logits(classify, point, noise)).gather(1, labels[:, None])
            [gradient] = torch.autograd.grad(-chosen.clamp_min(1e-20).log().sum(), point)
        moved = adversary + step_size * _of_length(gradient, 1.0)
        if epsilon is not None:
            offset = moved - images
            moved = images + offset * (epsilon / _length(offset)).clamp(max=1.0)
        adversary = moved.clamp(0, 1)
        path.append(adversary)
    return path


def smoothmix(classify: Classify, clean: Tensor, images: Tensor, adversaries: Tensor, labels: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
    """SmoothMix (Jeong et al. 2021): images mixed with their adversaries are to be as much less certain as they are mixed.

    1[argmax Fbar(x) = y] · mean_k KL(y_mix || F(x_mix + e_k)), x_mix = (1 - s) x + s x~ and y_mix = (1 - s) Fbar(x) + s / K.

    Args:
        classify: the classifier.
        clean: (m, B, K) logits of the images under noise.
        images: (B, ...) in [0, 1].
        adversaries: (B, ...) their unrestricted adversaries.
        labels: (B,) int64.
        noise: (m, B, ...).
        shares: (B,) s, drawn from [0, 1/2].
    """
    mean = mean_probabilities(clean)
    share = shares.view(-1, *[1] * (images.ndim - 1))
    mixed = noised_logits(classify, images + share * (adversaries - images), noise).log_softmax(-1)
    target = (mean + shares[:, None] * (1 / mean.shape[1] - mean)).detach()
    divergence = (target * (target.clamp_min(_FLOOR).log() - mixed)).sum(-1).mean(0)  # (B,)
    return (divergence * (mean.argmax(1) == labels)).mean()


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the soft certified radius in units of sigma, mean of -Phi^-1(min(p, 0.99)) over images that are classified rightly (after MACER).

    Args:
        logits: (m, B, K).
        labels: (B,) int64.
    """
    top, predicted = mean_probabilities(logits).max(1)
    right = (predicted == labels).to(top.dtype)
    return -(torch.special.ndtri(top.float().clamp(max=0.99)) * right).sum() / right.sum().clamp_min(1)


def _length(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (rows.ndim - 1))


def _of_length(rows: Tensor, length: float) -> Tensor:
    return rows * (length / _length(rows))
