"""Whether importances rank cells as training does (claim 5): Kendall's tau over random cells."""

from __future__ import annotations

from pathlib import Path

from scipy.stats import kendalltau
from torch import Tensor

from projects.forgery_nas.alive import edge_softmax
from projects.forgery_nas.genotype import CELLS, Genotype, edge_number
from projects.forgery_nas.reproduction import worlds
from projects.forgery_nas.reproduction.worlds import FULL, QUICK, UNSEEN, Budgeted
from projects.forgery_nas.search import ArchitectureSearch
from shared.jobs import kept
from shared.tables import Job, Rows, Table

COUNT = 12
ALPHA, GENERAL, ACCURACY = "alpha", "general", "general without alpha"


def value(cells: Genotype, importance: Tensor, beta: Tensor, space: tuple[str, ...]) -> float:
    """Return what a search thinks of cells: the sum over their edges of importance times softmax of beta, as it would derive them by."""
    shares, total = edge_softmax(beta.detach(), len(cells.normal)), 0.0
    for number, cell in enumerate(CELLS):
        for node, pairs in enumerate(getattr(cells, cell)):
            for operation, source in pairs:
                edge = edge_number(node, source)
                total += float(importance[number, edge, space.index(operation)] * shares[number, edge])
    return total


def importances(searched: ArchitectureSearch) -> dict[str, Tensor]:
    """Return what each level knows after one search in which nothing was pruned."""
    alpha, general = searched.net.probabilities().cpu(), searched.scores()
    return {ALPHA: alpha, GENERAL: general, ACCURACY: general - alpha}


def values(folder: Path, cells: list[Genotype], budget: Budgeted, seed: int) -> dict[str, list[float]]:
    """Return the value of cells on each level, after a search across sets; kept."""

    def make() -> dict[str, list[float]]:
        given = worlds.options(budget, seed, prune_every=0, epochs=worlds.options(budget, seed).length)
        searched = worlds.supernet(given, worlds.faces_to_learn(budget, seed, is_search=True, is_cross=True))
        space, beta = searched.net.table.space, searched.net.beta.cpu()
        return {name: [value(one, found, beta, space) for one in cells] for name, found in importances(searched).items()}

    return kept(folder / f"values-{len(cells)}-{budget.images}-{seed}.json", make).value


def rows(folder: Path, count: int, budget: Budgeted, seed: int) -> Rows:
    """Return the rank correlation of each level with the AUC of the unseen manipulation after training."""
    cells = [worlds.random_cells(seed, number) for number in range(count)]
    reached = [worlds.judged(folder, one, budget, seed)[UNSEEN] for one in cells]
    found = values(folder, cells, budget, seed)
    return [{"importance": name, "seed": seed, "Kendall tau": float(kendalltau(found[name], reached).statistic)} for name in found]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    settings = (folder, 2, QUICK) if quick else (folder, COUNT, FULL)
    return [Job("all", seed, rows, settings) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether our importance ranks cells better than alpha does."""
    found = {row["importance"]: row["Kendall tau"]["mean"] for row in summary}
    return {
        "general ranks cells better than alpha": found[GENERAL] > found[ALPHA],
        "general ranks cells better than chance": found[GENERAL] > 0,
    }


TABLE = Table("metric", "The importance ranks cells as training them does.", ("importance",), jobs, expectations, seeds=5)
