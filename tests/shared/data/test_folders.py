"""Folders of images, folders that belong together, and arrays in files."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from helpers.layouts import (
    picture,
    save_picture,
    write_celeba,
    write_celeba_hq,
    write_class_folder,
    write_image_folder,
    write_npz,
    write_pair_folder,
)
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from shared.data.files import BadFileError
from shared.data.folders import NO_LABEL, ImageFolderDataset, NpzDataset, PairFolderDataset, fit_square


def _tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def test_any_folder_is_read_in_order(tmp_path):
    dataset = ImageFolderDataset(write_image_folder(tmp_path))
    assert [path.name for path in dataset.paths] == ["0000.png", "0003.png", "0001.JPG", "0004.JPG", "0002.bmp", "0005.bmp"]
    item = dataset[1]
    torch.testing.assert_close(item["image"], _tensor(picture(20, 16, seed=3)))
    assert (item["label"], item["index"]) == (NO_LABEL, 1)


def test_classes_are_those_of_torchvision(tmp_path):
    write_class_folder(tmp_path, ("zebra", "Ant", "bee"))
    save_picture(tmp_path / "bee" / "deep" / "x.png", 20, 16)
    save_picture(tmp_path / "loose.png", 20, 16)
    dataset, oracle = ImageFolderDataset(tmp_path, has_classes=True), ImageFolder(tmp_path)
    assert dataset.class_names == oracle.classes == ["Ant", "bee", "zebra"]
    assert sorted((str(path), label) for path, label in zip(dataset.paths, dataset.labels, strict=True)) == sorted(oracle.samples)
    (tmp_path / ".cache").mkdir()
    assert ImageFolderDataset(tmp_path, has_classes=True).class_names == oracle.classes


def test_squares_are_cut_from_the_centre(tmp_path):
    path = save_picture(tmp_path / "a.png", 90, 60)
    image = ImageFolderDataset(tmp_path, size=30)[0]["image"]
    expected = center_crop(resize(pil_to_tensor(Image.open(path)), 30, antialias=True), [30, 30]) / 255
    assert image.shape == (3, 30, 30)
    assert (image - expected).abs().mean() < 0.02
    torch.testing.assert_close(fit_square(_tensor(picture(90, 60)), 60), _tensor(picture(90, 60))[:, 15:75])


def test_celeba_is_cut_around_the_face(tmp_path):
    dataset = ImageFolderDataset(write_celeba(tmp_path), size=128, box=(25, 57, 153, 185))
    assert len(dataset) == 4
    assert (dataset[2]["image"] - _tensor(picture(218, 178, seed=2))[:, 57:185, 25:153]).abs().mean() < 0.02
    with pytest.raises(BadFileError, match=r"000001\.jpg has 178 x 218 pixels, which the box \(0, 0, 200, 200\)"):
        ImageFolderDataset(tmp_path, box=(0, 0, 200, 200))[0]


def test_celeba_hq_makes_batches(tmp_path):
    loader = DataLoader(ImageFolderDataset(write_celeba_hq(tmp_path), size=64), batch_size=2, num_workers=1)
    assert [batch["image"].shape for batch in loader] == [(2, 3, 64, 64)] * 2


def test_folders_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"faces does not exist: expected .*faces/.*correct the path"):
        ImageFolderDataset(tmp_path / "faces")
    write_class_folder(tmp_path / "classes")
    (tmp_path / "classes" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the classes empty hold no images; expected .*<class>/<name>\.png"):
        ImageFolderDataset(tmp_path / "classes", has_classes=True)
    with pytest.raises(FileNotFoundError, match="there are no sub-folders"):
        ImageFolderDataset(tmp_path / "classes" / "cat", has_classes=True)


def test_splits_are_not_taken_for_classes(tmp_path):
    for split in ("train", "Val"):
        write_class_folder(tmp_path / "whole" / split)
    with pytest.raises(ValueError, match=r"whole holds Val and train with classes in them: name one of these, such as .*whole/train"):
        ImageFolderDataset(tmp_path / "whole", has_classes=True)
    save_picture(tmp_path / "trials" / "train" / "1.png", 8, 8, seed=1)
    save_picture(tmp_path / "trials" / "test" / "1.png", 8, 8, seed=2)
    assert ImageFolderDataset(tmp_path / "trials", has_classes=True).class_names == ["test", "train"]


def test_bad_images_are_refused_skipped_or_met_later(tmp_path):
    write_class_folder(tmp_path)
    (tmp_path / "cat" / "1.png").write_bytes(b"broken")
    with pytest.raises(BadFileError, match="1 of 6 images cannot be read"):
        ImageFolderDataset(tmp_path, has_classes=True, on_bad_file="refuse")
    assert ImageFolderDataset(tmp_path, has_classes=True, on_bad_file="skip").labels == [0, 0, 1, 1, 1]
    with pytest.raises(BadFileError, match=r"1\.png"):
        ImageFolderDataset(tmp_path)[1]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    write_class_folder(tmp_path, per_class=20, height=200, width=200)
    dataset = ImageFolderDataset(tmp_path)
    tracemalloc.start()
    for item in dataset:
        del item
        if tracemalloc.get_traced_memory()[0] > 2_000_000:
            break
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000  # all 40 images would be 4.8 MB as bytes


def test_pairs_are_matched_by_name(tmp_path):
    write_pair_folder(tmp_path)
    save_picture(tmp_path / "images" / "more" / "x.y.jpg", 8, 8, seed=9)
    save_picture(tmp_path / "masks" / "more" / "x.y.png", 8, 8, channels=1, seed=9)
    dataset = PairFolderDataset(tmp_path)
    assert dataset.names == ["0000", "0001", "0002", "0003", "more/x.y"]
    item = dataset[2]
    assert set(item) == {"image", "mask", "index"}
    assert (item["image"] - _tensor(picture(20, 16, seed=2))).abs().mean() < 0.02
    assert torch.equal(item["mask"][0], torch.from_numpy(picture(20, 16, channels=1, seed=102) > 127).float())


def test_three_folders_have_keys_and_modes(tmp_path):
    write_pair_folder(tmp_path, ("RGB", "depth", "GT"))
    dataset = PairFolderDataset(tmp_path, {"image": "RGB", "depth": "depth", "mask": "GT"}, {"depth": "L", "mask": "1"}, size=12)
    item = dataset[0]
    assert {key: tuple(value.shape) for key, value in item.items() if key != "index"} == {
        "image": (3, 12, 12),
        "depth": (1, 12, 12),
        "mask": (1, 12, 12),
    }
    assert item["mask"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("method", ["crop", "stretch"])
def test_image_and_mask_are_resized_alike(tmp_path, method):
    disc = (np.hypot(*np.mgrid[-1:1:90j, -1.5:1.5:130j]) < 0.7).astype(np.uint8) * 255
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(disc).save(tmp_path / folder / "a.png")
    item = PairFolderDataset(tmp_path, size=32, method=method)[0]
    assert item["mask"].unique().tolist() == [0, 1]
    assert ((item["image"][:1] > 0.5) == item["mask"].bool()).float().mean() > 0.98


def test_unmatched_names_are_listed_in_both_directions(tmp_path):
    write_pair_folder(tmp_path, count=15)
    (tmp_path / "masks" / "0001.png").unlink()
    for number in range(2, 14):
        (tmp_path / "images" / f"{number:04d}.jpg").unlink()
    with pytest.raises(ValueError, match="do not match name for name") as caught:
        PairFolderDataset(tmp_path)
    message = str(caught.value)
    assert "missing in masks (1): 0001" in message
    assert "missing in images (12): 0002, 0003" in message
    assert "... and 2 more" in message
    assert "add the missing files" in message


def test_sizes_that_differ_are_listed(tmp_path):
    write_pair_folder(tmp_path)
    save_picture(tmp_path / "masks" / "0002.png", 10, 16, channels=1)
    with pytest.raises(ValueError, match=r"(?s)1 items in .* have images of different sizes:.*0002: image 16 x 20, mask 16 x 10.*resize or remove"):
        PairFolderDataset(tmp_path)


def test_names_used_twice_and_missing_folders_are_named(tmp_path):
    write_pair_folder(tmp_path)
    save_picture(tmp_path / "images" / "0000.png", 20, 16)
    with pytest.raises(ValueError, match=r"0000\.jpg and .*0000\.png have the same name but for the ending: remove one"):
        PairFolderDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"depth does not exist: expected .*masks/.* and .*depth/"):
        PairFolderDataset(tmp_path, {"mask": "masks", "depth": "depth"})


def test_pairs_with_a_bad_file_are_refused_or_skipped(tmp_path):
    write_pair_folder(tmp_path)
    good = (tmp_path / "images" / "0001.jpg").read_bytes()
    (tmp_path / "images" / "0001.jpg").write_bytes(good[: len(good) - 200])
    with pytest.raises(BadFileError, match=r"(?s)1 of 8 images.*0001\.jpg"):
        PairFolderDataset(tmp_path, on_bad_file="refuse")
    assert PairFolderDataset(tmp_path, on_bad_file="skip").names == ["0000", "0002", "0003"]
    for number in range(4):
        (tmp_path / "images" / f"{number:04d}.jpg").write_bytes(b"")
    with pytest.raises(BadFileError, match="every item has a file that cannot be read"):
        PairFolderDataset(tmp_path, on_bad_file="skip")


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("key", [None, "images"])
def test_arrays_are_read_as_images(tmp_path, key, is_compressed):
    dataset = NpzDataset(write_npz(tmp_path / "samples.npz", key=key, is_compressed=is_compressed))
    assert isinstance(dataset.images, np.memmap) != is_compressed
    assert len(dataset) == 5
    item = dataset[3]
    torch.testing.assert_close(item["image"], _tensor(picture(8, 8, seed=3)))
    assert (item["label"], item["index"]) == (3, 3)


@pytest.mark.parametrize("order", ["C", "F"])
def test_grey_floats_without_labels(tmp_path, order):
    values = np.random.default_rng(0).random((70, 6, 7))
    np.savez(tmp_path / "a.npz", other=np.zeros(3), images=np.asarray(values, order=order))
    dataset = NpzDataset(tmp_path / "a.npz")
    assert dataset[69]["image"].shape == (1, 6, 7)
    torch.testing.assert_close(dataset[69]["image"][0], torch.from_numpy(values[69]).float())
    assert dataset[69]["label"] == NO_LABEL


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "it holds mu, sigma, but no array arr_0 or images: save the images as images"),
        ({"images": np.zeros((5, 3, 8, 8), np.uint8)}, r"shape \(5, 3, 8, 8\), expected .*transpose\(0, 2, 3, 1\)"),
        ({"images": np.zeros((8, 8), np.uint8)}, r"shape \(8, 8\), expected"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, r"shape \(0, 8, 8, 3\), expected"),
        ({"images": np.zeros((2, 8, 8), np.int64)}, "are int64, expected uint8 or float"),
        ({"images": np.where(np.arange(100)[:, None, None] == 77, np.nan, np.zeros((100, 4, 4)))}, "image 77 holds NaN"),
        ({"images": np.full((2, 4, 4), -0.5, np.float32)}, r"image 0 holds the value -0\.5, expected floats in \[0, 1\]; .*rescale"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, int)},
            r"labels are int64 of shape \(3,\), expected whole numbers of shape \(2,\)",
        ),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(2)}, "labels are float64"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadFileError, match=rf"cannot use .*a\.npz: .*{message}"):
        NpzDataset(tmp_path / "a.npz")


def test_python_objects_in_arrays_are_refused(tmp_path):
    executed = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (executed.touch, ())

    np.savez(tmp_path / "a.npz", images=np.array([[[Hostile()]]], object))
    with pytest.raises(BadFileError, match="Object arrays cannot be loaded"):
        NpzDataset(tmp_path / "a.npz")
    assert not executed.exists()


def test_damaged_array_files_are_named(tmp_path):
    good = write_npz(tmp_path / "good.npz", count=40).read_bytes()
    (tmp_path / "half.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:  # an archive in order, around an array that is cut off
        content = io.BytesIO()
        np.save(content, np.zeros((40, 80, 80), np.uint8))
        archive.writestr("images.npy", content.getvalue()[:5000])
    for name in ("half.npz", "text.npz", "short.npz"):
        with pytest.raises(BadFileError, match=f"cannot use .*{name}: "):
            NpzDataset(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npz: expected an \.npz file"):
        NpzDataset(tmp_path / "none.npz")
