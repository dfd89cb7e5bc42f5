"""How stages are decoded, and by which loss they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.hodinet.reproduction import worlds
from shared.tables import Job, Rows, Table

OURS = "cascaded, hybrid"
SETTINGS: dict[str, dict[str, Any]] = {
    OURS: {},
    "cascaded with DenseASPP, hybrid": {"aspp": True},
    "fpn, hybrid": {"decoder": "fpn"},
    "cascaded, bce_iou": {"loss": "bce_iou"},
    "cascaded, structure": {"loss": "structure"},
}
"""Decoder and loss."""


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each setting and seed."""
    if quick:
        return [Job("fpn, hybrid", seeds[0], worlds.compare, (kept, "decoder, loss", "fpn, hybrid", {"decoder": "fpn"}, *worlds.QUICK))]
    each = SETTINGS.items()
    return [Job(name, seed, worlds.compare, (kept, "decoder, loss", name, options, *worlds.FULL)) for seed in seeds for name, options in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the paper's decoder and loss are the best ones."""
    means = {row["decoder, loss"]: row["S"]["mean"] for row in summary}
    return {"the cascaded decoder has a larger S than fpn": means[OURS] > means["fpn, hybrid"]}


TABLE = Table("decoder", "The cascaded pyramid reconstructs better than an FPN.", ("decoder, loss",), jobs, expectations)
