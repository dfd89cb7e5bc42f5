"""Gaussian random fields: closed forms, samplers and the fit to coarse observations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from projects.s3rp.fields import FieldPrior, _negative_log_likelihood, fit_field, line_correlation, noise_deviation, random_field
from projects.s3rp.observing import block_mean
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator


def _wrapped(size: int, length: float) -> np.ndarray:
    """Return the closed form: the squared exponential summed over all images, by its value at no distance."""
    offset = (np.arange(size)[:, None] - np.arange(size))[..., None] / size - np.arange(-4, 5)
    kernel = np.exp(-0.5 * (offset / length) ** 2).sum(-1)
    return kernel / kernel[0, 0]


@pytest.mark.parametrize("length", [0.07, 0.2, 0.5])
def test_correlation_is_the_wrapped_squared_exponential(length):
    np.testing.assert_allclose(line_correlation(32, length), _wrapped(32, length), atol=1e-6)


def test_samplers_have_the_covariance_of_the_closed_form():
    prior = FieldPrior(1.5, 2.0, 0.15)
    exact = 4 * np.kron(_wrapped(6, 0.15), _wrapped(8, 0.15))
    np.testing.assert_allclose(prior.covariance((6, 8)), exact, atol=0.06)  # cells of 1 / 6 alias a little
    drawn = prior.draw((6, 8), 20000, generator(0)).flatten(1)
    assert float(drawn.mean()) == pytest.approx(1.5, abs=0.02)
    np.testing.assert_allclose(np.cov(drawn.numpy().T), prior.covariance((6, 8)), atol=0.2)
    other = random_field((6, 8), 0.15, generator(1), 20000).flatten(1)
    np.testing.assert_allclose(np.cov(other.numpy().T), prior.covariance((6, 8)) / 4, atol=0.05)
    modes = prior.modes((6, 8), least=0.0).flatten(1)
    torch.testing.assert_close(modes.T @ modes, prior.covariance((6, 8)), rtol=0, atol=1e-10)


def test_open_rectangles_in_units_of_length_have_the_plain_kernel():
    prior = FieldPrior(0.0, 1.0, 3.0, (6.0, 20.0), "open")
    y, x = np.meshgrid(np.arange(3) * 2.0, np.arange(5) * 4.0, indexing="ij")
    squared = (y.reshape(-1, 1) - y.reshape(-1)) ** 2 + (x.reshape(-1, 1) - x.reshape(-1)) ** 2
    np.testing.assert_allclose(prior.covariance((3, 5)), np.exp(-squared / 18), atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_likelihood_is_that_of_the_multivariate_normal(masked):
    prior = FieldPrior(0.0, 1.3, 0.2)
    values = 0.7 + block_mean(prior.draw((8, 8), 3, generator(2)), 2)
    mask = torch.rand(3, 4, 4, generator=generator(3)) > 0.3 if masked else torch.ones(3, 4, 4, dtype=torch.bool)
    cost, mean = _negative_log_likelihood(values * mask, mask, prior, (8, 8), 0.1)
    view = block_mean(torch.eye(64, dtype=torch.float64).view(64, 8, 8), 2).flatten(1).T
    covariance = (view @ prior.covariance((8, 8)) @ view.T).numpy() + 0.01 * np.eye(16)

    def exact(level: float) -> float:
        total = 0.0
        for value, seen in zip(values.flatten(1).numpy(), mask.flatten(1).numpy(), strict=True):
            total -= multivariate_normal(np.full(seen.sum(), level), covariance[np.ix_(seen, seen)]).logpdf(value[seen])
            total -= 0.5 * seen.sum() * math.log(2 * math.pi)
        return total

    assert cost == pytest.approx(exact(mean), rel=1e-8)
    assert exact(mean) < min(exact(mean - 0.01), exact(mean + 0.01))


@pytest.mark.parametrize("options", [{}, {"sigma": 0.1}, {"missing": 0.3, "sigma": 0.05, "size": 32}], ids=["clean", "noisy", "missing"])
def test_fit_recovers_length_and_variance_from_coarse_fields(options):
    world = World(**{"size": 64, "factor": 4, "frames": 1, "start": "random", "length": 0.07} | options)
    prior = fit_field(draw_plumes(world, 32).observations)
    assert prior.length == pytest.approx(0.07, rel=0.15)
    assert prior.deviation**2 == pytest.approx(1.0, rel=0.15)
    assert prior.mean == pytest.approx(0.0, abs=0.15)


def test_a_known_length_is_kept_and_too_little_is_refused():
    observations = draw_plumes(World(size=16, frames=1), 2).observations
    assert fit_field(observations, length=0.11).length == 0.11
    assert noise_deviation(observations) == pytest.approx(1e-3 * float(observations.coarse.std()), rel=0.02)
    mask = observations.mask.clone()
    mask[0] = False
    assert fit_field(replace(observations, mask=mask)) == fit_field(observations.select([1]))
    few = draw_plumes(World(size=16, frames=1, stations=1), 2).observations
    with pytest.raises(ValueError, match="2 values are observed"):
        fit_field(few)
