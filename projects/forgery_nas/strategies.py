"""Other ways to search than by gradients, at an equal budget: random search, regularised evolution, random paths of shared weights.

A budget counts training images that pass forward and backward. A strategy never spends more than it has, and its answer is a function of what it
is given and of its generator.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projects.forgery_nas.genotype import Genotype, mutate, random_genotype
from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.search import ArchitectureSearch

Evaluate = Callable[[Genotype], float]
"""Trains a genotype and returns how good it is on validation data; higher is better."""


@dataclass
class Budget:
    """What a search may cost.

    Args:
        images: training images that may pass forward and backward.
        used: images that have.
        seconds: time that took.
    """

    images: int
    used: int = 0
    seconds: float = 0.0

    def affords(self, images: int) -> bool:
        """Whether so many more images may pass."""
        return self.used + images <= self.images

    def spend(self, images: int, seconds: float = 0.0) -> None:
        """Note what something cost.

        Raises:
            ValueError: if the budget does not afford it.
        """
        if not self.affords(images):
            raise ValueError(f"the budget of {self.images} images has {self.images - self.used} left, which does not pay for {images}: enlarge it")
        self.used += images
        self.seconds += seconds


class Found(NamedTuple):
    """What a strategy found.

    Attributes:
        genotype: the best candidate, of equal ones the first.
        score: its score.
        rows: for every candidate in turn its `number`, `genotype` as JSON, `score`, and `images` that had been spent after it.
    """

    genotype: Genotype
    score: float
    rows: list[dict[str, Any]]


def search_cost(options: SearchOptions, steps_per_epoch: int, batch_size: int) -> int:
    """Return the images that a search by gradients costs: two batches a step, or one during the warm-up; the second order five.

    Forward passes that only measure importances (level perturb, and general with a mixture) are not among them.

    Args:
        options: how it searches.
        steps_per_epoch: its steps in an epoch.
        batch_size: images of each role in a step.
    """
    warmup = min(options.warmup, options.length)
    batches = warmup + (options.length - warmup) * (2 if options.order == 1 else 5)
    return batches * steps_per_epoch * batch_size


def uniform(options: SearchOptions) -> SearchOptions:
    """Return the options that train the supernet on uniformly drawn paths and learn nothing else, for `weight_sharing_random`.

    alpha stays as it begins, about 0, for the whole search is warm-up.
    """
    return replace(options, epochs=options.length, warmup=options.length, prune_every=0, relaxation="gumbel", level="alpha")


def pc_darts(options: SearchOptions) -> SearchOptions:
    """Return the options of PC-DARTS: the mixture of all candidates, selection by alpha, no pruning, and as many epochs as `options` takes."""
    return replace(options, epochs=options.length, prune_every=0, relaxation="mixture", level="alpha")


class _Trials:
    """Candidates that have been tried.

    Args:
        evaluate: scores a candidate.
        cost: images that one costs.
        budget: what they may cost together.

    Raises:
        ValueError: if that is less than one candidate.
    """

    def __init__(self, evaluate: Evaluate, cost: int, budget: Budget) -> None:
        if not budget.affords(cost):
            left = budget.images - budget.used
            raise ValueError(f"the budget has {left} of {budget.images} images left, and one candidate costs {cost}: enlarge it or train shorter")
        self.evaluate, self.cost, self.budget = evaluate, cost, budget
        self.genotypes: list[Genotype] = []
        self.rows: list[dict[str, Any]] = []

    @property
    def has_more(self) -> bool:
        return self.budget.affords(self.cost)

    def score(self, genotype: Genotype) -> float:
        began = time.perf_counter()
        score = self.evaluate(genotype)
        self.budget.spend(self.cost, time.perf_counter() - began)
        self.genotypes.append(genotype)
        self.rows.append({"number": len(self.rows), "genotype": genotype.to_json(), "score": score, "images": self.budget.used})
        return score

    def best(self) -> Found:
        scores = [row["score"] for row in self.rows]
        number = max(range(len(scores)), key=scores.__getitem__)
        return Found(self.genotypes[number], scores[number], self.rows)


def random_search(evaluate: Evaluate, cost: int, budget: Budget, space: Sequence[str], generator: torch.Generator, nodes: int = 4) -> Found:
    """Try uniformly drawn genotypes until the budget is spent.

    Args:
        evaluate: trains and scores a candidate.
        cost: images that this costs.
        budget: what is spent of.
        space: names of operations; `none` is never drawn.
        generator: source of the numbers, on the CPU.
        nodes: nodes of a cell.

    Raises:
        ValueError: if the budget does not pay for one candidate.
    """
    trials = _Trials(evaluate, cost, budget)
    while trials.has_more:
        trials.score(random_genotype(space, generator, nodes))
    return trials.best()


def evolve(
    evaluate: Evaluate,
    cost: int,
    budget: Budget,
    space: Sequence[str],
    generator: torch.Generator,
    nodes: int = 4,
    population: int = 8,
    sample: int = 3,
) -> Found:
    """Regularised evolution (Real et al. 2019): the best of a random sample has a mutated child, and the oldest dies, until the budget is spent.

    Args:
        evaluate: trains and scores a candidate.
        cost: images that this costs.
        budget: what is spent of.
        space: names of operations; `none` is never drawn.
        generator: source of the numbers, on the CPU.
        nodes: nodes of a cell.
        population: genotypes that live at a time; the first ones are drawn uniformly.
        sample: how many of them compete to be the parent.

    Raises:
        ValueError: if the budget does not pay for one candidate, or `sample` is not from 1 to `population`.
    """
    if not 1 <= sample <= population:
        raise ValueError(f"the sample that competes has 1 to {population} members, as the population, not {sample}")
    trials = _Trials(evaluate, cost, budget)
    alive: deque[tuple[float, Genotype]] = deque(maxlen=population)
    while trials.has_more:
        if len(alive) < population:
            child = random_genotype(space, generator, nodes)
        else:
            rivals = [alive[number] for number in torch.randperm(population, generator=generator)[:sample].tolist()]
            child = mutate(max(rivals, key=lambda rival: rival[0])[1], space, generator)
        alive.append((trials.score(child), child))
    return trials.best()


def weight_sharing_random(
    search: ArchitectureSearch, batches: Iterable[tuple[Tensor, Tensor]], count: int, budget: Budget, generator: torch.Generator
) -> Found:
    """Score random genotypes as paths of a supernet that was trained on uniform paths, see `uniform`, and return the best.

    Norms use each batch's own statistics, for no others belong to a path, so batches should be large and have both classes. Scoring
    passes images forward only: that costs a third of training, which the budget is charged, rounded up.

    Args:
        search: the trained search.
        batches: images, (B, 3, S, S), and labels, (B,), to be scored on, on the search's device.
        count: genotypes to draw, at most; fewer if the budget ends.
        budget: what is spent of.
        generator: source of the numbers, on the CPU.

    Raises:
        ValueError: if the budget does not pay for one candidate.
    """
    held = list(batches)

    @torch.no_grad()
    def accuracy(genotype: Genotype) -> float:
        path = search.net.path(genotype)
        right = sum(int((search.net(images, path).argmax(1) == labels).sum()) for images, labels in held)
        return right / sum(len(labels) for _, labels in held)

    trials = _Trials(accuracy, -(-sum(len(labels) for _, labels in held) // 3), budget)
    while trials.has_more and len(trials.rows) < count:
        trials.score(random_genotype(search.net.table.space, generator, search.net.table.nodes))
    return trials.best()
