"""CIELAB in 8 bits, with OpenCV's rounding: the paper's colours are quotients of these whole numbers, so that their rounding shows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

_LINEAR, _SHIFT = 8, 12  # a linear channel is counted in eighths of a level; fixed point has 12 bits, or 15 after the cube root
_FINE = 1 << 15
_WHITE = (0.950456, 1.0, 1.088754)
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))


@functools.cache
def _tables() -> tuple[Tensor, Tensor, list[list[int]]]:
    """Return the linear value of each of 256 levels, the cube root of each linear value, and the coefficients of X, Y and Z."""
    level = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    value = (torch.arange(255 * _LINEAR + 1, dtype=torch.float32) / (255 * _LINEAR)).double()  # rounded to single precision, as OpenCV's
    root = (_FINE * torch.where(value < 216 / 24389, value * 841 / 108 + 16 / 116, value ** (1 / 3))).round()
    root[49] -= 1  # 9454.5002, which is 9454.5 in single precision and then goes to the even number
    coefficients = [[round(part * (1 << _SHIFT) / white) for part in row] for row, white in zip(_TO_XYZ, _WHITE, strict=True)]
    return (linear * 255 * _LINEAR).round().int(), root.int(), coefficients


def _descaled(numbers: Tensor, bits: int) -> Tensor:
    return (numbers + (1 << (bits - 1))) >> bits


def lab8(images: Tensor) -> Tensor:
    """Convert sRGB pictures to 8-bit CIELAB as OpenCV does: L by 255/100, a and b plus 128, in fixed point.

    Args:
        images: (..., 3, H, W) uint8 RGB.

    Returns:
        (..., 3, H, W) uint8; a grey pixel has a = b = 128.
    """
    linear, roots, coefficients = _tables()
    linear, roots = linear.to(images.device), roots.to(images.device)
    parts = [linear.index_select(0, part.int().flatten()).view(part.shape) for part in images.unbind(-3)]

    def root(row: Sequence[int]) -> Tensor:
        total = parts[0] * row[0] + parts[1] * row[1] + parts[2] * row[2]
        return roots.index_select(0, _descaled(total, _SHIFT).flatten()).view(total.shape)

    x, y, z = (root(row) for row in coefficients)
    lightness = _descaled((116 * 255 + 50) // 100 * y - (16 * 255 * _FINE + 50) // 100, 15)
    red_green, yellow_blue = _descaled(500 * (x - y) + 128 * _FINE, 15), _descaled(200 * (y - z) + 128 * _FINE, 15)
    return torch.stack([lightness, red_green, yellow_blue], dim=-3).clamp(0, 255).to(torch.uint8)


def hue_ratio(images: Tensor) -> Tensor:
    """Return (b / (a + 1e-7))^2 of each pixel's 8-bit CIELAB, (..., 3, H, W) uint8 RGB -> (..., H, W) float64."""
    _, a, b = lab8(images).double().unbind(-3)
    return (b / (a + 1e-7)) ** 2
