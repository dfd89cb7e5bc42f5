"""What the surrogate's images go through in training, so that the protection survives it: differentiable, image by image.

Every image has its own numbers, which are drawn beforehand: so a result depends neither on the batch's size nor on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["blur", "jpeg", "affine", "flip"]
"""Gaussian blur, JPEG at some quality, rotation with scaling, and mirroring in both directions."""

CHANCES = 6
"""Numbers in [0, 1) that say how each image is augmented; one more for each augmentation says whether."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]
_TO_YCBCR = [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]


class SurrogateAugmentation:
    """Augments batches of images in [0, 1] with their masks.

    Args:
        names: augmentations, which are applied in the order flip, affine, blur, jpeg, whatever the order given.
        probability: how often an image goes through one of them; each direction of flip has a half.
        sigma: range of the blur's standard deviation in pixels.
        quality: range of JPEG's quality, whole numbers from 1 to 100.
        degrees: greatest rotation to either side.
        scale: range of the factor by which what is shown is enlarged.

    Raises:
        ValueError: if a name is not known or a range is wrong.
    """

    def __init__(
        self,
        names: Sequence[str],
        probability: float = 0.5,
        sigma: Sequence[float] = (0.5, 1.5),
        quality: Sequence[int] = (30, 95),
        degrees: float = 20.0,
        scale: Sequence[float] = (0.85, 1.25),
    ) -> None:
        unknown = sorted(set(names) - set(get_args(Augmentation)))
        if unknown:
            raise ValueError(f"unknown augmentations: {', '.join(unknown)}; there are: {', '.join(get_args(Augmentation))}")
        if not 0 <= probability <= 1 or not 0 < sigma[0] <= sigma[1] or not 1 <= quality[0] <= quality[1] <= 100 or not 0 < scale[0] <= scale[1]:
            ranges = f"probability {probability}, sigma {list(sigma)}, quality {list(quality)}, scale {list(scale)}"
            raise ValueError(f"the probability is in [0, 1], sigma and scale are positive, quality is in 1 to 100, lower ends first: got {ranges}")
        self.names = [name for name in ("flip", "affine", "blur", "jpeg") if name in names]
        self.probability, self.sigma, self.quality, self.degrees, self.scale = probability, sigma, quality, degrees, scale

    @staticmethod
    def draw(count: int, random: torch.Generator) -> Tensor:
        """Draw the numbers of `count` images, (count, 10), uniform in [0, 1); `random` is a generator on the CPU."""
        return torch.rand(count, len(get_args(Augmentation)) + CHANCES, generator=random)

    def __call__(self, images: Tensor, masks: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: (B, C, H, W) in [0, 1], through which gradients flow back.
            masks: (B, H, W) whole numbers.
            chance: (B, 10) on the CPU, from `draw`.

        Returns:
            Images and masks of the same shapes; those that nothing befell are unchanged.
        """
        numbers, used = chance[:, :CHANCES], dict(zip(get_args(Augmentation), (chance[:, CHANCES:] < self.probability).T, strict=True))
        for name in self.names:
            rows = (torch.ones_like(used[name]) if name == "flip" else used[name]).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            own, at = numbers[rows], rows.to(images.device)
            picked, labels = images[at], masks[at]
            match name:
                case "flip":
                    picked, labels = flip(picked, labels, own[:, 0] < 0.5, own[:, 1] < 0.5)
                case "affine":
                    angles = math.radians(self.degrees) * (2 * own[:, 2] - 1)
                    picked, labels = turn_and_scale(picked, labels, angles, _between(self.scale, own[:, 3]))
                case "blur":
                    picked = blur(picked, _between(self.sigma, own[:, 4]), self.sigma[1])
                case "jpeg":
                    low, high = self.quality
                    picked = jpeg(picked, (low + (high - low + 1) * own[:, 5]).floor())
            images, masks = images.index_copy(0, at, picked), masks.index_copy(0, at, labels)
        return images, masks


def _exactly(function: Callable[Concatenate[Tensor, _P], _R]) -> Callable[Concatenate[Tensor, _P], _R]:
    """Run a function of images outside of autocast: bfloat16 would change them by more grey levels than a perturbation does."""

    @wraps(function)
    def run(images: Tensor, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.autocast(images.device.type, enabled=False):
            return function(images, *args, **kwargs)

    return run


def _between(ends: Sequence[float], chance: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * chance


def flip(images: Tensor, masks: Tensor, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror (B, C, H, W) images and (B, H, W) masks left to right where (B,) `across` says so, and upside down where `down` does."""
    for axis, which in ((-1, across), (-2, down)):
        where = which.to(images.device)[:, None, None]
        images, masks = torch.where(where[:, None], images.flip(axis), images), torch.where(where, masks.flip(axis), masks)
    return images, masks


@_exactly
def turn_and_scale(images: Tensor, masks: Tensor, angles: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Turn and enlarge about the middle; what comes in from outside repeats the border.

    Args:
        images: (B, C, H, W), interpolated bilinearly.
        masks: (B, H, W) whole numbers, of which the nearest is taken.
        angles: (B,) in radians, counter-clockwise as seen.
        scales: (B,) factors by which what is shown becomes larger.

    Returns:
        Images and masks of the same shapes and types.
    """
    height, width = images.shape[2:]
    cosine, sine, zero = angles.cos() / scales, angles.sin() / scales, torch.zeros_like(angles)
    rows = [torch.stack([cosine, -sine * height / width, zero], 1), torch.stack([sine * width / height, cosine, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)  # (B, H, W, 2)
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    labels = F.grid_sample(masks[:, None].to(images.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    return turned, labels[:, 0].to(masks.dtype)


@_exactly
def blur(images: Tensor, sigmas: Tensor, largest: float | None = None) -> Tensor:
    """Filter each image by a Gaussian of its own, cut at three times the largest sigma; beyond the border it is repeated.

    Args:
        images: (B, C, H, W).
        sigmas: (B,) standard deviations in pixels, positive.
        largest: what the window is cut by; None takes the largest of `sigmas`, which makes the result depend on the batch.

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    reach = math.ceil(3 * (float(sigmas.max()) if largest is None else largest))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernels = torch.exp(-(place / sigmas.double()[:, None]).square() / 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(images).repeat_interleave(channels, 0)  # (B C, 2 reach + 1)
    rows = F.pad(images.reshape(1, batch * channels, height, width), (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(rows, kernels[:, None, :, None], groups=batch * channels)
    return F.conv2d(rows, kernels[:, None, None, :], groups=batch * channels).reshape(batch, channels, height, width)


@_exactly
def jpeg(images: Tensor, qualities: Tensor) -> Tensor:
    """What JPEG makes of images: its colours, halved chroma, blocks of 8 x 8, cosines, and tables of the Independent JPEG Group.

    Rounding hands gradients straight through. Sides that are no multiple of a block are padded by their border.

    Args:
        images: (B, C, H, W) in [0, 1], C being 1 or 3.
        qualities: (B,) whole numbers from 1 to 100.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    height, width = images.shape[2:]
    block = 8 if images.shape[1] == 1 else 16
    levels = _round(255 * F.pad(images, (0, -width % block, 0, -height % block), mode="replicate"))
    if images.shape[1] == 1:
        found = _code(levels - 128, _table(_LUMA, qualities, images)) + 128
        return (_round(found.clamp(0, 255)) / 255)[:, :, :height, :width]
    to_ycbcr = torch.tensor(_TO_YCBCR, dtype=torch.float64)
    ycbcr = torch.einsum("ij,bjhw->bihw", to_ycbcr.to(images), levels)
    luma = _code(_round(ycbcr[:, :1]) - 128, _table(_LUMA, qualities, images)) + 128
    chroma = _code(_round(F.avg_pool2d(_round(ycbcr[:, 1:]), 2)), _table(_CHROMA, qualities, images))
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)  # libjpeg's triangle filter
    found = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycbcr).to(images), _round(torch.cat([luma, chroma], 1)))
    return (_round(found.clamp(0, 255)) / 255)[:, :, :height, :width]


def _round(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach()


def _table(base: list[list[int]], qualities: Tensor, like: Tensor) -> Tensor:
    """Scale a table to (B,) qualities, (B, 1, 1, 1, 8, 8), as the Independent JPEG Group's library does."""
    qualities = qualities.double()
    percent = torch.where(qualities < 50, (5000 / qualities).floor(), 200 - 2 * qualities)[:, None, None]
    scaled = ((torch.tensor(base, dtype=torch.float64) * percent + 50) / 100).floor().clamp(1, 255)
    return scaled[:, None, None, None].to(like)


def _code(planes: Tensor, table: Tensor) -> Tensor:
    """Quantise the cosine coefficients of the 8 x 8 blocks of (B, C, H, W), H and W being multiples of 8, and return what is left."""
    batch, channels, height, width = planes.shape
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)  # (B, C, H / 8, W / 8, 8, 8)
    cosines = torch.from_numpy(_cosines()).to(planes)
    quantised = _round(cosines @ blocks @ cosines.T / table) * table
    return (cosines.T @ quantised @ cosines).transpose(3, 4).reshape(planes.shape)


def _cosines() -> np.ndarray:
    """Return the orthonormal cosine transform of 8 values, (8, 8): row k holds the k-th cosine."""
    number, place = np.arange(8)[:, None], np.arange(8)[None]
    return np.where(number == 0, np.sqrt(1 / 8), 0.5 * np.cos((2 * place + 1) * number * np.pi / 16))
