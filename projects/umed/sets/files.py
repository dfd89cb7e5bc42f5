"""Sets that are read from image files as they are used, each image brought to the working size, and its original at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from projects.umed.sets.base import MaskedSet
from projects.umed.sets.masks import MaskCode, read_mask
from projects.umed.sets.originals import Original
from shared.data.files import BadFileError, check_images, first_few, image_size, read_image
from shared.data.folders import fit_square

OnBadFile = Literal["refuse", "skip"]


class Item(Protocol):
    """One image with its mask, wherever they lie."""

    @property
    def name(self) -> str:
        """Path of the image below its folder, with `/` and its original ending."""

    @property
    def group(self) -> str:
        """The patient or lesion."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""

    def load(self) -> Original:
        """Read the image, with the channels of its file, and its mask."""

    def load_mask(self) -> Tensor:
        """Read the mask alone, (H, W) int64."""

    def complaint(self) -> str:
        """Say what does not fit, from the headers of the files alone; empty if nothing."""


@dataclass(frozen=True)
class PictureItem:
    """An image file and the files of its masks.

    Attributes:
        name: path of the image below its folder, with `/` and its original ending.
        image: the file; colour of 16 bits is read with 8, as Pillow does.
        masks: files that are joined, later ones over earlier ones; none for an image without foreground.
        code: how classes are written in the masks.
        group: the patient or lesion.
        window: levels that 0 and 1 stand for; None takes 0 and 255 for 8 bits, and the 1st and 99th percentile of the image for 16.
    """

    name: str
    image: Path
    masks: tuple[Path, ...]
    code: MaskCode
    group: str
    window: tuple[float, float] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.image, *self.masks)

    def load(self) -> Original:
        (bits, is_grey), mask = _depth(self.image), self.load_mask()
        levels = (read_image(self.image, "L" if is_grey else "RGB") * (2**bits - 1)).round().int()
        if levels.shape[1:] != mask.shape:
            raise BadFileError(f"{self.complaint() or self.image}: the image has the shape {tuple(levels.shape)}, its mask {tuple(mask.shape)}")
        return Original(self.name, levels, mask, bits, self.window or ((0.0, 255.0) if bits == 8 else percentiles(levels)))

    def load_mask(self) -> Tensor:
        if not self.masks:
            return torch.zeros(image_size(self.image), dtype=torch.int64)
        joined = read_mask(self.masks[0], self.code)
        for path in self.masks[1:]:
            mask = read_mask(path, self.code)
            if mask.shape != joined.shape:
                raise BadFileError(f"{path} and {self.masks[0]} belong to one image but differ in size: correct or remove one of them")
            joined = torch.where(mask > 0, mask, joined)
        return joined

    def complaint(self) -> str:
        height, width = image_size(self.image)
        for path in self.masks:
            if (found := image_size(path)) != (height, width):
                return f"{self.image} has {width} x {height} pixels, its mask {path.name} {found[1]} x {found[0]}"
        return ""


class FileSet(MaskedSet):
    """A set read from files as they are used: images bilinearly and masks by the nearest pixel brought to the working size.

    What is published is perturbed in its own size, which `original` gives: resizing a protected image removes fine perturbations.

    Args:
        root: folder that messages name.
        items: the images.
        size: side of the square that images and masks are stretched to; None keeps their sizes, which must be equal.
        channels: 1 for grey, 3 for colour.
        classes: foreground classes K.
        class_names: names of the classes 1..K.
        on_bad_file: decodes all files at once: refuse lists those that cannot be read, skip leaves their images out; None looks at headers only.

    Raises:
        FileNotFoundError: if there is no image.
        ValueError: if images and masks, or without `size` the images, differ in size; names some.
        BadFileError: if a file cannot be read; names it.
    """

    def __init__(
        self,
        root: Path,
        items: Sequence[Item],
        size: int | None = None,
        channels: int = 1,
        classes: int = 1,
        class_names: Sequence[str] | None = None,
        on_bad_file: OnBadFile | None = None,
    ) -> None:
        if not items:
            raise FileNotFoundError(f"no images with masks in {root}: correct the path, or put them there")
        items = _readable(items, on_bad_file)
        _check_pairs(root, items)
        self._set_up(root, items, size, channels, classes, class_names)
        height, width = (size, size) if size is not None else _common_size(root, self.items)
        super().__init__([item.name for item in items], [item.group for item in items], (channels, height, width), classes, class_names)

    def _set_up(self, root: Path, items: Sequence[Item], size: int | None, channels: int, classes: int, class_names: Sequence[str] | None) -> None:
        self.root, self.items, self.size = root, list(items), size
        self._options = (channels, classes, class_names)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        if len(indices) > 1:
            with ThreadPoolExecutor(min(4, len(indices))) as pool:  # decoders run outside Python's lock
                found = list(pool.map(self._read_one, indices))
        else:
            found = [self._read_one(index) for index in indices]
        return torch.stack([image for image, _ in found]), torch.stack([mask for _, mask in found])

    def _read_one(self, index: int) -> tuple[Tensor, Tensor]:
        original = self.original(index)
        if self.size is None:
            return original.as_bytes(self.image_shape[0]), original.mask
        image = (fit_square(original.in_window(self.image_shape[0]), self.size, "stretch") * 255).round().byte()
        return image, fit_square(original.mask[None].float(), self.size, "stretch", is_mask=True)[0].long()

    def original(self, index: int) -> Original:
        found = self.items[index].load()
        if not int(found.mask.max()) <= self.classes:
            where = self.items[index].files[-1]
            raise BadFileError(f"{where} holds class {int(found.mask.max())}, but data.classes is {self.classes}: raise it, or correct the mask")
        return found

    def subset(self, indices: Sequence[int] | Tensor) -> FileSet:
        chosen = [self.items[index] for index in torch.as_tensor(indices).tolist()]
        return self._with([replace_group(item, self.groups[index]) for item, index in zip(chosen, torch.as_tensor(indices).tolist(), strict=True)])

    def with_groups(self, groups: Sequence[str]) -> FileSet:
        """Return the set with other groups, one an image."""
        return self._with([replace_group(item, group) for item, group in zip(self.items, groups, strict=True)])

    def without_empty(self) -> FileSet:
        """Return the set without the images whose masks are empty; reads all masks.

        Raises:
            ValueError: if all masks are empty.
        """
        with ThreadPoolExecutor() as pool:
            has_foreground = list(pool.map(lambda item: bool(item.load_mask().any()), self.items))
        if not any(has_foreground):
            raise ValueError(
                f"the masks of all {len(self)} images in {self.root} are empty: check how they are written, or keep them with data.with_empty"
            )
        return self if all(has_foreground) else self.subset([index for index, full in enumerate(has_foreground) if full])

    def map_images(self, function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return what a function makes of each original image, (channels, H, W) float32 in [0, 1] in its window; reads all images once."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda index: function(self.original(index).in_window(self.image_shape[0])), range(len(self))))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for how files are read, their sizes and times: what is corrected in place may keep its size."""
        lines = [f"{item} {[(found.st_size, found.st_mtime_ns) for found in map(Path.stat, item.files)]}" for item in self.items]
        return hashlib.sha256("\n".join([repr((self.size, self._options)), *lines]).encode()).hexdigest()[:16]

    def _with(self, items: Sequence[Item]) -> FileSet:
        """Return a set of items that were checked before."""
        made = FileSet.__new__(FileSet)
        made._set_up(self.root, items, self.size, *self._options)
        MaskedSet.__init__(made, [item.name for item in items], [item.group for item in items], self.image_shape, self.classes, self.class_names)
        return made


def replace_group(item: Item, group: str) -> Item:
    """Return an item with another group."""
    return item if item.group == group else replace(item, group=group)  # type: ignore[type-var]


def percentiles(values: Tensor | np.ndarray) -> tuple[float, float]:
    """Return the window from the 1st to the 99th percentile, at least one level wide."""
    low, high = (float(bound) for bound in np.percentile(np.asarray(values), [1, 99]))
    return low, max(high, low + 1)


def _depth(path: Path) -> tuple[int, bool]:
    """Return the bits of an image file, 8 or 16, and whether it is grey, from its header."""
    with Image.open(path) as picture:
        is_deep = picture.mode.startswith("I;16")
        return (16, True) if is_deep else (8, picture.mode in ("1", "L", "LA", "La"))


def _readable(items: Sequence[Item], on_bad_file: OnBadFile | None) -> list[Item]:
    if on_bad_file is None:
        return list(items)
    paths = [path for item in items for path in item.files if isinstance(item, PictureItem)]
    readable = set(check_images(paths, on_bad_file)) if paths else set()
    found = [item for item in items if not isinstance(item, PictureItem) or readable.issuperset(item.files)]
    if not found:
        raise BadFileError(
            f"every image has a file that cannot be read, such as {next(path for path in paths if path not in readable)}: replace them"
        )
    return found


def _check_pairs(root: Path, items: Sequence[Item]) -> None:
    with ThreadPoolExecutor() as pool:
        complaints = [text for text in pool.map(lambda item: item.complaint(), items) if text]
    if complaints:
        what = f"{len(complaints)} of {len(items)} images in {root} do not fit their masks:"
        raise ValueError("\n  ".join([what, *first_few(complaints), "make both the same size, or remove them"]))


def _common_size(root: Path, items: Sequence[Item]) -> tuple[int, int]:
    different: dict[tuple[int, int], str] = {}
    for item in items:
        size = image_size(item.image) if isinstance(item, PictureItem) else tuple(item.load_mask().shape)
        different.setdefault((size[0], size[1]), item.name)
    if len(different) > 1:
        lines = [f"{width} x {height}: {name}" for (height, width), name in different.items()]
        what = f"the images in {root} have {len(different)} different sizes:"
        raise ValueError("\n  ".join([what, *first_few(lines, 5), "bring them to one with data.size"]))
    return next(iter(different))
