import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from projects.comad.defects import WHOLE, Defect, DefectType
from projects.comad.spro import LIMITS, SaturatedOverlap, enlarged, tiff_path, write_tiff


def defect(mask, kind=WHOLE):
    return Defect(torch.as_tensor(mask, dtype=torch.bool), kind)


def gathered(pictures, **options):
    overlap = SaturatedOverlap(**options)
    for anomaly_map, defects in pictures:
        overlap.update(anomaly_map, defects)
    return overlap


def brute_force(pictures, limit):
    """The definition, threshold by threshold, by whole masks."""
    values = sorted({float(value) for anomaly_map, _ in pictures for value in anomaly_map.flatten()}, reverse=True)
    unions = [torch.stack([each.mask for each in defects]).any(0) if defects else torch.zeros_like(a, dtype=torch.bool) for a, defects in pictures]
    points = []
    for tau in [*values[:1], *(np.nextafter(value, -np.inf) for value in values)]:
        found = [anomaly_map.double() > tau for anomaly_map, _ in pictures]
        false = sum(int((some & ~union).sum()) for some, union in zip(found, unions, strict=True))
        overlaps = []
        for some, (_, defects) in zip(found, pictures, strict=True):
            for each in defects:
                area = int(each.mask.sum())
                s = max(1, int(each.type.threshold * area) if each.type.is_relative else min(int(each.type.threshold), area))
                overlaps.append(min(int((some & each.mask).sum()) / s, 1))
        points.append((false / sum(int((~union).sum()) for union in unions), sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x, y), (x1, y1) in pairwise(points):
        if x1 > limit:
            y1 = y + (y1 - y) * (limit - x) / (x1 - x)
            x1 = limit
        area += (x1 - x) * (y + y1) / 2
        if x1 == limit:
            break
    return area / limit


def drawn_pictures(seed, levels=40, count=6):
    """Pictures of different sizes with none to three defects, which may overlap, of all rules of saturation."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [
        WHOLE,
        DefectType("half", 254, 0.5),
        DefectType("few", 253, 7, False),
        DefectType("many", 252, 10_000, False),
        DefectType("tiny", 251, 0.001),
    ]
    pictures = []
    for number in range(count):
        height, width = (int(side) for side in torch.randint(9, 16, (2,), generator=generator))
        anomaly_map = (torch.rand(height, width, generator=generator) * levels).round() / levels - 0.3
        defects = []
        for _ in range(number % 4):
            top, left = (int(torch.randint(0, side - 4, (1,), generator=generator)) for side in (height, width))
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[top : top + 4, left : left + 3] = True
            defects.append(defect(mask, kinds[int(torch.randint(0, 5, (1,), generator=generator))]))
            anomaly_map = anomaly_map + 0.2 * mask
        pictures.append((anomaly_map, defects))
    return pictures


def test_a_curve_computed_by_hand():
    """Two defects in a row of six pixels: the first saturates at one of its two, the second needs both. Two pixels are sound."""
    first, second = defect([[1, 1, 0, 0, 0, 0]], DefectType("first", 255, 1, False)), defect([[0, 0, 1, 1, 0, 0]])
    curve = gathered([(torch.tensor([[0.9, 0.1, 0.7, 0.3, 0.5, 0.2]]), [first, second])]).curve()
    assert curve.fpr.tolist() == [0, 0, 0, 0.5, 0.5, 1]
    assert curve.spro.tolist() == [0, 0.5, 0.75, 0.75, 1, 1]
    assert curve.area(1.0) == pytest.approx(0.75 * 0.5 + 1 * 0.5)
    assert curve.area(0.5) == pytest.approx(0.75)
    assert curve.area(0.75) == pytest.approx((0.75 * 0.5 + 0.25) / 0.75)


def test_the_overlap_at_the_limit_lies_on_the_line_between_points():
    """Defect and sound pixels share the value 0.5, so that the curve runs straight from (0, 0) to (1, 1)."""
    curve = gathered([(torch.full((1, 4), 0.5), [defect([[1, 0, 0, 0]])])]).curve()
    assert [curve.area(limit) for limit in LIMITS] == pytest.approx([limit / 2 for limit in LIMITS])


def test_saturation_areas_are_whole_pixels_and_never_0():
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:3, :3] = True
    areas = [defect(mask, DefectType("a", 1, *rule)).saturation for rule in [(1.0, True), (0.5, True), (0.01, True), (4, False), (40, False)]]
    assert areas == [9, 4, 1, 4, 9]


@pytest.mark.parametrize("seed", range(2))
def test_areas_are_those_of_brute_force(seed):
    pictures = drawn_pictures(seed)
    found = gathered(pictures).curve().areas()
    assert list(found) == ["au_spro_0.01", "au_spro_0.05", "au_spro_0.1", "au_spro_0.3", "au_spro_1"]
    assert list(found.values()) == pytest.approx([brute_force(pictures, limit) for limit in LIMITS], abs=1e-9)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_one_unsaturated_defect_has_the_partial_area_of_scikit_learn(limit):
    anomaly_map, mask = torch.randn(40, 50), torch.rand(40, 50) < 0.1
    anomaly_map += mask
    expected = roc_auc_score(mask.flatten(), anomaly_map.flatten(), max_fpr=limit)
    if limit < 1:  # undo McClish's standardisation
        low = limit**2 / 2
        expected = (low + (2 * expected - 1) * (limit - low)) / limit
    assert gathered([(anomaly_map, [defect(mask)])]).curve().area(limit) == pytest.approx(expected, abs=1e-9)


def test_a_merged_mask_would_give_another_value():
    anomaly_map = torch.tensor([[0.9, 0.8, 0.1, 0.5, 0.2, 0.3]])
    masks = ([[1, 1, 0, 0, 0, 0]], [[0, 0, 1, 0, 0, 0]])
    apart = gathered([(anomaly_map, [defect(mask) for mask in masks])]).curve().area(0.3)
    together = gathered([(anomaly_map, [defect(np.add(*masks))])]).curve().area(0.3)
    assert (apart, together) == (pytest.approx(1 / 2), pytest.approx(2 / 3))


def test_pixels_in_a_defect_of_another_kind_are_never_false_positives():
    """Only the last pixel is sound, though each defect's own mask leaves three others."""
    curve = gathered([(torch.tensor([[4.0, 3, 2, 1, 0]]), [defect([[1, 1, 0, 0, 0]]), defect([[0, 0, 1, 1, 0]])])]).curve()
    assert curve.fpr.tolist() == [0, 0, 0, 0, 0, 1]
    assert curve.area(0.01) == 1


def test_false_positives_are_pooled_over_pictures_not_averaged():
    small, large = (torch.tensor([[1.0, 0.5]]), [defect([[0, 1]])]), (torch.zeros(1, 9), [])
    assert gathered([small, large]).curve().fpr.tolist() == [0, 0.1, 0.1, 1]


@pytest.mark.parametrize("thresholds", [16, 60, 300])
def test_with_fewer_thresholds_areas_stay_within_the_stated_uncertainty(thresholds):
    pictures = drawn_pictures(3, levels=100_000, count=8)
    exact = gathered(pictures).curve()
    assert exact.is_exact
    curve = gathered(pictures, thresholds=thresholds).curve()
    assert not curve.is_exact
    assert len(curve.fpr) <= thresholds + 1
    for limit in LIMITS:
        assert abs(curve.area(limit) - exact.area(limit)) <= curve.uncertainty(limit) + 1e-12
        assert exact.uncertainty(limit) == 0
    points = {(round(x, 9), round(y, 9)) for x, y in zip(exact.fpr.tolist(), exact.spro.tolist(), strict=True)}
    assert {(round(x, 9), round(y, 9)) for x, y in zip(curve.fpr.tolist(), curve.spro.tolist(), strict=True)} <= points


@pytest.mark.parametrize("thresholds", [50, 1 << 20])
def test_order_and_merging_change_nothing(thresholds):
    pictures = drawn_pictures(1, levels=100_000, count=9)
    whole = gathered(pictures, thresholds=thresholds).curve()
    turned = gathered(pictures[::-1], thresholds=thresholds).curve()
    joined = gathered(pictures[:4], thresholds=thresholds).merged(gathered(pictures[4:], thresholds=thresholds)).curve()
    for other in (turned, joined):
        torch.testing.assert_close(other.fpr, whole.fpr)
        torch.testing.assert_close(other.spro, whole.spro)


def test_merging_leaves_both_parts_as_they_were():
    good, logical, structural = (gathered(drawn_pictures(seed)) for seed in range(3))
    before = [part.curve().areas() for part in (good, logical)]
    for other in (logical, structural):
        assert good.merged(other).defects == good.defects + other.defects
    assert [part.curve().areas() for part in (good, logical)] == before


def test_a_curve_of_large_maps_is_kept_in_a_bounded_number_of_rows_and_is_accurate():
    generator = torch.Generator().manual_seed(0)
    overlap = SaturatedOverlap(thresholds=1 << 14)
    mask = torch.zeros(300, 300, dtype=torch.bool)
    mask[50:90, 60:100] = True
    for number in range(6):
        anomaly_map = enlarged(torch.rand(1, 1, 28, 28, generator=generator), (300, 300))[0] + 0.3 * mask * (number % 2)
        overlap.update(anomaly_map, [defect(mask)] if number % 2 else [])
        assert len(overlap._keys) + sum(len(keys) for keys, _ in overlap._pending) <= 2 << 14
    assert max(overlap.curve().uncertainty(limit) for limit in LIMITS) < 1e-3


def test_negative_and_signed_zero_values_keep_their_order():
    anomaly_map = torch.tensor([[-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0]])
    curve = gathered([(anomaly_map, [defect([[1, 0, 1, 0, 1, 0]])])]).curve()
    assert curve.fpr.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert curve.spro.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 2 / 3, 1])


def test_without_defects_or_without_sound_pixels_there_is_no_area():
    nothing, no_defect = SaturatedOverlap(), gathered([(torch.rand(3, 3), [])])
    no_sound = gathered([(torch.rand(2, 2), [defect(torch.ones(2, 2))])])
    for overlap in (nothing, no_defect, no_sound):
        assert all(math.isnan(area) for area in overlap.curve().areas().values())


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match="at least 2 thresholds"):
        SaturatedOverlap(1)
    overlap = SaturatedOverlap()
    with pytest.raises(ValueError, match=r"must be \(H, W\) or \(1, H, W\), got \(3, 2, 2\)"):
        overlap.update(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="holds NaN"):
        overlap.update(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match=r"map has 2 x 2 pixels .* mask of defect 2 x 3: enlarge maps"):
        overlap.update(torch.zeros(2, 2), [defect(torch.ones(2, 3))])
    with pytest.raises(ValueError, match="marks nothing"):
        overlap.update(torch.zeros(2, 2), [defect(torch.zeros(2, 2))])
    assert overlap.defects == 0
    curve = gathered([(torch.rand(2, 2), [])]).curve()
    for limit in (0, 1.5):
        with pytest.raises(ValueError, match="limit of the false-positive rate"):
            curve.area(limit)


def test_tiffs_lie_where_the_evaluation_of_mvtec_reads_them_and_hold_the_very_floats(tmp_path):
    anomaly_map = torch.randn(1, 30, 50)
    path = tiff_path(tmp_path, "screw_bag", "logical_anomalies", "007")
    write_tiff(anomaly_map, path)
    assert path == tmp_path / "screw_bag" / "test" / "logical_anomalies" / "007.tiff"
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("TIFF", "F", (50, 30))
        assert np.array_equal(np.asarray(picture), anomaly_map[0].numpy())
    assert [file.name for file in path.parent.iterdir()] == ["007.tiff"]
    with pytest.raises(ValueError, match="must be"):
        write_tiff(torch.zeros(2, 3, 4), path)


def test_maps_are_enlarged_to_the_size_of_their_picture():
    maps = enlarged(torch.rand(2, 1, 28, 28), (85, 170))
    assert maps.shape == (2, 1, 85, 170)
    torch.testing.assert_close(enlarged(torch.full((1, 1, 64, 64), 2.0), (16, 90)), torch.full((1, 1, 16, 90), 2.0))


def test_parts_that_merge_before_they_are_folded_give_the_curve_of_all():
    """The parts keep more values than they may when they merge, so that folding them drops bits."""
    pictures = [(torch.rand(5, 10, generator=torch.Generator().manual_seed(seed)), [defect(torch.arange(50).view(5, 10) < 5)]) for seed in range(6)]
    merged = gathered(pictures[:3], thresholds=60).merged(gathered(pictures[3:], thresholds=60)).curve()
    whole = gathered(pictures, thresholds=60).curve()
    torch.testing.assert_close(merged.fpr, whole.fpr)
    torch.testing.assert_close(merged.spro, whole.spro)
