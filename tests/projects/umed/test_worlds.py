"""The offline sets are functions of (seed, split, index), hold what they say, and share nothing between splits."""

import math

import pytest
import torch

from projects.umed.worlds import ellipses, micrographs


@pytest.mark.parametrize("options", [{}, {"channels": 3}, {"classes": 2}, {"size": 48}])
def test_the_same_seed_gives_the_same_images(options):
    few, many, other = ellipses("train", 5, **options), ellipses("train", 70, **options), ellipses("train", 5, seed=1, **options)
    assert torch.equal(few.images, many.images[:5]), "an image does not depend on how many there are"
    assert torch.equal(few.masks, many.masks[:5])
    assert not torch.equal(few.images, other.images)
    assert not torch.equal(few.images, ellipses("test", 5, **options).images)
    assert few.image_shape == (options.get("channels", 1), *[options.get("size", 32)] * 2)
    assert few.classes == options.get("classes", 1)


def test_ellipses_are_what_is_said():
    found = ellipses("train", 400)
    masks, pixels = found.masks > 0, found.images[:, 0].double() / 255
    assert float(masks.double().mean()) == pytest.approx(0.11, abs=0.005)
    areas = masks.flatten(1).sum(1)
    assert math.pi * 16 * 0.8 < areas.min() and areas.max() < math.pi * 64 * 1.1  # noqa: PT018
    assert not masks[:, [0, -1]].any() or masks[:, [0, -1]].float().mean() < 0.02
    ground = torch.where(masks, 0, pixels).sum((1, 2)) / (~masks).sum((1, 2))
    inside = torch.where(masks, pixels, 0).sum((1, 2)) / masks.sum((1, 2))
    assert float((ground - inside).mean()) == pytest.approx(0.11, abs=0.02), "the mean of U(0.08, 0.2), less at the soft edge"
    assert float(pixels[~masks].std()) == pytest.approx(math.hypot(0.08, 0.015), abs=0.005)
    steps = (pixels[:, :, 1:] - pixels[:, :, :-1]).square()  # speckle is independent in each pixel, the ground is smooth
    within, outside = masks[:, :, 1:] & masks[:, :, :-1], ~masks[:, :, 1:] & ~masks[:, :, :-1]
    brightness = float(inside.mean() / ground.mean())
    assert float(steps[within].mean() / steps[outside].mean()) ** 0.5 == pytest.approx(1.5 * brightness, abs=0.15)


def test_the_ground_is_the_noise_filtered_by_a_gaussian():
    from scipy.ndimage import gaussian_filter

    from projects.umed.worlds import _gaussian, _smooth

    kernel = _gaussian(2.0)
    noise = torch.randn(1, 1, 40, 40, dtype=torch.float64).float()
    reach = len(kernel) // 2
    expected = gaussian_filter(noise[0, 0].double().numpy(), 2.0, truncate=reach / 2.0)[reach:-reach, reach:-reach]
    expected = torch.from_numpy(expected) * float(kernel.sum()) ** 2  # scipy's kernel sums to 1, ours keeps the variance
    torch.testing.assert_close(_smooth(noise, kernel)[0, 0].double(), expected, atol=1e-5, rtol=0)
    assert float(kernel.square().sum()) == pytest.approx(1)


def test_the_second_class_is_a_core():
    found = ellipses("train", 50, classes=2)
    assert {int(value) for value in found.masks.unique()} == {0, 1, 2}
    whole = ellipses("train", 50)
    assert torch.equal(found.masks > 0, whole.masks > 0)
    share = (found.masks == 2).sum((1, 2)) / (found.masks > 0).sum((1, 2))
    assert share.min() > 0.15
    assert share.max() < 0.5


def test_tiles_of_the_splits_share_no_pixel():
    columns = {split: set() for split in ("train", "val", "test")}
    for split in columns:
        found = micrographs(split)
        assert found.image_shape == (3, 64, 64)
        assert len(found) >= 10
        assert (found.masks.float().mean((1, 2)) >= 0.02).all()
        for name in found.names:
            picture, place = name.split("/")
            left = int(place[5:9])
            columns[split] |= {(picture, column) for column in range(left, left + 64)}
        assert all(group.endswith(split) for group in found.groups)
    assert not columns["train"] & columns["val"]
    assert not columns["val"] & columns["test"]
    assert not columns["train"] & columns["test"]
    assert micrographs("val", channels=1).image_shape == (1, 64, 64)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        ellipses("train", 3, channels=2)
    with pytest.raises(ValueError, match="1 or 2 classes"):
        ellipses("train", 3, classes=3)
    with pytest.raises(ValueError, match="split"):
        ellipses("all", 3)
    with pytest.raises(ValueError, match="16 to 100"):
        micrographs("train", size=8)
