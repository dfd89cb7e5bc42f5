"""Kriging: each frame alone as a Gaussian process seen through block means."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.s3rp.fields import Estimate, FieldPrior, fit_field, noise_deviation
from projects.s3rp.observing import block_mean
from projects.s3rp.sets import Observations


def krige(
    observations: Observations, prior: FieldPrior | None = None, members: int = 0, rng: torch.Generator | None = None, deviation: bool = True
) -> Estimate:
    """Return the posterior of each frame given its own observations: c = mean + C A^T (A C A^T + sigma^2 I)^-1 (y - A mean).

    Missing cells are left out; a frame without any has the prior. Mean and deviation need no covariance of the fine grid.

    Args:
        observations: coarse sequences.
        prior: of each frame; None fits one to all frames (amplitude and length by maximum likelihood, mean by generalised least squares).
        members: posterior fields to draw.
        rng: generator of the CPU for the members.
        deviation: compute standard deviations too.

    Returns:
        An estimate in the type of the observations.

    Raises:
        ValueError: if members are asked for without a generator.
    """
    if members and rng is None:
        raise ValueError("drawing members takes a random generator: pass rng")
    prior = prior or fit_field(observations, frames=None)
    sigma = noise_deviation(observations)
    kriging = _Kriging(prior, observations.shape, observations.factor, sigma)
    values, is_seen = observations.coarse.double().flatten(0, 1).cpu(), observations.mask.flatten(0, 1).cpu()
    differences, start = (values - prior.mean)[None], torch.full((1, len(values), *observations.shape), prior.mean, dtype=torch.float64)
    if rng is not None:  # Matheron's rule: a draw of the prior, put right by the difference of its noisy view
        drawn = prior.draw(observations.shape, members * len(values), rng).unflatten(0, (members, -1))
        noise = sigma * torch.randn(members, *values.shape, generator=rng, dtype=torch.float64)
        differences = torch.cat([differences, values + noise - block_mean(drawn, observations.factor)])
        start = torch.cat([start, drawn])
    updates, spread = kriging(differences * is_seen, is_seen, deviation)
    shape = (*observations.coarse.shape[:2], *observations.shape)
    fields = (start + updates).unflatten(1, shape[:2]).to(observations.coarse)
    return Estimate(fields[0], spread.view(shape).to(observations.coarse) if deviation else None, fields[1:] if members else None)


class _Kriging:
    """The update of one frame by its observations, grouped by which cells are seen."""

    def __init__(self, prior: FieldPrior, shape: tuple[int, int], factor: int, sigma: float) -> None:
        self.prior, self.shape, self.sigma = prior, shape, sigma
        along_y, along_x = prior.correlations(shape)
        self.cross_y, self.cross_x = (part.unflatten(1, (-1, factor)).mean(2) for part in (along_y, along_x))  # C A^T of both directions
        self.covariance = prior.deviation**2 * torch.kron(block_mean(along_y, factor), block_mean(along_x, factor))  # A C A^T

    def __call__(self, differences: Tensor, is_seen: Tensor, deviation: bool) -> tuple[Tensor, Tensor]:
        """Return (R, F, H, W) updates for (R, F, h, w) differences, and (F, H, W) standard deviations."""
        patterns, which = is_seen.flatten(1).unique(dim=0, return_inverse=True)
        updates = differences.new_zeros(*differences.shape[:2], *self.shape)
        spread = differences.new_zeros(len(is_seen), *self.shape)
        for number, pattern in enumerate(patterns):
            rows, cells = (which == number).nonzero()[:, 0], pattern.nonzero()[:, 0]
            seen = self.covariance[cells][:, cells] + self.sigma**2 * torch.eye(len(cells)).double()
            lower = torch.linalg.cholesky(seen)
            flat = differences[:, rows].flatten(2)
            weights = torch.zeros_like(flat)
            weights[..., cells] = torch.cholesky_solve(flat[..., cells].flatten(0, 1).T, lower).T.view(*flat.shape[:2], -1)
            updates[:, rows] = self.prior.deviation**2 * (self.cross_y @ weights.view_as(differences[:, rows]) @ self.cross_x.T)
            if deviation:
                spread[rows] = self._deviation(lower, cells)
        return updates, spread

    def _deviation(self, lower: Tensor, cells: Tensor) -> Tensor:
        """Return the posterior's standard deviation, (H, W), row by row of the fine grid so that little is held at once."""
        width = self.cross_x.shape[1]
        lines = []
        for row in self.cross_y:
            cross = self.prior.deviation**2 * row[cells // width] * self.cross_x[:, cells % width]  # (W, observed)
            explained = torch.linalg.solve_triangular(lower, cross.T, upper=False).square().sum(0)
            lines.append((self.prior.deviation**2 - explained).clamp(min=0).sqrt())
        return torch.stack(lines)
