"""Searches whose answer is known (claim 4)."""

from __future__ import annotations

from pathlib import Path

from projects.forgery_nas.importance import Level
from projects.forgery_nas.options import Relaxation
from projects.forgery_nas.planted import planted, theta_ranking
from shared.tables import Job, Rows, Table

SETTINGS: list[tuple[Level, Relaxation]] = [
    ("alpha", "gumbel"),
    ("alpha", "mixture"),
    ("eoi", "gumbel"),
    ("general", "gumbel"),
    ("perturb", "mixture"),
]
CONVOLUTION, PATTERN = "convolution among noise", "faint pattern on slopes"
MEASURED = ("right edges (%)", "accuracy")
OPERATIONS = ("sep_cdc_3x3_0.0", "sep_cdc_3x3_0.7", "sep_cdc_3x3_0.9", "max_pool_3x3")


def _row(problem: str, setting: str, seed: int, found: dict[str, float]) -> Rows:
    values = {name: found.get(name) for name in (*MEASURED, *OPERATIONS)}
    return [{"problem": problem, "setting": setting, "seed": seed, **values}]


def convolution_rows(level: Level, relaxation: Relaxation, seed: int) -> Rows:
    """Search where one operation alone carries the signal."""
    found = planted(level, relaxation, seed)
    measured = (100 * found["right"] / found["signal"], found["accuracy"])
    return _row(CONVOLUTION, f"{level}, {relaxation}", seed, dict(zip(MEASURED, measured, strict=True)))


def pattern_rows(seed: int) -> Rows:
    """Search where differences should see more than plain convolutions, and pooling least; the mean softmax of alpha."""
    return _row(PATTERN, "alpha, mixture", seed, theta_ranking(seed))


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each problem, level and seed."""
    settings = SETTINGS[:1] if quick else SETTINGS
    planted_jobs = [Job(f"{level} {relaxation}", seed, convolution_rows, (level, relaxation)) for seed in seeds for level, relaxation in settings]
    return planted_jobs + [Job("pattern", seed, pattern_rows) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether searches find what was planted, and rank thetas as expected."""
    held = {f"{row['setting']}: all edges with a signal are right": row[MEASURED[0]]["mean"] == 100 for row in summary if row[MEASURED[0]]}
    [ranked] = [row for row in summary if row["problem"] == PATTERN]
    plain, some, most, pooling = (ranked[name]["mean"] for name in OPERATIONS)
    return held | {
        "the faint pattern: large thetas are preferred to theta 0": min(some, most) > plain,
        "the faint pattern: pooling comes last": pooling < min(plain, some, most),
    }


TABLE = Table("planted", "The search finds what is known to be best.", ("problem", "setting"), jobs, expectations, seeds=5)
