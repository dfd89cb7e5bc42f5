"""That regions are those of scikit-image, and specks are none."""

import numpy as np
import pytest
from skimage.measure import label, regionprops

from shared.regions import find_regions


def test_regions_are_those_of_scikit_image():
    chance = np.random.default_rng(1)
    probability = chance.random((90, 120)).astype(np.float32)
    mask = probability > 0.7
    mask[40:70, 30:90] = True
    expected = [region for region in regionprops(label(mask, connectivity=2), probability) if region.area >= 0.0002 * mask.size]
    count, found = find_regions(mask, probability)
    assert count == len(expected) > 20
    assert len(found) == 20
    assert [one["pixels"] for one in found] == sorted((int(region.area) for region in expected), reverse=True)[:20]
    by_box = {tuple(region.bbox): region for region in expected}
    for one in found:
        region = by_box[one["top"], one["left"], one["bottom"], one["right"]]
        assert (one["pixels"], one["mean"]) == pytest.approx((region.area, region.intensity_mean), rel=1e-5)
    assert find_regions(np.zeros((40, 40), dtype=bool), np.zeros((40, 40))) == (0, [])


def test_specks_are_no_regions():
    mask = np.zeros((200, 200), dtype=bool)
    mask[10, 10:17] = True  # 7 of 40 000 pixels: below 0.02 %
    mask[20, 10:18] = True
    count, found = find_regions(mask, mask.astype(np.float32))
    assert (count, found) == (1, [{"left": 10, "top": 20, "right": 18, "bottom": 21, "pixels": 8, "mean": 1.0}])
