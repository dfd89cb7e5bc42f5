"""DeepfakeBench's lists of frames, one JSON file a set, with frames in files or in LMDB stores."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.data.files import BadFileError, first_few, read_image, read_json
from shared.forgery.listing import ARCHIVE, Clips, check_there
from shared.forgery.sets import REAL, Clip, Reader, Video, natural, stretched
from shared.forgery.splits import identities
from shared.forgery.stores import Store, open_store

COMPRESSIONS = ("c23", "c40", "raw")
"""Levels that some lists have between a split and its videos."""

REAL_LABELS = ("FF-real", "DFD_real", "CelebDFv1_real", "CelebDFv2_real", "DFDCP_Real", "DFDC_Real", "DF_real", "UADFV_Real")
"""Labels of real videos."""

FAKE_LABELS = {
    "FF-DF": "Deepfakes",
    "FF-F2F": "Face2Face",
    "FF-FS": "FaceSwap",
    "FF-NT": "NeuralTextures",
    "FF-FH": "FaceShifter",
    "FF-SH": "FaceShifter",
    **{name: name for name in ("DFD_fake", "CelebDFv1_fake", "CelebDFv2_fake", "DFDCP_FakeA", "DFDCP_FakeB", "DFDC_Fake", "DF_fake", "UADFV_Fake")},
}
"""Labels of fake videos, with the manipulations' names as other layouts have them."""

OF_FACEFORENSICS = ("FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FaceShifter", "DeepFakeDetection")
"""Lists whose frames lie with those of FaceForensics++, also in its store."""

_MARK = "datasets/rgb/"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """Where the parts of a DeepfakeBench installation lie."""

    lists: Path
    frames: Path
    stores: Path


def find_places(root: Path) -> Places:
    """Find `dataset_json`, `rgb` and `lmdb` in a folder: DeepfakeBench's own one, its `datasets`, or one that holds them.

    Raises:
        FileNotFoundError: if there are no lists.
    """
    candidates = [root / "dataset_json", root / "preprocessing" / "dataset_json", root.parent / "preprocessing" / "dataset_json"]
    lists = next((folder for folder in candidates if folder.is_dir()), None)
    if lists is None:
        raise FileNotFoundError(f"no dataset_json in {root}: expected {root}/dataset_json/<set>.json beside {root}/rgb/ (or /lmdb/)")

    def place(name: str) -> Path:
        return next((folder for folder in (root / name, root / "datasets" / name) if folder.is_dir()), root)

    return Places(lists, place("rgb"), place("lmdb"))


def benchmark(places: Places, dataset: str, compression: str = "c23", rewrite: tuple[str, str] | None = None, in_store: bool = False) -> Clips:
    """Read one set's list.

    Test videos are taken out of train and val with a warning, and a val whose videos are the test's, or all of train's, is left out: Celeb-DF's
    training list holds all videos, DeepFakeDetection's three lists are the same, and DFDC's val is its train where no test set was there.

    Args:
        places: where lists and frames lie.
        dataset: name of the list, such as `FaceForensics++` or `Celeb-DF-v2`.
        compression: level, for lists that have several.
        rewrite: beginning of the lists' paths, and what stands in its place; by default the part after `datasets/rgb/` is looked for in
            `places.frames`.
        in_store: keeps the lists' paths as they are, since they are a store's keys.

    Raises:
        FileNotFoundError: if the list or frames are missing.
        BadFileError: if the list is damaged, or has labels or a structure that are not known.
        ValueError: if it does not have the level.
    """
    path = places.lists / f"{dataset}.json"
    if not path.is_file():
        there = ", ".join(first_few(sorted(file.stem for file in places.lists.glob("*.json")))) or "none"
        raise FileNotFoundError(f"no list {path}: there are {there}")
    content = read_json(path, ARCHIVE)
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(next(iter(content.values())), dict):
        raise BadFileError(f'{path} is not like {{"{dataset}": {{"<label>": {{"train": ...}}}}}}: make it with DeepfakeBench\'s rearrange.py')
    clips: Clips = {"train": [], "val": [], "test": []}
    for label, splits in next(iter(content.values())).items():
        kind = _kind(label, path)
        for split, found in clips.items():
            for name, frames in _videos(splits, split, label, compression, path):
                paths = frames if in_store else [_rewritten(frame, places.frames, rewrite, path) for frame in frames]
                video = Video(dataset, kind, name, identities(dataset, name))
                found.append(Clip(video, tuple(sorted(paths, key=lambda one: natural(one.replace("\\", "/"))))))
    clips = without_test(clips, dataset)
    if not in_store:
        check_there((frame for found in clips.values() for clip in found for frame in clip.frames), path)
    return clips


def without_test(clips: Clips, dataset: str) -> Clips:
    """Take test videos out of train and val, and validation videos out of train; say how many."""
    taken = {clip.video.key for clip in clips["test"]}
    kept: Clips = {"test": clips["test"]}
    learnt, chosen = ({clip.video.key for clip in clips[split]} - taken for split in ("train", "val"))
    if learnt and learnt <= chosen:
        _log.warning("%s: val holds all videos of train, and is left out", dataset)
        clips = clips | {"val": []}
    for split in ("val", "train"):
        kept[split] = [clip for clip in clips[split] if clip.video.key not in taken]
        if len(kept[split]) < len(clips[split]):
            lost = len(clips[split]) - len(kept[split])
            _log.warning("%s: %d of %d videos in %s are also in a held-out split and are removed from it", dataset, lost, len(clips[split]), split)
        taken |= {clip.video.key for clip in kept[split]}
    return {split: kept[split] for split in clips if kept[split]}


def _kind(label: str, path: Path) -> str:
    if label in REAL_LABELS:
        return REAL
    if label in FAKE_LABELS:
        return FAKE_LABELS[label]
    if re.search(r"[_-](real|fake)", label, re.IGNORECASE):
        return REAL if re.search(r"[_-]real", label, re.IGNORECASE) else label
    known = ", ".join((*REAL_LABELS, *FAKE_LABELS))
    raise BadFileError(f"{path}: the label {label!r} is not known; there are {known}, and names ending in _real or _fake")


def _videos(splits: Any, split: str, label: str, compression: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Give the name and the frames of each video; what is malformed in val is left out, since DFDC's is."""
    videos = splits.get(split, {}) if isinstance(splits, Mapping) else None
    if isinstance(videos, Mapping) and videos and set(videos) <= set(COMPRESSIONS):
        if compression not in videos:
            raise ValueError(f"{path} has no compression {compression!r} for {label}: set it to one of {', '.join(sorted(videos))}")
        videos = videos[compression]
    if not isinstance(videos, Mapping) or not all(_is_video(video) for video in videos.values()):
        if split != "val":
            raise BadFileError(f"{path}: {label}, {split} is not {{video: {{'label': ..., 'frames': [...]}}}}; make the list anew")
        _log.warning("%s: the val split of %s is malformed and is left out", path, label)
        return
    for name, video in videos.items():
        if video["frames"]:
            yield name, video["frames"]


def _is_video(video: Any) -> bool:
    return isinstance(video, Mapping) and isinstance(video.get("frames"), list) and all(isinstance(frame, str) for frame in video["frames"])


def _rewritten(frame: str, root: Path, rewrite: tuple[str, str] | None, path: Path) -> str:
    """Return where a frame lies on this machine."""
    name = frame.replace("\\", "/")
    if rewrite is not None:
        old, new = (part.replace("\\", "/") for part in rewrite)
        if not name.startswith(old):
            raise ValueError(f"{path}: {frame} does not begin with {rewrite[0]!r}, which rewrite names")
        name = new + name[len(old) :]
    elif _MARK in name:
        name = name.split(_MARK, 1)[1]
    else:
        name = name.removeprefix("./datasets/")
    if ".." in name.split("/"):
        raise BadFileError(f"{path}: the frame {frame} leads out of its folder with '..'; write its path out")
    return str(root / name)


class StoredFrames:
    """Frames in an LMDB store, whose keys are paths and whose values are encoded images.

    The store is opened for each batch, which takes little beside decoding, so that each process has a file of its own.

    Args:
        keys: paths as the list has them.
        size: side of the square that frames are stretched to, in pixels.
        store: the store's folder.

    Raises:
        FileNotFoundError: if there is no store, or one lacks a frame.
        BadFileError: if the store or a frame in it is damaged.
    """

    def __init__(self, keys: Sequence[str], size: int, store: Path) -> None:
        self.size, self.store = size, store
        with open_store(store) as opened:
            found = [next((key for key in _spellings(name) if key in opened), None) for name in keys]
        missing = [name for name, key in zip(keys, found, strict=True) if key is None]
        if missing:
            raise FileNotFoundError("\n  ".join([f"{store} lacks {len(missing)} frames:", *first_few(missing), "make the store anew"]))
        self.keys = [key for key in found if key is not None]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, indices: Tensor) -> Tensor:
        with open_store(self.store) as opened:
            return torch.stack([self._decoded(self.keys[index], opened) for index in indices.tolist()])

    def _decoded(self, key: bytes, opened: Store) -> Tensor:
        try:
            return stretched(read_image(io.BytesIO(opened.get(key) or b"")), self.size)  # type: ignore[arg-type]  # Pillow opens files as well
        except BadFileError as error:
            raise BadFileError(f"cannot read the frame {key.decode(errors='replace')} of {self.store}: make the store anew") from error


def stored(places: Places, dataset: str) -> Reader:
    """Return what makes readers of the frames in a set's store from keys and size."""
    own, shared = (places.stores / f"{name}_lmdb" for name in (dataset, "FaceForensics++"))
    return partial(StoredFrames, store=shared if dataset in OF_FACEFORENSICS and not own.is_dir() else own)


def _spellings(name: str) -> Iterator[bytes]:
    """Give the keys that a path may be stored under: as it is, or from `datasets` on, or below it, with either slash.

    DeepfakeBench's own script joins a set's name and the path in it by a backslash, whatever slashes the path has.
    """
    path = name.replace("\\", "/").removeprefix("./")
    parts = [path, *(path.split(mark, 1)[1] for mark in ("datasets/", _MARK) if mark in path)]
    for spelling in (name, *(one for part in parts for one in (part, part.replace("/", "\\"), part.replace("/", "\\", 1)))):
        yield spelling.encode("utf-8", "surrogatepass")
