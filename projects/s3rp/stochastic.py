"""S3RP-R, the recurrent Wasserstein autoencoder whose latent maps make a distribution over fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.s3rp.layers import Cell, build_cell, conv
from projects.s3rp.losses import mmd_imq
from projects.s3rp.model import Seen, build_decoder
from projects.s3rp.observing import block_mean, interpolate, project, repeat
from projects.s3rp.physics import Boundary

LOG_DEVIATIONS = (-6.0, 2.0)
"""Range of the logarithms of the latents' deviations."""
POOLED = 512
"""Latent vectors, of all positions, between which the discrepancy of a frame is computed."""


class Normal(NamedTuple):
    """A diagonal normal distribution over latent maps, (B, q, h, w) each."""

    mean: Tensor
    deviation: Tensor

    def draw(self, rng: torch.Generator) -> Tensor:
        """Draw by the reparametrisation, so that gradients run through."""
        return self.mean + self.deviation * torch.randn(self.mean.shape, generator=rng, device=self.mean.device, dtype=self.mean.dtype)


@dataclass(frozen=True)
class Drawn:
    """What the stochastic network makes.

    Attributes:
        fields: (B, T, H, W).
        posteriors: draws from Q(z_t | y_t, z_<t), (B, q, h, w) a frame with observations.
        priors: draws from P(z_t | z_<t) in the same frames.
    """

    fields: Tensor
    posteriors: list[Tensor]
    priors: list[Tensor]


class LatentNet(nn.Module):
    """Posterior, prior, recurrent cell and decoder: c_t = c_{t-1} + g(h_t), h_t = cell([up(z_t), u_t, c_{t-1}], h_{t-1}).

    z_t lies on the coarse grid and comes from the posterior where a frame is observed, from the prior where it is not.

    Args:
        factor: r.
        channels: C of the cell and of all layers.
        latents: q, channels of z.
        cell: gru or lstm.
        boundary: of the domain.
        gain: of the projection onto the observations; 1 for noise-free ones, 0 for none.
    """

    def __init__(
        self, factor: int = 4, channels: int = 16, latents: int = 4, cell: Cell = "gru", boundary: Boundary = "periodic", gain: float = 1.0
    ) -> None:
        super().__init__()
        self.factor, self.boundary, self.gain = factor, boundary, gain
        self.posterior = _head(5 + channels, channels, latents, boundary)  # difference, mask, field, winds, and h
        self.prior = _head(2 + channels, channels, latents, boundary)
        self.encoder = nn.Sequential(conv(latents + 3, channels, boundary), nn.SiLU(), conv(channels, channels, boundary), nn.SiLU())
        self.cell = build_cell(cell, channels, channels, boundary)
        self.decoder = build_decoder(channels, 1, boundary)

    def forward(self, seen: Seen, rng: torch.Generator) -> Drawn:
        """Draw one field a frame; a frame without any observation is drawn from the prior."""
        is_seen = seen.mask.flatten(2).any(2)  # (B, T)
        field = seen.coarse.new_zeros(len(seen.coarse), seen.coarse.shape[2] * self.factor, seen.coarse.shape[3] * self.factor)
        state = self.cell.start(field[:, None])
        fields, posteriors, priors = [], [], []
        for frame in range(seen.frames):
            mask, wind = seen.mask[:, frame], seen.arriving(frame).expand(len(field), -1, -1, -1)
            coarse_wind, hidden = block_mean(wind, self.factor), block_mean(self.cell.hidden(state), self.factor)
            difference = (seen.coarse[:, frame] - block_mean(field, self.factor)) * mask
            clues = [difference[:, None], mask[:, None].to(field.dtype), block_mean(field, self.factor)[:, None], coarse_wind, hidden]
            prior = self._normal(self.prior(torch.cat([coarse_wind, hidden], 1))).draw(rng)
            posterior = self._normal(self.posterior(torch.cat(clues, 1))).draw(rng)
            observed = is_seen[:, frame, None, None, None]
            latent = torch.where(observed, posterior, prior)
            posteriors.append(posterior[is_seen[:, frame]])
            priors.append(prior[is_seen[:, frame]])
            encoded = self.encoder(torch.cat([repeat(latent, self.factor), wind, field[:, None]], 1))
            state = self.cell(encoded, state)
            field = field + self.decoder(self.cell.hidden(state))[:, 0]
            if self.gain:
                field = self._corrected(field, seen.coarse[:, frame], mask)
            fields.append(field)
        return Drawn(torch.stack(fields, 1), posteriors, priors)

    def _corrected(self, field: Tensor, coarse: Tensor, mask: Tensor) -> Tensor:
        """Put a field right by the observations: smoothly first, then exactly."""
        difference = (coarse - block_mean(field, self.factor)) * mask
        smooth = field + self.gain * interpolate(difference, self.factor, "bicubic", self.boundary)
        return project(smooth, coarse, mask, self.gain)

    def _normal(self, maps: Tensor) -> Normal:
        mean, log_deviation = maps.chunk(2, 1)
        return Normal(mean, log_deviation.clamp(*LOG_DEVIATIONS).exp())


def _head(inputs: int, channels: int, latents: int, boundary: Boundary) -> nn.Sequential:
    return nn.Sequential(conv(inputs, channels, boundary), nn.SiLU(), conv(channels, 2 * latents, boundary))


def pooled_pairs(drawn: Drawn, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return for each frame up to `POOLED` latent vectors of drawn positions, of the posterior and of the prior, (N, q) each."""
    pairs = []
    for posterior, prior in zip(drawn.posteriors, drawn.priors, strict=True):
        vectors, others = (maps.movedim(1, -1).flatten(0, -2) for maps in (posterior, prior))
        if len(vectors) >= 2:
            chosen = torch.randperm(len(vectors), generator=rng, device=rng.device)[:POOLED].to(vectors.device)
            pairs.append((vectors[chosen], others[chosen]))
    return pairs


def latent_discrepancy(drawn: Drawn, rng: torch.Generator) -> Tensor:
    """Return sum_t MMD(z_t^q, z_t^p)."""
    pairs = pooled_pairs(drawn, rng)
    return torch.stack([mmd_imq(*pair) for pair in pairs]).sum() if pairs else drawn.fields.new_zeros(())


class LatentCritic(nn.Module):
    """Tells the posterior's latent vectors from the prior's, (N, q) -> (N,) logits: the adversarial divergence in place of the MMD."""

    def __init__(self, latents: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(latents, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)[:, 0]

    def own_loss(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What the critic learns by: prior vectors are 1, posterior ones 0; the latents' networks get no gradient."""
        if not pairs:
            return 0.0 * torch.stack([value.sum() for value in self.parameters()]).sum()
        losses = [F.softplus(self(posterior.detach())).mean() + F.softplus(-self(prior.detach())).mean() for posterior, prior in pairs]
        return torch.stack(losses).sum()

    def divergence(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What posterior and prior learn by: to be taken for each other."""
        if not pairs:
            return 0.0 * torch.stack([value.sum() for value in self.parameters()]).sum()
        weights = {name: value.detach() for name, value in self.named_parameters()}
        logits = [[torch.func.functional_call(self, weights, (latents,)) for latents in pair] for pair in pairs]
        return torch.stack([F.softplus(-posterior).mean() + F.softplus(prior).mean() for posterior, prior in logits]).sum()
