"""How a coarse instrument sees fine fields, and the plain ways back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.s3rp.physics import Boundary

Interpolation = Literal["nearest", "bilinear", "bicubic"]
REACH = 3
"""Coarse cells that interpolation pads with, as many as its kernel reaches."""


def block_mean(field: Tensor, factor: int) -> Tensor:
    """A, the mean of each block of `factor` x `factor` cells, (..., H, W) -> (..., H / factor, W / factor): exact for cell averages.

    Raises:
        ValueError: if the sides do not divide.
    """
    height, width = field.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"a field of {height} x {width} cells has no blocks of {factor} x {factor}")
    return field.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).mean((-3, -1))


def repeat(coarse: Tensor, factor: int) -> Tensor:
    """U, each coarse value in all cells of its block, (..., h, w) -> (..., h factor, w factor): A U = 1."""
    return coarse.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def project(field: Tensor, coarse: Tensor, mask: Tensor | None = None, gain: float = 1.0) -> Tensor:
    """Return the field nearest to `field` whose block means are the observations: c + U(y - A c).

    Args:
        field: (..., H, W).
        coarse: (..., h, w) observations.
        mask: (..., h, w) True where there is one; None everywhere.
        gain: part of the difference that is put right; below 1 for noisy observations.
    """
    factor = field.shape[-1] // coarse.shape[-1]
    difference = coarse - block_mean(field, factor)
    return field + gain * repeat(difference if mask is None else difference * mask, factor)


def interpolate(coarse: Tensor, factor: int, mode: Interpolation = "bicubic", boundary: Boundary = "periodic") -> Tensor:
    """Interpolate coarse values, (..., h, w) -> (..., h factor, w factor); the domain is continued around, or by its border's values.

    Bicubic is Keys' kernel with a = -0.75, as in torch.
    """
    if mode == "nearest":
        return repeat(coarse, factor)
    flat = coarse.reshape(-1, 1, *coarse.shape[-2:])
    reach = min(REACH, *coarse.shape[-2:])
    padded = F.pad(flat, [reach] * 4, mode="circular" if boundary == "periodic" else "replicate")
    fine = F.interpolate(padded, scale_factor=factor, mode=mode, align_corners=False)
    cut = reach * factor
    return fine[..., cut:-cut, cut:-cut].reshape(*coarse.shape[:-2], coarse.shape[-2] * factor, coarse.shape[-1] * factor)


def filled(coarse: Tensor, mask: Tensor, boundary: Boundary = "periodic") -> Tensor:
    """Fill missing coarse values by the mean of their neighbours, again and again from the outside in; frames without any stay zero.

    Args:
        coarse: (..., h, w).
        mask: (..., h, w) True where there is a value.
        boundary: of the domain.
    """
    if bool(mask.all()):
        return coarse
    shape = coarse.shape
    values, known = (coarse * mask).reshape(-1, 1, *shape[-2:]), mask.reshape(-1, 1, *shape[-2:]).to(coarse.dtype)
    kernel = coarse.new_ones(1, 1, 3, 3)
    fillable = known.flatten(1).any(1)[:, None, None, None]
    mode = "circular" if boundary == "periodic" else "constant"
    while bool((fillable & (known == 0)).any()):
        around, count = (F.conv2d(F.pad(part, [1] * 4, mode=mode), kernel) for part in (values * known, known))
        values = torch.where((known == 0) & (count > 0), around / count.clamp_min(1), values)
        known = torch.maximum(known, (count > 0).to(known.dtype))
    return values.reshape(shape)
