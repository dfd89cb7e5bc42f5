"""Small worlds that need no download: real handwriting, real photographs and painted shapes, each a pure function of its seed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.files import read_levels
from shared.seeding import generator

Split = Literal["train", "val", "test"]

SHAPES = ("disc", "square", "cross", "triangle")
"""What `shapes` paints, in the order of the labels."""

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": ("astronaut.png", "brick.png", "camera.png", "china.jpg", "coffee.png", "coins.png", "motorcycle_left.png"),
    "val": ("grass.png", "rocket.jpg"),
    "test": ("chelsea.png", "flower.jpg", "gravel.png"),
}
"""Files that scikit-image and scikit-learn install with themselves; no picture and no scene is in two splits."""


class TensorImages(Dataset):
    """Images held in one tensor; items are `{"image": (C, H, W) float32, "label": int, "index": int}`.

    Args:
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64.
        class_names: name of each label.

    Raises:
        ValueError: if there are not as many labels as images.
    """

    def __init__(self, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images with {len(labels)} labels: there must be one label an image")
        self.images, self.labels, self.class_names = images, labels, class_names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index]), "index": index}


def digits(split: Split, size: int = 16, channels: int = 1, seed: int = 0, num_val: int = 0, num_test: int = 397) -> TensorImages:
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels, enlarged bilinearly.

    Args:
        split: the shuffled digits are cut into train, val and test, in this order.
        size: height and width of the images, in pixels.
        channels: 1, or 3 equal ones.
        seed: seed of the shuffling, the same for all splits.
        num_val: digits that are taken from the end of train for val.
        num_test: digits of test; the rest, 1400 by default, is for the other two.

    Returns:
        Images in [0, 1], the label being the digit.

    Raises:
        ValueError: if an argument is out of its range, or the split is empty.
    """
    _check(split, size, channels)
    from sklearn.datasets import load_digits

    data = load_digits()
    total = len(data.images)
    if num_val < 0 or num_test < 0 or num_val + num_test > total:
        raise ValueError(f"num_val and num_test must be 0 or more and together at most {total}, got {num_val} and {num_test}")
    ends = {"train": (0, total - num_test - num_val), "val": (total - num_test - num_val, total - num_test), "test": (total - num_test, total)}
    chosen = np.random.default_rng(seed).permutation(total)[slice(*ends[split])]
    if len(chosen) == 0:
        raise ValueError(f"no digits are left for the split {split!r}: num_val is {num_val} and num_test {num_test} of {total}")
    small = torch.from_numpy(data.images[chosen]).float()[:, None] / 16  # values are 0 to 16
    images = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return TensorImages(images.repeat(1, channels, 1, 1), torch.from_numpy(data.target[chosen]).long(), tuple("0123456789"))


class PhotographCrops(Dataset):
    """Square crops of photographs; items are `{"image": (3, size, size) float32 in [0, 1], "label": index of the photograph, "index": int}`.

    The photograph, the crop's side (a quarter of the shorter side, but at least `size`, to all of it), its place and its flip depend on
    `(seed, split, index)` alone.

    Args:
        split: which pictures of `PHOTOGRAPHS` are cropped.
        size: height and width of the crops, in pixels.
        seed: seed of the choices.
        length: number of crops.

    Attributes:
        class_names: names of all photographs of all splits, in the order of the labels.

    Raises:
        FileNotFoundError: if a photograph is not installed.
        ValueError: if an argument is out of its range.
    """

    def __init__(self, split: Split, size: int, seed: int, length: int) -> None:
        _check(split, size, length=length)
        self.split, self.size, self.seed, self.length = split, size, seed, length
        self.class_names = tuple(Path(name).stem for names in PHOTOGRAPHS.values() for name in names)
        self._first_label = self.class_names.index(Path(PHOTOGRAPHS[split][0]).stem)
        self._photographs = [read_levels(photograph_file(name)) for name in PHOTOGRAPHS[split]]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} of {self.length} crops")
        chance = torch.rand(5, generator=generator(self.seed, "photographs", self.split, index), dtype=torch.float64).tolist()
        number = int(chance[0] * len(self._photographs))
        photograph = self._photographs[number]
        _, height, width = photograph.shape
        shorter = min(height, width)
        smallest = min(max(self.size, shorter // 4), shorter)
        side = smallest + int(chance[1] * (shorter - smallest + 1))
        top, left = int(chance[2] * (height - side + 1)), int(chance[3] * (width - side + 1))
        crop = photograph[None, :, top : top + side, left : left + side]  # bytes: resized fifteen times as fast as floats
        image = F.interpolate(crop, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)[0].float() / 255
        return {"image": image.flip(-1) if chance[4] < 0.5 else image, "label": self._first_label + number, "index": index}


def photographs(split: Split, size: int = 64, seed: int = 0, length: int = 1000) -> PhotographCrops:
    """Return `length` crops from the photographs of a split; see `PhotographCrops`."""
    return PhotographCrops(split, size, seed, length)


def photograph_file(name: str) -> Path:
    """Find one of the `PHOTOGRAPHS` without importing the packages that bring them.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    folders = [Path(place) / folder for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")) for place in _places(package)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    searched = " or ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"the photograph {name} is not in {searched}: install scikit-image and scikit-learn anew, from their wheels")


def shapes(split: Split, size: int = 16, channels: int = 3, length: int = 1000, seed: int = 0) -> TensorImages:
    """Paint one disc, square, cross or triangle an image, in random colour, place and size, on a ground of another colour.

    Each image depends on `(seed, split, index)` alone. Its two colours differ by at least 0.3 in every channel.

    Args:
        split: train, val and test hold different images.
        size: height and width of the images, in pixels.
        channels: 1 or 3.
        length: number of images.
        seed: seed of the choices.

    Returns:
        Images in [0, 1], the label being the place of the shape in `SHAPES`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check(split, size, channels, length)
    chance = torch.stack([torch.rand(10, generator=generator(seed, "shapes", split, index)) for index in range(length)])
    labels = (chance[:, 0] * len(SHAPES)).long()
    radii = 0.2 + 0.2 * chance[:, 1]
    centres = radii[:, None] + (1 - 2 * radii[:, None]) * chance[:, 2:4]  # the whole shape lies inside the image
    ground = chance[:, 4 : 4 + channels, None, None]
    colour = (ground + 0.3 + 0.4 * chance[:, 7 : 7 + channels, None, None]) % 1
    coverage = paint(labels, centres, radii, size)
    return TensorImages(coverage * colour + (1 - coverage) * ground, labels, SHAPES)


def paint(labels: Tensor, centres: Tensor, radii: Tensor, size: int) -> Tensor:
    """Paint shapes in white on black, anti-aliased from 4 x 4 points a pixel.

    Args:
        labels: (N,) places in `SHAPES`.
        centres: (N, 2) row and column of the middle of the shape's bounding square, in parts of the image's side.
        radii: (N,) half the side of the bounding square, in the same unit.
        size: height and width of the images, in pixels.

    Returns:
        (N, 1, size, size) float32: the part of each pixel that the shape covers, in [0, 1].
    """
    points = (torch.arange(4 * size) + 0.5) / (4 * size)
    painted = torch.empty(len(labels), 1, size, size)
    for label, shape in enumerate(SHAPES):
        for some in (labels == label).nonzero()[:, 0].split(max(1, 2**20 // len(points) ** 2)):  # bounds the memory
            y, x = ((points - centres[some, :, None]) / radii[some, None, None]).unbind(1)  # (n, 4 size), from -1 to 1 inside the bounding square
            painted[some] = F.avg_pool2d(_covers(shape, y[:, :, None], x[:, None, :])[:, None].float(), 4)
    return painted


def _covers(shape: str, y: Tensor, x: Tensor) -> Tensor:
    """Tell which points of the bounding square, from -1 to 1 downwards and to the right, lie in a shape."""
    if shape == "disc":
        return x**2 + y**2 <= 1
    square = (x.abs() <= 1) & (y.abs() <= 1)
    if shape == "cross":
        return square & ((x.abs() <= 1 / 3) | (y.abs() <= 1 / 3))
    return square & (2 * x.abs() <= y + 1) if shape == "triangle" else square


def _check(split: str, size: int, channels: int = 1, length: int = 1) -> None:
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    if size < 1 or length < 1:
        raise ValueError(f"size and length must be at least 1, got {size} and {length}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")


def _places(package: str) -> list[str]:
    spec = find_spec(package)
    return list(spec.submodule_search_locations or []) if spec else []
