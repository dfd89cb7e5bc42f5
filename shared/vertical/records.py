"""Records of the subjects that all parties know, before their features are split; their scale, and their division into train and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from shared.seeding import generator

Split = Literal["train", "test"]

TEST_FRACTION = 0.2
"""Part of the records that is for test, where the data have no split of their own."""


@dataclass(frozen=True)
class Records:
    """What the parties hold of the same subjects, put together, and what the server holds.

    Attributes:
        features: pictures, (N, C, H, W) uint8 or float32 in [0, 1], a table, (N, D) float, or any other (N, ...) float.
        labels: (N,) int64, from 0.
        class_names: name of each label.
        feature_names: name of each column of a table; empty for others.
        ids: name of each record, each its own; empty where nobody asks for them.

    Raises:
        ValueError: if there are not as many labels or ids as records, or as many names as columns.
    """

    features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels):
            raise ValueError(f"{len(self.features)} records with {len(self.labels)} labels: there must be one label a record")
        if self.features.ndim == 2 and len(self.feature_names) != self.features.shape[1]:
            raise ValueError(f"{self.features.shape[1]} columns with {len(self.feature_names)} names: there must be one name a column")
        if self.ids and len(self.ids) != len(self.labels):
            raise ValueError(f"{len(self.labels)} records with {len(self.ids)} ids: there must be one id a record")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def is_pictures(self) -> bool:
        """Whether these are pictures, not rows of a table."""
        return self.features.ndim == 4

    def take(self, rows: Tensor) -> Records:
        """Return the records in some rows, (n,) int64, in their order."""
        ids = tuple(self.ids[row] for row in rows.tolist()) if self.ids else ()
        return replace(self, features=self.features.index_select(0, rows), labels=self.labels.index_select(0, rows), ids=ids)

    def values(self) -> Tensor:
        """Return what networks are given, float32: pictures in [0, 1], (N, C, H, W), or whatever else there is, as it is."""
        return self.features.float().div_(255) if self.features.dtype == torch.uint8 else self.features.float()

    def narrowed(self, columns: Sequence[int]) -> Records:
        """Return a table with only some of its columns, by their places, in this order."""
        names = tuple(self.feature_names[column] for column in columns)
        return replace(self, features=self.features[:, list(columns)], feature_names=names)


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
        """Measure the columns of training records.

        Raises:
            ValueError: naming the columns whose values are too large to be measured.
        """
        table = records.features.double()
        deviation = table.std(0, unbiased=False)
        if wrong := (~deviation.isfinite()).nonzero().flatten().tolist():
            names = ", ".join(repr(records.feature_names[column] or str(column)) for column in wrong[:6])
            raise ValueError(f"columns {names} have no finite standard deviation: their values are too large, so rescale or remove them")
        is_constant = (table == table[0]).all(0)
        return cls(table.mean(0), torch.where(is_constant, 1.0, deviation))

    def apply(self, records: Records) -> Records:
        """Return records in standard deviations from the mean, float64."""
        return replace(records, features=(records.features.double() - self.mean) / self.deviation)

    def restore(self, table: Tensor) -> Tensor:
        """Bring standardised values, (N, D), back to the table's own units; float64 on the CPU."""
        return table.detach().cpu().double() * self.deviation + self.mean


def divided(records: Records, split: Split, test_fraction: float, *key: int | str) -> Records:
    """Shuffle records and cut them into train and test, in this order.

    Args:
        records: all records.
        split: the part to return.
        test_fraction: part of the records for test, at least one, in (0, 1).
        *key: seed of the shuffling, the same for both splits.

    Raises:
        ValueError: if there are fewer than two records, or `split` is unknown.
    """
    check_split(split)
    if len(records) < 2:
        raise ValueError(f"there are {len(records)} records, which cannot be divided into training and test records: add some")
    tested = min(max(1, round(test_fraction * len(records))), len(records) - 1)
    order = torch.randperm(len(records), generator=generator(*key))
    return records.take(order[tested:] if split == "train" else order[:tested])


def check_split(split: str) -> None:
    """Raise a ValueError unless a split is train or test."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
