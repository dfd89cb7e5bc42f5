"""The records that the parties hold together: those to train on, those under attack, and those for test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from projects.cafe.layouts import read_linnaeus
from projects.cafe.worlds import photo_patches
from shared.seeding import generator
from shared.vertical.data import PartyData, PartyRecords
from shared.vertical.layouts import read_cifar10, read_mnist
from shared.vertical.parts import ImageSplit
from shared.vertical.records import TEST_FRACTION, Records, Standardisation
from shared.vertical.worlds import digit_records

_SIDE = 16  # of the pictures of offline worlds, in pixels
_PARTIES = 4


class FederatedRecords(PartyData):
    """Records whose features are split over parties; the server holds the labels. Nothing is augmented.

    Batches are those of `shared.vertical.data.PartyRecords`: training ones are shuffled passes over all training records, test ones are in order.

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

    owner = "cafe"
    sized = ("digits", "patches", "linnaeus")
    at_least_one = ("count", "parties", "size")
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
        split: ImageSplit = "quarters",
        parties: int | None = None,
        columns: list[list[int | str]] | None = None,
        label: int | str = -1,
        size: int | None = None,
        test_fraction: float = TEST_FRACTION,
    ) -> None:
        super().__init__(source, root, batch_size, 0, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self.check_options()

    def usual_parties(self) -> int:
        return _PARTIES

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test_records"):
            return
        train, test = self._tables() if self.source in self.tables else self._pictures()
        count = len(train) if self.options.count is None else self.options.count
        if count > len(train):
            raise ValueError(f"data.count is {count}, but {self.source} has only {len(train)} training records: lower it, or leave it null for all")
        self.refuse_one_class(train.class_names)
        self.chosen = torch.randperm(len(train), generator=generator(self.seed, "cafe", "attacked"))[:count]
        self.train_records, self.attacked = train, train.take(self.chosen)
        self.blocks(train.features[:1])  # raises where these pictures cannot be split so
        self.test_records = test

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
        train, test = read("train"), read("test")
        if self.source == "linnaeus":  # files lie class by class, but wherever the first few records are taken they stand for all
            train = train.take(torch.randperm(len(train), generator=generator(self.seed, "cafe", "order")))
        return train, test

    def _tables(self) -> tuple[Records, Records]:
        train, test = self.read_tables()
        self.scale = Standardisation.of(train)
        return self.scale.apply(train), self.scale.apply(test)

    # ---- the loaders

    def training_records(self) -> PartyRecords:
        return self._in_batches(self.train_records)

    def test_records_in_order(self) -> PartyRecords:
        return self._in_batches(self.test_records)

    def _in_batches(self, records: Records) -> PartyRecords:
        return PartyRecords(lambda rows: self.blocks(records.take(rows).values()), records.labels)
