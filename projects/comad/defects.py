"""Defects as MVTec LOCO AD describes them: a mask for each, whose value names it, and how much has to be found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.data.files import BadFileError, read_mask_levels
from shared.runs import write_json

CONFIG = "defects_config.json"


@dataclass(frozen=True)
class DefectType:
    """A line of `defects_config.json`.

    Attributes:
        name: of the defect.
        pixel_value: of its masks, in [1, 255].
        threshold: part of the defect's own area in (0, 1] if `is_relative`, else a number of pixels.
        is_relative: see `threshold`.
    """

    name: str
    pixel_value: int
    threshold: float = 1.0
    is_relative: bool = True

    def saturation(self, area: int) -> int:
        """Return the area, in pixels, beyond which finding more of a defect of some area earns nothing; 1 at least.

        Relative thresholds are cut to whole pixels as MVTec's evaluation does; for tiny defects that gives 0, which cannot be divided by.
        """
        return max(1, int(self.threshold * area) if self.is_relative else min(int(self.threshold), area))


HARD = 16
"""Levels that a mask without soft edges has at most; some sets number their defects, from 1 on."""
WHOLE = DefectType("defect", 255)
"""What masks without a configuration are of: all of the defect counts."""


@dataclass(frozen=True)
class Defect:
    """One defect of one picture.

    Attributes:
        mask: (H, W) bool, of the picture's original size; some pixel is True.
        type: what it is.
    """

    mask: Tensor
    type: DefectType

    @property
    def name(self) -> str:
        """Name of the defect."""
        return self.type.name

    @property
    def saturation(self) -> int:
        """Saturation area in pixels, see `DefectType.saturation`."""
        return self.type.saturation(int(self.mask.sum()))


def read_config(path: Path) -> dict[int, DefectType]:
    """Read a `defects_config.json`.

    Returns:
        Types by their pixel value.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it is damaged, lacks a value or holds one that is out of its range, or has two defects of one pixel value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: it belongs to MVTec LOCO AD; put it there, or read other folders by data.source folder")
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
        types = [_type(line) for line in lines]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        keys = "defect_name, pixel_value, saturation_threshold, relative_saturation"
        raise BadFileError(f"cannot use {path}: {what}; expected a list of objects with {keys}") from error
    by_value = {each.pixel_value: each for each in types}
    if len(by_value) < len(types):
        values = [each.pixel_value for each in types]
        twice = next(value for value in values if values.count(value) > 1)
        raise BadFileError(f"cannot use {path}: the pixel value {twice} has two defects; give each its own")
    return by_value


def _type(line: Mapping[str, Any]) -> DefectType:
    name, value = str(line["defect_name"]), int(line["pixel_value"])
    threshold, is_relative = float(line["saturation_threshold"]), bool(line["relative_saturation"])
    if not 1 <= value <= 255:
        raise ValueError(f"pixel_value of {name} is {value}, not in 1 to 255")
    if not 0 < threshold < float("inf") or (is_relative and threshold > 1):
        raise ValueError(f"saturation_threshold of {name} is {threshold:g}, not {'in (0, 1]' if is_relative else 'a number of pixels above 0'}")
    return DefectType(name, value, threshold, is_relative)


def write_config(path: Path, types: Iterable[DefectType]) -> None:
    """Write a `defects_config.json`."""
    lines = [
        {
            "defect_name": each.name,
            "pixel_value": each.pixel_value,
            "saturation_threshold": each.threshold if each.is_relative else int(each.threshold),
            "relative_saturation": each.is_relative,
        }
        for each in types
    ]
    write_json(path, lines)


def read_defect(path: Path, size: tuple[int, int], types: Mapping[int, DefectType] | None = None) -> Defect:
    """Read the mask of one defect.

    Args:
        path: the mask.
        size: height and width of its picture.
        types: what pixel values mean; None takes every pixel above 0 as `WHOLE`, or above half of the largest level in a mask with soft edges. In
            colours the strongest channel counts; transparent pixels are 0.

    Raises:
        BadFileError: if the mask is damaged, empty, of another size than its picture, or holds no value, or not one only, of `types`.
        FileNotFoundError: if it is missing.
    """
    levels = read_mask_levels(path)
    if tuple(levels.shape) != size:
        here, there = (f"{height} x {width}" for height, width in (levels.shape, size))
        raise BadFileError(f"the mask {path} has {here} pixels (height x width), its picture {there}: masks must have the size of their picture")
    is_soft = types is None and len(levels.unique()) > HARD
    mask = levels > (levels.max() // 2 if is_soft else 0)
    if not mask.any():
        raise BadFileError(f"the mask {path} marks nothing: remove it, or mark its defect")
    if types is None:
        return Defect(mask, WHOLE)
    values = levels[mask].unique().tolist()
    if len(values) > 1:
        raise BadFileError(f"the mask {path} holds the values {', '.join(map(str, values[:5]))}: expected one defect a file, with one value")
    if values[0] not in types:
        known = ", ".join(map(str, sorted(types)))
        raise BadFileError(f"the mask {path} has the value {values[0]}, which {CONFIG} does not name (it names {known}): correct one of them")
    return Defect(mask, types[values[0]])
