"""Picture, depth and mask move together, and only the picture changes its colours."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from projects.hodinet.augmentation import _COLOURS, Layers, _colours, augment, resized, turned
from shared.seeding import generator


def layers(height=120, width=160):
    """Return layers that all show one disc off the middle."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (torch.hypot(y - 0.4 * height, x - 0.35 * width) < 0.2 * height)[None]
    return Layers((200 * disc + 20).byte().expand(3, -1, -1).contiguous(), disc.float(), disc.byte())


def agree(made, level=120):
    """Return the part of pixels at which picture, depth and mask tell the same."""
    bright = made.image[:1] > level
    return ((bright == (made.mask > 0)) & ((made.depth > 0.5) == (made.mask > 0))).float().mean().item()


@pytest.mark.parametrize("augmentation", ["none", "flip", "group"])
def test_one_draw_moves_all_layers(augmentation):
    for number in range(20):
        made = augment(layers(), 64, augmentation, generator(0, number))
        assert [tuple(layer.shape) for layer in made] == [(3, 64, 64), (1, 64, 64), (1, 64, 64)]
        assert [layer.dtype for layer in made] == [torch.uint8, torch.float32, torch.uint8]
        assert set(made.mask.unique().tolist()) == {0, 1}
        assert made.depth.min() >= 0
        assert made.depth.max() <= 1
        if augmentation != "group":
            assert agree(made) > 0.995
        else:
            assert ((made.depth > 0.5) == (made.mask > 0)).float().mean() > 0.995


def test_half_are_mirrored():
    whole = resized(layers(), 64)
    made = [augment(layers(), 64, "flip", generator(0, number)) for number in range(60)]
    mirrored = [torch.equal(one.mask, whole.mask.flip(2)) for one in made]
    assert all(torch.equal(one.mask, whole.mask) for one, is_mirrored in zip(made, mirrored, strict=True) if not is_mirrored)
    assert 18 <= sum(mirrored) <= 42


def test_augmentation_depends_on_its_generator_alone():
    first, again, other = (augment(layers(), 48, "group", generator(0, key)) for key in (3, 3, 4))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.image, other.image)


def test_windows_are_smaller_by_at_most_an_eighth_or_thirty_pixels():
    grid = torch.arange(64.0).expand(64, 64)[None] / 63
    made = [
        augment(Layers(torch.zeros(3, 64, 64, dtype=torch.uint8), grid, torch.ones(1, 64, 64).byte()), 64, "group", generator(1, n))
        for n in range(40)
    ]
    spread = torch.tensor([(one.depth.max() - one.depth[one.depth > 0].min()).item() for one in made])
    assert spread.min() > 1 - 9 / 64 - 0.02
    assert spread.max() > 0.97


def test_a_turn_of_a_stretched_picture_is_that_of_the_picture_itself():
    wide = layers(120, 160)
    ours = turned(resized(wide, 96), math.radians(12), 160 / 120)
    picture = Image.fromarray((255 * wide.mask[0]).numpy()).rotate(12, Image.Resampling.BILINEAR).resize((96, 96), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(picture) > 127)[None]
    assert ((ours.mask > 0) != expected).float().mean() < 0.005
    assert agree(ours, 110) > 0.99


def test_a_mask_at_a_half_stays_binary_when_resized():
    mask = torch.zeros(1, 50, 50, dtype=torch.uint8)
    mask[:, :, 25:] = 1
    made = resized(Layers(torch.zeros(3, 50, 50, dtype=torch.uint8), mask.float(), mask), 32)
    assert set(made.mask.unique().tolist()) == {0, 1}
    assert made.mask.float().mean() == pytest.approx(0.5, abs=1 / 32)
    assert torch.equal(made.mask, (made.depth > 0.5).byte())


def test_colours_change_as_pillow_changes_them():
    image = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    chance = generator(0, "colours")
    expected = Image.fromarray(image.permute(1, 2, 0).numpy())
    for change, (_, low, high) in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness), _COLOURS, strict=True
    ):
        expected = change(expected).enhance(low + (high - low) * float(torch.rand((), generator=chance)))
    assert np.array_equal(_colours(image, generator(0, "colours")).permute(1, 2, 0).numpy(), np.asarray(expected))


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match=r"data\.augmentation must be one of none, flip, group, got 'mixup'"):
        augment(layers(), 64, "mixup", generator(0))
