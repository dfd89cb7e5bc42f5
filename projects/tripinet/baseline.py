"""A baseline that learns nothing: how unusual the local strength of a picture's noise is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.layers.residuals import SRMResidual

WINDOW = 8
"""Side of the windows, in pixels."""

_LEAST = 1e-6  # squared levels: variances of whole levels are multiples of 1 / (12 x 64)^2, and what differs by less differs by rounding


def local_variance(image: Tensor) -> Tensor:
    """Return the variance of the residual under the kernel K1 in the 8 x 8 window about every pixel, in squared levels.

    The window of row i spans rows i - 4 to i + 3, and columns likewise; borders are reflected. The residual is that of the grey picture, the mean
    over its colours.

    Args:
        image: (B, 3, H, W) uint8 or floats from 0 to 255, at least 5 x 5.

    Returns:
        (B, 1, H, W) float64, which differences of squares need.
    """
    residual = SRMResidual(per_channel=False, clip=None)(image.double().cpu())[:, :1] / 3  # K1 of the sum of the colours
    framed = F.pad(residual, [WINDOW // 2, WINDOW // 2 - 1] * 2, mode="reflect")
    mean, square = F.avg_pool2d(framed, WINDOW, 1), F.avg_pool2d(framed.square(), WINDOW, 1)
    return (square - mean.square()).clamp_min(0)


def variance_map(image: Tensor) -> Tensor:
    """Return how far the local variance of the noise is from the picture's median, in robust standard deviations: |v - median| / (1.4826 MAD).

    Both sides count: noise that was added raises the variance, compression, resampling and inpainting lower it.

    Args:
        image: (3, H, W) or (B, 3, H, W) uint8 or floats from 0 to 255, at least 5 x 5.

    Returns:
        (H, W) or (B, 1, H, W) float32; 0 throughout a picture of which half has one variance, such as a flat one, whose MAD is 0.
    """
    if image.ndim == 3:
        return variance_map(image[None])[0, 0]
    variance = local_variance(image)
    distance = (variance - _median(variance)).abs()
    deviation = 1.4826 * _median(distance)
    return torch.where(deviation > _LEAST, distance / deviation, 0.0).float()


def as_probability(deviation: Tensor) -> Tensor:
    """Map deviations z of 0 or more to z / (1 + z), in [0, 1): it keeps their order, and 1, a standard deviation, becomes a half."""
    return deviation / (1 + deviation)


def _median(values: Tensor) -> Tensor:
    """Return the median of each picture, (B, 1, H, W) -> (B, 1, 1, 1); torch's own has a limit of 16 million values."""
    return torch.from_numpy(np.median(values.numpy(), axis=(1, 2, 3), keepdims=True))
