"""Arrays come out of pickles of every protocol; whatever could run a program is refused (test_cifar.py has more of these)."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from shared.data.files import BadFileError
from shared.data.pickles import StoredArray, read_pickle


def read(path, content, protocol):
    path.write_bytes(pickle.dumps(content, protocol))
    return read_pickle(path, "poison", "fetch it anew")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_arrays_of_single_bytes(tmp_path, protocol, order, dtype):
    array = np.array(np.random.default_rng(0).integers(-100, 100, (3, 4, 5)).astype(dtype), order=order)
    found = read(tmp_path / "a.pkl", [array, "text", 3], protocol)
    assert isinstance(found[0], StoredArray)
    np.testing.assert_array_equal(found[0].build(("i1", "u1")), array)
    assert found[0].build(("i1", "u1")).dtype == dtype


def test_other_elements_are_refused(tmp_path):
    for array in (np.zeros(3), np.array(["a", 1], object)):
        with pytest.raises(ValueError, match="another type"):
            read(tmp_path / "a.pkl", array, 4).build(("i1", "u1"))


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_programs_are_not_run(tmp_path):
    with pytest.raises(BadFileError, match=r"a\.pkl asks for .*which no poison does.*nothing of it was run.*fetch it anew"):
        read(tmp_path / "a.pkl", _Hostile(tmp_path / "executed"), 4)
    assert not (tmp_path / "executed").exists()


def test_damage_is_named(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04abc")
    with pytest.raises(BadFileError, match="is damaged"):
        read_pickle(tmp_path / "a.pkl", "poison", "fetch it anew")
