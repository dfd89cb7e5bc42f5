"""What is learnt, what is tested on, and in what form, for scenes and for every layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from projects.hodinet.data import SaliencyData, TrainingPictures
from projects.hodinet.depth import read_depth
from projects.hodinet.layouts import Sample
from projects.hodinet.samples import DrawnScenes, Reading, SampleFiles, check_samples, polarity_report, read_mask
from projects.hodinet.scenes import draw_scene
from shared.data.files import BadFileError

SCENES = {"length": 12, "test_length": 5, "size": 32, "batch_size": 4}
HEIGHT, WIDTH = 40, 50
MARKED = np.zeros((HEIGHT, WIDTH), bool)
MARKED[10:30, 10:40] = True


def set_up(**options):
    data = SaliencyData(**options)
    data.prepare_data()
    return data


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write(folder, stems, names=("RGB", "depth", "GT"), near=200, seed=0, size=(HEIGHT, WIDTH)):
    """Write pictures whose marked pixels have the depth `near` of 255, the others 100."""
    for number, stem in enumerate(stems):
        coarse = np.random.default_rng([seed, number]).integers(0, 256, (5, 6, 3), np.uint8)
        marked = np.asarray(Image.fromarray(MARKED).resize(size[::-1]))
        save(folder / names[0] / f"{stem}.png", np.asarray(Image.fromarray(coarse).resize(size[::-1])))
        save(folder / names[1] / f"{stem}.png", np.where(marked, near, 100).astype(np.uint8))
        save(folder / names[2] / f"{stem}.png", np.where(marked, 255, 0).astype(np.uint8))


def write_spnet(root, near=200):
    stems = [f"{number:06}_left" for number in range(8)] + [f"9_03-44-{number:02}" for number in range(6)] + [f"{number:04}" for number in range(4)]
    write(root / "TrainDataset", stems, near=near)
    for number, name in enumerate(("NJU2K", "DUT-RGBD", "STERE")):
        write(root / "TestDataset" / name, ("1", "2", "3"), near=near, seed=10 + number)
        write(root / "TestDataset" / name, ("4",), near=near, seed=20 + number, size=(30, 70))


@pytest.fixture(scope="module")
def spnet(tmp_path_factory):
    root = tmp_path_factory.mktemp("spnet")
    write_spnet(root)
    return root


@pytest.fixture(scope="module")
def files(spnet):
    return set_up(source="spnet", root=str(spnet), size=32, batch_size=4, train_sets=2185, augmentation="group")


# ---- scenes


def test_batches_of_scenes():
    data = set_up(**SCENES)
    batch = next(iter(data.train_dataloader()))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image": ((4, 3, 32, 32), torch.uint8),
        "depth": ((4, 1, 32, 32), torch.float32),
        "mask": ((4, 1, 32, 32), torch.uint8),
        "index": ((4,), torch.int64),
    }
    assert (data.train_names, data.test_names, len(data.val_set)) == (["default"], ["default"], 5)
    whole = next(iter(data.val_dataloader()))
    scene = draw_scene("val", 0, 0, 32)
    assert torch.equal(whole["image"][0], scene.image)
    assert torch.equal(whole["mask"][0] > 0, scene.mask)
    assert whole["depth"].amin() == 0, "stretched"
    assert whole["depth"].amax() == 1


def test_variants_are_tested_by_their_names():
    data = set_up(**SCENES, variant="bad_depth", test_sets=["default", "inverted"], normalise=False)
    assert data.test_names == ["default", "inverted"]
    default, inverted = (next(iter(loader)) for loader in data.test_dataloader())
    assert torch.equal(default["image"], inverted["image"])
    known = default["depth"] > 0
    torch.testing.assert_close(inverted["depth"][known], 1 - default["depth"][known])
    mended = set_up(**SCENES, test_sets=["default", "inverted"], normalise=False, invert=["inverted"])
    again = [next(iter(loader))["depth"] for loader in mended.test_dataloader()]
    torch.testing.assert_close(again[1], again[0])


def test_defaults_are_what_was_measured_with():
    data = SaliencyData()
    assert (data.source, data.size, data.options.length, data.options.test_length) == ("scenes", 64, 400, 150)
    assert SaliencyData(source="auto").size == 256


# ---- files


def test_batches_of_files(files):
    batch = next(iter(files.train_dataloader()))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image": ((4, 3, 32, 32), torch.uint8),
        "depth": ((4, 1, 32, 32), torch.float32),
        "mask": ((4, 1, 32, 32), torch.uint8),
        "index": ((4,), torch.int64),
    }


def test_whole_pictures_come_one_by_one_at_their_own_size(files):
    assert files.test_names == ["NJU2K", "DUT-RGBD", "STERE"]
    for loader in files.test_dataloader():
        sizes = [tuple(batch["image"].shape) for batch in loader]
        assert sizes == [(1, 3, HEIGHT, WIDTH)] * 3 + [(1, 3, 30, 70)]
    first = files.test_pictures[0][0]
    assert torch.equal(first["mask"][0] > 0, torch.from_numpy(MARKED))
    assert torch.equal(first["depth"][0] > 0.5, torch.from_numpy(MARKED)), "near = 1"


@pytest.mark.parametrize(
    ("sets", "names", "count"),
    [("2185", ["NJU2K", "NLPR"], 14), (2985, ["NJU2K", "NLPR", "DUT-RGBD"], 18), (["dut"], ["DUT-RGBD"], 4), (None, 3, 18)],
)
def test_training_sets_are_built_by_their_customary_numbers(spnet, sets, names, count):
    data = set_up(source="auto", root=str(spnet), train_sets=sets)
    assert data.train_names == names or len(data.train_names) == names
    assert len(data.train_set) + len(data.val_set) == count


def test_a_part_of_each_training_set_is_held_out(files):
    learnt, held_out = files.train_set.pictures.samples, files.val_set.pictures.samples
    assert {sample.dataset for sample in held_out} == {"NJU2K", "NLPR"}
    assert not {sample.image for sample in learnt} & {sample.image for sample in held_out}
    assert all(sample.split == "train" for sample in held_out)


def test_the_same_pictures_are_held_out_whatever_else_is_learnt(spnet, files):
    other = set_up(source="spnet", root=str(spnet), train_sets="2985", val_fraction=0.2)
    again = set_up(source="spnet", root=str(spnet), train_sets="2185", val_fraction=0.05, size=48)
    stems = [{sample.stem for sample in data.val_set.pictures.samples} for data in (files, again, other)]
    assert stems[0] == stems[1]
    assert stems[0] <= stems[2]


def test_published_numbers_and_sets_that_do_not_compare_are_told(spnet, caplog):
    set_up(source="spnet", root=str(spnet), train_sets="2185")
    assert "NJU2K (test) has 4 pictures, and was published with 500 or 498 or 485" in caplog.text
    assert "NLPR (train) has 6 pictures, and was published with 700" in caplog.text
    assert "DUT-RGBD is tested but not learnt" in caplog.text


def test_a_whole_set_beside_its_training_part_is_refused(tmp_path):
    write(tmp_path / "RGBD_for_train", ("000001_left", "000002_left", "9_03-44-46", "9_03-44-47"))
    write(tmp_path / "NJU2K", ("000002_left", "000003_left"))
    write(tmp_path / "RGBD_for_test" / "SIP", ("1",))
    with pytest.raises(
        ValueError, match=r"1 of 2 test pictures of NJU2K are training pictures, such as 000002_left: leave them out .*data\.test_sets"
    ):
        set_up(source="auto", root=str(tmp_path))
    data = set_up(source="auto", root=str(tmp_path), train_sets=2185, test_sets=["SIP"])
    assert (data.train_names, data.test_names, len(data.train_set), len(data.val_set)) == (["NJU2K", "NLPR"], ["SIP"], 2, 2)
    assert next(iter(data.test_dataloader()[0]))["mask"].sum() == MARKED.sum()


def test_polarity_is_reported_and_a_wrong_one_warned_of(tmp_path, files, caplog):
    assert [(row["set"], row["nearer"]) for row in files.polarity] == [("NJU2K", 1), ("NLPR", 1)]
    write(tmp_path / "mine" / "train", ("a", "b", "c"), near=20)
    wrong = set_up(source="folder", root=str(tmp_path / "mine"))
    assert wrong.polarity[0]["correlation"] == pytest.approx(-1)
    wrong.prepare_data()
    assert caplog.text.count("mine: what is salient is farther than the rest in 2 of 2 pictures") == 1, "the test after a training says it no more"
    caplog.clear()
    for invert in (["mine"], "all"):
        right = set_up(source="folder", root=str(tmp_path / "mine"), invert=invert)
        assert right.polarity[0]["correlation"] == pytest.approx(1)
    assert "farther" not in caplog.text


def test_the_groups_own_files_are_inverted_unless_told_otherwise(tmp_path):
    names = ("train_images", "train_depth", "train_masks")
    write(tmp_path, ("000001_left", "000002_left", "000003_left"), names, near=20)
    assert set_up(source="group", root=str(tmp_path)).polarity[0]["nearer"] == 1
    assert set_up(source="auto", root=str(tmp_path), invert=[]).polarity[0]["nearer"] == 0


def test_missing_depth_is_zero(tmp_path):
    write(tmp_path / "mine" / "test", ("a", "b"))
    (tmp_path / "mine" / "test" / "depth" / "a.png").unlink()
    data = set_up(source="folder", root=str(tmp_path / "mine"), missing_depth="zeros")
    assert not data.test_pictures[0][0]["depth"].any()
    assert data.test_pictures[0][0]["depth"].shape == (1, HEIGHT, WIDTH)
    assert data.test_pictures[0][1]["depth"].any()


def test_thermal_pictures_take_the_place_of_depth(tmp_path):
    for split in ("Train", "Test"):
        write(tmp_path / "VT5000" / split, ("1", "2", "3"), ("RGB", "T", "GT"), near=20)
    data = set_up(source="auto", root=str(tmp_path), modality="thermal")
    assert data.train_names == ["VT5000"]
    assert data.polarity == [], "warm or cold, no side is near"
    assert data.test_pictures[0][0]["depth"].amin() == 0


def test_duplicates_are_kept_from_being_learnt(tmp_path, caplog):
    write_spnet(tmp_path)
    copied = tmp_path / "TestDataset" / "STERE" / "RGB" / "1.png"
    copied.write_bytes((tmp_path / "TrainDataset" / "RGB" / "000002_left.png").read_bytes())
    data = set_up(source="spnet", root=str(tmp_path), train_sets="2185", duplicates=2)
    stems = {sample.stem for part in (data.train_set, data.val_set) for sample in part.pictures.samples}
    assert "000002_left" not in stems
    assert len(stems) == 13
    assert "1 of 14 training pictures look like test pictures (1 of 4 of STERE)" in caplog.text
    with pytest.raises(ValueError, match=r"on_duplicate to remove or keep"):
        set_up(source="spnet", root=str(tmp_path), duplicates=2, on_duplicate="refuse")


def test_a_folder_of_test_pictures_can_be_tested_but_not_learnt(tmp_path):
    write(tmp_path / "mine", ("a", "b"))
    data = set_up(source="folder", root=str(tmp_path / "mine"))
    assert [len(list(loader)) for loader in data.test_dataloader()] == [2]
    with pytest.raises(ValueError, match=r"mine holds test pictures only: put training pictures there, as \{train,test\}"):
        data.train_dataloader()


# ---- masks


def sample(tmp_path, mask, size=(4, 6)):
    save(tmp_path / "a.png", np.zeros((*size, 3), np.uint8))
    save(tmp_path / "mask.png", mask)
    return Sample(tmp_path / "a.png", None, tmp_path / "mask.png", "mine", "test", "a")


def test_grey_borders_of_masks_are_cut_above_128(tmp_path):
    levels = np.tile(np.array([0, 100, 127, 128, 129, 255], np.uint8), (4, 1))
    assert read_mask(sample(tmp_path, levels), (4, 6))[0, 0].tolist() == [0, 0, 0, 0, 1, 1]


def test_masks_of_zeros_and_ones_empty_and_full_ones_are_read(tmp_path):
    ones = np.tile(np.array([0, 1, 1, 0, 0, 1], np.uint8), (4, 1))
    assert read_mask(sample(tmp_path, ones), (4, 6))[0, 0].tolist() == [0, 1, 1, 0, 0, 1]
    assert not read_mask(sample(tmp_path, np.zeros((4, 6), np.uint8)), (4, 6)).any()
    assert read_mask(sample(tmp_path, np.full((4, 6), 255, np.uint8)), (4, 6)).all()
    assert not read_mask(Sample(tmp_path / "a.png", None, None, "mine", "test", "a"), (4, 6)).any()


MARKS = np.tile(np.array([0, 1, 1, 0, 0, 1], np.uint8), (4, 1))


def in_palette(colour):
    picture = Image.fromarray(MARKS, "P")
    picture.putpalette([0, 0, 0, *colour])
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(np.dstack([np.full((4, 6, 3), 255, np.uint8), 255 * MARKS])),
        Image.fromarray(np.dstack([np.full((4, 6), 255, np.uint8), 255 * MARKS])),
        in_palette((128, 0, 0)),
        in_palette((255, 0, 0)),
        Image.fromarray(100 * MARKS),
        Image.fromarray(MARKS[..., None] * np.array([0, 0, 200], np.uint8)),
    ],
    ids=["RGBA", "LA", "VOC", "red palette", "pale", "blue"],
)
def test_masks_mark_the_same_in_whatever_form_they_are(tmp_path, picture):
    of = sample(tmp_path, MARKS)
    picture.save(of.mask)
    assert read_mask(of, (4, 6))[0].tolist() == MARKS.tolist()


def test_what_compression_leaves_in_an_empty_mask_marks_nothing(tmp_path):
    assert not read_mask(sample(tmp_path, 3 * MARKS), (4, 6)).any()


def test_transparent_depth_was_not_measured(tmp_path):
    levels = np.tile(np.array([60, 80, 100, 120, 140, 0], np.uint8), (4, 1))
    Image.fromarray(np.dstack([levels, 255 * (levels > 0).astype(np.uint8)])).save(tmp_path / "depth.png")
    assert read_depth(tmp_path / "depth.png")[0, 0, [4, 5]].tolist() == [1, 0]
    torch.testing.assert_close(read_depth(tmp_path / "depth.png", invert=True)[0, 0, [0, 4, 5]], torch.tensor([1.0, 0, 0]))


@pytest.mark.parametrize("duplicates", [None, 4])
def test_damaged_pictures_and_coloured_depth_are_found_before_training(tmp_path, duplicates):
    write(tmp_path / "mine" / "train", ("a", "b", "c", "d"))
    write(tmp_path / "mine" / "test", ("e", "f"))
    cut = next((tmp_path / "mine" / "train" / "RGB").glob("a.*"))
    cut.write_bytes(cut.read_bytes()[:-40])
    coloured = next((tmp_path / "mine" / "train" / "depth").glob("b.*"))
    save(coloured, np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    with pytest.raises(BadFileError, match=r"2 of 4 pictures cannot be used:\n.*\n.*shows depth in colours"):
        set_up(source="folder", root=str(tmp_path / "mine"))
    data = set_up(source="folder", root=str(tmp_path / "mine"), on_bad_file="skip", duplicates=duplicates, on_duplicate="keep")
    assert sum(len(part) for part in (data.train_set, data.val_set)) == 2


def test_masks_and_depth_of_another_size_are_refused_or_skipped(tmp_path, caplog):
    bad = sample(tmp_path, np.zeros((6, 4), np.uint8))
    good = Sample(bad.image, None, None, "mine", "test", "b")
    with pytest.raises(
        BadFileError, match=r"1 of 2 pictures cannot be used:\n.*mask\.png has 6 x 4 pixels \(height x width\), its picture .*a\.png 4 x 6"
    ):
        check_samples([bad, good], Reading())
    assert check_samples([bad, good], Reading(), "skip") == [good]
    assert "1 of 2 pictures cannot be used and are left out" in caplog.text
    turned = Sample(bad.image, bad.mask, None, "mine", "test", "c")
    with pytest.raises(BadFileError, match=r"the depth map .*mask\.png has 6 x 4 pixels"):
        check_samples([turned, good], Reading())
    with pytest.raises(BadFileError, match="the depth map"):
        SampleFiles([turned], Reading()).read(0)
    with pytest.raises(BadFileError, match="1 of 1"):
        check_samples([bad], Reading(), "skip")


def test_test_sets_whose_depth_may_be_distances_are_told(tmp_path, caplog):
    write(tmp_path / "RGBD135", ("a", "b"))
    write(tmp_path / "SIP", ("a", "b"))
    for name, levels in (("a", 4000), ("b", 900)):
        save(tmp_path / "RGBD135" / "depth" / f"{name}.png", np.where(MARKED, 700, levels).astype(np.uint16))
    set_up(source="auto", root=str(tmp_path))
    assert "DES: its depth has 16 bits, as distances have, whose far is 1: look at it, and add the set to data.invert if so" in caplog.text
    assert "SIP: its depth" not in caplog.text
    caplog.clear()
    (loader, _) = set_up(source="auto", root=str(tmp_path), invert=["RGBD135"]).test_dataloader()
    assert "16 bits" not in caplog.text
    first = next(iter(loader))
    assert first["depth"][first["mask"] > 0].min() == 1
    assert first["depth"][first["mask"] == 0].max() == 0


def test_depth_of_dut_rgbd_may_be_a_square_of_the_whole_picture(tmp_path):
    far, near = np.zeros((256, 256), np.uint8), np.zeros((400, 600), np.uint8)
    far[:128, :64], near[:200, :150] = 255, 255
    save(tmp_path / "depth.png", far)
    save(tmp_path / "image.png", near)
    square = Sample(tmp_path / "image.png", tmp_path / "depth.png", None, "DUT-RGBD", "train", "0004")
    depth = SampleFiles(check_samples([square], Reading()), Reading()).read(0).depth
    assert (depth[0] - torch.from_numpy(near) / 255).abs().mean() < 0.01
    with pytest.raises(BadFileError, match=r"depth\.png has 256 x 256 pixels .*align it with the picture"):
        check_samples([replace(square, dataset="mine")], Reading())


def test_a_broken_file_is_named(spnet, tmp_path):
    write(tmp_path / "mine" / "test", ("a", "b"))
    (tmp_path / "mine" / "test" / "GT" / "b.png").write_text("no picture")
    with pytest.raises(BadFileError, match=r"1 of 2 pictures cannot be used:\n.*b\.png"):
        set_up(source="folder", root=str(tmp_path / "mine"))
    assert len(set_up(source="folder", root=str(tmp_path / "mine"), on_bad_file="skip").test_pictures[0]) == 1


# ---- order, seeds, options


def test_polarity_looks_at_a_few_pictures_at_even_distances(spnet, files, monkeypatch):
    looked = []
    monkeypatch.setattr("projects.hodinet.samples._polarity", lambda reading, sample: looked.append(sample.stem) or 0.5)
    rows = polarity_report(files.train_set.pictures.samples, Reading(), limit=3)
    assert [row["pictures"] for row in rows] == [3, 3]
    assert len(set(looked)) == 6


def test_epochs_augment_anew_but_runs_do_not():
    pictures = TrainingPictures(DrawnScenes("train", 4, 0, 32, "default"), 32, "group", seed=1)
    again = TrainingPictures(DrawnScenes("train", 4, 0, 32, "default"), 32, "group", seed=1)
    assert torch.equal(pictures[2]["image"], again[2]["image"])
    assert not torch.equal(pictures[2]["image"], pictures[6]["image"])
    assert pictures[6]["index"] == 2


def test_an_epoch_is_dealt_in_its_own_order():
    data = set_up(**SCENES)
    loader = data.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch["index"] for batch in loader]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]


def test_sets_that_are_inverted_go_by_the_names_of_tables_and_variants_of_scenes_are_no_sets():
    given = {"all": "all", None: None, ("NJUD_FULL", "mine"): ["NJU2K", "mine"]}
    for names, inverted in given.items():
        assert SaliencyData("folder", "nowhere", invert=list(names) if isinstance(names, tuple) else names).reading.inverted == inverted
    assert SaliencyData(variant="inverted", invert=["inverted"]).reading.inverted is None


def test_fewer_pictures_than_processes_are_refused_before_any_training(monkeypatch):
    monkeypatch.setattr("projects.hodinet.data.world_size", lambda: 6)
    with pytest.raises(ValueError, match=r"6 processes share 5 of validation, 5 of default pictures, and each needs one: start fewer"):
        set_up(**SCENES)
    assert len(set_up(**SCENES | {"test_length": 6}).test_pictures[0]) == 6


def test_other_processes_read_the_same(spnet):
    loaders = [set_up(source="spnet", root=str(spnet), size=32, batch_size=4, num_workers=workers).train_dataloader() for workers in (0, 1)]
    batches = [next(iter(loader)) for loader in loaders]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nyu"}, "data.source 'nyu' is not known"),
        ({"source": "auto"}, r"--data\.root FOLDER"),
        ({"size": 16}, "data.size must be at least 32"),
        ({"val_fraction": 0}, r"data.val_fraction must be in \(0, 1\)"),
        ({"length": 0}, "data.length and data.test_length"),
        ({"duplicates": 40}, "data.duplicates must be from 0 to 31"),
        ({"augmentation": "mixup"}, "data.augmentation must be one of none, flip, group"),
        ({"modality": "lidar"}, "data.modality must be one of depth, thermal"),
        ({"test_sets": ["SIP"]}, "name variants with data.source scenes .*, not SIP"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        set_up(**{**SCENES, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sets": 3000}, "data.train_sets must be 2185 or 2985, or a list"),
        ({"train_sets": ["SIP"]}, "data.train_sets names SIP, but these have training pictures: NJU2K, NLPR, DUT-RGBD"),
        ({"test_sets": ["SIP"]}, "data.test_sets names SIP, but these have test pictures: NJU2K, DUT-RGBD, STERE"),
        ({"invert": ["SIP"]}, "data.invert names SIP, but the sets are"),
    ],
)
def test_sets_that_are_not_there_are_named(spnet, options, message):
    with pytest.raises(ValueError, match=message):
        set_up(source="spnet", root=str(spnet), **options)


def test_where_nothing_is_learnt_test_sets_are_enough(tmp_path, write):
    write(tmp_path / "TestDataset" / "NJU2K", ("b", "a"))
    data = SaliencyData(source="auto", root=str(tmp_path), train_sets="2985", duplicates=4)
    with pytest.raises(ValueError, match=r"data\.train_sets names NJU2K"):
        data.setup()
    data.is_learning = False
    data.prepare_data()
    assert [len(pictures) for pictures in data.test_pictures] == [2]
    assert not len(data.train_set)
    assert data.polarity == []
