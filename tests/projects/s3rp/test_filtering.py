"""Filters: the ensemble's limit is the Kalman filter, and physics pays frame after frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.s3rp.classical import METHODS
from projects.s3rp.fields import FieldPrior, fit_field
from projects.s3rp.filtering import cycled_interpolation, ensemble_filter, gaspari_cohn
from projects.s3rp.kriging import krige
from projects.s3rp.observing import block_mean
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator


def test_gaspari_cohn_is_smooth_compact_and_a_correlation():
    distance = torch.linspace(0, 1.2, 1201, dtype=torch.float64)
    taper = gaspari_cohn(distance, 1.0)
    assert (float(taper[0]), float(taper[500]), float(taper[1000:].max())) == pytest.approx((1.0, 5 / 24, 0.0), abs=1e-12)
    assert bool((taper.diff() <= 1e-12).all())
    assert float(taper.diff(n=2).abs().max()) < 1e-4  # no kink where its two pieces meet
    line = (torch.arange(64)[:, None] - torch.arange(64)).abs().double() / 20
    assert float(torch.linalg.eigvalsh(gaspari_cohn(line, 1.0)).min()) > -1e-10


def test_many_members_tend_to_the_kalman_filter():
    world = World(size=8, factor=2, frames=4, interval=0.1, sigma=0.1, missing=0.2, start="random", length=0.2, turning=2.0)
    observations = draw_plumes(world, 1).observations
    mask = observations.mask.clone()
    mask[:, 2] = False
    observations = replace(observations, mask=mask, coarse=observations.coarse.double() * mask)
    prior = FieldPrior(0.0, 1.0, 0.2)
    view = block_mean(torch.eye(64, dtype=torch.float64).view(64, 8, 8), 2).flatten(1).T.numpy()
    mean, covariance, wind = np.zeros(64), prior.covariance((8, 8)).numpy(), observations.wind.to(observations.coarse)
    estimate = ensemble_filter(observations, generator(0), prior, 6000, reach=None, inflation=1.0)
    assert estimate.deviation is not None
    for frame in range(4):
        if frame:
            step = observations.physics.advance(torch.eye(64, dtype=torch.float64).view(64, 8, 8), wind.at(frame - 1)).flatten(1).T.numpy()
            mean, covariance = step @ mean, step @ covariance @ step.T
        part = view[mask[0, frame].flatten().numpy()]
        gain = covariance @ part.T @ np.linalg.inv(part @ covariance @ part.T + 0.01 * np.eye(len(part)))
        mean = mean + gain @ (observations.coarse[0, frame][mask[0, frame]].numpy() - part @ mean)
        covariance = covariance - gain @ part @ covariance
        np.testing.assert_allclose(estimate.mean[0, frame].flatten(), mean, atol=0.06)
        np.testing.assert_allclose(estimate.deviation[0, frame].flatten(), np.sqrt(np.diag(covariance)), atol=0.03)


def test_filters_know_the_past_alone():
    observations = draw_plumes(World(size=16, frames=4, sigma=0.02), 2).observations
    prior = fit_field(observations)
    changed = replace(observations, coarse=torch.cat([observations.coarse[:, :2], -observations.coarse[:, 2:]], 1))
    for one, other in (
        (ensemble_filter(observations, generator(0), prior, 8), ensemble_filter(changed, generator(0), prior, 8)),
        (cycled_interpolation(observations, prior), cycled_interpolation(replace(changed, sigma=observations.sigma), prior)),
    ):
        torch.testing.assert_close(one.mean[:, :2], other.mean[:, :2])
        assert not torch.allclose(one.mean[:, 2:], other.mean[:, 2:])


def test_filters_beat_single_frames_and_forecast_with_the_solver():
    plumes = draw_plumes(World(frames=6, sigma=0.02, missing=0.2), 4, "test")
    mask = plumes.observations.mask.clone()
    mask[:, -1] = False
    observations = replace(plumes.observations, mask=mask, coarse=plumes.observations.coarse * mask)
    prior = fit_field(draw_plumes(World(frames=1, sigma=0.02), 32).observations)

    def error(fields: torch.Tensor, frame: int) -> float:
        return float((fields - plumes.truth)[:, frame].norm() / plumes.truth[:, frame].norm())

    ensemble, cycled = ensemble_filter(observations, generator(1), prior), cycled_interpolation(observations, prior)
    assert ensemble.members is not None
    assert ensemble.members.shape == (48, *plumes.truth.shape)
    torch.testing.assert_close(cycled.mean[:, 0], krige(observations, prior, deviation=False).mean[:, 0], rtol=1e-3, atol=1e-4)
    for fields in (ensemble.mean, cycled.mean):
        assert error(fields, 4) < 0.6 * error(METHODS["bicubic"](observations), 4)
        assert error(fields, 4) < 0.6 * error(fields, 0)
    ahead = observations.physics.advance(ensemble.mean[:, 4], observations.wind.at(4))
    torch.testing.assert_close(ensemble.mean[:, 5], ahead, rtol=1e-3, atol=1e-4)  # frames without observations are the solver's
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        ensemble_filter(observations, generator(0), prior, 1)
