import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, recall_score, roc_auc_score

from projects.comad.metrics import ComponentOverlap, alarms, category_means, count_errors, image_aurocs

KINDS = ["good"] * 40 + ["logical"] * 25 + ["structural"] * 15


def drawn_scores(seed=0):
    return torch.randn(80, generator=torch.Generator().manual_seed(seed)).mul(3).round() + torch.tensor([0] * 40 + [2] * 25 + [5] * 15)  # with ties


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_those_of_scikit_learn_each_kind_against_the_same_good_pictures(seed):
    scores = drawn_scores(seed)
    found = image_aurocs(scores, KINDS)
    for kind in ("logical", "structural"):
        rows = [row for row, other in enumerate(KINDS) if other in ("good", kind)]
        assert found[kind] == pytest.approx(roc_auc_score([KINDS[row] == kind for row in rows], scores[rows]), abs=1e-12)
    assert found["all"] == pytest.approx(roc_auc_score([kind != "good" for kind in KINDS], scores), abs=1e-12)
    assert found["mean"] == pytest.approx((found["logical"] + found["structural"]) / 2, abs=1e-12)
    assert found["mean"] != pytest.approx(found["all"], abs=1e-3)


def test_the_order_of_pictures_and_a_rising_map_of_scores_change_no_area():
    order = torch.randperm(80).tolist()
    scores = drawn_scores()
    assert image_aurocs((scores / 3).exp()[order], [KINDS[row] for row in order]) == pytest.approx(image_aurocs(scores, KINDS))


def test_what_has_no_pictures_has_no_area():
    found = image_aurocs(torch.arange(3.0), ["good"] * 3)
    assert math.isnan(found["mean"])
    assert math.isnan(found["all"])
    assert math.isnan(image_aurocs(torch.arange(3.0), ["logical"] * 3)["logical"])


@pytest.mark.parametrize("quantile", [0.5, 0.95, 1.0])
def test_alarms_are_counted_at_the_quantile_of_validation_scores(quantile):
    scores, validation = drawn_scores(), torch.randn(60)
    is_bad = torch.tensor([kind != "good" for kind in KINDS])
    found = alarms(scores, is_bad, validation, quantile)
    called = (scores.double().numpy() > np.quantile(validation.double().numpy(), quantile)).astype(int)
    assert found["threshold"] == pytest.approx(np.quantile(validation.double().numpy(), quantile), abs=1e-12)
    assert found["false_alarm_rate"] == pytest.approx(called[:40].mean())
    assert found["recall"] == pytest.approx(recall_score(is_bad, called))
    assert found["f1"] == pytest.approx(f1_score(is_bad, called))


def test_the_test_scores_do_not_move_the_threshold():
    validation, is_bad = torch.arange(20.0), torch.tensor([False, True])
    assert alarms(torch.tensor([0.0, 1.0]), is_bad, validation)["threshold"] == alarms(torch.tensor([5.0, 1e9]), is_bad, validation)["threshold"]


def test_a_picture_at_the_threshold_does_not_alarm():
    found = alarms(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.ones(9))
    assert found == {"threshold": 1.0, "false_alarm_rate": 0.0, "recall": 0.0, "f1": 0.0}
    none = alarms(torch.tensor([2.0]), torch.tensor([False]), torch.ones(9))
    assert none["false_alarm_rate"] == 1
    assert math.isnan(none["recall"])
    assert math.isnan(none["f1"])


def test_categories_count_alike_and_both_means_of_the_literature_are_given():
    rows = {
        "screw_bag": {"logical": 0.7, "structural": 0.9, "mean": 0.8, "all": 0.75},
        "pushpins": {"logical": 0.9, "structural": 1.0, "mean": 0.95, "all": 0.96},
    }
    assert category_means(rows) == pytest.approx({"logical": 0.8, "structural": 0.95, "mean": 0.875, "all": 0.855})


def test_a_mean_over_fewer_categories_is_not_given():
    found = category_means({"a": {"logical": 0.5, "structural": 0.5}, "b": {"logical": 0.7}})
    assert found["logical"] == pytest.approx(0.6)
    assert math.isnan(found["structural"])


def test_the_published_average_of_comad_comes_out():
    logical, structural = [91.1, 95.0, 95.7, 71.9, 93.3], [81.6, 98.2, 91.1, 88.5, 94.9]
    rows = {str(row): {"logical": a, "structural": b, "mean": (a + b) / 2} for row, (a, b) in enumerate(zip(logical, structural, strict=True))}
    found = category_means(rows)
    assert [round(found[name], 1) for name in ("logical", "structural", "mean")] == [89.4, 90.9, 90.1]


def test_overlaps_of_matched_components_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (3, 20, 30), generator=generator)
    renamed = torch.tensor([2, 0, 4, 1])  # component 3 is found nowhere in the drawing
    is_noise = torch.rand(truth.shape, generator=generator) < 0.3
    labels = torch.where(is_noise, torch.randint(0, 5, truth.shape, generator=generator), renamed[truth])
    overlap = ComponentOverlap(5, 4)
    overlap.update(labels[:1], truth[:1])
    overlap.update(labels[1:], truth[1:])
    matching, found = overlap.compute()
    assert matching == dict(enumerate(renamed.tolist()))
    expected = [jaccard_score((truth == row).flatten(), (labels == matching[row]).flatten()) for row in range(4)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_class_without_a_component_has_no_overlap_and_one_without_pixels_does_not_count():
    overlap = ComponentOverlap(2, 4)
    overlap.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 2]]]))
    matching, found = overlap.compute()
    assert matching[0] == 0
    assert found[:3].tolist() in ([1.0, 0.5, 0.0], [1.0, 0.0, 0.5])
    assert math.isnan(float(found[3]))


def test_count_errors_are_mean_absolute_differences():
    assert count_errors(torch.tensor([[2, 3], [1, 5]]), torch.tensor([[2, 1], [3, 4]])).tolist() == [1.0, 1.5]


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match="3 scores of 2 pictures"):
        image_aurocs(torch.zeros(3), ["good", "logical"])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        image_aurocs(torch.tensor([0.0, math.nan]), ["good", "logical"])
    is_bad = torch.tensor([False, True])
    with pytest.raises(ValueError, match="quantile must be in"):
        alarms(torch.zeros(2), is_bad, torch.zeros(2), 95)
    with pytest.raises(ValueError, match="there are none, or some are NaN"):
        alarms(torch.zeros(2), is_bad, torch.empty(0))
    with pytest.raises(ValueError, match="2 scores of 2 pictures, 1 NaN"):
        alarms(torch.tensor([0.0, math.nan]), is_bad, torch.zeros(2))
    with pytest.raises(ValueError, match="3 scores of 2 pictures"):
        alarms(torch.zeros(3), is_bad, torch.zeros(2))
    with pytest.raises(ValueError, match="no categories"):
        category_means({})
    overlap = ComponentOverlap(2, 2)
    with pytest.raises(ValueError, match="differ in shape"):
        overlap.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="a component must be in 0 to 1, got 0 to 2"):
        overlap.update(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 1]]]))
