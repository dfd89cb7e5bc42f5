"""Joint bounds of two independent branches: the least sum of their normal quantiles that a joint confidence set allows, without splitting alpha.

Along the lower boundary of either set one branch's quantile rises with a parameter t and the other's falls. A minimum over a grid would lie above the
true one; on a cell [t_j, t_j+1] the sum is at least rising(t_j) + falling(t_j+1), and the cells with the least such bounds are halved until these are
within the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from shared.smoothing.alpha import corrected_lower
from shared.smoothing.anytime import log_martingale, lower_root
from shared.smoothing.bounds import normal_quantile

Curve = Callable[[Tensor], Tensor]
TOLERANCE = 1e-6
_CELLS = 64
_MAX_CELLS = 4096


def fisher_sum(hits: Tensor, draws: int, alpha: float, tail: float = 0.0) -> float:
    """Lower bound of Phi^-1(p_l) + Phi^-1(p_r) by Fisher's combination of the branches' p-values.

    {P_l(p_l) P_r(p_r) > c} with P_i(p) = I_p(k_i, n - k_i + 1) and c = exp(-q / 2), q the (1 - alpha) quantile of chi^2 with 4 degrees of freedom,
    holds the truth with probability at least 1 - alpha if the branches' draws are independent.

    Args:
        hits: (2,) counts of the top class.
        draws: n of each branch, fixed beforehand.
        alpha: failure probability of the sum, in (0, 1).
        tail: mass that the sampler's tails lack; see `alpha.tail_mass`.

    Returns:
        The bound, from below, within 1e-6; -inf where a branch has no hit.
    """
    left, right = (int(count) for count in hits)
    if min(left, right) == 0:
        return -math.inf
    log_c = -stats.chi2.isf(alpha, 4) / 2

    def quantile(count: int, log_p_value: Tensor) -> Tensor:
        p = special.betaincinv(count, draws - count + 1, np.exp(log_p_value.numpy()))
        return normal_quantile(corrected_lower(torch.from_numpy(np.asarray(p)), tail))

    return least_sum(lambda t: quantile(left, log_c * (1 - t)), lambda t: quantile(right, log_c * t))


def martingale_sum(hits: Tensor, draws: int, alpha: float, tail: float = 0.0) -> float:
    """Lower bound of Phi^-1(p_l) + Phi^-1(p_r) at all numbers of draws at once: the product of the branches' martingales is one.

    Args, returns as `fisher_sum`; `draws` may depend on what was seen before.
    """
    k = hits.to(torch.float64).cpu()
    n = torch.full_like(k, draws)
    if bool((k == 0).any()):
        return -math.inf
    least = log_martingale(k, n, k / n)
    room = math.log(1 / alpha) - float(least.sum())

    def quantile(side: int, share: Tensor) -> Tensor:
        p = lower_root(k[side], n[side], least[side] + room * share)
        return normal_quantile(corrected_lower(p, tail))

    return least_sum(lambda t: quantile(0, 1 - t), lambda t: quantile(1, t))


def martingale_glance(hits: Tensor, draws: int, alpha: float) -> float:
    """Return one point of the curve whose minimum `martingale_sum` bounds, the one at which the branches share the room evenly: never below it."""
    k = hits.to(torch.float64)
    n = torch.full_like(k, draws)
    if bool((k == 0).any()):
        return -math.inf
    least = log_martingale(k, n, k / n)
    return float(normal_quantile(lower_root(k, n, least + (math.log(1 / alpha) - least.sum()) / 2)).sum())


def least_sum(rising: Curve, falling: Curve) -> float:
    """Bound the minimum over t in [0, 1] of a rising and a falling function from below.

    Args:
        rising: (N,) -> (N,), never decreasing; finite below t = 1.
        falling: (N,) -> (N,), never increasing; finite above t = 0.

    Returns:
        A number at most the minimum, and at least the minimum - 1e-6 unless that takes more than 4096 cells.
    """
    ends = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64)
    start, stop = ends[:-1], ends[1:]
    low, high, settled = rising(start), falling(stop), math.inf  # the sum on a cell is at least low + high
    while True:
        middle = (start + stop) / 2
        up, down = rising(middle), falling(middle)
        floor, reached = low + high, float((up + down).min())  # the minimum is at most this
        open_ = floor < reached - TOLERANCE
        if not bool(open_.any()) or int(open_.sum()) > _MAX_CELLS:
            return min(settled, float(floor.min()))
        settled = min(settled, _least(floor[~open_]))
        start, stop = torch.cat([start[open_], middle[open_]]), torch.cat([middle[open_], stop[open_]])
        low, high = torch.cat([low[open_], up[open_]]), torch.cat([down[open_], high[open_]])


def _least(values: Tensor) -> float:
    return float(values.min()) if len(values) else math.inf
