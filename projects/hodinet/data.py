"""Pictures with depth to learn from and to judge by: scenes drawn on the spot, and sets in files under their customary splits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch.utils.data import DataLoader, Dataset

from projects.hodinet.augmentation import Augmentation, Layers, augment
from projects.hodinet.duplicates import guard
from projects.hodinet.layouts import LAYOUTS, PICTURES, Inverted, MissingDepth, Modality, Sample, by_set, read_layout, set_name, set_of
from projects.hodinet.samples import DrawnScenes, Reading, SampleFiles, check_samples, polarity_report, warn_of_distances
from projects.hodinet.scenes import Variant
from shared.data.base import DataModule
from shared.data.folders import OnBadFile
from shared.data.selection import OnLeak
from shared.distributed import EpochKeys, world_size
from shared.seeding import generator

TRAINING_SETS: dict[str, tuple[str, ...]] = {"2185": ("NJU2K", "NLPR"), "2985": ("NJU2K", "NLPR", "DUT-RGBD")}
"""The two customary training sets, by their number of pictures; tables must say which."""

_log = logging.getLogger(__name__)


class WholePictures(Dataset):
    """Pictures as they are; items are `image` (3, H, W) uint8, `depth` (1, H, W) in [0, 1], `mask` (1, H, W) uint8 of 0 and 1, and `index`."""

    def __init__(self, pictures: SampleFiles | DrawnScenes) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _item(self.pictures.read(index), index)


class TrainingPictures(Dataset):
    """Squares of augmented pictures, with the items of `WholePictures`; index i + e N stands for picture i of N in epoch e.

    Args:
        pictures: the pictures.
        size: side of the squares, in pixels.
        augmentation: what pictures go through.
        seed: seed of everything.
    """

    def __init__(self, pictures: SampleFiles | DrawnScenes, size: int, augmentation: Augmentation = "none", seed: int = 0) -> None:
        self.pictures, self.size, self.augmentation, self.seed = pictures, size, augmentation, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self))
        chance = generator(self.seed, "augmentation", epoch, place)
        return _item(augment(self.pictures.read(place), self.size, self.augmentation, chance), place)


def _item(layers: Layers, index: int) -> dict[str, Any]:
    return layers._asdict() | {"index": index}


class SaliencyData(DataModule):
    """Training batches of squares, and whole pictures for validation and tests: one by one where their sizes differ.

    Batches are {"image": (B, 3, S, S) uint8, "depth": (B, 1, S, S) in [0, 1] with near = 1, "mask": (B, 1, S, S) uint8 of 0 and 1, "index": (B,)}.

    Args:
        source: `scenes`, a layout of files, or `auto` for all layouts that are there.
        root: folder of the files.
        batch_size: pictures of one training step over all processes together.
        num_workers: processes that read data for each training process.
        seed: seed of every random choice in the data.
        size: side of training squares, in pixels; null is 64 for scenes and 256 for files.
        train_sets: 2185 (NJU2K and NLPR), 2985 (DUT-RGBD too), or names of sets; null takes all that have a training split.
        test_sets: names of sets, or of variants with `scenes`; null takes all that have a test split, or `variant`.
        val_fraction: part of each training set that is held out to choose the epoch by, in (0, 1).
        invert: names of the sets whose depth has far = 1, or all; null inverts what is in the layout of the group, who say that they have it so.
        normalise: stretches the depth of each picture to [0, 1].
        missing_depth: refuses pictures without a depth map, or takes zeros for it.
        modality: depth, or thermal for RGB-T sets with folders `T` or `thermal`.
        variant: with `scenes`, what is learnt: default, depth_easy, rgb_easy, bad_depth or inverted.
        length: with `scenes`, number of training pictures.
        test_length: with `scenes`, number of pictures of validation and of each test set.
        augmentation: none, flip, or group with windows, turns and colours as the group's public code has them.
        on_bad_file: refuse or skip pictures whose files are missing or do not go together.
        duplicates: bits of 63 in which training pictures that look like test pictures differ at most, such as 4; null does not look, which reads all.
        on_duplicate: remove, refuse or keep such training pictures.

    Attributes:
        train_set: the training pictures.
        val_set: those of validation.
        train_names: names of the training sets.
        test_names: names of the test sets.
        test_pictures: their pictures.
        polarity: with files, a row for each training set that tells whether what is salient is nearer.
        is_learning: False leaves training files alone, for verbs that only test.

    Raises:
        ValueError: if options do not fit.
    """

    sources: ClassVar[dict[str, str]] = {
        "scenes": "drawn on the spot: what is salient differs in colour and stands nearer",
        "auto": "all layouts that lie in the folder",
        **LAYOUTS,
    }

    is_learning = True
    train_set: TrainingPictures
    val_set: WholePictures
    train_names: list[str]
    test_names: list[str]
    test_pictures: list[WholePictures]

    def __init__(
        self,
        source: str = "scenes",
        root: str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = None,
        train_sets: int | str | list[str] | None = None,
        test_sets: list[str] | None = None,
        val_fraction: float = 0.05,
        invert: list[str] | Literal["all"] | None = None,
        normalise: bool = True,
        missing_depth: MissingDepth = "refuse",
        modality: Modality = "depth",
        variant: Variant = "default",
        length: int = 400,
        test_length: int = 150,
        augmentation: Augmentation = "flip",
        on_bad_file: OnBadFile = "refuse",
        duplicates: int | None = None,
        on_duplicate: OnLeak = "remove",
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self.size = size if size is not None else 64 if source == "scenes" else 256
        self.polarity: list[dict[str, Any]] = []
        self._check()

    def _check(self) -> None:
        options = self.options
        known = {"augmentation": Augmentation, "missing_depth": MissingDepth, "modality": Modality, "variant": Variant, "on_bad_file": OnBadFile}
        for name, values in {**known, "on_duplicate": OnLeak}.items():
            if options[name] not in get_args(values):
                raise ValueError(f"data.{name} must be one of {', '.join(get_args(values))}, got {options[name]!r}")
        if not 0 < options.val_fraction < 1:
            raise ValueError(f"data.val_fraction must be in (0, 1), got {options.val_fraction}")
        if self.size < 32:
            raise ValueError(f"data.size must be at least 32 pixels, got {self.size}")
        if min(options.length, options.test_length) < 1:
            raise ValueError(f"data.length and data.test_length must be at least 1, got {options.length} and {options.test_length}")
        if options.duplicates is not None and not 0 <= options.duplicates < 32:
            raise ValueError(
                f"data.duplicates must be from 0 to 31 bits, for pictures that have nothing in common differ in 32, got {options.duplicates}"
            )

    def prepare_data(self) -> None:
        """Check that files are there and go together, and that what is salient is nearer, before any work is done."""
        self.setup()
        pictures = self.train_set.pictures
        if isinstance(pictures, SampleFiles) and self.options.modality == "depth" and not self.polarity:
            self.polarity = polarity_report(pictures.samples, pictures.reading)

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "test_pictures"):
            self._divide()
        self._check_processes()

    def _divide(self) -> None:
        train, val, tests = self._drawn() if self.source == "scenes" else self._files()
        self.train_set = TrainingPictures(train, self.size, self.options.augmentation, self.seed)
        self.val_set, self.test_names = WholePictures(val), list(tests)
        self.test_pictures = [WholePictures(pictures) for pictures in tests.values()]

    def _check_processes(self) -> None:
        """Refuse before any training to judge fewer pictures than there are processes: those without any would wait for the others for ever."""
        shared = {"validation": self.val_set, **dict(zip(self.test_names, self.test_pictures, strict=True))}
        if few := [f"{len(own)} of {name}" for name, own in shared.items() if 0 < len(own) < world_size()]:
            raise ValueError(
                f"{world_size()} processes share {', '.join(few)} pictures, and each needs one: start fewer, hold more out by data.val_fraction, "
                "or leave small sets out of data.test_sets"
            )

    # ---- the sources

    @property
    def reading(self) -> Reading:
        """How depth in files is read; `data.invert` may name variants of scenes, which say nothing of files."""
        names: Inverted = self.options.invert
        if names not in (None, "all"):
            names = None if self.source == "scenes" else sorted({set_name(name) for name in self.options.invert})
        return Reading(names, self.options.normalise, self.options.modality == "thermal")

    def _drawn(self) -> tuple[DrawnScenes, DrawnScenes, dict[str, DrawnScenes]]:
        options = self.options
        names = options.test_sets or [options.variant]
        if unknown := sorted({*names, *self._inverted_names()} - set(get_args(Variant))):
            raise ValueError(
                f"data.test_sets and data.invert name variants with data.source scenes ({', '.join(get_args(Variant))}), not {unknown[0]}"
            )

        def drawn(split: Literal["train", "val", "test"], length: int, variant: Variant) -> DrawnScenes:
            invert = options.invert == "all" or variant in self._inverted_names()
            return DrawnScenes(split, length, self.seed, self.size, variant, invert, options.normalise)

        self.train_names = [options.variant]
        tests = {name: drawn("test", options.test_length, name) for name in names}
        return drawn("train", options.length, options.variant), drawn("val", options.test_length, options.variant), tests

    def _files(self) -> tuple[SampleFiles, SampleFiles, dict[str, SampleFiles]]:
        options = self.options
        layout: Any = self.source
        samples = read_layout(self.root, layout, options.modality, options.missing_depth, options.on_bad_file)
        train, tests = (by_set(sample for sample in samples if sample.split == split) for split in ("train", "test"))
        train = _chosen(train, self._training_names(), "train_sets", "training") if self.is_learning else {}
        tests = _chosen(tests, options.test_sets, "test_sets", "test")
        reading = self.reading
        _check_inverted(reading.inverted, {sample.dataset for sample in samples})
        train, tests = ({name: check_samples(own, reading, options.on_bad_file) for name, own in sets.items()} for sets in (train, tests))
        _check_releases(train, tests)
        _check_apart(train, tests)
        warn_of_distances(_joined(tests), reading)
        if options.duplicates is not None and train:
            train = by_set(guard(_joined(train), _joined(tests), options.duplicates, options.on_duplicate))
        self.train_names = list(train)
        learnt, held_out = _divided(train, options.val_fraction, self.seed)
        return SampleFiles(learnt, reading), SampleFiles(held_out, reading), {name: SampleFiles(own, reading) for name, own in tests.items()}

    def _training_names(self) -> Sequence[str] | None:
        sets = self.options.train_sets
        if isinstance(sets, int | str):
            if str(sets) not in TRAINING_SETS:
                raise ValueError(f"data.train_sets must be {' or '.join(TRAINING_SETS)}, or a list of names of sets, got {sets!r}")
            return TRAINING_SETS[str(sets)]
        return sets

    def _inverted_names(self) -> list[str]:
        return [] if self.options.invert in (None, "all") else self.options.invert

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader.

        Raises:
            ValueError: if there are no training pictures, or see `DataModule.training_loader`.
        """
        if not len(self.train_set):
            raise ValueError(f"{self.root} holds test pictures only: put training pictures there, as {LAYOUTS.get(self.source, LAYOUTS['spnet'])}")
        return self.training_loader(self.train_set, sampler=EpochKeys(self.train_set, self.seed))

    def val_dataloader(self) -> DataLoader:
        """Return a loader of every validation picture once, in order."""
        return self._whole(self.val_set)

    def test_dataloader(self) -> list[DataLoader]:
        """Return one loader for each of `test_names`, of every picture once, in order."""
        return [self._whole(pictures) for pictures in self.test_pictures]

    def _whole(self, pictures: WholePictures) -> DataLoader:
        """Return a loader of whole pictures: one by one, unless all have one size."""
        return self.evaluation_loader(pictures, batch_size=None if isinstance(pictures.pictures, DrawnScenes) else 1)


def _joined(sets: dict[str, list[Sample]]) -> list[Sample]:
    return [sample for own in sets.values() for sample in own]


def _chosen(sets: dict[str, list[Sample]], names: Iterable[str] | None, option: str, what: str) -> dict[str, list[Sample]]:
    """Return the sets that an option names, or all."""
    if names is None:
        return sets
    wanted = [set_name(name) for name in names]
    if missing := [name for name in wanted if name not in sets]:
        raise ValueError(f"data.{option} names {', '.join(missing)}, but these have {what} pictures: {', '.join(sets) or 'none'}")
    return {name: sets[name] for name in wanted}


def _check_inverted(inverted: Inverted, sets: set[str]) -> None:
    if inverted not in (None, "all") and (unknown := sorted(set(inverted or ()) - sets)):
        raise ValueError(f"data.invert names {unknown[0]}, but the sets are {', '.join(sorted(sets))}: correct the name")


def _check_releases(train: dict[str, list[Sample]], tests: dict[str, list[Sample]]) -> None:
    """Warn where numbers cannot stand beside published ones."""
    for split, sets in (("train", train), ("test", tests)):
        for name, samples in sets.items():
            published = PICTURES.get(name, {}).get(split, (len(samples),))
            if len(samples) not in published:
                counts = " or ".join(map(str, published))
                _log.warning("%s (%s) has %d pictures, and was published with %s: numbers do not compare", name, split, len(samples), counts)
    if train and "DUT-RGBD" in tests and "DUT-RGBD" not in train:
        _log.warning("DUT-RGBD is tested but not learnt: only methods that were trained without it compare (data.train_sets: 2985 learns it)")


def _check_apart(train: dict[str, list[Sample]], tests: dict[str, list[Sample]]) -> None:
    """Refuse a whole set beside its training part: the names that these two were published with tell their pictures apart."""
    for name in ("NJU2K", "NLPR"):
        learnt, judged = ({sample.stem for sample in sets.get(name, ()) if set_of(sample.stem) == name} for sets in (train, tests))
        if twice := sorted(learnt & judged):
            mend = "leave them out of the folder of test pictures, or the set out of data.test_sets"
            raise ValueError(f"{len(twice)} of {len(judged)} test pictures of {name} are training pictures, such as {twice[0]}: {mend}")


def _divided(sets: dict[str, list[Sample]], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Hold a part of each set out, at least one picture of it.

    Raises:
        ValueError: if a set has only one picture.
    """
    learnt, held_out = [], []
    for name, samples in sets.items():
        if len(samples) < 2:
            raise ValueError(f"the training set {name} has only one picture, so that none can be held out: add pictures, or leave it out")
        order = torch.randperm(len(samples), generator=generator(seed, "validation", name)).tolist()
        count = min(max(1, round(fraction * len(samples))), len(samples) - 1)
        held_out += [samples[number] for number in sorted(order[:count])]
        learnt += [samples[number] for number in sorted(order[count:])]
    return learnt, held_out
