import pickle
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared.checkpoints import SafeCheckpointIO, describe_mismatch, load_checkpoint, load_tensors, load_weights, other_settings


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_weights_come_from_every_safe_kind(tmp_path, suffix):
    layer, file = nn.Linear(2, 3), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(layer.state_dict(), file)
    else:
        torch.save(layer.state_dict() if suffix == ".pt" else {"state_dict": layer.state_dict(), "epoch": 3}, file)
    other = nn.Linear(2, 3)
    load_weights(other, file)
    assert torch.equal(other.weight, layer.weight)


def test_a_disk_that_fills_up_is_named_and_the_former_file_stays(tmp_path):
    file, limits = tmp_path / "w.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)
    SafeCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, file)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match=r"no room left to write .*w\.ckpt: free some space"):
            SafeCheckpointIO().save_checkpoint({"weight": torch.zeros(1 << 18)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert load_checkpoint(file)["weight"].shape == (2,)
    assert [path.name for path in tmp_path.iterdir()] == ["w.ckpt"]


def test_code_is_never_run(tmp_path):
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match=r"bomb.ckpt holds more than tensors .* could execute code"):
        load_checkpoint(tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match="could execute code"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "bomb.ckpt", weights_only=False)
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is a pickle and is not read"):
        load_tensors(tmp_path / "model.bin")


@pytest.mark.parametrize("name", ["w.ckpt", "w.safetensors"])
def test_damage_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01\x02 nothing")
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        load_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_tensors(tmp_path / "absent.ckpt")


def test_a_file_of_an_early_torch_that_could_execute_code_is_not_called_damaged(tmp_path):
    path = tmp_path / "early.pth"
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="could execute code"):
        load_checkpoint(path)


def test_a_cut_file_is_damaged(tmp_path):
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "w.ckpt")
    (tmp_path / "w.ckpt").write_bytes((tmp_path / "w.ckpt").read_bytes()[:20_000])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path / "w.ckpt")


def test_differences_are_listed_by_kind():
    expected = {f"layer{i}.weight": torch.zeros(2) for i in range(9)}
    found = {"layer0.weight": torch.zeros(3), "other": torch.zeros(1)}
    text = describe_mismatch(expected, found)
    assert "layer0.weight: the network has (2,), the file (3,)" in text
    assert "missing     layer1.weight (2,)" in text
    assert "... and 2 more" in text
    assert "unexpected  other (1,)" in text
    assert describe_mismatch(expected, expected) == ""


def test_an_unfitting_file_changes_nothing(tmp_path):
    layer = nn.Linear(2, 3)
    before = layer.weight.clone()
    save_file(nn.Linear(2, 4).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"do not fit the network(?s:.*)weight: the network has \(3, 2\), the file \(4, 2\)"):
        load_weights(layer, tmp_path / "w.safetensors")
    assert torch.equal(layer.weight, before)


def test_a_failed_save_keeps_the_earlier_file(tmp_path):
    io = SafeCheckpointIO()
    io.save_checkpoint({"a": torch.ones(2)}, tmp_path / "c.ckpt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        io.save_checkpoint({"a": (x for x in ())}, tmp_path / "c.ckpt")
    assert torch.equal(io.load_checkpoint(tmp_path / "c.ckpt")["a"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


def test_settings_that_weights_were_not_trained_with_are_named():
    assert other_settings({"sigma": 0.25, "shape": (3, 8), "lr": 0.1}, {"sigma": 0.5, "shape": [3, 8], "gone": 1}) == "sigma 0.5, here 0.25"
