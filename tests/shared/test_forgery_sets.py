"""Sets of frames, who may be in which split, and protocols."""

import json
import logging

import numpy as np
import pytest
import torch
from helpers.forgery_layouts import frame

from shared.data.files import BadFileError
from shared.data.selection import evenly_spaced
from shared.forgery.faces import faces
from shared.forgery.sets import REAL, Clip, ForgerySet, FrameFiles, Video, frames_of, natural
from shared.forgery.splits import divide, guard, identities, leave_one_out, official_pairs, one_against_rest, within


def clip(kind, name, people=None, dataset="FaceForensics++"):
    shown = identities(dataset, name) if people is None else frozenset(people)
    return Clip(Video(dataset, kind, name, shown), (f"{name}.png",))


def test_batches_and_parts():
    videos = [Video("d", REAL, "0"), Video("d", "a", "0"), Video("d", "b", "0")]
    found = ForgerySet(torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2), videos, torch.tensor([0, 0, 1, 1, 2, 2]))
    batch = found.__getitems__([5, 0])
    assert {name: value.dtype for name, value in batch.items()} == {
        "image": torch.uint8,
        "label": torch.int64,
        "video": torch.int64,
        "index": torch.int64,
    }
    assert batch["label"].tolist() == [1, 0]
    assert batch["video"].tolist() == [2, 0], "videos of one name are told apart by their manipulation"
    assert found.kinds == ("a", "b")
    part = found.select(["b"])
    assert part.frames[:, 0, 0, 0].tolist() == [0, 1, 4, 5]
    assert part.video.tolist() == [0, 0, 1, 1]
    assert part.manipulations == [REAL, REAL, "b", "b"]
    assert found[3]["image"].shape == (3, 2, 2)
    with pytest.raises(ValueError, match="no manipulation c; there are: a, b"):
        found.select(["c"])
    with pytest.raises(ValueError, match="6 frames with 2 numbers"):
        ForgerySet(found.frames, videos, torch.tensor([0, 1]))


def test_frames_are_evenly_spaced():
    assert evenly_spaced(12, 4) == [0, 3, 6, 9], "the reference's picks"
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 8) == [0, 1, 2]
    assert evenly_spaced(3, 6, repeat=True) == [0, 0, 1, 1, 2, 2]
    assert evenly_spaced(100, 100) == list(range(100))
    with pytest.raises(ValueError, match="at least one frame"):
        evenly_spaced(3, 0)


def test_names_are_sorted_as_people_count():
    assert sorted(["f10.png", "f9.png", "a.png", "12.png", "2.png", "f9b.png"], key=natural) == [
        "2.png", "12.png", "a.png", "f9.png", "f9b.png", "f10.png",
    ]  # fmt: skip
    assert sorted(["x².png", "x٣.png"], key=natural), "whatever characters are in them"


def test_frames_of_files_are_read_when_their_turn_comes(tmp_path):
    paths = [str(frame(tmp_path / f"{number}.png", 10 * number, size=9)) for number in range(8)]
    clips = [Clip(Video("d", REAL, "r"), tuple(paths[:4])), Clip(Video("d", "a", "f"), tuple(paths[4:])), Clip(Video("d", "a", "empty"), ())]
    found = frames_of(clips, 2, 16, real_count=4)
    assert found.video.tolist() == [0, 0, 0, 0, 1, 1]
    batch = found.__getitems__([1, 5])
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["image"][:, 0, 3, 3].tolist() == [10, 60]
    assert found.subset([5, 1]).__getitems__([0])["image"].unique().tolist() == [60]
    (tmp_path / "6.png").write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"6\.png"):
        FrameFiles(paths, 16)[torch.tensor([6])]
    with pytest.raises(ValueError, match="no frames"):
        frames_of(clips[2:], 2, 16)


def test_who_is_seen():
    assert identities("FF-DF", "000_003") == {"FaceForensics++/000", "FaceForensics++/003"}
    assert identities("FaceForensics++_C23", "original/000") == identities("FF-DF_c40", "000") == {"FaceForensics++/000"}
    assert identities("Celeb-DF-v2", "Celeb-synthesis/id0_id16_0002") == {"Celeb-DF-v2/id0", "Celeb-DF-v2/id16"}
    assert identities("DeepFakeDetection", "26_18__walking_fast__8RMVXQ9P") == {"DeepFakeDetection/26", "DeepFakeDetection/18"}
    assert identities("DFDCP", "1255229_1003254_A_001") == {"DFDCP/1255229", "DFDCP/1003254"}
    assert identities("DFDCP", "original_videos/643093/643093_F") == {"DFDCP/643093"}
    assert identities("CDF", "YouTube-real/00170") == {"CDF/YouTube-real/00170"}
    assert identities("WDF", "fake_train/170") == identities("WDF", "fake_train/170/fake/3") == {"WDF/fake_train/170"}
    assert identities("WDF", "12") == {"WDF/12"}
    assert identities("WDF", "fake/a1") == {"WDF/fake/a1"}
    assert identities("DFR", "fake/000_M101") == {"FaceForensics++/000", "DFR/M101"}, "DeeperForensics swaps faces in FaceForensics++'s videos"
    assert identities("DeeperForensics-1.0", "W136_light_up_surprise_camera_down") == {"DeeperForensics-1.0/W136"}
    assert identities("DFR", "real/000") == {"FaceForensics++/000"}
    assert identities("DFR", "real/some video") == {"DFR/real/some video"}
    assert identities("Celeb-DF-v1", "id0_0001") == identities("Celeb-DF-v2", "id0_0007"), "the first version is a part of the second"


def test_both_orders_of_a_pair_belong_to_its_split(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([["071", "054"]]))
    assert official_pairs(path) == {"071", "054", "071_054", "054_071"}
    for text in ("[1]", "{", '[["a"]]', '[["a", 2]]'):
        path.write_text(text)
        with pytest.raises(BadFileError, match=r"train\.json"):
            official_pairs(path)


def test_divisions_keep_people_together():
    clips = [clip("Deepfakes", f"{2 * n:03d}_{2 * n + 1:03d}") for n in range(8)] + [clip(REAL, f"{n:03d}") for n in range(16)]
    first, second = divide(clips, 0.25, seed=0)
    assert len(second) == 6, "two of eight pairs, each with two real videos"
    assert len(first) + len(second) == len(clips)
    people = [{person for one in part for person in one.video.identities} for part in (first, second)]
    assert not people[0] & people[1]
    assert {one.video.name for one in divide(clips[::-1], 0.25, seed=0)[1]} == {one.video.name for one in second}
    with pytest.raises(ValueError, match="cannot be divided: add videos"):
        divide(clips[:1], 0.25, 0)


def test_examples_are_of_both_classes_and_of_several_videos():
    made = faces("test", 40, "swap", size=16)
    for count in (1, 2, 5, 6):
        chosen = made.examples(count)
        assert made.labels[chosen].tolist() == [0] * (count - count // 2) + [1] * (count // 2)
        assert len(made.video[chosen].unique()) == count
    assert sorted(made.examples(100)) == list(range(40))


def test_both_parts_have_both_classes_where_that_can_be():
    fakes, reals = ([clip(kind, f"{kind}{number}", [f"{kind}{number}"]) for number in range(5)] for kind in ("swap", REAL))
    for seed in range(10):
        assert [sorted({one.video.label for one in part}) for part in divide(fakes + reals, 0.125, seed)] == [[0, 1], [0, 1]]
        first, _ = divide(fakes + reals[:1], 0.125, seed)
        second = {one.video.label for one in divide(fakes + reals[:1], 0.125, seed)[1]}
        assert second == {1} or {one.video.label for one in first} == {1}, "one real video cannot be in both"


@pytest.mark.parametrize("fraction", [0.5, 0.125])
def test_where_all_hang_together_people_are_divided_one_by_one(fraction, caplog):
    rng = np.random.default_rng(0)
    pairs = {tuple(rng.choice(24, 2, replace=False)) for _ in range(160)}
    clips = [clip("swap", f"id{a}_id{b}_0000", dataset="Celeb-DF-v2") for a, b in pairs]
    clips += [clip(REAL, f"id{a}_{number:04d}", dataset="Celeb-DF-v2") for a in range(24) for number in range(2)]
    parts = divide(clips, fraction, seed=0)
    people = [{person for one in part for person in one.video.identities} for part in parts]
    assert not people[0] & people[1]
    assert len(people[1]) == 24 * fraction
    kept = sum(len(part) for part in parts)
    assert f"{len(clips) - kept} of {len(clips)} videos show people of both parts" in caplog.text
    assert all({one.video.label for one in part} == {0, 1} for part in parts)
    assert sum(one.video.label == 0 for part in parts for one in part) == 48, "a real video shows one person and is never left out"


def test_people_who_are_seen_together_mostly_stay_together():
    chain = [clip("swap", f"c{number}", [f"p{number:02d}", f"p{number + 1:02d}"]) for number in range(39)]
    clips = chain + [clip(REAL, f"r{number}", [f"p{number:02d}"]) for number in range(40)]
    parts = divide(clips, 0.5, seed=3)
    assert len(clips) - len(parts[0]) - len(parts[1]) <= 2, "a chain is cut at its start and at one more place"
    assert [len(part) for part in parts] != [0, 0]


def test_leaks_are_named_and_removed(caplog):
    train = [clip(REAL, "000"), clip("Deepfakes", "000_003"), clip(REAL, "030"), clip("Deepfakes", "031_030"), clip(REAL, "005", dataset="FF-DF")]
    test = [clip(REAL, "030"), clip(REAL, "031"), clip(REAL, "005")]
    with caplog.at_level(logging.WARNING):
        kept = guard(train, test, "remove")
    assert [one.video.name for one in kept] == ["000", "000_003"], "FF-DF holds the videos of FaceForensics++"
    assert "2 of 5 training videos are held out too: 030, 005; they are removed" in caplog.text
    assert "1 of 3 training videos show people or source videos that are held out: FaceForensics++/030, FaceForensics++/031" in caplog.text
    assert [one.video.name for one in guard(train, test, "keep")] == ["000", "000_003", "031_030"]
    with pytest.raises(ValueError, match="held out too: 030, 005; divide them otherwise"):
        guard(train, test, "refuse")
    with pytest.raises(ValueError, match=r"FaceForensics.*/030.*divide them otherwise"):
        guard(train[3:4], test, "refuse")
    with pytest.raises(ValueError, match=r"no training videos remain.*take another set"):
        guard(test, test, "remove")
    with pytest.raises(ValueError, match="on_leak: keep"):
        guard([clip("a", "x", ["p"])], [clip(REAL, "y", ["p"])], "remove")


def test_protocols():
    kinds = [REAL, "b", "a", "c"]
    assert within(kinds).tests == (("a", "b", "c"), ("a",), ("b",), ("c",))
    assert one_against_rest(kinds, "b").train == ("b",)
    assert one_against_rest(kinds, "b").tests == (("a",), ("b",), ("c",))
    assert leave_one_out(kinds, "b").train == ("a", "c")
    assert leave_one_out(kinds, "b").tests == (("b",),)
    with pytest.raises(ValueError, match="no manipulation d"):
        one_against_rest(kinds, "d")
    with pytest.raises(ValueError, match="leaves no manipulation to learn"):
        leave_one_out(["a"], "a")
