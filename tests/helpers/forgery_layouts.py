"""Writers of miniature sets of forged videos in the layouts that users have, with the odd cases they are known for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from shared.forgery.data import ForgeryData

PAIRS = {"train": [["000", "003"], ["004", "007"], ["010", "011"]], "val": [["020", "021"]], "test": [["030", "031"]]}
METHODS = ("Deepfakes", "NeuralTextures")


def frame(path: Path, level: int, size: int = 20) -> Path:
    """Save a frame that is `level` everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), level, dtype=np.uint8)).save(path)
    return path


def video(folder: Path, count: int = 4, first: int = 0, size: int = 20) -> Path:
    """Save frames `0.png`, `1.png`, ..., whose level is their number."""
    for number in range(count):
        frame(folder / f"{number}.png", first + number, size)
    return folder


def names(split: str) -> list[str]:
    return [name for pair in PAIRS[split] for name in pair]


def fakes(split: str) -> list[str]:
    return [f"{a}_{b}" for one, other in PAIRS[split] for a, b in ((one, other), (other, one))]


def write_reference(root: Path, count: int = 12) -> Path:
    """Write FaceForensics++, CDF, WDF and DFDC as MoE-FFD's loader has them; one method is spelt as in its README, a folder has a space."""
    root = root / "my sets"
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        base = root / "FaceForensics++" / "c23" / folder
        for name in names(split):
            video(base / "original" / name, count)
        for name in fakes(split):
            video(base / "Deepfakes" / name, count, 100)
            video(base / "NueralTextures" / name, count, 150)
    for kind, name in (
        ("YouTube-real", "00170"),
        ("Celeb-real", "id0_0001"),
        ("Celeb-synthesis", "id0_id1_0001"),
        ("Celeb-synthesis", "id2_id3_0009"),
    ):
        video(root / "CDF" / kind / name, 3)
    for kind in ("real_test", "fake_test"):
        frame(root / "WDF" / kind / "a video" / "frame b10.png", 10)
        frame(root / "WDF" / kind / "a video" / "frame b9.png", 9)
    for name in ("aaa", "bbb"):
        video(root / "DFDC" / "frames" / name, 2)
    (root / "DFDC" / "labels.csv").write_text("filename,label\naaa.mp4,0\nbbb.mp4,1\nccc.mp4,1\n")
    return root


def write_celeb_list(root: Path) -> Path:
    path = root / "CDF" / "List_of_testing_videos.txt"
    path.write_text("1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0001.mp4\n")
    return path


def write_faceforensics(root: Path) -> Path:
    """Write the download script's tree with frames, and the official lists of pairs."""
    everything = list(PAIRS)
    for split in everything:
        for name in names(split):
            video(root / "original_sequences" / "youtube" / "c23" / "frames" / name)
        for method in METHODS:
            for name in fakes(split):
                video(root / "manipulated_sequences" / method / "c23" / "frames" / name, 4, 100)
    video(root / "original_sequences" / "youtube" / "c23" / "frames" / "999")
    (root / "splits").mkdir()
    for split in everything:
        (root / "splits" / f"{split}.json").write_text(json.dumps(PAIRS[split]))
    return root


def write_benchmark(root: Path, prefix: str = "D:\\work\\datasets\\rgb\\", in_files: bool = True) -> Path:
    """Write DeepfakeBench's lists and frames: FaceForensics++ with levels and Windows paths, Celeb-DF whose train holds all videos, DFDC with a
    malformed val."""
    (root / "dataset_json").mkdir(parents=True)
    ff: dict = {label: {split: {"c23": {}, "c40": {}} for split in PAIRS} for label in ("FF-real", "FF-DF", "FF-NT")}
    folders = {"FF-real": "original_sequences/youtube", "FF-DF": "manipulated_sequences/Deepfakes", "FF-NT": "manipulated_sequences/NeuralTextures"}
    for label, folder in folders.items():
        for split in PAIRS:
            for level in ("c23", "c40"):
                for name in names(split) if label == "FF-real" else fakes(split):
                    ff[label][split][level][name] = _entry(root, f"FaceForensics++/{folder}/{level}/frames/{name}", label, prefix, in_files)
    (root / "dataset_json" / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": ff}))
    celeb: dict = {"CelebDFv2_real": {}, "CelebDFv2_fake": {}}
    for label, folder, found in (
        ("CelebDFv2_real", "Celeb-real", ("id0_0000", "id5_0000", "id6_0000")),
        ("CelebDFv2_fake", "Celeb-synthesis", ("id0_id1_0000", "id5_id7_0000", "id6_id8_0000")),
    ):
        entries = {name: _entry(root, f"Celeb-DF-v2/{folder}/frames/{name}", label, prefix, in_files) for name in found}
        test = {found[0]: entries[found[0]]}
        celeb[label] = {"train": entries, "val": test, "test": test}
    (root / "dataset_json" / "Celeb-DF-v2.json").write_text(json.dumps({"Celeb-DF-v2": celeb}))
    dfdc = {}
    for label in ("DFDC_Real", "DFDC_Fake"):
        entries = {f"{label}{number}": _entry(root, f"DFDC/test/frames/{label}{number}", label, prefix, in_files) for number in range(2)}
        dfdc[label] = {"train": {}, "val": [["oops"]], "test": entries}
    (root / "dataset_json" / "DFDC.json").write_text(json.dumps({"DFDC": dfdc}))
    return root


def _entry(root: Path, folder: str, label: str, prefix: str, in_files: bool) -> dict:
    frames = [f"{folder}/{number:03d}.png" for number in range(12)]
    if in_files:
        for number, path in enumerate(frames):
            frame(root / "rgb" / path, number)
    shown = frames[::-1]  # lists are in no order
    if "\\" in prefix:
        shown = [path.replace("/", "\\") for path in shown]
    return {"label": label, "frames": [prefix + path for path in shown]}


def write_folder(root: Path) -> Path:
    """Write `{train,val,test}/{real,fake/<method>}` with videos, and images beside them."""
    for split in ("train", "val", "test"):
        for number in range(4):
            video(root / split / "real" / f"clip {number}", 5)
            video(root / split / "fake" / "mine" / f"clip {number}", 5, 100)
        frame(root / split / "real" / "alone.png", 1)
        frame(root / split / "fake" / "other" / "alone.png", 2)
    return root


def write_table(root: Path, split: str = "train") -> Path:
    """Write `faces.csv` with all columns, saved by a spreadsheet: a byte-order mark, a blank line, Windows slashes."""
    lines = ["path,label,video,method,split,identity"]
    for part in ("train", "val", "test"):
        for number in range(3):
            for label in ("real", "1"):
                for shot in (10, 9):
                    path = frame(root / "pictures" / part / f"{label} {number}" / f"{shot}.png", shot)
                    relative = str(path.relative_to(root)).replace("/", "\\")
                    lines.append(f"{relative},{label},{part}{number},{'' if label == 'real' else 'mine'},{part},person{part}{number}")
    (root / "faces.csv").write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    return root / "faces.csv"


PREVIEW = {
    "original_videos/643093/643093_F.mp4": {"label": "real", "set": "train", "augmentations": [], "target_id": 643093, "swapped_id": None},
    "original_videos/1003254/1003254_A.mp4": {"label": "real", "set": "train", "target_id": "1003254"},
    "original_videos/2059066/2059066_B.mp4": {"label": "real", "set": "train", "target_id": "2059066"},
    "original_videos/2040724/2040724_C.mp4": {"label": "real", "set": "test", "target_id": "2040724"},
    "method_A/643093/643093_F/1255229_643093_F_001.mp4": {"label": "fake", "set": "train", "target_id": 643093, "swapped_id": 1255229},
    "method_B/1003254/1003254_A/643093_1003254_A_001.mp4": {"label": "fake", "set": "train"},
    "method_A/2059066/2059066_B/3001001_2059066_B_001.mp4": {"label": "fake", "set": "train", "target_id": "2059066", "swapped_id": "3001001"},
    "method_B/1003254/1003254_A/2040724_1003254_A_002.mp4": {"label": "fake", "set": "train", "target_id": "1003254", "swapped_id": "2040724"},
    "method_A/2040724/2040724_C/1795659_2040724_C_001.mp4": {"label": "fake", "set": "test", "target_id": "2040724", "swapped_id": "1795659"},
    "method_B/2040724/2040724_C/1795659_2040724_C_000.mp4": {"label": "fake", "set": "test", "target_id": "2040724", "swapped_id": "1795659"},
}
"""Entries of `dataset.json` of DFDC's preview; one says no people, who are in its name, and people of train and test meet in one."""


def write_preview(root: Path, place: str = "frames/{key}") -> Path:
    """Write DFDCP with frames in `place`, made of the entry's `key`, its `first` part and its `name`; the last video has none."""
    keys = [key.removesuffix(".mp4") for key in PREVIEW]
    for key in keys[:-1]:
        first, *_, name = key.split("/")
        video(root / "DFDCP" / place.format(key=key, first=first, name=name), 4, 100 * (first != "original_videos"))
    (root / "DFDCP" / "dataset.json").write_text(json.dumps(PREVIEW))
    return root


def loaded(root, **options):
    """Read a set through the data module, small pictures in small batches."""
    data = ForgeryData(root=str(root), **({"size": 16, "batch_size": 4} | options))
    data.prepare_data()
    data.setup()
    return data


def found(clips):
    """Return manipulations and names of clips, sorted."""
    return sorted((clip.video.manipulation, clip.video.name) for clip in clips)


def seen(frames):
    """Return manipulations and names of the videos that frames are of, sorted."""
    return sorted({(video.manipulation, video.name) for video in frames.videos})
