"""The other settings of section 9: teachers that jump early, and a task without a gap, where a route has nothing to give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from projects.rco.reproduction.parity import EEI, EVERY, GREEDY, JUMP, LINES, QUICK_LINES, mean, points, with_seeds
from projects.rco.reproduction.worlds import FAST, LABELS, NO_GAP, PLAIN, QUICK, World, rows_of
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EARLY, CONTROL = "lr 0.05, width 12, 18 epochs", "30 bits, 4 secret, 12 epochs (no gap)"
WORLDS = {EARLY: FAST, CONTROL: NO_GAP}
SHOWN = (LABELS, PLAIN, EVERY, EEI, JUMP, GREEDY)


def rows(setting: str, world: World, names: tuple[str, ...], folder: Path, seed: int) -> Rows:
    """Return the rows of a setting and seed."""
    return [{"setting": setting} | row for row in rows_of(world, {name: LINES[name] for name in names}, folder, seed)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a setting and seed."""
    worlds, names = ({EARLY: QUICK}, QUICK_LINES) if is_quick else (WORLDS, SHOWN)
    return [Job(f"{place}", seed, rows, (name, world, names, kept)) for seed in seeds for place, (name, world) in enumerate(worlds.items())]


def tabulate(found: Rows) -> Rows:
    """Put the rows in the order of the settings."""
    found = with_seeds(found, ("setting", "line"))
    return [row for name in WORLDS for row in found if row["setting"] == name]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the outcomes hold that section 9 sets for these settings."""
    accuracy = {(row["setting"], row["line"]): mean(row, "accuracy") for row in means}
    return {
        "early jump: KD stays at 0.70 or below": accuracy[EARLY, PLAIN] <= 0.70,
        "early jump: EEI-3 reaches 0.90": accuracy[EARLY, EEI] >= 0.90,
        "early jump: the greedy search reaches 0.90": accuracy[EARLY, GREEDY] >= 0.90,
        "no gap: KD reaches 0.95": accuracy[CONTROL, PLAIN] >= 0.95,
        "no gap: EEI-3 gains nothing, within 0.05": abs(accuracy[CONTROL, EEI] - accuracy[CONTROL, PLAIN]) <= 0.05,
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw the accuracy of each line's seeds in the setting with an early jump."""
    from projects.rco.figures import draw_comparison

    return {"settings": draw_comparison(points([row for row in means if row["setting"] == EARLY], "line"))}


TABLE = Table(
    "Sparse parity in two other settings",
    "what a route gains depends on the gap between teacher and student: where there is none, it gains nothing",
    ("setting", "line"),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
    figures=figures,
)
