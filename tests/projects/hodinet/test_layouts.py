"""Every layout is read as it is downloaded, files are paired by stem, and what is missing is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects.hodinet.layouts import LAYOUTS, by_set, read_layout, set_name
from shared.data.files import BadFileError

NJU2K = ("000001_left", "000002_left")
NLPR = ("9_03-44-46", "1_02-03-44")
DUT = ("0001", "0012")


def write(folder, names=("RGB", "depth", "GT"), stems=("1", "2"), endings=(".jpg", ".png", ".png")):
    """Write small pictures of each stem into the folders of pictures, depth and masks."""
    for name, ending in zip(names, endings, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / name / f"{stem}{ending}")


def write_group(root):
    write(root, ("train_images", "train_depth", "train_masks"), (*NJU2K, *NLPR, *DUT))
    write(root, ("train_edges",), NJU2K, (".png",))
    for name in ("DES-RGBD135", "NJUD", "STERE-797", "STERE-1000"):
        write(root / name, ("test_images", "test_depth", "test_masks"), ("7", "8"))


def write_spnet(root, depth="depth"):
    write(root / "TrainDataset", ("RGB", depth, "GT"), (*NJU2K, *NLPR), (".png", ".bmp", ".png"))
    for name in ("NJU2K", "STERE", "SIP"):
        write(root / "TestDataset" / name, ("RGB", depth, "GT"), ("7", "8"))


def write_caver(root):
    write(root / "NJUD_FULL", ("Image", "Depth", "Mask"), (*NJU2K, "000003_left"))
    write(root / "NLPR_FULL", ("Image", "Depth", "Mask"), (*NLPR, "10_03-02-58"))
    for name, train, test in (("njud", NJU2K, ("000003_left",)), ("nlpr", NLPR, ("10_03-02-58.jpg",))):
        (root / f"{name}_train_jw_name_list.lst").write_text("\n".join(train) + "\n")
        (root / f"{name}_test_jw_name_list.lst").write_text("\n".join(test))
    write(root / "DUTLF-Depth" / "Train", stems=DUT)
    write(root / "DUTLF-Depth" / "Test", stems=("0500",))
    write(root / "STEREO1000", ("Image", "Depth", "Mask"))


def write_vst(root):
    write(root / "NJUD" / "trainset", stems=NJU2K)
    write(root / "NJUD" / "trainset", ("contour",), NJU2K, (".png",))
    write(root / "NJUD" / "testset", stems=("000005_left",))
    write(root / "LFSD")


def write_mobilesal(root):
    stems = {"NJU2K": (*NJU2K, "000003_left"), "NLPR": (*NLPR, "10_03-02-58"), "STERE": ("7", "8")}
    for name, own in stems.items():
        write(root, (name,) * 3, own, (".jpg", "_gt.png", "_depth.png"))
    lists = {"NJU2K_NLPR_train": {"NJU2K": NJU2K, "NLPR": NLPR}, "NJU2K_test": {"NJU2K": ("000003_left",)}, "NLPR_test": {"NLPR": ("10_03-02-58",)}}
    for name, sets in {**lists, "STERE": {"STERE": ("7", "8")}}.items():
        lines = (f"{folder}/{stem}.jpg {folder}/{stem}_gt.png\n" for folder, own in sets.items() for stem in own)
        (root / f"{name}.txt").write_text("".join(lines))


WRITERS = {"mobilesal": write_mobilesal, "group": write_group, "spnet": write_spnet, "caver": write_caver, "vst": write_vst}
EXPECTED = {
    "group": {
        "train": {"NJU2K": NJU2K, "NLPR": NLPR, "DUT-RGBD": DUT},
        "test": dict.fromkeys(("NJU2K", "STERE", "STERE-797", "DES"), ("7", "8")),
    },
    "spnet": {"train": {"NJU2K": NJU2K, "NLPR": NLPR}, "test": dict.fromkeys(("NJU2K", "STERE", "SIP"), ("7", "8"))},
    "caver": {
        "train": {"NJU2K": NJU2K, "NLPR": NLPR, "DUT-RGBD": DUT},
        "test": {"NJU2K": ("000003_left",), "NLPR": ("10_03-02-58",), "DUT-RGBD": ("0500",), "STERE": ("1", "2")},
    },
    "vst": {"train": {"NJU2K": NJU2K}, "test": {"NJU2K": ("000005_left",), "LFSD": ("1", "2")}},
    "mobilesal": {
        "train": {"NJU2K": NJU2K, "NLPR": NLPR},
        "test": {"NJU2K": ("000003_left",), "NLPR": ("10_03-02-58",), "STERE": ("7", "8")},
    },
}


def contents(samples):
    """Return the stems by split and set."""
    return {
        split: {name: tuple(sorted(sample.stem for sample in own)) for name, own in by_set(one for one in samples if one.split == split).items()}
        for split in ("train", "test")
    }


def in_order(expected):
    return {split: {name: tuple(sorted(stems)) for name, stems in sets.items()} for split, sets in expected.items()}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_layout_is_told_by_the_names_of_its_folders(tmp_path, layout, named):
    WRITERS[layout](tmp_path)
    samples = read_layout(tmp_path, layout if named else "auto")
    assert contents(samples) == in_order(EXPECTED[layout])
    assert {sample.layout for sample in samples} == {layout}
    for sample in samples:
        depth, mask = ("_depth", "_gt") if layout == "mobilesal" else ("", "")
        assert sample.image.stem == sample.depth.stem.removesuffix(depth) == sample.mask.stem.removesuffix(mask) == sample.stem
        assert "mask" in sample.mask.parent.name.lower() or sample.mask.parent.name == "GT" or sample.mask.stem.endswith("_gt")
        assert "depth" in sample.depth.parent.name.lower() or sample.depth.stem.endswith("_depth")


def test_dformer_writes_depth_with_a_capital(tmp_path):
    write_spnet(tmp_path, "Depth")
    assert contents(read_layout(tmp_path)) == in_order(EXPECTED["spnet"])


@pytest.mark.parametrize(
    ("train", "test", "layout"),
    [
        ({"RGBD_for_train": (*NJU2K, *NLPR)}, "RGBD_for_test/{}", "spnet"),  # BBS-Net
        ({"train/RGBD_for_train_fast": (*NJU2K, *NLPR)}, "test/{}", "spnet"),
        ({"train/NJUNLPR": (*NJU2K, *NLPR)}, "test/{}", "caver"),
        ({"TrainingSet/NJU2K_TRAIN": NJU2K, "TrainingSet/NLPR_TRAIN": NLPR}, "TestingSet/{}", "spnet"),  # D3Net
        ({"NJU2K_TRAIN": NJU2K, "NLPR_TRAIN": NLPR}, "{}_TEST", "vst"),
    ],
)
def test_words_of_folders_tell_splits_and_sets_as_they_are_passed_around(tmp_path, train, test, layout):
    for folder, stems in train.items():
        write(tmp_path / folder, stems=stems)
    for name in ("NJU2K", "STERE"):
        write(tmp_path / test.format(name), stems=("7", "8"))
    samples = read_layout(tmp_path)
    expected = in_order({"train": {"NJU2K": NJU2K, "NLPR": NLPR}, "test": dict.fromkeys(("NJU2K", "STERE"), ("7", "8"))})
    assert contents(samples) == expected
    assert layout in {sample.layout for sample in samples}
    alone = contents(read_layout(tmp_path / next(iter(train)).partition("/")[0]))["train"]
    assert alone in (expected["train"], {"NJU2K": NJU2K}), "the root may be that folder"


def test_dut_rgbd_is_read_as_its_authors_publish_it(tmp_path):
    for split, stems in (("train", ("0004", "0012")), ("test", ("0001",))):
        write(tmp_path / "DUT-RGBD" / f"{split}_data", tuple(f"{split}_{name}" for name in ("images", "depth", "masks")), stems)
    expected = {"train": {"DUT-RGBD": ("0004", "0012")}, "test": {"DUT-RGBD": ("0001",)}}
    assert contents(read_layout(tmp_path)) == contents(read_layout(tmp_path / "DUT-RGBD")) == expected


@pytest.mark.parametrize(
    ("train", "easy"), [("train", "test/COME-E"), ("COME-TR", "COME-TE/COME-TE-E"), ("train", "COME-E")]
)  # as published, as CAVER's authors name it, and with test sets beside the training folder
def test_come15k_is_read_with_the_pictures_that_its_depth_and_masks_belong_to(tmp_path, train, easy):
    home = tmp_path / "COME15K"
    write(home / train, ("imgs_right", "depths", "gt_right"), ("COME_Train_1", "COME_Train_2"))
    write(home / train, ("imgs_left", "gt_left"), ("COME_Train_1", "COME_Train_3"), (".jpg", ".png"))
    write(home / easy, ("RGB", "depths", "GT"), ("COME_Easy_1",))
    samples = read_layout(tmp_path)
    assert contents(samples) == {"train": {"COME15K": ("COME_Train_1", "COME_Train_2")}, "test": {"COME-E": ("COME_Easy_1",)}}
    assert {sample.image.parent.name for sample in samples} == {"imgs_right", "RGB"}
    assert contents(read_layout(home)) == contents(samples)


def test_pictures_of_neither_split_are_left_out(tmp_path, caplog):
    write(tmp_path / "RGBD_for_test" / "SIP")
    write(tmp_path / "test_in_train")
    write(tmp_path / "val" / "NJUNLPR")
    assert contents(read_layout(tmp_path)) == {"train": {}, "test": {"SIP": ("1", "2")}}
    assert "test_in_train is left out" in caplog.text
    assert "NJUNLPR is left out" in caplog.text


def test_names_of_ones_own_that_tell_a_split_stay(tmp_path):
    write(tmp_path / "my_train")
    write(tmp_path / "my test")
    assert contents(read_layout(tmp_path)) == {"train": {"my_train": ("1", "2")}, "test": {"my_test": ("1", "2")}}


def test_depth_may_have_a_word_behind_the_stem(tmp_path):
    write(tmp_path / "RGBD135", ("RGB", "GT"), ("a", "b"), (".jpg", ".png"))
    write(tmp_path / "RGBD135", ("depth",), ("a_depth", "b_Depth"), (".png",))
    assert [(sample.stem, sample.depth.name) for sample in read_layout(tmp_path)] == [("a", "a_depth.png"), ("b", "b_Depth.png")]


def test_nju2k_may_have_left_and_right_pictures(tmp_path):
    write(tmp_path / "NJU2K", ("RGB_left", "depth", "GT"))
    write(tmp_path / "NJU2K", ("RGB_right",), ("1", "2"), (".jpg",))
    assert {sample.image.parent.name for sample in read_layout(tmp_path)} == {"RGB_left"}


def test_a_root_may_hold_sets_in_several_layouts(tmp_path):
    write_spnet(tmp_path)
    write(tmp_path / "ReDWeb-S" / "testset")
    write(tmp_path / "SSD", ("Image", "Depth", "Mask"))
    sets = contents(read_layout(tmp_path))["test"]
    assert list(sets) == ["NJU2K", "STERE", "SIP", "SSD", "ReDWeb-S"], "known sets first"
    assert set(contents(read_layout(tmp_path, "vst"))["test"]) == {"ReDWeb-S"}


def test_the_root_may_be_the_folder_of_a_split(tmp_path):
    write_spnet(tmp_path)
    assert contents(read_layout(tmp_path / "TrainDataset")) == in_order({"train": EXPECTED["spnet"]["train"], "test": {}})
    assert contents(read_layout(tmp_path / "TestDataset")) == in_order({"train": {}, "test": EXPECTED["spnet"]["test"]})


def test_folders_of_ones_own(tmp_path):
    write(tmp_path / "mine" / "train", stems=("a.1", "b"))
    write(tmp_path / "mine" / "test", ("images", "depths", "masks"), stems=("c",))
    assert contents(read_layout(tmp_path / "mine", "folder")) == {"train": {"mine": ("a.1", "b")}, "test": {"mine": ("c",)}}
    assert contents(read_layout(tmp_path / "mine" / "test")) == {"train": {}, "test": {"mine": ("c",)}}
    write(tmp_path / "my pictures")
    assert contents(read_layout(tmp_path / "my pictures")) == {"train": {}, "test": {"my_pictures": ("1", "2")}}


def test_only_published_names_are_taken_for_those_of_published_sets(tmp_path):
    stems = ("IMG_0012", "dut_0012", "0013", "x_000001_left", "9_03-44-46")
    write(tmp_path / "TrainDataset", stems=stems)
    found = {sample.stem: sample.dataset for sample in read_layout(tmp_path)}
    assert found == dict(zip(stems, ("other", "DUT-RGBD", "DUT-RGBD", "NJU2K", "NLPR"), strict=True))


def test_rgb_t_sets_are_read_by_the_same_reader(tmp_path):
    for split in ("Train", "Test"):
        write(tmp_path / "VT5000" / split, ("RGB", "T", "GT"), endings=(".jpg", ".jpg", ".png"))
    write(tmp_path / "VT821", ("RGB", "thermal", "GT"), endings=(".jpg", ".bmp", ".jpg"))
    samples = read_layout(tmp_path, modality="thermal")
    assert contents(samples) == {"train": {"VT5000": ("1", "2")}, "test": {"VT5000": ("1", "2"), "VT821": ("1", "2")}}
    assert {sample.depth.parent.name for sample in samples} == {"T", "thermal"}
    with pytest.raises(FileNotFoundError, match=r"no depth beside .*RGB: expected a folder depth or depths .*data\.modality: thermal"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("NJUD_FULL", "NJU2K"),
        ("nju2k", "NJU2K"),
        ("STEREO-1000", "STERE"),
        ("STERE", "STERE"),
        ("STEREO-797", "STERE-797"),
        ("DES-RGBD135", "DES"),
        ("RGBD135", "DES"),
        ("DUTLF-Depth", "DUT-RGBD"),
        ("DUT-RGBD", "DUT-RGBD"),
        ("ReDWeb-S", "ReDWeb-S"),
        ("COME8K", "COME15K"),
        ("my set", "my_set"),
        ("..", "set"),
    ],
)
def test_sets_have_one_name_each(folder, name):
    assert set_name(folder) == name


def test_full_sets_need_their_lists(tmp_path):
    write_caver(tmp_path)
    for path in tmp_path.glob("njud_*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"NJUD_FULL holds pictures of both splits: put njud_train_jw_name_list\.lst and njud_test"):
        read_layout(tmp_path)


def test_lists_that_do_not_fit_are_refused(tmp_path):
    write_caver(tmp_path)
    names = tmp_path / "njud_test_jw_name_list.lst"
    names.write_text("000009_left\n")
    with pytest.raises(BadFileError, match=r"1 of 1 pictures that .*njud_test_jw_name_list\.lst names are not in .*: 000009_left"):
        read_layout(tmp_path)
    names.write_text("000001_left\n")
    with pytest.raises(BadFileError, match=r"1 pictures are in both lists .*: 000001_left"):
        read_layout(tmp_path)


def test_pictures_beside_their_depth_need_lists_that_fit(tmp_path):
    write_mobilesal(tmp_path)
    lists = {path: path.read_text() for path in tmp_path.glob("*.txt")}
    stere = tmp_path / "STERE.txt"
    for text, message in (
        ("STERE/9.jpg STERE/9_gt.png\n", r"1 of 1 pictures that .*STERE\.txt names are not in .*: STERE/9\.jpg"),
        (lists[stere] + "STERE/7.jpg\n", r"STERE\.txt has the line 'STERE/7\.jpg': expected a picture and its mask"),
        (lists[tmp_path / "NJU2K_NLPR_train.txt"], r"000001_left\.jpg is for train in .*NLPR_train\.txt and for test in .*STERE\.txt: keep one"),
        ("STERE/7.jpg STERE/none.png\n", r"7\.jpg has no mask of its stem"),
    ):
        stere.write_text(text)
        with pytest.raises(BadFileError, match=message):
            read_layout(tmp_path)
    for path in lists:
        path.unlink()
    (tmp_path / "readme.txt").write_text("NJU2K, NLPR and STERE\n")
    for root in (tmp_path, tmp_path / "NJU2K"):
        with pytest.raises(FileNotFoundError, match=r"in .*NJU2K pictures lie beside their depth: they need lists such as NJU2K_test\.txt"):
            read_layout(root)


def test_lists_of_pictures_in_folders_of_their_own_are_passed_over(tmp_path):
    write_spnet(tmp_path)
    (tmp_path / "test.txt").write_text("TestDataset/SIP/RGB/7.jpg TestDataset/SIP/GT/7.png\nelsewhere/8.jpg elsewhere/8.png\n")
    assert contents(read_layout(tmp_path)) == in_order(EXPECTED["spnet"])


def test_pictures_without_depth_are_refused_skipped_or_taken_with_zeros(tmp_path, caplog):
    write(tmp_path / "SIP", stems=("1", "2", "3"))
    (tmp_path / "SIP" / "depth" / "2.png").unlink()
    with pytest.raises(BadFileError, match=r"1 of 3 pictures of .*RGB are not complete:\n.*2\.jpg has no depth map of its stem\n.*on_bad_file: skip"):
        read_layout(tmp_path)
    assert [sample.stem for sample in read_layout(tmp_path, on_bad_file="skip")] == ["1", "3"]
    assert "1 of 3 pictures" in caplog.text
    assert [sample.depth is None for sample in read_layout(tmp_path, missing_depth="zeros")] == [False, True, False]
    for path in (tmp_path / "SIP" / "depth").iterdir():
        path.unlink()
    (tmp_path / "SIP" / "depth").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no depth beside .*data\.missing_depth: zeros"):
        read_layout(tmp_path)
    assert all(sample.depth is None for sample in read_layout(tmp_path, missing_depth="zeros"))


def test_unequal_counts_pair_by_stem_not_by_order(tmp_path, caplog):
    write(tmp_path / "SIP", stems=("1", "2", "10"))
    (tmp_path / "SIP" / "RGB" / "1.jpg").unlink()
    samples = read_layout(tmp_path)
    assert [(sample.image.name, sample.depth.name, sample.mask.name) for sample in samples] == [
        (f"{n}.jpg", f"{n}.png", f"{n}.png") for n in ("10", "2")
    ]
    assert "1 depth maps or masks beside" in caplog.text


def test_masks_are_needed_unless_nothing_is_measured(tmp_path):
    write(tmp_path / "mine", ("RGB", "depth"), endings=(".jpg", ".png"))
    with pytest.raises(FileNotFoundError, match=r"no masks beside .*RGB: expected a folder GT, Mask"):
        read_layout(tmp_path / "mine")
    samples = read_layout(tmp_path / "mine", with_masks=False)
    assert [(sample.stem, sample.mask) for sample in samples] == [("1", None), ("2", None)]


def test_two_files_of_one_stem_are_refused(tmp_path):
    write(tmp_path / "SIP")
    write(tmp_path / "SIP", ("RGB",), ("1",), (".png",))
    with pytest.raises(ValueError, match=r"1\.jpg and .*1\.png have the same name but for the ending"):
        read_layout(tmp_path)


def test_a_set_that_lies_there_twice_is_refused(tmp_path):
    write(tmp_path / "SIP")
    write(tmp_path / "TestDataset" / "SIP")
    with pytest.raises(ValueError, match=r"are both 1 of SIP \(test\): remove one of them"):
        read_layout(tmp_path)


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_a_folder_without_sets_is_told_what_is_expected(tmp_path, layout):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pictures with depth and masks in .*\(there: pictures\); expected\n") as error:
        read_layout(tmp_path, layout)
    assert all(f"{name}: {tmp_path}" in str(error.value) for name in (LAYOUTS if layout == "auto" else [layout]))
    with pytest.raises(FileNotFoundError, match=r"no folder .*none: correct data\.root"):
        read_layout(tmp_path / "none", layout)


def test_a_layout_that_is_not_there_names_the_one_that_is(tmp_path):
    write_spnet(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\(it holds spnet\); expected\n  vst"):
        read_layout(tmp_path, "vst")


@pytest.mark.parametrize("option", [{"modality": "lidar"}, {"missing_depth": "guess"}, {"on_bad_file": "keep"}, {"layout": "coco"}])
def test_unknown_options_are_refused(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        read_layout(Path(tmp_path), **option)
