"""The training losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.layers import at_least_float32
from shared.losses import iou_loss, ssim_loss

Kind = Literal["hybrid", "bce_iou", "bce", "structure"]
"""Names of the losses of a map, see `saliency_loss`."""
STRUCTURE_WINDOW, STRUCTURE_GAIN = 31, 5
"""Side of the window that a pixel of the mask is compared with, in pixels, and how much more it weighs where they differ."""


def bce(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return BCE, the mean over pixels."""
    return {"bce": F.binary_cross_entropy_with_logits(logits, masks)}


def bce_iou(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return BCE, the mean over pixels, and IoU, the mean over pictures, smoothed by 1 for masks that are empty."""
    return bce(logits, masks) | {"iou": iou_loss(logits.sigmoid(), masks).mean()}


def hybrid(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return BCE, IoU and SSIM, the loss that the paper's group trains with."""
    return bce_iou(logits, masks) | {"ssim": ssim_loss(logits.sigmoid(), masks).mean()}


def structure_weights(masks: Tensor) -> Tensor:
    """Return 1 + 5 |mean over 31 x 31 pixels of Y - Y|, (B, 1, H, W) -> (B, 1, H, W), with zeros beyond the borders (Wei et al. 2020)."""
    return 1 + STRUCTURE_GAIN * (F.avg_pool2d(masks, STRUCTURE_WINDOW, stride=1, padding=STRUCTURE_WINDOW // 2) - masks).abs()


def structure(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the weighted BCE and the weighted IoU of F3Net, the means over pictures (Wei et al. 2020, equations 4 to 8).

    The BCE of each pixel is weighted before it is averaged. Code of the paper's group averages it first, and so multiplies one number by weights
    that it then divides by: they cancel, and plain BCE is left.
    """
    weights, p = structure_weights(masks), logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    both, total = ((weights * area).sum((1, 2, 3)) for area in (p * masks, p + masks))
    weighted = (weights * entropy).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    return {"bce": weighted.mean(), "iou": (1 - (both + 1) / (total - both + 1)).mean()}


_LOSSES: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {"hybrid": hybrid, "bce_iou": bce_iou, "bce": bce, "structure": structure}


def saliency_loss(logits: Sequence[Tensor], masks: Tensor, kind: Kind = "hybrid", weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return sum_i w_i L(P_i, Y) over the heads and its terms, scalars in float32 at least.

    Args:
        logits: P_i before the sigmoid, (B, 1, H, W) each, the finest first.
        masks: Y, (B, 1, H, W) of 0 and 1, 1 being salient.
        kind: L, `hybrid` (BCE, IoU and SSIM), `bce_iou`, `bce`, or `structure` (weighted BCE and IoU).
        weights: w_i; None weighs all alike, by 1.

    Returns:
        `loss` and its terms, `bce`, `iou` but for `bce`, and, for `hybrid`, `ssim`, each weighted and summed over the heads.

    Raises:
        ValueError: if there is no such loss, there are not as many weights as heads, or the masks are of another shape.
    """
    if kind not in _LOSSES:
        raise ValueError(f"no loss {kind!r}: choose among {', '.join(get_args(Kind))}")
    chosen = [1.0] * len(logits) if weights is None else weights
    if len(chosen) != len(logits) or not logits:
        raise ValueError(f"there are {len(logits)} heads, but {len(chosen)} weights")
    if wrong := [tuple(each.shape) for each in logits if each.shape != masks.shape]:
        raise ValueError(f"logits and masks must be of one shape, not {wrong[0]} and {tuple(masks.shape)}")
    heads = []
    for each, weight in zip(logits, chosen, strict=True):
        precise = at_least_float32(each)
        heads.append({name: weight * value for name, value in _LOSSES[kind](precise, masks.to(precise.dtype)).items()})
    terms = {name: torch.stack([head[name] for head in heads]).sum() for name in heads[0]}
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}
