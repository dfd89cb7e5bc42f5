"""Folders and lists that sets of forged videos are shared in, read into clips by split: names only, no image is opened."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from shared.data.files import BadFileError, check_images, first_few
from shared.data.folders import OnBadFile
from shared.forgery.dfdc import dfdc, dfdc_parts, dfdc_preview
from shared.forgery.listing import SPLITS, Clips, check_there, clip_of, find_split, folders_in, frames_in, label_of, rows_of, split_name, text_of
from shared.forgery.sets import REAL, Clip, Video, natural
from shared.forgery.splits import official_pairs

_SPELLINGS = {"NueralTextures": "NeuralTextures"}
_NO_CLASSES = ("landmarks", "masks")  # what tools put beside the classes
_CLASS_OF_SPLIT = re.compile(rf"(.+)[ _-]({'|'.join(one for spellings in SPLITS.values() for one in spellings)})", re.IGNORECASE)  # fake_train
CELEB_LIST = "List_of_testing_videos.txt"
"""List by which Celeb-DF tells the videos to test on."""
_OFFICIAL = "FaceForensics++'s official train.json, val.json and test.json (dataset/splits in its repository)"
_ACTORS = "DeepFakeDetection"  # of other videos than FaceForensics++'s, which its official splits do not divide

_log = logging.getLogger(__name__)


def reference(root: Path, dataset: str, compression: str = "c23") -> Clips:
    """Read a set in the layout of MoE-FFD's loader, whatever characters its names hold.

    `FaceForensics++/<compression>/{train,valid,test}/{original,<manipulation>}/<video>/*` has splits. Other sets, for testing, lie in
    `<dataset>/<class>/<video>/*`, a class being real if its name contains `original` or `real`, or is FFIW's `source`, and of a split if its
    name ends in `_train`, `_val` or `_test`, as WildDeepfake's do, or if folders of these names lie below it or above it; where a
    `List_of_testing_videos.txt` lies beside the classes, what it leaves out is for training, and FaceForensics++ in `{original,Deepfakes,...}`, as
    copies at Kaggle have it, is divided by its official splits, beside the classes or in `splits`. Videos are the folders that hold images, however
    deep they lie. `<dataset>/{frames/<video>/*,labels.csv}` is read as DFDC's test set, `<dataset>/{train,test}` with lists of their own as DFDC in
    parts, and a set with `dataset.json` as DFDC's preview.

    Raises:
        FileNotFoundError: if folders or frames are missing.
    """
    folder = root / dataset
    if (folder / compression).is_dir():
        return _split_classes(folder / compression, dataset, as_named=True)
    if not folder.is_dir():
        there = ", ".join(first_few(sorted(path.name for path in root.iterdir() if path.is_dir()))) if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"no set {dataset} in {root} (there: {there}): expected {folder}/<class>/<video>/<number>.png")
    if dataset == "FaceForensics++" and not _is_faceforensics(folder):
        expected = f"{folder}/{compression}/{{train,valid,test}}/{{original,Deepfakes,...}}/<video>/<number>.png"
        as_downloaded = (folder / "original_sequences").is_dir()
        mend = f"it lies as its download script has it: read it with data.source faceforensics and data.root {folder}"
        raise FileNotFoundError(f"no {compression} in {folder}: expected {expected}; {mend if as_downloaded else 'or name another compression'}")
    if (folder / "labels.csv").is_file():
        return {"test": dfdc(folder, dataset)}
    if (folder / "dataset.json").is_file() and any((folder / name).is_dir() for name in ("frames", "original_videos")):
        return dfdc_preview(folder, dataset)
    if parts := dfdc_parts(folder, dataset):
        return parts
    if _split_folders(folder):
        return _split_classes(folder, dataset)
    clips = _classes(folder, dataset, "")
    if (folder / CELEB_LIST).is_file():
        return _listed(clips, folder / CELEB_LIST)
    if lacking := lacking_list(folder):
        said = "%s lacks %s: all %d videos are tested on, not those that are listed for it; put what is lacking beside the classes"
        _log.warning(said, folder, lacking, len(clips))
    elif _is_faceforensics(folder):
        return _divided(clips, _official_splits([folder, folder / "splits"]), folder)
    parts = {}
    for clip in clips:
        parts.setdefault(_split_of(clip.video.name), []).append(clip)
    return parts


def _split_of(name: str) -> str:
    """Return the split of a video that `<class>_<split>/<video>` or `<class>/<split>/<video>` names; others are to be tested on."""
    kind, *below = name.split("/")
    found = _CLASS_OF_SPLIT.fullmatch(kind)
    return find_split(found[2] if found else below[0] if len(below) > 1 else "") or "test"


def lacking_list(folder: Path) -> str:
    """Name the lists by which Celeb-DF or FaceForensics++ in `<class>/<video>/*` is divided, where they do not lie beside the classes; else ""."""
    if all((folder / name).is_dir() for name in ("Celeb-real", "Celeb-synthesis")) and not (folder / CELEB_LIST).is_file():
        return f"Celeb-DF's {CELEB_LIST}"
    return _OFFICIAL if _is_faceforensics(folder) and not _official_splits([folder, folder / "splits"]) else ""


def _is_faceforensics(folder: Path) -> bool:
    """Tell whether the classes of FaceForensics++ lie in a folder without splits, as copies of one compression have them."""
    kinds = ("Deepfakes", "Face2Face", "FaceSwap", "FaceShifter", "NeuralTextures")
    return (folder / "original").is_dir() and any((folder / kind).is_dir() for kind in kinds)


def celeb_df_list(path: Path) -> frozenset[str]:
    """Read the names of Celeb-DF's test videos, `Celeb-synthesis/id0_id16_0002`, from lines such as `0 Celeb-synthesis/id0_id16_0002.mp4`.

    The digit is left aside: it is 1 for real there, the other way round than everywhere else.

    Raises:
        BadFileError: if a line is not like that.
    """
    names = set()
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if not line.strip():
            continue
        digit, _, name = line.strip().replace("\\", "/").partition(" ")
        if digit not in ("0", "1") or "/" not in name:
            raise BadFileError(f"{path}, line {number}: {line!r} is not like '1 YouTube-real/00170.mp4'; take the list that Celeb-DF brings")
        names.add(PurePosixPath(name.strip()).with_suffix("").as_posix())
    return frozenset(names)


def _listed(clips: list[Clip], path: Path) -> Clips:
    """Divide Celeb-DF by its list, whatever the case of letters: some copies have `Youtube-real`."""
    listed = {name.lower(): name for name in celeb_df_list(path)}
    parts: Clips = {"train": [], "test": []}
    for clip in clips:
        parts["test" if clip.video.name.lower() in listed else "train"].append(clip)
    if missing := sorted(listed.keys() - {clip.video.name.lower() for clip in parts["test"]}):
        said = "%s: %d of %d videos to test on have no frames beside it: %s"
        _log.warning(said, path, len(missing), len(listed), ", ".join(first_few([listed[name] for name in missing], 3)))
    return parts


def faceforensics(root: Path, compression: str = "c23", splits: Path | None = None) -> Clips:
    """Read FaceForensics++ as its download script lays it out, with frames cut out of the videos, and the official splits.

    `{original_sequences/youtube,manipulated_sequences/<manipulation>}/<compression>/{frames,images}/<video>/*`, `images` being where the set's own
    script puts frames, and `{train,val,test}.json` in root or its `splits`. Videos in none of them are left out; how many of the lists' videos have
    no frames is said in a warning, and so are manipulations without any.

    Raises:
        FileNotFoundError: if lists or frames are missing.
        BadFileError: if a list is damaged.
    """
    places = [splits] if splits else [root, root / "splits", root / "dataset" / "splits"]
    pairs = _official_splits(places)
    if not pairs:
        raise FileNotFoundError(f"no splits in {' or '.join(map(str, places))}: put {_OFFICIAL} there")
    sources = {REAL: _cut_out(root / "original_sequences" / "youtube" / compression)}
    for method in folders_in(root / "manipulated_sequences"):
        frames = _cut_out(method / compression)
        if method.name == _ACTORS:
            continue
        if frames.is_dir():
            sources[_SPELLINGS.get(method.name, method.name)] = frames
        else:
            _log.warning("%s is left out: there are no frames in %s; cut them out of its videos", method.name, frames)
    clips: list[Clip] = []
    for kind, frames in sources.items():
        expected = frames / "<video>" / "<number>.png"
        videos = {video.name: images for video in (folders_in(frames) if frames.is_dir() else []) if (images := frames_in(video))}
        if not videos:
            raise FileNotFoundError(f"no frames of {kind}: expected {expected}, cut out of the videos")
        clips += [clip_of("FaceForensics++", kind, name, images) for name, images in videos.items()]
    return _divided(clips, pairs, root)


def _official_splits(places: Sequence[Path]) -> dict[str, frozenset[str]]:
    """Read FaceForensics++'s official splits from the first place that has some: names of their videos; none if no place has."""
    place = next((place for place in places if (place / "test.json").is_file()), None)
    return {split: official_pairs(place / f"{split}.json") for split in SPLITS} if place else {}


def _divided(clips: Sequence[Clip], splits: Mapping[str, frozenset[str]], where: Path) -> Clips:
    """Divide FaceForensics++ by its official splits; videos in none of them are left out, and how many of theirs have no frames is said."""
    kinds = dict.fromkeys(clip.video.manipulation for clip in clips if clip.video.manipulation != _ACTORS)
    parts: Clips = {split: [] for split in splits}
    for split, names in splits.items():
        for kind in kinds:
            wanted = {name for name in names if ("_" in name) == (kind != REAL)}
            found = {clip: name for clip in clips if clip.video.manipulation == kind and (name := PurePosixPath(clip.video.name).name) in wanted}
            parts[split] += found
            if missing := wanted.difference(found.values()):
                _log.warning("%d of %d %s videos of %s.json have no frames in %s", len(missing), len(wanted), kind, split, where)
    return parts


def _cut_out(folder: Path) -> Path:
    """Return where the frames of videos lie: in `frames`, or in `images` if that is there."""
    return folder / "images" if (folder / "images").is_dir() and not (folder / "frames").is_dir() else folder / "frames"


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
        for method in folders_in(place / "fake") if (place / "fake").is_dir() else []:
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
    images = [Clip(Video("folder", kind, f"{split}/{Path(path).name}"), (path,)) for path in frames_in(folder)]
    if kind == "fake":
        return images
    return images + [Clip(Video("folder", kind, f"{split}/{video.name}"), frames_in(video)) for video in folders_in(folder)]


def table(root: Path) -> Clips:
    """Read a CSV file: `path,label[,video][,method][,split][,identity]`; root is one with splits, or a folder of train.csv, val.csv and test.csv.

    Paths are relative to the file's folder; labels are 0 or real, 1 or fake; a path without a video is a video of its own; identities are
    separated by spaces.

    Raises:
        BadFileError: if columns are missing or values will not do.
        FileNotFoundError: if there is no list, or images that it names are missing.
    """
    files = {"": root} if root.is_file() else {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
    if not files:
        raise FileNotFoundError(f"{root} is no CSV file, and there is no train.csv, val.csv or test.csv in it: columns path,label,video,method,split")
    grouped: dict[str, dict[Video, list[str]]] = {}
    for split, file in files.items():
        for row in rows_of(file, ("path", "label") if split else ("path", "label", "split")):
            part = split or split_name(row["split"], file)
            grouped.setdefault(part, {}).setdefault(_video_of(row, file), []).append(str(file.parent / row["path"].replace("\\", "/")))
    check_there((path for videos in grouped.values() for paths in videos.values() for path in paths), root)
    return {split: [Clip(video, tuple(sorted(paths, key=natural))) for video, paths in videos.items()] for split, videos in grouped.items()}


def _video_of(row: dict[str, str], file: Path) -> Video:
    kind = (row.get("method") or "fake") if label_of(row["label"], file) else REAL
    return Video("csv", kind, row.get("video") or row["path"], frozenset((row.get("identity") or "").split()))


def readable(clips: Sequence[Clip], on_bad_file: OnBadFile) -> list[Clip]:
    """Decode all frames once, and leave out those that cannot be read, or refuse them; see `shared.data.files.check_images`."""
    good = {str(path) for path in check_images([Path(frame) for clip in clips for frame in clip.frames], on_bad_file)}
    kept = [replace(clip, frames=tuple(frame for frame in clip.frames if str(Path(frame)) in good)) for clip in clips]
    return [clip for clip in kept if clip.frames]


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    """Find the folders of splits, however they are spelt."""
    return [(split, folder / name) for split, names in SPLITS.items() for name in names if (folder / name).is_dir()]


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
    for kind in (kind for kind in folders_in(folder) if kind.name.lower() not in _NO_CLASSES):
        is_real = any(word in kind.name.lower() for word in ("original", "real")) or kind.name.lower() == "source"
        found = None if above is None else _CLASS_OF_SPLIT.fullmatch(kind.name)
        manipulation = found[1] if found else kind.name
        for video, frames in _videos(kind):
            name = video if above is None else f"{above}{kind.name}/{video}"
            clips.append(clip_of(dataset, REAL if is_real else _SPELLINGS.get(manipulation, manipulation), name, frames))
    _check_classes(clips, folder, f"{folder}/<class>/<video>/<number>.png, cut out of the videos, with real and fake classes")
    return clips


def _videos(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the folders below a class that hold images: their path, in which `frames` on the way does not count, and the images."""
    for place in (place for place in folders_in(folder) if place.name.lower() not in _NO_CLASSES):
        if images := frames_in(place):
            yield place.name, images
        else:
            yield from ((name if place.name == "frames" else f"{place.name}/{name}", frames) for name, frames in _videos(place))


def _check_classes(clips: list[Clip], folder: Path, expected: str, both: bool = True) -> None:
    """Refuse a part without real frames or, if it needs both classes, without fake ones; fakes to learn from may be made of the real ones."""
    labels = {clip.video.label for clip in clips}
    if 0 not in labels or (both and 1 not in labels):
        lacking = "frames" if not labels else "fake frames" if 0 in labels else "real frames"
        raise FileNotFoundError(f"no {lacking} in {folder}: expected {expected}")
