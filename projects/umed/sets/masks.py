"""How files write down which class a pixel belongs to, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from shared.data.files import MASK_NOISE, BadFileError, first_few, read_image, read_levels

Kind = Literal["binary", "threshold", "nonzero", "integers", "colours"]


@dataclass(frozen=True)
class MaskCode:
    """How classes are written in mask files.

    Attributes:
        kind: binary: foreground above half of the scale, or above 0 in a file of zeros and ones; threshold: above 127 whatever the file holds, for
            masks that were stored as JPEG; nonzero: whatever is not 0, for masks that number instances; integers: one level a class; colours: one
            colour a class.
        values: levels, or colours as 65536 red + 256 green + blue, of the classes 1..K; level 0 and black are the background.
    """

    kind: Kind = "binary"
    values: tuple[int, ...] = ()


def mask_code(classes: int, values: Sequence[str | int] | None = None) -> MaskCode:
    """Choose the code of masks with so many classes.

    Args:
        classes: foreground classes K.
        values: what the classes 1..K are written as: whole numbers such as 85, or colours such as #ff0000. None: binary masks for one class, else
            the levels 1..K.

    Raises:
        ValueError: if there are not K different values, or one is neither a level nor a colour, or is the background's.
    """
    if values is None:
        return MaskCode() if classes == 1 else MaskCode("integers", tuple(range(1, classes + 1)))
    if len(values) != classes or len({str(value).lower() for value in values}) != classes:
        raise ValueError(f"data.mask_values must be {classes} different values, one for each of data.classes, got {list(values)}")
    texts = [str(value).lower() for value in values]
    try:
        if all(text.startswith("#") and len(text) == 7 for text in texts):
            colours = tuple(int(text[1:], 16) for text in texts)
            if 0 not in colours:
                return MaskCode("colours", colours)
        else:
            levels = tuple(int(text) for text in texts)
            if all(0 < level < 65536 for level in levels):
                return MaskCode("integers", levels)
    except ValueError:
        pass
    raise ValueError(f"data.mask_values are levels from 1 to 65535, or colours such as #ff0000 but not black, got {list(values)}")


def read_mask(path: Path, code: MaskCode) -> Tensor:
    """Read a mask, (H, W) int64.

    Raises:
        BadFileError: if it cannot be read, holds a level or colour that is no class's, or is binary and holds something, but no foreground; names the
            file and the value.
        FileNotFoundError: if there is no such file.
    """
    match code.kind:
        case "binary":
            mask = read_image(path, "1")[0].long()
            if not mask.any():
                _check_black(path)
            return mask
        case "threshold":
            return (read_image(path, "L", ground="black")[0] * 255 > 127.5).long()  # grey levels are whole: 128 and more
        case "nonzero":
            return torch.from_numpy((_levels(path) > 0).astype(np.int64))
        case "integers":
            return _look_up(path, _levels(path), code, "{}")
        case _:
            red, green, blue = read_levels(path).int().numpy()
            return _look_up(path, 65536 * red + 256 * green + blue, code, "#{:06x}")


def _check_black(path: Path) -> None:
    """Refuse a binary mask without foreground that is not black, such as one whose foreground is red, a dark grey, or the label 2."""
    red, green, blue = levels = (read_image(path, "RGB", ground="black") * 255).round().int()
    with Image.open(path) as picture:
        noise = MASK_NOISE if picture.format in ("JPEG", "WEBP") else 0
    if int(levels.max()) > noise:
        colours = np.unique((65536 * red + 256 * green + blue).numpy()).tolist()
        found = ", ".join(first_few((f"#{colour:06x}" for colour in colours if colour), 5))
        raise BadFileError(
            f"{path} holds {found} and nothing above half of the scale, so it has no foreground as a mask of black and white: "
            "name the level or colour of the class with data.source folder and data.mask_values, or correct the mask"
        )


def _levels(path: Path) -> np.ndarray:
    """Read the numbers of a file as they are: indices of a palette, not its colours; of colour files that are grey, one channel."""
    read_image(path, "L")  # says what is wrong with files that cannot be read
    with Image.open(path) as picture:
        array = np.asarray(ImageOps.exif_transpose(picture))
    if array.ndim == 3:
        if not (array[..., :3] == array[..., :1]).all():
            raise BadFileError(f"{path} is coloured, but its classes are read as levels: give the colours of the classes with data.mask_values")
        array = array[..., 0]
    return array.astype(np.int64)


def _look_up(path: Path, found: np.ndarray, code: MaskCode, form: str) -> Tensor:
    """Map the values of a file to the classes; `form` writes a value for the message."""
    label = {0: 0} | {value: number for number, value in enumerate(code.values, start=1)}
    present = np.unique(found).tolist()
    strange = ", ".join(form.format(value) for value in present if value not in label)
    if strange:
        shown = strange if len(strange) < 60 else strange[:60] + " ..."
        raise BadFileError(
            f"{path} holds {shown}, which is no class and not the background: set data.classes or data.mask_values, or correct the mask"
        )
    return torch.from_numpy(np.array([label[value] for value in present], np.int64)[np.searchsorted(present, found)])
