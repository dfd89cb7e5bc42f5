"""Spread that is scored on and fitted to hidden coarse observations, never the truth.

shown, hidden = hide(observations, 1 / 3, rng)                     # a third of the coarse values is kept back
members = ...                                                      # (M, B, T, H, W), from `shown`
kappa = inflation(block_mean(members, r), observations.coarse, hidden, observations.sigma, rng)
members = inflate(members, kappa)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from projects.s3rp.sets import Observations

LARGEST = 1000.0
"""Largest inflation that is tried."""
_HALVINGS = 30

# ---- scores


def interval(ordered: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the ends of the central interval of an ensemble in rising order, (M, ...) -> (...), (...).

    They lie at the places (M + 1)(1 -+ level) / 2 of the members, between two of them in proportion, so that a further draw falls inside with
    probability `level` (exactly so at whole places). That takes 2 / (1 - level) - 1 members, 19 for 90 %; the interval of fewer is from the least to
    the largest.
    """
    members = len(ordered)
    place = min(max((members + 1) * (1 - level) / 2, 1.0), (members + 1) / 2) - 1
    lower = math.floor(place)
    upper = min(lower + 1, members - 1)
    share = place - lower
    low = torch.lerp(ordered[lower], ordered[upper], share)
    return low, torch.lerp(ordered[-1 - lower], ordered[-1 - upper], share)


def crps(members: Tensor, observed: Tensor, fair: bool = False) -> Tensor:
    """Continuous ranked probability score E|X - y| - E|X - X'| / 2 of each value, differentiable, in O(M log M).

    Args:
        members: (M, ...).
        observed: (...) the truth, or what was observed (the members then need its noise).
        fair: take E|X - X'| over pairs of different members, so that the number of members does not matter, instead of all M^2 pairs.

    Returns:
        (...), in the units of the fields; lower is better.

    Raises:
        ValueError: for the fair form of fewer than 2 members.
    """
    if fair and len(members) < 2:
        raise ValueError(f"the fair CRPS needs pairs of members, got {len(members)} member")
    return crps_ordered(members.sort(0).values, observed, fair)


def crps_ordered(ordered: Tensor, observed: Tensor, fair: bool) -> Tensor:
    """`crps` of members that are in rising order: sum_ij |x_i - x_j| = 2 sum_i (2 i - M - 1) x_(i)."""
    members = len(ordered)
    difference = ordered - observed  # still in order, and small, so that single precision will do
    weights = 2.0 * torch.arange(1, members + 1, dtype=ordered.dtype, device=ordered.device) - members - 1
    dispersion = torch.tensordot(weights, difference, 1) / (members * (members - 1 if fair else members))
    return torch.linalg.vector_norm(difference, 1, dim=0) / members - dispersion


# ---- hidden observations


def hide(observations: Observations, part: float, rng: torch.Generator, by: Literal["pixels", "frames"] = "pixels") -> tuple[Observations, Tensor]:
    """Keep back a part of what was observed.

    Args:
        observations: of any sequences.
        part: of each sequence's observed values, or of its observed frames but the first; rounded to a whole number.
        rng: generator of the CPU.
        by: single values, or whole frames.

    Returns:
        The observations without them, and where they are, (B, T, h, w) bool.

    Raises:
        ValueError: if the part is not between 0 and 1, or so small that nothing is hidden.
    """
    if not 0 < part < 1:
        raise ValueError(f"the part to hide is above 0 and below 1, got {part}")
    mask = observations.mask
    if by == "frames":
        candidates = mask.any((2, 3))
        candidates[:, 0] = False  # every sequence begins with what it shows
        hidden = _drawn(candidates, part, rng)[:, :, None, None] & mask
    else:
        hidden = _drawn(mask.flatten(1), part, rng).view_as(mask)
    if not bool(hidden.any()):
        raise ValueError(f"a part of {part:g} hides none of the observed {by}: take a larger part, or longer sequences")
    return replace(observations, coarse=observations.coarse * ~hidden, mask=mask & ~hidden), hidden


def _drawn(candidates: Tensor, part: float, rng: torch.Generator) -> Tensor:
    """Draw a part of the candidates of each row, (B, K) bool."""
    keys = torch.rand(candidates.shape, generator=rng).to(candidates.device).masked_fill(~candidates, 2.0)
    places = keys.argsort(1).argsort(1)
    return places < (part * candidates.sum(1, keepdim=True)).round()


def inflation(members: Tensor, observed: Tensor, hidden: Tensor, sigma: float, rng: torch.Generator, level: float = 0.9) -> float:
    """Return kappa, by which the members' distances from their mean are multiplied so that the central interval holds its part of hidden values.

    Args:
        members: (M, B, T, h, w) coarse values of an ensemble that has not seen the hidden ones.
        observed: (B, T, h, w) observations.
        hidden: (B, T, h, w) True where they were hidden.
        sigma: standard deviation of the observations' noise, which is added to the members: the interval is one of observations.
        rng: generator of the CPU, for that noise, which is the same for every kappa.
        level: part of the hidden values that the interval is to hold.

    Raises:
        ValueError: if shapes differ, nothing is hidden, there are too few members for the level, noise alone explains the hidden values, or no
            kappa up to `LARGEST` does.
    """
    values, targets = _at_hidden(members.detach(), observed, hidden)
    fewest = math.ceil(2 / (1 - level) - 1 - 1e-9)
    if len(values) < fewest:
        raise ValueError(f"an interval of {level:.0%} takes {fewest} members, got {len(values)}: draw more")
    mean = values.mean(0)
    distance, noise = values - mean, sigma * _noise(values, rng)

    def coverage(kappa: float) -> float:
        low, high = interval((mean + kappa * distance + noise).sort(0).values, level)
        return float(((low <= targets) & (targets <= high)).double().mean())

    if sigma > 0 and (held := coverage(0.0)) >= level:
        advice = "the hidden values say nothing about the members' spread; check sigma"
        raise ValueError(f"the noise of {sigma:g} alone covers {held:.1%} of the hidden observations: {advice}")
    if (held := coverage(LARGEST)) < level:
        advice = "the members hardly differ where observations were hidden"
        raise ValueError(f"even {LARGEST:g} times the spread covers only {held:.1%} of the hidden observations, not {level:.0%}: {advice}")
    low, high = -math.log(LARGEST), math.log(LARGEST)  # of the logarithm of kappa
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if coverage(math.exp(middle)) >= level else (middle, high)
    return math.exp(high)


def inflate(members: Tensor, kappa: float) -> Tensor:
    """Multiply the distances of members (M, ...) from their mean by kappa; the mean stays."""
    return torch.lerp(members.mean(0), members, kappa)


def _at_hidden(members: Tensor, observed: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return members (M, P) and observations (P,) at the hidden places."""
    if members.shape[1:] != observed.shape or hidden.shape != observed.shape:
        shapes = f"{tuple(members.shape)}, {tuple(observed.shape)} and {tuple(hidden.shape)}"
        raise ValueError(f"members (M, B, T, h, w), observed and hidden (B, T, h, w) belong together on the coarse grid, got {shapes}")
    if not bool(hidden.any()):
        raise ValueError("no observation is hidden: there is nothing to score the members on")
    return members[:, hidden], observed[hidden]


def _noise(values: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(values.shape, generator=rng).to(values)
