"""Sets of pictures are read as they lie on the disk, and what is wrong with a file is named."""

import gzip

import numpy as np
import pytest
import torch
from helpers.party_sets import idx, write_cifar10, write_mnist
from torchvision.datasets import MNIST, FashionMNIST

from shared.data.files import BadFileError
from shared.vertical.layouts import FASHION, read_cifar10, read_idx, read_mnist


@pytest.mark.parametrize("inside", ["MNIST/raw", "raw", "."])
def test_mnist_is_read_from_its_packed_files_wherever_the_root_is(tmp_path, inside):
    arrays = write_mnist(tmp_path / "data" / inside)
    for split, name in (("train", "train"), ("test", "t10k")):
        records = read_mnist(tmp_path / "data", split)
        np.testing.assert_array_equal(records.features[:, 0].numpy(), arrays[name][0])
        assert records.labels.tolist() == arrays[name][1].tolist()
    assert records.features.shape == (4, 1, 28, 28)


@pytest.mark.parametrize("pack", [True, False])
def test_mnist_may_be_spelt_with_a_dot(tmp_path, pack):
    arrays = write_mnist(tmp_path / "raw", pack=pack)
    for file in (tmp_path / "raw").iterdir():
        file.rename(tmp_path / file.name.replace("-idx", ".idx"))
    assert read_mnist(tmp_path, "train").labels.tolist() == arrays["train"][1].tolist()


def test_mnist_is_what_torchvision_reads(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", pack=False)
    theirs, ours = MNIST(str(tmp_path), train=True), read_mnist(tmp_path, "train")
    assert torch.equal(ours.features[:, 0], theirs.data)
    assert torch.equal(ours.labels, theirs.targets)


def test_missing_mnist_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-images-idx3-ubyte.gz: expected .*/MNIST/raw/ with train-images-idx3-ubyte.gz, "):
        read_mnist(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8)))[:-9], "cannot unpack .*; fetch it anew"),
        (b"<html>not found</html>", "cannot unpack"),
        (gzip.compress(idx(np.zeros((2, 3), np.uint8))), "no idx file of bytes with 3 dimensions"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8))[:-1]), r"shape \[2, 3, 3\], but has fewer bytes"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8)) + b"0"), "has more bytes"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8))[:9]), "damaged beginning"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "damaged beginning"),
    ],
    ids=["cut off", "no gzip", "two dimensions", "too short", "too long", "no beginning", "endless"],  # packed bytes hold the time
)
def test_damaged_idx_files_are_refused(tmp_path, content, match):
    file = tmp_path / "some.gz"
    file.write_bytes(content)
    with pytest.raises(BadFileError, match=match):
        read_idx(file, 3)


def test_idx_files_that_do_not_fit_are_refused(tmp_path):
    write_mnist(tmp_path / "raw")
    tmp_path = tmp_path / "raw"
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([1, 2], np.uint8))))
    with pytest.raises(BadFileError, match=r"6 images, but .* 2 labels"):
        read_mnist(tmp_path, "train")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([1, 2, 3, 10], np.uint8))))
    with pytest.raises(BadFileError, match="holds the label 10, expected digits"):
        read_mnist(tmp_path, "test")


def test_cifar10_is_read_from_its_batches(tmp_path):
    stored = write_cifar10(tmp_path)
    train, test = read_cifar10(tmp_path, "train"), read_cifar10(tmp_path, "test")
    assert train.features.shape == (10, 3, 32, 32)
    np.testing.assert_array_equal(test.features.flatten(1).numpy(), stored["test_batch"])
    np.testing.assert_array_equal(train.features[2:4].flatten(1).numpy(), stored["data_batch_2"])
    assert train.labels.tolist() == [3, 9] * 5
    assert train.class_names[9] == "name 9"


def test_fashion_mnist_is_what_torchvision_reads(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw", pack=False)
    theirs = FashionMNIST(str(tmp_path), train=False)
    for root in (tmp_path, tmp_path / "FashionMNIST"):
        ours = read_mnist(root, "test", "FashionMNIST", FASHION)
        assert torch.equal(ours.features[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)
    assert [name.lower() for name in theirs.classes] == [name.lower() for name in ours.class_names]
    with pytest.raises(FileNotFoundError, match=r"expected .*/FashionMNIST/raw/ with"):
        read_mnist(tmp_path / "no", "test", "FashionMNIST")
