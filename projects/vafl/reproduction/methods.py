"""Who waits for whom, and what is uploaded: time to a target, each method at its best step size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from projects.vafl.reproduction.setting import (
    DIGITS,
    QUICK,
    TARGETS,
    Case,
    best_lr,
    drawn,
    figures_of,
    in_order,
    mean,
    play,
    points_of,
    to,
    with_speed_up,
)
from projects.vafl.settings import Delays, Protocol
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TENTH = "extra:fraction=0.1"
CENTRALISED = "centralised, 2000 updates"
WAIT = 4
"""t of t-sync: half of the clients."""
LINES = {
    CENTRALISED: Case(Protocol("centralised", uploads="batch"), Delays("constant", scale=0.1), world=replace(DIGITS, targets=())),
    "sync": Case(Protocol("sync", uploads="batch")),
    "async, batch only": Case(Protocol(uploads="batch")),
    "async, batch only, shared sampling": Case(Protocol(uploads="batch", sampling="shared")),
    "async, extra 10 %": Case(Protocol(uploads=TENTH)),
    "async, extra 10 %, query first": Case(Protocol(uploads=TENTH, order="query_first")),
    "async, all": Case(Protocol(uploads="all")),
    "t-sync, extra 10 %": Case(Protocol("t_sync", WAIT, uploads=TENTH)),
    "t-sync, all": Case(Protocol("t_sync", WAIT, uploads="all")),
}
"""The lines. Centralised training has no delays: its constant ones only set how many updates it takes,
its step size is chosen by final accuracy, and its times are not shown."""
QUICK_LINES = ("sync", "async, extra 10 %")
DRAWN = ("sync", "async, batch only", "async, extra 10 %", "async, all", "t-sync, extra 10 %")


def rows(name: str, case: Case, folder: Path, seed: int) -> Rows:
    """Return the row of a method, with the points of its curve."""
    lr = best_lr(folder, case)
    curve = play(case, lr, seed)
    row = figures_of(curve, lr, TARGETS)
    if name == CENTRALISED:
        row |= dict.fromkeys((*map(to, TARGETS), "reached", "mean age", "releases", "MB up"))
    return [{"method": name, "seed": seed} | row | points_of(curve)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a method and seed; the first seed's choose the step sizes."""
    lines = {name: replace(LINES[name], world=QUICK, grid=(1.0, 2.0)) for name in QUICK_LINES} if is_quick else LINES
    return [Job(f"{list(LINES).index(name)}", seed, rows, (name, case, kept)) for seed in seeds for name, case in lines.items()]


def tabulate(found: Rows) -> Rows:
    """Put the rows in order, and compare each with sync of the same seed."""
    return with_speed_up(in_order(found, "method", list(LINES)), "sync", "method", TARGETS[0])


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether what was expected, and warned of, holds."""
    row = {line["method"]: line for line in means}
    seconds = {name: mean(line, to(TARGETS[0])) for name, line in row.items()}
    ours, sync, between = seconds["async, extra 10 %"], seconds["sync"], seconds["t-sync, extra 10 %"]
    return {
        "async with 10 % extra uploads reaches 0.90 at least 1.5 times sooner than sync": 1.5 * ours <= sync,
        "and ends no lower than sync by more than 0.01": mean(row["async, extra 10 %"], "final") >= mean(row["sync"], "final") - 0.01,
        "with batch-only uploads async is not 1.5 times sooner than sync": 1.5 * seconds["async, batch only"] > sync,
        "t-sync with the same uploads lies between async and sync": ours <= between <= sync,
        "centralised training ends highest but for 0.01": mean(row[CENTRALISED], "final") >= max(mean(line, "final") for line in means) - 0.01,
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw accuracy over simulated seconds."""
    from projects.vafl.figures import draw_curves

    return {"methods": draw_curves({row["method"]: drawn(row) for row in means if row["method"] in DRAWN}, TARGETS[0])}


TABLE = Table(
    "Time to a target on digits at 8 clients, each method at its best step size",
    "the asynchronous method reaches a given accuracy several times sooner than the synchronous one",
    ("method",),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
    figures=figures,
)
