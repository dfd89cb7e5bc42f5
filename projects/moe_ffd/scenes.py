"""Procedural scenes without faces, each of two regions with different degradations: what the tiny backbone is pretrained on.

made = scenes(1400, seed=0)
made.images     # (1400, 3, 48, 48) uint8
made.labels     # (1400, 8, 8) places in DEGRADATIONS, a patch of 6 x 6 pixels each

Every scene is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from shared.forgery.blending import add_camera_noise, jpeg, resample, smooth
from shared.seeding import generator

DEGRADATIONS = ("noisy", "clean", "blurred", "resampled", "sharpened")
"""What may have been done to a region, in the order of the labels. All but clean begin with a camera's noise."""
ELLIPSES = 6


@dataclass(frozen=True)
class Scenes(Dataset):
    """Scenes with the degradation of their patches.

    Attributes:
        images: (N, 3, S, S) uint8.
        labels: (N, S / P, S / P) int64, places in `DEGRADATIONS`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices)
        return {"image": self.images[rows], "label": self.labels[rows], "index": rows}


def scenes(count: int, seed: int = 0, size: int = 48, patch: int = 6, split: str = "train") -> Scenes:
    """Draw scenes.

    Args:
        count: number of scenes.
        seed: seed of all choices.
        size: side S of the images in pixels.
        patch: side P of the patches that are labelled, in pixels.
        split: scenes of differently named splits differ.

    Raises:
        ValueError: if there is nothing to draw, or patches do not fill the image.
    """
    if count < 1 or size < patch or patch < 1 or size % patch:
        raise ValueError(f"need at least one scene and a size that is a multiple of the patch, got {count} scenes, size {size} and patch {patch}")
    chance, fields, white = (torch.stack(drawn) for drawn in zip(*(_draw(seed, split, index, size) for index in range(count)), strict=True))
    clean = _paint(chance[:, : 11 * ELLIPSES].unflatten(1, (ELLIPSES, 11)), fields, size)
    rest = chance[:, 11 * ELLIPSES :]
    inside = _region(rest[:, :5], size)  # (N, 1, S, S)
    first, second = _two_labels(rest[:, 5:7])
    degraded = _degrade(clean, white, rest[:, 7])  # (N, 5, 3, S, S)
    rows = torch.arange(count)
    images = torch.where(inside, degraded[rows, first], degraded[rows, second])
    covered = F.avg_pool2d(inside.float(), patch)[:, 0] >= 0.5  # (N, S / P, S / P): most of the patch is inside
    labels = torch.where(covered, first[:, None, None], second[:, None, None])
    qualities = 75 + (24 * rest[:, 8]).long()  # 75 to 98, as of the faces
    return Scenes(jpeg((images.clamp(0, 1) * 255).round().byte(), qualities), labels)


def _draw(seed: int, split: str, index: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a scene's uniform numbers, the coarse colours of its ground, and white noise."""
    own = generator(seed, "scenes", split, index)
    return torch.rand(11 * ELLIPSES + 9, generator=own), torch.rand(3, 4, 4, generator=own), torch.randn(3, size + 2, size + 2, generator=own)


def _paint(chance: Tensor, fields: Tensor, size: int) -> Tensor:
    """Paint ellipses with soft edges and linear shading on smooth fields of colour; returns (N, 3, S, S) in [0, 1].

    Args:
        chance: (N, ELLIPSES, 11) uniform numbers: place, radii, angle, colour, shading, softness.
        fields: (N, 3, 4, 4) colours in [0, 1] that the ground is interpolated from.
        size: side S in pixels.
    """
    canvas = F.interpolate(0.1 + 0.8 * fields, size=(size, size), mode="bicubic", align_corners=False)
    for ellipse in chance.unbind(1):
        distance, along = _ellipse(ellipse[:, :5], size, 0.08, 0.35)
        coverage = torch.sigmoid(-distance * size / (1 + 3 * ellipse[:, 10, None, None]) * 2)[:, None]
        colour = ellipse[:, 5:8, None, None] + 0.4 * (ellipse[:, 8:9, None, None] - 0.5) * along[:, None]
        canvas = canvas + coverage * (0.4 + 0.6 * ellipse[:, 9, None, None, None]) * (colour - canvas)
    return canvas.clamp(0, 1)


def _ellipse(chance: Tensor, size: int, smallest: float, largest: float) -> tuple[Tensor, Tensor]:
    """Return the distance from an ellipse's edge, negative inside, and the coordinate along its first axis in [-1, 1] inside, both (N, S, S).

    Args:
        chance: (N, 5) uniform numbers: row and column of the centre, two radii, angle.
        size: side S in pixels.
        smallest: least radius in parts of the side.
        largest: greatest radius.
    """
    points = (torch.arange(size) + 0.5) / size
    y, x = points[:, None] - chance[:, 0, None, None], points - chance[:, 1, None, None]
    sine, cosine = (f(math.pi * chance[:, 4])[:, None, None] for f in (torch.sin, torch.cos))
    radii = smallest + (largest - smallest) * chance[:, 2:4]
    along = (cosine * x + sine * y) / radii[:, 0, None, None]
    across = (cosine * y - sine * x) / radii[:, 1, None, None]
    return (along.hypot(across) - 1) * radii.amin(1)[:, None, None], along


def _region(chance: Tensor, size: int) -> Tensor:
    """Return the first region, an ellipse around the middle half of the image, as (N, 1, S, S) bool."""
    centred = torch.cat([0.25 + 0.5 * chance[:, :2], chance[:, 2:]], dim=1)
    return (_ellipse(centred, size, 0.25, 0.5)[0] < 0)[:, None]


def _two_labels(chance: Tensor) -> tuple[Tensor, Tensor]:
    """Choose two different degradations, each (N,)."""
    kinds = len(DEGRADATIONS)
    first = (kinds * chance[:, 0]).long()
    return first, (first + 1 + ((kinds - 1) * chance[:, 1]).long()) % kinds


def _degrade(clean: Tensor, white: Tensor, strength: Tensor) -> Tensor:
    """Return every scene in every degradation, in the order of `DEGRADATIONS`, as (N, 5, 3, S, S).

    Args:
        clean: (N, 3, S, S) in [0, 1].
        white: (N, 3, S + 2, S + 2) standard normal noise.
        strength: (N,) uniform numbers that the strength of the blur, the resampling and the sharpening follows.
    """
    noisy = add_camera_noise(clean, white)
    softened = torch.cat([smooth(image[None], 0.6 + 0.6 * part) for image, part in zip(noisy, strength.tolist(), strict=True)])
    resampled = resample(noisy, 0.45 + 0.25 * strength)
    sharpened = noisy + (0.8 + 0.8 * strength[:, None, None, None]) * (noisy - smooth(noisy, 1.0))
    return torch.stack([noisy, clean, softened, resampled, sharpened], dim=1)
