"""Observations from the arrays of a file: shapes, stamps, masks and winds are checked, and put on regular frames."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from projects.s3rp.physics import Boundary, Physics, Wind, centred, faces
from projects.s3rp.sets import Observations
from projects.s3rp.winds import DILUTION, clean_wind, dilution, refined

SNAP = 0.1
"""Part of a frame's time that a stamp may lie beside the regular grid."""
GAPS = 50
"""Regular frames for each given one at most: the others are absent, and become missing ones."""
SUBSTEPS = 5000
"""Time steps of the solver in one frame above which units are taken to be wrong."""
FILLER = 10
"""Times the largest other value from which on a negative value that comes again is taken for one that stands for a missing one."""
HUGE = 1e6
"""The same of a positive value, such as the 1e20 of netCDF files."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How to read files that do not say everything themselves; None keeps what the file says.

    Attributes:
        factor: fine cells along a side of a coarse one; needed where the winds do not lie on the fine grid already.
        clean_wind: free winds of divergence; those brought to the fine grid always are.
        diffusivity: D, in units of length squared by time.
        interval: time between two frames.
        sigma: standard deviation of the observations' noise.
        boundary: periodic or open.
        scalar: name of the observed variable in netCDF files, and of the field in those of PDEBench and The Well.
        wind_u: name of the wind along x in netCDF files.
        wind_v: name of the wind along y in netCDF files.
        sequences: first sequences to read of PDEBench and The Well; None reads all.
        frames: first frames to read of them; None reads all.
    """

    factor: int | None = None
    clean_wind: bool = False
    diffusivity: float | None = None
    interval: float | None = None
    sigma: float | None = None
    boundary: Boundary | None = None
    scalar: str | None = None
    wind_u: str | None = None
    wind_v: str | None = None
    sequences: int | None = None
    frames: int | None = None


def assemble(arrays: Mapping[str, NDArray[Any]], reading: Reading, horizon: int = 0, file: str = "") -> Observations:
    """Make observations of the arrays of a file.

    Args:
        arrays: by the names of `layouts`; `y` may lack the axis of sequences, and winds and source those of sequences and frames.
        reading: what the file does not say.
        horizon: frames to forecast, which are added as missing ones.
        file: name for remarks.

    Raises:
        ValueError: naming the array, what is wrong and the mend.
    """
    y, mask = _frames(arrays)
    boundary = _boundary(arrays, reading)
    interval, index = _stamps(arrays, reading, y.shape[:2])
    seen, count = int(index.max()) + 1, int(index.max()) + 1 + horizon
    coarse, is_seen = np.zeros((len(y), count, *y.shape[2:]), np.float32), np.zeros((len(y), count, *y.shape[2:]), bool)
    rows = np.arange(len(y))[:, None]
    coarse[rows, index], is_seen[rows, index] = y, mask
    shape = _fine_shape(arrays, y.shape[2:], reading, boundary)
    _remark(arrays, reading, shape, y.shape[2:], file or "the file")
    bounds = _bounds(arrays)
    spacing = ((bounds[1] - bounds[0]) / shape[0], (bounds[3] - bounds[2]) / shape[1])
    physics = Physics(_scalar(arrays, "D", reading.diffusivity), interval, spacing, boundary)
    wind = _wind(arrays, reading, shape, bounds, boundary, index, seen, count)
    source = None
    if "source" in arrays:
        source = torch.from_numpy(_spread("source", arrays["source"], index, seen, count).astype(np.float32))
    names = [str(name) for name in arrays["names"].ravel()] if "names" in arrays else [f"sequence-{number:05d}" for number in range(len(y))]
    if len(names) != len(y):
        raise ValueError(f"names holds {len(names)} names for {len(y)} sequences: give one each, or leave it out")
    sigma, unit = _scalar(arrays, "sigma", reading.sigma, 0.0), str(arrays["unit"]) if "unit" in arrays else ""
    observations = Observations(torch.from_numpy(coarse), torch.from_numpy(is_seen), wind, physics, sigma, source, names, unit)
    _check_wind(observations, file or "the file")
    return observations


def _frames(arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (B, T, h, w) frames, zero where missing, and their mask."""
    if "y" not in arrays:
        raise ValueError("it has no array y: expected the coarse frames, (B, T, n, n) with NaN where a value is missing")
    y = _numbers("y", arrays["y"]).astype(np.float32)
    y = y[None] if y.ndim == 3 else y
    if y.ndim != 4 or 0 in y.shape:
        raise ValueError(f"y has the shape {arrays['y'].shape}: expected coarse frames, (B, T, n, n), or (T, n, n) of one sequence")
    if y.shape[3] == 1:
        raise ValueError(f"y has the shape {arrays['y'].shape}, of one cell a row: give at least 2, and no axis of channels")
    if np.isinf(y).any():
        raise ValueError("y holds infinite values: write NaN where a value is missing")
    mask = ~np.isnan(y)
    if "mask" in arrays:
        given = arrays["mask"][None] if arrays["mask"].ndim == 3 else arrays["mask"]
        if given.shape != y.shape or given.dtype.kind not in "biu":
            raise ValueError(f"mask is {given.dtype} of {given.shape}: expected bool of {y.shape}, as y is, True where a value is observed")
        mask &= given.astype(bool)
    if empty := np.flatnonzero(~mask.reshape(len(y), -1).any(1)).tolist():
        raise ValueError(f"y has no observed value at all in sequence {empty[0]}, counted from 0: remove it")
    _check_fillers(y[mask])
    return np.where(mask, y, 0).astype(np.float32), mask


def _check_fillers(values: NDArray[np.float32]) -> None:
    """Refuse a value that comes again and again and lies far from all others."""
    for value, times in ((values.min(), -FILLER), (values.max(), HUGE)):
        others = values[values != value]
        count, largest = len(values) - len(others), float(np.abs(others).max(initial=0))
        if count > 1 and len(others) and float(value) / times > largest and (value < 0 or largest > 0):  # a puff in clean air is no filler
            raise ValueError(f"y holds {value:g} {count} times, which looks like a missing value ({value:g}): write NaN in its place")


def _remark(arrays: Mapping[str, NDArray[Any]], reading: Reading, shape: tuple[int, int], coarse: tuple[int, ...], file: str) -> None:
    """Remark on options that overrule the file, and on winds of neither the fine nor the coarse grid."""
    for name, option in (("D", "diffusivity"), ("dt", "interval"), ("sigma", "sigma"), ("boundary", "boundary")):
        given, stored = getattr(reading, option), arrays.get(name)
        if given is None or stored is None or stored.size != 1:
            continue
        told = stored.item()
        is_same = str(told) == given if isinstance(given, str) else stored.dtype.kind in "fiu" and math.isclose(told, given, rel_tol=1e-6)
        if not is_same:
            _log.warning("%s: the file says %s = %s; %s of the option %s is used in its place", file, name, _short(told), _short(given), option)
    rows, columns = _wind_grid(arrays)
    if (rows, columns) not in (shape, coarse):
        _log.warning("%s: winds of %d x %d cells brought to %d x %d", file, rows, columns, *shape)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbers(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {array.dtype}: expected numbers")
    return array


def _boundary(arrays: Mapping[str, NDArray[Any]], reading: Reading) -> Boundary:
    boundary = reading.boundary or (str(arrays["boundary"]) if "boundary" in arrays else "periodic")
    for known in get_args(Boundary):
        if boundary == known:
            return known
    raise ValueError(f"boundary is {boundary!r}: write one of {', '.join(get_args(Boundary))}")


def _scalar(arrays: Mapping[str, NDArray[Any]], name: str, given: float | None, default: float | None = None) -> float:
    """Return a number, 0 or more, of the options, the file or a default."""
    if given is None and name not in arrays and default is None:
        option = {"D": "diffusivity", "dt": "interval"}[name]
        raise ValueError(f"it has no {name}: add it to the file, or set the option {option}")
    stored = _numbers(name, arrays[name]) if given is None and name in arrays else np.array(default if given is None else given)
    if stored.size != 1:
        raise ValueError(f"{name} has the shape {stored.shape}: expected one number")
    number = float(stored.ravel()[0])
    if not np.isfinite(number) or number < 0:
        raise ValueError(f"{name} is {number}: it must be a finite number, 0 or more")
    return number


def _bounds(arrays: Mapping[str, NDArray[Any]]) -> tuple[float, float, float, float]:
    """Return y0, y1, x0, x1; the unit square where the file has none."""
    values = np.asarray(arrays.get("bounds", np.array([0.0, 1.0, 0.0, 1.0]))).ravel()
    y0, y1, x0, x1 = values.tolist() if len(values) == 4 and values.dtype.kind in "fiu" else (0, 0, 0, 0)
    if not np.isfinite([y0, y1, x0, x1]).all() or y1 <= y0 or x1 <= x0:
        raise ValueError(f"bounds is {values.tolist()}: expected y0, y1, x0, x1 with y0 < y1 and x0 < x1, the domain's borders")
    return float(y0), float(y1), float(x0), float(x1)


def _stamps(arrays: Mapping[str, NDArray[Any]], reading: Reading, shape: tuple[int, ...]) -> tuple[float, NDArray[np.int64]]:
    """Return the time between two frames, and the (B, T) places of the given frames on the regular grid; absent ones will be missing frames."""
    regular = np.broadcast_to(np.arange(shape[1]), shape)
    if "times" not in arrays:
        return _scalar(arrays, "dt", reading.interval), regular
    times = _numbers("times", arrays["times"]).astype(np.float64)
    if times.shape not in {tuple(shape), (shape[1],)}:
        raise ValueError(f"times has the shape {times.shape}: expected one stamp a frame, ({shape[1]},) or {tuple(shape)}")
    times = np.broadcast_to(times, shape)
    steps = np.diff(times, axis=1)
    if not np.isfinite(times).all() or (steps <= 0).any():
        raise ValueError("times must be finite and rise from frame to frame: sort the frames, and remove those of the same time")
    interval = _scalar(arrays, "dt", reading.interval, frame_time(times) if steps.size else None)
    if interval <= 0:
        raise ValueError("dt is 0: give the time between two frames")
    places = (times - times[:, :1]) / interval
    index = np.rint(places).astype(np.int64)
    away = np.abs(places - index)
    if away.max() > SNAP or (np.diff(index, axis=1) < 1).any():
        row, frame = (int(place) for place in np.unravel_index(away.argmax(), away.shape))
        raise ValueError(
            f"times do not lie on a grid of dt = {interval:g}: frame {frame} of sequence {row}, at {times[row, frame]:g}, is {away.max():.2f} of a "
            f"frame beside it (at most {SNAP} is mended); interpolate the frames to regular times, or set a dt that divides all steps"
        )
    check_gaps(float(index.max()), shape[1])
    return interval, index


def frame_time(times: NDArray[np.float64]) -> float:
    """Return the time between two regular frames, from rising stamps (..., T) with gaps and jitter: the smallest step tells how many each step is."""
    steps = np.diff(times, axis=-1)
    counts = np.rint(steps / steps.min())
    return float(steps.sum() / counts.sum())


def check_gaps(last: float, given: int) -> None:
    """Raise a ValueError if the last frame is so late that hardly any of those before it is there."""
    if not last < GAPS * given:
        raise ValueError(f"times leave {last + 1 - given:g} frames missing beside {given} given ones: cut the sequence at its gaps, or correct dt")


def _fine_shape(arrays: Mapping[str, NDArray[Any]], coarse: tuple[int, ...], reading: Reading, boundary: Boundary) -> tuple[int, int]:
    """Return (H, W) of the fine grid: that of the winds, unless a factor is wanted."""
    (height, width), (rows, columns) = coarse, _wind_grid(arrays)
    if reading.factor is not None:
        if reading.factor < 2:
            raise ValueError(f"factor is {reading.factor}: it must be 2 or more")
        if rows % height == 0 and columns % width == 0 and rows // height == columns // width not in (1, reading.factor):
            message = f"the winds lie on a grid {rows // height} times finer than the frames, and the factor is to be {reading.factor}"
            raise ValueError(f"{message}: use a network of factor {rows // height}, or give u_centre and v_centre on the coarse grid")
        return height * reading.factor, width * reading.factor
    if (rows, columns) == (height, width):
        raise ValueError(f"the winds lie on the coarse grid of {rows} x {columns} cells: set the option factor to have them brought to a finer one")
    if rows % height or columns % width or rows // height != columns // width:
        message = f"the winds' {rows} x {columns} cells are no whole multiple of the frames' {height} x {width}, the same along both sides"
        raise ValueError(f"{message}: set the option factor to have them brought to a grid that fits")
    return rows, columns


def _wind_grid(arrays: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """Return the cells along y and x of the grid that the winds lie on."""
    names = ("u", "v") if "u" in arrays else ("u_centre", "v_centre")
    for name in names:
        if name not in arrays:
            lacking = "u or u_centre" if name == "u_centre" else name
            raise ValueError(f"it has no array {lacking}: expected winds u and v on the cells' faces, or u_centre and v_centre at their centres")
        if arrays[name].ndim < 2 or 0 in arrays[name].shape:
            raise ValueError(f"{name} has the shape {arrays[name].shape}: expected velocities (B, T or 1, ...) of the fine grid")
    return arrays[names[0]].shape[-2], arrays[names[1]].shape[-1]


def _spread(name: str, array: NDArray[Any], index: NDArray[np.int64], seen: int, count: int) -> NDArray[Any]:
    """Bring winds or sources to (B, 1 or `count`, ...): between absent frames they are interpolated in time, and the last one holds."""
    array = _numbers(name, array)
    array = array.reshape((1,) * max(0, 4 - array.ndim) + array.shape)
    sequences, given = index.shape
    if array.ndim != 4 or len(array) not in (1, sequences) or 0 in array.shape:
        raise ValueError(f"{name} has the shape {array.shape}: expected ({sequences}, 1 or {given}, ...), or without sequences if they are alike")
    if not np.isfinite(array).all():
        place = ", ".join(str(int(part)) for part in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} holds NaN or infinity, first at [{place}]: fill it, for winds are needed in every cell and frame")
    array = np.broadcast_to(array, (sequences, *array.shape[1:]))
    frames = array.shape[1]
    if frames == 1:
        return array
    if frames == given < seen:
        below = np.stack([np.clip(np.searchsorted(row, np.arange(seen), side="right") - 1, 0, given - 1) for row in index])
        above, rows = np.minimum(below + 1, given - 1), np.arange(sequences)[:, None]
        gap = np.maximum(index[rows, above] - index[rows, below], 1)
        weight = np.clip((np.arange(seen) - index[rows, below]) / gap, 0, 1).astype(array.dtype)[..., None, None]
        array = array[rows, below] * (1 - weight) + array[rows, above] * weight
    elif frames < seen - 1:
        raise ValueError(f"{name} has {frames} frames for {given} of y: give one a frame, or a single one if it does not change")
    return array[:, np.minimum(np.arange(count), array.shape[1] - 1)]


def _wind(
    arrays: Mapping[str, NDArray[Any]],
    reading: Reading,
    shape: tuple[int, int],
    bounds: tuple[float, float, float, float],
    boundary: Boundary,
    index: NDArray[np.int64],
    seen: int,
    count: int,
) -> Wind:
    """Return the winds on the fine grid's faces, float32."""
    rows, columns = _wind_grid(arrays)
    on_faces = "u" in arrays
    u, v = (_spread(name, arrays[name], index, seen, count) for name in (("u", "v") if on_faces else ("u_centre", "v_centre")))
    further = int(on_faces and boundary == "open")
    if u.shape[-2:] != (rows, columns + further) or v.shape[-2:] != (rows + further, columns):
        centre = "" if on_faces else " at the centres"
        message = f"the winds are {u.shape[-2:]} and {v.shape[-2:]}: expected ({rows}, {columns + further}) and ({rows + further}, {columns})"
        raise ValueError(f"{message} of a grid with {boundary} boundaries{centre}; name velocities at the cells' centres u_centre and v_centre")
    if u.shape[1] != v.shape[1]:
        frames = max(u.shape[1], v.shape[1])
        u, v = (np.broadcast_to(part, (len(part), frames, *part.shape[2:])) for part in (u, v))
    wind = Wind(torch.from_numpy(np.array(u, np.float32)), torch.from_numpy(np.array(v, np.float32)))
    if (rows, columns) != shape:
        velocity = (centred(wind, boundary) if on_faces else torch.stack(list(wind), -3)).numpy()
        return refined(velocity[:, :, 0], velocity[:, :, 1], shape, bounds, boundary)
    wind = wind if on_faces else faces(torch.stack(list(wind), -3), boundary)
    spacing = ((bounds[1] - bounds[0]) / rows, (bounds[3] - bounds[2]) / columns)
    return clean_wind(wind, spacing, boundary) if reading.clean_wind else wind


def _check_wind(observations: Observations, file: str) -> None:
    """Refuse winds whose units cannot be right, and remark on divergence."""
    physics, wind = observations.physics, observations.wind
    if (steps := physics.stable_substeps(wind)) > SUBSTEPS:
        raise ValueError(
            f"winds and diffusion move the field so far in a frame that the solver needs {steps} steps for it: dt = {physics.interval:g}, D = "
            f"{physics.diffusivity:g}, cells of {physics.spacing[0]:g} x {physics.spacing[1]:g}; give dt, D, bounds, u and v in the same units"
        )
    if (part := dilution(wind, physics)) > DILUTION:
        message = f"the winds are not free of divergence, which adds or removes up to {100 * part:.1f} % of a cell's content a frame"
        if part > 1:
            raise ValueError(f"{message}: set --clean_wind true to mend them, or give dt, bounds, u and v in the same units")
        _log.warning("%s: %s; set clean_wind to mend them", file, message)
