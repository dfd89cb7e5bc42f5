"""Accuracy against mu: noise, clipping, and how often a record is released."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from projects.vafl.bottoms import LinearBottom
from projects.vafl.ledger import THEOREM_6, mu_of, sensitivity, theorem6_mu
from projects.vafl.reproduction.setting import QUICK, Case, World, best_lr, mean, play, records_of
from projects.vafl.settings import Protection, Protocol
from shared.privacy import gaussian_epsilon
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UPLOADS = {
    "batch only": Protocol(uploads="batch"),
    "extra 10 %": Protocol(uploads="extra:fraction=0.1"),
    "all": Protocol(uploads="all"),
    "batch only, D = 200": Protocol(uploads="batch", max_age=200),
}
CLIP = 5.0
STDS = (0.1, 1.0, 3.0, 10.0)
MOST = 30.0
"""The largest standard deviation, for what is released seldom: it brings mu below 1."""
PAPER = 0.1
"""The paper's standard deviation for MNIST, Fashion-MNIST and CIFAR-10."""
SMALL_STEPS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Noise asks for smaller steps than the other tables' grid has. Where more than a batch is uploaded the largest of them was never the best."""
WORLD = World(seconds=120.0, targets=())
DELTA = 1e-5
MEANING = 100.0
"""The mu beyond which lines are not compared: nobody is protected there."""
SETTINGS: list[tuple[str, float | None, float]] = [
    ("extra 10 %", None, 0.0),
    ("extra 10 %", None, PAPER),
    ("extra 10 %", CLIP, 0.0),
    ("extra 10 %", 2.0, 0.0),
    *((uploads, CLIP, std) for uploads in UPLOADS for std in STDS),
    *((uploads, CLIP, MOST) for uploads in ("batch only", "batch only, D = 200")),
]
"""Uploads, clip and standard deviation of each line."""
COLUMNS = ("uploads", "clip", "std")


def case_of(uploads: str, clip: float | None, std: float, world: World = WORLD) -> Case:
    """Return the federation of a line."""
    grid = SMALL_STEPS if uploads == "batch only" else SMALL_STEPS[:-1]
    return Case(UPLOADS[uploads], protection=Protection(std, clip=clip), grid=grid, world=world)


def rows(uploads: str, clip: float | None, std: float, case: Case, folder: Path, seed: int) -> Rows:
    """Return the row of a line; a mu that is infinite, where nothing is promised, is left empty."""
    lr = best_lr(folder, case)
    curve = play(case, lr, seed)
    bound, records = (
        sensitivity(clip, maps_zero_to_zero=LinearBottom.maps_zero_to_zero),
        len(records_of(case.world.source, case.world.batch, seed).train_labels()),
    )
    mu, paper = mu_of(curve.releases, bound, std), theorem6_mu(min(curve.rows, records), records, curve.cycles, bound, std)
    names = {"uploads": uploads, "clip": "none" if clip is None else f"{clip:g}", "std": f"{std:g}", "seed": seed}
    quality = {"lr": lr, "accuracy": curve.final, "accuracy of noisy embeddings": curve.noisy if std else None, "releases": float(curve.releases)}
    promised = {"mu": mu, f"epsilon at {DELTA:g}": gaussian_epsilon(mu, DELTA) if mu < math.inf else math.inf, f"mu of {THEOREM_6}": paper}
    return [names | quality | {name: value if value < math.inf else None for name, value in promised.items()}]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a line and seed; the first seed's choose the step sizes."""
    found = []
    for seed in seeds:
        for number, line in enumerate(SETTINGS[:1] + SETTINGS[-1:] if is_quick else SETTINGS):
            case = replace(case_of(*line, QUICK), grid=(0.25,)) if is_quick else case_of(*line)
            found.append(Job(f"{number}", seed, rows, (*line, case, kept)))
    return found


def tabulate(found: Rows) -> Rows:
    """Put the rows in order."""
    return sorted(found, key=lambda row: (list(UPLOADS).index(row["uploads"]), row["clip"] != "none", float(row["std"]), row["clip"], row["seed"]))


def private(means: Rows, uploads: str) -> list[tuple[float, float, float]]:
    """Return mu, mean accuracy and its standard deviation of the lines of a way to upload that promise anything, by falling mu."""
    promising = [row for row in means if row["uploads"] == uploads and row["mu"] is not None]
    return sorted(((mean(row, "mu"), mean(row, "accuracy"), float(row["accuracy"]["std"])) for row in promising), reverse=True)


def is_ahead(better: list[tuple[float, float, float]], worse: list[tuple[float, float, float]]) -> bool:
    """Return whether one way to upload is at least as accurate (0.005) as another at the same mu, interpolated in its logarithm.

    Only a mu of at most `MEANING` is looked at, and of these, those between the ends of both.
    """
    if not better:
        return False
    mus, accuracies = zip(*[(math.log(mu), accuracy) for mu, accuracy, _ in reversed(better)], strict=True)
    at = [(math.log(mu), accuracy) for mu, accuracy, _ in worse if mu <= MEANING and mus[0] <= math.log(mu) <= mus[-1]]
    return bool(at) and all(float(np.interp(mu, mus, accuracies)) >= accuracy - 0.005 for mu, accuracy in at)


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the paper's noise is what was expected of it, and what releases buy."""
    row = {tuple(line[name] for name in COLUMNS): line for line in means}
    free, paper = (mean(row["extra 10 %", "none", std], "accuracy") for std in ("0", f"{PAPER:g}"))
    seldom, often, always, asked = (private(means, uploads) for uploads in UPLOADS)
    return {
        "the paper's noise, 0.1, costs at most 2 points of accuracy": free - paper <= 0.02,
        "and is no meaningful differential privacy: mu is above 30 even when clipped at 5": mean(row["extra 10 %", "5", f"{PAPER:g}"], "mu") > 30,
        f"fewer releases: at the same mu, up to {MEANING:g}, batch-only uploads are as accurate as 10 % extra or more": is_ahead(seldom, often),
        "and 10 % extra as all or more": is_ahead(often, always),
        "where the server asks for what is older than 200, batch-only uploads are as accurate as 10 % extra or more, too": is_ahead(asked, often),
        "clipping at 2 costs accuracy without any noise": mean(row["extra 10 %", "2", "0"], "accuracy") < free,
        "with mu of 1 or less no line has 0.8 of accuracy": (strict := [point for point in (*seldom, *asked) if point[0] <= 1]) != []
        and all(accuracy < 0.8 for _, accuracy, _ in strict),
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw accuracy over mu, a line a way to upload."""
    from projects.vafl.figures import draw_trade_off

    free = next(mean(row, "accuracy") for row in means if (row["clip"], row["std"]) == ("none", "0"))
    return {"privacy": draw_trade_off({uploads: private(means, uploads) for uploads in UPLOADS}, free)}


TABLE = Table(
    "Privacy of the embeddings of digits, asynchronous, 120 s, each line at its best step size",
    "perturbed embeddings protect the clients' data at little cost of accuracy",
    COLUMNS,
    jobs,
    expectations,
    tabulate=tabulate,
    figures=figures,
)
