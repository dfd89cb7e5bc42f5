"""How far protected images are from their originals, measured on the integers that are stored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.umed.perturb import regions

UNCHANGED = 100.0
"""The PSNR in dB that an unchanged image counts as, and the largest that is given."""

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Side of the window of `ssim` in pixels, and its standard deviation; smaller images have none."""

_C1, _C2 = 0.01**2, 0.03**2


def psnr(clean: Tensor, protected: Tensor, region: Tensor | None = None, span: float | Tensor = 255.0) -> Tensor:
    """Peak signal-to-noise ratio of each image, 10 log10(span² / MSE).

    Args:
        clean: (B, C, H, W) whole numbers.
        protected: (B, C, H, W) whole numbers.
        region: (B, H, W) bool: the pixels that count, such as those of `touched_region`; None counts all.
        span: levels between 0 and 1, one number or (B,) of them.

    Returns:
        (B,) float64 in dB, at most 100; NaN where the region is empty.

    Raises:
        ValueError: if shapes differ or images are no whole numbers.
    """
    _check(clean, protected)
    squares = (protected.double() - clean.double()).square().mean(1)  # (B, H, W)
    weights = torch.ones_like(squares) if region is None else region.to(squares)
    full = torch.as_tensor(span, dtype=torch.float64, device=clean.device)
    errors = (squares * weights).sum((1, 2)) / weights.sum((1, 2)) / full**2  # 0 / 0 is NaN
    return -10 * errors.clamp_min(10 ** (-UNCHANGED / 10)).log10()


def ssim(clean: Tensor, protected: Tensor, span: float | Tensor = 255.0) -> Tensor:
    """Structural similarity of each image, with a Gaussian window of 11 pixels and sigma 1.5, over all channels and pixels.

    The same number as torchmetrics gives, from two passes of a one-dimensional window, which take a quarter of the time. Windows that reach over the
    border are completed by reflection; scikit-image leaves them out, which changes the fifth digit.

    Args:
        clean: (B, C, H, W) whole numbers, H and W at least 11.
        protected: (B, C, H, W) whole numbers.
        span: levels between 0 and 1, one number or (B,) of them.

    Returns:
        (B,) float64, at most 1.

    Raises:
        ValueError: if shapes differ, images are smaller than the window or no whole numbers.
    """
    _check(clean, protected)
    if min(clean.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, got {tuple(clean.shape[2:])}")
    scale = torch.as_tensor(span, dtype=torch.float64, device=clean.device).reshape(-1, 1, 1, 1)
    first, second = clean.double() / scale, protected.double() / scale
    middle = first.mean((2, 3), keepdim=True)  # (B, C, 1, 1): squares around it are small, so that single precision will do
    x, y = (first - middle).float(), (second - middle).float()
    mean_x, mean_y, square_x, square_y, product = _windows(torch.stack([x, y, x * x, y * y, x * y]))
    spread, joint = square_x - mean_x.square() + square_y - mean_y.square(), product - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    light = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (light * (2 * joint + _C2) / (spread + _C2)).double().flatten(1).mean(1)


def _windows(images: Tensor) -> Tensor:
    """Average (..., H, W) in a Gaussian window around each pixel, the border completed by reflection."""
    reach = SSIM_WINDOW // 2
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) / SSIM_SIGMA).square() / 2)
    weights = (kernel / kernel.sum()).tolist()
    height, width = images.shape[-2:]
    padded = F.pad(images.reshape(-1, 1, height, width), (reach,) * 4, mode="reflect")
    rows = sum(weight * padded[..., place : place + height, :] for place, weight in enumerate(weights))
    both = sum(weight * rows[..., place : place + width] for place, weight in enumerate(weights))
    assert isinstance(both, Tensor)
    return both.reshape(images.shape)


def max_change(clean: Tensor, protected: Tensor) -> Tensor:
    """Return the largest change of each image in levels, (B,) int64, of (B, C, H, W) whole numbers."""
    _check(clean, protected)
    return (protected.long() - clean.long()).abs().flatten(1).amax(1)


def touched_region(masks: Tensor, radius: int | None) -> Tensor:
    """Return where a perturbation may be: the band and the interior together are the foreground dilated by a square.

    Args:
        masks: (B, H, W) whole numbers, 0 for the background.
        radius: reach of the band in pixels, None by the masks' size, see `regions`; the square has the side 2 radius + 1. Outside of the image
            counts as background.

    Returns:
        (B, H, W) bool.
    """
    band, interior = regions(masks, radius)
    return (band | interior)[:, 0]


def _check(clean: Tensor, protected: Tensor) -> None:
    if clean.shape != protected.shape or clean.ndim != 4 or len(clean) == 0:
        raise ValueError(f"expected two batches of images of one shape, got {tuple(clean.shape)} and {tuple(protected.shape)}")
    if clean.is_floating_point() or protected.is_floating_point():
        raise ValueError(f"quality is measured on stored whole numbers, got {clean.dtype} and {protected.dtype}: round them as they are stored")
