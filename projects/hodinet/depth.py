"""Depth maps as they lie in files, brought to one convention: near = 1, in [0, 1].

What sets agree on least is which side is near: `polarity` tells whether salient pixels are nearer, and `polarity_table` does so for sets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.arrays import read_npy
from shared.data.files import BadFileError, read_image

ARRAY = ".npy"
"""Ending of depth in numbers: disparity, or distances with far = 1."""

_DETACHED = 1 / 32
_COLOURED = 8 / 255  # mean difference of channels; in JPEG files of grey it is less
_RATIO = 1.02
_log = logging.getLogger(__name__)


def read_depth(path: Path, invert: bool = False, normalise: bool = True, thermal: bool = False) -> Tensor:
    """Read a depth map of 8 or 16 bits, in one channel or in three that are equal.

    Args:
        path: the file.
        invert: the file has far = 1.
        normalise: see `nearness`.
        thermal: the file is a thermal picture, which may be coloured: its grey is taken.

    Returns:
        (1, H, W) float32 in [0, 1], near = 1.

    Raises:
        BadFileError: if the file is damaged, no image, too large, holds 32-bit pixels, or shows depth in colours.
        FileNotFoundError: if there is no such file.
    """
    if thermal:
        return nearness(read_image(path, "L"), invert, normalise)
    channels = read_image(path, ground="black")  # transparent: not measured
    if max((channels[0] - other).abs().mean() for other in channels[1:]) > _COLOURED:
        raise BadFileError(f"{path} shows depth in colours, whose order is not known: take the grey map of 8 or 16 bits")
    return nearness(channels[:1], invert, normalise)


def read_array(path: Path) -> Tensor:
    """Read depth in numbers of any unit, (1, H, W) float32; what is not finite was not measured.

    Raises:
        BadFileError: if the file is damaged, holds no table of numbers, or a finite one is negative.
    """
    levels = read_npy(path, "it is damaged or no array of numbers", "r")
    if levels.ndim != 2 or levels.dtype.kind not in "fiu" or not levels.size:
        raise BadFileError(f"{path} holds {levels.dtype} of shape {levels.shape}: expected one number for each pixel, of shape (height, width)")
    depth = torch.from_numpy(levels.astype(np.float32))
    if bool((depth[depth.isfinite()] < 0).any()):
        raise BadFileError(f"{path} holds negative depth: give disparity, or distances with --invert true; mark what was not measured by inf or nan")
    return depth[None]


def nearness(levels: Tensor, invert: bool = False, normalise: bool = True) -> Tensor:
    """Bring levels to near = 1.

    Pixels that were not measured become 0, the farthest, whatever the polarity: those that are not finite, and, in a map with far = 1, zeros that
    are detached from all other levels by more than a thirty-second of the largest, as sensors leave them. In a map with near = 1, they are 0 already.

    Args:
        levels: (..., H, W) floats, 0 or more.
        invert: the levels have far = 1.
        normalise: stretches the levels that were measured to [0, 1]; a constant map becomes 0. Otherwise levels in [0, 1] keep their distances.

    Returns:
        The same shape, in [0, 1].
    """
    measured = _measured(levels, invert)
    known = levels if measured is None else levels[measured]
    if not known.numel():
        return torch.zeros_like(levels)
    low, high = known.aminmax()
    if normalise:
        if low == high:
            return torch.zeros_like(levels)
        levels = (levels - low) / (high - low)
    near = 1 - levels if invert else levels
    return (near if measured is None else torch.where(measured, near, 0)).clamp(0, 1)


def _measured(levels: Tensor, invert: bool) -> Tensor | None:
    """Return which pixels were measured, see `nearness`; None if all were, as it is mostly, for looking at each of them takes most of the time."""
    low, high = levels.aminmax()
    measured = None if low.isfinite() and high.isfinite() else levels.isfinite()
    if invert and (measured is not None or low == 0):
        positive = levels.isfinite() & (levels > 0)
        known = levels[positive]
        if known.numel() and known.min() > _DETACHED * known.max():
            return positive
    return measured


def check_proportions(found: tuple[int, int], size: tuple[int, int], path: Path) -> None:
    """Check that a depth map has the proportions of its picture, though perhaps the resolution of its sensor.

    Args:
        found: height and width of the map.
        size: height and width of the picture.
        path: where the map comes from, for the message.

    Raises:
        BadFileError: if the proportions differ by more than two hundredths, for then the map shows something else.
    """
    if not 1 / _RATIO <= found[0] * size[1] / (found[1] * size[0]) <= _RATIO:
        shapes = f"{found[0]} x {found[1]} pixels (height x width), its picture {size[0]} x {size[1]}"
        raise BadFileError(f"the depth map {path} has {shapes}: align it with the picture")


def fitted(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a depth map, (1, h, w) in [0, 1], bilinearly to the height and width of its picture."""
    if tuple(depth.shape[1:]) == size:
        return depth
    return F.interpolate(depth[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)


def polarity(depth: Tensor, mask: Tensor) -> float:
    """Return the correlation of depth with the mask over the pixels of a picture, in [-1, 1]: positive where what is salient is nearer.

    Args:
        depth: (1, H, W), near = 1.
        mask: (1, H, W), 1 where salient.

    Returns:
        NaN if either is constant.
    """
    near, salient = (layer.double().flatten() - layer.double().mean() for layer in (depth, mask))
    scale = float(near.norm() * salient.norm())
    return float(near @ salient) / scale if scale > 0 else math.nan


def polarity_table(correlations: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Summarise the polarity of sets, and warn of those in which what is salient is farther in most pictures.

    Args:
        correlations: see `polarity`, of the pictures of each set.

    Returns:
        A row for each set: its name, the number of pictures whose polarity is defined, the mean correlation, and the part with a positive one.
    """
    rows = []
    for name, values in correlations.items():
        known = [value for value in values if math.isfinite(value)]
        nearer = sum(value > 0 for value in known)
        if 2 * nearer < len(known):
            advice = "its depth seems to be the other way round: add it to data.invert, or remove it from there"
            _log.warning("%s: what is salient is farther than the rest in %d of %d pictures; %s", name, len(known) - nearer, len(known), advice)
        mean, part = (sum(known) / len(known), nearer / len(known)) if known else (math.nan, math.nan)
        rows.append({"set": name, "pictures": len(known), "correlation": mean, "nearer": part})
    return rows
