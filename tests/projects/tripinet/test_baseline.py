"""The baseline that learns nothing, against a loop, and what it finds and does not find."""

import numpy as np
import pytest
import torch

from projects.tripinet.baseline import as_probability, local_variance, variance_map
from projects.tripinet.forging import forge
from projects.tripinet.metrics import LocalisationMetrics
from shared.layers.residuals import srm_kernels


def looped(image):
    """Variances of windows from the definition: at every pixel, of the residual that is computed at every pixel."""
    grey = np.pad(image.numpy().astype(float).mean(0), 2, mode="reflect")
    kernel = srm_kernels()[0].double().numpy()
    rows, columns = image.shape[1:]
    residual = np.array([[(grey[i : i + 5, j : j + 5] * kernel).sum() for j in range(columns)] for i in range(rows)])
    framed = np.pad(residual, [(4, 3), (4, 3)], mode="reflect")
    return np.array([[framed[i : i + 8, j : j + 8].var() for j in range(columns)] for i in range(rows)])


def test_the_map_is_the_robust_deviation_of_local_variances():
    images = torch.stack([forge("test", index, size=32, kind="noise").image for index in (0, 1)])[:, :, :19, :24]
    variances = np.stack([looped(image) for image in images])
    np.testing.assert_allclose(local_variance(images)[:, 0].numpy(), variances, rtol=1e-9, atol=1e-9)
    centres = np.median(variances, axis=(1, 2), keepdims=True)
    distances = np.abs(variances - centres)
    expected = distances / (1.4826 * np.median(distances, axis=(1, 2), keepdims=True))
    found = variance_map(images)
    assert found.shape == (2, 1, 19, 24)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(variance_map(images[1]), found[1, 0]), "one picture, or one of several"


def test_deviations_are_of_normal_noise_as_standard_deviations_are():
    noise = (128 + 8 * torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    variance, z = local_variance(noise).flatten(), variance_map(noise).flatten().double()
    robust = (variance - variance.median()).abs() / variance.std()
    assert float(z.median()) == pytest.approx(1 / 1.4826, abs=1e-3)
    assert float((z / robust)[robust > 0.5].median()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("image", [torch.full((3, 20, 20), 77), (torch.arange(400).view(20, 20) % 2 * 200).expand(3, -1, -1)])
def test_a_picture_of_one_variance_is_nowhere_unusual(image):
    assert not variance_map(image.byte()).any()


def test_both_more_and_less_noise_are_unusual():
    generator = torch.Generator().manual_seed(0)
    noise = 4 * torch.randn(3, 120, 120, generator=generator)
    for factor in (0.0, 3.0):
        scaled = noise.clone()
        scaled[:, 40:80, 40:80] *= factor
        found = variance_map((128 + scaled).round().byte())
        assert found[46:74, 46:74].mean() > 2 * found[:30].mean()


def test_probabilities_keep_the_order():
    z = torch.tensor([0.0, 0.5, 1.0, 3.0, 1e4])
    mapped = as_probability(z)
    assert torch.equal(mapped.argsort(), torch.arange(5))
    assert mapped[2] == 0.5
    assert mapped[0] == 0
    assert mapped[-1] < 1


def measured(kind, count=16):
    metrics = LocalisationMetrics()
    for index in range(count):
        image, mask, _ = forge("test", index, kind=kind)
        metrics.update(as_probability(variance_map(image))[None], mask, kind)
    return metrics.compute()["pixel_auc"]


def test_resampled_regions_are_found_and_untouched_ones_are_not():
    assert measured("resample") > 0.6
    assert measured("control") == pytest.approx(0.5, abs=0.1)
