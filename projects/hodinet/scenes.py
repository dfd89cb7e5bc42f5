"""Scenes in which neither colour nor depth suffices: what is salient differs in colour and stands nearer.

scene = draw_scene("train", index=7, seed=0, size=64)      # scene.image, scene.depth, scene.mask

Every scene holds blobs of three kinds, one or two of each: salient ones, decals that differ in colour only, and bumps that are nearer only. Their
shapes, sizes and places come from one distribution, and what kind a blob is of is drawn last: so nothing but colour and depth together tells. A scene
is a function of (split, index, seed, size) and its variant; the variants of a scene share everything else.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from shared.data.offline import Split, photograph_file
from shared.runs import atomic
from shared.seeding import generator

Variant = Literal["default", "depth_easy", "rgb_easy", "bad_depth", "inverted"]
"""As above; without bumps, so that depth suffices; without decals, so that colour does; three in ten scenes with another scene's depth; far = 1."""

BAD_DEPTH = 0.3
"""Part of the scenes of `bad_depth` whose depth is that of another scene."""

_KINDS = ("salient", "decal", "bump")
_WAVES = torch.arange(2, 5)[:, None, None]
_AMPLITUDE = 0.35  # of all waves together, in parts of the radius
_RADII = (0.09, 0.17)
_GAP = 0.02
_NOISE = 0.03


@dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        image: (3, S, S) uint8.
        depth: (1, S, S) float32 in [0, 1], near = 1; holes are 0.
        mask: (1, S, S) bool, True where salient.
    """

    image: Tensor
    depth: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Blobs:
    """The blobs of a scene: (n, S, S) bool each, and the kind of each."""

    inside: Tensor
    kinds: list[str]

    def of(self, *kinds: str) -> Tensor:
        """Return (m, S, S), those of some kinds."""
        return self.inside[[kind in kinds for kind in self.kinds]]


def draw_scene(split: Split, index: int, seed: int = 0, size: int = 64, variant: Variant = "default") -> Scene:
    """Draw a scene.

    Args:
        split: train, val and test hold different scenes.
        index: number of the scene, 0 or more.
        seed: seed of everything.
        size: side S in pixels, at least 32.
        variant: see `Variant`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    if size < 32 or index < 0:
        raise ValueError(f"size must be at least 32 pixels and index 0 or more, got {size} and {index}")
    blobs = _blobs(size, generator(seed, "scenes", split, index))
    image = _colour(blobs, size, variant != "rgb_easy", generator(seed, "scenes", split, index, "colour"))
    depth = _depth(blobs, size, variant != "depth_easy", generator(seed, "scenes", split, index, "depth"))
    if variant == "bad_depth":
        other = generator(seed, "scenes", split, index, "bad depth")
        if _draw(other) < BAD_DEPTH:
            depth = _depth(_blobs(size, other), size, True, other)
    if variant == "inverted":
        depth = torch.where(depth > 0, 1 - depth, 0)
    return Scene(image, depth, blobs.of("salient").any(0, keepdim=True))


def _blobs(size: int, chance: torch.Generator) -> _Blobs:
    """Place blobs that do not touch, and then say of which kind each is."""
    kinds = [kind for kind in _KINDS for _ in range(1 + int(2 * _draw(chance)))]
    places = _places(len(kinds), chance)
    weights, phases = torch.rand(2, len(_WAVES), len(kinds), 1, 1, generator=chance)
    points = (torch.arange(size) + 0.5) / size
    y, x = points[:, None] - places[:, 0, None, None], points - places[:, 1, None, None]
    waves = _WAVES[..., None] * (torch.atan2(y, x) + 2 * math.pi * phases)
    radius = places[:, 2, None, None] * (1 + _AMPLITUDE * (weights * waves.cos()).mean(0))  # (n, S, S)
    order = torch.randperm(len(kinds), generator=chance).tolist()
    return _Blobs(torch.hypot(y, x) < radius, [kinds[number] for number in order])


def _places(count: int, chance: torch.Generator) -> Tensor:
    """Draw (count, 3) rows, columns and radii, in parts of the side, of blobs that keep a gap; some are cut off by the border."""
    while True:
        tried = torch.rand(24 * count, 3, generator=chance)
        tried[:, :2] = 0.05 + 0.9 * tried[:, :2]
        tried[:, 2] = _RADII[0] + (_RADII[1] - _RADII[0]) * tried[:, 2]
        kept: list[tuple[float, float, float]] = []
        for row, column, radius in tried.tolist():
            apart = (math.hypot(row - y, column - x) - (1 + _AMPLITUDE) * (radius + other) for y, x, other in kept)
            if all(distance > _GAP for distance in apart):
                kept.append((row, column, radius))
            if len(kept) == count:
                return torch.tensor(kept)


def _colour(blobs: _Blobs, size: int, with_decals: bool, chance: torch.Generator) -> Tensor:
    """Paint the ground, and shift the colour of what differs from it; returns (3, S, S) uint8."""
    ground = 0.35 + 0.3 * torch.rand(3, 1, 1, generator=chance) + _smooth(0.3 * torch.rand(3, 4, 4, generator=chance) - 0.15, size)
    texture = 0.06 * _smooth(torch.randn(1, size // 4, size // 4, generator=chance), size)
    grain = _NOISE * torch.randn(3, size, size, generator=chance)
    image = ground + texture + grain
    shifts = (0.1 + 0.2 * torch.rand(len(blobs.kinds), 3, generator=chance))[..., None, None]
    coloured = ("salient", "decal") if with_decals else ("salient",)
    for inside, kind, shift in zip(blobs.inside, blobs.kinds, shifts, strict=True):
        if kind in coloured:
            away = torch.where(ground[:, inside].mean(1)[:, None, None] < 0.5, shift, -shift)  # towards the middle: nothing is clipped
            image = torch.where(inside, image + away, image)
    return (255 * image.clamp(0, 1)).round().byte()


def _depth(blobs: _Blobs, size: int, with_bumps: bool, chance: torch.Generator) -> Tensor:
    """Tilt a floor, raise what is nearer, and add noise and holes; returns (1, S, S), near = 1."""
    points = (torch.arange(size) + 0.5) / size - 0.5
    slopes = 0.4 * torch.rand(2, generator=chance) - 0.2
    floor = 0.28 + 0.12 * _draw(chance) + slopes[0] * points[:, None] + slopes[1] * points
    rises = (0.15 + 0.15 * torch.rand(len(blobs.kinds), generator=chance))[:, None, None]
    raised = torch.tensor([kind == "salient" or (with_bumps and kind == "bump") for kind in blobs.kinds])[:, None, None]
    depth = floor + (rises * (blobs.inside & raised)).sum(0)
    depth = (depth + _NOISE * torch.randn(size, size, generator=chance)).clamp(0.01, 0.99)
    corners = torch.rand(1 + int(3 * _draw(chance)), 4, generator=chance)
    for row, column, height, width in corners.tolist():
        sides = (max(1, round(size * (0.04 + 0.1 * part))) for part in (height, width))
        rows, columns = (slice(int(size * start), int(size * start) + side) for start, side in zip((row, column), sides, strict=True))
        depth[rows, columns] = 0
    return depth[None]


def _smooth(coarse: Tensor, size: int) -> Tensor:
    """Enlarge (C, s, s) to (C, S, S) bicubically, by two products of matrices: F.interpolate takes five times as long for sides this small."""
    rows = _bicubic(coarse.shape[1], size)
    return rows @ coarse @ rows.T


@cache
def _bicubic(coarse: int, size: int) -> Tensor:
    """Return (size, coarse), the weights of bicubic interpolation along a side."""
    return F.interpolate(torch.eye(coarse)[None, None], size=(size, coarse), mode="bicubic", align_corners=False)[0, 0]


def _draw(chance: torch.Generator) -> float:
    return float(torch.rand((), generator=chance))


def motorcycle_example(folder: Path) -> tuple[Path, Path]:
    """Write the real stereo pair that scikit-image installs with itself: a motorcycle's left picture, and its disparity as 16-bit depth, near = 1.

    Where nothing was measured, the disparity is infinite; there, the file holds 0. Nobody has marked what is salient.

    Args:
        folder: where `RGB/motorcycle.png` and `depth/motorcycle.png`, 741 x 500 pixels, are written.

    Returns:
        Paths of picture and depth.

    Raises:
        FileNotFoundError: if scikit-image is not installed with its data.
    """
    disparity = np.load(photograph_file("motorcycle_disp.npz"), allow_pickle=False)["arr_0"]
    measured = np.isfinite(disparity)
    levels = np.where(measured, disparity / disparity[measured].max() * 65535, 0).round().astype(np.uint16)
    picture, depth = folder / "RGB" / "motorcycle.png", folder / "depth" / "motorcycle.png"
    for path in (picture, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(picture) as part:
        shutil.copyfile(photograph_file("motorcycle_left.png"), part)
    with atomic(depth) as part:
        Image.fromarray(levels).save(part, "PNG")
    return picture, depth
