"""Certificates that measure the runner-up instead of giving it all that the top class leaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shared.smoothing.alpha import AlphaPlan, corrected_lower, corrected_upper
from shared.smoothing.bounds import clopper_pearson_lower, clopper_pearson_upper, normal_cdf, normal_quantile

_ANGLES = 1 << 14


def runner_up_bounds(counts: Tensor, draws: int, top: int, alpha: float, tail: float = 0.0) -> tuple[Tensor, Tensor]:
    """Bound the top class from below and every other class from above, all together at failure probability alpha.

    Args:
        counts: (branches, K) votes.
        draws: draws of each branch.
        top: the class that other draws chose.
        alpha: failure probability of all bounds together, by Bonferroni; see `AlphaPlan.with_runner_ups`.
        tail: mass that the sampler's tails lack.

    Returns:
        (branches,) lower and (branches, K - 1) upper bounds, no upper bound above one minus the lower bound.
    """
    branches, classes = counts.shape
    plan = AlphaPlan.with_runner_ups(alpha, branches, classes)
    lower = corrected_lower(clopper_pearson_lower(counts[:, top], draws, plan.parts["top class, branch 0"]), tail)
    others = torch.cat([counts[:, :top], counts[:, top + 1 :]], dim=1)
    upper = corrected_upper(clopper_pearson_upper(others, draws, plan.parts["class 1, branch 0"]), tail)
    return lower, torch.minimum(upper, 1 - lower[:, None])


def gaussian_radius(lower: Tensor, upper: Tensor, sigma: float) -> float:
    """Radius sigma / 2 (Phi^-1(p_A) - Phi^-1(p_B)), p_B the highest upper bound (Cohen et al. 2019, Theorem 1); at most 0 where nothing is certified.

    Args:
        lower: (1,) lower bound of the top class.
        upper: (1, K - 1) upper bounds of the others.
        sigma: standard deviation of the noise.
    """
    return sigma / 2 * float(normal_quantile(lower[0]) - normal_quantile(upper[0].max()))


def mean_fusion_radius(lower: Tensor, upper: Tensor, sigma: float) -> float:
    """Radius of two branches fused by the mean: the least |d| with Phi(a_l - d_l) + Phi(a_r - d_r) <= Phi(b_l + d_l) + Phi(b_r + d_r) for a class B.

    There is no closed form. The quarter circle of directions is cut into cells; in a cell the inequality is tested at the corner that is worst in
    both coordinates, so that the radius is never above the true one (and a share of 1e-4 below it).

    Args:
        lower: (2,) lower bounds of the top class A, a_i = Phi^-1(p_A^i).
        upper: (2, K - 1) upper bounds of the others, b_i = Phi^-1(p_B^i).
        sigma: standard deviation of the noise of both branches.

    Returns:
        The radius in units of `sigma`; 0 where nothing is certified.
    """
    a = normal_quantile(lower)
    return sigma * min((_pair_radius(a, normal_quantile(pair)) for pair in _worst_pairs(upper)), default=0.0)


def probit_fusion_radius(lower: Tensor, upper: Tensor, sigma: float) -> float:
    """Radius sigma / (2 sqrt k) · min_B sum_i (a_i - b_i) of k branches fused by argmax_c sum_i Phi^-1(p_c^i); not positive: nothing is certified."""
    gaps = (normal_quantile(lower)[:, None] - normal_quantile(upper)).sum(0)
    return sigma / (2 * math.sqrt(len(lower))) * float(gaps.min())


def _worst_pairs(upper: Tensor) -> list[Tensor]:
    """Return the pairs of upper bounds that no other class's pair exceeds in both branches: the others cannot be reached first."""
    pairs = torch.unique(upper.T, dim=0)
    dominated = ((pairs[None] >= pairs[:, None]).all(2) & (pairs[None] > pairs[:, None]).any(2)).any(1)
    return list(pairs[~dominated])


def _pair_radius(a: Tensor, b: Tensor) -> float:
    edges = torch.linspace(0, math.pi / 2, _ANGLES + 1, dtype=torch.float64)
    left, right = edges[:-1].cos(), edges[1:].sin()

    def holds(radius: Tensor) -> Tensor:
        top = normal_cdf(a[0] - radius * left) + normal_cdf(a[1] - radius * right)
        return top > normal_cdf(b[0] + radius * left) + normal_cdf(b[1] + radius * right)

    low, high = torch.zeros(_ANGLES, dtype=torch.float64), torch.full((_ANGLES,), 40.0, dtype=torch.float64)
    if not bool(holds(low).all()):
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return float(low.min())
