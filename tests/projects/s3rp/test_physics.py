"""The solver against closed forms, conservation laws, SciPy and its own adjoint."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import expm_multiply

from projects.s3rp.fields import random_field
from projects.s3rp.physics import Physics, Wind, centred, divergence, faces, stencil, wind_from_stream
from projects.s3rp.worlds import gaussians
from shared.seeding import generator


def _uniform(shape: tuple[int, int], u: float, v: float) -> Wind:
    return Wind(torch.full(shape, u, dtype=torch.float64), torch.full(shape, v, dtype=torch.float64))


def _eddies(shape: tuple[int, int], boundary: str = "periodic", key: int = 0) -> Wind:
    corners = tuple(side + (boundary == "open") for side in shape)
    return wind_from_stream(0.05 * random_field(corners, 0.2, generator(0, "eddies", key)), (1 / shape[0], 1 / shape[1]), boundary)


def _puff_error(size: int, scheme: str, diffusivity: float, width: float = 0.08) -> float:
    """Return the relative error of a puff after one frame in a uniform wind; its exact width grows as width^2 + 2 D t."""
    physics = Physics(diffusivity, 0.25, (1 / size, 1 / size), scheme=scheme)
    centre, peak = torch.tensor([[0.3, 0.4]]), torch.ones(1)
    start = gaussians(size, centre, torch.tensor([width]), peak)
    later = math.sqrt(width**2 + 2 * diffusivity * 0.25)
    exact = gaussians(size, centre + 0.25 * torch.tensor([[0.4, 0.8]]), torch.tensor([later]), peak * width**2 / later**2)
    reached = physics.advance(start, _uniform((size, size), 0.8, 0.4))
    return float((reached - exact).norm() / exact.norm())


@pytest.mark.parametrize(("scheme", "diffusivity", "sizes", "least", "most"), [
    ("central", 2e-3, (32, 64), 1.8, 2.3), ("upwind", 2e-3, (128, 256), 0.7, 1.1), ("vanleer", 5e-4, (32, 64), 1.5, 2.3),
])  # fmt: skip
def test_error_of_a_moving_puff_falls_with_the_schemes_order(scheme, diffusivity, sizes, least, most):
    coarse, fine = (_puff_error(size, scheme, diffusivity) for size in sizes)
    assert least < math.log2(coarse / fine) < most


def test_random_field_in_a_uniform_wind_follows_the_exact_fourier_solution():
    size, diffusivity, time = 64, 2e-3, 0.1
    start = random_field((size, size), 0.1, generator(0, "exact"))
    along = 2 * math.pi * torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    ky, kx = along[:, None], along[None]
    exact = torch.fft.ifft2(torch.fft.fft2(start) * torch.exp(-1j * time * (0.6 * kx - 0.3 * ky) - diffusivity * time * (kx**2 + ky**2))).real
    reached = Physics(diffusivity, time, (1 / size, 1 / size)).advance(start, _uniform((size, size), 0.6, -0.3))
    assert (reached - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("scheme", ["central", "upwind"])
@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_a_frame_agrees_with_the_matrix_exponential_of_scipy(scheme, boundary):
    shape, spacing = (6, 9), (1 / 6, 1 / 9)
    wind = _eddies(shape, boundary)
    operator = stencil(wind, 3e-3, spacing, scheme, boundary)
    identity = torch.eye(54, dtype=torch.float64).view(54, *shape)
    matrix = operator(identity, boundary).flatten(1).T.numpy()
    start, source = random_field(shape, 0.2, generator(1)), random_field(shape, 0.2, generator(2))
    affine = np.zeros((55, 55))
    affine[:54, :54], affine[:54, 54] = matrix, source.flatten()
    exact = expm_multiply(0.2 * affine, np.append(start.flatten(), 1.0))[:54].reshape(shape)
    reached = Physics(3e-3, 0.2, spacing, boundary, scheme, substeps=40).advance(start, wind, source)
    np.testing.assert_allclose(reached, exact, atol=1e-7)


def _flux_by_hand(field, wind, diffusivity, spacing, scheme):
    """Return -div F cell by cell and face by face, open boundary."""
    (height, width), (dy, dx) = field.shape, spacing
    rate = np.zeros((height, width))

    def flux(speed, below, above, step):
        if below is None or above is None:
            return max(speed, 0) * (below or 0.0) + min(speed, 0) * (above or 0.0)
        upstream = below if speed >= 0 else above
        return speed * ((below + above) / 2 if scheme == "central" else upstream) - diffusivity * (above - below) / step

    for y in range(height):
        for x in range(width + 1):
            through = flux(wind.u[y, x].item(), field[y, x - 1] if x else None, field[y, x] if x < width else None, dx)
            if x:
                rate[y, x - 1] -= through / dx
            if x < width:
                rate[y, x] += through / dx
    for x in range(width):
        for y in range(height + 1):
            through = flux(wind.v[y, x].item(), field[y - 1, x] if y else None, field[y, x] if y < height else None, dy)
            if y:
                rate[y - 1, x] -= through / dy
            if y < height:
                rate[y, x] += through / dy
    return rate


@pytest.mark.parametrize("scheme", ["central", "upwind"])
def test_open_fluxes_agree_with_a_loop_over_the_faces(scheme):
    shape, spacing = (4, 6), (0.3, 0.2)
    wind, field = _eddies(shape, "open", 3), random_field(shape, 0.2, generator(4)).abs() + 0.1
    expected = _flux_by_hand(field.numpy(), wind, 1e-2, spacing, scheme)
    np.testing.assert_allclose(stencil(wind, 1e-2, spacing, scheme, "open")(field, "open"), expected, atol=1e-12)


@pytest.mark.parametrize("scheme", ["central", "upwind", "vanleer"])
def test_mass_is_kept_to_round_off_and_sources_add_exactly_their_rate(scheme):
    shape = (12, 16)
    wind = _eddies(shape)
    physics = Physics(1e-3, 0.05, (1 / 12, 1 / 16), scheme=scheme)
    field, source = random_field(shape, 0.1, generator(5)) + 2, random_field(shape, 0.1, generator(6)).abs()
    free, fed = field, field
    for _ in range(200):
        free, fed = physics.advance(free, wind), physics.advance(fed, wind, source)
    assert float((free.sum() - field.sum()).abs() / field.sum()) < 1e-13
    assert float(fed.sum() - field.sum()) == pytest.approx(200 * 0.05 * float(source.sum()), rel=1e-12)


@pytest.mark.parametrize("scheme", ["central", "upwind", "vanleer"])
def test_mass_only_leaves_an_open_domain_and_as_much_as_flows_out(scheme):
    shape = (16, 16)
    wind = Wind(torch.full((16, 17), 0.7, dtype=torch.float64), torch.full((17, 16), 0.3, dtype=torch.float64))
    physics = Physics(1e-2, 1e-4, (1 / 16, 1 / 16), "open", scheme, substeps=1)
    field = gaussians(16, torch.tensor([[0.7, 0.85]]), torch.tensor([0.1]), torch.ones(1), "open")
    after = physics.advance(field, wind)
    lost = float((field - after).sum()) / 16**2
    outflow = float(0.7 * field[:, -1].sum() + 0.3 * field[-1].sum()) / 16 * 1e-4
    assert lost == pytest.approx(outflow, rel=1e-2)  # the flux of the frame's start, which changes a little in it
    masses = [float(field.sum())]
    slow = physics.with_options(interval=0.1, substeps=None)
    for _ in range(30):
        field = slow.advance(field, wind)
        masses.append(float(field.sum()))
    ripple = 1e-3 * masses[0] if scheme == "central" else 0.0  # small waves of the central scheme
    assert all(later < earlier + ripple for earlier, later in pairwise(masses))
    assert masses[-1] < 0.01 * masses[0]
    assert field.shape == shape


def _rotated(scheme: str, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cone and a slotted cylinder, and both after one turn around the centre of an open domain."""
    corners = torch.linspace(0, 1, size + 1, dtype=torch.float64)
    psi = -math.pi * ((corners[:, None] - 0.5) ** 2 + (corners[None] - 0.5) ** 2)
    wind = wind_from_stream(psi, (1 / size, 1 / size), "open")
    centres = (corners[1:] + corners[:-1]) / 2
    y, x = centres[:, None], centres[None]
    cone = (1 - ((x - 0.25) ** 2 + (y - 0.5) ** 2).sqrt() / 0.15).clamp(min=0)
    cylinder = ((((x - 0.5) ** 2 + (y - 0.72) ** 2).sqrt() < 0.17) & ~(((x - 0.5).abs() < 0.04) & (y < 0.78))).double()
    start = torch.stack([cone, cylinder])
    physics = Physics(0.0, 1.0, (1 / size, 1 / size), "open", scheme)
    return start, physics.advance(start, wind)


def test_van_leer_turns_a_cone_and_a_slotted_cylinder_within_bounds_and_sharper_than_upwind():
    start, limited = _rotated("vanleer")
    _, diffused = _rotated("upwind")
    assert limited.min() >= 0
    assert limited.max() <= 1
    assert limited[0].max() > 3 * diffused[0].max()
    assert limited[1].max() > 2 * diffused[1].max()
    assert (limited - start).norm() < 0.75 * (diffused - start).norm()
    torch.testing.assert_close((limited[0] * torch.arange(32)).sum(), (start[0] * torch.arange(32)).sum(), rtol=0.01, atol=0)  # back at its place


def test_central_rings_at_high_peclet_where_van_leer_does_not():
    size = 64
    wind = _uniform((size, size), 1.0, 0.0)
    field = torch.zeros(size, size, dtype=torch.float64)
    field[20:40, 20:40] = 1.0
    physics = Physics(1e-4, 0.2, (1 / size, 1 / size))
    assert physics.peclet(wind) == pytest.approx(1 / size / 1e-4)
    assert physics.advance(field, wind).min() < -0.1  # a prototype saw -0.44
    assert physics.with_options(scheme="vanleer").advance(field, wind).min() >= -1e-12


@pytest.mark.parametrize("scheme", ["central", "upwind"])
@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_gradients_run_through_the_exact_adjoint(scheme, boundary):
    shape = (4, 6)
    physics, wind = Physics(5e-3, 0.1, (1 / 4, 1 / 6), boundary, scheme, substeps=3), _eddies(shape, boundary)
    field, source = (random_field(shape, 0.2, generator(key)).requires_grad_() for key in (7, 8))
    assert torch.autograd.gradcheck(lambda c, s: physics.advance(c, wind, s), (field, source))
    other = random_field(shape, 0.2, generator(9))
    operator = stencil(wind, 5e-3, (1 / 4, 1 / 6), scheme, boundary)
    forward = (operator(field.detach(), boundary) * other).sum()
    torch.testing.assert_close(forward, (field.detach() * operator.transposed()(other, boundary)).sum(), rtol=1e-12, atol=1e-12)


def test_adjoint_gives_sources_and_fields_that_broadcast_their_own_shapes():
    physics, wind = Physics(5e-3, 0.1, (1 / 4, 1 / 4), substeps=2), Wind(*(part.expand(3, 4, 4) for part in _eddies((4, 4))))
    field, source = random_field((4, 4), 0.2, generator(10)).requires_grad_(), torch.rand(3, 1, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, s: physics.advance(c, wind, s.expand(3, 4, 4)), (field, source))


def test_diffusivity_can_be_learnt():
    shape = (6, 6)
    wind, field = _eddies(shape), random_field(shape, 0.2, generator(11))
    physics = Physics(1.0, 0.1, (1 / 6, 1 / 6), substeps=4)
    unknown = torch.tensor(4e-3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: physics.advance(field, wind, diffusivity=d), (unknown,))
    torch.testing.assert_close(
        physics.advance(field, wind, diffusivity=unknown).detach(),
        physics.with_options(diffusivity=4e-3).advance(field, wind),
        rtol=1e-13,
        atol=1e-13,
    )


@pytest.mark.parametrize("scheme", ["central", "upwind", "vanleer"])
def test_transposed_domains_give_transposed_answers_with_unequal_cells(scheme):
    wind, field = _eddies((8, 12)), random_field((8, 12), 0.15, generator(12))
    physics = Physics(2e-3, 0.2, (1 / 8, 1 / 6), scheme=scheme)
    turned = physics.with_options(spacing=(1 / 6, 1 / 8)).advance(field.mT, Wind(wind.v.mT, wind.u.mT))
    torch.testing.assert_close(physics.advance(field, wind), turned.mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("speed", "diffusivity"), [(1.0, 1e-3), (0.0, 1e-2)])
def test_as_many_steps_as_are_stable_are_taken_and_far_fewer_blow_up(speed, diffusivity):
    size = 16
    wind = _uniform((size, size), speed, speed)
    field = torch.randn(size, size, generator=generator(13), dtype=torch.float64)
    physics = Physics(diffusivity, 4.0, (1 / size, 1 / size), scheme="upwind")
    stable = physics.stable_substeps(wind)
    assert physics.advance(field, wind).abs().max() <= field.abs().max()
    coarse = physics.with_options(substeps=stable // 2)
    for _ in range(20):
        field = coarse.advance(field, wind)
    assert not field.abs().max() < 1e3


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_winds_of_a_stream_function_have_no_divergence_and_survive_the_cells_centres(boundary):
    wind = _eddies((8, 10), boundary)
    assert divergence(wind, (1 / 8, 1 / 10), boundary).abs().max() < 1e-12
    uniform = Wind(*(torch.full_like(part, speed) for part, speed in zip(wind, (0.3, -0.2), strict=True)))
    back = faces(centred(uniform, boundary), boundary)
    torch.testing.assert_close(back.u, uniform.u)
    torch.testing.assert_close(back.v, uniform.v)


def test_pure_advection_runs_back_to_its_start_when_the_wind_turns():
    wind, field = _eddies((32, 32)), random_field((32, 32), 0.15, generator(14))
    physics = Physics(0.0, 0.3, (1 / 32, 1 / 32))
    there = physics.advance(field, wind)
    back = physics.advance(there, wind.scaled(-1, -1))
    assert (there - field).norm() > 0.2 * field.norm()
    assert (back - field).norm() < 0.01 * field.norm()


@pytest.mark.parametrize(
    ("name", "options"), [("diffusivity", (-1.0, 0.1, (1.0, 1.0))), ("interval", (0.1, 0.0, (1.0, 1.0))), ("dx", (0.1, 0.1, (1.0, math.nan)))]
)
def test_impossible_physics_is_refused_by_name(name, options):
    with pytest.raises(ValueError, match=f"{name} must be a positive number"):
        Physics(*options)


def test_a_wind_may_be_steady_along_one_axis_alone():
    wind = Wind(torch.rand(2, 1, 4, 4), torch.rand(2, 5, 4, 4))
    some = wind.frames(1, 4)
    assert torch.equal(some.u, wind.u)
    assert torch.equal(some.v, wind.v[:, 1:4])
    assert torch.equal(wind.at(3).u, wind.u[:, 0])
    assert torch.equal(wind.at(3).v, wind.v[:, 3])
