import warnings

import numpy as np
import py_sod_metrics
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from projects.hodinet.metrics import SaliencyMetrics, e_measure, f_measure, precision_recall, weighted_f

KINDS = ("noise", "soft", "few_levels", "binary", "inverted", "constant", "black", "white", "quarter")
MASKS = ("blob", "noise", "pixel", "empty", "full", "border")
NAMES = {"mae", "s_measure", "e_adaptive", "e_max", "e_mean", "f_adaptive", "f_max", "f_mean", "f_weighted"}


def drawn_mask(kind, size, rng):
    mask = np.zeros(size, bool)
    if kind == "blob":
        field = ndimage.gaussian_filter(rng.standard_normal(size), min(size) / 8)
        return field > np.quantile(field, 0.8)
    if kind == "noise":
        return rng.random(size) < 0.3
    if kind == "pixel":
        mask[rng.integers(size[0]), rng.integers(size[1])] = True
    if kind == "border":
        mask[:, : size[1] // 2 + 1] = True
    return np.ones(size, bool) if kind == "full" else mask


def drawn_map(kind, mask, rng):
    soft = np.clip(255 * ndimage.gaussian_filter(mask.astype(float), 2) + rng.normal(0, 20, mask.shape), 0, 255).astype(np.uint8)
    quarter = soft.copy()
    quarter[: mask.shape[0] // 2 + 1, : mask.shape[1] // 2 + 1] = 77
    flat = {"constant": rng.integers(256), "black": 0, "white": 255}
    return {
        "noise": lambda: rng.integers(0, 256, mask.shape),
        "soft": lambda: soft,
        "few_levels": lambda: rng.choice([3, 90, 140, 251], mask.shape),
        "binary": lambda: 255 * (soft > 128),
        "inverted": lambda: 255 - soft,
        "quarter": lambda: quarter,
    }.get(kind, lambda: np.full(mask.shape, flat.get(kind, 0)))().astype(np.uint8)


def library(pictures):
    """The measures and curves of pysodmetrics."""
    mae, s, e, weighted = py_sod_metrics.MAE(), py_sod_metrics.Smeasure(), py_sod_metrics.Emeasure(), py_sod_metrics.WeightedFmeasure()
    handlers = {"f": py_sod_metrics.FmeasureHandler, "p": py_sod_metrics.PrecisionHandler, "r": py_sod_metrics.RecallHandler}
    f = py_sod_metrics.FmeasureV2({name: handler(True, True) for name, handler in handlers.items()})
    for levels, mask in pictures:
        for measure in (mae, s, e, weighted, f):
            measure.step(levels, mask.astype(np.uint8) * 255)
    em, found = e.get_results()["em"], f.get_results()
    numbers = {"mae": mae.get_results()["mae"], "s_measure": s.get_results()["sm"], "f_weighted": weighted.get_results()["wfm"]}
    for name, adaptive, curve in (("e", em["adp"], em["curve"]), ("f", found["f"]["adaptive"], found["f"]["dynamic"])):
        numbers |= {f"{name}_adaptive": adaptive, f"{name}_max": curve.max(), f"{name}_mean": curve.mean()}
    return numbers, {"e": em["curve"], "f": found["f"]["dynamic"], "precision": found["p"]["dynamic"], "recall": found["r"]["dynamic"]}


def tensors(levels, mask):
    return torch.from_numpy(levels)[None], torch.from_numpy(mask)[None]


def measured(pictures, protocol="pysod"):
    metrics = SaliencyMetrics(protocol)
    for picture in pictures:
        metrics.update(*tensors(*picture))
    return metrics


def assert_equals_library(pictures):
    numbers, curves = library(pictures)
    metrics = measured(pictures)
    found = metrics.compute()
    assert found.keys() == NAMES == numbers.keys()
    assert found == pytest.approx(numbers, abs=1e-9)
    for name, curve in curves.items():
        np.testing.assert_allclose(metrics.curves()[name], curve, atol=1e-9)


@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_measures_equal_those_of_pysodmetrics(kind, mask_kind):
    rng = np.random.default_rng(KINDS.index(kind) * 10 + MASKS.index(mask_kind))
    for size in ((40, 56), (31, 17)):
        mask = drawn_mask(mask_kind, size, rng)
        if mask[:-1, :-1].any() or not mask.any():
            assert_equals_library([(drawn_map(kind, mask, rng), mask)])


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (3, 3), (1, 7), (9, 1), (4, 3), (1, 1)])
def test_measures_of_tiny_pictures_equal_those_of_pysodmetrics(size):
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        for _ in range(12):
            levels, mask = rng.integers(0, 4, size).astype(np.uint8) * 85, rng.random(size) < 0.5
            numbers, _ = library([(levels, mask)])
            found = measured([(levels, mask)]).compute()
            known = {name: value for name, value in numbers.items() if np.isfinite(value)}
            assert {name: found[name] for name in known} == pytest.approx(known, rel=1e-9, abs=1e-9)


def test_measures_of_a_set_of_many_sizes_equal_those_of_pysodmetrics():
    rng = np.random.default_rng(1)
    masks = [drawn_mask(kind, (int(rng.integers(20, 90)), int(rng.integers(20, 90))), rng) for kind in ("blob", "noise", "empty", "full") * 3]
    pictures = [(drawn_map(KINDS[number % len(KINDS)], mask, rng), mask) for number, mask in enumerate(masks)]
    assert_equals_library(pictures)
    alone = measured(pictures)
    together = SaliencyMetrics()
    assert together.update_batch([tensors(*picture) for picture in pictures], threads=3) == alone.rows
    assert together.compute() == alone.compute()


def test_processes_are_measured_together(monkeypatch):
    rng = np.random.default_rng(10)
    pictures = [(drawn_map("soft", mask, rng), mask) for mask in (drawn_mask("blob", (30, 40), rng) for _ in range(5))]
    one, other, expected = measured(pictures[:2]), measured(pictures[2:]), measured(pictures).compute()
    parts = iter([other.rows, [3], [other.sums]])
    monkeypatch.setattr("projects.hodinet.metrics.gather_objects", lambda own: [*own, *next(parts)])
    assert one.compute() == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_measures_of_large_pictures_equal_those_of_pysodmetrics():
    rng = np.random.default_rng(2)
    for size in ((480, 640), (333, 250)):
        for kind in KINDS:
            mask = drawn_mask("blob", size, rng)
            assert_equals_library([(drawn_map(kind, mask, rng), mask)])


def test_an_object_in_the_last_row_has_a_structure_measure():
    mask = np.zeros((6, 8), bool)
    mask[-1, 2:5] = True
    levels = np.random.default_rng(0).integers(0, 256, mask.shape).astype(np.uint8)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        assert np.isnan(library([(levels, mask)])[0]["s_measure"])  # an empty quarter, whose weight is 0
    assert 0 < measured([(levels, mask)]).compute()["s_measure"] < 1
    assert measured([(255 * mask.astype(np.uint8), mask)]).compute()["s_measure"] == pytest.approx(1)


def test_a_perfect_map_has_perfect_measures():
    mask = drawn_mask("blob", (30, 40), np.random.default_rng(3))
    found = measured([(mask.astype(np.uint8) * 255, mask)]).compute()
    size = mask.size
    assert found["mae"] == 0
    assert [found[name] for name in ("s_measure", "f_adaptive", "f_max", "f_weighted")] == pytest.approx([1] * 4)
    assert [found["e_adaptive"], found["e_max"]] == pytest.approx([size / (size - 1)] * 2)


def test_counts_at_thresholds_equal_a_loop_over_pixels():
    rng = np.random.default_rng(4)
    levels, mask = rng.permutation(np.resize(np.arange(256), 20 * 30)).reshape(20, 30).astype(np.uint8), rng.random((20, 30)) < 0.4
    curves = measured([(levels, mask)]).curves()
    for index, threshold in enumerate(curves["threshold"]):
        called = levels >= round(255 * threshold)
        tp, fp = int((called & mask).sum()), int((called & ~mask).sum())
        assert curves["precision"][index] == pytest.approx(tp / (tp + fp))
        assert curves["recall"][index] == pytest.approx(tp / mask.sum())
        phi = aligned(called, mask)
        assert curves["e"][index] == pytest.approx(((phi + 1) ** 2 / 4).sum() / (mask.size - 1))


def aligned(called, mask):
    """The E-measure's phi, pixel by pixel."""
    a, b = called - called.mean(), mask - mask.mean()
    return 2 * a * b / (a * a + b * b + np.spacing(1))


def test_measures_of_counts_take_any_shape():
    tp, fp = np.array([[3, 0], [5, 0]]), np.array([[1, 0], [95, 7]])
    precision, recall = precision_recall(tp, fp, positives=5)
    np.testing.assert_allclose(precision, [[3 / 4, 0], [1 / 20, 0]])
    np.testing.assert_allclose(recall, [[3 / 5, 0], [1, 0]])
    np.testing.assert_allclose(f_measure(precision, recall)[0], [1.3 * 0.75 * 0.6 / (0.3 * 0.75 + 0.6), 0])
    assert e_measure(tp, fp, positives=5, size=100, epsilon=0).shape == (2, 2)
    np.testing.assert_allclose(precision_recall(tp, fp, positives=np.array([[5], [0]]))[1], [[0.6, 0], [5, 0]])


def brute_weighted_f(saliency, mask):
    """Margolin's measure with a loop over pixels for the nearest salient one, which is unique here."""
    error = np.abs(saliency - mask)
    points = np.argwhere(mask)
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 50)
    moved, weights = error.copy(), np.ones(mask.shape)
    for pixel in np.argwhere(~mask):
        squares = ((points - pixel) ** 2).sum(1)
        moved[tuple(pixel)] = error[tuple(points[squares.argmin()])]
        weights[tuple(pixel)] = 2 - np.exp(np.log(0.5) / 5 * np.sqrt(squares.min()))
    padded = np.pad(moved, 3)
    smooth = np.array([[(padded[i : i + 7, j : j + 7] * kernel).sum() for j in range(mask.shape[1])] for i in range(mask.shape[0])]) / kernel.sum()
    least = np.where(mask, np.minimum(error, smooth), error) * weights
    tp = mask.sum() - least[mask].sum()
    recall, precision = 1 - least[mask].mean(), tp / (tp + least[~mask].sum())
    return 2 * recall * precision / (recall + precision)


def test_the_weighted_f_equals_a_loop_over_pixels():
    rng = np.random.default_rng(5)
    mask = np.zeros((20, 26), bool)
    mask[8:13, 9:18] = True  # a box: every pixel of the background has one nearest pixel
    for blank in (False, True):
        levels = rng.integers(0, 201, mask.shape)
        if blank:
            levels[:, :5], levels[15:] = 0, 0  # right there: cut off before distances are measured
        errors = np.where(mask, 200 - levels, levels).astype(np.uint8)
        assert weighted_f(errors, mask, 200, np.spacing(1)) == pytest.approx(brute_weighted_f(levels / 200, mask), abs=1e-12)


def test_probabilities_are_measured_as_their_8_bit_file_is():
    rng = np.random.default_rng(6)
    mask = drawn_mask("blob", (30, 40), rng)
    probability = torch.from_numpy(rng.random(mask.shape)).float()[None]
    levels = (probability * 255).round().byte()
    other, target = SaliencyMetrics(), torch.from_numpy(mask)[None]
    assert SaliencyMetrics().update(probability, target) == other.update(levels, target.float())
    assert SaliencyMetrics().update(levels.float().div(255).double(), target) == other.rows[0]


def group(pictures):
    """The definitions of the authors' group, written out pixel by pixel."""
    rows, precisions, recalls = [], [], []
    for levels, mask in pictures:
        low, high = int(levels.min()), int(levels.max())
        p = levels / 255 if low == high else (levels.astype(int) - low) / (high - low)
        g, binary = mask.astype(float), p >= min(2 * p.mean(), 1)
        stretched = np.floor(p * 255)
        called = [stretched >= threshold for threshold in range(254, -1, -1)]
        precisions.append([(c & mask).sum() / (c.sum() + 1e-8) for c in called])
        recalls.append([(c & mask).sum() / max(mask.sum(), 1) for c in called])
        tp = (binary & mask).sum()
        precision, recall = tp / max(binary.sum(), 1), tp / max(mask.sum(), 1)
        a, b = binary - binary.mean(), g - g.mean()
        enhanced = (2 * a * b / (a * a + b * b + 1e-8) + 1) ** 2 / 4
        enhanced = 1.0 - binary if not mask.any() else binary if mask.all() else enhanced
        rows.append(
            {
                "mae": np.abs(p - g).mean(),
                "f_adaptive": 1.3 * precision * recall / (0.3 * precision + recall) if tp else 0.0,
                "e_adaptive": enhanced.sum() / (mask.size - 1),
                "s_measure": group_s(p, mask),
            }
        )
    precision, recall = np.mean(precisions, 0), np.mean(recalls, 0)
    curve = 1.3 * precision * recall / (0.3 * precision + recall + 1e-8)
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]} | {"f_max": curve.max(), "f_mean": curve.mean()}


def group_s(p, mask):
    if mask.all() or not mask.any():
        return p.mean() if mask.all() else 1 - p.mean()
    objects = sum(part.mean() * score(values) for part, values in ((mask, p[mask]), (~mask, 1 - p[~mask])))
    row, column = (int(np.round(index.mean())) + 1 for index in np.nonzero(mask))
    regions = 0.0
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            x, y = p[rows, columns].ravel(), mask[rows, columns].ravel().astype(float)
            covariance = ((x - x.mean()) * (y - y.mean())).sum() / (x.size - 1)
            above, below = 4 * x.mean() * y.mean() * covariance, (x.mean() ** 2 + y.mean() ** 2) * (x.var() + y.var())
            regions += x.size / p.size * (above / (below + 1e-8) if above else float(below == 0))
    return 0.5 * objects + 0.5 * regions


def score(values):
    return 2 * values.mean() / (values.mean() ** 2 + 1 + values.std() + 1e-8)


def test_the_groups_protocol_equals_its_definitions():
    rng = np.random.default_rng(7)
    masks = [drawn_mask(kind, (256, 256), rng) for kind in ("blob", "noise", "empty", "blob")]
    pictures = [(drawn_map(kind, mask, rng), mask) for kind, mask in zip(("soft", "noise", "soft", "inverted"), masks, strict=True)]
    found, expected = measured(pictures, "group256").compute(), group(pictures)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-7)
    assert found.keys() == NAMES


def test_the_protocols_differ_in_f_and_s_and_hardly_elsewhere():
    rng = np.random.default_rng(8)
    masks = [drawn_mask("blob", (256, 256), rng) for _ in range(2)]
    pictures = [(drawn_map(kind, mask, rng), mask) for kind, mask in zip(("soft", "noise"), masks, strict=True)]  # one good, one bad
    ours, theirs = measured(pictures).compute(), measured(pictures, "group256").compute()
    for name in ("mae", "e_adaptive", "f_adaptive", "f_weighted"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    assert abs(ours["f_max"] - theirs["f_max"]) > 1e-3
    assert 0 < abs(ours["s_measure"] - theirs["s_measure"]) < 1e-3


def test_the_groups_protocol_measures_squares_of_256_pixels():
    rng = np.random.default_rng(9)
    mask = drawn_mask("blob", (90, 130), rng)
    levels = drawn_map("soft", mask, rng)
    maps, masks = tensors(levels, mask)
    large = F.interpolate(maps[None].float() / 255, (256, 256), mode="bilinear", antialias=True)[0]
    target = F.interpolate(masks[None].float(), (256, 256), mode="bilinear", antialias=True)[0] > 0.5
    assert SaliencyMetrics("group256").update(maps, masks) == SaliencyMetrics("group256").update(large, target)


def test_what_is_kept_does_not_hold_pixels():
    metrics = SaliencyMetrics()
    row = metrics.update(torch.rand(1, 50, 60), torch.rand(1, 50, 60) > 0.5)
    assert metrics.rows == [row]
    assert all(isinstance(value, float) for value in row.values())
    assert metrics.sums.shape == (4, 256)


@pytest.mark.parametrize(
    ("probability", "mask", "message"),
    [
        (torch.rand(1, 4, 4), torch.ones(1, 4, 5), r"of one size, got \(1, 4, 4\) and \(1, 4, 5\)"),
        (torch.rand(4, 4), torch.ones(4, 4), r"must be \(1, H, W\)"),
        (torch.rand(1, 0, 4), torch.ones(1, 0, 4), r"must be \(1, H, W\)"),
        (torch.full((1, 4, 4), 1.5), torch.ones(1, 4, 4), r"probabilities in \[0, 1\], got 1.5 to 1.5"),
        (torch.full((1, 4, 4), float("nan")), torch.ones(1, 4, 4), "got nan"),
        (torch.rand(1, 4, 4), torch.full((1, 4, 4), 255), "zeros and ones, got 255 to 255"),
    ],
)
def test_maps_and_masks_that_cannot_be_measured_are_named(probability, mask, message):
    with pytest.raises(ValueError, match=message):
        SaliencyMetrics().update(probability, mask)


def test_unknown_protocols_and_empty_sets_are_named():
    with pytest.raises(ValueError, match="protocol 'sod' is not known: use one of pysod, group256"):
        SaliencyMetrics("sod")
    with pytest.raises(ValueError, match="no picture was measured"):
        SaliencyMetrics().compute()


def test_the_groups_protocol_takes_maps_at_its_own_size():
    generator = torch.Generator().manual_seed(0)
    small, mask = torch.rand(1, 256, 256, generator=generator), torch.rand(1, 40, 60, generator=generator) > 0.6
    resized = (F.interpolate(mask[None].float(), (256, 256), mode="bilinear", antialias=True) > 0.5)[0]
    assert SaliencyMetrics("group256").update(small, mask) == SaliencyMetrics("group256").update(small, resized)
    with pytest.raises(ValueError, match=r"must be .* of one size"):
        SaliencyMetrics("pysod").update(small, mask)
