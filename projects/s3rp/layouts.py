"""The layout of files: coarse frames and winds in one file a split, and the truth in another, which training never opens.

root/train.npz  val.npz  test.npz              or .h5, .zarr, .nc; or a file in train/, valid/ and test/ each, as in The Well
root/truth/<split>.npz                         or root/truth.npz, of the test split

y            (B, T, n, n) coarse frames, NaN where missing; or (T, n, n) of one sequence
mask         (B, T, n, n) bool, True where observed (optional)
u, v         (B, T or 1, ...) velocities on the faces of the fine grid; or u_centre, v_centre at cell centres; of more frames than y for forecasts
dt, D        time between two frames, and diffusivity; times (T,) for irregular frames (optional)
bounds       y0, y1, x0, x1 (0, 1, 0, 1)       boundary, sigma, unit, names, source (optional)
c_true       (B, T, N, N), in the file of the truth alone
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.s3rp.arrays import ENDINGS, HDF5, read_arrays, write_arrays
from projects.s3rp.assembling import Reading, assemble
from projects.s3rp.sets import Observations
from shared.data.files import BadFileError, first_few

NAMES = (
    *("y", "mask", "u", "v", "u_centre", "v_centre", "dt", "D"),
    *("times", "bounds", "boundary", "sigma", "unit", "names", "source"),
)
"""Arrays of a file of observations."""
NETCDF = (".nc", ".nc4", ".cdf")
"""Endings of netCDF files."""
READABLE = (*ENDINGS, *NETCDF)
"""Endings of all files that are read."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Where and when the fine cells of a file lie, for what is written about it.

    Attributes:
        y: (H,) cell centres.
        x: (W,) cell centres.
        time: (T,) stamps of the frames, those to forecast included.
        names: of the axes of time, y and x.
        attributes: of the axes and the scalar, by name; units among them.
        scalar: name of the observed quantity.
    """

    y: NDArray[Any]
    x: NDArray[Any]
    time: NDArray[Any]
    names: tuple[str, str, str] = ("time", "y", "x")
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    scalar: str = "concentration"


@dataclass(frozen=True)
class Truth:
    """What only tests see.

    Attributes:
        field: (B, T, H, W) float32.
        source: (B, 1 or T, H, W) rate of release by area; None where it is not told.
    """

    field: Tensor
    source: Tensor | None = None


def read_observations(path: str | Path, reading: Reading | None = None, horizon: int = 0) -> Observations:
    """Read sequences with their winds, and nothing else, from a file of this layout, of netCDF, PDEBench or The Well.

    Args:
        path: file, or folder for zarr, of one of `READABLE`.
        reading: what the file does not say itself.
        horizon: frames to forecast after the last one, which are added as missing ones; winds go on as the file tells, or the last ones hold.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: naming the file, the array, what is wrong and the mend.
        ModuleNotFoundError: if the library for this kind of file is absent.
    """
    return read_placed(path, reading, horizon)[0]


def read_placed(path: str | Path, reading: Reading | None = None, horizon: int = 0) -> tuple[Observations, Coordinates]:
    """Read as `read_observations` does, and also where and when the cells lie."""
    path, reading = Path(path).expanduser(), reading or Reading()
    if path.suffix.lower() in NETCDF:
        from projects.s3rp.netcdf import read_netcdf

        return read_netcdf(path, reading, horizon)
    if _is_benchmark(path):
        from projects.s3rp.benchmarks import read_benchmark

        observations = read_benchmark(path, reading, horizon)[0]
        return observations, regular(observations)
    arrays = read_arrays(path, NAMES)
    try:
        observations = assemble(arrays, reading, horizon, path.name)
    except ValueError as error:
        raise BadFileError(f"cannot use {path}: {error}") from error
    return observations, regular(observations, arrays)


def regular(observations: Observations, arrays: dict[str, NDArray[Any]] | None = None) -> Coordinates:
    """Return the coordinates of a regular grid, from `bounds` and `times` where there are some."""
    dy, dx = observations.physics.spacing
    bounds, times = (arrays or {}).get("bounds", np.zeros(4)).ravel(), (arrays or {}).get("times", np.zeros(1))
    y, x = (start + step * (np.arange(cells) + 0.5) for start, step, cells in zip(bounds[[0, 2]], (dy, dx), observations.shape, strict=True))
    time = float(times.ravel()[0]) + observations.physics.interval * np.arange(observations.frames)
    return Coordinates(y, x, time, attributes={"concentration": {"units": observations.unit} if observations.unit else {}})


def write_observations(path: str | Path, observations: Observations) -> None:
    """Write sequences in this layout, by the path's ending as .npz, HDF5 or zarr, in one piece or not at all; missing values become NaN."""
    physics, (height, width) = observations.physics, observations.shape
    arrays: dict[str, NDArray[Any]] = {
        "y": observations.coarse.masked_fill(~observations.mask, torch.nan).numpy(),
        "mask": observations.mask.numpy(),
        "u": observations.wind.u.numpy(),
        "v": observations.wind.v.numpy(),
        "dt": np.array(physics.interval),
        "D": np.array(physics.diffusivity),
        "bounds": np.array([0, height * physics.spacing[0], 0, width * physics.spacing[1]]),
        "boundary": np.array(physics.boundary),
        "sigma": np.array(observations.sigma),
        "unit": np.array(observations.unit),
    }
    if observations.names:
        arrays["names"] = np.array(list(observations.names))
    if observations.source is not None:
        arrays["source"] = observations.source.numpy()
    write_arrays(Path(path).expanduser(), arrays)


def write_truth(path: str | Path, truth: Tensor, source: Tensor | None = None) -> None:
    """Write the truth, (B, T, H, W), and the sources if there are some, into a file of its own."""
    write_arrays(Path(path).expanduser(), {"c_true": truth.numpy()} | ({} if source is None else {"source": source.numpy()}))


def read_truth(path: str | Path, observations: Observations | None = None, reading: Reading | None = None) -> Truth:
    """Read the truth.

    Args:
        path: file that has `c_true`, (B, T, H, W); or a file of PDEBench or The Well, of which the fine fields are taken.
        observations: what it must fit.
        reading: how their file was read.

    Raises:
        FileNotFoundError, ModuleNotFoundError: see `read_observations`.
        BadFileError: if there is no `c_true`, or it is not finite, or does not fit.
    """
    path = Path(path).expanduser()
    arrays = _benchmark_truth(path, observations, reading or Reading()) or read_arrays(path, ("c_true", "source"))
    if "c_true" not in arrays:
        raise BadFileError(f"cannot use {path}: it has no array c_true, the fine fields (B, T, N, N)")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or array.ndim != 4 or not np.isfinite(array).all():
            raise BadFileError(f"cannot use {path}: {name} holds {array.dtype} of {array.shape}, expected finite numbers of (B, T, N, N)")
    wanted = None if observations is None else (len(observations), observations.frames, *observations.shape)
    if wanted is not None and arrays["c_true"].shape != wanted:
        message = f"c_true has the shape {arrays['c_true'].shape}, and the observations go with {wanted}"
        raise BadFileError(f"cannot use {path}: {message}; write the truth of the same sequences, frames and fine cells")
    parts = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    return Truth(parts["c_true"], parts.get("source"))


def read_split(root: str | Path, split: str, reading: Reading | None = None) -> Observations:
    """Read the observations of a split.

    Raises:
        FileNotFoundError: if there are none; the message says what is expected.
        ValueError, BadFileError, ModuleNotFoundError: see `split_file` and `read_observations`.
    """
    file = split_file(root, split)
    if file is None:
        state = "" if Path(root).expanduser().is_dir() else " (there is no such folder)"
        expected = f"{split}.npz with y, u, v, dt and D (or {', '.join(READABLE[1:])}; link a file of PDEBench or The Well as {split}.hdf5)"
        raise FileNotFoundError(f"no sequences of the {split} split in {root}{state}: expected {expected}; the verb simulate draws an example")
    return read_observations(file, reading)


def find_truth(root: str | Path, split: str, observations: Observations | None = None, reading: Reading | None = None) -> Tensor | None:
    """Read the fine fields of a split, (B, T, H, W), from `truth/<split>.npz`, or of the test split also `truth.npz`; None if nobody knows them.

    Files of PDEBench and The Well are their own truth.

    Raises:
        ValueError, BadFileError, ModuleNotFoundError: see `split_file` and `read_truth`.
    """
    root = Path(root).expanduser()
    file = split_file(root / "truth", split) or (split_file(root, "truth") if split == "test" else None)
    if file is None and (own := split_file(root, split)) is not None and _is_benchmark(own):
        file = own
    return None if file is None else read_truth(file, observations, reading).field


def _is_benchmark(path: Path) -> bool:
    if path.suffix.lower() not in HDF5 or not path.is_file():
        return False
    from projects.s3rp.benchmarks import is_benchmark

    return is_benchmark(path)


def _benchmark_truth(path: Path, observations: Observations | None, reading: Reading) -> dict[str, NDArray[Any]]:
    """Return the fine fields of a benchmark's file as `c_true`; nothing for other files."""
    if not _is_benchmark(path):
        return {}
    from projects.s3rp.benchmarks import read_benchmark

    if observations is not None:
        reading = replace(reading, factor=observations.factor, diffusivity=observations.physics.diffusivity)
    return {"c_true": read_benchmark(path, reading)[1].numpy()}


def split_file(root: str | Path, split: str) -> Path | None:
    """Find the file of a split, in root or in a folder of the split's name, of validation also `valid`; None if there is none.

    Raises:
        ValueError: if there are several.
    """
    root = Path(root).expanduser()
    found = [path for ending in READABLE if (path := root / f"{split}{ending}").exists()]
    for folder in () if found else (root / split, *((root / "valid",) if split == "val" else ())):
        within = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in HDF5)
        if len(within) > 1:
            names = ", ".join(first_few((path.name for path in within), 3))
            raise ValueError(f"{folder} has several files, {names}: a network learns from one; keep it alone, or link it as {root / split}.hdf5")
        found += within
    if len(found) > 1:
        raise ValueError(f"{root} has several files for {split}: keep one of {', '.join(file.name for file in found)}")
    return found[0] if found else None
