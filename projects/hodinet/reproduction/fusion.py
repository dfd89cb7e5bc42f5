"""How the modalities are fused: the paper's products of features beside sums (claim 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.hodinet.reproduction import worlds
from shared.tables import Job, Rows, Table

LONG = 40
"""Epochs of a longer training."""
FUSIONS: dict[str, tuple[dict[str, Any], int]] = {
    "high_order": ({}, worlds.EPOCHS),
    "high_order, order 3": ({"order": 3}, worlds.EPOCHS),
    "high_order, signed": ({"signed": True}, worlds.EPOCHS),
    **{name: ({"fusion": name}, worlds.EPOCHS) for name in ("add", "add_matched", "concat")},
    f"high_order, {LONG} epochs": ({}, LONG),
    f"add, {LONG} epochs": ({"fusion": "add"}, LONG),
}
"""Options and epochs."""


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each fusion and seed."""
    if quick:
        return [Job("add", seeds[0], worlds.compare, (kept, "fusion", "add", {"fusion": "add"}, *worlds.QUICK))]
    return [
        Job(name, seed, worlds.compare, (kept, "fusion", name, options, worlds.LENGTH, epochs, worlds.TESTED))
        for seed in seeds
        for name, (options, epochs) in FUSIONS.items()
    ]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the means of products beat those of sums."""
    rows = {row["fusion"]: row for row in summary}
    held = {}
    for other in ("add", "add_matched"):
        for measure, sign in (("S", 1), ("max F", 1), ("MAE", -1)):
            better = f"high_order has {'a smaller' if sign < 0 else 'a larger'} {measure} than {other}"
            held[better] = sign * (rows["high_order"][measure]["mean"] - rows[other][measure]["mean"]) > 0
    return held


TABLE = Table("fusion", "Products of both modalities' features fuse better than sums.", ("fusion",), jobs, expectations)
