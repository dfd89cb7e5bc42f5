import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from projects.dvae import losses


def test_the_rate_is_torchs_divergence_for_each_position():
    mean, log_variance = torch.randn(2, 3, 6, 4, 5, dtype=torch.float64).unbind()
    each = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    expected = each.sum() / (3 * 4 * 5)
    torch.testing.assert_close(losses.kl_divergence(mean, log_variance), expected, rtol=1e-10, atol=0)
    half = losses.kl_divergence(mean.bfloat16(), log_variance.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize(("target", "weight", "factor"), [(1.0, None, 0.01), (3.0, None, 0.01), (0.5, None, 0.5), (0.5, 0.2, 0.2)])
def test_the_hinge_pulls_down_to_its_target_only(target, weight, factor):
    for rate, slope in ((target * 1.1, factor), (target * 0.9, 0.0)):
        value = torch.tensor(rate, requires_grad=True)
        loss = losses.rate_hinge(value, target, weight)
        assert loss.item() == pytest.approx(factor * max(rate, target))
        assert torch.autograd.grad(loss, value)[0].item() == pytest.approx(slope)


def test_energy_below_the_floor_costs_nothing_more():
    small, large = torch.full((2, 3, 4, 4), 0.01, requires_grad=True), torch.full((2, 3, 4, 4), 0.1, requires_grad=True)
    assert losses.energy_hinge(small).item() == pytest.approx(0.002)
    assert losses.energy_hinge(large).item() == pytest.approx(0.01)
    assert torch.autograd.grad(losses.energy_hinge(small), small)[0].abs().max() == 0
    assert round(255 * 0.002**0.5, 1) == 11.4


def test_the_separation_loss_clips_and_reaches_both_decoders():
    reconstruction, perturbation = torch.rand(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    images = torch.rand(2, 3, 4, 4)
    loss = losses.separation_loss(reconstruction, perturbation, images)
    summed = np.clip((reconstruction + perturbation).detach().numpy(), 0, 1)
    assert loss.item() == pytest.approx(((summed - images.numpy()) ** 2).mean(), rel=1e-5)
    gradients = torch.autograd.grad(loss, (reconstruction, perturbation))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_half_precision_is_rounded_to_the_grid_of_files():
    images = torch.linspace(0, 1, 1000)
    assert torch.equal(losses.on_grid(images.bfloat16()), losses.on_grid(images.bfloat16().float()))
    assert losses.on_grid(images.double()).dtype == torch.float64


def test_subtraction_rounds_where_the_released_code_truncates():
    images, perturbation = torch.tensor([[0.5, 0.02, 1.0]]), torch.tensor([[0.1, 0.1, -0.3]])
    assert torch.equal(losses.subtract(images, perturbation) * 255, torch.tensor([[102.0, 0.0, 255.0]]))
    uniform = torch.linspace(0, 1, 10_001)
    assert abs(float((losses.on_grid(uniform) - uniform).mean())) < 1e-4, "no bias of half a level"
