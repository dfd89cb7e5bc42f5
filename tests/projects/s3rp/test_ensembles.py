"""Members by Matheron's rule are draws of the exact posterior where the estimator is the exact linear one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.s3rp import ensembles
from projects.s3rp.ensembles import matheron
from projects.s3rp.metrics import EnsembleErrors
from projects.s3rp.observing import block_mean
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator

SIZE, FACTOR, FRAMES = 6, 2, 3
WORLD = World(size=SIZE, factor=FACTOR, frames=FRAMES, sigma=0.2, sources=1, missing=0.3, interval=0.1, turning=1.0, seed=5)
CELLS = SIZE * SIZE


class Correlated:
    """A prior of drawn covariance, with a mean that is not zero."""

    def __init__(self):
        root = np.random.default_rng(0).normal(size=(CELLS, CELLS)) / np.sqrt(CELLS)
        self.root, self.mean = torch.from_numpy(root), torch.linspace(-1, 1, CELLS, dtype=torch.float64)

    def draw(self, shape, count, rng):
        noise = torch.randn(count, CELLS, generator=rng, dtype=torch.float64)
        return (self.mean + noise @ self.root.T).view(count, *shape)


class Linear:
    """The exact posterior of a sequence, by a gain that numpy solves for."""

    def __init__(self, observations, prior):
        physics, wind = observations.physics, observations.wind.to(torch.zeros(1, dtype=torch.float64))
        step = torch.eye(CELLS, dtype=torch.float64).view(CELLS, SIZE, SIZE)
        forced, steps = torch.zeros(SIZE, SIZE, dtype=torch.float64), []
        self.forced = [forced]
        for frame in range(FRAMES):
            steps.append(step.flatten(1).T.numpy())  # (cells, initial cells)
            step = physics.advance(step, wind.at(frame))
            forced = physics.advance(forced, wind.at(frame), observations.source[0, 0].double())[0] if frame < FRAMES - 1 else forced
            self.forced.append(forced)
        mean_block = block_mean(torch.eye(CELLS, dtype=torch.float64).view(CELLS, SIZE, SIZE), FACTOR).flatten(1).T.numpy()
        seen = observations.mask[0].flatten().numpy()
        self.transition = np.concatenate(steps)  # all frames from the first
        observe = np.concatenate([mean_block @ part for part in steps])[seen]
        first = (prior.root @ prior.root.T).numpy()
        self.gain = first @ observe.T @ np.linalg.inv(observe @ first @ observe.T + observations.sigma**2 * np.eye(len(observe)))
        self.seen, covariance = seen, first - self.gain @ observe @ first
        trend = np.concatenate([part.flatten().numpy() for part in self.forced[:FRAMES]])
        apart = observations.coarse[0].double().flatten().numpy()[seen] - observe @ prior.mean.numpy()
        apart = apart - np.concatenate([mean_block @ part.flatten().numpy() for part in self.forced[:FRAMES]])[seen]
        self.mean = self.transition @ (prior.mean.numpy() + self.gain @ apart) + trend
        self.covariance = self.transition @ covariance @ self.transition.T

    def __call__(self, observations):
        assert observations.source is None
        seen = observations.coarse.double().flatten(1).numpy()
        assert not seen[:, ~self.seen].any(), "missing values are zero"
        return torch.from_numpy(seen[:, self.seen] @ self.gain.T @ self.transition.T).view(-1, FRAMES, SIZE, SIZE)


@pytest.fixture(scope="module")
def observations():
    given = draw_plumes(WORLD, 1).observations
    return replace(given, coarse=given.coarse.double())


def test_members_have_the_mean_and_covariance_of_the_posterior(observations):
    prior = Correlated()
    exact, count = Linear(observations, prior), 6000
    members = matheron(exact, observations, prior, count, generator(0, "members")).flatten(1).numpy()
    assert np.abs((members.mean(0) - exact.mean) / np.sqrt(np.diag(exact.covariance) / count)).max() < 4.5
    scale = np.sqrt(np.diag(exact.covariance))
    correlation, expected = (matrix / np.outer(scale, scale) for matrix in (np.cov(members.T), exact.covariance))
    assert np.abs(correlation - expected).max() < 5.5 * np.sqrt(2 / count)
    assert np.linalg.eigvalsh(exact.covariance).max() > 0.1
    prior_covariance = exact.transition @ (prior.root @ prior.root.T).numpy() @ exact.transition.T
    assert np.trace(exact.covariance) < 0.8 * np.trace(prior_covariance)


def test_members_of_a_poor_linear_estimator_stay_calibrated():
    """The truth is a draw of the prior; the estimator repeats each observation in its cells, far from the best."""
    world = replace(WORLD, size=16, factor=4, start="random", length=0.15, sources=0, missing=0.0, seed=1)
    plumes = draw_plumes(world, 40)

    class Prior:
        def draw(self, shape, count, rng):
            from projects.s3rp.fields import random_field

            return random_field(shape, 0.15, rng, count)

    def repeated(observations):
        return observations.coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)

    errors = EnsembleErrors(FRAMES, 19)
    errors.update(matheron(repeated, plumes.observations, Prior(), 19, generator(0, "members")), plumes.truth, torch.arange(40))
    found = errors.compute()
    assert float(found["coverage_90"]) == pytest.approx(0.9, abs=0.02)
    assert float(found["spread_skill"]) == pytest.approx(1, abs=0.05)


def test_members_do_not_depend_on_how_many_are_computed_at_a_time(observations, monkeypatch):
    prior = Correlated()
    exact = Linear(observations, prior)
    whole = matheron(exact, observations, prior, 5, generator(0, "members"))
    monkeypatch.setattr(ensembles, "CELLS", 2 * FRAMES * CELLS)
    torch.testing.assert_close(matheron(exact, observations, prior, 5, generator(0, "members")), whole)
    assert whole.shape == (5, 1, FRAMES, SIZE, SIZE)
    with pytest.raises(ValueError, match="at least one member"):
        matheron(exact, observations, prior, 0, generator(0, "members"))
