"""Orthogonal projection (Sandoval-Segura et al. 2023): take out of all images the directions that a linear classifier reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.dvae.batches import check_set, to_bytes
from projects.dvae.defences.base import Defence
from shared.data.memory import CHUNK, chunks, to_unit
from shared.seeding import generator

LR = 0.1
BATCH = 1024
EPOCHS = 20
STEPS = 400
"""Least number of steps: 20 epochs of a small set would be few."""


def fit_directions(images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Fit a softmax regression without bias on pixels by SGD.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,) int64.
        seed: seed of the order.

    Returns:
        (K, C · H · W) weights.
    """
    size = min(BATCH, len(images), max(1, CHUNK // images[0].numel()))
    epochs = max(EPOCHS, -(-STEPS // (len(images) // size)))
    weights = images.new_zeros((int(labels.max()) + 1, images[0].numel()), dtype=torch.float32)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator(seed, "projection", epoch)).to(images.device)
        for rows in order[: len(order) // size * size].split(size):
            pixels = to_unit(images[rows]).flatten(1)
            error = (pixels @ weights.T).softmax(1) - F.one_hot(labels[rows], len(weights))
            weights -= LR / size * (error.T @ pixels)  # the gradient of the mean cross-entropy
    return weights


def project_out(images: Tensor, basis: Tensor) -> Tensor:
    """Remove the span of orthonormal columns from images, x - Q Q^T x.

    Args:
        images: (B, C, H, W).
        basis: Q, (C · H · W, K).

    Returns:
        (B, C, H, W), without bounds.
    """
    flat = images.flatten(1)
    return (flat - (flat @ basis) @ basis.T).view_as(images)


def basis_of(weights: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of (K, D) weights, (D, rank).

    The weights of a softmax regression that starts at 0 add up to 0, so the rank is K - 1; of such, QR makes a last direction out of rounding errors.
    """
    left, values, _ = torch.linalg.svd(weights.T.double(), full_matrices=False)
    return left[:, values > 1e-5 * values[0]].float()


class OrthogonalProjection(Defence):
    """Removes the K weight vectors of a softmax regression, fitted to the set, from every image; the result is clipped to [0, 1]."""

    name = "op"

    def transform_set(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        check_set(images, labels)
        basis = basis_of(fit_directions(images, labels, seed))
        projected = torch.empty_like(images)
        for part in chunks(images):
            projected[part] = to_bytes(project_out(to_unit(images[part]), basis))
        return projected
