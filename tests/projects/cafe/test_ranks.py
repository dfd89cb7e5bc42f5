from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from projects.cafe.defences import FakeGradients
from projects.cafe.federation import Federation, observe
from projects.cafe.middle import recover_middle
from projects.cafe.nets import ServerNet, tabular_bottom
from projects.cafe.ranks import RankAttacker, adapted, closeness, expected_order_statistics
from projects.cafe.schedules import uniform
from shared.data.offline import digits
from shared.seeding import generator


@pytest.fixture(scope="module")
def gradients() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """One party's gradients of the victims' batches, and of batches of other digits that the attacker owns, at the same net."""
    federation = Federation([tabular_bottom(32, (64, 32), 10, seed=m) for m in range(2)], ServerNet(2, 10, 10, seed=0))

    def uploads(split: str, rounds: int) -> list[dict[str, Tensor]]:
        images = digits(split, size=8)
        schedule = torch.zeros(rounds, 200, dtype=torch.bool)
        for number, row in enumerate(schedule):
            row[torch.randperm(200, generator=generator(0, split, number))[:40]] = True
        view = observe(federation, list(images.images[:200].flatten(1).chunk(2, 1)), images.labels[:200], schedule)
        return [round_gradients.parties[0] for round_gradients in view.gradients]

    return uploads("train", 5), uploads("test", 20)


def test_order_statistics_of_equally_long_samples_are_the_mean_of_the_sorted_vectors():
    samples = list(np.random.default_rng(0).normal(size=(7, 30)))
    np.testing.assert_allclose(expected_order_statistics(samples, 30), np.mean(np.sort(samples, axis=1), axis=0))


def test_order_statistics_of_normal_samples_are_those_of_the_normal():
    samples = list(np.random.default_rng(0).normal(size=(2000, 9)))
    blom = stats.norm.ppf((np.arange(1, 10) - 0.375) / 9.25)
    np.testing.assert_allclose(expected_order_statistics(samples, 9), blom, atol=0.05)


def test_order_statistics_of_another_number_are_quantiles():
    np.testing.assert_allclose(expected_order_statistics([np.arange(100.0)], 10), np.arange(4.5, 100, 10))


@pytest.mark.parametrize("scope", ["party", "tensor"])
@pytest.mark.parametrize("zeros", ["fake", "keep"])
def test_an_attacker_that_knows_the_values_undoes_the_fake_entirely(gradients, scope, zeros):
    true = gradients[0][0]
    fake = FakeGradients(scope=scope, zeros=zeros)(true, 0, 0)
    estimate = RankAttacker([true], scope, zeros).adapt(fake)
    torch.testing.assert_close(estimate, true)


@pytest.mark.parametrize("zeros", ["fake", "keep"])
def test_ranks_give_most_of_the_gradient_away(gradients, zeros):
    victims, surrogates = gradients
    attacker = RankAttacker(surrogates, zeros=zeros)
    for number, true in enumerate(victims):
        fake = FakeGradients(zeros=zeros)(true, number, 0)
        naive, adapted = closeness(fake, true), closeness(attacker.adapt(fake), true)
        assert naive.relative_error > 10
        assert adapted.relative_error < 0.5
        assert adapted.correlation > max(0.95, naive.correlation)
        assert adapted.scaled_error < 0.25 < naive.scaled_error


def test_the_fake_values_do_not_matter_only_their_order(gradients):
    victims, surrogates = gradients
    attacker = RankAttacker(surrogates)
    first, second = (attacker.adapt(FakeGradients(sigma=sigma, seed=seed)(victims[0], 0, 0)) for sigma, seed in ((1.1, 0), (7.0, 1)))
    torch.testing.assert_close(first, second)


def test_a_party_whose_gradient_is_zero_stays_zero():
    nothing = {"weight": torch.zeros(4)}
    assert not RankAttacker([nothing], zeros="keep").adapt(nothing)["weight"].any()
    assert not RankAttacker([nothing], zeros="keep").adapt({"weight": torch.ones(4)})["weight"].any()


def test_closeness_agrees_with_scipy():
    a, b = (torch.randn(50, generator=generator(seed, "x")) for seed in (0, 1))
    found = closeness({"w": a}, {"w": b})
    assert found.correlation == pytest.approx(stats.pearsonr(a.numpy(), b.numpy())[0], abs=1e-6)
    best = (torch.dot(a, b) / torch.dot(a, a)) * a
    assert found.scaled_error == pytest.approx(((best - b).norm() / b.norm()).item(), abs=1e-6)
    assert found.relative_error == pytest.approx(((a - b).norm() / b.norm()).item(), abs=1e-6)


def test_wrong_gradients_are_named():
    with pytest.raises(ValueError, match="at least one surrogate"):
        RankAttacker([])
    with pytest.raises(ValueError, match=r"weight \(3,\), but the first surrogate has weight \(4,\)"):
        RankAttacker([{"weight": torch.ones(4)}]).adapt({"weight": torch.ones(3)})
    with pytest.raises(ValueError, match="constant"):
        closeness({"w": torch.zeros(3)}, {"w": torch.arange(3.0)})


class Case:
    """40 digits in two halves under `pair`, and digits of the attacker's own."""

    def __init__(self, **options) -> None:
        own, others = digits("train", size=8), digits("test", size=8)
        self.blocks = list(own.images[:40].flatten(1).chunk(2, 1))
        self.surrogates, self.labels = list(others.images[:200].flatten(1).chunk(2, 1)), others.labels[:200]
        federation = Federation([tabular_bottom(32, (64, 32), 10, seed=m) for m in range(2)], ServerNet(2, 10, 10, seed=0))
        self.views = [observe(federation, self.blocks, own.labels[:40], uniform(40, 8, 60, 0), defence=d, **options) for d in (FakeGradients(), None)]


def test_step_two_finds_h_from_the_adapted_view_that_fake_gradients_hide():
    case = Case()
    fake, true = case.views
    estimate = adapted(fake, case.surrogates, case.labels, batch=8)

    def errors(view):
        middle = recover_middle([view.bias_gradients(m) for m in range(2)], [view.weight_gradients(m) for m in range(2)], view.schedule)
        return [float((found.inputs - block).norm() / block.norm()) for found, block in zip(middle, case.blocks, strict=True)]

    assert max(errors(true)) < 1e-3
    for raw, adaptive in zip(errors(fake), errors(estimate), strict=True):
        assert adaptive < 0.25
        assert adaptive < raw / 2
    assert estimate.gradients[0].server is fake.gradients[0].server
    assert torch.equal(estimate.schedule, fake.schedule)


def test_the_adapted_view_is_that_of_an_attacker_with_uniform_batches_of_the_surrogates():
    case = Case()
    fake = case.views[0]
    draws = uniform(200, 8, 3, 5)
    own = [fake.federation(0).gradients([block[row] for block in case.surrogates], case.labels[row]) for row in draws]
    estimate = adapted(fake, case.surrogates, case.labels, batch=8, count=3, scope="tensor", zeros="keep", seed=5)
    for party in range(2):
        attacker = RankAttacker([gradients.parties[party] for gradients in own], "tensor", "keep")
        torch.testing.assert_close(estimate.gradients[7].parties[party], attacker.adapt(fake.gradients[7].parties[party]))


def test_ranks_over_a_party_need_all_that_it_uploaded():
    case = Case(names={"first.weight", "first.bias"})
    with pytest.raises(ValueError, match=r"gradients of tail\.1\.weight, .* of party 0 were not recorded.*record all names"):
        adapted(case.views[0], case.surrogates, case.labels, batch=8)
    estimate = adapted(case.views[0], case.surrogates, case.labels, batch=8, count=2, scope="tensor")
    assert list(estimate.gradients[0].parties[1]) == ["first.weight", "first.bias"]


def test_surrogates_that_do_not_fit_are_refused():
    case = Case()
    with pytest.raises(ValueError, match=r"199 labels for surrogates of \[200, 200\] records"):
        adapted(case.views[0], case.surrogates, case.labels[1:], batch=8)
    with pytest.raises(ValueError, match="batches of 201 cannot be drawn from 200 records"):
        adapted(case.views[0], case.surrogates, case.labels, batch=201)
