"""Which pixels are a component's, and which clusters are components: Otsu on heat maps, and the background filter.

Heat maps are kept as the reference keeps them: 8-bit levels round(128 Q), full certainty 128. Its sizes in pixels of 224 x 224 are parts of a
picture here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.seeding import generator

CERTAIN = 128
"""Level of full certainty."""
CROP = 10 / 224
"""Margin on each side, by that side, that thresholds are blind to."""
CONTRAST = 0.05
"""Least difference, in certainty, of the means above and below a threshold; a map with less shows nothing (the reference invents a component)."""
CORNER, BLUR, VOTERS = 20 / 224, 11 / 224, 20
"""Side of the corner squares and of the box that heat is averaged over, by the picture's; pictures that vote."""

FilterName = Literal["first", "vote"]


def to_levels(heat: Tensor) -> Tensor:
    """Return heat maps, (...) in [0, 1], as levels round(128 Q) in uint8; levels stay as they are.

    Raises:
        ValueError: if a value is outside [0, 1] or NaN, or a level above 128.
    """
    if heat.dtype == torch.uint8:
        if heat.numel() and int(heat.max()) > CERTAIN:
            raise ValueError(f"levels of heat maps end at {CERTAIN}, got {int(heat.max())}: give round(128 Q), or Q in [0, 1]")
        return heat
    if not bool(((heat >= 0) & (heat <= 1 + 1e-4)).all()):
        raise ValueError(f"heat maps must lie in [0, 1], got {float(heat.min()):g} to {float(heat.max()):g} (a softmax over the clusters does)")
    return (heat.clamp(max=1) * CERTAIN).round_().to(torch.uint8)


def histograms(levels: Tensor, bins: int = CERTAIN + 1) -> Tensor:
    """Count the pixels of each level, (..., H, W) uint8 -> (..., bins) int64."""
    maps = levels.reshape(-1, levels.shape[-2] * levels.shape[-1])
    cells = maps.long() + bins * torch.arange(len(maps), device=maps.device)[:, None]
    return torch.bincount(cells.flatten(), minlength=bins * len(maps)).view(*levels.shape[:-2], bins)


def otsu(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Find the levels that part histograms with the largest variance between both sides (Otsu 1979).

    Args:
        counts: (..., L) pixels of each level.

    Returns:
        (...) int64 thresholds, above which a pixel is on, the lowest of equals, the level itself where there is only one; and (...) float64
        differences of the means above and below, in levels, 0 where there is only one.
    """
    counts = counts.double()
    below, mass = counts.cumsum(-1), (counts * torch.arange(counts.shape[-1], device=counts.device)).cumsum(-1)
    pixels, whole = below[..., -1:], mass[..., -1:]
    sides = below * (pixels - below)
    difference = whole * below - mass * pixels  # (mean above - mean below) * pixels below * pixels above
    variance = difference**2 / sides.clamp_min(1)
    best = variance.argmax(-1, keepdim=True)
    apart = (difference / sides.clamp_min(1)).gather(-1, best)[..., 0]
    only = (whole / pixels.clamp_min(1)).round().long()
    return torch.where(variance.gather(-1, best) > 0, best, only)[..., 0], apart


def inner(maps: Tensor, crop: float = CROP) -> Tensor:
    """Cut a margin off each side of (..., H, W) maps, `crop` of that side."""
    rows, columns = (round(crop * side) for side in maps.shape[-2:])
    return maps[..., rows : maps.shape[-2] - rows, columns : maps.shape[-1] - columns]


def thresholds(levels: Tensor, crop: float = CROP, contrast: float = CONTRAST) -> Tensor:
    """Return Otsu's thresholds of (..., H, W) levels inside a margin, (...) int64; 128, above which nothing lies, where the contrast is too small."""
    cuts, apart = otsu(histograms(inner(levels, crop)))
    return torch.where(apart >= contrast * CERTAIN, cuts, CERTAIN)


def otsu_masks(heat: Tensor, crop: float = CROP, contrast: float = CONTRAST) -> Tensor:
    """Binarise heat maps at the thresholds of their inner parts.

    Args:
        heat: (B, K, H, W) in [0, 1], or uint8 levels.
        crop: margin on each side, by that side.
        contrast: least difference of the means above and below the threshold, in certainty; a map with less has an empty mask.

    Returns:
        (B, K, H, W) bool.
    """
    levels = to_levels(heat)
    return levels > thresholds(levels, crop, contrast)[..., None, None]


def corners_on(masks: Tensor, corner: float = CORNER) -> Tensor:
    """Count the corner squares that hold a pixel of each mask, (..., H, W) bool -> (...) int64 from 0 to 4."""
    rows, columns = (max(1, round(corner * side)) for side in masks.shape[-2:])
    squares = [masks[..., up, left] for up in (slice(rows), slice(-rows, None)) for left in (slice(columns), slice(-columns, None))]
    return torch.stack([square.flatten(-2).any(-1) for square in squares]).sum(0)


def blurred_maximum(levels: Tensor, blur: float = BLUR) -> Tensor:
    """Return the largest mean of levels over a box, (..., H, W) uint8 -> (...) whole levels; borders are mirrored."""
    height, width = (int(blur * side / 2) for side in levels.shape[-2:])
    maps = F.pad(levels.flatten(0, -3)[:, None].float(), (width, width, height, height), mode="reflect")
    means = F.avg_pool2d(maps, (2 * height + 1, 2 * width + 1), stride=1)
    return means.flatten(1).amax(1).round().view(levels.shape[:-2])


def is_component(heat: Tensor, certainty: float = 0.5, crop: float = CROP, contrast: float = CONTRAST) -> Tensor:
    """Tell components from background and noise, picture by picture.

    Args:
        heat: (B, K, H, W) in [0, 1], or uint8 levels.
        certainty: that the blurred map must exceed somewhere; clusters that never do are noise.
        crop: margin of the thresholds.
        contrast: least contrast; a map with less is no component.

    Returns:
        (B, K) bool: the map is certain somewhere, and reaches into fewer than three corners.
    """
    levels = to_levels(heat)
    masks = otsu_masks(levels, crop, contrast)
    return masks.flatten(2).any(2) & (blurred_maximum(levels) > certainty * CERTAIN) & (corners_on(masks) < 3)


def find_components(
    heat: Sequence[Tensor] | Tensor, how: FilterName = "first", seed: int = 0, certainty: float = 0.5, crop: float = CROP, contrast: float = CONTRAST
) -> Tensor:
    """Choose the clusters that are components of the product.

    Args:
        heat: N maps (K, H, W) of the training pictures, in [0, 1] or uint8 levels.
        how: `first` asks the first picture, as the reference does; `vote` the majority of 20 random ones.
        seed: of the choice of the voters.
        certainty: as for `is_component`.
        crop: margin of the thresholds.
        contrast: least contrast.

    Returns:
        (K,) bool.

    Raises:
        ValueError: if there is no picture or no such filter.
    """
    if not len(heat):
        raise ValueError("no training picture: the filter of components needs at least one")
    if how not in ("first", "vote"):
        raise ValueError(f"filter {how!r} is not known: use first or vote")
    voters = torch.randperm(len(heat), generator=generator(seed, "components"))[:VOTERS].sort().values if how == "vote" else torch.zeros(1).long()
    votes = torch.stack([is_component(heat[voter][None], certainty, crop, contrast)[0] for voter in voters.tolist()])
    return 2 * votes.sum(0) > len(votes)
