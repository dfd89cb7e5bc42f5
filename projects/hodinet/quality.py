"""How far a depth map can be trusted, told without labels; the measure is ours, not the paper's.

Where things end, colour and depth have edges that run alike. Depth that belongs to another picture, is shifted, blurred or noise has edges too, but
elsewhere and in other directions. So the measure compares directions of edges, as vectors of the doubled angle: opposite gradients count as alike,
perpendicular ones as contrary, and those of pictures that have nothing to do with each other cancel out.
"""

from __future__ import annotations

from typing import cast

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from shared.pictures import shrunk

SIDE = 96
"""Longest side of the pictures that are compared, in pixels; smaller ones stay as they are."""

_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8


def depth_quality(image: Tensor, depth: Tensor) -> float:
    """Score how well the edges of a depth map run along those of its picture, and how much of it was measured.

    The score is the part of the pixels that were measured, times the correlation of both fields of edges, none counting less than 0. It is 1 only if
    depth is the picture's own grey. As many edges of colour are none of depth, right depth has 0.2 to 0.5, and wrong depth about 0; so scores tell
    the maps of one set apart, rather than good from bad by some bound.

    Args:
        image: (3, H, W) uint8.
        depth: (1, H, W) in [0, 1]; 0 counts as not measured.

    Returns:
        The score, in [0, 1]; 0 for depth that is constant or was not measured.
    """
    measured = (depth > 0).float()
    share = float(measured.mean(dtype=torch.float64))
    if share == 0:
        return 0.0
    colour, near = edges(shrunk(image.float(), SIDE)), edges(_filled(shrunk(depth, SIDE), shrunk(measured, SIDE)))
    scale = float(colour.norm() * near.norm())
    return share * min(1.0, max(0.0, float((colour * near).sum()) / scale)) if scale > 0 else 0.0


def edges(layers: Tensor) -> Tensor:
    """Return the edges of (C, H, W) as a field of vectors, (2, H, W) float64: as long as the gradient, at twice its angle, smoothed by a pixel."""
    kernels = torch.stack([_SOBEL, _SOBEL.T])[:, None]
    across, along = F.conv2d(F.pad(layers[:, None], [1] * 4, mode="replicate"), kernels).double().unbind(1)  # (C, H, W) each
    doubled = torch.stack([(across**2 - along**2).sum(0), (2 * across * along).sum(0)])
    lengths = doubled.norm(dim=0).clamp_min(torch.finfo(doubled.dtype).tiny).sqrt()
    return F.avg_pool2d((doubled / lengths)[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def _filled(depth: Tensor, measured: Tensor) -> Tensor:
    """Undo the averaging with pixels that were not measured, and give pixels without any that were the level of the nearest pixel with some."""
    holes = (measured[0] <= 0).numpy()
    levels = depth / measured.clamp_min(torch.finfo(measured.dtype).eps)
    if not holes.any():
        return levels
    rows, columns = cast(tuple, ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True))
    return levels[:, rows, columns]
