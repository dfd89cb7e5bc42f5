"""Accounts of failure probability: who spends what, and what a sampler with bounded tails costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

RADIUS_BITS = 39
"""Random bits of a pair's radius in `noise.py`: the lowest of its 2^39 cells stands for the tail beyond."""


@dataclass(frozen=True)
class AlphaPlan:
    """How a total failure probability is split; the parts add up to the total, or the plan is refused.

    Args:
        total: failure probability of one certificate, in (0, 1).
        parts: failure probability of each bound, by name.
        independent: the bounds come from independent draws, so that 1 - prod(1 - part) may take the place of the sum (Sidak).

    Raises:
        ValueError: if the total lies outside (0, 1), a part is not positive, or the parts do not make the total.
    """

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)
    independent: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.total < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {self.total}")
        if not self.parts or min(self.parts.values()) <= 0:
            raise ValueError(f"every part of alpha must be positive, got {dict(self.parts)}")
        if not math.isclose(self.spent, self.total, rel_tol=1e-12):
            raise ValueError(f"the parts of alpha {dict(self.parts)} spend {self.spent}, not {self.total}")
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))

    @property
    def spent(self) -> float:
        """Failure probability of all parts together."""
        if self.independent:
            return -math.expm1(sum(math.log1p(-part) for part in self.parts.values()))
        return math.fsum(self.parts.values())

    @classmethod
    def whole(cls, total: float, name: str = "top class") -> AlphaPlan:
        """Give everything to one bound."""
        return cls(total, {name: total})

    @classmethod
    def equal(cls, total: float, names: list[str], independent: bool = False) -> AlphaPlan:
        """Give every bound the same share: alpha / k, or 1 - (1 - alpha)^(1/k) where their draws are independent (Sidak)."""
        share = -math.expm1(math.log1p(-total) / len(names)) if independent else total / len(names)
        return cls(total, dict.fromkeys(names, share), independent)

    @classmethod
    def with_runner_ups(cls, total: float, branches: int, classes: int) -> AlphaPlan:
        """Give half to the top class's lower bounds and half to the upper bounds of the other classes, evenly over branches."""
        parts = {f"top class, branch {branch}": total / 2 / branches for branch in range(branches)}
        others = {f"class {c}, branch {b}": total / 2 / branches / (classes - 1) for b in range(branches) for c in range(1, classes)}
        return cls(total, parts | others)


def tail_mass(elements: int) -> float:
    """Bound the probability that a draw of d normals meets the lowest cell of a pair's radius, where the sampler's tail ends: d / 2 · 2^-39.

    Outside this event the sampler is a Gaussian rounded to its cells. A vote's probability under the sampler and under the true Gaussian differ by at
    most this much, so it is taken off lower bounds of probabilities (adding it to alpha, once for n draws, would not cover n draws).

    Args:
        elements: normals of one draw, d.
    """
    return (elements + 1) // 2 * 2.0**-RADIUS_BITS


def corrected_lower(bound: Tensor, tail: float) -> Tensor:
    """Carry lower bounds of the sampler's probabilities over to the true Gaussian's."""
    return (bound - tail).clamp_min(0.0)


def corrected_upper(bound: Tensor, tail: float) -> Tensor:
    """Carry upper bounds of the sampler's probabilities over to the true Gaussian's."""
    return (bound + tail).clamp_max(1.0)
