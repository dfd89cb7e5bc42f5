"""Baselines that need no network: random noise, a checkerboard, and LSP and AR with the regions of an image as their classes.

All return perturbations δ in units of [0, 1] images, of at most ε.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared.poisons import AutoregressiveProcesses, enlarge, patch_colours, patch_grid, scale_to_linf
from shared.seeding import generator

Fields = Callable[[Tensor, int], Tensor]
"""Maps (B,) indices and a class to fields (B, C, H, W)."""


def random_noise(indices: Tensor, shape: tuple[int, int, int], levels: int, seed: int) -> Tensor:
    """Draw whole levels uniformly from [-ε, ε] for images of (C, H, W) at (B,) indices, each from its own generator."""
    drawn = [torch.randint(-levels, levels + 1, shape, generator=generator(seed, "noise", index)) for index in indices.tolist()]
    return torch.stack(drawn).float() / 255


def checkerboard(shape: tuple[int, int, int], levels: int) -> Tensor:
    """Return ε and -ε in turn over rows and columns, the same in all channels: (1, C, H, W), with ε at the upper left."""
    rows, columns = torch.arange(shape[1])[:, None], torch.arange(shape[2])
    signs = 1 - 2 * ((rows + columns) % 2)
    return (signs * (levels / 255)).expand(1, *shape)


def join_by_region(fields: Fields, indices: Tensor, masks: Tensor, classes: int, epsilon: float) -> Tensor:
    """Join one field a region: δ = Σ_k 1[y = k] · field_k, each scaled to the l-infinity norm ε before.

    The background is a class of its own; with one class of foreground this is M · δ_in + (1 - M) · δ_out.

    Args:
        fields: draws fields of any scale.
        indices: (B,) numbers of the images.
        masks: (B, H, W) integers in [0, K].
        classes: foreground classes K.
        epsilon: ε in units of [0, 1] images.

    Returns:
        (B, C, H, W).
    """
    joined = scale_to_linf(fields(indices, 0), epsilon)
    for label in range(1, classes + 1):
        joined = torch.where(masks[:, None] == label, scale_to_linf(fields(indices, label), epsilon), joined)
    return joined


def patch_fields(count: int, classes: int, shape: tuple[int, int, int], patch: int, seed: int) -> Fields:
    """Return the fields of LSP: each image has a draw of its own from every region's cluster of patch colours.

    Args:
        count: number of images N.
        classes: foreground classes K; there are K + 1 clusters.
        shape: (C, H, W).
        patch: side of a patch in pixels.
        seed: seed of clusters and draws.

    Raises:
        ValueError: for a patch that does not fit the image.
    """
    size = shape[1], shape[2]
    labels = torch.arange(classes + 1).repeat_interleave(count)
    colours = patch_colours(labels, classes + 1, shape[0], patch_grid(size, patch), seed=seed).unflatten(0, (classes + 1, count))

    def fields(indices: Tensor, label: int) -> Tensor:
        return enlarge(colours[label, indices], size, patch)

    return fields


def autoregressive_fields(processes: AutoregressiveProcesses, size: tuple[int, int], seed: int) -> Fields:
    """Return the fields of AR: every region has its process, and every image starts of its own."""

    def fields(indices: Tensor, label: int) -> Tensor:
        labels = torch.full((len(indices),), label)
        return processes.draw(labels, size, indices, seed).float()

    return fields
