"""Lists that tell which pictures of a folder are of a split: a name a line, or a picture and its mask."""

from __future__ import annotations

from pathlib import Path

from shared.data.files import EXTENSIONS, BadFileError, blamed


def read_names(path: Path) -> list[str]:
    """Return the name in each line of a list, without the ending of a picture.

    Raises:
        BadFileError: if it is no text.
    """
    with blamed(path, "save it as UTF-8"):
        return [_bare(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def read_pairs(path: Path) -> list[list[str]]:
    """Return the picture and the mask in each line of a list; nothing of a text that begins otherwise.

    Raises:
        BadFileError: if a later line holds anything else.
    """
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
    bad = [len(line) != 2 or not all(name.lower().endswith(EXTENSIONS) for name in line) for line in lines]
    if not lines or bad[0]:
        return []
    if any(bad):
        raise BadFileError(f"{path} has the line {' '.join(lines[bad.index(True)])!r}: expected a picture and its mask, mend or remove it")
    return lines


def _bare(line: str) -> str:
    name = line.strip()
    return name[: name.rindex(".")] if name.lower().endswith(EXTENSIONS) else name
