"""That degradations have the strength they are named by."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from projects.tripinet.robustness import DEGRADATIONS, degrade
from shared.data.memory import through_jpeg
from shared.data.offline import photographs

GREY = torch.full((3, 120, 100), 128, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "power"), [("noise_variance", 1), ("noise_deviation", 2)])
def test_noise(name, power):
    for strength in DEGRADATIONS[name].strengths:
        spread = degrade(GREY, name, strength, 0).double().sub(128).square().mean()
        assert float(spread) == pytest.approx(strength**power + 1 / 12, rel=0.05), "rounding adds a twelfth"


def test_blur_is_opencvs_gaussian():
    impulse = torch.zeros(3, 61, 61, dtype=torch.uint8)
    impulse[:, 30, 30] = 255
    for kernel in (3, 11, 23):
        sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
        radius = (kernel - 1) // 2
        expected = scipy.ndimage.gaussian_filter(impulse[0].double().numpy(), sigma, truncate=radius / sigma, mode="reflect")
        assert np.abs(degrade(impulse, "blur", kernel, 0)[0].numpy() - expected).max() <= 0.51


def test_compression_and_size():
    image = photographs("test", 64, length=1)[0]["image"].mul(255).byte()
    assert torch.equal(degrade(image, "jpeg", 50, 0), through_jpeg(image[None], 50)[0])
    losses = [(degrade(image, "jpeg", quality, 0).float() - image).square().mean() for quality in DEGRADATIONS["jpeg"].strengths]
    assert losses == sorted(losses), "strengths begin with the mildest"
    assert degrade(image, "resize", 0.25, 0).shape == (3, 16, 16)
    assert degrade(GREY, "resize", 0.78, 0).shape == (3, 94, 78)


def test_noise_depends_on_its_key_alone():
    first = degrade(GREY, "noise_variance", 7.0, 3)
    assert torch.equal(first, degrade(GREY, "noise_variance", 7.0, 3))
    assert not torch.equal(first, degrade(GREY, "noise_variance", 7.0, 4))
    assert not torch.equal(first, degrade(GREY, "noise_variance", 7.0, 3, seed=1))


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="choose one of jpeg, blur"):
        degrade(GREY, "fog", 1, 0)
