"""The same methods in processes of their own, in real seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from projects.vafl.reproduction.methods import LINES as METHODS
from projects.vafl.reproduction.real import SCALE, in_real_time, launch
from projects.vafl.reproduction.setting import TARGETS, Case, World, best_lr, figures_of, in_order, mean, to, with_speed_up
from shared.jobs import kept as kept_value
from shared.tables import Job, Rows, Table

NAMES = ("sync", "async, batch only", "async, extra 10 %")
QUICK_NAMES = ("async, extra 10 %",)
QUICK = World(seconds=20.0)


def row_of(name: str, case: Case, lr: float, seed: int) -> Rows:
    """Return the row of a method in real seconds."""
    launched = launch(in_real_time(case), lr, seed)
    row = figures_of(launched.curve, lr, case.world.targets)
    return [{"method": name, "seed": seed} | row | {"updates": float(launched.curve.updates), "longest gap": launched.longest_gap}]


def rows(lines: dict[str, Case], seeds: list[int], folder: Path, first: int) -> Rows:
    """Return the rows of all methods and seeds, one training after the other; each is kept by itself in the folder."""

    def made() -> Iterator[Rows]:
        for seed in seeds:
            for name, case in lines.items():
                lr = best_lr(folder, case)
                path = folder / f"processes-{case.key}-{lr:g}-{seed}.json"
                yield kept_value(path, lambda name=name, case=case, lr=lr, seed=seed: row_of(name, case, lr, seed)).value  # type: ignore[misc]

    return [row for part in made() for row in part]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return one job for everything: trainings side by side would take each other's cores, and be late for it."""
    lines = {name: METHODS[name] for name in NAMES}
    if is_quick:
        lines = {name: replace(lines[name], world=QUICK, grid=(2.0,)) for name in QUICK_NAMES}
    return [Job("all", seeds[0], rows, (lines, seeds, kept))]


def tabulate(found: Rows) -> Rows:
    """Put the rows in order, and compare each with sync of the same seed."""
    return with_speed_up(in_order(found, "method", list(NAMES)), "sync", "method", TARGETS[0])


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the order of the methods is that of simulated time."""
    row = {line["method"]: line for line in means}
    seconds = {name: mean(line, to(TARGETS[0])) for name, line in row.items()}
    sync, seldom, ours = (seconds[name] for name in NAMES)
    return {
        "async with 10 % extra uploads reaches 0.90 at least 1.5 times sooner than sync in real seconds": 1.5 * ours <= sync,
        "with batch-only uploads it is not 1.5 times sooner, as in simulated time": 1.5 * seldom > sync,
        "async with 10 % extra uploads ends no lower than sync by more than 0.01": mean(row["async, extra 10 %"], "final")
        >= mean(row["sync"], "final") - 0.01,
    }


TABLE = Table(
    f"A server and 8 clients in processes of their own, one real second for {1 / SCALE:g} simulated ones, step sizes of the first table",
    "the asynchronous method is faster in real time, messages and processes included",
    ("method",),
    jobs,
    expectations,
    tabulate=tabulate,
)
