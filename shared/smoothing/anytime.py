"""Confidence sequences: bounds of a probability that hold at all numbers of draws at once, so that one may stop whenever one likes.

The Beta(1/2, 1/2) mixture (Krichevsky-Trofimov betting) against p0, after S hits and F misses, is the martingale
ln M(p0) = ln B(S + 1/2, F + 1/2) - ln B(1/2, 1/2) - S ln p0 - F ln(1 - p0), and by Ville's inequality some n has M >= 1/alpha at the truth with
probability at most alpha.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from shared.smoothing.bounds import checked_counts


def log_martingale(hits: Tensor, draws: Tensor | int, p: Tensor | float) -> Tensor:
    """Return ln M(p) of the mixture martingale.

    Args:
        hits: (...) counts S in [0, n].
        draws: numbers of draws n >= 0.
        p: probability in [0, 1] that is tested, broadcastable.

    Returns:
        (...) float64; inf where p is impossible after these counts.
    """
    s = hits.to(torch.float64)
    n = torch.as_tensor(draws, dtype=torch.float64, device=s.device)
    probability = torch.as_tensor(p, dtype=torch.float64, device=s.device)
    mixture = torch.lgamma(s + 0.5) + torch.lgamma(n - s + 0.5) - torch.lgamma(n + 1) - math.log(math.pi)  # B(1/2, 1/2) is pi
    return mixture - torch.xlogy(s, probability) - torch.special.xlog1py(n - s, -probability)


def lower_sequence(hits: Tensor, draws: Tensor | int, alpha: float) -> Tensor:
    """Lower confidence sequence L_n: the largest p0 < S / n with ln M(p0) >= ln(1 / alpha), 0 if there is none.

    Args:
        hits: (...) counts S in [0, n].
        draws: numbers of draws n >= 1, at which one may look as often as one likes.
        alpha: probability in (0, 1) that L_n exceeds the truth at any n, ever.

    Returns:
        (...) float64 bounds in [0, 1); their running maximum over looks holds as well.

    Raises:
        ValueError: if alpha lies outside (0, 1) or a count outside [0, n].
    """
    s, n = checked_counts(hits, draws, alpha)
    return lower_root(s, n, math.log(1 / alpha))


def upper_sequence(hits: Tensor, draws: Tensor | int, alpha: float) -> Tensor:
    """Upper confidence sequence U_n: the smallest p0 > S / n with ln M(p0) >= ln(1 / alpha), 1 if there is none; see `lower_sequence`."""
    s, n = checked_counts(hits, draws, alpha)
    return 1 - lower_root(n - s, n, math.log(1 / alpha))


def lower_root(hits: Tensor, draws: Tensor, level: Tensor | float) -> Tensor:
    """Return the largest p0 <= S / n at which ln M(p0) is at least `level`, from below.

    In the logit of p0, ln M is convex: Newton's steps from the left never pass the root, and stop where rounding errors could.

    Args:
        hits: (...) float64 counts S.
        draws: (...) float64 numbers of draws n.
        level: (...) what ln M is compared with, at least its minimum at S / n.

    Returns:
        (...) float64 in [0, 1); 0 where there is no hit.
    """
    constant = torch.lgamma(hits + 0.5) + torch.lgamma(draws - hits + 0.5) - torch.lgamma(draws + 1) - math.log(math.pi)
    target = level + 1e-14 * torch.lgamma(draws + 2)  # lgamma's terms cancel: their relative error becomes an absolute one
    theta = (constant - target) / hits.clamp_min(1)  # ln(1 + exp(-theta)) >= -theta: ln M is at least the target here
    for _ in range(100):
        excess = constant - hits * logsigmoid(theta) - (draws - hits) * logsigmoid(-theta) - target
        slope = hits - draws * theta.sigmoid()
        step = torch.where((excess > 0) & (slope > 0), excess / slope, 0.0)
        theta = theta + step
        if bool((step <= 1e-13 * (1 + theta.abs())).all()):
            break
    return torch.where(hits > 0, theta.sigmoid(), 0.0)


def running_maximum(hits: Tensor, draws: Tensor, alpha: float) -> Tensor:
    """Return the running maximum of L_n along a path of looks, (..., looks) -> (..., looks): valid, and never falling."""
    return lower_sequence(hits, draws, alpha).cummax(dim=-1).values
