"""Pieces of components: connected regions, their size classes, and which class a piece is of (NUMBER)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

NEIGHBOURS = 5
"""Training pieces that vote on a piece's class."""
NOISE = -1

Array = np.ndarray[Any, np.dtype[Any]]


class Pieces(NamedTuple):
    """Pieces of a stack of masks: (P,) index of the mask, area in pixels, and elongation in [0, 1], 0 of a disc and 1 of a line."""

    owner: Tensor
    area: Tensor
    elongation: Tensor


def label_planes(masks: Array) -> tuple[Array, int]:
    """Number the connected regions of (N, H, W) bool masks from 1, (N, H, W), and count them; pixels that touch at a corner are connected."""
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True  # masks of the stack do not touch each other
    labels, count = ndimage.label(masks, structure)
    return labels, int(count)


def split_planes(masks: Array, depth: float = 1.0) -> tuple[Array, int]:
    """Number regions as `label_planes`, with pieces that touch or overlap parted at their necks by a watershed of the distance to the border.

    Args:
        masks: (N, H, W) bool.
        depth: by how many pixels the distance must fall between the middles of two pieces.

    Returns:
        (N, H, W) numbers from 1, 0 outside, and their count.
    """
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    labels: Array = np.zeros(masks.shape, np.int32)
    count = 0
    for plane, mask in zip(labels, masks, strict=True):
        if mask.any():
            distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1) * mask
            whole = ndimage.label(mask, np.ones((3, 3)))[0]
            markers = ndimage.label(h_maxima(distance, depth) > 0, np.ones((3, 3)))[0]
            unmarked = np.setdiff1d(np.unique(whole), np.append(0, whole[markers > 0]))  # regions too flat to have a middle
            markers = np.where(np.isin(whole, unmarked), whole + markers.max(), markers)
            parts = watershed(-distance, markers, mask=mask, connectivity=2)
            plane[mask] = np.unique(parts[mask], return_inverse=True)[1] + count + 1
            count = int(plane.max())
    return labels, count


def find_pieces(masks: Tensor, least_area: float, split: bool = False) -> Pieces:
    """Find the pieces of masks.

    Args:
        masks: (N, H, W) bool.
        least_area: pixels that a piece must exceed.
        split: part pieces that touch.

    Returns:
        The pieces on the CPU, in the order of the masks.
    """
    stack = masks.cpu().numpy()
    labels, count = split_planes(stack) if split else label_planes(stack)
    on = np.flatnonzero(labels)
    which = labels.ravel()[on]
    areas = np.bincount(which, minlength=count + 1)
    is_large = areas > least_area
    is_large[0] = False
    on, which = on[is_large[which]], which[is_large[which]]
    plane, rest = np.divmod(on, stack.shape[1] * stack.shape[2])
    rows, columns = np.divmod(rest, stack.shape[2])
    owner = np.zeros(count + 1, np.int64)
    owner[which] = plane
    found = (owner, areas, _elongation(rows, columns, which, areas))
    return Pieces(*(torch.from_numpy(part[is_large]) for part in found))


def _elongation(rows: Array, columns: Array, which: Array, areas: Array) -> Array:
    """Return 1 - minor / major axis of the ellipse with the second moments of each numbered region; 0 for a point."""
    pixels = np.maximum(areas, 1)

    def mean(values: Array) -> Array:
        return np.bincount(which, values, len(areas)) / pixels

    y, x = mean(rows), mean(columns)
    yy, xx, xy = mean((rows - y[which]) ** 2), mean((columns - x[which]) ** 2), mean((rows - y[which]) * (columns - x[which]))
    half, spread = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    return np.where(spread > 0, 1 - np.sqrt(np.maximum(half - spread, 0) / np.maximum(half + spread, 1e-300)), 0.0)


def size_classes(areas: Tensor, reach: float, least: int = 10) -> Tensor:
    """Group areas by density: DBSCAN on a line, classes numbered from the smallest areas (Ester et al. 1996).

    Args:
        areas: (P,) areas.
        reach: distance within which areas are neighbours, eps.
        least: areas within reach, its own among them, that make an area a core of its class.

    Returns:
        (P,) int64 classes from 0, and -1 for noise; equal to DBSCAN of the sorted areas, where an edge between two classes is the smaller one's.
    """
    values = areas.double().sort().values
    within = torch.searchsorted(values, values + reach, right=True) - torch.searchsorted(values, values - reach)
    cores = values[within >= least]
    if not len(cores):
        return torch.full(areas.shape, NOISE)
    numbers = torch.cat([torch.zeros(1).long(), (cores.diff() > reach).cumsum(0)])
    first = torch.searchsorted(cores, areas.double() - reach)  # the lowest core in reach
    nearest = first.clamp(max=len(cores) - 1)
    return torch.where((first < len(cores)) & (cores[nearest] <= areas.double() + reach), numbers[nearest], NOISE)


def vote(areas: Tensor, known: Tensor, classes: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Give areas the majority class of the nearest known areas.

    Args:
        areas: (P,) areas.
        known: (R,) areas of training pieces, ascending.
        classes: (R,) their classes, -1 for noise.
        neighbours: that vote; of areas as near, the smaller ones.

    Returns:
        (P,) int64 classes; noise votes as a class does, and ties go to the smallest number, noise first. All noise if nothing is known.
    """
    voters = min(neighbours, len(known))
    if not voters or not len(areas):
        return torch.full(areas.shape, NOISE)
    places = torch.searchsorted(known.double(), areas.double())[:, None] + torch.arange(-voters, voters)
    distances = (known.double()[places.clamp(0, len(known) - 1)] - areas.double()[:, None]).abs()
    distances[(places < 0) | (places >= len(known))] = torch.inf
    nearest = places.gather(1, distances.argsort(dim=1, stable=True)[:, :voters])
    votes = torch.nn.functional.one_hot(classes[nearest] - NOISE, int(classes.max()) - NOISE + 1).sum(1)
    return votes.argmax(1) + NOISE
