"""The records that the parties hold together, cut into training and test records and into one block a party."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from projects.vafl import mimic3
from projects.vafl.layouts import by_subject, is_tested, party_columns, party_count, places_of, read_labels, read_party, read_speech, read_views
from projects.vafl.parted import Parted, as_float, digest, numbered_in, standardised
from projects.vafl.worlds import SERIES_GROUPS, VIEWS, handwriting, silhouettes, vital_signs
from shared.data.files import first_few
from shared.vertical.data import PartyData, PartyRecords, narrowed
from shared.vertical.layouts import FASHION, read_cifar10, read_mnist
from shared.vertical.parts import ImageSplit
from shared.vertical.records import TEST_FRACTION, Records, Split, Standardisation, divided
from shared.vertical.tables import read_cells

_SPLITS: tuple[Split, Split] = ("train", "test")
_DIGITS_TESTED = 360 / 1797  # 1437 training and 360 test digits
_VIEW_SIZE = {"views": 16, "modelnet40": 32}  # pixels
_PARTIES = {
    "digits": 8, "mnist": 7, "fashion_mnist": 7, "cifar10": 8, "breast_cancer": 3, "parkinson": 3, "table": 2,
    "views": 4, "modelnet40": 4, "series": len(SERIES_GROUPS), "mimic3": len(mimic3.HOLDERS),
}  # fmt: skip
"""Number of parties of each source where the user names none: the paper's, except for `table`."""


class VerticalRecords(PartyData):
    """Records whose features are split over parties; the server holds the labels. Nothing is augmented.

    Batches are those of `shared.vertical.data.PartyRecords`: training ones are shuffled passes over all training records, test ones are in order.
    Blocks of pictures are their pixels in a row, (D,); of views (V, 1, H, W); of series (T, F); of tables (D,), standardised by training records.

    Args:
        source: an offline world, or a layout of files.
        root: folder of the files, or file of the table.
        batch_size: records of a training step.
        seed: seed of offline worlds, of splits and of the order of records.
        split: how pictures are split: rows, columns or quarters.
        parties: M, number of parties; null is the paper's number, or as many as `columns` has; `series` and `mimic3` are for four.
        columns: of a table, names or places of each party's columns; null shares all of them out evenly. Those that nobody has are left out.
        label: with `table`, name or place of the column of labels; -1 is the last one.
        size: side of `views` and `modelnet40` in pixels; null is 16 and 32.
        class_count: with `parties`, number of classes, where labels.csv is not here; null counts them.
        test_fraction: with `table`, `parkinson` and `parties`, part of the records (with `parkinson`, of the subjects) for test, in (0, 1).

    Attributes:
        train: training records, after `setup`.
        test: test records, after `setup`.
        class_names: name of each label, after `setup`.

    Raises:
        ValueError: if options do not fit.
    """

    owner = "vafl"
    tables = ("breast_cancer", "parkinson", "table")
    sized = ("views", "modelnet40")
    sources: ClassVar[dict[str, str]] = {
        "digits": "scikit-learn's handwritten digits of 8 x 8 pixels, offline",
        "breast_cancer": "scikit-learn's table of 569 tumours, offline",
        "views": "silhouettes of eight solids from twelve sides, offline",
        "series": "24 hours of 17 variables of generated patients, offline",
        "mnist": "MNIST/raw/*-ubyte.gz, as torchvision stores them",
        "fashion_mnist": "FashionMNIST/raw/*-ubyte.gz, as torchvision stores them",
        "cifar10": "cifar-10-batches-py/, as unpacked",
        "parkinson": "pd_speech_features.csv of UCI, split by subject",
        "modelnet40": "modelnet40v1/<class>/{train,test}/<object>_<001..012>.jpg",
        "mimic3": "the public benchmark's in-hospital-mortality/{train,test}/",
        "table": "a CSV file of numbers with a column of labels",
        "parties": "labels.csv and party-0.csv, party-1.csv ..., each with a column id, perhaps on several machines",
    }

    train: Parted
    test: Parted
    class_names: tuple[str, ...]

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        batch_size: int = 14,
        seed: int = 0,
        split: ImageSplit = "rows",
        parties: int | None = None,
        columns: list[list[int | str]] | None = None,
        label: int | str = -1,
        size: int | None = None,
        class_count: int | None = None,
        test_fraction: float = TEST_FRACTION,
    ) -> None:
        super().__init__(source, root, batch_size, 0, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self.check_options()

    def check_options(self) -> None:
        super().check_options()
        parties = self.options.parties
        if self.source in ("series", "mimic3") and parties not in (None, _PARTIES[self.source]):
            raise ValueError(f"data.parties must be {_PARTIES[self.source]} with {self.source}, whose variables have their owners, got {parties}")
        if self.source in self.sized and parties is not None and parties > VIEWS:
            raise ValueError(f"data.parties must be at most {VIEWS} with {self.source}, one view each, got {parties}")

    def usual_parties(self) -> int:
        if self.source != "parties":
            return _PARTIES[self.source]
        count = party_count(self.root)
        if not count:
            raise FileNotFoundError(f"no party-<m>.csv in {self.root}: say with data.parties how many parties there are, or correct data.root")
        return count

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test"):
            return
        if self.source == "parties":
            self._set_up_parties()
            return
        train, test = self._read()
        self.refuse_one_class(train.class_names)
        self.class_names = train.class_names
        self.train, self.test = self._parted(train), self._parted(test)

    # ---- what each machine knows

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of a record's block of each party; with `parties`, (1,) for those whose files are not here: a machine needs its own net only."""
        if self.source == "parties":
            return [self._party_shape(number) for number in range(self.parties)]
        self.setup()
        return [tuple(block.shape[1:]) for block in self.train.blocks]

    @property
    def classes(self) -> int:
        """Number of classes; with `parties`, `class_count` where labels.csv is not here."""
        if self.source == "parties":
            return self._class_count()
        self.setup()
        return len(self.class_names)

    def class_counts(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test records each class has."""
        self.setup()
        counts = [torch.bincount(some.labels, minlength=self.classes).tolist() for some in (self.train, self.test)]
        return dict(zip(self.class_names, zip(*counts, strict=True), strict=True))

    def party(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the training and the test block of one party; with `parties`, only party-<number>.csv is read.

        Raises:
            ValueError: if there is no such party.
        """
        if self.source == "parties":
            return self._party_file(number)[:2]
        self.setup()
        if not 0 <= number < self.parties:
            raise ValueError(f"there is no party {number}: choose one from 0 to {self.parties - 1}")
        return self.train.blocks[number], self.test.blocks[number]

    def train_labels(self) -> Tensor:
        """Return the labels of the training records, (N,) int64; with `parties`, only labels.csv is read."""
        return self._labels("train")

    def test_labels(self) -> Tensor:
        """Return the labels of the test records, (N,) int64; with `parties`, only labels.csv is read."""
        return self._labels("test")

    def ids_digest(self, party: int | None = None) -> str:
        """Return a hash of the ordered ids of training and test records: machines whose hashes differ would not mean the same records.

        Args:
            party: with `parties`, whose file to take the ids from; None takes those of labels.csv.
        """
        if self.source != "parties":
            self.setup()
            return digest(self.train.ids, self.test.ids)
        ids = read_labels(self.root)[0] if party is None else read_party(self.root, party)[0]
        return digest(*([ids[row] for row in rows.tolist()] for rows in self._rows(ids)))

    # ---- the loaders

    def training_records(self) -> PartyRecords:
        return self.train.in_batches()

    def test_records_in_order(self) -> PartyRecords:
        return self.test.in_batches()

    # ---- records that nobody knows the labels of

    def unseen(self, path: Path) -> tuple[list[Tensor | None], list[str]]:
        """Read new records, which need no labels, and scale them as the training records were.

        Args:
            path: with `parties`, a folder with their files; with `table`, a file. Columns are found by their names.

        Returns:
            A block, (N, D) float32, of each party, None where its file is not there; and the name of each record.

        Raises:
            FileNotFoundError: if nothing is there.
            BadFileError: if columns are missing, or a value is no number.
            ValueError: if records are of another kind, or the parties' ids differ.
        """
        if self.source not in ("parties", "table"):
            raise ValueError(f"new records are read with data.source parties and table, not with {self.source}: leave path out for its test records")
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: give {'a folder with party-0.csv ...' if self.source == 'parties' else 'a table'}")
        if self.source == "parties":
            return self._unseen_parties(path)
        known, cells = self.read_tables()[0], read_cells(path)
        table = _unlabelled(cells.numbers(places_of(cells, known.feature_names)))
        return [*self.blocks(Standardisation.of(known).apply(table).values())], [f"line {line}" for line in cells.lines]

    def _unseen_parties(self, folder: Path) -> tuple[list[Tensor | None], list[str]]:
        blocks: list[Tensor | None] = [None] * self.parties
        first, ids = "", list[str]()
        for number in range(self.parties):
            if not (folder / f"party-{number}.csv").is_file():
                continue
            theirs, table = read_party(folder, number, party_columns(self.root, number))
            first, ids = first or f"party-{number}.csv", ids or theirs
            _refuse_other_ids(f"{first} and party-{number}.csv of {folder}", ids, theirs)
            own, known = read_party(self.root, number)
            blocks[number] = Standardisation.of(_unlabelled(known[self._rows(own)[0]])).apply(_unlabelled(table)).values()
        if not ids:
            raise FileNotFoundError(f"no party-<m>.csv in {folder}: give a folder with the files of the {self.parties} parties, or of some of them")
        return blocks, ids

    # ---- the files of real parties

    def _set_up_parties(self) -> None:
        ids, labels, class_names = read_labels(self.root)
        self.refuse_one_class(class_names)
        blocks = [self._party_file(number) for number in range(self.parties)]
        for number, (_, _, theirs) in enumerate(blocks):
            _refuse_other_ids(f"labels.csv and party-{number}.csv of {self.root}", ids, theirs)
        self.class_names = class_names
        rows = self._rows(ids)
        named = [[ids[row] for row in some.tolist()] for some in rows]
        self.train = Parted([block for block, _, _ in blocks], labels[rows[0]], named[0])
        self.test = Parted([block for _, block, _ in blocks], labels[rows[1]], named[1])

    def _party_file(self, number: int) -> tuple[Tensor, Tensor, list[str]]:
        """Return a party's training and test block, standardised by its own training records, and its ids in order."""
        ids, table = read_party(self.root, number)
        train, test = self._rows(ids)
        records = _unlabelled(table)
        scaled = Standardisation.of(records.take(train)).apply(records).values()
        return scaled[train], scaled[test], ids

    def _class_count(self) -> int:
        given, is_here = self.options.class_count, (self.root / "labels.csv").is_file()
        if not is_here and given is None:
            raise FileNotFoundError(
                f"no labels.csv in {self.root}: a client, which holds none, must say with data.class_count how many classes there are"
            )
        counted = len(read_labels(self.root)[2]) if is_here else given
        if given not in (None, counted):
            raise ValueError(f"data.class_count is {given}, but labels.csv of {self.root} has {counted} classes: correct it, at all parties")
        return counted

    def _party_shape(self, number: int) -> tuple[int, ...]:
        return tuple(read_party(self.root, number)[1].shape[1:]) if (self.root / f"party-{number}.csv").is_file() else (1,)

    def _labels(self, split: Split) -> Tensor:
        if self.source == "parties":
            ids, labels, _ = read_labels(self.root)
            return labels[self._rows(ids)[split == "test"]]
        self.setup()
        return (self.train if split == "train" else self.test).labels

    def _rows(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the rows of training and of test records."""
        tested = torch.tensor([is_tested(name, self.seed, self.options.test_fraction) for name in ids])
        if tested.all() or not tested.any():
            raise ValueError(f"all {len(ids)} records of {self.root} fall to {'test' if tested.all() else 'training'}: change data.test_fraction")
        return (~tested).nonzero()[:, 0], tested.nonzero()[:, 0]

    # ---- the sources

    def _read(self) -> tuple[Records, Records]:
        """Return training and test records, whole."""
        if self.source in self.tables:
            return self._tables()
        if self.source == "series":
            return standardised(*self._divided(vital_signs(seed=self.seed)), range(sum(map(len, SERIES_GROUPS))))
        if self.source == "mimic3":
            train, test = (mimic3.read_stays(self.root, split) for split in _SPLITS)
            mimic3.refuse_shared_patients(train.ids, test.ids)
            return standardised(train, test, mimic3.CONTINUOUS)
        return self._pictures()

    def _pictures(self) -> tuple[Records, Records]:
        if self.source == "digits":
            return self._divided(handwriting(), _DIGITS_TESTED)
        size = self.options.size or _VIEW_SIZE.get(self.source, 0)
        if self.source == "views":
            return self._divided(silhouettes(seed=self.seed, size=size))
        readers: dict[str, Callable[[Split], Records]] = {
            "mnist": lambda split: read_mnist(self.root, split),
            "fashion_mnist": lambda split: read_mnist(self.root, split, "FashionMNIST", FASHION),
            "cifar10": lambda split: read_cifar10(self.root, split),
            "modelnet40": lambda split: read_views(self.root, split, size),
        }
        train, test = (numbered_in(readers[self.source](split), split) for split in _SPLITS)
        return train, test

    def _tables(self) -> tuple[Records, Records]:
        if self.source == "parkinson":
            records, subjects = read_speech(self.root)
            records = narrowed(records, self.wanted)
            train, test = (by_subject(records, subjects, split, self.options.test_fraction, self.seed) for split in _SPLITS)
        else:
            train, test = self.read_tables()
        scale = Standardisation.of(train)
        return scale.apply(train), scale.apply(test)

    def _divided(self, records: Records, test_fraction: float = TEST_FRACTION) -> tuple[Records, Records]:
        key = (self.seed, self.owner, self.source)
        return divided(records, "train", test_fraction, *key), divided(records, "test", test_fraction, *key)

    # ---- the blocks

    def _parted(self, records: Records) -> Parted:
        features = records.features
        if self.source in self.sized:
            cut = list(features.tensor_split(self.parties, dim=1))
        elif self.source in ("series", "mimic3"):
            groups = SERIES_GROUPS if self.source == "series" else mimic3.party_columns()
            cut = [features[:, :, list(group)] for group in groups]
        else:
            cut = [block.flatten(1) for block in self.blocks(features)]
        return Parted([as_float(block) for block in cut], records.labels, list(records.ids))


def _unlabelled(table: Tensor) -> Records:
    """Return a table, (N, D), as records of one class, with nameless columns."""
    return Records(table, torch.zeros(len(table), dtype=torch.long), ("",), ("",) * table.shape[1])


def _refuse_other_ids(what: str, ids: Sequence[str], others: Sequence[str]) -> None:
    """Raise a ValueError unless two files have the same sorted ids."""
    if ids != others:
        differing = sorted(set(ids) ^ set(others))
        few = ", ".join(first_few(differing, 3))
        raise ValueError(f"{what} differ in {len(differing)} ids, such as {few}: keep the records that all of them have")
