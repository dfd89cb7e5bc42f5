import math

import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sklearn_metrics

from shared.metrics.curves import auroc, average_precision, eer, eer_threshold, roc, tpr_at


def columns(seed, rows=80, levels=None):
    own = np.random.default_rng(seed)
    labels = own.integers(0, 2, rows)
    labels[:2] = 0, 1
    scores = own.normal(labels, 1.2)
    return torch.from_numpy(np.round(scores * levels) / levels if levels else scores), torch.from_numpy(labels)


CASES = [(seed, rows, levels) for seed in range(4) for rows, levels in ((80, None), (80, 2), (7, None), (300, 1))]


@pytest.mark.parametrize("case", CASES)
def test_areas_are_those_of_scikit_learn_and_of_counting_pairs(case):
    scores, labels = columns(*case)
    curve = roc(scores, labels)
    assert auroc(curve) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-6)
    assert average_precision(curve) == pytest.approx(sklearn_metrics.average_precision_score(labels, scores), abs=1e-6)
    differences = scores[labels == 1][:, None] - scores[labels == 0]
    assert auroc(curve) == pytest.approx(float(((differences > 0).double() + 0.5 * (differences == 0)).mean()), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_equal_error_rates_are_those_of_both_published_computations(case):
    scores, labels = columns(*case)
    curve = roc(scores, labels)
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores)
    assert eer(curve) == pytest.approx(brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1, xtol=1e-12), abs=1e-6)
    assert eer(curve, "nearest") == pytest.approx(fpr[np.nanargmin(np.abs(1 - tpr - fpr))], abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_threshold_of_equal_errors_is_the_first_beyond_which_negatives_err_more(case):
    scores, labels = columns(*case)
    threshold = eer_threshold(roc(scores, labels))
    negative, positive = scores[labels == 0], scores[labels == 1]
    beyond = [value for value in scores.tolist() if (negative >= value).sum() * len(positive) >= (positive < value).sum() * len(negative)]
    assert threshold == max(beyond)


def test_rates_at_a_limit_are_the_best_that_a_threshold_reaches():
    for case in CASES:
        scores, labels = columns(*case)
        for limit in (0, 0.01, 0.05, 0.3, 1):
            reached = [0.0]
            for threshold in scores.tolist():
                called = scores >= threshold
                if called[labels == 0].double().mean() <= limit:
                    reached.append(float(called[labels == 1].double().mean()))
            assert tpr_at(roc(scores, labels), limit) == pytest.approx(max(reached), abs=1e-12)


def test_equal_scores_are_undecided():
    curve = roc(torch.full((10,), 0.3), torch.arange(10) % 2)
    assert auroc(curve) == 0.5
    assert eer(curve) == 0.5
    assert eer(curve, "nearest") == 0  # the curve has two points, and the rates differ by 1 at both


def test_labels_of_one_class_make_no_curve():
    curve = roc(torch.rand(5), torch.ones(5))
    assert all(math.isnan(value) for value in (auroc(curve), average_precision(curve), eer(curve), eer(curve, "nearest"), tpr_at(curve, 0.1)))
    assert math.isnan(eer_threshold(curve))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "there are no scores"),
        ([0.1, math.nan], [0, 1], "1 of 2 scores are NaN, the first one in row 1"),
        ([0.1, 0.2], [0, 2], r"labels must be 0 or 1, got \[2\]"),
        ([0.1, 0.2], [0], "of one length"),
    ],
)
def test_rows_that_make_no_curve_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        roc(torch.tensor(scores), torch.tensor(labels))


def test_unknown_rules_and_limits_are_refused():
    curve = roc(torch.rand(4), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="rule must be one of interpolated, nearest"):
        eer(curve, "middle")
    with pytest.raises(ValueError, match="fpr must be"):
        tpr_at(curve, 5)
