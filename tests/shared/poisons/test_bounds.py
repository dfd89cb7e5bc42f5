import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from shared.poisons import add_on_grid, add_within_l2, check_radius, measure, scale_to_l2, to_levels
from shared.seeding import generator


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 3, 9, 7), generator=generator(0, "images"), dtype=torch.uint8)


@pytest.fixture
def delta():
    return torch.randn(6, 3, 9, 7, generator=generator(0, "delta"))


def test_adding_rounds_clips_and_keeps_the_sign(images, delta):
    expected = np.clip(np.rint(images.numpy().astype(np.float64) + 255 * delta.numpy().astype(np.float64)), 0, 255)
    assert np.array_equal(add_on_grid(images, delta).numpy(), expected.astype(np.uint8))
    levels = torch.full((1, 1, 1, 4), 100, dtype=torch.uint8)
    assert add_on_grid(levels, torch.tensor([-8, 8, -0.6, 0.4]) / 255).flatten().tolist() == [92, 108, 99, 100]


def test_all_levels_survive_a_visit_to_floats():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_levels(levels.float() / 255), levels)


@pytest.mark.parametrize("radius", [0.02, 0.3, 1.0])
def test_what_is_stored_stays_within_l2(images, delta, radius):
    stored = add_within_l2(images, scale_to_l2(delta, radius), radius)
    lengths = (stored.double() - images.double()).flatten(1).norm(dim=1) / 255
    assert lengths.max() <= radius * (1 + 1e-6)
    if radius == 1.0:
        assert lengths.min() > 0.8  # clipping at 0 and 255 shortens some


def test_measures_agree_with_direct_ones(images, delta):
    poisoned = add_on_grid(images, 0.02 * delta * (delta > 0.5))
    found = measure(images, poisoned)
    a, b = images.numpy().astype(np.float64), poisoned.numpy().astype(np.float64)
    l2 = np.sqrt(((a - b) ** 2).sum((1, 2, 3))) / 255
    l0 = (a != b).any(1).sum((1, 2))
    psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)])
    expected = [np.abs(a - b).max(), l2.mean(), l2.max(), l0.mean(), l0.max(), psnr]
    assert list(found.values()) == pytest.approx(expected)
    assert measure(images, images)["psnr"] == 100


def test_chunks_do_not_change_a_measure(images, monkeypatch):
    other = images.flip(0)
    whole = measure(images, other)
    monkeypatch.setattr("shared.poisons.bounds.CHUNK", 4)
    assert measure(images, other) == pytest.approx(whole)


def test_unequal_images_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8 images of one shape"):
        measure(images, images[:3])
    with pytest.raises(ValueError, match="expected uint8 images of one shape"):
        measure(images.float(), images.float())


@pytest.mark.parametrize(
    ("kind", "radius", "message"),
    [
        ("linf", 0.5, "in pixels of 255, between 1 and 127, got 0.5"),
        ("linf", float("nan"), "in pixels of 255"),
        ("l2", 0.0, "must be positive, got 0.0"),
        ("l0", 1.5, "a number of pixels, between 1 and 64, got 1.5"),
        ("l0", 65, "between 1 and 64, got 65"),
        ("l0", float("inf"), "between 1 and 64, got inf"),
        ("unbounded", 1.0, "has no radius"),
    ],
)
def test_radii_are_checked(kind, radius, message):
    with pytest.raises(ValueError, match=message):
        check_radius(kind, radius, (8, 8))
