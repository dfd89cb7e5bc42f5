"""What depth adds to colour (claim 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.hodinet.reproduction import worlds
from shared.tables import Job, Rows, Table

BOTH = "rgb + depth"
STREAMS: dict[str, dict[str, Any]] = {"rgb": {"streams": ["rgb"]}, "depth": {"streams": ["depth"]}, BOTH: {}}
GAINS = {"S": 0.08, "max F": 0.2}
"""What both modalities gain at least over the better one."""


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each modality and seed."""
    if quick:
        return [Job(BOTH, seeds[0], worlds.compare, (kept, "modality", BOTH, {}, *worlds.QUICK))]
    each = STREAMS.items()
    return [Job(name, seed, worlds.compare, (kept, "modality", name, options, *worlds.FULL)) for seed in seeds for name, options in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether both modalities gain what is expected."""
    rows = {row["modality"]: row for row in summary}
    better = {measure: max(rows[name][measure]["mean"] for name in ("rgb", "depth")) for measure in GAINS}
    gained = {measure: rows[BOTH][measure]["mean"] - better[measure] for measure in GAINS}
    return {f"both gain at least {least} in {measure} over the better one": gained[measure] >= least for measure, least in GAINS.items()}


TABLE = Table("modality", "Colour and depth together mark what neither of them tells.", ("modality",), jobs, expectations)
