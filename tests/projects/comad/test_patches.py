import numpy as np
import pytest
import torch
from torch.nn import functional as F

from projects.comad.patches import PatchMemory, nearest, smooth


def drawn(count=6, channels=5, side=8, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def fitted(features, **options):
    return PatchMemory(**({"count": 200, "neighbourhood": 1, "blur": 0} | options)).fit(features)


def rows(features):
    return features.flatten(2).mT.flatten(0, 1)


def test_distances_are_those_of_brute_force_in_double_precision():
    queries, points = torch.randn(300, 6) + 100, torch.randn(1000, 6) + 100  # far from 0, where products of matrices lose digits
    distances, places = nearest(queries, points)
    every = (queries.double()[:, None] - points.double()).norm(dim=2)
    np.testing.assert_allclose(distances.numpy(), every.min(1).values.numpy(), rtol=1e-5)
    np.testing.assert_allclose(every.gather(1, places[:, None])[:, 0].numpy(), distances.numpy(), rtol=1e-6)


def test_no_more_than_a_million_distances_are_held_at_a_time(monkeypatch):
    queries, points = torch.randn(50, 3), torch.randn(40, 3)
    whole = nearest(queries, points)
    monkeypatch.setattr("projects.comad.patches._CHUNK", 130)
    for part, other in zip(nearest(queries, points), whole, strict=True):
        assert torch.equal(part, other)


def test_features_are_averaged_over_the_neighbours_inside_the_grid():
    features = drawn(1, 2, 5)
    found = PatchMemory(neighbourhood=3)._patches(features)[0].mT.view(2, 5, 5)
    for row in range(5):
        for column in range(5):
            square = features[0, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            torch.testing.assert_close(found[:, row, column], square.mean((1, 2)))


def test_a_remembered_picture_has_no_distance():
    features = drawn()
    found = fitted(features, count=6 * 64, neighbourhood=3)(features, (16, 16))
    assert float(found.scores.max()) < 1e-6
    assert float(found.maps.max()) < 1e-6


def test_the_score_is_that_of_the_equations_of_patchcore():
    features = drawn(4, seed=1)
    patches = fitted(drawn(), count=100, neighbours=9, coreset="random")
    memory, found = patches.memory.double(), patches(features, (8, 8))
    for picture, score, anomaly_map in zip(features.double(), found.scores, found.maps, strict=True):
        every = (rows(picture[None])[:, None] - memory).norm(dim=2)
        of_patch, of_memory = divmod(int((every == every.min(1).values.max()).int().argmax()), 100)
        s = every[of_patch, of_memory]
        around = (memory - memory[of_memory]).norm(dim=1).argsort()[:9]
        w = 1 - s.exp() / every[of_patch, around].exp().sum()
        assert float(score) == pytest.approx(float(w * s), rel=1e-5)
        torch.testing.assert_close(anomaly_map[0], every.min(1).values.view(8, 8).float())


def test_without_neighbours_the_score_is_the_largest_distance():
    features = drawn(4, seed=1)
    for neighbours in (0, 1):
        patches = fitted(drawn(), neighbours=neighbours)
        assert patches(features, (8, 8)).scores.tolist() == patches.distances(features)[0].amax((1, 2)).tolist()


def test_huge_distances_do_not_overflow_the_weight():
    scores = fitted(drawn())(1e6 * drawn(2, seed=1), (8, 8)).scores
    assert bool(scores.isfinite().all())
    assert float(scores.min()) >= 0


def test_copies_in_the_memory_do_not_lower_the_weight_of_the_nearest_patch():
    features = torch.cat([torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)])
    score = fitted(features, count=8, neighbours=4)(torch.full((1, 2, 1, 1), -1.0), (1, 1)).scores
    assert float(score) == pytest.approx(2**0.5 * 3 / 4)  # of four equally near patches one is its own


def test_the_greedy_coreset_keeps_a_rare_patch_that_a_random_one_loses():
    features = 0.01 * drawn(20)
    features[7, :, 3, 3] += 10
    rare = features[7:8, :, 3:4, 3:4]
    assert float(fitted(features, count=20).distances(rare)[0]) < 1e-4
    assert float(fitted(features, count=20, coreset="random").distances(rare)[0]) > 10


def test_the_coreset_covers_the_patches_as_well_as_brute_force_does():
    points = rows(drawn(3))
    memory = fitted(drawn(3), count=20).memory
    assert len(memory.unique(dim=0)) == 20
    chosen = [int((memory[0] == points).all(1).int().argmax())]
    every = torch.cdist(points.double(), points.double())
    for _ in range(19):
        chosen.append(int(every[:, chosen].amin(1).argmax()))
    assert {tuple(row) for row in memory.tolist()} == {tuple(row) for row in points[chosen].tolist()}


@pytest.mark.parametrize("coreset", ["greedy", "random"])
def test_batches_of_any_size_and_the_seed_alone_decide_what_is_kept(coreset):
    features = drawn()
    options = {"count": 30, "candidates": 100, "coreset": coreset}
    memories = [fitted(batches, **options).memory for batches in (features, features.split(1), features.split(4))]
    assert torch.equal(memories[0], memories[1])
    assert torch.equal(memories[0], memories[2])
    assert not torch.equal(memories[0], fitted(features, seed=1, **options).memory)


def test_candidates_are_a_uniform_sample_of_all_patches():
    features = torch.arange(400.0).view(25, 1, 4, 4)
    kept = torch.stack([fitted(features.split(7), count=40, candidates=40, seed=seed).memory[:, 0] for seed in range(100)]).long()
    assert all(len(row.unique()) == 40 for row in kept)
    often = torch.bincount(kept.flatten(), minlength=400).double()  # 10 on average, binomial
    assert float((often - 10).square().mean()) == pytest.approx(100 * 0.1 * 0.9, rel=0.3)
    assert abs(float(kept.double().mean()) - 199.5) < 5


def test_maps_have_the_wanted_size_and_are_high_where_the_stain_is():
    features = 0.1 * drawn(2, side=14)
    stained = features.clone()
    stained[1, :, 2:4, 9:11] += 5
    found = PatchMemory(count=300).fit(features)(stained, (56, 84))
    assert found.maps.shape == (2, 1, 56, 84)
    row, column = divmod(int(found.maps[1].argmax()), 84)
    assert 8 <= row < 16
    assert 54 <= column < 66
    assert float(found.scores[1]) > 5 * float(found.scores[0])


def test_weights_silence_the_places_that_they_cover():
    features = 0.1 * drawn(2, side=8)
    stained = features.clone()
    stained[:, :, 2, 5] += 5
    weights = torch.ones(2, 1, 32, 32)
    weights[1, :, 8:12, 20:24] = 0
    patches = fitted(features)
    plain, weighted = patches(stained, (32, 32)), patches(stained, (32, 32), weights)
    assert float(plain.scores[1]) > 1
    assert float(weighted.scores[0]) == float(plain.scores[0])
    assert float(weighted.scores[1]) < 0.5
    assert float(weighted.maps[1].max()) < 0.5
    half = patches(stained, (32, 32), torch.full((2, 1, 3, 5), 0.5))
    torch.testing.assert_close(half.maps, plain.maps / 2)


def test_smoothing_equals_a_convolution_away_from_the_borders_and_keeps_constants():
    maps = torch.rand(2, 1, 40, 50)
    offsets = torch.arange(-19.0, 20)
    window = (-(offsets**2) / (2 * 2.0**2)).exp()
    window = window / window.sum()
    blurred = F.conv2d(F.conv2d(maps, window.view(1, 1, 1, -1), padding=(0, 19)), window.view(1, 1, -1, 1), padding=(19, 0))
    torch.testing.assert_close(smooth(maps, 2.0)[:, :, 14:26, 14:36], blurred[:, :, 14:26, 14:36])
    torch.testing.assert_close(smooth(torch.full((1, 1, 9, 12), 3.0), 4.0), torch.full((1, 1, 9, 12), 3.0))
    assert torch.equal(smooth(maps, 0), maps)


def test_a_saved_memory_gives_the_same_scores(tmp_path):
    patches, features = PatchMemory(count=50, seed=3, neighbourhood=3).fit(drawn()), drawn(2, seed=1)
    torch.save(patches.state(), tmp_path / "patches.pt")
    again = PatchMemory.from_state(torch.load(tmp_path / "patches.pt", weights_only=True))
    assert again.options == patches.options
    for mine, other in zip(again(features, (16, 16)), patches(features, (16, 16)), strict=True):
        assert torch.equal(mine, other)


def test_what_cannot_be_remembered_is_named():
    with pytest.raises(ValueError, match="one of greedy, random, got 'best'"):
        PatchMemory(coreset="best")
    with pytest.raises(ValueError, match="count 10 of 5"):
        PatchMemory(count=10, candidates=5)
    with pytest.raises(ValueError, match="neighbourhood must be odd"):
        PatchMemory(neighbourhood=2)
    with pytest.raises(ValueError, match="must not be negative"):
        PatchMemory(neighbours=-1)
    for empty in ([], drawn(0)):
        with pytest.raises(ValueError, match="training set is empty"):
            PatchMemory().fit(empty)
    with pytest.raises(ValueError, match=r"must be \(B, C, h, w\)"):
        PatchMemory().fit(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="features are NaN"):
        PatchMemory().fit(torch.full((1, 2, 3, 3), torch.nan))
    with pytest.raises(ValueError, match="4 channels after pictures with 5"):
        PatchMemory().fit([drawn(), drawn(channels=4)])
    with pytest.raises(ValueError, match="memory is empty"):
        PatchMemory()(drawn(), (8, 8))
    with pytest.raises(ValueError, match="nothing to save"):
        PatchMemory().state()
    patches = fitted(drawn())
    with pytest.raises(ValueError, match="fitted on 5 channels, features have 4"):
        patches(drawn(channels=4), (8, 8))
    with pytest.raises(ValueError, match=r"weights must be \(6, 1, H, W\)"):
        patches(drawn(), (8, 8), torch.ones(6, 2, 8, 8))
    with pytest.raises(ValueError, match="negative or NaN"):
        patches(drawn(), (8, 8), -torch.ones(6, 1, 8, 8))
