"""Images with masks by index: the base of all sets, and the set that is held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from projects.umed.sets.originals import Original

IN_MEMORY = 2**29
"""Sets of up to so many bytes are held in memory."""

_CHUNK = 64


class MaskedSet(Dataset):
    """Base of the sets: batches are dictionaries of whole tensors, so that a loader with `collate_fn=identity` does nothing for single items.

    A batch holds `image` (B, C, H, W) uint8, `mask` (B, H, W) int64 with 0 for the background and 1..K for the classes, and `index` (B,) int64.

    Args:
        names: path of each image below its folder, with `/` and its original ending.
        groups: the patient or lesion of each image, which no split may divide; None makes each image its own.
        image_shape: (C, H, W) of the images as they are read.
        classes: foreground classes K; 1 is a binary mask.
        class_names: names of the classes 1..K; None numbers them.

    Raises:
        ValueError: if the set is empty, or the numbers of names and groups differ.
    """

    def __init__(
        self,
        names: Sequence[str],
        groups: Sequence[str] | None,
        image_shape: tuple[int, int, int],
        classes: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.names, self.groups = list(names), list(names if groups is None else groups)
        self.image_shape, self.classes = image_shape, classes
        self.class_names = [str(number) for number in range(1, classes + 1)] if class_names is None else list(class_names)
        if not self.names:
            raise ValueError("the set holds no images")
        if len(self.groups) != len(self.names):
            raise ValueError(f"{len(self.groups)} groups with {len(self.names)} images: there must be one an image")
        if classes < 1 or len(self.class_names) != classes:
            raise ValueError(f"{len(self.class_names)} names of classes with {classes} classes: there must be at least one, and one name for each")

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images, (B, C, H, W) uint8, and masks, (B, H, W) int64."""
        raise NotImplementedError

    def original(self, index: int) -> Original:
        """Return an image and its mask in the size and depth in which they lie in their files."""
        raise NotImplementedError

    def subset(self, indices: Sequence[int] | Tensor) -> MaskedSet:
        """Return the set of some images, in the given order."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell whether two sets are the same."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        batch = self.__getitems__([index % len(self)])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        images, masks = self.read(indices)
        return {"image": images, "mask": masks, "index": torch.as_tensor(indices, dtype=torch.int64)}

    def load(self) -> SegmentationSet:
        """Return the set with all images in memory."""
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        masks = torch.empty(len(self), *self.image_shape[1:], dtype=torch.uint8)
        for indices in torch.arange(len(self)).split(_CHUNK):
            images[indices], masks[indices] = (part.byte() for part in self.read(indices.tolist()))
        return SegmentationSet(images, masks, self.names, self.groups, self.classes, self.class_names)

    def with_images(self, images: Tensor) -> SegmentationSet:
        """Return a set in memory of other images, such as protected ones, (N, C, H, W) uint8, with this set's masks, names and groups."""
        return SegmentationSet(images, self.load().mask_bytes, self.names, self.groups, self.classes, self.class_names)


class SegmentationSet(MaskedSet):
    """A set held in tensors.

    Args:
        images: (N, C, H, W) uint8, C being 1 or 3.
        masks: (N, H, W) uint8, bool or int64: 0 is the background, 1..K are the classes.
        names: path of each image; None numbers them, `00000.png` and so on.
        groups: the patient or lesion of each image; None makes each image its own.
        classes: foreground classes K; None takes the largest value of the masks, but at least 1.
        class_names: names of the classes 1..K; None numbers them.

    Raises:
        ValueError: if something does not fit: the message says what.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (N, 1 or 3, H, W) of uint8, got {images.dtype} of shape {tuple(images.shape)}")
        if masks.is_floating_point() or tuple(masks.shape) != (len(images), *images.shape[2:]):
            expected = (len(images), *images.shape[2:])
            raise ValueError(f"masks must be {expected} of whole numbers like their images, got {masks.dtype} of shape {tuple(masks.shape)}")
        names = [f"{index:05d}.png" for index in range(len(images))] if names is None else names
        if len(names) != len(images):
            raise ValueError(f"{len(names)} names with {len(images)} images: there must be one an image")
        largest = int(masks.max()) if masks.numel() else 0
        classes = max(1, largest) if classes is None else classes
        if largest > classes or (masks.numel() and int(masks.min()) < 0) or classes > 255:
            raise ValueError(f"masks go from {int(masks.min())} to {largest}, but must hold 0 for the background and at most {classes} classes")
        super().__init__(names, groups, (int(images.shape[1]), int(images.shape[2]), int(images.shape[3])), classes, class_names)
        self.images, self.mask_bytes = images, masks.byte()

    @property
    def masks(self) -> Tensor:
        """All masks, (N, H, W) int64, made anew from `mask_bytes`, the uint8 that are held."""
        return self.mask_bytes.long()

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        where = torch.as_tensor(indices)
        return self.images[where], self.mask_bytes[where].long()

    def original(self, index: int) -> Original:
        return Original(self.names[index], self.images[index].int(), self.mask_bytes[index].long())

    def subset(self, indices: Sequence[int] | Tensor) -> SegmentationSet:
        where = torch.as_tensor(indices, dtype=torch.int64)
        names, groups = [self.names[index] for index in where.tolist()], [self.groups[index] for index in where.tolist()]
        return SegmentationSet(self.images[where], self.mask_bytes[where], names, groups, self.classes, self.class_names)

    def load(self) -> SegmentationSet:
        return self

    def fingerprint(self) -> str:
        described = hashlib.sha256(repr((self.images.shape, self.classes, self.names)).encode())
        for part in (*self.images.split(_CHUNK), self.mask_bytes):
            described.update(part.contiguous().numpy().tobytes())
        return described.hexdigest()[:16]


def identity(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: the sets give whole batches."""
    return batch


def in_memory(images: MaskedSet) -> MaskedSet:
    """Load a set into memory where it is small enough."""
    channels, height, width = images.image_shape
    return images.load() if len(images) * (channels + 1) * height * width <= IN_MEMORY else images
