import math

import pytest
import torch
from helpers.judging import collect, drawn
from helpers.processes import run_together
from scipy import stats
from torchmetrics import MetricCollection

from shared.forgery.evaluation import ForgeryMeasure, ForgeryScores, bootstrap, interval, score_shift, table
from shared.forgery.metrics import Scored, auroc, eer, roc, summarise, video_scores


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


@pytest.mark.parametrize("measure", [auroc, eer])
def test_resampled_sets_are_those_of_copied_videos(measure):
    rows = drawn()
    values = bootstrap(rows, measure, rounds=5, seed=3)
    from shared.seeding import generator

    own, judged = generator(3, "bootstrap"), video_scores(rows)
    for value in values.tolist():
        picked = []
        for label in (0, 1):
            videos = judged.videos[judged.labels == label]
            picked += videos[torch.randint(len(videos), (len(videos),), generator=own)].tolist()
        copied = torch.cat([(rows.videos == video).nonzero()[:, 0] for video in picked])
        assert value == pytest.approx(measure(roc(rows.scores[copied], rows.labels[copied])), abs=1e-12)


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
