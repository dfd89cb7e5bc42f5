from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shared.backbones.denoisers import DnCNN
from shared.backbones.unets import build_unet, save_pipeline
from shared.smoothing import Budget, SmoothedClassifier, Smoothing
from shared.smoothing.denoised import Denoised, DiffusionDenoiser, denoising_loss, noise_step, resized, stability_loss

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
MEAN, SPREAD = -0.1, 0.2


class GaussianWorld(nn.Module):
    """What a perfectly trained network predicts where u ~ N(MEAN, SPREAD^2): conditional means given x_t, in closed form."""

    def __init__(self, prediction, variance=False):
        super().__init__()
        self.prediction, self.variance = prediction, variance

    def forward(self, x_t, t):
        abar = ABAR[t].view(-1, 1, 1, 1)
        surplus = x_t - abar.sqrt() * MEAN
        total = abar * SPREAD**2 + 1 - abar
        epsilon = (1 - abar).sqrt() * surplus / total
        clean = MEAN + abar.sqrt() * SPREAD**2 * surplus / total
        found = {"epsilon": epsilon, "sample": clean, "v_prediction": abar.sqrt() * epsilon - (1 - abar).sqrt() * clean}[self.prediction]
        return SimpleNamespace(sample=torch.cat([found, 9 * found], 1)) if self.variance else found


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_prediction_is_the_posterior_mean(prediction, variance):
    sigma = float(((1 - ABAR[300]) / ABAR[300]).sqrt()) / 2 * (1 - 1e-12)  # just what step 300 has
    denoiser = DiffusionDenoiser(GaussianWorld(prediction, variance), ABAR, sigma, prediction)
    assert denoiser.step == 300
    generator = torch.Generator().manual_seed(0)
    u = MEAN + SPREAD * torch.randn(50, 3, 4, 4, dtype=torch.float64, generator=generator)
    noised = (u + 1) / 2 + sigma * torch.randn(u.shape, dtype=torch.float64, generator=generator)
    share = SPREAD**2 / (SPREAD**2 + 4 * sigma**2)
    expected = (MEAN + share * (2 * noised - 1 - MEAN) + 1) / 2
    torch.testing.assert_close(denoiser(noised), expected.clamp(0, 1), rtol=0, atol=1e-10)
    assert (denoiser(noised) - (u + 1) / 2).std() < 0.7 * sigma


def test_step_is_the_first_that_is_noisy_enough():
    for sigma in (0.001, 0.12, 0.25, 0.5, 1.0, 3.3):
        expected = next(t for t in range(1000) if ((1 - ABAR[t]) / ABAR[t]) ** 0.5 >= 2 * sigma)
        assert noise_step(ABAR, sigma) == expected
    assert noise_step(ABAR.float(), 0.25) == noise_step(ABAR, 0.25)
    with pytest.raises(ValueError, match="beyond the end"):
        noise_step(torch.tensor([0.9, 0.0]), 50.0)  # a schedule that ends in noise alone


@pytest.mark.parametrize(
    ("abar", "sigma", "message"),
    [(ABAR, 100.0, "1000 steps reach 78.7.*smaller sigma"), (ABAR, 0.0, "positive"), (1 - ABAR, 0.1, "products of the alphas")],
)
def test_levels_beyond_the_schedule_are_refused(abar, sigma, message):
    with pytest.raises(ValueError, match=message):
        noise_step(abar, sigma)


def test_a_pipeline_denoises_for_a_classifier(tmp_path):
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    save_pipeline(build_unet("tiny", 16, 3), DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"), tmp_path / "pipeline")
    denoiser = DiffusionDenoiser.from_pipeline(tmp_path / "pipeline", sigma=0.25)
    assert (denoiser.prediction, denoiser.size) == ("sample", 16)
    classifier = nn.Sequential(nn.Conv2d(3, 4, 24), nn.Flatten())
    base = Denoised(denoiser, classifier, size=24)
    smoothed = SmoothedClassifier(base, 4, Smoothing((0.25,), alpha=0.01), Budget(selection=8, draws=24), batch_size=8)
    images = torch.rand(2, 3, 12, 12)
    first, second = smoothed.certify(images), smoothed.certify(images)
    assert [result.estimation.sum().item() for result in first] == [24, 24]
    assert all(torch.equal(a.estimation, b.estimation) for a, b in zip(first, second, strict=True))  # no noise of the denoiser's own
    assert denoiser(torch.rand(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="takes 3 channels, the images have 1"):
        denoiser(torch.rand(1, 1, 16, 16))


def test_channels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="returns 5 channels for images of 3"):
        DiffusionDenoiser(lambda_module(lambda x, t: torch.zeros(len(x), 5, 4, 4)), ABAR, 0.25)(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="one of epsilon, sample, v_prediction"):
        DiffusionDenoiser(nn.Identity(), ABAR, 0.25, "score")


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def test_resizing_leaves_what_fits():
    images = torch.rand(1, 3, 8, 8)
    assert resized(images, 8) is images
    torch.testing.assert_close(resized(torch.full((1, 1, 5, 7), 0.3), 16), torch.full((1, 1, 16, 16), 0.3))
    assert resized(images, (8, 8)) is images
    assert resized(images, (8, 4)).shape == (1, 3, 8, 4)


def test_dncnn_takes_off_what_it_finds():
    denoiser = DnCNN(2, width=4, depth=5)
    assert sum(isinstance(layer, nn.Conv2d) for layer in denoiser.modules()) == 5
    nn.init.zeros_(denoiser.noise[-1].weight)
    nn.init.zeros_(denoiser.noise[-1].bias)
    images = torch.rand(3, 2, 6, 9)
    assert torch.equal(denoiser(images), images)
    with pytest.raises(ValueError, match="at least two"):
        DnCNN(depth=1)


def test_a_denoiser_learns_by_both_losses():
    torch.manual_seed(0)
    images = torch.rand(64, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()  # grey squares: their mean denoises them
    classifier = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 2)).eval().requires_grad_(False)
    classifier[2].weight.copy_(torch.tensor([[-20.0], [20.0]]))
    classifier[2].bias.copy_(torch.tensor([10.0, -10.0]))
    losses = {"mse": denoising_loss, "stability": lambda d, x, s, g: stability_loss(d, classifier, x, s, g)}
    for name, loss in losses.items():
        denoiser, generator = DnCNN(1, width=8, depth=3), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.01)
        values = []
        for _ in range(40):
            optimizer.zero_grad()
            value = loss(denoiser, images, 0.5, generator)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert sum(values[-5:]) < 0.6 * sum(values[:5]), (name, values)
    with pytest.raises(ValueError, match=r"classifier.eval\(\)"):
        stability_loss(denoiser, classifier.train(), images, 0.5)


def test_losses_repeat_with_their_generator():
    images = torch.rand(4, 1, 5, 5)
    first, second = (denoising_loss(nn.Identity(), images, 0.3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == second
    assert first.item() == pytest.approx(0.09, rel=0.5)
