"""The records that the parties hold together: those to train on, those under attack, and those for test (section 4 of the sheet)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from projects.cafe.layouts import column_places, read_cifar10, read_linnaeus, read_mnist, read_table
from projects.cafe.parts import Split, even_columns, join_image, join_table, split_image, split_table
from projects.cafe.worlds import TEST_FRACTION, Records, Standardisation, digit_records, divided, photo_patches, tumours
from shared.data.base import DataModule
from shared.data.memory import ordered_loader, training_loader
from shared.seeding import generator

_TABLES = ("breast_cancer", "table")
_SIZED = ("digits", "patches", "linnaeus")
_SIDE = 16  # of the pictures of offline worlds, in pixels
_PARTIES = 4


class PartyRecords(Dataset):
    """Records in memory, given out in whole batches: {"blocks": one (B, ...) a party, "label": (B,), "index": (B,) places in these records}.

    Args:
        records: the records.
        blocks: splits features into the blocks of the parties.
    """

    def __init__(self, records: Records, blocks: Callable[[Tensor], list[Tensor]]) -> None:
        self.records, self.blocks = records, blocks

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return a batch."""
        rows = torch.tensor(list(indices))
        some = self.records.take(rows)
        return {"blocks": self.blocks(some.values()), "label": some.labels, "index": rows}


class FederatedRecords(DataModule):
    """Records whose features are split over parties; the server holds the labels. Nothing is augmented.

    Batches are those of `PartyRecords`: training ones are shuffled passes over all training records, test ones are in order.

    Args:
        source: an offline world, or a layout of files.
        root: folder of the files, or file of the table.
        batch_size: K, records of a round.
        seed: seed of the splits, of the choice of records and of their order.
        count: N, number of training records under attack; null takes all.
        split: how pictures are split: quarters, rows or columns.
        parties: M, number of parties; null is 4, or as many as `columns` has. One party holds whole records (horizontal learning).
        columns: names or places of each party's columns of a table; null shares all of them out evenly. Those that nobody has are left out.
        label: with `table`, name or place of the column of labels; -1 is the last one.
        size: side of the pictures in pixels, with `digits`, `patches` and `linnaeus`; null is 16 offline, and that of the first picture in files.
        test_fraction: with `table`, part of the records for test, in (0, 1).

    Attributes:
        train_records: all training records, the attacked ones among them.
        attacked: the N records under attack, number n of a schedule being row n.
        chosen: (N,) int64, their places in `train_records`.
        test_records: records for test; none is under attack.
        scale: with tables, what brings recovered values back to their own units; else None.

    Raises:
        ValueError: if options do not fit.
    """

    sources: ClassVar[dict[str, str]] = {
        "digits": "scikit-learn's handwritten digits, offline",
        "patches": "16 x 16 pieces of two photographs, offline",
        "breast_cancer": "scikit-learn's table of 569 tumours, offline",
        "mnist": "MNIST/raw/*-ubyte.gz, as torchvision stores them",
        "cifar10": "cifar-10-batches-py/, as unpacked",
        "linnaeus": "Linnaeus 5 or pictures of your own: {train,test}/<class>/*.jpg",
        "table": "a CSV file of numbers with a column of labels",
    }

    train_records: Records
    attacked: Records
    chosen: Tensor
    test_records: Records
    scale: Standardisation | None = None

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        batch_size: int = 40,
        seed: int = 0,
        count: int | None = 200,
        split: Split = "quarters",
        parties: int | None = None,
        columns: list[list[int | str]] | None = None,
        label: int | str = -1,
        size: int | None = None,
        test_fraction: float = TEST_FRACTION,
    ) -> None:
        super().__init__(source, root, batch_size, 0, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self._check()
        self.parties: int = parties or (len(columns) if columns else _PARTIES)

    def _check(self) -> None:
        options = self.options
        if options.split not in get_args(Split):
            raise ValueError(f"data.split must be one of {', '.join(get_args(Split))}, got {options.split!r}")
        for name in ("count", "parties", "size"):
            if options[name] is not None and options[name] < 1:
                raise ValueError(f"data.{name} must be at least 1, got {options[name]}")
        if not 0 < options.test_fraction < 1:
            raise ValueError(f"data.test_fraction must be in (0, 1), got {options.test_fraction}")
        if options.size is not None and self.source not in _SIZED:
            raise ValueError(f"data.size is for {', '.join(_SIZED)}, not for {self.source}, whose records stay as they are: leave it out")
        if options.columns is not None:
            self._check_columns(options.columns)

    def _check_columns(self, columns: Sequence[Sequence[int | str]]) -> None:
        if self.source not in _TABLES:
            raise ValueError(f"data.columns is for tables, not for {self.source}, which data.split splits: leave it out")
        if not columns or not all(columns):
            raise ValueError(f"data.columns must name at least one column for each party, got {columns}")
        if self.options.parties not in (None, len(columns)):
            raise ValueError(f"data.columns is for {len(columns)} parties, but data.parties is {self.options.parties}: leave one of them out")

    def prepare_data(self) -> None:
        """Check, before any work is done, that the files are there, can be read, and can be split."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test_records"):
            return
        train, test = self._tables() if self.source in _TABLES else self._pictures()
        count = len(train) if self.options.count is None else self.options.count
        if count > len(train):
            raise ValueError(f"data.count is {count}, but {self.source} has only {len(train)} training records: lower it, or leave it null for all")
        if len(train.class_names) < 2:
            raise ValueError(f"{self.source} has the label {train.class_names[0]} only: add records of another class, or name another data.label")
        self.chosen = torch.randperm(len(train), generator=generator(self.seed, "cafe", "attacked"))[:count]
        self.train_records, self.attacked = train, train.take(self.chosen)
        self.blocks(train.features[:1])  # raises where these pictures cannot be split so
        self.test_records = test

    # ---- what the parties hold

    def blocks(self, features: Tensor) -> list[Tensor]:
        """Split features, (N, C, H, W) or (N, D), into one block a party."""
        if features.ndim == 4:
            return split_image(features, self.options.split, self.parties)
        return split_table(features, self._columns(features.shape[1]))

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Put the blocks of the parties together again, to (N, C, H, W) or (N, D)."""
        if blocks[0].ndim == 4:
            return join_image(blocks, self.options.split)
        return join_table(blocks, self._columns(sum(block.shape[1] for block in blocks)))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of a record's block of each party: (C, h, w) or (D,)."""
        self.setup()
        return [tuple(block.shape[1:]) for block in self.blocks(self.attacked.features[:1])]

    @property
    def classes(self) -> int:
        """Number of classes."""
        self.setup()
        return len(self.train_records.class_names)

    def _columns(self, width: int) -> list[list[int]]:
        """Return each party's columns of the table, which has only wanted columns, in the order of the parties."""
        if self.options.columns is None:
            return even_columns(width, self.parties)
        return [part.tolist() for part in torch.arange(width).split([len(group) for group in self.options.columns])]

    # ---- the sources

    def _pictures(self) -> tuple[Records, Records]:
        side = self.options.size or _SIDE
        readers: dict[str, Callable[[Any], Records]] = {
            "digits": lambda part: digit_records(part, self.seed, side),
            "patches": lambda part: photo_patches(part, self.seed, side),
            "mnist": lambda part: read_mnist(self.root, part),
            "cifar10": lambda part: read_cifar10(self.root, part),
            "linnaeus": lambda part: read_linnaeus(self.root, part, self.options.size),
        }
        read = readers[self.source]
        return read("train"), read("test")

    def _tables(self) -> tuple[Records, Records]:
        groups = self.options.columns
        wanted = None if groups is None else [column for group in groups for column in group]
        if self.source == "table":
            records = read_table(Path(self.root), self.options.label, wanted)
            train, test = (divided(records, part, self.options.test_fraction, self.seed, "table") for part in ("train", "test"))
        else:
            train, test = (_narrowed(tumours(part, self.seed), wanted) for part in ("train", "test"))
        self.scale = Standardisation.of(train)
        return self.scale.apply(train), self.scale.apply(test)

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return a loader of shuffled batches of all training records."""
        return training_loader(PartyRecords(self.train_records, self.blocks), self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the test records: nothing is chosen by them."""
        return self.test_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of the test records."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader:
        """Return a loader of every test record once, in order."""
        return ordered_loader(PartyRecords(self.test_records, self.blocks))


def _narrowed(records: Records, wanted: Sequence[int | str] | None) -> Records:
    """Return a table with only some of its columns, in their order."""
    if wanted is None:
        return records
    places = column_places(records.feature_names, wanted)
    return replace(records, features=records.features[:, places], feature_names=tuple(records.feature_names[place] for place in places))
