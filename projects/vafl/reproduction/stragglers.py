"""One client that is five times slower, or away for a while."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from projects.vafl.reproduction.methods import LINES as METHODS
from projects.vafl.reproduction.setting import QUICK, TARGETS, Case, best_lr, figures_of, mean, play, to, with_speed_up
from projects.vafl.settings import Delays
from shared.tables import Job, Rows, Table

CLIENTS = {
    "as usual": Delays(),
    "last client 5 times slower": Delays(slow=["7:5"]),
    "first client 5 times slower": Delays(slow=["0:5"]),
    "last client away from 5 to 85 s": Delays(absent=["7:5-85"]),
}
NAMES = ("sync", "t-sync, extra 10 %", "t-sync, all", "async, extra 10 %")
GAP = "times sooner than sync"


def lines(is_quick: bool) -> dict[tuple[str, str], Case]:
    """Return the federations by how the clients are and by method."""
    if is_quick:
        usual = replace(METHODS["async, extra 10 %"], world=QUICK, grid=(2.0,))
        return {("last client 5 times slower", "async, extra 10 %"): replace(usual, delays=CLIENTS["last client 5 times slower"])}
    return {(clients, name): replace(METHODS[name], delays=delays) for clients, delays in CLIENTS.items() for name in NAMES}


def rows(clients: str, name: str, case: Case, folder: Path, seed: int) -> Rows:
    """Return the row of a method among such clients."""
    lr = best_lr(folder, case)
    return [{"clients": clients, "method": name, "seed": seed} | figures_of(play(case, lr, seed), lr, case.world.targets)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a line and seed; the first seed's choose the step sizes."""
    chosen = list(enumerate(lines(is_quick).items()))
    return [Job(f"{number}", seed, rows, (*names, case, kept)) for seed in seeds for number, (names, case) in chosen]


def tabulate(found: Rows) -> Rows:
    """Put the rows in order, and compare each with sync of the same seed among the same clients."""
    order = sorted(found, key=lambda row: (list(CLIENTS).index(row["clients"]), NAMES.index(row["method"]), row["seed"]))
    return with_speed_up(order, "sync", "method", TARGETS[0], ("clients",))


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether waiting for the slowest costs what it should."""
    row = {(line["clients"], line["method"]): line for line in means}
    gap = {clients: mean(row[clients, "async, extra 10 %"], GAP) for clients in CLIENTS}
    seconds = {clients: mean(row[clients, "async, extra 10 %"], to(TARGETS[0])) for clients in CLIENTS}
    usual, slow, fast, away = CLIENTS
    return {
        "async is ahead of sync by more when the slowest client is 5 times slower": gap[slow] > gap[usual],
        "by less, but still 1.5 times, when the fastest is: it is then no straggler": 1.5 <= gap[fast] < gap[slow],
        "a client that is away costs async less than half of its absence": seconds[away] - seconds[usual] < 40,
        "t-sync that waits for 4 of 8 is sooner than sync beside the straggler": mean(row[slow, "t-sync, extra 10 %"], GAP) > 1,
    }


TABLE = Table(
    "Stragglers: digits at 8 clients, each method at its best step size",
    "the asynchronous method does not wait for slow or absent clients",
    ("clients", "method"),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
)
