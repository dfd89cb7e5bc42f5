"""NumPy's files from outside: .npy and .npz, whose headers are checked against the files before anything is reserved or mapped."""

from __future__ import annotations

import math
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.data.files import blamed

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # (3, 0) is for tables with odd names


class _Header(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    length: int  # bytes before the values


def read_npy(path: Path, mend: str = "", mapped: Literal["r", "c"] | None = None) -> NDArray[Any]:
    """Read an .npy file, which takes no more memory than the file is long.

    Args:
        path: the file.
        mend: what to do about a damaged one, for the message.
        mapped: reads values as they are used: "r" cannot be changed, "c" is copied where it is; None reads them at once.

    Raises:
        BadFileError: if it is damaged, or holds Python objects, which could execute code.
        FileNotFoundError: if there is no such file.
    """
    with blamed(path, mend):
        with path.open("rb") as file:
            _header(file, path.stat().st_size)
        return checked_texts(np.load(path, mmap_mode=mapped, allow_pickle=False))


def read_npz(path: Path, names: Sequence[str] | None = None, mend: str = "") -> dict[str, NDArray[Any]]:
    """Read arrays of an .npz file, which take no more memory than the archive says that they are long.

    Args:
        path: the file.
        names: of the arrays; None takes all. Those that are not there are left out.
        mend: what to do about a damaged file, for the message.

    Raises:
        BadFileError: if it is damaged, or a wanted array holds Python objects, which could execute code.
        FileNotFoundError: if there is no such file.
    """
    with blamed(path, mend):
        with zipfile.ZipFile(path) as archive:
            there = [member.filename.removesuffix(".npy") for member in archive.infolist() if member.filename.endswith(".npy")]
            wanted = [name for name in there if names is None or name in names]
            for name in wanted:
                _member_header(archive, name)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: checked_texts(arrays[name]) for name in wanted}


def map_npz(path: Path, name: str) -> NDArray[Any]:
    """Return one array of an .npz file, mapped from the file where it lies uncompressed, else read.

    Raises:
        BadFileError: if the file is damaged, lacks the array, or it holds Python objects.
        FileNotFoundError: if there is no such file.
    """
    with blamed(path):
        with zipfile.ZipFile(path) as archive:
            member, header = archive.getinfo(f"{name}.npy"), _member_header(archive, name)
        if member.compress_type != zipfile.ZIP_STORED or header.dtype.hasobject or not math.prod(header.shape):
            return read_npz(path, [name])[name]
        with path.open("rb") as file:
            file.seek(member.header_offset + 26)  # the lengths of name and extra field in the member's own header
            start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + header.length
        return checked_texts(np.memmap(path, header.dtype, "r", start, header.shape, "F" if header.is_fortran else "C"))


def checked_texts(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array whose texts, if it holds any, are of characters that there are: NumPy takes them as they come, and Python breaks on them later.

    Raises:
        ValueError: if there is another.
    """
    if array.dtype.kind == "U":
        codes = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if codes.max(initial=0) > sys.maxunicode:
            raise ValueError(f"its texts have a character of code {codes.max():#x}, beyond the last there is")
    return array


def _member_header(archive: zipfile.ZipFile, name: str) -> _Header:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        return _header(file, member.file_size)


def _header(file: IO[bytes], size: int) -> _Header:
    """Read the header of an array in `size` bytes; raises a ValueError unless as many values follow as it says. NumPy refuses objects."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"its array is of version {version}, not of {' or '.join(map(str, _READERS))}")
    shape, is_fortran, dtype = _READERS[version](file)
    stated, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if not dtype.hasobject and (not dtype.itemsize or min(shape, default=0) < 0 or stated != there):
        raise ValueError(f"its header says {dtype} of shape {shape}, which are {stated} bytes, but {there} follow")
    return _Header(shape, is_fortran, dtype, file.tell())
