"""Data assimilation, the physics' own answer: 4D-Var, and the Kalman smoother as oracle. Filters are in `filtering`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from projects.s3rp.classical import completed, interpolated
from projects.s3rp.fields import Estimate, FieldPrior, fit_field, noise_deviation
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Physics, Wind, at_frame
from projects.s3rp.sets import Observations

Background = Literal["covariance", "gradient"]
"""What 4D-Var asks of the initial field: probable under a prior, L = C0^(-1/2), or smooth, L = gradient times a weight."""


def rolled(initial: Tensor, frames: int, physics: Physics, wind: Wind, source: Tensor | None = None) -> Tensor:
    """Carry initial fields through all frames, (B, ..., H, W) -> (B, T, ..., H, W); winds and sources are of (B, T or 1, ...)."""
    fields = [initial]
    between = initial.dim() - 3

    def spread(part: Tensor) -> Tensor:
        return part[(slice(None), *[None] * between)]

    for frame in range(frames - 1):
        now = wind.at(frame)
        rate = None if source is None else spread(at_frame(source, frame))
        fields.append(physics.advance(fields[-1], Wind(spread(now.u), spread(now.v)), rate))
    return torch.stack(fields, 1)


def variational(
    observations: Observations,
    prior: FieldPrior | None = None,
    background: Background = "covariance",
    weight: float | None = None,
    unknown_source: bool = False,
    sparsity: float = 10.0,
    iterations: int = 60,
    double: bool = True,
) -> Estimate:
    """4D-Var: the initial fields (and sources) whose coarse views through the solver fit all frames best.

    Minimises sum_t |A S^(t-1)(c_1) - y_t|^2 / (2 sigma^2) + |L c_1|^2 / 2 over the observed cells, and for unknown sources over a non-negative map s
    that does not change in time too, with |s|_1. All sequences are minimised at once, by L-BFGS with a strong Wolfe line search that they share;
    their terms do not touch each other, so that the minimum is that of each alone. Later frames, observed or not, are the solver's.

    Args:
        observations: coarse sequences.
        prior: of the initial field, for the covariance; None fits one to the first frames.
        background: kind of L.
        weight: of the squared gradient in units of length; None takes l^2 / (2 deviation^2) of the prior, a cell.
        unknown_source: estimate a source; a known one is used otherwise.
        sparsity: penalty of the released mass, in nats for what the prior's deviation in one coarse cell weighs.
        iterations: of L-BFGS.
        double: in float64, else in float32.

    Returns:
        The estimate, with `source` (B, 1, H, W) if it was unknown.
    """
    prior = prior or fit_field(observations)
    dtype = torch.float64 if double else torch.float32
    coarse, mask, sigma = observations.coarse.to(dtype), observations.mask, noise_deviation(observations)
    wind, known = observations.wind.to(coarse), None if observations.source is None else observations.source.to(dtype)
    physics = observations.physics.fixed(wind)
    start = interpolated(observations).to(dtype)[:, 0]
    penalty: Callable[[Tensor], Tensor]
    if background == "covariance":
        control, field_of, penalty = _scaled_control(start, prior, float(mask.sum()) / len(mask) / start[0].numel() / sigma**2)
    else:
        steepness = prior.length**2 / (2 * prior.deviation**2) if weight is None else weight
        control, field_of, penalty = start.clone(), _itself, lambda field: steepness * _roughness(field, physics) / 2
    parameters = [control.requires_grad_()]
    if unknown_source:
        first = _first_source(observations).to(coarse)
        reach = physics.interval * observations.frames**1.5 * first.sqrt()  # how fields move with the root of a source, over all frames
        scale = observations.factor * sigma / reach
        parameters.append((first.sqrt() / scale).requires_grad_())
    mass = sparsity * physics.interval * observations.frames / (prior.deviation * observations.factor**2)

    def source() -> Tensor | None:
        return (scale * parameters[1]).square() if unknown_source else known

    def objective() -> Tensor:
        optimiser.zero_grad()
        fields = rolled(field_of(control), observations.frames, physics, wind, source())
        misfit = (block_mean(fields, observations.factor) - coarse) * mask
        total = misfit.square().sum() / (2 * sigma**2) + penalty(control)
        total = total + mass * (scale * parameters[1]).square().sum() if unknown_source else total
        total.backward()
        return total

    optimiser = torch.optim.LBFGS(
        parameters, max_iter=iterations, history_size=30, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )
    with torch.enable_grad():
        optimiser.step(objective)
    with torch.no_grad():
        found = source()
        fields = rolled(field_of(control), observations.frames, physics, wind, found)
    return Estimate(fields.to(observations.coarse), source=found.to(observations.coarse) if unknown_source and found is not None else None)


def _itself(field: Tensor) -> Tensor:
    return field


def _scaled_control(start: Tensor, prior: FieldPrior, information: float) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return a control z of the smoothed start, the field it stands for, and the penalty |C0^(-1/2) (c - mean)|^2 / 2.

    z holds the weights of the prior's modes, each by the spread that prior and observations leave it at most: all its directions then curve alike.
    What the start has in modes that the prior all but excludes is left out.

    Args:
        start: (B, H, W).
        prior: of the fields.
        information: what the observations tell of a mode, as 1 / variance.
    """
    lines = [torch.linalg.eigh(correlation) for correlation in prior.correlations((start.shape[-2], start.shape[-1]))]
    (values_y, vectors_y), (values_x, vectors_x) = ((values.clamp(min=1e-12).to(start), vectors.to(start)) for values, vectors in lines)
    variance = prior.deviation**2 * values_y[:, None] * values_x
    scale = (1 / variance + information).rsqrt()
    kept = variance / (variance + 1e-3 * prior.deviation**2)
    control = (vectors_y.T @ (start - prior.mean) @ vectors_x) * kept / scale
    return control, lambda z: prior.mean + vectors_y @ (scale * z) @ vectors_x.T, lambda z: (scale.square() / variance * z.square()).sum() / 2


def _roughness(field: Tensor, physics: Physics) -> Tensor:
    """Return the sum over the cells of the squared gradient."""
    dy, dx = physics.spacing
    if physics.boundary == "periodic":
        return ((field.roll(-1, -2) - field) / dy).square().sum() + ((field.roll(-1, -1) - field) / dx).square().sum()
    return (field.diff(dim=-2) / dy).square().sum() + (field.diff(dim=-1) / dx).square().sum()


def _first_source(observations: Observations) -> Tensor:
    """Return even sources that release what the coarse frames gain in mass, (B, 1, H, W), positive."""
    levels = completed(observations).double().mean((2, 3))
    time = observations.physics.interval * max(1, observations.frames - 1)
    rate = (levels[:, -1] - levels[:, 0]) / time
    least = 1e-3 * float(observations.coarse.abs().max()) / time + 1e-12
    return rate.clamp(min=least)[:, None, None, None].expand(-1, 1, *observations.shape)


def smoother(observations: Observations, prior: FieldPrior | None = None, members: int = 0, rng: torch.Generator | None = None) -> Estimate:
    """Kalman smoother: the exact posterior of every frame given all observations, for linear physics and a Gaussian prior.

    The prior's modes, roots of C0, are propagated in the place of the identity: the columns of M^(t-1) C0^(1/2). With v ~ N(0, I) their weights, and
    G the coarse views of those columns, v has the precision I + G'G / sigma^2. In float64, sequence by sequence; frames without observations are
    forecasts. Meant for grids up to 32 x 32.

    Args:
        observations: coarse sequences; a known source is used.
        prior: of the initial field; None fits one to the first frames.
        members: posterior trajectories to draw.
        rng: generator of the CPU for the members.

    Returns:
        An estimate in the type of the observations.

    Raises:
        ValueError: if the scheme is not linear, or members are asked for without a generator.
    """
    if members and rng is None:
        raise ValueError("drawing members takes a random generator: pass rng")
    prior = prior or fit_field(observations)
    sigma = noise_deviation(observations)
    means, deviations, ensembles = [], [], []
    for number in range(len(observations)):
        centre, columns, weights, root = _posterior(observations.select([number]), prior, sigma)
        means.append(centre + (columns @ weights).view_as(centre))
        deviations.append((columns @ root).square().sum(-1).sqrt().view_as(centre))
        if members:
            drawn = weights[:, None] + root @ torch.randn(len(root), members, generator=rng, dtype=torch.float64)
            ensembles.append(centre + (columns @ drawn).permute(2, 0, 1).reshape(members, *centre.shape))
    like = observations.coarse
    ensemble = torch.stack(ensembles, 1).to(like) if members else None
    return Estimate(torch.stack(means).to(like), torch.stack(deviations).to(like), ensemble)


def smoother_covariance(observations: Observations, prior: FieldPrior, frame: int) -> Tensor:
    """Return the smoother's posterior covariance of one frame of the first sequence, (H W, H W) float64."""
    _, columns, _, root = _posterior(observations.select([0]), prior, noise_deviation(observations))
    factor = columns[frame] @ root
    return factor @ factor.T


def _posterior(observations: Observations, prior: FieldPrior, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return for one sequence the prior's mean (T, H, W), its modes (T, H W, K), and mean (K,) and root of the covariance (K, K) of their weights."""
    if observations.physics.scheme == "vanleer":
        raise ValueError("the Kalman smoother takes linear physics: choose the scheme central or upwind in the place of vanleer")
    coarse, mask = observations.coarse[0].double().cpu(), observations.mask[0].cpu()
    wind = observations.wind.to(coarse)
    physics, shape = observations.physics.fixed(wind), observations.shape
    source = None if observations.source is None else observations.source.to(coarse)
    centre = rolled(torch.full((1, *shape), prior.mean, dtype=torch.float64), observations.frames, physics, wind, source)[0]
    modes = rolled(prior.modes(shape)[None], observations.frames, physics, wind)[0]  # (T, K, H, W)
    views = block_mean(modes, observations.factor).transpose(0, 1)[:, mask]  # (K, observed)
    difference = (coarse - block_mean(centre, observations.factor))[mask]
    lower = torch.linalg.cholesky(torch.eye(len(views), dtype=torch.float64) + views @ views.T / sigma**2)
    weights = torch.cholesky_solve((views @ difference / sigma**2)[:, None], lower)[:, 0]
    root = torch.linalg.solve_triangular(lower.T, torch.eye(len(lower), dtype=torch.float64), upper=True)
    return centre, modes.flatten(2).mT, weights, root
