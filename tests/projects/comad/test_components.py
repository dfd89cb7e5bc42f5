import cv2
import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from projects.comad.cielab import hue_ratio, lab8
from projects.comad.components import (
    blurred_maximum,
    corners_on,
    find_components,
    histograms,
    is_component,
    otsu,
    otsu_masks,
    thresholds,
    to_levels,
)


def drawn(size=224, **boxes):
    """One-hot heat maps (1, K, size, size) of boxes (top, left, height, width) by name, after a background that has the rest."""
    maps = torch.zeros(1, len(boxes) + 1, size, size)
    for index, (top, left, height, width) in enumerate(boxes.values(), start=1):
        maps[0, index, top : top + height, left : left + width] = 1
    maps[0, 0] = 1 - maps[0, 1:].amax(0)
    return maps


def test_otsu_equals_scikit_image():
    rng = np.random.default_rng(0)
    for trial in range(30):
        low, high = sorted(rng.integers(0, 129, 2))
        noise = rng.normal(rng.choice([low, high], (40, 50), p=[0.7, 0.3]), 1 + trial).clip(0, 128).astype(np.uint8)
        cut, apart = otsu(histograms(torch.from_numpy(noise)))
        assert int(cut) == threshold_otsu(noise)
        assert float(apart) == pytest.approx(noise[noise > int(cut)].mean() - noise[noise <= int(cut)].mean())


def test_otsu_of_whole_batches_and_eight_bits_equals_scikit_image():
    maps = torch.randint(0, 256, (3, 2, 30, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) // torch.tensor([1, 2])[:, None, None]
    cuts, _ = otsu(histograms(maps.to(torch.uint8), bins=256))
    assert cuts.tolist() == [[threshold_otsu(one.numpy()) for one in picture] for picture in maps.to(torch.uint8)]


def test_the_threshold_of_a_flat_map_is_its_level_and_its_mask_is_empty():
    flat = torch.full((1, 1, 20, 20), 37, dtype=torch.uint8)
    cut, apart = otsu(histograms(flat))
    assert (int(cut), float(apart)) == (37, 0)
    assert threshold_otsu(flat[0, 0].numpy()) == 37
    assert not otsu_masks(flat).any()


def test_of_levels_that_part_as_well_the_lowest_is_taken():
    two = torch.tensor([[10, 10, 90, 90]], dtype=torch.uint8)
    assert int(otsu(histograms(two))[0]) == 10 == threshold_otsu(two.numpy())


def test_thresholds_are_blind_to_the_margin():
    heat = torch.zeros(1, 1, 224, 224)
    heat[..., 100:130, 100:130] = 0.5
    plain = otsu_masks(heat)
    heat[..., :10] = 1  # would part 1 from the rest, if it counted
    heat[..., :10, :] = 1
    assert torch.equal(otsu_masks(heat)[..., 10:, 10:], plain[..., 10:, 10:])
    assert plain.sum() == 900
    assert otsu_masks(heat)[..., :10, :].all()  # the threshold is applied to the whole


def test_a_map_without_contrast_has_no_mask():
    noise = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.06 + 0.1
    assert not otsu_masks(noise).any()
    assert int(thresholds(to_levels(noise))) == 128
    assert otsu_masks(noise, contrast=0).any()  # the reference invents one
    noise[..., 20:40, 20:40] += 0.3
    assert otsu_masks(noise)[0, 0, 20:40, 20:40].all()
    assert otsu_masks(noise).sum() == 400


def test_levels_are_rounded_and_checked():
    assert to_levels(torch.tensor([0, 0.5, 1, 0.999])).tolist() == [0, 64, 128, 128]
    for wrong in (torch.tensor([1.5]), torch.tensor([-0.1]), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match="must lie in \\[0, 1\\]"):
            to_levels(wrong)
    with pytest.raises(ValueError, match="end at 128, got 200"):
        to_levels(torch.tensor([200], dtype=torch.uint8))


def test_the_blurred_maximum_equals_opencv():
    levels = torch.randint(0, 129, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels[0, 0, 50:70, 90:96] = 128
    expected = [[int(cv2.blur(one.numpy(), (11, 11)).max()) for one in picture] for picture in levels]
    assert blurred_maximum(levels).tolist() == expected


def test_corners_are_counted():
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[20:204, 20:204] = True  # just outside all
    assert int(corners_on(mask)) == 0
    mask[19, 19] = mask[204, 0] = mask[0, 204] = True
    assert int(corners_on(mask)) == 3


def test_background_and_noise_are_no_components():
    heat = drawn(part=(60, 60, 40, 40), two_corners=(0, 0, 15, 224), thin=(150, 50, 3, 100))
    assert is_component(heat).tolist() == [[False, True, True, False]]  # the thin line is never certain over the box
    assert find_components(heat).tolist() == [False, True, True, False]
    assert is_component(0.4 * heat, certainty=0.3).tolist() == is_component(heat).tolist()  # maps that are not sharp
    assert not is_component(0.4 * heat).any()


def test_the_filter_has_the_same_answers_at_other_sizes():
    small = drawn(128, part=(34, 34, 23, 23), two_corners=(0, 0, 8, 128), thin=(86, 29, 2, 57))
    assert is_component(small).tolist() == [[False, True, True, False]]


def test_the_vote_does_not_hang_on_the_first_picture():
    usual, odd = drawn(112, part=(30, 30, 20, 20)), drawn(112, part=(30, 30, 1, 1))
    heat = torch.cat([odd, *[usual] * 6])
    assert find_components(heat, "first").tolist() == [False, False]
    assert find_components(heat, "vote").tolist() == [False, True]
    many = torch.cat([usual, odd]).repeat(30, 1, 1, 1)
    many[2:] = odd  # 1 of 60: the majority of any twenty
    assert find_components(many, "vote", seed=3).tolist() == [False, False]


def test_filters_that_are_not_known_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="first or vote"):
        find_components(drawn(part=(5, 5, 9, 9)), "median")
    with pytest.raises(ValueError, match="at least one"):
        find_components(torch.zeros(0, 3, 20, 20))


def test_cielab_equals_opencv():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.append(np.arange(0, 256, 6), 255)] * 3), -1).reshape(-1, 44, 3).astype(np.uint8)
    for picture in (rng.integers(0, 256, (300, 1000, 3)).astype(np.uint8), grid, np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)):
        ours = lab8(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert np.array_equal(ours, cv2.cvtColor(picture, cv2.COLOR_RGB2LAB))


def test_the_hue_ratio_is_that_of_the_reference():
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    _, a, b = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB))
    np.testing.assert_allclose(hue_ratio(torch.from_numpy(picture).permute(2, 0, 1)).numpy(), (b / (a.astype(float) + 1e-7)) ** 2, rtol=1e-12)
    assert hue_ratio(torch.full((3, 1, 1), 90, dtype=torch.uint8)).item() == pytest.approx(1)
