"""Connected regions of a mask: how many, where, and how large."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

REGIONS, LEAST_AREA = 20, 0.0002
"""Regions that are described at most, the largest first, and the least part of the picture that one covers."""


def find_regions(mask: np.ndarray, probability: np.ndarray) -> tuple[int, list[dict[str, Any]]]:
    """Find connected regions that cover at least 0.02 % of a picture; pixels that touch at a corner are connected.

    Args:
        mask: (H, W) bool.
        probability: (H, W).

    Returns:
        Their number, and the largest 20 of them: box from `left` and `top` to `right` and `bottom`, which lie outside, `pixels`, `mean` probability.
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels[mask], minlength=1)
    large = np.flatnonzero(areas >= max(1.0, LEAST_AREA * mask.size))
    boxes = ndimage.find_objects(labels)
    described = []
    for label in large[np.argsort(-areas[large], kind="stable")][:REGIONS]:
        rows, columns = boxes[label - 1]
        mean = probability[rows, columns][labels[rows, columns] == label].mean(dtype=np.float64)
        box = {"left": columns.start, "top": rows.start, "right": columns.stop, "bottom": rows.stop}
        described.append(box | {"pixels": int(areas[label]), "mean": float(mean)})
    return len(large), described
