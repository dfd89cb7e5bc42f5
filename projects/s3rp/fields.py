"""Gaussian random fields: drawing them, and fitting amplitude, length and mean to coarse observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Boundary
from projects.s3rp.sets import Observations

FLOOR = 1e-3
"""Least standard deviation of noise that a statistical method assumes, by that of the observations: exact data have no likelihood."""
CELLS, WORK = 2**18, 2**31
"""Observed cells to which a prior is fitted at most, and of frames with missing ones the cubes of their cells; more tell little."""


class Estimate(NamedTuple):
    """What a method makes of observations.

    Attributes:
        mean: (B, T, H, W) fields.
        deviation: (B, T, H, W) standard deviations, where the method has them.
        members: (M, B, T, H, W) fields of an ensemble, where they were asked for.
        source: (B, 1, H, W) estimated rates of release by area, where they were unknown.
    """

    mean: Tensor
    deviation: Tensor | None = None
    members: Tensor | None = None
    source: Tensor | None = None


def wave_numbers(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the wave numbers of the discrete Fourier transform along y, (H, 1), and x, (1, W), in waves a side."""
    height, width = shape
    along_y = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)[:, None]
    along_x = torch.fft.fftfreq(width, 1 / width, dtype=torch.float64)[None]
    return along_y, along_x


def spectrum(shape: tuple[int, int], length: float) -> Tensor:
    """Return the variance of each Fourier mode of a field of unit variance, exp(-2 (pi l)^2 |k|^2) normalised, (H, W).

    Args:
        shape: (H, W).
        length: covariance length l, in domain sides.
    """
    along_y, along_x = wave_numbers(shape)
    power = torch.exp(-2 * (math.pi * length) ** 2 * (along_y**2 + along_x**2))
    return power / power.sum()


def random_field(shape: tuple[int, int], length: float, rng: torch.Generator, count: int | None = None) -> Tensor:
    """Draw periodic Gaussian random fields of mean zero and unit variance.

    Args:
        shape: (H, W).
        length: covariance length, in domain sides.
        rng: generator of the CPU.
        count: fields; None draws one without an axis for it.

    Returns:
        (count, H, W), or (H, W), float64.
    """
    noise = torch.randn(count or 1, *shape, generator=rng, dtype=torch.float64)
    amplitude = (spectrum(shape, length) * (shape[0] * shape[1])).sqrt()
    fields = torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real
    return fields if count else fields[0]


def line_correlation(size: int, length: float, boundary: Boundary = "periodic") -> Tensor:
    """Return the squared-exponential correlation exp(-d^2 / (2 l^2)) of the cells of a line; that of a grid is the product of both directions'.

    Args:
        size: cells of the line.
        length: l, in lengths of the line.
        boundary: a periodic line's is that of `spectrum`, the correlation with all images of a cell, normalised.

    Returns:
        (size, size) float64.
    """
    cells = torch.arange(size)
    offset = cells[:, None] - cells
    if boundary == "open":
        return torch.exp(-0.5 * (offset.double() / (size * length)) ** 2)
    around = torch.fft.ifft(spectrum((size, 1), length)[:, 0]).real * size
    return around[offset % size]


@dataclass(frozen=True)
class FieldPrior:
    """A homogeneous Gaussian random field with the covariance deviation^2 exp(-d^2 / (2 length^2)).

    Attributes:
        mean: of the field.
        deviation: its standard deviation.
        length: covariance length, in the units of `extent`.
        extent: (y, x) sides of the domain.
        boundary: periodic or open.
    """

    mean: float
    deviation: float
    length: float
    extent: tuple[float, float] = (1.0, 1.0)
    boundary: Boundary = "periodic"

    def correlations(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the correlation along y, (H, H), and along x, (W, W), whose Kronecker product is that of the grid's cells."""
        along_y, along_x = (line_correlation(size, self.length / side, self.boundary) for size, side in zip(shape, self.extent, strict=True))
        return along_y, along_x

    def covariance(self, shape: tuple[int, int]) -> Tensor:
        """Return the covariance of all cells, (H W, H W) float64: for small grids."""
        return self.deviation**2 * torch.kron(*self.correlations(shape))

    def roots(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return symmetric square roots of the correlations: deviation R_y z R_x of white noise z has this covariance."""
        along_y, along_x = (_root(correlation) for correlation in self.correlations(shape))
        return along_y, along_x

    def draw(self, shape: tuple[int, int], count: int, rng: torch.Generator) -> Tensor:
        """Draw (count, H, W) fields, float64, with a generator of the CPU."""
        along_y, along_x = self.roots(shape)
        noise = torch.randn(count, *shape, generator=rng, dtype=torch.float64)
        return self.mean + self.deviation * (along_y @ noise @ along_x)

    def modes(self, shape: tuple[int, int], least: float = 1e-8) -> Tensor:
        """Return (K, H, W) fields whose combinations by white noise have this covariance: its eigenvectors times the roots of their variances.

        Args:
            shape: (H, W).
            least: variance, by that of the largest, below which modes are left out.
        """
        (values_y, vectors_y), (values_x, vectors_x) = (torch.linalg.eigh(correlation) for correlation in self.correlations(shape))
        power = values_y.clamp(min=0)[:, None] * values_x.clamp(min=0)
        rows, columns = torch.nonzero(power > least * power.max(), as_tuple=True)
        amplitude = self.deviation * power[rows, columns].sqrt()
        return amplitude[:, None, None] * vectors_y.T[rows][:, :, None] * vectors_x.T[columns][:, None, :]


def _root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def noise_deviation(observations: Observations) -> float:
    """Return the noise's standard deviation, at least `FLOOR` of that of the observed values."""
    seen = observations.coarse[observations.mask].double()
    return max(observations.sigma, FLOOR * float(seen.std(correction=0)), 1e-12) if len(seen) else max(observations.sigma, 1e-12)


def fit_field(observations: Observations, frames: int | None = 1, length: float | None = None) -> FieldPrior:
    """Fit a Gaussian random field to coarse values, by the likelihood of the observed ones.

    The covariance of block means is A C A^T + sigma^2 I, so block averaging, noise and missing cells need no further correction. Frames count as
    independent draws, which leaves the estimate consistent.

    Args:
        observations: coarse sequences; no truth is used.
        frames: of each sequence, the first that are observed; 1 for a prior of the initial field, None for all.
        length: a known covariance length.

    Raises:
        ValueError: if fewer than three values are observed.
    """
    from scipy.optimize import minimize

    values, is_seen = _first_frames(observations, frames)
    if int(is_seen.sum()) < 3:
        raise ValueError(f"{int(is_seen.sum())} values are observed in the first frames: a field's spectrum needs more of them")
    sides = (observations.shape[0] * observations.physics.spacing[0], observations.shape[1] * observations.physics.spacing[1])
    sigma, cell = noise_deviation(observations), observations.factor * max(observations.physics.spacing)
    spread = max(float(values[is_seen].std(correction=0)), sigma)

    def prior(mean: float, logs: list[float]) -> FieldPrior:
        return FieldPrior(mean, math.exp(logs[0]), length or math.exp(logs[1]), sides, observations.physics.boundary)

    def cost(logs: list[float]) -> float:
        return _negative_log_likelihood(values, is_seen, prior(0.0, logs), observations.shape, sigma)[0]

    starts = [[math.log(spread), math.log(length or multiple * cell)] for multiple in (0.7, 2.0)]
    bounds = [(math.log(spread) - 3, math.log(spread) + 3), (math.log(cell / 4), math.log(2 * max(sides)))]
    bounds = bounds if length is None else bounds[:1]
    fits = [minimize(cost, start[: len(bounds)], method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-3, "fatol": 1e-2}) for start in starts]
    best = min(fits, key=lambda fit: fit.fun)
    mean = _negative_log_likelihood(values, is_seen, prior(0.0, best.x), observations.shape, sigma)[1]
    return prior(mean, best.x)


def _first_frames(observations: Observations, frames: int | None) -> tuple[Tensor, Tensor]:
    """Return the first observed frames of each sequence, (F, h, w) float64, and where they are observed: no more than are worth the work."""
    is_seen = observations.mask.cpu()
    is_used = is_seen.flatten(2).any(2)
    is_used &= is_used.cumsum(1) <= (frames or observations.frames)
    values, is_seen = observations.coarse.cpu().double()[is_used], is_seen[is_used]
    cells = observations.coarse[0, 0].numel()
    most = max(1, CELLS // cells if bool(is_seen.all()) else min(CELLS // cells, WORK // cells**3))
    return values[:most], is_seen[:most]


def _negative_log_likelihood(values: Tensor, is_seen: Tensor, prior: FieldPrior, shape: tuple[int, int], sigma: float) -> tuple[float, float]:
    """Return -log p of (F, h, w) coarse values, but for a constant, and the mean that makes it least (generalised least squares)."""
    factor = shape[1] // values.shape[-1]
    coarse_y, coarse_x = (block_mean(correlation, factor) for correlation in prior.correlations(shape))
    ones = torch.ones_like(values)
    if bool(is_seen.all()):  # eigenvectors of both directions make everything diagonal
        (values_y, vectors_y), (values_x, vectors_x) = torch.linalg.eigh(coarse_y), torch.linalg.eigh(coarse_x)
        variance = prior.deviation**2 * (values_y.clamp(min=0)[:, None] * values_x.clamp(min=0)) + sigma**2
        white, white_ones = ((vectors_y.T @ part @ vectors_x) / variance.sqrt() for part in (values, ones))
        determinant = len(values) * variance.log().sum()
    else:
        covariance = prior.deviation**2 * torch.kron(coarse_y, coarse_x)
        white, white_ones, determinant = _whitened(values, is_seen, covariance, sigma)
    mean = (white * white_ones).sum() / white_ones.square().sum()
    return float(0.5 * ((white - mean * white_ones).square().sum() + determinant)), float(mean)


def _whitened(values: Tensor, is_seen: Tensor, covariance: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (F, h w) values and ones divided by the root of each frame's covariance, and the sum of the logarithms of its determinants."""
    patterns, which = is_seen.flatten(1).unique(dim=0, return_inverse=True)
    white, white_ones = torch.zeros_like(values).flatten(1), torch.zeros_like(values).flatten(1)
    determinant = covariance.new_zeros(())
    for number, pattern in enumerate(patterns):
        rows, cells = (which == number).nonzero()[:, 0], pattern.nonzero()[:, 0]
        lower = torch.linalg.cholesky(covariance[cells][:, cells] + sigma**2 * torch.eye(len(cells)).double())
        sides = torch.cat([values.flatten(1)[rows][:, cells].T, covariance.new_ones(len(cells), 1)], 1)
        solved = torch.linalg.solve_triangular(lower, sides, upper=False)
        index = rows[:, None], cells[None]
        white[index], white_ones[index] = solved[:, :-1].T, solved[:, -1:].T.expand(len(rows), -1)
        determinant = determinant + 2 * len(rows) * lower.diagonal().log().sum()
    return white, white_ones, determinant
