"""Which score finds which anomaly: ComAD, a patch memory on the same features, and both together (claims 1 to 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from projects.comad.fusion import Fusion
from projects.comad.reproduction import worlds
from projects.comad.reproduction.worlds import Found, Size
from projects.comad.traysim import Kind
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMAD, PLACE, PATCHES, FUSED, PLACED = "ComAD", "position", "patch memory", "ComAD + patches", "ComAD + position + patches"
DETECTORS: dict[str, tuple[str, ...]] = {
    "area + colour": ("global",),
    "number": ("number",),
    COMAD: ("logical",),
    PLACE: ("position",),
    PATCHES: ("patches",),
    FUSED: ("logical", "patches"),
    PLACED: ("logical", "position", "patches"),
}
"""Scores of an inspector; several are fused by trimmed-z."""
LOGICAL_MEAN = "logical mean"


def detected(found: Found, parts: tuple[str, ...]) -> dict[str, float]:
    """Return AUROCs by kind of some scores; fused by scales that validation trays set."""
    kinds: tuple[Kind, ...] = ("good", *worlds.KINDS)
    if len(parts) == 1:
        return worlds.aurocs({kind: found[kind][parts[0]] for kind in kinds})
    fusion = Fusion("trimmed-z").fit({part: found["validation"][part] for part in parts})
    return worlds.aurocs({kind: fusion({part: found[kind][part] for part in parts}) for kind in kinds})


def rows(kept: Path, size: Size, seed: int) -> Rows:
    """Return the rows of all detectors, which are the scores of one inspector."""
    found = worlds.scored(kept, size, seed)
    return [{"detector": name, "seed": seed, **detected(found, parts)} for name, parts in DETECTORS.items()]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    return [Job("anomalies", seed, rows, (kept, worlds.QUICK if quick else worlds.FULL)) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which claims hold for the means."""
    auroc = {row["detector"]: {column: row[column]["mean"] for column in (*worlds.KINDS, LOGICAL_MEAN)} for row in summary}
    comad, patches, fused, placed = (auroc[name] for name in (COMAD, PATCHES, FUSED, PLACED))
    gap = comad[LOGICAL_MEAN] - patches[LOGICAL_MEAN]
    return {
        "(1) logical mean: ComAD has at least .92": comad[LOGICAL_MEAN] >= 0.92,
        "(1) logical mean: the patch memory has at most .65": patches[LOGICAL_MEAN] <= 0.65,
        "(1) logical mean: ComAD is at least .30 above the patch memory": gap >= 0.3,
        "(2) scratch: the patch memory has at least .98": patches["scratch"] >= 0.98,
        "(3) ComAD + patches has a logical mean of at least .90": fused[LOGICAL_MEAN] >= 0.9,
        "(3) and at least .97 for scratch": fused["scratch"] >= 0.97,
        "(4) swap: ComAD has .40 to .55, it is blind": 0.4 <= comad["swap"] <= 0.55,
        "(4) swap: position alone has at least .90": auroc[PLACE]["swap"] >= 0.9,
        "(4) swap: ComAD + position + patches has at least .90": placed["swap"] >= 0.9,
    }


def figures(summary: Rows) -> dict[str, Figure]:
    """Draw the AUROCs of detectors and kinds as a table in colour, white where a detector knows nothing."""
    import matplotlib.pyplot as plt

    columns = [*worlds.KINDS, LOGICAL_MEAN]
    means = [[row[column]["mean"] for column in columns] for row in summary]
    figure, axis = plt.subplots(figsize=(8, 3.6))
    image = axis.imshow(means, vmin=0.5, vmax=1, cmap="Greens", aspect="auto")
    for y, line in enumerate(means):
        for x, value in enumerate(line):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if value > 0.85 else "black")
    axis.set_xticks(range(len(columns)), [column.replace(" ", "\n") for column in columns])
    axis.set_yticks(range(len(summary)), [row["detector"] for row in summary])
    axis.axvline(len(columns) - 1.5, color="black", linewidth=2)
    axis.set_title("AUROC of good trays against a kind, mean over seeds", fontsize=10)
    figure.colorbar(image, label="AUROC", extend="min")
    return {"anomalies": figure}


TABLE = Table(
    "Detectors: AUROC of good trays against each kind of anomaly (claims 1 to 4)",
    "Measures of components find what breaks a rule of the whole picture, a patch memory what looks wrong at a place, and together they find both.",
    ("detector",),
    jobs,
    expectations,
    seeds=5,
    figures=figures,
)
