"""How many draws an image gets, and when they are looked at: always after the same numbers of draws, whatever the batch size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.smoothing.anytime import upper_sequence
from shared.smoothing.bounds import normal_quantile
from shared.smoothing.certificates import Smoothing


@dataclass(frozen=True)
class Budget:
    """Draws of one image, and what they may be stopped for; without radii and tolerance their number is fixed.

    Args:
        selection: draws that choose the class, of each branch.
        draws: draws that are counted, of each branch: all of them, or at most so many.
        radii: stop as soon as it is settled which of these radii are certified. Between them a certificate stays below that of all draws, so average
            radii need a fixed number.
        tolerance: stop as soon as the radius is within this of the highest that it could still become.
        futility: probability that stopping overlooks a certificate; no part of alpha.

    Raises:
        ValueError: if a number is not positive.
    """

    selection: int = 100
    draws: int = 100_000
    radii: tuple[float, ...] = ()
    tolerance: float | None = None
    futility: float = 0.001

    def __post_init__(self) -> None:
        if self.selection < 1 or self.draws < 1:
            raise ValueError(f"an image needs draws for selection and estimation, got {self.selection} and {self.draws}")
        if any(radius <= 0 for radius in self.radii) or (self.tolerance is not None and self.tolerance <= 0):
            raise ValueError(f"radii and tolerance must be positive, got {self.radii} and {self.tolerance}")
        if not 0 < self.futility < 1:
            raise ValueError(f"futility must lie in (0, 1), got {self.futility}")

    @property
    def is_anytime(self) -> bool:
        """Whether draws may end early."""
        return bool(self.radii) or self.tolerance is not None

    def looks(self) -> list[int]:
        """Return the numbers of draws after which counts are looked at: every 256 up to 4096, then a tenth more each time, at last all."""
        if not self.is_anytime:
            return [self.draws]
        counts = list(range(256, 4097, 256))
        while counts[-1] < self.draws:
            counts.append(counts[-1] + counts[-1] // 10)
        return [count for count in counts if count < self.draws] + [self.draws]

    def is_settled(self, radius: float, highest: float) -> bool:
        """Say whether more draws cannot change what matters.

        Args:
            radius: certified so far, not positive where nothing is.
            highest: the most that more draws could certify.
        """
        if not self.is_anytime:
            return False
        if highest <= 0:
            return True
        if self.tolerance is not None and highest - max(radius, 0.0) <= self.tolerance:
            return True
        return bool(self.radii) and not any(radius < r <= highest for r in self.radii)


def highest_radius(smoothing: Smoothing, hits: Tensor, draws: int, futility: float) -> float:
    """Bound the true radius from above at all numbers of draws at once, with failure probability `futility`: the branches' U_n in place of bounds.

    Args:
        smoothing: the certificate.
        hits: (branches,) hits of the class.
        draws: draws of each branch.
        futility: failure probability, in (0, 1).
    """
    upper = upper_sequence(hits, draws, futility / len(hits))
    if smoothing.rule == "l1":
        return 2 * smoothing.sigmas[0] * (float(upper[0]) - 0.5)
    return smoothing.scale * float(torch.sum(normal_quantile(upper)))
