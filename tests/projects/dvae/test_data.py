"""The real layouts in miniature, poisons on top of them, the loaders' order, and the messages for what is missing or does not fit."""

import numpy as np
import pytest
import torch
from helpers.layouts import (
    picture,
    save_picture,
    write_cifar10,
    write_cifar100,
    write_class_folder,
    write_imagenet,
    write_npz,
    write_odd_class_folder,
    write_poison_arrays,
)

from projects.dvae.data import PurificationData
from projects.dvae.poisons import choose
from projects.dvae.sets import FolderSet, ImageSet, SetWriter
from projects.dvae.worlds import colour_digits
from shared.data.files import BadFileError


def loaded(**options):
    data = PurificationData(**options)
    data.prepare_data()
    data.setup()
    return data


def all_of(loader):
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize(("source", "shape"), [("digits", (3, 16, 16)), ("textures", (3, 32, 32))])
def test_offline_worlds(source, shape):
    data = loaded(source=source, length=200)
    assert data.image_shape == data.test_set.image_shape == shape
    assert len(data.class_names) == 10
    assert not data.is_poisoned.any()
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (128, *shape)
    assert "clean" not in batch, "training does not see clean images"
    ordered = next(iter(data.ordered_loader()))
    assert torch.equal(ordered["clean"], ordered["image"])


@pytest.mark.parametrize(("write", "source", "classes", "count"), [(write_cifar10, "cifar10", 10, 20), (write_cifar100, "cifar100", 100, 8)])
def test_cifar_as_its_archive_holds_it(tmp_path, write, source, classes, count):
    write(tmp_path)
    data = loaded(source=source, root=str(tmp_path), batch_size=4)
    assert (len(data.train_set), len(data.test_set), len(data.class_names)) == (count, 4, classes)
    found = all_of(data.ordered_loader())
    assert found["index"].tolist() == list(range(count))
    assert torch.equal((found["image"] * 255).round().byte(), data.train_set.images)


def test_the_first_hundred_classes_of_imagenet(tmp_path):
    data = loaded(source="imagenet100", root=str(write_imagenet(tmp_path)), size=28, batch_size=4)
    wnids = sorted(path.name for path in (tmp_path / "train").iterdir() if path.is_dir() and path.name.startswith("n0"))
    assert len(wnids) == 102
    assert data.class_names == wnids[:100]
    assert (len(data.train_set), len(data.test_set)) == (100, 100)
    assert data.image_shape == (3, 28, 28)
    assert data.train_set.names[0] == f"{wnids[0]}/{wnids[0]}_0.JPEG"
    assert data.train_set.labels.tolist() == list(range(100))
    assert not data.is_poisoned.any()
    plain = np.array(picture(40, 56, seed=101)).astype(float)  # 40 rows are brought to 32, and 28 x 28 of them kept: the middle stays
    middle = data.train_set.read([0])[0].permute(1, 2, 0).double().numpy()[13:15, 13:15].mean((0, 1))
    np.testing.assert_allclose(middle, plain[18:22, 26:30].mean((0, 1)), atol=6)


def test_a_large_set_stays_in_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("projects.dvae.sets.labelled.IN_MEMORY", 100)
    root = write_class_folder(tmp_path / "train", per_class=4)
    data = loaded(source="folder", root=str(root), batch_size=4, size=16)
    assert isinstance(data.train_set, FolderSet)
    assert all_of(data.ordered_loader())["image"].shape == (8, 3, 16, 16)
    first = data.fingerprint()
    save_picture(root / "cat" / "0.png", 20, 16, seed=99)
    assert loaded(source="folder", root=str(root), size=16).fingerprint() != first
    monkeypatch.undo()
    held = loaded(source="folder", root=str(root), size=16)
    assert isinstance(held.train_set, ImageSet)
    assert torch.equal(held.train_set.read([5]), data.train_set.read([5]))


def test_a_folder_of_the_users_own(tmp_path):
    root = write_odd_class_folder(tmp_path / "mine")
    data = loaded(source="folder", root=str(root), batch_size=2)
    assert data.image_shape == (3, 12, 12)
    assert data.is_poisoned is None
    assert data.test_set is None
    assert "clean" not in next(iter(data.ordered_loader()))
    assert data.train_set.names[2] == "cat/old/grey.png"
    grey = loaded(source="folder", root=str(root), channels=1, size=8, test_root=str(write_class_folder(tmp_path / "test")))
    assert grey.image_shape == grey.test_set.image_shape == (1, 8, 8)
    (root / "cat" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"bad\.png"):
        loaded(source="folder", root=str(root))
    assert len(loaded(source="folder", root=str(root), on_bad_file="skip").train_set) == 6


@pytest.mark.parametrize("form", ["npy", "npz", "npz without labels"])
def test_arrays(tmp_path, form):
    images, labels = np.stack([picture(8, 8, seed=number) for number in range(6)]), np.array([0, 1, 2, 2, 1, 0])
    if form == "npy":
        path = write_poison_arrays(tmp_path / "arrays", images, labels)
    else:
        path = write_npz(tmp_path / "images.npz", 6, 8, key="images")
        np.savez(path, images=images, **({"labels": labels} if form == "npz" else {}))
    if form == "npz without labels":
        with pytest.raises(BadFileError, match="without labels"):
            loaded(source="arrays", root=str(path))
        return
    data = loaded(source="arrays", root=str(path), batch_size=2)
    assert torch.equal(data.train_set.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert data.train_set.labels.tolist() == labels.tolist()
    assert data.class_names == ["0", "1", "2"]


def write_noise(path, count=1400, rows=None):
    noise = torch.randint(-8, 9, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    torch.save(noise, path)
    return noise


@pytest.mark.parametrize("choice", ["random", "classes"])
def test_a_published_perturbation_on_part_of_the_set(tmp_path, choice):
    noise, clean = write_noise(tmp_path / "noise.pt"), colour_digits("train")
    data = loaded(perturbation=str(tmp_path / "noise.pt"), poison_rate=0.3, poison_choice=choice, seed=0)
    assert torch.equal(data.is_poisoned, choose(clean.labels, 0.3, choice, 0))
    expected = torch.where(data.is_poisoned[:, None, None, None], clean.images + (noise * 255).round(), clean.images).clamp(0, 255)
    assert torch.equal(data.train_set.images, expected.byte())
    assert torch.equal(data.train_set.clean, clean.images)
    assert torch.equal(data.test_set.images, colour_digits("test").images), "test images are never touched"
    assert data.fingerprint() != loaded().fingerprint()


def test_the_poison_is_made_when_the_set_is_set_up(tmp_path):
    data, clean = loaded(poison="random", poison_radius=4.0, poison_rate=0.5), colour_digits("train").images
    change = (data.train_set.images.int() - clean.int()).abs().flatten(1).amax(1)
    assert torch.equal(change > 0, data.is_poisoned)
    assert change.max() == 4
    assert torch.equal(data.train_set.images, loaded(poison="random", poison_radius=4.0, poison_rate=0.5).train_set.images)


def write_set(folder, data, products=None, **manifest):
    writer = SetWriter(folder, data.train_set.names, data.train_set.labels, data.class_names, data.image_shape, "npy")
    images = data.train_set.read(range(len(data.train_set))) if products is None else products
    writer.write(range(len(images)), images)
    writer.finish({"origin": data.origin()} | manifest, data.is_poisoned)
    return folder


def test_a_stored_set_knows_where_it_comes_from(tmp_path):
    write_noise(tmp_path / "noise.pt")
    made = loaded(perturbation=str(tmp_path / "noise.pt"), poison_rate=0.5)
    data = loaded(source="stored", root=str(write_set(tmp_path / "poisoned", made)))
    assert torch.equal(data.train_set.read(range(1400)), made.train_set.images)
    assert torch.equal(data.train_set.read_clean(range(1400)), made.train_set.clean)
    assert torch.equal(data.test_set.images, made.test_set.images)
    assert torch.equal(data.is_poisoned, made.is_poisoned)
    assert made.origin().keys() >= {"source", "seed", "perturbation"}
    assert data.origin() == made.origin(), "what is made of a stored set names the first source"
    again = loaded(source="stored", root=str(write_set(tmp_path / "x1", data, products=made.train_set.clean)))
    assert torch.equal(again.train_set.read([3]), again.train_set.read_clean([3]))


def test_a_stored_set_outlives_its_source(tmp_path, caplog):
    root = write_class_folder(tmp_path / "mine", height=12, width=12)
    stored = write_set(tmp_path / "set", loaded(source="folder", root=str(root)))
    root.rename(tmp_path / "moved")
    data = loaded(source="stored", root=str(stored))
    assert "cannot be read now, so clean images are not known" in caplog.text
    assert (data.test_set, data.is_poisoned, data.train_set.has_clean) == (None, None, False)
    (tmp_path / "strange").mkdir()
    strange = write_set(tmp_path / "strange", data, origin={"source": "digits", "colour": "blue"})
    assert loaded(source="stored", root=str(strange)).test_set is None
    assert loaded(source="stored", root=str(stored), test_root=str(tmp_path / "moved")).test_set.image_shape == (3, 12, 12)


def test_the_order_of_epochs():
    data = loaded(batch_size=100)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(torch.cat([batch["index"] for batch in loader]))
    assert len(epochs[0]) == 1400
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist()) == list(range(1400))
    assert not torch.equal(*epochs)
    resumed = loaded(batch_size=100).train_dataloader()
    resumed.load_state_dict({"epoch": 1, "batches": 5})
    assert torch.equal(torch.cat([batch["index"] for batch in resumed]), epochs[1][500:]), "goes on in the middle of an epoch"
    assert torch.cat([batch["index"] for batch in data.test_dataloader()]).tolist() == list(range(1400))
    assert len(loaded(batch_size=128).train_dataloader()) == 10, "the incomplete last batch is left out"


def test_workers_give_the_same_batches():
    here, there = (all_of(loaded(batch_size=350, num_workers=count).ordered_loader()) for count in (0, 1))
    assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mnist"}, "digits: scikit-learn"),
        ({"channels": 2}, "1 or 3"),
        ({"size": 15}, "even, as the D-VAE's latent has half the size"),
        ({"source": "cifar10", "root": ".", "size": 16}, "set data.size to 32"),
        ({"poison": "lsp", "perturbation": "noise.pt"}, "give one of them"),
        ({"poison": "em"}, "the verb poison makes the others"),
        ({"poison_rate": 1.5}, r"\[0, 1\], got 1.5"),
        ({"poison_choice": "half"}, "random or classes"),
        ({"test_root": "test"}, "test images of its own"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PurificationData(**options)


def test_what_does_not_fit_is_named(tmp_path):
    root = write_class_folder(tmp_path / "train", height=15, width=15)
    with pytest.raises(ValueError, match=r"15 x 15 pixels: the D-VAE's latent has half the size; set data\.size"):
        loaded(source="folder", root=str(root))
    test = write_class_folder(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(ValueError, match="other classes than the training set: cow, dog"):
        loaded(source="folder", root=str(root), size=16, test_root=str(test))
    even = write_class_folder(tmp_path / "even")
    wide = write_class_folder(tmp_path / "wide", height=16, width=20)
    with pytest.raises(ValueError, match=r"shape \(3, 16, 20\), those of the training set \(3, 20, 16\)"):
        loaded(source="folder", root=str(even), test_root=str(wide))
    stored = write_set(tmp_path / "set", loaded(source="folder", root=str(even), size=12))
    with pytest.raises(ValueError, match=r"in 3 channel.*set data\.channels to 3 and data\.size to 12"):
        loaded(source="stored", root=str(stored), channels=1)
    with pytest.raises(ValueError, match="say where they lie with --data"):
        loaded(source="stored")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no classes of ImageNet in .*n01440764"):
        loaded(source="imagenet100", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        loaded(source="cifar10", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no images in"):
        loaded(source="folder", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no stored set"):
        loaded(source="stored", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no array of images"):
        loaded(source="arrays", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no poison"):
        loaded(perturbation=str(tmp_path / "noise.pt"))
    write_noise(tmp_path / "noise.pt", count=1000)
    with pytest.raises(BadFileError, match=r"shape \(1000, 3, 16, 16\), expected \(1400, 3, 16, 16\) or \(10, 3, 16, 16\)"):
        loaded(perturbation=str(tmp_path / "noise.pt"))
