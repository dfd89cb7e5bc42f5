"""Every measure against scikit-learn, scipy or a loop, with ties, empty masks and constant maps."""

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import sklearn.metrics as peer
import torch

from projects.tripinet.metrics import THRESHOLDS, Counts, LocalisationMetrics, count, f1_best, harmonic_mean, trufor_f1
from shared.forgery.metrics import roc

CLOSE = {"abs": 1e-6}


def drawn(number, size=(24, 31), steps=None, sharp=1.0):
    """A map that follows its mask somewhat; with `steps`, one that has many ties."""
    random = np.random.default_rng(number)
    mask = np.zeros(size, bool)
    top, left = random.integers(0, 10, 2)
    mask[top : top + 9, left : left + 14] = True
    p = 1 / (1 + np.exp(-random.normal(0, 1, size) - sharp * (mask - 0.5)))
    p = np.round(p * steps) / steps if steps else p
    return torch.from_numpy(p.astype(np.float32))[None], torch.from_numpy(mask)[None]


def flat(*tensors):
    return [tensor.flatten().numpy() for tensor in tensors]


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("number", range(3))
def test_pixels_of_one_picture(number, steps):
    p, mask = drawn(number, steps=steps)
    pixels = LocalisationMetrics().update(p, mask, "splice").pixels
    scores, labels = flat(p, mask)
    called = scores > 0.5
    precision, recall, _ = peer.precision_recall_curve(labels, scores)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    expected = {
        "pixel_f1": peer.f1_score(labels, called),
        "pixel_f1_best": best,
        "pixel_auc": peer.roc_auc_score(labels, scores),
        "pixel_iou": peer.jaccard_score(labels, called),
        "pixel_mcc": peer.matthews_corrcoef(labels, called),
        "pixel_accuracy": peer.accuracy_score(labels, called),
    }
    assert pixels == pytest.approx(expected, **CLOSE)


def test_a_constant_map_has_the_area_of_chance():
    _, mask = drawn(0)
    for value in (0.0, 0.3, 1.0):
        assert LocalisationMetrics().update(torch.full(mask.shape, value), mask, "splice").pixels["pixel_auc"] == 0.5


def test_a_set():
    metrics = LocalisationMetrics()
    drawings = [drawn(number, (20 + number, 30), steps=500, sharp=2) for number in range(5)]
    drawings += [(drawn(number, steps=500)[0], torch.zeros(1, 24, 31, dtype=torch.bool)) for number in (7, 8)]
    for p, mask in drawings:
        metrics.update(p, mask, "splice" if mask.any() else "authentic")
    found = metrics.compute()
    forged = [flat(*one) for one in drawings[:5]]
    assert found["pixel_f1"] == pytest.approx(np.mean([peer.f1_score(y, p > 0.5) for p, y in forged]), **CLOSE)
    assert found["pixel_auc"] == pytest.approx(np.mean([peer.roc_auc_score(y, p) for p, y in forged]), **CLOSE)
    f1 = lambda called, y: 2 * (called & y).sum() / (called.sum() + y.sum())  # noqa: E731
    by_threshold = [np.mean([f1(p > k / THRESHOLDS, y) for p, y in forged]) for k in range(THRESHOLDS)]
    assert found["pixel_f1_dataset"] == pytest.approx(max(by_threshold), **CLOSE)
    assert found["pixel_threshold_dataset"] == int(np.argmax(by_threshold)) / THRESHOLDS
    scores, labels = (np.concatenate(part) for part in zip(*(flat(*one) for one in drawings), strict=True))
    assert found["pooled_f1"] == pytest.approx(peer.f1_score(labels, scores > 0.5), **CLOSE)
    assert found["pooled_auc"] == pytest.approx(peer.roc_auc_score(labels, scores), **CLOSE)
    assert found["images"] == 7
    assert found["undefined_auc"] == 0


def test_scores_of_pictures():
    random = np.random.default_rng(3)
    scores, labels = np.round(random.random(40), 1), random.integers(0, 2, 40)
    metrics = LocalisationMetrics()
    for score, label in zip(scores, labels, strict=True):
        mask = torch.zeros(1, 4, 4)
        mask[0, 0, 0] = float(label)
        metrics.update(torch.full((1, 4, 4), 0.2), mask, "splice" if label else "authentic", score=float(score))
    found, called = metrics.compute(), scores > 0.5
    sensitivity, specificity = peer.recall_score(labels, called), peer.recall_score(1 - labels, ~called)
    assert found["image_auc"] == pytest.approx(peer.roc_auc_score(labels, scores), **CLOSE)
    assert found["image_f1"] == pytest.approx(peer.f1_score(labels, called), **CLOSE)
    assert found["image_accuracy"] == pytest.approx(peer.accuracy_score(labels, called), **CLOSE)
    assert (found["image_sensitivity"], found["image_specificity"]) == pytest.approx((sensitivity, specificity), **CLOSE)
    mvss = 2 * sensitivity * specificity / (sensitivity + specificity)
    assert found["image_f1_mvss"] == pytest.approx(mvss, **CLOSE)
    assert found["image_f1_mvss"] != pytest.approx(found["image_f1"], abs=1e-3), "the two have names of their own because they differ"
    assert found["combined_f1_mvss"] == 0 == found["combined_f1"], "no pixel was found"


def test_the_score_is_the_largest_of_the_map_unless_it_is_given():
    p, mask = drawn(0)
    assert LocalisationMetrics().update(p, mask, "splice").score == float(p.max())
    assert LocalisationMetrics().update(p, mask, "splice", score=0.25).score == 0.25


def test_what_is_undefined_is_counted_and_never_zero():
    metrics = LocalisationMetrics()
    p, mask = drawn(1)
    first = metrics.update(p, mask, "splice").pixels["pixel_auc"]
    metrics.update(p, torch.ones_like(mask), "inpaint")
    metrics.update(p, torch.zeros_like(mask), "authentic")
    found = metrics.compute()
    assert found["undefined_auc"] == 1
    assert found["pixel_auc"] == first
    only = LocalisationMetrics()
    only.update(p, torch.zeros_like(mask), "authentic")
    found = only.compute()
    assert math.isnan(found["pixel_f1_dataset"])
    assert math.isnan(found["image_auc"])
    assert "pixel_auc" not in found
    assert found["image_specificity"] in (0.0, 1.0)


def test_trufors_variant():
    for number in range(3):
        p, mask = drawn(number, (50, 60), sharp=-2)  # found, but inverted
        mask[:, 10:45, 10:50] = True
        inner = scipy.ndimage.minimum_filter(mask[0].numpy(), 15)
        outer = scipy.ndimage.maximum_filter(mask[0].numpy(), 11)
        judged = inner | ~outer
        scores, labels = p[0].numpy()[judged], mask[0].numpy()[judged]
        expected = max(peer.f1_score(labels, scores > 0.5), peer.f1_score(labels, 1 - scores > 0.5))
        fixed, best = trufor_f1(p, mask)
        assert fixed == pytest.approx(expected, **CLOSE)
        assert best >= fixed
        row = LocalisationMetrics(trufor=True).update(p, mask, "splice")
        assert row.pixels["trufor_f1"] == fixed
    thin = torch.zeros(1, 40, 40, dtype=torch.bool)
    thin[0, 20, 5:30] = True
    assert all(math.isnan(value) for value in trufor_f1(torch.rand(1, 40, 40), thin))


def test_groups():
    metrics = LocalisationMetrics()
    kinds = ["splice", "splice", "copymove", "authentic"]
    for number, (kind, ending) in enumerate(zip(kinds, ["jpg", "tif", "jpg", "jpg"], strict=True)):
        p, mask = drawn(number)
        metrics.update(p, mask & (kind != "authentic"), kind, ending)
    by_kind = metrics.compute_by("kind")
    assert {name: one["images"] for name, one in by_kind.items()} == {"copymove": 2, "splice": 3}
    assert by_kind["splice"]["pixel_f1"] == pytest.approx(np.mean([row.pixels["pixel_f1"] for row in metrics.rows[:2]]))
    assert {name: one["images"] for name, one in metrics.compute_by("format").items()} == {"jpg": 3, "tif": 1}
    large = LocalisationMetrics()
    for part in (0.04, 0.1, 0.5):
        mask = torch.zeros(1, 100, 100)
        mask[:, : round(100 * part)] = 1
        large.update(torch.rand(1, 100, 100), mask, "splice")
    assert [row.size for row in large.rows] == ["small", "medium", "large"]
    assert set(large.compute_by("size")) == {"small", "medium", "large"}


def scored(number, forged=9, authentic=6):
    """Rows of pictures with scores drawn at random, and the F1 of each manipulated one by scikit-learn."""
    random, metrics, f1 = np.random.default_rng(number), LocalisationMetrics(), []
    for place in range(forged + authentic):
        p, mask = drawn(100 * number + place, sharp=3)
        is_forged = place < forged
        metrics.update(p, mask & is_forged, "splice" if is_forged else "authentic", score=float(random.random()))
        f1 += [peer.f1_score(*flat(mask, p > 0.5))] if is_forged else []
    return metrics, float(np.mean(f1))


@pytest.mark.parametrize("number", range(5))
def test_combined_f1_is_the_harmonic_mean_of_pixels_and_pictures(number):
    metrics, pixel_f1 = scored(number)
    labels, called = np.array([row.label for row in metrics.rows]), np.array([row.score > 0.5 for row in metrics.rows])
    sensitivity, specificity = (peer.recall_score(labels, called, pos_label=label) for label in (1, 0))
    mvss = scipy.stats.hmean([sensitivity, specificity])
    found = metrics.compute()
    assert found["pixel_f1"] == pytest.approx(pixel_f1, **CLOSE)
    assert found["image_f1_mvss"] == pytest.approx(mvss, **CLOSE)
    assert found["combined_f1"] == pytest.approx(scipy.stats.hmean([pixel_f1, peer.f1_score(labels, called)]), **CLOSE)
    assert found["combined_f1_mvss"] == pytest.approx(scipy.stats.hmean([pixel_f1, mvss]), **CLOSE)


def test_scores_next_to_1_are_ranked():
    """In float64 they differ down to 1e-16; in float32, 0.99999999 would be 1."""
    metrics, scores = LocalisationMetrics(), [1 - 1e-9, 1 - 1e-10, 1 - 1e-12, 1 - 1e-15]
    for place, score in enumerate(scores):
        metrics.update(torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), place % 2), "splice" if place % 2 else "authentic", score=score)
    assert metrics.compute()["image_auc"] == 3 / 4 == peer.roc_auc_score([0, 1, 0, 1], scores)


@pytest.mark.parametrize("number", range(3))
def test_trufors_variant_is_that_of_a_loop_over_thresholds(number):
    p, mask = drawn(number, (40, 52), steps=50, sharp=(-1) ** number)
    mask[:, 12 : 30 + number, 9:33] = True
    inner = scipy.ndimage.binary_erosion(mask[0].numpy(), np.ones((15, 15)), border_value=1)
    outer = scipy.ndimage.binary_dilation(mask[0].numpy(), np.ones((11, 11)))
    assert 0 < inner.sum() < outer.sum() < mask.numel()
    scores, marked = p[0].numpy()[inner | ~outer], mask[0].numpy()[inner | ~outer]
    f1 = lambda called: 2 * (called & marked).sum() / (called.sum() + marked.sum())  # noqa: E731
    levels = [place / 100 for place in range(-1, 101, 2)]  # between the steps of the map
    best = max(f1(one > level) for one in (scores, 1 - scores) for level in levels)
    assert trufor_f1(p, mask) == pytest.approx((max(f1(scores > 0.5), f1(1 - scores > 0.5)), best), **CLOSE)


@pytest.mark.parametrize("what", ["kind", "size", "format"])
def test_a_group_is_measured_as_if_it_were_alone(what):
    random, metrics = np.random.default_rng(0), LocalisationMetrics()
    for number in range(24):
        p, mask = drawn(number, (20 + number % 3 * 10, 31))
        kind = random.choice(["splice", "copymove", "authentic"])
        if number % 4 == 0:
            mask[:, 15:] = True
        metrics.update(p, mask & (kind != "authentic"), str(kind), str(random.choice(["jpg", "tif"])), float(random.random()))
    name = lambda row: getattr(row, what)  # noqa: E731
    groups = metrics.compute_by(what)
    assert set(groups) == {name(row) for row in metrics.rows if row.label or what == "format"}
    assert len(groups) > 1
    for group, found in groups.items():
        chosen = [row for row in metrics.rows if name(row) == group or (what != "format" and row.label == 0)]
        forged = [row for row in chosen if row.label]
        scores, labels = [row.score for row in chosen], [row.label for row in chosen]
        assert found["images"] == len(chosen)
        assert found["pixel_auc"] == pytest.approx(np.mean([row.pixels["pixel_auc"] for row in forged]))
        assert found["image_auc"] == pytest.approx(peer.roc_auc_score(labels, scores))
        assert found["image_f1"] == pytest.approx(peer.f1_score(labels, np.array(scores) > 0.5))


def test_what_is_kept_does_not_grow_with_the_pixels():
    small, large = LocalisationMetrics(), LocalisationMetrics()
    for metrics, size in ((small, (24, 31)), (large, (240, 310))):
        for number in range(2):
            metrics.update(*drawn(number, size), "splice")
    kept = [(len(metrics.rows), metrics.pooled.size, metrics.f1_sums.size) for metrics in (small, large)]
    assert kept[0] == kept[1]


def test_counts_without_one_label():
    assert math.isnan(Counts(0, 0, 0, 5).f1)
    assert math.isnan(Counts(0, 0, 0, 5).sensitivity)
    assert Counts(0, 0, 0, 5).specificity == 1
    assert Counts(0, 0, 0, 5).mcc == 0
    assert count(torch.tensor([0.5, 0.6]), torch.tensor([1, 1])) == (1, 0, 1, 0), "a half is not above a half"
    assert math.isnan(f1_best(roc(torch.tensor([0.1, 0.2]), torch.tensor([0, 0]))))
    assert harmonic_mean(0.0, 0.0) == 0
    assert harmonic_mean(1.0, 0.5) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("p", "mask", "message"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), "one size"),
        (torch.zeros(4, 4), torch.zeros(4, 4), "one size"),
        (torch.full((1, 4, 4), 3.0), torch.zeros(1, 4, 4), "sigmoid of the logits"),
        (torch.full((1, 4, 4), math.nan), torch.zeros(1, 4, 4), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(p, mask, message):
    with pytest.raises(ValueError, match=message):
        LocalisationMetrics().update(p, mask, "splice")
