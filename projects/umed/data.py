"""Images with masks to protect, divided by patient or lesion, from offline worlds and from the layouts that segmentation sets are shared in."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

from torch.utils.data import DataLoader

from projects.umed.protected import protected_files
from projects.umed.sets import (
    FileSet,
    MaskedSet,
    OnBadFile,
    choose_groups,
    identity,
    in_memory,
    join_duplicates,
    mask_code,
    perceptual_hash,
    split_groups,
)
from projects.umed.sets.layouts import Items, Region, busi, covid, folder, glas, isic, kvasir, monuseg
from projects.umed.worlds import ellipses, micrographs
from shared.data.base import DataModule

_CLASSES = {"micrographs": 1, "busi": 1, "kvasir": 1, "isic": 1, "covid": 1, "glas": 1, "monuseg": 1, "acdc": 3}  # of sources that have no choice
_FRACTIONS = (0.7, 0.1, 0.2)

_log = logging.getLogger(__name__)


class ProtectionData(DataModule):
    """Images with masks; batches are `image` (B, C, H, W) uint8, `mask` (B, H, W) int64 and `index` (B,).

    Where a layout has no splits, 70 % of the patients or lesions are for training, 10 % for validation and 20 % for testing.

    Args:
        source: `ellipses` and `micrographs` need no files; the others read what lies in `root`.
        root: folder of the data set.
        batch_size: images of one training step over all processes together.
        num_workers: processes that read images for each training process.
        seed: seed of the order of samples, of drawn images and of splits.
        size: side of the square that images are stretched to, in pixels; by default 32 for ellipses, 64 for micrographs and 256 for files.
        channels: 1 for grey images, 3 for colour.
        classes: foreground classes of ellipses (1 or 2), folder and protected; the other sources know theirs.
        length: number of training images of ellipses.
        test_length: number of test images of ellipses, and at most so many of validation.
        fraction: part of the training images that is used, chosen by patient or lesion, above 0 to 1.
        mask_values: what the classes 1, 2, ... are in the masks of folder: levels such as 85, or colours such as #ff0000; null is black and white
            for one class, else the levels 1, 2, ...
        window: levels that stand for 0 and 1 in images of folder; null is 0 and 255 for 8 bits, and the 1st and 99th percentile of each for 16.
        region: infection or lung, for covid.
        with_empty: keeps images whose masks are empty, such as BUSI's normal ones; nothing of them is perturbed.
        join_duplicates: keeps images that look alike in one split; null does so for busi, which has many.
        on_bad_file: refuse stops at image files that cannot be read, skip leaves them out; null finds them when their turn comes.
    """

    sources: ClassVar[dict[str, str]] = {
        "ellipses": "dark ellipses in speckle",
        "micrographs": "tiles of two pictures that scikit-image brings along",
        "busi": "breast ultrasound, {benign,malignant,normal}/* in root",
        "kvasir": "Kvasir-SEG, images/ and masks/ in root",
        "isic": "ISIC-2018 task 1, ISIC2018_Task1-2_Training_Input/ and so on in root",
        "covid": "COVID-QU-Ex, {Train,Val,Test}/<class>/{images,infection masks,lung masks}/ in root",
        "glas": "GlaS, train_1.bmp with train_1_anno.bmp and so on in root, or Train_Folder/{img,labelcol}/ and so on",
        "monuseg": "MoNuSeg, {Train,Val,Test}_Folder/{img,labelcol}/ in root",
        "acdc": "cardiac volumes, training/patientNNN/*.nii.gz in root (extra medical)",
        "folder": "images/ and masks/ with the same names, in root or in its train, val and test",
        "protected": "a folder that protect wrote",
    }

    train_set: MaskedSet
    val_set: MaskedSet
    test_set: MaskedSet

    def __init__(
        self,
        source: str = "ellipses",
        root: str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = None,
        channels: int = 1,
        classes: int = 1,
        length: int = 240,
        test_length: int = 100,
        fraction: float = 1.0,
        mask_values: list[str] | None = None,
        window: tuple[float, float] | None = None,
        region: Region = "infection",
        with_empty: bool = False,
        join_duplicates: bool | None = None,
        on_bad_file: OnBadFile | None = None,
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.size = size or {"ellipses": 32, "micrographs": 64}.get(source, 256)
        self.channels, self.classes, self.length, self.test_length, self.fraction = channels, classes, length, test_length, fraction
        self.mask_values, self.window, self.region, self.with_empty = mask_values, window, region, with_empty
        self.joins_duplicates = source == "busi" if join_duplicates is None else join_duplicates
        self.on_bad_file = on_bad_file
        self._check()

    def _check(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {self.channels}")
        if self.size < 16:
            raise ValueError(f"data.size must be at least 16, got {self.size}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.fraction must lie above 0 and be at most 1, got {self.fraction}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"data.window must be two rising levels, got {list(self.window)}")
        if self.source in _CLASSES and self.classes not in (1, _CLASSES[self.source]):
            raise ValueError(f"data.source {self.source} has {_CLASSES[self.source]} classes: leave data.classes out")
        if self.source != "folder" and (self.mask_values is not None or self.window is not None):
            raise ValueError(f"data.mask_values and data.window are for data.source folder, not {self.source}: give --data.source folder too")
        if self.source == "folder":
            mask_code(self.classes, self.mask_values)

    @property
    def given_root(self) -> Path | None:
        """Folder that is read, or None for sources without one."""
        return None if self._root is None else self.root

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images at the working size."""
        return self.train_set.image_shape

    @property
    def class_count(self) -> int:
        """Foreground classes K."""
        return self.train_set.classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 1..K."""
        return self.train_set.class_names

    def prepare_data(self) -> None:
        """Check that the files are there, before any work is done."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):
            return
        train, val, test = self._read()
        if self.fraction < 1:
            train = train.subset(choose_groups(train.groups, self.fraction, self.seed))
        self.train_set, self.val_set, self.test_set = in_memory(train), in_memory(val), in_memory(test)

    def all_files(self) -> MaskedSet:
        """Return every image of `root` in no split, those with empty masks too, for publishing them.

        Raises:
            ValueError: for sources without files.
        """
        if self.source in ("ellipses", "micrographs"):
            raise ValueError(f"data.source {self.source} has no files: take its training set")
        if self.source == "protected":
            return protected_files(self.root, self.size)
        return self._files([item for items in self._items(with_empty=True).values() for item in items])

    # ---- the sources

    def _read(self) -> tuple[MaskedSet, MaskedSet, MaskedSet]:
        if self.source == "ellipses":
            counts = {"train": self.length, "val": max(1, min(self.test_length, self.length // 4)), "test": self.test_length}
            sets = [ellipses(split, count, self.size, self.seed, self.channels, self.classes) for split, count in counts.items()]  # type: ignore[arg-type]
            return sets[0], sets[1], sets[2]
        if self.source == "micrographs":
            return (
                micrographs("train", self.size, self.channels),
                micrographs("val", self.size, self.channels),
                micrographs("test", self.size, self.channels),
            )
        if self.source == "protected":
            return _split(protected_files(self.root, self.size), _FRACTIONS, self.seed)
        parts = {name: self._prepared(items) for name, items in self._items(self.with_empty).items()}
        if "all" in parts:
            return _split(parts["all"], _FRACTIONS, self.seed)
        if "test" not in parts:
            train, _, test = _split(parts["train"], (0.8, 0.0, 0.2), self.seed)
            return train, parts["val"], test
        if "val" not in parts:
            train, val, _ = _split(parts["train"], (0.875, 0.125, 0.0), self.seed)
            return train, val, parts["test"]
        return parts["train"], parts["val"], parts["test"]

    def _items(self, with_empty: bool) -> Items:
        match self.source:
            case "busi":
                return busi(self.root, with_empty)
            case "kvasir":
                return kvasir(self.root)
            case "isic":
                return isic(self.root)
            case "covid":
                return covid(self.root, self.region)
            case "glas":
                return glas(self.root)
            case "monuseg":
                return monuseg(self.root)
            case "acdc":
                from projects.umed.sets.volumes import acdc

                return acdc(self.root)
            case _:
                return folder(self.root, mask_code(self.classes, self.mask_values), self.window)

    def _files(self, items: list) -> FileSet:
        names = None
        if self.source == "acdc":
            from projects.umed.sets.volumes import ACDC_CLASSES

            names = ACDC_CLASSES
        return FileSet(self.root, items, self.size, self.channels, _CLASSES.get(self.source, self.classes), names, self.on_bad_file)

    def _prepared(self, items: list) -> FileSet:
        """Leave out images without foreground, and join those that look alike."""
        found = self._files(items)
        if not self.with_empty and self.source != "busi":
            full = found.without_empty()
            if len(full) < len(found):
                _log.warning("%d of %d images in %s have empty masks and are left out", len(found) - len(full), len(found), self.root)
            found = full
        if self.joins_duplicates:
            groups = join_duplicates(found.map_images(perceptual_hash), found.groups)
            count = len(set(found.groups)) - len(set(groups))
            _log.info("%d of %d images in %s look like another one and stay in its split", count, len(found), self.root)
            found = found.with_groups(groups)
        return found

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader."""
        return self.training_loader(self.train_set, collate=identity)

    def ordered_loader(self) -> DataLoader:
        """Return a loader of every training image once, in order, dealt over the processes without padding."""
        return self.evaluation_loader(self.train_set, collate=identity)

    def val_dataloader(self) -> DataLoader:
        """Return a loader of every validation image once, in order."""
        return self.evaluation_loader(self.val_set, collate=identity)

    def test_dataloader(self) -> DataLoader:
        """Return a loader of every test image once, in order."""
        return self.evaluation_loader(self.test_set, collate=identity)


def _split(images: FileSet, fractions: tuple[float, float, float], seed: int) -> tuple[FileSet, FileSet, FileSet]:
    """Divide a set by its groups; a part of 0 repeats the training part, which its caller leaves aside."""
    parts = split_groups(images.groups, seed, fractions)
    train, val, test = (images.subset(part or parts[0]) for part in parts)
    return train, val, test
