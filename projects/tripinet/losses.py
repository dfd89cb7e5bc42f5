"""The training losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from projects.tripinet.model import Outputs
from shared.layers import at_least_float32
from shared.losses import dice_loss, iou_loss, ssim_loss

Kind = Literal["bce_dice", "hybrid", "focal", "ce_dice"]
"""Names of the losses of a map, see `map_loss`."""
CLASS_WEIGHTS = (0.5, 2.5)
"""Weights of authentic and manipulated pixels in the cross-entropy of TruFor."""


def bce_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Return BCE + Dice."""
    return F.binary_cross_entropy_with_logits(logits, masks) + dice_loss(logits.sigmoid(), masks).mean()


def hybrid(logits: Tensor, masks: Tensor) -> Tensor:
    """Return BCE + IoU + SSIM, the habit of the paper's group, with an IoU that is smoothed for masks that are empty."""
    p = logits.sigmoid()
    return F.binary_cross_entropy_with_logits(logits, masks) + (iou_loss(p, masks) + ssim_loss(p, masks)).mean()


def focal(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the focal loss with alpha 0.25 and gamma 2, mean over pixels (Lin et al. 2017)."""
    return sigmoid_focal_loss(logits, masks, alpha=0.25, gamma=2, reduction="mean")


def ce_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Return 0.3 weighted CE + 0.7 Dice, as TruFor: the CE is the mean weighted by `CLASS_WEIGHTS`."""
    authentic, manipulated = CLASS_WEIGHTS
    weights = authentic + (manipulated - authentic) * masks
    entropy = F.binary_cross_entropy_with_logits(logits, masks, weights, reduction="sum") / weights.sum()
    return 0.3 * entropy + 0.7 * dice_loss(logits.sigmoid(), masks).mean()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce_dice": bce_dice, "hybrid": hybrid, "focal": focal, "ce_dice": ce_dice}


def map_loss(logits: Tensor, masks: Tensor, kind: Kind = "bce_dice") -> Tensor:
    """Return the loss of one map, a scalar in float32 at least.

    Args:
        logits: (B, 1, H, W).
        masks: (B, 1, H, W) of 0 and 1, 1 being manipulated.
        kind: `bce_dice`, `hybrid` (BCE, IoU and SSIM), `focal`, or `ce_dice` (weighted, as TruFor).

    Raises:
        ValueError: if there is no such loss, or the masks are of another shape.
    """
    if kind not in _LOSSES:
        raise ValueError(f"no loss {kind!r}: choose among {', '.join(get_args(Kind))}")
    if logits.shape != masks.shape:
        raise ValueError(f"logits and masks must be of one shape, not {tuple(logits.shape)} and {tuple(masks.shape)}")
    precise = at_least_float32(logits)
    return _LOSSES[kind](precise, masks.to(precise.dtype))


def side_loss(sides: Sequence[Tensor], masks: Tensor, kind: Kind = "bce_dice", weights: Sequence[float] | None = None) -> Tensor:
    """Return sum_i w_i L(o_i, Y) over the side outputs, a scalar.

    Args:
        sides: o_i, (B, 1, H, W) logits each, the finest first.
        masks: Y, (B, 1, H, W) of 0 and 1.
        kind: L, see `map_loss`.
        weights: w_i; None weighs all alike, by 1.

    Raises:
        ValueError: if there are not as many weights as outputs; see also `map_loss`.
    """
    chosen = [1.0] * len(sides) if weights is None else weights
    if len(chosen) != len(sides):
        raise ValueError(f"there are {len(sides)} side outputs, but {len(chosen)} weights")
    losses = [weight * map_loss(side, masks, kind) for weight, side in zip(chosen, sides, strict=True)]
    return sum(losses[1:], losses[0])


def mask_edges(masks: Tensor, width: int = 7) -> Tensor:
    """Return the borders of masks, dilated less eroded, of the same shape and type; a picture's own border is none.

    Args:
        masks: (B, 1, H, W) of 0 and 1.
        width: side of the square that dilates and erodes, odd, in pixels: the borders are width - 1 pixels wide.
    """
    values = masks.float()
    dilated = F.max_pool2d(values, width, stride=1, padding=width // 2)
    eroded = -F.max_pool2d(-values, width, stride=1, padding=width // 2)
    return (dilated - eroded).to(masks.dtype)


def training_loss(
    outputs: Outputs,
    masks: Tensor,
    labels: Tensor,
    kind: Kind = "bce_dice",
    side_weights: Sequence[float] | None = None,
    edge_weight: float = 20.0,
    image_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Return the loss of a batch and its terms.

    Args:
        outputs: what the network says; heads that it does not have add nothing.
        masks: (B, 1, H, W) of 0 and 1, 1 being manipulated.
        labels: (B,) of 0 and 1, 1 being manipulated.
        kind: loss of a map, see `map_loss`.
        side_weights: weights of the side outputs, see `side_loss`.
        edge_weight: weight of the BCE of the borders, 20 as in IML-ViT.
        image_weight: weight of the BCE of the picture as a whole.

    Returns:
        Scalars: `loss`, `sides`, and without their weights `edge` and `image` where there are such heads.
    """
    terms = {"sides": side_loss(outputs.sides, masks, kind, side_weights)}
    loss = terms["sides"]
    if outputs.edge is not None:
        terms["edge"] = F.binary_cross_entropy_with_logits(outputs.edge.float(), mask_edges(masks).float())
        loss = loss + edge_weight * terms["edge"]
    if outputs.image is not None:
        terms["image"] = F.binary_cross_entropy_with_logits(outputs.image.float(), labels.float())
        loss = loss + image_weight * terms["image"]
    return {"loss": loss, **terms}
