"""Depth of every kind of file comes out as near = 1, and what was not measured never comes out as nearest."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from projects.hodinet.depth import check_proportions, fitted, nearness, polarity, polarity_table, read_depth
from shared.data.files import BadFileError

LEVELS = np.random.default_rng(0).integers(20, 200, (24, 30), np.uint8)


def stretched(levels):
    levels = levels.astype(np.float64)
    return torch.from_numpy((levels - levels.min()) / (levels.max() - levels.min())).float()[None]


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["grey", "three equal channels", "bmp", "palette"])
def test_eight_bits_in_any_form_give_the_same_depth(tmp_path, kind):
    path = tmp_path / ("depth.bmp" if kind == "bmp" else "depth.png")
    if kind == "three equal channels":
        saved(path, np.repeat(LEVELS[..., None], 3, 2))
    elif kind == "palette":
        Image.fromarray(LEVELS).convert("P").save(path)
    else:
        saved(path, LEVELS)
    torch.testing.assert_close(read_depth(path), stretched(LEVELS), rtol=0, atol=1e-6)
    torch.testing.assert_close(read_depth(path, normalise=False), torch.from_numpy(LEVELS / 255).float()[None], rtol=0, atol=1e-6)


def test_sixteen_bits_keep_their_levels(tmp_path):
    levels = np.arange(600, 600 + 24 * 30 * 7, 7, dtype=np.uint16).reshape(24, 30)
    depth = read_depth(saved(tmp_path / "depth.png", levels))
    torch.testing.assert_close(depth, stretched(levels), rtol=0, atol=1e-6)
    assert len(depth.unique()) == 720, "none is clipped to white, and none is rounded to 8 bits"


def test_jpeg_files_of_grey_are_depth(tmp_path):
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 48, 0)
    path = saved(tmp_path / "depth.jpg", np.repeat(smooth[..., None], 3, 2))
    assert (read_depth(path) - stretched(smooth)).abs().max() < 0.03


def test_depth_in_colours_is_refused_but_thermal_is_not(tmp_path):
    coloured = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], 2)
    path = saved(tmp_path / "depth.png", coloured)
    with pytest.raises(BadFileError, match=r"depth\.png shows depth in colours.*take the grey map"):
        read_depth(path)
    grey = np.asarray(Image.open(path).convert("L"))
    torch.testing.assert_close(read_depth(path, thermal=True), stretched(grey), rtol=0, atol=1e-6)


def test_inversion_takes_far_for_near(tmp_path):
    path = saved(tmp_path / "depth.png", LEVELS)
    torch.testing.assert_close(read_depth(path, invert=True), 1 - stretched(LEVELS), rtol=0, atol=1e-6)
    torch.testing.assert_close(read_depth(path, invert=True, normalise=False), torch.from_numpy(1 - LEVELS / 255).float()[None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_depth_is_zero(invert, value):
    assert not nearness(torch.full((1, 4, 5), value), invert).any()
    assert nearness(torch.full((1, 4, 5), math.inf), invert).isfinite().all()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("hole", [math.inf, -math.inf, math.nan])
def test_what_was_not_measured_is_farthest(hole, invert, normalise):
    levels = 0.2 + 0.6 * torch.rand(1, 8, 9, generator=torch.Generator().manual_seed(0))
    with_hole = levels.clone()
    with_hole[0, 2:4, 3:5] = hole
    depth = nearness(with_hole, invert, normalise)
    assert not depth[0, 2:4, 3:5].any()
    known = torch.ones(1, 8, 9, dtype=torch.bool)
    known[0, 2:4, 3:5] = False
    expected = levels[known]
    if normalise:
        expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(depth[known], 1 - expected if invert else expected)


def test_zeros_of_a_sensor_are_not_nearest_but_those_of_a_stretched_map_are():
    distances = torch.tensor([[[0.0, 0.5, 0.7], [0.9, 1.0, 0.0]]])
    torch.testing.assert_close(nearness(distances, invert=True), torch.tensor([[[0.0, 1.0, 0.6], [0.2, 0.0, 0.0]]]))
    whole = torch.linspace(0, 1, 101)[None, None]
    torch.testing.assert_close(nearness(whole, invert=True), 1 - whole)


def test_a_map_of_the_sensors_resolution_is_resized_and_one_of_other_proportions_refused(tmp_path):
    depth = torch.rand(1, 24, 32, generator=torch.Generator().manual_seed(0))
    assert fitted(depth, (24, 32)) is depth
    larger = fitted(depth, (48, 64))
    assert larger.shape == (1, 48, 64)
    assert larger.mean().item() == pytest.approx(depth.mean().item(), abs=1e-2)
    check_proportions((240, 320), (480, 641), tmp_path)
    with pytest.raises(BadFileError, match=r"has 320 x 240 pixels .* its picture 480 x 640: align it"):
        check_proportions((320, 240), (480, 640), tmp_path)


def test_polarity_is_the_correlation_over_pixels():
    chance = torch.Generator().manual_seed(1)
    mask = torch.rand(1, 20, 21, generator=chance) > 0.7
    depth = torch.rand(1, 20, 21, generator=chance) + 0.3 * mask
    expected = np.corrcoef(depth.flatten(), mask.flatten())[0, 1]
    assert polarity(depth, mask) == pytest.approx(expected, abs=1e-9)
    assert polarity(1 - depth, mask) == pytest.approx(-expected, abs=1e-9)
    assert math.isnan(polarity(depth, torch.zeros_like(mask)))
    assert math.isnan(polarity(torch.ones_like(depth), mask))


def test_sets_whose_salient_pixels_are_farther_are_named(caplog):
    rows = polarity_table({"NLPR": [0.5, 0.3, -0.1, math.nan], "STERE-797": [-0.4, -0.2, 0.1], "flat": [math.nan]})
    assert [(row["set"], row["pictures"]) for row in rows] == [("NLPR", 3), ("STERE-797", 3), ("flat", 0)]
    assert rows[0]["correlation"] == pytest.approx(0.7 / 3)
    assert rows[0]["nearer"] == pytest.approx(2 / 3)
    assert math.isnan(rows[2]["nearer"])
    assert len(caplog.records) == 1
    assert "STERE-797: what is salient is farther than the rest in 2 of 3 pictures" in caplog.text
    assert "data.invert" in caplog.text


def test_a_file_of_unknown_range_is_refused(tmp_path):
    path = tmp_path / "depth.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(BadFileError, match="32-bit"):
        read_depth(path)
    with pytest.raises(FileNotFoundError):
        read_depth(tmp_path / "none.png")
