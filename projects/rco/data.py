"""What teachers and students learn: small worlds, CIFAR, ImageNet, own folders and vectors, and faces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from projects.rco.layouts import class_names, imagenet_classes, read_folder, read_imagenet, read_vectors
from projects.rco.sets import Batch, Files, Part, Samples, divide, held_out_count, labels_of, size_of, whole
from projects.rco.worlds import COLUMNS, noisy_digits, parity, parity_names, parity_tiles
from shared.data.base import DataModule
from shared.data.cifar import CifarDataset
from shared.data.crops import crop_and_flip, draw_shifts
from shared.data.folders import OnBadFile
from shared.data.memory import ordered_loader, to_unit
from shared.data.memory import training_loader as memory_loader
from shared.distributed import EpochKeys, own_rows, world_size
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.rco.faces import FaceProtocol

Which = Literal["train", "held", "judged", "test"]
"""Sets: those of training, those held out of it, the first of these that the greedy search judges by, and those of testing."""

HELD_OUT = 2000
"""Further samples of the parity worlds, as many as the greedy search uses at most."""

_PARITY = ("parity", "tiles")
_FACES = ("identities", "drawn_faces")
_READ = ("imagenet", "folder", "identities")  # read from files batch by batch; everything else lies in memory
_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32, "imagenet": 224, "folder": 64, "identities": 112, "drawn_faces": 32}
_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
_PADDING = {"cifar10": 4, "cifar100": 4, "identities": 0, "drawn_faces": 0}  # pixels around whole batches that are cropped and mirrored
_CROPPED = ("imagenet", "folder")  # random resized crops as files are read
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NORMALISATION = {
    "tiles": ((0.25,), (0.25,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": _IMAGENET,
    "folder": _IMAGENET,
    "identities": ((0.5,) * 3, (0.5,) * 3),
    "drawn_faces": ((0.5,) * 3, (0.5,) * 3),
}


class DistillationData(DataModule):
    """Labelled vectors or images: a training set, perhaps samples held out of it, and a test set.

    Batches are {"input": (B, n) or (B, C, H, W) float32, "label": (B,), "index": (B,) places in their set}; images stay bytes until on the device.

    Args:
        source: an offline world, or a layout of files.
        root: folder of the files; with vectors the file.
        batch_size: samples of one training step over all processes together.
        num_workers: processes that read files for each training process; what lies in memory needs none.
        seed: seed of every random choice in the data.
        size: height and width of images in pixels; null is 8 for digits, 64 for folder, 112 for identities, 32 for drawn_faces, 224 for imagenet.
        held_out: training samples that are never learnt, for validation and for the choice of anchors: a number, or a part below 1, of each class in
            proportion; null is 2000 further ones for parity and tiles, none for others.
        augment: random crops and mirroring of training images (faces: mirroring); null does so for cifar10, cifar100 and imagenet.
        on_bad_file: refuse stops at images that cannot be read, skip leaves them out and says how many; for folder and identities.
        bits: with parity and tiles, coordinates of a vector; tiles need a multiple of 8.
        secret: with parity and tiles, hidden coordinates whose product is the parity.
        easy: with parity and tiles, further coordinates whose signs are part of the class, of which there are 2^(1 + easy).
        length: with parity and tiles, number of training samples.
        test_length: with parity and tiles, number of test samples.
        side: with tiles, height and width of a tile in pixels.
        noise: with digits, standard deviation of the noise added, in parts of the brightest level.
        people: with drawn_faces, number of people.
        shots: with drawn_faces, pictures of each of them.

    Attributes:
        train_set: samples that are learnt, unaugmented, after `setup`.
        held_set: samples held out of training, or None.
        test_set: the test samples.
        class_names: name of each label, after `setup`.
        is_augmented: whether training batches differ from epoch to epoch.
        protocol: how embeddings of the test set are judged, with faces; None for others.

    Raises:
        ValueError: if options do not fit.
    """

    sources: ClassVar[dict[str, str]] = {
        "parity": "sparse parity of sign vectors, drawn",
        "tiles": "the same, painted as grids of rings and crosses",
        "digits": "scikit-learn's 1797 handwritten digits",
        "drawn_faces": "painted people",
        "cifar10": "cifar-10-batches-py/ in root",
        "cifar100": "cifar-100-python/ in root",
        "imagenet": "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG in root, or val/*.JPEG and ILSVRC2012_devkit_t12/data/",
        "folder": "train/<class>/* and test/<class>/* in root",
        "vectors": "an .npz file with x_train (N, n), y_train (N,), x_test and y_test",
        "identities": "train/<identity>/*, with lfw/ and pairs.txt or probes/ and distractors/, in root",
    }

    train_set: Dataset
    held_set: Dataset | None
    test_set: Dataset
    class_names: list[str]
    protocol: FaceProtocol | None = None

    def __init__(
        self,
        source: str = "parity",
        root: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = None,
        held_out: int | float | None = None,
        augment: bool | None = None,
        on_bad_file: OnBadFile = "refuse",
        bits: int = 40,
        secret: int = 5,
        easy: int = 0,
        length: int = 20000,
        test_length: int = 4000,
        side: int = 4,
        noise: float = 0.0,
        people: int = 64,
        shots: int = 16,
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self.size = size or _SIZES.get(source, 0)
        self.held_out = held_out if held_out is not None else HELD_OUT if source in _PARITY else 0
        self.is_augmented = augment if augment is not None else source in ("cifar10", "cifar100", "imagenet")
        self._check()

    def _check(self) -> None:
        options, source = self.options, self.source
        if source in ("cifar10", "cifar100") and self.size != 32:
            raise ValueError(f"CIFAR has images of 32 x 32 pixels: leave data.size out, not {self.size}")
        if options.size is not None and options.size < 4:
            raise ValueError(f"data.size must be at least 4 pixels, got {options.size}")
        if self.is_augmented and source not in (*_PADDING, *_CROPPED):
            raise ValueError(f"data.augment would change the classes of {source}: leave it out, or take {', '.join((*_PADDING, *_CROPPED))}")
        if self.held_out < 0 or (self.held_out >= 1 and self.held_out != int(self.held_out)):
            raise ValueError(f"data.held_out must be a number of samples, or a part of them in [0, 1), got {self.held_out}")
        if options.noise < 0:
            raise ValueError(f"data.noise must be 0 or more, got {options.noise}")
        if min(options.length, options.test_length, options.people, options.shots) < 1:
            raise ValueError("data.length, data.test_length, data.people and data.shots must be at least 1")
        if source in _PARITY:
            self._check_parity()

    def _check_parity(self) -> None:
        options = self.options
        if options.secret < 1 or options.easy < 0 or options.secret + options.easy > options.bits:
            given = f"{options.secret} and {options.easy} of {options.bits}"
            raise ValueError(f"data.secret is at least 1, data.easy at least 0, and together at most data.bits: got {given}")
        if self.source == "tiles" and (options.bits % COLUMNS or options.side < 4):
            given = f"{options.bits} and {options.side}"
            raise ValueError(f"tiles need data.bits in rows of {COLUMNS} and data.side of at least 4 pixels, got {given}")

    # ---- what networks are made for

    @property
    def shape(self) -> list[int]:
        """Shape of an input: [n] or [C, H, W]."""
        options = self.options
        match self.source:
            case "parity":
                return [options.bits]
            case "tiles":
                return [1, options.bits // COLUMNS * options.side, COLUMNS * options.side]
            case "vectors":
                self.setup()
                return list(self.test_set[0]["input"].shape)
        return [1 if self.source == "digits" else 3, self.size, self.size]

    @property
    def classes(self) -> int:
        """Number of classes, counted without opening images where that can be."""
        if self.source in _PARITY:
            return int(2 ** (1 + self.options.easy))
        if self.source in _CLASSES:
            return _CLASSES[self.source]
        if self.source == "imagenet":
            return len(imagenet_classes(self.root))
        if self.source == "folder" and (names := class_names(self.root / "train")):
            return len(names)
        if self.source == "drawn_faces":
            return int(self.options.people)
        if self.source == "identities":
            from projects.rco.faces import training_people

            return len(training_people(self.root))
        self.setup()
        return len(self.class_names)

    @property
    def task(self) -> dict[str, Any]:
        """What a teacher of the same task has learnt: the source, and of a drawn one what it is drawn from."""
        names = {"parity": ("seed", "bits", "secret", "easy"), "tiles": ("seed", "bits", "secret", "easy", "side"), "drawn_faces": ("seed", "people")}
        return {"source": self.source} | {name: self.options[name] for name in names.get(self.source, ())}

    @property
    def division(self) -> dict[str, Any] | None:
        """What decides which training samples are held out; None where further ones are drawn."""
        return None if self.source in _PARITY else {"held_out": self.held_out, "seed": self.seed}

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation that images in [0, 1] are normalised by, one a channel; None leaves inputs as they are."""
        return _NORMALISATION.get(self.source)

    def normalise(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) images in [0, 1] to what networks take; other inputs stay as they are."""
        if self.normalisation is None:
            return images
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in self.normalisation)
        return (images - mean) / std

    # ---- the sets

    def prepare_data(self) -> None:
        """Check that files are there and go together, before any work is done."""
        if self.source not in (*_PARITY, "digits", "drawn_faces"):
            self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test_set"):
            return
        train, held, test = self._sets()
        count = 0 if held is not None else held_out_count(self.held_out, size_of(train))
        self._learnt: Dataset = train.recropped(self.seed) if self.is_augmented and isinstance(train, Files) else train
        self.train_set, self.held_set = train, held
        if count:
            kept, chosen = divide(labels_of(train), count, self.seed)
            self._learnt, self.train_set, self.held_set = Part(self._learnt, kept), Part(train, kept), Part(train, chosen)
        self.test_set = test

    def _sets(self) -> tuple[Dataset, Dataset | None, Dataset]:
        """Return the training set, further samples of its distribution if they can be drawn, and the test set."""
        match self.source:
            case "parity" | "tiles":
                return self._parity()
            case "digits":
                self.class_names = [str(number) for number in range(10)]
                train, test = (noisy_digits(split, self.size, self.options.noise, self.seed) for split in ("train", "test"))
                return train, None, test
            case "cifar10" | "cifar100":
                return self._cifar()
            case "vectors":
                vectors = read_vectors(self.root)
                self.class_names = [str(number) for number in range(int(vectors[0].labels.max()) + 1)]
                return vectors[0], None, vectors[1]
            case "imagenet" | "folder":
                listings = read_imagenet(self.root) if self.source == "imagenet" else read_folder(self.root, self.options.on_bad_file)
                self.class_names = listings[0].class_names
                files = [Files(listing.paths, listing.labels, self.size, self.source == "imagenet") for listing in listings]
                return files[0], None, files[1]
        return self._faces()

    def _parity(self) -> tuple[Dataset, Dataset | None, Dataset]:
        options = self.options
        self.class_names = parity_names(options.easy)
        world = (self.seed, options.bits, options.secret, options.easy)

        def drawn(split: Literal["train", "val", "test"], length: int) -> Samples:
            return parity(split, length, *world) if self.source == "parity" else parity_tiles(split, length, *world, options.side)

        count = held_out_count(self.held_out, options.length) if self.held_out < 1 else int(self.held_out)
        return drawn("train", options.length), drawn("val", count) if count else None, drawn("test", options.test_length)

    def _cifar(self) -> tuple[Dataset, None, Dataset]:
        classes: Literal[10, 100] = 10 if self.source == "cifar10" else 100
        train, test = (CifarDataset(self.root, classes, (split,)) for split in ("train", "test"))
        self.class_names = list(train.class_names)
        return Samples(train.images, train.labels), None, Samples(test.images, test.labels)

    def _faces(self) -> tuple[Dataset, None, Dataset]:
        from projects.rco.faces import drawn_faces, read_faces

        if self.source == "identities":
            sets = read_faces(self.root, self.size, self.options.on_bad_file)
        else:
            sets = drawn_faces(self.seed, self.size, self.options.people, self.options.shots)
        self.class_names, self.protocol = sets.class_names, sets.protocol
        return sets.train, None, sets.test

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader, whose images are bytes that `finish` has still to work on."""
        if self.source not in _READ:
            return memory_loader(self._learnt, self.batch_size, self.seed)
        keys = EpochKeys(self._learnt, self.seed) if self.is_augmented and self.source in _CROPPED else None  # type: ignore[arg-type]
        return self.training_loader(self._learnt, whole, keys)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return a loader of the samples held out of training, or an empty list if there are none."""
        return [] if self.held_set is None else self.ordered("held")

    def test_dataloader(self) -> DataLoader:
        return self.ordered("test")

    def ordered(self, which: Which) -> DataLoader:
        """Return a loader that gives every sample of a set once, in order and unaugmented, dealt over the processes.

        Whoever walks it without the trainer passes each batch, once it is on the device, through `finish(batch, augment=False)`.

        Raises:
            ValueError: if no samples are held out.
        """
        held = self.held_set
        judged = held if held is None or size_of(held) <= HELD_OUT else Part(held, torch.arange(HELD_OUT))
        dataset = {"train": self.train_set, "held": held, "judged": judged, "test": self.test_set}[which]
        if dataset is None:
            raise ValueError(f"no samples of {self.source} are held out of training: set data.held_out, such as 0.1")
        return self.evaluation_loader(dataset, whole) if self.source in _READ else ordered_loader(dataset)

    # ---- batches on the device

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish the batches of loaders that the trainer runs; those of training are augmented."""
        return self.finish(batch, augment=self.trainer is not None and self.trainer.training)

    def finish(self, batch: Batch, augment: bool) -> Batch:
        """Bring a batch of a loader to what networks take.

        Args:
            batch: from a loader of this object, on any device.
            augment: crops and mirrors images where `is_augmented`, by random numbers that are a function of the seed and the trainer's step, the same
                for any number of processes; files were cropped as they were read.

        Returns:
            The batch with its "input" as float32, normalised.
        """
        inputs = batch["input"]
        if augment and self.is_augmented and self.source in _PADDING:
            shifts = self.shifts(len(inputs) * world_size(), *self._moment())
            inputs = crop_and_flip(inputs, own_rows(shifts).to(inputs.device), _PADDING[self.source])
        if inputs.dtype == torch.uint8:
            inputs = to_unit(inputs)
        return batch | {"input": self.normalise(inputs)}

    def _moment(self) -> tuple[int, int]:
        """Return the trainer's step, and which of the batches is next whose gradients are accumulated for it."""
        trainer = cast(Trainer, self.trainer)
        several = trainer.accumulate_grad_batches
        return trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.ready % several if several > 1 else 0

    def shifts(self, count: int, step: int, part: int = 0) -> Tensor:
        """Draw how the images of a step's global batch are moved and mirrored, (count, 3), see `shared.data.crops.draw_shifts`."""
        return draw_shifts(count, _PADDING[self.source], generator(self.seed, "augment", step, part))
