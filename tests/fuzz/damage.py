"""Damaged and hostile forms of valid files: bytes, and what lies inside of JSON, tables, arrays, archives, pictures and weights, sums set right."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

SPRUNG: list[str] = []
"""Grows when a trap was unpickled, which no reader may do."""

_NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "0", "1.5", "9" * 30, "9" * 5000, "1_000", "0x10", "\u00b2", "\u0663")
_CELLS = ("", " ", '"', "\u00e9", "\x00", "\u2028", "a b", "../../x", "/", "true", "None", "%s", "{}", "x" * 140_000, *_NUMBERS)
_JSON = (
    *("null", "true", "-1", "0", "1.5", "1e999", "NaN", "-Infinity", "9" * 30, "9" * 5000, "[]", "{}", "[[]]", '{"a": 1}', "[null]", '[{"a": []}]'),
    *('""', '"\\u0000"', '"\\ud800"', '"\u00e9"', '"../../x"', '"nan"', '"1"', "[" * 100_000, "[" * 600 + "]" * 600, "[1, 2, 3, 4, 5, 6, 7, 8, 9]"),
)
_MARK = "\u2603mark"
_PNG = b"\x89PNG\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_DTYPES = ("<f8", "<f4", "<f2", "<i8", "|i1", "|u1", "|b1", "<c16", "<U3", "|S3", "<M8[s]", ">f4", "<u8")


def spring() -> str:
    """Note that a trap was unpickled."""
    SPRUNG.append("sprung")
    return "sprung"


class Trap:
    """Calls `spring` when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[], str], tuple[()]]:
        return spring, ()


def _trapped_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _trapped_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(), 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("arr_0.npy", _trapped_array())
    return file.getvalue()


TRAPS = (pickle.dumps(Trap(), 2), pickle.dumps({"state_dict": Trap(), b"data": Trap()}, 4), _trapped_array(), _trapped_archive())
STRANGERS = (*TRAPS, b"", b"\x00" * 64, b"not what it should be\n", b"[1, 2]", b"{}", b"null", b"\xff\xfe\x00\x01" * 8, gzip.compress(b"text"), _PNG)


@dataclass
class Damage:
    """A damaged content with a short description for failing examples."""

    content: bytes = field(repr=False)
    kind: str

    def __repr__(self) -> str:
        return f"{self.kind}: {len(self.content)} bytes, {self.content[:60]!r}..."


@st.composite
def damaged(draw: Draw, content: bytes) -> Damage:
    """Damage a file as its own kind can be damaged, bluntly, or put something else in its place."""
    kinds = [*3 * _own_kinds(content), blunt, stranger]
    chosen = draw(st.sampled_from(kinds))
    return Damage(chosen(draw, content), chosen.__name__)


def _own_kinds(content: bytes) -> list[Callable[[Draw, bytes], bytes]]:
    if content[:2] == b"\x1f\x8b":
        return [zipped]
    if content[:4] == b"PK\x03\x04":
        return [archived]
    if content.startswith(_PNG):
        return [pictured]
    if content.startswith(_NPY):
        return [arrayed]
    if _is_safetensors(content):
        return [weighed]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return [blunt]
    if "\x00" in text or not text.strip():
        return [blunt]
    return [structured, encoded] if _parsed(text) is not None else [tabled, tabled, encoded]


def _inner(draw: Draw, content: bytes) -> bytes:
    return draw(damaged(content)).content


def stranger(draw: Draw, content: bytes) -> bytes:
    return draw(st.sampled_from(STRANGERS))


def blunt(draw: Draw, content: bytes) -> bytes:
    """Cut, flip, insert, remove, repeat, blank out, or write a number that is much too large."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    length = draw(st.sampled_from((1, 2, 4, 8, 64, 1000)))
    head, body, tail = content[:place], content[place : place + length], content[place + length :]
    extreme = draw(st.sampled_from((b"\xff" * 8, b"\x7f" * 8, b"\x00" * 8, (2**31 - 1).to_bytes(8, "little"), (2**31 - 1).to_bytes(8, "big"))))
    return draw(
        st.sampled_from(
            (
                head,
                head + bytes(byte ^ 0x41 for byte in body) + tail,
                head + extreme[:length] + tail,
                head + tail,
                head + body * 3 + tail,
                body + tail,
            )
        )
    )


def encoded(draw: Draw, content: bytes) -> bytes:
    """Save a text as other editors and systems do, or leave nothing or much more of it."""
    text = content.decode("utf-8-sig")
    return draw(
        st.sampled_from(
            (
                b"\xef\xbb\xbf" + text.encode(),
                text.replace("\n", "\r\n").encode(),
                text.replace("\n", "\r").encode(),
                text.encode("utf-16"),
                text.encode("utf-8") + "\u00e9".encode("latin-1"),
                text.encode() + b"\n\n \n",
                text.split("\n")[0].encode(),
                2 * content,
                b"\n",
            )
        )
    )


def tabled(draw: Draw, content: bytes) -> bytes:
    """Damage a line or a cell of a text in lines."""
    text = content.decode("utf-8-sig")
    lines = text.split("\n")
    row = draw(st.integers(0, max(len(lines) - 1 - text.endswith("\n"), 0)))
    line = lines[row]
    if _parsed(line) is not None:
        lines[row] = structured(draw, line.encode()).decode("utf-8", "surrogatepass")
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    mark = max(",;\t| ", key=line.count)
    cells = line.split(mark)
    place, odd = draw(st.integers(0, len(cells) - 1)), draw(st.sampled_from(_CELLS))
    changed = draw(
        st.sampled_from(
            (
                [mark.join([*cells[:place], odd, *cells[place + 1 :]])],
                [mark.join([*cells[:place], odd, *cells[place + 1 :]])],
                [mark.join([*cells[:place], *cells[place + 1 :]])],
                [mark.join([*cells[: place + 1], odd, *cells[place + 1 :]])],
                [line, line],
                [],
                [odd],
                [line, "", line.swapcase()],
            )
        )
    )
    lines[row : row + 1] = changed
    return "\n".join(lines).encode()


def structured(draw: Draw, content: bytes) -> bytes:
    """Damage one place of a JSON text."""
    tree = json.loads(content.decode("utf-8-sig"))
    places = list(_places(tree))
    place = draw(st.sampled_from(places))
    held, odd = _at(tree, place), draw(st.sampled_from(_JSON))
    if isinstance(held, str) and _parsed(held) is not None and draw(st.booleans()):
        odd = json.dumps(structured(draw, held.encode()).decode("utf-8", "surrogatepass"))
    if not place:
        return odd.encode()
    parent, last = _at(tree, place[:-1]), place[-1]
    change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "again", "rename")))
    if change == "remove":
        del parent[last]
    elif isinstance(parent, dict) and change == "again":
        return json.dumps(_with(tree, place, _MARK)).replace(json.dumps(_MARK), f"{json.dumps(held)}, {json.dumps(last)}: {odd}").encode()
    elif isinstance(parent, dict) and change == "rename":
        parent[draw(st.sampled_from(("", "x", f"{last} ", "0", "-1", "\x00")))] = parent.pop(last)
    elif change == "again":
        parent.insert(last, held)
    else:
        return json.dumps(_with(tree, place, _MARK)).replace(json.dumps(_MARK), odd).encode()
    return json.dumps(tree).encode()


def _places(tree: Any, here: tuple[Any, ...] = ()) -> Any:
    yield here
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(inside)[:12]:
        yield from _places(value, (*here, key))


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _with(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    _at(tree, place[:-1])[place[-1]] = value
    return tree


def _parsed(text: str) -> Any:
    """Return the list or dictionary that a text is in JSON, or None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def zipped(draw: Draw, content: bytes) -> bytes:
    return gzip.compress(_inner(draw, gzip.decompress(content)), mtime=0)


def archived(draw: Draw, content: bytes) -> bytes:
    """Damage, rename, remove or repeat a member of an archive, whose sums are made anew."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    place = draw(st.integers(0, len(members) - 1))
    name, inside, kind = members[place]
    change = draw(st.sampled_from(("damage", "damage", "damage", "damage", "rename", "remove", "again")))
    if change == "damage":
        members[place] = (name, _inner(draw, inside), kind)
    elif change == "rename":
        members[place] = (draw(st.sampled_from(("x.npy", "../x", "\u00e9.npy", name + "x"))), inside, kind)
    elif change == "remove":
        del members[place]
    elif inside.startswith(_NPY):
        members.append(("extra.npy", _inner(draw, inside), kind))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, inside, kind in members:
            archive.writestr(zipfile.ZipInfo(name), inside, kind)
    return file.getvalue()


def arrayed(draw: Draw, content: bytes) -> bytes:
    """Change values, type or shape of an array, or let its header lie about them."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    change = draw(st.sampled_from(("value", "value", "type", "shape", "lie", "lie", "trap")))
    if change == "trap":
        return TRAPS[2]
    if change == "lie":
        descr = draw(st.sampled_from(("|O", "<f8", "|V0", "<U99999999", array.dtype.str, array.dtype.str)))
        shape = draw(st.sampled_from((*[(*array.shape[:-1], size) for size in (10**6, 10**9, 10**12, 2**62, 0)], (), (2,) * 40, (-1,))))
        header = repr({"descr": descr, "fortran_order": draw(st.booleans()), "shape": shape}).encode() + b" " * 20 + b"\n"
        start = content.index(b"\n") + 1
        return _NPY + b"\x01\x00" + struct.pack("<H", len(header)) + header + content[start:]
    if change == "type":
        with np.errstate(all="ignore"):
            try:
                array = array.astype(draw(st.sampled_from(_DTYPES)))
            except (ValueError, TypeError):
                array = np.array("text")
    elif change == "shape":
        rows = np.atleast_1d(array)
        forms = (array[..., None], array[None], rows[:0], array.reshape(-1), rows[: len(rows) // 2], array.T)
        array = draw(st.sampled_from(forms))
    elif array.size:
        array = array.copy()
        array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(_odd_values(array.dtype)))
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _odd_values(dtype: np.dtype) -> tuple[Any, ...]:
    if dtype.kind in "fc":
        return np.nan, np.inf, -np.inf, -1, 60_000
    if dtype.kind in "iu":
        return np.iinfo(dtype).max, np.iinfo(dtype).min, 0
    return (True, False) if dtype.kind == "b" else tuple(cell[:40] for cell in _CELLS)


def _is_safetensors(content: bytes) -> bool:
    length = int.from_bytes(content[:8], "little")
    return 2 <= length <= len(content) - 8 and content[8:9] == b"{" and _parsed(content[8 : 8 + length].decode("utf-8", "replace")) is not None


def weighed(draw: Draw, content: bytes) -> bytes:
    """Damage the header, the tensors or the stated length of a file of weights."""
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    change = draw(st.sampled_from(("header", "header", "header", "tensors", "length")))
    if change == "header":
        header = structured(draw, header)
        header += b" " * (-len(header) % 8)
    elif change == "tensors":
        tensors = draw(st.sampled_from((np.full(len(tensors) // 4, np.nan, "<f4").tobytes(), tensors[:-4], tensors + b"x", b"")))
    size = draw(st.sampled_from((2**63, 2**31, 0, length + 1))) if change == "length" else len(header)
    return struct.pack("<Q", size) + header + tensors


def pictured(draw: Draw, content: bytes) -> bytes:
    """Damage, remove or repeat a chunk of a PNG file, or state a huge size; the sums are made anew."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = draw(st.integers(0, len(chunks) - 1))
    kind, inside = chunks[number]
    change = draw(st.sampled_from(("damage", "damage", "size", "form", "remove", "again")))
    if change == "damage":
        chunks[number] = kind, blunt(draw, inside)
    elif change == "size":
        chunks[0] = b"IHDR", struct.pack(">II", *draw(st.sampled_from(((2**31 - 1, 2**31 - 1), (60000, 60000), (1, 1), (0, 3))))) + chunks[0][1][8:]
    elif change == "form":
        chunks[0] = b"IHDR", chunks[0][1][:8] + bytes(draw(st.tuples(st.sampled_from((1, 8, 16)), st.sampled_from((0, 2, 3, 4, 6))))) + bytes(3)
    elif change == "remove":
        del chunks[number]
    else:
        chunks.insert(number, (kind, inside))
    sums = [struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks]
    return _PNG + b"".join(sums)
