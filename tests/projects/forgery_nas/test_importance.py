import itertools

import pytest
import torch

from projects.forgery_nas.alive import AliveTable
from projects.forgery_nas.genotype import CELLS, Genotype
from projects.forgery_nas.importance import build_importance, derive

SPACE = ("conv", "skip_connect", "pool", "none")
SHAPE = (2, 5, 4)  # two nodes


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def observed(level, batches, **options):
    """An importance that has seen batches of (choice, validation accuracy, training accuracy)."""
    importance = build_importance(level, SHAPE, **options)
    for choice, val, train in batches:
        importance.observe(choice, val, train)
    return importance


def batches(count, seed=0):
    numbers = random(seed)
    return [(torch.randint(-1, 4, SHAPE[:2], generator=numbers), *torch.rand(2, generator=numbers).tolist()) for _ in range(count)]


ALIVE = torch.ones(SHAPE, dtype=torch.bool)
PROBABILITIES = torch.rand(SHAPE, generator=random(1)).softmax(-1)


def test_alpha_is_the_softmax():
    torch.testing.assert_close(observed("alpha", batches(3)).score(PROBABILITIES, ALIVE), PROBABILITIES)


def test_eoi_is_that_of_section_2_5():
    seen = batches(12)
    importance = observed("eoi", seen[:7], weight=0.3)
    importance.prune()
    for choice, val, train in seen[7:]:
        importance.observe(choice, val, train)
    found = importance.score(PROBABILITIES, ALIVE)
    for place in itertools.product(range(2), range(5), range(4)):
        accuracies = [val for choice, val, _ in seen if choice[place[:2]] == place[2]]
        since = sum(choice[place[:2]] == place[2] for choice, _, _ in seen[7:]).item()
        latest = accuracies[-1] if accuracies else 0.0
        assert found[place].item() == pytest.approx(PROBABILITIES[place].item() + 0.3 * latest / max(since, 1), abs=1e-6)


def test_eoi_is_finite_where_a_candidate_was_never_dominant():
    found = observed("eoi", []).score(PROBABILITIES, ALIVE)
    torch.testing.assert_close(found.float(), PROBABILITIES)


def test_general_is_that_of_section_2_5():
    seen = batches(9)
    importance = observed("general", seen, weight=0.7, gap=2.0)
    importance.prune()  # forgets nothing
    alive = ALIVE.clone()
    alive[0, 0, 1] = alive[1, 4, 3] = False
    found = importance.score(PROBABILITIES, alive)
    for cell, edge in itertools.product(range(2), range(5)):
        living = [column for column in range(4) if alive[cell, edge, column]]
        means = {}
        for column in living:
            scores = [val - 2 * max(0, train - val) for choice, val, train in seen if choice[cell, edge] == column]
            if scores:
                means[column] = sum(scores) / len(scores)
        middle = sum(means.values()) / len(means)
        means = {column: means.get(column, middle) for column in living}
        low, high = min(means.values()), max(means.values())
        for column in living:
            expected = PROBABILITIES[cell, edge, column].item() + 0.7 * (means[column] - low) / (high - low + 1e-8)
            assert found[cell, edge, column].item() == pytest.approx(expected, abs=1e-6)


def test_general_without_a_batch_is_alpha():
    torch.testing.assert_close(observed("general", []).score(PROBABILITIES, ALIVE).float(), PROBABILITIES)


def test_a_candidate_that_generalises_beats_one_that_fits():
    first, second = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    importance = observed("general", [(first, 0.7, 0.7), (second, 0.75, 1.0)])
    found = importance.score(torch.full(SHAPE, 0.25), ALIVE)
    assert (found[..., 0] > found[..., 1]).all()
    found = observed("general", [(first, 0.7, 0.7), (second, 0.75, 1.0)], gap=0.0).score(torch.full(SHAPE, 0.25), ALIVE)
    assert (found[..., 0] < found[..., 1]).all()


def test_perturb_is_positive_and_grows_with_the_rise_of_the_loss():
    importance = build_importance("perturb", SHAPE)
    importance.rise.copy_(torch.randn(SHAPE, generator=random(2)))
    found = importance.score(PROBABILITIES, ALIVE)
    assert (found > 0).all()
    assert torch.equal(found.flatten().argsort(), importance.rise.flatten().argsort())


@pytest.mark.parametrize("level", ["alpha", "eoi", "general", "perturb"])
def test_what_is_known_is_kept_with_the_weights(level):
    importance, again = observed(level, batches(5)), build_importance(level, SHAPE)
    again.load_state_dict(importance.state_dict())
    assert torch.equal(again.score(PROBABILITIES, ALIVE), importance.score(PROBABILITIES, ALIVE))


def test_unknown_levels_are_named():
    with pytest.raises(ValueError, match="choose alpha, eoi, general, perturb"):
        build_importance("beta", SHAPE)


# ---- deriving


def brute_force(table, importance, beta):
    """The genotype of the largest sum of edge scores, over all pairs of edges and operations of each node."""
    cells = []
    for cell in range(2):
        nodes = []
        for node, first in enumerate((0, 2, 5)[: table.nodes]):
            weights = beta[cell, first : first + 2 + node].softmax(0)
            options = [
                (float(importance[cell, first + source, column] * weights[source]), (table.space[column], source))
                for source in range(2 + node)
                for column in table.columns(cell, first + source)
                if table.space[column] != "none"
            ]
            pairs = [pair for pair in itertools.combinations(options, 2) if pair[0][1][1] != pair[1][1][1]]
            best = max(pairs, key=lambda pair: sum(score for score, _ in pair))
            nodes.append(tuple(edge for _, edge in best))
        cells.append(tuple(nodes))
    return Genotype(*cells)


@pytest.mark.parametrize("seed", range(5))
def test_derived_genotypes_are_the_best_by_brute_force(seed):
    numbers, table = random(seed), AliveTable(SPACE, nodes=3)
    table.prune(torch.rand(2, 9, 4, generator=numbers))
    importance, beta = torch.rand(2, 9, 4, generator=numbers), torch.randn(2, 9, generator=numbers)
    found = derive(table, importance, beta, skip_limit=None)
    assert found == brute_force(table, importance, beta)
    alive = {(cell, edge, name) for (cell, edge, name), is_alive in table.rows() if is_alive}
    for cell in CELLS:
        for node, pairs in enumerate(getattr(found, cell)):
            assert len({source for _, source in pairs}) == 2
            for name, source in pairs:
                assert name != "none"
                assert (cell, node * (node + 3) // 2 + source, name) in alive


def test_none_may_lead_and_is_never_taken():
    table, importance = AliveTable(SPACE, nodes=2), torch.rand(SHAPE, generator=random())
    importance[..., 3] = 10
    found = derive(table, importance, torch.zeros(2, 5))
    assert all(name != "none" for cell in CELLS for node in getattr(found, cell) for name, _ in node)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, None])
def test_skips_of_the_normal_cell_are_limited(limit):
    table, importance = AliveTable(SPACE, nodes=3), torch.rand(2, 9, 4, generator=random())
    importance[..., 1] += 1
    beta = torch.randn(2, 9, generator=random(3))
    found = derive(table, importance, beta, limit)
    free = derive(table, importance, beta, None)

    def skips(cell):
        return {(node, source) for node, pairs in enumerate(cell) for name, source in pairs if name == "skip_connect"}

    assert len(skips(free.normal)) == len(skips(found.reduce)) == 6, "only the normal cell has a limit"
    if limit is None:
        assert found == free
        return
    assert len(skips(found.normal)) == limit
    assert found.reduce == free.reduce
    if limit == 0:
        importance[0, :, 1] = -1
        assert found.normal == derive(table, importance, beta, None).normal


def test_skips_stay_where_nothing_else_is_alive():
    table, beta = AliveTable(SPACE, nodes=2), torch.zeros(2, 5)
    table.alive[:] = torch.tensor([False, True, False, False])
    table.alive[0, 3] = torch.tensor([True, False, False, False])
    importance = torch.rand(SHAPE, generator=random())
    found = derive(table, importance, beta, skip_limit=1)
    assert [name for name, _ in found.normal[0]] == ["skip_connect"] * 2, "node 0 has no other edges"
    assert sorted(name for name, _ in found.normal[1]) == ["conv", "skip_connect"]


def test_a_node_without_operations_is_named():
    table = AliveTable(("conv", "none"), nodes=1)
    table.alive[1, 0] = torch.tensor([False, True])
    with pytest.raises(ValueError, match="node 0 has fewer than two edges"):
        derive(table, torch.rand(2, 2, 2), torch.zeros(2, 2))
