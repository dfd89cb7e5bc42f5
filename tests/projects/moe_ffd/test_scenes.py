import pytest
import torch

from projects.moe_ffd.scenes import DEGRADATIONS, scenes


def high_frequencies(images):
    """Standard deviation of the differences between neighbours in every patch, (N, 8, 8)."""
    values = images.double()
    steps = (values[..., 1:, 1:] - values[..., :-1, 1:] - values[..., 1:, :-1] + values[..., :-1, :-1]).abs().mean(1)
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(steps, (0, 1, 0, 1)), 6)


def test_a_scene_depends_on_seed_split_and_index_alone():
    many, few = scenes(6, seed=3), scenes(2, seed=3)
    assert torch.equal(many.images[:2], few.images)
    assert torch.equal(many.labels[:2], few.labels)
    for other in (scenes(2, seed=4), scenes(2, seed=3, split="val")):
        assert not torch.equal(other.images, few.images)
    assert many.images.dtype == torch.uint8
    assert many.images.shape == (6, 3, 48, 48)
    assert many.labels.shape == (6, 8, 8)


def test_every_scene_has_two_degradations_and_all_occur_equally():
    labels = scenes(300).labels
    assert all(len(scene.unique()) == 2 for scene in labels)
    shares = torch.bincount(labels.flatten(), minlength=len(DEGRADATIONS)) / labels.numel()
    assert shares.min() > 0.15
    assert shares.max() < 0.25


def test_degradations_order_the_high_frequencies():
    made = scenes(200)
    found = high_frequencies(made.images)
    mean = {name: float(found[made.labels == label].mean()) for label, name in enumerate(DEGRADATIONS)}
    assert mean["clean"] < mean["blurred"] < mean["noisy"] < mean["sharpened"]
    assert mean["resampled"] < mean["noisy"]


def test_other_sizes_have_other_grids():
    made = scenes(2, size=32, patch=8)
    assert made.images.shape == (2, 3, 32, 32)
    assert made.labels.shape == (2, 4, 4)
    batch = made.__getitems__([1])
    assert torch.equal(batch["image"], made.images[1:])


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 2, "size": 50}, {"count": 2, "patch": 0}])
def test_scenes_that_cannot_be_drawn_are_named(options):
    with pytest.raises(ValueError, match="need at least one scene and a size that is a multiple of the patch"):
        scenes(**options)
