"""Found cells beside random ones, other strategies of equal cost and hand-made networks (claims 2 and 3)."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from projects.forgery_nas.genotype import RELEASED, Genotype
from projects.forgery_nas.reproduction import worlds
from projects.forgery_nas.reproduction.worlds import FULL, QUICK, UNSEEN, Budgeted
from projects.forgery_nas.strategies import Budget, pc_darts, random_search, search_cost
from shared.forgery.detection import score
from shared.forgery.metrics import auroc, roc
from shared.jobs import kept
from shared.seeding import generator
from shared.tables import Job, Rows, Table

CELLS = 8
RANDOM = "random cells"
IN, CROSS = "pruning, in-dataset", "pruning, across sets"
ALPHA, PLAIN, SELECTED = "PC-DARTS, across sets", "pruning, theta 0 only", "random search, across sets"
SEARCHES: dict[str, dict[str, Any]] = {IN: {}, CROSS: {}, PLAIN: {"space": "plain"}}
HAND_MADE = ("meso4", "mobilenetv3_small_100", "efficientnet_b0")


def found_cells(folder: Path, name: str, budget: Budgeted, seed: int) -> dict[str, Any]:
    """Search; return `genotype` (JSON) and the `seconds` of the search, kept for other tables."""

    def make() -> dict[str, Any]:
        given = worlds.options(budget, seed, **SEARCHES.get(name, {}))
        data = worlds.faces_to_learn(budget, seed, is_search=True, is_cross=name != IN)
        searched = worlds.supernet(pc_darts(given) if name == ALPHA else given, data)
        return {"genotype": searched.genotype.to_json(), "seconds": searched.seconds}

    return kept(folder / f"{name}-{budget.images}-{seed}.json", make).value


def selected(folder: Path, budget: Budgeted, seed: int) -> dict[str, Any]:
    """Choose the best of random cells by the set that chooses, for as many images as a search across sets takes."""

    def make() -> dict[str, Any]:
        given = worlds.options(budget, seed)
        data = worlds.faces_to_learn(budget, seed, is_search=True, is_cross=True)
        loaders = data.train_dataloader()
        assert isinstance(loaders, dict)
        images = search_cost(given, len(loaders["train"]), data.batch_size)
        [data.train_set], [chosen] = data.roles
        data.is_search = False

        def evaluate(genotype: Genotype) -> float:
            return auroc(roc(*score(worlds.train(genotype, budget, seed, data), chosen.frames).columns))

        cost = budget.epochs * len(data.train_set)
        spendable = Budget(max(cost, images))
        found = random_search(evaluate, cost, spendable, given.operations, generator(seed, "random search"), given.nodes)
        return {"genotype": found.genotype.to_json(), "seconds": spendable.seconds}

    return kept(folder / f"{SELECTED}-{budget.images}-{seed}.json", make).value


def rows(folder: Path, name: str, budget: Budgeted, seed: int) -> Rows:
    """Find cells where they are to be found, train them, and judge them."""
    seconds = None
    if name in HAND_MADE:
        cells: Genotype | str = name
    elif name == "released":
        cells = RELEASED
    elif name.startswith(RANDOM):
        cells = worlds.random_cells(seed, int(name.rpartition(" ")[2]))
    else:
        found = selected(folder, budget, seed) if name == SELECTED else found_cells(folder, name, budget, seed)
        cells, seconds = Genotype.from_json(found["genotype"]), found["seconds"]
    return [{"cells": name, "seed": seed, **worlds.judged(folder, cells, budget, seed), "seconds of search": seconds}]


def tabulate(found: Rows) -> Rows:
    """Put the random cells of a seed into one row, and say of every row how it stands to them."""
    made: Rows = []
    for seed in dict.fromkeys(row["seed"] for row in found):
        of_seed = [row for row in found if row["seed"] == seed]
        random = [row for row in of_seed if row["cells"].startswith(RANDOM)]
        mean = {column: fmean(row[column] for row in random) for column in random[0] if column not in ("cells", "seed", "seconds of search")}
        for row in [random[0] | {"cells": RANDOM} | mean, *(row for row in of_seed if row not in random)]:
            beaten = [(row[UNSEEN] > other[UNSEEN]) + 0.5 * (row[UNSEEN] == other[UNSEEN]) for other in random]
            is_random = row["cells"] == RANDOM
            place = {"above random": None if is_random else row[UNSEEN] - mean[UNSEEN], "percentile": None if is_random else 100 * fmean(beaten)}
            made.append(row | place)
    return made


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network and seed."""
    budget, names = FULL, [*SEARCHES, ALPHA, SELECTED, "released", *HAND_MADE, *(f"{RANDOM} {number}" for number in range(CELLS))]
    if quick:
        budget, names = QUICK, [CROSS, f"{RANDOM} 0"]
    return [Job(name, seed, rows, (folder, name, budget)) for seed in seeds for name in names]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say, by the unseen manipulation, whether searching was worth it, and across sets more than within one."""
    found = {row["cells"]: row for row in summary}

    def mean(name: str) -> float:
        return found[name][UNSEEN]["mean"]

    searched = "cells searched across sets are at least as good as"
    return {
        "cells searched in-dataset are at least as good as random ones": mean(IN) >= mean(RANDOM),
        f"{searched} random ones": mean(CROSS) >= mean(RANDOM),
        f"{searched} those of random search at equal cost": mean(CROSS) >= mean(SELECTED),
        f"{searched} those of PC-DARTS": mean(CROSS) >= mean(ALPHA),
        f"{searched} those of a space without differences": mean(CROSS) >= mean(PLAIN),
        "searching across sets beats searching in one": mean(CROSS) > mean(IN),
    }


TABLE = Table("search", "The search finds better cells than chance, and across sets better ones.", ("cells",), jobs, expectations, 5, tabulate)
