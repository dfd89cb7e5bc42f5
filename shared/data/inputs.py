"""Pictures that a user names: a file, a folder or a pattern, each with a name to write results under."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from shared.data.files import EXTENSIONS, check_images, list_images
from shared.messages import shown_path


@dataclass(frozen=True)
class Input:
    """A picture that a user names.

    Attributes:
        file: where it lies.
        name: its path below what the user gave, under which results are written; bytes that are no UTF-8 are spelt out.
    """

    file: Path
    name: str


def find_pictures(path: str | Path) -> list[Input]:
    """Find the pictures to judge and decode each of them once, before any work.

    Args:
        path: a file, whatever its ending; a folder, of which all pictures are taken, those of sub-folders too; or a pattern with `*`, `?`, `[]` and
            `**`, of which files with the endings of pictures are taken. What lies there under that very name is no pattern. `~` is the home folder.

    Raises:
        FileNotFoundError: if there is nothing.
        BadFileError: naming all files that cannot be read as pictures of at most 64 million pixels.
        ValueError: if a pattern has `..` after a wildcard, which gives no names to write results under.
    """
    root = Path(path).expanduser()
    if root.is_file():
        base, files = root.parent, [root]
    elif root.exists() or not glob.has_magic(str(root)):
        base, files = root, list_images(root, "a picture, a folder of pictures, or a pattern such as 'inbox/*.jpg'")
    else:
        base, files = _matches(root)
    return [Input(file, spelt(file.relative_to(base))) for file in check_images(files)]


def spelt(path: Path) -> str:
    """Return a path with `/`, and with bytes that are no UTF-8 spelt out."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the folder in which a pattern's wildcards begin, and the pictures that it matches, sorted."""
    first = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    if ".." in pattern.parts[first:]:
        raise ValueError(f"the pattern {pattern} has '..' after a wildcard: write it without")
    base = Path(*pattern.parts[:first])
    found = sorted(file for file in set(base.glob(str(Path(*pattern.parts[first:])))) if not _is_hidden(file.relative_to(base)))
    pictures = [file for file in found if file.suffix.lower() in EXTENSIONS and file.is_file()]
    if not pictures:
        seen = f"only {shown_path(found[0])} and the like, which have other endings or are folders" if found else "nothing"
        raise FileNotFoundError(f"no picture matches {pattern}, but {seen}: expected files ending in {', '.join(EXTENSIONS)}; capital letters count")
    return base, pictures


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
