"""Winds as others give them, brought to the faces of the fine grid and freed of divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.s3rp.physics import Boundary, Physics, Wind, divergence, faces

DILUTION = 0.01
"""Part of a cell's content that divergence adds or removes in one frame above which a wind is remarked on."""
_CHUNK = 1 << 24  # values that are worked on at once


def dilution(wind: Wind, physics: Physics) -> float:
    """Return the largest part of a cell's content that the wind's divergence adds or removes from one frame to the next, max |div w| Delta."""
    most = 0.0
    step = max(1, _CHUNK // max(1, wind.u[0].numel()))
    for start in range(0, len(wind.u), step):
        part = wind.select(slice(start, start + step))
        most = max(most, float(divergence(Wind(part.u.double(), part.v.double()), physics.spacing, physics.boundary).abs().max()))
    return most * physics.interval


def clean_wind(wind: Wind, spacing: tuple[float, float], boundary: Boundary = "periodic") -> Wind:
    """Return the nearest wind without divergence (Helmholtz): w - grad p, with lap p = div w solved exactly on the grid of the faces.

    The mean wind of a periodic domain stays. With open boundaries p is 0 outside, so that the flow through the border is mended too.

    Args:
        wind: face velocities (..., H, W) and so on.
        spacing: (dy, dx) of the cells.
        boundary: periodic or open.

    Returns:
        Face velocities of the same shapes, whose divergence is zero to round-off.
    """
    exact = Wind(wind.u.double(), wind.v.double())
    pressure = _solve_poisson(divergence(exact, spacing, boundary), spacing, boundary)
    dy, dx = spacing
    if boundary == "periodic":
        slope_x, slope_y = (pressure - pressure.roll(1, -1)) / dx, (pressure - pressure.roll(1, -2)) / dy
    else:
        padded = torch.nn.functional.pad(pressure, [1, 1, 1, 1])
        slope_x, slope_y = padded[..., 1:-1, :].diff(dim=-1) / dx, padded[..., :, 1:-1].diff(dim=-2) / dy
    return Wind((exact.u - slope_x).to(wind.u), (exact.v - slope_y).to(wind.v))


def _solve_poisson(rhs: Tensor, spacing: tuple[float, float], boundary: Boundary) -> Tensor:
    """Solve lap p = rhs with the five-point Laplacian, by Fourier (periodic) or sine (zero outside) transforms."""
    (height, width), (dy, dx) = rhs.shape[-2:], spacing
    if boundary == "periodic":
        along_y = -((2 * torch.sin(torch.pi * torch.arange(height, dtype=torch.float64) / height) / dy) ** 2)
        along_x = -((2 * torch.sin(torch.pi * torch.arange(width, dtype=torch.float64) / width) / dx) ** 2)
        eigenvalues = along_y[:, None] + along_x
        eigenvalues[0, 0] = torch.inf
        return torch.fft.ifft2(torch.fft.fft2(rhs) / eigenvalues).real
    sines_y, along_y = _sines(height, dy)
    sines_x, along_x = _sines(width, dx)
    return sines_y @ ((sines_y @ rhs @ sines_x) / (along_y[:, None] + along_x)) @ sines_x


def _sines(count: int, step: float) -> tuple[Tensor, Tensor]:
    """Return the orthonormal eigenvectors, symmetric (N, N), of the second difference with zeros outside, and its eigenvalues (N,)."""
    index = torch.arange(1, count + 1, dtype=torch.float64)
    vectors = (2 / (count + 1)) ** 0.5 * torch.sin(torch.pi * index[:, None] * index / (count + 1))
    return vectors, -((2 * torch.sin(torch.pi * index / (2 * (count + 1))) / step) ** 2)


def resampled(values: NDArray[Any], axis: int, places: NDArray[Any], wanted: NDArray[Any], period: float | None = None) -> NDArray[Any]:
    """Interpolate linearly along an axis; outside, the nearest value holds, or the domain goes on around.

    Args:
        values: (..., K, ...) at `places`.
        axis: the axis of length K.
        places: (K,) rising.
        wanted: (L,) places to interpolate at.
        period: length of the domain if it is periodic.

    Returns:
        (..., L, ...).
    """
    if period is not None:
        values, places = np.concatenate([values, values.take([0], axis)], axis), np.append(places, places[0] + period)
        wanted = places[0] + (wanted - places[0]) % period
    if len(places) == 1:
        return values.repeat(len(wanted), axis)
    below = np.clip(np.searchsorted(places, wanted, side="right") - 1, 0, len(places) - 2)
    weight = np.clip((wanted - places[below]) / (places[below + 1] - places[below]), 0, 1)
    weight = weight.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]).astype(values.dtype)
    return values.take(below, axis) * (1 - weight) + values.take(below + 1, axis) * weight


def refined(u: NDArray[Any], v: NDArray[Any], shape: tuple[int, int], bounds: tuple[float, float, float, float], boundary: Boundary) -> Wind:
    """Bring winds at cell centres of any grid over the domain to the faces of the fine grid, free of divergence.

    Args:
        u: (B, T, h, w) velocities along x at the centres of a regular grid.
        v: (B, T, h, w) velocities along y there.
        shape: (H, W) of the fine grid.
        bounds: y0, y1, x0, x1 of the domain.
        boundary: periodic or open.
    """
    y0, y1, x0, x1 = bounds
    spacing = ((y1 - y0) / shape[0], (x1 - x0) / shape[1])
    velocity = np.stack([u, v], 2)
    for axis, low, high, count in ((-2, y0, y1, shape[0]), (-1, x0, x1, shape[1])):
        have, want = (low + (np.arange(cells) + 0.5) * (high - low) / cells for cells in (velocity.shape[axis], count))
        if len(have) != len(want):
            velocity = resampled(velocity, axis, have, want, high - low if boundary == "periodic" else None)
    return clean_wind(faces(torch.from_numpy(np.ascontiguousarray(velocity)), boundary), spacing, boundary)
