"""Kriging against scikit-learn, brute force and its own coverage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from projects.s3rp.classical import METHODS
from projects.s3rp.fields import FieldPrior, fit_field
from projects.s3rp.kriging import krige
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Physics, Wind
from projects.s3rp.sets import Observations
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator


def _points(values: torch.Tensor, mask: torch.Tensor, sigma: float) -> Observations:
    """Return a frame of point observations, factor 1, of an open domain."""
    height, width = values.shape
    wind = Wind(torch.zeros(1, 1, height, width + 1), torch.zeros(1, 1, height + 1, width))
    physics = Physics(0.0, 0.1, (1 / height, 1 / height), "open")
    return Observations((values * mask)[None, None], mask[None, None], wind, physics, sigma)


def test_point_observations_give_scikit_learns_gaussian_process_and_its_likelihoods_optimum():
    prior = FieldPrior(0.0, 1.2, 0.2, (1.0, 1.5), "open")
    values = prior.draw((8, 12), 1, generator(0))[0] + 0.1 * torch.randn(8, 12, generator=generator(1), dtype=torch.float64)
    mask = torch.rand(8, 12, generator=generator(2)) > 0.3
    observations = _points(values, mask, 0.1)
    y, x = np.meshgrid((np.arange(8) + 0.5) / 8, (np.arange(12) + 0.5) / 8, indexing="ij")
    places, seen = np.stack([y.ravel(), x.ravel()], 1), mask.flatten().numpy()
    kernel = ConstantKernel(1.44) * RBF(0.2)
    process = GaussianProcessRegressor(kernel, alpha=0.01, optimizer=None).fit(places[seen], values.flatten()[mask.flatten()])
    mean, deviation = process.predict(places, return_std=True)
    estimate = krige(observations, prior)
    np.testing.assert_allclose(estimate.mean.flatten(), mean, atol=1e-8)
    assert estimate.deviation is not None
    np.testing.assert_allclose(estimate.deviation.flatten(), deviation, atol=1e-6)
    fitted = fit_field(observations)
    centred = values.flatten()[mask.flatten()] - fitted.mean
    best = GaussianProcessRegressor(kernel, alpha=0.01).fit(places[seen], centred).kernel_
    assert fitted.deviation**2 == pytest.approx(best.k1.constant_value, rel=0.02)
    assert fitted.length == pytest.approx(best.k2.length_scale, rel=0.01)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_block_means_give_the_posterior_of_brute_force(boundary):
    world = World(size=12, factor=3, frames=2, missing=0.3, sigma=0.05, boundary=boundary)
    observations = draw_plumes(world, 2).observations
    observations = replace(observations, coarse=observations.coarse.double())
    prior = FieldPrior(0.2, 0.4, 0.12, boundary=boundary)
    estimate = krige(observations, prior)
    covariance = prior.covariance((12, 12)).numpy()
    view = block_mean(torch.eye(144, dtype=torch.float64).view(144, 12, 12), 3).flatten(1).T.numpy()
    assert estimate.deviation is not None
    for sequence in range(2):
        for frame in range(2):
            seen = observations.mask[sequence, frame].flatten().numpy()
            part = view[seen]
            gain = covariance @ part.T @ np.linalg.inv(part @ covariance @ part.T + 0.05**2 * np.eye(seen.sum()))
            mean = 0.2 + gain @ (observations.coarse[sequence, frame].flatten().numpy()[seen] - 0.2)
            np.testing.assert_allclose(estimate.mean[sequence, frame].flatten(), mean, atol=1e-8)
            deviation = np.sqrt(np.diag(covariance - gain @ part @ covariance))
            np.testing.assert_allclose(estimate.deviation[sequence, frame].flatten(), deviation, atol=1e-7)


def test_members_have_mean_and_deviation_of_the_posterior_and_unseen_frames_those_of_the_prior():
    observations = draw_plumes(World(size=8, factor=2, frames=2, sigma=0.1, start="random", length=0.2), 1).observations
    mask = observations.mask.clone()
    mask[:, 1] = False
    observations = replace(observations, mask=mask, coarse=observations.coarse * mask)
    estimate = krige(observations, FieldPrior(0.0, 1.0, 0.2), 1500, generator(3))
    assert estimate.members is not None
    assert estimate.deviation is not None
    assert estimate.members.shape == (1500, 1, 2, 8, 8)
    torch.testing.assert_close(estimate.members.mean(0), estimate.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(estimate.members.std(0), estimate.deviation, rtol=0.12, atol=0)
    torch.testing.assert_close(estimate.deviation[:, 1], torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="pass rng"):
        krige(observations, members=2)


def test_kriging_beats_interpolation_and_covers_what_it_says():
    plumes = draw_plumes(World(size=32, start="random", length=0.1, frames=1, sigma=0.05), 24)
    estimate = krige(plumes.observations)
    assert estimate.deviation is not None
    error = estimate.mean - plumes.truth
    assert error.norm() < 0.9 * (METHODS["bicubic+projection"](plumes.observations) - plumes.truth).norm()
    assert float((error.abs() < 1.645 * estimate.deviation).float().mean()) == pytest.approx(0.9, abs=0.03)
