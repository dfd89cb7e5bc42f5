"""Sets that lie in memory as bytes: loaders of whole batches, and slices for computations over a whole set."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.data.base import ResumableDataLoader
from shared.data.base import training_loader as shuffled_loader
from shared.distributed import UnpaddedSampler
from shared.seeding import generator

CHUNK = 2**24
"""Numbers that a computation over a whole set holds at once: 64 MiB of float32."""


def chunks(images: Tensor) -> Iterator[slice]:
    """Cut a set into slices of at most `CHUNK` numbers, but at least one image."""
    step = max(1, CHUNK // images[0].numel())
    for start in range(0, len(images), step):
        yield slice(start, start + step)


def to_unit(images: Tensor) -> Tensor:
    """Map bytes to float32 in [0, 1]."""
    return images.float().div_(255)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress images as JPEG, with halved resolution of colour, and read them back.

    Args:
        images: uint8 (N, C, H, W), C being 1 or 3, on any device.
        quality: 1 to 100.

    Returns:
        uint8 (N, C, H, W) on the same device.
    """
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, C)
    decoded = np.empty_like(pictures)
    for picture, target in zip(pictures, decoded, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(file, "JPEG", quality=quality)
        target[:] = np.asarray(Image.open(file)).reshape(picture.shape)
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device)


def _whole(batch: Any) -> Any:
    return batch


def _unused() -> torch.Generator:
    return generator("loader")  # a loader draws a number in every pass, though it has no workers; else from the global generator


def training_loader(dataset: Dataset, batch_size: int, seed: int) -> ResumableDataLoader:
    """Return a loader of whole batches, which `dataset.__getitems__` makes, in an order that is a function of (seed, epoch).

    Raises:
        ValueError: if the set is smaller than a batch.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count < batch_size:
        raise ValueError(f"the training set has {count} images, fewer than a batch of {batch_size}: take a smaller batch_size")
    return shuffled_loader(dataset, batch_size, seed, collate_fn=_whole, generator=_unused())


def ordered_loader(dataset: Dataset, batch_size: int = 512) -> DataLoader:
    """Return a loader of whole batches that gives every image once, in order, dealt over the processes."""
    sampler = UnpaddedSampler(dataset)  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=_whole, generator=_unused())


class MemoryData(L.LightningDataModule):
    """A training and a test set in memory, whose loaders are made when the processes are there.

    Args:
        train: a set whose `__getitems__` gives whole batches.
        test: the same.
        batch_size: images of a training step over all processes together.
        seed: seed of the order.
        test_batch_size: images of an evaluation step.
    """

    def __init__(self, train: Dataset, test: Dataset, batch_size: int, seed: int, test_batch_size: int = 512) -> None:
        super().__init__()
        self.train, self.test, self.batch_size, self.seed, self.test_batch_size = train, test, batch_size, seed, test_batch_size

    def train_dataloader(self) -> DataLoader:
        return training_loader(self.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        return ordered_loader(self.test, self.test_batch_size)
