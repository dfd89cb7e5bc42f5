"""Folders and lists that sets of forged videos are shared in, read into clips by split: names only, no image is opened."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from shared.data.files import EXTENSIONS, BadFileError, blamed, check_images, first_few, read_json
from shared.data.folders import OnBadFile
from shared.forgery.sets import REAL, Clip, Video, natural
from shared.forgery.splits import identities, official_pairs

Clips = dict[str, list[Clip]]
"""Clips of each split that a layout has: train, val and test."""

_SPELLINGS = {"NueralTextures": "NeuralTextures"}
_SPLITS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
_NO_CLASSES = ("landmarks", "masks")  # what tools put beside the classes
_CLASS_OF_SPLIT = re.compile(rf"(.+)[ _-]({'|'.join(one for spellings in _SPLITS.values() for one in spellings)})", re.IGNORECASE)  # fake_train
CELEB_LIST = "List_of_testing_videos.txt"
"""List by which Celeb-DF tells the videos to test on."""
ARCHIVE = "take it from its archive anew"
"""What to do about a damaged list."""

_log = logging.getLogger(__name__)


def reference(root: Path, dataset: str, compression: str = "c23") -> Clips:
    """Read a set in the layout of MoE-FFD's loader, whatever characters its names hold.

    `FaceForensics++/<compression>/{train,valid,test}/{original,<manipulation>}/<video>/*` has splits. Other sets, for testing, lie in
    `<dataset>/<class>/<video>/*`, a class being real if its name begins with `original` or contains `real`, and of a split if its name ends in
    `_train`, `_val` or `_test`, as WildDeepfake's do, or if folders of these names lie below it or above it; where a `List_of_testing_videos.txt`
    lies beside the classes, what it leaves out is for training. Videos are the folders that hold images, however deep they lie.
    `<dataset>/{frames/<video>/*,labels.csv}` is read as DFDC's test set, and a set with `dataset.json` as DFDC's preview.

    Raises:
        FileNotFoundError: if folders or frames are missing.
    """
    folder = root / dataset
    if (folder / compression).is_dir():
        return _split_classes(folder / compression, dataset, as_named=True)
    if not folder.is_dir():
        there = ", ".join(first_few(sorted(path.name for path in root.iterdir() if path.is_dir()))) if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"no set {dataset} in {root} (there: {there}): expected {folder}/<class>/<video>/<number>.png")
    if dataset == "FaceForensics++":
        expected = f"{folder}/{compression}/{{train,valid,test}}/{{original,Deepfakes,...}}/<video>/<number>.png"
        raise FileNotFoundError(f"no {compression} in {folder}: expected {expected}; or name another compression")
    if (folder / "labels.csv").is_file():
        return {"test": dfdc(folder, dataset)}
    if (folder / "dataset.json").is_file() and any((folder / name).is_dir() for name in ("frames", "original_videos")):
        return dfdc_preview(folder, dataset)
    if _split_folders(folder):
        return _split_classes(folder, dataset)
    clips = _classes(folder, dataset, "")
    if (folder / CELEB_LIST).is_file():
        listed = celeb_df_list(folder / CELEB_LIST)
        return {"train": [clip for clip in clips if clip.video.name not in listed], "test": [clip for clip in clips if clip.video.name in listed]}
    if lacks_celeb_list(folder):
        _log.warning("%s has no %s: all %d videos are tested on, not those of the list; put it beside the classes", folder, CELEB_LIST, len(clips))
    parts: Clips = {}
    for clip in clips:
        parts.setdefault(_split_of(clip.video.name), []).append(clip)
    return parts


def _split_of(name: str) -> str:
    """Return the split of a video that `<class>_<split>/<video>` or `<class>/<split>/<video>` names; others are to be tested on."""
    kind, *below = name.split("/")
    found = _CLASS_OF_SPLIT.fullmatch(kind)
    told = found[2] if found else below[0] if len(below) > 1 else ""
    return next((split for split, spellings in _SPLITS.items() if told.lower() in spellings), "test")


def lacks_celeb_list(folder: Path) -> bool:
    """Tell whether a folder holds Celeb-DF without its `CELEB_LIST`."""
    return all((folder / name).is_dir() for name in ("Celeb-real", "Celeb-synthesis")) and not (folder / CELEB_LIST).is_file()


def celeb_df_list(path: Path) -> frozenset[str]:
    """Read the names of Celeb-DF's test videos, `Celeb-synthesis/id0_id16_0002`, from lines such as `0 Celeb-synthesis/id0_id16_0002.mp4`.

    The digit is left aside: it is 1 for real there, the other way round than everywhere else.

    Raises:
        BadFileError: if a line is not like that.
    """
    names = set()
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        digit, _, name = line.strip().replace("\\", "/").partition(" ")
        if digit not in ("0", "1") or "/" not in name:
            raise BadFileError(f"{path}, line {number}: {line!r} is not like '1 YouTube-real/00170.mp4'; take the list that Celeb-DF brings")
        names.add(PurePosixPath(name.strip()).with_suffix("").as_posix())
    return frozenset(names)


def dfdc(folder: Path, dataset: str = "DFDC") -> list[Clip]:
    """Read `frames/<video>/*` with `labels.csv` (filename,label; 1 is fake), as DFDC's test set is shared.

    Raises:
        BadFileError: if the list lacks a column or a video's label.
        FileNotFoundError: if the list or the frames are missing.
    """
    labels = {Path(row["filename"]).stem: _label(row["label"], folder / "labels.csv") for row in _rows(folder / "labels.csv", ("filename", "label"))}
    clips = []
    for video in _folders(folder / "frames"):
        if video.name not in labels:
            raise BadFileError(f"{folder / 'labels.csv'} has no label for {video}: add it, or remove the folder")
        kind = "DFDC" if labels[video.name] else REAL
        clips.append(_clip(dataset, kind, video.name, _images(video)))
    return _not_empty(clips, folder / "frames" / "<video>" / "<number>.png")


def dfdc_preview(folder: Path, dataset: str = "DFDCP") -> Clips:
    """Read DFDC's preview, whose `dataset.json` says of every video `{"<class>/.../<video>.mp4": {"label", "set", "target_id", "swapped_id"}}`.

    The class is original_videos, method_A or method_B, which name the manipulations; the label is real or fake, the set train or test. People are
    the target and whose face was swapped in, or else those that the video's name tells. Frames of `<class>/.../<video>` lie in a folder of that name
    in `frames` or beside `dataset.json`, or in `<class>/frames/<video>` as DeepfakeBench cuts them out; videos without any are left out.

    Raises:
        BadFileError: if an entry is damaged.
        FileNotFoundError: if the list or all frames are missing.
    """
    file = folder / "dataset.json"
    content = read_json(file, ARCHIVE)
    if not isinstance(content, dict):
        raise BadFileError(f'{file} is not like {{"method_A/.../<video>.mp4": {{"label": "fake", ...}}}}: take the one that DFDC\'s preview brings')
    clips: Clips = {split: [] for split in _SPLITS}
    lacking = []
    for key, entry in content.items():
        split, video = _preview_video(key, entry, dataset, f"{file}, {key}")
        path = PurePosixPath(video.name)
        places = (folder / "frames" / path, folder / path, folder / path.parts[0] / "frames" / path.name)
        frames = next((images for place in places if place.is_dir() and (images := _images(place))), ())
        if frames:
            clips[split].append(Clip(video, frames))
        else:
            lacking.append(key)
    if lacking:
        _log.warning("%s: %d of %d videos have no frames and are left out: %s", file, len(lacking), len(content), ", ".join(first_few(lacking, 3)))
    _not_empty([clip for found in clips.values() for clip in found], folder / "frames" / "<class>" / "..." / "<video>" / "<number>.png")
    return {split: found for split, found in clips.items() if found}


def _preview_video(key: str, entry: Any, dataset: str, where: str) -> tuple[str, Video]:
    """Return the split and the video of an entry of `dataset.json`, `where` naming it in messages."""
    path = PurePosixPath(key.replace("\\", "/"))
    if len(path.parts) < 2 or path.is_absolute() or ".." in path.parts:
        raise BadFileError(f"{where}: it is no path like method_A/<target>/<video>.mp4; correct it")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("label", "set")):
        raise BadFileError(f'{where}: {entry!r} is not like {{"label": "fake", "set": "train", "target_id": ..., "swapped_id": ...}}; correct it')
    people = [entry[name] for name in ("target_id", "swapped_id") if entry.get(name) not in (None, "")]
    if not all(isinstance(person, str | int) for person in people):
        raise BadFileError(f"{where}: target_id and swapped_id {people} are neither numbers nor names; correct them")
    is_fake = bool(_label(entry["label"], where))
    if is_fake == path.parts[0].startswith("original"):
        raise BadFileError(f"{where}: it is called {entry['label']} but lies in {path.parts[0]}; correct one of the two")
    name = path.with_suffix("").as_posix()
    shown = frozenset(f"{dataset}/{person}" for person in people) or identities(dataset, name)
    return _split_name(entry["set"], where), Video(dataset, path.parts[0] if is_fake else REAL, name, shown)


def faceforensics(root: Path, compression: str = "c23", splits: Path | None = None) -> Clips:
    """Read FaceForensics++ as its download script lays it out, with frames cut out of the videos, and the official splits.

    `{original_sequences/youtube,manipulated_sequences/<manipulation>}/<compression>/frames/<video>/*`, and `{train,val,test}.json` in root or
    its `splits`. Videos in none of them are left out; how many of the lists' videos have no frames is said in a warning.

    Raises:
        FileNotFoundError: if lists or frames are missing.
        BadFileError: if a list is damaged.
    """
    places = [splits] if splits else [root, root / "splits", root / "dataset" / "splits"]
    folder = next((place for place in places if (place / "test.json").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"no train.json, val.json and test.json in {' or '.join(map(str, places))}: put FaceForensics++'s official splits there"
        )
    sources = {REAL: root / "original_sequences" / "youtube" / compression / "frames"}
    for method in _folders(root / "manipulated_sequences"):
        if (method / compression / "frames").is_dir() and method.name != "DeepFakeDetection":
            sources[_SPELLINGS.get(method.name, method.name)] = method / compression / "frames"
    pairs = {split: official_pairs(folder / f"{split}.json") for split in _SPLITS}
    clips: Clips = {split: [] for split in _SPLITS}
    for kind, frames in sources.items():
        expected = frames / "<video>" / "<number>.png"
        found = {video.name: images for video in (_folders(frames) if frames.is_dir() else []) if (images := _images(video))}
        if not found:
            raise FileNotFoundError(f"no frames of {kind}: expected {expected}, cut out of the videos")
        for split, names in pairs.items():
            wanted = {name for name in names if ("_" in name) == (kind != REAL)}
            clips[split] += [_clip("FaceForensics++", kind, name, found[name]) for name in found if name in wanted]
            if missing := wanted - found.keys():
                _log.warning("%d of %d %s videos of %s.json have no frames in %s", len(missing), len(wanted), kind, split, frames)
    return clips


def folder(root: Path) -> Clips:
    """Read `{train,val,test}/{real,fake/<manipulation>}/<video>/*`, where images that lie beside the videos are videos of their own.

    Raises:
        FileNotFoundError: if there is neither train nor test, one of them lacks real frames, or test lacks fake ones.
        ValueError: if the folders of fakes look like videos, without manipulations above them.
    """
    expected = f"{root}/{{train,val,test}}/{{real,fake/<manipulation>}}/<video>/<name>.png, or images in place of videos"
    clips: Clips = {}
    for split, place in _split_folders(root):
        found = _loose(place / "real", REAL, split) + _loose(place / "fake", "fake", split)
        for method in _folders(place / "fake") if (place / "fake").is_dir() else []:
            found += _loose(method, method.name, split)
        clips[split] = [clip for clip in found if clip.frames]
        _check_classes(clips[split], place, expected, both=split == "test")
        _check_depth(clips[split], place)
    if not clips:
        raise FileNotFoundError(f"no train, val or test in {root}: expected {expected}")
    return clips


def _check_depth(clips: list[Clip], place: Path) -> None:
    """Refuse `fake/<video>/*` beside `real/<video>/*`: each fake video would pass for a manipulation, and its frames for videos."""
    depths = {label: {len(Path(clip.frames[0]).relative_to(place).parts) for clip in clips if clip.video.label == label} for label in (0, 1)}
    if 3 in depths[0] and 3 in depths[1] and 4 not in depths[1]:
        raise ValueError(
            f"{place}: the folders of real hold the frames of videos, and those of fake, which are manipulations, hold single images: "
            "put the videos into fake/<manipulation>/<video>/, or, if all are single images, the real ones into real/ itself"
        )


def _loose(folder: Path, kind: str, split: str) -> list[Clip]:
    """Read the images of a folder as videos of one frame, and its sub-folders as videos; those of `fake` are manipulations, not videos."""
    if not folder.is_dir():
        return []
    images = [Clip(Video("folder", kind, f"{split}/{Path(path).name}"), (path,)) for path in _images(folder)]
    if kind == "fake":
        return images
    return images + [Clip(Video("folder", kind, f"{split}/{video.name}"), _images(video)) for video in _folders(folder)]


def table(root: Path) -> Clips:
    """Read a CSV file: `path,label[,video][,method][,split][,identity]`; root is one with splits, or a folder of train.csv, val.csv and test.csv.

    Paths are relative to the file's folder; labels are 0 or real, 1 or fake; a path without a video is a video of its own; identities are
    separated by spaces.

    Raises:
        BadFileError: if columns are missing or values will not do.
        FileNotFoundError: if there is no list, or images that it names are missing.
    """
    files = {"": root} if root.is_file() else {split: root / f"{split}.csv" for split in _SPLITS if (root / f"{split}.csv").is_file()}
    if not files:
        raise FileNotFoundError(f"{root} is no CSV file, and there is no train.csv, val.csv or test.csv in it: columns path,label,video,method,split")
    grouped: dict[str, dict[Video, list[str]]] = {}
    for split, file in files.items():
        for row in _rows(file, ("path", "label") if split else ("path", "label", "split")):
            part = split or _split_name(row["split"], file)
            grouped.setdefault(part, {}).setdefault(_video_of(row, file), []).append(str(file.parent / row["path"].replace("\\", "/")))
    check_there((path for videos in grouped.values() for paths in videos.values() for path in paths), root)
    return {split: [Clip(video, tuple(sorted(paths, key=natural))) for video, paths in videos.items()] for split, videos in grouped.items()}


def _video_of(row: dict[str, str], file: Path) -> Video:
    kind = (row.get("method") or "fake") if _label(row["label"], file) else REAL
    return Video("csv", kind, row.get("video") or row["path"], frozenset((row.get("identity") or "").split()))


def _split_name(name: str, where: str | Path) -> str:
    for split, spellings in _SPLITS.items():
        if name.strip().lower() in spellings:
            return split
    raise BadFileError(f"{where}: {name!r} is no split; write train, val or test")


def check_there(paths: Iterable[str], source: Path) -> None:
    """Check that files are there, without opening them.

    Args:
        paths: the files.
        source: the list that names them, for the message.

    Raises:
        FileNotFoundError: with the first few that are not.
    """
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 - there are a hundred thousand
    if missing:
        lines = [f"{len(missing)} frames are missing:", *first_few(missing), f"put them there, or correct the paths in {source} or the root"]
        raise FileNotFoundError("\n  ".join(lines))


def readable(clips: Sequence[Clip], on_bad_file: OnBadFile) -> list[Clip]:
    """Decode all frames once, and leave out those that cannot be read, or refuse them; see `shared.data.files.check_images`."""
    good = {str(path) for path in check_images([Path(frame) for clip in clips for frame in clip.frames], on_bad_file)}
    kept = [replace(clip, frames=tuple(frame for frame in clip.frames if str(Path(frame)) in good)) for clip in clips]
    return [clip for clip in kept if clip.frames]


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    """Find the folders of splits, however they are spelt."""
    return [(split, folder / name) for split, names in _SPLITS.items() for name in names if (folder / name).is_dir()]


def _split_classes(folder: Path, dataset: str, as_named: bool = False) -> Clips:
    clips = {split: _classes(place, dataset, None if as_named else f"{place.name}/") for split, place in _split_folders(folder)}
    if not clips:
        raise FileNotFoundError(f"no train, valid or test in {folder}: expected {folder}/train/original/<video>/<number>.png")
    return clips


def _classes(folder: Path, dataset: str, above: str | None) -> list[Clip]:
    """Read `<class>/<video>/*`; names of videos begin with `above` and the class, since there are several classes of real videos.

    A split is then no part of the manipulation: `fake_train` and `fake_test` are both fake. Where `above` is None, names are those of the folders.
    """
    clips = []
    for kind in (kind for kind in _folders(folder) if kind.name.lower() not in _NO_CLASSES):
        is_real = kind.name.lower().startswith("original") or "real" in kind.name.lower()
        found = None if above is None else _CLASS_OF_SPLIT.fullmatch(kind.name)
        manipulation = found[1] if found else kind.name
        for video, frames in _videos(kind):
            name = video if above is None else f"{above}{kind.name}/{video}"
            clips.append(_clip(dataset, REAL if is_real else _SPELLINGS.get(manipulation, manipulation), name, frames))
    _check_classes(clips, folder, f"{folder}/<class>/<video>/<number>.png, with real and fake classes")
    return clips


def _videos(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the folders below a class that hold images: their path, in which `frames` on the way does not count, and the images."""
    for place in (place for place in _folders(folder) if place.name.lower() not in _NO_CLASSES):
        if images := _images(place):
            yield place.name, images
        else:
            yield from ((name if place.name == "frames" else f"{place.name}/{name}", frames) for name, frames in _videos(place))


def _clip(dataset: str, kind: str, name: str, frames: tuple[str, ...]) -> Clip:
    return Clip(Video(dataset, kind, name, identities(dataset, name)), frames)


def _check_classes(clips: list[Clip], folder: Path, expected: str, both: bool = True) -> None:
    """Refuse a part without real frames or, if it needs both classes, without fake ones; fakes to learn from may be made of the real ones."""
    labels = {clip.video.label for clip in clips}
    if 0 not in labels or (both and 1 not in labels):
        lacking = "frames" if not labels else "fake frames" if 0 in labels else "real frames"
        raise FileNotFoundError(f"no {lacking} in {folder}: expected {expected}")


def _not_empty(clips: list[Clip], expected: Path) -> list[Clip]:
    if not any(clip.frames for clip in clips):
        raise FileNotFoundError(f"no frames: expected {expected}")
    return [clip for clip in clips if clip.frames]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, or is no folder: correct the root, or put the data there")
    return sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=lambda path: path.name)


def _images(folder: Path) -> tuple[str, ...]:
    """List the images of a folder in order of time; links that lead nowhere are among them, so that reading names them."""
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and not entry.is_dir()]
    return tuple(sorted(names, key=lambda path: (natural(path), path)))


def _text(path: Path) -> str:
    """Read a file of UTF-8, with or without a byte-order mark.

    Raises:
        BadFileError: if it is encoded otherwise.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not UTF-8 (at byte {error.start}): save it as UTF-8, as spreadsheets do for 'CSV UTF-8'") from error


def _rows(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with blamed(file, "save it as CSV in UTF-8"):
        reader = csv.DictReader(io.StringIO(_text(file)), skipinitialspace=True)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise BadFileError(f"{file} has no column {', '.join(missing)}: its first line must name the columns {','.join(columns)}, between commas")
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if not all(row[column] for column in columns):
            raise BadFileError(f"{file}, row {number}: {', '.join(column for column in columns if not row[column])} is empty; fill it in")
    return rows


def _label(value: str, where: str | Path) -> int:
    known = {"0": 0, "real": 0, "1": 1, "fake": 1}
    if value.strip().lower() not in known:
        raise BadFileError(f"{where}: {value!r} is no label; write 0 or real, 1 or fake")
    return known[value.strip().lower()]
