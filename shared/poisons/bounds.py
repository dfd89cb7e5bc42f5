"""Perturbations on the grid of 8-bit images: how they are added, kept within a bound, and measured as they are stored."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["linf", "l2", "l0", "unbounded"]
"""Norm of a bound, in the unit its attacks are customarily given in: linf in pixels of 255, l2 of images in [0, 1], l0 in pixels."""

CHUNK = 1024


def to_levels(images: Tensor) -> Tensor:
    """Map images in [0, 1] to uint8 levels, clipped and rounded; truncation would darken them by half a level."""
    return (images * 255).round().clamp(0, 255).byte()


def add_on_grid(images: Tensor, delta: Tensor) -> Tensor:
    """Add signed perturbations to 8-bit images, uint8(clip(round(255 x + 255 δ), 0, 255)).

    Args:
        images: (B, C, H, W) uint8.
        delta: (B, C, H, W) float, in units of [0, 1] images; its sign is kept, where a published loader of error-minimising noise drops it.

    Returns:
        (B, C, H, W) uint8.
    """
    return (images + 255 * delta).round().clamp(0, 255).byte()


def add_within_l2(images: Tensor, delta: Tensor, radius: float, rounds: int = 8) -> Tensor:
    """Add perturbations so that what is stored differs by at most `radius` in the Euclidean norm.

    Rounding may lengthen a perturbation by some per cent; those that became too long are shortened and rounded again, and at last rounded towards 0.

    Args:
        images: (B, C, H, W) uint8.
        delta: (B, C, H, W) float, in units of [0, 1] images, whose norms are at most `radius`.
        radius: bound, in units of [0, 1] images.
        rounds: how often a perturbation is shortened.

    Returns:
        (B, C, H, W) uint8.
    """
    levels = add_on_grid(images, delta)
    scale, rows = images.new_ones(len(images), dtype=delta.dtype), torch.arange(len(images), device=images.device)
    for _ in range(rounds):
        lengths = (levels[rows].float() - images[rows].float()).flatten(1).norm(dim=1) / 255
        rows, lengths = rows[lengths > radius], lengths[lengths > radius]
        if len(rows) == 0:
            return levels
        scale[rows] *= 0.999 * radius / lengths
        levels[rows] = add_on_grid(images[rows], scale[rows, None, None, None] * delta[rows])
    levels[rows] = (images[rows] + (255 * delta[rows]).trunc()).clamp(0, 255).byte()
    return levels


def measure(clean: Tensor, poisoned: Tensor) -> dict[str, float]:
    """Measure a perturbation on the stored integers.

    Args:
        clean: (N, C, H, W) uint8.
        poisoned: (N, C, H, W) uint8.

    Returns:
        `linf` (largest, in pixels of 255), `l2_mean` and `l2_max` (in units of [0, 1] images), `l0_mean` and `l0_max` (changed pixels, whatever the
        number of their channels that changed) and `psnr` (mean over images in dB; an unchanged image counts as 100).

    Raises:
        ValueError: if the two are not uint8 images of one shape, or are empty.
    """
    if clean.shape != poisoned.shape or clean.dtype != torch.uint8 or poisoned.dtype != torch.uint8 or len(clean) == 0:
        raise ValueError(f"expected uint8 images of one shape, got {clean.dtype} {tuple(clean.shape)} and {poisoned.dtype} {tuple(poisoned.shape)}")
    linf, rows = 0, []
    for before, after in zip(clean.split(CHUNK), poisoned.split(CHUNK), strict=True):
        difference = after.short() - before.short()
        linf = max(linf, int(difference.abs().max()))
        squares = difference.double().square().flatten(1).sum(1) / 255**2
        psnr = -10 * (squares / difference[0].numel()).clamp_min(1e-10).log10()
        rows.append(torch.stack([squares.sqrt(), difference.any(1).flatten(1).sum(1).double(), psnr], 1))
    l2, l0, psnr = torch.cat(rows).unbind(1)
    return {
        "linf": float(linf),
        "l2_mean": float(l2.mean()),
        "l2_max": float(l2.max()),
        "l0_mean": float(l0.mean()),
        "l0_max": float(l0.max()),
        "psnr": float(psnr.mean()),
    }


def check_radius(kind: Kind, radius: float, size: tuple[int, int]) -> None:
    """Refuse a radius that the kind of bound cannot have, for images of H x W pixels.

    Raises:
        ValueError: if it is not a number in the kind's range, or the kind has none.
    """
    pixels = size[0] * size[1]
    match kind:
        case "linf" if not 1 <= radius <= 127:
            raise ValueError(f"a radius in the linf norm is given in pixels of 255, between 1 and 127, got {radius}")
        case "l2" if not 0 < radius < float("inf"):
            raise ValueError(f"a radius in the l2 norm is given in units of [0, 1] images and must be positive, got {radius}")
        case "l0" if not float(radius).is_integer() or not 1 <= radius <= pixels:
            raise ValueError(f"a radius in the l0 norm is a number of pixels, between 1 and {pixels}, got {radius}")
        case "unbounded":
            raise ValueError("an unbounded perturbation has no radius")
