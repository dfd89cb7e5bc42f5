import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import data as pictures
from skimage.transform import rotate

from projects.umed.augmentation import SurrogateAugmentation, blur, flip, jpeg, turn_and_scale


def photograph(height, width, channels):
    image = pictures.immunohistochemistry()[100 : 100 + height, 100 : 100 + width]
    return torch.from_numpy(image if channels == 3 else image[..., :1]).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_close_to_pillows(channels, quality):
    levels = photograph(61, 75, channels)
    found = 255 * jpeg(levels.float() / 255, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels[0].permute(1, 2, 0).numpy().squeeze()).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).reshape(61, 75, channels).astype(float)
    # what is left is rounding: libjpeg computes in integers, and converts colours from rounded planes
    assert np.abs(found - expected).mean() < (0.35 if channels == 1 else 0.8), "levels"
    assert np.abs(expected - levels[0].permute(1, 2, 0).numpy()).mean() > 2.5 * np.abs(found - expected).mean()


@pytest.mark.parametrize("name", ["blur", "jpeg", "affine"])
def test_half_precision_changes_no_image(name):
    images, masks = photograph(32, 32, 1).float() / 255, torch.zeros(1, 32, 32, dtype=torch.int64)
    augment, chance = SurrogateAugmentation([name], probability=1.0), torch.full((1, 10), 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        found = augment(images, masks, chance)[0]
    assert torch.equal(found, augment(images, masks, chance)[0])


def test_each_image_has_its_own_quality_and_gradients_pass():
    images = (photograph(32, 32, 3).float() / 255).repeat(2, 1, 1, 1).requires_grad_()
    both = jpeg(images, torch.tensor([10.0, 80.0]))
    torch.testing.assert_close(both[1:], jpeg(images[1:], torch.tensor([80.0])))
    assert not torch.equal(both[0], both[1])
    both.sum().backward()
    assert images.grad.abs().mean() > 0.5


def test_blur_is_scipys():
    images = torch.rand(3, 2, 15, 20, dtype=torch.float64)
    sigmas = torch.tensor([0.5, 1.0, 1.5])
    found = blur(images, sigmas, 1.5)
    for image, sigma, blurred in zip(images.numpy(), sigmas.tolist(), found.numpy(), strict=True):
        options = {"sigma": (0, sigma, sigma), "mode": "nearest", "radius": (0, 5, 5)}
        np.testing.assert_allclose(blurred, ndimage.gaussian_filter(image, **options), atol=1e-12)
    torch.testing.assert_close(blur(images[1:2], sigmas[1:2], 1.5), found[1:2])


def test_turning_is_counter_clockwise_and_like_scikit_images():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(24, 24)), 2)
    images, masks = torch.from_numpy(smooth)[None, None], torch.from_numpy((smooth > 0).astype(np.int64))[None]
    found, labels = turn_and_scale(images, masks, torch.tensor([math.radians(30)]), torch.ones(1))
    expected = rotate(smooth, 30, mode="edge", order=1)  # counter-clockwise
    np.testing.assert_allclose(found[0, 0, 4:20, 4:20], expected[4:20, 4:20], atol=1e-5)
    assert (labels[0].numpy() == (expected > 0)).mean() > 0.95
    quarter, _ = turn_and_scale(images, masks, torch.tensor([math.pi / 2]), torch.ones(1))
    np.testing.assert_allclose(quarter[0, 0, 1:-1, 1:-1], np.rot90(smooth)[1:-1, 1:-1], atol=1e-5)


def test_shapes_that_are_no_squares_keep_their_angles_and_scale_enlarges():
    masks = torch.zeros(1, 20, 40, dtype=torch.int64)
    masks[:, 8:12, 12:28] = 1
    images = masks[:, None].double()
    turned, _ = turn_and_scale(images, masks, torch.tensor([math.pi / 2]), torch.ones(1))
    assert turned[0, 0].sum().item() == pytest.approx(64, abs=4), "a bar stays as long and as wide"
    assert (turned[0, 0].sum(0) > 1).nonzero().flatten().tolist() == [18, 19, 20, 21]
    _, twice = turn_and_scale(images, masks, torch.zeros(1), torch.tensor([1.5]))
    assert twice.sum().item() == pytest.approx(64 * 2.25, rel=0.1)
    assert set(twice.unique().tolist()) == {0, 1}


def test_flips_move_masks_with_images():
    images = torch.rand(3, 1, 4, 5)
    masks = (images[:, 0] > 0.5).long()
    found, labels = flip(images, masks, torch.tensor([True, False, True]), torch.tensor([False, True, True]))
    assert torch.equal(found[0], images[0].flip(-1))
    assert torch.equal(found[1], images[1].flip(-2))
    assert torch.equal(found[2], images[2].flip(-1, -2))
    assert torch.equal(labels, (found[:, 0] > 0.5).long())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_augmented_alike_in_any_batch(channels):
    random = torch.Generator().manual_seed(0)
    augment = SurrogateAugmentation(["jpeg", "blur", "affine", "flip"])
    images, masks = torch.rand(6, channels, 19, 21, generator=random), torch.randint(3, (6, 19, 21), generator=random)
    chance = augment.draw(6, random)
    found, labels = augment(images, masks, chance)
    assert found.shape == images.shape
    assert labels.dtype == torch.int64
    alone = [augment(images[row : row + 1], masks[row : row + 1], chance[row : row + 1]) for row in range(6)]
    # rounding inside of JPEG may turn differences in the last bit into a level
    torch.testing.assert_close(torch.cat([images for images, _ in alone]), found, atol=2 / 255, rtol=0)
    assert torch.equal(torch.cat([labels for _, labels in alone]), labels)


def test_probability_and_names_are_kept():
    images, masks = torch.rand(200, 1, 16, 16), torch.zeros(200, 16, 16, dtype=torch.int64)
    random = torch.Generator().manual_seed(0)
    never, some = SurrogateAugmentation(["blur", "affine"], 0.0), SurrogateAugmentation(["blur"], 0.3)
    assert torch.equal(never(images, masks, never.draw(200, random))[0], images)
    share = (some(images, masks, some.draw(200, random))[0] != images).flatten(1).any(1).float().mean()
    assert 0.2 < share < 0.4
    nothing = SurrogateAugmentation([])
    assert nothing(images, masks, nothing.draw(200, random))[0] is images


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="unknown augmentations: cutout"):
        SurrogateAugmentation(["cutout", "blur"])
    with pytest.raises(ValueError, match="lower ends first"):
        SurrogateAugmentation(["jpeg"], quality=(90, 30))
