"""Measures of images beside those of libraries."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from shared.metrics import ssim


def test_structural_similarity_is_the_library_s():
    images = torch.rand(2, 3, 40, 36)
    noisy = (images + 0.2 * torch.randn_like(images)).clamp(0, 1)
    options = {"channel_axis": 0, "data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    border = ((0, 0), (5, 5), (5, 5))  # scikit-image leaves out a border of 5 pixels: with a mirrored one added, it counts every pixel
    pairs = [[np.pad(image.double().numpy(), border, mode="reflect") for image in pair] for pair in zip(images, noisy, strict=True)]
    expected = [structural_similarity(*pair, **options) for pair in pairs]
    assert ssim(noisy, images).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(images[:1], images[:1]).tolist() == pytest.approx([1])


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match=r"at least 11 pixels a side .*got \(1, 3, 10, 12\)"):
        ssim(torch.rand(1, 3, 10, 12), torch.rand(1, 3, 10, 12))
