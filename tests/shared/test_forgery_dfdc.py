"""DFDC and its preview in miniature, and the messages for what is missing or does not fit."""

import json
import logging
import shutil

import pytest
from helpers.forgery_layouts import (
    PREVIEW,
    loaded,
    seen,
    video,
    write_preview,
)

from shared.data.files import BadFileError
from shared.forgery.layouts import reference
from shared.forgery.sets import REAL


def write_dfdc_parts(root):
    """Write DFDC as DeepfakeBench lays it out: parts to train on with what each fake was made of, and the test set's labels."""
    for part in range(2):
        place = root / "DFDC" / "train" / f"dfdc_train_part_{part}"
        content = {}
        for number in range(3):
            real, fake = f"r{part}{number}", f"f{part}{number}"
            content |= {f"{real}.mp4": {"label": "REAL", "split": "train"}, f"{fake}.mp4": {"label": "FAKE", "original": f"{real}.mp4"}}
            for name in (real, fake):
                video(place / "frames" / name)
        (place / "metadata.json").write_text(json.dumps(content | {"uncut.mp4": {"label": "REAL"}}))
    for name in ("aaa", "bbb"):
        video(root / "DFDC" / "test" / "frames" / name)
    (root / "DFDC" / "test" / "labels.csv").write_text("filename,label\naaa.mp4,0\nbbb.mp4,1\n")
    return root


def test_dfdc_in_parts(tmp_path):
    data = loaded(write_dfdc_parts(tmp_path), source="reference", train_set="DFDC", batch_size=2)
    assert seen(data.test_sets[0]) == [("DFDC", "bbb"), (REAL, "aaa")]
    assert len(seen(data.train_set.frames) + seen(data.val_set)) == 12
    for part in (data.train_set.frames, data.val_set):
        fakes, originals = ({name[1:] for kind, name in seen(part) if (kind == REAL) == is_real} for is_real in (False, True))
        assert fakes == originals, "fakes stay with what they were made of"
    file = tmp_path / "DFDC" / "train" / "dfdc_train_part_1" / "metadata.json"
    file.write_text(file.read_text().replace('"FAKE"', '"FORGED"'))
    with pytest.raises(BadFileError, match=r"metadata\.json, f10\.mp4: 'FORGED' is no label"):
        reference(tmp_path, "DFDC")
    file.write_text('{"f10.mp4": ["FAKE"]}')
    with pytest.raises(BadFileError, match=r'metadata\.json does not say \{"f10\.mp4": .*take it from its archive anew'):
        reference(tmp_path, "DFDC")
    shutil.rmtree(tmp_path / "DFDC" / "train")
    assert list(reference(tmp_path, "DFDC")) == ["test"]


def test_dfdc_whose_parts_have_no_frames(tmp_path):
    write_dfdc_parts(tmp_path)
    shutil.rmtree(tmp_path / "DFDC" / "test")
    for place in (tmp_path / "DFDC" / "train").iterdir():
        shutil.rmtree(place / "frames")
    with pytest.raises(FileNotFoundError, match=r"no frames: expected .*DFDC/train/<part>/frames/<video>"):
        reference(tmp_path, "DFDC")


@pytest.mark.parametrize("place", ["frames/{key}", "{key}", "{first}/frames/{name}"])
def test_dfdc_preview(tmp_path, caplog, place):
    root = write_preview(tmp_path, place)
    with caplog.at_level(logging.WARNING):
        parts = reference(root, "DFDCP")
    assert "1 of 10 videos have no frames and are left out: method_B/2040724/2040724_C/1795659_2040724_C_000.mp4" in caplog.text
    assert {split: [clip.video.manipulation for clip in clips] for split, clips in parts.items()} == {
        "train": [REAL, REAL, REAL, "method_A", "method_B", "method_A", "method_B"],
        "test": [REAL, "method_A"],
    }
    assert {clip.video.name.rsplit("/", 1)[-1]: sorted(clip.video.identities) for clip in parts["train"]} == {
        "643093_F": ["DFDCP/643093"],
        "1003254_A": ["DFDCP/1003254"],
        "2059066_B": ["DFDCP/2059066"],
        "1255229_643093_F_001": ["DFDCP/1255229", "DFDCP/643093"],
        "643093_1003254_A_001": ["DFDCP/1003254", "DFDCP/643093"],
        "3001001_2059066_B_001": ["DFDCP/2059066", "DFDCP/3001001"],
        "2040724_1003254_A_002": ["DFDCP/1003254", "DFDCP/2040724"],
    }
    assert [len(clip.frames) for clip in parts["test"]] == [4, 4]


def test_training_on_dfdc_preview_leaves_out_people_of_its_test_set(tmp_path, caplog):
    data = loaded(write_preview(tmp_path), source="reference", train_set="DFDCP", train_frames=2, batch_size=2)
    learnt = {name.rsplit("/", 1)[-1] for _, name in seen(data.train_set.frames) + seen(data.val_set)}
    assert learnt == {"643093_F", "1003254_A", "2059066_B", "1255229_643093_F_001", "643093_1003254_A_001", "3001001_2059066_B_001"}
    assert "1 of 7 training videos show people or source videos that are held out: DFDCP/2040724" in caplog.text
    people = [{person for video in part.videos for person in video.identities} for part in (data.train_set.frames, data.val_set)]
    assert not people[0] & people[1]


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("method_A/a.mp4", {"label": "forged", "set": "train"}, "'forged' is no label"),
        ("method_A/a.mp4", {"label": "fake", "set": "dev"}, "'dev' is no split"),
        ("method_A/a.mp4", {"label": "fake"}, "is not like"),
        ("method_A/a.mp4", ["fake"], "is not like"),
        ("method_A/a.mp4", {"label": "real", "set": "train"}, "called real but lies in method_A"),
        ("original_videos/a.mp4", {"label": "fake", "set": "train"}, "called fake but lies in original_videos"),
        ("method_A/a.mp4", {"label": "fake", "set": "train", "target_id": [1]}, r"target_id and swapped_id \[\[1\]\]"),
        ("../a.mp4", {"label": "fake", "set": "train"}, "is no path like"),
        ("a.mp4", {"label": "fake", "set": "train"}, "is no path like"),
        ("", {"label": "fake", "set": "train"}, "is no path like"),
    ],
)
def test_entries_of_dfdc_preview_that_will_not_do(tmp_path, key, entry, message):
    (tmp_path / "DFDCP" / "frames").mkdir(parents=True)
    (tmp_path / "DFDCP" / "dataset.json").write_text(json.dumps({key: entry}))
    with pytest.raises(BadFileError, match=rf"dataset\.json, {key}: .*{message}"):
        reference(tmp_path, "DFDCP")


def test_dfdc_preview_without_frames(tmp_path):
    (tmp_path / "DFDCP" / "frames").mkdir(parents=True)
    (tmp_path / "DFDCP" / "dataset.json").write_text(json.dumps(PREVIEW))
    with pytest.raises(FileNotFoundError, match=r"no frames: expected .*DFDCP/frames/<class>"):
        reference(tmp_path, "DFDCP")
    (tmp_path / "DFDCP" / "dataset.json").write_text("[]")
    with pytest.raises(BadFileError, match=r"dataset\.json is not like"):
        reference(tmp_path, "DFDCP")
