"""LMDB stores: the library's own files are read as it reads them, and damaged ones are refused by name."""

import struct

import pytest

from shared.data.files import BadFileError
from shared.forgery.stores import open_store


def entries(count):
    """Return keys like paths, with values of nothing up to several pages."""
    return {f"set/{'x' * (number % 90)}/{number}.png".encode(): bytes([number % 251]) * (number**2 % 9973) for number in range(count)}


def write_store(folder, values):
    """Write a store in several transactions, with some values written twice and others removed."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**28) as store:
        for start in range(3):
            with store.begin(write=True) as writing:
                for key in list(values)[start::3]:
                    writing.put(key, b"before")
                    writing.put(key, values[key])
                    writing.put(key + b"~", b"gone")
        with store.begin(write=True) as writing:
            for key in values:
                writing.delete(key + b"~")
        return store.stat()["psize"]


@pytest.mark.parametrize("count", [0, 1, 30, 4000])
def test_values_are_those_that_lmdb_wrote(tmp_path, count):
    values = entries(count)
    write_store(tmp_path / "store", values)
    with open_store(tmp_path / "store") as store:
        assert all(store.get(key) == value for key, value in values.items())
        for absent in (b"", b"a", b"set/", b"z" * 600, *(key + b"~" for key in values)):
            assert absent not in store
            assert store.get(absent) is None


def root_place(content, page_size):
    """Return where the root of the tree begins."""
    root = max(struct.unpack_from("<QQQ", content, place + 128)[::-1] for place in (0, page_size))[2]
    return root * page_size


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (10, b"\x04\x00", r"its page \d+ is damaged"),
        (12, b"\xff\xff", r"its page \d+ is damaged"),
        (12, b"\x10\x00", r"its page \d+ is damaged"),
        (16, b"\xff\xff", r"its page \d+ has nodes outside of it"),
    ],
    ids=["kind", "too many nodes", "no nodes", "node outside"],
)
def test_damaged_pages_are_named(tmp_path, place, value, message):
    page_size = write_store(tmp_path, {b"a": b"1"})
    path = tmp_path / "data.mdb"
    content = bytearray(path.read_bytes())
    start = root_place(content, page_size) + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=rf"cannot use .*data\.mdb: {message}; make the store anew"), open_store(tmp_path) as store:
        store.get(b"a")


def test_cut_stores_are_named(tmp_path):
    page_size = write_store(tmp_path, {b"a": b"1" * 50_000})
    path = tmp_path / "data.mdb"
    content = path.read_bytes()
    for length in (0, 151, page_size, 2 * page_size):
        path.write_bytes(content[:length])
        with (
            pytest.raises(BadFileError, match=r"cannot use .*data\.mdb: it leads to \d+ bytes from \d+ on, but ends at"),
            open_store(tmp_path) as store,
        ):
            store.get(b"a")


def test_stores_of_another_kind_are_refused(tmp_path):
    write_store(tmp_path, {b"a": b"1"})
    path = tmp_path / "data.mdb"
    content = path.read_bytes()
    for place, message in ((16, "it is no LMDB store"), (40, "it is no LMDB store"), (92, "it has keys of another kind")):
        path.write_bytes(content[:place] + b"\x04" + content[place + 1 :])
        with pytest.raises(BadFileError, match=message), open_store(tmp_path):
            pass


def test_branches_that_lead_back_are_refused(tmp_path):
    page_size = write_store(tmp_path, entries(400))
    path = tmp_path / "data.mdb"
    content = bytearray(path.read_bytes())
    start = root_place(content, page_size)
    assert content[start + 10] == 1, "the root is a branch"
    for place in struct.unpack_from(f"<{(struct.unpack_from('<H', content, start + 12)[0] - 16) // 2}H", content, start + 16):
        struct.pack_into("<HHH", content, start + place, start // page_size, 0, 0)
    path.write_bytes(content)
    with pytest.raises(BadFileError, match="its pages lead in circles"), open_store(tmp_path) as store:
        store.get(b"set/x/1.png")
