"""Records cut into one block a party, and what is done to records on the way there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.vertical.data import PartyRecords
from shared.vertical.records import Records, Split


@dataclass(frozen=True)
class Parted:
    """Records cut into one block a party.

    Attributes:
        blocks: one (N, ...) float32 a party.
        labels: (N,) int64, from 0.
        ids: name of each record.
    """

    blocks: list[Tensor]
    labels: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Parted:
        """Return the records in some rows, (n,) int64, in their order."""
        return Parted([block[rows] for block in self.blocks], self.labels[rows], [self.ids[row] for row in rows.tolist()])

    def in_batches(self) -> PartyRecords:
        """Return what loaders give out."""
        return PartyRecords(lambda rows: [block[rows] for block in self.blocks], self.labels)


def as_float(block: Tensor) -> Tensor:
    """Return float32, bytes brought to [0, 1]."""
    return block.float().div_(255) if block.dtype == torch.uint8 else block.float().contiguous()


def numbered_in(records: Records, split: Split) -> Records:
    """Name records by their split and place where they have no names."""
    return records if records.ids else replace(records, ids=tuple(f"{split} {row}" for row in range(len(records))))


def standardised(train: Records, test: Records, variables: Sequence[int]) -> tuple[Records, Records]:
    """Bring some variables of series, (N, T, F), to mean 0 and standard deviation 1 over all steps of the training records, in place."""
    for variable in variables:
        values = train.features[:, :, variable].double()
        mean, deviation = values.mean(), values.std(correction=0)
        for records in (train, test):
            scaled = (records.features[:, :, variable].double() - mean) / (deviation if deviation > 1e-7 else 1.0)
            records.features[:, :, variable] = scaled.float()
    return train, test


def digest(train: Sequence[str], test: Sequence[str]) -> str:
    """Hash ordered ids of training and test records."""
    text = "\x1e".join("\x1f".join(ids) for ids in (train, test))
    return hashlib.sha256(text.encode()).hexdigest()
