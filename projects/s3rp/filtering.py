"""Filters, which know the past alone: the ensemble Kalman filter, and optimal interpolation cycled with the solver as its cheap rival."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.s3rp.fields import Estimate, FieldPrior, fit_field, noise_deviation
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Wind, at_frame
from projects.s3rp.sets import Observations


def gaspari_cohn(distance: Tensor, reach: float) -> Tensor:
    """Return Gaspari and Cohn's (1999, equation 4.10) compact correlation, which falls from 1 to 0 at `reach`."""
    z = (2 * distance / reach).clamp(max=2)
    near = -(z**5) / 4 + z**4 / 2 + 5 * z**3 / 8 - 5 * z**2 / 3 + 1
    far = z**5 / 12 - z**4 / 2 + 5 * z**3 / 8 + 5 * z**2 / 3 - 5 * z + 4 - 2 / (3 * z.clamp(min=1))
    return torch.where(z <= 1, near, far).clamp(min=0)


def _centres(observations: Observations, factor: int) -> Tensor:
    """Return the centres of the cells of the fine grid (factor 1) or the coarse one, (cells, 2) y and x."""
    lines = [(torch.arange(n // factor) + 0.5) * factor * step for n, step in zip(observations.shape, observations.physics.spacing, strict=True)]
    return torch.cartesian_prod(*lines).double()


def _tapers(observations: Observations, reach: float | None) -> tuple[Tensor | float, Tensor | float]:
    """Return the localisation between fine and coarse cells, (H W, h w), and among coarse ones; 1 without a reach."""
    if reach is None:
        return 1.0, 1.0
    fine, coarse = _centres(observations, 1), _centres(observations, observations.factor)
    sides = torch.tensor([n * step for n, step in zip(observations.shape, observations.physics.spacing, strict=True)])

    def taper(cells: Tensor) -> Tensor:
        offset = (cells[:, None] - coarse).abs()
        offset = torch.minimum(offset, sides - offset) if observations.physics.boundary == "periodic" else offset
        return gaspari_cohn(offset.square().sum(-1).sqrt(), reach).to(observations.coarse)

    return taper(fine), taper(coarse)


def ensemble_filter(
    observations: Observations,
    rng: torch.Generator,
    prior: FieldPrior | None = None,
    members: int = 48,
    reach: float | None = 0.4,
    inflation: float = 1.02,
) -> Estimate:
    """Stochastic ensemble Kalman filter with localisation and inflation; all sequences at once.

    Members are carried by the solver and, where a frame is observed, moved by the gain of their own covariance towards observations with noise added.

    Args:
        observations: coarse sequences; a known source is used.
        rng: generator of the CPU.
        prior: that members are drawn from; None fits one to the first frames.
        members: M, at least 2.
        reach: distance, in units of length, at which correlations are cut to zero; None keeps all.
        inflation: factor on the members' spread before each update.

    Returns:
        An estimate of the filter: frame t knows frames up to t.

    Raises:
        ValueError: if there are fewer than two members.
    """
    if members < 2:
        raise ValueError(f"an ensemble takes at least 2 members, got {members}")
    prior, sigma = prior or fit_field(observations), noise_deviation(observations)
    coarse, count = observations.coarse, len(observations)
    tapers = _tapers(observations, reach)
    wind, source = observations.wind, observations.source
    physics = observations.physics.fixed(wind)
    ensemble = prior.draw(observations.shape, count * members, rng).view(count, members, *observations.shape).to(coarse)
    frames = []
    for frame in range(observations.frames):
        if frame:
            now, rate = wind.at(frame - 1), None if source is None else at_frame(source, frame - 1)[:, None]
            ensemble = physics.advance(ensemble, Wind(now.u[:, None], now.v[:, None]), rate)
        noise = sigma * torch.randn(count, members, *coarse.shape[2:], generator=rng, dtype=torch.float64).to(coarse)
        ensemble = _updated(ensemble, coarse[:, frame], observations.mask[:, frame], noise, sigma, tapers, inflation)
        frames.append(ensemble)
    fields = torch.stack(frames, 2).transpose(0, 1)  # (M, B, T, H, W)
    return Estimate(fields.mean(0), fields.std(0), fields)


def _updated(
    ensemble: Tensor, coarse: Tensor, mask: Tensor, noise: Tensor, sigma: float, tapers: tuple[Tensor | float, Tensor | float], inflation: float
) -> Tensor:
    """Return members (B, M, H, W) after the observations (B, h, w) of a frame; sequences without any are left as they are."""
    is_seen = mask.flatten(1).any(1)
    if not bool(is_seen.any()):
        return ensemble
    factor, mean = ensemble.shape[-1] // coarse.shape[-1], ensemble.mean(1, keepdim=True)
    inflated = mean + (ensemble - mean) * torch.where(is_seen, inflation, 1.0)[:, None, None, None]
    difference = ((coarse[:, None] + noise - block_mean(inflated, factor)) * mask[:, None]).flatten(2)  # (B, M, h w)
    anomalies = (inflated - mean).flatten(2) / (ensemble.shape[1] - 1) ** 0.5
    views = (block_mean(inflated - mean, factor) * mask[:, None]).flatten(2) / (ensemble.shape[1] - 1) ** 0.5
    cross, among = anomalies.mT @ views * tapers[0], views.mT @ views * tapers[1]
    noisy = among + sigma**2 * torch.eye(among.shape[-1]).to(among)
    step = torch.linalg.solve(noisy, difference.mT)  # (B, h w, M)
    return inflated + (cross @ step).mT.reshape_as(inflated)


def cycled_interpolation(observations: Observations, prior: FieldPrior | None = None) -> Estimate:
    """Optimal interpolation (3D-Var) cycled with the solver: each frame's forecast is put right by kriging of the difference; all sequences at once.

    The error of a forecast has the prior's correlations, and a variance that the differences to the observations tell, frame by frame: their mean
    square is that variance (of block means) and the noise's.

    Args:
        observations: coarse sequences; a known source is used.
        prior: of the initial field; None fits one to the first frames.

    Returns:
        The fields, without a spread.
    """
    prior, sigma = prior or fit_field(observations), noise_deviation(observations)
    coarse, mask, source = observations.coarse.double(), observations.mask, observations.source
    along_y, along_x = (part.to(coarse) for part in prior.correlations(observations.shape))
    cross_y, cross_x = (part.unflatten(1, (-1, observations.factor)).mean(2) for part in (along_y, along_x))
    among = prior.deviation**2 * torch.kron(block_mean(along_y, observations.factor), block_mean(along_x, observations.factor))
    wind, physics = observations.wind.to(coarse), observations.physics.fixed(observations.wind)
    field = coarse.new_full((len(coarse), *observations.shape), prior.mean)
    frames = []
    for frame in range(observations.frames):
        if frame:
            rate = None if source is None else at_frame(source, frame - 1).to(coarse)
            field = physics.advance(field, wind.at(frame - 1), rate)
        seen = mask[:, frame].to(coarse)
        difference = (coarse[:, frame] - block_mean(field, observations.factor)) * seen
        square = difference.square().sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
        share = ((square - sigma**2) / among.diagonal().mean()).clamp(1e-3, 1.0) if frame else torch.ones_like(square)
        flat = seen.flatten(1)
        noisy = share[:, None, None] * among * flat[:, :, None] * flat[:, None, :] + sigma**2 * torch.eye(len(among)).to(among)
        weights = torch.linalg.solve(noisy, difference.flatten(1)).view_as(difference)
        field = field + (share * prior.deviation**2)[:, None, None] * (cross_y @ weights @ cross_x.T)
        frames.append(field)
    return Estimate(torch.stack(frames, 1).to(observations.coarse))
