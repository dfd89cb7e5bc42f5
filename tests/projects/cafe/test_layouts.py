"""Linnaeus 5 and pictures of one's own are read as they lie on the disk, and what is wrong with a folder is named."""

import pytest
import torch
from helpers.party_sets import CLASSES, write_linnaeus

from projects.cafe.layouts import read_linnaeus
from shared.data.files import BadFileError


def test_linnaeus_is_read_from_its_folders_at_any_size(tmp_path):
    write_linnaeus(tmp_path / "Linnaeus 5 8X8")
    for size, side in ((None, 8), (6, 6), (16, 16)):
        train, test = (read_linnaeus(tmp_path, split, size) for split in ("train", "test"))
        assert train.features.shape == (10, 3, side, side)
        assert train.features.dtype == torch.uint8
        assert train.class_names == CLASSES
        assert test.ids[:3] == ("test/berry/1_8.jpg", "test/berry/2_8.jpg", "test/bird/1_8.jpg")
        colours = torch.stack([40 * test.labels, torch.full((10,), 100), torch.full((10,), 90)], 1)
        assert (test.features.float().mean((2, 3)) - colours).abs().max() < 4
    assert torch.equal(read_linnaeus(tmp_path / "Linnaeus 5 8X8", "test").labels, test.labels)


def test_a_users_own_oblong_pictures_are_cut_to_squares(tmp_path):
    write_linnaeus(tmp_path, (12, 8), ("cat", "cow"))
    records = read_linnaeus(tmp_path, "train")
    assert records.features.shape == (4, 3, 8, 8)
    assert records.class_names == ("cat", "cow")


def test_wrong_folders_of_pictures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*; correct data.root"):
        read_linnaeus(tmp_path / "no", "train")
    with pytest.raises(FileNotFoundError, match="does not hold the folders train and test: expected"):
        read_linnaeus(tmp_path, "train")
    write_linnaeus(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(BadFileError, match=r"different classes \(dog, wolf\)"):
        read_linnaeus(tmp_path, "test")
    (tmp_path / "train" / "bird" / "2_8.jpg").write_bytes(b"none")
    with pytest.raises(BadFileError, match="1 of 10 images cannot be read"):
        read_linnaeus(tmp_path, "train")
