"""Sets on the disk: a folder with `manifest.json` and the images, as PNG files in folders of their classes or as one array of bytes.

| file | png | npy |
|---|---|---|
| images | `<class>/<name>.png` | `images.npy`, (N, H, W, C) uint8 |
| perturbations p | the same, 128 + round(255 p) clipped to 0..255 | `perturbations.npy`, (N, H, W, C) float16, in units of [0, 1] images |
| order and labels | `names.json`, the names by index; the class is the first folder | `names.json` and `labels.npy`, (N,) int64 |
| which are poisoned, where known | `poisoned.npy`, (N,) bool | the same |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from projects.dvae.sets.labelled import FolderSet, ImageSet
from shared.data.arrays import read_npy
from shared.data.files import BadFileError, blamed, first_few, read_json
from shared.runs import atomic, remove, write_json

MANIFEST = "manifest.json"
"""The file that tells a stored set."""

VERSION = 1

Format = Literal["png", "npy"]


class SetWriter:
    """Writes images of a set by index, in any order and by several processes; what is there already need not be written again.

    A folder with a set of the same key, images and labels is gone on with, any other stored set in it is replaced. Of several processes, the first
    must have made its writer before the others make theirs.

    Args:
        folder: absent, empty, or a stored set.
        names: path of each image below its folder, `<class>/...`; None names them `<class>/00000`, by their index. The ending becomes `.png`.
        labels: (N,) int64.
        class_names: name of each label.
        shape: (C, H, W), C being 1 or 3.
        format: png or npy.
        key: tells what the images are made from, such as a digest of the network's weights.

    Raises:
        ValueError: if the folder holds something else, or names and labels do not fit.
        OSError: if there is no room for the array.
    """

    kind: ClassVar[str] = "images"
    dtype: ClassVar[type] = np.uint8

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str] | None,
        labels: Tensor,
        class_names: Sequence[str],
        shape: Sequence[int],
        format: Format = "png",  # noqa: A002
        key: str = "",
    ) -> None:
        if format not in ("png", "npy"):
            raise ValueError(f"sets are stored as png or npy, not {format!r}")
        self.folder, self.format, self.shape = Path(folder), format, tuple(shape)
        self.names = _stored_names(names, labels, class_names)
        described = hashlib.sha256(json.dumps([self.names, labels.tolist()]).encode()).hexdigest()[:16]
        self._head = {"version": VERSION, "kind": self.kind, "format": format, "count": len(labels), "shape": list(self.shape)}
        self._head |= {"class_names": list(class_names), "key": key, "names_and_labels": described}
        self._begin(labels)
        if format == "npy" and not self.is_complete:
            height, width = self.shape[1:]
            self._array = _reserved(self.folder / f"{_ARRAYS[self.kind]}", (len(labels), height, width, self.shape[0]), self.dtype)
            self._written = _reserved(self.folder / _WRITTEN, (len(labels),), np.bool_)

    def _begin(self, labels: Tensor) -> None:
        """Take up the set in the folder if it is the same, else begin anew."""
        found = read_manifest(self.folder, must_exist=False)
        if found is None and self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no stored set (it has no {MANIFEST}): name another folder")
        self.is_complete = bool(found and found["complete"])
        if found is not None and all(found.get(name) == value for name, value in self._head.items()):
            return
        self.is_complete = False
        remove(self.folder)
        write_json(self.folder / "names.json", self.names)
        if self.format == "npy":
            with atomic(self.folder / "labels.npy") as temporary:
                np.save(temporary, labels.numpy())
        write_json(self.folder / MANIFEST, self._head | {"complete": False})

    def has(self, indices: Sequence[int]) -> bool:
        """Tell whether all these images are there."""
        if self.format == "npy":
            return self.is_complete or bool(self._written[np.asarray(indices)].all())
        return all((self.folder / self.names[index]).exists() for index in indices)

    def write(self, indices: Sequence[int], images: Tensor) -> None:
        """Write images.

        Args:
            indices: their indices in the set.
            images: (B, C, H, W), uint8, or floats in [0, 1], which are rounded.

        Raises:
            ValueError: for images of another shape.
            OSError: if there is no room left.
        """
        if tuple(images.shape) != (len(indices), *self.shape):
            raise ValueError(f"{self.folder} takes images of shape {(len(indices), *self.shape)}, got {tuple(images.shape)}")
        pixels = self._encode(images).permute(0, 2, 3, 1).numpy()
        if self.format == "npy":
            self._array[np.asarray(indices)] = pixels
            self._written[np.asarray(indices)] = True  # after the images: a killed process leaves no row that is marked and half written
            return
        for index, picture in zip(indices, pixels, strict=True):
            with atomic(self.folder / self.names[index]) as temporary:
                Image.fromarray(picture[..., 0] if self.shape[0] == 1 else picture).save(temporary)

    def _encode(self, images: Tensor) -> Tensor:
        """Turn (B, C, H, W) images into what is stored."""
        return images if images.dtype == torch.uint8 else (images.clamp(0, 1) * 255).round().byte()

    def finish(self, manifest: dict[str, Any], is_poisoned: Tensor | None = None) -> None:
        """Complete the set; of several processes, one does so when all have written.

        Args:
            manifest: what else `manifest.json` shall say, such as the attack or the network that the images were made with.
            is_poisoned: (N,) bool, where known.

        Raises:
            ValueError: if images are missing.
        """
        missing = [index for index in range(len(self.names)) if not self.has([index])]
        if missing:
            raise ValueError(f"{self.folder} is not complete: {len(missing)} of {len(self.names)} images were not written")
        if is_poisoned is not None:
            with atomic(self.folder / _POISONED) as temporary:
                np.save(temporary, is_poisoned.numpy())
        if self.format == "npy" and not self.is_complete:
            self._array.flush()
        write_json(self.folder / MANIFEST, manifest | self._head | {"complete": True})
        remove(self.folder / _WRITTEN)
        self.is_complete = True


class PerturbationWriter(SetWriter):
    """Writes perturbations, (B, C, H, W) floats in units of [0, 1] images: exactly to float16 (npy), or as pictures around grey (png)."""

    kind = "perturbation"
    dtype = np.float16

    def _encode(self, images: Tensor) -> Tensor:
        return images.half() if self.format == "npy" else (128 + (255 * images).round()).clamp(0, 255).byte()


class StoredPerturbations:
    """Reads the perturbations of a stored set by index.

    Args:
        folder: the stored set.

    Raises:
        FileNotFoundError: if the folder holds no stored set.
        ValueError: if it is not complete, or holds images.
        BadFileError: if files are missing or damaged, or do not fit each other.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder).expanduser()
        manifest = _finished(folder, "perturbation")
        with blamed(folder / MANIFEST, _MEND):
            self._set = _read(folder, manifest)
        self.labels = self._set.labels if isinstance(self._set, FolderSet) else self._set[1]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return perturbations, (B, C, H, W) float32 in units of [0, 1] images."""
        if isinstance(self._set, FolderSet):
            return (self._set.read(indices).float() - 128) / 255
        return self._set[0][torch.as_tensor(indices)].float()


def read_set(folder: str | Path) -> ImageSet | FolderSet:
    """Read a stored set of images; an array of bytes is mapped from its file, PNG files are read as they are used.

    Raises:
        FileNotFoundError: if the folder holds no stored set.
        ValueError: if it is not complete, or holds perturbations.
        BadFileError: if files are missing, says which; or are damaged, or do not fit each other.
    """
    folder = Path(folder).expanduser()
    manifest = _finished(folder, "images")
    with blamed(folder / MANIFEST, _MEND):
        found = _read(folder, manifest)
        return found if isinstance(found, FolderSet) else ImageSet(*found, manifest["class_names"], _names(folder))


def read_poisoned(folder: str | Path) -> Tensor | None:
    """Return which images of a stored set are poisoned, (N,) bool, or None where it does not say."""
    path = Path(folder).expanduser() / _POISONED
    return torch.from_numpy(_load(path, 1)) if path.is_file() else None


def read_manifest(folder: str | Path, must_exist: bool = True) -> dict[str, Any] | None:
    """Return what `manifest.json` of a stored set says.

    Args:
        folder: the stored set.
        must_exist: raises a FileNotFoundError if there is none; otherwise None is returned.

    Raises:
        BadFileError: if it cannot be used.
    """
    path = Path(folder).expanduser() / MANIFEST
    if not path.is_file():
        if must_exist:
            advice = "name the folder of a set that poison or purify wrote; folders of classes are read with data.source folder"
            raise FileNotFoundError(f"no stored set in {folder}: it has no {MANIFEST}; {advice}")
        return None
    manifest = read_json(path, f"it is damaged: {_MEND}")
    needed = {"version", "kind", "format", "count", "shape", "class_names", "complete"}
    if not isinstance(manifest, dict) or not needed <= manifest.keys() or manifest["version"] != VERSION:
        raise BadFileError(f"{path} is no manifest of a stored set of version {VERSION}: write the set anew")
    return manifest


_ARRAYS = {"images": "images.npy", "perturbation": "perturbations.npy"}
_MEND = "write the set anew"
_WRITTEN, _POISONED = "written.npy", "poisoned.npy"


def _finished(folder: Path, kind: str) -> dict[str, Any]:
    """Return the manifest of a set that is complete and of this kind."""
    manifest = read_manifest(folder)
    assert manifest is not None
    if manifest["kind"] != kind:
        raise ValueError(f"{folder} holds {manifest['kind']}, not {kind}")
    if not manifest["complete"]:
        raise ValueError(f"{folder} is not complete: run the command that writes it again with --resume")
    return manifest


def _read(folder: Path, manifest: dict[str, Any]) -> FolderSet | tuple[Tensor, Tensor]:
    """Read a complete set as files, or as an array (N, C, H, W) and its labels."""
    channels, height, width = manifest["shape"]
    if manifest["format"] == "png":
        found = _read_pictures(folder, manifest)
        if found.image_shape != (channels, height, width) or len(found) != manifest["count"]:
            raise BadFileError(
                f"{folder} holds {len(found)} images of shape {found.image_shape}, not {manifest['count']} of {(channels, height, width)}"
            )
        return found
    kind = manifest["kind"]
    array, labels = _load(folder / _ARRAYS[kind], 4), _load(folder / "labels.npy", 1)
    expected = (manifest["count"], height, width, channels)
    if array.shape != expected or array.dtype != (np.uint8 if kind == "images" else np.float16) or labels.shape != expected[:1]:
        raise BadFileError(f"{folder}: {array.dtype} of shape {array.shape} with labels of shape {labels.shape}, where {expected} was written")
    return torch.from_numpy(array).permute(0, 3, 1, 2), torch.from_numpy(np.array(labels, np.int64))


def _read_pictures(folder: Path, manifest: dict[str, Any]) -> FolderSet:
    names, class_names = _names(folder), manifest["class_names"]
    paths = [folder / name for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise BadFileError("\n  ".join([f"{len(missing)} of {len(paths)} images are missing:", *first_few(missing), _MEND]))
    number = {name: label for label, name in enumerate(class_names)}
    labels = [number.get(PurePosixPath(name).parts[0], -1) for name in names]
    if -1 in labels:
        raise BadFileError(f"{folder}: {names[labels.index(-1)]} lies in no folder of a class; write the set anew")
    return FolderSet(folder, paths, torch.tensor(labels), class_names, "L" if manifest["shape"][0] == 1 else "RGB")


def _names(folder: Path) -> list[str]:
    path = folder / "names.json"
    if not path.is_file():
        raise BadFileError(f"{path} is missing, without which the order of the images is not known: {_MEND}")
    names = read_json(path, _MEND)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadFileError(f"{path} is no list of names: {_MEND}")
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
        raise BadFileError(f"{path} names files outside of the set: write the set anew")
    return names


def _load(path: Path, dimensions: int) -> np.ndarray:
    """Map an array into memory, copied where it is changed."""
    if not path.is_file():
        raise BadFileError(f"{path} is missing: {_MEND}")
    array = read_npy(path, _MEND, "c")
    if array.ndim != dimensions:
        raise BadFileError(f"{path} has the shape {array.shape}: write the set anew")
    return array


def _reserved(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """Open an array in a file for writing; a new one has all its room reserved, as a full disk would kill the process later."""
    if not path.is_file():
        with atomic(path) as temporary:
            np.lib.format.open_memmap(temporary, "w+", dtype, shape).flush()
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    return np.lib.format.open_memmap(path, "r+")


def _stored_names(names: Sequence[str] | None, labels: Tensor, class_names: Sequence[str]) -> list[str]:
    """Give each image its path in the stored set: the old one ending in .png, with the old ending before it where names would be the same."""
    folders = [class_names[label] for label in labels.tolist()]
    if names is None:
        return [f"{folder}/{index:05d}.png" for index, folder in enumerate(folders)]
    if len(names) != len(folders):
        raise ValueError(f"{len(names)} names of images with {len(folders)} labels: there must be one label an image")
    odd = [name for name, folder in zip(names, folders, strict=True) if PurePosixPath(name).parts[0] != folder]
    if odd:
        raise ValueError(f"the name {odd[0]} does not begin with the folder of its class")
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    found = [f"{name if stem in shared else stem}.png" for name, stem in zip(names, stems, strict=True)]
    if len(set(found)) < len(found):
        raise ValueError(f"two images would both be stored as {Counter(found).most_common(1)[0][0]}: rename one of them")
    return found
