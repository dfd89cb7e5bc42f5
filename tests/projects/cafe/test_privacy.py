from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from projects.cafe.privacy import PrivateGradients, account, most_rounds
from shared.privacy import accountant_epsilon, clip_records, gaussian_epsilon, per_record_gradients
from shared.seeding import generator


@pytest.fixture
def case() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A convolutional bottom net, a top net, six blocks and their labels."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        bottom = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4))
        return bottom, nn.Linear(4, 3), torch.rand(6, 1, 4, 4), torch.randint(3, (6,))


def signal(bottom: nn.Module, top: nn.Module, blocks: Tensor, labels: Tensor) -> Tensor:
    outputs = bottom(blocks).detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(top(outputs), labels), outputs)[0]


def loop(bottom: nn.Module, top: nn.Module, blocks: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the records' gradients by one backward pass a record."""
    found = [
        torch.autograd.grad(F.cross_entropy(top(bottom(blocks[n : n + 1])), labels[n : n + 1]), list(bottom.parameters())) for n in range(len(blocks))
    ]
    return {name: torch.stack(column) for (name, _), column in zip(bottom.named_parameters(), zip(*found, strict=True), strict=True)}


def test_per_record_gradients_are_those_of_a_loop_and_average_to_the_plain_gradient(case):
    bottom, top, blocks, labels = case
    found = per_record_gradients(bottom, blocks, signal(*case))
    torch.testing.assert_close(found, loop(*case), rtol=1e-4, atol=1e-6)
    plain = torch.autograd.grad(F.cross_entropy(top(bottom(blocks)), labels), list(bottom.parameters()))
    torch.testing.assert_close([gradient.mean(0) for gradient in found.values()], list(plain), rtol=1e-4, atol=1e-6)


def test_clipping_is_that_of_a_loop_over_records(case):
    records = loop(*case)
    norms = [math.sqrt(sum(gradient[n].square().sum().item() for gradient in records.values())) for n in range(6)]
    clip = sorted(norms)[3]
    clipped = clip_records(records, clip)
    for n, own in enumerate(norms):
        for name, gradient in records.items():
            torch.testing.assert_close(clipped[name][n], gradient[n] * min(1, clip / own))


def test_a_record_without_gradient_is_clipped_to_zero():
    assert not clip_records({"weight": torch.zeros(2, 3)}, 1.0)["weight"].any()


def test_the_upload_without_noise_is_that_of_opacus_optimiser(case):
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    bottom, top, blocks, labels = case
    upload = PrivateGradients(clip=0.2, noise_multiplier=0.0)(bottom, blocks, signal(*case), 0, 0)
    wrapped = GradSampleModule(bottom)
    optimiser = DPOptimizer(torch.optim.SGD(wrapped.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.2, expected_batch_size=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        F.cross_entropy(top(wrapped(blocks)), labels).backward()
    optimiser.pre_step()
    torch.testing.assert_close(list(upload.values()), [p.grad for p in wrapped.parameters()], rtol=1e-4, atol=1e-6)


def test_noise_is_sigma_times_clip_over_the_batch_size(case):
    bottom, _, blocks, _ = case
    silent = torch.zeros(6, 4)
    uploads = [PrivateGradients(0.5, 3.0)(bottom, blocks, silent, number, 0) for number in range(40)]
    values = torch.stack([torch.cat([value.reshape(-1) for value in upload.values()]) for upload in uploads])
    assert values.std() == pytest.approx(3.0 * 0.5 / 6, rel=0.05)
    again = PrivateGradients(0.5, 3.0)(bottom, blocks, silent, 7, 0)
    torch.testing.assert_close(again, uploads[7])


def test_the_net_is_left_as_it_is_and_nothing_is_said(case):
    bottom, _, blocks, _ = case
    bottom.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        per_record_gradients(bottom, blocks, signal(*case))
        account(10, 2.0, 1e-5)
        accountant_epsilon("gdp", 1.0, 0.01, 10, 1e-5)
    assert not bottom.training
    assert not bottom[0]._forward_hooks
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in bottom.parameters())


def test_nets_that_mix_records_are_refused():
    with pytest.raises(ValueError, match=r"batch norm or dropout \(1\)"):
        per_record_gradients(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.rand(3, 2), torch.rand(3, 2))


def test_the_federation_takes_private_gradients():
    from projects.cafe.federation import Federation, observe
    from projects.cafe.nets import ServerNet, tabular_bottom

    federation = Federation([tabular_bottom(3, (8,), 4, seed=m, rectified=False) for m in range(2)], ServerNet(2, 4, 3, seed=0))
    chance = generator(0, "table")
    blocks, labels = [torch.randn(10, 3, generator=chance) for _ in range(2)], torch.arange(10) % 3
    schedule = torch.eye(5, dtype=torch.bool).repeat(1, 2)
    plain = observe(federation, blocks, labels, schedule)
    loose = observe(federation, blocks, labels, schedule, local=PrivateGradients(1e6, 0.0))
    for a, b in zip(plain.gradients, loose.gradients, strict=True):
        torch.testing.assert_close(a.parties, b.parties, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rounds", "sigma", "uploads"), [(1, 1.0, 1), (48, 10.0, 1), (48, 1.0, 4), (5, 100.0, 4), (48, 0.2, 1)])
def test_prv_is_just_above_the_exact_epsilon_and_rdp_above_it(rounds, sigma, uploads):
    guarantee = account(rounds, sigma, 1e-5, uploads)
    assert guarantee.mu == pytest.approx(math.sqrt(rounds * uploads) / sigma)
    assert guarantee.gdp <= guarantee.epsilon <= guarantee.gdp + 0.02
    assert guarantee.epsilon <= guarantee.rdp <= 1.6 * guarantee.gdp + 0.2


def test_one_mechanism_of_less_noise_stands_for_many_rounds():
    folded = account(9, 3.0, 1e-5)
    assert folded.epsilon == pytest.approx(accountant_epsilon("prv", 3.0, 1.0, 9, 1e-5), abs=2e-3)
    assert folded.rdp <= accountant_epsilon("rdp", 3.0, 1.0, 9, 1e-5) + 1e-6


@pytest.mark.parametrize("mu", [0.05, 1.0, 7.0, 60.0])
def test_gaussian_epsilon_solves_its_equation(mu):
    epsilon = gaussian_epsilon(mu, 1e-5)
    delta = norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
    assert delta == pytest.approx(1e-5, rel=1e-6)


def test_extremes_of_the_account():
    assert account(0, 1.0, 1e-5).epsilon == 0
    assert account(3, 0.0, 1e-5).epsilon == math.inf
    assert account(1, 1e7, 1e-5).gdp == 0
    assert account(1000, 0.1, 1e-5).epsilon == account(1000, 0.1, 1e-5).gdp > 1000


def test_accountants_give_the_figures_of_the_paper():
    figures = [accountant_epsilon(mechanism, 1.0, 0.01, 1000, 1e-5) for mechanism in ("gdp", "prv", "rdp")]
    assert figures == pytest.approx([1.62, 1.84, 2.10], abs=0.01)


def test_subsampling_by_an_open_schedule_would_overstate_privacy():
    schedule = torch.stack([torch.randperm(200, generator=generator(0, "schedule", t)) < 40 for t in range(60)])
    rounds = most_rounds(schedule)
    assert rounds == max(sum(int(row[n]) for row in schedule) for n in range(200))
    assert accountant_epsilon("prv", 4.0, 40 / 200, 60, 1e-5) < 0.5 * account(rounds, 4.0, 1e-5).epsilon


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: account(1, 1.0, 0.0), r"delta in \(0, 1\)"),
        (lambda: account(-1, 1.0, 1e-5), "rounds -1"),
        (lambda: PrivateGradients(0.0, 1.0), "clip must be positive"),
    ],
)
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
