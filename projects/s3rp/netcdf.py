"""Observations from netCDF files: a scalar (time, y, x) and winds on the same or another grid, in metres and seconds once read.

Rasters only: the swaths of satellites (level 2) must be gridded first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projects.s3rp.assembling import Reading, assemble, check_gaps, frame_time
from projects.s3rp.cf import AXES, EARTH, METRES, SPEEDS, UNEVEN, Variable, axis_of, clock, is_falling, opened_netcdf, rising, seconds_of, unit_of
from projects.s3rp.layouts import Coordinates
from projects.s3rp.sets import Observations
from projects.s3rp.winds import resampled
from shared.runs import atomic

_WINDS = {
    "u": (("eastward_wind", "x_wind"), ("u", "u10", "u100", "wind_u", "uwnd", "ua")),
    "v": (("northward_wind", "y_wind"), ("v", "v10", "v100", "wind_v", "vwnd", "va")),
}


def read_netcdf(path: Path, reading: Reading, horizon: int = 0) -> tuple[Observations, Coordinates]:
    """Read the scalar and the winds of a file as one sequence, with the place and time of its fine cells.

    Degrees become metres by the cosine of the central latitude, times seconds; D is `reading.diffusivity` or the global attribute `diffusivity`, in
    m^2/s. Winds are interpolated to the fine grid and to the frames' times, and freed of divergence. Rows are turned so that y rises.

    Raises:
        FileNotFoundError, ModuleNotFoundError: see `arrays.read_arrays`.
        BadFileError: naming what is missing or wrong, and the mend.
    """
    with opened_netcdf(path) as (variables, attributes):
        scalar = _find_scalar(variables, reading)
        axes = {axis: axis_of(variables, scalar, axis) for axis in AXES}
        values = _on_grid(scalar, axes)
        time, y, x, metres = _places(axes)
        unit = scalar.text("units")
        arrays: dict[str, NDArray[Any]] = {"y": values.astype(np.float32), "times": time, "unit": np.array({"1": ""}.get(unit, unit))}
        dy, dx = (abs(places[-1] - places[0]) / (len(places) - 1) for places in (y, x))
        arrays["bounds"] = np.array([y[0] - dy / 2, y[-1] + dy / 2, x[0] - dx / 2, x[-1] + dx / 2])
        if len(time) < 2 and reading.interval is None:
            raise ValueError("it has one frame: set the option interval, in seconds")
        interval = reading.interval or frame_time(time)
        check_gaps(float((time[-1] - time[0]) / interval) if len(time) > 1 else 0.0, len(time))
        frames = time[0] + interval * np.arange(round((time[-1] - time[0]) / interval) + 1 + horizon)
        for name in ("u", "v"):
            wanted = reading.wind_u if name == "u" else reading.wind_v
            arrays[f"{name}_centre"] = _wind(variables, name, wanted, axes["time"], frames, (y, x), metres, reading.factor)
        if "diffusivity" in attributes:
            arrays["D"] = np.ravel(attributes["diffusivity"]).astype(np.float64)
        given = replace(reading, interval=interval, boundary=reading.boundary or "open", clean_wind=True)
        observations = assemble(arrays, given, horizon, path.name)
        return replace(observations, names=[path.stem]), _coordinates(axes, scalar, observations, interval)


def _find_scalar(variables: Mapping[str, Variable], reading: Reading) -> Variable:
    """Return the variable that was asked for, or the only one over time, y and x that is no wind."""
    if reading.scalar is not None:
        return _named(variables, reading.scalar, "scalar")
    winds = {name for name in map(reading.__getattribute__, ("wind_u", "wind_v")) if name}
    for kind in _WINDS:
        winds |= {one.name for one in variables.values() if _is_wind(one, kind)}
    found = [one for one in variables.values() if one.name not in winds and len(_real(one)) == 3]
    if len(found) != 1:
        names = ", ".join(sorted(one.name for one in found)) or f"none among {', '.join(sorted(variables)) or 'no variables'}"
        mend = "name it by the option scalar" if found else "variables in groups, and swaths (level 2), must be put on a regular grid first"
        raise ValueError(f"expected one scalar over (time, y, x), found {names}: {mend}")
    return found[0]


def _named(variables: Mapping[str, Variable], name: str, option: str) -> Variable:
    if name not in variables:
        raise ValueError(f"it has no variable {name!r}, which the option {option} names: it has {', '.join(sorted(variables))}")
    return variables[name]


def _is_wind(one: Variable, kind: str) -> bool:
    standards, names = _WINDS[kind]
    return one.text("standard_name") in standards or one.name.lower() in names


def _real(one: Variable) -> list[str]:
    """Return the dimensions that have more than one place, and those of time, y and x in any case."""
    known = [name for _, _, names in AXES.values() for name in names]
    return [dim for dim, side in zip(one.dims, one.stored.shape, strict=True) if side > 1 or dim.lower() in known]


def _on_grid(one: Variable, axes: Mapping[str, Variable]) -> NDArray[np.float64]:
    """Return (T, H, W) values with y and x rising."""
    wanted = [axes[axis].name for axis in ("time", "y", "x") if axis in axes and axes[axis].name in one.dims]
    values = one.values()
    for place in reversed(range(values.ndim)):
        if one.dims[place] not in wanted:
            if values.shape[place] != 1:
                raise ValueError(f"variable {one.name} has {values.shape[place]} places along {one.dims[place]}: cut the file to one")
            values = values.squeeze(place)
    dims = [dim for dim in one.dims if dim in wanted]
    values = values.transpose([dims.index(dim) for dim in wanted])
    values = values[..., :: -1 if is_falling(axes["y"]) else 1, :: -1 if is_falling(axes["x"]) else 1]
    return values if len(wanted) == 3 else values[None]


def _places(axes: Mapping[str, Variable], metres: tuple[float, float] | None = None) -> tuple[Any, Any, Any, tuple[float, float]]:
    """Return times in seconds, the places of rows and columns in metres, rising, and the metres in their units along y and x."""
    time = seconds_of(axes["time"]) if "time" in axes else np.zeros(1)
    y, x = rising(axes["y"]), rising(axes["x"])
    if metres is None and axes["y"].text("units").lower().startswith("degree"):
        degree = np.pi / 180 * EARTH
        metres = (degree, degree * float(np.cos(np.pi / 180 * (y[0] + y[-1]) / 2)))
    metres = metres or (unit_of(axes["y"], METRES, "length"), unit_of(axes["x"], METRES, "length"))
    return time, y * metres[0], x * metres[1], metres


def _wind(
    variables: Mapping[str, Variable],
    kind: str,
    name: str | None,
    clock_of: Variable,
    frames: NDArray[Any],
    coarse: Sequence[NDArray[Any]],
    metres: tuple[float, float],
    factor: int | None,
) -> NDArray[np.float64]:
    """Return (1, frames, H, W) velocities in m/s at the centres of the fine grid, interpolated in time and space."""
    if name is not None:
        one = _named(variables, name, f"wind_{kind}")
    else:
        found = [one for one in variables.values() if _is_wind(one, kind)]
        if len(found) != 1:
            names = ", ".join(sorted(one.name for one in found)) or "none"
            raise ValueError(f"expected one wind along {'x' if kind == 'u' else 'y'}, found {names}: name it by the option wind_{kind}")
        one = found[0]
    axes = {axis: axis_of(variables, one, axis) for axis in ("y", "x")}
    if len(_real(one)) > 2:
        axes["time"] = axis_of(variables, one, "time")
    values = _on_grid(one, axes)
    values = values * unit_of(one, SPEEDS, "speed")
    if not np.isfinite(values).all():
        raise ValueError(f"variable {one.name} has missing values: winds are needed in every cell and frame, so fill them first")
    time, y, x, _ = _places(axes, metres)
    if one_turn := 360 * metres[1] if axes["x"].text("units").lower().startswith("degree") else 0.0:
        x = x + one_turn * np.rint((coarse[1].mean() - x.mean()) / one_turn)
    for letter, have, given in (("y", y, coarse[0]), ("x", x, coarse[1])):
        margin = (have[-1] - have[0]) / (len(have) - 1) + (given[-1] - given[0]) / (len(given) - 1)
        if given[0] < have[0] - margin or given[-1] > have[-1] + margin:
            raise ValueError(f"variable {one.name} does not cover the scalar's cells along {letter}: cut the scalar, or take winds of a larger area")
    if len(time) > 1:
        _check_times(one.name, axes["time"], clock_of)
        values = resampled(values, 0, time, frames)
    for axis, have, given in ((-2, y, coarse[0]), (-1, x, coarse[1])):
        count = len(given) * factor if factor is not None else len(have)
        step = (given[-1] - given[0]) / (len(given) - 1)
        wanted = given[0] - step / 2 + (np.arange(count) + 0.5) * step * len(given) / count
        if len(wanted) != len(have) or np.abs(wanted - have).max() > UNEVEN * step:
            values = resampled(values, axis, have, wanted)
    return values[None]


def _check_times(name: str, have: Variable, given: Variable) -> None:
    """Refuse a wind of other times than the scalar's, by its clock or by what it covers; a step beyond its ends is allowed."""
    if have.name == given.name:
        return
    if have.text("units") != given.text("units") and None in (clock(have)[1], clock(given)[1]):
        units = f"{have.text('units')!r} and {given.text('units')!r}"
        raise ValueError(f"coordinates {have.name} and {given.name} have the units {units}: write both as 'seconds since YYYY-MM-DD hh:mm:ss'")
    theirs, frames = seconds_of(have), seconds_of(given)
    before, after = (float(value) / 3600 for value in (theirs[0] - frames[0], frames[-1] - theirs[-1]))
    if max(before, after) * 3600 > (theirs[-1] - theirs[0]) / (len(theirs) - 1):
        state = f"begins {before:.3g} hours after" if before > after else f"ends {after:.3g} hours before"
        raise ValueError(f"variable {name} {state} the scalar: take winds of the same times, or correct the units of {have.name}")


def _coordinates(axes: Mapping[str, Variable], scalar: Variable, observations: Observations, interval: float) -> Coordinates:
    """Return the places of the fine cells in the file's own units and order of axes; rows and columns rise."""
    places = {}
    for axis, cells in (("y", observations.shape[0]), ("x", observations.shape[1])):
        have = rising(axes[axis])
        step = (have[-1] - have[0]) / (len(have) - 1)
        places[axis] = have[0] - step / 2 + step * len(have) * (np.arange(cells) + 0.5) / cells
    time = float(axes["time"].values()[0]) + interval / clock(axes["time"])[0] * np.arange(observations.frames)
    keep = ("units", "standard_name", "long_name", "calendar", "axis")
    described = {one.name: {name: one.text(name) for name in keep if one.text(name)} for one in (*axes.values(), scalar)}
    return Coordinates(places["y"], places["x"], time, tuple(axes[axis].name for axis in AXES), described, scalar.name)  # type: ignore[arg-type]


def write_netcdf(path: Path, variables: Mapping[str, NDArray[Any]], coordinates: Coordinates, attributes: Mapping[str, str]) -> None:
    """Write fields (H, W), (T, H, W) or (M, T, H, W) as netCDF-3, which every tool opens, in one piece or not at all.

    Args:
        path: file.
        variables: fields by name; each has the attributes of the scalar.
        coordinates: of the fine cells.
        attributes: of the file.
    """
    from scipy.io import netcdf_file

    with atomic(path) as temporary, netcdf_file(temporary, "w", version=2) as file:
        for name, text in attributes.items():
            setattr(file, name, text.encode("utf-8", "backslashreplace"))  # a str would have to be ASCII, which file names and units are not
        for name, places in zip(coordinates.names, (coordinates.time, coordinates.y, coordinates.x), strict=True):
            file.createDimension(name, len(places))
            one = file.createVariable(name, "f8", (name,))
            one[:] = places
            for key, text in coordinates.attributes.get(name, {}).items():
                setattr(one, key, text.encode())
        for name, values in variables.items():
            if values.ndim == 4 and "member" not in file.dimensions:
                file.createDimension("member", len(values))
            one = file.createVariable(name, "f4", ("member",) * (values.ndim - 3) + coordinates.names[max(0, 3 - values.ndim) :])
            one[:] = values
            for key, text in coordinates.attributes.get(coordinates.scalar, {}).items():
                setattr(one, key, text.encode())
