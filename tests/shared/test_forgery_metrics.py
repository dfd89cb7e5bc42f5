import math

import numpy as np
import pytest
import torch
from helpers.judging import drawn
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sklearn_metrics

from shared.forgery.metrics import (
    Scored,
    accuracy,
    auroc,
    average_precision,
    eer,
    eer_threshold,
    presentation_errors,
    roc,
    summarise,
    tpr_at,
    video_scores,
)


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
def test_the_threshold_of_equal_errors_is_the_first_beyond_which_reals_err_more(case):
    scores, labels = columns(*case)
    threshold = eer_threshold(roc(scores, labels))
    real, fake = scores[labels == 0], scores[labels == 1]
    beyond = [value for value in scores.tolist() if (real >= value).sum() * len(fake) >= (fake < value).sum() * len(real)]
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


def test_a_set_of_one_class_has_no_curve_but_an_accuracy():
    curve = roc(torch.rand(5), torch.ones(5))
    assert all(math.isnan(value) for value in (auroc(curve), average_precision(curve), eer(curve), eer(curve, "nearest"), tpr_at(curve, 0.1)))
    assert math.isnan(eer_threshold(curve))
    assert accuracy(torch.tensor([0.6, 0.5]), torch.ones(2)) == 0.5
    errors = presentation_errors(torch.tensor([0.6, 0.4]), torch.ones(2))
    assert errors["apcer"] == 0.5
    assert math.isnan(errors["bpcer"])
    assert math.isnan(errors["acer"])


def test_presentation_errors_are_of_the_worst_manipulation():
    scores = torch.tensor([0.1, 0.7, 0.2, 0.9, 0.9, 0.4, 0.8, 0.3])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    kinds = ["real"] * 4 + ["swap", "swap", "reenact", "reenact"]
    assert presentation_errors(scores, labels) == {"apcer": 0.5, "bpcer": 0.5, "acer": 0.5}
    kinds[5] = "reenact"
    assert presentation_errors(scores, labels, kinds)["apcer"] == pytest.approx(2 / 3)
    confusion = sklearn_metrics.confusion_matrix(labels, scores > 0.5)
    assert presentation_errors(scores, labels)["bpcer"] == confusion[0, 1] / confusion[0].sum()


def test_a_video_has_the_mean_of_its_frames():
    scored = drawn()
    videos = video_scores(scored)
    assert videos.videos.tolist() == sorted(set(scored.videos.tolist()))
    for score, label, video in zip(videos.scores, videos.labels, videos.videos, strict=True):
        own = scored.videos == video
        assert float(score) == pytest.approx(float(scored.scores[own].mean()), abs=1e-12)
        assert set(scored.labels[own].tolist()) == {int(label)}


def test_the_summary_measures_frames_and_videos():
    scored = drawn()
    summary = summarise(scored)
    videos = video_scores(scored)
    assert summary["frame_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(scored.labels, scored.scores), abs=1e-6)
    assert summary["video_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(videos.labels, videos.scores), abs=1e-6)
    assert summary["frame_acc"] == pytest.approx(sklearn_metrics.accuracy_score(scored.labels, scored.scores > 0.5))
    assert {key.partition("_")[2] for key in summary} == {
        "auroc", "eer", "eer_nearest", "ap", "acc", "tpr_at_1", "tpr_at_5", "apcer", "bpcer", "acer"
    }  # fmt: skip


def test_one_score_too_high_by_rounding_is_still_a_probability():
    ones = torch.ones(7, dtype=torch.float64)
    assert video_scores(Scored(ones, ones, torch.zeros(7))).scores.tolist() == [1.0]


@pytest.mark.parametrize(
    ("scores", "labels", "videos", "message"),
    [
        ([], [], [], "the test set is empty"),
        ([0.1, math.nan], [0, 1], [0, 1], "1 of 2 scores are NaN, the first one in row 1"),
        ([0.1, 1.2], [0, 1], [0, 1], r"probabilities in \[0, 1\]"),
        ([0.1, 0.2], [0, 2], [0, 1], r"labels must be 0 \(real\) or 1 \(fake\), got \[2\]"),
        ([0.1, 0.2], [0], [0, 1], "of one length"),
        ([0.1, 0.2], [0, 1], [0], "one a score"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(scores, labels, videos, message):
    with pytest.raises(ValueError, match=message):
        Scored(torch.tensor(scores), torch.tensor(labels), torch.tensor(videos))


def test_a_video_of_two_labels_is_refused():
    with pytest.raises(ValueError, match="video 7 has real and fake frames"):
        video_scores(Scored(torch.rand(3), torch.tensor([0, 1, 0]), torch.tensor([7, 7, 8])))


def test_unknown_rules_and_limits_are_refused():
    curve = roc(torch.rand(4), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="rule must be one of interpolated, nearest"):
        eer(curve, "middle")
    with pytest.raises(ValueError, match="fpr must be"):
        tpr_at(curve, 5)
    with pytest.raises(ValueError, match="3 manipulations"):
        presentation_errors(torch.rand(2), torch.tensor([0, 1]), ["a", "b", "c"])
