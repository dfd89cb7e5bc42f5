import pytest
import torch
from helpers.layouts import save_picture, write_cifar10, write_class_folder

from projects.drs.data import CertificationData, on_grid


def loaded(**options):
    data = CertificationData(**options)
    data.prepare_data()
    data.setup()
    return data


def write_imagenet(root, per_class=3):
    for split in ("train", "val"):
        for label, name in enumerate(("n01440764", "n01443537")):
            for number in range(per_class):
                save_picture(root / split / name / f"{name}_{number}.JPEG", 60 + 10 * number, 80, seed=10 * label + number)
    return root


@pytest.mark.parametrize("source", ["digits", "shapes"])
def test_offline_worlds(source):
    data = loaded(source=source, channels=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (64, 1, 16, 16)
    assert len(data.class_names) == {"digits": 10, "shapes": 4}[source]


def test_cifar_as_its_archive_holds_it(tmp_path):
    write_cifar10(tmp_path)
    data = loaded(source="cifar10", root=str(tmp_path), size=32, channels=3, batch_size=4, skip=2)
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 32, 32)
    assert next(iter(data.certification_loader()))["index"].tolist() == [0, 2]
    assert data.class_names[:2] == ["airplane", "automobile"]


def test_imagenet_as_it_is_unpacked(tmp_path):
    data = loaded(source="imagenet", root=str(write_imagenet(tmp_path)), size=56, channels=3, batch_size=2)
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 56, 56)
    [batch] = data.certification_loader()
    assert batch["image"].shape == (6, 3, 56, 56)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(batch["image"], on_grid(batch["image"]))
    torch.manual_seed(0)
    crops = [data.train_set[0]["image"] for _ in range(2)]
    assert not torch.equal(*crops)
    data.split = "train"
    assert torch.equal(data.certified_set()[0]["image"], data.certified_set()[0]["image"]), "images to certify are not cropped at random"


def test_a_folder_of_classes(tmp_path):
    for split in ("train", "test"):
        write_class_folder(tmp_path / split)
    data = loaded(source="folder", root=str(tmp_path), size=16, channels=3, batch_size=2)
    assert data.class_names == ["cat", "dog"]
    [batch] = data.certification_loader()
    assert batch["image"].shape == (6, 3, 16, 16)
    assert torch.equal(batch["image"], on_grid(batch["image"])), "resized images, too, can be certified with noise on the grid"


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({"skip": 100}, [0, 100, 200, 300]),
        ({"skip": 100, "limit": 2}, [0, 100]),
        ({"start": 50, "stop": 201, "skip": 50}, [50, 100, 150, 200]),
        ({"start": 395}, [395, 396]),
    ],
)
def test_which_images_are_certified(options, indices):
    batches = list(loaded(**options).certification_loader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == indices


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "cifar10"}, "set data.size to 32"),
        ({"source": "imagenet"}, "in colour"),
        ({"source": "mnist"}, "digits: scikit-learn"),
        ({"channels": 2}, "1 or 3"),
        ({"skip": 0}, "at least 1"),
        ({"split": "val"}, "train or test"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CertificationData(**options)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train"):
        loaded(source="imagenet", root=str(tmp_path), size=56, channels=3)
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        loaded(source="cifar10", root=str(tmp_path), size=32, channels=3)
    with pytest.raises(ValueError, match="leave none of 397 images"):
        loaded(start=500).certified_set()
    write_class_folder(tmp_path / "train", ("cat", "dog"))
    write_class_folder(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(ValueError, match="cow, dog are in one of them only"):
        loaded(source="folder", root=str(tmp_path), size=16, channels=3)
    save_picture(tmp_path / "test" / "cat" / "bad.png", 20, 16).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png"):
        loaded(source="folder", root=str(tmp_path), size=16, channels=3)
