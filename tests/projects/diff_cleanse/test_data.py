import numpy as np
import pytest
import torch
from helpers.layouts import write_celeba_hq, write_cifar10, write_image_folder, write_npz

from projects.diff_cleanse.data import DiffusionData, plan_poisoning


def ready(**options):
    data = DiffusionData(**options)
    data.prepare_data()
    data.setup()
    return data


def test_offline_sources_give_pictures_of_the_asked_size():
    for source, channels in (("digits", 1), ("shapes", 3), ("photographs", 3)):
        data = ready(source=source, size=16, channels=channels, batch_size=8)
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (8, channels, 16, 16)
        assert -1 <= batch["image"].min() < -0.2
        assert 0.2 < batch["image"].max() <= 1
    assert len(ready(source="digits").train_set) == 1400


def test_cifar10_trains_on_both_splits_as_the_attacks_do(tmp_path):
    write_cifar10(tmp_path)
    both = ready(source="cifar10", root=str(tmp_path), size=32, channels=3, splits="all", batch_size=4)
    apart = ready(source="cifar10", root=str(tmp_path), size=32, channels=3, splits="train", batch_size=4)
    assert len(both.train_set) == len(apart.train_set) + len(apart.test_set)
    assert next(iter(both.train_dataloader()))["image"].shape == (4, 3, 32, 32)


def test_a_folder_is_split_the_same_way_each_time(tmp_path):
    write_celeba_hq(tmp_path / "celeba_hq_256", count=20)
    options = {"source": "folder", "root": str(tmp_path / "celeba_hq_256"), "size": 16, "channels": 3, "validation_share": 0.25, "batch_size": 4}
    first, second = ready(**options), ready(**options)
    assert (len(first.train_set), len(first.test_set)) == (15, 5)
    assert first.test_set.indices == second.test_set.indices
    assert not set(first.test_set.indices) & set(first.train_set.indices)
    assert len(ready(**options, splits="all").train_set) == 20


def test_npz_files_are_read(tmp_path):
    write_npz(tmp_path / "pictures.npz", count=20, size=16)
    data = ready(source="npz", root=str(tmp_path / "pictures.npz"), size=16, channels=3, batch_size=4)
    assert len(data.train_set) == 18
    with pytest.raises(ValueError, match=r"has pictures of shape \(3, 16, 16\): set data.channels and data.size"):
        ready(source="npz", root=str(tmp_path / "pictures.npz"), size=16, channels=1)


def test_fixed_poisoning_replaces():
    indices, is_poisoned = plan_poisoning(100, "fixed", 0.25, 1.0, seed=3)
    assert indices.tolist() == list(range(100))
    assert int(is_poisoned.sum()) == 25
    assert not torch.equal(is_poisoned, plan_poisoning(100, "fixed", 0.25, 1.0, seed=4)[1])


def test_flexible_poisoning_counts_both_shares():
    indices, is_poisoned = plan_poisoning(100, "flex", 0.3, 0.1, seed=0)
    assert (int((~is_poisoned).sum()), int(is_poisoned.sum())) == (10, 30)
    assert len(indices[is_poisoned].unique()) == 30


def test_extended_poisoning_adds():
    indices, is_poisoned = plan_poisoning(10, "extend", 2.5, 1.0, seed=0)
    assert indices[~is_poisoned].tolist() == list(range(10))
    counts = np.bincount(indices[is_poisoned].numpy(), minlength=10)
    assert counts.sum() == 25
    assert counts.min() >= 2  # every picture is used before one is used again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poison_rate": 1.5}, r"poison_rate must lie in \[0, 1\] for poison_mode fixed, got 1.5"),
        ({"poison_mode": "flex", "clean_rate": 0.0}, "clean_rate must lie in"),
        ({"poison_mode": "some"}, "poison_mode must be fixed, flex or extend, got 'some'"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"source": "cifar10", "root": "."}, "set data.size to 32 and data.channels to 3"),
        ({"validation_share": 1.0}, "validation_share must lie between 0 and 1"),
        ({"source": "nowhere"}, "digits: scikit-learn's"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionData(**options)


def test_missing_and_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        ready(source="cifar10", root=str(tmp_path), size=32, channels=3)
    with pytest.raises(FileNotFoundError, match=r"empty|no images|no pictures"):
        ready(source="folder", root=str(tmp_path), size=16, channels=3)
    write_image_folder(tmp_path / "pictures", count=12)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"broken.png"):
        ready(source="folder", root=str(tmp_path / "pictures"), size=16, channels=3)
    assert len(ready(source="folder", root=str(tmp_path / "pictures"), size=16, channels=3, on_bad_file="skip", splits="all").train_set) == 12
