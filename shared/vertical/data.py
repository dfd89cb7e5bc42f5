"""The DataModule of vertical federated learning: records whose features are split over parties, while a server holds the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.data.base import DataModule
from shared.data.memory import ordered_loader, training_loader
from shared.vertical.parts import ImageSplit, even_columns, join_image, join_table, split_image, split_table
from shared.vertical.records import TEST_FRACTION, Records, divided
from shared.vertical.tables import column_places, read_table
from shared.vertical.worlds import tumours


class PartyRecords(Dataset):
    """Records in memory, given out in whole batches: {"blocks": one (B, ...) a party, "label": (B,), "index": (B,) places in these records}.

    Args:
        blocks: makes the blocks of the parties for some rows, (B,) int64.
        labels: (N,) int64.
    """

    def __init__(self, blocks: Callable[[Tensor], list[Tensor]], labels: Tensor) -> None:
        self.blocks, self.labels = blocks, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return a batch."""
        rows = torch.tensor(list(indices))
        return {"blocks": self.blocks(rows), "label": self.labels[rows], "index": rows}


class PartyData(DataModule):
    """Base of data whose features are split over parties.

    A subclass saves its hyper-parameters, which hold `split`, `parties`, `columns`, `label`, `size` and `test_fraction`, and calls
    `check_options`; its `training_records` and `test_records_in_order` are what the loaders give out, in whole batches.

    Attributes:
        options: the hyper-parameters.
    """

    owner: ClassVar[str] = ""
    """Name that the seeds of random choices begin with."""
    tables: ClassVar[tuple[str, ...]] = ("breast_cancer", "table")
    """Sources whose columns can be chosen."""
    sized: ClassVar[tuple[str, ...]] = ()
    """Sources whose pictures have a size to choose."""
    at_least_one: ClassVar[tuple[str, ...]] = ("parties", "size")
    """Options that are whole numbers of at least 1, or null."""

    options: Any

    @property
    def parties(self) -> int:
        """M, number of parties."""
        return self.options.parties or len(self.options.columns or ()) or self.usual_parties()

    def usual_parties(self) -> int:
        """Return the number of parties where neither `parties` nor `columns` says it."""
        raise NotImplementedError

    def check_options(self) -> None:
        """Raise a ValueError that names an option that does not fit."""
        options = self.options
        if options.split not in get_args(ImageSplit):
            raise ValueError(f"data.split must be one of {', '.join(get_args(ImageSplit))}, got {options.split!r}")
        for name in self.at_least_one:
            if options[name] is not None and options[name] < 1:
                raise ValueError(f"data.{name} must be at least 1, got {options[name]}")
        if not 0 < options.test_fraction < 1:
            raise ValueError(f"data.test_fraction must be in (0, 1), got {options.test_fraction}")
        if options.size is not None and self.source not in self.sized:
            raise ValueError(f"data.size is for {', '.join(self.sized)}, not for {self.source}, whose records stay as they are: leave it out")
        if options.columns is not None:
            self._check_columns(options.columns)

    def _check_columns(self, columns: Sequence[Sequence[int | str]]) -> None:
        if self.source not in self.tables:
            raise ValueError(f"data.columns is for tables, not for {self.source}, whose records are split otherwise: leave it out")
        if not columns or not all(columns):
            raise ValueError(f"data.columns must name at least one column for each party, got {columns}")
        if self.options.parties not in (None, len(columns)):
            raise ValueError(f"data.columns is for {len(columns)} parties, but data.parties is {self.options.parties}: leave one of them out")

    def prepare_data(self) -> None:
        """Check, before any work is done, that the files are there, can be read, and can be split."""
        self.setup("fit")

    # ---- what the parties hold

    def blocks(self, features: Tensor) -> list[Tensor]:
        """Split pictures, (N, C, H, W), or a table, (N, D), into one block a party."""
        if features.ndim == 4:
            return split_image(features, self.options.split, self.parties)
        return split_table(features, self._columns(features.shape[1]))

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Put the blocks of `blocks` together again, to (N, C, H, W) or (N, D)."""
        if blocks[0].ndim == 4:
            return join_image(blocks, self.options.split)
        return join_table(blocks, self._columns(sum(block.shape[1] for block in blocks)))

    @property
    def wanted(self) -> list[int | str] | None:
        """All columns that parties hold, in the order of the parties; None is all there are."""
        groups = self.options.columns
        return None if groups is None else [column for group in groups for column in group]

    def _columns(self, width: int) -> list[list[int]]:
        """Return each party's columns of the table, which has only wanted columns, in the order of the parties."""
        if self.options.columns is None:
            return even_columns(width, self.parties)
        return [part.tolist() for part in torch.arange(width).split([len(group) for group in self.options.columns])]

    def read_tables(self) -> tuple[Records, Records]:
        """Read `breast_cancer` or `table`; returns training and test records with the wanted columns, in their own units."""
        if self.source == "table":
            everything, fraction, what = read_table(self.root, self.options.label, self.wanted), self.options.test_fraction, "table"
        else:
            everything, fraction, what = narrowed(tumours(), self.wanted), TEST_FRACTION, "breast cancer"
        key = (self.seed, self.owner, what)
        return divided(everything, "train", fraction, *key), divided(everything, "test", fraction, *key)

    def refuse_one_class(self, class_names: Sequence[str]) -> None:
        """Raise a ValueError unless there are two classes."""
        if len(class_names) < 2:
            raise ValueError(f"{self.source} has the label {class_names[0]} only: add records of another class, or name another data.label")

    # ---- the loaders

    def training_records(self) -> PartyRecords:
        """Return what the training loader shuffles."""
        raise NotImplementedError

    def test_records_in_order(self) -> PartyRecords:
        """Return what the test loader gives out."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """Return a loader of shuffled batches of all training records."""
        return training_loader(self.training_records(), self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the test records: nothing is chosen by them."""
        return self.test_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of the test records."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader:
        """Return a loader of every test record once, in order."""
        return ordered_loader(self.test_records_in_order())


def narrowed(records: Records, wanted: Sequence[int | str] | None) -> Records:
    """Return a table with only some of its columns, by name or place, in their order; None takes all.

    Raises:
        ValueError: if there is no such column, or one is wanted twice.
    """
    return records if wanted is None else records.narrowed(column_places(records.feature_names, wanted))
