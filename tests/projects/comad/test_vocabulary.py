import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from projects.comad.vocabulary import assign, choose_k, fit_vocabulary, match_centres, rate_vocabularies


def directions(k, channels=16, each=60, spread=0.08, seed=0):
    """Tokens of any length around k directions, at right angles to each other, the later the fewer; and the direction of each."""
    chance = torch.Generator().manual_seed(seed)
    counts = torch.tensor([each + 10 * (k - number) for number in range(k)])
    which = torch.arange(k).repeat_interleave(counts)
    tokens = torch.eye(channels)[which] + spread * torch.randn(len(which), channels, generator=chance)
    return tokens * (0.5 + 4 * torch.rand(len(which), 1, generator=chance)), which


def test_centres_are_the_means_of_unit_tokens_largest_clusters_first():
    tokens, which = directions(5)
    centres = fit_vocabulary(tokens, 5, seed=0)
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    expected = torch.stack([unit[which == number].mean(0) for number in range(5)])
    torch.testing.assert_close(centres, expected)
    assert centres.norm(dim=1).max() < 1
    assert torch.equal(assign(tokens, centres), which)


def test_the_inertia_is_as_good_as_the_best_of_many_beginnings():
    tokens = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(tokens, dim=1)
    inertia = torch.cdist(unit, fit_vocabulary(tokens, 5, seed=0)).amin(1).square().sum()
    assert inertia <= 1.01 * KMeans(5, n_init=50, random_state=0).fit(unit.numpy()).inertia_


def test_the_same_seed_gives_the_same_vocabulary():
    tokens = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fit_vocabulary(tokens, 6, seed=4), fit_vocabulary(tokens, 6, seed=4))


def test_the_length_of_tokens_does_not_matter():
    tokens, _ = directions(4)
    lengths = 1 + torch.rand(len(tokens), 1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fit_vocabulary(tokens, 4, seed=0), fit_vocabulary(tokens * lengths, 4, seed=0))


@pytest.mark.parametrize("by", ["silhouette", "stability"])
def test_the_number_of_components_is_found(by):
    tokens, _ = directions(4, each=40)
    assert choose_k(tokens, [3, 4, 5], seed=0, by=by) == 4
    ratings = rate_vocabularies(tokens, [3, 4, 5], seed=0, by=by)
    assert list(ratings) == [3, 4, 5]
    assert ratings[4] > max(ratings[3], ratings[5])
    assert max(ratings.values()) <= 1


def test_equal_ratings_choose_the_smallest(monkeypatch):
    monkeypatch.setattr("projects.comad.vocabulary._silhouette", lambda *rest: 0.5)
    assert choose_k(torch.rand(9, 3), [5, 3, 4], seed=0) == 3


def test_matched_centres_have_the_best_sum_of_cosines():
    chance = torch.Generator().manual_seed(3)
    centres, others = torch.randn(5, 8, generator=chance), torch.randn(5, 8, generator=chance)
    cosines = torch.nn.functional.cosine_similarity(centres[:, None], others[None], dim=2).numpy()
    best = max(itertools.permutations(range(5)), key=lambda order: np.trace(cosines[:, order]))
    assert match_centres(centres, others).tolist() == list(best)


def test_a_shuffled_vocabulary_is_put_back():
    centres = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    shuffled = centres[[3, 1, 5, 0, 2, 4]] * 0.7
    torch.testing.assert_close(shuffled[match_centres(centres, shuffled)], centres * 0.7)


def test_components_of_two_seeds_are_matched():
    tokens, which = directions(5)
    first, second = fit_vocabulary(tokens, 5, seed=0), fit_vocabulary(tokens.flip(0), 5, seed=1).flip(0)
    assert torch.equal(assign(tokens, second[match_centres(first, second)]), which)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_vocabulary(torch.rand(9, 3), 1, 0), "at least 2 centres, not 1"),
        (lambda: fit_vocabulary(torch.rand(3, 3).repeat(4, 1), 4, 0), "there are 3: take more pictures"),
        (lambda: fit_vocabulary(torch.full((9, 3), float("nan")), 2, 0), "NaN or infinite"),
        (lambda: fit_vocabulary(torch.rand(2, 9, 3), 2, 0), r"shape \(M, C\), not \(2, 9, 3\)"),
        (lambda: choose_k(torch.rand(9, 3), [], 0), "no numbers of components"),
        (lambda: choose_k(torch.rand(9, 3), [2], 0, by="elbow"), "silhouette or stability, not by 'elbow'"),
        (lambda: match_centres(torch.rand(4, 3), torch.rand(5, 3)), r"\(4, 3\) and \(5, 3\) cannot be matched"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_euclidean_centres_are_the_means_of_tokens_as_they_are():
    lengths = torch.tensor([1.0, 2.0, 4.0]).repeat_interleave(torch.tensor([60, 50, 40]))
    tokens = lengths[:, None] * torch.tensor([[3.0, 4.0]]) + 0.01 * torch.randn(150, 2, generator=torch.Generator().manual_seed(0))
    centres = fit_vocabulary(tokens, 3, seed=0, metric="euclidean")
    expected = torch.stack([tokens[lengths == length].mean(0) for length in (1, 2, 4)])
    torch.testing.assert_close(centres, expected)
    assert torch.equal(assign(tokens, centres, "euclidean"), (lengths == 2) * 1 + (lengths == 4) * 2)
    assert choose_k(tokens, [2, 3, 5], seed=0, metric="euclidean") == 3
    assert match_centres(centres, centres[[2, 0, 1]], "euclidean").tolist() == [1, 2, 0]


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="cosine or euclidean, not by 'manhattan'"):
        fit_vocabulary(torch.rand(9, 3), 2, 0, metric="manhattan")
