"""What is left where depth says nothing, with and without bad depth in training (claim 4)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.hodinet.reproduction import worlds
from projects.hodinet.scenes import BAD_DEPTH, Variant
from shared.seeding import generator
from shared.tables import Job, Rows, Table

TOLERANCE = 0.05
"""What S may fall under that of colour alone."""
BOTH, TAUGHT = "rgb + depth", f"rgb + depth, trained with {BAD_DEPTH:.0%} bad depth"
TRAINED: dict[str, tuple[dict[str, Any], Variant]] = {
    "rgb": ({"streams": ["rgb"]}, "default"),
    BOTH: ({}, "default"),
    TAUGHT: ({}, "bad_depth"),
}


def corrupted(depths: Tensor, kind: str, seed: int) -> Tensor:
    """Replace (N, 1, H, W) depth maps by uniform noise, by each other (`another's`), or by zeros (`none`)."""
    if kind == "noise":
        return torch.rand(depths.shape, generator=generator(seed, "noise"))
    return depths.roll(1, 0) if kind == "another's" else torch.zeros_like(depths)


def rows(kept: Path, name: str, length: int, epochs: int, scenes: int, seed: int) -> Rows:
    """Train a network and measure S and max F with the right depth, and with depth that is none."""
    options, variant = TRAINED[name]
    module = worlds.train(kept, options, seed, length, epochs, variant)
    right = worlds.judge(module, seed, scenes)
    row: dict[str, object] = {"trained": name, "seed": seed, "S": right["S"], "max F": right["max F"]}
    for kind in ("noise", "another's", "none"):
        found = worlds.judge(module, seed, scenes, partial(corrupted, kind=kind, seed=seed))
        row |= {f"{measure}, {kind}": found[measure] for measure in ("S", "max F")}
    return [row]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network and seed."""
    if quick:
        return [Job(TAUGHT, seeds[0], rows, (kept, TAUGHT, *worlds.QUICK))]
    return [Job(name, seed, rows, (kept, name, *worlds.FULL)) for seed in seeds for name in TRAINED]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether noise for depth costs no more than depth is worth."""
    found = {row["trained"]: row for row in summary}
    floor = found["rgb"]["S"]["mean"] - TOLERANCE
    claim = f"trained with bad depth, noise for depth leaves S no more than {TOLERANCE} under rgb alone"
    return {claim: found[TAUGHT]["S, noise"]["mean"] >= floor}


TABLE = Table("noise", "Depth that says nothing leaves what colour tells.", ("trained",), jobs, expectations)
