"""Lists of frames in NumPy files."""

import numpy as np
import pytest
from helpers.forgery_layouts import frame

from shared.data.files import BadFileError
from shared.forgery.data import ForgeryData
from shared.forgery.npy_lists import npy_lists
from shared.forgery.sets import REAL


def write_list(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(rows, **options))


def write_sets(root):
    """Write two sets: videos in folders of their own, some of them with Windows paths, and one folder a class."""
    for split, videos in (("train", range(4)), ("test", range(4, 6))):
        rows = []
        for video in videos:
            for label, name in ((0, f"Celeb-real/id{video}_0000"), (1, f"Celeb-synthesis/id{video}_id9{video}_0000")):
                for number in (10, 9):
                    frame(root / "CDF" / name / f"{number}.png", 10 * number + label)
                    rows.append([f"{name}/{number}.png".replace("/", "\\" if video % 2 else "/"), label])
        write_list(root / "CDF" / f"{split}.npy", rows)
    rows = [
        [str(frame(root / "elsewhere" / kind / f"{number}.png", number)), label] for label, kind in enumerate(("real", "fake")) for number in range(3)
    ]
    write_list(root / "WDF" / "test.npy", rows)
    return root


def test_folders_are_videos_unless_they_hold_a_class(tmp_path):
    root = write_sets(tmp_path)
    clips = npy_lists(root, "CDF")["train"]
    assert len(clips) == 8
    assert all([path.rsplit("/", 1)[1] for path in clip.frames] == ["9.png", "10.png"] for clip in clips)
    assert clips[1].video.identities == {"CDF/id0", "CDF/id90"}
    found = npy_lists(root, "WDF")
    assert list(found) == ["test"]
    assert [(clip.video.manipulation, len(clip.frames)) for clip in found["test"]] == [(REAL, 1)] * 3 + [("fake", 1)] * 3
    write_list(root / "mixed" / "train.npy", [["../elsewhere/real/0.png", 0], ["../elsewhere/real/1.png", 1], ["../elsewhere/fake/1.png", 1]])
    assert len(npy_lists(root, "mixed")["train"]) == 3


def test_sets_are_learnt_and_tested(tmp_path):
    options = {"source": "npy", "train_set": "CDF", "test_sets": ["CDF", "WDF"], "size": 16, "train_frames": 2, "batch_size": 2}
    data = ForgeryData(root=str(write_sets(tmp_path)), **options)
    data.setup()
    assert [len(part) for part in data.test_sets] == [8, 6]
    assert len(data.train_set) == 12, "one of four pairs of videos is for validation"
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert (batch["image"][:, 0, 0, 0] % 10).tolist() == batch["label"].tolist()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([["a.png", 0]], {"dtype": object}, r"np\.save\(file, rows\.astype\(str\)\)"),
        ([["a.png", 0, 1]], {}, r"of shape \(1, 3\): expected strings in rows of \[path, label\]"),
        ([[1.0, 2.0]], {}, "holds an array of float64"),
        ([["CDF/train.npy", "fake"]], {}, r"train\.npy: 'fake' is no label; write 0 for real, 1 for fake"),
        ([["CDF/train.npy", ""]], {}, r"train\.npy: '' is no label"),
    ],
)
def test_other_lists_are_refused(tmp_path, rows, options, message):
    write_list(tmp_path / "CDF" / "train.npy", rows, **options)
    with pytest.raises(BadFileError, match=message):
        npy_lists(tmp_path, "CDF")


def test_what_is_no_character_is_named(tmp_path):
    write_list(tmp_path / "CDF" / "train.npy", [["a", "0"]])
    path = tmp_path / "CDF" / "train.npy"
    path.write_bytes(path.read_bytes()[:-8] + b"\x00\x00\x11\x00" + b"0\x00\x00\x00")
    with pytest.raises(BadFileError, match=r"train\.npy: its texts have a character of code 0x110000"):
        npy_lists(tmp_path, "CDF")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train\.npy, val\.npy or test\.npy in .*CDF"):
        npy_lists(tmp_path, "CDF")
    write_list(tmp_path / "CDF" / "train.npy", [["a/b.png", 0]])
    with pytest.raises(FileNotFoundError, match=r"1 frames are missing:\n.*a/b\.png\n.*correct the paths in .*train\.npy"):
        npy_lists(tmp_path, "CDF")
    (tmp_path / "CDF" / "train.npy").write_bytes(b"no array")
    with pytest.raises(BadFileError, match="is no NumPy file of strings"):
        npy_lists(tmp_path, "CDF")
