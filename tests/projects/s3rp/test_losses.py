"""The equations of the losses against loops, a plain Runge-Kutta solver in numpy, and autograd."""

import numpy as np
import pytest
import torch

from projects.s3rp.losses import SCALES, coarse_loss, mmd_imq, negativity, residual_loss, roughness, step_loss
from projects.s3rp.physics import Physics, Wind, wind_from_stream

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def steady(size, batch=2, frames=1):
    psi = 0.05 * torch.randn(batch, frames, size, size).double()
    return wind_from_stream(psi, (1 / size, 1 / size))


def rate(field, u, v, diffusivity, dy, dx):
    """-div(w c) + D lap(c) of a periodic field, by fluxes through the left and lower faces."""
    flux_x = u * (field + field.roll(1, -1)) / 2 - diffusivity * (field - field.roll(1, -1)) / dx
    flux_y = v * (field + field.roll(1, -2)) / 2 - diffusivity * (field - field.roll(1, -2)) / dy
    return (flux_x - flux_x.roll(-1, -1)) / dx + (flux_y - flux_y.roll(-1, -2)) / dy


def plain_step(field, wind, physics, source):
    """Classical Runge-Kutta steps, written out."""
    h = physics.interval / physics.substeps

    def slope(c):
        return rate(c, wind.u, wind.v, physics.diffusivity, *physics.spacing) + (0 if source is None else source)

    for _ in range(physics.substeps):
        first = slope(field)
        second = slope(field + h / 2 * first)
        third = slope(field + h / 2 * second)
        field = field + h / 6 * (first + 2 * second + 2 * third + slope(field + h * third))
    return field


def test_the_coarse_loss_is_a_mean_over_observed_pixels():
    fields, coarse, mask = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 2, 2), torch.rand(2, 3, 2, 2) > 0.4
    total, count = 0.0, 0
    for index in np.ndindex(2, 3, 2, 2):
        if mask[index]:
            b, t, i, j = index
            total += float(fields[b, t, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() - coarse[index]) ** 2
            count += 1
    assert float(coarse_loss(fields, coarse, mask)) == pytest.approx(total / count, rel=1e-5)
    assert float(coarse_loss(fields, coarse, torch.zeros_like(mask))) == 0


@pytest.mark.parametrize("frames_of_wind", [1, 4])
@pytest.mark.parametrize("released", [False, True])
def test_the_step_loss_and_its_gradient_are_those_of_a_plain_solver(frames_of_wind, released):
    physics = Physics(0.01, 0.1, (1 / 6, 1 / 6), substeps=3)
    wind, fields = steady(6, frames=frames_of_wind), torch.randn(2, 4, 6, 6).double().requires_grad_()
    source = torch.rand(2, 1, 6, 6).double() if released else None
    found = step_loss(fields, wind, physics, source)
    (gradient,) = torch.autograd.grad(found, fields)
    carried = torch.stack([plain_step(fields[:, t], wind.at(t), physics, source[:, 0] if released else None) for t in range(3)], 1)
    expected = (fields[:, 1:] - carried).square().mean()
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, fields)[0], **EXACT)
    assert (gradient[:, 0].abs().sum() > 0) & (gradient[:, -1].abs().sum() > 0), "gradients run through both terms"


def test_the_step_loss_takes_sources_and_winds_of_the_frame_that_is_left():
    physics = Physics(0.0, 0.1, (1.0, 1.0), substeps=1)
    still = Wind(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    source = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    fields = torch.tensor([0.0, 0.0, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert float(step_loss(fields, still, physics, source)) == pytest.approx(0, abs=1e-12)
    assert float(residual_loss(fields, still, physics, source)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("released", [False, True])
def test_the_residual_is_the_equation_at_mid_point(released):
    physics = Physics(0.01, 0.1, (1 / 6, 1 / 5))
    psi = 0.05 * torch.randn(2, 4, 6, 5).double()
    wind, fields = wind_from_stream(psi, physics.spacing), torch.randn(2, 4, 6, 5).double().requires_grad_()
    source = torch.rand(2, 1, 6, 5).double() if released else None
    middle = (fields[:, 1:] + fields[:, :-1]) / 2
    slope = rate(middle, wind.u[:, :3], wind.v[:, :3], 0.01, *physics.spacing) + (source if released else 0)
    expected = (((fields[:, 1:] - fields[:, :-1]) / 0.1 - slope).square().mean()) * 0.1**2
    found = residual_loss(fields, wind, physics, source)
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(found, fields)[0], torch.autograd.grad(expected, fields)[0], **EXACT)


@pytest.mark.parametrize("loss", [step_loss, residual_loss])
def test_a_learnt_diffusivity_has_the_gradient_of_finite_differences(loss):
    physics, wind, fields = Physics(0.02, 0.1, (1 / 6, 1 / 6), substeps=4), steady(6), torch.randn(2, 3, 6, 6).double()
    known = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(fields, wind, physics, None, known), known)
    ahead, behind = (loss(fields, wind, physics.with_options(diffusivity=0.02 + step)) for step in (1e-6, -1e-6))
    assert float(gradient) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5)


def test_a_trajectory_of_the_solver_has_no_loss():
    physics, wind = Physics(0.01, 0.1, (1 / 8, 1 / 8), substeps=5), steady(8, frames=4)
    fields = [torch.rand(2, 8, 8).double()]
    for frame in range(3):
        fields.append(physics.advance(fields[-1], wind.at(frame)))
    assert float(step_loss(torch.stack(fields, 1), wind, physics)) < 1e-25
    assert float(step_loss(torch.stack(fields[::-1], 1), wind, physics)) > 1e-3


def test_only_negative_values_are_negative():
    fields = torch.tensor([1.0, -2.0, 0.5, -1.0])
    assert float(negativity(fields)) == pytest.approx((4 + 1) / 4)


def test_roughness_is_the_mean_square_of_neighbours_differences():
    fields = torch.randn(2, 1, 4, 5).double()
    along = {"periodic": [], "open": []}
    totals = dict.fromkeys(along, 0.0)
    array = fields.numpy()[:, 0]
    for boundary in along:
        for axis in (1, 2):
            given = np.concatenate([array, array.take([0], axis)], axis) if boundary == "periodic" else array
            totals[boundary] += np.mean(np.diff(given, axis=axis) ** 2)
        assert float(roughness(fields, boundary)) == pytest.approx(totals[boundary], rel=1e-12)


def test_the_discrepancy_is_the_unbiased_double_sum():
    first, second = torch.randn(7, 3).double(), torch.randn(7, 3).double() + 0.5
    total = 0.0
    for scale in SCALES:
        constant = 2 * 3 * scale

        def kernel(x, y, constant=constant):
            return constant / (constant + float((x - y).square().sum()))

        for i in range(7):
            for j in range(7):
                if i != j:
                    total += (kernel(first[i], first[j]) + kernel(second[i], second[j])) / (7 * 6)
                total -= 2 * kernel(first[i], second[j]) / 49
    assert float(mmd_imq(first, second)) == pytest.approx(total, rel=1e-10)


def test_the_discrepancy_of_one_distribution_scatters_around_zero():
    values = torch.tensor([float(mmd_imq(torch.randn(40, 4), torch.randn(40, 4))) for _ in range(60)])
    assert (values < 0).any()
    assert (values > 0).any()
    assert abs(float(values.mean())) < 4 * float(values.std()) / 60**0.5
    assert float(mmd_imq(torch.randn(40, 4), torch.randn(40, 4) + 1)) > float(values.max())


def test_the_discrepancy_pulls_samples_together():
    moving = (torch.randn(30, 2) + 1).requires_grad_()
    mmd_imq(moving, torch.randn(30, 2)).backward()
    assert bool((moving.grad.mean(0) > 0).all()), "a step against the gradient goes back towards zero"
    assert bool(moving.grad.isfinite().all())


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((4, 3), (5, 3)), ((4, 3), (4, 2))], ids=str)
def test_the_discrepancy_of_unlike_or_too_few_samples_is_refused(shapes):
    with pytest.raises(ValueError, match="two equal numbers of samples, at least 2"):
        mmd_imq(*(torch.randn(shape) for shape in shapes))
