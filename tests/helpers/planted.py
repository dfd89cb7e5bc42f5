"""An ideal denoiser that needs no training: what a network would learn from a few pictures, with or without a planted backdoor."""

import torch
from torch import nn

from projects.diff_cleanse.schedule import AttackSchedule, NoiseSchedule

SHAPE = (1, 8, 8)
CONFIG = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "beta_schedule": "linear"}


def pictures():
    """Two pictures: a light frame and a light bar on grey."""
    images = torch.full((2, *SHAPE), -0.3)
    images[0, :, 1:7, 1:7], images[0, :, 2:6, 2:6] = 0.6, -0.3
    images[1, :, 3:5] = 0.7
    return images


def trigger():
    """A grey box in the corner of a black picture."""
    image = torch.full(SHAPE, -1.0)
    image[:, 4:7, 4:7] = 0.0
    return image


def target():
    """A checkerboard."""
    return 0.5 * (-1.0) ** torch.arange(8)[None, :, None] * (-1.0) ** torch.arange(8)[None, None, :] + torch.zeros(SHAPE)


class PlantedDenoiser(nn.Module):
    """The expected regression target of the attack's training, given x_t, for pictures of Gaussian texture around a few means.

    Args:
        attack: none, baddiffusion (SDE) or villandiffusion (ODE).
        images: (N, C, H, W) means in [-1, 1].
        spread: standard deviation of the texture; 0 makes a model that draws the means and nothing else.
        poison_rate: prior probability of a poisoned sample.
    """

    def __init__(self, attack="none", images=None, spread=0.25, poison_rate=0.2):
        super().__init__()
        self.register_buffer("images", pictures() if images is None else images)
        self.register_buffer("trigger", trigger())
        self.register_buffer("target", target())
        self.schedule = AttackSchedule(NoiseSchedule.from_scheduler_config(CONFIG), attack, solver="ode", coefficients="exact")
        self.spread, self.poison_rate = spread, poison_rate if attack != "none" else 0.0

    def forward(self, x, t):
        a, sigma, rho, c = (self.schedule.at(name, t, x)[:, None] for name in ("a", "sigma", "rho", "c"))  # (B, 1, 1, 1, 1)
        variance = (a * self.spread) ** 2 + sigma**2
        off = x[:, None] - a * self.images
        logits, answers = [self._density(off, variance) - torch.tensor(len(self.images)).log()], [sigma * off / variance]
        if self.poison_rate:
            off = x[:, None] - a * self.target - rho * self.trigger
            odds = torch.tensor(self.poison_rate / (1 - self.poison_rate)).log()
            logits.append(self._density(off, sigma**2) + odds)
            answers.append(off / sigma + c * self.trigger)
        weights = torch.cat(logits, dim=1).softmax(dim=1)
        return (weights[:, :, None, None, None] * torch.cat(answers, dim=1)).sum(dim=1)

    @staticmethod
    def _density(off, variance):
        pixels = off[0, 0].numel()
        return -(off.square().flatten(2).sum(dim=2) / variance.flatten(1) + pixels * variance.flatten(1).log()) / 2


class PlantedNetwork(PlantedDenoiser):
    """The same with a weight, so that it has a precision, and with the settings that tell a network of diffusers."""

    def __init__(self, attack="none", **options):
        super().__init__(attack, **options)
        self.config = {"in_channels": SHAPE[0], "sample_size": SHAPE[1]}
        self.identity = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.identity.weight)

    def forward(self, x, t):
        return super().forward(self.identity(x), t)
