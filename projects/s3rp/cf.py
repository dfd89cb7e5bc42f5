"""What netCDF files hold after the CF conventions: variables with units, packing and fill values, and the coordinates of time, y and x.

NetCDF-3 is read by scipy, netCDF-4 as the HDF5 that it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
from numpy.typing import NDArray

from projects.s3rp.arrays import check_room, library_for
from shared.data.files import BadFileError

EARTH = 6_371_000.0
"""Radius of the earth, metres."""
UNEVEN = 0.02
"""Part of a cell by which coordinates may differ from a regular grid."""
SECONDS = {"second": 1.0, "sec": 1.0, "s": 1.0, "minute": 60.0, "min": 60.0, "hour": 3600.0, "hr": 3600.0, "h": 3600.0, "day": 86400.0, "d": 86400.0}
"""Units of time, in seconds; an s at the end is allowed."""
METRES = {"m": 1.0, "metre": 1.0, "meter": 1.0, "km": 1000.0, "kilometre": 1000.0, "kilometer": 1000.0, "1": 1.0, "": 1.0}
"""Units of length, in metres; an s at the end is allowed."""
SPEEDS = {
    "m s-1": 1.0,
    "m/s": 1.0,
    "m s**-1": 1.0,
    "m.s-1": 1.0,
    "ms-1": 1.0,
    "km/h": 1 / 3.6,
    "km h-1": 1 / 3.6,
    "kt": 0.514444,
    "knots": 0.514444,
    "": 1.0,
}
"""Units of speed, in metres a second."""
UNWRITTEN = {"i2": -32767, "i4": -2147483647, "i8": -9223372036854775806, "u2": 65535, "u4": 4294967295, "u8": 18446744073709551614} | dict.fromkeys(
    ("f4", "f8"), 9.969209968386869e36
)
"""By type: what the netCDF libraries leave where nothing was written, if a file has no _FillValue."""
AXES = {
    "time": ("T", ("time",), ("time", "t", "valid_time")),
    "y": ("Y", ("latitude", "projection_y_coordinate"), ("y", "lat", "latitude", "y_fine")),
    "x": ("X", ("longitude", "projection_x_coordinate"), ("x", "lon", "longitude", "x_fine")),
}
"""Attribute `axis`, standard names and usual names of the coordinates."""


@dataclass(frozen=True)
class Variable:
    """A variable as the file holds it: values are unpacked on demand."""

    name: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]
    stored: Any

    def text(self, attribute: str) -> str:
        """Return a text of its attributes; empty if there is none."""
        value = self.attributes.get(attribute, "")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def values(self) -> NDArray[np.float64]:
        """Return its numbers, unpacked by scale_factor and add_offset, with NaN for _FillValue, missing_value and what is out of the valid range."""
        check_room(self.name, self.stored.shape, 8)
        raw = np.asarray(self.stored[()])
        if raw.dtype.kind not in "fiu":
            raise ValueError(f"variable {self.name} holds {raw.dtype}: expected numbers")
        fill = self.attributes.get("_FillValue", UNWRITTEN.get(raw.dtype.str[1:], []))
        absent = ~np.isfinite(raw) | np.isin(raw, _as_stored([*np.ravel(fill), *np.ravel(self.attributes.get("missing_value", []))], raw.dtype))
        limits = self.attributes.get("valid_range", (self.attributes.get("valid_min", -np.inf), self.attributes.get("valid_max", np.inf)))
        low, high = _as_stored(np.ravel(limits), raw.dtype)
        absent |= (raw < low) | (raw > high)
        unpacked = raw * self._number("scale_factor", 1.0) + self._number("add_offset", 0.0)
        return np.where(absent, np.nan, unpacked)

    def _number(self, name: str, default: float) -> float:
        return float(np.ravel(self.attributes.get(name, default))[0])


@contextmanager
def opened_netcdf(path: Path) -> Iterator[tuple[dict[str, Variable], dict[str, Any]]]:
    """Open a netCDF file: its variables and global attributes; whatever goes wrong inside becomes a `BadFileError` that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path")
    with path.open("rb") as file:
        is_classic = file.read(3) == b"CDF"
    library, is_open = None if is_classic else library_for(path), False
    try:
        if library is None:
            from scipy.io import netcdf_file

            with netcdf_file(path, "r", mmap=False) as content:
                found = {name: Variable(name, tuple(one.dimensions), _own(one._attributes), one.data) for name, one in content.variables.items()}
                is_open = True
                yield found, _own(content._attributes)
        else:
            with library.File(path, "r") as content:
                data = {name: one for name, one in content.items() if isinstance(one, library.Dataset)}
                opened = {name: Variable(name, _dims(one), dict(one.attrs), one) for name, one in data.items()}, dict(content.attrs)
                is_open = True
                yield opened
    except (BadFileError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged file makes readers raise almost anything
        is_own = is_open and isinstance(error, ValueError) and str(error).strip()
        raise BadFileError(f"cannot use {path}: {error if is_own else 'it is damaged, or no netCDF file: write it again'}") from error


def _as_stored(values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an attribute's numbers in the precision of a variable, as -999.9 in double precision equals no number in single precision."""
    return np.asarray(values, dtype if dtype.kind == "f" else None)


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(attributes)


def _dims(dataset: Any) -> tuple[str, ...]:
    """Return the names of a netCDF-4 variable's dimensions, from the HDF5 scales that are attached to it; a coordinate is its own.

    The references are followed by hand: HDF5's own function for them breaks the process down on damaged files.
    """
    if dataset.ndim == 1 and dataset.attrs.get("CLASS") == b"DIMENSION_SCALE":
        return (dataset.name.rpartition("/")[2],)
    attached = dataset.attrs.get("DIMENSION_LIST", [[]] * dataset.ndim)
    scales = [[dataset.file[reference].name.rpartition("/")[2] for reference in references] for references in attached]
    return tuple(names[0] if names else f"dimension {place}" for place, names in enumerate(scales))


def axis_of(variables: Mapping[str, Variable], one: Variable, axis: str) -> Variable:
    """Return the coordinate of a variable's dimension, known by its attributes or its name."""
    letter, standards, names = AXES[axis]
    for dim in one.dims:
        coordinate = variables.get(dim)
        if coordinate is not None and coordinate.dims == (dim,):
            units = coordinate.text("units").lower()
            is_time = axis == "time" and " since " in units
            is_degrees = (axis == "y" and units.startswith("degrees_n")) or (axis == "x" and units.startswith("degrees_e"))
            told = coordinate.text("axis") == letter or coordinate.text("standard_name") in standards
            if told or is_time or is_degrees or dim.lower() in names:
                return coordinate
    there = ", ".join(one.dims)
    raise ValueError(
        f"variable {one.name} over ({there}) has no coordinate of {axis}: expected one named {' or '.join(names)}, or with axis {letter!r}"
    )


def unit_of(one: Variable, table: Mapping[str, float], what: str, text: str | None = None) -> float:
    """Return a variable's unit, or the one in `text`, in the basic unit of a table."""
    text = (one.text("units") if text is None else text).strip().lower()
    for known in (text, text.removesuffix("s")):
        if known in table:
            return table[known]
    raise ValueError(f"variable {one.name} has the unit {text!r}: expected one of {what}, such as {', '.join(name for name in list(table)[:4])}")


def clock(one: Variable) -> tuple[float, float | None]:
    """Return the seconds in a unit of a time coordinate, and those from 1970 to its beginning in its own calendar; None where it names none."""
    unit, _, since = one.text("units").partition(" since ")
    seconds = unit_of(one, SECONDS, "time", unit) if unit else 1.0
    calendar = one.text("calendar") or "standard"
    try:
        begin = cftime.num2date(0, f"seconds since {since}", calendar)
        return seconds, float(cftime.date2num(begin, "seconds since 1970-01-01", calendar))
    except ValueError:
        return seconds, None


def seconds_of(one: Variable) -> NDArray[np.float64]:
    """Return the times of a coordinate in seconds from 1970, or from a beginning that it does not name."""
    seconds, begin = clock(one)
    return (begin or 0.0) + one.values() * seconds


def rising(coordinate: Variable) -> NDArray[np.float64]:
    """Return coordinates in rising order; they must be regular."""
    places = _unwrapped(coordinate)
    places = places[:: -1 if is_falling(coordinate) else 1]
    if len(places) < 2 or not np.isfinite(places).all():
        raise ValueError(f"coordinate {coordinate.name} has {len(places)} places: expected 2 or more finite ones")
    step = (places[-1] - places[0]) / (len(places) - 1)
    away = np.abs(places - np.linspace(places[0], places[-1], len(places))).max()
    if not step > 0 or away > UNEVEN * step:
        raise ValueError(
            f"coordinate {coordinate.name} is not regular (up to {away:g} beside a step of {step:g}): interpolate to a regular grid first"
        )
    return places


def is_falling(coordinate: Variable) -> bool:
    """Say whether rows or columns stand in falling order, as latitudes often do."""
    places = _unwrapped(coordinate)
    return bool(places[-1] < places[0])


def _unwrapped(coordinate: Variable) -> NDArray[np.float64]:
    """Return coordinates; longitudes go on beyond 360 degrees."""
    places = coordinate.values()
    return np.unwrap(places, period=360) if coordinate.text("units").lower().startswith("degrees_e") else places
