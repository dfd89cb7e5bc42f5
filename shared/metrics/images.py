"""How alike images are."""

from __future__ import annotations

from typing import cast

from torch import Tensor

SSIM_WINDOW = 11
"""Side of the window of `ssim` in pixels; smaller images have none."""


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, over all channels and pixels.

    Windows that reach over the border are completed by reflection, as torchmetrics does; scikit-image leaves them out, which matters at 16 pixels.
    Computed in the precision given; float32 takes a fifteenth of the time of float64 and is the same to 2e-4 even on flat images.

    Args:
        images: (B, C, H, W) in [0, 1], H and W at least `SSIM_WINDOW`.
        truth: (B, C, H, W) in [0, 1].

    Returns:
        (B,) at most 1.

    Raises:
        ValueError: if images are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if truth.ndim != 4 or min(truth.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images (B, C, H, W) of at least {SSIM_WINDOW} pixels a side (its window), got {tuple(truth.shape)}")
    found = structural_similarity_index_measure(images, truth, kernel_size=SSIM_WINDOW, sigma=1.5, reduction="none", data_range=1.0)
    return cast(Tensor, found).reshape(len(truth))
