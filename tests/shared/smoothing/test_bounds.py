import math

import numpy as np
import pytest
import torch
from scipy import stats

from shared.smoothing.bounds import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    floored,
    hung_fithian_p_value,
    normal_quantile,
    randomised_lower,
    round_down,
)

COUNTS = torch.tensor([0, 1, 7, 500, 990, 999, 1000])


def test_worked_values_of_cohens_bound():
    for hits, draws, expected in ((990, 1000, 0.976036), (999, 1000, 0.990805), (600, 1000, 0.551075), (99_000, 100_000, 0.988989)):
        assert clopper_pearson_lower(torch.tensor(hits), draws, 0.001).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("draws", "alpha", "ceiling"),
    [
        (1000, 0.001, 2.4633),
        (1000, 0.0005, 2.4289),
        (10_000, 0.001, 3.1986),
        (10_000, 0.0005, 3.1709),
        (100_000, 0.001, 3.8115),
        (100_000, 0.0005, 3.7878),
    ],
)
def test_ceilings_are_those_of_the_closed_form(draws, alpha, ceiling):
    bound = clopper_pearson_lower(torch.tensor(draws), draws, alpha)
    assert bound.item() == pytest.approx(alpha ** (1 / draws), rel=1e-13)
    assert normal_quantile(bound).item() == pytest.approx(ceiling, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_equals_scipys_interval(alpha):
    lower, upper = clopper_pearson_lower(COUNTS, 1000, alpha), clopper_pearson_upper(COUNTS, 1000, alpha)
    for hits, low, high in zip(COUNTS.tolist(), lower.tolist(), upper.tolist(), strict=True):
        interval = stats.binomtest(hits, 1000).proportion_ci(1 - 2 * alpha, method="exact")
        assert low == pytest.approx(interval.low, abs=1e-12)
        assert high == pytest.approx(interval.high, abs=1e-12)


def test_randomised_bound_solves_its_equation():
    alpha, coins = 0.01, torch.tensor([1.0, 0.7, 0.3, 0.05])
    for hits in (0, 1, 50, 99, 100):
        for coin, p in zip(coins.tolist(), randomised_lower(torch.full((4,), hits), 100, alpha, coins).tolist(), strict=True):
            if p > 0:
                assert stats.binom.sf(hits, 100, p) + coin * stats.binom.pmf(hits, 100, p) == pytest.approx(alpha, rel=1e-9)
    plain = clopper_pearson_lower(torch.tensor([99]), 100, alpha)
    torch.testing.assert_close(randomised_lower(torch.tensor([99]), 100, alpha, torch.ones(1)), plain, rtol=0, atol=1e-14)
    assert randomised_lower(torch.tensor([100]), 100, alpha, torch.tensor([0.5])).item() == pytest.approx((alpha / 0.5) ** 0.01)


def test_randomised_bound_covers_exactly_alpha():
    generator = torch.Generator().manual_seed(0)
    hits = torch.from_numpy(np.random.default_rng(0).binomial(40, 0.8, 40_000))
    coins = 1 - torch.rand(40_000, generator=generator, dtype=torch.float64)
    missed = (randomised_lower(hits, 40, 0.05, coins) > 0.8).double().mean().item()
    assert missed == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 40_000))


def test_hung_fithian_equals_scipys_binomial_test():
    for first, second in ((60, 40), (50, 50), (3, 0), (1000, 900), (0, 0), (1, 0)):
        expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert hung_fithian_p_value(torch.tensor(first), torch.tensor(second)).item() == pytest.approx(expected, rel=1e-9)


def test_radii_are_rounded_down():
    radii = torch.rand(1000, dtype=torch.float64) * 4
    lowered = round_down(radii)
    assert (lowered < radii).all()
    assert (lowered > radii * (1 - 2e-9)).all()
    assert round_down(torch.tensor([0.0, -1.0, math.nan])).tolist() == [0.0, 0.0, 0.0]


def test_three_digits_are_cut_and_not_rounded():
    written = {1.9057: "1.9", 1.919: "1.91", 0.97799: "0.977", 0.0: "0.0", 3.8115: "3.81", 0.000123999: "0.000123", 12.39: "12.3", 0.5: "0.5"}
    assert {radius: floored(radius) for radius in written} == written
    for radius in np.random.default_rng(0).uniform(0, 5, 2000):
        assert float(floored(radius)) <= radius < float(floored(radius)) * 1.011
    with pytest.raises(ValueError, match="finite and not negative"):
        floored(-1.0)


@pytest.mark.parametrize(
    ("hits", "draws", "alpha", "message"), [(3, 2, 0.1, "between 0 and"), (-1, 2, 0.1, "between 0"), (1, 2, 1.5, "alpha must lie")]
)
def test_impossible_counts_are_refused(hits, draws, alpha, message):
    with pytest.raises(ValueError, match=message):
        clopper_pearson_lower(torch.tensor(hits), draws, alpha)
