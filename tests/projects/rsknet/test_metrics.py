import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from projects.rsknet import metrics


def drawn(seed, trials=400, levels=None):
    own = np.random.default_rng(seed)
    is_target = own.random(trials) < 0.3
    scores = own.normal(1.5 * is_target, 1)
    return torch.from_numpy(np.round(scores * levels) / levels if levels else scores), torch.from_numpy(is_target)


def paired(seed, speakers=9, each=4):
    """All pairs of a small world: scores, targets and both sides' speakers, some scores being equal."""
    own = np.random.default_rng(seed)
    names = np.repeat([f"id{number}" for number in range(speakers)], each)
    first, second = np.triu_indices(len(names), 1)
    enrol, test = names[first], names[second]
    is_target = enrol == test
    return torch.from_numpy(np.round(own.normal(1.2 * is_target, 1), 1)), torch.from_numpy(is_target), enrol, test


def rates(scores, is_target, threshold):
    accepted = scores >= threshold
    return 1 - accepted[is_target].double().mean().item(), accepted[~is_target].double().mean().item()


CASES = [(0, 400, None), (1, 400, 2), (2, 20, None), (3, 300, 1)]


def test_the_equal_error_rate_lies_between_two_points_of_the_curve():
    scores = torch.tensor([9.0, 8, 7, 6, 5, 4, 3])
    is_target = torch.tensor([True, True, False, True, False, False, False])
    assert metrics.eer(scores, is_target) == pytest.approx(1 / 4)  # between (1/4, 2/3) and (1/4, 1) of accepted nontargets and targets
    assert metrics.eer(-scores, is_target) == pytest.approx(3 / 4)
    assert metrics.eer(torch.zeros(7), is_target) == 0.5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("costs", [(0.01, 1, 1), (0.001, 1, 1), (0.3, 2, 5)], ids=str)
def test_costs_are_those_of_trying_every_threshold(case, costs):
    scores, is_target = drawn(*case)
    p, c_miss, c_fa = costs
    found = []
    for threshold in [-math.inf, *scores.tolist(), math.inf]:
        miss, alarm = rates(scores, is_target, threshold)
        found.append((p * c_miss * miss + (1 - p) * c_fa * alarm) / min(p * c_miss, (1 - p) * c_fa))
    assert metrics.min_dcf(scores, is_target, *costs) == pytest.approx(min(found), abs=1e-12)
    assert min(found) <= 1
    miss, alarm = rates(scores, is_target, math.log((1 - p) * c_fa / (p * c_miss)))
    bayes = (p * c_miss * miss + (1 - p) * c_fa * alarm) / min(p * c_miss, (1 - p) * c_fa)
    assert metrics.actual_dcf(scores, is_target, *costs) == pytest.approx(bayes, abs=1e-12)
    assert metrics.actual_dcf(scores, is_target, *costs) >= metrics.min_dcf(scores, is_target, *costs)


def test_ratios_cost_bits():
    is_target = torch.tensor([True, False, False])
    assert metrics.cllr(torch.zeros(3), is_target) == pytest.approx(1)
    expected = (math.log2(1 + 1 / 4) + (math.log2(1 + 1 / 2) + math.log2(1 + 8)) / 2) / 2  # ratios 4, 1/2 and 8
    assert metrics.cllr(torch.tensor([4.0, 0.5, 8.0]).log(), is_target) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_least_cost_in_bits_is_that_of_the_best_rising_map(case):
    scores, is_target = drawn(*case)
    posterior = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores.numpy(), is_target.double().numpy())
    prior = is_target.double().mean().item()
    with np.errstate(divide="ignore"):
        llrs = np.log(posterior / (1 - posterior)) - math.log(prior / (1 - prior))
    expected = (np.log2(1 + np.exp(-llrs[is_target])).mean() + np.log2(1 + np.exp(llrs[~is_target])).mean()) / 2
    least = metrics.min_cllr(scores, is_target)
    assert least == pytest.approx(expected, abs=1e-9)
    assert all(least <= metrics.cllr(scale * scores + offset, is_target) for scale in (0.5, 1, 2) for offset in (-2, -1, 0))


def test_the_least_cost_in_bits_is_0_of_separate_scores_and_1_of_equal_ones():
    is_target = torch.tensor([True, True, False, False, False])
    assert metrics.min_cllr(torch.tensor([5.0, 4, 3, 2, 1]), is_target) == 0
    assert metrics.min_cllr(torch.zeros(5), is_target) == pytest.approx(1)


def test_points_of_the_trade_off_are_quantiles_of_rates_and_few():
    scores, is_target = drawn(5, 4000)
    alarms, misses = metrics.det_points(scores, is_target, per_decade=10)
    reached = {tuple(np.round(rates(scores, is_target, threshold)[::-1], 12)) for threshold in scores.tolist()}
    points = set(zip(np.round(stats.norm.cdf(alarms), 12), np.round(stats.norm.cdf(misses), 12), strict=True))
    assert points <= reached
    assert 30 < len(alarms) < 100
    assert bool((alarms.diff() >= 0).all() and (misses.diff() <= 0).all())
    assert np.polyfit(alarms, misses, 1) == pytest.approx([-1, -1.5], abs=0.15)  # the line of two normal distributions 1.5 apart
    assert [len(axis) for axis in metrics.det_points(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))] == [0, 0]


def test_the_summary_has_fractions_and_normalised_costs():
    scores, is_target = drawn(6)
    assert metrics.summarise(scores, is_target) == {
        "eer": metrics.eer(scores, is_target),
        "min_dcf_01": metrics.min_dcf(scores, is_target, 0.01),
        "min_dcf_001": metrics.min_dcf(scores, is_target, 0.001),
    }


@pytest.mark.parametrize("far", [0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "ties"])
def test_no_smaller_threshold_keeps_the_rate_of_false_accepts(far, levels):
    scores, _ = drawn(7, 100, levels)
    threshold = metrics.far_threshold(scores, far)
    assert (scores >= threshold).double().mean() <= far
    assert (scores >= math.nextafter(threshold, -math.inf)).double().mean() > far
    if levels is None:
        assert int((scores >= threshold).sum()) == round(far * 100)


def test_rates_that_too_few_impostors_cannot_show_are_refused():
    with pytest.raises(ValueError, match=r"rate of 0.01 needs at least 100 impostor trials, got 99"):
        metrics.far_threshold(torch.rand(99), 0.01)
    with pytest.raises(ValueError, match="far must lie between 0 and 1"):
        metrics.far_threshold(torch.rand(99), 1)
    with pytest.raises(ValueError, match="1 of 99 impostor scores are NaN"):
        metrics.far_threshold(torch.rand(99).index_fill(0, torch.tensor([3]), math.nan), 0.1)


@pytest.mark.parametrize("accepted", [0, 3, 50])
def test_the_bound_of_a_rate_is_the_exact_one(accepted):
    scores = torch.arange(50.0)
    exact = stats.binomtest(accepted, 50, alternative="less").proportion_ci(0.95, "exact").high
    assert metrics.far_upper_bound(scores, 50 - accepted) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_of_speakers_is_the_list_with_repeated_trials(seed):
    scores, is_target, enrol, test = paired(seed)
    names = sorted(set(enrol))
    first, second = (torch.tensor([names.index(name) for name in side]) for side in (enrol, test))
    times = torch.from_numpy(np.random.default_rng(seed).multinomial(9, np.full(9, 1 / 9), size=40)).double()
    found = metrics._weighted_eer(scores, first, second, times)
    for rate, draw in zip(found.tolist(), times.long(), strict=True):
        repeats = torch.where(is_target, draw[first], draw[first] * draw[second])
        repeated = [column.repeat_interleave(repeats) for column in (scores, is_target)]
        assert rate == pytest.approx(metrics.eer(*repeated), abs=1e-12)


def test_speakers_that_count_once_each_give_the_equal_error_rate():
    scores, is_target, enrol, test = paired(4)
    first, second = (torch.tensor([int(name[2:]) for name in side]) for side in (enrol, test))
    assert metrics._weighted_eer(scores, first, second, torch.ones(2, 9, dtype=torch.float64)).tolist() == [metrics.eer(scores, is_target)] * 2


def test_systems_are_compared_on_the_same_draws_of_speakers():
    scores, is_target, enrol, test = paired(5)
    once = metrics.bootstrap_eer(scores, is_target, enrol, test, 50, seed=1)
    order = torch.randperm(len(scores))
    again = metrics.bootstrap_eer(scores[order].exp(), is_target[order], list(test[order]), enrol[order], 50, seed=1)
    assert once.tolist() == again.tolist()
    assert once.tolist() != metrics.bootstrap_eer(scores, is_target, enrol, test, 50, seed=2).tolist()


def test_the_parts_of_the_bootstrap_do_not_matter(monkeypatch):
    columns = paired(6)
    whole = metrics.bootstrap_eer(*columns, 30)
    monkeypatch.setattr(metrics, "_CHUNK", 1)
    assert metrics.bootstrap_eer(*columns, 30).tolist() == whole.tolist()


def test_speakers_spread_more_than_trials_where_some_are_hard_to_know():
    own = np.random.default_rng(0)
    scores, is_target, enrol, test = paired(0, speakers=25)
    ease = own.normal(0, 1.5, 25)[[int(name[2:]) for name in enrol]]
    scores = scores + torch.from_numpy(ease) * is_target
    rows = torch.from_numpy(own.integers(0, len(scores), (200, len(scores))))
    spread_of_trials = np.std([metrics.eer(scores[row], is_target[row]) for row in rows])
    assert metrics.bootstrap_eer(scores, is_target, enrol, test, 200).std() > 1.3 * spread_of_trials


def test_lists_that_cannot_be_judged_are_named():
    scores, is_target, enrol, test = paired(7)
    with pytest.raises(ValueError, match="0 of 3 trials are targets: error rates need both"):
        metrics.eer(torch.rand(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="p_target must lie between 0 and 1"):
        metrics.min_dcf(scores, is_target, 0)
    with pytest.raises(ValueError, match="trial 0 of id0 and id0 is labelled nontarget: correct the list"):
        metrics.bootstrap_eer(scores, ~is_target, enrol, test)
    with pytest.raises(ValueError, match="one of each a trial"):
        metrics.bootstrap_eer(scores, is_target, enrol[1:], test)
    with pytest.raises(ValueError, match="replicates must be at least 1"):
        metrics.bootstrap_eer(scores, is_target, enrol, test, 0)
