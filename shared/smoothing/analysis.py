"""What certification tables say: certified accuracy at radii, average certified radius, abstentions, the envelope over noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.smoothing.tables import Table


def certified_accuracy(table: Table, radii: Sequence[float]) -> Tensor:
    """Share of all images whose class is right and certified at least to r; at r = 0 the radius must be positive.

    Args:
        table: one row an image; abstentions stay in the denominator.
        radii: R radii, as doubles: 0.1 in float32 is more than 0.1.

    Returns:
        (R,) float64 shares in [0, 1].

    Raises:
        ValueError: if the table has no radii.
    """
    _check_radii(table)
    certified = table.radius[:, None] >= torch.tensor(radii, dtype=torch.float64)  # (N, R)
    return (certified & (table.is_correct & (table.radius > 0))[:, None]).double().mean(0)


def average_certified_radius(table: Table) -> float:
    """Mean over all images of the radius where the class is right and 0 elsewhere (ACR); of early-stopped runs it is too low to compare."""
    _check_radii(table)
    return float((table.radius * table.is_correct).mean())


def abstention(table: Table) -> float:
    """Share of images without a certificate."""
    return float((table.predicted == -1).double().mean())


def envelope(tables: Sequence[Table], radii: Sequence[float]) -> Tensor:
    """Highest certified accuracy over tables of one data set at each radius, as papers print it.

    Args:
        tables: one a noise level.
        radii: R radii, as doubles: 0.1 in float32 is more than 0.1.

    Returns:
        (R,) float64.

    Raises:
        ValueError: if the tables are of different images.
    """
    first = tables[0].index.sort().values
    if any(not torch.equal(first, table.index.sort().values) for table in tables[1:]):
        raise ValueError(
            f"an envelope needs tables of the same images, got {', '.join(str(len(table)) for table in tables)} rows with different indices"
        )
    return torch.stack([certified_accuracy(table, radii) for table in tables]).max(0).values


def high_probability(accuracy: Tensor, count: int, alpha: float, rho: float = 0.001) -> Tensor:
    """Accuracy that holds with probability 1 - rho over all draws, though every certificate fails with alpha (Cohen et al. 2019, appendix).

    mean - alpha - sqrt(alpha (1 - alpha) ln(1 / rho) / N) - ln(1 / rho) / (3 N)

    Args:
        accuracy: (R,) certified accuracies.
        count: images N.
        alpha: failure probability of a certificate.
        rho: failure probability of the claim about the data set.

    Returns:
        (R,) float64, at least 0.
    """
    log = math.log(1 / rho)
    return (accuracy - alpha - math.sqrt(alpha * (1 - alpha) * log / count) - log / (3 * count)).clamp_min(0)


@dataclass(frozen=True)
class Summary:
    """Figures of a table.

    Attributes:
        images: rows.
        radii: radii that the accuracies are given for.
        certified_accuracy: share certified at each radius.
        high_probability: what of it holds with probability 0.999 over the data set.
        average_certified_radius: ACR.
        abstention: share of abstentions.
    """

    images: int
    radii: list[float]
    certified_accuracy: list[float]
    high_probability: list[float]
    average_certified_radius: float
    abstention: float


def summarise(table: Table, radii: Sequence[float], alpha: float) -> Summary:
    """Compute all figures of a table whose certificates fail with probability alpha each."""
    accuracy = certified_accuracy(table, radii)
    claims = high_probability(accuracy, len(table), alpha)
    return Summary(len(table), list(radii), accuracy.tolist(), claims.tolist(), average_certified_radius(table), abstention(table))


def _check_radii(table: Table) -> None:
    if bool(table.radius.isnan().any()):
        raise ValueError("the table has rows without a radius: it is a table of predictions, or its radii are not numbers")
