"""The radii that a number of draws can give: finitely many, and few of them near the highest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile
from shared.smoothing.joint import fisher_sum

Form = Literal["main", "pooled", "joint"]
FORMS: tuple[Form, ...] = ("main", "pooled", "joint")
Combination = Literal["sum", "root of squares"]
SLACK = 1e-9
_REACH, _JOINT_REACH = 40, 8  # misses of a branch that pairs are listed for


def ceiling(sigma: float, draws: int, alpha: float, branches: Literal[1, 2] = 1, form: Form | None = None) -> float:
    """Radius when all draws hit.

    Args:
        sigma: standard deviation of the noise.
        draws: n, in each branch.
        alpha: failure probability.
        branches: 1: sigma Phi^-1(alpha^(1/n)); 2: that of the form.
        form: certificate of two branches; None: the highest, the pooled form's sqrt(2) sigma Phi^-1(alpha^(1/2n)).
    """
    if branches == 1 or form in (None, "pooled"):
        return math.sqrt(branches) * sigma * float(normal_quantile(alpha ** (1 / (branches * draws))))
    if form == "main":
        return math.sqrt(2) * sigma * float(normal_quantile((alpha / 2) ** (1 / draws)))
    return sigma / math.sqrt(2) * fisher_sum(torch.tensor([draws, draws]), draws, alpha)


def lattice(sigma: float, draws: int, alpha: float, counted: int | None = None) -> Tensor:
    """Return the radii that Cohen's certificate can have after n draws, ascending, from the first positive one.

    Args:
        sigma: standard deviation of the noise.
        draws: n that Clopper-Pearson is told.
        alpha: failure probability.
        counted: draws that were really made, their counts scaled up to `draws`; None: all of them.
    """
    made = counted or draws
    hits = torch.arange(made // 2, made + 1, dtype=torch.float64) * (draws / made)
    radii = sigma * normal_quantile(clopper_pearson_lower(hits, draws, alpha))
    return radii[radii > 0]


@dataclass(frozen=True)
class Points:
    """Radii that a certificate can have.

    Attributes:
        radii: ascending, at least one.
        floor: down to here all are listed; below it any radius may be one.
    """

    radii: Tensor
    floor: float

    def allow(self, radii: Tensor, tolerance: Tensor) -> Tensor:
        """Say which radii can be those of the certificate, as they are written; (...) and (...) -> (...)."""
        return (radii < self.floor) | (distance(radii, self.radii) <= tolerance)


def cohen_points(sigma: float, draws: int, alpha: float, counted: int | None = None) -> Points:
    """Return all radii of Cohen's certificate; arguments as in `lattice`."""
    return Points(lattice(sigma, draws, alpha, counted), 0.0)


def form_points(form: Form, sigma: float, draws: int, alpha: float) -> Points:
    """Return the radii of a certificate of two branches with n draws each: all of the pooled form, the highest of the others."""
    if form == "pooled":
        return Points(math.sqrt(2) * lattice(sigma, 2 * draws, alpha), 0.0)
    if form == "main":
        return pair_points("sum", sigma, draws, alpha / 2)
    reach = min(_JOINT_REACH, draws // 2)
    sums = [_joint(0, missed, draws, alpha) for missed in range(reach + 1)]
    floor = sums[-1]
    for first in range(1, reach + 1):
        for second in range(first, reach + 1):
            total = _joint(first, second, draws, alpha)
            if total < floor:  # more misses make it less
                break
            sums.append(total)
    scaled = sigma / math.sqrt(2) * torch.tensor(sums, dtype=torch.float64)
    return Points(scaled.sort().values, sigma / math.sqrt(2) * floor)


def _joint(first: int, second: int, draws: int, alpha: float) -> float:
    return fisher_sum(torch.tensor([draws - first, draws - second]), draws, alpha)


def pair_points(combination: Combination, sigma: float, draws: int, alpha: float, counted: int | None = None) -> Points:
    """Return the highest radii that two branches' own radii R_i = sigma Phi^-1(p_i) make.

    Args:
        combination: (R_l + R_r) / sqrt(2), the main form, or sqrt(R_l^2 + R_r^2), which claims too much (it is the published CIFAR-10 code's).
        sigma: standard deviation of the noise.
        draws: n that Clopper-Pearson is told, for each branch.
        alpha: failure probability of each branch's bound.
        counted: draws of each branch that were really made, their counts scaled up to `draws`; None: all of them.
    """
    made = counted or draws
    reach = min(_REACH, made // 2)
    hits = (made - torch.arange(reach + 1, dtype=torch.float64)) * (draws / made)
    own = sigma * normal_quantile(clopper_pearson_lower(hits, draws, alpha))
    misses = torch.combinations(torch.arange(reach + 1), with_replacement=True)
    pairs = own[misses]
    radii = pairs.sum(1) / math.sqrt(2) if combination == "sum" else torch.linalg.vector_norm(pairs.clamp_min(0), dim=1)
    floor = float(radii[(misses[:, 0] == 0) & (misses[:, 1] == reach)])  # all pairs with more misses in a branch lie below
    return Points(radii[radii >= floor].sort().values, floor)


def distance(radii: Tensor, points: Tensor) -> Tensor:
    """Return how far each radius is from the nearest of the ascending points."""
    right = torch.searchsorted(points, radii).clamp(max=len(points) - 1)
    left = (right - 1).clamp_min(0)
    return torch.minimum((points[right] - radii).abs(), (radii - points[left]).abs())


def log_chance(radii: Tensor, digits: Tensor, told: list[Points], supposed: Points) -> float:
    """Return the logarithm of the chance that radii of what a table says it is look like those of something coarser, as they are written.

    Each value counts once, however many rows have it: with the share of what is written around it, a twentieth of the highest to either side, that
    the coarser one has too.

    Args:
        radii: (N,) radii, all of which `supposed` allows.
        digits: (N,) value of their last digits.
        told: what the table says it is: one of these.
        supposed: what it may be.
    """
    values, first = _distinct(radii)
    tolerance = (digits[first] + SLACK)[:, None]
    probes = values[:, None] + torch.linspace(-1, 1, 401, dtype=torch.float64) * 0.05 * float(supposed.radii[-1])
    has = torch.stack([points.allow(probes, tolerance.expand_as(probes)) for points in told]).any(0)
    both = has & supposed.allow(probes, tolerance.expand_as(probes))
    return float((both.sum(1).clamp_min(1) / has.sum(1).clamp_min(1)).clamp(max=1.0).log().sum())


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values and where each is first found."""
    distinct, group = torch.unique(values, return_inverse=True)
    first = torch.full_like(distinct, len(values), dtype=torch.int64).scatter_reduce_(0, group, torch.arange(len(values)), "amin")
    return distinct, first
