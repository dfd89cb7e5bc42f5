"""Fine fields without any fine field to learn from, and what happens without each part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.s3rp.classical import METHODS
from projects.s3rp.figures import draw_by_frame
from projects.s3rp.reproduction.worlds import NOISY, PLUMES, Kind, Setting, estimator, measured, tested, trained
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN, NOISE, FINE, RANDOM = "no noise", "noise .02, 20 % missing", "truth on a grid twice as fine", "random fields"
SETTINGS = {
    CLEAN: Setting(PLUMES),
    NOISE: Setting(NOISY),
    FINE: Setting(replace(PLUMES, refine=2)),
    RANDOM: Setting(replace(PLUMES, start="random"), options={"lambda_negative": 0.0}),
}
OURS, BICUBIC, PROJECTED = "S3RP-D", "bicubic", "bicubic+projection"
BLIND, SHUFFLED, SINGLE = "no physics", "winds of other sequences in the loss", "single frames without winds"


@dataclass(frozen=True)
class Line:
    """A network of the table.

    Attributes:
        setting: of `SETTINGS`.
        kind: how it is trained.
        options: of the module.
    """

    setting: str = CLEAN
    kind: Kind = "own"
    options: dict[str, Any] = field(default_factory=dict)


LINES = {
    OURS: Line(),
    BLIND: Line(options={"lambda_physics": 0.0, "lambda_negative": 0.0}),
    SHUFFLED: Line(kind="shuffled"),
    SINGLE: Line(options={"recurrent": False}),
    f"{OURS}, ConvLSTM": Line(options={"cell": "lstm"}),
    f"{OURS}, residual form": Line(options={"physics": "residual"}),
    f"{OURS}, coarse grid": Line(options={"grid": "coarse", "channels": 48, "lr": 1e-3}),
    f"{OURS}, bidirectional": Line(options={"bidirectional": True}),
    f"{OURS}, hybrid (corrects the solver)": Line(options={"hybrid": True}),
    f"{OURS}; {NOISE}": Line(NOISE),
    f"{OURS}; {FINE}": Line(FINE),
    f"{OURS}; {RANDOM}": Line(RANDOM),
    f"{SINGLE}; {RANDOM}": Line(RANDOM, options={"recurrent": False}),
}
INTERPOLATED = ("nearest", BICUBIC, "spline", PROJECTED)


def _row(line: str, setting: str, seed: int, found: dict[str, Any]) -> dict[str, Any]:
    errors = found["relative_l2_by_frame"].tolist()
    gains = {"gain": found["gain_over_bicubic"], "over projection": found["gain_over_bicubic+projection"]}
    last = {"last frame": found["gain_over_bicubic_by_frame"][-1]}
    own = {"line": line, "world": setting, "seed": seed, "error": float(found["relative_l2"])}
    frames = {f"_{number}": error for number, error in enumerate(errors)}
    return own | {name: float(value) for name, value in {**gains, **last}.items()} | {"first error": errors[0], "last error": errors[-1]} | frames


def interpolate(setting: Setting, name: str, seed: int) -> Rows:
    """Judge interpolations of the test sequences."""
    plumes = tested(setting, seed)
    fields = {line: METHODS[line](plumes.observations) for line in INTERPOLATED}
    references = {line: fields[line] for line in (BICUBIC, PROJECTED)}
    return [_row(line, name, seed, measured(made, plumes, references)) for line, made in fields.items()]


def learn(kept: Path, setting: Setting, line: str, seed: int) -> Rows:
    """Train and judge a network."""
    plumes, given = tested(setting, seed), LINES[line]
    module = trained(kept, setting, seed, given.kind, given.options)
    fields = estimator(module)(plumes.observations)
    references = {name: METHODS[name](plumes.observations) for name in (BICUBIC, PROJECTED)}
    return [_row(line.partition(";")[0], given.setting, seed, measured(fields, plumes, references))]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job a network and seed, and one a world and seed for interpolations."""
    settings = {name: setting.quick() if quick else setting for name, setting in SETTINGS.items()}
    lines = list(LINES)[:3] if quick else list(LINES)
    chosen = [CLEAN] if quick else list(settings)
    plain = [Job(f"interpolations, {name}", seed, interpolate, (settings[name], name)) for name in chosen for seed in seeds]
    return plain + [Job(line, seed, learn, (kept, settings[LINES[line].setting], line)) for line in lines for seed in seeds]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether what was expected holds."""
    row = {(line["line"], line["world"]): {name: one["mean"] for name, one in line.items() if isinstance(one, dict)} for line in means}
    ours, projected = row[OURS, CLEAN], row[PROJECTED, CLEAN]
    frames = [ours[name] for name in sorted(name for name in ours if name.startswith("_"))]
    return {
        "the gain over bicubic is at least 2.0": ours["gain"] >= 2.0,
        "and over bicubic with projection at least 1.8": ours["over projection"] >= 1.8,
        "in the last frame at least 2.5": ours["last frame"] >= 2.5,
        "the error falls with the frames until it settles: none is 2 % above the one before, the last is two thirds of the first at most": all(
            later <= 1.02 * earlier for earlier, later in pairwise(frames)
        )
        and frames[-1] <= frames[0] * 2 / 3,
        "without physics nothing is learnt beyond bicubic with projection (within 2 %)": abs(row[BLIND, CLEAN]["error"] / projected["error"] - 1)
        <= 0.02,
        "the winds of other sequences do harm: a gain of 1.0 at most": row[SHUFFLED, CLEAN]["gain"] <= 1.0,
        "single frames without winds gain little over projection: less than half of what is gained": _half(row[SINGLE, CLEAN], ours),
        "and on random fields, where no frame tells what blobs look like": _half(row[SINGLE, RANDOM], row[OURS, RANDOM]),
        "with noise and missing pixels the gain over bicubic is at least 1.4": row[OURS, NOISE]["gain"] >= 1.4,
        "on truth of a finer grid the gain over bicubic is at least 2.0 too": row[OURS, FINE]["gain"] >= 2.0,
    }


def _half(control: dict[str, float], ours: dict[str, float]) -> bool:
    return control["over projection"] - 1 < (ours["over projection"] - 1) / 2


def figures(means: Rows) -> dict[str, Figure]:
    """Draw errors by frame."""
    shown = (BICUBIC, PROJECTED, BLIND, SINGLE, OURS)
    curves = {
        row["line"]: [row[name]["mean"] for name in sorted(name for name in row if name.startswith("_"))]
        for row in means
        if row["line"] in shown and row["world"] == CLEAN
    }
    return {"resolution": draw_by_frame(curves)}


TABLE = Table(
    title="Super-resolution by a factor of 4 without high resolution",
    claim="Coarse sequences, winds and the equation are enough to learn fine fields.",
    by=("line", "world"),
    jobs=jobs,
    expectations=expectations,
    figures=figures,
)
