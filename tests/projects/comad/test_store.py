import pytest
import torch
from safetensors.torch import save_file

from projects.comad.store import FORMAT, load_state, save_state

STATE = {
    "number": 1.5,
    "words": ["a", None, True, {"deep": [torch.arange(3), 2]}],
    "tensors": {"mask": torch.tensor([True, False]), "turned": torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).T},
    "empty": {"list": [], "tensor": torch.empty(0, 3)},
    "infinite": float("inf"),
}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_state_comes_back_as_it_was(tmp_path):
    save_state(STATE, tmp_path / "model.safetensors")
    assert equal(load_state(tmp_path / "model.safetensors"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    whole = torch.arange(6.0)
    save_state({"one": whole[:3], "other": whole}, tmp_path / "model.safetensors")
    assert load_state(tmp_path / "model.safetensors")["one"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no inspector .*: give the model.safetensors"),
        (b"", "cannot use .*model.safetensors: it is damaged .*; give the model.safetensors that fit wrote, or fit again"),
        (b"\x80\x04\x95" + bytes(64), "cannot use .*model.safetensors: it is damaged .*; give the model.safetensors that fit wrote, or fit again"),
        ({}, "holds no inspector of comad"),
        ({"format": FORMAT, "version": "0"}, "has the format 0, this software reads 1"),
        ({"format": FORMAT, "version": "1", "state": "{"}, "cannot use .*model.safetensors: Expecting .*; give the model.safetensors that fit wrote"),
        ({"format": FORMAT, "version": "1"}, "it is damaged .KeyError: 'state'.; give the model.safetensors"),
    ],
    ids=["absent", "empty", "pickle", "foreign", "old", "torn", "headless"],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"a": torch.zeros(1)}, path, metadata=content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_state(path)
