import math

import numpy as np
import pytest
import torch
from scipy import special

from shared.smoothing.anytime import log_martingale, lower_sequence, running_maximum, upper_sequence
from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile


def test_martingale_equals_the_sequential_bets():
    """Krichevsky-Trofimov: the next draw is a hit with probability (S + 1/2) / (n + 1)."""
    draws = np.random.default_rng(1).random(200) < 0.7
    for p in (0.3, 0.7, 0.99):
        wealth, hits = 0.0, 0
        for n, hit in enumerate(draws):
            bet = (hits + 0.5) / (n + 1)
            wealth += math.log(bet / p) if hit else math.log((1 - bet) / (1 - p))
            hits += hit
        assert log_martingale(torch.tensor(hits), 200, p).item() == pytest.approx(wealth, abs=1e-9)


def test_martingale_is_a_mixture_of_likelihood_ratios():
    nodes, weights = special.roots_jacobi(300, -0.5, -0.5)  # integrates against the arcsine law
    p = (nodes + 1) / 2
    for hits, draws in ((3, 10), (50, 60)):
        mixed = (weights * p**hits * (1 - p) ** (draws - hits)).sum() / math.pi
        ratio = mixed / (0.4**hits * 0.6 ** (draws - hits))
        assert log_martingale(torch.tensor(hits), draws, 0.4).item() == pytest.approx(math.log(ratio), abs=1e-9)


def test_price_of_not_stopping_is_that_of_the_paper():
    hits = torch.tensor([90_000, 99_000, 99_900, 100_000])
    quantiles = normal_quantile(lower_sequence(hits, 100_000, 0.001))
    torch.testing.assert_close(quantiles, torch.tensor([1.2542, 2.2674, 2.9485, 3.6476], dtype=torch.float64), rtol=0, atol=1e-4)
    assert (quantiles < normal_quantile(clopper_pearson_lower(hits, 100_000, 0.001))).all()


def test_bounds_solve_their_equation_and_are_symmetric():
    hits, draws = torch.tensor([0, 1, 30, 99, 100]), 100
    lower, upper = lower_sequence(hits, draws, 0.01), upper_sequence(hits, draws, 0.01)
    assert lower[0] == 0
    assert upper[-1] == 1
    for side, part in ((lower, slice(1, None)), (upper, slice(0, -1))):
        torch.testing.assert_close(
            log_martingale(hits, draws, side)[part], torch.full((4,), math.log(100), dtype=torch.float64), rtol=1e-9, atol=1e-9
        )
    torch.testing.assert_close(upper, 1 - lower_sequence(draws - hits, draws, 0.01))


@pytest.mark.parametrize("p", [0.5, 0.8413, 0.99])
def test_type_one_error_of_looking_always_is_at_most_alpha(p):
    runs, looks, every, alpha = 10_000, 150, 20, 0.05
    steps = torch.from_numpy(np.random.default_rng(7).binomial(every, p, (runs, looks)))
    draws = every * torch.arange(1, looks + 1)
    rejected = ((log_martingale(steps.cumsum(1), draws, p) >= math.log(1 / alpha)) & (steps.cumsum(1) > p * draws)).any(1).double().mean().item()
    assert rejected <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    naive = (clopper_pearson_lower(steps[:400].cumsum(1), draws, alpha) > p).any(1).double().mean().item()
    assert naive > 2 * alpha, "looking again and again with Clopper-Pearson must fail here, or this test sees nothing"


def test_running_maximum_of_the_bound_holds_at_all_looks():
    steps = torch.from_numpy(np.random.default_rng(3).binomial(50, 0.9, (500, 30)))
    bounds = running_maximum(steps.cumsum(1), 50 * torch.arange(1, 31), 0.05)
    assert (bounds.diff(dim=1) >= 0).all()
    assert (bounds[:, -1] > 0.9).double().mean() <= 0.05
