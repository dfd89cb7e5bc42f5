"""The dense CRF that sharpens soft maps by the picture's edges (step 3): Krähenbühl and Koltun 2011, mean field, Potts compatibility.

Q_i(k) is proportional to p_i(k) exp(compat * sum_j G_ij Q_j(k) + bilateral_compat * sum_j B_ij Q_j(k)), iterated from Q = p. Both kernels are
normalised symmetrically, K_ij / sqrt(n_i n_j) with n_i = sum_j K_ij, and K_ii = 1 takes part in the sums, as in the authors' code (its default,
NORMALIZE_SYMMETRIC). G is the Gaussian of places, computed exactly: it is separable, and n is that of the picture with its borders. B is that of
places and colours, `BilateralFilter`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from projects.comad.bilateral import BilateralFilter, gaussian_matrix

CLIP = 1e-5
"""Least probability of the unary term -log p, as in the reference's library."""
_TINY = 1e-20


@dataclass(frozen=True)
class DenseCRF:
    """Mean field of the dense CRF, with the reference's settings.

    Args:
        sxy: sigma of the Gaussian kernel, in pixels.
        compat: its weight.
        bilateral_sxy: sigma of places of the bilateral kernel, in pixels.
        bilateral_srgb: sigma of its colours, in levels of 0..255.
        bilateral_compat: its weight.
        iterations: of the mean field.
        cell: side of the bilateral filter's colour cells in levels; None for `bilateral_srgb`, rounded. 1 is exact and slow.

    Raises:
        ValueError: if a sigma or the cell is not positive, or a weight or the number of iterations negative.
    """

    sxy: float = 1
    compat: float = 3
    bilateral_sxy: float = 67
    bilateral_srgb: float = 3
    bilateral_compat: float = 4
    iterations: int = 2
    cell: int | None = None

    def __post_init__(self) -> None:
        for name in ("sxy", "bilateral_sxy", "bilateral_srgb", "cell"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of the CRF must be positive, got {value}")
        for name in ("compat", "bilateral_compat", "iterations"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} of the CRF must not be negative, got {getattr(self, name)}")

    @torch.no_grad()
    def __call__(self, probabilities: Tensor, images: Tensor) -> Tensor:
        """Sharpen probabilities, picture by picture.

        Args:
            probabilities: (B, K, H, W) with sum 1 over k.
            images: (B, 3, H, W) uint8.

        Returns:
            (B, K, H, W) float32 heat maps Q with sum 1 over k, on the device of the probabilities.

        Raises:
            ValueError: if shapes or types do not fit, or probabilities are not finite or negative.
        """
        _check(probabilities, images)
        maps = [self._picture(*pair) for pair in zip(probabilities.float(), images.to(probabilities.device), strict=True)]
        return torch.stack(maps) if maps else torch.empty_like(probabilities, dtype=torch.float32)

    def _picture(self, start: Tensor, image: Tensor) -> Tensor:
        """Run the mean field, (K, H, W) -> (K, H, W)."""
        rows, columns = (_normalised(gaussian_matrix(side, self.sxy)).to(start) for side in image.shape[1:])
        kernel = BilateralFilter(image, self.bilateral_sxy, self.bilateral_srgb, cell=self.cell) if self.bilateral_compat else None
        norm = None if kernel is None else kernel(torch.ones(image[0].numel(), 1, device=start.device)).clamp_min(1).rsqrt()  # K_ii = 1
        logarithms = start.clamp_min(CLIP).log()
        maps = start
        for _ in range(self.iterations):
            logits = logarithms + self.compat * (rows @ maps @ columns.T)
            if kernel is not None and norm is not None:
                others = maps[:-1] - maps[-1:]  # a softmax sees differences only
                messages = norm * kernel(norm * others.flatten(1).T)
                logits[:-1] += self.bilateral_compat * messages.T.reshape(others.shape)
            maps = logits.softmax(0)
        return maps


def _normalised(kernel: Tensor) -> Tensor:
    """Divide by the roots of both pixels' sums; the product of lines so normalised is the plane so normalised."""
    scale = kernel.sum(1).rsqrt()
    return torch.where(kernel > _TINY, scale[:, None] * kernel * scale, 0)  # numbers below float32's normal ones make products slow


def _check(probabilities: Tensor, images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"the CRF takes pictures (B, 3, H, W) of uint8, got {tuple(images.shape)} of {images.dtype}")
    if probabilities.ndim != 4 or len(probabilities) != len(images) or probabilities.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} do not fit pictures {tuple(images.shape)}: (B, K, H, W) and (B, 3, H, W) are needed"
        )
    if not (torch.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise ValueError("the CRF takes probabilities, finite and not negative; got others")
