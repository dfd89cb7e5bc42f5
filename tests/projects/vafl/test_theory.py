from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from projects.vafl.steps import Root
from projects.vafl.theory import (
    Tail,
    activation_shares,
    fit_tail,
    is_quickly_smooth,
    largest_step,
    logistic_smoothness,
    observed_tail,
    poisson_tail,
    theorem2_steps,
    theorem4_steps,
    theory_rows,
)
from shared.seeding import generator


def activations(gaps: list[float], count: int) -> np.ndarray:
    """Return the clients of the first activations of independent Poisson processes in order of time."""
    chance = np.random.default_rng(0)
    times = [np.cumsum(chance.exponential(gap, count)) for gap in gaps]
    last = min(own[-1] for own in times)
    found = sorted((moment, client) for client, own in enumerate(times) for moment in own[own <= last])
    return np.array([client for _, client in found])


@pytest.fixture(scope="module")
def order() -> np.ndarray:
    return activations([1.0, 2.0, 5.0], 20_000)


def ages(order: np.ndarray, client: int) -> np.ndarray:
    """Return how often each age of a client's embedding occurs, by equation 3: 1 after its own update, one more after another's."""
    found, age = np.zeros(len(order) + 2, dtype=int), 1
    for active in order:
        age = 1 if active == client else age + 1
        found[age] += 1
    return found


def test_shares_are_those_of_simulated_poisson_activations(order):
    shares = activation_shares([1.0, 2.0, 5.0])
    assert sum(shares) == pytest.approx(1)
    assert np.bincount(order) / len(order) == pytest.approx(shares, abs=0.01)


def test_ages_of_poisson_activations_have_the_geometric_tail_of_their_share(order):
    for client, share in enumerate(activation_shares([1.0, 2.0, 5.0])):
        found, tail = ages(order, client), poisson_tail(share)
        some = np.arange(1, 8)
        assert found[some] / found.sum() == pytest.approx(tail.pbar * tail.rho**some, rel=0.1)
        assert (found * np.arange(len(found)) ** 2).sum() / found.sum() == pytest.approx(tail.constant, rel=0.1)


@pytest.mark.parametrize(("rho", "pbar"), [(0.1, 1.0), (0.6, 0.7), (0.95, 0.05)])
def test_the_constant_is_the_series_of_squared_ages(rho, pbar):
    series = sum(d**2 * pbar * rho**d for d in range(2000))
    assert Tail(rho, pbar, math.inf).constant == pytest.approx(series, rel=1e-9)


def test_the_constant_of_poisson_activations_is_the_mean_square_of_a_geometric_age():
    for share in (0.01, 0.3, 1.0):
        assert poisson_tail(share).constant == pytest.approx((2 - share) / share**2, rel=1e-5)


@pytest.mark.parametrize("counts", [[0, 5], [7], [0, 3, 9, 1, 0, 0, 1], [2, 0, 0, 0, 6]], ids=["all 1", "all 0", "spread", "two ages"])
def test_a_fitted_tail_holds_at_every_age_and_has_the_least_constant_of_a_grid(counts):
    tail, shares = fit_tail(torch.tensor(counts)), np.array(counts) / sum(counts)
    d = np.arange(len(counts))
    assert (shares <= tail.pbar * tail.rho**d * (1 + 1e-9)).all()
    assert tail.oldest == d[shares > 0].max()
    assert tail.constant >= (d**2 * shares).sum() * (1 - 1e-9)
    grid = np.geomspace(1e-6, 0.999, 20_000)
    least = min(Tail(rho, (shares / rho**d).max(), 0).constant for rho in grid)
    assert tail.constant <= least * (1 + 1e-3)


def test_a_tail_fitted_to_bins_takes_each_bins_age(order):
    found = ages(order, 0)[:64]
    exact = fit_tail(found)
    listed = fit_tail(found[found > 0], np.flatnonzero(found))
    assert listed == exact
    bins = np.array([found[2**b // 2 : 2**b].sum() for b in range(7)])
    assert exact.constant <= fit_tail(bins, 2 ** np.arange(7) - 1).constant <= 20 * exact.constant


def hessian_bound(blocks: list[torch.Tensor], classes: int) -> float:
    """Return the largest eigenvalue of the Hessian of softmax regression's mean loss at random and at zero parameters, bias included."""
    features = torch.cat([*blocks, torch.ones(len(blocks[0]), 1)], dim=1).double()
    labels = torch.arange(len(features)) % classes
    found = []
    for scale in (0.0, 0.3):
        point = scale * torch.randn(features.shape[1] * classes, generator=generator(0, "point")).double()
        hessian = torch.autograd.functional.hessian(lambda w: torch.nn.functional.cross_entropy(features @ w.reshape(-1, classes), labels), point)
        found.append(torch.linalg.eigvalsh(hessian)[-1].item())
    return max(found)


def test_the_smoothness_constant_bounds_the_hessian_and_is_met_by_two_classes_twice_over():
    blocks = [torch.randn(30, 3, generator=generator(0, "block", m)) for m in range(2)]
    bound = logistic_smoothness(blocks)
    for classes in (2, 4):
        assert hessian_bound(blocks, classes) <= bound * (1 + 1e-9)
    assert hessian_bound(blocks, 2) == pytest.approx(bound)  # at even probabilities (I - 1 1' / 2) / 2 is met
    assert logistic_smoothness(blocks, l2=0.1) == pytest.approx(bound + 0.1)


def test_the_smoothness_constant_is_one_of_the_spectral_norm_of_few_or_many_records():
    for records in (5, 50):
        blocks = [torch.rand(records, 2, 4, generator=generator(1, "block", m, records)) for m in range(2)]
        features = torch.cat([block.flatten(1) for block in blocks], dim=1)
        norm = torch.linalg.matrix_norm(features.double(), 2).item()
        assert logistic_smoothness(blocks, bias=False) == pytest.approx(norm**2 / (2 * records))


class Quadratic:
    """F = x' A x / 2 with one coordinate block a client; a client steps with the gradient at values of the others that are up to D old."""

    def __init__(self, oldest: int, noise: float, shares: list[float]) -> None:
        rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0]
        self.strong, self.smooth = 1.0, 3.0
        self.matrix = rotation * np.linspace(self.strong, self.smooth, 6) @ rotation.T
        self.oldest, self.noise, self.shares = oldest, noise, shares

    def descend(self, step: Callable[[int], float], updates: int, seed: int = 0) -> np.ndarray:
        """Return F after each update."""
        chance = np.random.default_rng(seed)
        history = [np.ones(6)]
        for k in range(updates):
            client, age = chance.choice(3, p=self.shares), chance.integers(0, self.oldest + 1)
            own = slice(2 * client, 2 * client + 2)
            stale = history[max(0, k - age)].copy()
            stale[own] = history[-1][own]
            new = history[-1].copy()
            new[own] -= step(k) * (self.matrix[own] @ stale + self.noise * chance.standard_normal(2))
            history.append(new)
        points = np.array(history)
        return 0.5 * np.einsum("ki,ij,kj->k", points, self.matrix, points)


def test_the_step_of_theorem_1_descends_under_delays_and_never_rises_above_its_start():
    problem = Quadratic(oldest=8, noise=0.0, shares=[0.6, 0.3, 0.1])
    step = largest_step(problem.smooth, problem.oldest)
    values = problem.descend(lambda k: step, 3000)
    assert values[-1] < 1e-3 * values[0]
    assert values.max() <= values[0] * (1 + 1e-9)


def test_the_steps_of_theorem_2_converge_like_one_over_k_under_noise():
    problem = Quadratic(oldest=2, noise=1.0, shares=[0.4, 0.3, 0.3])
    steps = theorem2_steps(problem.strong, problem.smooth, 0.3, problem.oldest)
    values = np.mean([problem.descend(steps.at, 12_000, seed) for seed in range(4)], axis=0)
    scaled = values * (np.arange(len(values)) + steps.offset)  # constant where F falls like 1 / (k + K0)
    assert scaled[9000:].mean() == pytest.approx(scaled[1500:4000].mean(), rel=0.5)
    fixed = problem.descend(lambda k: steps.lr, 12_000)
    assert values[9000:].mean() < 0.2 * fixed[9000:].mean()


def test_the_steps_of_theorem_2_are_its_formula_in_both_readings():
    offset = 4 * (4 * 6 * 2.0 + 2 * 0.1 * 0.25 * 5) / (0.1 * 0.25)
    proof, printed = theorem2_steps(0.1, 2.0, 0.25, 5), theorem2_steps(0.1, 2.0, 0.25, 5, rooted=True)
    assert proof.offset == printed.offset == pytest.approx(offset)
    for k in (0, 17, 10_000):
        assert proof.at(k) == pytest.approx(4 / (0.1 * 0.25 * (k + offset)))
        assert printed.at(k) == pytest.approx(4 / (0.1 * 0.5 * (k + offset)))
    assert 0.9 * largest_step(2.0, 5) < proof.at(0) < largest_step(2.0, 5)


def test_the_steps_of_theorem_4_are_its_formula():
    steps = theorem4_steps(nu=0.2, offset=30)
    assert [steps.at(k) for k in (0, 70)] == pytest.approx([2 / (0.2 * 30), 2 / (0.2 * 100)])


def test_the_table_has_a_row_for_each_client_and_the_worst_decide_the_last():
    gaps, tails = [1.0, 4.0], [fit_tail(np.array([0, 6, 2, 1])), fit_tail(np.array([0, 1, 2, 3, 2, 1]))]
    first, second, worst = theory_rows(gaps, tails, smooth=2.0, strong=0.1, scale=1.0, total=10**6)
    assert [row["client"] for row in (first, second, worst)] == [0, 1, "all"]
    assert (first["q"], second["q"], worst["q"]) == pytest.approx((0.8, 0.2, 0.2))
    assert (worst["oldest"], worst["c"]) == (5, max(first["c"], second["c"]))
    assert worst["step_t1"] == 1 / math.sqrt(10**6)  # shorter than the cap
    short = theory_rows(gaps, tails, smooth=2.0, strong=0.1, scale=10.0, total=100)
    assert short[-1]["step_t1"] == largest_step(2.0, 5)
    assert short[-1]["step_t3"] == Root(10.0, 100, largest_step(2.0, math.sqrt(worst["c"]))).at(0)
    assert short[-1]["step_t2"] == theorem2_steps(0.1, 2.0, 0.2, 5).lr
    assert all(row[name] >= short[-1][name] for row in short for name in ("step_t1", "step_t2", "step_t3"))
    assert len({tuple(row) for row in short}) == 1


def test_without_a_smoothness_there_are_no_steps():
    rows = theory_rows([1.0, 4.0], [fit_tail(np.array([0, 1, 1]))] * 2, smooth=None)
    assert not [name for row in rows for name in row if name.startswith(("step", "offset"))]
    assert [row["q"] for row in rows] == pytest.approx([0.8, 0.2, 0.2])


def test_a_servers_histogram_bounds_the_mean_square_age():
    ages = np.repeat([0, 1, 3, 6, 11], [10, 20, 30, 20, 5])
    tail = observed_tail(np.bincount(np.frexp(ages)[1], minlength=24), int(ages.max()))
    assert tail.oldest == 11
    assert (ages**2).mean() <= tail.constant
    for age in np.unique(ages):
        assert (ages == age).mean() <= tail.pbar * tail.rho ** float(age) * (1 + 1e-9)


def test_large_data_are_not_quick():
    assert is_quickly_smooth([torch.zeros(1437, 8)] * 8)
    assert not is_quickly_smooth([torch.zeros(1, 112).expand(60000, 112)] * 7)


def test_what_a_theorem_lacks_is_none():
    row = theory_rows([1.0, 1.0], [poisson_tail(0.5)] * 2, smooth=1.0, strong=0.1)[-1]
    assert row["step_t1"] is row["step_t2"] is row["offset_t2"] is None
    assert row["step_t3"] == pytest.approx(1 / (4 * (1 + math.sqrt(6))))
    assert theory_rows([1.0], [fit_tail(np.array([1, 1]))], smooth=1.0)[0]["step_t2"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation_shares([1.0, 0.0]), "mean gaps must be positive"),
        (lambda: poisson_tail(0.0), r"must be in \(0, 1\]"),
        (lambda: fit_tail(np.zeros(3)), "one count above 0"),
        (lambda: fit_tail(np.ones(3), np.ones(2)), "as many ages as counts"),
        (lambda: largest_step(0.0, 1.0), "smooth must be positive"),
        (lambda: theorem2_steps(0.1, 1.0, 0.5, math.inf), "oldest finite"),
        (lambda: theorem4_steps(0.0, 1.0), "nu and offset"),
        (lambda: logistic_smoothness([torch.ones(2, 1), torch.ones(3, 1)]), r"same records, got \[2, 3\]"),
    ],
    ids=["gap", "share", "no ages", "lengths", "smooth", "oldest", "nu", "blocks"],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
