"""The equations of the losses, one a function; none of them knows a high-resolution target. They are ours: the paper's could not be read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Boundary, Physics, Wind, of_frames, stencil

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Scales a of the inverse multi-quadratic kernels."""


def coarse_loss(fields: Tensor, coarse: Tensor, mask: Tensor) -> Tensor:
    """L_LR, the mean of (A c - y)^2 over observed pixels; 0 without any.

    Args:
        fields: (..., H, W).
        coarse: (..., h, w).
        mask: (..., h, w) bool.
    """
    difference = block_mean(fields, fields.shape[-1] // coarse.shape[-1]) - coarse
    return (difference.square() * mask).sum() / mask.sum().clamp_min(1)


def step_loss(fields: Tensor, wind: Wind, physics: Physics, source: Tensor | None = None, diffusivity: Tensor | None = None) -> Tensor:
    """L_PDE in step form: the mean of (c_{t+1} - S_Delta(c_t))^2 over cells and frames; gradients run through both terms.

    Args:
        fields: (B, T, H, W), T at least 2.
        wind: of (B, T or 1, ...).
        physics: what is known.
        source: (B, T or 1, H, W) rate of release by area, or None.
        diffusivity: learnt D, or None.
    """
    frames = fields.shape[1]
    carried = physics.advance(fields[:, :-1], wind.frames(0, frames - 1), of_frames(source, 0, frames - 1), diffusivity)
    return (fields[:, 1:] - carried).square().mean()


def residual_loss(fields: Tensor, wind: Wind, physics: Physics, source: Tensor | None = None, diffusivity: Tensor | None = None) -> Tensor:
    """L_PDE in residual form, times Delta^2: the mean of (c_{t+1} - c_t - Delta (L c_m + s))^2, c_m the mean of both frames.

    Takes what `step_loss` takes.
    """
    frames = fields.shape[1]
    scheme = "central" if physics.scheme == "vanleer" else physics.scheme
    known = physics.diffusivity if diffusivity is None else diffusivity
    operator = stencil(wind.frames(0, frames - 1), known, physics.spacing, scheme, physics.boundary)
    rate = operator((fields[:, 1:] + fields[:, :-1]) / 2, physics.boundary)
    if source is not None:
        rate = rate + of_frames(source, 0, frames - 1)
    return (fields[:, 1:] - fields[:, :-1] - physics.interval * rate).square().mean()


def negativity(fields: Tensor) -> Tensor:
    """L_neg, the mean of relu(-c)^2."""
    return (-fields).relu().square().mean()


def roughness(fields: Tensor, boundary: Boundary) -> Tensor:
    """L_smooth, the mean of |grad c|^2 by differences of neighbours, in units of a cell.

    Args:
        fields: (..., H, W).
        boundary: a periodic domain's sides are neighbours.
    """
    if boundary == "periodic":
        return (fields.roll(-1, -1) - fields).square().mean() + (fields.roll(-1, -2) - fields).square().mean()
    return fields.diff(dim=-1).square().mean() + fields.diff(dim=-2).square().mean()


def mmd_imq(first: Tensor, second: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """Unbiased maximum mean discrepancy with inverse multi-quadratic kernels C/(C + |x - y|^2), C = 2 d a, summed over scales.

    It may be below zero, and is not clamped.

    Args:
        first: (N, d) samples of one distribution.
        second: (N, d) samples of the other.
        scales: a.

    Raises:
        ValueError: with fewer than two samples.
    """
    count, size = first.shape
    if count < 2 or second.shape != first.shape:
        raise ValueError(f"the discrepancy takes two equal numbers of samples, at least 2, not {tuple(first.shape)} and {tuple(second.shape)}")
    within = count * (count - 1)
    total = first.new_zeros(())
    distances = [_squared_distances(one, other) for one, other in ((first, first), (second, second), (first, second))]
    for scale in scales:
        constant = 2.0 * size * scale
        own, others, cross = (constant / (constant + distance) for distance in distances)
        total = total + (own.sum() - own.diagonal().sum() + others.sum() - others.diagonal().sum()) / within - 2 * cross.mean()
    return total


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return (N, M) squared distances; the formula by products may leave small negative ones."""
    return torch.addmm(first.square().sum(1)[:, None] + second.square().sum(1), first, second.T, alpha=-2).clamp_min(0)
