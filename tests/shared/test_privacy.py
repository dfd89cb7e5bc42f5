from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from shared.privacy import accountant_epsilon, composed_mu, gaussian_delta, gaussian_epsilon, gaussian_epsilons, gaussian_mu


def hockey_stick(mu: float, epsilon: float) -> float:
    """Return the integral of max(0, p - exp(epsilon) q) for p = N(mu, 1) and q = N(0, 1): delta by its definition."""
    edge = epsilon / mu + mu / 2  # there the densities' ratio is exp(epsilon)
    return quad(lambda x: norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x), edge, max(edge, mu) + 12, epsabs=1e-14)[0]


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 0.0), (1.0, 4.377), (0.3, 0.5), (3.0, 10.0), (5.0, 2.0)])
def test_delta_is_the_hockey_stick_divergence_of_two_normal_laws(mu, epsilon):
    assert gaussian_delta(mu, epsilon) == pytest.approx(hockey_stick(mu, epsilon), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 10.0, 581.0])
def test_mu_and_epsilon_are_each_others_inverse(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-6)
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)


def test_mu_at_epsilon_zero_is_a_total_variation():
    assert gaussian_mu(0.0, 1e-3) == pytest.approx(2 * norm.ppf((1 + 1e-3) / 2), rel=1e-9)


def test_mechanisms_compose_as_the_squares_of_their_mu():
    assert composed_mu(9, 2.0) == pytest.approx(math.hypot(*[1 / 2.0] * 9))
    assert (composed_mu(0, 0.0), composed_mu(1, 0.0)) == (0.0, math.inf)


def test_figures_of_the_paper():
    one = gaussian_epsilons(1.0, 1e-5)
    assert (one.gdp, one.prv, one.rdp) == pytest.approx((4.377, 4.387, 4.729), abs=1e-3)
    assert gaussian_epsilon(0.5, 1e-5) == pytest.approx(1.993, abs=1e-3)


def test_opacus_gaussian_accountant_is_a_limit_and_overstates():
    assert accountant_epsilon("gdp", 1.0, 1.0, 1, 1e-5) == pytest.approx(6.007, abs=1e-3)
    assert accountant_epsilon("gdp", 10.0, 1.0, 100, 1e-5) == pytest.approx(4.390, abs=1e-3)


@pytest.mark.parametrize("delta", [0.5, 0.01, 1e-5, 1e-12, 1e-15])
def test_accountants_bound_the_exact_epsilon_from_tiny_to_huge_mu(delta):
    for mu in (5e-324, 1e-120, 1e-9, 1e-3, 0.03, 1.0, 20.0, 31.0, 1e4, 1e100, 1e200):
        found = gaussian_epsilons(mu, delta)
        assert 0 <= found.gdp <= found.prv <= found.gdp + 0.05
        assert found.gdp * (1 - 1e-6) - 1e-9 <= found.rdp


def test_prv_alone_falls_below_the_exact_epsilon_where_that_is_zero():
    assert accountant_epsilon("prv", 1e3, 1.0, 1, 0.01) < 0 == gaussian_epsilons(1e-3, 0.01).prv


def test_extremes_are_zero_and_infinite():
    nothing, everything = gaussian_epsilons(0.0, 1e-5), gaussian_epsilons(math.inf, 1e-5)
    assert (nothing.gdp, nothing.prv, nothing.rdp) == (0, 0, 0)
    assert (everything.gdp, everything.prv, everything.rdp) == (math.inf, math.inf, math.inf)
    assert gaussian_delta(1.0, math.inf) == gaussian_delta(0.0, 0.0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_epsilon(-1.0, 1e-5), "mu must be 0 or more"),
        (lambda: gaussian_epsilons(1.0, 0.0), r"delta in \(0, 1\)"),
        (lambda: gaussian_delta(1.0, -0.1), "epsilon must be 0 or more"),
        (lambda: gaussian_mu(math.inf, 1e-5), "epsilon must be 0 or more and finite"),
        (lambda: gaussian_mu(np.nan, 1e-5), "epsilon must be"),
        (lambda: composed_mu(-1, 1.0), "mechanisms"),
    ],
    ids=["negative mu", "delta 0", "negative epsilon", "infinite epsilon", "no number", "negative count"],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
