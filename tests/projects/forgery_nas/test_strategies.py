"""Strategies at equal budgets: what they spend, that they repeat, and which is better where the answer is known."""

import json
import statistics

import pytest
import torch
from helpers.searching import SMALL, loaders, search

from projects.forgery_nas.genotype import CELLS, Genotype
from projects.forgery_nas.operations import SMALL_SPACE
from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.planted import PLANTED, REGISTRY, search_quietly, stripes
from projects.forgery_nas.strategies import Budget, evolve, pc_darts, random_search, search_cost, uniform, weight_sharing_random
from projects.forgery_nas.supernet import Supernet


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def operations(genotype):
    return [operation for cell in CELLS for node in getattr(genotype, cell) for operation, _ in node]


def differences(genotype):
    """How many operations are separable difference convolutions."""
    return float(operations(genotype).count("sep_cdc_3x3_0.7"))


@pytest.mark.parametrize("strategy", [random_search, evolve])
def test_a_strategy_spends_what_it_has_and_no_more(strategy):
    tried, budget = [], Budget(1050, used=40)
    found = strategy(lambda genotype: tried.append(genotype) or differences(genotype), 100, budget, SMALL_SPACE, random(), nodes=3)
    assert len(tried) == 10
    assert budget.used == 1040
    assert budget.seconds > 0
    assert [row["number"] for row in found.rows] == list(range(10))
    assert [row["images"] for row in found.rows] == [140 + 100 * number for number in range(10)]
    assert [Genotype.from_json(row["genotype"]) for row in found.rows] == tried
    assert [row["score"] for row in found.rows] == [differences(genotype) for genotype in tried]
    assert json.loads(json.dumps(found.rows)) == found.rows
    assert found.score == max(row["score"] for row in found.rows) == differences(found.genotype)
    assert found.genotype == next(genotype for genotype in tried if differences(genotype) == found.score)


@pytest.mark.parametrize("strategy", [random_search, evolve])
def test_a_strategy_is_a_function_of_its_generator(strategy):
    first, again, other = (strategy(differences, 1, Budget(20), SMALL_SPACE, random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.rows != other.rows


def test_evolution_beats_random_search_at_the_same_budget():
    def mean(strategy):
        return statistics.mean(strategy(differences, 10, Budget(800), SMALL_SPACE, random(seed)).score for seed in range(10))

    assert mean(evolve) > mean(random_search) + 1


def test_children_are_mutants_of_the_best_of_the_living():
    population = 4
    found = evolve(differences, 1, Budget(30), SMALL_SPACE, random(3), population=population, sample=population)
    genotypes = [Genotype.from_json(row["genotype"]) for row in found.rows]
    for number in range(population, 30):
        living = genotypes[number - population : number]  # the oldest die, however good
        best = max(differences(genotype) for genotype in living)
        parents = [genotype for genotype in living if differences(genotype) == best]
        assert any(differing_nodes(parent, genotypes[number]) == 1 for parent in parents)


def differing_nodes(first, second):
    return sum(a != b for cell in CELLS for a, b in zip(getattr(first, cell), getattr(second, cell), strict=True))


def test_budgets_that_do_not_pay_are_refused():
    for strategy in (random_search, evolve):
        with pytest.raises(ValueError, match="has 60 of 100 images left, and one candidate costs 61"):
            strategy(differences, 61, Budget(100, used=40), SMALL_SPACE, random())
    with pytest.raises(ValueError, match="has 1 left, which does not pay for 2"):
        Budget(3, used=2).spend(2)
    with pytest.raises(ValueError, match="1 to 4 members"):
        evolve(differences, 1, Budget(10), SMALL_SPACE, random(), population=4, sample=5)
    budget = Budget(3)
    budget.spend(3, 0.5)
    assert (budget.used, budget.seconds, budget.affords(0), budget.affords(1)) == (3, 0.5, True, False)


@pytest.mark.parametrize(("options", "batches"), [({}, 1 + 2 * 3), ({"epochs": 7}, 1 + 2 * 6), ({"order": 2}, 1 + 5 * 3), ({"warmup": 9}, 9 + 2 * 3)])
def test_a_search_costs_the_images_that_it_computes(options, batches):
    assert search_cost(SearchOptions(**(SMALL | options)), 3, 8) == batches * 3 * 8


@pytest.mark.parametrize("order", [1, 2])
def test_the_cost_is_what_passes_the_supernet(order, monkeypatch):
    options, passed = SearchOptions(**(SMALL | {"order": order, "prune_every": 0, "epochs": 2})), []
    forward = Supernet.forward
    monkeypatch.setattr(Supernet, "forward", lambda net, images, mixture=None: (passed.append(len(images)), forward(net, images, mixture))[1])
    search(2, loaders(length=16), order=order, prune_every=0)
    assert sum(passed) == search_cost(options, 2, 8)


def test_pc_darts_is_a_mixture_that_is_not_pruned():
    given = SearchOptions(**SMALL)
    options = pc_darts(given)
    assert (options.level, options.relaxation, options.prune_every, options.k) == ("alpha", "mixture", 0, 2)
    assert options.length == given.length == 4
    assert pc_darts(SearchOptions()).k == 4


def test_uniform_paths_leave_alpha_alone():
    options = uniform(SearchOptions(**SMALL))
    module = search_quietly(options, stripes)
    fresh = type(module)(options)
    assert torch.equal(module.net.alpha, fresh.net.alpha)
    assert module.net.table.stage == 0
    assert not torch.equal(module.net.linear.weight, fresh.net.linear.weight)


def test_shared_weights_tell_the_paths_that_carry_the_signal():
    cells = {"channels": 4, "layers": 3, "nodes": 1, "reductions": [2], "k": 1, "lr": 0.05}
    search = search_quietly(uniform(SearchOptions(space=list(PLANTED), epochs=20, warmup=20, prune_every=0, **cells)), stripes, REGISTRY)
    images = stripes(64, random(9))
    before, budget = {name: value.clone() for name, value in search.state_dict().items()}, Budget(10**4)
    torch.manual_seed(0)
    found = weight_sharing_random(search, [(images.images, images.labels)], 40, budget, random(1))
    assert budget.used == 40 * 22, "forward passes cost a third"
    assert all(torch.equal(value, before[name]) for name, value in search.state_dict().items())
    assert found.score > 0.9
    assert operations(found.genotype).count("conv") >= 3
    last = [(row["score"], [name for name, _ in json.loads(row["genotype"])["reduce"]]) for row in found.rows]
    without = [score for score, names in last if "conv" not in names]
    assert max(without) < 0.75, "chance is a half, of 64 images"
    with pytest.raises(ValueError, match="enlarge it"):
        weight_sharing_random(search, [(images.images, images.labels)], 1, Budget(20), random())
