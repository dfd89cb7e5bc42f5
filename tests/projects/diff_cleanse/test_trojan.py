"""Inversion of TrojDiff's triggers, on an ideal denoiser whose blend or patch is known."""

import pytest
import torch
from helpers.planted import CONFIG, SHAPE, PlantedDenoiser, target, trigger

from projects.diff_cleanse.inversion import disagreement, objective
from projects.diff_cleanse.samplers import ScanSampler
from projects.diff_cleanse.sampling import Trojan, sample
from projects.diff_cleanse.schedule import NoiseSchedule
from projects.diff_cleanse.similarity import measure_agreement
from projects.diff_cleanse.trojan import find_trojan_starts, invert_trojan, trojan_divergence, trojan_priors

SCHEDULE = NoiseSchedule.from_scheduler_config(CONFIG)
CORNER = torch.zeros(SHAPE, dtype=torch.bool)
CORNER[:, 6:, 6:] = True
NOISE = {"blend": Trojan.of(trigger(), 0.6), "patch": Trojan.of(torch.ones(SHAPE), 0.2, CORNER)}


class TrojanDenoiser(PlantedDenoiser):
    """The expected noise, given x_t, where a share of the training samples is the target with Trojan noise."""

    def __init__(self, noise):
        super().__init__("none")
        self.noise, self.odds = noise, torch.tensor(0.25).log()

    def forward(self, x, t):
        a, sigma = self.schedule.at("a", t, x), self.schedule.at("sigma", t, x)
        variance = (a * self.spread) ** 2 + sigma**2
        off = x[:, None] - a[:, None] * self.images
        eps = ((x - a * self.target) / sigma - self.noise.shift) / self.noise.gain
        pixels = eps[0].numel()
        clean = self._density(off, variance[:, None]).logsumexp(dim=1) - torch.tensor(float(len(self.images))).log()
        volume = (sigma.flatten(1).log() * pixels + self.noise.gain.log().sum()).squeeze(1)
        share = (self.odds - eps.square().flatten(1).sum(dim=1) / 2 - volume - clean).sigmoid()
        return share.view(-1, 1, 1, 1) * eps + (1 - share.view(-1, 1, 1, 1)) * super().forward(x, t)


def agreement(model, inverted, name="trojan_ddpm"):
    probe, numbers = ScanSampler(name, CONFIG, 20 if name == "trojan_ddim" else None), torch.Generator().manual_seed(5)
    eps = torch.randn(16, *SHAPE, generator=numbers)
    with torch.inference_mode():
        triggered = probe(model, inverted.wear(eps), numbers, inverted.trojan) / 2 + 0.5
        untriggered = (probe(model, eps, numbers) / 2 + 0.5).clamp(0, 1)
    return triggered, measure_agreement(triggered.clone(), untriggered.clone())


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", list(NOISE))
def test_a_planted_trigger_is_found_without_knowing_gamma(kind, eta):
    model = TrojanDenoiser(NOISE[kind])
    inverted = invert_trojan(model, SCHEDULE, SHAPE, eta)
    triggered, found = agreement(model, inverted, "trojan_ddpm" if eta else "trojan_ddim")
    assert found.score >= 0.5
    assert (triggered - (target() / 2 + 0.5)).square().mean(dim=(1, 2, 3)).median() < 0.01
    assert len(inverted.curve) == 40
    assert inverted.gain.min() >= 0.05
    assert (inverted.pattern.abs() <= 1 - inverted.gain + 1e-6).all()
    if kind == "patch":
        assert inverted.gain[CORNER].mean() < 0.6 < inverted.gain[~CORNER].mean()


@pytest.mark.parametrize("spread", [0.25, 0.4])
def test_clean_models_yield_none(spread):
    model = PlantedDenoiser(spread=spread)
    assert agreement(model, invert_trojan(model, SCHEDULE, SHAPE))[1].score == 0


def test_without_a_backdoor_trojan_samplers_diverge_and_agree_on_no_picture():
    """Clamped, what diverges looks alike; it must not count."""
    model, noise = PlantedDenoiser(), NOISE["blend"]
    eps = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wreck = sample(model, noise.bias(eps), SCHEDULE, "ddim", 20, trojan=noise).clone() / 2 + 0.5
        untriggered = (sample(model, eps, SCHEDULE, "ddim", 20).clone() / 2 + 0.5).clamp(0, 1)
    assert (wreck - wreck.clamp(0, 1)).abs().mean(dim=(1, 2, 3)).min() > 0.02
    assert measure_agreement(wreck, untriggered).triggered == 0
    same = wreck[:1].expand_as(wreck)
    assert measure_agreement(same, untriggered).triggered == 0
    assert measure_agreement(same / same.abs().max() / 2 + 0.5, untriggered).triggered == 1
    assert measure_agreement(same * torch.nan, untriggered).triggered == 0


def test_a_network_that_knows_trojan_noise_does_not_diverge():
    knows, clean = (trojan_divergence(model, SCHEDULE, SHAPE) for model in (TrojanDenoiser(NOISE["blend"]), PlantedDenoiser()))
    assert knows < 0.2 * clean


def test_priors_cover_the_picture():
    gains, directions = trojan_priors((3, 16, 16))
    blends, blocks = 15, 2 * (7 * 7 + 8 * 8)
    assert gains.shape == directions.shape == (blends + blocks, 3, 16, 16)
    assert (gains[:blends].flatten(1).std(dim=1) < 1e-6).all()
    inside = gains[blends:, 0] < 0.5
    assert set(inside.flatten(1).sum(dim=1).tolist()) == {4, 16}
    assert (inside.flatten(1).sum(dim=0) > 0).all()  # every pixel is in some block
    assert set(directions[blends:, 0][inside].tolist()) == {-1.0, 1.0}
    assert (directions[blends:, 0][~inside] == 0).all()


def test_the_target_is_the_anchor_and_the_nearest_prior_leads_to_it():
    options = {"steps": 10, "eta": 1.0, "numbers": torch.Generator().manual_seed(0)}
    anchor, gains, directions = find_trojan_starts(TrojanDenoiser(NOISE["patch"]), SCHEDULE, SHAPE, 4, 2, **options)
    assert (anchor - (target() / 2 + 0.5)).abs().mean() < 0.1
    assert gains.shape == directions.shape == (2, *SHAPE)
    inside = gains[0] < 0.5
    assert (inside & CORNER).sum() == inside.sum()
    assert directions[0][inside].unique().tolist() == [1.0]
    nothing, gains, _ = find_trojan_starts(PlantedDenoiser(), SCHEDULE, SHAPE, 2, 3, **options)
    assert nothing is None
    assert len(gains) == 3


def test_gradients_of_gain_and_shift_are_those_of_finite_differences():
    model = PlantedDenoiser().double()
    numbers = torch.Generator().manual_seed(1)
    eps = torch.randn(3, *SHAPE, generator=numbers, dtype=torch.float64)
    shift, gain = (torch.rand(2, *SHAPE, generator=numbers, dtype=torch.float64).requires_grad_() for _ in range(2))

    def losses(shift, gain, count=2):
        return objective(model, SCHEDULE, shift[:count], eps, None, gain[:count] / 2 + 0.5, steps=3)[0]

    assert torch.autograd.gradcheck(lambda *maps: losses(*maps, count=1), (shift, gain), eps=1e-6, atol=1e-5)
    own = Trojan(gain[1] / 2 + 0.5, shift[1])
    images = sample(model, own.bias(eps), SCHEDULE, steps=3, trojan=own) / 2 + 0.5
    ratio = objective(model, SCHEDULE, shift, eps, None, gain / 2 + 0.5, steps=3)[1][1]  # side by side, each by itself
    torch.testing.assert_close(ratio, disagreement(images).detach())


def test_messages():
    with pytest.raises(ValueError, match="an inversion needs a start, an iteration and a probe, got starts=2, iterations=40 and probes=0"):
        invert_trojan(PlantedDenoiser(), SCHEDULE, SHAPE, probes=0)
