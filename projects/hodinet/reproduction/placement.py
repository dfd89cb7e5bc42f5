"""Where features are fused in space and where over channels (claim 3)."""

from __future__ import annotations

from pathlib import Path

from projects.hodinet.fusion import PLACEMENT
from projects.hodinet.reproduction import worlds
from shared.tables import Job, Rows, Table

PLACEMENTS = (PLACEMENT, "CCSS", "SSSS", "CCCC")
"""A letter a stage, the finest first."""


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each placement and seed."""
    if quick:
        return [Job("CCCC", seeds[0], worlds.compare, (kept, "placement", "CCCC", {"placement": "CCCC"}, *worlds.QUICK))]

    def job(name: str, seed: int) -> Job:
        return Job(name, seed, worlds.compare, (kept, "placement", name, {} if name == PLACEMENT else {"placement": name}, *worlds.FULL))

    return [job(name, seed) for seed in seeds for name in PLACEMENTS]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the paper's placement is the best one."""
    means = {row["placement"]: row["S"]["mean"] for row in summary}
    return {f"{PLACEMENT} has the largest S of the placements": means[PLACEMENT] == max(means.values())}


TABLE = Table("placement", "Fusion in space suits fine stages, and fusion over channels coarse ones.", ("placement",), jobs, expectations)
