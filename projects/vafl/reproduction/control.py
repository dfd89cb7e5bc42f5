"""What shortens delays, and what it costs: uploads, orders, bounds on ages, step rules, bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from projects.vafl.reproduction.setting import QUICK, TARGETS, Case, best_lr, figures_of, in_order, is_falling, mean, play, to
from projects.vafl.settings import Delays, Protocol
from projects.vafl.uploads import ROW_BYTES
from shared.tables import Job, Rows, Table

TENTH = "extra:fraction=0.1"
SAME_BYTES = (14 + 144) * (10 * 4 + ROW_BYTES)
"""Bytes of a cycle of `extra:fraction=0.1`: its batch and 144 more of 1437 records, ten numbers each."""
NARROW = Delays(bandwidth=20_000.0)
"""A line on which the batch takes 0.03 s, a tenth of the records 0.35 s, and all of them 3.2 s."""
SLOW = Delays(up=0.05, down=0.05)
"""Messages that are on their way for 0.05 s: the server waits 0.1 s for embeddings that it asks for."""
SPEEDS = {"batch only": "batch", "extra 1 %": "extra:fraction=0.01", "extra 3 %": "extra:fraction=0.03", "extra 10 %": TENTH}
SPEEDS |= {"extra 30 %": "extra:fraction=0.3", "all": "all"}
STALE = "extra 10 %, smaller steps on old embeddings"


def _cases() -> dict[str, Case]:
    found = {name: Case(Protocol(uploads=uploads)) for name, uploads in SPEEDS.items()}
    found["oldest, bytes of extra 10 %"] = Case(Protocol(uploads=f"oldest:bytes={SAME_BYTES}"))
    tenth = Protocol(uploads=TENTH)
    found |= {f"batch only, D = {age}": Case(Protocol(uploads="batch", max_age=age)) for age in (200, 1000)}
    found["extra 10 %, query first"] = Case(replace(tenth, order="query_first"))
    found[STALE] = Case(tenth, world=replace(Case().world, model={"step_rule": "stale:power=0.5"}))
    found["extra 10 %, 3 local steps"] = Case(replace(tenth, local_steps=3))
    found["extra 10 %, 16 bits"] = Case(replace(tenth, message_bits=16))
    for name in ("batch only, D = 200", "extra 10 %"):
        found[f"slow messages, {name}"] = replace(found.get(name, Case(tenth)), delays=SLOW)
    return found | {f"narrow line, {name}": Case(Protocol(uploads=SPEEDS[name]), NARROW) for name in ("batch only", "extra 10 %", "all")}


LINES = _cases()
QUICK_LINES = ("batch only, D = 200", "oldest, bytes of extra 10 %")


def rows(name: str, case: Case, folder: Path, seed: int) -> Rows:
    """Return the row of a line."""
    lr = best_lr(folder, case)
    curve = play(case, lr, seed)
    return [{"async": name, "seed": seed} | figures_of(curve, lr, case.world.targets) | {"oldest": float(curve.oldest)}]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a line and seed; the first seed's choose the step sizes."""
    lines = {name: replace(LINES[name], world=QUICK, grid=(2.0,)) for name in QUICK_LINES} if is_quick else LINES
    return [Job(f"{list(LINES).index(name)}", seed, rows, (name, case, kept)) for seed in seeds for name, case in lines.items()]


def tabulate(found: Rows) -> Rows:
    """Put the rows in order."""
    return in_order(found, "async", list(LINES))


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether delays, times and bytes go the way they should."""
    row = {line["async"]: line for line in means}
    seconds = {name: mean(line, to(TARGETS[0])) for name, line in row.items()}
    tenth, half = row["extra 10 %"], row["extra 10 %, 16 bits"]
    wide, narrow = seconds, {name: seconds[f"narrow line, {name}"] for name in ("batch only", "extra 10 %", "all")}
    return {
        "the more is uploaded, the younger the embeddings": is_falling([mean(row[name], "mean age") for name in SPEEDS]),
        "where bytes are free, all is sooner than 10 %, and 10 % sooner than the batch": wide["all"] <= wide["extra 10 %"] < wide["batch only"],
        "on a narrow line all is later than 10 %, and 10 % still sooner than the batch": narrow["extra 10 %"]
        < min(narrow["all"], narrow["batch only"]),
        "for the same bytes, the oldest first makes them younger on average": mean(row["oldest, bytes of extra 10 %"], "mean age")
        < mean(tenth, "mean age"),
        "no embedding that is used is older than D": all(mean(row[f"batch only, D = {age}"], "oldest") <= age for age in (200, 1000)),
        "where messages take no time, D = 200 and batch-only uploads are about as soon as 10 % extra (1.25 times)": seconds["batch only, D = 200"]
        <= 1.25 * seconds["extra 10 %"],
        "for less than half the bytes and half the releases": all(
            mean(row["batch only, D = 200"], column) < 0.5 * mean(tenth, column) for column in ("MB up", "releases")
        ),
        "where they take 0.05 s, D = 200 is later than 10 % extra: the server waits": seconds["slow messages, extra 10 %"]
        < seconds["slow messages, batch only, D = 200"],
        "query first is no slower by more than a tenth": seconds["extra 10 %, query first"] <= 1.1 * seconds["extra 10 %"],
        "16 bits save 40 % of the bytes or more": mean(half, "MB up") <= 0.6 * mean(tenth, "MB up"),
        "and lose no accuracy (0.005)": mean(half, "final") >= mean(tenth, "final") - 0.005,
    }


TABLE = Table(
    "What shortens delays: asynchronous training of digits, each line at its best step size",
    "further uploads, the order of a cycle and bounds on ages reduce delays without changing the method",
    ("async",),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
)
