"""Other ways from coarse frames to fine fields beside ours, and the exact posterior where it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from projects.s3rp.assimilation import smoother, variational
from projects.s3rp.classical import METHODS
from projects.s3rp.figures import draw_by_frame
from projects.s3rp.filtering import cycled_interpolation, ensemble_filter
from projects.s3rp.kriging import krige
from projects.s3rp.reproduction.worlds import PLUMES, RANDOM, Kind, Setting, estimator, measured, tested, trained
from projects.s3rp.sets import Observations
from projects.s3rp.worlds import World
from shared.seeding import generator
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BICUBIC, OURS, KALMAN, VARIATIONAL = "bicubic", "S3RP-D", "Kalman smoother", "4D-Var"
SUPERVISED, PISR, KRIGING = "supervised by high resolution", "PISR's network (SRCNN of single frames)", "kriging"

PROJECTED = f"{PISR}, with projection"


@dataclass(frozen=True)
class Learnt:
    """A network of the table.

    Attributes:
        needs: what it is told besides coarse frames.
        kind: how it is trained.
        options: of the module.
    """

    needs: str
    kind: Kind = "own"
    options: dict[str, Any] = field(default_factory=dict)


LEARNT = {
    PISR: Learnt("physics in the loss", options={"net": "srcnn", "projection": 0.0, "lr": 1e-3}),
    PROJECTED: Learnt("physics in the loss", options={"net": "srcnn", "projection": 1.0, "lr": 1e-3}),
    OURS: Learnt("winds, physics in the loss"),
    f"{OURS}, bidirectional": Learnt("winds, physics in the loss", options={"bidirectional": True}),
    SUPERVISED: Learnt("winds, the truth in the loss", "supervised"),
    f"{OURS}, hybrid": Learnt("winds, the solver in the network", options={"hybrid": True}),
}


def _filtered(observations: Observations) -> Tensor:
    return ensemble_filter(observations, generator(0, "filter")).mean


CLASSICAL: dict[str, tuple[str, Callable[[Observations], Tensor]]] = {
    BICUBIC: ("", METHODS[BICUBIC]),
    "spline": ("", METHODS["spline"]),
    "bicubic+projection": ("", METHODS["bicubic+projection"]),
    KRIGING: ("", lambda observations: krige(observations, deviation=False).mean),
    "optimal interpolation, cycled": ("winds, the solver", lambda observations: cycled_interpolation(observations).mean),
    "ensemble Kalman filter": ("winds, the solver", _filtered),
    VARIATIONAL: ("winds, the solver", lambda observations: variational(observations).mean),
    KALMAN: ("winds, the solver", lambda observations: smoother(observations).mean),
}
"""Methods that do not learn, and what they are told."""


def classical(setting: Setting, line: str, seed: int) -> Rows:
    """Judge a method that does not learn."""
    plumes = tested(setting, seed)
    needs, method = CLASSICAL[line]
    return [_row(line, needs, seed, method(plumes.observations), plumes)]


def learn(kept: Path, setting: Setting, line: str, seed: int) -> Rows:
    """Train and judge a network."""
    plumes, given = tested(setting, seed), LEARNT[line]
    module = trained(kept, setting, seed, given.kind, given.options)
    return [_row(line, given.needs, seed, estimator(module)(plumes.observations), plumes)]


def _row(line: str, needs: str, seed: int, fields: Tensor, plumes: Any) -> dict[str, Any]:
    found = measured(fields, plumes, {BICUBIC: METHODS[BICUBIC](plumes.observations)})
    errors = found["relative_l2_by_frame"].tolist()
    values = {"error": found["relative_l2"], "gain": found["gain_over_bicubic"], "PSNR": found["psnr"], "SSIM": found["ssim"]}
    numbers = {name: float(value) for name, value in values.items()}
    frames = {f"_{number}": error for number, error in enumerate(errors)}
    return {"line": line, "told": needs, "seed": seed} | numbers | {"first error": errors[0], "last error": errors[-1]} | frames


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job a method and seed."""
    setting = Setting(PLUMES).quick() if quick else Setting(PLUMES)
    plain = [Job(line, seed, classical, (setting, line)) for line in list(CLASSICAL)[:4] for seed in seeds]
    physical = [Job(line, seed, classical, (setting, line)) for line in list(CLASSICAL)[4:] for seed in seeds]
    nets = [Job(line, seed, learn, (kept, setting, line)) for line in (list(LEARNT)[:2] if quick else LEARNT) for seed in seeds]
    return plain + nets + physical


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether what was expected holds."""
    error = {line["line"]: line["error"]["mean"] for line in means}
    return {
        "ours is better than every method without physics": error[OURS] < min(error[name] for name in ("bicubic+projection", "spline", KRIGING)),
        "and than PISR's network of single frames, with and without projection": error[OURS] < min(error[PISR], error[PROJECTED]),
        "the same network comes nearer with high resolution as its target": error[SUPERVISED] < error[OURS],
        "4D-Var, an upper bound, gains at least 5 over bicubic": error[BICUBIC] / error[VARIATIONAL] >= 5,
        "and is not beaten by any network": error[VARIATIONAL] <= min(error[name] for name in LEARNT),
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw errors by frame."""
    shown = (BICUBIC, KRIGING, PROJECTED, OURS, SUPERVISED, "ensemble Kalman filter", VARIATIONAL)
    frames = [name for name in means[0] if name.startswith("_")]
    return {"rivals": draw_by_frame({row["line"]: [row[name]["mean"] for name in frames] for row in means if row["line"] in shown})}


TABLE = Table(
    title="Ours beside interpolation, kriging, other networks and data assimilation, 32 x 32 cells from 8 x 8",
    claim="Without high resolution and without the solver at test time, most of what physics can tell is found.",
    by=("line", "told"),
    jobs=jobs,
    expectations=expectations,
    figures=figures,
)

# ---- what the physics can tell at all

LARGE = World(size=64, frames=8, diffusivity=1e-3, widths=(0.03, 0.06))
ORACLES: dict[str, tuple[World, int, tuple[str, ...]]] = {
    "blobs, 64 x 64, factor 4, no noise": (LARGE, 4, (BICUBIC, VARIATIONAL)),
    "blobs, 64 x 64, factor 8, no noise": (replace(LARGE, factor=8), 4, (BICUBIC, VARIATIONAL)),
    "blobs, 32 x 32, factor 4, truth on a grid twice as fine": (replace(PLUMES, refine=2), 16, (BICUBIC, VARIATIONAL)),
    "random fields, 24 x 24, factor 4, noise .02": (RANDOM, 16, (BICUBIC, KRIGING, VARIATIONAL, KALMAN)),
}
"""World, test sequences, and methods."""


def oracle(setting: Setting, name: str, line: str, seed: int) -> Rows:
    """Judge a method in a world; the exact smoother tells its spread too."""
    plumes = tested(setting, seed)
    seen = plumes.observations
    spread = coverage = None
    if line == KALMAN:
        found = smoother(seen)
        fields, error = found.mean, found.mean - plumes.truth
        assert found.deviation is not None
        coverage = float((error.abs() <= 1.6449 * found.deviation).float().mean())
        spread = float(found.deviation.square().mean().sqrt() / error.square().mean().sqrt())
    else:
        fields = CLASSICAL[line][1](seen)
    errors = measured(fields, plumes)["relative_l2_by_frame"].tolist()
    frames = {"all frames": sum(errors) / len(errors), "frame 1": errors[0], "frame 4": errors[min(3, len(errors) - 1)], "last frame": errors[-1]}
    return [{"world": name, "line": line, "seed": seed} | frames | {"coverage of 90 %": coverage, "spread / error": spread}]


def oracle_jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job a world, method and seed."""
    chosen = list(ORACLES.items())[3:] if quick else list(ORACLES.items())
    settings = {name: Setting(world, test=count) for name, (world, count, _) in chosen}
    settings = {name: setting.quick() if quick else setting for name, setting in settings.items()}
    return [Job(f"{line}, {name}", seed, oracle, (settings[name], name, line)) for name, (_, _, lines) in chosen for line in lines for seed in seeds]


def oracle_expectations(means: Rows) -> dict[str, bool]:
    """Say whether what was expected holds."""
    first, second, finer, third = ORACLES
    row = {(line["world"], line["line"]): {name: one["mean"] for name, one in line.items() if isinstance(one, dict)} for line in means}
    error = {key: one["all frames"] for key, one in row.items()}
    exact = row[third, KALMAN]
    return {
        "4D-Var gains at least 10 over bicubic at factor 4": error[first, BICUBIC] >= 10 * error[first, VARIATIONAL],
        "at least 3 where the truth has another grid than the solver": error[finer, BICUBIC] >= 3 * error[finer, VARIATIONAL],
        "and at least 3 at factor 8": error[second, BICUBIC] >= 3 * error[second, VARIATIONAL],
        "the smoother's error is below half of bicubic's in the first frame, and below a quarter in the last": exact["frame 1"]
        <= row[third, BICUBIC]["frame 1"] / 2
        and exact["last frame"] <= row[third, BICUBIC]["last frame"] / 4,
        "kriging, which knows no winds, gains less than a fifth": error[third, KRIGING] >= 0.8 * error[third, BICUBIC],
        "the smoother's 90 % interval holds 88 to 94 % of the truth": 0.88 <= exact["coverage of 90 %"] <= 0.94,
        "and its spread is 0.95 to 1.15 of its error": 0.95 <= exact["spread / error"] <= 1.15,
        "4D-Var with the prior's covariance comes within 10 % of it": error[third, VARIATIONAL] <= 1.1 * error[third, KALMAN],
    }


ORACLE = Table(
    title="What frames, winds and the equation can tell at all",
    claim="Several coarse frames determine most of what a single one cannot.",
    by=("world", "line"),
    jobs=oracle_jobs,
    expectations=oracle_expectations,
)
