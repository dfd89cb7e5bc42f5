"""Quality on stored integers, against scikit-image, scipy and plain arithmetic."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from projects.umed.quality import max_change, psnr, ssim, touched_region


@pytest.fixture
def pair():
    random = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, 3, 24, 30), generator=random, dtype=torch.uint8)
    noise = torch.randint(-4, 5, clean.shape, generator=random)
    return clean, (clean.long() + noise).clamp(0, 255).byte()


def test_psnr_is_that_of_scikit_image(pair):
    expected = [peak_signal_noise_ratio(one.numpy(), other.numpy(), data_range=255) for one, other in zip(*pair, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, atol=1e-9)


def test_quality_is_measured_where_the_images_are(pair):
    clean, stored = (images.to("meta") for images in pair)  # as strict as an accelerator with numbers that lie on the CPU
    for found in (psnr(clean, stored), psnr(clean, stored, span=510.0), ssim(clean, stored), max_change(clean, stored)):
        assert (found.device.type, found.shape) == ("meta", (3,))


def test_psnr_in_a_region_counts_its_pixels_alone(pair):
    region = torch.zeros(3, 24, 30, dtype=torch.bool)
    region[0, 3:9, 5:20], region[1] = True, True
    found = psnr(*pair, region)
    inside = [image[0][:, region[0]].double() for image in pair]
    assert float(found[0]) == pytest.approx(float(10 * torch.log10(255**2 / (inside[0] - inside[1]).square().mean())), abs=1e-9)
    assert found[1] == psnr(*pair)[1]
    assert found[2].isnan(), "an empty region has none"


def test_the_span_is_that_of_the_window(pair):
    spans = torch.tensor([255.0, 510.0, 2550.0])
    torch.testing.assert_close(psnr(*pair, span=spans) - psnr(*pair), 20 * torch.log10(spans.double() / 255))


def similarity(first, second, span):
    """The formula of Wang et al. 2004, its windows completed by reflection at the border."""
    blur = partial(gaussian_filter, sigma=1.5, truncate=3.5, mode="mirror")
    first, second = first / span, second / span
    means, product = (blur(first), blur(second)), blur(first * second)
    variances = blur(first**2) - means[0] ** 2, blur(second**2) - means[1] ** 2
    upper = (2 * means[0] * means[1] + 1e-4) * (2 * (product - means[0] * means[1]) + 9e-4)
    return (upper / ((means[0] ** 2 + means[1] ** 2 + 1e-4) * (variances[0] + variances[1] + 9e-4))).mean()


@pytest.mark.parametrize("span", [255.0, 1000.0])
def test_ssim_is_its_formula_and_that_of_torchmetrics(pair, span):
    channels = [
        [similarity(*arrays, span) for arrays in zip(*(image.double().numpy() for image in images), strict=True)]
        for images in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair, span), np.mean(channels, 1), atol=1e-6)
    whole = structural_similarity_index_measure(pair[1].double() / span, pair[0].double() / span, sigma=1.5, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(*pair, span), whole, atol=1e-6, rtol=0)


def test_ssim_is_that_of_scikit_image_but_for_the_border(pair):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": 0}
    expected = [structural_similarity(one.numpy(), other.numpy(), **options) for one, other in zip(*pair, strict=True)]
    np.testing.assert_allclose(ssim(*pair), expected, atol=1e-4)


def test_ssim_of_one_image_is_a_batch_of_one(pair):
    one = pair[0][:1], pair[1][:1]
    assert ssim(*one).shape == (1,)
    torch.testing.assert_close(ssim(*one), ssim(*pair)[:1])


def test_an_unchanged_image_counts_as_a_hundred_decibels(pair):
    assert psnr(pair[0], pair[0]).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(pair[0], pair[0]), torch.ones(3, dtype=torch.float64))
    assert max_change(pair[0], pair[0]).tolist() == [0] * 3


def test_max_change_does_not_wrap():
    dark, bright = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    assert max_change(dark, bright).item() == max_change(bright, dark).item() == 255


@pytest.mark.parametrize("radius", [1, 3])
def test_the_touched_region_is_the_dilated_foreground(radius):
    masks = (torch.rand(4, 20, 25, generator=torch.Generator().manual_seed(1)) > 0.97).long() * 2
    found = touched_region(masks, radius)
    side = np.ones((2 * radius + 1, 2 * radius + 1))
    assert all((one.numpy() == binary_dilation(mask.numpy() > 0, side)).all() for one, mask in zip(found, masks, strict=True))


def test_what_is_not_stored_is_refused(pair):
    with pytest.raises(ValueError, match="whole numbers"):
        psnr(pair[0].float(), pair[1].float())
    with pytest.raises(ValueError, match="one shape"):
        ssim(pair[0], pair[1][:2])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(pair[0][..., :8], pair[1][..., :8])
