"""What the eye does not see: the front ends that turn the pixels of a picture into noise and frequency traces."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.layers import BayarConv2d, SRMResidual, at_least_float32

Stream = Literal["rgb", "srm", "srm3", "bayar", "dct_corner", "dct_radial", "fft", "haar", "block_dct"]
"""Names of the front ends, see `build_front_end`."""
Scaling = Literal["fixed", "minmax"]
"""How high frequencies are scaled: by 1/8, or from 0 to 1 within each picture."""

FIXED_SCALE = 1 / 8
FLAT = 0.1
"""Least range, in grey levels, that `minmax` enlarges: what a flat picture keeps is rounding."""
BLOCK = 8
PLANES = 21
"""Planes of the block DCT: coefficients of magnitude 0 to 19, and of 20 and more."""


@lru_cache(maxsize=8)
def _cosines(size: int, rows: int) -> np.ndarray:
    frequencies, positions = np.arange(rows)[:, None], np.arange(size)
    matrix = np.sqrt(2 / size) * np.cos(np.pi * frequencies * (2 * positions + 1) / (2 * size))
    matrix[0] = 1 / np.sqrt(size)
    return matrix


def dct_matrix(size: int, rows: int | None = None) -> Tensor:
    """Return the first rows of the orthonormal DCT-II of size N, (rows, N) float64.

    Entry (k, n) is sqrt(2 / N) cos(pi k (2n + 1) / 2N), and 1 / sqrt(N) in row 0.
    """
    return torch.from_numpy(_cosines(size, size if rows is None else rows))


def dct2(pixels: Tensor) -> Tensor:
    """Return the coefficients D_H X D_W^T of (..., H, W) pixels, of the same shape."""
    down, across = (dct_matrix(size).to(pixels) for size in pixels.shape[-2:])
    return down @ pixels @ across.T


def idct2(coefficients: Tensor) -> Tensor:
    """Return the pixels D_H^T X D_W of (..., H, W) coefficients; the inverse of `dct2`."""
    down, across = (dct_matrix(size).to(coefficients) for size in coefficients.shape[-2:])
    return down.T @ coefficients @ across


class FrontEnd(nn.Module):
    """Turns (B, 3, H, W) pixels from 0 to 255 into (B, maps, H, W), in float32 at least, under autocast too."""

    maps = 3

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            return self.extract(at_least_float32(pixels))

    def extract(self, pixels: Tensor) -> Tensor:
        """Return the maps of floating-point pixels."""
        raise NotImplementedError


class Colours(FrontEnd):
    """The picture itself, normalised by ImageNet's mean and standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def extract(self, pixels: Tensor) -> Tensor:
        return (pixels - cast(Tensor, self.mean)) / cast(Tensor, self.std)


class Noise(FrontEnd):
    """A noise residual, in grey levels.

    Args:
        residual: fixed or learnt.
    """

    def __init__(self, residual: SRMResidual | BayarConv2d) -> None:
        super().__init__()
        self.residual, self.maps = residual, residual.maps

    def extract(self, pixels: Tensor) -> Tensor:
        return self.residual(pixels)


class HighPass(FrontEnd):
    """High frequencies: the picture less its low frequencies, scaled.

    Args:
        alpha: share of the frequencies of each direction that is removed, in [0, 1]; 0 keeps the picture.
        scaling: by 1/8 of a grey level, or from 0 to 1 within each picture, which one outlier decides.

    Raises:
        ValueError: if an option does not fit.
    """

    def __init__(self, alpha: float = 0.1, scaling: Scaling = "fixed") -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha, the share of the frequencies that is removed, is in [0, 1], not {alpha}")
        if scaling not in get_args(Scaling):
            raise ValueError(f"no scaling {scaling!r}: choose {' or '.join(get_args(Scaling))}")
        self.alpha, self.scaling = alpha, scaling

    def low(self, pixels: Tensor) -> Tensor:
        """Return the low frequencies of (B, 3, H, W) pixels, of the same shape."""
        raise NotImplementedError

    def high(self, pixels: Tensor) -> Tensor:
        """Return the high frequencies in grey levels, before they are scaled."""
        return pixels - self.low(pixels) if self.alpha else pixels

    def extract(self, pixels: Tensor) -> Tensor:
        high = self.high(pixels)
        if self.scaling == "fixed":
            return FIXED_SCALE * high
        least, greatest = high.amin((1, 2, 3), keepdim=True), high.amax((1, 2, 3), keepdim=True)
        return (high - least) / (greatest - least).clamp_min(FLAT)


class DCTHighPass(HighPass):
    """Without the low coefficients of the DCT of the whole picture, as in ObjectFormer: those in a corner, or within a radius of it.

    Only the rows and columns of the removed coefficients are computed, some alpha of the two products that the definition takes.

    Args:
        is_radial: remove the coefficients (k, l) with (k/H + l/W) / 2 < alpha rather than those with k < alpha H and l < alpha W.
        alpha, scaling: see `HighPass`.
    """

    def __init__(self, is_radial: bool = False, alpha: float = 0.1, scaling: Scaling = "fixed") -> None:
        super().__init__(alpha, scaling)
        self.is_radial = is_radial

    def low(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        reach = min(1.0, (2 if self.is_radial else 1) * self.alpha)
        down, across = (dct_matrix(size, int(np.ceil(reach * size))).to(pixels) for size in (height, width))
        coefficients = down @ pixels @ across.T
        if self.is_radial:
            rows, columns = (torch.arange(len(matrix), dtype=torch.float64) / size for matrix, size in ((down, height), (across, width)))
            coefficients = coefficients * ((rows[:, None] + columns) / 2 < self.alpha).to(pixels.device)
        return down.T @ coefficients @ across


class FFTHighPass(HighPass):
    """Without the frequencies below alpha / 2 cycles a pixel in both directions, a centred box of the spectrum."""

    def low(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        rows = torch.fft.fftfreq(height, dtype=torch.float64).abs() < self.alpha / 2
        columns = torch.fft.rfftfreq(width, dtype=torch.float64) < self.alpha / 2
        box = (rows[:, None] & columns).to(pixels.device)
        return torch.fft.irfft2(torch.fft.rfft2(pixels) * box, s=(height, width))


class Haar(FrontEnd):
    """The three detail bands of an orthonormal one-level Haar transform of each colour, scaled by 1/8, each value over its 2 x 2 pixels.

    The maps are the details across, down and diagonal of the first colour, and so on. An odd side is reflected by a pixel.
    """

    maps = 9

    def extract(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        even = F.pad(pixels, [0, width % 2, 0, height % 2], mode="reflect")
        left, right = even[..., ::2], even[..., 1::2]
        mean, across = left + right, left - right
        bands = [across[..., ::2, :] + across[..., 1::2, :], mean[..., ::2, :] - mean[..., 1::2, :], across[..., ::2, :] - across[..., 1::2, :]]
        details = FIXED_SCALE / 2 * torch.stack(bands, dim=2).flatten(1, 2)
        return F.interpolate(details, scale_factor=2, mode="nearest")[..., :height, :width]


class BlockDCT(FrontEnd):
    """Magnitudes of the DCT coefficients of the luma's 8 x 8 blocks, one plane a value from 0 to 20, as CAT-Net's input.

    CAT-Net reads quantised coefficients from the JPEG file; these are the decoded pixels' own, rounded, on the grid that begins at the first pixel.
    Coefficient (k, l) of a block lies at its pixel (k, l). Crops and tiles must begin at multiples of 8; incomplete blocks are reflected.
    """

    maps = PLANES

    def extract(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        luma = torch.einsum("bchw,c->bhw", pixels, pixels.new_tensor([0.299, 0.587, 0.114])) - 128  # JPEG's level shift
        whole = F.pad(luma, [0, -width % BLOCK, 0, -height % BLOCK], mode="reflect")
        blocks = whole.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)  # (B, rows, columns, 8, 8)
        magnitudes = dct2(blocks).abs().round().clamp_max(PLANES - 1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        planes = torch.arange(PLANES, device=pixels.device).view(-1, 1, 1)
        return (magnitudes[:, None, :height, :width] == planes).to(pixels.dtype)


_BUILDERS: dict[str, Callable[[float, Scaling], FrontEnd]] = {
    "rgb": lambda alpha, scaling: Colours(),
    "srm": lambda alpha, scaling: Noise(SRMResidual()),
    "srm3": lambda alpha, scaling: Noise(SRMResidual(per_channel=False)),
    "bayar": lambda alpha, scaling: Noise(BayarConv2d()),
    "dct_corner": lambda alpha, scaling: DCTHighPass(False, alpha, scaling),
    "dct_radial": lambda alpha, scaling: DCTHighPass(True, alpha, scaling),
    "fft": FFTHighPass,
    "haar": lambda alpha, scaling: Haar(),
    "block_dct": lambda alpha, scaling: BlockDCT(),
}


def build_front_end(name: str, alpha: float = 0.1, scaling: Scaling = "fixed") -> FrontEnd:
    """Build what turns pixels into the maps of a stream.

    Args:
        name: `rgb`; noise: `srm` (9 maps), `srm3` (3 maps), `bayar` (learnt); frequencies: `dct_corner`, `dct_radial`, `fft`, `haar`, `block_dct`.
            `dct_*` and `fft` see the whole picture they are given: those of a crop or a tile are its own.
        alpha: share of the frequencies that `dct_*` and `fft` remove, see `HighPass`.
        scaling: how `dct_*` and `fft` scale what remains, `fixed` or `minmax`.

    Raises:
        ValueError: if there is no such stream or an option does not fit.
    """
    if name not in _BUILDERS:
        raise ValueError(f"no stream {name!r}: choose among {', '.join(_BUILDERS)}")
    return _BUILDERS[name](alpha, scaling)
