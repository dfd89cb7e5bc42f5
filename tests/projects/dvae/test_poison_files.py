"""The five published forms of a poison put the same images on the set; whatever does not fit, or could run a program, is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.layouts import write_ntga, write_poison_arrays, write_poison_pickle, write_poison_pictures

from projects.dvae.poison_files import detect_format, read_arrays, read_poison
from projects.dvae.sets import PerturbationWriter
from shared.data.files import BadFileError

N, K, SHAPE = 6, 3, (3, 8, 8)
LABELS = torch.tensor([2, 0, 1, 1, 0, 2])
RANDOM = np.random.default_rng(0)
CLEAN = RANDOM.integers(0, 256, (N, *SHAPE)).astype(np.uint8)
DELTA = RANDOM.integers(-8, 9, (N, *SHAPE)).astype(np.int8)
POISONED = np.clip(CLEAN.astype(int) + DELTA, 0, 255).astype(np.uint8)
NHWC = POISONED.transpose(0, 2, 3, 1)


def write(form, tmp_path):
    match form:
        case "pictures":
            return write_poison_pictures(tmp_path / "pictures", NHWC)
        case "torch":
            torch.save(torch.from_numpy(DELTA) / 255, tmp_path / "noise.pt")
            return tmp_path / "noise.pt"
        case "old torch":
            torch.save(torch.from_numpy(DELTA).double() / 255, tmp_path / "noise.pt", _use_new_zipfile_serialization=False)
            return tmp_path / "noise.pt"
        case "pickle":
            return write_poison_pickle(tmp_path / "noise.pkl", DELTA)
        case "ntga":
            return write_ntga(tmp_path / "ntga", NHWC, LABELS.numpy(), K)
        case "arrays":
            return write_poison_arrays(tmp_path / "ops", NHWC, LABELS.numpy())
        case "stored":
            writer = PerturbationWriter(tmp_path / "p1", None, LABELS, ["a", "b", "c"], SHAPE, "npy")
            writer.write(range(N), torch.from_numpy(DELTA) / 255)
            writer.finish({})
            return tmp_path / "p1"


def read(path, count=N, classes=K, shape=SHAPE, labels=LABELS, **options):
    return read_poison(path, count, classes, shape, labels, **options)


FORMS = ["pictures", "torch", "old torch", "pickle", "ntga", "arrays", "stored"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_poisoned_images(tmp_path, form):
    path = write(form, tmp_path)
    assert detect_format(path) == {"old torch": "torch", "ntga": "arrays"}.get(form, form)
    poison = read(path)
    where = torch.tensor([4, 1, 5])
    found = poison.apply(torch.from_numpy(CLEAN)[where].float() / 255, LABELS[where], where)
    np.testing.assert_array_equal((found * 255).numpy().round(), POISONED[where])
    torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-4)
    if not poison.is_image and form != "stored":
        assert poison.largest == pytest.approx(np.abs(DELTA.astype(int)).max())
        assert "one for each image, of up to 8.0 of 255" in poison.description


def test_a_perturbation_for_each_class_is_looked_up_by_label(tmp_path):
    path = tmp_path / "classes.pt"
    torch.save(torch.from_numpy(DELTA[:K]) / 255, path)
    poison = read(path)
    assert poison.is_class_wise
    found = poison.apply(torch.from_numpy(CLEAN).float() / 255, LABELS, torch.arange(N))
    expected = np.clip(CLEAN.astype(int) + DELTA[LABELS.numpy()], 0, 255)
    np.testing.assert_array_equal((found * 255).numpy().round(), expected)


def test_negative_noise_is_subtracted(tmp_path):
    """EM's original loader loses the negative half of the noise."""
    torch.save(torch.full((N, *SHAPE), -8 / 255), tmp_path / "noise.pt")
    found = read(tmp_path / "noise.pt").apply(torch.full((1, *SHAPE), 100 / 255), LABELS[:1], torch.tensor([0]))
    assert ((found * 255).round() == 92).all()


def test_as_many_images_as_classes_must_be_decided(tmp_path):
    torch.save(torch.from_numpy(DELTA) / 255, tmp_path / "noise.pt")
    with pytest.raises(ValueError, match=r"as many as images and as classes: set data\.perturbation_keying"):
        read(tmp_path / "noise.pt", classes=N)
    assert read(tmp_path / "noise.pt", classes=N, keying="class").is_class_wise
    assert not read(tmp_path / "noise.pt", classes=N, keying="sample").is_class_wise


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["noise.pkl", "noise.pt"])
def test_nothing_is_run(tmp_path, name):
    marker, path = tmp_path / "executed", tmp_path / name
    if name.endswith("pt"):
        torch.save(_Hostile(marker), path)
    else:
        path.write_bytes(pickle.dumps(_Hostile(marker)))
    with pytest.raises(BadFileError, match="nothing of it was run"):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(5, *SHAPE), r"shape \(5, 3, 8, 8\), expected \(6, 3, 8, 8\) or \(3, 3, 8, 8\)"),
        (torch.zeros(N, 3, 8, 9), r"shape \(6, 3, 8, 9\)"),
        (torch.zeros(N, 3), r"shape \(6, 3\)"),
        (torch.full((N, *SHAPE), 8.0), "up to 8, expected units of .0, 1. images: divide it by 255"),
        (torch.full((N, *SHAPE), torch.nan), "not finite"),
        (torch.zeros(N, *SHAPE, dtype=torch.int64), r"a tensor of torch\.int64"),
        ({"noise": torch.zeros(1)}, "a dict, expected a tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "noise.pt")
    with pytest.raises(BadFileError, match=rf"noise\.pt .*{message}"):
        read(tmp_path / "noise.pt")


def test_pickles_that_do_not_fit_are_named(tmp_path):
    for content, message in [([1, 2], "a list"), (DELTA.astype(np.float32), "no array of int8"), (DELTA[:4], r"shape \(4, 3, 8, 8\)")]:
        (tmp_path / "noise.pkl").write_bytes(pickle.dumps(content, 4))
        with pytest.raises(BadFileError, match=message):
            read(tmp_path / "noise.pkl")


def test_pictures_that_do_not_fit_are_named(tmp_path):
    folder = write("pictures", tmp_path)
    with pytest.raises(BadFileError, match=r"0\.png has the shape \(3, 8, 8\), the images of the set have \(3, 16, 16\)"):
        read(folder, shape=(3, 16, 16))
    with pytest.raises(FileNotFoundError, match="the training set is smaller"):
        read(folder, count=4)
    (folder / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected 0\.png to 5\.png: 1 are missing: 3\.png"):
        read(folder)


def test_arrays_that_do_not_fit_are_named(tmp_path):
    folder = write("arrays", tmp_path)
    with pytest.raises(ValueError, match=r"differ from the training set's for 2 of 6 images; .*data\.source arrays"):
        read(folder, labels=LABELS[[1, 0, 2, 3, 4, 5]])
    with pytest.raises(BadFileError, match=r"shape \(6, 8, 8, 3\), expected \(6, 8, 8, 1\)"):
        read(folder, shape=(1, 8, 8))
    np.save(folder / "more.npy", NHWC)
    with pytest.raises(BadFileError, match="several arrays of images"):
        read(folder)
    assert read_arrays(folder / "ops_images.npy")[0].shape == (6, 8, 8, 3)
    (folder / "more.npy").unlink()
    (folder / "ops_labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match="holds none of the arrays that could be the 6 labels"):
        read(folder)
    np.save(folder / "ops_labels.npy", np.array([None] * 6, object))
    with pytest.raises(BadFileError, match="Python objects"):
        read(folder)
    np.save(folder / "ops_images.npy", NHWC.astype(np.float32))
    np.save(folder / "ops_labels.npy", LABELS.numpy())
    with pytest.raises(BadFileError, match=r"image 0 holds .*divide all by 255"):
        read(folder)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no poison"):
        read(tmp_path / "noise.pt")
    with pytest.raises(BadFileError, match=r"neither numbered \.png files"):
        read(tmp_path)
    (tmp_path / "noise.bin").write_bytes(b"something else")
    with pytest.raises(BadFileError, match="no tensor of torch"):
        read(tmp_path / "noise.bin")
    with pytest.raises(BadFileError, match="of another set"):
        read(write("stored", tmp_path), labels=LABELS.flip(0).roll(1))
    with pytest.raises(ValueError, match="must be one of auto, sample, class"):
        read(tmp_path, keying="index")
    with pytest.raises(ValueError, match="pictures, torch"):
        read(tmp_path, format="zip")
