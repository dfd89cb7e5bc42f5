"""Pickles from outside, read without running anything they ask for: lists, dictionaries, numbers, text and arrays of single bytes, no more."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from shared.data.files import BadFileError


def read_pickle(path: Path, kind: str, mend: str) -> Any:
    """Read a pickle whose only globals are those of numpy's arrays; they come out as `StoredArray`, Python 2's text as bytes.

    Args:
        path: the file.
        kind: what the file should be, for the message.
        mend: what to do about a file that cannot be used, for the message.

    Raises:
        BadFileError: if it is damaged, or asks for anything that could run a program; nothing of it has been run then.
        OSError: if it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return _RestrictedUnpickler(file).load()
    except _RefusedError as error:
        what = f"{path} asks for {error}, which no {kind} does and which could run a program"
        raise BadFileError(f"{what}; nothing of it was run, but do not trust the file: {mend}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise BadFileError(f"{path} is damaged ({type(error).__name__}: {error}); {mend}") from error


def as_text(name: bytes | str) -> str:
    """Give Python 2's text, which is bytes, as text."""
    return name.decode() if isinstance(name, bytes) else name


class StoredArray:
    """Stands for `numpy.ndarray` while unpickling: keeps the state, so that none of numpy's own unpickling runs."""

    _state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self._state = state

    def build(self, codes: Sequence[str] = ("u1",)) -> np.ndarray:
        """Make the array, whose elements must be of one of the given single-byte types: u1 (uint8) or i1 (int8).

        Raises:
            ValueError: if it is of another type, or the bytes do not fill the shape.
        """
        _, shape, dtype, is_fortran, content = self._state
        if not isinstance(dtype, _DType) or dtype.code not in codes or not isinstance(content, bytes | bytearray):
            raise ValueError("its elements are of another type")
        return np.frombuffer(content, dtype.code).reshape(shape, order="F" if is_fortran else "C")


class _RefusedError(Exception):
    """A pickle asks for a global that is not on the list; the message names it."""


class _DType:
    """Stands for `numpy.dtype` while unpickling; keeps its code."""

    def __init__(self, code: bytes | str, *_: Any) -> None:
        self.code = as_text(code)

    def __setstate__(self, state: tuple) -> None:
        """Byte order and fields mean nothing for single bytes."""


def _reconstruct(*_: Any) -> StoredArray:
    return StoredArray()


def _from_buffer(content: bytes, dtype: _DType, shape: tuple, order: str) -> StoredArray:
    """Stand for the function by which protocol 5 makes arrays."""
    array = StoredArray()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode(content: str, encoding: str | bytes) -> bytes:
    """Give back the bytes that Python 3 wrote as text, in protocol 2."""
    if as_text(encoding) != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return content.encode("latin1")


class _RestrictedUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, numbers, text and stand-ins of arrays; any other global is refused before it is looked up."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("numpy", "ndarray"): StoredArray,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, fix_imports=False, encoding="bytes")  # Python 2's text is bytes

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a global on the list."""
        if (module, name) not in self._KNOWN:
            raise _RefusedError(f"{module}.{name}")
        return self._KNOWN[module, name]
