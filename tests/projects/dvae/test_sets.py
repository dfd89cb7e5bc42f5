"""Sets give whole batches equal to their items, and come back from the disk as they were written, also after a kill."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from helpers.layouts import save_picture, write_class_folder, write_odd_class_folder
from PIL import Image
from torch.utils.data import DataLoader

from projects.dvae.sets import (
    MANIFEST,
    BareSet,
    FolderSet,
    ImageSet,
    PairedSet,
    PerturbationWriter,
    PoisonedSet,
    SetWriter,
    StoredPerturbations,
    identity,
    read_manifest,
    read_poisoned,
    read_set,
)
from shared.data.files import BadFileError

CLASSES = ["cat", "cow", "dog"]


def drawn(count=12, channels=3, height=6, width=4, clean=False):
    random = torch.Generator().manual_seed(count + channels)
    images, other = torch.randint(0, 256, (2, count, channels, height, width), generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 3, CLASSES, clean=other if clean else None)


class Brighter:
    """A poison of which each image bears its label and its index in a pixel each."""

    def apply(self, images, labels, indices):
        assert images.dtype == torch.float32
        poisoned = images.clone()
        poisoned[:, 0, 0, 0], poisoned[:, 0, 0, 1] = labels / 255, indices / 255
        return poisoned


def made(kind, tmp_path):
    match kind:
        case "memory":
            return drawn()
        case "clean":
            return drawn(clean=True)
        case "folder":
            return FolderSet.of_classes(write_class_folder(tmp_path / "folder", per_class=4))
        case "poisoned":
            return PoisonedSet(drawn(), Brighter(), torch.arange(12) % 4 > 0)
        case "paired":
            return PairedSet(drawn(), PoisonedSet(drawn(), Brighter(), torch.ones(12, dtype=torch.bool)))


@pytest.mark.parametrize("kind", ["memory", "clean", "folder", "poisoned", "paired"])
def test_batches_are_the_items_one_by_one(kind, tmp_path):
    images = made(kind, tmp_path)
    batches = list(DataLoader(images, 5, collate_fn=identity))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(images)))
    assert batches[0]["image"].dtype == torch.float32
    assert batches[0]["label"].dtype == batches[0]["index"].dtype == torch.int64
    for number in range(len(images)):
        item = images[number]
        assert item.keys() == batches[0].keys()
        assert (item["label"], item["index"]) == (int(images.labels[number]), number)
        for name in item.keys() - {"label", "index"}:
            assert torch.equal(item[name], batches[number // 5][name][number % 5])
    assert ("clean" in batches[0]) == images.has_clean == (kind in ("clean", "poisoned", "paired"))
    assert "clean" not in BareSet(images)[0]
    held = images.load()
    assert torch.equal(held.read(range(5)), images.read(range(5)))
    assert held.has_clean == images.has_clean
    with pytest.raises(IndexError):
        images[len(images)]


def test_poison_is_put_by_index_on_the_chosen_images(tmp_path):
    clean, poisoned = drawn(), made("poisoned", tmp_path)
    batch = poisoned.__getitems__([9, 4, 3])
    assert (batch["image"][:, 0, 0, :2] * 255).round().tolist()[0] == [0, 9]
    assert (batch["image"][:, 0, 0, :2] * 255).round().tolist()[2] == [0, 3]
    assert torch.equal(batch["image"][1], clean[4]["image"]), "image 4 is not among the poisoned"
    assert torch.equal(batch["clean"], clean.__getitems__([9, 4, 3])["image"])
    assert torch.equal(batch["image"][0, :, 1:], batch["clean"][0, :, 1:])
    held = poisoned.load()
    assert held.clean is poisoned.base.images, "no second copy of the clean images"


def test_pictures_as_users_have_them(tmp_path):
    root = write_odd_class_folder(tmp_path / "odd")
    colour = FolderSet.of_classes(root)
    assert colour.names == ["cat/colour.png", "cat/deep.png", "cat/old/grey.png", "dog/palette.png", "dog/transparent.png", "dog/turned.jpg"]
    assert colour.image_shape == (3, 12, 12)
    assert torch.equal(colour.read([2])[0, 0], torch.from_numpy(np.array(Image.open(root / "cat" / "old" / "grey.png"))))
    deep = np.array(Image.open(root / "cat" / "deep.png")).astype(float) / 257
    np.testing.assert_array_equal(colour.read([1])[0, 1].numpy(), deep)
    turned = np.rot90(np.array(Image.open(root / "dog" / "turned.jpg")), -1)
    np.testing.assert_array_equal(colour.read([5])[0].permute(1, 2, 0).numpy(), turned)
    assert FolderSet.of_classes(root, "L", size=8).image_shape == (1, 8, 8)
    save_picture(root / "dog" / "wide.png", 12, 20)
    with pytest.raises(ValueError, match=r"2 different sizes:\n.*12 x 12.*\n.*20 x 12: .*wide\.png\n.*data\.size"):
        FolderSet.of_classes(root)
    assert FolderSet.of_classes(root, size=12).image_shape == (3, 12, 12)


@pytest.mark.parametrize("form", ["png", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path, form, channels):
    images = drawn(channels=channels)
    writer = SetWriter(tmp_path / "set", None, images.labels, CLASSES, images.image_shape, form)
    writer.write([7, 3], images.images[[7, 3]])
    assert writer.has([3, 7])
    assert not writer.has([3, 4])
    rest = [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    writer.write(rest, images.images[rest].float() / 255)
    writer.finish({"attack": "lsp", "origin": {"source": "digits"}}, is_poisoned=images.labels == 1)
    found = read_set(tmp_path / "set")
    assert torch.equal(found.read(range(12)), images.images)
    assert torch.equal(found.labels, images.labels)
    assert found.class_names == CLASSES
    assert torch.equal(read_poisoned(tmp_path / "set"), images.labels == 1)
    manifest = read_manifest(tmp_path / "set")
    assert manifest | {"attack": "lsp", "count": 12, "shape": [channels, 6, 4], "format": form, "version": 1, "complete": True} == manifest
    assert not (tmp_path / "set" / "written.npy").exists()
    assert SetWriter(tmp_path / "set", None, images.labels, CLASSES, images.image_shape, form).has(range(12)), "a finished set has everything"


def test_a_stored_folder_keeps_its_names_and_their_order(tmp_path):
    names = ["dog/b/1.jpg", "cat/0.png", "cat/0.jpg", "dog/2.webp"]
    images, labels = drawn(4).images, torch.tensor([1, 0, 0, 1])
    writer = SetWriter(tmp_path / "set", names, labels, ["cat", "dog"], (3, 6, 4))
    writer.write(range(4), images)
    writer.finish({})
    found = read_set(tmp_path / "set")
    assert found.names == ["dog/b/1.png", "cat/0.png.png", "cat/0.jpg.png", "dog/2.png"], "the old ending tells 0.png from 0.jpg"
    assert torch.equal(found.read(range(4)), images)
    assert torch.equal(found.labels, labels)
    with pytest.raises(ValueError, match=r"pig/1\.png does not begin with the folder of its class"):
        SetWriter(tmp_path / "other", ["pig/1.png"], labels[:1], ["cat", "dog"], (3, 6, 4))
    with pytest.raises(ValueError, match=r"both be stored as cat/0\.jpg\.png"):
        SetWriter(tmp_path / "other", ["cat/0.png", "cat/0.jpg", "cat/0.jpg.png"], labels[[1, 1, 1]], ["cat", "dog"], (3, 6, 4))


@pytest.mark.parametrize("form", ["png", "npy"])
def test_perturbations(tmp_path, form):
    labels, p = torch.arange(5) % 3, torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    p[0, 0, 0, 0] = 0.9
    writer = PerturbationWriter(tmp_path / "p1", None, labels, CLASSES, (3, 6, 4), form)
    writer.write(range(5), p)
    writer.finish({})
    stored = StoredPerturbations(tmp_path / "p1")
    assert torch.equal(stored.labels, labels)
    if form == "npy":
        torch.testing.assert_close(stored.read([4, 0]), p[[4, 0]], rtol=2**-11, atol=1e-7)
    else:
        torch.testing.assert_close(stored.read([4, 0]), p[[4, 0]].clamp(max=127 / 255), rtol=0, atol=0.501 / 255)
        level = np.array(Image.open(tmp_path / "p1" / "cat" / "00003.png"))
        np.testing.assert_array_equal(level, (128 + (255 * p[3]).round()).permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match=r"holds perturbation, not images$"):
        read_set(tmp_path / "p1")


def _write_until_killed(folder, form):
    images = drawn()
    writer = SetWriter(folder, None, images.labels, CLASSES, images.image_shape, form, key="a")
    writer.write([0, 1, 2, 3], images.images[:4])
    writer.write([6], images.images[6:7])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("form", ["png", "npy"])
def test_writing_goes_on_after_a_kill(tmp_path, form):
    folder, images = tmp_path / "set", drawn()
    process = multiprocessing.get_context("fork").Process(target=_write_until_killed, args=(folder, form))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(ValueError, match=r"not complete: run the command .* with --resume"):
        read_set(folder)
    writer = SetWriter(folder, None, images.labels, CLASSES, images.image_shape, form, key="a")
    missing = [index for index in range(12) if not writer.has([index])]
    assert missing == [4, 5, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="not complete: 7 of 12"):
        writer.finish({})
    writer.write(missing, images.images[missing])
    writer.finish({})
    assert torch.equal(read_set(folder).read(range(12)), images.images)
    another = SetWriter(folder, None, images.labels, CLASSES, images.image_shape, form, key="b")
    assert not any(another.has([index]) for index in range(12)), "a set of another key is replaced"


def test_two_writers_share_an_array(tmp_path):
    images = drawn()
    writers = [SetWriter(tmp_path / "set", None, images.labels, CLASSES, images.image_shape, "npy") for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.write(range(number, 12, 2), images.images[number::2])
    writers[0].finish({})
    assert torch.equal(read_set(tmp_path / "set").read(range(12)), images.images)


def stored(folder, form):
    images = drawn()
    writer = SetWriter(folder, None, images.labels, CLASSES, images.image_shape, form)
    writer.write(range(12), images.images)
    writer.finish({})
    return folder


def test_what_does_not_fit_is_named(tmp_path):
    png, npy = stored(tmp_path / "png", "png"), stored(tmp_path / "npy", "npy")
    with pytest.raises(FileNotFoundError, match=r"no stored set in .*data\.source folder"):
        read_set(tmp_path)
    (png / "cow" / "00004.png").unlink()
    with pytest.raises(BadFileError, match=r"^1 of 12 images are missing:\n.*cow/00004\.png"):
        read_set(png)
    (npy / "labels.npy").unlink()
    with pytest.raises(BadFileError, match=r"labels\.npy is missing"):
        read_set(npy)
    np.save(npy / "labels.npy", np.zeros(11, np.int64))
    with pytest.raises(BadFileError, match=r"labels of shape \(11,\)"):
        read_set(npy)
    (npy / "images.npy").write_bytes(b"damaged")
    with pytest.raises(BadFileError, match=r"cannot use .*images\.npy"):
        read_set(npy)
    (npy / "names.json").unlink()
    (npy / MANIFEST).write_text(json.dumps({"version": 2}))
    with pytest.raises(BadFileError, match="no manifest of a stored set of version 1"):
        read_set(npy)
    with pytest.raises(ValueError, match="is not empty and holds no stored set"):
        SetWriter(write_class_folder(tmp_path / "mine"), None, torch.tensor([0]), CLASSES, (3, 6, 4))
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 3, 6, 4\)"):
        SetWriter(tmp_path / "new", None, torch.tensor([0]), CLASSES, (3, 6, 4)).write([0], torch.zeros(1, 3, 4, 6))
    names = json.loads((png / "names.json").read_text())
    (png / "names.json").write_text(json.dumps(["../" + names[0], *names[1:]]))
    with pytest.raises(BadFileError, match="outside of the set"):
        read_set(png)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageSet(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), CLASSES)
    with pytest.raises(ValueError, match="labels go from 0 to 3"):
        ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]), CLASSES)
