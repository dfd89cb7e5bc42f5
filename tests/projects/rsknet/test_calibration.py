import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from projects.rsknet.calibration import IMPOSTORS, Calibration, probability, quality
from projects.rsknet.metrics import cllr, eer, min_cllr


def normal_scores(seed, trials=3000):
    """Scores N(2, 1) of targets and N(-2, 1) of nontargets divided by 20 and shifted: the true ratio is 4 x, x being the normal number."""
    own = np.random.default_rng(seed)
    is_target = own.random(trials) < 0.2
    x = own.normal(np.where(is_target, 1, -1), 1)
    return torch.from_numpy(0.05 * x + 0.4), torch.from_numpy(is_target), torch.from_numpy(2 * x)


@pytest.mark.parametrize("p_target", [0.5, 0.01])
def test_the_map_is_that_of_scikit_learn_with_weighted_trials(p_target):
    scores, is_target, _ = normal_scores(0)
    measures = torch.from_numpy(np.random.default_rng(1).normal(size=(len(scores), 2)))
    columns = torch.cat([scores[:, None], measures], dim=1)
    mass = torch.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    scaling = columns.std(0)
    peer = LogisticRegression(C=1e9, tol=1e-10, max_iter=2000).fit(columns / scaling, is_target, sample_weight=1000 * mass)
    found = Calibration.fit(scores, is_target, measures, p_target)
    expected = torch.from_numpy(peer.coef_[0]) / scaling
    torch.testing.assert_close(torch.cat([torch.tensor([found.scale]), found.weights]), expected, rtol=2e-3, atol=2e-3)
    assert found.offset == pytest.approx(peer.intercept_[0] - math.log(p_target / (1 - p_target)), rel=2e-3)


def test_the_map_minimises_the_cost_in_bits():
    scores, is_target, _ = normal_scores(2, 500)
    best = minimize(
        lambda map_: cllr(map_[0] * scores + map_[1], is_target),
        [10.0, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000},
    )
    assert cllr(Calibration.fit(scores, is_target).llr(scores), is_target) == pytest.approx(best.fun, abs=1e-6)


def test_calibration_finds_the_true_ratios_and_keeps_the_order():
    scores, is_target, truth = normal_scores(3, 20_000)
    calibration = Calibration.fit(scores, is_target)
    held, labels, ratios = normal_scores(4, 20_000)
    found = calibration.llr(held)
    assert (found - ratios).abs().mean() < 0.12
    assert cllr(held, labels) > 0.85  # the raw scores hardly leave 0.4
    assert cllr(found, labels) == pytest.approx(cllr(ratios, labels), abs=2e-3)
    assert min_cllr(held, labels) <= cllr(found, labels) < min_cllr(held, labels) + 0.01
    assert eer(found, labels) == pytest.approx(eer(held, labels), abs=1e-12)
    assert truth.dtype == found.dtype == torch.float64


def test_posteriors_are_as_often_right_as_they_say():
    scores, is_target, _ = normal_scores(5, 40_000)
    sure = probability(Calibration.fit(scores, is_target).llr(scores), p_target=0.2)
    for low in (0.2, 0.5, 0.8):
        among = (sure > low) & (sure <= low + 0.2)
        assert float(is_target[among].double().mean()) == pytest.approx(float(sure[among].mean()), abs=0.04)
    assert probability(torch.zeros(1), 0.3).item() == pytest.approx(0.3)


def test_quality_measures_lower_the_cost_where_short_files_score_low():
    own = np.random.default_rng(6)
    is_target = torch.from_numpy(own.random(8000) < 0.5)
    enrol, test = (torch.from_numpy(own.uniform(1, 10, 8000)) for _ in range(2))
    measures = quality(enrol, test)
    scores = torch.from_numpy(own.normal(size=8000)) + 2 * is_target + 1.5 * measures[:, 0]
    plain = Calibration.fit(scores, is_target)
    aware = Calibration.fit(scores, is_target, measures)
    assert aware.weights[0] == pytest.approx(-1.5 * aware.scale, rel=0.1)
    assert aware.weights[1] == pytest.approx(0, abs=0.2)
    assert cllr(aware.llr(scores, measures), is_target) < cllr(plain.llr(scores), is_target) - 0.05


def test_quality_does_not_depend_on_which_side_is_enrolled():
    one, other = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0])
    assert quality(one, other).tolist() == quality(other, one).tolist()
    assert quality(one, other).exp()[1].tolist() == pytest.approx([2, 5])
    with pytest.raises(ValueError, match="durations must be positive"):
        quality(torch.zeros(1), torch.ones(1))


def test_a_measure_that_never_varies_gets_no_weight():
    scores, is_target, _ = normal_scores(7)
    constant = quality(torch.full_like(scores, 2.0), torch.full_like(scores, 2.0))
    with_it, without = Calibration.fit(scores, is_target, constant), Calibration.fit(scores, is_target)
    assert with_it.weights.tolist() == [0, 0]
    assert with_it.scale == pytest.approx(without.scale)


def test_separate_scores_give_finite_ratios():
    scores, is_target = torch.tensor([0.9, 0.8, 0.2, 0.1, 0.0]), torch.tensor([True, True, False, False, False])
    calibration = Calibration.fit(scores, is_target)
    llrs = calibration.llr(scores)
    assert bool(llrs.isfinite().all())
    assert 5 < llrs[:2].min() < 100
    assert -100 < llrs[2:].max() < -5


def test_thresholds_keep_the_rate_of_false_accepts_with_thinned_impostors():
    own = np.random.default_rng(8)
    scores = torch.from_numpy(np.concatenate([own.normal(3, 1, 500), own.normal(0, 1, 3 * IMPOSTORS + 17)]))
    is_target = torch.arange(len(scores)) < 500
    calibration = Calibration.fit(scores, is_target)
    assert calibration.fewest == len(calibration.impostors[0]) == IMPOSTORS
    impostors = calibration.llr(scores)[~is_target]
    for far in (0.0001, 0.001, 0.05):
        rate = (impostors >= calibration.threshold(far)).double().mean().item()
        assert far - 1 / IMPOSTORS <= rate <= far
    with pytest.raises(ValueError, match="at least 1000000 impostor trials"):
        calibration.threshold(1e-6)


KINDS = (1.0, 2.0, 8.0)


def scores_by_duration(seed, kinds=KINDS, trials=6000):
    """Scores of pairs of equal durations, whose spread falls with the duration; their truth, quality and kinds."""
    own = np.random.default_rng(seed)
    kind, is_target = own.integers(len(kinds), size=trials), own.random(trials) < 0.2
    seconds = torch.tensor(kinds)[torch.from_numpy(kind)]
    scores = torch.from_numpy(own.normal(np.where(is_target, 1, 0), 0.5 / np.sqrt(seconds.numpy())))
    return scores, torch.from_numpy(is_target), quality(seconds, seconds), torch.from_numpy(kind)


def test_the_rate_of_false_accepts_holds_in_each_group_on_new_trials():
    scores, is_target, measures, kind = scores_by_duration(11, trials=60_000)
    calibration = Calibration.fit(scores, is_target, measures, groups=kind)
    torch.testing.assert_close(calibration.centres, quality(torch.tensor(KINDS), torch.tensor(KINDS)))
    scores, is_target, measures, kind = scores_by_duration(12, trials=60_000)
    llrs = calibration.llr(scores, measures)
    assert torch.equal(calibration.nearest(measures + 0.2), kind)
    accepted, pooled = llrs >= calibration.threshold(0.01, measures), llrs >= calibration.threshold(0.01)
    for number in range(3):
        mask = ~is_target & (kind == number)
        assert float(accepted[mask].double().mean()) == pytest.approx(0.01, abs=0.0025)  # 2.5 deviations of 16000 trials, of both sets
    assert float(pooled[~is_target & (kind == 2)].double().mean()) < 0.001  # one threshold for all would not do


def test_durations_beyond_the_fit_count_as_the_nearest_of_the_fit():
    scores, is_target, measures, kind = scores_by_duration(13)
    calibration = Calibration.fit(scores, is_target, measures, groups=kind)
    assert calibration.span.exp().tolist() == [pytest.approx([1, 1]), pytest.approx([8, 8])]
    given, clamped = (
        quality(torch.tensor(one), torch.tensor(other)) for one, other in (([0.1, 30.0, 3.0], [2.0, 60.0, 4.0]), ([1.0, 8, 3], [2.0, 8, 4]))
    )
    values = torch.zeros(3)
    assert calibration.llr(values, given).tolist() == calibration.llr(values, clamped).tolist()
    assert calibration.threshold(0.05, given).tolist() == calibration.threshold(0.05, clamped).tolist()
    assert calibration.excess(given).tolist() == pytest.approx([math.log(10), math.log(60 / 8), 0], abs=1e-6)


def test_each_group_needs_impostors_enough():
    scores, is_target, measures, kind = scores_by_duration(14, trials=600)
    calibration = Calibration.fit(scores, is_target, measures, groups=kind)
    counts = [int((~is_target & (kind == number)).sum()) for number in range(3)]
    assert [len(part) for part in calibration.impostors] == counts
    assert calibration.fewest == min(counts)
    assert math.isfinite(calibration.threshold(1 / 400))
    with pytest.raises(ValueError, match=f"needs at least 400 impostor trials, got {counts[1]}"):
        calibration.threshold(1 / 400, calibration.centres[1:2])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_calibration_survives_its_tensors(grouped):
    scores, is_target, measures, kind = scores_by_duration(9)
    calibration = Calibration.fit(scores, is_target, measures, groups=kind if grouped else None)
    again = Calibration.from_tensors(calibration.tensors())
    measures = measures * 2 - 1
    assert again.llr(scores, measures).tolist() == calibration.llr(scores, measures).tolist()
    assert again.threshold(0.01) == calibration.threshold(0.01)
    assert again.threshold(0.01, measures).tolist() == calibration.threshold(0.01, measures).tolist()


@pytest.mark.parametrize("part", ["map", "span", "centres", "impostors", "sizes"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tensors_that_are_not_finite_make_no_calibration(part, value):
    scores, is_target, measures, kind = scores_by_duration(9)
    tensors = Calibration.fit(scores, is_target, measures, groups=kind).tensors()
    tensors[part] = tensors[part].clone()
    tensors[part].flatten()[-1] = value
    with pytest.raises(ValueError, match="not finite"):
        Calibration.from_tensors(tensors)


def test_what_cannot_be_calibrated_is_named():
    scores, is_target, _ = normal_scores(10, 200)
    with pytest.raises(ValueError, match=r"do not rise towards targets .*: are they distances, or labels swapped"):
        Calibration.fit(-scores, is_target)
    with pytest.raises(ValueError, match="do not rise"):
        Calibration.fit(torch.ones(200), is_target)
    with pytest.raises(ValueError, match="0 of 200 trials are targets"):
        Calibration.fit(scores, torch.zeros(200))
    with pytest.raises(ValueError, match="must be finite"):
        Calibration.fit(scores / 0, is_target)
    with pytest.raises(ValueError, match="takes 0 quality measures a trial, got 2"):
        Calibration.fit(scores, is_target).llr(scores, torch.zeros(200, 2))
    with pytest.raises(ValueError, match=r"must be \(N, Q\)"):
        Calibration.fit(scores, is_target, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="p_target must lie"):
        Calibration.fit(scores, is_target, p_target=1)
