"""Perturbations that need no network: linearly separable patches of colour, and how fields are scaled to a bound."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from shared.seeding import derive_seed


def patch_colours(labels: Tensor, classes: int, channels: int, grid: tuple[int, int], separation: float = 10.0, seed: int = 0) -> Tensor:
    """Draw the patch colours of LSP (Yu et al. 2022): for every label a point of its class's Gaussian cluster, as scikit-learn draws them.

    The cluster centres are corners of a hypercube of side 2 · `separation`, and every cluster is stretched by a random matrix of its own. The
    labels need not be an image's class: any grouping of fields, such as inside and outside of a region, will do.

    Args:
        labels: (N,) integers in [0, K). The n-th field of a class gets the n-th point of its cluster.
        classes: number K of clusters.
        channels: channels C of a field.
        grid: patches over the height h and over the width w.
        separation: half the side of the hypercube; published: 10, at which the clusters are linearly separable.
        seed: seed of clusters and points.

    Returns:
        (N, C, h, w) colours of no particular scale.

    Raises:
        ValueError: if a label is outside of [0, K), or the C · h · w colours have too few corners for K clusters.
    """
    from sklearn.datasets import make_classification

    features = channels * grid[0] * grid[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
    if features < math.log2(max(2, classes)):
        raise ValueError(f"{features} patch colours cannot separate {classes} classes: take smaller patches")
    counts = torch.bincount(labels, minlength=classes)
    longest = max(int(counts.max()), 1)
    points, _ = make_classification(
        n_samples=longest * classes,
        n_features=features,
        n_informative=features,
        n_redundant=0,
        n_classes=classes,
        n_clusters_per_class=1,
        class_sep=separation,
        flip_y=0,
        shuffle=False,  # class by class, each with as many points
        random_state=derive_seed(seed, "separable patches") % 2**32,
    )
    order = torch.argsort(labels, stable=True)
    rows = np.empty(len(labels), dtype=np.int64)
    rows[order.numpy()] = np.concatenate([label * longest + np.arange(count) for label, count in enumerate(counts.tolist())])
    return torch.from_numpy(points[rows].astype(np.float32)).reshape(-1, channels, *grid)


def enlarge(colours: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Paint (N, C, h, w) colours over patches of `patch` x `patch` pixels and cut the field to (N, C, H, W)."""
    rows, columns = (torch.arange(length) // patch for length in size)
    return colours[:, :, rows[:, None], columns[None, :]]


def patch_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return how many patches cover a field of H x W pixels, those cut by its border included."""
    if not 1 <= patch <= min(size):
        raise ValueError(f"patch must be between 1 and the shorter side of the image, {min(size)} pixels, got {patch}")
    return -(-size[0] // patch), -(-size[1] // patch)


def separable_patches(
    labels: Tensor, classes: int, channels: int, size: tuple[int, int], patch: int = 8, separation: float = 10.0, seed: int = 0
) -> Tensor:
    """Fields of linearly separable patches (LSP, Yu et al. 2022), one for each label: `patch_colours` painted over the image.

    Args:
        labels: (N,) integers in [0, K).
        classes: number K of classes.
        channels: channels C.
        size: height and width in pixels; patches that do not fit are cut at the lower and the right border.
        patch: side of a patch in pixels; published: 8 for 32 x 32.
        separation: half the distance of neighbouring cluster centres; published: 10.
        seed: seed of clusters and points.

    Returns:
        (N, C, H, W) fields of no particular scale.

    Raises:
        ValueError: for labels or a patch out of range, or too few patches for the classes.
    """
    return enlarge(patch_colours(labels, classes, channels, patch_grid(size, patch), separation, seed), size, patch)


def scale_to_l2(fields: Tensor, radius: float) -> Tensor:
    """Scale each of (N, C, H, W) fields to the Euclidean norm `radius`; a field of zeros stays one."""
    norms = fields.flatten(1).norm(dim=1).clamp_min(torch.finfo(fields.dtype).tiny)
    return fields * (radius / norms).reshape(-1, 1, 1, 1)


def scale_to_linf(fields: Tensor, radius: float) -> Tensor:
    """Scale each of (N, C, H, W) fields so that its largest absolute value is `radius`; a field of zeros stays one."""
    peaks = fields.flatten(1).abs().amax(1).clamp_min(torch.finfo(fields.dtype).tiny)
    return fields * (radius / peaks).reshape(-1, 1, 1, 1)
