"""Five ways to add the scores of ComAD and of the patch memory, and what one incomplete tray among those of validation does to them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from projects.comad.fusion import Fusion, How
from projects.comad.metrics import alarms
from projects.comad.reproduction import worlds
from projects.comad.reproduction.worlds import Found, Size
from projects.comad.traysim import Kind
from shared.tables import Job, Rows, Table

PARTS = ("logical", "patches")
TRIMMED, GOOD, DAMAGED = "trimmed-z", "good", "one incomplete"
LOST = 0.02
"""What trimming may lose to an incomplete tray."""


def validations(found: Found) -> dict[str, dict[str, Tensor]]:
    """Return the scores of good validation trays by part, and the same with an incomplete tray in the place of the last."""
    good = {part: found["validation"][part] for part in PARTS}
    return {GOOD: good, DAMAGED: {part: torch.cat([values[:-1], found["outlier"][part]]) for part, values in good.items()}}


def fused(found: Found, validation: dict[str, Tensor], how: How) -> dict[str, float]:
    """Return logical mean and AUROC for scratches, and alarms at the 95th percentile of the validation trays' fused scores."""
    fusion = Fusion(how).fit(validation)
    kinds: tuple[Kind, ...] = ("good", *worlds.LOGICAL, "scratch")
    scores = {kind: fusion({part: found[kind][part] for part in PARTS}) for kind in kinds}
    means, values = worlds.aurocs(scores), torch.cat(list(scores.values()))
    rates = alarms(values, torch.arange(len(values)) >= len(scores["good"]), fusion(validation))
    found_rates = {"false alarms": rates["false_alarm_rate"], "found": rates["recall"]}
    return {"logical mean": means["logical mean"], "scratch": means["scratch"], **found_rates}


def rows(kept: Path, size: Size, seed: int) -> Rows:
    """Return a row for each way and either validation set."""
    found = worlds.scored(kept, size, seed)
    return [
        {"fusion": how, "validation": name, "seed": seed, **fused(found, validation, how)}
        for name, validation in validations(found).items()
        for how in get_args(How)
    ]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    return [Job("fusion", seed, rows, (kept, worlds.QUICK if quick else worlds.FULL)) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether trimmed-z finds both kinds of anomalies, and needs no clean validation set."""
    found = {(row["fusion"], row["validation"]): row for row in summary}

    def mean(how: str, validation: str, column: str) -> float:
        return found[how, validation][column]["mean"]

    least = {how: min(mean(how, GOOD, "logical mean"), mean(how, GOOD, "scratch")) for how in get_args(How)}
    held = {
        "trimmed-z has a logical mean of at least .90 and at least .97 for scratch": mean(TRIMMED, GOOD, "logical mean") >= 0.9
        and mean(TRIMMED, GOOD, "scratch") >= 0.97,
        "the smaller of both is larger with trimmed-z than with the sum": least[TRIMMED] > least["sum"],
    }
    lost = {how: mean(how, GOOD, "logical mean") - mean(how, DAMAGED, "logical mean") for how in (TRIMMED, "zscore")}
    held[f"an incomplete tray in validation costs trimmed-z at most {LOST} of the logical mean"] = lost[TRIMMED] <= LOST
    return held | {"and zscore more than trimmed-z": lost["zscore"] > lost[TRIMMED]}


TABLE = Table(
    "Fusion: five ways to add the scores of ComAD and the patch memory, with good validation trays and with one incomplete among them",
    "Scores have to be brought to one scale before they are added, and one outlier must not set it.",
    ("fusion", "validation"),
    jobs,
    expectations,
    seeds=5,
)
