"""Forgeries made of photographs that need no download; each is a function of (seed, split, index) and its kind alone.

image, mask, kind = forge("train", index=7, seed=0, size=96, kind="jpeg")

What is drawn of host and mask does not depend on the kind: of one index, pictures of all kinds are made of the same host with the same mask, so that
kinds are compared on equal terms, and `control`, whose mask marks nothing but an untouched host, tells what can be guessed from the mask's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.tripinet.pairs import AUTHENTIC
from shared.data.files import read_levels
from shared.data.memory import through_jpeg
from shared.data.offline import PHOTOGRAPHS, Split, photograph_file
from shared.seeding import generator

IN_PLACE = ("noise", "jpeg", "resample")
"""The same content with another history inside the mask: no seam, no meaning, only forensic clues."""

FORGERIES = (*IN_PLACE, "splice", "copymove", "inpaint")
"""Kinds that leave a trace."""

LARGEST = 150
"""Largest side of a crop, in pixels: the shortest side of the halved photographs."""

_AREA = (0.03, 0.25)


class Forged(NamedTuple):
    """A picture, (3, S, S) uint8; where it was manipulated, (1, S, S) bool; and how."""

    image: Tensor
    mask: Tensor
    kind: str


@dataclass(frozen=True)
class _Scene:
    """What a forger works with: a host and donor in 0..255, (3, S, S) float32, a mask, (1, S, S) bool, and his own chance."""

    host: Tensor
    donor: Tensor
    mask: Tensor
    chance: torch.Generator

    def between(self, low: float, high: float) -> float:
        """Draw a number between two others."""
        return _between(low, high, self.chance)


def forge(split: Split, index: int, seed: int = 0, size: int = 96, kind: str = "noise") -> Forged:
    """Make a picture.

    Args:
        split: whose photographs are used; no photograph is in two splits.
        index: number of the picture, 0 or more.
        seed: seed of everything.
        size: height and width, in pixels; 16 to `LARGEST`.
        kind: one of `FORGERIES`, `control`, or `authentic`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if kind not in (*FORGERIES, "control", AUTHENTIC):
        raise ValueError(f"no forgery {kind!r}: choose one of {', '.join((*FORGERIES, 'control', AUTHENTIC))}")
    if not 16 <= size <= LARGEST:
        raise ValueError(f"size must be from 16 to {LARGEST} pixels, got {size}")
    chance = generator(seed, "forging", split, index)
    photographs = _photographs(split)
    numbers = torch.randperm(len(photographs), generator=chance).tolist()
    host = _crop(photographs[numbers[0]], size, chance)
    host = _levels(host + _between(2, 4, chance) * torch.randn(host.shape, generator=chance))
    donor = _crop(photographs[numbers[1]], size, chance)
    mask = star(size, chance)
    if kind == AUTHENTIC:
        return Forged(host.byte(), torch.zeros_like(mask), kind)
    if kind == "control":
        return Forged(host.byte(), mask, kind)
    scene = _Scene(host, donor, mask, generator(seed, "forging", split, index, kind))
    return Forged(_levels(_FORGERS[kind](scene)).byte(), mask, kind)


def kind_at(index: int, kinds: Sequence[str], authentic: float) -> str:
    """Say of which kind a picture of a mixed set is: all kinds come equally often, and authentic pictures at even distances.

    Args:
        index: number of the picture.
        kinds: the kinds of manipulated pictures.
        authentic: part of authentic pictures, in [0, 1).
    """
    before = math.floor(index * authentic)
    return AUTHENTIC if math.floor((index + 1) * authentic) > before else kinds[(index - before) % len(kinds)]


def star(size: int, chance: torch.Generator) -> Tensor:
    """Draw a blob, (1, S, S) bool, that is star-shaped about a centre anywhere in the picture and covers 3 to 25 % of it, whatever is cut off.

    Centres that keep away from the border would let a model guess masks from their place.
    """
    centre = size * torch.rand(2, generator=chance)
    y, x = torch.meshgrid(*(torch.arange(size) + 0.5 - place for place in centre), indexing="ij")
    waves = torch.arange(2, 6)[:, None, None]
    weights, phases = torch.rand(2, 4, 1, 1, generator=chance)
    radius = 1 + (0.5 * weights / waves * torch.cos(waves * torch.atan2(y, x) + 2 * math.pi * phases)).sum(0)  # at least a third
    distance = torch.hypot(y, x) / radius
    count = round(_between(*_AREA, chance) * size**2)
    return (distance <= distance.flatten().kthvalue(count).values)[None]


def membrane(image: Tensor, hole: Tensor, sweeps: int = 8) -> Tensor:
    """Fill a hole with what a membrane over its border would be: nearly harmonic, from coarse to fine, in time proportional to the pixels.

    Args:
        image: (C, H, W) float; what it holds inside the hole does not matter.
        hole: (1, H, W) bool, not all of it True.
        sweeps: relaxations at each scale.

    Returns:
        (C, H, W), equal to `image` outside the hole and within the range of its known values inside.
    """
    if not hole.any():
        return image
    known = (~hole).to(image.dtype)
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(image.where(~hole, 0), 2, ceil_mode=True) / share.clamp_min(torch.finfo(image.dtype).tiny)
    filled = membrane(coarse, share == 0, sweeps)
    guess = F.interpolate(filled[None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
    image = torch.where(hole, guess, image)
    for _ in range(sweeps):
        around = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
        mean = (around[:, :-2, 1:-1] + around[:, 2:, 1:-1] + around[:, 1:-1, :-2] + around[:, 1:-1, 2:]) / 4
        image = torch.where(hole, mean, image)
    return image


def _noise(scene: _Scene) -> Tensor:
    extra = scene.between(3, 6) * torch.randn(scene.host.shape, generator=scene.chance)
    return torch.where(scene.mask, scene.host + extra, scene.host)


def _jpeg(scene: _Scene) -> Tensor:
    """Compress with quality 40 to 65 on a grid that is shifted against the picture's."""
    down, right = 1 + torch.randint(7, (2,), generator=scene.chance)
    framed = F.pad(scene.host[None], (int(right), 0, int(down), 0), mode="replicate")
    return torch.where(scene.mask, _compress(framed[0], scene.between(40, 65))[:, down:, right:], scene.host)


def _resample(scene: _Scene) -> Tensor:
    """Shrink to 0.55 to 0.8 of the size and enlarge again."""
    size = scene.host.shape[1:]
    smaller = [round(scene.between(0.55, 0.8) * side) for side in size]
    small = F.interpolate(scene.host[None], size=smaller, mode="bilinear", align_corners=False, antialias=True)
    return torch.where(scene.mask, F.interpolate(small, size=size, mode="bilinear", align_corners=False)[0], scene.host)


def _splice(scene: _Scene) -> Tensor:
    """Lay a crop of another photograph in, with noise and compression of its own, in the colours of what it covers, its edge softened by a pixel."""
    noisy = scene.donor + scene.between(0, 6) * torch.randn(scene.donor.shape, generator=scene.chance)
    donor = _compress(noisy, scene.between(60, 95))
    covered, inside = scene.host[:, scene.mask[0]], donor[:, scene.mask[0]]
    spread = (covered.std(1) / inside.std(1).clamp_min(1)).clamp(0.5, 2)
    matched = (donor - inside.mean(1)[:, None, None]) * spread[:, None, None] + covered.mean(1)[:, None, None]
    return _laid(matched, scene)


def _copymove(scene: _Scene) -> Tensor:
    """Lay a patch of the same picture in, from a quarter to half a side away; half of the patches are also turned and scaled."""
    size = scene.host.shape[1]
    centre = scene.mask[0].nonzero().float().mean(0)
    away = torch.tensor([round(scene.between(0.25, 0.5) * size) for _ in range(2)])
    start = centre + torch.where(centre < size / 2, away, -away)
    is_moved_only = scene.between(0, 1) < 0.5
    angle, scale = (0.0, 1.0) if is_moved_only else (math.radians(scene.between(-30, 30)), scene.between(0.8, 1.25))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1)
    rows_columns = (places - centre) @ turn.T + start  # where each pixel comes from
    grid = (2 * rows_columns.flip(-1) + 1) / size - 1  # as grid_sample counts: x first, from -1 to 1
    return _laid(F.grid_sample(scene.host[None], grid[None], padding_mode="reflection", align_corners=False)[0], scene)


def _inpaint(scene: _Scene) -> Tensor:
    return membrane(scene.host, scene.mask)


_FORGERS: dict[str, Callable[[_Scene], Tensor]] = {
    "noise": _noise,
    "jpeg": _jpeg,
    "resample": _resample,
    "splice": _splice,
    "copymove": _copymove,
    "inpaint": _inpaint,
}


@cache
def _photographs(split: Split) -> list[Tensor]:
    """Read the photographs of a split in 0..255, at half their size: that ends the grid of the compression they came with."""
    return [F.avg_pool2d(read_levels(photograph_file(name)).float(), 2) for name in PHOTOGRAPHS[split]]


def _crop(photograph: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """Cut a square out anywhere, in one of its eight positions."""
    top, left = (int(torch.randint(side - size + 1, (), generator=chance)) for side in photograph.shape[1:])
    crop = photograph[:, top : top + size, left : left + size]
    position = int(torch.randint(8, (), generator=chance))
    return (crop.flip(2) if position < 4 else crop).rot90(position, (1, 2))


def _laid(patch: Tensor, scene: _Scene) -> Tensor:
    soft = F.avg_pool2d(scene.mask.float(), 3, 1, 1, count_include_pad=False)
    return soft * patch + (1 - soft) * scene.host


def _compress(image: Tensor, quality: float) -> Tensor:
    return through_jpeg(_levels(image).byte()[None], round(quality))[0].float()


def _levels(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255)


def _between(low: float, high: float, chance: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=chance))
