"""ACDC's cardiac volumes, read slice by slice from NIfTI files on their own integer grid; nibabel comes with the extra `medical`."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.umed.sets.files import Item, percentiles
from projects.umed.sets.layouts import Items
from projects.umed.sets.originals import Original
from shared.data.files import BadFileError, first_few

ACDC_CLASSES = ("right ventricle", "myocardium", "left ventricle")
"""What the levels 1, 2 and 3 of the masks are."""

_FRAME = re.compile(r"(patient\d+)_frame(\d+)\.nii(\.gz)?")


@dataclass(frozen=True)
class SliceItem:
    """A slice along the last axis of a volume.

    Attributes:
        name: path of the slice below its folder, made up: `<split>/patient001/patient001_frame01_z03.nii.gz`.
        image: file of the volume.
        mask: file of its labels.
        place: index of the slice.
        group: the patient.
    """

    name: str
    image: Path
    mask: Path
    place: int
    group: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.image, self.mask)

    def load(self) -> Original:
        volume = read_volume(self.image)
        levels = torch.from_numpy(volume.levels[..., self.place].copy())[None]
        return Original(self.name, levels, self.load_mask(), 16, volume.window, volume.scale, volume.offset)

    def load_mask(self) -> Tensor:
        labels = read_labels(self.mask, len(ACDC_CLASSES))
        if labels.shape != read_volume(self.image).levels.shape:
            raise BadFileError(self.complaint())
        return torch.from_numpy(labels[..., self.place].copy())

    def complaint(self) -> str:
        image, mask = volume_shape(self.image), volume_shape(self.mask)
        return "" if image == mask else f"{self.image} has the shape {image}, its mask {self.mask.name} {mask}"


@dataclass(frozen=True)
class Volume:
    """A volume on a grid of 16 bits.

    Attributes:
        levels: (H, W, D) int32 from 0 to 65535: the stored integers, from the smallest negative one on; floats that are not whole are spread over
            the range.
        window: 1st and 99th percentile of the levels, at least one wide.
        scale: with `offset`, the value is offset + scale * level.
        offset: see `scale`.
    """

    levels: np.ndarray
    window: tuple[float, float]
    scale: float
    offset: float


def acdc(root: Path) -> Items:
    """Find the end-diastolic and end-systolic slices of ACDC, `{training,testing}/patientNNN/patientNNN_frameKK.nii.gz` with `_gt.nii.gz`.

    Each of these may be a folder `patientNNN_frameKK.nii/` that holds one volume of another name, as Kaggle unpacks them.

    Returns:
        `all` if there is no testing folder, else `train` and `test`; slices are grouped by patient.

    Raises:
        FileNotFoundError: if there are none, or a volume has no labels; names it.
        BadFileError: if a header cannot be read.
    """
    places = [root, root / "database", root / "ACDC", root / "ACDC" / "database"]
    root = next((place for place in places if (place / "training").is_dir()), root)
    found = {split: _patients(root / folder, split) for split, folder in (("train", "training"), ("test", "testing")) if (root / folder).is_dir()}
    if not found.get("train"):
        tree = f"{root}/training/patient001/patient001_frame01.nii.gz with patient001_frame01_gt.nii.gz"
        raise FileNotFoundError(f"no volumes of ACDC in {root}: expected {tree}; correct data.root")
    return found if found.get("test") else {"all": found["train"]}


def _patients(folder: Path, split: str) -> list[Item]:
    items: list[Item] = []
    missing = []
    for path in sorted(folder.glob("patient*/patient*_frame*.nii*")):
        match = _FRAME.fullmatch(path.name)
        if match is None:
            continue
        ending = path.name[match.end(2) :]
        stem = path.name.removesuffix(ending)
        image, mask = _unpacked(path), _unpacked(path.with_name(f"{stem}_gt{ending}"))
        if not mask.is_file():
            missing.append(f"{path}: no {mask.name} beside it")
            continue
        shape = volume_shape(image)
        items += [SliceItem(f"{split}/{match[1]}/{stem}_z{place:02d}{ending}", image, mask, place, match[1]) for place in range(shape[2])]
    if missing:
        lines = [f"{len(missing)} volumes have no labels in {folder}:", *first_few(missing), "add the files, or remove the volumes"]
        raise FileNotFoundError("\n  ".join(lines))
    return items


def _unpacked(path: Path) -> Path:
    """Return a volume, or the only one in a folder of its name."""
    inside = sorted(path.glob("[!.]*.nii*")) if path.is_dir() else []
    if len(inside) > 1:
        raise BadFileError(f"{path} holds several volumes, {', '.join(first_few(one.name for one in inside))}: keep the one that it is named for")
    return inside[0] if inside else path


@lru_cache(maxsize=4)
def read_volume(path: Path) -> Volume:
    """Read a volume; the last ones are kept, as slices are asked for one after the other.

    Raises:
        BadFileError: if it cannot be read, holds NaN, or more integers than 16 bits do.
    """
    values, scale, offset = _array(path)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadFileError(f"{path} holds NaN or infinite values: repair or remove it")
        if not (values == np.round(values)).all():
            low, high = float(values.min()), float(values.max())
            step = (high - low) / 65535 or 1.0
            offset, scale, values = offset + scale * low, scale * step, (values - low) / step
    whole = np.round(values).astype(np.int64)
    least = min(0, int(whole.min()))
    whole, offset = whole - least, offset + scale * least
    if whole.max() > 65535:
        raise BadFileError(f"{path} spans {int(whole.max())} levels, but 16 bits hold 65535: rescale it")
    return Volume(whole.astype(np.int32), percentiles(whole), float(scale), float(offset))


@lru_cache(maxsize=4)
def read_labels(path: Path, classes: int) -> np.ndarray:
    """Read a volume of labels, (H, W, D) int64.

    Raises:
        BadFileError: if it cannot be read, or holds something else than 0 to `classes`.
    """
    values, scale, offset = _array(path)
    values = values * scale + offset
    strange = sorted(set(np.unique(values).tolist()) - set(range(classes + 1)))
    if strange:
        raise BadFileError(f"{path} holds the label {strange[0]:g}, expected whole numbers from 0 to {classes}: correct the labels")
    return values.astype(np.int64)


def volume_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of a volume of three axes from its header.

    Raises:
        BadFileError: if it cannot be read, or has more or fewer axes.
    """
    shape = tuple(int(length) for length in _opened(path).shape)
    if len(shape) != 3:
        raise BadFileError(f"{path} has the shape {shape}, expected three axes, the last of them across slices: remove it, or cut it")
    return shape


def _array(path: Path) -> tuple[np.ndarray, float, float]:
    """Return the stored numbers of a volume, and the scale and offset of its header."""
    volume_shape(path)
    image = _opened(path)
    try:
        values = np.asarray(image.dataobj.get_unscaled())
        slope, inter = (float(number) for number in (image.dataobj.slope, image.dataobj.inter))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadFileError(f"cannot read {path}: {error or type(error).__name__} (replace or remove the file)") from error
    if values.dtype.kind not in "iuf":
        raise BadFileError(f"{path} holds {values.dtype}, expected whole numbers or floats: convert it")
    return values, slope, inter


def _opened(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ValueError("NIfTI volumes need nibabel: install the extra with `uv sync --extra medical`") from error
    try:
        return nibabel.load(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged headers raise almost anything
        raise BadFileError(f"cannot read {path}: {error or type(error).__name__} (replace or remove the file)") from error
