"""Records of subjects, and small offline worlds of them: each is a pure function of (seed, split), and no record is in two splits (section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from shared.data.files import read_levels
from shared.data.offline import digits, photograph_file
from shared.seeding import generator

Split = Literal["train", "test"]

PATCHED = ("china.jpg", "flower.jpg")
"""Photographs that `photo_patches` cuts up, in the order of the labels; scikit-learn brings them."""

TEST_FRACTION = 0.2
"""Part of the patches and of the table that is for test."""


@dataclass(frozen=True)
class Records:
    """What the parties hold of the same subjects, put together, and what the server holds.

    Attributes:
        features: pictures, (N, C, H, W) uint8 or float32 in [0, 1], or a table, (N, D) float.
        labels: (N,) int64, from 0.
        class_names: name of each label.
        feature_names: name of each column of a table; empty for pictures.

    Raises:
        ValueError: if there are not as many labels as records, or as many names as columns.
    """

    features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels):
            raise ValueError(f"{len(self.features)} records with {len(self.labels)} labels: there must be one label a record")
        if not self.is_pictures and len(self.feature_names) != self.features.shape[1]:
            raise ValueError(f"{self.features.shape[1]} columns with {len(self.feature_names)} names: there must be one name a column")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def is_pictures(self) -> bool:
        """Whether these are pictures, not rows of a table."""
        return self.features.ndim == 4

    def take(self, rows: Tensor) -> Records:
        """Return the records in some rows, (n,) int64, in their order."""
        return replace(self, features=self.features.index_select(0, rows), labels=self.labels.index_select(0, rows))

    def values(self) -> Tensor:
        """Return what networks are given: pictures in [0, 1], (N, C, H, W), or a table, (N, D); float32."""
        return self.features.float().div_(255) if self.features.dtype == torch.uint8 else self.features.float()


@dataclass(frozen=True)
class Standardisation:
    """Moves and scales the columns of a table to mean 0 and standard deviation 1 on the training records.

    Attributes:
        mean: (D,) float64.
        deviation: (D,) float64 standard deviations, over N; 1 where a column is constant, so that it becomes 0.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, records: Records) -> Standardisation:
        """Measure the columns of training records."""
        table = records.features.double()
        deviation = table.std(0, unbiased=False)
        is_constant = (table == table[0]).all(0)
        return cls(table.mean(0), torch.where(is_constant, 1.0, deviation))

    def apply(self, records: Records) -> Records:
        """Return records in standard deviations from the mean, float64."""
        return replace(records, features=(records.features.double() - self.mean) / self.deviation)

    def restore(self, table: Tensor) -> Tensor:
        """Bring standardised values, (N, D), back to the table's own units; float64 on the CPU."""
        return table.detach().cpu().double() * self.deviation + self.mean


def digit_records(split: Split, seed: int = 0, size: int = 16) -> Records:
    """Scikit-learn's handwritten digits of 8 x 8 pixels, enlarged bilinearly: 1400 for training, 397 for test.

    Args:
        split: train or test.
        seed: seed of the split.
        size: height and width of the pictures, in pixels.

    Returns:
        Pictures (N, 1, size, size); the label is the digit.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check(split)
    drawn = digits(split, size, 1, seed)
    return Records(drawn.images, drawn.labels, drawn.class_names)


def photo_patches(split: Split, seed: int = 0, size: int = 16) -> Records:
    """Square pieces of two photographs on a grid, 1040 of each at 16 pixels, of which a fifth is for test.

    Pieces of the two splits share no pixel, but neighbours look alike.

    Args:
        split: train or test.
        seed: seed of the split and of the order.
        size: height and width of the pieces, in pixels.

    Returns:
        Pictures (N, 3, size, size) uint8; the label is the photograph's place in `PATCHED`.

    Raises:
        FileNotFoundError: if a photograph is not installed.
        ValueError: if a piece is larger than a photograph, or `split` is unknown.
    """
    _check(split)
    pieces = [_pieces(read_levels(photograph_file(name)), size) for name in PATCHED]
    labels = torch.arange(len(pieces)).repeat_interleave(torch.tensor([len(some) for some in pieces]))
    names = tuple(name.partition(".")[0] for name in PATCHED)
    return divided(Records(torch.cat(pieces), labels, names), split, TEST_FRACTION, seed, "patches")


def breast_cancer(split: Split, seed: int = 0) -> Records:
    """Scikit-learn's breast cancer table of 30 numbers of 569 tumours, a fifth for test, standardised by the training records.

    Args:
        split: train or test.
        seed: seed of the split and of the order.

    Returns:
        Table (N, 30) float64; the label is 0 for malignant, 1 for benign.

    Raises:
        ValueError: if `split` is unknown.
    """
    return Standardisation.of(tumours("train", seed)).apply(tumours(split, seed))


def tumours(split: Split, seed: int = 0) -> Records:
    """Return the records of `breast_cancer` in their own units."""
    from sklearn.datasets import load_breast_cancer

    _check(split)
    data = load_breast_cancer()
    features, labels = torch.from_numpy(data.data), torch.from_numpy(data.target).long()
    names = tuple(str(name) for name in data.target_names), tuple(str(name) for name in data.feature_names)
    return divided(Records(features, labels, *names), split, TEST_FRACTION, seed, "breast cancer")


def divided(records: Records, split: Split, test_fraction: float, seed: int, what: str) -> Records:
    """Shuffle records and cut them into train and test, in this order.

    Args:
        records: all records.
        split: the part to return.
        test_fraction: part of the records for test, at least one, in (0, 1).
        seed: seed of the shuffling, the same for both splits.
        what: name of the records, which is part of the seed.

    Raises:
        ValueError: if there are fewer than two records.
    """
    if len(records) < 2:
        raise ValueError(f"there are {len(records)} records, which cannot be divided into training and test records: add some")
    tested = min(max(1, round(test_fraction * len(records))), len(records) - 1)
    order = torch.randperm(len(records), generator=generator(seed, "cafe", what))
    return records.take(order[tested:] if split == "train" else order[:tested])


def _pieces(photograph: Tensor, size: int) -> Tensor:
    """Cut (C, H, W) into squares row by row, (N, C, size, size); what is left at the right and lower borders is dropped."""
    channels, height, width = photograph.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"pieces must have 1 to {min(height, width)} pixels a side, got {size}")
    rows, columns = height // size, width // size
    grid = photograph[:, : rows * size, : columns * size].reshape(channels, rows, size, columns, size)
    return grid.permute(1, 3, 0, 2, 4).reshape(-1, channels, size, size)


def _check(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
