import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from shared.data.offline import photographs
from shared.forgery.perturbations import FROM_YCBCR, LEVELS, PERTURBATIONS, perturb


@pytest.fixture(scope="module")
def images():
    crops = photographs("train", size=64, seed=0, length=4)
    return torch.stack([(crops[index]["image"] * 255).round().byte() for index in range(4)])


def strengths(name):
    return zip(LEVELS, PERTURBATIONS[name].strengths, strict=True)


def difference(first, second):
    return (first.double() - second.double()).abs().max().item()


def test_each_has_five_levels_and_says_its_unit():
    assert all(len(one.strengths) == len(LEVELS) and one.unit for one in PERTURBATIONS.values())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_an_image_is_perturbed_alike_in_every_batch_and_more_at_higher_levels(images, name):
    before = images.clone()
    distances = []
    for level in LEVELS:
        together = perturb(images, name, level, torch.tensor([5, 6, 7, 8]))
        assert together.dtype == torch.uint8
        assert together.shape == images.shape
        alone = perturb(images[2:3], name, level, [7])
        assert torch.equal(together[2:3], alone)
        distances.append((together.float() - images.float()).square().mean().item())
    assert torch.equal(images, before)
    assert distances == sorted(distances)
    assert distances[0] > 0


@pytest.mark.parametrize("name", ["noise", "blocks"])
def test_what_is_random_differs_between_images_and_seeds(images, name):
    alike = images[:1].expand(2, -1, -1, -1)
    first = perturb(alike, name, 3, [0, 1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, perturb(alike, name, 3, [0, 1], seed=1))


def test_saturation_scales_the_two_differences_of_colour(images):
    for level, part in strengths("saturation"):
        ycbcr = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("YCbCr")).astype(float) for image in images]
        for image, found in zip(ycbcr, perturb(images, "saturation", level, range(4)), strict=True):
            image[..., 1:] = 128 + part * (image[..., 1:] - 128)
            bands = [Image.fromarray(band) for band in np.moveaxis(image.round().astype(np.uint8), 2, 0)]
            expected = Image.merge("YCbCr", bands).convert("RGB")
            assert difference(torch.from_numpy(np.array(expected)).permute(2, 0, 1), found) <= 3  # YCbCr of 8 bits is coarser
    grey = perturb(images, "saturation", 5, range(4))
    assert torch.equal(grey[:, 0], grey[:, 1])


def test_contrast_multiplies(images):
    for level, part in strengths("contrast"):
        assert difference(perturb(images, "contrast", level, range(4)), torch.from_numpy(np.round(images.numpy() * part))) <= 1


@pytest.mark.parametrize(("size", "side", "times"), [(48, 2, 1), (64, 2, 1), (224, 7, 1), (256, 8, 1), (512, 8, 2)])
def test_blocks_are_grey_and_cover_what_the_original_covers(size, side, times):
    black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    for level, count in strengths("blocks"):
        found = perturb(black, "blocks", level, [0])[0]
        assert set(found.unique().tolist()) == {0, 128}
        covered = int((found[0] > 0).sum())
        assert side**2 <= covered <= times * count * side**2
        assert covered > 0.6 * times * count * side**2  # few overlap
        labelled, number = ndimage.label(found[0] > 0)
        assert min(np.bincount(labelled.ravel())[1:]) >= side**2
        assert number <= times * count


def test_noise_has_its_variance_in_brightness_and_colour():
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    to_rgb = np.array(FROM_YCBCR)
    for level, variance in list(strengths("noise"))[:3]:  # the others reach black and white
        found = perturb(grey, "noise", level, range(8)).double().sub(128).div(255).permute(1, 0, 2, 3).flatten(1).numpy()
        np.testing.assert_allclose(np.cov(found), variance * to_rgb @ to_rgb.T, rtol=0.06, atol=0.06 * variance)
    ycbcr = np.asarray(Image.new("RGB", (1, 1), (200, 90, 30)).convert("YCbCr"))[0, 0].astype(float) - [0, 128, 128]
    np.testing.assert_allclose(to_rgb @ ycbcr, [200, 90, 30], atol=1.5)
    assert found.std() * 255 > 8  # it is seen


@pytest.fixture(scope="module")
def usual():
    crops = photographs("train", size=224, seed=0, length=2)
    return torch.stack([(crops[index]["image"] * 255).round().byte() for index in range(2)])


def test_blur_is_a_gaussian_of_a_sixth_of_its_kernel(usual):
    for level, kernel in strengths("blur"):
        radius = kernel // 2
        expected = ndimage.gaussian_filter(usual.double().numpy(), (0, 0, kernel / 6, kernel / 6), mode="mirror", radius=[0, 0, radius, radius])
        assert difference(perturb(usual, "blur", level, range(2)), torch.from_numpy(expected)) <= 0.51


def test_blur_of_small_images_is_as_much_of_the_picture(images):
    for level, kernel in strengths("blur"):
        sigma = kernel / 6 * 64 / 224
        expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=8)
        mean = (perturb(images, "blur", level, range(4)).double() - torch.from_numpy(expected)).abs().mean().item()
        assert mean < 1, "kernels of few pixels cut off a little of it"


def test_pixelation_goes_through_fewer_pixels(usual):
    halved = perturb(usual, "pixelation", 1, range(2))
    means = usual.double().unflatten(2, (112, 2)).unflatten(4, (112, 2)).mean((3, 5))
    expected = ndimage.zoom(means.numpy(), (1, 1, 2, 2), order=1, grid_mode=True, mode="nearest")
    assert difference(halved, torch.from_numpy(expected)) <= 0.51


def test_jpeg_is_that_of_pillow(images):
    for level, quality in strengths("jpeg"):
        file = io.BytesIO()
        Image.fromarray(images[1].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert torch.equal(perturb(images, "jpeg", level, range(4))[1], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vignette"}, "no perturbation 'vignette': choose of saturation"),
        ({"level": 6}, "levels of a perturbation are 1 to 5, got 6"),
        ({"images": torch.rand(2, 3, 8, 8)}, "images must be uint8"),
        ({"indices": [0]}, "2 images with 1 indices"),
        ({"name": "blur", "images": torch.zeros(2, 3, 1, 8, dtype=torch.uint8)}, "1 x 8 pixels are too small for a blur over 3"),
    ],
)
def test_what_cannot_be_perturbed_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        perturb(**({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "name": "noise", "level": 4, "indices": [0, 1]} | change))
