"""Beyond the last observation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.s3rp.classical import METHODS, fine_solver, persistence
from projects.s3rp.figures import draw_by_frame
from projects.s3rp.reproduction.worlds import PLUMES, Setting, estimator, measured, tested, trained
from projects.s3rp.sets import Observations
from projects.s3rp.worlds import Plumes
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OBSERVED, AHEAD = 6, 4
SETTING = Setting(replace(PLUMES, frames=OBSERVED + AHEAD), options={"forecast": AHEAD})
STAYS, BICUBIC, PROJECTED = "our last field stays", "bicubic, then the fine solver", "bicubic+projection, then the fine solver"
OURS, THEN_SOLVER, HYBRID = "S3RP-D", "S3RP-D, then the fine solver", "S3RP-D, hybrid"


def without_last(plumes: Plumes, ahead: int) -> Plumes:
    """Hide the last frames."""
    seen = plumes.observations
    mask = seen.mask.clone()
    mask[:, -ahead:] = False
    return replace(plumes, observations=replace(seen, coarse=seen.coarse * mask, mask=mask))


def interpolate(setting: Setting, seed: int) -> Rows:
    """Judge what needs no training."""
    plumes = without_last(tested(setting, seed), AHEAD if setting.world.frames > AHEAD else 1)
    methods = {"bicubic, the last one stays": "persistence", "coarse solver": "coarse solver"}
    solved = {BICUBIC: "fine solver from bicubic", PROJECTED: "fine solver from bicubic+projection"}
    return [_row(line, seed, METHODS[name](plumes.observations), plumes) for line, name in {**methods, **solved}.items()]


def learn(kept: Path, setting: Setting, line: str, seed: int) -> Rows:
    """Train and judge a network; the plain one as it is, standing still, and handed over to the solver."""
    plumes = without_last(tested(setting, seed), AHEAD if setting.world.frames > AHEAD else 1)
    module = trained(kept, setting, seed, options={"hybrid": True} if line == HYBRID else None)
    fields = estimator(module)(plumes.observations)
    if line == HYBRID:
        return [_row(line, seed, fields, plumes)]

    def own(observations: Observations) -> Tensor:
        return fields

    made = {OURS: fields, STAYS: persistence(plumes.observations, own), THEN_SOLVER: fine_solver(plumes.observations, own)}
    return [_row(name, seed, one, plumes) for name, one in made.items()]


def _row(line: str, seed: int, fields: Tensor, plumes: Plumes) -> dict[str, Any]:
    errors = measured(fields, plumes)["relative_l2_by_frame"]
    ahead = torch.arange(len(errors)) >= len(errors) - int((~plumes.observations.mask[0].flatten(1).any(1)).sum())
    numbers = {"error ahead": float(errors[ahead].mean())}
    steps = {f"+{number + 1}": float(error) for number, error in enumerate(errors[ahead])}
    return {"line": line, "seed": seed} | numbers | steps | {f"_{number:02d}": float(error) for number, error in enumerate(errors)}


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job a network and seed."""
    setting = replace(SETTING.quick(), options={"forecast": 1}) if quick else SETTING
    lines = (OURS,) if quick else (OURS, HYBRID)
    return [Job("solvers", seed, interpolate, (setting,)) for seed in seeds] + [
        Job(line, seed, learn, (kept, setting, line)) for line in lines for seed in seeds
    ]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether what was expected holds."""
    error = {line["line"]: line["error ahead"]["mean"] for line in means}
    return {
        "at least 2 times better than our last field that stays": error[STAYS] >= 2 * error[OURS],
        "at least 1.3 times better than the fine solver from bicubic": error[BICUBIC] >= 1.3 * error[OURS],
        "at least 1.3 times better than the fine solver from bicubic with projection": error[PROJECTED] >= 1.3 * error[OURS],
        "the solver goes on from our field better than the network does": error[THEN_SOLVER] <= error[OURS],
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw errors by frame."""
    frames = [name for name in means[0] if name.startswith("_")]
    return {"forecast": draw_by_frame({row["line"]: [row[name]["mean"] for name in frames] for row in means}, observed=OBSERVED)}


TABLE = Table(
    title="Forecasts four frames ahead",
    claim="The network forecasts plumes without a solver.",
    by=("line",),
    jobs=jobs,
    expectations=expectations,
    figures=figures,
)
