"""What befalls depth: sensors that fail, maps that are misaligned or another picture's, and far taken for near.

corrupted = corrupt(depth, "grain", 0.2, index=7)      # (1, H, W) in [0, 1], as depth

The functions below take (..., 1, H, W) depth in [0, 1] with near = 1 and return the same shape; pixels that were not measured are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.hodinet.depth import fitted
from shared.seeding import generator

BLOCKS = 8
"""Blocks along a side, some of which `holes` takes away."""


@dataclass(frozen=True)
class Corruption:
    """A corruption.

    Attributes:
        unit: what its strength is, for tables and figures.
        strengths: those of the table, the mildest one first; none if it has no degrees.
        apply: maps depth, the depth of another picture, a strength and where chance comes from to depth.
    """

    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, Tensor, float, torch.Generator], Tensor]


def corrupt(depth: Tensor, name: str, strength: float | None, index: int, seed: int = 0, other: Tensor | None = None) -> Tensor:
    """Corrupt the depth of a picture.

    Args:
        depth: (1, H, W) in [0, 1], near = 1.
        name: a key of `CORRUPTIONS`.
        strength: in the unit of the corruption; None where it has no degrees.
        index: number of the picture within its set.
        seed: seed of what is random, which depends on (seed, name, strength, index) alone.
        other: (1, h, w), the depth of another picture, which `shuffled` needs.

    Returns:
        (1, H, W) in [0, 1].

    Raises:
        ValueError: if there is no such corruption, or it lacks its strength or the other depth.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}: choose one of {', '.join(CORRUPTIONS)}")
    if strength is None and CORRUPTIONS[name].strengths:
        raise ValueError(f"the corruption {name} needs a strength: {CORRUPTIONS[name].unit}")
    if other is None and name == "shuffled":
        raise ValueError("the corruption shuffled needs the depth of another picture")
    chance = generator(seed, name, str(strength), index)
    return CORRUPTIONS[name].apply(depth, depth if other is None else other, strength or 0.0, chance)


def inverted(depth: Tensor) -> Tensor:
    """Take near for far; what was not measured stays so."""
    return torch.where(depth > 0, 1 - depth, 0)


def noise(depth: Tensor, chance: torch.Generator) -> Tensor:
    """Return uniform noise instead, which says nothing of the picture."""
    return torch.rand(depth.shape, generator=chance)


def grain(depth: Tensor, deviation: float, chance: torch.Generator) -> Tensor:
    """Add Gaussian noise to what was measured."""
    return torch.where(depth > 0, (depth + deviation * torch.randn(depth.shape, generator=chance)).clamp(0, 1), 0)


def holes(depth: Tensor, part: float, chance: torch.Generator) -> Tensor:
    """Take away some of the 8 x 8 blocks of the picture, as if they were not measured."""
    order = torch.rand(BLOCKS * BLOCKS, generator=chance).argsort().argsort().view(1, 1, BLOCKS, BLOCKS)
    blocks = F.interpolate((order >= round(part * BLOCKS * BLOCKS)).float(), size=depth.shape[-2:], mode="nearest")
    return depth * blocks[0]


def blur(depth: Tensor, deviation: float) -> Tensor:
    """Smooth by a Gaussian; its deviation is in parts of the longer side, and its weights sum to 1 at the border too."""
    down, across = (_gaussian(size, deviation * max(depth.shape[-2:])) for size in depth.shape[-2:])
    return (down @ depth @ across.T).clamp(0, 1)


def _gaussian(size: int, deviation: float) -> Tensor:
    """Return the (size, size) weights of the places of a line for each place."""
    places = torch.arange(size, dtype=torch.float32)
    return torch.softmax(-((places[:, None] - places) ** 2) / (2 * deviation**2), dim=1)


def shift(depth: Tensor, part: float, chance: torch.Generator) -> Tensor:
    """Move to a random direction, by a part of the longer side; the border is repeated."""
    angle, far = 2 * math.pi * float(torch.rand((), generator=chance)), part * max(depth.shape[-2:])
    moves = (round(far * math.sin(angle)), round(far * math.cos(angle)))
    rows, columns = ((torch.arange(size) - move).clamp(0, size - 1) for size, move in zip(depth.shape[-2:], moves, strict=True))
    return depth[..., rows[:, None], columns]


def levels(depth: Tensor, count: float) -> Tensor:
    """Round to so many levels, of which 0 and 1 are two."""
    return (depth * (count - 1)).round() / (count - 1)


CORRUPTIONS = {
    "inverted": Corruption("", (), lambda depth, other, strength, chance: inverted(depth)),
    "noise": Corruption("", (), lambda depth, other, strength, chance: noise(depth, chance)),
    "shuffled": Corruption("", (), lambda depth, other, strength, chance: fitted(other, (depth.shape[-2], depth.shape[-1]))),
    "missing": Corruption("", (), lambda depth, other, strength, chance: torch.zeros_like(depth)),
    "grain": Corruption("standard deviation", (0.05, 0.1, 0.2, 0.4), lambda depth, other, strength, chance: grain(depth, strength, chance)),
    "holes": Corruption("part of the picture", (0.1, 0.25, 0.5, 0.75), lambda depth, other, strength, chance: holes(depth, strength, chance)),
    "blur": Corruption("deviation, parts of the side", (0.01, 0.02, 0.05, 0.1), lambda depth, other, strength, chance: blur(depth, strength)),
    "shift": Corruption("parts of the side", (0.02, 0.05, 0.1, 0.2), lambda depth, other, strength, chance: shift(depth, strength, chance)),
    "levels": Corruption("number of levels", (16, 8, 4, 2), lambda depth, other, strength, chance: levels(depth, strength)),
}
"""Corruptions by name: first those that leave nothing of the depth as it was, which have no degrees."""
