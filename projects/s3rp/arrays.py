"""Named arrays in .npz, HDF5 and zarr files: read without ever running what lies in them, and written in one piece or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.arrays import checked_texts
from shared.data.files import BadFileError
from shared.runs import atomic

Arrays = Mapping[str, NDArray[Any]]
HDF5 = (".h5", ".hdf5", ".he5")
"""Endings of HDF5 files; those of netCDF-4 are .nc."""
ENDINGS = (".npz", *HDF5, ".zarr")
"""Endings of files, or folders for zarr, of named arrays."""
MEMORY = 0.25
"""Part of the machine's memory that one array may take."""
_CODECS = {"blosc", "bytes", "bz2", "crc32c", "delta", "fixedscaleoffset", "gzip", "lz4", "lzma", "shuffle", "transpose", "zlib", "zstd"}


def read_arrays(path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read those arrays of a file that are wanted and there; others are not touched.

    Args:
        path: file, or folder for zarr, of one of `ENDINGS`.
        wanted: names.

    Returns:
        Numbers, booleans or texts, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it is damaged, holds Python objects, or an array is larger than memory.
        ModuleNotFoundError: if the library for this kind of file is absent.
    """
    with opened(path) as content:
        return {name: _loaded(_stored(content, name), name) for name in wanted if name in content}


@contextmanager
def opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open a file of arrays; whatever goes wrong inside becomes a `BadFileError` that names the file."""
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: correct the path (files of arrays end in {', '.join(ENDINGS)})")
    suffix = path.suffix.lower()
    if suffix not in ENDINGS:
        raise BadFileError(f"cannot use {path}: its ending is none of {', '.join(ENDINGS)}")
    library = library_for(path)
    try:
        if suffix == ".npz":
            if not zipfile.is_zipfile(path):
                raise ValueError("it is cut off or no .npz file, as numpy.savez writes them")
            with np.load(path, allow_pickle=False) as content:
                yield content
        elif suffix == ".zarr":
            _check_codecs(path)
            yield library.open_group(path, mode="r")
        else:
            with library.File(path, "r") as content:
                yield content
    except BadFileError:
        raise
    except MemoryError as error:
        raise BadFileError(f"cannot use {path}: it holds more than fits into memory; split it into files of fewer sequences") from error
    except Exception as error:  # a damaged file makes readers raise almost anything
        raise BadFileError(f"cannot use {path}: {complaint(error)}") from error


def complaint(error: Exception) -> str:
    """Say what is wrong with a file: a check's own words, or that it is damaged."""
    text = str(error).strip()
    return text if isinstance(error, ValueError) and text else f"it is damaged, or of another kind ({type(error).__name__}: {text})"


def library_for(path: Path) -> Any:
    """Import the library that reads and writes a kind of file; numpy for .npz.

    Raises:
        ModuleNotFoundError: saying how to install it.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npz":
            return np
        if suffix == ".zarr":
            import zarr

            return zarr
        import h5py

        return h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path.name} needs a library that is not installed: pip install 'touchstone[fields]'", name=error.name) from error


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays, by the path's ending as .npz, HDF5 or zarr, in one piece or not at all.

    Raises:
        ValueError: if the ending is none of `ENDINGS`.
    """
    suffix = path.suffix.lower()
    if suffix not in ENDINGS:
        raise ValueError(f"{path} has none of the endings {', '.join(ENDINGS)}: name one of them")
    library = library_for(path)
    with atomic(path) as temporary:
        if suffix == ".npz":
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
        elif suffix == ".zarr":
            group = library.create_group(temporary, zarr_format=2)  # the third format has no texts yet
            for name, array in arrays.items():
                group.create_array(name, data=_plain(array))
        else:
            with library.File(temporary, "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=_plain(array))


def check_room(name: str, shape: Collection[int], itemsize: int, mend: str = "split it into files of fewer sequences") -> None:
    """Raise a `BadFileError` that says how to mend it if an array is too large for memory, before it is read."""
    size = float(np.prod([float(side) for side in shape])) * itemsize
    room = MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > room:
        text = " x ".join(map(str, shape))
        raise BadFileError(f"{name} ({text}) takes {size / 2**30:.1f} GB, more than fits into memory: {mend}")


def _stored(content: Mapping[str, Any], name: str) -> Any:
    try:
        return content[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(f"{name} holds Python objects: save it as numbers") from error


def _loaded(stored: Any, name: str) -> NDArray[Any]:
    check_room(name, stored.shape, stored.dtype.itemsize)
    array = np.asarray(stored[()])
    if array.dtype.hasobject:  # texts of HDF5
        array = np.array([item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]).reshape(array.shape)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "fiubU":
        raise ValueError(f"{name} holds {array.dtype}, expected numbers, booleans or texts")
    return checked_texts(array)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array


def _check_codecs(folder: Path) -> None:
    """Refuse filters and compressors that are not known to be harmless: one of them, `pickle`, runs what it unpacks."""
    for file in folder.rglob("*"):
        if file.name not in {".zarray", "zarr.json"}:
            continue
        described = json.loads(file.read_text(encoding="utf-8"))
        for one in _codecs(described):
            if one.rpartition("numcodecs.")[2] not in _CODECS:
                raise ValueError(f"{file.relative_to(folder)} names the codec {one!r}, and only {', '.join(sorted(_CODECS))} are read")


def _codecs(described: Any) -> Iterator[str]:
    """Yield the names of all codecs in a description, however deep: each `id` in version 2, each `name` in the lists of codecs in version 3."""
    if isinstance(described, list):
        for part in described:
            yield from _codecs(part)
    elif isinstance(described, dict):
        for key, value in described.items():
            if key in {"compressor", "filters"}:
                yield from (str(one.get("id")) for one in (value if isinstance(value, list) else [value]) if one)
            elif key in {"codecs", "index_codecs"}:
                yield from (str(one.get("name")) for one in value)
            yield from _codecs(value)
