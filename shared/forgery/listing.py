"""What readers of sets of forged videos share: names of splits and labels, lists, folders of frames, and clips made of them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from shared.data.files import EXTENSIONS, BadFileError, blamed, first_few
from shared.forgery.sets import Clip, Video, natural
from shared.forgery.splits import identities

Clips = dict[str, list[Clip]]
"""Clips of each split that a layout has: train, val and test."""

SPLITS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
"""Splits, and how folders and lists spell them."""
ARCHIVE = "take it from its archive anew"
"""What to do about a damaged list."""


def find_split(name: str) -> str | None:
    """Return the split that a word stands for; None for other words."""
    return next((split for split, spellings in SPLITS.items() if name.strip().lower() in spellings), None)


def split_name(name: str, where: str | Path) -> str:
    """Return the split that a word in a list stands for.

    Raises:
        BadFileError: if it stands for none; `where` names its place.
    """
    if (split := find_split(name)) is None:
        raise BadFileError(f"{where}: {name!r} is no split; write train, val or test")
    return split


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


def clip_of(dataset: str, kind: str, name: str, frames: tuple[str, ...]) -> Clip:
    """Return a clip that shows whom its name tells."""
    return Clip(Video(dataset, kind, name, identities(dataset, name)), frames)


def not_empty(clips: list[Clip], expected: Path) -> list[Clip]:
    """Leave out clips without frames.

    Raises:
        FileNotFoundError: if all of them are, with what is `expected` where.
    """
    if not any(clip.frames for clip in clips):
        raise FileNotFoundError(f"no frames: expected {expected}")
    return [clip for clip in clips if clip.frames]


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder, but hidden ones.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, or is no folder: correct the root, or put the data there")
    return sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=lambda path: path.name)


def frames_in(folder: Path) -> tuple[str, ...]:
    """List the images of a folder in order of time; links that lead nowhere are among them, so that reading names them."""
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and not entry.is_dir()]
    return tuple(sorted(names, key=lambda path: (natural(path), path)))


def text_of(path: Path) -> str:
    """Read a file of UTF-8, with or without a byte-order mark.

    Raises:
        BadFileError: if it is encoded otherwise.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not UTF-8 (at byte {error.start}): save it as UTF-8, as spreadsheets do for 'CSV UTF-8'") from error


def rows_of(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a CSV file.

    Raises:
        BadFileError: if it is damaged, lacks one of the columns, or a row has nothing in it.
    """
    with blamed(file, "save it as CSV in UTF-8"):
        reader = csv.DictReader(io.StringIO(text_of(file)), skipinitialspace=True)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise BadFileError(f"{file} has no column {', '.join(missing)}: its first line must name the columns {','.join(columns)}, between commas")
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if not all(row[column] for column in columns):
            raise BadFileError(f"{file}, row {number}: {', '.join(column for column in columns if not row[column])} is empty; fill it in")
    return rows


def label_of(value: str, where: str | Path) -> int:
    """Return 0 for real and 1 for fake, as lists write them.

    Raises:
        BadFileError: if it is neither; `where` names its place.
    """
    known = {"0": 0, "real": 0, "1": 1, "fake": 1}
    if value.strip().lower() not in known:
        raise BadFileError(f"{where}: {value!r} is no label; write 0 or real, 1 or fake")
    return known[value.strip().lower()]
