"""The setting of the tables: digits at eight clients under Poisson delays, a run of it, and the choice of each method's step size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from projects.vafl.data import VerticalRecords
from projects.vafl.fitting import placed
from projects.vafl.module import VerticalFederation
from projects.vafl.perturbed import Noise
from projects.vafl.settings import Delays, Protection, Protocol
from projects.vafl.simulator import Simulator
from shared.jobs import kept
from shared.tables import Rows

GRID = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Step sizes that every method chooses from."""
DEVELOPMENT = (100, 101, 102)
"""Seeds that step sizes are chosen on; no table shows them."""
NEARLY = 1.1
"""Times by which a step size may be slower than the fastest one, and still be chosen for its final quality."""
TARGETS = (0.9, 0.93)
LAST = 10
"""Evaluations at the end whose mean is a run's final quality."""
POINTS = 40
"""Points of a curve in a table."""
DRAWS = 5
"""Draws of the noise that noisy test embeddings are judged with."""


@dataclass(frozen=True)
class World:
    """What is learnt, by which nets, for how long.

    Attributes:
        source: of the records.
        batch: records of a client's batch, about 1 % of the training records.
        model: options of `VerticalFederation` for the nets.
        seconds: simulated seconds of a run.
        every: simulated seconds between two evaluations.
        l2: coefficient of the clients' regularisers.
        metric: what quality is.
        targets: qualities whose first time counts; the step size is chosen by the first one, or by the final quality where there is none.
    """

    source: str = "digits"
    batch: int = 14
    model: dict[str, Any] = field(default_factory=dict)
    seconds: float = 200.0
    every: float = 1.0
    l2: float = 1e-3
    metric: Literal["accuracy", "auroc"] = "accuracy"
    targets: tuple[float, ...] = TARGETS


DIGITS = World()
QUICK = World(seconds=3.0)
"""Digits, but so short that only the way is tried."""


@dataclass(frozen=True)
class Case:
    """A federation of a table: what its members agree on but for the step size.

    Attributes:
        protocol: who waits for whom, and what is uploaded.
        delays: how long things take.
        protection: what hides the records.
        grid: step sizes that it chooses from.
        world: what is learnt.
    """

    protocol: Protocol = field(default_factory=Protocol)
    delays: Delays = field(default_factory=Delays)
    protection: Protection = field(default_factory=Protection)
    grid: tuple[float, ...] = GRID
    world: World = DIGITS

    @property
    def key(self) -> str:
        """A name of its own, whatever its grid, for the files of what is kept of it."""
        return hashlib.sha256(repr(replace(self, grid=())).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Curve:
    """What a run came to.

    Attributes:
        seconds: of the evaluations, from 0.
        quality: of fresh noise-free embeddings of the test records, at each of them.
        noisy: the last quality with noisy embeddings instead.
        updates: of the server.
        mean_age: of the others' embeddings that were used, in updates.
        oldest: of these.
        releases: of the most released record.
        megabytes: that clients sent.
        cycles: of the client that came most often.
        rows: embeddings in each of its uploads, by the mean over the run.
    """

    seconds: list[float]
    quality: list[float]
    noisy: float
    updates: int
    mean_age: float
    oldest: int
    releases: int
    megabytes: float
    cycles: int
    rows: float = 0.0

    def first(self, target: float) -> float | None:
        """Return when an evaluation first reached a quality; None if none did."""
        return next((moment for moment, quality in zip(self.seconds, self.quality, strict=True) if quality >= target), None)

    def until(self, target: float) -> float:
        """Return when an evaluation first reached a quality; where none did, the end."""
        return self.seconds[-1] if (moment := self.first(target)) is None else moment

    @property
    def final(self) -> float:
        """Mean quality of the last evaluations."""
        return fmean(self.quality[-LAST:])


# ---- a run


@lru_cache(2)
def records_of(source: str, batch: int, seed: int) -> VerticalRecords:
    """Return the records of a seed, set up."""
    data = VerticalRecords(source=source, batch_size=batch, seed=seed)
    data.setup()
    return data


def built(case: Case, lr: float, seed: int) -> tuple[VerticalFederation, VerticalRecords]:
    """Return a case's federation as training begins, and its records."""
    world = case.world
    data = records_of(world.source, world.batch, seed)
    agreed: dict[str, Any] = {"protocol": case.protocol, "delays": case.delays, "protection": case.protection}
    shapes = [list(shape) for shape in data.shapes]
    return VerticalFederation(shapes, data.classes, lr=lr, l2=world.l2, seed=seed, **agreed, **world.model), data


def play(case: Case, lr: float, seed: int) -> Curve:
    """Train a case in simulated time."""
    (module, data), world = built(case, lr, seed), case.world
    cpu = torch.device("cpu")
    simulator = Simulator(module.model, placed(data.train.blocks, cpu), data.train.labels, module.setting(world.batch))
    tests, labels = placed(data.test.blocks, cpu), data.test.labels
    simulator.begin()
    moments = [number * world.every for number in range(round(world.seconds / world.every) + 1)]
    quality = []
    for moment in moments:
        simulator.run(moment)
        quality.append(judged(module, tests, labels, world.metric))
    server = simulator.server
    noisy, busiest = _noisy(module, tests, labels, world.metric, seed), max(simulator.clients, key=lambda client: client.cycle)
    ages, releases = (server.mean_age, server.oldest), max(client.ledger.most for client in simulator.clients)
    rows = float(busiest.ledger.releases.sum()) / max(1, busiest.cycle)
    return Curve(moments, quality, noisy, server.updates, *ages, releases, simulator.costs.up / 1e6, busiest.cycle, rows)


@torch.no_grad()
def judged(module: VerticalFederation, blocks: list[Tensor], labels: Tensor, metric: str, noises: list[Noise | None] | None = None) -> float:
    """Return the accuracy or the area under the ROC curve of a federation on test records; 0 where its nets are no longer finite."""
    logits = module.model.head(module.model.embed(blocks, noises))
    if not bool(logits.isfinite().all()):
        return 0.0
    if metric == "accuracy":
        return float((logits.argmax(1) == labels).double().mean())
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(logits.softmax(1)[:, 1], labels))


def _noisy(module: VerticalFederation, blocks: list[Tensor], labels: Tensor, metric: str, seed: int) -> float:
    own, parties = module.protection, range(len(blocks))
    if not own.is_noisy:
        return judged(module, blocks, labels, metric)
    draws = [[own.noise(seed, "tables", party, draw) for party in parties] for draw in range(DRAWS)]
    return fmean(judged(module, blocks, labels, metric, noises) for noises in draws)


# ---- the step size


def best_lr(folder: Path, case: Case) -> float:
    """Return the step size of a case's grid that is best on the development seeds.

    Of those that reach the world's first target soonest, by the mean and within `NEARLY`, it is the one with the best final quality; what is never
    reached counts as the end. Without a target the final quality decides. What was tried is kept in the folder, so that tables share it.
    """
    if len(case.grid) == 1:
        return case.grid[0]
    tried = [kept(folder / f"tried-{case.key}-{lr:g}.json", partial(_tried, case, lr)).value for lr in case.grid]
    soonest = min(row["seconds"] for row in tried)
    return float(max((row for row in tried if row["seconds"] <= NEARLY * soonest), key=lambda row: row["final"])["lr"])


def _tried(case: Case, lr: float) -> dict[str, Any]:
    curves = [play(case, lr, seed) for seed in DEVELOPMENT]
    times = [fmean(curve.until(target) for curve in curves) for target in case.world.targets[:1]]
    return {"lr": lr, "seconds": times[0] if times else 0.0, "final": fmean(curve.final for curve in curves), "case": repr(case)}


# ---- rows


def to(target: float) -> str:
    """Name the column of the seconds to a target."""
    return f"s to {target:.2f}"


def figures_of(curve: Curve, lr: float, targets: tuple[float, ...]) -> dict[str, Any]:
    """Return the columns of a run: step size, seconds to the targets and whether the first was reached at all, final quality, and costs."""
    row: dict[str, Any] = {"lr": lr} | {to(target): curve.until(target) for target in targets}
    row |= {"reached": float(curve.first(targets[0]) is not None)} if targets else {}
    return row | {"final": curve.final, "mean age": curve.mean_age, "releases": float(curve.releases), "MB up": curve.megabytes}


def points_of(curve: Curve) -> dict[str, float]:
    """Return the curve as columns that are drawn and not shown: `_S` is the quality at second S."""
    places = [round(part * (len(curve.seconds) - 1) / POINTS) for part in range(POINTS + 1)]
    return {f"_{curve.seconds[place]:g}": curve.quality[place] for place in places}


def drawn(row: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """Return seconds, mean and standard deviation of the curve in a row of means; the inverse of `points_of`."""
    points = {float(name[1:]): value for name, value in row.items() if name.startswith("_")}
    return list(points), [value["mean"] for value in points.values()], [value["std"] for value in points.values()]


def with_speed_up(rows: Rows, base: str, by: str, target: float, within: tuple[str, ...] = ()) -> Rows:
    """Add to each row how many times sooner it reached a target than another line of the same seed.

    Args:
        rows: one a line and seed.
        base: name of that other line.
        by: column of the lines' names.
        target: whose column of seconds is compared; an end that stands for "never" makes the number a bound.
        within: further columns in which both must agree.
    """
    column, name = to(target), f"times sooner than {base}"
    reference = {(row["seed"], *(row[key] for key in within)): row[column] for row in rows if row[by] == base}
    return [_after(row, "final", name, _ratio(reference.get((row["seed"], *(row[key] for key in within))), row[column])) for row in rows]


def _ratio(other: float | None, own: float | None) -> float | None:
    return None if other is None or own is None else other / own


def _after(row: dict[str, Any], place: str, name: str, value: Any) -> dict[str, Any]:
    """Return a row with one more column behind another."""
    found: dict[str, Any] = {}
    for key, own in row.items():
        found[key] = own
        if key == place:
            found[name] = value
    return found


def in_order(rows: Rows, by: str, names: list[str]) -> Rows:
    """Sort rows as the lines are listed, then by seed."""
    return sorted(rows, key=lambda row: (names.index(row[by]), row["seed"]))


def mean(row: dict[str, Any], column: str) -> float:
    """Return the mean of a column in a row of means; NaN, of which nothing holds, where no seed has one."""
    return float("nan") if row[column] is None else float(row[column]["mean"])


def is_falling(values: list[float]) -> bool:
    """Return whether each value is below the one before."""
    return all(after < before for before, after in pairwise(values))
