"""How far maps of probabilities are from binary masks, one number a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.layers import at_least_float32

WINDOW = 11
SIGMA = 1.5
"""Side and standard deviation, in pixels, of the Gaussian window of SSIM."""
C1, C2 = 0.01**2, 0.03**2


def dice_loss(probabilities: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - (2 sum pY + s) / (sum p + sum Y + s) for each picture (Milletari et al. 2016, smoothed).

    Args:
        probabilities: (B, 1, H, W) in [0, 1].
        masks: (B, 1, H, W) of 0 and 1.
        smooth: s; with more than 0 an empty mask and an empty map are 0 apart.

    Returns:
        (B,) in [0, 1], in float32 at least.
    """
    p, y = _flat(probabilities), _flat(masks)
    return 1 - (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)


def iou_loss(probabilities: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - (sum pY + s) / (sum p + sum Y - sum pY + s) for each picture (Rahman and Wang 2016, smoothed); see `dice_loss`."""
    p, y = _flat(probabilities), _flat(masks)
    both = (p * y).sum(1)
    return 1 - (both + smooth) / (p.sum(1) + y.sum(1) - both + smooth)


def ssim_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Return 1 - the mean over pixels of the structural similarity, for each picture (Wang et al. 2004).

    The window is a Gaussian of 11 x 11 pixels and sigma 1.5, and zeros lie beyond the borders, as usual in losses for saliency.

    Args:
        probabilities: (B, 1, H, W) in [0, 1].
        masks: (B, 1, H, W) of 0 and 1.

    Returns:
        (B,) in [0, 2], in float32 at least.
    """
    p, y = at_least_float32(probabilities), at_least_float32(masks)
    with torch.autocast(p.device.type, enabled=False):
        mean_p, mean_y, square_p, square_y, product = _blur(torch.cat([p, y, p * p, y * y, p * y], dim=1)).split(1, dim=1)
    covariance, variances = product - mean_p * mean_y, square_p - mean_p**2 + square_y - mean_y**2
    similarity = (2 * mean_p * mean_y + C1) * (2 * covariance + C2) / ((mean_p**2 + mean_y**2 + C1) * (variances + C2))
    return 1 - similarity.mean((1, 2, 3))


def _blur(maps: Tensor) -> Tensor:
    """Blur (B, C, H, W) by the window: on a CPU by products with banded matrices, which for sides up to 256 take less time than convolutions."""
    offsets = torch.arange(WINDOW, device=maps.device, dtype=maps.dtype) - WINDOW // 2
    window = (-(offsets**2) / (2 * SIGMA**2)).exp()
    window = window / window.sum()
    if maps.device.type == "cpu":
        return _banded(window, maps.shape[2]) @ maps @ _banded(window, maps.shape[3])
    return _convolved(maps, window)


def _convolved(maps: Tensor, window: Tensor) -> Tensor:
    window = window.expand(maps.shape[1], 1, 1, -1)
    across = F.conv2d(maps, window, padding=(0, WINDOW // 2), groups=maps.shape[1])
    return F.conv2d(across, window.mT, padding=(WINDOW // 2, 0), groups=maps.shape[1])


def _banded(window: Tensor, side: int) -> Tensor:
    """Return (side, side), symmetric, whose product with a line of pixels is its convolution with the window, zeros beyond the borders."""
    places = torch.arange(side)
    offsets = places - places[:, None] + WINDOW // 2
    return torch.where((offsets >= 0) & (offsets < WINDOW), window[offsets.clamp(0, WINDOW - 1)], 0)


def _flat(values: Tensor) -> Tensor:
    return at_least_float32(values).flatten(1)
