"""Sets of images that lie in memory as bytes: loaders of whole batches, and a Trainer that runs without a word."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.data.base import ResumableDataLoader
from shared.data.base import training_loader as shared_training_loader
from shared.distributed import UnpaddedSampler
from shared.messages import SILENCED
from shared.seeding import generator

CHUNK = 2**24
"""Numbers that a computation over a whole set holds at once: 64 MiB of float32."""


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


def _whole(batch: Any) -> Any:
    return batch


def _unused() -> torch.Generator:
    return generator("loader")  # a loader draws a number in every pass, though it has no workers; else from the global generator


def training_loader(images: Tensor, labels: Tensor, batch_size: int, seed: int) -> ResumableDataLoader:
    """Return a loader of whole batches in an order that is a function of (seed, epoch).

    Raises:
        ValueError: if the set is not one of images, or smaller than a batch.
    """
    dataset = Pixels(images, labels)
    if len(dataset) < batch_size:
        raise ValueError(f"the training set has {len(dataset)} images, fewer than a batch of {batch_size}: take a smaller batch_size")
    return shared_training_loader(dataset, batch_size, seed, collate_fn=_whole, generator=_unused())


def ordered_loader(images: Tensor, labels: Tensor, batch_size: int = 512) -> DataLoader:
    """Return a loader that gives every image once, in order, dealt over the processes."""
    dataset = Pixels(images, labels)
    return DataLoader(dataset, batch_size=batch_size, sampler=UnpaddedSampler(dataset), collate_fn=_whole, generator=_unused())


class Sets(L.LightningDataModule):
    """A training and a test set in memory, whose loaders are made when the processes are there.

    Args:
        train: images and labels, as of `Pixels`.
        test: the same.
        batch_size: images of a training step over all processes together.
        seed: seed of the order.
    """

    def __init__(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], batch_size: int, seed: int) -> None:
        super().__init__()
        self.train, self.test, self.batch_size, self.seed = train, test, batch_size, seed

    def train_dataloader(self) -> DataLoader:
        return training_loader(*self.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        return ordered_loader(*self.test)


def chunks(images: Tensor) -> Iterator[slice]:
    """Cut a set into slices of at most `CHUNK` numbers, but at least one image."""
    step = max(1, CHUNK // images[0].numel())
    for start in range(0, len(images), step):
        yield slice(start, start + step)


def to_unit(images: Tensor) -> Tensor:
    """Map bytes to float32 in [0, 1]."""
    return images.float().div_(255)


def to_bytes(images: Tensor) -> Tensor:
    """Map floats to bytes: clipped to [0, 1], and rounded, not cut off."""
    return images.clamp(0, 1).mul(255).round_().byte()


def quiet_trainer(epochs: int, clip: float, **options: Any) -> L.Trainer:
    """Return a Trainer of one device that prints and keeps nothing, unless `options` of `L.Trainer` say otherwise.

    Args:
        epochs: epochs to train.
        clip: norm that gradients are cut down to.
        **options: arguments of `L.Trainer`, such as `accelerator`, `devices`, `precision`, `logger` or `callbacks`.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    with silence():
        return L.Trainer(**(quiet | {"max_epochs": epochs, "gradient_clip_val": clip, "num_sanity_val_steps": 0} | options))


@contextmanager
def silence() -> Iterator[None]:
    """Keep Lightning's remarks on devices, workers and intervals to itself: one run trains dozens of victims."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in SILENCED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
