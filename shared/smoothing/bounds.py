"""Bounds of a probability from a fixed number of draws, in float64, and radii that are rounded down, never up."""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import torch
from scipy import special
from torch import Tensor

RELATIVE_SLACK = 1e-9
"""Share by which radii are lowered: far above the error of float64 quantiles, far below what anybody reads."""


def clopper_pearson_lower(hits: Tensor, draws: Tensor | int, alpha: float) -> Tensor:
    """Lower confidence bound of a binomial probability, exact at every n (Clopper & Pearson 1934): Beta^-1(alpha; k, n - k + 1).

    Args:
        hits: (...) counts k in [0, n].
        draws: numbers of draws n >= 1, broadcastable to `hits`; fixed before the draws are seen.
        alpha: probability in (0, 1) that the bound lies above the truth.

    Returns:
        (...) float64 bounds in [0, 1); 0 where there is no hit.

    Raises:
        ValueError: if alpha lies outside (0, 1) or a count outside [0, n].
    """
    k, n = checked_counts(hits, draws, alpha)
    bound = special.betaincinv(k.clamp_min(1).cpu().numpy(), (n - k + 1).cpu().numpy(), alpha)
    return torch.where(k > 0, torch.as_tensor(bound, dtype=torch.float64, device=k.device), 0.0)


def clopper_pearson_upper(hits: Tensor, draws: Tensor | int, alpha: float) -> Tensor:
    """Upper confidence bound of a binomial probability: Beta^-1(1 - alpha; k + 1, n - k), 1 where all draws hit.

    Args, errors as in `clopper_pearson_lower`; the bound lies below the truth with probability at most alpha.
    """
    k, n = checked_counts(hits, draws, alpha)
    bound = special.betainccinv((k + 1).cpu().numpy(), (n - k).clamp_min(1).cpu().numpy(), alpha)
    return torch.where(k < n, torch.as_tensor(bound, dtype=torch.float64, device=k.device), 1.0)


def randomised_lower(hits: Tensor, draws: Tensor | int, alpha: float, coin: Tensor) -> Tensor:
    """Lower bound p with P_p(X > k) + U P_p(X = k) = alpha (Voracek 2024, arXiv 2406.17830): above Clopper-Pearson's, which is U = 1.

    Args:
        hits: (...) counts k in [0, n].
        draws: numbers of draws n >= 1.
        alpha: probability in (0, 1) that the bound lies above the truth, over the draws and the coin.
        coin: (...) U in (0, 1], drawn once for each count, independently of it, and logged with it.

    Returns:
        (...) float64 bounds in [0, 1].

    Raises:
        ValueError: as `clopper_pearson_lower`, or if a coin lies outside (0, 1].
    """
    k, n = checked_counts(hits, draws, alpha)
    u = coin.to(torch.float64)
    if not bool(((u > 0) & (u <= 1)).all()):
        raise ValueError("coins of the randomised bound must lie in (0, 1]")
    hit, miss, luck = (values.cpu().numpy() for values in (k, n - k, u.expand_as(k)))
    low, high = np.zeros_like(hit), np.ones_like(hit)
    for _ in range(60):  # the tail grows with p: bisection keeps `low` where it is at most alpha
        middle = (low + high) / 2
        from_here = np.where(hit > 0, special.betainc(np.maximum(hit, 1), miss + 1, middle), 1.0)  # P(X >= k)
        beyond = np.where(miss > 0, special.betainc(hit + 1, np.maximum(miss, 1), middle), 0.0)  # P(X > k)
        is_below = luck * from_here + (1 - luck) * beyond <= alpha
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return torch.as_tensor(low, dtype=torch.float64, device=k.device)


def binomial_tail(hits: Tensor, draws: Tensor | int, p: Tensor | float) -> Tensor:
    """Return P(X >= k) of X ~ Bin(n, p) in float64, I_p(k, n - k + 1); 1 at k <= 0 and 0 at k > n."""
    k = hits.to(torch.float64)
    n = torch.as_tensor(draws, dtype=torch.float64, device=k.device).expand_as(k)
    inside = (k >= 1) & (k <= n)
    a, b = k.clamp_min(1), (n - k + 1).clamp_min(1)
    probability = torch.as_tensor(p, dtype=torch.float64)
    tail = torch.as_tensor(special.betainc(a.cpu().numpy(), b.cpu().numpy(), probability.cpu().numpy()), dtype=torch.float64, device=k.device)
    return torch.where(inside, tail, (k < 1).to(torch.float64))


def hung_fithian_p_value(first: Tensor, second: Tensor) -> Tensor:
    """Two-sided exact binomial p-value of the two highest counts at 1/2 (Hung & Fithian 2019; PREDICT of Cohen et al. 2019).

    Args:
        first: (...) votes of the most frequent class.
        second: (...) votes of the second.

    Returns:
        (...) float64 in (0, 1]; the first class is the most probable one up to this failure probability.
    """
    total = first + second
    return (2 * binomial_tail(torch.maximum(first, second), total, 0.5)).clamp(max=1.0)


def normal_quantile(p: Tensor | float) -> Tensor:
    """Return Phi^-1(p) in float64 (float32 is off by 1e-4 near 1, enough to round a radius up); -inf at 0, inf at 1."""
    return torch.special.ndtri(torch.as_tensor(p, dtype=torch.float64))


def normal_cdf(z: Tensor | float) -> Tensor:
    """Return Phi(z) in float64."""
    return torch.special.ndtr(torch.as_tensor(z, dtype=torch.float64))


def round_down(radius: Tensor) -> Tensor:
    """Lower radii by a share of 1e-9 and one unit in the last place; what is not positive, or not a number, becomes 0.

    Args:
        radius: (...) radii.

    Returns:
        (...) float64 radii >= 0, each below its argument unless both are 0.
    """
    exact = radius.to(torch.float64)
    positive = exact > 0
    lowered = torch.nextafter(exact * (1 - RELATIVE_SLACK), torch.zeros_like(exact))
    return torch.where(positive, lowered, 0.0)


def floored(radius: float, digits: int = 3) -> str:
    """Write a radius with so many significant digits, cut and not rounded: 1.9057 becomes "1.9", never "1.91".

    Args:
        radius: finite and >= 0.
        digits: significant digits.

    Raises:
        ValueError: if the radius is negative or not finite.
    """
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(f"a radius is finite and not negative, got {radius}")
    if radius == 0:
        return "0.0"
    exact = Decimal(radius)
    cut = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_FLOOR)
    return format(float(cut), f".{digits}")


def checked_counts(hits: Tensor, draws: Tensor | int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return counts and numbers of draws as float64 of one shape.

    Raises:
        ValueError: if alpha lies outside (0, 1) or a count outside [0, n].
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    k = hits.to(torch.float64)
    n = torch.as_tensor(draws, dtype=torch.float64, device=k.device)
    k, n = (part.contiguous() for part in torch.broadcast_tensors(k, n))
    if not bool(((k >= 0) & (k <= n) & (n >= 1)).all()):
        raise ValueError("counts must lie between 0 and the number of draws, which is at least 1")
    return k, n
