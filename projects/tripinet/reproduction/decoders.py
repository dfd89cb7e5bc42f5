"""How stages are integrated: PI-SE beside others (claim 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.tripinet.reproduction import worlds
from shared.tables import Job, Rows, Table

DECODERS: dict[str, dict[str, Any]] = {
    "pise": {"streams": worlds.ALL.split(" + ")},
    **{name: {"decoder": name} for name in ("concat", "se_only", "fpn", "cascaded")},
}


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each decoder and seed."""
    if quick:
        return [Job("fpn", seeds[0], worlds.compare, (kept, "decoder", "fpn", DECODERS["fpn"], *worlds.QUICK))]
    each = DECODERS.items()
    return [Job(name, seed, worlds.compare, (kept, "decoder", name, options, *worlds.FULL)) for seed in seeds for name, options in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the expected order comes out."""
    means = {row["decoder"]: row["F1"]["mean"] for row in summary}
    return {
        "pise is at least as good as fpn in F1": means["pise"] >= means["fpn"],
        "pise is at least as good as concat, without its excitation, in F1": means["pise"] >= means["concat"],
        "no network finds the masks of untouched pictures: AUC .4 to .6": all(abs(row["AUC control"]["mean"] - 0.5) <= 0.1 for row in summary),
    }


TABLE = Table("decoder", "Progressive integration with squeeze and excitation decodes better.", ("decoder",), jobs, expectations)
