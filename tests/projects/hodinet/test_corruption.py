"""That corruptions have the strength they are named by."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from projects.hodinet.corruption import BLOCKS, CORRUPTIONS, blur, corrupt
from projects.hodinet.depth import nearness, polarity
from projects.hodinet.scenes import draw_scene

GREY = torch.full((1, 120, 100), 0.5)
SCENE = draw_scene("test", 3, size=64)
DEPTH = SCENE.depth
OTHER = draw_scene("test", 4, size=64).depth
EVERY = [(name, strength) for name, corruption in CORRUPTIONS.items() for strength in corruption.strengths or (None,)]


@pytest.mark.parametrize(("name", "strength"), EVERY)
@pytest.mark.parametrize("size", [(40, 57), (61, 32)])
def test_any_size_keeps_its_shape_and_range(name, strength, size):
    depth = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    before = depth.clone()
    corrupted = corrupt(depth, name, strength, 0, other=OTHER)
    assert (corrupted.shape, corrupted.dtype) == (depth.shape, torch.float32)
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert torch.equal(depth, before), "the map itself is left as it is"
    assert not torch.equal(corrupted, depth)


def test_near_and_far_are_exchanged_and_holes_stay():
    corrupted, measured = corrupt(DEPTH, "inverted", None, 0), DEPTH > 0
    assert not measured.all(), "the scene has holes"
    torch.testing.assert_close(corrupted[measured], 1 - DEPTH[measured])
    assert not corrupted[~measured].any()
    assert polarity(corrupted, SCENE.mask) < 0 < polarity(DEPTH, SCENE.mask)
    torch.testing.assert_close(corrupt(corrupted, "inverted", None, 0), DEPTH)
    torch.testing.assert_close(corrupted, draw_scene("test", 3, size=64, variant="inverted").depth)
    levels = torch.arange(200, 100, -1.0).view(1, 10, 10).repeat(1, 3, 1)
    between = (levels > levels.min()) & (levels < levels.max())
    torch.testing.assert_close(corrupt(nearness(levels), "inverted", None, 0)[between], nearness(levels, invert=True)[between])


def test_noise_is_uniform_and_says_nothing_of_the_depth():
    corrupted = corrupt(DEPTH, "noise", None, 0)
    assert torch.equal(corrupted, corrupt(OTHER, "noise", None, 0))
    assert scipy.stats.kstest(corrupted.flatten().numpy(), "uniform").pvalue > 0.01


def test_grain_has_its_deviation_and_leaves_holes():
    for strength in (0.05, 0.1):
        assert float((corrupt(GREY, "grain", strength, 0) - GREY).double().std()) == pytest.approx(strength, rel=0.05)
    assert not corrupt(DEPTH, "grain", 0.2, 0)[DEPTH == 0].any()


def test_holes_take_away_their_part_in_blocks():
    for strength in CORRUPTIONS["holes"].strengths:
        corrupted = corrupt(GREY, "holes", strength, 0)
        blocks = F.adaptive_avg_pool2d((corrupted[None] == 0).float(), BLOCKS)
        assert float(blocks.sum()) == pytest.approx(strength * BLOCKS**2, abs=0.5 + BLOCKS), "blocks of 12.5 columns have 12 or 13"
        even = corrupt(torch.full((1, 64, 96), 0.5), "holes", strength, 0)
        assert set(F.adaptive_avg_pool2d((even[None] == 0).float(), BLOCKS).unique().tolist()) == {0, 1}
        assert float((even == 0).float().mean()) == pytest.approx(strength, abs=0.5 / BLOCKS**2)
        assert (even[even > 0] == 0.5).all()


@pytest.mark.parametrize("strength", [0.01, 0.05])
def test_blur_is_a_gaussian_whose_weights_sum_to_one(strength):
    depth = torch.rand(1, 80, 100, generator=torch.Generator().manual_seed(0))
    sums, whole = (
        scipy.ndimage.gaussian_filter(maps.double().numpy(), strength * 100, mode="constant", truncate=100 / strength / 100)
        for maps in (depth[0], torch.ones(80, 100))
    )
    np.testing.assert_allclose(corrupt(depth, "blur", strength, 0)[0].numpy(), sums / whole, atol=1e-5)
    torch.testing.assert_close(blur(GREY, 0.1), GREY)


@pytest.mark.parametrize("strength", CORRUPTIONS["shift"].strengths)
def test_a_shifted_map_lies_as_far_away_as_it_says(strength):
    directions = set()
    for index in range(6):
        spot = torch.zeros(1, 90, 120)
        spot[:, 45, 60] = 1
        ((row, column),) = (corrupt(spot, "shift", strength, index)[0] > 0).nonzero().tolist()
        assert np.hypot(row - 45, column - 60) == pytest.approx(strength * 120, abs=0.8)
        directions.add((row > 45, column > 60))
    assert len(directions) > 2
    ramp = torch.linspace(0, 1, 120).expand(1, 90, 120)
    moved = corrupt(ramp, "shift", strength, 0)
    assert set(moved.unique().tolist()) <= set(ramp.unique().tolist()), "what comes in repeats the border"


def test_another_pictures_depth_is_resized():
    assert torch.equal(corrupt(DEPTH, "shuffled", None, 0, other=OTHER), OTHER)
    small = corrupt(torch.zeros(1, 32, 48), "shuffled", None, 0, other=OTHER)
    torch.testing.assert_close(small, F.interpolate(OTHER[None], (32, 48), mode="bilinear", antialias=True)[0])


def test_few_levels_and_none_at_all():
    for count in CORRUPTIONS["levels"].strengths:
        corrupted = corrupt(DEPTH, "levels", count, 0)
        assert len(corrupted.unique()) <= count
        assert float((corrupted - DEPTH).abs().max()) <= 0.5 / (count - 1) + 1e-6
    assert corrupt(DEPTH, "levels", 2, 0).unique().tolist() == [0, 1]
    assert not corrupt(DEPTH, "missing", None, 0).any()


def test_strengths_begin_with_the_mildest():
    for name in ("grain", "holes", "blur", "shift", "levels"):
        changes = [
            np.mean([float((corrupt(DEPTH, name, strength, index) - DEPTH).abs().mean()) for index in range(8)])
            for strength in CORRUPTIONS[name].strengths
        ]
        assert changes == sorted(changes), name


@pytest.mark.parametrize("name", ["noise", "grain", "holes", "shift"])
def test_chance_depends_on_its_key_alone(name):
    strength = (CORRUPTIONS[name].strengths or (None,))[-1]
    first = corrupt(DEPTH, name, strength, 3)
    assert torch.equal(first, corrupt(DEPTH, name, strength, 3))
    assert not torch.equal(first, corrupt(DEPTH, name, strength, 4))
    assert not torch.equal(first, corrupt(DEPTH, name, strength, 3, seed=1))


def test_what_is_not_known_or_missing_is_refused():
    with pytest.raises(ValueError, match="no corruption 'fog': choose one of inverted, noise"):
        corrupt(GREY, "fog", 1, 0)
    with pytest.raises(ValueError, match="the corruption grain needs a strength: standard deviation"):
        corrupt(GREY, "grain", None, 0)
    with pytest.raises(ValueError, match="shuffled needs the depth of another picture"):
        corrupt(GREY, "shuffled", None, 0)
