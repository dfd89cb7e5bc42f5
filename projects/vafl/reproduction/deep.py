"""Convolutions, LSTMs and MLPs at the clients, under exponential delays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from projects.vafl.reproduction.setting import Case, World, best_lr, mean, play
from projects.vafl.settings import Delays, Protection, Protocol
from shared.tables import Job, Rows, Table

DELAYS = Delays("exponential")
"""Client m, from 1, has a mean of m seconds."""
TENTH = "extra:fraction=0.1"
PROTOCOLS = {
    "sync": Protocol("sync", uploads="batch"),
    "async, extra 10 %": Protocol(uploads=TENTH),
    "t-sync, extra 10 %": Protocol("t_sync", uploads=TENTH),
}
WORLDS = {
    "views, convolutions": World("views", 16, {"hidden": [8, 16], "embedding": 32, "head": "weighted"}, 1800.0, 30.0, 1e-4, targets=(0.4,)),
    "series, LSTMs": World("series", 16, {}, 600.0, 5.0, 1e-4, "auroc", (0.85,)),
    "breast cancer, MLPs": World("breast_cancer", 8, {"hidden": [16], "head": "concat"}, 200.0, 1.0, 1e-4, targets=(0.95,)),
}
"""The targets are about what sync reaches on the development seeds in this time."""
GRIDS = {"views, convolutions": (0.05, 0.1, 0.2, 0.4), "series, LSTMs": (0.5, 1.0, 2.0, 4.0, 8.0), "breast cancer, MLPs": (0.25, 0.5, 1.0, 2.0, 4.0)}
SMALLER = {("views, convolutions", "sync"): (0.0125, 0.025, 0.05, 0.1, 0.2)}
"""Grid of a method whose best step size is smaller, as synchronous training's of views, which takes few steps."""
NOISE = Protection(std=1.0, hidden=[0.1, 0.1])
"""The paper's for views: uniform below the last layer, of standard deviation 0.1 in the first two, and N(0, 1) on it."""
NOISY = "async, extra 10 %, the paper's noise"
METHODS = (*PROTOCOLS, NOISY)


def lines() -> dict[tuple[str, str], Case]:
    """Return the federations by world and method."""
    own = {
        (name, method): Case(protocol, DELAYS, grid=SMALLER.get((name, method), GRIDS[name]), world=world)
        for name, world in WORLDS.items()
        for method, protocol in PROTOCOLS.items()
    }
    views = next(iter(WORLDS))
    return own | {(views, NOISY): replace(own[views, "async, extra 10 %"], protection=NOISE)}


def rows(world: str, method: str, case: Case, folder: Path, seed: int) -> Rows:
    """Return the row of a method in a world; with noise, at the step size that was chosen without."""
    lr = best_lr(folder, replace(case, protection=Protection()))
    curve, target = play(case, lr, seed), case.world.targets[0]
    reached = {"target": target, "seconds to it": curve.until(target), "reached": float(curve.first(target) is not None)}
    final = {"final": curve.final, "mean age": curve.mean_age, "MB up": curve.megabytes}
    return [{"world": world, "metric": case.world.metric, "method": method, "seed": seed, "lr": lr} | reached | final]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a line and seed; the first seed's choose the step sizes."""
    chosen = list(lines().items())
    if is_quick:
        chosen = [
            ((world, method), replace(case, grid=(0.5,), world=_short(case.world))) for (world, method), case in chosen if method in METHODS[1:2]
        ]
    return [Job(f"{number}", seed, rows, (*names, case, kept)) for seed in seeds for number, (names, case) in enumerate(chosen)]


def _short(world: World) -> World:
    return replace(world, seconds=3.0, every=3.0)


def tabulate(found: Rows) -> Rows:
    """Put the rows in order, and compare each with sync of the same world and seed."""
    order = sorted(found, key=lambda row: (list(WORLDS).index(row["world"]), METHODS.index(row["method"]), row["seed"]))
    sync = {(row["world"], row["seed"]): row["seconds to it"] for row in order if row["method"] == "sync"}
    return [row | {"times sooner than sync": _ratio(sync.get((row["world"], row["seed"])), row["seconds to it"])} for row in order]


def _ratio(sync: float | None, own: float) -> float | None:
    return None if sync is None else sync / own


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the claim holds beyond linear nets."""
    row = {(line["world"], line["method"]): line for line in means}
    found = {}
    for world in WORLDS:
        sync, ours, between = (row[world, method] for method in PROTOCOLS)
        soon = 1.5 * mean(ours, "seconds to it") <= mean(sync, "seconds to it")
        found[f"{world}: async reaches the target at least 1.5 times sooner than sync"] = soon
        found[f"{world}: and ends no lower than sync by more than 0.01"] = mean(ours, "final") >= mean(sync, "final") - 0.01
        found[f"{world}: t-sync is sooner than sync"] = mean(between, "seconds to it") < mean(sync, "seconds to it")
    views = next(iter(WORLDS))
    lost = mean(row[views, "async, extra 10 %"], "final") - mean(row[views, NOISY], "final")
    return found | {f"{views}: the paper's noise costs at most 0.05": lost <= 0.05}


TABLE = Table(
    "Deep nets at the clients, exponential delays of m seconds on average, each method at its best step size",
    "the asynchronous method is faster with convolutional and recurrent nets too",
    ("world", "metric", "method"),
    jobs,
    expectations,
    tabulate=tabulate,
)
