import math

import numpy as np
import pytest
import torch

from projects.comad.fusion import Fusion, fuse

VALIDATION = {"logical": torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100]), "patch": torch.tensor([10.0, 20, 30, 40])}
SCORES = {"logical": torch.tensor([5.0, 100, 0]), "patch": torch.tensor([30.0, 400, 0])}


def expected(how, scores, reference):
    """The normalised scores by NumPy."""
    if how == "sum":
        return scores
    if how == "max":
        return scores / reference.max()
    if how == "rank":
        return np.array([((reference < s).sum() + (reference == s).sum() / 2) / len(reference) for s in scores])
    if how == "trimmed-z":
        low, high = np.percentile(reference, [20, 80])
        reference = reference[(reference >= low) & (reference <= high)]
    return (scores - reference.mean()) / reference.std()


@pytest.mark.parametrize("how", ["sum", "zscore", "trimmed-z", "max", "rank"])
def test_each_mode_is_the_sum_of_the_normalised_scores(how):
    whole = sum(expected(how, SCORES[name].numpy().astype(float), VALIDATION[name].numpy().astype(float)) for name in SCORES)
    np.testing.assert_allclose(fuse(SCORES, VALIDATION, how).numpy(), whole, rtol=1e-12)


def test_the_trimmed_mean_and_deviation_of_ten_scores_are_those_of_the_middle_six():
    middle = torch.tensor([3.0, 4, 5, 6, 7, 8], dtype=torch.float64)
    found = Fusion().fit({"a": VALIDATION["logical"]})({"a": torch.tensor([10.0])})
    torch.testing.assert_close(found, (10 - middle.mean()).reshape(1) / middle.std(correction=0))


def test_an_outlier_in_validation_stretches_the_zscore_but_not_the_trimmed_one():
    tidy = {"a": torch.arange(50.0)}
    spoilt = {"a": torch.cat([torch.arange(49.0), torch.tensor([1e6])])}
    scores = {"a": torch.tensor([200.0])}
    assert float(fuse(scores, spoilt, "trimmed-z")) == pytest.approx(float(fuse(scores, tidy, "trimmed-z")), rel=0.05)
    assert float(fuse(scores, spoilt, "zscore")) < 0.1 < 5 < float(fuse(scores, tidy, "zscore"))


def test_the_unit_of_a_detector_matters_only_to_the_plain_sum():
    scaled = [
        {"logical": VALIDATION["logical"], "patch": 1000 * VALIDATION["patch"]},
        {"logical": SCORES["logical"], "patch": 1000 * SCORES["patch"]},
    ]
    for how in ("zscore", "trimmed-z", "max", "rank"):
        torch.testing.assert_close(fuse(scaled[1], scaled[0], how), fuse(SCORES, VALIDATION, how))
    assert not torch.allclose(fuse(scaled[1], scaled[0], "sum"), fuse(SCORES, VALIDATION, "sum"))


def test_a_score_does_not_depend_on_what_is_scored_with_it():
    for how in ("sum", "zscore", "trimmed-z", "max", "rank"):
        fusion = Fusion(how).fit(VALIDATION)
        alone = torch.cat([fusion({name: values[row : row + 1] for name, values in SCORES.items()}) for row in range(3)])
        assert alone.tolist() == fusion(SCORES).tolist()


def test_equal_validation_scores_are_only_subtracted():
    validation, scores = {"a": torch.full((7,), 0.1)}, {"a": torch.tensor([0.1, 2.1])}
    for how in ("zscore", "trimmed-z"):
        assert fuse(scores, validation, how).tolist() == pytest.approx([0, 2])
    assert fuse({"a": torch.tensor([3.0])}, {"a": torch.zeros(4)}, "max").tolist() == [3.0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_validation_scores_are_enough(count):
    for how in ("sum", "zscore", "trimmed-z", "max", "rank"):
        assert math.isfinite(float(fuse({"a": torch.tensor([9.0])}, {"a": torch.arange(1.0, 1 + count)}, how)))


def test_the_order_of_detectors_does_not_matter():
    fusion = Fusion().fit(VALIDATION)
    assert fusion(dict(reversed(SCORES.items()))).tolist() == fusion(SCORES).tolist()
    assert list(fusion.normalised(SCORES)) == ["logical", "patch"]


@pytest.mark.parametrize("how", ["sum", "zscore", "trimmed-z", "max", "rank"])
def test_a_saved_fusion_gives_the_same_scores(how, tmp_path):
    fusion = Fusion(how).fit(VALIDATION)
    torch.save(fusion.state(), tmp_path / "fusion.pt")
    again = Fusion.from_state(torch.load(tmp_path / "fusion.pt", weights_only=True))
    assert again.how == how
    assert again(SCORES).tolist() == fusion(SCORES).tolist()


def test_what_cannot_be_fused_is_named():
    fusion = Fusion().fit(VALIDATION)
    with pytest.raises(ValueError, match="one of sum, zscore, trimmed-z, max, rank, got 'mean'"):
        Fusion("mean")
    with pytest.raises(ValueError, match="not fitted"):
        Fusion()(SCORES)
    with pytest.raises(ValueError, match="at least one detector"):
        Fusion().fit({})
    with pytest.raises(ValueError, match="scores of logical, but the fusion was fitted on logical, patch"):
        fusion({"logical": SCORES["logical"]})
    with pytest.raises(ValueError, match=r"3 \(logical\), 2 \(patch\) pictures"):
        fusion({"logical": SCORES["logical"], "patch": SCORES["patch"][:2]})
    with pytest.raises(ValueError, match="1 of 2 scores of patch are NaN"):
        Fusion().fit({"patch": torch.tensor([1.0, math.nan])})
    with pytest.raises(ValueError, match=r"scores of patch must be .* not empty"):
        Fusion().fit({"patch": torch.empty(0)})
