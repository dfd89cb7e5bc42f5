"""The plain rivals against SciPy, by hand, and as forecasts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates

from projects.s3rp.classical import METHODS, coarse_physics, completed, last_observed, spline_matrix
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import divergence
from projects.s3rp.sets import Observations
from projects.s3rp.worlds import World, draw_plumes


def _hidden(observations: Observations, *frames: int) -> Observations:
    mask = observations.mask.clone()
    mask[:, list(frames)] = False
    return replace(observations, mask=mask, coarse=observations.coarse * mask)


def _error(fields: torch.Tensor, truth: torch.Tensor) -> float:
    return float((fields - truth).norm() / truth.norm())


@pytest.mark.parametrize("size", [2, 3, 6])
def test_spline_agrees_with_scipys_image_interpolation(size):
    coarse = np.random.default_rng(0).normal(size=(size, 8))
    along_y, along_x = spline_matrix(size, 4), spline_matrix(8, 4)
    y, x = np.meshgrid((np.arange(size * 4) + 0.5) / 4 - 0.5, (np.arange(32) + 0.5) / 4 - 0.5, indexing="ij")
    tiled = np.tile(coarse, (3, 1))  # SciPy's periodic filter wants some length
    expected = map_coordinates(tiled, [(y + size) % (3 * size), x % 8], order=3, mode="grid-wrap")
    np.testing.assert_allclose(along_y.numpy() @ coarse @ along_x.numpy().T, expected, atol=1e-6)


def test_open_splines_pass_through_the_centres_and_end_with_the_borders_value():
    values = np.random.default_rng(1).normal(size=7)
    line = spline_matrix(7, 3, "open").numpy() @ values
    np.testing.assert_allclose(line[1::3], values, atol=1e-12)
    assert (line[0], line[-1]) == pytest.approx((values[0], values[-1]))
    np.testing.assert_allclose(line[2:-2], CubicSpline(np.arange(7), values)((np.arange(21)[2:-2] + 0.5) / 3 - 0.5), atol=1e-12)


def test_missing_frames_are_interpolated_in_time_and_the_ends_stay():
    observations = _hidden(draw_plumes(World(size=16, frames=7), 2).observations, 0, 3, 6)
    coarse, linear, cubic = observations.coarse, completed(observations), completed(observations, spline=True)
    torch.testing.assert_close(linear[:, 3], (coarse[:, 2] + coarse[:, 4]) / 2)
    torch.testing.assert_close(linear[:, [0, 6]], coarse[:, [1, 5]])
    torch.testing.assert_close(cubic[:, [0, 6]], coarse[:, [1, 5]])
    expected = CubicSpline([1, 2, 4, 5], coarse[:, [1, 2, 4, 5]], axis=1)(3)
    np.testing.assert_allclose(cubic[:, 3], expected, atol=1e-5)
    assert last_observed(observations).tolist() == [5, 5]
    assert bool((completed(_hidden(observations, *range(7))) == 0).all())


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_takes_missing_cells_frames_and_sources(name, boundary):
    world = World(size=16, frames=5, missing=0.3, sigma=0.02, sources=1, boundary=boundary)
    plumes = draw_plumes(world, 2)
    observations = _hidden(plumes.observations, 2, 4)
    fields = METHODS[name](observations)
    assert fields.shape == plumes.truth.shape
    assert fields.dtype == torch.float32
    assert bool(fields.isfinite().all())
    if name.endswith("+projection") and "solver" not in name:
        torch.testing.assert_close(block_mean(fields, 4)[observations.mask], observations.coarse[observations.mask], rtol=1e-4, atol=1e-5)


def test_coarse_winds_carry_the_same_flux():
    for boundary in ("periodic", "open"):
        observations = draw_plumes(World(size=16, boundary=boundary), 2).observations
        physics, wind = coarse_physics(observations)
        assert physics.spacing == (1 / 4, 1 / 4)
        assert wind.u.shape[-2:] == (4, 4 + (boundary == "open"))
        assert divergence(wind, physics.spacing, boundary).abs().max() < 1e-4
        assert float(wind.u[0, 0, 1, 2]) == pytest.approx(float(observations.wind.u[0, 0, 4:8, 8].mean()), rel=1e-5)


def test_forecasts_rank_as_they_should():
    plumes = draw_plumes(World(frames=6), 6)
    observations, ahead = _hidden(plumes.observations, 4, 5), slice(4, None)
    error = {name: _error(METHODS[name](observations)[:, ahead], plumes.truth[:, ahead]) for name in METHODS}
    best = min(error.values())
    assert error["fine solver from bicubic+projection"] == best
    assert error["fine solver from bicubic"] < error["coarse solver"] < error["persistence"]
    assert error["bicubic"] == pytest.approx(error["persistence"])  # interpolation alone knows no better
    seen = METHODS["bicubic"](observations)[:, :4]
    torch.testing.assert_close(METHODS["fine solver from bicubic"](observations)[:, :4], seen)
    started = plumes.observations.physics.advance(seen[:, 3], plumes.observations.wind.at(3))
    torch.testing.assert_close(METHODS["fine solver from bicubic"](observations)[:, 4], started)
