import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import rgb2gray
from skimage.feature import local_binary_pattern

from projects.umed.perturb import binary_pattern, compose, default_radius, grey, local_texture, protect_images, regions
from projects.umed.quality import touched_region


def blobs(count, height, width, classes=1, seed=0):
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(count, height, width)), (0, 3, 3))
    smooth /= smooth.std()
    return torch.from_numpy((smooth > 0.3).astype(np.int64) + (smooth > 1.1) * (classes > 1))


@pytest.mark.parametrize("radius", [1, 2, 3, 6, 40])
@pytest.mark.parametrize("classes", [1, 2])
def test_regions_are_those_of_morphology(radius, classes):
    masks = blobs(6, 33, 40, classes)
    found = regions(masks, radius, classes)
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    for mask, band, interior in zip(masks.numpy(), found.band[:, 0].numpy(), found.interior[:, 0].numpy(), strict=True):
        bands, insides = np.zeros_like(band), np.zeros_like(band)
        for number in range(1, classes + 1):
            dilated = ndimage.binary_dilation(mask == number, square)
            eroded = ndimage.binary_erosion(mask == number, square, border_value=1)
            bands, insides = bands | (dilated & ~eroded), insides | eroded
        np.testing.assert_array_equal(band, bands)
        np.testing.assert_array_equal(interior, insides & ~bands)
    assert not (found.band & found.interior).any()


def test_where_the_frame_cuts_an_object_there_is_no_band():
    masks = torch.zeros(1, 12, 12, dtype=torch.int64)
    masks[0, :, :6] = 1
    found = regions(masks, 2)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[:, 4:8] = True
    assert torch.equal(found.band[0, 0], expected), "rows 0 and 11 and column 0 are borders of the image, not of the object"
    assert torch.equal(found.interior[0, 0].nonzero()[:, 1].unique(), torch.arange(4))
    everything = regions(torch.ones(1, 9, 9, dtype=torch.int64), 3)
    assert not everything.band.any()
    assert everything.interior.all()


def test_binary_interior_is_the_mask_without_its_band_and_both_cover_the_dilated_mask():
    masks = blobs(4, 30, 30)
    found = regions(masks, 2)
    assert torch.equal(found.interior[:, 0], (masks > 0) & ~found.band[:, 0])
    assert torch.equal((found.band | found.interior)[:, 0], touched_region(masks, 2))


def test_borders_between_classes_are_contours_and_every_foreground_value_counts_with_one_class():
    masks = torch.zeros(1, 20, 20, dtype=torch.int64)
    masks[0, 4:16, 4:10], masks[0, 4:16, 10:16] = 1, 2
    assert regions(masks, 1, classes=2).band[0, 0, 8, 9:11].all()
    assert not regions(masks, 1, classes=1).band[0, 0, 8, 9:11].any()


def test_wrong_arguments_of_regions_are_named():
    with pytest.raises(ValueError, match="at least 1"):
        regions(torch.zeros(1, 4, 4, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        regions(torch.zeros(4, 4, dtype=torch.int64), 1)


def test_the_band_grows_with_the_image():
    assert [default_radius(size) for size in (16, 32, 128, 224, 256, 512)] == [1, 1, 2, 3, 3, 6]


def test_grey_is_the_luma():
    images = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    # scikit-image takes the weights of BT.709, which differ: only grey images look alike
    flat = images[:, :1].expand(-1, 3, -1, -1)
    np.testing.assert_allclose(grey(flat)[:, 0].numpy(), rgb2gray(flat.permute(0, 2, 3, 1).numpy()), atol=1e-12)
    np.testing.assert_allclose(grey(images)[:, 0].numpy(), images.permute(0, 2, 3, 1).numpy() @ [0.299, 0.587, 0.114], atol=1e-12)


def test_pattern_is_that_of_brute_force():
    images = torch.randint(0, 6, (2, 1, 7, 9)) / 255
    bits = torch.cat(binary_pattern(images), 1)
    around = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    for number, (down, right) in enumerate(around):
        for row in range(7):
            for column in range(9):
                near = images[:, 0, min(max(row + down, 0), 6), min(max(column + right, 0), 8)]
                assert torch.equal(bits[:, number, row, column], near >= images[:, 0, row, column])
    ones, changes = bits.sum(1).double(), sum((bits[:, n] != bits[:, n - 1]).double() for n in range(8))
    code = sum(2**n * bits[:, n].double() for n in range(8))
    for mode, expected in (("count", ones / 8), ("code", code / 255), ("transitions", changes / 8)):
        torch.testing.assert_close(local_texture(images.double(), mode)[:, 0], expected, atol=1e-12, rtol=0)


def test_the_four_nearest_bits_are_scikit_images():
    levels = np.random.default_rng(0).integers(0, 9, (12, 13), dtype=np.uint8)  # with ties
    bits = torch.cat(binary_pattern(torch.from_numpy(levels / 255.0)[None, None]), 1)[0, [0, 2, 4, 6]].double()
    code = (bits * torch.tensor([1.0, 2, 4, 8])[:, None, None]).sum(0)
    np.testing.assert_array_equal(code[1:-1, 1:-1], local_binary_pattern(levels, 4, 1)[1:-1, 1:-1])


def test_flat_images_have_full_or_no_texture():
    flat = torch.full((1, 3, 6, 6), 0.4)
    assert [local_texture(flat, mode).unique().tolist() for mode in ("count", "code", "transitions")] == [[1.0], [1.0], [0.0]]
    with pytest.raises(ValueError, match="count, code, transitions"):
        local_texture(flat, "entropy")


def test_perturbations_are_bounded_by_epsilon_texture_and_regions():
    random = torch.Generator().manual_seed(0)
    images, masks = torch.rand(4, 3, 24, 24, generator=random), blobs(4, 24, 24)
    contour, texture = (9 * torch.randn(4, 3, 24, 24, generator=random) for _ in range(2))
    found, strength, epsilon = regions(masks, 1), local_texture(images, "transitions"), 4 / 255
    delta = compose(contour, texture, found, strength, epsilon)
    expected = np.where(found.band.numpy(), epsilon * np.tanh(contour.numpy()), 0)
    bound = epsilon * strength.numpy()
    expected = expected + np.where(found.interior.numpy(), np.clip(epsilon * np.tanh(texture.numpy()), -bound, bound), 0)
    np.testing.assert_allclose(delta, expected, atol=1e-7)
    assert delta.abs().max() <= epsilon
    assert delta[~(found.band | found.interior).expand_as(delta)].abs().max() == 0
    only = [compose(contour, None, found, strength, epsilon), compose(None, texture, found, strength, epsilon)]
    torch.testing.assert_close(only[0] + only[1], delta)
    fixed = compose(None, texture, found, None, epsilon)
    torch.testing.assert_close(fixed, epsilon * texture.tanh() * found.interior)
    texture.requires_grad_()
    compose(None, texture, found, torch.zeros_like(strength), 1.0).sum().backward()
    torch.testing.assert_close(texture.grad, (1 - texture.detach().tanh() ** 2) * found.interior, atol=1e-6, rtol=0)  # what is clipped can find back
    with pytest.raises(ValueError, match="no perturbation"):
        compose(None, None, found, None, epsilon)


def test_stored_images_change_by_at_most_epsilon_and_are_clipped():
    images = torch.tensor([0, 2, 100, 254, 255], dtype=torch.uint8).reshape(1, 1, 1, 5)
    delta = torch.tensor([-4.0, -4, 0.49, 4, 4]).reshape(1, 1, 1, 5) / 255
    assert protect_images(images, delta).flatten().tolist() == [0, 0, 100, 255, 255]
    for wrong in (images / 255, images.short(), images.expand(-1, 3, -1, -1)):
        with pytest.raises(ValueError, match="images are uint8 as they are stored"):
            protect_images(wrong, delta)
