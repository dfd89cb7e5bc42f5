import pytest
import torch

from projects.comad import sampling
from projects.comad.sampling import k_centre, sample_tokens

UNMAPPED = 0


def brute_force(points, count):
    """Greedy sampling word for word: the matrix of distances, the row with the largest norm, then the largest distance to the nearest chosen one."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = [int(distances.norm(dim=1).argmax())]
    while len(chosen) < count:
        nearest = distances[chosen].amin(0)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def clusters(count, channels, seed):
    chance = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, channels, generator=chance, dtype=torch.float64)
    return centres[torch.randint(12, (count,), generator=chance)] + 0.2 * torch.randn(count, channels, generator=chance, dtype=torch.float64)


@pytest.fixture
def levels(monkeypatch):
    monkeypatch.setattr(sampling, "LARGE", 0)


@pytest.mark.parametrize(
    "points", [clusters(300, 5, 0), clusters(200, 40, 1), torch.rand(250, 2, dtype=torch.float64) + 1000], ids=["5", "40", "far"]
)
def test_picks_are_those_of_the_matrix_of_distances(points):
    assert k_centre(points, 30, seed=0, project=UNMAPPED).tolist() == brute_force(points, 30)


@pytest.mark.parametrize(
    "points", [clusters(300, 5, 2), clusters(200, 40, 3), torch.rand(250, 2, dtype=torch.float64) + 1000], ids=["5", "40", "far"]
)
def test_picks_among_many_points_are_those_of_the_matrix_of_distances(points, levels):
    assert k_centre(points, 120, seed=0, project=UNMAPPED).tolist() == brute_force(points, 120)


def test_many_points_are_not_compared_with_all_centres(monkeypatch):
    points = clusters(4000, 3, 4).float()
    compared = []
    plain = sampling._distances
    monkeypatch.setattr(sampling, "_distances", lambda some, norms, centre: compared.append(len(some)) or plain(some, norms, centre))
    few = k_centre(points, 200, 0, UNMAPPED)
    assert sum(compared) == 199 * 4000
    compared.clear()
    caught_up = sampling._catch_up
    monkeypatch.setattr(sampling, "_catch_up", lambda *rest: compared.append(len(rest[3]) * len(rest[4])) or caught_up(*rest))
    monkeypatch.setattr(sampling, "LARGE", 0)
    assert torch.equal(k_centre(points, 200, 0, UNMAPPED), few)
    assert sum(compared) < 0.6 * 199 * 4000


def test_points_of_many_channels_are_mapped_to_fewer_by_the_seed():
    points = clusters(400, 384, 5).float()
    again = k_centre(points, 9, seed=1), k_centre(points, 9, seed=1)
    assert torch.equal(*again)
    assert not torch.equal(again[0], k_centre(points, 9, seed=2))
    radius = {project: torch.cdist(points, points[k_centre(points, 12, 1, project)]).amin(1).max() for project in (UNMAPPED, 128)}
    assert radius[128] < 1.3 * radius[UNMAPPED]


def test_points_of_few_channels_are_not_mapped():
    points = clusters(100, 8, 6)
    assert torch.equal(k_centre(points, 9, seed=1), k_centre(points, 9, 2, UNMAPPED))


@pytest.mark.parametrize("large", [0, 1 << 24])
def test_copies_are_chosen_last_and_never_twice(monkeypatch, large):
    monkeypatch.setattr(sampling, "LARGE", large)
    corners = torch.tensor([[0.0, 0.0], [0.0, 8.0], [8.0, 0.0], [8.0, 9.0]])
    chosen = k_centre(corners.repeat(5, 1), 20, seed=0)
    assert sorted((chosen[:4] % 4).tolist()) == [0, 1, 2, 3]
    assert sorted(chosen.tolist()) == list(range(20))


def test_centres_cover_twice_as_far_as_the_best_at_most():
    """Gonzalez 1985: greedy k-centre is a 2-approximation; three far groups are found by three centres."""
    groups = torch.cat([torch.rand(50, 2), torch.rand(50, 2) + 100, torch.rand(50, 2) - 100])
    assert sorted((k_centre(groups, 3, seed=0) // 50).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 11])
def test_wrong_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"1 to all of 10 points, not {count}"):
        k_centre(torch.rand(10, 3), count, seed=0)


def test_points_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        k_centre(torch.tensor([[0.0], [float("nan")], [1.0]]), 2, seed=0)


def test_a_picture_of_784_tokens_keeps_7_of_its_own():
    features = clusters(2 * 784, 16, 7).float().view(2, 784, 16).mT.reshape(2, 16, 28, 28)
    kept = sample_tokens(features, seed=0)
    assert kept.shape == (14, 16)
    for picture, tokens in zip(features, kept.chunk(2), strict=True):
        assert [int((token == picture.flatten(1).T).all(1).sum()) for token in tokens] == [1] * 7


def test_tokens_do_not_depend_on_the_batches():
    features = clusters(3 * 100, 200, 8).float().view(3, 100, 200).mT.reshape(3, 200, 10, 10)
    together = sample_tokens(features, seed=3, fraction=0.05)
    apart = [sample_tokens(picture[None], seed=3, fraction=0.05, first=number) for number, picture in enumerate(features)]
    assert torch.equal(together, torch.cat(apart))


def test_a_small_picture_keeps_one_token():
    assert len(sample_tokens(torch.rand(1, 4, 2, 2), seed=0)) == 1
