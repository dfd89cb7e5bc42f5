"""What validation decides, against direct minimisations on what is only counted here, scipy and torchmetrics."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from scipy.special import expit
from torchmetrics.classification import BinaryCalibrationError

from projects.tripinet.calibration import (
    BINS,
    QUANTILES,
    RANGE,
    TEMPERATURES,
    Decision,
    LogitHistogram,
    best_temperature,
    bin_logits,
    calibration_error,
    interval,
    scale_scores,
)

WIDTH = 2 * RANGE / BINS


def drawn(factor, number=0, length=20_000):
    """Logits that are right when they are divided by `factor`, exact in float32, and labels."""
    random = np.random.default_rng(number)
    logits = random.normal(-1, 2, length)
    return np.round(factor * logits * 1024) / 1024, random.random(length) < expit(logits)


def places(logits):
    return np.clip(np.floor((logits + RANGE) / WIDTH), 0, BINS - 1).astype(int)


def counted(logits, labels):
    histogram = LogitHistogram()
    for part in np.array_split(np.arange(len(logits)), 3):
        histogram.update(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    return histogram.gathered()


def least_entropy(logits, labels):
    """The temperature from logits themselves, by another method: a root of the derivative by 1 / T."""
    slope = lambda inverse: (logits * (expit(logits * inverse) - labels)).sum()  # noqa: E731
    return 1 / scipy.optimize.brentq(slope, 1e-3, 1e2)


# ---- pixels


def test_logits_are_counted_where_they_lie():
    logits = torch.tensor([[[-1000.0, -64.0, -0.001]], [[0.0, 63.99, 1000.0]]])
    counts = counted(logits.flatten().numpy(), np.array([0, 1, 1, 0, 0, 1]))
    assert counts.sum() == 6
    assert counts[0].nonzero()[0].tolist() == [0, BINS // 2, BINS - 1]
    assert counts[1].nonzero()[0].tolist() == [0, BINS // 2 - 1, BINS - 1]
    logits, labels = drawn(3.0)
    assert np.array_equal(counted(logits, labels)[1], np.bincount(places(logits)[labels], minlength=BINS))
    assert np.abs(bin_logits()[places(logits)] - logits).max() <= WIDTH / 2
    shift = np.abs(expit(bin_logits()[places(logits)]) - expit(logits))
    assert shift.max() <= WIDTH / 8 == 1 / 256


@pytest.mark.parametrize("factor", [0.2, 1.0, 2.5, 8.0])
def test_the_temperature_is_that_of_the_least_cross_entropy(factor):
    logits, labels = drawn(factor)
    found = best_temperature(counted(logits, labels))
    assert found == pytest.approx(least_entropy(logits, labels), abs=WIDTH / 4), "logits are known to half a step"
    assert found == pytest.approx(factor, rel=0.05), "the logits were made so"
    assert found == pytest.approx(least_entropy(bin_logits()[places(logits)], labels), rel=1e-4)


def test_a_temperature_needs_both_labels_and_stays_within_bounds():
    logits, labels = drawn(1.0)
    for one in (np.zeros_like(labels), np.ones_like(labels)):
        assert best_temperature(counted(logits, one)) == 1.0
    assert best_temperature(np.zeros((2, BINS), dtype=np.int64)) == 1.0
    assert best_temperature(counted(logits, logits > 0)) == pytest.approx(TEMPERATURES[0], rel=0.01)
    assert best_temperature(counted(logits, logits < 0)) == pytest.approx(TEMPERATURES[1], rel=0.01)


@pytest.mark.parametrize(("factor", "temperature"), [(1.0, 1.0), (3.0, 1.0), (3.0, 3.0), (0.3, 1.0)])
def test_the_calibration_error_is_torchmetrics(factor, temperature):
    logits, labels = drawn(factor)
    error = calibration_error(counted(logits, labels), temperature)

    def peer(logits):
        metric = BinaryCalibrationError(n_bins=15, norm="l1")  # for two labels, it takes the probability of label 1 for the confidence
        metric.set_dtype(torch.float64)
        return float(metric(torch.from_numpy(expit(logits / temperature)), torch.from_numpy(labels.astype(int))))

    assert error == pytest.approx(peer(bin_logits()[places(logits)]), abs=1e-6)
    assert error == pytest.approx(peer(logits), abs=WIDTH / 8 / temperature), "what half a step changes of a probability"


def test_dividing_by_the_temperature_calibrates():
    counts = counted(*drawn(4.0))
    assert calibration_error(counts) > 0.1
    assert calibration_error(counts, best_temperature(counts)) < 0.02
    assert math.isnan(calibration_error(np.zeros((2, BINS), dtype=np.int64)))


# ---- pictures


def pictures(number, authentic, manipulated, distance):
    random = np.random.default_rng(number)
    scores = np.concatenate([random.normal(0, 1, authentic), random.normal(distance, 1, manipulated)])
    return 40 + 5 * scores, np.repeat([0, 1], [authentic, manipulated])


@pytest.mark.parametrize(("authentic", "manipulated", "distance"), [(60, 60, 1.5), (24, 96, 2), (24, 96, 9), (3, 40, 1)])
def test_scaling_minimises_the_balanced_cross_entropy_of_smoothed_labels(authentic, manipulated, distance):
    scores, labels = pictures(0, authentic, manipulated, distance)
    number = scipy.stats.hmean([authentic, manipulated])
    smoothed = np.where(labels == 1, (number + 1) / (number + 2), 1 / (number + 2))
    weights = np.where(labels == 1, 1 / manipulated, 1 / authentic)

    def entropy(line):
        p = expit(line[0] * (scores - 40) / 5 + line[1])
        return -(weights * (smoothed * np.log(p) + (1 - smoothed) * np.log1p(-p))).sum()

    slope, offset = scipy.optimize.minimize(entropy, (0.5, 0.0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}).x
    assert scale_scores(scores.tolist(), labels.tolist()) == pytest.approx((slope / 5, offset - 8 * slope), rel=1e-4)


def test_few_authentic_pictures_do_not_move_the_level_towards_them():
    alarms, misses = [], []
    for number in range(40):
        slope, intercept = scale_scores(*pictures(number, 24, 96, 3))
        level = (-intercept / slope - 40) / 5
        alarms.append(scipy.stats.norm.sf(level))
        misses.append(scipy.stats.norm.cdf(level - 3))
    assert np.mean(alarms) == pytest.approx(scipy.stats.norm.sf(1.5), abs=0.02), "half way, as if both kinds were equally frequent"
    assert np.mean(misses) == pytest.approx(scipy.stats.norm.sf(1.5), abs=0.02)


def test_scores_that_separate_pictures_have_a_finite_slope():
    slope, intercept = scale_scores([0.0, 1.0, 10.0, 11.0], [0, 0, 1, 1])
    assert 0 < slope < 10
    assert slope * 5.5 + intercept == pytest.approx(0, abs=1e-5), "half way"


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([], []),
        ([1.0, 2.0], [0, 0]),
        ([1.0, 2.0], [1, 1]),
        ([0.1] * 7, [0, 1, 0, 1, 0, 1, 1]),
        ([3.0, 2.0, 1.0, 0.0], [0, 0, 1, 1]),
    ],
)
def test_scores_that_say_nothing_or_the_contrary_are_a_half(scores, labels):
    assert scale_scores(scores, labels) == (0.0, 0.0)


@pytest.mark.parametrize(("part", "of"), [(0, 10), (10, 10), (3, 24), (1, 800), (0, 1)])
def test_the_interval_is_scipys(part, of):
    for level in (0.95, 0.8):
        peer = scipy.stats.binomtest(part, of).proportion_ci(level, method="exact")
        assert interval(part, of, level) == pytest.approx((peer.low, peer.high), abs=1e-9)
    assert interval(0, 0) == (0.0, 1.0)


# ---- the decision


def decided(scores, labels, threshold=0.7, factor=3.0):
    decision = Decision()
    decision.decide(counted(*drawn(factor)), threshold, scores, labels)
    return decision


def test_a_decision_outlives_its_checkpoint(tmp_path):
    decision = decided(*pictures(0, 24, 96, 2))
    torch.save(decision.state_dict(), tmp_path / "decision.ckpt")
    again = Decision()
    again.load_state_dict(torch.load(tmp_path / "decision.ckpt", weights_only=True))
    assert again.pixel_threshold == decision.pixel_threshold != 0.5
    assert again.false_alarms() == decision.false_alarms()
    for raw in (20.0, 41.7, 60.0):
        assert again.score(raw) == decision.score(raw)
        assert again.alarms_above(raw) == decision.alarms_above(raw)


def test_a_later_decision_replaces_an_earlier_one():
    decision, other = decided(*pictures(0, 300, 96, 2)), pictures(1, 5, 9, 2)
    decision.decide(counted(*drawn(1.0)), math.nan, *other)
    assert decision.alarms_above(-1e9) == 1.0
    assert int(decision.counts[0]) == 5
    assert int(decision.authentic.isfinite().sum()) == 5
    assert decision.pixel_threshold == 0.5


def test_calibrated_maps_are_cut_where_their_logits_would_be():
    logits = torch.linspace(-12, 12, 1202)
    for threshold in (0.7, 0.02, 250 / 256):
        decision = decided(*pictures(0, 24, 96, 2), threshold=threshold)
        assert float(decision.temperature) == pytest.approx(3, rel=0.05)
        called = decision.probabilities(logits) > decision.pixel_threshold
        assert torch.equal(called, logits > math.log(threshold / (1 - threshold)))


def test_a_threshold_can_be_exceeded_and_missed_whatever_validation_found():
    for factor in (0.02, 30.0):
        for threshold in (0.0, 1.0, math.nan):
            decision = decided(*pictures(0, 24, 96, 2), threshold=threshold, factor=factor)
            called = decision.probabilities(torch.tensor([-1e4, 1e4])) > decision.pixel_threshold
            assert called.tolist() == [False, True]


@pytest.mark.parametrize("number", [1, 24, QUANTILES, QUANTILES + 1, 1000])
def test_alarms_are_counted_by_rank(number):
    random = np.random.default_rng(number)
    scores = np.round(random.normal(30, 9, number), 1 if number % 2 else 6).astype(np.float32).astype(float)  # some are equal
    decision = decided([*scores, 70.0], [0] * number + [1])
    tried = [*scores[:50], *random.normal(30, 9, 50), -1e9, 1e9]
    exact = np.array([(1 + (scores >= np.float32(one)).sum()) / (1 + number) for one in tried])
    found = np.array([decision.alarms_above(one) for one in tried])
    if number <= QUANTILES:
        assert found == pytest.approx(exact)
    assert (found >= exact - 1e-12).all(), "never rarer than they are"
    assert (found - exact).max() <= 1 / (QUANTILES - 1) + 1 / number
    assert found[-2:].tolist() == pytest.approx([1.0, 1 / (1 + number)])


def test_large_scores_keep_their_ranks():
    scores = np.nextafter(np.float32(60), np.float32(99)) + np.float32(0) * np.arange(3)
    decision = decided([60.0, *scores.tolist()], [0, 0, 0, 0])
    assert decision.alarms_above(60.0) == 1.0
    assert decision.alarms_above(float(scores[0])) == 4 / 5


def test_false_alarms_are_counted_with_their_uncertainty():
    scores, labels = pictures(3, 24, 96, 2)
    decision = decided(scores, labels)
    alarms = sum(decision.score(score) > 0.5 for score in scores[:24])
    low, high = scipy.stats.binomtest(int(alarms), 24).proportion_ci(method="exact")
    assert 0 < alarms < 12
    assert decision.false_alarms().startswith(f"{alarms} of 24 authentic")
    assert f"95 % interval {low:.1%} to {high:.1%}" in decision.false_alarms()


@pytest.mark.parametrize("labels", [[], [1] * 8])
def test_without_authentic_pictures_false_alarms_are_not_known(labels):
    decision = decided(list(range(len(labels))), labels)
    assert math.isnan(decision.alarms_above(3.0))
    assert "not known" in decision.false_alarms()
    assert decision.score(3.0) == 0.5
    assert bool(decision.authentic.isnan().all())


def test_without_manipulated_pictures_nothing_is_called_so():
    decision = decided([1.0, 2.0, 3.0], [0, 0, 0], threshold=math.nan)
    assert decision.score(99.0) == 0.5
    assert decision.pixel_threshold == 0.5
    assert decision.false_alarms().startswith("0 of 3")
    assert decision.alarms_above(2.5) == 0.5


def test_before_validation_maps_are_read_as_they_are():
    decision, logits = Decision(), torch.randn(2, 1, 5, 5)
    assert torch.equal(decision.probabilities(logits), logits.sigmoid())
    assert decision.pixel_threshold == 0.5
    assert math.isnan(decision.alarms_above(0.0))
