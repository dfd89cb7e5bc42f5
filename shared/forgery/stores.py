"""LMDB stores, read page by page with every place checked: LMDB's own library maps a store and trusts it, so that a damaged one ends the process.

The format is that of LMDB 0.9 on machines of 64 bits: two pages that tell where the tree begins, the one of the later transaction being right, and
sorted pages of nodes, which lead to further pages (branches) or hold values (leaves); values longer than a page lie in pages of their own.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from shared.data.files import blamed

_HEADER = 16  # bytes before the places of a page's nodes
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_SIZES = tuple(2**power for power in range(9, 17))
_BRANCH, _LEAF, _KINDS = 1, 2, 0x6F  # flags of a page; the last masks all that tell its kind
_IS_LONG = 1  # flag of a node whose value has pages of its own
_NO_PAGE = 2**64 - 1  # the root of an empty tree
_MAX_DEPTH = 32

_META = struct.Struct("<16x II 16x I 44x 4x H 34x QQQ")  # magic, version, page size, flags and root of the tree, last page, transaction
_PAGE = struct.Struct("<10x HH")  # flags, end of the places
_NODE = struct.Struct("<HHHH")  # length of the value, low and high, flags, length of the key; in a branch the first three are a page's number


class _Page(NamedTuple):
    is_leaf: bool
    keys: list[bytes]
    places: tuple[int, ...]
    content: bytes


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """Open an LMDB store for reading.

    Raises:
        FileNotFoundError: if there is no store.
        BadFileError: if it is damaged, also where that comes to light inside the context.
    """
    path = folder / "data.mdb"
    if not path.is_file():
        raise FileNotFoundError(f"no store {path}: expected <set>_lmdb in the folder lmdb")
    with blamed(path, "make the store anew"), path.open("rb") as file:
        yield Store(file)


class Store:
    """The values of an open LMDB file by their keys.

    Args:
        file: the file.

    Raises:
        ValueError: if it is damaged, or no store with plain keys; every method raises one where it meets damage.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size = file, file.seek(0, 2)
        self._page_size, *first = self._start(0)
        _, *second = self._start(self._page_size)
        _, self._root = max(first, second)
        self._page = lru_cache(256)(self._parsed)  # neighbours in a list are neighbours in the tree

    def __contains__(self, key: bytes) -> bool:
        return self._found(key) is not None

    def get(self, key: bytes) -> bytes | None:
        """Return a key's value, or None where there is none."""
        found = self._found(key)
        return None if found is None else self._value(*found)

    def _found(self, key: bytes) -> tuple[_Page, int] | None:
        """Return the leaf that holds a key, and its place among those there."""
        number = self._root
        if number == _NO_PAGE:
            return None
        for _ in range(_MAX_DEPTH):
            page = self._page(number)
            if page.is_leaf:
                index = bisect_left(page.keys, key)
                return (page, index) if page.keys[index : index + 1] == [key] else None
            low, middle, high, _ = _NODE.unpack_from(page.content, page.places[bisect_right(page.keys, key, lo=1) - 1])  # the first has no key
            number = low | middle << 16 | high << 32
        raise ValueError("its pages lead in circles")

    def _start(self, place: int) -> tuple[int, int, int]:
        """Return the size of a page, a transaction's number and the root of its tree."""
        magic, version, page_size, flags, root, _, transaction = _META.unpack(self._read(place, _META.size))
        if (magic, version) != (_MAGIC, _VERSION) or page_size not in _PAGE_SIZES:
            raise ValueError(f"it is no LMDB store of version {_VERSION}")
        if flags:
            raise ValueError(f"it has keys of another kind (flags {flags:#x}) than paths")
        return page_size, transaction, root

    def _read(self, place: int, length: int) -> bytes:
        if place + length > self._size:
            raise ValueError(f"it leads to {length} bytes from {place} on, but ends at {self._size}")
        self._file.seek(place)
        return self._file.read(length)

    def _parsed(self, number: int) -> _Page:
        content = self._read(number * self._page_size, self._page_size)
        flags, end = _PAGE.unpack_from(content)
        if flags & _KINDS not in (_BRANCH, _LEAF) or not _HEADER + 2 <= end <= self._page_size:
            raise ValueError(f"its page {number} is damaged")
        places = struct.unpack_from(f"<{(end - _HEADER) // 2}H", content, _HEADER)
        if max(places) + _NODE.size > self._page_size:
            raise ValueError(f"its page {number} has nodes outside of it")
        starts = [place + _NODE.size for place in places]
        keys = [content[start : start + int.from_bytes(content[start - 2 : start], "little")] for start in starts]
        return _Page(bool(flags & _LEAF), keys, places, content)

    def _value(self, page: _Page, index: int) -> bytes:
        low, high, flags, key_length = _NODE.unpack_from(page.content, page.places[index])
        length, start = low | high << 16, page.places[index] + _NODE.size + key_length
        if not flags & _IS_LONG:
            return page.content[start : start + length]
        number = int.from_bytes(page.content[start : start + 8], "little")
        return self._read(number * self._page_size + _HEADER, length)
