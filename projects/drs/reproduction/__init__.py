"""What `reproduce` shows: four tables over seeds, with what was expected of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from projects.drs.reproduction import halves, matched, rules, stopping
from projects.drs.reproduction.models import Models, Variant
from shared.tables import Job, Rows, Table

Jobs = Callable[[Models, list[int], bool], list[Job]]


def _trained(variants: Sequence[Variant], rows: Callable[[Models, Variant, int], Rows], data: Mapping[str, Any] | None = None) -> Jobs:
    """Return the jobs of each seed and variant, on data that may differ from the run's in some options; a quick run has the first two variants."""

    def jobs(models: Models, seeds: list[int], quick: bool) -> list[Job]:
        own = replace(models, data=dict(models.data) | dict(data or {}))
        return [Job(variant.name, seed, rows, (own, variant)) for seed, variant in product(seeds, variants[:2] if quick else variants)]

    return jobs


def _rules(models: Models, seeds: list[int], quick: bool) -> list[Job]:
    return [Job("rules", seed, rules.rows, (quick,)) for seed in seeds]


TABLES = {
    "matched": Table(
        "matched ceilings",
        matched.CLAIM,
        ("model", "certificate"),
        _trained(matched.VARIANTS, matched.rows),
        matched.expectations,
        5,
        figures=lambda rows: {"matched": matched.plot(rows)},
    ),
    "halves": Table(
        "partitions", halves.CLAIM, ("split",), _trained([*map(halves.variant, halves.SPLITS)], halves.rows, halves.DATA), halves.expectations
    ),
    "rules": Table("rules", rules.CLAIM, ("rule", "setting"), _rules, rules.expectations, 5),
    "stopping": Table("early stopping", stopping.CLAIM, ("model",), _trained(stopping.VARIANTS, stopping.rows), stopping.expectations),
}
