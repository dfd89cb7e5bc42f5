"""The plain rivals: interpolations, with and without projection, and forecasts by a solver. All are linear, and none learns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from projects.s3rp.observing import Interpolation, block_mean, filled, interpolate, project
from projects.s3rp.physics import Boundary, Physics, Scheme, Wind, at_frame
from projects.s3rp.sets import Estimator, Observations


def completed(observations: Observations, spline: bool = False) -> Tensor:
    """Return coarse frames without gaps, (B, T, h, w).

    Missing cells of a frame come from their neighbours, missing frames from those before and after them; before the first and after the last
    observed frame, that frame stays.

    Args:
        observations: coarse sequences.
        spline: interpolate in time by a cubic spline through the observed frames instead of linearly.
    """
    coarse = filled(observations.coarse, observations.mask, observations.physics.boundary)
    is_seen = observations.mask.flatten(2).any(2)  # (B, T)
    if bool(is_seen.all()):
        return coarse
    weights = torch.stack([_time_weights(row, spline) for row in is_seen.cpu()]).to(coarse)
    return torch.einsum("bts,bshw->bthw", weights, coarse)


def _time_weights(is_seen: Tensor, spline: bool) -> Tensor:
    """Return (T, T) weights that make each frame from the observed ones; zero if there are none."""
    from scipy.interpolate import make_interp_spline

    times = is_seen.nonzero()[:, 0].numpy()
    weights = np.zeros((len(is_seen), len(is_seen)))
    if len(times) == 0:
        return torch.from_numpy(weights)
    wanted = np.arange(len(is_seen)).clip(times[0], times[-1])
    degree = min(3 if spline else 1, len(times) - 1)
    weights[:, times] = make_interp_spline(times, np.eye(len(times)), k=degree)(wanted) if degree else 1.0
    return torch.from_numpy(weights)


def spline_matrix(size: int, factor: int, boundary: Boundary = "periodic") -> Tensor:
    """Return the weights (size factor, size) of cubic-spline interpolation from the centres of coarse cells to those of fine ones.

    Periodic lines go around; those of open domains keep the value of the border's cell beyond its centre.
    """
    from scipy.interpolate import make_interp_spline

    wanted = (np.arange(size * factor) + 0.5) / factor - 0.5
    if size == 1:
        return torch.ones(factor, 1, dtype=torch.float64)
    if boundary == "open":
        weights = make_interp_spline(np.arange(size), np.eye(size), k=min(3, size - 1))(wanted.clip(0, size - 1))
        return torch.from_numpy(weights)
    period = size * -(-4 // size)  # a periodic spline takes four cells: as many turns as that needs
    cells = np.arange(period + 1)
    return torch.from_numpy(make_interp_spline(cells, np.eye(size)[cells % size], k=3, bc_type="periodic")(wanted % period))


def interpolated(observations: Observations, mode: Interpolation = "bicubic") -> Tensor:
    """Nearest, bilinear or bicubic interpolation of each frame, (B, T, H, W)."""
    return interpolate(completed(observations), observations.factor, mode, observations.physics.boundary)


def splined(observations: Observations) -> Tensor:
    """Cubic-spline interpolation in space, and in time where frames are missing, (B, T, H, W)."""
    coarse = completed(observations, spline=True)
    along_y, along_x = (spline_matrix(size, observations.factor, observations.physics.boundary).to(coarse) for size in coarse.shape[-2:])
    return along_y @ coarse @ along_x.T


def projected(observations: Observations, method: Estimator) -> Tensor:
    """Make another method's fields agree with what was observed: the projection, (B, T, H, W)."""
    return project(method(observations), observations.coarse, observations.mask)


def last_observed(observations: Observations) -> Tensor:
    """Return the number of each sequence's last frame with an observation, (B,); the frames after it are forecasts. 0 if there is none."""
    is_seen = observations.mask.flatten(2).any(2)
    return (is_seen * torch.arange(observations.frames, device=is_seen.device)).amax(1)


def persistence(observations: Observations, method: Estimator = interpolated) -> Tensor:
    """Another method's fields, of which the last observed one stays for ever, (B, T, H, W)."""
    fields, last = method(observations), last_observed(observations)
    frames = torch.minimum(torch.arange(observations.frames, device=last.device), last[:, None])
    return fields[torch.arange(len(fields), device=last.device)[:, None], frames]


def rolled_out(fields: Tensor, last: Tensor, physics: Physics, wind: Wind, source: Tensor | None) -> Tensor:
    """Replace the frames after each sequence's `last` one by those of the solver, (B, T, H, W)."""
    frames = list(fields.unbind(1))
    for frame in range(1, len(frames)):
        if bool((last < frame).any()):
            ahead = physics.advance(frames[frame - 1], wind.at(frame - 1), at_frame(source, frame - 1))
            frames[frame] = torch.where((last < frame)[:, None, None], ahead, frames[frame])
    return torch.stack(frames, 1)


def fine_solver(observations: Observations, method: Estimator = interpolated) -> Tensor:
    """Another method's fields, and the fine solver started from the last observed one, (B, T, H, W)."""
    fields = method(observations)
    return rolled_out(fields, last_observed(observations), observations.physics, observations.wind.to(fields), observations.source)


def coarse_physics(observations: Observations, scheme: Scheme = "vanleer") -> tuple[Physics, Wind]:
    """Return the solver of the coarse grid and its winds, whose flux through each coarse face is the fine one's.

    Coarse cells are many diffusion lengths wide, where the central scheme rings; hence van Leer's.
    """
    factor, wind, physics = observations.factor, observations.wind, observations.physics
    u = wind.u[..., ::factor].unflatten(-2, (-1, factor)).mean(-2)
    v = wind.v[..., ::factor, :].unflatten(-1, (-1, factor)).mean(-1)
    dy, dx = physics.spacing
    return physics.with_options(spacing=(dy * factor, dx * factor), scheme=scheme, substeps=None), Wind(u, v)


def coarse_solver(observations: Observations) -> Tensor:
    """Bicubic interpolation; forecasts are the coarse solver's, interpolated alike, (B, T, H, W)."""
    physics, wind = coarse_physics(observations)
    coarse, source = completed(observations), observations.source
    source = None if source is None else block_mean(source, observations.factor)
    ahead = rolled_out(coarse, last_observed(observations), physics, wind.to(coarse), source)
    return interpolate(ahead, observations.factor, "bicubic", observations.physics.boundary)


_INTERPOLATIONS: dict[str, Estimator] = {
    **{mode: partial(interpolated, mode=mode) for mode in get_args(Interpolation)},
    "spline": splined,
}
_PROJECTED: dict[str, Estimator] = {f"{name}+projection": partial(projected, method=method) for name, method in _INTERPOLATIONS.items()}
FORECASTS: dict[str, Callable[[Observations], Tensor]] = {
    "persistence": persistence,
    "coarse solver": coarse_solver,
    "fine solver from bicubic": fine_solver,
    "fine solver from bicubic+projection": partial(fine_solver, method=_PROJECTED["bicubic+projection"]),
}
"""Methods whose frames after the last observed one are forecasts."""
METHODS: dict[str, Estimator] = {**_INTERPOLATIONS, **_PROJECTED, **FORECASTS}
"""All methods by name."""
