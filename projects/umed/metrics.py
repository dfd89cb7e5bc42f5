"""How well masks are found: Dice similarity (DSC), intersection over union and the 95 % Hausdorff distance, image by image.

scores = dice(predicted, masks, classes=3)    # (N, 3), NaN where an image has no such class
print(mean_score(scores))                     # the mean over images of the mean over their classes

An image without a class has no overlap to measure: 0 / 0. By default it is left out ("skip"); "one" counts it as 1 if nothing was found, else as 0.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

Empty = Literal["skip", "one"]
"""What becomes of images without a class: skip leaves them out, one counts them as right if nothing was found."""


def dice(predicted: Tensor, masks: Tensor, classes: int = 1, empty: Empty = "skip") -> Tensor:
    """Dice similarity 2 |P ∩ G| / (|P| + |G|) of every image and class.

    Args:
        predicted: (N, H, W) integers, 0 for the background and 1..K for the classes.
        masks: (N, H, W) integers, the truth.
        classes: number K of foreground classes.
        empty: what becomes of images without a class.

    Returns:
        (N, K) float64 in [0, 1]; NaN where it is left out.

    Raises:
        ValueError: if shapes differ, or a name or number is out of range.
    """
    both, found, true = _counts(predicted, masks, classes, empty)
    return _left_out(2 * both / (found + true), found, true, empty)


def iou(predicted: Tensor, masks: Tensor, classes: int = 1, empty: Empty = "skip") -> Tensor:
    """Intersection over union |P ∩ G| / |P ∪ G| of every image and class; arguments, result and errors are those of `dice`."""
    both, found, true = _counts(predicted, masks, classes, empty)
    return _left_out(both / (found + true - both), found, true, empty)


def hd95(predicted: Tensor, masks: Tensor, classes: int = 1, empty: Empty = "skip") -> Tensor:
    """95 % Hausdorff distance of every image and class: the larger one of the two directed 95th percentiles of distances between outlines.

    The outline of a region is its pixels with a neighbour, above, below or beside, outside of it or of the image. A region that was missed, or one
    found where there is none, has no outline to be near to: it counts as the image's diagonal, so that means stay finite.

    Args:
        predicted: (N, H, W) integers, 0 for the background and 1..K for the classes.
        masks: (N, H, W) integers, the truth.
        classes: number K of foreground classes.
        empty: what becomes of images without a class; "one" gives 0 if nothing was found, and else the diagonal.

    Returns:
        (N, K) float64 in pixels; NaN where it is left out.

    Raises:
        ValueError: if shapes differ, or a name or number is out of range.
    """
    _check(predicted, masks, classes, empty)
    diagonal = math.hypot(*masks.shape[1:])
    scores = np.full((len(masks), classes), np.nan)
    for number in range(1, classes + 1):
        found, true = (_padded(labels == number) for labels in (predicted, masks))
        for row in range(len(masks)):
            if true[row].any() or empty == "one":
                scores[row, number - 1] = _hd95(found[row], true[row], diagonal)
    return torch.from_numpy(scores)


def mean_score(scores: Tensor) -> float:
    """Average (N, K) scores: over the classes that an image has, then over images; NaN if there are none."""
    return float(scores.nanmean(1).nanmean())


def _padded(region: Tensor) -> np.ndarray:
    return F.pad(region.cpu(), (1, 1, 1, 1)).numpy()


def _hd95(found: np.ndarray, true: np.ndarray, diagonal: float) -> float:
    """Return the distance of two (H, W) bool regions whose border pixels are outside."""
    if not found.any() or not true.any():
        return diagonal if found.any() or true.any() else 0.0
    rows, columns = np.nonzero(found | true)
    part = slice(rows.min() - 1, rows.max() + 2), slice(columns.min() - 1, columns.max() + 2)  # the rest of the image changes nothing
    outlines = [region[part] & ~ndimage.binary_erosion(region[part]) for region in (found, true)]
    distances = [ndimage.distance_transform_edt(~outline) for outline in outlines]
    return max(float(np.percentile(distances[1][outlines[0]], 95)), float(np.percentile(distances[0][outlines[1]], 95)))


def _counts(predicted: Tensor, masks: Tensor, classes: int, empty: Empty) -> tuple[Tensor, Tensor, Tensor]:
    """Return |P ∩ G|, |P| and |G|, each (N, K) float64."""
    _check(predicted, masks, classes, empty)
    sizes = []
    for number in range(1, classes + 1):
        found, true = (predicted == number).flatten(1), (masks == number).flatten(1)
        sizes.append(torch.stack([(found & true).sum(1), found.sum(1), true.sum(1)]))
    both, found, true = torch.stack(sizes, 2).double().unbind(0)
    return both, found, true


def _left_out(scores: Tensor, found: Tensor, true: Tensor, empty: Empty) -> Tensor:
    without = torch.full_like(scores, torch.nan) if empty == "skip" else (found == 0).to(scores)
    return torch.where(true == 0, without, scores)


def _check(predicted: Tensor, masks: Tensor, classes: int, empty: Empty) -> None:
    if predicted.shape != masks.shape or masks.ndim != 3:
        raise ValueError(f"predictions and masks must be (N, H, W) of one shape, got {tuple(predicted.shape)} and {tuple(masks.shape)}")
    if predicted.is_floating_point() or masks.is_floating_point():
        raise ValueError(f"predictions and masks must be integers (take the largest logit), got {predicted.dtype} and {masks.dtype}")
    if classes < 1:
        raise ValueError(f"classes counts the foreground and must be at least 1, got {classes}")
    if empty not in get_args(Empty):
        raise ValueError(f"empty must be one of {', '.join(get_args(Empty))}, got {empty!r}")
