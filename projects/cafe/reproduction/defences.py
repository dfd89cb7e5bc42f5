"""What defences cost, and what they hold off from CAFE and from an attacker who knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.cafe.campaign import Campaign
from projects.cafe.defending import DEFENCES, Weighing, measure
from projects.cafe.metrics import defence_score
from projects.cafe.protection import Protection
from projects.cafe.recovery import Cafe
from projects.cafe.reproduction.setting import FEW, build
from projects.cafe.watching import Watch
from shared.tables import Job, Rows, Table

LINES = (*DEFENCES[:3], "noise:std=1e-2", *DEFENCES[3:])
ROUNDS = 300
"""Of training."""
DELTA = 1e-5


def rows(defence: str, is_quick: bool, seed: int) -> Rows:
    """Return the row of a defence; its points and score follow when all are there."""
    module, data = build(seed, **(FEW if is_quick else {"count": 200, "batch_size": 40}))
    watch = Watch(rounds=30 if is_quick else 240, batch=data.batch_size, seed=seed)
    campaign = Campaign(watch=watch, cafe=Cafe(steps=20 if is_quick else 150, seed=seed), seed=seed)
    rounds = 20 if is_quick else ROUNDS
    found = measure(module.federation, data, Protection.parse(defence, seed), Weighing(campaign, rounds, data.batch_size, 1e-3, DELTA, seed))
    row: dict[str, Any] = {"defence": defence, "seed": seed, "accuracy": found["accuracy"]}
    row |= {"CAFE": found["naive"]["error"], "knowing": found["adaptive"]["error"], "mean image": found["baseline"]}
    return [row | {"attack": max(found[who]["attack"] for who in ("naive", "adaptive")), "epsilon": found["epsilon"]}]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a defence and seed."""
    lines = ("none", "fake") if is_quick else LINES
    return [Job(defence.replace(":", "-").replace(",", "-"), seed, rows, (defence, is_quick)) for defence in lines for seed in seeds]


def scored(found: Rows) -> Rows:
    """Add the points beside no defence and the score of VFLAIR, seed by seed."""
    plain = {row["seed"]: row["accuracy"] for row in found if row["defence"] == "none"}
    for row in found:
        row["points"] = 100 * (row["accuracy"] - plain[row["seed"]])
        row["DCS"] = defence_score(row["attack"], row["accuracy"], plain[row["seed"]])
    columns = ("defence", "seed", "accuracy", "points", "CAFE", "knowing", "mean image", "attack", "DCS", "epsilon")
    return [{name: row[name] for name in columns} for row in found]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the expected row holds, and how far the defence carries."""
    mean = {row["defence"]: {name: row[name]["mean"] for name in ("points", "CAFE", "knowing", "mean image")} for row in means}
    fake, clip = mean["fake"], mean["fake:mode=clip"]
    return {
        "fake gradients bring CAFE below the mean image": fake["CAFE"] < fake["mean image"],
        "for at most 3 points of accuracy": fake["points"] >= -3,
        "the published port's clipping wrecks the accuracy (20 points or more)": clip["points"] <= -20,
        "absclip keeps the accuracy (3 points) and brings CAFE below the mean image": mean["fake:mode=absclip"]["points"] >= -3
        and mean["fake:mode=absclip"]["CAFE"] < fake["mean image"],
        "an attacker who matches ranks is held below the mean image by fake gradients, too": fake["knowing"] < fake["mean image"],
    }


TABLE = Table(
    "Defences on 200 digits, and 300 rounds of training",
    "fake gradients stop CAFE at little cost",
    ("defence",),
    jobs,
    expectations,
    tabulate=scored,
)
