"""A client that is killed in the middle of training and comes back (crash and rejoin without stalling)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from projects.vafl.reproduction.methods import LINES as METHODS
from projects.vafl.reproduction.real import SCALE, Crash, in_real_time, launch
from projects.vafl.reproduction.setting import Case, World, best_lr, figures_of, mean
from shared.jobs import kept as kept_value
from shared.tables import Job, Rows, Table

CLIENT, AWAY = 3, 2.0
"""Who is killed, and real seconds until it is started again."""
NAMES = ("async, extra 10 %", "sync")
UNBROKEN, BROKEN = "none", f"client {CLIENT} is killed, and back {AWAY:g} s later"
QUICK = World(seconds=20.0)
GAP = "longest gap, s"


def row_of(name: str, case: Case, lr: float, is_broken: bool, seed: int) -> Rows:
    """Return the row of a training, unbroken or broken after a third of its time."""
    crash = Crash(CLIENT, case.world.seconds * SCALE / 3, AWAY) if is_broken else None
    launched = launch(in_real_time(case), lr, seed, crash)
    curve, row = launched.curve, figures_of(launched.curve, lr, case.world.targets)
    own = {name: row[name] for name in ("lr", "final", "releases")} | {"updates": float(curve.updates), GAP: launched.longest_gap}
    away = {"updates while away": float(launched.while_away) if is_broken else None, "lost": float(launched.lost)}
    return [{"method": name, "crash": BROKEN if is_broken else UNBROKEN, "seed": seed} | own | away]


def rows(lines: list[tuple[str, Case, bool]], seeds: list[int], folder: Path, first: int) -> Rows:
    """Return the rows of all lines and seeds, one training after the other; each is kept by itself in the folder."""

    def made() -> Iterator[Rows]:
        for seed in seeds:
            for name, case, is_broken in lines:
                lr = best_lr(folder, case)
                path = folder / f"crash-{case.key}-{is_broken}-{lr:g}-{seed}.json"
                make = lambda name=name, case=case, lr=lr, is_broken=is_broken, seed=seed: row_of(name, case, lr, is_broken, seed)  # noqa: E731
                yield kept_value(path, make).value

    return [row for part in made() for row in part]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return one job for everything: trainings side by side would take each other's cores, and be late for it."""
    lines = [(name, METHODS[name], is_broken) for name in NAMES for is_broken in (False, True)]
    if is_quick:
        lines = [(NAMES[0], replace(METHODS[NAMES[0]], world=QUICK, grid=(2.0,)), True)]
    return [Job("all", seeds[0], rows, (lines, seeds, kept))]


def tabulate(found: Rows) -> Rows:
    """Put the rows in order, and tell how much is lost against the unbroken run of the same method and seed."""
    order = sorted(found, key=lambda row: (NAMES.index(row["method"]), row["crash"] == BROKEN, row["seed"]))
    whole = {(row["method"], row["seed"]): row["final"] for row in order if row["crash"] == UNBROKEN}

    def lost(row: dict) -> float | None:
        reference = whole.get((row["method"], row["seed"]))
        return None if reference is None else row["final"] - reference

    return [row | {"against unbroken": lost(row)} for row in order]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether nobody waits for who is gone, and nothing is lost."""
    row = {(line["method"], line["crash"]): line for line in means}
    ours, sync = row[NAMES[0], BROKEN], row[NAMES[1], BROKEN]
    return {
        "async ends within 0.01 of the unbroken training": abs(mean(ours, "against unbroken")) <= 0.01,
        "its server never waits: no gap between two updates of half a second": mean(ours, GAP) < 0.5,
        "and takes updates while the client is away": mean(ours, "updates while away") >= 1,
        "sync goes on with the others as soon as the broken link is seen: no gap as long as the absence": mean(sync, GAP) < AWAY,
        "a killed client is lost once and comes back": mean(ours, "lost") == 1,
    }


TABLE = Table(
    f"A client killed after a third of {200 * SCALE:g} real seconds, in processes",
    "training goes on without a client that is gone, and with it when it comes back",
    ("method", "crash"),
    jobs,
    expectations,
    tabulate=tabulate,
)
