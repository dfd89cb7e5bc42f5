"""Block means, their adjoint, projection, interpolation and filling."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from projects.s3rp.observing import block_mean, filled, interpolate, project, repeat
from shared.seeding import generator


def _fields(*shape: int, key: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, "observing", key), dtype=torch.float64)


def test_block_mean_is_average_pooling_and_repeat_its_right_inverse():
    field, coarse = _fields(2, 3, 8, 12), _fields(2, 3, 2, 3, key=1)
    torch.testing.assert_close(block_mean(field, 4), F.avg_pool2d(field, 4))
    torch.testing.assert_close(block_mean(repeat(coarse, 4), 4), coarse)
    # <A c, y> = <c, U y> / r^2: U is the adjoint of A times r^2
    torch.testing.assert_close((block_mean(field, 4) * coarse).sum(), (field * repeat(coarse, 4)).sum() / 16)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="8 x 10 cells has no blocks of 4 x 4"):
        block_mean(torch.zeros(8, 10), 4)


def test_projection_is_the_nearest_field_that_agrees_with_the_observations():
    field, coarse = _fields(8, 8), _fields(2, 2, key=1)
    matrix = block_mean(torch.eye(64, dtype=torch.float64).view(64, 8, 8), 4).flatten(1).T.numpy()
    nearest = field.flatten().numpy() + np.linalg.pinv(matrix) @ (coarse.flatten().numpy() - matrix @ field.flatten().numpy())
    np.testing.assert_allclose(project(field, coarse).flatten(), nearest, atol=1e-12)
    mask = torch.tensor([[True, False], [True, True]])
    partly = block_mean(project(field, coarse, mask, gain=0.5), 4)
    torch.testing.assert_close(partly, torch.where(mask, (coarse + block_mean(field, 4)) / 2, block_mean(field, 4)))


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_periodic_interpolation_goes_around_and_keeps_constants(mode):
    coarse = _fields(1, 6, 8)
    moved = interpolate(coarse.roll((2, 3), (-2, -1)), 4, mode)
    torch.testing.assert_close(moved, interpolate(coarse, 4, mode).roll((8, 12), (-2, -1)))
    for boundary in ("periodic", "open"):
        torch.testing.assert_close(interpolate(torch.ones(2, 2), 4, mode, boundary), torch.ones(8, 8))


def test_bicubic_is_keys_kernel_between_cell_centres():
    line = _fields(8)
    position = (np.arange(32) + 0.5) / 4 - 0.5

    def kernel(s: float, a: float = -0.75) -> float:
        s = abs(s)
        if s <= 1:
            return (a + 2) * s**3 - (a + 3) * s**2 + 1
        return a * (s**3 - 5 * s**2 + 8 * s - 4) if s < 2 else 0.0

    expected = [sum(kernel(x - n) * line[n % 8].item() for n in range(-4, 12)) for x in position]
    np.testing.assert_allclose(interpolate(line.expand(8, 8), 4)[0], expected, atol=1e-12)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_missing_values_become_the_mean_of_known_neighbours_from_the_outside_in(boundary):
    coarse, mask = _fields(5, 5), torch.ones(5, 5, dtype=torch.bool)
    mask[2, 2] = False
    expected = (coarse[1:4, 1:4].sum() - coarse[2, 2]) / 8
    done = filled(coarse * mask, mask, boundary)
    torch.testing.assert_close(done[2, 2], expected)
    torch.testing.assert_close(done[mask], coarse[mask])
    lone = torch.zeros(2, 5, 5, dtype=torch.bool)
    lone[0, 0, 0] = True
    many = filled(torch.full((2, 5, 5), 3.0) * lone, lone, boundary)
    torch.testing.assert_close(many, torch.stack([torch.full((5, 5), 3.0), torch.zeros(5, 5)]))
