"""Image files from outside: found, capped before they are decoded, and read into one form whatever their format."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ImageMode = Literal["RGB", "L", "1"]
"""What an image is read as: colour, grey, or a mask of zeros and ones."""
MASK_NOISE = 8
"""Levels of 255 up to which compression may lift the black of a mask."""
Ground = Literal["white", "black"]
"""What transparent pixels lie over."""

MAX_PIXELS = 64_000_000
"""Largest image that is decoded, in pixels, unless the caller says otherwise."""

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of image files, in lower case."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none of them starts another program, as Pillow does for EPS
_log = logging.getLogger(__name__)


class BadFileError(ValueError):
    """A file that cannot be used; the message names it, the reason and what to do."""


@contextmanager
def blamed(path: str | Path, mend: str = "") -> Iterator[None]:
    """Turn whatever the content of a file makes a reader raise into a `BadFileError` that names it: damaged files make readers raise almost anything.

    Args:
        path: the file that is read inside the context.
        mend: what to do about it, for the message.

    Raises:
        BadFileError: in place of any error but those that the machine is to blame for, such as a missing file or a failing disk.
    """
    try:
        yield
    except BadFileError:
        raise
    except MemoryError as error:
        reason = "it asks for more memory than there is"
        raise BadFileError(f"cannot use {path}: {reason}{mend and f'; {mend}'}") from error
    except Exception as error:
        is_of_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # damage makes readers look for places that cannot be
        if isinstance(error, FileNotFoundError) or is_of_disk:
            raise
        reason = str(error) if isinstance(error, ValueError) else f"it is damaged ({type(error).__name__}: {error})"
        raise BadFileError(f"cannot use {path}: {reason}{mend and f'; {mend}'}") from error


def read_json(path: Path, mend: str) -> Any:
    """Read a JSON file in UTF-8, with or without a byte-order mark.

    Args:
        path: the file.
        mend: what to do about a damaged one, for the message.

    Raises:
        BadFileError: if it is not JSON, or nested too deeply to be read.
        FileNotFoundError: if it is missing.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not JSON: {error}; {mend}") from error


def read_image(path: str | Path, mode: ImageMode = "RGB", max_pixels: int = MAX_PIXELS, ground: Ground = "white") -> Tensor:
    """Read an image file as it is meant to be seen: turned by its EXIF orientation, palettes resolved, CMYK converted, 16-bit grey at full depth.

    Of an animation, the first frame is read.

    Args:
        path: file in one of the formats of `EXTENSIONS`; what is inside decides, not the ending.
        mode: "RGB" gives three channels, "L" grey, "1" a mask: 1 above half of the full scale, or above 0 in a file that holds only 0 and 1.
        max_pixels: larger images are refused before they are decoded.
        ground: what transparent pixels lie over; in a mask ("1") they are background in any case.

    Returns:
        (C, H, W) float32 in [0, 1], C being 3 for "RGB" and 1 otherwise.

    Raises:
        BadFileError: if the file is damaged, not an image, too large, or holds 32-bit pixels, whose range is not known.
        FileNotFoundError: if there is no such file.
    """
    with _opened(path, max_pixels) as picture:
        pixels = _scaled(_levels(picture, mode, "black" if mode == "1" else ground))
    if mode == "1":
        return (pixels > (0.5 if pixels.max() > 1 / 255 else 0)).float()
    return pixels.expand(3, -1, -1).contiguous() if mode == "RGB" else pixels


def read_levels(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file in colour as `read_image` does, but as bytes, which needs a fraction of the memory; 16 bits are rounded to 8.

    Args:
        path: see `read_image`.
        max_pixels: see `read_image`.

    Returns:
        (3, H, W) uint8.

    Raises:
        BadFileError: see `read_image`.
        FileNotFoundError: if there is no such file.
    """
    with _opened(path, max_pixels) as picture:
        levels = _levels(picture, "RGB")
    if levels.dtype == np.uint8:
        return torch.from_numpy(levels)
    return (_scaled(levels) * 255).round().byte().expand(3, -1, -1).contiguous()


def read_mask_levels(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read the levels of a mask: in colours, such as those of a palette, the strongest channel counts, and transparent pixels are 0.

    Args:
        path: see `read_image`.
        max_pixels: see `read_image`.

    Returns:
        (H, W) uint8.

    Raises:
        BadFileError: see `read_image`.
        FileNotFoundError: if there is no such file.
    """
    return (read_image(path, max_pixels=max_pixels, ground="black").amax(0) * 255).round().byte()


def image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the height and width that `read_image` would give, from the file's header alone.

    Raises:
        BadFileError: if the header is damaged, or the image too large.
        FileNotFoundError: if there is no such file.
    """
    with _opened(path, max_pixels) as picture:
        is_turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations that swap height and width
        return (picture.width, picture.height) if is_turned else (picture.height, picture.width)


def list_images(root: str | Path, expected: str = "a folder of images, in sub-folders or not") -> list[Path]:
    """Find all images under a folder.

    Args:
        root: folder, searched with all its sub-folders; links to folders are followed.
        expected: the tree that should lie there, for the error message.

    Returns:
        Paths that end in one of `EXTENSIONS` (in any case), sorted by their path below `root`; hidden files and folders are left out.

    Raises:
        FileNotFoundError: if the folder is missing or holds no image.
    """
    return list_files(root, expected, EXTENSIONS, "images")


def list_files(root: str | Path, expected: str, endings: tuple[str, ...], what: str) -> list[Path]:
    """Find all files of some kind under a folder.

    Args:
        root: folder, searched with all its sub-folders; links to folders are followed.
        expected: the tree that should lie there, for the error message.
        endings: of the files looked for, in lower case; files with them in capital letters are found too.
        what: what these files are, in the plural, for the error message.

    Returns:
        The files, sorted by their path below `root`; hidden files and folders are left out.

    Raises:
        FileNotFoundError: if the folder is missing or holds no such file.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {state}: expected {expected}; correct the path, or put the {what} there")
    found = sorted(_walk(root, endings), key=lambda path: path.relative_to(root).as_posix())
    if not found:
        raise FileNotFoundError(
            f"no {what} in {root}: expected {expected}, in files ending in {', '.join(endings)}; correct the path, or put them there"
        )
    return found


def check_images(paths: Sequence[Path], on_bad_file: Literal["refuse", "skip"] = "refuse", max_pixels: int = MAX_PIXELS) -> list[Path]:
    """Decode every image once, and return the readable ones of `paths`, in their order; arguments and errors are those of `inspect_images`."""
    return [path for path, complaint in inspect_images(paths, on_bad_file, max_pixels) if not complaint]


def inspect_images(paths: Sequence[Path], on_bad_file: Literal["refuse", "skip"] = "refuse", max_pixels: int = MAX_PIXELS) -> list[tuple[Path, str]]:
    """Decode every image once, and say why it cannot be read.

    Args:
        paths: image files.
        on_bad_file: "refuse" raises one error that lists the bad files; "skip" leaves them out and logs one warning with their number.
        max_pixels: larger images count as bad.

    Returns:
        Each of `paths` with the reason, which is empty for readable ones.

    Raises:
        BadFileError: if there are bad files and `on_bad_file` is "refuse", or if all of them are bad.
        ValueError: if `on_bad_file` is neither of the two.
    """
    if on_bad_file not in ("refuse", "skip"):
        raise ValueError(f"on_bad_file must be 'refuse' or 'skip', got {on_bad_file!r}")
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        complaints = list(pool.map(lambda path: _complaint(path, max_pixels), paths))
    bad = [complaint for complaint in complaints if complaint]
    if bad and (on_bad_file == "refuse" or len(bad) == len(paths)):
        advice = "replace or remove them, or leave them out with on_bad_file: skip where there is that option"
        raise BadFileError("\n  ".join([f"{len(bad)} of {len(paths)} images cannot be read:", *first_few(bad), advice]))
    if bad:
        _log.warning("%d of %d images cannot be read and are left out, the first because: %s", len(bad), len(paths), bad[0])
    return list(zip(paths, complaints, strict=True))


def first_few(lines: Iterable[str], limit: int = 10) -> list[str]:
    """Return the first `limit` lines, followed by how many more there are, for an error message."""
    lines = list(lines)
    return lines[:limit] + ([f"... and {len(lines) - limit} more"] if len(lines) > limit else [])


@contextmanager
def _opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image, undecoded; whatever goes wrong with its content inside the context becomes a `BadFileError`."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width} x {picture.height}"
                raise ValueError(f"its {size} pixels are more than the limit of {max_pixels}; make it smaller, or raise max_pixels")
            yield picture
    except MemoryError:
        raise
    except Exception as error:  # damaged content makes decoders raise almost anything
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, PermissionError):
            raise  # the machine's fault, not the file's: no such file, too many open files, a failing disk
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is not an image, or damaged from its beginning" if is_unknown else str(error) or type(error).__name__
        raise BadFileError(f"cannot read {path}: {reason} (replace or remove the file)") from error


def _levels(picture: Image.Image, mode: ImageMode, ground: Ground = "white") -> np.ndarray:
    """Decode and turn upright, (C, H, W) uint8, or uint16 for deep grey; C is 3 for colour read as "RGB", else 1."""
    if picture.mode == "I" and picture.format == "PPM":  # Pillow stretches PGM files of more than 8 bits to 16
        return np.asarray(picture).astype(np.uint16)[None]
    if picture.mode in ("I", "F"):
        raise ValueError("it holds 32-bit pixels, whose range is not known; save it with 8 or 16 bits")
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        return np.array(picture)[None]
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture.convert("RGBA"))
    colours = "RGB" if mode == "RGB" else "L"
    array = np.asarray(picture if picture.mode == colours else picture.convert(colours))
    return np.array(array.transpose(2, 0, 1) if array.ndim == 3 else array[None], order="C")


def _scaled(levels: np.ndarray) -> Tensor:
    """Bring levels to float32 in [0, 1]."""
    return torch.from_numpy(levels.astype(np.float32)).div_(np.iinfo(levels.dtype).max)


def _walk(root: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not _leads_back(here / name)]
        yield from (here / name for name in names if name.lower().endswith(endings) and not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _leads_back(folder: Path) -> bool:
    """Tell whether a folder is a link to a folder that contains it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _complaint(path: Path, max_pixels: int) -> str:
    """Say why an image cannot be read; empty if it can."""
    try:
        with _opened(path, max_pixels) as picture:
            if picture.mode in ("I", "F"):
                _levels(picture, "L")
            picture.draft(None, (1, 1))  # JPEG: all data are read, but few pixels computed
            picture.load()
    except (BadFileError, FileNotFoundError) as error:
        return str(error)
    return ""
