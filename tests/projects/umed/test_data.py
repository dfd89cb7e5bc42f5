"""The real layouts in miniature, with the odd cases they are known for, and the messages for what is missing or does not fit."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from helpers.segmentation import (
    disc,
    save,
    textured,
    write_acdc,
    write_busi,
    write_covid,
    write_glas,
    write_isic,
    write_kvasir,
    write_masked_folder,
)
from PIL import Image

from projects.umed.data import ProtectionData
from shared.data.files import BadFileError


def loaded(**options):
    data = ProtectionData(**({"size": 32} | options))
    data.prepare_data()
    data.setup()
    return data


def names(data):
    return [set(part.names) for part in (data.train_set, data.val_set, data.test_set)]


def counts(data):
    return tuple(len(part) for part in (data.train_set, data.val_set, data.test_set))


@pytest.mark.parametrize(
    ("options", "shape", "classes"),
    [({}, (1, 32, 32), 1), ({"channels": 3, "classes": 2, "size": 48}, (3, 48, 48), 2), ({"source": "micrographs", "channels": 3}, (3, 32, 32), 1)],
)
def test_offline_worlds(options, shape, classes):
    data = loaded(**({"length": 20, "test_length": 10} | options))
    assert data.image_shape == shape
    assert data.class_count == classes == len(data.class_names)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, *shape)
    assert batch["image"].dtype == torch.uint8
    ordered = list(data.ordered_loader())
    assert torch.cat([batch["index"] for batch in ordered]).tolist() == list(range(len(data.train_set)))
    assert sum(len(batch["index"]) for batch in data.test_dataloader()) == len(data.test_set)
    assert not set.intersection(*names(data))
    if "source" not in options:
        assert counts(data) == (20, 5, 10)


def test_part_of_the_training_images():
    data = loaded(length=40, fraction=0.25)
    assert len(data.train_set) == 10
    assert set(data.train_set.names) < set(loaded(length=40, fraction=0.5).train_set.names)


def test_busi(tmp_path):
    root = write_busi(tmp_path)
    data = loaded(source="busi", root=str(root), channels=1)
    everything = set.union(*names(data))
    assert sum(counts(data)) == len(everything) == 13, "without the two normal ones"
    assert everything == {*(f"benign/benign ({n}).png" for n in range(1, 9)), *(f"malignant/malignant ({n}).png" for n in range(1, 6))}
    where = [part for part in names(data) if part & {"benign/benign (1).png", "malignant/malignant (1).png"}]
    assert len(where) == 1, "one lesion that is stored as benign and as malignant is in one split"
    assert loaded(source="busi", root=str(root / "Dataset_BUSI_with_GT")).train_set.names == data.train_set.names
    joined = data.all_files().original(1)
    assert joined.name == "benign/benign (2).png", "counted, not by letters"
    assert joined.mask[:5, :5].all()
    assert joined.mask[-4:].all()
    assert int(joined.mask.sum()) > 25 + 4 * 64


def test_busi_with_normal_images(tmp_path):
    data = loaded(source="busi", root=str(write_busi(tmp_path)), with_empty=True)
    assert sum(counts(data)) == 15
    assert len(data.all_files()) == 15
    empty = next(index for index, name in enumerate(data.all_files().names) if name.startswith("normal"))
    assert not data.all_files().original(empty).mask.any()


def test_busi_with_files_missing(tmp_path):
    folder = write_busi(tmp_path) / "Dataset_BUSI_with_GT"
    (folder / "benign" / "benign (3)_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images have no mask[\s\S]*benign \(3\)_mask.png beside it"):
        loaded(source="busi", root=str(tmp_path))
    (folder / "benign" / "benign (3).png").unlink()
    (folder / "benign" / "benign (4).png").unlink()
    with pytest.raises(ValueError, match=r"1 masks belong to no image:[\s\S]*benign \(4\)_mask.png"):
        loaded(source="busi", root=str(tmp_path))


def test_kvasir(tmp_path):
    data = loaded(source="kvasir", root=str(write_kvasir(tmp_path)), channels=3)
    assert counts(data) == (7, 1, 2)
    assert data.image_shape == (3, 32, 32)
    everything = data.all_files()
    for index in range(10):
        assert everything.names[index] == f"cju{index}.jpg"
        original = everything.original(index)
        assert original.levels.shape == (3, 40 + index, 50)
        wrong = (original.mask.numpy() > 0) != disc(40 + index, 50, index)
        assert wrong.mean() < 0.01, "the JPEG's grey edge is cut in the middle"
        assert np.array_equal(
            original.levels.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "Kvasir-SEG" / "images" / f"cju{index}.jpg"))
        )


def in_itself(folder):
    """Put a folder into one of the same name, as archives of Kaggle have it."""
    inside = folder.rename(folder.with_name("moved"))
    folder.mkdir()
    inside.rename(folder / folder.name)


@pytest.mark.parametrize("source", ["kvasir", "isic", "glas", "covid"])
def test_folders_may_lie_in_one_of_the_same_name(tmp_path, source):
    write = {"kvasir": write_kvasir, "isic": write_isic, "glas": write_glas, "covid": write_covid}[source]
    plain, twice = write(tmp_path / "plain"), write(tmp_path / "twice")
    if source == "glas":
        (twice / "Warwick QU Dataset (Released 2016_07_08)").rename(twice / "Warwick_QU_Dataset")
    for folder in sorted(twice.iterdir()) if source != "covid" else ():
        in_itself(folder)
    found, expected = (loaded(source=source, root=str(root)) for root in (twice, plain))
    assert [name.rpartition("/")[2] for name in found.train_set.names] == [name.rpartition("/")[2] for name in expected.train_set.names]
    assert torch.equal(found.train_set.masks, expected.train_set.masks)
    assert counts(found) == counts(expected)


def test_lungs_are_those_of_the_larger_set_where_that_is_there(tmp_path):
    smaller, larger = write_covid(tmp_path) / "Infection Segmentation Data", tmp_path / "Lung Segmentation Data"
    write_covid(tmp_path / "other", 4)
    (tmp_path / "other" / "Infection Segmentation Data").rename(larger)
    (larger / "Infection Segmentation Data").rename(larger / "Lung Segmentation Data")
    for folder in larger.glob("*/*/*/infection masks"):
        shutil.rmtree(folder)
    for root in (tmp_path, larger, larger / "Lung Segmentation Data"):
        assert counts(loaded(source="covid", root=str(root), region="lung")) == (12, 12, 12)
    assert counts(loaded(source="covid", root=str(smaller), region="lung")) == (9, 9, 9)
    assert counts(loaded(source="covid", root=str(tmp_path))) == (3, 3, 3)


@pytest.mark.parametrize(("place", "word"), [("masks/0", ""), ("masks/0", "_mask"), ("masks", "_segmentation")])
def test_masks_may_have_a_word_behind_their_names_and_lie_in_a_folder_of_their_class(tmp_path, place, word):
    for number in range(10):
        save(tmp_path / "images" / f"benign ({number}).png", textured(32, 32, 3, number))
        save(tmp_path / place / f"benign ({number}){word}.png", disc(32, 32, number))
    everything = loaded(source="folder", root=str(tmp_path), channels=3).all_files()
    assert all(np.array_equal(everything.original(number).mask.numpy(), disc(32, 32, number)) for number in range(10))
    if place == "masks/0":
        save(tmp_path / "masks" / "1" / "benign (0).png", disc(32, 32, 0))
        with pytest.raises(FileNotFoundError, match="10 images have no mask"):  # one folder for each of several classes
            loaded(source="folder", root=str(tmp_path), channels=3)


def test_kvasir_with_files_missing(tmp_path):
    write_kvasir(tmp_path)
    (tmp_path / "Kvasir-SEG" / "masks" / "cju3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"cju3.jpg: no .*masks/cju3\.\*"):
        loaded(source="kvasir", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist: expected .*images/<name>.png"):
        loaded(source="kvasir", root=str(tmp_path / "nowhere"))


def test_isic(tmp_path):
    root = write_isic(tmp_path)
    data = loaded(source="isic", root=str(root), channels=3)
    assert counts(data) == (6, 2, 3)
    assert all(name.startswith("ISIC2018_Task1-2_Training_Input/ISIC_") and name.endswith(".jpg") for name in data.train_set.names)
    for folder in ("Validation", "Test"):
        (root / f"ISIC2018_Task1-2_{folder}_Input").rename(root / f"{folder} elsewhere")
    assert counts(loaded(source="isic", root=str(root))) == (4, 1, 1), "the training part alone is split"
    with pytest.raises(FileNotFoundError, match=r"no ISIC-2018 in .*Training_GroundTruth"):
        loaded(source="isic", root=str(tmp_path / "nowhere"))
    next((root / "ISIC2018_Task1_Training_GroundTruth").glob("*.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images have no mask[\s\S]*_segmentation.png"):
        loaded(source="isic", root=str(root))


def test_covid(tmp_path):
    root = write_covid(tmp_path)
    data = loaded(source="covid", root=str(root))
    assert counts(data) == (3, 3, 3), "only COVID-19 has infection"
    assert data.train_set.names[0] == "Train/COVID-19/covid-19_0.png"
    assert counts(loaded(source="covid", root=str(root / "Infection Segmentation Data"), region="lung")) == (9, 9, 9)
    assert counts(loaded(source="covid", root=str(root), with_empty=True)) == (9, 9, 9)
    assert len(data.all_files()) == 27
    with pytest.raises(ValueError, match="infection or lung"):
        loaded(source="covid", root=str(root), region="heart")
    with pytest.raises(FileNotFoundError, match=r"no images in .*Train: expected"):
        loaded(source="covid", root=str(tmp_path / "nowhere"))


def test_glas(tmp_path):
    data = loaded(source="glas", root=str(write_glas(tmp_path)), channels=3)
    assert counts(data) == (6, 2, 5)
    assert data.test_set.names == ["testA_1.bmp", "testA_2.bmp", "testA_3.bmp", "testB_1.bmp", "testB_2.bmp"]
    assert not set(data.train_set.groups) & set(data.val_set.groups), "split by patient"
    assert data.train_set.classes == int(data.train_set.masks.max()) == 1, "instances are one class"
    (tmp_path / "Warwick QU Dataset (Released 2016_07_08)" / "train_2_anno.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"no train_2_anno.bmp beside it"):
        loaded(source="glas", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"does not exist: expected train_1.bmp"):
        loaded(source="glas", root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("source", "name", "ending", "word"), [("glas", "GlaS", ".bmp", "_anno"), ("monuseg", "MoNuSeg", ".tif", "")])
def test_histology_is_read_as_uctransnet_hands_it_on(tmp_path, source, name, ending, word):
    for split, count in (("Train", 8), ("Val", 2), ("Test", 3)):
        for number in range(count):
            stem = f"{split}-{number}"
            save(tmp_path / name / f"{split}_Folder" / "img" / f"{stem}{ending if split == 'Test' else '.png'}", textured(32, 32, 3, number))
            save(tmp_path / name / f"{split}_Folder" / "labelcol" / f"{stem}{word}.png", disc(32, 32, number).astype(np.uint8) * (number + 1))
    data = loaded(source=source, root=str(tmp_path), channels=3)
    assert counts(data) == (8, 2, 3)
    assert data.test_set.names == [f"Test_Folder/Test-{number}{ending}" for number in range(3)]
    assert data.all_files().original(3).mask.sum() == disc(32, 32, 3).sum(), "instances are numbered from 1"
    shutil.rmtree(tmp_path / name / "Val_Folder")
    assert counts(loaded(source=source, root=str(tmp_path / name), channels=3)) == (7, 1, 3)
    (tmp_path / name / "Test_Folder" / "labelcol" / f"Test-1{word}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images have no mask in .*Test_Folder:[\s\S]*Test-1\S+: no .*labelcol/Test-1"):
        loaded(source=source, root=str(tmp_path), channels=3)
    (tmp_path / name / "Train_Folder").rename(tmp_path / name / "training")
    with pytest.raises(FileNotFoundError, match=r"expected .*Train_Folder/(img/<name>|\{img,labelcol\})"):
        loaded(source=source, root=str(tmp_path), channels=3)


def test_acdc(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    data = loaded(source="acdc", root=str(write_acdc(tmp_path)), size=24)
    assert counts(data) == (2 * 6, 6, 6), "two frames of three slices with labels, split by patient"
    assert len({*data.train_set.groups, *data.val_set.groups, *data.test_set.groups}) == 4
    assert data.class_names == ["right ventricle", "myocardium", "left ventricle"]
    assert {int(value) for value in data.train_set.masks.unique()} == {0, 1, 2, 3}
    everything = data.all_files()
    assert len(everything) == 4 * 2 * 4
    assert everything.names[1] == "train/patient001/patient001_frame01_z01.nii.gz"
    volume = np.asarray(nibabel.load(tmp_path / "database/training/patient001/patient001_frame01.nii.gz").dataobj)
    original = everything.original(1)
    assert np.array_equal(original.levels[0].numpy(), volume[..., 1])
    assert original.window == tuple(np.percentile(volume, [1, 99])), "of the volume, not of the slice"
    assert original.bits == 16
    with_test = loaded(source="acdc", root=str(write_acdc(tmp_path / "both", 8, 2) / "database"), size=24)
    assert counts(with_test) == (7 * 6, 6, 12)


def test_acdc_as_kaggle_unpacks_it(tmp_path):
    pytest.importorskip("nibabel")
    expected = loaded(source="acdc", root=str(write_acdc(tmp_path / "plain")), size=24)
    for path in sorted(write_acdc(tmp_path / "ACDC").rglob("*.nii.gz")):
        folder = path.with_suffix("")
        folder.mkdir()
        (folder / ("DCM04-OH-AL_V2_1.nii" if "_gt" in path.name else "DCM04Gate1.nii")).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    found = loaded(source="acdc", root=str(tmp_path), size=24)
    assert [f"{name}.gz" for name in found.train_set.names] == expected.train_set.names
    assert torch.equal(found.train_set.masks, expected.train_set.masks)
    assert torch.equal(found.test_set.images, expected.test_set.images)
    first = tmp_path / "ACDC/database/training/patient001/patient001_frame01.nii"
    shutil.copy(first / "DCM04Gate1.nii", first / "DCM04Gate2.nii")
    with pytest.raises(BadFileError, match=r"patient001_frame01\.nii holds several volumes, DCM04Gate1\.nii, DCM04Gate2\.nii: keep the one"):
        loaded(source="acdc", root=str(tmp_path))


def test_volumes_of_floats_and_of_negative_numbers(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from projects.umed.sets.volumes import read_volume

    values = np.random.default_rng(0).normal(0, 100, (6, 5, 4))
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / "float.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.round(values).astype(np.float32), np.eye(4)), tmp_path / "whole.nii")
    nibabel.save(nibabel.Nifti1Image(np.round(values).astype(np.int16), np.eye(4)), tmp_path / "int.nii")
    for name, step in (("float.nii.gz", (values.max() - values.min()) / 65535), ("whole.nii", 1), ("int.nii", 1)):
        found = read_volume(tmp_path / name)
        assert found.levels.min() == 0
        assert found.scale == pytest.approx(step, rel=1e-5)
        expected = values if name.startswith("float") else np.round(values)
        np.testing.assert_allclose(found.offset + found.scale * found.levels, expected, atol=0.51 * step if step < 1 else 0)


def test_bad_volumes_are_named(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    write_acdc(tmp_path, 3)
    path = tmp_path / "database/training/patient002/patient002_frame01.nii.gz"
    whole = path.read_bytes()
    values = np.asarray(nibabel.load(path).dataobj, np.float32)
    values[3, 3, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    with pytest.raises(BadFileError, match=r"patient002_frame01.nii.gz holds NaN"):
        loaded(source="acdc", root=str(tmp_path))
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 4), np.int16), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"patient002_frame01.nii.gz has the shape \(9, 9, 4\), its mask"):
        loaded(source="acdc", root=str(tmp_path))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match=r"cannot read .*patient002_frame01.nii.gz"):
        loaded(source="acdc", root=str(tmp_path))
    path.write_bytes(gzip.compress(b"no volume"))
    with pytest.raises(BadFileError, match=r"cannot read .*patient002_frame01.nii.gz"):
        loaded(source="acdc", root=str(tmp_path))
    path.write_bytes(whole)
    path.with_name("patient002_frame01_gt.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 volumes have no labels[\s\S]*patient002_frame01_gt.nii.gz"):
        loaded(source="acdc", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no volumes of ACDC in .*training/patient001"):
        loaded(source="acdc", root=str(tmp_path / "nowhere"))


def test_empty_masks_are_left_out_with_a_warning(tmp_path, caplog):
    write_masked_folder(tmp_path, 10)
    save(tmp_path / "masks" / "000.png", np.zeros((32, 40), bool))
    with caplog.at_level("WARNING"):
        assert sum(counts(loaded(source="folder", root=str(tmp_path)))) == 9
    assert "1 of 10 images" in caplog.text


def test_any_folder(tmp_path):
    data = loaded(source="folder", root=str(write_masked_folder(tmp_path, ending=".jpg")))
    assert counts(data) == (7, 1, 2)
    assert "a/001.jpg" in set.union(*names(data))
    assert loaded(source="folder", root=str(tmp_path), seed=1).train_set.names != data.train_set.names


@pytest.mark.parametrize(
    ("splits", "expected"), [(("train", "val", "test"), (8, 8, 8)), (("train", "test"), (7, 1, 8)), (("train", "val"), (6, 8, 2))]
)
def test_a_folder_with_splits(tmp_path, splits, expected):
    for split in splits:
        write_masked_folder(tmp_path / split, 8)
    data = loaded(source="folder", root=str(tmp_path))
    assert counts(data) == expected
    assert all(name.startswith("train/") for name in data.train_set.names)
    assert len(set.union(*names(data))) == sum(expected)


def test_a_folder_with_a_training_part_alone_is_divided(tmp_path):
    write_masked_folder(tmp_path / "train", 10)
    assert counts(loaded(source="folder", root=str(tmp_path))) == (7, 1, 2)


def test_a_folder_with_classes(tmp_path):
    for number in range(5):
        mask = disc(32, 32, number).astype(np.uint8) * 85
        mask[:8, :8] = 170
        save(tmp_path / "images" / f"{number}.png", textured(32, 32, 1, number))
        save(tmp_path / "masks" / f"{number}.png", mask)
    data = loaded(source="folder", root=str(tmp_path), classes=2, mask_values=["85", "170"])
    assert (data.train_set.masks[:, :8, :8] == 2).all()
    assert data.class_count == 2
    with pytest.raises(BadFileError, match=r"holds 85, 170, which is no class"):
        loaded(source="folder", root=str(tmp_path), classes=3)


def test_images_of_16_bits_in_a_window(tmp_path):
    for number in range(5):
        save(tmp_path / "images" / f"{number}.png", (np.arange(1024).reshape(32, 32) * 4).astype(np.uint16))
        save(tmp_path / "masks" / f"{number}.png", disc(32, 32, number))
    data = loaded(source="folder", root=str(tmp_path), window=(0, 4095))
    expected = torch.arange(1024).reshape(1, 32, 32) * 4 / 4095 * 255
    assert (data.train_set.images[0].float() - expected).abs().max() <= 0.51
    assert data.all_files().original(0).bits == 16


def test_images_that_look_alike_stay_together(tmp_path):
    write_masked_folder(tmp_path, 6)
    for number in range(6):
        save(tmp_path / "images" / f"copy{number}.png", np.asarray(Image.open(tmp_path / "images" / f"{'a/' if number % 2 else ''}{number:03d}.png")))
        save(tmp_path / "masks" / f"copy{number}.png", disc(32, 40, number))
    parts = names(loaded(source="folder", root=str(tmp_path), join_duplicates=True))
    pairs = [{f"copy{number}.png", f"{'a/' if number % 2 else ''}{number:03d}.png"} for number in range(6)]
    assert all(any(pair <= part for part in parts) for pair in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "cifar"}, "data.source 'cifar' is not known"),
        ({"channels": 2}, "data.channels must be 1 or 3"),
        ({"size": 8}, "data.size must be at least 16"),
        ({"fraction": 0.0}, "data.fraction"),
        ({"source": "folder", "window": (5, 5)}, "data.window"),
        ({"source": "busi", "classes": 2}, "leave data.classes out"),
        ({"mask_values": ["3"]}, "for data.source folder"),
        ({"source": "folder", "classes": 2, "mask_values": ["3"]}, "data.mask_values must be 2"),
        ({"source": "busi"}, "--data.root"),
        ({"length": 8}, "data.batch_size 16 is larger"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        loaded(**options).train_dataloader()


def test_what_lies_in_a_folder_wrongly_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images does not exist: expected .*masks/<name>.png"):
        loaded(source="folder", root=str(tmp_path))
    write_masked_folder(tmp_path, 6)
    (tmp_path / "masks" / "002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images have no mask[\s\S]*002.png"):
        loaded(source="folder", root=str(tmp_path))
    (tmp_path / "images" / "002.png").unlink()
    save(tmp_path / "masks" / "extra.png", disc(9, 9))
    with pytest.raises(ValueError, match=r"1 masks belong to no image:[\s\S]*extra.png"):
        loaded(source="folder", root=str(tmp_path))
    (tmp_path / "masks" / "extra.png").unlink()
    for path in (tmp_path / "masks").rglob("*.png"):
        save(path, np.zeros((32, 40), bool))
    with pytest.raises(ValueError, match=r"the masks of all 5 images .* are empty"):
        loaded(source="folder", root=str(tmp_path))
