"""One form for drawn trays, MVTec LOCO AD, CAD-SD and folders of the user's own."""

import numpy as np
import pytest
import torch
from PIL import Image

from projects.comad.data import InspectionData, resized
from projects.comad.drawing import COMPONENTS, Canvas, draw, scratch
from projects.comad.traysim import draw_tray, write_loco
from shared.data.files import BadFileError
from shared.seeding import generator

SMALL = {"length": 5, "val_length": 3, "test_length": 2, "size": 64, "batch_size": 4}
ROD = {"good": 6, "scratch": 2, "paint": 2, "over": 2, "lack": 2}


def set_up(**options):
    data = InspectionData(**options)
    data.prepare_data()
    return data


def draw_rod(index, kind):
    """Draw a screw rod with one hex nut, as CAD-SD has them, with a scratch or paint, or a nut too many or too few; (3, 70, 70) uint8."""
    chance = generator(0, "rods", kind, index)
    canvas = Canvas(70)
    canvas.image += 0.15
    thread = torch.tensor([0.6, 0.6, 0.62])[:, None, None] + 0.1 * (90 * canvas.columns).sin()
    canvas.lay((canvas.rows - 0.5).abs() - 0.06 + 0 * canvas.columns, thread)
    for place in {"over": (0.3, 0.6), "lack": ()}.get(kind, (0.4 + 0.2 * draw(chance),)):
        nut = torch.maximum((canvas.rows - 0.5).abs() - 0.12, (canvas.columns - place).abs() - 0.08)
        canvas.lay(nut, torch.tensor([0.75, 0.7, 0.5])[:, None, None])
    if kind == "scratch":
        scratch(canvas, chance, torch.ones(70, 70, dtype=torch.bool))
    if kind == "paint":
        canvas.lay(torch.hypot(canvas.rows - 0.5, canvas.columns - 0.8) - 0.08, torch.tensor([0.9, 0.2, 0.2])[:, None, None])
    return canvas.finished(chance)


def write_rods(root, names):
    """Write a miniature of CAD-SD, without a folder for validation and without masks."""
    for kind, folder in names.items():
        for index in range(10 if kind == "train" else ROD[kind]):
            path = root / folder / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_rod(index, kind).permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def loco(tmp_path_factory):
    root = tmp_path_factory.mktemp("loco")
    write_loco(root, length=5, val_length=3, test_length=2, size=64)
    return root


# ---- trays


def test_batches_of_trays():
    data = set_up(**SMALL)
    batch = next(iter(data.train_dataloader()))
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 64, 64), torch.uint8)
    assert (batch["label"].tolist(), batch["kind"], batch["index"].tolist()) == ([0] * 4, ["good"] * 4, [0, 1, 2, 3])
    assert torch.equal(batch["image"][2], draw_tray("train", 2, "good", 0, 64).image)
    assert (data.name, len(data.train_set), len(data.val_set), len(data.test_set)) == ("traysim", 5, 3, 16)
    tests = [item for batch in data.test_dataloader() for item in zip(batch["kind"], batch["label"].tolist(), strict=True)]
    assert tests[:4] == [("good", 0), ("good", 0), ("missing", 1), ("missing", 1)]
    assert len(tests) == 16
    assert {data.test_set.group(index) for index in (2, 4, 6, 8, 10)} == {"logical"}
    assert {data.test_set.group(index) for index in (12, 14)} == {"structural"}


def test_every_picture_is_given_once_and_in_order():
    data = set_up(**SMALL)
    for loader, count in ((data.train_dataloader(), 5), (data.val_dataloader(), 3), (data.test_dataloader(), 16)):
        assert torch.equal(torch.cat([batch["index"] for batch in loader]), torch.arange(count))


def test_trays_come_with_their_masks_and_components():
    data = set_up(**SMALL, kinds=["swap", "paint"])
    pins, rings = data.test_set.defects(2)
    tray = draw_tray("test", 0, "swap", 0, 64)
    assert torch.equal(pins.mask, tray.components == COMPONENTS.index("pin"))
    assert rings.saturation == rings.mask.sum()
    assert data.test_set.defects(0) == []
    assert torch.equal(data.test_set.tray(2).components, tray.components)
    assert (data.test_set.name(3), data.test_set.original_size(3)) == ("swap/001", (64, 64))
    with pytest.raises(IndexError, match="6"):
        data.test_set[6]


def test_splits_and_seeds_hold_different_trays():
    data, other = set_up(**SMALL), set_up(**SMALL, seed=1)
    pictures = [data.train_set[0], data.val_set[0], data.test_set[0], other.train_set[0]]
    assert len({picture["image"].numpy().tobytes() for picture in pictures}) == 4


def test_defaults_are_those_of_the_paper():
    data = set_up()
    assert (data.source, data.size, len(data.train_set), len(data.val_set), len(data.test_set)) == ("traysim", (128, 128), 120, 40, 8 * 40)
    assert InspectionData(source="loco").size == (224, 224)


# ---- MVTec LOCO AD


def test_files_hold_what_trays_do(loco):
    drawn = set_up(**SMALL)
    data = set_up(source="loco", root=str(loco), category="traysim", size=64)
    assert (data.name, len(data.train_set), len(data.val_set), len(data.test_set)) == ("traysim", 5, 3, 16)
    assert torch.equal(data.train_set[3]["image"], drawn.train_set[3]["image"])
    for index in range(16):
        read, tray = data.test_set[index], drawn.test_set[index]
        assert torch.equal(read["image"], tray["image"])
        assert (read["label"], data.test_set.group(index)) == (tray["label"], drawn.test_set.group(index))
        defects, known = data.test_set.defects(index), drawn.test_set.defects(index)
        assert [defect.type for defect in defects] == [defect.type for defect in known]
        assert all(torch.equal(one.mask, other.mask) for one, other in zip(defects, known, strict=True))
    assert [data.test_set.name(index) for index in (0, 2, 11, 12)] == [
        "good/000",
        "logical_anomalies/000",
        "logical_anomalies/009",
        "structural_anomalies/000",
    ]


def test_pictures_are_squeezed_and_masks_keep_their_size(loco):
    data = set_up(source="loco", root=str(loco), size=[32, 48])
    assert next(iter(data.test_dataloader()))["image"].shape[1:] == (3, 32, 48)
    assert data.test_set.defects(2)[0].mask.shape == data.test_set.original_size(2) == (64, 64)


def test_resizing_is_that_of_pillow():
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((56, 56), Image.Resampling.BILINEAR))
    assert (resized(image, (56, 56)).permute(1, 2, 0).int() - torch.from_numpy(expected.astype(np.int32))).abs().max() <= 1
    assert resized(image, (90, 130)) is image


# ---- folders


def test_cad_sd_is_read_and_validation_held_out(tmp_path, caplog):
    names = {"train": "train/good", **{kind: f"test/{kind}" for kind in ROD}}
    write_rods(tmp_path, names)
    data = set_up(source="cad_sd", root=str(tmp_path), size=64, val_fraction=0.3)
    assert (data.name, len(data.train_set), len(data.val_set), len(data.test_set)) == ("cad_sd", 7, 3, 14)
    held_out = {picture.path for picture in data.val_set.pictures}
    assert not held_out & {picture.path for picture in data.train_set.pictures}
    assert {picture.split for picture in data.val_set.pictures} == {"validation"}
    groups = {data.test_set[index]["kind"]: data.test_set.group(index) for index in range(14)}
    assert groups == {"good": "good", "scratch": "structural", "paint": "structural", "over": "logical", "lack": "logical"}
    assert data.test_set[13]["image"].shape == (3, 64, 64)
    assert data.test_set.defects(13) == []
    assert "published with 400" in caplog.text
    again = set_up(source="cad_sd", root=str(tmp_path), size=64, val_fraction=0.3)
    assert {picture.path for picture in again.val_set.pictures} == held_out
    other = set_up(source="cad_sd", root=str(tmp_path), size=64, val_fraction=0.3, seed=1)
    assert {picture.path for picture in other.val_set.pictures} != held_out


@pytest.mark.parametrize("train", ["train/0_good", "train/good"])
def test_cad_sd_is_read_in_the_numbered_folders_of_its_authors(tmp_path, train):
    numbered = {"good": "0_good", "scratch": "1_scratch", "paint": "2_paint", "over": "3_over-coupling", "lack": "4_lacking"}
    write_rods(tmp_path, {"train": train, **{kind: f"test/{folder}" for kind, folder in numbered.items()}})
    data = set_up(source="cad_sd", root=str(tmp_path), size=64, val_fraction=0.3)
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (7, 3, 14)
    groups = {data.test_set[index]["kind"]: data.test_set.group(index) for index in range(14)}
    assert groups == {"good": "good", "scratch": "structural", "paint": "structural", "over": "logical", "lack": "logical"}


def test_folders_of_cad_sd_may_have_other_names(tmp_path):
    names = {"train": "ok", "good": "normal", "scratch": "co occurrence/1", "over": "x"}
    write_rods(tmp_path, names)
    data = set_up(source="cad_sd", root=str(tmp_path), folders=names)
    assert [data.test_set.name(index) for index in (0, 6, 8)] == ["good/0000", "scratch/0000", "over/0000"]


def test_folders_with_validation_hold_nothing_out(tmp_path):
    write_rods(tmp_path, {"train": "train/good", "good": "test/good", "lack": "test/bad"})
    (tmp_path / "validation/good").mkdir(parents=True)
    for index in range(2):
        Image.new("RGB", (70, 70)).save(tmp_path / f"validation/good/{index}.png")
    data = set_up(source="folder", root=str(tmp_path), groups={"bad": "logical"})
    assert (len(data.train_set), len(data.val_set), data.test_set.group(0)) == (10, 2, "logical")
    assert next(iter(data.test_dataloader()))["label"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_good_pictures_are_held_out_for_the_test_where_there_are_only_bad_ones(tmp_path):
    write_rods(tmp_path, {"train": "good", "lack": "bad"})
    data = set_up(source="folder", root=str(tmp_path), val_fraction=0.3)
    kinds = [data.test_set[index]["kind"] for index in range(len(data.test_set))]
    assert (len(data.train_set), len(data.val_set), kinds) == (5, 3, ["good", "good", "bad", "bad"])
    seen = [data.test_set.pictures[index].path for index in range(2)] + [each.path for each in (*data.train_set.pictures, *data.val_set.pictures)]
    assert len(set(seen)) == 10


def test_bad_training_pictures_are_refused_or_skipped_and_bad_test_pictures_refused(tmp_path):
    write_rods(tmp_path, {"train": "train/good", "good": "test/good"})
    options = {"source": "folder", "root": str(tmp_path), "val_fraction": 0.3}
    (tmp_path / "train/good/0003.png").write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"0003.png"):
        set_up(**options)
    data = set_up(**options, on_bad_file="skip")
    assert len(data.train_set) + len(data.val_set) == 9
    (tmp_path / "test/good/0001.png").write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"0001.png"):
        set_up(**options, on_bad_file="skip")


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mvtec"}, "data.source"),
        ({"size": 16}, "data.size"),
        ({"size": [64, 64, 3]}, "data.size"),
        ({"size": [64, 96]}, "square"),
        ({"kinds": ["dent"]}, "data.kinds"),
        ({"kinds": ["good"]}, "data.kinds"),
        ({"test_length": 0}, "data.test_length"),
        ({"val_fraction": 1.0}, "data.val_fraction"),
        ({"on_bad_file": "ignore"}, "data.on_bad_file"),
        ({"source": "loco"}, "data.root"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        set_up(**options)


def test_one_training_picture_is_too_few_to_hold_any_out(tmp_path):
    write_rods(tmp_path, {"train": "train/good", "good": "test/good"})
    for index in range(1, 10):
        (tmp_path / f"train/good/{index:04}.png").unlink()
    with pytest.raises(ValueError, match="only one training picture"):
        set_up(source="folder", root=str(tmp_path))
