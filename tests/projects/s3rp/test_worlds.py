"""Drawn plumes: reproducible, split by seed, seen as stated, and refused when impossible."""

import math

import pytest
import torch

from projects.s3rp.observing import block_mean
from projects.s3rp.physics import centred, divergence
from projects.s3rp.worlds import World, draw_plumes, gaussians

SMALL = {"size": 16, "frames": 3}


def test_a_plume_depends_on_seed_split_and_number_alone():
    world = World(**SMALL, sigma=0.05, missing=0.3, sources=1, turning=1.0)
    few, many = draw_plumes(world, 2), draw_plumes(world, 5)
    torch.testing.assert_close(many.observations.coarse[:2], few.observations.coarse, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(many.observations.wind.u[:2], few.observations.wind.u, rtol=0, atol=0)
    assert torch.equal(many.observations.mask[:2], few.observations.mask)
    assert many.observations.names[:2] == few.observations.names == ["train-00000", "train-00001"]
    torch.testing.assert_close(many.truth[:2], few.truth, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("world", "split"), [(World(**SMALL, seed=1), "train"), (World(**SMALL), "test")])
def test_splits_and_seeds_differ_in_wind_and_initial_field(world, split):
    one, other = draw_plumes(World(**SMALL), 2), draw_plumes(world, 2, split)
    assert not torch.isclose(one.truth[:, 0], other.truth[:, 0]).all(dim=2).any()
    assert not torch.isclose(one.observations.wind.u, other.observations.wind.u).flatten(1).all(1).any()


def test_without_noise_the_coarse_frames_are_the_block_means_of_the_truth():
    plumes = draw_plumes(World(**SMALL), 3)
    torch.testing.assert_close(plumes.observations.coarse, block_mean(plumes.truth, 4))
    assert bool(plumes.observations.mask.all())


def test_noise_masks_frames_and_stations_have_the_stated_statistics():
    world = World(size=32, frames=6, sigma=0.05, missing=0.3, missing_frames=0.4, stations=40)
    plumes = draw_plumes(world, 30)
    mask, noise = plumes.observations.mask, plumes.observations.coarse - block_mean(plumes.truth, 4)
    assert float(noise[mask].std()) == pytest.approx(0.05, rel=0.05)
    assert bool((plumes.observations.coarse[~mask] == 0).all())
    assert int(mask.any(1).flatten(1).sum(1).max()) <= 40
    is_seen = mask.flatten(2).any(2)
    assert bool(is_seen[:, 0].all())
    assert float(is_seen[:, 1:].float().mean()) == pytest.approx(0.6, abs=0.12)
    assert float(mask[is_seen].float().mean()) == pytest.approx(40 / 64 * 0.7, abs=0.03)


def test_winds_are_free_of_divergence_and_as_strong_as_stated():
    world = World(size=32, frames=3, turning=2.0)
    wind = draw_plumes(world, 8).observations.wind
    assert wind.u.shape == (8, 3, 32, 32)
    assert divergence(wind, (1 / 32, 1 / 32)).abs().max() < 1e-3  # float32 of speeds about 1 by cells of 1 / 32
    velocity = centred(wind)
    mean = velocity.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(mean.flatten(2).norm(dim=2), torch.full((8, 3), 0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close((velocity - mean).square().sum(2).mean((2, 3)).sqrt(), torch.full((8, 3), 0.5), rtol=0.02, atol=0)


def test_sources_add_mass_at_the_stated_rate():
    world = World(size=16, frames=4, sources=2, rates=(0.1, 0.2))
    plumes = draw_plumes(world, 3)
    assert plumes.source is not None
    rate = plumes.source.sum((1, 2, 3)) / 16**2
    gained = (plumes.truth[:, -1] - plumes.truth[:, 0]).sum((1, 2)) / 16**2
    torch.testing.assert_close(gained, 3 * 0.05 * rate, rtol=1e-4, atol=1e-6)
    assert bool(((rate >= 0.2 - 1e-3) & (rate <= 0.4 + 1e-3)).all())
    torch.testing.assert_close(plumes.observations.source, plumes.source)
    assert draw_plumes(world, 1, known_source=False).observations.source is None


def test_a_finer_truth_agrees_within_a_few_per_cent_and_is_not_the_same():
    plain, refined = draw_plumes(World(), 3), draw_plumes(World(refine=2), 3)
    difference = float((plain.truth - refined.truth).norm() / refined.truth.norm())
    assert 1e-4 < difference < 0.05
    torch.testing.assert_close(plain.truth[:, 0], refined.truth[:, 0], rtol=1e-4, atol=1e-5)


def test_gaussian_blobs_are_exact_cell_averages():
    field = gaussians(8, torch.tensor([[0.45, 0.6]]), torch.tensor([0.05]), torch.tensor([2.0]))
    assert float(field.sum()) / 64 == pytest.approx(2 * 2 * math.pi * 0.05**2, rel=1e-6)
    points = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    dense = 2 * torch.exp(-((points[:, None] - 0.45) ** 2 + (points - 0.6) ** 2) / (2 * 0.05**2))
    torch.testing.assert_close(field, block_mean(dense, 100), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"size": 0}, "size must be at least 1, got 0"),
    ({"size": 30}, "30 cells has no blocks of 4: choose a factor that divides it"),
    ({"missing": 1.0}, "missing is a part"),
    ({"sigma": -0.1}, "sigma must be 0 or more"),
    ({"start": "waves"}, "no start 'waves': choose among blobs, random"),
    ({"stations": 65}, "65 stations are more than the 64 coarse cells"),
])  # fmt: skip
def test_impossible_worlds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        World(**options)
