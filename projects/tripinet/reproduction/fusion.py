"""How clues are fused: gCMDA beside others (claim 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.tripinet.reproduction import worlds
from shared.tables import Job, Rows, Table

FUSIONS: dict[str, dict[str, Any]] = {
    "gcmda": {"streams": worlds.ALL.split(" + ")},
    "gcmda, symmetric": {"symmetric": True},
    **{name: {"fusion": name} for name in ("concat", "add", "gated", "cbam")},
}


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each fusion and seed."""
    if quick:
        return [Job("concat", seeds[0], worlds.compare, (kept, "fusion", "concat", FUSIONS["concat"], *worlds.QUICK))]
    each = FUSIONS.items()
    return [Job(name, seed, worlds.compare, (kept, "fusion", name, options, *worlds.FULL)) for seed in seeds for name, options in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the expected order comes out."""
    found = {row["fusion"]: row for row in summary}
    means = {name: row["F1"]["mean"] for name, row in found.items()}
    return {
        "gcmda is at least as good as concat in F1": means["gcmda"] >= means["concat"],
        "concat is at least as good as add in F1": means["concat"] >= means["add"],
        "no network finds the masks of untouched pictures: AUC .4 to .6": all(abs(row["AUC control"]["mean"] - 0.5) <= 0.1 for row in summary),
    }


TABLE = Table("fusion", "Guided attention across modalities fuses clues better.", ("fusion",), jobs, expectations)
