import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import total_variation as torchmetrics_total_variation

from projects.diff_cleanse.baselines import elijah, pixel_mse, terd, terd_scores, total_variation, uniformity
from projects.diff_cleanse.schedule import NoiseSchedule

SCHEDULE, SHAPE = NoiseSchedule.linear(20, 5e-3, 0.4), (1, 4, 4)
TRIGGER = torch.linspace(-1, 0.5, 16).view(SHAPE)


def images(count, seed=0, channels=3):
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_elijah_finds_the_shift_that_its_equation_describes(strength):
    """A network for which `E[f(eps + tau)] = lambda tau` holds at one tau only."""
    found = elijah(lambda x, t: x - (1 - strength) * TRIGGER, SCHEDULE, SHAPE, strength, iterations=150, batch=400, lr=0.05)
    assert (found.pattern - TRIGGER).abs().mean() < 0.12  # the noise of 400 samples, divided by 1 - lambda
    assert found.value < 0.1 < found.curve[0]


def test_elijah_is_satisfied_by_any_shift_where_the_network_answers_with_its_input():
    """Why it is weak against backdoors of deterministic samplers: there lambda = 1, and near T clean networks do just that."""
    found = elijah(lambda x, t: x, SCHEDULE, SHAPE, strength=1.0, iterations=3, batch=400)
    assert max(found.curve) < 0.06
    assert (found.pattern + 0.5).abs().mean() > 0.1


def test_elijah_turns_other_predictions_to_noise():
    def velocity(x, t):
        a, sigma = SCHEDULE.at("a", t, x), SCHEDULE.at("sigma", t, x)
        return (x - 0.5 * TRIGGER - sigma * x) / a

    expected = elijah(lambda x, t: x - 0.5 * TRIGGER, SCHEDULE, SHAPE, iterations=5)
    found = elijah(velocity, SCHEDULE, SHAPE, iterations=5, prediction_type="v_prediction")
    torch.testing.assert_close(found.pattern, expected.pattern, atol=1e-4, rtol=0)


def test_uniformity_is_the_doubly_trimmed_mean():
    batch = images(12)
    pixels = batch.flatten(1).double().numpy()
    distances = ((pixels[:, None] - pixels[None]) ** 2).mean(axis=2)
    rows = np.sort(distances, axis=1)[:, 4:-4]
    assert uniformity(batch) == pytest.approx(np.sort(rows, axis=0)[4:-4].mean(), rel=1e-5)
    assert uniformity(batch[:1].expand(12, -1, -1, -1)) == 0
    assert uniformity(batch, distance=lambda first, second: 3 * pixel_mse(first, second)) == pytest.approx(3 * uniformity(batch), rel=1e-5)
    with pytest.raises(ValueError, match="uniformity drops 8 distances a row: it needs more than 8 images, got 8"):
        uniformity(batch[:8])


def test_total_variation_is_torchmetrics():
    batch = images(5)
    expected = torchmetrics_total_variation(batch, reduction="mean") / batch[0].numel()
    assert total_variation(batch) == pytest.approx(float(expected), rel=1e-6)


def test_terd_moves_by_its_penalty_alone_where_the_network_is_linear():
    """Then the loss does not see mu, and what is left is plain gradient ascent on |mu|_1 under a cosine schedule."""
    start = terd(lambda x, t: 0.3 * x, SCHEDULE, SHAPE, iterations=0, refinements=1, penalty=0.0).pattern
    found = terd(lambda x, t: 0.3 * x, SCHEDULE, SHAPE, iterations=10, refinements=0, penalty=0.01).pattern
    travelled = 0.01 * sum(0.5 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10))
    torch.testing.assert_close(found, start + travelled * start.sign(), atol=1e-5, rtol=0)


def test_terd_lowers_its_loss_and_refines_gently():
    def saturating(x, t):
        return torch.tanh(x - TRIGGER)

    found = terd(saturating, SCHEDULE, SHAPE, iterations=60, refinements=0, batch=64, lr=0.1)
    assert np.mean(found.curve[-5:]) < np.mean(found.curve[:5]) - 0.1
    refined = terd(saturating, SCHEDULE, SHAPE, iterations=60, refinements=4, batch=64, lr=0.1)
    assert len(refined.curve) == 64
    assert 0 < (refined.pattern - found.pattern).norm() <= 4 * 0.1 * 0.01 + 1e-6  # the norm of each gradient is clipped to 0.01
    assert torch.equal(terd(saturating, SCHEDULE, SHAPE, 5, 1).pattern, terd(saturating, SCHEDULE, SHAPE, 5, 1).pattern)


def test_terd_scores_are_the_divergence_from_standard_noise():
    mu = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for gamma in (1.0, 0.6):
        expected = torch.distributions.kl_divergence(torch.distributions.Normal(mu, gamma), torch.distributions.Normal(0.0, 1.0))
        mean, variance = terd_scores(mu, gamma)
        assert mean == pytest.approx(float(expected.mean()), rel=1e-9)
        assert variance == pytest.approx(float(expected.var(unbiased=False)), rel=1e-9)
    assert terd_scores(torch.zeros(1, 2, 2)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        terd_scores(mu, 0)
