"""What is learnt, what is tested on, and in what form, under every protocol."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from projects.tripinet.data import ManipulationData, PictureFiles, TrainingPictures, cut, divided, resized
from projects.tripinet.pairs import KINDS, Picture
from shared.data.files import BadFileError
from shared.data.offline import photographs
from shared.seeding import generator

PROCEDURAL = {"size": 32, "length": 24, "test_length": 8, "batch_size": 4}


def set_up(**options):
    data = ManipulationData(**options)
    data.prepare_data()
    return data


def save(path, number=0, mark=False):
    """Draw a picture that looks like no other, or a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mark:
        pixels = np.zeros((40, 50), np.uint8)
        pixels[10:30, 10:40] = 255
    else:
        pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(pixels).resize((50, 40)))
    Image.fromarray(pixels).save(path)


def write_casia_v2(root, count=8):
    for number in range(count):
        source = f"ani{number:05d}"
        save(root / "Tp" / f"Tp_S_NNN_S_N_{source}_{source}_{number:05d}.png", number)
        save(root / "CASIA 2 Groundtruth" / f"Tp_S_NNN_S_N_{source}_{source}_{number:05d}_gt.png", mark=True)
        save(root / "Au" / f"Au_ani_{number:05d}.png", 100 + number)


def write_casia_v1(root):
    for part, stem in (("Sp", "Sp_D_CNN_A_art0024_ani0032_0268"), ("CM", "Sp_S_CNN_A_nat0013_nat0013_0100")):
        save(root / "Tp" / part / f"{stem}.png", 50)
        save(root / "groundtruth" / part / f"{stem}_gt.png", mark=True)
    save(root / "Au" / "Au_ani_0032.png", 51)


def write_coverage(root, count=8):
    for number in range(1, count + 1):
        save(root / "image" / f"{number}.png", number)
        save(root / "image" / f"{number}t.png", number)
        save(root / "mask" / f"{number}forged.png", mark=True)


def write_folder(root, first, count):
    for number in range(first, first + count):
        save(root / "Tp" / f"{number}.png", number)
        save(root / "Gt" / f"{number}_gt.png", mark=True)


@pytest.fixture(scope="module")
def forged():
    return set_up(**PROCEDURAL)


def test_procedural_batches(forged):
    batch = next(iter(forged.train_dataloader()))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image": ((4, 3, 32, 32), torch.uint8),
        "mask": ((4, 1, 32, 32), torch.uint8),
        "label": ((4,), torch.int64),
        "kind": ((4,), torch.int64),
        "index": ((4,), torch.int64),
    }
    assert torch.equal(batch["mask"].amax((1, 2, 3)).long(), batch["label"])
    assert torch.equal(batch["kind"] > 0, batch["label"] == 1)


def test_procedural_tests_have_one_kind_each_of_the_same_hosts(forged):
    assert forged.test_names == ["noise", "jpeg", "resample", "splice", "copymove", "inpaint", "control"]
    loaders = dict(zip(forged.test_names, forged.test_dataloader(), strict=True))
    masks = {}
    for name in ("jpeg", "control"):
        batches = list(loaders[name])
        kinds = torch.cat([batch["kind"] for batch in batches])
        assert set(kinds.tolist()) == {0, KINDS.index(name)}
        masks[name] = torch.cat([batch["mask"] for batch in batches])
        assert len(masks[name]) == 8
    assert torch.equal(masks["jpeg"], masks["control"])


def test_epochs_are_augmented_anew_and_repeatably():
    data = set_up(**PROCEDURAL, augmentation="flips")

    def epoch(number):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        batches = list(loader)
        order = torch.cat([batch["index"] for batch in batches]).argsort()
        return torch.cat([batch["image"] for batch in batches])[order]

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(0), epoch(1))


def test_mvss(tmp_path, caplog):
    write_casia_v2(tmp_path / "casia_v2")
    write_coverage(tmp_path / "coverage", 2)
    data = set_up(source="mvss", root=str(tmp_path), test_sets=["coverage"], size=32, batch_size=2)
    learnt, val = data.train_set.pictures.pictures, data.val_set.pictures.pictures
    assert len(learnt) + len(val) == 16
    assert len(val) >= 2
    assert not {source for one in learnt for source in one.sources} & {source for one in val for source in one.sources}
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    whole = list(data.test_dataloader()[0])
    assert [batch["image"].shape for batch in whole] == [(1, 3, 40, 50)] * 4
    assert [int(batch["label"]) for batch in whole] == [1, 1, 0, 0]
    with pytest.raises(FileNotFoundError, match="no folder casia_v1"):
        set_up(source="mvss", root=str(tmp_path))


def test_cat_takes_equally_many_of_each_set(tmp_path):
    write_casia_v2(tmp_path / "casia_v2")
    write_coverage(tmp_path / "coverage", 2)
    for number in range(4):
        save(tmp_path / "fantastic_reality" / "ColorFakeImages" / f"{number}.png", 200 + number)
        (tmp_path / "fantastic_reality" / "SegmentationFake").mkdir(exist_ok=True)
        np.savez(tmp_path / "fantastic_reality" / "SegmentationFake" / f"{number}.npz", np.ones((40, 50)))
        save(tmp_path / "imd2020" / f"case{number}" / f"{number}_orig.png", 300 + number)
        save(tmp_path / "tampcoco" / "sp_images" / f"{number}.png", 400 + number)
        save(tmp_path / "tampcoco" / "sp_masks" / f"{number}.png", mark=True)
        save(tmp_path / "compraise" / f"{number}.png", 500 + number)
    data = set_up(source="cat", root=str(tmp_path), test_sets=["coverage"], per_set=4, size=32, batch_size=5)
    loader = data.train_dataloader()
    assert len(loader) == 4
    sets = [data.train_set.pictures.pictures[int(index)].dataset for batch in loader for index in batch["index"]]
    assert {name: sets.count(name) for name in sets} == dict.fromkeys(["casia_v2", "fantastic_reality", "imd2020", "tampcoco", "compraise"], 4)
    assert ManipulationData(source="cat").per_set == 1869


def test_pscc_ft(tmp_path):
    write_coverage(tmp_path / "coverage")
    data = set_up(source="pscc_ft", root=str(tmp_path), size=32, batch_size=2)
    learnt, val, tested = (one.pictures.pictures for one in (data.train_set, data.val_set, data.test_pictures[0]))
    assert [len(one) for one in (learnt, val, tested)] == [10, 2, 4]
    scenes = [{source for picture in one for source in picture.sources} for one in (learnt, val, tested)]
    assert len(set.union(*scenes)) == sum(map(len, scenes)) == 8
    write_casia_v2(tmp_path / "casia_v2")
    write_casia_v1(tmp_path / "casia_v1")
    casia = set_up(source="pscc_ft", root=str(tmp_path), finetune="casia", size=32, batch_size=2)
    assert casia.test_names == ["casia_v1"]
    assert {picture.dataset for picture in casia.train_set.pictures.pictures} == {"casia_v2"}


def test_what_casia_s_editions_share_under_other_names_is_not_learnt(tmp_path, caplog):
    write_casia_v2(tmp_path / "casia_v2")
    write_casia_v1(tmp_path / "casia_v1")
    shared = tmp_path / "casia_v2" / "Au" / "Au_ani_00003.png"
    Image.open(shared).resize((45, 36)).save(tmp_path / "casia_v1" / "Au" / "Au_nat_0007.png")
    for source, test_sets in (("mvss", ["casia_v1"]), ("pscc_ft", None)):
        caplog.clear()
        data = set_up(source=source, root=str(tmp_path), finetune="casia", test_sets=test_sets, size=32, batch_size=2)
        learnt = [picture.image for part in (data.train_set, data.val_set) for picture in part.pictures.pictures]
        assert shared not in learnt
        assert len(learnt) == 15
        assert f"{shared} and {tmp_path / 'casia_v1' / 'Au' / 'Au_nat_0007.png'} (same look)" in caplog.text


def test_lists_of_the_users_own(tmp_path):
    write_folder(tmp_path / "mine", 0, 6)
    write_folder(tmp_path / "others", 20, 2)
    (tmp_path / "test.json").write_text(json.dumps([[f"others/Tp/{number}.png", f"others/Gt/{number}_gt.png"] for number in (20, 21)]))
    own = {"source": "lists", "root": str(tmp_path), "train": "mine", "size": 32, "batch_size": 2}
    data = set_up(**own, test_sets=["test.json"])
    assert data.test_names == ["test"]
    assert len(data.train_set) + len(data.val_set) == 6
    given = set_up(**own, val="others", test_sets=["test.json"])
    assert len(given.train_set) == 6
    with pytest.raises(ValueError, match="all 6 training pictures"):
        set_up(**own, val="others", test_sets=["mine"])


def test_validation_takes_no_more_of_a_set_than_an_epoch_learns_of_it(tmp_path):
    write_folder(tmp_path / "mine", 0, 40)
    write_folder(tmp_path / "others", 60, 1)
    own = {"source": "lists", "root": str(tmp_path), "train": "mine", "test_sets": ["others"], "size": 32, "batch_size": 2}
    assert [len(set_up(**own, per_set=number).val_set) for number in (None, 10, 2)] == [5, 5, 2]


def test_squares_along_jpegs_grid_stay_along_it_when_pictures_are_turned(tmp_path):
    blocks = torch.randint(256, (6, 7), dtype=torch.uint8, generator=generator(0)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    Image.fromarray(blocks[:45, :51].numpy()).save(tmp_path / "blocks.png")
    pictures = TrainingPictures(PictureFiles([Picture(tmp_path / "blocks.png")]), 32, "flips", align=True)
    squares = torch.stack([pictures[epoch]["image"] for epoch in range(12)])
    assert len(squares.unique(dim=0)) > 4, "they are turned"
    patches = squares.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert torch.equal(patches.amax(4), patches.amin(4)), "no block is cut through"


def test_masks_of_another_size(tmp_path):
    write_folder(tmp_path / "mine", 0, 4)
    write_folder(tmp_path / "others", 20, 1)
    Image.fromarray(np.full((20, 25), 255, np.uint8)).save(tmp_path / "mine" / "Gt" / "2_gt.png")
    own = {"source": "lists", "root": str(tmp_path), "train": "mine", "test_sets": ["others"], "size": 32, "batch_size": 2}
    with pytest.raises(BadFileError, match=r"1 of 4 .*\n.*2_gt\.png has 20 x 25 pixels"):
        set_up(**own)
    assert len(set_up(**own, on_bad_file="skip").train_set) + 1 == 3
    assert len(set_up(**own, mask_fix=True).train_set) + 1 == 4


def test_formats_that_tell_the_classes_apart_are_said(tmp_path, caplog):
    write_casia_v2(tmp_path / "casia_v2", 16)
    for path in list((tmp_path / "casia_v2" / "Au").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    write_coverage(tmp_path / "coverage", 2)
    set_up(source="mvss", root=str(tmp_path), test_sets=["coverage"], size=32)
    assert "casia_v2: copymove: .png where real ones are .jpg" in caplog.text


def test_squares_are_cut_and_small_pictures_mirrored():
    image = photographs("train", 64, length=1)[0]["image"][:, :40, :].mul(255).byte()
    mask = (image[:1] > 128).byte()
    for number in range(8):
        square, own = cut(image, mask, 48, generator(number), grid=8)
        assert square.shape == (3, 48, 48)
        assert torch.equal(own, (square[:1] > 128).byte())
        assert torch.equal(square[:, 40:], square[:, 32:40].flip(1)), "the lower edge is mirrored"
        assert any(torch.equal(square[:, :40], image[:, :, left : left + 48]) for left in (0, 8, 16))
    small, own = resized(image, mask, 16)
    assert small.shape == (3, 16, 16)
    assert set(own.unique().tolist()) <= {0, 1}


def test_pictures_that_share_one_source_cannot_be_divided(tmp_path):
    pictures = [Picture(tmp_path / f"{number}.png", dataset="mine", sources=frozenset({"one"})) for number in range(4)]
    with pytest.raises(ValueError, match="4 pictures of mine share their sources"):
        divided(pictures, 0.25, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "web"}, "mvss: learns CASIA v2"),
        ({"source": "mvss", "train": "x"}, "for data.source lists"),
        ({"source": "lists", "train": "x"}, "data.test_sets"),
        ({"kinds": ["paint"]}, "choose of noise, jpeg"),
        ({"kinds": []}, "must name forgeries"),
        ({"authentic": 1.0}, r"\[0, 1\)"),
        ({"augmentation": "all"}, "none, flips, benco"),
        ({"finetune": "columbia"}, "coverage, casia, nist16"),
        ({"on_leak": "ignore"}, "remove, refuse, keep"),
        ({"size": 36, "align": True}, "multiple of 8"),
        ({"length": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ManipulationData(**options)
