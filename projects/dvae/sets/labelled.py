"""Labelled images by index: in memory, in files, poisoned on the way, or paired with the clean images that they were made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.files import ImageMode, first_few, image_size, read_image
from shared.data.folders import ImageFolderDataset, OnBadFile, fit_square

if TYPE_CHECKING:
    from projects.dvae.poisons import Pattern

IN_MEMORY = 2**29
"""Sets of up to so many bytes are held in memory."""


class LabelledSet(Dataset):
    """Base of the sets: batches are dictionaries of whole tensors, so that a loader with `collate_fn=identity` does nothing for single items.

    A batch holds `image` (B, C, H, W) float32 in [0, 1], `label` (B,) and `index` (B,) int64, and where they are known the `clean` images.

    Args:
        labels: (N,) int64.
        class_names: name of each label.
        image_shape: (C, H, W), the same for all images.
        names: path of each image below its folder, with `/`; None where there are no files.

    Raises:
        ValueError: if the numbers of names and labels differ, or a label has no name.
    """

    def __init__(self, labels: Tensor, class_names: Sequence[str], image_shape: tuple[int, int, int], names: Sequence[str] | None = None) -> None:
        self.labels, self.class_names, self.image_shape = labels, list(class_names), image_shape
        self.names = None if names is None else list(names)
        if len(labels) == 0:
            raise ValueError("the set holds no images")
        if self.names is not None and len(self.names) != len(labels):
            raise ValueError(f"{len(self.names)} names of images with {len(labels)} labels: there must be one label an image")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}, but there are {len(self.class_names)} names of classes")

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return images, (B, C, H, W) uint8."""
        raise NotImplementedError

    def read_clean(self, indices: Sequence[int]) -> Tensor | None:
        """Return the clean images, (B, C, H, W) uint8, or None where they are not known."""
        return None

    def read_both(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return images and, where they are known, the clean images."""
        return self.read(indices), self.read_clean(indices)

    @property
    def has_clean(self) -> bool:
        """Whether the clean images are known."""
        return self.read_clean([0]) is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        batch = self.__getitems__([index % len(self)])
        return {name: values[0] for name, values in batch.items()} | {"label": int(batch["label"]), "index": int(batch["index"])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        where = torch.as_tensor(indices)
        images, clean = self.read_both(indices)
        batch = {"image": images.float() / 255, "label": self.labels[where], "index": where}
        return batch if clean is None else batch | {"clean": clean.float() / 255}

    def load(self) -> ImageSet:
        """Return the set with all images in memory."""
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        clean = torch.empty_like(images) if self.has_clean else None
        for indices in torch.arange(len(self)).split(1024):
            images[indices], known = self.read_both(indices.tolist())
            if clean is not None and known is not None:
                clean[indices] = known
        return ImageSet(images, self.labels, self.class_names, self.names, clean)


class ImageSet(LabelledSet):
    """A set held in tensors, which may be mapped from a file.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        class_names: name of each label.
        names: path of each image below its folder, or None.
        clean: (N, C, H, W) uint8 clean images, where known.

    Raises:
        ValueError: if sizes do not match.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, class_names: Sequence[str], names: Sequence[str] | None = None, clean: Tensor | None = None
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or len(images) != len(labels):
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)} with {len(labels)} labels: expected uint8 (N, C, H, W) and N labels"
            )
        if clean is not None and clean.shape != images.shape:
            raise ValueError(f"clean images of shape {tuple(clean.shape)} do not belong to images of shape {tuple(images.shape)}")
        super().__init__(labels, class_names, (images.shape[1], images.shape[2], images.shape[3]), names)
        self.images, self.clean = images, clean

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.images[torch.as_tensor(indices)]

    def read_clean(self, indices: Sequence[int]) -> Tensor | None:
        return None if self.clean is None else self.clean[torch.as_tensor(indices)]

    def load(self) -> ImageSet:
        return self


class FolderSet(LabelledSet):
    """A set read from image files as they are used.

    Args:
        root: folder that the images' names are given below.
        paths: the files.
        labels: (N,) int64.
        class_names: name of each label.
        mode: RGB or L.
        size: side of the square that images are cut and brought to; None keeps their sizes, which must be equal.
        transform: what is done to (C, H, W) images in [0, 1] before they are rounded to 8 bits, instead of `size`; it must bring them to one size.

    Raises:
        ValueError: if the images have different sizes; names some.
        BadFileError: if the first of them cannot be read.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        labels: Tensor,
        class_names: Sequence[str],
        mode: ImageMode = "RGB",
        size: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.root, self.paths, self.mode, self.size, self.transform = root, list(paths), mode, size, transform
        if size is None and transform is None:
            _check_sizes(self.paths, root)
        channels, height, width = self._pixels(self.paths[0]).shape
        names = [path.relative_to(root).as_posix() for path in self.paths]
        super().__init__(labels, class_names, (channels, height, width), names)

    @classmethod
    def of_classes(cls, root: Path, mode: ImageMode = "RGB", size: int | None = None, on_bad_file: OnBadFile | None = None) -> FolderSet:
        """Read `root/<class>/**`, the classes sorted by name; see `ImageFolderDataset` for the errors."""
        files = ImageFolderDataset(root, has_classes=True, on_bad_file=on_bad_file)
        return cls(root, files.paths, torch.tensor(files.labels), files.class_names, mode, size)

    def _pixels(self, path: Path) -> Tensor:
        image = read_image(path, self.mode)
        if self.transform is not None:
            image = self.transform(image)
        elif self.size is not None:
            image = fit_square(image, self.size)
        return (image.clamp(0, 1) * 255).round().byte()

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._pixels(self.paths[index]) for index in indices])


class PoisonedSet(LabelledSet):
    """A set that is poisoned as it is read; its clean images are those of the set that was poisoned.

    Args:
        base: the set.
        pattern: the poison.
        is_poisoned: (N,) bool: which images it is put on.
    """

    def __init__(self, base: LabelledSet, pattern: Pattern, is_poisoned: Tensor) -> None:
        super().__init__(base.labels, base.class_names, base.image_shape, base.names)
        self.base, self.pattern, self.is_poisoned = base, pattern, is_poisoned

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.read_both(indices)[0]

    def read_clean(self, indices: Sequence[int]) -> Tensor:
        return self.base.read(indices)

    def read_both(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        clean, where = self.base.read(indices), torch.as_tensor(indices)
        images, rows = clean.clone(), self.is_poisoned[where]
        if rows.any():
            poisoned = self.pattern.apply(clean[rows].float() / 255, self.labels[where][rows], where[rows])
            images[rows] = (poisoned * 255).round().byte()
        return images, clean

    def load(self) -> ImageSet:
        clean, images = self.base.load(), torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        for indices in torch.arange(len(self)).split(1024):
            images[indices] = self.read(indices.tolist())
        return ImageSet(images, self.labels, self.class_names, self.names, clean.images)


class PairedSet(LabelledSet):
    """A set beside the clean set that it was made from.

    Args:
        images: the set.
        clean: the clean set, with the same labels and sizes in the same order.

    Raises:
        ValueError: if they do not belong together.
    """

    def __init__(self, images: LabelledSet, clean: LabelledSet) -> None:
        if images.image_shape != clean.image_shape or not torch.equal(images.labels, clean.labels):
            raise ValueError("the clean images have other sizes or labels than the set")
        super().__init__(images.labels, images.class_names, images.image_shape, images.names)
        self.set, self.clean_set = images, clean

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.set.read(indices)

    def read_clean(self, indices: Sequence[int]) -> Tensor:
        return self.clean_set.read(indices)


class BareSet(LabelledSet):
    """A set without its clean images."""

    def __init__(self, images: LabelledSet) -> None:
        super().__init__(images.labels, images.class_names, images.image_shape, images.names)
        self.set = images

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.set.read(indices)


def identity(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: the sets give whole batches."""
    return batch


def in_memory(images: LabelledSet) -> LabelledSet:
    """Load a set into memory where it is small enough."""
    channels, height, width = images.image_shape
    return images.load() if len(images) * channels * height * width <= IN_MEMORY else images


def _check_sizes(paths: Sequence[Path], root: Path) -> None:
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(image_size, paths))
    different: dict[tuple[int, int], Path] = {}
    for size, path in zip(sizes, paths, strict=True):
        different.setdefault(size, path)
    if len(different) > 1:
        lines = [f"{width} x {height}: {path}" for (height, width), path in different.items()]
        advice = "bring them to one with data.size"
        raise ValueError("\n  ".join([f"the images in {root} have {len(different)} different sizes:", *first_few(lines, 5), advice]))
