"""Pictures with the masks of what was manipulated in them: mask rules, size checks, and pairing by stem."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.arrays import read_npz
from shared.data.files import BadFileError, blamed, first_few, image_size, list_images, read_image, read_levels
from shared.data.folders import OnBadFile

AUTHENTIC = "authentic"
"""The kind of pictures that nobody manipulated."""

KINDS = (AUTHENTIC, "splice", "copymove", "inpaint", "noise", "jpeg", "resample", "control", "manipulated")
"""What was done to a picture; its place is the number in batches. `manipulated` is what lists and sets do not tell further."""

MaskRule = Literal["half", "inverted", "green", "array"]
"""Which pixels a mask file marks: those above half of the scale, those below, those whose green exceeds 120 of 255, or where `arr_0` is positive."""

GREEN = 120 / 255
"""Columbia's masks are JPEG files in three colours: a threshold at 0 would take the noise of the compression for manipulated pixels."""

_SUFFIX = re.compile(r"([_-](gt|mask|edgemask|forged)|(?<=\d)forged)$", re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture in a file.

    Args:
        image: the file.
        mask: file of its mask; None for authentic pictures.
        kind: one of `KINDS`.
        dataset: name of its set.
        sources: names of the scenes or donors it was made of, as far as they are known; pictures that share one belong in one split.
        rule: how the mask is read.

    Raises:
        ValueError: if the kind is not known, an authentic picture has a mask, or a manipulated one has none.
    """

    image: Path
    mask: Path | None = None
    kind: str = AUTHENTIC
    dataset: str = ""
    sources: frozenset[str] = frozenset()
    rule: MaskRule = "half"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.image}: kind {self.kind!r} is not known; choose one of {', '.join(KINDS)}")
        if (self.mask is None) != (self.kind == AUTHENTIC):
            raise ValueError(f"{self.image}: manipulated pictures need a mask, and authentic ones have none; got kind {self.kind}, mask {self.mask}")

    @property
    def label(self) -> int:
        """0 for authentic, 1 for manipulated."""
        return int(self.kind != AUTHENTIC)


def rule_of(mask: Path) -> MaskRule:
    """Return how a mask is read that lies, or is called, as published sets have it: Columbia's are coloured, DSO-1's and NIST16's inverted."""
    if mask.suffix.lower() == ".npz":
        return "array"
    if mask.stem.lower().endswith("edgemask"):
        return "green"
    is_inverted = mask.parent.name == "DSO-1-Fake-Images-Masks" or (mask.parent.name == "mask" and mask.parent.parent.parent.name == "reference")
    return "inverted" if is_inverted else "half"


def read_pixels(path: Path) -> Tensor:
    """Read a picture as (3, H, W) uint8, without any resizing.

    Raises:
        BadFileError: if the file is damaged, not an image, or too large.
        FileNotFoundError: if there is no such file.
    """
    return read_levels(path)


def read_pair(picture: Picture, mask_fix: bool = False) -> tuple[Tensor, Tensor]:
    """Read a picture with its mask.

    Args:
        picture: the picture.
        mask_fix: brings a mask of another size to that of the picture, see `read_mask`.

    Returns:
        (3, H, W) uint8 pixels, and (1, H, W) uint8 that is 1 where the picture was manipulated.

    Raises:
        BadFileError: if a file is damaged, or the mask does not belong to the picture.
        FileNotFoundError: if a file is missing.
    """
    image = read_pixels(picture.image)
    return image, read_mask(picture, (image.shape[1], image.shape[2]), mask_fix)


def read_mask(picture: Picture, size: tuple[int, int], mask_fix: bool = False) -> Tensor:
    """Read the mask of a picture; that of an authentic one is empty.

    Args:
        picture: the picture.
        size: its height and width.
        mask_fix: resizes a mask of another size bilinearly and cuts it at a half, instead of refusing it. A mask whose sides are exchanged is refused
            nevertheless: to which side it was turned is not known.

    Returns:
        (1, H, W) uint8, 1 where the picture was manipulated.

    Raises:
        BadFileError: if the mask is damaged, of another size, or marks nothing.
        FileNotFoundError: if it is missing.
    """
    if picture.mask is None:
        return torch.zeros(1, *size, dtype=torch.uint8)
    mask = _RULES[picture.rule](picture.mask)
    found = (mask.shape[1], mask.shape[2])
    if found != size:
        is_turned = found == size[::-1]
        if is_turned or not mask_fix:
            mend = "turn the mask by hand" if is_turned else "resize it with data.mask_fix: true"
            shape = f"{found[0]} x {found[1]} pixels (height x width), its picture {picture.image} {size[0]} x {size[1]}"
            raise BadFileError(f"the mask {picture.mask} has {shape}: take the set's corrected masks, {mend}, or set data.on_bad_file: skip")
        mask = F.interpolate(mask[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    marked = (mask > 0.5).byte()
    if not marked.any():
        mend = "correct it, list the picture as authentic, or set data.on_bad_file: skip"
        raise BadFileError(f"the mask {picture.mask} marks no pixel of {picture.image}: {mend}")
    return marked


def _green(path: Path) -> Tensor:
    return (read_image(path)[1:2] > GREEN).float()


def _array(path: Path) -> Tensor:
    """Read `arr_0` of an .npz file, as FantasticReality has it; nothing in the file is executed."""
    mend = "it is not an .npz file with an array of numbers arr_0 (replace or remove it)"
    with blamed(path, mend):
        array = read_npz(path, ["arr_0"], mend)["arr_0"].squeeze()
    if array.dtype.kind not in "biuf":
        raise BadFileError(f"cannot read the mask {path}: {mend}")
    if array.ndim != 2:
        raise BadFileError(f"the mask {path} has the shape {array.shape}, expected (height, width); correct it")
    return torch.from_numpy((array > 0).astype(np.float32))[None]


_RULES: dict[MaskRule, Callable[[Path], Tensor]] = {
    "half": lambda path: read_image(path, "1"),
    "inverted": lambda path: 1 - read_image(path, "1"),
    "green": _green,
    "array": _array,
}


def check_pairs(pictures: Sequence[Picture], on_bad_file: OnBadFile = "refuse", mask_fix: bool = False) -> list[Picture]:
    """Decode every mask once and compare its size with that of its picture, from the header.

    Args:
        pictures: the pictures.
        on_bad_file: "refuse" raises one error that lists the bad ones; "skip" leaves them out with one warning.
        mask_fix: see `read_mask`.

    Returns:
        The good ones, in their order.

    Raises:
        BadFileError: if there are bad ones and `on_bad_file` is "refuse", or if all of them are bad.
        ValueError: if `on_bad_file` is neither of the two.
    """
    if on_bad_file not in ("refuse", "skip"):
        raise ValueError(f"data.on_bad_file must be 'refuse' or 'skip', got {on_bad_file!r}")
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        complaints = list(pool.map(partial(_complaint, mask_fix=mask_fix), pictures))
    bad = [complaint for complaint in complaints if complaint]
    if bad and (on_bad_file == "refuse" or len(bad) == len(pictures)):
        raise BadFileError("\n  ".join([f"{len(bad)} of {len(pictures)} pictures cannot be used:", *first_few(bad)]))
    if bad:
        _log.warning("%d of %d pictures cannot be used and are left out, the first because: %s", len(bad), len(pictures), bad[0])
    return [picture for picture, complaint in zip(pictures, complaints, strict=True) if not complaint]


def _complaint(picture: Picture, mask_fix: bool) -> str:
    """Say why a picture cannot be used; empty if it can."""
    try:
        read_mask(picture, image_size(picture.image), mask_fix)
    except (BadFileError, FileNotFoundError) as error:
        return str(error)
    return ""


def check_there(pictures: Iterable[Picture], where: Path) -> None:
    """Check that files are there, without opening them.

    Raises:
        FileNotFoundError: with the first few that are not, and `where` they are named.
    """
    named = [path for picture in pictures for path in (picture.image, picture.mask) if path]
    missing = [str(path) for path in named if not os.path.isfile(path)]  # noqa: PTH113 - pathlib raises where a name is too long for any file
    if missing:
        lines = [f"{len(missing)} files that {where} names are missing:", *first_few(missing), "put them there, or correct the paths"]
        raise FileNotFoundError("\n  ".join(lines))


def files_in(folder: Path, expected: str) -> list[Path]:
    """List the images that lie in a folder itself, sorted by name.

    Raises:
        FileNotFoundError: if the folder is missing or holds no image.
    """
    found = [path for path in list_images(folder, expected) if path.parent == folder]
    if not found:
        raise FileNotFoundError(f"no images in {folder} itself: expected {expected}; move them there")
    return found


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Map the name without ending and without `_gt`, `_mask`, `forged` or `_edgemask` to the file.

    Raises:
        ValueError: if two files have the same one.
    """
    files: dict[str, Path] = {}
    for path in paths:
        stem = _SUFFIX.sub("", path.stem)
        if stem in files:
            raise ValueError(f"{files[stem]} and {path} have the same name but for ending and suffix: remove one of them")
        files[stem] = path
    return files


def paired(images: Sequence[Path], masks: dict[str, Path], lacking: OnBadFile = "refuse") -> list[tuple[Path, Path]]:
    """Pair images with masks by stem.

    Args:
        images: the images.
        masks: masks by the stem of their image, see `by_stem`.
        lacking: "skip" leaves images without a mask out with a warning.

    Raises:
        ValueError: if images lack a mask and `lacking` is "refuse", or if all of them do.
    """
    stems = by_stem(images)
    alone = [str(path) for stem, path in stems.items() if stem not in masks]
    if alone and (lacking == "refuse" or len(alone) == len(stems)):
        example = next(iter(masks.values()), "none")
        lines = [f"{len(alone)} of {len(stems)} images have no mask of the same stem (a mask that is there: {example}):", *first_few(alone)]
        raise ValueError("\n  ".join([*lines, "add the masks, remove the images, or name the pairs in a JSON list"]))
    if alone:
        said = "%d of %d images have no mask of the same stem and are left out: %s; rename them like their masks, or add masks"
        _log.warning(said, len(alone), len(stems), ", ".join(first_few(alone, 3)))
    return [(path, masks[stem]) for stem, path in stems.items() if stem in masks]
