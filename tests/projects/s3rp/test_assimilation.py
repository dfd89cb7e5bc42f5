"""4D-Var and the Kalman smoother against Gaussian conditioning written out, and on drawn plumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.s3rp.assimilation import smoother, smoother_covariance, variational
from projects.s3rp.classical import METHODS
from projects.s3rp.fields import FieldPrior, fit_field
from projects.s3rp.kriging import krige
from projects.s3rp.observing import block_mean
from projects.s3rp.sets import Observations
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator

TINY = World(size=8, factor=2, frames=4, interval=0.1, turning=3.0, sigma=0.05, missing=0.2, sources=1, rates=(0.5, 1.0), start="random", length=0.15)
PRIOR = FieldPrior(0.1, 1.0, 0.15)


def _tiny(boundary: str = "periodic") -> Observations:
    """Return float64 observations whose last frame is to be forecast."""
    observations = draw_plumes(replace(TINY, boundary=boundary), 2).observations
    mask = observations.mask.clone()
    mask[:, -1] = False
    return replace(observations, mask=mask, coarse=observations.coarse.double() * mask)


def conditioned(observations: Observations, prior: FieldPrior, sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """Return posterior means (T, P) and covariances (T, P, P): the identity goes through the solver, and numpy does the rest."""
    shape, frames, wind = observations.shape, observations.frames, observations.wind.to(torch.zeros((), dtype=torch.float64))
    cells = shape[0] * shape[1]
    physics = observations.physics.with_options(substeps=observations.physics.stable_substeps(wind))
    propagators, offsets = [np.eye(cells)], [np.full(cells, prior.mean)]
    fields, centre = torch.eye(cells, dtype=torch.float64).view(cells, *shape), torch.full(shape, prior.mean, dtype=torch.float64)
    for frame in range(frames - 1):
        now = wind.select([sequence]).at(frame)
        fields = physics.advance(fields, now)
        source = None if observations.source is None else observations.source[sequence, 0].double()
        centre = physics.advance(centre, now, source).view(shape)
        propagators.append(fields.flatten(1).T.numpy())
        offsets.append(centre.flatten().numpy())
    view = block_mean(torch.eye(cells, dtype=torch.float64).view(cells, *shape), observations.factor).flatten(1).T.numpy()
    seen = observations.mask[sequence].flatten().numpy()
    operator = np.concatenate([view @ propagator for propagator in propagators])[seen]
    difference = observations.coarse[sequence].flatten().numpy()[seen] - np.concatenate([view @ offset for offset in offsets])[seen]
    covariance = prior.covariance(shape).numpy()
    gain = covariance @ operator.T @ np.linalg.inv(operator @ covariance @ operator.T + observations.sigma**2 * np.eye(seen.sum()))
    update, posterior = gain @ difference, covariance - gain @ operator @ covariance
    means = [offset + propagator @ update for offset, propagator in zip(offsets, propagators, strict=True)]
    return np.stack(means), np.stack([propagator @ posterior @ propagator.T for propagator in propagators])


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_smoother_is_gaussian_conditioning_with_changing_winds_masks_sources_and_a_forecast(boundary):
    observations, prior = _tiny(boundary), replace(PRIOR, boundary=boundary)
    estimate = smoother(observations, prior)
    assert estimate.deviation is not None
    for sequence in range(2):
        means, covariances = conditioned(observations, prior, sequence)
        np.testing.assert_allclose(estimate.mean[sequence].flatten(1), means, atol=1e-6)
        np.testing.assert_allclose(estimate.deviation[sequence].flatten(1), np.sqrt([np.diag(one) for one in covariances]), atol=1e-5)
    np.testing.assert_allclose(smoother_covariance(observations.select([1]), prior, 2), covariances[2], atol=1e-5)


def test_smoothers_members_have_its_mean_and_covariance():
    observations = _tiny()
    estimate = smoother(observations, PRIOR, 4000, generator(0))
    assert estimate.members is not None
    assert estimate.members.shape == (4000, 2, 4, 8, 8)
    torch.testing.assert_close(estimate.members.mean(0), estimate.mean, rtol=0, atol=0.03)
    sample = np.cov(estimate.members[:, 1, 3].flatten(1).numpy().T)
    np.testing.assert_allclose(sample, conditioned(observations, PRIOR, 1)[1][3], atol=0.02)


def test_smoother_of_random_fields_covers_what_it_says_and_its_error_falls_with_time():
    """Smoother .24/.18/.13 at frames 1, 4 and 8 against .63 of bicubic, coverage .90."""
    plumes = draw_plumes(World(size=24, frames=8, sigma=0.02, start="random", length=0.07), 4, "test")
    estimate = smoother(plumes.observations, FieldPrior(0.0, 1.0, 0.07))
    assert estimate.deviation is not None

    def errors(fields: torch.Tensor) -> torch.Tensor:
        return ((fields - plumes.truth).flatten(2).norm(dim=2) / plumes.truth.flatten(2).norm(dim=2)).mean(0)[[0, 3, 7]]

    torch.testing.assert_close(errors(estimate.mean), torch.tensor([0.24, 0.18, 0.13]), rtol=0, atol=0.03)
    torch.testing.assert_close(errors(METHODS["bicubic"](plumes.observations)), torch.tensor([0.63, 0.63, 0.62]), rtol=0, atol=0.05)
    assert float(errors(krige(plumes.observations, deviation=False).mean)[0]) == pytest.approx(0.58, abs=0.05)
    covered = ((estimate.mean - plumes.truth).abs() < 1.645 * estimate.deviation).float().mean()
    assert float(covered) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_4dvar_with_the_priors_covariance_converges_to_the_smoothers_mean(boundary):
    observations, prior = _tiny(boundary), replace(PRIOR, boundary=boundary)
    estimate, exact = variational(observations, prior), smoother(observations, prior).mean
    torch.testing.assert_close(estimate.mean, exact, rtol=0, atol=2e-3)
    alone = variational(observations.select([1]), prior, double=False)  # sequences minimised together come out as alone, and float32 is enough
    torch.testing.assert_close(alone.mean, exact[1:], rtol=0, atol=1e-2)


def test_4dvar_finds_noise_free_plumes_many_times_better_than_bicubic():
    plumes = draw_plumes(World(size=32), 2, "test")
    prior = fit_field(draw_plumes(World(size=32, frames=1), 32).observations)
    bicubic = (METHODS["bicubic"](plumes.observations) - plumes.truth).norm()
    assert bicubic > 8 * (variational(plumes.observations, prior).mean - plumes.truth).norm()
    assert bicubic > 3 * (variational(plumes.observations, prior, "gradient", iterations=40).mean - plumes.truth).norm()


def test_4dvar_with_an_unknown_source_finds_its_place_and_rate():
    world = World(size=16, factor=2, frames=6, sources=1, rates=(0.1, 0.2), sigma=0.005)
    plumes = draw_plumes(world, 2, "test", known_source=False)
    prior = fit_field(draw_plumes(world, 32).observations)
    estimate = variational(plumes.observations, prior, unknown_source=True)
    assert estimate.source is not None
    assert plumes.source is not None
    assert float(estimate.source.min()) >= 0
    torch.testing.assert_close(estimate.source.sum((1, 2, 3)), plumes.source.sum((1, 2, 3)), rtol=0.1, atol=0)
    found, true = (torch.stack([part.flatten(1).argmax(1) // 16, part.flatten(1).argmax(1) % 16]) for part in (estimate.source, plumes.source))
    assert int((found - true).abs().max()) <= 1
    assert (estimate.mean - plumes.truth).norm() < 0.6 * (METHODS["bicubic"](plumes.observations) - plumes.truth).norm()
    without = variational(plumes.observations, prior)
    assert without.source is None
    assert (estimate.mean - plumes.truth).norm() < 0.5 * (without.mean - plumes.truth).norm()


def test_what_the_smoother_cannot_do_is_said():
    observations = _tiny()
    with pytest.raises(ValueError, match="linear physics: choose the scheme central or upwind"):
        smoother(replace(observations, physics=observations.physics.with_options(scheme="vanleer")), PRIOR)
    with pytest.raises(ValueError, match="pass rng"):
        smoother(observations, PRIOR, members=3)
