"""Sets of labelled images that lie in memory as bytes, and loaders of whole batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.data import memory
from shared.data.base import ResumableDataLoader


class Pixels(Dataset):
    """Images and labels that give whole batches by indexing: `image` uint8 (B, C, H, W), `label` and `index` int64 (B,).

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,) integers from 0 on.

    Raises:
        ValueError: if they are not such tensors.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        check_set(images, labels)
        self.images, self.labels = images, labels.long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index], "index": torch.tensor(index)}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        return {"image": self.images[rows], "label": self.labels[rows], "index": rows}


def check_set(images: Tensor, labels: Tensor) -> None:
    """Refuse what is not a set of images in bytes with its labels.

    Raises:
        ValueError: that says what is wrong.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be bytes (uint8) of shape (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be {len(images)} integers, one an image, got {labels.dtype} of shape {tuple(labels.shape)}")
    if not len(images):
        raise ValueError("the set has no images")
    if labels.min() < 0:
        raise ValueError(f"labels count from 0, got {int(labels.min())}")


def training_loader(images: Tensor, labels: Tensor, batch_size: int, seed: int) -> ResumableDataLoader:
    """Return a loader of whole batches in an order that is a function of (seed, epoch).

    Raises:
        ValueError: if the set is not one of images, or smaller than a batch.
    """
    return memory.training_loader(Pixels(images, labels), batch_size, seed)


def ordered_loader(images: Tensor, labels: Tensor, batch_size: int = 512) -> DataLoader:
    """Return a loader that gives every image once, in order, dealt over the processes."""
    return memory.ordered_loader(Pixels(images, labels), batch_size)


def to_bytes(images: Tensor) -> Tensor:
    """Map floats to bytes: clipped to [0, 1], and rounded, not cut off."""
    return images.clamp(0, 1).mul(255).round_().byte()
