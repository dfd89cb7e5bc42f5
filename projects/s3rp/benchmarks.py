"""Readers of PDEBench and The Well: fine fields become the truth, and their block means the observations.

PDEBench (HDF5), by what is in the file:
    particles, velocity, t        2-D incompressible flow that carries a scalar: exactly this equation (D as the option diffusivity; 0 else)
    density, Vx, Vy               2-D compressible flow: the density is carried by the winds, without diffusion
    0000/data, 0000/grid/{x,y,t}  2-D diffusion-reaction: channel 0, no wind, D = 1e-3; its reactions are not in the equation
    tensor, x-coordinate          1-D advection 1D_Advection_Sols_beta{b}.hdf5: a row of coarse cells, wind b along x; D = 0
The Well (HDF5): a scalar of t0_fields (`tracer` if it is there) carried by t1_fields/velocity; D of the option, or 1 / (Reynolds Schmidt).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.s3rp.arrays import check_room, opened
from projects.s3rp.assembling import Reading, assemble
from projects.s3rp.observing import block_mean
from projects.s3rp.sets import Observations
from shared.data.files import BadFileError

FACTOR = 4
"""Fine cells along a side of a coarse one, where the option factor is not set."""
REACTION_DIFFUSIVITY = 1e-3
"""D of the activator, channel 0 of PDEBench's diffusion-reaction files."""
Rows = tuple[slice, slice]
"""Sequences and frames that are read."""
_COORDINATES = ("x-coordinate", "y-coordinate", "t-coordinate")
_BETA = re.compile(r"beta(-?[0-9.]+?)(?=\.?[a-z]|$)", re.IGNORECASE)


def is_benchmark(path: Path) -> bool:
    """Say whether an HDF5 file has the layout of PDEBench or The Well, and not ours."""
    with opened(path) as content:
        return "y" not in content and any(name in content for name in ("t0_fields", "tensor", "particles", "density", "0000"))


def read_benchmark(path: Path, reading: Reading, horizon: int = 0) -> tuple[Observations, Tensor]:
    """Read a file of PDEBench or The Well.

    Args:
        path: HDF5 file.
        reading: `factor` (4), `diffusivity`, `sigma` (0), `scalar`, the field's name, and how many `sequences` and `frames` to read.
        horizon: frames to forecast, which the observations have and the truth has not.

    Returns:
        Observations, and the truth (B, T, H, W) float32.

    Raises:
        FileNotFoundError, BadFileError, ModuleNotFoundError: see `arrays.read_arrays`.
    """
    rows = slice(reading.sequences), slice(reading.frames)
    with opened(path) as content:
        if "t0_fields" in content:
            parts = _well(content, rows, reading)
        elif "0000" in content:
            parts = _reaction(content, rows)
        elif "particles" in content:
            parts = _particles(content, rows)
        elif "tensor" in content:
            parts = _row(content, rows, path, reading.factor or FACTOR)
        else:
            parts = _compressible(content, rows, reading)
        truth = torch.from_numpy(parts.pop("truth").astype(np.float32))
    return _observed(path, parts, truth, reading, horizon)


def _observed(path: Path, parts: dict[str, NDArray[Any]], truth: Tensor, reading: Reading, horizon: int) -> tuple[Observations, Tensor]:
    """Average the truth over blocks and assemble the rest."""
    factor = reading.factor or FACTOR
    if not bool(truth.isfinite().all()):
        raise BadFileError(f"cannot use {path}: its fields hold NaN or infinity; choose another file, or fewer sequences")
    try:
        coarse = block_mean(truth, factor)
    except ValueError as error:
        raise BadFileError(f"cannot use {path}: {error}; set another factor") from error
    if reading.sigma:
        noise = np.random.default_rng(0).standard_normal(tuple(coarse.shape), np.float32)
        coarse = coarse + reading.sigma * torch.from_numpy(noise)
    try:
        return assemble(parts | {"y": coarse.numpy()}, reading, horizon, path.name), truth
    except ValueError as error:
        raise BadFileError(f"cannot use {path}: {error}") from error


def _taken(content: Mapping[str, Any], name: str, rows: tuple[Any, ...]) -> NDArray[Any]:
    if name not in content:
        raise ValueError(f"it has no array {name}")
    stored = content[name]
    limits = [part.stop for part in rows if isinstance(part, slice)]
    taken = [side if limit is None else min(side, limit) for side, limit in zip(stored.shape, limits, strict=False)]
    mend = "read fewer by the options sequences and frames"
    check_room(name, (*taken, *stored.shape[len(taken) :]), stored.dtype.itemsize, mend)
    return np.asarray(stored[rows])


def _grid(x: NDArray[Any], y: NDArray[Any], times: NDArray[Any], frames: int) -> dict[str, NDArray[Any]]:
    """Return bounds and dt of coordinates of cell centres, and stamps of frames (PDEBench has one more)."""
    borders = []
    for places in (y, x):
        step = float(places[-1] - places[0]) / max(1, len(places) - 1) or 1.0
        borders += [float(places[0]) - step / 2, float(places[-1]) + step / 2]
    return {"bounds": np.array(borders), "dt": np.array(float(times[frames - 1] - times[0]) / max(1, frames - 1)), "D": np.array(0.0)}


def _unit_grid(shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return x and y of cell centres of the unit square for (..., X, Y)."""
    return (np.arange(shape[-2]) + 0.5) / shape[-2], (np.arange(shape[-1]) + 0.5) / shape[-1]


def _particles(content: Mapping[str, Any], rows: Rows) -> dict[str, NDArray[Any]]:
    truth, velocity = _taken(content, "particles", rows)[..., 0], _taken(content, "velocity", rows)
    times = _taken(content, "t", ())
    grid = _grid(*_unit_grid(truth.shape), times if times.ndim == 1 else times[0], truth.shape[1])
    winds = {"u_centre": velocity[..., 0].swapaxes(-1, -2), "v_centre": velocity[..., 1].swapaxes(-1, -2)}
    return {"truth": truth.swapaxes(-1, -2)} | winds | grid | {"boundary": np.array("open")}


def _compressible(content: Mapping[str, Any], rows: Rows, reading: Reading) -> dict[str, NDArray[Any]]:
    truth = _taken(content, reading.scalar or "density", rows)
    if truth.ndim != 4:
        raise ValueError(f"{reading.scalar or 'density'} has the shape {truth.shape}: only fields of two dimensions, (N, T, X, Y), are read")
    x, y, times = (_taken(content, name, ()) for name in _COORDINATES)
    winds = {name: _taken(content, source, rows).swapaxes(-1, -2) for name, source in (("u_centre", "Vx"), ("v_centre", "Vy"))}
    return {"truth": truth.swapaxes(-1, -2)} | winds | _grid(x, y, times, truth.shape[1])


def _reaction(content: Mapping[str, Any], rows: Rows) -> dict[str, NDArray[Any]]:
    groups = [content[name] for name in sorted(name for name in content if name.isdigit())[rows[0]]]
    if (shape := groups[0]["data"].shape) != (*shape[:3], 2):  # shallow water has one channel, diffusion and sorption one place less
        raise ValueError(f"data has the shape {shape}: of files with a group for each sequence, diffusion-reaction (T, X, Y, 2) alone is read")
    truth = np.stack([_taken(group, "data", (rows[1], Ellipsis, 0)) for group in groups]).swapaxes(-1, -2)
    x, y, times = (_taken(groups[0]["grid"], name, ()) for name in ("x", "y", "t"))
    still = np.zeros((1, 1, *truth.shape[-2:]), np.float32)
    grid = _grid(x, y, times, truth.shape[1]) | {"D": np.array(REACTION_DIFFUSIVITY)}
    return {"truth": truth, "u_centre": still, "v_centre": still} | grid | {"boundary": np.array("open")}


def _row(content: Mapping[str, Any], rows: Rows, path: Path, factor: int) -> dict[str, NDArray[Any]]:
    """Read 1-D advection as one row of coarse cells, all of whose fine rows are alike."""
    line = _taken(content, "tensor", rows)
    if line.ndim != 3:
        raise ValueError(f"tensor has the shape {line.shape}: of files with a tensor, 1-D advection (N, T, X) alone is read")
    found = _BETA.search(path.name)
    if found is None:
        raise ValueError("its name tells no wind: expected 1D_Advection_Sols_beta{b}.hdf5, as PDEBench names it")
    x, times = _taken(content, "x-coordinate", ()), _taken(content, "t-coordinate", ())
    step = float(x[-1] - x[0]) / (len(x) - 1)
    if line.shape[1] > 1 and _goes_twice_as_far(line, float(found[1]) * float(times[1] - times[0]) / (step * len(x))):
        raise ValueError(f"its fields move twice as fast as the wind {found[1]} of its name, as in PDEBench's first release: download the file anew")
    truth = np.repeat(line[:, :, None], factor, 2)
    speed = np.full((1, 1, factor, len(x)), float(found[1]), np.float32)
    return {"truth": truth, "u_centre": speed, "v_centre": 0 * speed} | _grid(x, step * np.arange(factor), times, line.shape[1])


def _goes_twice_as_far(line: NDArray[Any], way: float) -> bool:
    """Say whether the first two frames of (N, T, X) periodic fields lie nearer to twice a way, in parts of the domain, than to the way itself."""
    modes = np.fft.rfft(line[:, :2])
    phase = np.exp(-2j * np.pi * way * np.arange(modes.shape[-1]))
    once, twice = (float(np.abs(modes[:, 0] * phase**times - modes[:, 1]).sum()) for times in (1, 2))
    return twice < once / 2


def _well(content: Any, rows: Rows, reading: Reading) -> dict[str, NDArray[Any]]:
    scalars = content["t0_fields"]
    name = reading.scalar or ("tracer" if "tracer" in scalars else next(iter(scalars)))
    truth, velocity = _taken(scalars, name, rows), _taken(content["t1_fields"], "velocity", rows)
    if truth.ndim != 4 or velocity.shape != (*truth.shape, 2):
        raise ValueError(f"{name} has the shape {truth.shape} and velocity {velocity.shape}: expected (N, T, X, Y) and (N, T, X, Y, 2)")
    dimensions, attributes = content["dimensions"], dict(content.attrs)
    x, y, times = (_taken(dimensions, axis, ()) for axis in ("x", "y", "time"))
    parts = _grid(x, y, times if times.ndim == 1 else times[0], truth.shape[1])
    if {"Reynolds", "Schmidt"} <= set(attributes):
        parts["D"] = np.array(1 / (float(attributes["Reynolds"]) * float(attributes["Schmidt"])))
    elif reading.diffusivity is None:
        raise ValueError("it tells no diffusivity (Reynolds and Schmidt): set the option diffusivity")
    conditions = content.get("boundary_conditions", {})
    kinds = {str(_text(one.attrs.get("bc_type", ""))).upper() for one in conditions.values()}
    winds = {"u_centre": velocity[..., 0].swapaxes(-1, -2), "v_centre": velocity[..., 1].swapaxes(-1, -2)}
    return {"truth": truth.swapaxes(-1, -2), "boundary": np.array("periodic" if kinds <= {"PERIODIC"} else "open")} | winds | parts


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
