"""Scores of masks agree with torchmetrics, scikit-learn and distances by brute force; images without a class are treated as announced."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.functional.segmentation import dice_score

from projects.umed.metrics import dice, hd95, iou, mean_score
from shared.seeding import generator


@pytest.fixture(scope="module")
def pairs():
    """Blobs of three classes that overlap in part, some of which touch the border."""
    masks, predicted = torch.zeros(12, 24, 31, dtype=torch.int64), torch.zeros(12, 24, 31, dtype=torch.int64)
    draw = torch.randint(0, 18, (12, 3, 4), generator=generator(0, "blobs"))
    for image in range(12):
        for label, (top, left, down, across) in enumerate(draw[image].tolist(), 1):
            masks[image, top : top + 9, left : left + 7] = label
            predicted[image, (top + down // 4) : top + 10, (left + across // 4) : left + 8] = label
    noise = torch.rand(predicted.shape, generator=generator(0, "specks")) < 0.03
    return torch.where(noise, 1 + (draw.sum() + torch.arange(31)) % 3, predicted), masks


@pytest.mark.parametrize(("score", "reference"), [(dice, f1_score), (iou, jaccard_score)])
def test_overlap_is_scikit_learns(pairs, score, reference):
    predicted, masks = pairs
    found = score(predicted, masks, 3)
    assert found.dtype == torch.float64
    for image in range(len(masks)):
        expected = reference(masks[image].flatten(), predicted[image].flatten(), labels=[1, 2, 3], average=None, zero_division=0)
        has_class = [bool((masks[image] == label).any()) for label in (1, 2, 3)]
        for label in range(3):
            assert found[image, label].item() == pytest.approx(expected[label], abs=1e-6) if has_class[label] else found[image, label].isnan()


def test_dice_is_torchmetrics(pairs):
    predicted, masks = pairs
    expected = dice_score(
        predicted, masks, num_classes=4, include_background=False, average="none", aggregation_level="samplewise", input_format="index"
    )
    present = torch.stack([(masks == label).flatten(1).any(1) for label in (1, 2, 3)], 1)
    torch.testing.assert_close(dice(predicted, masks, 3)[present], expected.double()[present], atol=1e-6, rtol=0)


def outline(region):
    inside = np.pad(region, 1)
    inner = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.argwhere(region & ~inner)


def test_hausdorff_distance_by_brute_force(pairs):
    predicted, masks = pairs
    found = hd95(predicted, masks, 3)
    for image in range(len(masks)):
        for label in (1, 2, 3):
            there, true = ((labels[image] == label).numpy() for labels in (predicted, masks))
            if not true.any():
                assert found[image, label - 1].isnan()
                continue
            between = cdist(outline(there), outline(true))
            expected = max(np.percentile(between.min(1), 95), np.percentile(between.min(0), 95))
            assert found[image, label - 1].item() == pytest.approx(expected, abs=1e-6)


def test_regions_of_known_distance():
    masks, predicted = torch.zeros(2, 20, 20, dtype=torch.int64), torch.zeros(2, 20, 20, dtype=torch.int64)
    masks[:, 5:10, 5:10] = 1
    predicted[0, 5:10, 8:13] = 1
    predicted[1] = masks[1]
    assert hd95(predicted, masks)[:, 0].tolist() == [3.0, 0.0]
    assert dice(predicted, masks)[:, 0].tolist() == [pytest.approx(0.4), 1.0]
    assert iou(predicted, masks)[:, 0].tolist() == [pytest.approx(0.25), 1.0]


def test_images_without_a_class():
    masks, predicted = torch.zeros(4, 6, 8, dtype=torch.int64), torch.zeros(4, 6, 8, dtype=torch.int64)
    masks[2:, 1:3, 1:3] = 1  # nothing there, nothing there, there, there
    predicted[1:3, 1:3, 1:3] = 1  # right, invented, right, missed
    for score, skipped, counted in (
        (dice, [math.nan, math.nan, 1, 0], [1, 0, 1, 0]),
        (iou, [math.nan, math.nan, 1, 0], [1, 0, 1, 0]),
        (hd95, [math.nan, math.nan, 0, 10], [0, 10, 0, 10]),
    ):
        np.testing.assert_array_equal(score(predicted, masks)[:, 0], skipped)
        np.testing.assert_array_equal(score(predicted, masks, empty="one")[:, 0], counted)
    assert mean_score(dice(predicted, masks)) == 0.5
    assert mean_score(dice(predicted, masks, empty="one")) == 0.5
    assert math.isnan(mean_score(dice(predicted[:2], masks[:2])))


def test_an_image_counts_once_whatever_its_classes():
    masks, predicted = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 4, dtype=torch.int64)
    masks[0, 0], masks[0, 1], masks[1, 0] = 1, 2, 1
    predicted[0, 0], predicted[0, 1] = 1, 2
    scores = dice(predicted, masks, 2)
    np.testing.assert_array_equal(scores, [[1, 1], [0, math.nan]])
    assert mean_score(scores) == 0.5


@pytest.mark.parametrize("score", [dice, iou, hd95])
def test_what_is_no_pair_of_masks_is_refused(score):
    masks = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"of one shape, got \(2, 4, 5\) and \(2, 4, 4\)"):
        score(torch.zeros(2, 4, 5, dtype=torch.int64), masks)
    with pytest.raises(ValueError, match="take the largest logit"):
        score(masks.float(), masks)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        score(masks, masks, 0)
    with pytest.raises(ValueError, match="empty must be one of skip, one, got 'zero'"):
        score(masks, masks, 1, "zero")
