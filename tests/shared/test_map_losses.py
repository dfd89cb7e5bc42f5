import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage.metrics import structural_similarity

from shared.losses import dice_loss, iou_loss, ssim_loss
from shared.losses.maps import SIGMA, WINDOW, _blur, _convolved


def maps(height=24, width=31):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 1, height, width, generator=generator, dtype=torch.float64)
    masks = torch.rand(3, 1, height, width, generator=generator) > 0.7
    masks[2] = False
    return probabilities, masks


def test_dice_and_iou_picture_by_picture():
    probabilities, masks = maps()
    for number, (p, y) in enumerate(zip(probabilities.numpy(), masks.numpy().astype(float), strict=True)):
        both = sum(a * b for a, b in zip(p.flat, y.flat, strict=True))
        for smooth in (1.0, 0.5):
            assert dice_loss(probabilities, masks, smooth)[number].item() == pytest.approx(1 - (2 * both + smooth) / (p.sum() + y.sum() + smooth))
            assert iou_loss(probabilities, masks, smooth)[number].item() == pytest.approx(1 - (both + smooth) / (p.sum() + y.sum() - both + smooth))


def similarity(p, y):
    """SSIM with zeros beyond the borders, by scipy's Gaussian of radius 5."""

    def blur(values):
        return scipy.ndimage.gaussian_filter(values, 1.5, mode="constant", radius=5)

    mean_p, mean_y = blur(p), blur(y)
    variance_p, variance_y, covariance = blur(p * p) - mean_p**2, blur(y * y) - mean_y**2, blur(p * y) - mean_p * mean_y
    return ((2 * mean_p * mean_y + 1e-4) * (2 * covariance + 9e-4) / ((mean_p**2 + mean_y**2 + 1e-4) * (variance_p + variance_y + 9e-4))).mean()


def test_ssim_is_that_of_the_formula():
    probabilities, masks = maps()
    expected = [1 - similarity(p[0], y[0]) for p, y in zip(probabilities.numpy(), masks.numpy().astype(float), strict=True)]
    np.testing.assert_allclose(ssim_loss(probabilities, masks), expected, rtol=1e-9)


def test_ssim_is_that_of_scikit_image_where_the_borders_are_zero():
    probabilities, masks = maps(40, 44)
    inside = torch.zeros(40, 44, dtype=torch.bool)
    inside[6:-6, 6:-6] = True
    probabilities, masks = probabilities * inside, masks & inside
    for p, y, found in zip(probabilities.numpy(), masks.numpy().astype(float), ssim_loss(probabilities, masks), strict=True):
        options = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, image = structural_similarity(p[0], y[0], full=True, **options)
        assert found.item() == pytest.approx(1 - image.mean(), rel=1e-7)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 10), (11, 12), (33, 47), (64, 5)])
def test_the_blur_of_a_cpu_is_that_of_other_devices(height, width):
    """Products with banded matrices beside convolutions; sides may be smaller than the window."""
    values = torch.randn(2, 5, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = (-(offsets**2) / (2 * SIGMA**2)).exp()
    found, expected = _blur(values), _convolved(values, window / window.sum())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    above = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(*(torch.autograd.grad(blurred, values, above)[0] for blurred in (found, expected)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [dice_loss, iou_loss, ssim_loss])
def test_a_perfect_map_is_no_distance_away_and_empty_masks_are_harmless(loss):
    _, masks = maps()
    torch.testing.assert_close(loss(masks.float(), masks), torch.zeros(3), rtol=0, atol=1e-5)
    logits = torch.zeros(3, 1, 24, 31, requires_grad=True)
    loss(logits.sigmoid(), torch.zeros_like(masks)).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad >= 0).all()  # less is better where nothing is marked


@pytest.mark.parametrize("loss", [dice_loss, iou_loss, ssim_loss])
def test_losses_are_of_float32_at_least(loss):
    probabilities, masks = maps()
    assert loss(probabilities, masks).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(probabilities.bfloat16(), masks.to(torch.uint8))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(probabilities.bfloat16().float(), masks))
