"""Pictures or other files that a user names: a file, a folder or a pattern, each with a name to write results under."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.data.files import EXTENSIONS, inspect_images, list_files
from shared.messages import shown_path

if TYPE_CHECKING:
    from shared.data.folders import OnBadFile


@dataclass(frozen=True)
class Input:
    """A file that a user names.

    Attributes:
        file: where it lies.
        name: its path below what the user gave, under which results are written; bytes that are no UTF-8 are spelt out.
    """

    file: Path
    name: str


def find_pictures(path: str | Path, on_bad_file: OnBadFile = "refuse") -> tuple[list[Input], list[dict[str, str]]]:
    """Find the pictures to judge and decode each of them once, before any work.

    Args:
        path: a file, whatever its ending; a folder, of which all pictures are taken, those of sub-folders too; or a pattern with `*`, `?`, `[]` and
            `**`, of which files with the endings of pictures are taken. What lies there under that very name is no pattern. `~` is the home folder.
        on_bad_file: refuse files that cannot be read as pictures of at most 64 million pixels, or skip them.

    Returns:
        The pictures, and `file` and `reason` of each file that was left out.

    Raises:
        FileNotFoundError: if there is nothing.
        BadFileError: naming the files that cannot be read, if `on_bad_file` is refuse, or if none can be read.
        ValueError: if a pattern has `..` after a wildcard, which gives no names to write results under.
    """
    base, files = find_files(path, EXTENSIONS, "picture", "images", "inbox/*.jpg")
    return sort_out(named(files, base), on_bad_file)


def sort_out(pictures: Sequence[Input], on_bad_file: OnBadFile = "refuse") -> tuple[list[Input], list[dict[str, str]]]:
    """Decode pictures once; returns those that can be read, and `file` and `reason` of the others, as `find_pictures` does."""
    reasons = [reason for _, reason in inspect_images([given.file for given in pictures], on_bad_file)]
    both = list(zip(pictures, reasons, strict=True))
    return [given for given, reason in both if not reason], [{"file": given.name, "reason": reason} for given, reason in both if reason]


def find_files(path: str | Path, endings: tuple[str, ...], noun: str, plural: str, example: str) -> tuple[Path, list[Path]]:
    """Find the files of one kind that a user names by a file, a folder or a pattern, as `find_pictures` does, unread.

    Args:
        path: see `find_pictures`.
        endings: of the files that are taken from folders and by patterns, in lower case.
        noun: what a file is, for messages.
        plural: what the files of a folder are, for messages.
        example: a pattern, for messages.

    Returns:
        The folder from which the files are named (see `named`), and the files, sorted.

    Raises:
        FileNotFoundError, ValueError: see `find_pictures`.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return root.parent, [root]
    if root.exists() or not glob.has_magic(str(root)):
        return root, list_files(root, f"a {noun}, a folder of {noun}s, or a pattern such as '{example}'", endings, plural)
    return _matches(root, endings, noun)


def named(files: Iterable[Path], base: Path) -> list[Input]:
    """Name files by their paths below a folder."""
    return [Input(file, spelt(file.relative_to(base))) for file in files]


def spelt(path: Path) -> str:
    """Return a path with `/`, and with what cannot be printed, and bytes that are no UTF-8, spelt out."""
    text = path.as_posix().encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _matches(pattern: Path, endings: tuple[str, ...], noun: str) -> tuple[Path, list[Path]]:
    """Return the folder in which a pattern's wildcards begin, and the files with the right endings that it matches, sorted."""
    first = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    if ".." in pattern.parts[first:]:
        raise ValueError(f"the pattern {pattern} has '..' after a wildcard: write it without")
    base = Path(*pattern.parts[:first])
    found = sorted(file for file in set(base.glob(str(Path(*pattern.parts[first:])))) if not _is_hidden(file.relative_to(base)))
    files = [file for file in found if file.suffix.lower() in endings and file.is_file()]
    if not files:
        seen = f"only {shown_path(found[0])} and the like, which have other endings or are folders" if found else "nothing"
        raise FileNotFoundError(f"no {noun} matches {pattern}, but {seen}: expected files ending in {', '.join(endings)}; capital letters count")
    return base, files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
