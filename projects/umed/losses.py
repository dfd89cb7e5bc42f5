"""The loss that generators and surrogate both lower: cross-entropy and soft Dice, 1 : 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_dice(logits: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each image, 1 - (2 Σ p g + s) / (Σ p + Σ g + s), sums over pixels, mean over foreground classes.

    Args:
        logits: (B, K + 1, H, W), of which class 0 is the background and does not count.
        masks: (B, H, W) int64 in 0..K.
        smooth: s.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: if there is no foreground class or the shapes do not fit.
    """
    _check(logits, masks)
    found = logits.softmax(1)[:, 1:]  # (B, K, H, W)
    true = F.one_hot(masks, logits.shape[1]).movedim(-1, 1)[:, 1:].to(found.dtype)
    overlap, sizes = (found * true).sum((2, 3)), found.sum((2, 3)) + true.sum((2, 3))  # (B, K)
    return (1 - (2 * overlap + smooth) / (sizes + smooth)).mean(1)


def segmentation_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy (mean over pixels) plus soft Dice of each image, (B,).

    Args:
        logits: (B, K + 1, H, W).
        masks: (B, H, W) int64 in 0..K.
    """
    dice = soft_dice(logits, masks)
    return F.cross_entropy(logits, masks, reduction="none").mean((1, 2)) + dice


def segmentation_loss(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """L_seg, the mean of `segmentation_losses` over the batch.

    Args:
        logits: (B, K + 1, H, W).
        masks: (B, H, W) int64 in 0..K.
        weights: (B,) weights of the images, such as 0 for those without foreground; None weighs all alike.

    Returns:
        Scalar; 0 if all weights are.
    """
    losses = segmentation_losses(logits, masks)
    if weights is None:
        return losses.mean()
    weights = weights.to(losses)
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)


def _check(logits: Tensor, masks: Tensor) -> None:
    if logits.ndim != 4 or logits.shape[1] < 2 or masks.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(f"logits are (B, K + 1, H, W) and masks (B, H, W), got {tuple(logits.shape)} and {tuple(masks.shape)}")
