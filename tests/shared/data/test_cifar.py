"""CIFAR in exactly the format of its archives, read as torchvision reads it, and hostile or damaged files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.layouts import CIFAR10_CLASSES, cifar_images, write_cifar10, write_cifar100, write_python2_pickle
from torchvision.datasets import CIFAR10, CIFAR100

from shared.data.cifar import CifarDataset
from shared.data.files import BadFileError


def _torchvision(kind, root, train):
    """Torchvision's reader (of plain, unsafe pickles) without the checksums of the full archive."""

    files = {split: [[name, None] for name, _ in getattr(kind, split)] for split in ("train_list", "test_list")}
    return type("Miniature", (kind,), files | {"meta": kind.meta | {"md5": None}})(root, train=train)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("classes", "kind", "write"), [(10, CIFAR10, write_cifar10), (100, CIFAR100, write_cifar100)])
def test_images_and_labels_are_those_of_torchvision(tmp_path, classes, kind, write, split):
    write(tmp_path)
    oracle = _torchvision(kind, tmp_path, train=split == "train")
    dataset = CifarDataset(tmp_path, classes, (split,))
    assert dataset.images.dtype == torch.uint8
    np.testing.assert_array_equal(dataset.images.permute(0, 2, 3, 1).numpy(), oracle.data)
    assert dataset.labels.tolist() == oracle.targets
    assert dataset.class_names == oracle.classes


def test_items_are_floats_from_zero_to_one(tmp_path):
    dataset = CifarDataset(write_cifar10(tmp_path), 10, ("train", "test"))
    assert len(dataset) == 24
    item = dataset[21]
    pixels, labels = cifar_images(4, 10, seed=5)  # the test batch is the sixth file
    torch.testing.assert_close(item["image"], torch.from_numpy(pixels[1].reshape(3, 32, 32)) / 255)
    assert (item["label"], item["index"]) == (labels[1], 21)
    with pytest.raises(IndexError):
        dataset[24]


def test_the_folder_may_have_another_name(tmp_path):
    write_cifar100(tmp_path).rename(tmp_path / "my-copy")
    assert len(CifarDataset(tmp_path / "my-copy", 100)) == 8


@pytest.mark.parametrize("library", ["numpy.core", "numpy._core"])
def test_files_written_by_python_3_are_read(tmp_path, library):
    folder = write_cifar10(tmp_path)
    pixels, labels = cifar_images(3, 10, seed=7)
    content = pickle.dumps({b"data": np.asfortranarray(pixels), b"labels": labels}, protocol=2)
    (folder / "test_batch").write_bytes(content.replace(b"numpy._core", library.encode()))
    dataset = CifarDataset(folder, splits=("test",))
    np.testing.assert_array_equal(dataset.images.numpy().reshape(3, 3072), pixels)


def test_missing_files_are_named_one_by_one(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_4").unlink()
    expected = (
        r"lacks data_batch_2, data_batch_4: expected cifar-10-batches-py/ with the files batches\.meta, data_batch_1.*fetch cifar-10-python\.tar\.gz"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        CifarDataset(tmp_path)
    assert len(CifarDataset(tmp_path, splits=("test",))) == 4
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python lacks meta, train: .*fetch cifar-100-python\.tar\.gz"):
        CifarDataset(tmp_path, 100)


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


class _Evaluated(_Hostile):
    def __reduce__(self):
        return (eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(("kind", "name"), [(_Hostile, r"getattr|pathlib|Path\.touch"), (_Evaluated, r"(__builtin__|builtins)\.eval")])
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol, kind, name):
    marker = tmp_path / "executed"
    folder = write_cifar10(tmp_path)
    hostile = pickle.dumps({b"data": kind(marker), b"labels": [0]}, protocol)
    pickle.loads(hostile)
    assert marker.exists()  # it does work on those who trust it
    marker.unlink()
    (folder / "data_batch_3").write_bytes(hostile)
    with pytest.raises(BadFileError, match=rf"data_batch_3 asks for .*({name}), .*nothing of it was run.*unpack cifar-10-python\.tar\.gz"):
        CifarDataset(folder)
    assert not marker.exists()


@pytest.mark.parametrize("code", [b"(S'true'\nios\nsystem\n.", b"cposix\nsystem\n(S'true'\ntR.", b"cnumpy.core.multiarray\nfromfile\n."])
def test_other_globals_are_refused_by_name(tmp_path, code):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(code)
    with pytest.raises(BadFileError, match=r"test_batch asks for (os\.system|posix\.system|numpy\.core\.multiarray\.fromfile)"):
        CifarDataset(folder, splits=("test",))


def test_an_array_of_objects_is_refused(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": np.array([[1, "a"]], object), b"labels": [0]}, 2))
    with pytest.raises(BadFileError, match="test_batch: 'data' is no array of uint8"):
        CifarDataset(folder, splits=("test",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "labels that are not whole numbers from 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, r"shape \(2, 3072\) and 1 labels"),
        ({"data": np.zeros((2, 784), np.uint8), "labels": [0, 1]}, r"shape \(2, 784\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}, r"'labels', but \['data', 'fine_labels'\]"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, message):
    folder = write_cifar10(tmp_path)
    write_python2_pickle(folder / "test_batch", content)
    with pytest.raises(BadFileError, match=f"test_batch .*{message}.*unpack cifar-10-python"):
        CifarDataset(folder, splits=("test",))


def test_damaged_files_are_named(tmp_path):
    folder = write_cifar10(tmp_path)
    good = (folder / "test_batch").read_bytes()
    random = np.random.default_rng(0)
    for damaged in [good[:1000], b"", b"<html>not found</html>", *(random.bytes(200) for _ in range(20))]:
        (folder / "test_batch").write_bytes(damaged)
        with pytest.raises(BadFileError, match=r"test_batch (is damaged|asks for)"):
            CifarDataset(folder, splits=("test",))


def test_wrong_class_names_are_named(tmp_path):
    folder = write_cifar10(tmp_path)
    write_python2_pickle(folder / "batches.meta", {"label_names": list(CIFAR10_CLASSES[:9])})
    with pytest.raises(BadFileError, match=r"batches\.meta does not hold 10 label_names"):
        CifarDataset(folder)


def test_unknown_choices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="10 or 100, got 20"):
        CifarDataset(tmp_path, 20)
    with pytest.raises(ValueError, match="'train' and 'test', got"):
        CifarDataset(tmp_path, 10, ("val",))
