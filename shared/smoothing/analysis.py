"""What certification tables say: certified accuracy at radii, average certified radius, abstentions, the envelope over noise levels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from shared.smoothing.certificates import Smoothing, choose_class
from shared.smoothing.log import Row, dense
from shared.smoothing.tables import Table, read_sidecar, read_table


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
        ValueError: if the tables are of different images, or label them differently.
    """
    (first, *others) = (dict(zip(table.index.tolist(), table.label.tolist(), strict=True)) for table in tables)
    if any(other.keys() != first.keys() for other in others):
        raise ValueError(
            f"an envelope needs tables of the same images, got {', '.join(str(len(table)) for table in tables)} rows with different indices"
        )
    if any(other != first for other in others):
        raise ValueError("an envelope needs tables of the same images: some of these give an image different labels")
    return torch.stack([certified_accuracy(table, radii) for table in tables]).max(0).values


def high_probability(accuracy: Tensor, count: int, alpha: float, rho: float = 0.001) -> Tensor:
    """Accuracy that holds with probability 1 - rho over all draws, though every certificate fails with alpha.

    False certificates are at most binomial, whatever the images: of N, more than q are false with probability at most rho, q the (1 - rho) quantile
    of Bin(N, alpha). (The bound by Bernstein's inequality in the appendix of Cohen et al. 2019 lacks a factor 2 under its root; from some thousand
    images on it does not hold.)

    Args:
        accuracy: (R,) certified accuracies.
        count: images N.
        alpha: failure probability of a certificate.
        rho: failure probability of the claim about the data set.

    Returns:
        (R,) float64, at least 0.
    """
    return (accuracy - float(stats.binom.isf(rho, count, alpha)) / count).clamp_min(0)


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


@dataclass(frozen=True)
class Analysis:
    """What one or several tables say.

    Attributes:
        tables: the tables by name.
        summaries: their figures by name, at the same radii.
        envelope: highest certified accuracy over the tables at each radius; None for one table, or where they are of different images.
        bounds: (N, branches) lower bounds of the top class's probabilities, of the tables with a log of ours; see `probability_bounds`.
        notes: what to know when reading the figures.
    """

    tables: dict[str, Table]
    summaries: dict[str, Summary]
    envelope: list[float] | None
    bounds: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def radii(self) -> list[float]:
        """Radii that accuracies are given for."""
        return next(iter(self.summaries.values())).radii

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a table, and one for the envelope: table, images, shares in [0, 1] and radii as numbers, None where there is none."""
        rows = [
            {"table": name, "images": found.images, "abstention": found.abstention, "ACR": found.average_certified_radius}
            | dict(zip(map(radius_name, found.radii), found.certified_accuracy, strict=True))
            for name, found in self.summaries.items()
        ]
        if self.envelope is not None:
            best = {"table": "envelope", "images": rows[0]["images"], "abstention": None, "ACR": None}
            rows.append(best | dict(zip(map(radius_name, self.radii), self.envelope, strict=True)))
        return rows

    def claims(self) -> list[dict[str, Any]]:
        """Return rows as `rows` of the accuracies that hold with probability 0.999 over the data set; see `high_probability`."""
        return [
            {"table": name, "images": found.images} | dict(zip(map(radius_name, found.radii), found.high_probability, strict=True))
            for name, found in self.summaries.items()
        ]


def radius_name(radius: float) -> str:
    """Return the heading of a radius's column, such as `r=0.25`."""
    return f"r={radius:g}"


def analyze(files: Sequence[str | Path], radii: Sequence[float] | None = None, alpha: float | None = None) -> Analysis:
    """Read tables, anybody's, and compute their figures.

    Args:
        files: tables as `tables.read_table` reads them; of our own, the certify.jsonl beside says alpha and how draws ended.
        radii: radii of the figures; None: every quarter from 0 to the largest certified.
        alpha: failure probability of the certificates; None: as the logs say, 0.001 where there is none.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there is no file, one is no table of certificates, or a radius is negative.
    """
    if not files:
        raise ValueError("there is no table to analyze")
    paths = dict(zip(short_names(files), files, strict=True))
    tables = {name: read_table(path) for name, path in paths.items()}
    for name, table in tables.items():
        if not bool(table.radius.isfinite().all()):
            raise ValueError(f"{paths[name]} has rows without a radius: it is a table of predictions, or its radii are not numbers")
    logs = {name: log for name, path in paths.items() if (log := read_sidecar(path)) is not None}
    chosen = _quarters(tables.values()) if radii is None else sorted(set(radii))
    if not chosen or not all(math.isfinite(radius) and radius >= 0 for radius in chosen):
        raise ValueError(f"radii are at least 0 and finite, got {chosen}")
    if alpha is not None and not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    spent = {name: alpha if alpha is not None else (logs[name][0]["alpha"] if name in logs else 0.001) for name in tables}
    summaries = {name: summarise(table, chosen, spent[name]) for name, table in tables.items()}
    notes = [f"{name}: draws ended early, so the average radius is too low to compare" for name, (log, _) in logs.items() if log.get("anytime")]
    notes += [f"{name}: {note}" for name, table in tables.items() for note in table.notes]
    best = None
    if len(tables) > 1:
        try:
            best = envelope(list(tables.values()), chosen).tolist()
        except ValueError as error:
            notes.append(str(error))
    return Analysis(tables, summaries, best, {name: probability_bounds(*log) for name, log in logs.items()}, notes)


def _quarters(tables: Iterable[Table]) -> list[float]:
    highest = max(float((table.radius * table.is_correct).max()) for table in tables)
    return [step / 4 for step in range(int(4 * highest) + 1)]


def short_names(files: Sequence[str | Path]) -> list[str]:
    """Name files by as few of their last folders as tell them apart: `sigma0.25`, `sigma0.5` for two files certify.tsv in these folders.

    Raises:
        ValueError: if a file is given twice.
    """
    paths = [Path(file).resolve() for file in files]
    if len(set(paths)) < len(paths):
        raise ValueError("a table is given twice")
    own = [path.name.removesuffix(".tsv") for path in paths]
    if len(set(own)) == len(paths) and "certify" not in own:
        return own
    for count in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parent.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def probability_bounds(settings: Mapping[str, Any], rows: Sequence[Row]) -> Tensor:
    """Bound the probability of each image's top class from below in every branch by itself, at its share of alpha.

    Average radii favour easy images (Sun et al. 2025, arXiv 2410.06895); the distribution of these bounds shows them all.

    Args:
        settings: settings of a log.
        rows: its rows.

    Returns:
        (N, branches) float64 Clopper-Pearson bounds in [0, 1], abstentions included.
    """
    sigmas, classes = tuple(settings["sigmas"]), settings["classes"]
    smoothing = Smoothing(sigmas, "main", settings["alpha"], anytime=settings["anytime"])
    share = settings["alpha"] / len(sigmas)
    bounds = torch.zeros(len(rows), len(sigmas), dtype=torch.float64)
    for number, row in enumerate(rows):
        top = choose_class(dense(row.details["selection"], classes)[:, :-1])
        bounds[number] = smoothing.lower_bounds(dense(row.details["estimation"], classes)[:, top], row.details["draws"], share)
    return bounds


def _check_radii(table: Table) -> None:
    if bool(table.radius.isnan().any()):
        raise ValueError("the table has rows without a radius: it is a table of predictions, or its radii are not numbers")
