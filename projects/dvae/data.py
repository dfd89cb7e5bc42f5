"""The training set that may be poisoned, and the clean test images that tell whether it is."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from projects.dvae.poison_files import Keying, as_pixels, read_arrays, read_poison
from projects.dvae.sets import (
    BareSet,
    FolderSet,
    ImageSet,
    LabelledSet,
    PairedSet,
    PoisonedSet,
    identity,
    in_memory,
    read_manifest,
    read_poisoned,
    read_set,
)
from projects.dvae.worlds import colour_digits, textures
from shared.data.base import DataModule
from shared.data.cifar import CifarDataset
from shared.data.files import BadFileError, ImageMode
from shared.data.folders import ImageFolderDataset, NpzDataset, OnBadFile
from shared.data.offline import Split

Poison = Literal["none", "lsp", "ar", "ops", "cuda", "random"]
"""Attacks that need no network, so that a set is poisoned while it is set up; the verb `poison` knows the others."""

Choice = Literal["random", "classes"]

CLEAN_SOURCES = ("digits", "textures", "cifar10", "cifar100", "imagenet100")
"""Sources that are known to hold no poison."""

_log = logging.getLogger(__name__)


class PurificationData(DataModule):
    """A labelled training set; batches are `image` (B, C, H, W) in [0, 1], `label`, `index` (B,), and `clean` where the clean images are known.

    Args:
        source: `digits` and `textures` need no files; the others read what lies in `root`.
        root: folder of the data set; of `arrays` it may be the file.
        batch_size: images of one training step over all processes together.
        num_workers: processes that read images for each training process.
        seed: seed of the order of samples, of drawn images and of poisons.
        size: side of the images in pixels; a folder's are cut to their central square, and kept as they are without it; by default 16 for digits, 32
            for textures, 224 for imagenet100, which is resized to 8/7 of it and cut to the centre.
        channels: 1 for grey images, 3 for colour.
        length: number of training images of textures.
        poison: attack on the training set: none, lsp, ar, ops, cuda or random; the other attacks have the verb poison.
        poison_rate: part of the training images that is poisoned, 0 to 1.
        poison_choice: random images, or whole classes.
        poison_radius: bound in the attack's unit: l2 norm in units of [0, 1] images (lsp, ar), pixels changed (ops), pixels of 255 (random); null is
            the customary one.
        perturbation: file or folder of a published poison, or of perturbations that purify wrote, to put on the training set.
        perturbation_keying: auto, or sample or class where it has as many perturbations as there are images and classes.
        test_root: folder of clean test images, <class>/*, for folder, arrays and stored.
        on_bad_file: refuse stops at images that cannot be read, skip leaves them out and says how many; for folder.
    """

    sources: ClassVar[dict[str, str]] = {
        "digits": "scikit-learn's handwritten digits in faint colours",
        "textures": "painted shapes on waves of colour",
        "cifar10": "cifar-10-batches-py/ in root",
        "cifar100": "cifar-100-python/ in root",
        "imagenet100": "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG in root, the first 100 of their classes",
        "folder": "<class>/* in root, any images",
        "stored": "a set that poison or purify wrote",
        "arrays": "images.npy and labels.npy in root, or an .npz file",
    }

    train_set: LabelledSet
    test_set: LabelledSet | None
    is_poisoned: Tensor | None

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = None,
        channels: int = 3,
        length: int = 3000,
        poison: Poison = "none",
        poison_rate: float = 1.0,
        poison_choice: Choice = "random",
        poison_radius: float | None = None,
        perturbation: str | None = None,
        perturbation_keying: Keying = "auto",
        test_root: str | None = None,
        on_bad_file: OnBadFile = "refuse",
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.size, self.channels, self.length, self.on_bad_file = size, channels, length, on_bad_file
        self.poison, self.poison_rate, self.poison_choice, self.poison_radius = poison, poison_rate, poison_choice, poison_radius
        self.perturbation, self.perturbation_keying, self.test_root = perturbation, perturbation_keying, test_root
        self._check()

    def _check(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {self.channels}")
        if self.size is not None and (self.size < 4 or self.size % 2):
            raise ValueError(f"data.size must be even, as the D-VAE's latent has half the size, and at least 4, got {self.size}")
        if self.source.startswith("cifar") and (self.size or 32, self.channels) != (32, 3):
            raise ValueError(f"CIFAR has images of 32 x 32 pixels in colour: set data.size to 32 and data.channels to 3, not {self.size}")
        if self.poison != "none" and self.perturbation is not None:
            raise ValueError("data.poison and data.perturbation both poison the training set: give one of them")
        if self.poison not in (known := ("none", "lsp", "ar", "ops", "cuda", "random")):
            raise ValueError(f"data.poison must be one of {', '.join(known)}, got {self.poison!r}; the verb poison makes the others")
        if self.poison != "none" and self.source in ("folder", "stored", "arrays"):
            what = f"data.poison {self.poison} would be put on the images in {self._root}"
            raise ValueError(f"{what}: say --data.poison none; the verb poison writes poisoned copies")
        if not 0 <= self.poison_rate <= 1:
            raise ValueError(f"data.poison_rate must lie in [0, 1], got {self.poison_rate}")
        if self.poison_choice not in ("random", "classes"):
            raise ValueError(f"data.poison_choice must be random or classes, got {self.poison_choice!r}")
        if self.test_root is not None and self.source not in ("folder", "stored", "arrays"):
            raise ValueError(f"data.source {self.source} has test images of its own: leave data.test_root out")

    @property
    def given_root(self) -> Path | None:
        """Folder that is read, or None for sources without one."""
        return None if self._root is None else self.root

    @property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return self.train_set.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        return self.train_set.image_shape

    def prepare_data(self) -> None:
        """Check that the files are there, before any work is done."""
        if self.source not in ("digits", "textures") or self.perturbation is not None:
            self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):
            return
        train, self.test_set = self._read()
        channels, height, width = train.image_shape
        if height % 2 or width % 2:
            raise ValueError(f"images of {height} x {width} pixels: the D-VAE's latent has half the size; set data.size to an even number")
        if channels != self.channels or (self.size is not None and (height, width) != (self.size, self.size)):
            advice = f"set data.channels to {channels} and data.size to {height if height == width else 'null'}"
            raise ValueError(f"the set has images of {height} x {width} pixels in {channels} channel(s): {advice}")
        self.train_set, self.is_poisoned = self._poisoned(in_memory(train))
        if self.test_set is not None:
            self.test_set = in_memory(self.test_set)

    # ---- the sources

    def _read(self) -> tuple[LabelledSet, LabelledSet | None]:
        """Read the training set as it is, and the clean test set where there is one."""
        parts: tuple[Split, Split] = ("train", "test")
        match self.source:
            case "digits":
                train, test = (colour_digits(split, self.size or 16, self.channels, self.seed) for split in parts)
                return _with_clean(train), test
            case "textures":
                lengths = (self.length, 1000)
                train, test = (textures(part, self.size or 32, count, self.channels, self.seed) for part, count in zip(parts, lengths, strict=True))
                return _with_clean(train), test
            case "cifar10" | "cifar100":
                train, test = (_cifar(self.root, 10 if self.source == "cifar10" else 100, split) for split in ("train", "test"))
                return _with_clean(train), test
            case "imagenet100":
                folders = [self.root / "train", self.root / "val"]
                wnids = _first_classes(folders[0])
                first, second = (_imagenet(folder, wnids, self.size or 224, self._mode) for folder in folders)
                return PairedSet(first, first), second
            case "folder":
                images = FolderSet.of_classes(self.root, self._mode, self.size, self.on_bad_file)
                return images, self._test_folder(images)
            case "arrays":
                array = _arrays(self.root)
                return array, self._test_folder(array)
            case _:
                return self._stored()

    @property
    def _mode(self) -> ImageMode:
        return "RGB" if self.channels == 3 else "L"

    def _test_folder(self, train: LabelledSet) -> LabelledSet | None:
        """Read the test images that the user named, and bring them to the size of the training images."""
        if self.test_root is None:
            return None
        channels, height, width = train.image_shape
        folder = Path(self.test_root).expanduser()
        test = FolderSet.of_classes(folder, "L" if channels == 1 else "RGB", height if height == width else None, self.on_bad_file)
        if test.class_names != train.class_names:
            differing = ", ".join(sorted(set(test.class_names) ^ set(train.class_names))[:8])
            raise ValueError(f"data.test_root {folder} has other classes than the training set: {differing} are in one of them only")
        if test.image_shape != train.image_shape:
            raise ValueError(f"the images in data.test_root have the shape {test.image_shape}, those of the training set {train.image_shape}")
        return test

    def _stored(self) -> tuple[LabelledSet, LabelledSet | None]:
        """Read a stored set, and beside it the clean images and the test set of the source that it was made from."""
        train, given = in_memory(read_set(self.root)), self._origin_data()
        if given is None:
            return train, self._test_folder(train)
        is_same = given.image_shape == train.image_shape and torch.equal(given.train_set.labels, train.labels)
        if is_same and (given.train_set.has_clean or read_poisoned(self.root) is not None):  # what was poisoned is clean as far as the poison goes
            train = PairedSet(train, given.train_set)
        return train, given.test_set if self.test_root is None else self._test_folder(train)

    def _origin_data(self) -> PurificationData | None:
        """Set up the source that a stored set was made from, unpoisoned; None, with a warning, where its files are gone."""
        manifest = read_manifest(self.root)
        origin = None if manifest is None else manifest.get("origin")
        if not origin:
            return None
        try:
            data = PurificationData(**(origin | {"poison": "none", "perturbation": None}))
            data.setup()
        except (FileNotFoundError, BadFileError, TypeError) as error:  # TypeError: the manifest has options that there are not
            _log.warning("%s was made from a set that cannot be read now, so clean images are not known: %s", self.root, error)
            return None
        return data

    # ---- the poison

    def _poisoned(self, train: LabelledSet) -> tuple[LabelledSet, Tensor | None]:
        """Put the poison on the training set that the options ask for, and tell which images bear it, where that is known."""
        if self.poison == "none" and self.perturbation is None:
            if self.source in CLEAN_SOURCES:
                return train, torch.zeros(len(train), dtype=torch.bool)
            return train, read_poisoned(self.root) if self.source == "stored" else None
        from projects.dvae.poisons import Pattern, choose, make_pattern

        pattern: Pattern
        if self.perturbation is not None:
            count, classes = len(train), len(train.class_names)
            pattern = read_poison(self.perturbation, count, classes, train.image_shape, train.labels, keying=self.perturbation_keying)
            _log.info("%s: %s", self.perturbation, pattern.description)
        else:
            pattern = make_pattern(self.poison, train, len(train.class_names), train.image_shape, self.seed, self.poison_radius)
        is_poisoned = choose(train.labels, self.poison_rate, self.poison_choice, self.seed)
        poisoned = PoisonedSet(train, pattern, is_poisoned)
        return (poisoned.load() if isinstance(train, ImageSet) else poisoned), is_poisoned

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader; its batches leave `clean` out, which no training may see."""
        return self.training_loader(BareSet(self.train_set), collate=identity)

    def ordered_loader(self) -> DataLoader:
        """Return a loader of every training image once, in order, dealt over the processes without padding."""
        return self.evaluation_loader(self.train_set, collate=identity)

    def test_dataloader(self) -> DataLoader:
        """Return `ordered_loader`: a purifier is judged on the very set that it is trained on and purifies; a test set's labels must not enter it."""
        return self.ordered_loader()

    # ---- what the set is

    def options(self) -> dict[str, Any]:
        """Return the arguments that this data module was made with, by name."""
        known = inspect.signature(PurificationData.__init__).parameters.keys() - {"self"}
        return {name: self.hparams[name] for name in sorted(known)}  # the command line adds names of its own to hparams

    def origin(self) -> dict[str, Any]:
        """Return the options that the set is made from, for the manifest of what is made of it; a stored set's are those of its own origin."""
        if self.source == "stored":
            manifest = read_manifest(self.root)
            if manifest is not None and manifest.get("origin"):
                return manifest["origin"]
        options = {name: value for name, value in self.options().items() if name not in ("batch_size", "num_workers")}
        for name in ("root", "test_root", "perturbation"):
            if options[name] is not None:
                options[name] = str(Path(options[name]).expanduser().resolve())
        return options

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for the training set: pixels of images in memory, names and sizes of files; and its labels and poison."""
        poison = (self.poison, self.poison_rate, self.poison_choice, self.poison_radius, self.perturbation, self.seed)
        described = hashlib.sha256(repr((self.size, self.channels, poison)).encode())
        described.update(self.train_set.labels.numpy().tobytes())
        inner: Any = self.train_set
        while isinstance(inner, PoisonedSet | PairedSet):
            inner = inner.base if isinstance(inner, PoisonedSet) else inner.set
        if isinstance(inner, FolderSet):
            described.update("\n".join(f"{name} {path.stat().st_size}" for name, path in zip(inner.names or [], inner.paths, strict=True)).encode())
        else:
            for part in inner.images.split(1024):
                described.update(part.contiguous().numpy().tobytes())
        return described.hexdigest()[:16]


def _with_clean(images: ImageSet) -> ImageSet:
    """Say that a set is its own clean set."""
    return ImageSet(images.images, images.labels, images.class_names, images.names, images.images)


def _cifar(root: Path, classes: Literal[10, 100], split: str) -> ImageSet:
    images = CifarDataset(root, classes, (split,))
    return ImageSet(images.images, images.labels, images.class_names)


def _first_classes(folder: Path, count: int = 100) -> list[str]:
    """Return the first classes of ImageNet in a folder, by their sorted identifiers."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"n\d{8}", path.name)) if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no classes of ImageNet in {folder}: expected {folder}/n01440764/*.JPEG and so on; give their parent as data.root")
    return found[:count]


def _imagenet(folder: Path, wnids: list[str], size: int, mode: ImageMode) -> FolderSet:
    """Read some classes, each image resized to 8/7 of `size` at its shorter side (256 for 224) and cut to its centre."""
    files = [ImageFolderDataset(folder / wnid).paths for wnid in wnids]
    labels = torch.tensor([label for label, paths in enumerate(files) for _ in paths])
    crop = v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)])
    return FolderSet(folder, [path for paths in files for path in paths], labels, wnids, mode, transform=crop)


def _arrays(path: Path) -> ImageSet:
    """Read images and labels from .npy files or an .npz file; classes are named by their numbers."""
    if path.suffix == ".npz":
        archive = NpzDataset(path)
        images, labels = archive.images, archive.labels.numpy()
    else:
        images, labels = read_arrays(path)
    if labels.min() < 0:
        raise BadFileError(f"{path} has images without labels, or labels below 0: store whole numbers from 0 on beside the images")
    if images.dtype == np.uint8 and path.suffix != ".npz":
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    else:
        pixels = torch.cat([as_pixels(images[first : first + 256]) for first in range(0, len(images), 256)])
    return ImageSet(pixels, torch.from_numpy(np.array(labels, np.int64)), [str(number) for number in range(int(labels.max()) + 1)])
