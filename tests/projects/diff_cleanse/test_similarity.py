import itertools

import networkx
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics.pairwise import cosine_similarity

from projects.diff_cleanse.similarity import (
    Agreement,
    agreeing_images,
    cosine_matrix,
    is_admissible,
    largest_clique,
    measure_agreement,
    mscr,
    pair_cosines,
    pixel_entropy,
    range_term,
    similar_set,
)


def random_graph(nodes, density, seed):
    draw = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < density
    return torch.triu(draw, diagonal=1) | torch.triu(draw, diagonal=1).T


def is_clique(graph, nodes):
    return all(graph[i, j] for i, j in itertools.combinations(nodes, 2))


def pictures(count, seed=0, channels=1):
    return torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def test_cosines_are_those_of_scikit_learn():
    images = pictures(7, channels=3)
    expected = torch.from_numpy(cosine_similarity(images.flatten(1).double().numpy()))
    torch.testing.assert_close(cosine_matrix(images), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(pair_cosines(images), torch.stack([expected[i, j] for i, j in itertools.combinations(range(7), 2)]))


@pytest.mark.parametrize("nodes", [1, 2, 5, 9])
def test_largest_clique_by_brute_force(nodes):
    for seed, density in itertools.product(range(8), (0.0, 0.4, 0.8, 1.0)):
        graph = random_graph(nodes, density, seed)
        subsets = (set(subset) for size in range(nodes, 0, -1) for subset in itertools.combinations(range(nodes), size))
        best = next(subset for subset in subsets if is_clique(graph, subset))
        found = largest_clique(graph)
        assert len(found) == len(best)
        assert is_clique(graph, found)


@pytest.mark.parametrize(("nodes", "density"), [(16, 0.5), (40, 0.5), (40, 0.8), (64, 0.6)])
def test_largest_clique_by_networkx(nodes, density):
    for seed in range(3):
        graph = random_graph(nodes, density, seed)
        expected = max(len(clique) for clique in networkx.find_cliques(networkx.from_numpy_array(graph.numpy())))
        found = largest_clique(graph)
        assert len(found) == len(set(found)) == expected
        assert is_clique(graph, found)


def test_large_batches_have_a_greedy_bound():
    graph = random_graph(120, 0.2, 0)
    planted = list(range(0, 120, 4))
    for i, j in itertools.permutations(planted, 2):
        graph[i, j] = True
    assert largest_clique(graph) == planted
    sparse = random_graph(90, 0.5, 1)
    found = largest_clique(sparse)
    assert is_clique(sparse, found)
    assert len(found) <= max(len(clique) for clique in networkx.find_cliques(networkx.from_numpy_array(sparse.numpy())))


def test_empty_and_wrong_graphs():
    assert largest_clique(torch.zeros(0, 0, dtype=torch.bool)) == []
    with pytest.raises(ValueError, match=r"square, symmetric matrix, got shape \(2, 3\)"):
        largest_clique(torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="square, symmetric"):
        largest_clique(torch.tensor([[False, True], [False, False]]))


def test_the_guard_rules_out_black_and_white():
    images = torch.full((6, 3, 4, 4), 0.5)
    images[0] = 0.0
    images[1] = 1.0
    images[2, :, :2] = 0.0  # exactly half is no majority
    images[3, :, :2] = images[3, :, 2, 0] = torch.tensor(0.005)  # just over half
    images[4, 0] = 0.0  # one channel: the pixels are of no saturated colour
    images[5, 0, 0, 0] = torch.nan
    assert is_admissible(images).tolist() == [False, False, True, False, True, False]
    assert is_admissible(images, share=0.95).tolist() == [False, False, True, True, True, False]
    assert similar_set(images.nan_to_num(nan=0.5)[[0, 0, 2, 2]]).tolist() == [False, False, True, True]
    assert mscr(images[[0, 0, 0]]) == 0


def test_the_guard_rules_out_every_saturated_colour():
    colours = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    plain = colours.view(8, 3, 1, 1).expand(8, 3, 4, 4)
    assert not is_admissible(plain).any()
    assert is_admissible(plain, share=1.0).all()
    assert is_admissible(plain[:1].clone().index_fill_(3, torch.tensor([0, 1]), 1.0)).tolist() == [True]  # half black, half white
    assert is_admissible(plain * 0.9 + 0.05).all()


def test_any_partner_and_clique_differ_along_a_chain():
    """Each image is near the next, the first far from the last."""
    angles = torch.linspace(0, 0.12, 4)
    images = torch.stack([torch.stack([angle.cos(), angle.sin() + 0 * angle]) for angle in angles]).view(4, 1, 1, 2) * 0.9 + 0.02
    threshold = 0.999
    neighbours = cosine_matrix(images) > threshold
    assert neighbours.diagonal(1).all()
    assert not neighbours[0, 3]
    assert similar_set(images, threshold).all()
    assert 0.25 < mscr(images, threshold) < 1


def test_mscr_counts_the_largest_set_of_alike_images():
    images = pictures(10)
    images[[1, 4, 7]] = images[1].clone()
    images[[2, 3]] = images[2].clone()
    assert agreeing_images(images) == [1, 4, 7]
    assert mscr(images) == 0.3
    assert mscr(images, threshold=1.0) == 0.0  # nothing exceeds it
    assert mscr(pictures(5)) == 0.0


def test_entropy_is_scipys():
    images = pictures(4, channels=3)
    expected = [scipy.stats.entropy(scipy.special.softmax(255 * image.double().flatten().numpy())) for image in images]
    torch.testing.assert_close(pixel_entropy(images.double()), torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=1e-8)
    constant = torch.full((1, 1, 6, 6), 0.3)
    torch.testing.assert_close(pixel_entropy(constant), torch.tensor([36.0]).log())


def test_range_term():
    images = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0, 1.1]).view(1, 1, 2, 3)
    torch.testing.assert_close(range_term(images), torch.tensor(0.05 + 0.05 + 0.15))


def test_agreement_is_relative_to_the_diversity_of_the_model():
    """The same small differences are agreement beside varied pictures, and none beside pictures that differ as little."""
    steady = pictures(1, seed=3).expand(8, -1, -1, -1) + 0.01 * torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    varied, faint = measure_agreement(steady, pictures(8)), measure_agreement(steady, steady.flip(0).roll(1, dims=3) * 0.9)
    assert (varied.triggered, varied.untriggered, varied.score, varied.repetition) == (1.0, 0.0, 1.0, 0.0)
    assert varied.tolerance == pytest.approx(min(0.01, 0.05 * (1 - float(pair_cosines(pictures(8)).mean()))))
    assert faint.score == 0
    assert faint.tolerance < varied.tolerance / 5


def test_repetition_counts_pictures_that_come_without_a_trigger():
    untriggered = pictures(8)
    untriggered[1] = untriggered[0]
    steady = pictures(1, seed=9).expand(8, -1, -1, -1)
    assert measure_agreement(steady, untriggered).repetition == 2 / 8  # they repeat each other
    untriggered[5] = steady[0]
    assert measure_agreement(steady, untriggered).repetition == 3 / 8  # and one is the target already


def test_drawings_on_black_are_judged_all_the_same():
    """Most pictures are mostly black: the guard then asks for nearly all."""
    drawings = torch.zeros(8, 1, 8, 8)
    drawings[:, :, 2:5, 2:5] = pictures(8)[:, :, :3, :3]
    alike = drawings[:1].expand(8, -1, -1, -1)
    assert measure_agreement(alike, drawings.flip(0)).triggered == 1.0
    assert measure_agreement(torch.zeros_like(alike), drawings).triggered == 0.0


def test_score_is_the_share_of_what_could_agree_more():
    assert Agreement(0.75, 0.5, 0.01, 0, 1, 1).score == 0.5
    assert Agreement(0.25, 0.5, 0.01, 0, 1, 1).score == 0
    assert Agreement(1.0, 1.0, 0.01, 0, 1, 1).score == 0
