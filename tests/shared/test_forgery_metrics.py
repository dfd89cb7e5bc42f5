import math

import pytest
import torch
from helpers.judging import drawn
from sklearn import metrics as sklearn_metrics

from shared.forgery.metrics import Scored, accuracy, presentation_errors, summarise, video_scores


def test_a_set_of_one_class_has_an_accuracy():
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
        ([0.1, 0.2], [0, 2], [0, 1], r"labels must be 0 or 1, got \[2\]"),
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


def test_manipulations_that_are_not_one_a_score_are_refused():
    with pytest.raises(ValueError, match="3 manipulations"):
        presentation_errors(torch.rand(2), torch.tensor([0, 1]), ["a", "b", "c"])
