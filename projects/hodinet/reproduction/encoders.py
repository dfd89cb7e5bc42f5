"""Which encoder reads which modality: the paper's transformer for colour and CNN for depth beside the other pairs (claim 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.hodinet.reproduction import worlds
from shared.tables import Job, Rows, Table

TRANSFORMER, CNN = "tiny_transformer", "tiny_cnn"
OURS = "transformer, CNN"
PAIRS: dict[str, dict[str, Any]] = {
    OURS: {},
    "transformer, transformer": {"depth": TRANSFORMER},
    "CNN, CNN": {"rgb": CNN},
    "CNN, transformer": {"rgb": CNN, "depth": TRANSFORMER},
}
"""Encoders of colour and of depth."""


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each pair and seed."""
    if quick:
        return [Job("CNN, CNN", seeds[0], worlds.compare, (kept, "encoders", "CNN, CNN", PAIRS["CNN, CNN"], *worlds.QUICK))]
    each = PAIRS.items()
    return [Job(name, seed, worlds.compare, (kept, "encoders", name, options, *worlds.FULL)) for seed in seeds for name, options in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the paper's pair is the best one."""
    means = {row["encoders"]: row["S"]["mean"] for row in summary}
    return {f"{OURS} has the largest S of the pairs": means[OURS] == max(means.values())}


TABLE = Table("encoders", "A transformer for colour and a CNN for depth suit their modalities.", ("encoders",), jobs, expectations)
