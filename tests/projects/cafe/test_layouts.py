"""Every layout is read as it lies on the disk, and what is wrong with a file is named."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from helpers.party_sets import CLASSES, idx, write_linnaeus, write_mnist
from torchvision.datasets import MNIST

from projects.cafe.layouts import column_places, read_cifar10, read_idx, read_linnaeus, read_mnist, read_table
from shared.data.files import BadFileError


@pytest.mark.parametrize("inside", ["MNIST/raw", "raw", "."])
def test_mnist_is_read_from_its_packed_files_wherever_the_root_is(tmp_path, inside):
    arrays = write_mnist(tmp_path / "data" / inside)
    for split, name in (("train", "train"), ("test", "t10k")):
        records = read_mnist(tmp_path / "data", split)
        np.testing.assert_array_equal(records.features[:, 0].numpy(), arrays[name][0])
        assert records.labels.tolist() == arrays[name][1].tolist()
    assert records.features.shape == (4, 1, 28, 28)


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
    folder, draw = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    stored = {name: draw.integers(0, 256, (2, 3072), dtype=np.uint8) for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]}
    for name, rows in stored.items():
        (folder / name).write_bytes(pickle.dumps({b"data": rows, b"labels": [3, 9]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"name {i}".encode() for i in range(10)]}, protocol=2))
    train, test = read_cifar10(tmp_path, "train"), read_cifar10(tmp_path, "test")
    assert train.features.shape == (10, 3, 32, 32)
    np.testing.assert_array_equal(test.features.flatten(1).numpy(), stored["test_batch"])
    np.testing.assert_array_equal(train.features[2:4].flatten(1).numpy(), stored["data_batch_2"])
    assert train.labels.tolist() == [3, 9] * 5
    assert train.class_names[9] == "name 9"


def test_linnaeus_is_read_from_its_folders_at_any_size(tmp_path):
    write_linnaeus(tmp_path / "Linnaeus 5 8X8")
    for size, side in ((None, 8), (6, 6), (16, 16)):
        train, test = (read_linnaeus(tmp_path, split, size) for split in ("train", "test"))
        assert train.features.shape == (10, 3, side, side)
        assert train.features.dtype == torch.uint8
        assert train.class_names == CLASSES
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


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_are_read_with_names_or_without(tmp_path):
    named = write(tmp_path / "a.csv", "age,dose,kind\n1,2.5,b\n\n3,-4e1,a\n5,6,b\n7,8,a\n")
    records = read_table(named)
    assert records.features.tolist() == [[1, 2.5], [3, -40], [5, 6], [7, 8]]
    assert records.features.dtype == torch.float64
    assert records.feature_names == ("age", "dose")
    assert records.class_names == ("a", "b")
    assert records.labels.tolist() == [1, 0, 1, 0]
    bare = read_table(write(tmp_path / "b.csv", "1;2.5;b\n3;-4e1;a\n5;6;b\n7;8;a\n"))
    assert torch.equal(bare.features, records.features)
    assert bare.feature_names == ("0", "1")
    tabbed = read_table(write(tmp_path / "c.tsv", "\ufeffkind\t'age'\t\"dose, mg\"\nb\t1\t2.5\na\t3\t-40\nb\t5\t6\na\t7\t8\n"), "kind")
    assert torch.equal(tabbed.features, records.features)
    assert tabbed.feature_names == ("'age'", "dose, mg")


def test_columns_that_nobody_wants_may_hold_anything(tmp_path):
    file = write(tmp_path / "a.csv", "who,x,y,kind\nann,1,2,a\nbob,3,,b\ncid,5,6,a\ndan,7,8,b\n")
    records = read_table(file, columns=["x"])
    assert records.features.tolist() == [[1], [3], [5], [7]]
    assert records.feature_names == ("x",)
    swapped = read_table(write(tmp_path / "b.csv", "1,2,a\n3,4,a\n"), columns=[1, 0])
    assert swapped.features.tolist() == [[2, 1], [4, 3]]
    with pytest.raises(ValueError, match=r"column 'kind' of .* is that of the labels"):
        read_table(file, columns=["x", "kind"])
    with pytest.raises(ValueError, match="columns 'x' are given twice"):
        read_table(file, columns=["x", 1])


def test_labels_that_are_numbers_keep_their_order(tmp_path):
    records = read_table(write(tmp_path / "a.csv", "y,x\n10,1\n0.5,2\n10.0,3\n9,4\n9,5\n.5,6\n"), label=0)
    assert records.class_names == ("0.5", "9", "10")
    assert records.labels.tolist() == [2, 0, 2, 1, 1, 0]


def test_values_that_are_no_numbers_are_named_with_line_and_column(tmp_path):
    file = write(tmp_path / "a.csv", "x,y,kind\n1,2,a\n,nan,b\n3,tall,\n4,inf,b\n")
    with pytest.raises(BadFileError) as caught:
        read_table(file)
    told = str(caught.value)
    for expected in ("5 values", "line 3, column 'x': no value", "line 3, column 'y': 'nan' is not finite", "line 4, column 'y': the text 'tall'"):
        assert expected in told
    assert "line 4, column 'kind': no label" in told
    assert "line 5, column 'y': 'inf' is not finite" in told


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("", BadFileError, "is empty"),
        ("x,y\n", BadFileError, "names of columns, but no records"),
        ("x,x,y\n1,2,3\n", BadFileError, "several columns named 'x'"),
        ("x,y\n1,a\n1,2,a\n", BadFileError, "has 2 columns, but some lines have more or fewer:\n  line 3: 3"),
        ("y\na\na\n", ValueError, "only the column 'y'"),
        ("x,y\n1,0.1\n2,0.2\n3,0.3\n", ValueError, "column 'y' of .* holds 3 different labels in 3 records"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, error, match):
    with pytest.raises(error, match=match):
        read_table(write(tmp_path / "a.csv", text))


def test_missing_tables_and_other_encodings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*expected a table of numbers"):
        read_table(tmp_path / "no.csv")
    (tmp_path / "a.csv").write_bytes("größe,y\n1,a\n".encode("latin1"))
    with pytest.raises(BadFileError, match="save it as CSV in UTF-8"):
        read_table(tmp_path / "a.csv")


def test_columns_are_found_by_name_or_place():
    assert column_places(["a", "b", "c"], ["c", 0, -2]) == [2, 0, 1]
    with pytest.raises(ValueError, match="no column 'd': choose a place from 0 to 2, or one of 'a', 'b', 'c'"):
        column_places(["a", "b", "c"], ["d"])
    with pytest.raises(ValueError, match="no column 3"):
        column_places(["a", "b", "c"], [3])
