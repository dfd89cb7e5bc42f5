"""Scores of hidden observations, and spread that is fitted to them alone."""

import inspect

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from projects.s3rp import calibration
from projects.s3rp.calibration import crps, hide, inflate, inflation, interval
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(scope="module")
def observations():
    return draw_plumes(World(size=16, frames=6, missing=0.2, sigma=0.02), 3).observations


def all_pairs(members, observed, fair):
    count = len(members)
    between = (members[:, None] - members[None]).abs().sum((0, 1)) / (count * (count - fair))
    return (members - observed).abs().mean(0) - between / 2


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("members", [2, 3, 16])
def test_the_score_and_its_gradient_are_those_of_all_pairs(members, fair):
    first, observed = drawn(members, 4, 5).requires_grad_(), drawn(4, 5, seed=1)
    second = first.detach().clone().requires_grad_()
    found, expected = crps(first, observed, fair), all_pairs(second, observed, fair)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    weights = drawn(4, 5, seed=2)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-9, atol=1e-12)


def test_the_score_is_the_integral_over_thresholds():
    members, observed = drawn(5), drawn(1, seed=1)[0]

    def integrand(x):
        return (float((members <= x).double().mean()) - float(observed <= x)) ** 2

    places = [*members.tolist(), float(observed)]
    expected = integrate.quad(integrand, -6, 6, points=places, limit=200)[0]
    assert float(crps(members, observed)) == pytest.approx(expected, abs=1e-8)
    assert float(crps(members[:1], observed)) == pytest.approx(float((members[0] - observed).abs()))
    with pytest.raises(ValueError, match="needs pairs"):
        crps(members[:1], observed, fair=True)


def test_single_precision_suffices_for_the_score_of_large_values():
    members, observed = 1000 + drawn(16, 50).float(), 1000 + drawn(50, seed=1).float()
    torch.testing.assert_close(crps(members, observed).double(), all_pairs(members.double(), observed.double(), False), rtol=1e-5, atol=1e-6)


def test_intervals_lie_at_the_places_that_a_further_draw_needs():
    ordered = drawn(19, 7).sort(0).values
    torch.testing.assert_close(interval(ordered, 0.9), (ordered[0], ordered[-1]))
    torch.testing.assert_close(interval(ordered, 0.5), (ordered[4], ordered[14]))
    for level in (0.3, 0.77, 0.0):
        low, high = np.quantile(ordered.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
        torch.testing.assert_close(interval(ordered, level), (torch.from_numpy(low), torch.from_numpy(high)))
    torch.testing.assert_close(interval(ordered[:4], 0.9), (ordered[0], ordered[3]))


@pytest.mark.parametrize("by", ["pixels", "frames"])
def test_a_third_is_hidden_and_nothing_else_changes(observations, by):
    shown, hidden = hide(observations, 1 / 3, generator(0, "hide"), by)
    assert torch.equal(shown.mask | hidden, observations.mask)
    assert not (shown.mask & hidden).any()
    assert torch.equal(shown.coarse, observations.coarse * shown.mask)
    if by == "pixels":
        counts = observations.mask.flatten(1).sum(1)
        assert hidden.flatten(1).sum(1).tolist() == (counts / 3).round().int().tolist()
    else:
        assert hidden.any(3).any(2).sum(1).tolist() == [2, 2, 2], "a third of five frames; the first is shown"
        assert not hidden[:, 0].any()
        frames = hidden.any(3).any(2)
        assert torch.equal(hidden, observations.mask & frames[:, :, None, None])
    again = hide(observations, 1 / 3, generator(0, "hide"), by)[1]
    assert torch.equal(hidden, again)
    assert not torch.equal(hidden, hide(observations, 1 / 3, generator(1, "hide"), by)[1])


def test_parts_that_hide_nothing_are_refused(observations):
    for part in (0.0, 1.0):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            hide(observations, part, generator(0, "hide"))
    with pytest.raises(ValueError, match="hides none of the observed frames"):
        hide(draw_plumes(World(size=16, frames=1), 2).observations, 0.5, generator(0, "hide"), "frames")


def world_of(kappa, sigma, seed, members=39, count=6000):
    """Hidden observations, noise included, and members whose spread is `kappa` times too small."""
    centre, spread = drawn(1, 2, 3, count, seed=seed), 0.5 + np.random.default_rng(seed).random((1, 2, 3, count))
    draws = drawn(members + 1, 1, 2, 3, count, seed=seed + 1) * torch.from_numpy(spread)
    observed = centre + draws[0] + sigma * drawn(1, 2, 3, count, seed=seed + 2)
    return centre + draws[1:] / kappa, observed


@pytest.mark.parametrize("kappa", [0.5, 3.0])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_too_little_or_much_spread_is_calibrated_on_fresh_data(kappa, sigma):
    members, observed = world_of(kappa, sigma, seed=10, count=1000)
    hidden = torch.rand(observed.shape, generator=generator(0, "hidden")) < 0.5
    found = inflation(members, observed.where(hidden, 1e6), hidden, sigma, generator(0, "noise"))
    assert found == pytest.approx(kappa, rel=0.06)
    fresh, values = world_of(kappa, sigma, seed=20, count=1000)
    noisy = inflate(fresh, found) + sigma * drawn(*fresh.shape, seed=30)
    low, high = interval(noisy.sort(0).values, 0.9)
    assert float(((low <= values) & (values <= high)).double().mean()) == pytest.approx(0.9, abs=0.02)


def test_inflating_keeps_the_mean_and_scales_the_distances():
    members = drawn(5, 2, 3)
    found = inflate(members, 2.5)
    torch.testing.assert_close(found.mean(0), members.mean(0))
    torch.testing.assert_close(found.std(0), 2.5 * members.std(0))


def test_what_cannot_be_calibrated_says_why():
    members, observed = world_of(1.0, 0.1, seed=10, count=50)
    everywhere, rng = torch.ones_like(observed, dtype=torch.bool), generator(0, "noise")
    with pytest.raises(ValueError, match="no observation is hidden"):
        inflation(members, observed, ~everywhere, 0.1, rng)
    with pytest.raises(ValueError, match="even 1000 times the spread covers only"):
        inflation(members.mean(0).expand_as(members), observed, everywhere, 0.1, rng)
    with pytest.raises(ValueError, match="noise of 50 alone covers"):
        inflation(members, observed, everywhere, 50.0, rng)
    with pytest.raises(ValueError, match="takes 19 members, got 18"):
        inflation(members[:18], observed, everywhere, 0.1, rng)


def test_fine_fields_do_not_fit_in_so_that_no_truth_can_be_seen():
    members, observed = world_of(1.0, 0.0, seed=10, count=4)
    fine = observed.repeat_interleave(4, -1).repeat_interleave(4, -2)
    everywhere = torch.ones_like(observed, dtype=torch.bool)
    with pytest.raises(ValueError, match="on the coarse grid"):
        inflation(members, fine, everywhere, 0.0, generator(0, "noise"))
    names = {name for function in (hide, inflation, inflate, crps) for name in inspect.signature(function).parameters}
    assert names == {"observations", "part", "rng", "by", "members", "observed", "hidden", "sigma", "level", "kappa", "fair"}
    imported = {value.__module__ for value in vars(calibration).values() if getattr(value, "__module__", "").startswith("projects.")}
    assert imported == {"projects.s3rp.calibration", "projects.s3rp.sets"}


def test_the_score_rewards_the_right_spread():
    members, observed = world_of(1.0, 0.0, seed=10, count=500)
    scores = {kappa: float(crps(inflate(members, kappa), observed, fair=True).mean()) for kappa in (0.3, 0.6, 1.0, 1.6, 3.0)}
    assert min(scores, key=scores.__getitem__) == 1.0
    deviation = torch.full((), 0.3, dtype=torch.float64, requires_grad=True)
    crps(members.mean(0) + deviation * (members - members.mean(0)), observed).mean().backward()
    assert deviation.grad < 0
    normal = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    assert float(crps(torch.from_numpy(normal), torch.tensor(0.0))) == pytest.approx(2 * stats.norm.pdf(0) - 1 / np.sqrt(np.pi), abs=1e-3)
