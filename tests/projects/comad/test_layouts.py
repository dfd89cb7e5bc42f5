"""Sets as they lie on disk: one mask for each defect with its own value, folders of any names, and what is wrong with them."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from projects.comad.data import InspectionData
from projects.comad.defects import CONFIG, WHOLE, DefectType, read_config, read_defect, write_config
from projects.comad.layouts import CATEGORIES, PICTURES, VISA_TABLE, Picture, check_sizes, read_folders, read_loco, read_visa
from shared.data.files import BadFileError

SIZE = (30, 50)  # height and width
TYPES = [  # of the category screw_bag, with 1600 x 1100 pixels
    DefectType("additional_1_nut", 249, 0.0042614 * 1600 * 1100, False),
    DefectType("missing_2_washers", 240, 11000, False),
    DefectType("bag_broken", 239, 1.0, True),
    DefectType("extra_cable", 246, 0.5, True),
]


def save(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def picture(number, size=SIZE):
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1]))


def mask(value, rows=slice(5, 15), columns=slice(10, 40), size=SIZE):
    levels = np.zeros(size, np.uint8)
    levels[rows, columns] = value
    return levels


def write_category(folder):
    """Write a miniature of a category, with a picture of two defects and one larger picture."""
    for number, name in enumerate(("train/good/000", "train/good/001", "validation/good/000", "test/good/000", "test/logical_anomalies/000")):
        save(folder / f"{name}.png", picture(number))
    save(folder / "test/logical_anomalies/001.png", picture(8, (60, 40)))
    save(folder / "test/structural_anomalies/000.png", picture(9))
    save(folder / "ground_truth/logical_anomalies/000/000.png", mask(249))
    save(folder / "ground_truth/logical_anomalies/000/001.png", mask(240, rows=slice(10, 30)))
    save(folder / "ground_truth/logical_anomalies/001/000.png", mask(246, size=(60, 40)))
    save(folder / "ground_truth/structural_anomalies/000/000.png", mask(239, slice(0, 1), slice(0, 1)))
    write_config(folder / CONFIG, TYPES)


@pytest.fixture
def loco(tmp_path):
    write_category(tmp_path / "screw_bag")
    return tmp_path


def write_folders(root, kinds=("good", "scratch", "lack"), prefix="test/"):
    for number, folder in enumerate(("train/good", *(prefix + kind for kind in kinds))):
        for name in ("a", "b", "c"):
            save(root / folder / f"{name}.png", picture(10 * number + ord(name)))


# ---- MVTec LOCO AD


def test_a_category_is_read_as_it_lies_on_disk(loco):
    catalogue = read_loco(loco, "screw_bag")
    assert catalogue.name == "screw_bag"
    assert [(each.split, each.kind, each.group, each.path.name, len(each.masks)) for each in catalogue.pictures] == [
        ("train", "good", "good", "000.png", 0),
        ("train", "good", "good", "001.png", 0),
        ("validation", "good", "good", "000.png", 0),
        ("test", "good", "good", "000.png", 0),
        ("test", "logical_anomalies", "logical", "000.png", 2),
        ("test", "logical_anomalies", "logical", "001.png", 1),
        ("test", "structural_anomalies", "structural", "000.png", 1),
    ]
    assert [each.name for each in catalogue.of("test")][1] == "logical_anomalies/000"
    assert read_loco(loco).pictures == catalogue.pictures, "the only category"
    assert read_loco(loco / "screw_bag").pictures == catalogue.pictures


def test_a_category_may_lie_in_a_folder_of_its_name(loco):
    expected = [each.name for each in read_loco(loco).pictures]
    (loco / "screw_bag").rename(loco / "moved")
    (loco / "screw_bag").mkdir()
    (loco / "moved").rename(loco / "screw_bag" / "screw_bag")
    for root, category in ((loco, "screw_bag"), (loco / "screw_bag", None)):
        assert [each.name for each in read_loco(root, category).pictures] == expected


def test_each_defect_has_its_own_mask_name_and_saturation_area(loco):
    catalogue = read_loco(loco)
    first, second = catalogue.of("test")[1].defects(catalogue.types)
    assert (first.name, second.name) == ("additional_1_nut", "missing_2_washers")
    assert np.array_equal(first.mask.numpy(), mask(1) > 0), "masks overlap and are not merged"
    assert first.mask[10:15, 10:40].all()
    assert second.mask[10:15, 10:40].all()
    assert first.saturation == first.mask.sum(), "thresholds in pixels end at the defect's own area"
    (half,) = catalogue.of("test")[2].defects(catalogue.types)
    assert half.mask.shape == (60, 40)
    assert half.saturation == half.mask.sum() // 2


@pytest.mark.parametrize(
    ("threshold", "is_relative", "area", "expected"),
    [(7500, False, 20000, 7500), (7500, False, 4000, 4000), (1.0, True, 333, 333), (0.5, True, 333, 166), (0.5, True, 1, 1), (0.9, False, 7, 1)],
)
def test_saturation_follows_mvtecs_rules_but_never_is_nought(threshold, is_relative, area, expected):
    assert DefectType("a", 1, threshold, is_relative).saturation(area) == expected


def test_a_configuration_survives_writing_and_reading(tmp_path):
    write_config(tmp_path / CONFIG, TYPES)
    lines = json.loads((tmp_path / CONFIG).read_text())
    assert lines[0] == {"defect_name": "additional_1_nut", "pixel_value": 249, "saturation_threshold": 7500, "relative_saturation": False}
    assert read_config(tmp_path / CONFIG)[239] == TYPES[2]
    assert read_config(tmp_path / CONFIG)[249].threshold == 7500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot use"),
        ('{"a": 1}', "expected a list"),
        ('[{"defect_name": "a", "pixel_value": 3, "relative_saturation": true}]', "no 'saturation_threshold'"),
        ('[{"defect_name": "a", "pixel_value": 0, "saturation_threshold": 1, "relative_saturation": true}]', "not in 1 to 255"),
        ('[{"defect_name": "a", "pixel_value": 3, "saturation_threshold": 1.5, "relative_saturation": true}]', "not in \\(0, 1\\]"),
        ('[{"defect_name": "a", "pixel_value": 3, "saturation_threshold": NaN, "relative_saturation": false}]', "number of pixels"),
        (
            json.dumps([{"defect_name": name, "pixel_value": 3, "saturation_threshold": 1, "relative_saturation": True} for name in "ab"]),
            "pixel value 3 has two",
        ),
    ],
)
def test_bad_configurations_are_refused(tmp_path, content, message):
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(BadFileError, match=message):
        read_config(tmp_path / CONFIG)


def test_missing_parts_of_a_category_are_named(loco):
    with pytest.raises(FileNotFoundError, match=r"no folder .*data.root"):
        read_loco(loco / "absent")
    with pytest.raises(FileNotFoundError, match=r"no category pushpins .* screw_bag"):
        read_loco(loco, "pushpins")
    write_category(loco / "pushpins")
    with pytest.raises(ValueError, match=r"data.category \(pushpins, screw_bag\)"):
        read_loco(loco)
    (loco / "screw_bag" / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=CONFIG):
        read_loco(loco, "screw_bag")
    (loco / "pushpins/validation/good/000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no images in .*validation.good.*ground_truth"):
        read_loco(loco, "pushpins")


def test_anomalous_pictures_without_masks_are_listed(loco, caplog):
    folder = loco / "screw_bag/ground_truth/logical_anomalies"
    (folder / "001").rename(folder / "007")
    with pytest.raises(BadFileError, match=r"1 anomalous pictures have no masks:\n.*001.png"):
        read_loco(loco)
    assert "1 masks of" in caplog.text


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (mask(17), "value 17, which defects_config.json does not name"),
        (mask(249) + mask(240, rows=slice(20, 25)), "holds the values 240, 249"),
        (mask(0), "marks nothing"),
        (mask(249, size=(31, 50)), "31 x 50 pixels .*, its picture 30 x 50"),
    ],
)
def test_masks_that_cannot_be_used_are_named(loco, levels, message):
    path = loco / "screw_bag/ground_truth/logical_anomalies/000/001.png"
    save(path, levels)
    catalogue = read_loco(loco)
    with pytest.raises(BadFileError, match=message):
        check_sizes(catalogue.pictures, catalogue.types)
    with pytest.raises(BadFileError, match=r"001.png"):
        read_defect(path, SIZE, catalogue.types)


def test_masks_without_a_configuration_mark_the_same_in_whatever_form_they_are(tmp_path):
    marked = np.zeros((60, 80), bool)
    marked[20:40, 30:50] = True
    see_through = np.dstack([np.full((60, 80, 3), 255, np.uint8), 255 * marked.astype(np.uint8)])
    soft = Image.fromarray(255 * marked.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    numbered = marked.astype(np.uint8)
    numbered[:, 40:] *= 3
    files = {"alpha.png": Image.fromarray(see_through), "soft.png": soft, "numbered.png": Image.fromarray(numbered)}
    files["lossy.jpg"] = Image.fromarray(255 * marked.astype(np.uint8))
    for name, picture in files.items():
        picture.save(tmp_path / name)
        found = read_defect(tmp_path / name, (60, 80)).mask
        assert int((found.numpy() ^ marked).sum()) <= (0 if name in ("alpha.png", "numbered.png") else 12), name


def test_damaged_masks_are_named(loco):
    (loco / "screw_bag/ground_truth/logical_anomalies/000/001.png").write_bytes(b"no picture")
    catalogue = read_loco(loco)
    with pytest.raises(BadFileError, match=r"1 pictures have masks that cannot be used:\n.*000.001.png"):
        check_sizes(catalogue.pictures, catalogue.types)


def test_numbers_of_pictures_other_than_the_published_are_told(loco, caplog):
    with caplog.at_level(logging.WARNING):
        read_loco(loco)
    assert "screw_bag has 2 pictures of train, and was published with 360" in caplog.text
    assert set(CATEGORIES) < set(PICTURES)
    assert sum(PICTURES["pushpins"].values()) == 372 + 69 + 310


# ---- VisA


def write_visa(root, products=("candle", "pcb1")):
    """Write pictures and masks of products, three normal pictures and one with two defects each, and the table that divides them."""
    rows = ["object,split,label,image,mask"]
    for product in products:
        for number, split in enumerate(("test", "train", "train")):
            save(root / product / f"Data/Images/Normal/{number:04d}.JPG", picture(number))
            rows.append(f"{product},{split},normal,{product}/Data/Images/Normal/{number:04d}.JPG,")
        save(root / product / "Data/Images/Anomaly/000.JPG", picture(7))
        save(root / product / "Data/Masks/Anomaly/000.png", mask(1) + mask(3, rows=slice(20, 25)))
        rows.append(f"{product},test,anomaly,{product}/Data/Images/Anomaly/000.JPG,{product}/Data/Masks/Anomaly/000.png")
    (root / VISA_TABLE).parent.mkdir()
    (root / VISA_TABLE).write_text("\n".join(rows))


def test_visa_is_divided_by_its_table(tmp_path):
    write_visa(tmp_path)
    catalogue = read_visa(tmp_path, "candle")
    assert catalogue == read_visa(tmp_path / "candle")
    assert [(each.split, each.name, each.group) for each in catalogue.pictures] == [
        ("test", "good/0000", "good"),
        ("train", "good/0001", "good"),
        ("train", "good/0002", "good"),
        ("test", "bad/000", "other"),
    ]
    (defect,) = catalogue.pictures[-1].defects(catalogue.types)
    assert int(defect.mask.sum()) == 300 + 150, "kinds of defects are numbered, and all are marked"
    data = InspectionData(source="visa", root=str(tmp_path), category="pcb1", size=32)
    data.prepare_data()
    assert (data.name, len(data.train_set), len(data.val_set), len(data.test_set)) == ("pcb1", 1, 1, 2)


def test_what_is_wrong_with_visa_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*split_csv/1cls\.csv: it comes with VisA"):
        read_visa(tmp_path, "candle")
    write_visa(tmp_path)
    with pytest.raises(ValueError, match=r"data\.category \(candle, pcb1\)"):
        read_visa(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no category pcb9 in .*: there are candle, pcb1"):
        read_visa(tmp_path, "pcb9")
    for root in (tmp_path, tmp_path / "candle"):
        with pytest.raises(FileNotFoundError, match=r"no good pictures in .*; VisA as it is published is read by data\.source visa"):
            read_folders(root)
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(BadFileError, match=r"1 files that .*1cls\.csv names are not in .*:\n  candle/Data/Masks/Anomaly/000\.png"):
        read_visa(tmp_path, "candle")
    (tmp_path / VISA_TABLE).write_text("object,split,label,image,mask\ncandle,train,anomaly,candle/a.JPG,candle/a.png\n")
    with pytest.raises(BadFileError, match=r"1cls\.csv: the row candle,train,anomaly,\S+ is no normal picture"):
        read_visa(tmp_path, "candle")


# ---- folders


def test_folders_of_any_kind_are_found_with_their_groups(tmp_path):
    write_folders(tmp_path, ("good", "scratch", "lack", "odd"))
    catalogue = read_folders(tmp_path, groups={"odd": "structural"})
    assert {each.kind: each.group for each in catalogue.of("test")} == {
        "good": "good",
        "lack": "logical",
        "odd": "structural",
        "scratch": "structural",
    }
    assert {each.kind: each.group for each in read_folders(tmp_path).of("test")}["odd"] == "other"
    assert (len(catalogue.of("train")), len(catalogue.of("validation")), len(catalogue.of("test"))) == (3, 0, 12)
    write_folders(tmp_path, ("good",), "validation/")
    assert len(read_folders(tmp_path).of("validation")) == 3


def test_folders_may_be_named_one_by_one(tmp_path):
    write_folders(tmp_path, ("normal_rods", "scratched"), "")
    folders = {"train": "train/good", "good": "normal_rods", "scratch": "scratched"}
    assert [each.name for each in read_folders(tmp_path, folders).of("test")] == [f"{kind}/{name}" for kind in ("good", "scratch") for name in "abc"]
    with pytest.raises(ValueError, match="no folder 'train'"):
        read_folders(tmp_path, {"good": "normal_rods"})
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        read_folders(tmp_path, {**folders, "paint": "absent"})


def test_good_pictures_alone_are_enough_and_others_may_lie_beside_them(tmp_path):
    write_folders(tmp_path, ("good",), "train/")
    assert [each.split for each in read_folders(tmp_path).pictures] == ["train"] * 3
    plain = tmp_path / "plain"
    write_folders(plain, ("good", "bad"), "")
    shutil.rmtree(plain / "train", ignore_errors=True)
    catalogue = read_folders(plain)
    assert (len(catalogue.of("train")), [each.name for each in catalogue.of("test")]) == (3, ["bad/a", "bad/b", "bad/c"])


def test_masks_of_folders_are_read_where_there_are_some(tmp_path):
    write_folders(tmp_path)
    truth = tmp_path / "ground_truth/scratch"
    save(truth / "a_mask.png", mask(255))
    save(truth / "b.png", mask(1))
    save(truth / "c/000.png", mask(255))
    save(truth / "c/001.png", mask(255, slice(20, 22)))
    catalogue = read_folders(tmp_path)
    counts = {each.name: len(each.defects(catalogue.types)) for each in catalogue.of("test") if each.kind != "good"}
    assert counts == {"lack/a": 0, "lack/b": 0, "lack/c": 0, "scratch/a": 1, "scratch/b": 1, "scratch/c": 2}
    (defect,) = next(each for each in catalogue.pictures if each.name == "scratch/b").defects(None)
    assert (defect.type, defect.saturation) == (WHOLE, 300)


def test_folders_that_are_not_there_or_not_clear_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train/good"):
        read_folders(tmp_path)
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"data.groups must be .* 'bad'"):
        read_folders(tmp_path, groups={"lack": "bad"})
    save(tmp_path / "test/lack/a.bmp", picture(0))
    with pytest.raises(ValueError, match="have the same name"):
        read_folders(tmp_path)


def test_good_pictures_have_no_defects(tmp_path):
    assert Picture(tmp_path / "absent.png", "test").defects(None) == []


def test_a_folder_of_several_products_says_how_to_choose_one(tmp_path):
    for name in ("bottle", "cable"):
        write_folders(tmp_path / name, ("good", "scratch"))
    with pytest.raises(FileNotFoundError, match=r"no good pictures in .*; choose one of its categories with data\.root .*/<category>: bottle, cable"):
        read_folders(tmp_path)
    assert len(read_folders(tmp_path / "cable").pictures) == 9
