import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import label, regionprops
from sklearn.cluster import DBSCAN

from projects.comad.pieces import find_pieces, size_classes, vote


def discs(size, *centres, radius=8):
    y, x = np.mgrid[:size, :size]
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx in centres], axis=0)


def blobs(count, size, seed):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal((count, size, size)), (0, 2, 2)) > 0.1


def test_pieces_are_those_of_scikit_image_and_opencv():
    masks = blobs(6, 60, 0)
    found = find_pieces(torch.from_numpy(masks), 12)
    expected = [(index, one) for index, mask in enumerate(masks) for one in regionprops(label(mask, connectivity=2)) if one.area > 12]
    assert found.owner.tolist() == [index for index, _ in expected]
    assert found.area.tolist() == [one.area for _, one in expected]
    lengths = np.array([1 - one.axis_minor_length / one.axis_major_length for _, one in expected])
    np.testing.assert_allclose(found.elongation.numpy(), lengths, atol=1e-6)
    stats = [cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA] for mask in masks]
    assert sorted(found.area.tolist()) == sorted(area for areas in stats for area in areas if area > 12)


def test_pixels_that_touch_at_a_corner_are_one_piece_and_masks_do_not_touch():
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, 1, 1] = masks[0, 2, 2] = masks[1, 2, 2] = True
    found = find_pieces(masks, 0)
    assert (found.owner.tolist(), found.area.tolist()) == ([0, 1], [2, 1])
    assert found.elongation.tolist() == [1, 0]  # a line and a point
    assert find_pieces(masks, 1).area.tolist() == [2]  # larger than, not as large as


def test_nothing_has_no_pieces():
    assert [len(part) for part in find_pieces(torch.zeros(3, 5, 5, dtype=torch.bool), 2)] == [0, 0, 0]


def test_pieces_that_overlap_are_split_and_others_are_not():
    touching, apart = discs(64, (30, 20), (30, 33)), discs(64, (15, 15), (45, 45))
    line = np.zeros((64, 64), bool)
    line[30:33, 5:60] = True
    masks = torch.from_numpy(np.stack([touching, apart, line, np.zeros_like(line)]))
    assert find_pieces(masks, 10).owner.tolist() == [0, 1, 1, 2]
    split = find_pieces(masks, 10, split=True)
    assert split.owner.tolist() == [0, 0, 1, 1, 2]
    assert int(split.area[:2].sum()) == touching.sum()
    assert split.area[0] == pytest.approx(float(split.area[1]), rel=0.1)
    assert torch.equal(split.area[2:], find_pieces(masks, 10).area[1:])


@pytest.mark.parametrize("seed", range(8))
def test_size_classes_are_those_of_dbscan(seed):
    rng = np.random.default_rng(seed)
    middles = rng.integers(50, 900, 3)
    areas = np.concatenate([rng.normal(middle, 12, 40) for middle in middles] + [rng.uniform(50, 900, 25)]).round().astype(np.int64)
    reach = 0.05 * areas.mean()
    order = areas.argsort(kind="stable")
    expected = np.empty(len(areas), np.int64)
    expected[order] = DBSCAN(eps=reach, min_samples=10).fit_predict(areas[order, None].astype(float))
    found = size_classes(torch.from_numpy(areas), reach, 10).numpy()
    assert np.array_equal(found, expected)
    assert found.max() >= 0
    shuffled = DBSCAN(eps=reach, min_samples=10).fit_predict(areas[:, None].astype(float))
    assert np.array_equal(found == -1, shuffled == -1)
    assert found.max() == shuffled.max()


def test_few_areas_are_noise():
    assert size_classes(torch.tensor([100] * 9), 10.0, 10).tolist() == [-1] * 9
    assert size_classes(torch.tensor([], dtype=torch.int64), 0.0, 10).tolist() == []
    assert size_classes(torch.tensor([100] * 5 + [105] * 5 + [112, 118]), 10.0, 10).tolist() == [0] * 11 + [-1]  # an edge, and one out of reach


def test_votes_are_those_of_the_five_nearest():
    rng = np.random.default_rng(0)
    known = np.sort(rng.choice(2000, 80, replace=False))
    classes = rng.integers(-1, 3, 80)
    areas = rng.integers(0, 2100, 300)
    expected = []
    for area in areas:
        nearest = np.lexsort((known, abs(known - area)))[:5]  # by distance, then by area
        counts = np.bincount(classes[nearest] + 1, minlength=4)
        expected.append(int(counts.argmax()) - 1)
    found = vote(torch.from_numpy(areas), torch.from_numpy(known), torch.from_numpy(classes))
    assert found.tolist() == expected


def test_noise_votes_and_wins_ties():
    known = torch.tensor([10, 11, 12, 13, 100])
    assert vote(torch.tensor([11]), known, torch.tensor([-1, -1, 0, 0, 1])).tolist() == [-1]  # two, two and one
    assert vote(torch.tensor([11]), known, torch.tensor([1, 1, 0, 0, -1])).tolist() == [0]
    assert vote(torch.tensor([11]), known, torch.tensor([1, 1, 1, 0, 0])).tolist() == [1]
    assert vote(torch.tensor([11]), known[:2], torch.tensor([0, 0])).tolist() == [0]  # fewer than five
    assert vote(torch.tensor([11]), known[:0], known[:0]).tolist() == [-1]
    assert vote(torch.tensor([]), known, torch.zeros(5).long()).tolist() == []
