"""DFDC's layouts: parts to train on with their `metadata.json`, the test set's `labels.csv`, and the preview's `dataset.json`."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from shared.data.files import BadFileError, first_few, read_json
from shared.forgery.listing import ARCHIVE, SPLITS, Clips, clip_of, folders_in, frames_in, label_of, not_empty, rows_of, split_name
from shared.forgery.sets import REAL, Clip, Video
from shared.forgery.splits import identities

_log = logging.getLogger(__name__)


def dfdc(folder: Path, dataset: str = "DFDC") -> list[Clip]:
    """Read `frames/<video>/*` with `labels.csv` (filename,label; 1 is fake), as DFDC's test set is shared.

    Raises:
        BadFileError: if the list lacks a column or a video's label.
        FileNotFoundError: if the list or the frames are missing.
    """
    file = folder / "labels.csv"
    labels = {Path(row["filename"]).stem: label_of(row["label"], file) for row in rows_of(file, ("filename", "label"))}
    clips = []
    for video in folders_in(folder / "frames"):
        if video.name not in labels:
            raise BadFileError(f"{file} has no label for {video}: add it, or remove the folder")
        kind = "DFDC" if labels[video.name] else REAL
        clips.append(clip_of(dataset, kind, video.name, frames_in(video)))
    return not_empty(clips, folder / "frames" / "<video>" / "<number>.png")


def dfdc_parts(folder: Path, dataset: str = "DFDC") -> Clips:
    """Read `train/<part>/{frames/<video>/*,metadata.json}` and `test/{frames/<video>/*,labels.csv}`, what there is of them.

    `metadata.json` says of every video `{"<video>.mp4": {"label": "FAKE", "original": "<video>.mp4"}}`; a fake shows whom its original shows.

    Raises:
        BadFileError: if a list is damaged, or lacks a video.
        FileNotFoundError: if there are lists, but no frames.
    """
    lists = sorted((folder / "train").glob("*/metadata.json"))
    clips = {"train": [clip for file in lists for clip in _part(file, dataset)]}
    if (folder / "test" / "labels.csv").is_file():
        clips["test"] = dfdc(folder / "test", dataset)
    if lists:
        not_empty([clip for found in clips.values() for clip in found], folder / "train" / "<part>" / "frames" / "<video>" / "<number>.png")
    return {split: found for split, found in clips.items() if found}


def _part(file: Path, dataset: str) -> list[Clip]:
    """Read the videos of one part to train on, those that have frames."""
    content = read_json(file, ARCHIVE)
    frames = file.parent / "frames"
    clips = []
    for video in folders_in(frames) if frames.is_dir() else []:
        entry = content.get(f"{video.name}.mp4") if isinstance(content, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("label"), str) or not isinstance(entry.get("original") or "", str):
            raise BadFileError(f'{file} does not say {{"{video.name}.mp4": {{"label": "FAKE", "original": ...}}}} of {video}: {ARCHIVE}')
        is_fake = label_of(entry["label"], f"{file}, {video.name}.mp4")
        shown = frozenset({f"{dataset}/{Path(entry.get('original') or video.name).stem}"})
        clips.append(Clip(Video(dataset, "DFDC" if is_fake else REAL, video.name, shown), frames_in(video)))
    return [clip for clip in clips if clip.frames]


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
    clips: Clips = {split: [] for split in SPLITS}
    lacking = []
    for key, entry in content.items():
        split, video = _preview_video(key, entry, dataset, f"{file}, {key}")
        path = PurePosixPath(video.name)
        places = (folder / "frames" / path, folder / path, folder / path.parts[0] / "frames" / path.name)
        frames = next((images for place in places if place.is_dir() and (images := frames_in(place))), ())
        if frames:
            clips[split].append(Clip(video, frames))
        else:
            lacking.append(key)
    if lacking:
        _log.warning("%s: %d of %d videos have no frames and are left out: %s", file, len(lacking), len(content), ", ".join(first_few(lacking, 3)))
    not_empty([clip for found in clips.values() for clip in found], folder / "frames" / "<class>" / "..." / "<video>" / "<number>.png")
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
    is_fake = bool(label_of(entry["label"], where))
    if is_fake == path.parts[0].startswith("original"):
        raise BadFileError(f"{where}: it is called {entry['label']} but lies in {path.parts[0]}; correct one of the two")
    name = path.with_suffix("").as_posix()
    shown = frozenset(f"{dataset}/{person}" for person in people) or identities(dataset, name)
    return split_name(entry["set"], where), Video(dataset, path.parts[0] if is_fake else REAL, name, shown)
