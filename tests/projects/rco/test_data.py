"""Data modules: layouts as they lie on disk, parts held out, augmentation, and what is refused."""

import shutil
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from helpers.layouts import save_picture, write_cifar10, write_cifar100, write_class_folder, write_imagenet
from PIL import Image
from scipy.io import savemat
from torchvision.transforms.v2 import functional as F

import shared.data.base
import shared.distributed
from projects.rco import data as rco_data
from projects.rco.data import DistillationData
from projects.rco.sets import Files, Part, Samples, divide
from shared.data.crops import crop_and_flip
from shared.data.files import BadFileError


def loaded(**options):
    data = DistillationData(**options)
    data.prepare_data()
    data.setup()
    return data


def joined(loader):
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def write_vectors(path, **changes):
    random = np.random.default_rng(0)
    arrays = {"x_train": random.normal(size=(20, 3)), "y_train": np.arange(20) % 4, "x_test": random.normal(size=(8, 3)), "y_test": np.arange(8) % 4}
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return str(path)


def write_flat_imagenet(root, numbers=(1, 2, 3, 4)):
    """Flat validation images; answers of the kit are IDs, which are not in the order of the WordNet ids."""
    write_imagenet(root, classes=3, per_class=2)
    for file in (root / "val").rglob("*.JPEG"):
        file.unlink()
    for number in numbers:
        save_picture(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 40, 50, seed=number)
    wnids = sorted(folder.name for folder in (root / "train").glob("n*") if folder.is_dir())
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n3\n1\n2\n")
    rows = [(1, wnids[2], "c", 0), (2, wnids[0], "a", 0), (3, wnids[1], "b", 0), (4, "n99999999", "whole", 3)]
    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=fields)})
    return root


# ---- what each source gives


@pytest.mark.parametrize(
    ("options", "shape", "classes"),
    [
        ({"source": "parity", "easy": 2, "length": 300}, [40], 8),
        ({"source": "tiles", "side": 5, "length": 300}, [1, 25, 40], 2),
        ({"source": "digits", "size": 16}, [1, 16, 16], 10),
    ],
    ids=["parity", "tiles", "digits"],
)
def test_small_worlds_need_no_files(options, shape, classes):
    data = DistillationData(**options, held_out=100)
    assert (data.shape, data.classes) == (shape, classes), "known before any setup"
    data.setup()
    assert len(data.class_names) == classes
    assert not data.is_augmented
    assert data.protocol is None
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert list(batch["input"].shape) == [64, *shape]
    assert batch["input"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    assert int(batch["label"].max()) < classes
    torch.testing.assert_close(batch["input"], data.finish(Part(data.train_set, batch["index"]).__getitems__(range(64)), False)["input"])
    assert len(data.held_set) == 100
    first = data.train_set
    data.setup()
    assert data.train_set is first


def test_a_loader_gives_every_sample_once_and_in_the_next_epoch_in_another_order():
    data = loaded(length=256, held_out=0)
    loader = data.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append(joined(loader)["index"].tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(256))
    assert orders[0] != orders[1]
    assert joined(data.ordered("train"))["index"].tolist() == list(range(256))
    assert data.held_set is None
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"data\.held_out"):
        data.ordered("held")


def test_a_loader_goes_on_in_the_middle_of_an_epoch():
    data = loaded(length=640)
    loader = data.train_dataloader()
    whole = [batch["index"].tolist() for batch in loader]
    passing = iter(loader)
    for _ in range(3):
        next(passing)
    resumed = loaded(length=640).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert [batch["index"].tolist() for batch in resumed] == whole[3:]


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_as_its_archive_holds_it(tmp_path, classes):
    write = write_cifar10 if classes == 10 else write_cifar100
    write(tmp_path)
    data = loaded(source=f"cifar{classes}", root=str(tmp_path), batch_size=4)
    assert (data.shape, data.classes, len(data.class_names)) == ([3, 32, 32], classes, classes)
    assert data.is_augmented
    assert data.train_set.inputs.dtype == torch.uint8
    batch = next(iter(data.test_dataloader()))
    mean, std = (np.array(numbers)[:, None, None] for numbers in rco_data._NORMALISATION[data.source])
    expected = (data.test_set.inputs.numpy() / 255 - mean) / std
    np.testing.assert_allclose(data.finish(batch, augment=False)["input"].numpy(), expected, atol=1e-5)


def test_imagenet_in_folders_of_classes(tmp_path):
    write_imagenet(tmp_path, classes=3, per_class=2)
    data = DistillationData(source="imagenet", root=str(tmp_path), size=28, batch_size=2)
    assert (data.shape, data.classes) == ([3, 28, 28], 3)
    data.setup()
    assert data.class_names == sorted(data.class_names)
    assert len(data.train_set) == 6
    test = joined(data.test_dataloader())
    assert test["label"].tolist() == [0, 1, 2]
    assert test["input"].dtype == torch.uint8
    image = F.pil_to_tensor(Image.open(data.test_set.paths[1]).convert("RGB"))
    expected = F.center_crop(F.resize(image, [32], antialias=True), [28, 28])
    assert (test["input"][1].int() - expected.int()).abs().max() <= 1


def test_imagenet_as_flat_files_with_the_development_kit(tmp_path):
    data = loaded(source="imagenet", root=str(write_flat_imagenet(tmp_path)), size=28)
    assert joined(data.test_dataloader())["label"].tolist() == [0, 1, 2, 0]


def test_imagenet_as_flat_files_whose_names_tell_their_classes(tmp_path):
    root = write_flat_imagenet(tmp_path)
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    wnids = sorted(folder.name for folder in (root / "train").glob("n*") if folder.is_dir())
    for file, wnid in zip(sorted((root / "val").glob("*.JPEG")), (wnids[1], wnids[1], wnids[2], wnids[0]), strict=True):
        file.rename(file.with_name(f"{file.stem}_{wnid}.JPEG"))
    data = loaded(source="imagenet", root=str(root), size=28)
    assert joined(data.test_dataloader())["label"].tolist() == [1, 1, 2, 0]


def test_imagenet_as_kaggle_has_it(tmp_path):
    root = write_flat_imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    wnids = sorted(folder.name for folder in (root / "train").glob("n*") if folder.is_dir())
    with pytest.raises(FileNotFoundError, match=r"put Kaggle's LOC_val_solution\.csv there"):
        loaded(source="imagenet", root=str(root), size=28)
    rows = [f"ILSVRC2012_val_{number:08d},{wnids[label]} 10 20 30 40 " for number, label in ((3, 1), (1, 2), (4, 0), (2, 2))]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    data = loaded(source="imagenet", root=str(root), size=28)
    assert joined(data.test_dataloader())["label"].tolist() == [2, 2, 1, 0]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows[:2]]))
    with pytest.raises(BadFileError, match=r"LOC_val_solution\.csv does not list ILSVRC2012_val_00000002\.JPEG"):
        loaded(source="imagenet", root=str(root), size=28)


def test_random_crops_are_a_function_of_epoch_and_sample(tmp_path):
    write_imagenet(tmp_path, classes=3, per_class=2)

    def epochs(workers):
        data = loaded(source="imagenet", root=str(tmp_path), size=28, batch_size=2, num_workers=workers, held_out=2)
        loader = data.train_dataloader()
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batches = joined(loader)
            order = batches["index"].argsort()
            assert batches["index"][order].tolist() == [0, 1, 2, 3]
            assert torch.equal(batches["label"][order], data.train_set.labels)
            found.append(batches["input"][order])
        assert torch.equal(joined(data.ordered("train"))["input"], joined(data.ordered("train"))["input"]), "plain ones are not cropped at random"
        return found

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = epochs(0)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(2)
    again = epochs(0)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    torch.set_rng_state(state)
    files = loaded(source="imagenet", root=str(tmp_path), size=28).train_set
    files.recropped(0)[3]
    assert torch.equal(torch.get_rng_state(), state), "reading takes no numbers from the global generator"


def test_a_folder_of_classes(tmp_path):
    for split, count in (("train", 5), ("test", 2)):
        write_class_folder(tmp_path / split, per_class=count)
    data = DistillationData(source="folder", root=str(tmp_path), size=16, batch_size=2, held_out=0.4)
    assert (data.shape, data.classes) == ([3, 16, 16], 2)
    data.setup()
    assert data.class_names == ["cat", "dog"]
    assert joined(data.val_dataloader())["label"].sort().values.tolist() == [0, 0, 1, 1]
    assert joined(data.test_dataloader())["input"].shape == (4, 3, 16, 16)
    assert isinstance(data.test_set, Files)


def test_vectors_in_an_npz_file(tmp_path):
    data = loaded(source="vectors", root=write_vectors(tmp_path / "v.npz"), batch_size=4)
    assert (data.shape, data.classes, data.class_names) == ([3], 4, ["0", "1", "2", "3"])
    with np.load(tmp_path / "v.npz") as arrays:
        np.testing.assert_allclose(joined(data.ordered("train"))["input"].numpy(), arrays["x_train"], rtol=1e-6)
        assert joined(data.ordered("test"))["label"].tolist() == arrays["y_test"].tolist()


def test_drawn_faces_are_bytes_that_are_mirrored_if_asked():
    data = loaded(source="drawn_faces", size=16, people=4, shots=8, batch_size=8, augment=True, held_out=4)
    assert (data.shape, data.classes, len(data.class_names)) == ([3, 16, 16], 4, 4)
    assert data.protocol is not None
    assert sorted(joined(data.val_dataloader())["label"].tolist()) == [0, 1, 2, 3]
    data.trainer = SimpleNamespace(training=True, global_step=5, accumulate_grad_batches=1)
    batch = next(iter(data.train_dataloader()))
    mirrored = data.shifts(8, 5)[:, 2].bool()
    expected = torch.where(mirrored[:, None, None, None], batch["input"].flip(-1), batch["input"]).float() / 127.5 - 1
    torch.testing.assert_close(data.on_after_batch_transfer(batch, 0)["input"], expected)


def test_identities_in_folders(tmp_path):
    for part, people in (("train", ("ann", "bob", "cy")), ("probes", ("dee", "cy"))):
        write_class_folder(tmp_path / part, people)
    write_class_folder(tmp_path / "distractors", ("x",))
    data = DistillationData(source="identities", root=str(tmp_path), size=16, batch_size=2)
    assert (data.shape, data.classes) == ([3, 16, 16], 2), "cy is tested on, and so not learned"
    data.setup()
    assert data.class_names == ["ann", "bob"]
    batch = next(iter(data.train_dataloader()))
    torch.testing.assert_close(data.finish(batch, augment=False)["input"], batch["input"] * 2 - 1)
    assert data.protocol is not None
    assert joined(data.test_dataloader())["index"].tolist() == list(range(len(data.test_set)))


# ---- what is held out


def test_held_out_samples_are_disjoint_stratified_and_in_random_order():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    kept, held = divide(labels, 10, seed=0)
    assert sorted(kept.tolist() + held.tolist()) == list(range(100))
    assert torch.bincount(labels[held]).tolist() == [5, 3, 2]
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() != sorted(held.tolist())
    assert torch.equal(divide(labels, 10, seed=0)[1], held)
    assert not torch.equal(divide(labels, 10, seed=1)[1], held)


@pytest.mark.parametrize("count", [0, 1, 7, 33, 99])
def test_quotas_are_within_one_of_proportion(count):
    labels = torch.randint(7, (100,), generator=torch.Generator().manual_seed(0))
    _, held = divide(labels, count, seed=0)
    assert len(held) == count
    exact = torch.bincount(labels, minlength=7) * count / 100
    assert ((torch.bincount(labels[held], minlength=7) - exact).abs() < 1).all()


@pytest.mark.parametrize(("held_out", "count"), [(0.1, 140), (25, 25)])
def test_held_out_is_a_number_or_a_part(held_out, count):
    data = loaded(source="digits", held_out=held_out)
    train, held = joined(data.ordered("train")), joined(data.ordered("held"))
    assert len(held["label"]) == count
    assert len(train["label"]) == 1400 - count
    assert train["index"].tolist() == list(range(1400 - count)), "samples are counted anew"
    pixels = torch.cat([train["input"], held["input"]]).flatten(1)
    assert len({tuple(row) for row in pixels.tolist()}) == len({tuple(row) for row in loaded(source="digits").train_set.inputs.flatten(1).tolist()})
    seen = joined(data.train_dataloader())["index"]
    assert int(seen.max()) < 1400 - count


# ---- augmentation


def cifar_like(monkeypatch, tmp_path, **options):
    monkeypatch.setattr(DistillationData, "_cifar", lambda self: (Samples(*images(64)), None, Samples(*images(8))))
    return loaded(source="cifar100", root=str(tmp_path), batch_size=16, **options)


def images(count):
    random = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8), torch.arange(count) % 4


def test_augmentation_is_the_crop_and_flip_of_each_image(monkeypatch, tmp_path):
    data = cifar_like(monkeypatch, tmp_path)
    data.trainer = SimpleNamespace(training=True, global_step=7, accumulate_grad_batches=1)
    batch = next(iter(data.train_dataloader()))
    shifts = data.shifts(16, 7).tolist()
    expected = []
    for image, (top, left, is_mirrored) in zip(batch["input"], shifts, strict=True):
        cut = F.crop(F.pad(image, [4, 4, 4, 4]), top, left, 32, 32)
        expected.append(normalised(F.horizontal_flip(cut) if is_mirrored else cut))
    torch.testing.assert_close(data.on_after_batch_transfer(batch, 0)["input"], torch.stack(expected))
    torch.testing.assert_close(data.finish(batch, augment=False)["input"], normalised(batch["input"]))
    assert not torch.equal(data.shifts(16, 7), data.shifts(16, 8))


def normalised(pixels):
    return F.normalize(pixels.float() / 255, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


class Watcher(L.LightningModule):
    """Keeps what it is shown; its one number is trained."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_augments_training_batches_only(monkeypatch, tmp_path):
    data = cifar_like(monkeypatch, tmp_path, held_out=16)
    watcher = Watcher()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=2, **options)
    trainer.fit(watcher, datamodule=data)
    trainer.test(watcher, datamodule=data, verbose=False)
    assert len(watcher.seen["train"]) == 2 * 3
    for step, batch in enumerate(watcher.seen["train"]):
        plain = Part(data.train_set, batch["index"]).__getitems__(range(16))["input"]
        expected = normalised(crop_and_flip(plain, data.shifts(16, step), 4))
        torch.testing.assert_close(batch["input"], expected)
    for which, dataset in (("val", data.held_set), ("test", data.test_set)):
        for batch in watcher.seen[which]:
            plain = Part(dataset, batch["index"]).__getitems__(range(len(batch["index"])))["input"]
            torch.testing.assert_close(batch["input"], normalised(plain))


def test_shifts_take_every_value_equally_often(monkeypatch, tmp_path):
    shifts = cifar_like(monkeypatch, tmp_path).shifts(9000, 0)
    for column in range(2):
        shares = torch.bincount(shifts[:, column], minlength=9) / 9000
        torch.testing.assert_close(shares, torch.full((9,), 1 / 9), atol=0.02, rtol=0)
    assert abs(float(shifts[:, 2].float().mean()) - 0.5) < 0.03


def test_two_processes_together_see_what_one_sees(monkeypatch, tmp_path):
    data = cifar_like(monkeypatch, tmp_path)
    data.trainer = SimpleNamespace(training=True, global_step=3, accumulate_grad_batches=1)
    batch = next(iter(data.train_dataloader()))
    alone = data.on_after_batch_transfer(batch, 0)["input"]
    for rank in range(2):
        monkeypatch.setattr(shared.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(shared.distributed, "world_size", lambda: 2)
        for module in (rco_data, shared.data.base):
            monkeypatch.setattr(module, "world_size", lambda: 2)
        share = next(iter(data.train_dataloader()))
        assert share["index"].tolist() == batch["index"][rank::2].tolist()
        torch.testing.assert_close(data.on_after_batch_transfer(share, 0)["input"], alone[rank::2])


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mnist"}, "parity: sparse parity"),
        ({"source": "cifar10", "size": 16}, r"leave data\.size out"),
        ({"source": "digits", "size": 2}, "at least 4 pixels"),
        ({"augment": True}, "change the classes of parity"),
        ({"source": "digits", "augment": True}, "change the classes of digits"),
        ({"held_out": -1}, r"data\.held_out must be"),
        ({"held_out": 1.5}, r"data\.held_out must be"),
        ({"source": "digits", "noise": -0.1}, r"data\.noise"),
        ({"length": 0}, r"data\.length"),
        ({"secret": 0}, r"data\.secret is at least 1"),
        ({"secret": 30, "easy": 11}, "at most data.bits"),
        ({"source": "tiles", "bits": 30}, "rows of 8"),
        ({"source": "tiles", "side": 3}, "at least 4 pixels"),
        ({"source": "digits", "held_out": 1400}, "none of 1400"),
        ({"source": "cifar10"}, r"--data\.root"),
        ({"batch_size": 0}, r"data\.batch_size"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        loaded(**options)


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ValueError, match="fewer than a batch of 64"):
        loaded(length=32).train_dataloader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks x_test"),
        ({"x_train": np.zeros(20)}, r"shape \(N, n\)"),
        ({"x_train": np.array([["a"] * 3] * 20)}, "expected numbers"),
        ({"x_train": np.array([[{}] * 3] * 20)}, "allow_pickle"),
        ({"y_train": np.zeros(19, int)}, r"shape \(20,\)"),
        ({"y_train": np.zeros(20)}, "whole numbers"),
        ({"y_train": np.zeros(20, int)}, "one class only"),
        ({"y_train": np.arange(20) % 2 * 2}, "no row of class 1"),
        ({"y_train": np.arange(20) - 1}, "negative labels in 1 rows, such as 0"),
        ({"y_test": np.full(8, 4)}, "y_test has the class 4"),
        ({"x_test": np.zeros((8, 2))}, "x_train has 3 columns and x_test 2"),
        ({"x_train": np.where(np.eye(20, 3) > 0, np.nan, 1.0)}, "NaN or infinite values in 3 rows, such as 0, 1, 2"),
        ({"x_test": np.full((8, 3), np.inf)}, "x_test has NaN or infinite values in 8 rows"),
    ],
    ids=["missing", "flat", "text", "objects", "lengths", "floats", "one", "gap", "negative", "unknown", "columns", "nan", "inf"],
)
def test_bad_vectors_are_named(tmp_path, changes, message):
    with pytest.raises(BadFileError, match=message):
        loaded(source="vectors", root=write_vectors(tmp_path / "v.npz", **changes))


def test_damaged_and_missing_files_of_vectors_are_named(tmp_path):
    path = tmp_path / "v.npz"
    with pytest.raises(FileNotFoundError, match=r"no file .*v\.npz"):
        loaded(source="vectors", root=str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(BadFileError, match=r"cannot use .*v\.npz"):
        loaded(source="vectors", root=str(path))
    write_vectors(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadFileError, match=r"cannot use .*v\.npz"):
        loaded(source="vectors", root=str(path))


def test_what_is_missing_or_bad_in_folders_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*train/<wnid>"):
        loaded(source="imagenet", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cifar-100-python"):
        loaded(source="cifar100", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="train does not exist"):
        loaded(source="folder", root=str(tmp_path))
    for split in ("train", "test"):
        write_class_folder(tmp_path / split, ("cat",))
    with pytest.raises(ValueError, match="train has the class cat alone"):
        loaded(source="folder", root=str(tmp_path))
    write_class_folder(tmp_path / "train", ("dog",))
    write_class_folder(tmp_path / "test", ("cow",))
    with pytest.raises(ValueError, match="test has the classes cow"):
        loaded(source="folder", root=str(tmp_path))
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "dog")
    save_picture(tmp_path / "train" / "cat" / "bad.png", 20, 16).write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"bad\.png"):
        loaded(source="folder", root=str(tmp_path))
    assert len(loaded(source="folder", root=str(tmp_path), on_bad_file="skip").train_set) == 6
    for file in (tmp_path / "train" / "cat").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no image of the classes cat"):
        loaded(source="folder", root=str(tmp_path), on_bad_file="skip")


def test_odd_imagenet_folders_are_named(tmp_path):
    root = write_flat_imagenet(tmp_path, numbers=(1, 2, 9))
    with pytest.raises(BadFileError, match="line 9 of"):
        loaded(source="imagenet", root=str(root))
    (root / "val" / "ILSVRC2012_val_00000009.JPEG").unlink()
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    content = (kit / "meta.mat").read_bytes()
    (kit / "meta.mat").write_bytes(content[:200])
    with pytest.raises(BadFileError, match=r"meta\.mat"):
        loaded(source="imagenet", root=str(root))
    (kit / "meta.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"unpack ILSVRC2012_devkit_t12\.tar\.gz there"):
        loaded(source="imagenet", root=str(root))
    save_picture(root / "val" / "n12345678" / "a.JPEG", 30, 30)
    with pytest.raises(FileNotFoundError, match=r"2 images in .* itself and 1 in folders"):
        loaded(source="imagenet", root=str(root))
    for file in (root / "val").glob("*.JPEG"):
        file.unlink()
    with pytest.raises(ValueError, match=r"n12345678, which .*train lacks"):
        loaded(source="imagenet", root=str(root))
    (root / "train" / "n00000001").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in n00000001"):
        loaded(source="imagenet", root=str(root))
