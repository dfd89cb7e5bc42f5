"""The real layouts in miniature, with the odd cases they are known for, and the messages for what is missing or does not fit."""

import json
import logging
import shutil

import pytest
import torch
from helpers.forgery_layouts import (
    found,
    frame,
    loaded,
    seen,
    video,
    write_celeb_list,
    write_faceforensics,
    write_folder,
    write_reference,
    write_table,
)

from shared.data.files import BadFileError
from shared.forgery.data import ForgeryData
from shared.forgery.layouts import celeb_df_list, faceforensics, folder, reference, table
from shared.forgery.sets import REAL


def test_reference(tmp_path, caplog):
    root = write_reference(tmp_path)
    write_celeb_list(root)
    data = loaded(
        root, source="reference", train_frames=2, test_frames=6, test_sets=["FaceForensics++", "FaceForensics++:NeuralTextures", "CDF", "DFDC"]
    )
    train = data.train_set.frames
    assert train.kinds == ("Deepfakes", "NeuralTextures"), "both spellings"
    assert len(train) == 6 * 4 + 12 * 2, "real videos give as many frames as both manipulations"
    assert train.labels.float().mean() == 0.5
    expected = [(kind, name) for kind in ("Deepfakes", "NeuralTextures") for name in ("020_021", "021_020")]
    assert seen(data.val_set) == [*expected, (REAL, "020"), (REAL, "021")]
    assert [len(part) for part in data.test_sets] == [6 * 6, 4 * 6, 2 * 3, 2 * 2]
    assert data.test_sets[1].kinds == ("NeuralTextures",)
    assert seen(data.test_sets[3]) == [("DFDC", "bbb"), (REAL, "aaa")]
    frames = data.test_sets[0].__getitems__(list(range(6)))["image"][:, 0, 0, 0]
    assert (frames % 50).tolist() == [0, 2, 4, 6, 8, 10], "evenly spaced, and sorted as numbers"
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert len(data.test_dataloader()) == len(data.test_names) == 4
    assert not caplog.records


def test_reference_with_other_names_and_celeb_df_s_list(tmp_path, caplog):
    root = write_reference(tmp_path)
    clips = reference(root, "WDF")["test"]
    assert found(clips) == [("fake", "fake_test/a video"), (REAL, "real_test/a video")]
    assert [path.rsplit("/", 1)[-1] for path in clips[0].frames] == ["frame b9.png", "frame b10.png"]
    assert not caplog.text
    assert len(reference(root, "CDF")["test"]) == 4
    assert "CDF lacks Celeb-DF's List_of_testing_videos.txt: all 4 videos are tested on" in caplog.text
    assert celeb_df_list(write_celeb_list(root)) == {"YouTube-real/00170", "Celeb-synthesis/id0_id1_0001"}, "whatever the digit says"
    parts = reference(root, "CDF")
    assert found(parts["test"]) == [("Celeb-synthesis", "Celeb-synthesis/id0_id1_0001"), (REAL, "YouTube-real/00170")]
    assert found(parts["train"]) == [("Celeb-synthesis", "Celeb-synthesis/id2_id3_0009"), (REAL, "Celeb-real/id0_0001")]
    (root / "CDF" / "List_of_testing_videos.txt").write_text("YouTube-real/00170.mp4\n")
    with pytest.raises(BadFileError, match="line 1"):
        reference(root, "CDF")


def test_celeb_df_s_list_in_other_letters_and_with_videos_that_are_not_there(tmp_path, caplog):
    root = write_reference(tmp_path)
    with write_celeb_list(root).open("a") as listed:
        listed.write("0 Celeb-synthesis/id7_id8_0003.mp4\n")
    (root / "CDF" / "YouTube-real").rename(root / "CDF" / "Youtube-real")
    parts = reference(root, "CDF")
    assert found(parts["test"]) == [("Celeb-synthesis", "Celeb-synthesis/id0_id1_0001"), (REAL, "Youtube-real/00170")]
    assert "List_of_testing_videos.txt: 1 of 3 videos to test on have no frames beside it: Celeb-synthesis/id7_id8_0003" in caplog.text


@pytest.mark.parametrize(
    ("real", "fake"),
    [("DFD_original sequences", "DFD_manipulated_sequences/DFD_manipulated_sequences"), ("source", "target"), ("real/frames", "fake/frames")],
)
def test_classes_as_copies_call_them(tmp_path, real, fake):
    """DeepFakeDetection on Kaggle, FFIW as it is released, UADFV as DeepfakeBench cuts it out."""
    video(tmp_path / "set" / real / "01__kitchen")
    video(tmp_path / "set" / fake / "01_02__kitchen__ABC")
    assert [clip.video.label for clip in reference(tmp_path, "set")["test"]] in ([0, 1], [1, 0])
    assert {clip.video.label for clip in reference(tmp_path, "set")["test"] if clip.video.name.endswith("ABC")} == {1}


def test_faceforensics_without_folders_of_splits_is_divided_by_its_official_ones(tmp_path, caplog):
    """A copy of one compression as it is shared at Kaggle, with frames cut out of its videos."""
    source, copy = write_faceforensics(tmp_path / "source"), tmp_path / "FaceForensics++_C23"
    (copy / "csv").mkdir(parents=True)
    for frames in source.rglob("frames"):
        frames.rename(copy / frames.parent.parent.name.replace("youtube", "original"))
    video(copy / "DeepFakeDetection" / "01_02__meeting_serious__YVGY8LOK")
    assert set(reference(tmp_path, copy.name)) == {"test"}
    assert "FaceForensics++_C23 lacks FaceForensics++'s official train.json, val.json and test.json (dataset/splits in its repository)" in caplog.text
    with pytest.raises(ValueError, match=r"no videos to learn from.*: put FaceForensics\+\+'s official train\.json.* beside its classes"):
        loaded(tmp_path, source="reference", train_set=copy.name)
    caplog.clear()
    (source / "splits").rename(copy / "splits")
    parts = reference(tmp_path, copy.name)
    assert found(parts["val"]) == [
        *((kind, f"{kind}/{name}") for kind in ("Deepfakes", "NeuralTextures") for name in ("020_021", "021_020")),
        (REAL, "original/020"),
        (REAL, "original/021"),
    ]
    assert {split: len(clips) for split, clips in parts.items()} == {"train": 18, "val": 6, "test": 6}
    assert not caplog.records
    assert len(loaded(tmp_path, source="reference", train_set=copy.name).train_set.frames.kinds) == 2
    copy.rename(tmp_path / "FaceForensics++")
    assert len(reference(tmp_path, "FaceForensics++")["train"]) == 18, "by the name of the whole set, too"


def test_ffiw_has_its_splits_below_its_classes(tmp_path):
    for kind in ("source", "target"):
        for split in ("train", "val", "test"):
            video(tmp_path / "FFIW" / kind / split / f"{split}_0001")
    assert {split: [clip.video.label for clip in clips] for split, clips in reference(tmp_path, "FFIW").items()} == {
        "train": [0, 1],
        "val": [0, 1],
        "test": [0, 1],
    }


def test_classes_that_name_their_split(tmp_path, caplog):
    """WildDeepfake as it is downloaded: what is for training is not tested on."""
    for kind in ("real", "fake"):
        for number in range(8):
            video(tmp_path / "WDF" / f"{kind}_train" / str(number))
        video(tmp_path / "WDF" / f"{kind}_test" / "0")
    data = loaded(tmp_path, source="reference", train_set="WDF", batch_size=2)
    assert seen(data.test_sets[0]) == [("fake", "fake_test/0"), (REAL, "real_test/0")]
    assert len(seen(data.train_set.frames) + seen(data.val_set)) == 16
    assert data.train_set.frames.kinds == ("fake",)
    assert "has no validation split: an eighth of the training videos is taken" in caplog.text
    for kind in ("real", "fake"):
        (tmp_path / "WDF" / f"{kind}_test").rename(tmp_path / "WDF" / f"{kind}_Val")
    assert found(reference(tmp_path, "WDF")["val"]) == [("fake", "fake_Val/0"), (REAL, "real_Val/0")]


@pytest.mark.parametrize("place", ["{kind} {split}/{number}", "{kind}/{split}/{number}", "{split}/{kind}/{number}"])
def test_sequences_of_a_video_stay_together_wherever_splits_are_written(tmp_path, place):
    """WildDeepfake as its archives are unpacked: several sequences of faces of each video."""
    for kind in ("real", "fake"):
        for number in range(100, 108):
            for sequence in "01":
                video(tmp_path / "WDF" / place.format(kind=kind, split="train", number=number) / kind / sequence)
        video(tmp_path / "WDF" / place.format(kind=kind, split="test", number=100) / kind / "0")
    data = loaded(tmp_path, source="reference", train_set="WDF", batch_size=2)
    assert len(data.test_sets[0].videos) == 2
    assert seen(data.test_sets[0])[0] == ("fake", place.format(kind="fake", split="test", number=100) + "/fake/0")
    learnt, chosen = ({(kind, name.rsplit("/", 2)[0]) for kind, name in seen(part)} for part in (data.train_set.frames, data.val_set))
    assert len(learnt) + len(chosen) == 16
    assert not learnt & chosen


def test_frames_of_benchmarks_are_found_and_masks_are_none(tmp_path):
    for kind in ("Celeb-real", "Celeb-synthesis"):
        for part in ("frames", "masks", "landmarks"):
            video(tmp_path / "CDF" / kind / part / "id0_0001")
    assert found(reference(tmp_path, "CDF")["test"]) == [("Celeb-synthesis", "Celeb-synthesis/id0_0001"), (REAL, "Celeb-real/id0_0001")]


def test_reference_with_parts_missing(tmp_path):
    root = write_reference(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no set XDF in .*there: CDF, DFDC, FaceForensics\+\+, WDF"):
        loaded(root, source="reference", test_sets=["XDF"])
    with pytest.raises(FileNotFoundError, match="no c40 in"):
        loaded(root, source="reference", compression="c40")
    with pytest.raises(ValueError, match=r"CDF in .* has no videos to learn from.*: put Celeb-DF's List_of_testing_videos\.txt beside"):
        loaded(root, source="reference", train_set="CDF")
    with pytest.raises(ValueError, match="no manipulation FaceSwap; there are: Deepfakes, NeuralTextures"):
        loaded(root, source="reference", manipulations=["FaceSwap"])
    (root / "DFDC" / "labels.csv").write_text("filename,label\naaa.mp4,0\n")
    with pytest.raises(BadFileError, match=r"no label for .*bbb"):
        loaded(root, source="reference", test_sets=["DFDC"])
    with pytest.raises(ValueError, match=r"say where they lie with --data.root"):
        ForgeryData(source="reference").prepare_data()


def test_faceforensics(tmp_path):
    data = loaded(
        write_faceforensics(tmp_path),
        source="faceforensics",
        train_frames=1,
        test_frames=2,
        manipulations=["Deepfakes"],
        test_sets=["NeuralTextures"],
    )
    assert seen(data.train_set.frames) == [
        *(("Deepfakes", name) for name in ("000_003", "003_000", "004_007", "007_004", "010_011", "011_010")),
        *((REAL, name) for name in ("000", "003", "004", "007", "010", "011")),
    ]  # fmt: skip
    assert seen(data.test_sets[0]) == [("NeuralTextures", "030_031"), ("NeuralTextures", "031_030"), (REAL, "030"), (REAL, "031")]
    assert data.val_set.kinds == ("Deepfakes",), "only what is learnt chooses a model"
    (tmp_path / "splits" / "test.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no splits in .*: put FaceForensics\+\+'s official train\.json"):
        loaded(tmp_path, source="faceforensics")


def test_faceforensics_as_its_own_script_cuts_it_out(tmp_path, caplog):
    root = write_faceforensics(tmp_path / "FaceForensics++")
    for place in root.rglob("frames"):
        place.rename(place.with_name("images"))
    (root / "manipulated_sequences" / "FaceSwap" / "c23" / "videos").mkdir(parents=True)
    assert {clip.video.manipulation for clip in faceforensics(root)["test"]} == {"Deepfakes", "NeuralTextures", REAL}
    assert "FaceSwap is left out: there are no frames in" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"no c23 in .*read it with data\.source faceforensics and data\.root .*FaceForensics"):
        reference(tmp_path, "FaceForensics++")


def test_leaking_pairs_are_removed_or_refused(tmp_path, caplog):
    root = write_faceforensics(tmp_path)
    (root / "splits" / "train.json").write_text(json.dumps([["000", "003"], ["004", "030"]]))
    video(root / "manipulated_sequences" / "Deepfakes" / "c23" / "frames" / "004_030")
    with caplog.at_level(logging.WARNING):
        data = loaded(root, source="faceforensics")
    assert "FaceForensics++/030" in caplog.text
    assert {name for _, name in seen(data.train_set.frames)} == {"000", "003", "000_003", "003_000", "004"}
    with pytest.raises(ValueError, match="held out too: 030; divide them otherwise"):
        loaded(root, source="faceforensics", on_leak="refuse")


def test_folder(tmp_path):
    root = write_folder(tmp_path)
    data = loaded(root, source="folder", train_frames=5, test_frames=5)
    assert data.train_set.frames.kinds == ("mine", "other")
    assert len(data.test_sets[0]) == 4 * 5 + 1 + 4 * 5 + 1
    assert loaded(root, source="folder", test_sets=["mine"]).test_sets[0].kinds == ("mine",)
    frame(root / "train" / "real" / "bad.png", 1).write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"bad\.png"):
        loaded(root, source="folder", on_bad_file="refuse")
    assert len(loaded(root, source="folder", train_frames=5, on_bad_file="skip").train_set) == len(data.train_set)
    with pytest.raises(FileNotFoundError, match="no train, val or test in"):
        loaded(tmp_path / "train", source="folder")


def test_fake_videos_without_a_manipulation_above_them_are_refused(tmp_path):
    root = write_folder(tmp_path)
    shutil.rmtree(root / "train" / "fake")
    for number in range(3):
        video(root / "train" / "fake" / f"clip {number}", 5)
    with pytest.raises(ValueError, match=r"train: .* put the videos into fake/<manipulation>/<video>/"):
        loaded(root, source="folder")
    for path in list((root / "train" / "real").iterdir()):
        if path.is_dir():
            frame(root / "train" / "real" / f"{path.name}.png", 1)
            shutil.rmtree(path)
    assert len({clip.video.name for clip in folder(root)["train"]}) == 5 + 5, "where all are single images, folders of fakes are manipulations"


def test_a_validation_that_cannot_tell_epochs_apart_is_refused_or_named(tmp_path, caplog):
    path = write_table(tmp_path)
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    path.write_text("\n".join(line for line in lines if not ("real" in line and ",val," in line)))
    with pytest.raises(ValueError, match=r"faces\.csv has no real videos to validate on"):
        loaded(path, source="csv")
    path.write_text("\n".join(line for line in lines if not (",1," in line and ",val," in line)))
    blended = loaded(path, source="csv").val_set
    assert "epochs are chosen by fakes that are blended" in caplog.text
    assert blended.__getitems__(range(len(blended)))["label"].float().mean() == 0.5


def test_validation_has_its_own_number_of_frames(tmp_path):
    data = loaded(write_reference(tmp_path), source="reference", test_frames=6, val_frames=2)
    assert [len(part) // len(part.videos) for part in (data.val_set, data.test_sets[0])] == [2, 6]


def test_table(tmp_path):
    path = write_table(tmp_path)
    data = loaded(path, source="csv", train_frames=2)
    assert data.train_set.frames.kinds == ("mine",)
    assert data.test_sets[0].__getitems__([0, 1])["image"][:, 0, 0, 0].tolist() == [9, 10]
    assert data.train_set.frames.videos[0].identities == {"persontrain0"}
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in ("train", "test"):
        frame(lists / "r.png", 1)
        frame(lists / "f.png", 2)
        (lists / f"{split}.csv").write_text("path,label\nr.png,0\nf.png,fake\n")
    assert found(table(lists)["train"]) == [("fake", "f.png"), (REAL, "r.png")]
    with pytest.raises(ValueError, match="no training videos remain"):
        loaded(lists, source="csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.png\n", "no column label, split"),
        ("path,label,split\na.png,2,test\n", "'2' is no label"),
        ("path,label,split\na.png,1,dev\n", "'dev' is no split"),
        ("path,label,split\na.png,,test\n", "row 2: label is empty"),
    ],
)
def test_tables_that_will_not_do(tmp_path, text, message):
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(BadFileError, match=message):
        loaded(tmp_path / "faces.csv", source="csv")


def test_table_with_images_missing(tmp_path):
    (tmp_path / "faces.csv").write_text("path,label,split\na.png,1,test\n")
    with pytest.raises(FileNotFoundError, match=r"1 frames are missing:[\s\S]*a\.png"):
        loaded(tmp_path / "faces.csv", source="csv")


def test_folders_as_people_have_them(tmp_path):
    """Hidden files, thumbnails, empty folders, upper-case endings, names of other scripts, links, and validation spelt another way."""
    root = write_folder(tmp_path / "data")
    expected, frames = found(folder(root)["train"]), len(loaded(root, source="folder", train_frames=5).train_set)
    for split in ("train", "test"):
        (root / split / "fake" / "__MACOSX" / "clip").mkdir(parents=True)
        (root / split / "fake" / "none yet" / "clip").mkdir(parents=True)
        for name in (".DS_Store", "Thumbs.db", "._0.png"):
            (root / split / "real" / "clip 0" / name).write_bytes(b"no picture")
    (root / "val").rename(root / "valid")
    for path in (root / "train" / "real" / "clip 0").glob("[0-9]*"):
        path.rename(path.with_suffix(".PNG"))
    (root / "train" / "real" / "clip 1").rename(tmp_path / "elsewhere")
    (root / "train" / "real" / "clïp 東").symlink_to(tmp_path / "elsewhere")
    assert found(folder(root)["train"]) == sorted((kind, name.replace("clip 1", "clïp 東") if kind == REAL else name) for kind, name in expected)
    data = loaded(root, source="folder", train_frames=5)
    assert data.train_set.frames.kinds == ("mine", "other")
    assert len(data.train_set) == frames, "what is empty does not count among the manipulations that real frames balance"
    assert len(seen(data.val_set)) == 10
    assert len(data.train_set.frames.__getitems__(list(range(len(data.train_set))))["image"]) == len(data.train_set)


def test_links_that_lead_nowhere_are_named(tmp_path):
    root = write_folder(tmp_path)
    path = root / "train" / "real" / "clip 0" / "2.png"
    path.unlink()
    path.symlink_to(tmp_path / "moved" / "2.png")
    data = loaded(root, source="folder", train_frames=5)
    with pytest.raises(FileNotFoundError, match=r"clip 0/2\.png"):
        data.train_set.__getitems__(list(range(len(data.train_set))))
    with pytest.raises(BadFileError, match=r"clip 0/2\.png"):
        loaded(root, source="folder", on_bad_file="refuse")


def test_classes_of_other_spellings_and_folders_that_are_none(tmp_path):
    root = write_reference(tmp_path)
    (root / "CDF" / "Celeb-real").rename(root / "CDF" / "Original_sequences")
    for name in ("masks", "landmarks"):
        video(root / "CDF" / name / "id0_id1_0001")
    assert {clip.video.manipulation for clip in reference(root, "CDF")["test"]} == {REAL, "Celeb-synthesis"}


def test_lists_of_other_systems(tmp_path):
    """Byte-order marks, Windows's ends of lines and slashes, blanks after commas; other encodings are named."""
    root = write_reference(tmp_path)
    listed = root / "CDF" / "List_of_testing_videos.txt"
    listed.write_bytes("\ufeff1 YouTube-real\\00170.mp4\r\n0 Celeb-synthesis/id0_id1_0001.mp4\r\n\r\n".encode())
    assert len(reference(root, "CDF")["test"]) == 2
    (root / "DFDC" / "labels.csv").write_bytes("\ufefffilename, label\r\naaa.mp4, REAL\r\nbbb.mp4, FAKE\r\n".encode())
    assert found(reference(root, "DFDC")["test"]) == [("DFDC", "bbb"), (REAL, "aaa")]
    for path, read in ((listed, "CDF"), (root / "DFDC" / "labels.csv", "DFDC")):
        path.write_bytes("filename,label\n1 café/000.mp4,0\n".encode("latin-1"))
        with pytest.raises(BadFileError, match=rf"{path.name} is not UTF-8 \(at byte 20\): save it as UTF-8"):
            reference(root, read)
    (root / "DFDC" / "labels.csv").write_text("filename;label\naaa.mp4;0\n")
    with pytest.raises(BadFileError, match=r"no column filename, label: .* between commas"):
        reference(root, "DFDC")


def test_faceforensics_in_part(tmp_path, caplog):
    root = write_faceforensics(tmp_path)
    for path in (root / "splits").iterdir():
        path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    shutil.rmtree(root / "manipulated_sequences" / "Deepfakes" / "c23" / "frames" / "000_003")
    for path in (root / "manipulated_sequences" / "Deepfakes" / "c23" / "frames" / "003_000").iterdir():
        path.unlink()
    parts = faceforensics(root)
    assert [clip.video.name for clip in parts["train"] if clip.video.manipulation == "Deepfakes"] == ["004_007", "007_004", "010_011", "011_010"]
    assert "2 of 6 Deepfakes videos of train.json have no frames in" in caplog.text
    (root / "original_sequences" / "youtube" / "c23" / "frames").rename(root / "original_sequences" / "youtube" / "c23" / "videos")
    with pytest.raises(FileNotFoundError, match=r"no frames of real: expected .*frames/<video>/<number>\.png, cut out of the videos"):
        faceforensics(root)


def test_what_is_learnt_from_needs_both_classes(tmp_path):
    root = write_folder(tmp_path)
    shutil.rmtree(root / "train" / "fake")
    shutil.rmtree(root / "val")
    with pytest.raises(ValueError, match=r"has no fake videos to learn from: add them, or set data\.self_blended"):
        loaded(root, source="folder")
    data = loaded(root, source="folder", self_blended=True, manipulations=[])
    assert data.train_set.frames.kinds == ()
    shutil.rmtree(root / "test" / "fake")
    with pytest.raises(FileNotFoundError, match=r"no fake frames in .*test: expected .*{real,fake"):
        loaded(root, source="folder", self_blended=True, manipulations=[])
    rows = [
        (frame(tmp_path / f"{number}.png", 1).name, label, split)
        for number, (label, split) in enumerate([(1, "train")] * 3 + [(0, "test"), (1, "test")])
    ]
    (tmp_path / "faces.csv").write_text("path,label,split\n" + "".join(f"{name},{label},{split}\n" for name, label, split in rows))
    with pytest.raises(ValueError, match=r"faces\.csv has no real videos to learn from"):
        loaded(tmp_path / "faces.csv", source="csv")
