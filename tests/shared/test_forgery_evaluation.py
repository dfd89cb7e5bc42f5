import math

import pytest
import sklearn.metrics
import torch
from helpers.judging import collect, drawn
from helpers.processes import run_together
from scipy import stats
from torchmetrics import MetricCollection

from shared.forgery.evaluation import ForgeryMeasure, ForgeryRank, ForgeryScores, bootstrap, interval, resample, score_shift, table
from shared.forgery.metrics import Scored, auroc, roc, summarise, video_scores
from shared.seeding import generator


def test_metrics_do_not_depend_on_batches_nor_on_their_order():
    rows = drawn()
    metric, measures = ForgeryScores(), MetricCollection({name: ForgeryMeasure(name) for name in ("frame_auroc", "video_eer")})
    for part in torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).split(7):
        for one in (metric, measures):
            one.update(rows.scores[part], rows.labels[part], rows.videos[part], part)
    expected = summarise(rows)
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected, abs=1e-6)
    assert {name: float(value) for name, value in measures.compute().items()} == pytest.approx({n: expected[n] for n in measures}, abs=1e-6)
    assert torch.equal(metric.scored().videos, rows.videos)


def test_processes_judge_together_also_when_one_has_no_rows(tmp_path):
    run_together(collect, str(tmp_path), count=3)
    rows = drawn()
    for rank in range(3):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt"), (rows.scores, rows.labels, rows.videos), strict=True):
            assert torch.equal(found, expected)


def test_an_empty_set_is_named():
    with pytest.raises(ValueError, match="the test set is empty"):
        ForgeryScores().scored()


@pytest.mark.parametrize("chunk", [64, 2**20])
def test_resampled_sets_are_those_of_copied_videos(chunk, monkeypatch):
    """Against the straightforward loop: copy the frames of each video drawn, and count pairs; whatever the number of sets judged at a time."""
    monkeypatch.setattr("shared.forgery.evaluation._CELLS", chunk)
    for rows in (drawn(), video_scores(drawn(90, 30, seed=1))):
        values = bootstrap(rows, rounds=7, seed=3)
        labels = video_scores(rows).labels
        times = resample(labels, 7, [generator(3, "bootstrap", label) for label in (0, 1)])
        for label in (0, 1):
            assert (times[labels == label].sum(0) == (labels == label).sum()).all(), "as many of each class as there are"
        for value, often in zip(values.tolist(), times.T.long(), strict=True):
            picked = rows.videos.unique().repeat_interleave(often).tolist()
            copied = torch.cat([(rows.videos == video).nonzero()[:, 0] for video in picked])
            assert value == pytest.approx(sklearn.metrics.roc_auc_score(rows.labels[copied], rows.scores[copied]), abs=1e-6)


def test_draws_are_uniform():
    times = resample(torch.tensor([0, 1, 0, 0, 1]), 4000, [generator(label, "draws") for label in (0, 1)])
    assert (times.mean(1) - 1).abs().max() < 0.06, "4 standard errors: the deviation of a binomial number is below 1"
    assert float(times[0].var()) == pytest.approx(2 / 3, abs=0.06)


def test_intervals_of_videos_are_wider_than_those_of_independent_frames():
    own = torch.Generator().manual_seed(0)
    video = torch.arange(600) // 20
    labels = video % 2
    scores = torch.sigmoid(0.8 * labels + torch.randn(30, generator=own)[video] + 0.2 * torch.randn(600, generator=own))
    widths = []
    for videos in (video, torch.arange(600)):
        low, high = interval(bootstrap(Scored(scores, labels, videos), rounds=200))
        assert low < auroc(roc(scores, labels)) < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_intervals_of_one_class_are_nan():
    assert all(math.isnan(end) for end in interval(bootstrap(Scored(torch.rand(4), torch.ones(4), torch.arange(4)), rounds=3)))
    with pytest.raises(ValueError, match="confidence"):
        interval(torch.rand(3), 95)


def test_the_table_ends_in_the_unweighted_mean():
    sets = {"small": drawn(30, 6, seed=1), "large": drawn(300, 12, seed=2)}
    small, large, mean = table(sets, rounds=50)
    assert (small["set"], large["set"], mean["set"]) == ("small", "large", "mean")
    assert (small["frames"], large["frames"], mean["frames"]) == (30, 300, 330)
    assert mean["video_auroc"] == pytest.approx((small["video_auroc"] + large["video_auroc"]) / 2)
    assert small["frame_auroc_low"] <= small["frame_auroc"] <= small["frame_auroc_high"]
    narrower = mean["frame_auroc_high"] - mean["frame_auroc_low"]
    assert narrower < small["frame_auroc_high"] - small["frame_auroc_low"]
    assert len(table({"small": sets["small"]}, rounds=2)) == 1
    with pytest.raises(ValueError, match="none of which is called 'mean'"):
        table({"mean": sets["small"]})


def test_a_shift_between_sets_shows_although_each_is_in_order():
    own = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(200, generator=own) * 0.2, torch.arange(200) % 2
    sets = {name: Scored(base + 0.25 * labels + scores, labels, torch.arange(200)) for name, base in (("val", 0.2), ("other", 0.45))}
    val, other = score_shift(sets, "val")
    assert val["eer"] == other["eer"] == 0
    assert (val["fpr"], val["fnr"], val["real_shift"], val["fake_shift"]) == (0, 0, 0, 0)
    assert other["fpr"] > 0.8
    assert other["fnr"] == 0
    for label, kind in enumerate(("real", "fake")):
        parts = [one.scores[one.labels == label].numpy() for one in sets.values()]
        assert other[f"{kind}_shift"] == pytest.approx(stats.ks_2samp(*parts).statistic, abs=1e-12)
    with pytest.raises(ValueError, match="'train' is none of the sets val, other"):
        score_shift(sets, "train")


def test_epochs_are_ranked_by_videos_and_equal_ones_by_cross_entropy():
    labels, videos, index = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), torch.arange(4)

    def rank(*scores):
        metric = ForgeryRank()
        metric.update(torch.tensor(scores), labels, videos, index)
        return float(metric.compute())

    unsure, sure, wrong = rank(0.4, 0.45, 0.55, 0.5), rank(0.0, 0.1, 0.8, 1.0), rank(0.4, 0.45, 0.3, 0.5)
    assert wrong < unsure < sure
    assert unsure == pytest.approx(1 - 1e-5 * sklearn.metrics.log_loss(labels, [0.4, 0.45, 0.55, 0.5]), abs=1e-7)
    assert wrong == pytest.approx(0, abs=2e-4)
