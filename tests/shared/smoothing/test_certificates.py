import bisect
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from shared.smoothing.certificates import Smoothing, anisotropic_radii, choose_class
from shared.smoothing.joint import fisher_sum, least_sum, martingale_glance, martingale_sum
from shared.smoothing.runner_up import mean_fusion_radius, probit_fusion_radius, runner_up_bounds


def votes(*hits, draws, classes=3):
    """Votes with these hits of class 0 and all others for class 1."""
    rows = [[k, draws - k, *[0] * (classes - 2)] for k in hits]
    return torch.tensor(rows)


def radius(hits, draws, sigma=1.0, **settings):
    return Smoothing((sigma,) * len(hits), **settings).certify(votes(*hits, draws=draws), draws, 0)


@pytest.mark.parametrize(("hits", "expected"), [((9900, 7000), 0.6838), ((9900, 3000), 0.4168)])
def test_worked_values_of_the_main_form(hits, expected):
    assert radius(hits, 10_000, 0.36, rule="main").radius == pytest.approx(expected, abs=1e-4)
    assert radius((6000, 3500), 10_000, 0.36, rule="main").is_abstention


TABLE = [
    (1000, (1000, 1000), 3.435, 3.821, 3.683),
    (1000, (990, 900), 2.166, 2.061, 2.253),
    (1000, (950, 700), 1.283, 1.177, 1.349),
    (1000, (600, 600), 0.170, 0.234, 0.224),
    (1000, (990, 400), 1.112, 0.592, 1.181),
    (100_000, (100_000, 100_000), 5.357, 5.628, 5.529),
    (100_000, (99_000, 90_000), 2.511, 2.240, 2.521),
]


@pytest.mark.parametrize(("draws", "hits", "main", "pooled", "joint"), TABLE)
def test_worked_values_of_main_pooled_and_joint(draws, hits, main, pooled, joint):
    found = [radius(hits, draws, rule=rule).radius for rule in ("main", "pooled", "joint")]
    assert found == pytest.approx([main, pooled, joint], abs=6e-4)


def test_worked_values_of_the_anytime_joint_form():
    assert radius((99_000, 90_000), 100_000, anytime=True).radius == pytest.approx(2.496, abs=6e-4)
    assert radius((100_000, 100_000), 100_000, anytime=True).radius == pytest.approx(5.267, abs=6e-4)


@pytest.mark.parametrize("pair", [(0.99, 0.99), (0.999, 0.6), (0.8, 0.3), (0.95, 0.2)])
def test_closed_form_equals_the_brute_force_over_splits(pair):
    a, angles = stats.norm.ppf(pair), np.linspace(0, math.pi / 2, 301)

    def gap(r, angle):
        return special.ndtr(a[0] - r * math.cos(angle)) + special.ndtr(a[1] - r * math.sin(angle)) - 1

    least = min(optimize.brentq(gap, 0, 20, args=(angle,)) for angle in angles)
    assert Smoothing((1.0, 1.0)).scale * a.sum() == pytest.approx(least, abs=2e-5)


def test_unequal_noise_equals_the_brute_force_over_splits():
    a, sigmas = stats.norm.ppf([0.99, 0.7]), np.array([0.5, 0.2])
    shares = np.linspace(0, math.pi / 2, 20_001)
    norms = a.sum() / (np.cos(shares) / sigmas[0] + np.sin(shares) / sigmas[1])  # |delta| at which d_l + d_r reaches a_l + a_r
    assert Smoothing((0.5, 0.2)).scale * a.sum() == pytest.approx(norms.min(), rel=1e-7)


def test_four_branches_and_shared_noise():
    hits = votes(990, 980, 970, 960, draws=1000)
    a = stats.norm.ppf(stats.beta.ppf(0.00025, hits[:, 0].numpy(), 1001 - hits[:, 0].numpy())).sum()
    assert Smoothing((0.5,) * 4, "main").certify(hits, 1000, 0).radius == pytest.approx(0.25 * a, rel=1e-8)
    assert Smoothing((0.5,) * 4, "shared").certify(hits, 1000, 0).radius == pytest.approx(0.125 * a, rel=1e-8)


def test_fisher_bound_lies_below_a_fine_grid_and_close_to_it():
    for left, right, draws in ((99, 90, 100), (1000, 1000, 1000), (60, 58, 100)):
        c = math.exp(-stats.chi2.ppf(0.95, 4) / 2)
        u = c ** np.linspace(1e-6, 1 - 1e-6, 200_001)
        grid = stats.norm.ppf(stats.beta.ppf(u, left, draws - left + 1)) + stats.norm.ppf(stats.beta.ppf(c / u, right, draws - right + 1))
        bound = fisher_sum(torch.tensor([left, right]), draws, 0.05)
        assert grid.min() - 2e-6 <= bound <= grid.min()


def test_joint_bounds_are_symmetric_and_never_claim_without_hits():
    for total in (fisher_sum, martingale_sum):
        assert total(torch.tensor([95, 80]), 100, 0.01) == pytest.approx(total(torch.tensor([80, 95]), 100, 0.01), abs=2e-6)
        assert total(torch.tensor([0, 100]), 100, 0.01) == -math.inf
    for hits in ([95, 80], [100, 100], [60, 99]):
        glance = martingale_glance(torch.tensor(hits), 100, 0.01)
        assert martingale_sum(torch.tensor(hits), 100, 0.01) <= glance < martingale_sum(torch.tensor(hits), 100, 0.01) + 0.3
    assert least_sum(lambda t: t, lambda t: -t) == pytest.approx(0, abs=1e-3)


def brute_mean_fusion(a, b):
    def gap(r, angle):
        left, right = r * math.cos(angle), r * math.sin(angle)
        return sum(special.ndtr(a[i] - d) - special.ndtr(b[i] + d) for i, d in enumerate((left, right)))

    return min(optimize.brentq(gap, 0, 20, args=(angle,)) for angle in np.linspace(0, math.pi / 2, 301))


@pytest.mark.parametrize(("top", "other"), [((0.45, 0.5), (0.2, 0.2)), ((0.9, 0.3), (0.05, 0.4)), ((0.7, 0.6), (0.1, 0.2))])
def test_measured_runner_up_equals_the_brute_force(top, other):
    lower, upper = torch.tensor(top, dtype=torch.float64), torch.tensor([other], dtype=torch.float64).T
    expected = brute_mean_fusion(stats.norm.ppf(top), stats.norm.ppf(other))
    found = mean_fusion_radius(lower, upper, 1.0)
    assert expected - 2e-4 <= found <= expected + 1e-9
    dominated = torch.cat([upper, upper / 2], dim=1)
    assert mean_fusion_radius(lower, dominated, 1.0) == found


def test_worked_values_of_the_measured_runner_up():
    lower, upper = torch.tensor([0.45, 0.5], dtype=torch.float64), torch.full((2, 1), 0.2, dtype=torch.float64)
    assert mean_fusion_radius(lower, upper, 1.0) == pytest.approx(0.5513, abs=2e-4)
    assert probit_fusion_radius(lower, upper, 1.0) == pytest.approx(0.5507, abs=1e-4)


def test_measured_runner_up_certifies_below_one_half():
    counts = torch.tensor([[4500, 2000, 2000, 1500]])
    assert Smoothing((0.5,), "main").certify(counts, 10_000, 0).is_abstention
    found = Smoothing((0.5,), "runner_up").certify(counts, 10_000, 0)
    lower, upper = stats.beta.ppf(0.0005, 4500, 5501), stats.beta.ppf(1 - 0.0005 / 3, 2001, 8000)
    assert found.radius == pytest.approx(0.25 * (stats.norm.ppf(lower) - stats.norm.ppf(upper)), rel=1e-8)
    assert math.fsum(found.alpha.parts.values()) == pytest.approx(0.001)
    four = Smoothing((0.5,) * 4, "runner_up").certify(counts.repeat(4, 1), 10_000, 0)
    lower, upper = stats.beta.ppf(0.000125, 4500, 5501), stats.beta.ppf(1 - 0.000125 / 3, 2001, 8000)
    assert four.radius == pytest.approx(0.5 * (stats.norm.ppf(lower) - stats.norm.ppf(upper)), rel=1e-8)
    low, high = runner_up_bounds(torch.tensor([[999, 1]]), 1000, 0, 0.001)
    assert (high <= 1 - low[:, None]).all()


def test_one_branch_is_cohens_certificate():
    for rule in ("main", "pooled", "joint", "shared"):
        found = radius((990,), 1000, 0.25, rule=rule)
        expected = 0.25 * stats.norm.ppf(stats.beta.ppf(0.001, 990, 11))
        assert found.radius < expected
        assert found.radius == pytest.approx(expected, rel=1e-8)
        assert (found.predicted, found.norm) == (0, "l2")
    assert (radius((500,), 1000).predicted, radius((500,), 1000).radius) == (-1, 0.0)


def test_uniform_noise_certifies_l1():
    found = radius((1000,), 1000, 0.3, rule="l1")
    assert found.radius == pytest.approx(0.6 * (0.001**0.001 - 0.5), rel=1e-8)
    assert found.norm == "l1"


def test_anisotropic_radii_are_labelled_per_point():
    theta = torch.tensor([0.25, 1.0, 0.5])
    z = stats.norm.ppf(0.99)
    found = anisotropic_radii(z, theta, fitted_to_input=True)
    assert (found.ellipsoid, found.l2, found.proxy) == pytest.approx((z, 0.25 * z, 0.5 * z), rel=1e-6)
    assert found.scope == "point"
    assert anisotropic_radii(0.0, theta, fitted_to_input=False).l2 == 0.0


def test_ties_go_to_the_lowest_class():
    assert choose_class(torch.tensor([[3, 5, 0], [3, 1, 6]])) == 0
    assert choose_class(torch.tensor([[0, 5, 6]])) == 2


@pytest.mark.parametrize(
    ("sigmas", "settings", "message"),
    [
        ((1.0, 1.0, 1.0), {"rule": "joint"}, "one or two branches"),
        ((1.0, 0.5), {"rule": "pooled"}, "needs one sigma"),
        ((1.0, 1.0), {"rule": "pooled", "anytime": True}, "fixed number of draws"),
        ((1.0, 1.0), {"rule": "pooled", "alpha": 0.3}, "below 1/4"),
        ((1.0, 1.0), {"rule": "shared", "sidak": True}, "not independent"),
        ((0.0,), {}, "must be positive"),
        ((1.0,), {"rule": "best"}, "none of main"),
        ((1.0,), {"rule": "joint", "randomised": True}, "main, pooled and l1"),
        ((1.0,), {"rule": "main", "randomised": True, "anytime": True}, "fixed number of draws"),
        ((1.0,), {"rule": "l1", "anisotropic": True}, "independent Gaussian noise"),
    ],
)
def test_what_is_not_proven_is_refused(sigmas, settings, message):
    with pytest.raises(ValueError, match=message):
        Smoothing(sigmas, **settings)


FORMS = {"main": {"rule": "main"}, "sidak": {"rule": "main", "sidak": True}, "pooled": {"rule": "pooled"}, "joint": {}, "anytime": {"anytime": True}}


@pytest.mark.parametrize(
    ("form", "pair"), [*itertools.product(["main", "sidak", "pooled", "joint"], [(0.95, 0.55), (0.8, 0.75)]), ("anytime", (0.8, 0.7))]
)
def test_true_radius_of_half_spaces_is_rarely_exceeded(form, pair):
    """The branches' half-spaces lie along delta: the fused answer changes at this very radius."""
    runs, draws, alpha = 2000, 50, 0.05
    generator = np.random.default_rng(5)
    hits = np.stack([generator.binomial(draws, p, runs) for p in pair], axis=1)
    smoothing = Smoothing((1.0, 1.0), alpha=alpha, **FORMS[form])
    truth = stats.norm.ppf(pair).sum() / math.sqrt(2)
    low, high = hits[:, 1].min(), hits[:, 1].max() + 1
    exceeded = 0
    for left in np.unique(hits[:, 0]):  # claims grow with the hits: look for the fewest of the other branch that exceed the truth
        fewest = bisect.bisect(range(high), truth, low, key=lambda k, left=left: smoothing.certify(votes(left, k, draws=draws), draws, 0).radius)
        exceeded += (hits[hits[:, 0] == left, 1] >= fewest).sum()
    assert exceeded / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(("rule", "branches"), [("main", 1), ("main", 2), ("pooled", 2), ("l1", 1)])
def test_randomised_bounds_are_never_below_the_plain_ones(rule, branches):
    smoothings = [Smoothing((0.5,) * branches, rule, 0.01, randomised=is_randomised) for is_randomised in (False, True)]
    generator, gained = np.random.default_rng(3), 0
    for hits in (60, 80, 95, 99, 100):
        coins = torch.from_numpy(1 - generator.random((50, branches)))
        counts = votes(*[hits] * branches, draws=100)
        plain = smoothings[0].certify(counts, 100, 0)
        for coin in coins:
            found = smoothings[1].certify(counts, 100, 0, coin)
            assert plain.radius - 1e-9 <= found.radius < 10
            assert found.coins == tuple(coin.tolist())
            gained += found.radius > plain.radius + 1e-6
        worst = smoothings[1].certify(counts, 100, 0, torch.ones(branches))
        assert worst.radius == pytest.approx(plain.radius, abs=1e-9)
    assert gained > 150
    with pytest.raises(ValueError, match="a coin for each branch"):
        smoothings[1].certify(counts, 100, 0)


@pytest.mark.parametrize(
    ("rule", "pair"), [("main", (0.9,)), ("main", (0.95, 0.6)), ("pooled", (0.8, 0.75)), ("pooled", (0.9999, 0.98)), ("l1", (0.7,))]
)
def test_randomised_claims_about_half_spaces_are_rarely_exceeded(rule, pair):
    runs, draws, alpha = 2000, 50, 0.05
    generator = np.random.default_rng(5)
    hits = np.stack([generator.binomial(draws, p, runs) for p in pair], axis=1)
    coins = torch.from_numpy(1 - generator.random((runs, len(pair))))
    smoothing = Smoothing((1.0,) * len(pair), rule, alpha, randomised=True)
    truth = {"main": stats.norm.ppf(pair).sum() / math.sqrt(len(pair)), "pooled": math.sqrt(2) * stats.norm.ppf(np.mean(pair)), "l1": 2 * pair[0] - 1}
    exceeded = sum(smoothing.radius(votes(*row, draws=draws), draws, 0, coin) > truth[rule] for row, coin in zip(hits, coins, strict=True))
    assert exceeded / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    if len(pair) == 1:
        assert exceeded / runs >= alpha - 3 * math.sqrt(alpha * (1 - alpha) / runs), "one randomised bound spends all of alpha"


def test_the_sum_of_squares_of_the_reference_over_claims():
    generator = np.random.default_rng(0)
    hits = np.stack([generator.binomial(200, p, 2000) for p in (0.95, 0.55)], axis=1)
    a = stats.norm.ppf(stats.beta.ppf(0.05, hits, 201 - hits)).clip(min=0)
    truth = stats.norm.ppf([0.95, 0.55]).sum() / math.sqrt(2)
    assert (np.sqrt((a**2).sum(1)) > truth).mean() > 0.5


def test_the_selection_draws_choose_between_pooled_and_joint():
    smoothing = Smoothing((0.5, 0.5), "selected")
    counts = torch.tensor([[990, 10], [900, 100]])
    uneven, sure = torch.tensor([[99, 1], [90, 10]]), torch.tensor([[100, 0], [100, 0]])
    assert smoothing.decided(uneven, 1000, 0).rule == "joint"
    assert smoothing.decided(sure, 1000, 0).rule == "pooled"
    found = smoothing.decided(uneven, 1000, 0).certify(counts, 1000, 0)
    assert found == Smoothing((0.5, 0.5), "joint").certify(counts, 1000, 0), "what is counted does not take part in the choice"
    assert Smoothing((0.5,), "selected").decided(uneven[:1], 1000, 0).rule == "main"
    for wrong in ((0.5, 0.4), (0.5,) * 4):
        with pytest.raises(ValueError, match="selected"):
            Smoothing(wrong, "selected")
    with pytest.raises(ValueError, match="needs a fixed number of draws"):
        Smoothing((0.5, 0.5), "selected", anytime=True)


def test_choosing_by_selection_draws_costs_no_alpha():
    """Over both branches' votes of known probabilities, the radius is false at most alpha often."""
    runs, draws, alpha, p = 400, 200, 0.05, (0.9, 0.8)
    random, smoothing = np.random.default_rng(0), Smoothing((1.0, 1.0), "selected", 0.05)
    truth = stats.norm.ppf(p).sum() / math.sqrt(2)
    exceeded, rules = 0, set()
    for _ in range(runs):
        selection, votes = (torch.tensor([[k, n - k] for k in random.binomial(n, p)]) for n in (20, draws))
        found = smoothing.decided(selection, draws, 0).certify(votes, draws, 0)
        exceeded += found.radius > truth
        rules.add(found.rule)
    assert rules == {"joint", "pooled"}
    assert exceeded / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
