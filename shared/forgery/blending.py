"""What forgeries are made with: a camera's noise, resampling, moved colours and soft masks; each image has its own numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.memory import through_jpeg
from shared.forgery.painting import Region, between

SELF_BLEND = 14
"""Numbers in [0, 1) that a self-blend is drawn from."""

STRENGTHS = (0.5, 0.75, 1.0)
"""How much of a self-blend replaces the image."""


def blend(under: Tensor, over: Tensor, mask: Tensor) -> Tensor:
    """Lay one image over another: (B, C, H, W) each, where a mask (B, 1, H, W) in [0, 1] says so."""
    return under + mask * (over - under)


def add_camera_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Add noise as a camera has it: stronger where it is bright, and correlated between neighbours.

    Args:
        images: (B, C, H, W) in [0, 1].
        noise: (B, C, H + 2, W + 2) standard normal.

    Returns:
        (B, C, H, W) in [0, 1]; the noise's standard deviation is 0.04 sqrt(0.3 + intensity).
    """
    kernel = torch.tensor([0.25, 1.0, 0.25])
    kernel = torch.outer(kernel, kernel)
    kernel = (kernel / kernel.square().sum().sqrt()).expand(images.shape[1], 1, 3, 3)  # keeps the deviation 1
    correlated = F.conv2d(noise, kernel, groups=images.shape[1])
    return (images + 0.04 * torch.sqrt(0.3 + images) * correlated).clamp(0, 1)


def resample(images: Tensor, factors: Tensor) -> Tensor:
    """Shrink each of (B, C, H, W) square images by its own factor, (B,) in (0, 1], to whole pixels, and enlarge it again.

    Both ways are bilinear, and shrinking does not smooth before: a part of the noise stays, as in fakes of cheap pipelines.
    """
    size = images.shape[-1]
    sides = (size * factors).round().long().clamp(1, size)
    result = images.clone()
    for side in sides.unique().tolist():
        chosen = sides == side
        small = F.interpolate(images[chosen], size=(side, side), mode="bilinear", align_corners=False)
        result[chosen] = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return result


def move_colours(images: Tensor, target: Tensor, mask: Tensor, part: Tensor) -> Tensor:
    """Move the mean colour under a mask towards that of other images.

    Args:
        images: (B, C, H, W).
        target: (B, C, H, W).
        mask: (B, 1, H, W) weights of the means.
        part: (B,) how far: 1 makes the means equal.

    Returns:
        (B, C, H, W), not clamped.
    """
    weights = mask / mask.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return images + part[:, None, None, None] * ((target - images) * weights).sum((2, 3), keepdim=True)


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Filter (B, C, H, W) images by a Gaussian, cut at three standard deviations of `sigma` pixels; beyond the border it is repeated."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float32) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, :, None], groups=images.shape[1])


def shift(images: Tensor, pixels: Tensor) -> Tensor:
    """Move (B, C, H, W) images by (B, 2) pixels to the right and down, bilinearly; what comes in from outside repeats the border."""
    height, width = images.shape[2:]
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, :, 2] = -2 * pixels / torch.tensor([width, height])
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), padding_mode="border", align_corners=False)


def self_blend(images: Tensor, regions: list[Region], chance: Tensor, unit: float) -> Tensor:
    """Blend images with themselves, recoloured and resampled or sharpened and shifted a little (after SBI).

    Args:
        images: (B, 3, S, S) in [0, 1].
        regions: masks of the B faces, of which each takes one.
        chance: (B, 14) in [0, 1).
        unit: pixels that correspond to one of 64: the shift is up to 1.5 of them, the mask's edge 2 to 4.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    size = images.shape[-1]
    gain, offset = between(0.93, 1.07, chance[:, 0:3]), between(-0.04, 0.04, chance[:, 3:6])
    coloured = images * gain[:, :, None, None] + offset[:, :, None, None]
    sharpened = coloured + between(0.5, 1.2, chance[:, 6, None, None, None]) * (coloured - smooth(coloured, 1.0))
    is_resampled = (chance[:, 7] < 0.5)[:, None, None, None]
    changed = torch.where(is_resampled, resample(coloured, between(0.5, 0.75, chance[:, 8])), sharpened)
    moved = shift(changed, unit * between(-1.5, 1.5, chance[:, 9:11]))
    masks = torch.stack([region.mask(size, unit * between(2, 4, chance[:, 11])) for region in regions])  # (R, B, 1, S, S)
    chosen = masks[(chance[:, 12] * len(regions)).long(), torch.arange(len(images))]
    strength = torch.tensor(STRENGTHS)[(chance[:, 13] * len(STRENGTHS)).long()]
    return blend(images, moved, chosen * strength[:, None, None, None]).clamp(0, 1)


def jpeg(images: Tensor, qualities: Tensor) -> Tensor:
    """Compress (B, C, H, W) uint8 images as JPEG, each at its own quality, (B,) whole numbers from 1 to 100, and read them back."""
    result = torch.empty_like(images)
    for quality in qualities.unique().tolist():
        chosen = qualities == quality
        result[chosen] = through_jpeg(images[chosen], int(quality))
    return result
