"""NumPy's files: what they hold comes back, and a header that lies is found out before anything is reserved."""

import io
import struct
import zipfile

import numpy as np
import pytest

from shared.data.arrays import map_npz, read_npy, read_npz
from shared.data.files import BadFileError, blamed, read_json

ARRAYS = {
    "numbers": np.arange(24, dtype=">f4").reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
    "texts": np.array([["a/1.png", "0"]]),
    "big-endian": np.asfortranarray(np.array([["a", "\U0010ffff"], ["", "\ud800"]], dtype=">U2")),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(2.5),
}


def lying(shape, descr="<f8", values=b"\x00" * 48):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_arrays_come_back_as_they_were_written(tmp_path, name, save):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    save(tmp_path / "a.npz", **ARRAYS)
    for found in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz")[name], map_npz(tmp_path / "a.npz", name)):
        np.testing.assert_array_equal(found, ARRAYS[name])
        assert found.dtype == ARRAYS[name].dtype
    assert read_npz(tmp_path / "a.npz", [name, "absent"]).keys() == {name}


def test_only_plain_archives_are_mapped(tmp_path):
    np.savez(tmp_path / "a.npz", x=ARRAYS["numbers"])
    np.savez_compressed(tmp_path / "b.npz", x=ARRAYS["numbers"])
    assert isinstance(map_npz(tmp_path / "a.npz", "x"), np.memmap)
    assert not isinstance(map_npz(tmp_path / "b.npz", "x"), np.memmap)


@pytest.mark.parametrize("mapped", [None, "r", "c"], ids=str)
@pytest.mark.parametrize(
    "content",
    [
        lying((10**12,)),
        lying((2**62, 2**62)),
        lying((5,)),
        lying((7,)),
        lying((-1,)),
        lying((6,), "|V0"),
        lying((6,), "<U99999999"),
        lying((6,), "|O"),
        b"",
        lying((1,), "<U1", b"\x00\x00\x11\x00"),
        lying((1, 1), ">U1", b"\x00\x11\x00\x00"),
    ],
    ids=["huge", "overflow", "short", "long", "negative", "nothing", "wide", "objects", "empty", "no character", "no character, big-endian"],
)
def test_a_header_that_lies_is_found_out(tmp_path, content, mapped):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(BadFileError, match=r"cannot use .*a\.npy: .*; write it anew"):
        read_npy(tmp_path / "a.npy", "write it anew", mapped)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.npy", content)
    (tmp_path / "a.npz").write_bytes(packed.getvalue())
    for read in (read_npz, lambda path: map_npz(path, "x")):
        with pytest.raises(BadFileError, match=r"cannot use .*a\.npz: "):
            read(tmp_path / "a.npz")


def test_missing_files_stay_missing_files(tmp_path):
    for read in (read_npy, read_npz, lambda path: map_npz(path, "x"), lambda path: read_json(path, "")):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x00"], ids=["cut", "deep", "long", "null"])
def test_what_is_no_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadFileError, match=r"a\.json is not JSON: .*; take another"):
        read_json(tmp_path / "a.json", "take another")


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("deep"), MemoryError(), OSError(22, "Invalid argument"), ValueError("odd")], ids=repr
)
def test_content_is_blamed_for_any_error(error):
    with pytest.raises(BadFileError, match=r"^cannot use a\.bin: .*; mend it$") as found, blamed("a.bin", "mend it"):
        raise error
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", [FileNotFoundError(2, "absent"), OSError(28, "disk full"), BadFileError("named already")], ids=repr)
def test_the_machine_is_not_blamed_on_the_content(error):
    with pytest.raises(type(error)) as found, blamed("a.bin"):
        raise error
    assert found.value is error
