"""Data sets of image files: any folder, folders whose files belong together, and arrays of images; all read lazily."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.arrays import map_npz
from shared.data.files import MAX_PIXELS, BadFileError, ImageMode, blamed, check_images, first_few, image_size, list_images, read_image

NO_LABEL = -1
"""The label of images that have none; losses refuse it."""

OnBadFile = Literal["refuse", "skip"]

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def fit_square(image: Tensor, size: int, method: Literal["crop", "stretch"] = "crop", is_mask: bool = False) -> Tensor:
    """Bring an image to a square.

    Args:
        image: (C, H, W) in [0, 1].
        size: height and width of the result, in pixels.
        method: "crop" cuts out the centre square first, "stretch" keeps the whole image and changes its proportions.
        is_mask: takes the nearest pixel, so that no new values arise; otherwise bilinear with anti-aliasing.

    Returns:
        (C, size, size) in [0, 1].

    Raises:
        ValueError: if the method is unknown.
    """
    if method not in ("crop", "stretch"):
        raise ValueError(f"method must be 'crop' or 'stretch', got {method!r}")
    if method == "crop":
        _, height, width = image.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    if is_mask:
        return F.interpolate(image[None], size=(size, size), mode="nearest-exact")[0]
    return F.interpolate(image[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)


class ImageFolderDataset(Dataset):
    """All images of a folder; items are `{"image": (C, H, W) float32 in [0, 1], "label": int, "index": int}`.

    Args:
        root: folder, searched with its sub-folders.
        has_classes: takes the first sub-folders, sorted by name, as classes 0, 1, ... and leaves out images beside them, as torchvision's
            `ImageFolder` does; otherwise every label is `NO_LABEL`.
        size: side of the square that images are brought to, in pixels; None keeps their sizes, which must then be equal within a batch.
        box: left, top, right and bottom of the part to cut out first, in pixels; None takes the whole image. The usual cut of aligned CelebA
            faces is (25, 57, 153, 185).
        mode: "RGB" gives three channels, "L" one.
        on_bad_file: checks all images at once, see `check_images`; None reads them only when their turn comes.
        max_pixels: larger images are refused.

    Attributes:
        paths: the image files, sorted.
        labels: their labels.
        class_names: names of the classes; empty without them.

    Raises:
        FileNotFoundError: if the folder is missing, or it or one of its classes holds no image.
        ValueError: if the classes lie in train, test and so on below it.
        BadFileError: if a file cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        has_classes: bool = False,
        size: int | None = None,
        box: tuple[int, int, int, int] | None = None,
        mode: ImageMode = "RGB",
        on_bad_file: OnBadFile | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        root = Path(root).expanduser()
        self.size, self.box, self.mode, self.max_pixels = size, box, mode, max_pixels
        self.paths = list_images(root, f"{root}/<class>/<name>.png" if has_classes else f"{root}/**/<name>.png")
        self.class_names: list[str] = []
        if has_classes:
            self.paths = [path for path in self.paths if path.parent != root]
            self.class_names = _class_names(root, self.paths)
        if on_bad_file is not None:
            self.paths = check_images(self.paths, on_bad_file, max_pixels)
        number = {name: label for label, name in enumerate(self.class_names)}
        self.labels = [number[path.relative_to(root).parts[0]] if has_classes else NO_LABEL for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_image(self.paths[index], self.mode, self.max_pixels)
        if self.box is not None:
            image = self._cut(image, self.box, self.paths[index])
        return {"image": image if self.size is None else fit_square(image, self.size), "label": self.labels[index], "index": index}

    @staticmethod
    def _cut(image: Tensor, box: tuple[int, int, int, int], path: Path) -> Tensor:
        left, top, right, bottom = box
        _, height, width = image.shape
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise BadFileError(f"{path} has {width} x {height} pixels, which the box {box} is not inside of; correct the box, or remove the file")
        return image[:, top:bottom, left:right]


class PairFolderDataset(Dataset):
    """Images that belong together, one in each of several folders; items hold a (C, H, W) float32 image in [0, 1] for each key, and "index".

    The files of one item have the same path below their folders, except for the ending: `images/a/7.jpg` and `masks/a/7.png`. They must have
    the same height and width.

    Args:
        root: folder that holds the folders.
        folders: folder of each key, by default `{"image": "images", "mask": "masks"}`.
        modes: mode of each key: "RGB" (default), "L" or "1"; by default `{"mask": "1"}`. "L" and "1" are resized without making new values.
        size: side of the square that all images of an item are brought to, in pixels; None keeps their sizes.
        method: "stretch" or "crop", see `fit_square`.
        on_bad_file: decodes all images at once; "refuse" lists the bad ones, "skip" leaves their items out. None looks at the headers only.
        max_pixels: larger images are refused.

    Attributes:
        names: path of each item below its folders, without ending, sorted.

    Raises:
        FileNotFoundError: if a folder is missing or holds no image.
        BadFileError: if a file cannot be read.
        ValueError: if names do not match or are used twice in a folder, or sizes differ within an item; each is listed.
    """

    def __init__(
        self,
        root: str | Path,
        folders: Mapping[str, str] | None = None,
        modes: Mapping[str, ImageMode] | None = None,
        size: int | None = None,
        method: Literal["crop", "stretch"] = "stretch",
        on_bad_file: OnBadFile | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        root = Path(root).expanduser()
        folders = folders or {"image": "images", "mask": "masks"}
        self.modes: Mapping[str, ImageMode] = {"mask": "1"} if modes is None else modes
        self.size, self.method, self.max_pixels = size, method, max_pixels
        tree = " and ".join(f"{root}/{folder}/**/<name>.png" for folder in folders.values())
        self._files = {key: _by_name(root / folder, tree) for key, folder in folders.items()}
        _check_names(root, {folders[key]: set(files) for key, files in self._files.items()})
        self.names = sorted(next(iter(self._files.values())))
        if on_bad_file is not None:
            self._drop_unreadable(on_bad_file)
        self._check_sizes(root)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {key: self._read(key, self.names[index]) for key in self._files}
        return item | {"index": index}

    def _read(self, key: str, name: str) -> Tensor:
        mode = self.modes.get(key, "RGB")
        image = read_image(self._files[key][name], mode, self.max_pixels)
        return image if self.size is None else fit_square(image, self.size, self.method, is_mask=mode != "RGB")

    def _drop_unreadable(self, on_bad_file: OnBadFile) -> None:
        paths = [files[name] for name in self.names for files in self._files.values()]
        readable = set(check_images(paths, on_bad_file, self.max_pixels))
        self.names = [name for name in self.names if all(files[name] in readable for files in self._files.values())]
        if not self.names:
            raise BadFileError(
                f"every item has a file that cannot be read, such as {next(path for path in paths if path not in readable)}; replace them"
            )

    def _check_sizes(self, root: Path) -> None:
        complaints = []
        for name in self.names:
            sizes = {key: image_size(files[name], self.max_pixels) for key, files in self._files.items()}
            if len(set(sizes.values())) > 1:
                complaints.append(f"{name}: " + ", ".join(f"{key} {width} x {height}" for key, (height, width) in sizes.items()))
        if complaints:
            lines = [f"{len(complaints)} items in {root} have images of different sizes:", *first_few(complaints), "resize or remove them"]
            raise ValueError("\n  ".join(lines))


class NpzDataset(Dataset):
    """Images in one .npz file; items are `{"image": (C, H, W) float32 in [0, 1], "label": int, "index": int}`.

    Arrays that `numpy.savez` wrote are read from the disk as they are used; those of `numpy.savez_compressed` are held in memory.

    Args:
        path: file with the images under "arr_0" or "images", shape (N, H, W) or (N, H, W, C) with C 1 or 3, uint8 or float in [0, 1], and perhaps
            (N,) whole-number labels under "labels" or "arr_1".

    Attributes:
        images: (N, H, W, C) array as stored.
        labels: (N,) int64; `NO_LABEL` throughout if there are none.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it is damaged, holds Python objects, or an array of a wrong name, shape, type or range; says which.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {path}: expected an .npz file with images of shape (N, H, W, C) under arr_0 or images; correct the path"
            )
        with blamed(path):
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            key = next((name for name in ("arr_0", "images") if name in names), None)
            if key is None:
                raise ValueError(f"it holds {', '.join(first_few(names)) or 'nothing'}, but no array arr_0 or images: save the images as images")
            images = map_npz(path, key)
            _check_images_array(images)
            self.images = images if images.ndim == 4 else images[..., None]
            self.labels = _labels(path, names, key, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.from_numpy(np.array(self.images[index], order="C")).permute(2, 0, 1).contiguous().float()
        return {"image": image / 255 if self.images.dtype == np.uint8 else image, "label": int(self.labels[index]), "index": index}


def _class_names(root: Path, paths: list[Path]) -> list[str]:
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    empty = sorted(set(names) - {path.relative_to(root).parts[0] for path in paths})
    if names and {name.lower() for name in names} <= _SPLITS and all(len(path.relative_to(root).parts) > 2 for path in paths):
        one = root / max(names, key=lambda name: name.lower().startswith("train"))
        raise ValueError(f"{root} holds {' and '.join(names)} with classes in them: name one of these, such as {one}")
    if not names or empty:
        what = f"the classes {', '.join(first_few(empty))} hold no images" if names else "there are no sub-folders"
        raise FileNotFoundError(
            f"{root} is no folder of classes: {what}; expected {root}/<class>/<name>.png for each class, fill or remove those folders"
        )
    return names


def _by_name(folder: Path, tree: str) -> dict[str, Path]:
    """Map the path below `folder` without ending to the file."""
    files: dict[str, Path] = {}
    for path in list_images(folder, tree):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{files[name]} and {path} have the same name but for the ending: remove one of them")
        files[name] = path
    return files


def _check_names(root: Path, names: dict[str, set[str]]) -> None:
    everything = set.union(*names.values())
    lines = [
        f"missing in {folder} ({len(everything - there)}): {', '.join(first_few(sorted(everything - there)))}"
        for folder, there in names.items()
        if everything - there
    ]
    if lines:
        advice = "add the missing files or remove those they would belong to; names are paths without ending"
        raise ValueError("\n  ".join([f"the folders in {root} do not match name for name:", *lines, advice]))


def _check_images_array(images: np.ndarray) -> None:
    """Raise a ValueError unless the array holds images; floats are read once, in parts."""
    if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        is_channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
        mend = "move the channels to the end: images.transpose(0, 2, 3, 1)" if is_channels_first else "store grey or RGB images in this shape"
        raise ValueError(f"its images have the shape {images.shape}, expected (N, H, W) or (N, H, W, C) with C 1 or 3; {mend}")
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise ValueError(f"its images are {images.dtype}, expected uint8 or float; convert them")
    for first, part in _parts(images):
        is_bad = ~((part >= 0) & (part <= 1))  # true for NaN as well
        if is_bad.any():
            where = np.argwhere(is_bad)[0]
            index, value = first + int(where[0]), part[tuple(where)]
            what = "NaN" if np.isnan(value) else f"the value {value:g}"
            raise ValueError(f"image {index} holds {what}, expected floats in [0, 1]; repair the image, or rescale all of them")


def _parts(array: np.ndarray, count: int = 64) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(array), count):
        yield first, array[first : first + count]


def _labels(path: Path, names: list[str], key: str, count: int) -> Tensor:
    for name in ("labels", "arr_1"):
        if name in names and name != key:
            labels = map_npz(path, name)
            if labels.shape != (count,) or labels.dtype.kind not in "iu":
                raise ValueError(f"its {name} are {labels.dtype} of shape {labels.shape}, expected whole numbers of shape ({count},), one an image")
            return torch.from_numpy(labels.astype(np.int64))
    return torch.full((count,), NO_LABEL)
