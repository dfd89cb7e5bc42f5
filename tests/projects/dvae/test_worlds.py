"""The offline sets are functions of (seed, split, index), hold what they say, and differ between splits."""

import pytest
import torch

from projects.dvae.worlds import SHAPES, colour_digits, textures
from shared.data.offline import digits


@pytest.mark.parametrize("make", [lambda **options: colour_digits("test", size=8, **options), lambda **options: textures("test", 16, 40, **options)])
def test_the_same_seed_gives_the_same_images(make):
    for channels in (1, 3):
        first, again, other = make(channels=channels), make(channels=channels), make(channels=channels, seed=1)
        assert first.image_shape[0] == channels
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)


def test_digits_are_faint_on_their_ground():
    images, plain = colour_digits("train", size=8), digits("train", 8)
    assert len(images) == 1400
    assert torch.equal(images.labels, plain.labels)
    pixels = images.images.float() / 255
    empty = (plain.images == 0).expand_as(pixels)
    full = (plain.images == 1).expand_as(pixels)
    ground = torch.where(empty, pixels, 0).sum((2, 3)) / empty.sum((2, 3))  # (N, C): the mean over the pixels without ink
    ink = torch.where(full, pixels, 0).sum((2, 3)) / full.sum((2, 3))
    assert 0.18 < ground.min() < 0.21
    assert 0.79 < ground.max() < 0.82
    contrast = (ink - ground).abs()
    assert contrast[~contrast.isnan()].max() < 0.43
    clipped = (ink < 0.02) | (ink > 0.98)
    assert contrast[~contrast.isnan() & ~clipped].min() > 0.09
    within = torch.where(empty, pixels - ground[:, :, None, None], 0).square().sum() / empty.sum()
    assert within.sqrt() == pytest.approx(0.01, rel=0.1)


def test_an_image_does_not_depend_on_how_many_there_are():
    few, many = textures("train", 16, 20), textures("train", 16, 60)
    assert torch.equal(few.images, many.images[:20])
    assert few.labels.tolist() == [*range(10), *range(10)]
    assert list(SHAPES) == sorted(SHAPES) == few.class_names, "so that a folder of them has the same labels"
    assert not torch.equal(few.images, textures("test", 16, 20).images)


def test_shapes_are_seen_on_their_ground():
    images = textures("train", 32, 200)
    pixels = images.images.float() / 255
    assert pixels.flatten(1).std(1).min() > 0.05
    corners = pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # the ground changes from corner to corner
    assert corners.std(2).mean() > 0.05


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        textures("train", channels=2)
    with pytest.raises(ValueError, match="size"):
        colour_digits("train", size=0)
