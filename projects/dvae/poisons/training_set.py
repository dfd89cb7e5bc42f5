"""A training set as the attacks read it: in chunks of 8-bit images, or whole."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.poisons import to_levels

CHUNK = 512


class TrainingSet:
    """Images and labels of a data set, whose n-th item has the index n.

    Args:
        dataset: of items with `image` (C, H, W) in [0, 1], `label` and `index`. If it has tensors `images` (uint8, or float32 in [0, 1]) and
            `labels`, these are read instead of its items.
        classes: number of classes K; None takes as many as the labels need.
        shape: (C, H, W) of every image; None takes that of the first.

    Raises:
        ValueError: if the set is empty, or an image's shape, a label or an index is not as stated.
    """

    def __init__(self, dataset: Dataset, classes: int | None = None, shape: tuple[int, int, int] | None = None) -> None:
        self.dataset: Any = dataset
        self.count = len(cast(Sized, dataset))
        if self.count == 0:
            raise ValueError("there is no image to poison: the data set is empty")
        self._images = getattr(dataset, "images", None)
        first = self.dataset[0]["image"] if self._images is None else self._images[0]
        self.shape = cast(tuple[int, int, int], tuple(first.shape) if shape is None else shape)
        self._check_shape(tuple(first.shape))
        known = getattr(dataset, "labels", None)
        self.labels = torch.as_tensor(known).long() if known is not None else torch.cat([labels for _, labels, _ in self.chunks()])
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        self.classes = highest + 1 if classes is None else classes
        if not 0 <= lowest <= highest < self.classes:
            raise ValueError(f"labels must lie in [0, {self.classes}), got {lowest} to {highest}: set classes to at least {highest + 1}")

    def chunks(self, length: int = CHUNK) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield uint8 images (B, C, H, W), labels (B,) and indices (B,), in order."""
        for start in range(0, self.count, length):
            indices = torch.arange(start, min(start + length, self.count))
            if self._images is None:
                yield *self._items(indices), indices
            else:
                images = self._images[start : start + length]
                yield images if images.dtype == torch.uint8 else to_levels(images), self.labels[indices], indices

    @cached_property
    def levels(self) -> Tensor:
        """All images at once, (N, C, H, W) uint8."""
        if self._images is not None and self._images.dtype == torch.uint8:
            return cast(Tensor, self._images)
        images = torch.empty(self.count, *self.shape, dtype=torch.uint8)
        for chunk, _, indices in self.chunks():
            images[indices] = chunk
        return images

    def _items(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        items = [self.dataset[number] for number in indices.tolist()]
        for number, item in zip(indices.tolist(), items, strict=True):
            self._check_shape(tuple(item["image"].shape))
            if int(item["index"]) != number:
                raise ValueError(f"item {number} says that its index is {int(item['index'])}: poison a whole training set, not a part of it")
        return torch.stack([to_levels(item["image"]) for item in items]), torch.tensor([int(item["label"]) for item in items])

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ValueError(f"an image has the shape {shape}, where {self.shape} was stated")
