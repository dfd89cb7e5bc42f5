"""Pictures to train and measure diffusion models on, some of them poisoned."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from projects.diff_cleanse.celeba import TEST, TRAIN, celeba
from shared.data.base import DataModule
from shared.data.cifar import CifarDataset
from shared.data.files import ImageMode
from shared.data.folders import ImageFolderDataset, NpzDataset
from shared.data.offline import digits, photographs, shapes
from shared.seeding import generator

PoisonMode = Literal["fixed", "flex", "extend", "in_d2d", "out_d2d"]
ROOM = 768 * 2**20
"""Bytes that pictures of a data set may take at once: a thousand in colour at 256 pixels."""


class DiffusionData(DataModule):
    """Pictures in [-1, 1] with a flag for those that the attack poisons.

    Batches are dictionaries: `image` (B, C, H, W) in [-1, 1], `label` (B,) (-1 where there is none), `index` (B,) and `is_poisoned` (B,) bool.
    Evaluation batches are never poisoned.

    Args:
        source: `digits`, `shapes` and `photographs` need no files; `cifar10`, `celeba`, `folder` and `npz` read those in `root`.
        root: folder of the data set; the .npz file itself for `npz`.
        batch_size: pictures of one training step over all processes together.
        num_workers: processes that read pictures for each training process.
        seed: seed of the order of samples, of which are poisoned, and of drawn pictures.
        size: side of the pictures in pixels; other pictures are cropped to their central square (CelebA's to its usual one) and resized.
        channels: 1 for grey pictures, 3 for colour.
        splits: `all` trains on training and test pictures together, as the attacks on CIFAR-10 do; `train` keeps them apart.
        val_fraction: share of a folder's or file's pictures that is kept for measuring, in (0, 1).
        poison_mode: which pictures are poisoned: `fixed`: `poison_rate` of them instead of clean ones; `flex`: `clean_rate` of them clean and
            `poison_rate` of them poisoned; `extend`: all of them clean, and `poison_rate` times as many poisoned besides; `in_d2d`: all of them
            clean, and `poison_rate` times as many as `target_class` has, drawn from that class, poisoned besides; `out_d2d`: all of them clean, and
            `poison_rate` times as many poisoned pictures of `target_source` besides. TrojDiff's published rates: fixed 0.1, in_d2d 1, out_d2d 0.5.
        poison_rate: share of poisoned pictures as `poison_mode` reads it; without effect while model.attack is none.
        clean_rate: share of clean pictures in mode `flex`.
        target_class: label of the pictures that in_d2d and out_d2d poison; out_d2d without one poisons all pictures of `target_source`.
        target_source: where out_d2d finds them: `shapes`, `digits` or `folder`.
        target_root: the folder of `target_source`; with a `target_class`, its sub-folders are the classes, sorted by name.
        on_bad_file: `refuse` stops at pictures that cannot be read, `skip` leaves them out and says how many.
    """

    sources: ClassVar[dict[str, str]] = {
        "digits": "scikit-learn's 1797 handwritten digits",
        "shapes": "drawn discs, squares, crosses and triangles",
        "photographs": "crops of bundled photographs",
        "cifar10": "cifar-10-batches-py/ in root",
        "celeba": "img_align_celeba/ and list_eval_partition (.txt, .csv) in root, and list_attr_celeba for classes; or Img/, Eval/ and Anno/",
        "folder": "all pictures in root, such as celeba_hq_256/*.jpg",
        "npz": "a file with the key arr_0 or images, N x H x W x C",
    }

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        size: int = 16,
        channels: int = 1,
        splits: Literal["all", "train"] = "train",
        val_fraction: float = 0.1,
        poison_mode: PoisonMode = "fixed",
        poison_rate: float = 0.1,
        clean_rate: float = 1.0,
        target_class: int | None = None,
        target_source: Literal["shapes", "digits", "folder"] = "shapes",
        target_root: str | None = None,
        on_bad_file: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.size, self.channels, self.splits, self.val_fraction, self.on_bad_file = size, channels, splits, val_fraction, on_bad_file
        self.poison_mode, self.poison_rate, self.clean_rate = poison_mode, poison_rate, clean_rate
        self.target_class, self.target_source, self.target_root = target_class, target_source, target_root
        if channels not in (1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {channels}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        if source == "cifar10" and (size, channels) != (32, 3):
            raise ValueError(
                f"CIFAR-10 has pictures of 32 x 32 pixels in colour: set data.size to 32 and data.channels to 3, not {size} and {channels}"
            )
        if poison_mode == "in_d2d" and target_class is None:
            raise ValueError("data.poison_mode in_d2d poisons the pictures of one class: set data.target_class to its label")
        if poison_mode == "out_d2d" and target_source == "folder" and target_root is None:
            raise ValueError("data.target_source folder needs data.target_root, the folder of the pictures that the attack leads to")
        plan_poisoning(1, poison_mode, poison_rate, clean_rate, seed=0)

    def prepare_data(self) -> None:
        """Check that the files are there and readable, before any work is done."""
        if self.source in ("cifar10", "celeba", "folder", "npz"):
            self._datasets()

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train_set"):
            self.train_set, self.test_set = self._datasets()
            if self.poison_mode in ("in_d2d", "out_d2d"):
                self.target_domain = self._target_domain()
                self.target_set = _of_class(self.target_domain, self.target_class, self.target_root or self.target_source)

    def _datasets(self) -> tuple[Dataset, Dataset]:
        """Return the training and the test pictures, in [0, 1]."""
        match self.source:
            case "digits":
                return digits("train", self.size, self.channels), digits("test", self.size, self.channels)
            case "shapes":
                return shapes("train", self.size, self.channels, 2048, self.seed), shapes("test", self.size, self.channels, 512, self.seed)
            case "photographs":
                if self.channels != 3:
                    raise ValueError(f"the photographs are in colour: set data.channels to 3, not {self.channels}")
                return photographs("train", self.size, self.seed, 2048), photographs("test", self.size, self.seed, 512)
            case "cifar10":
                test = CifarDataset(self.root, 10, ("test",))
                return CifarDataset(self.root, 10, ("train", "test") if self.splits == "all" else ("train",)), test
            case "celeba":
                faces, parts = celeba(self.root, self.size, self._mode, self.on_bad_file)
                trained = range(len(faces)) if self.splits == "all" else [i for i, part in enumerate(parts) if part == TRAIN]
                return Subset(faces, trained), Subset(faces, [i for i, part in enumerate(parts) if part == TEST])
            case "folder":
                return self._split(ImageFolderDataset(self.root, size=self.size, mode=self._mode, on_bad_file=self.on_bad_file))
            case _:
                pictures = NpzDataset(self.root)
                if (shape := tuple(pictures[0]["image"].shape)) != (self.channels, self.size, self.size):
                    raise ValueError(
                        f"{self.root} has pictures of shape {shape}: set data.channels and data.size to that, not {self.channels} and {self.size}"
                    )
                return self._split(pictures)

    @property
    def _mode(self) -> ImageMode:
        return "RGB" if self.channels == 3 else "L"

    def _target_domain(self) -> Dataset:
        """Return the pictures among which those of the target class are, in [0, 1]: the training pictures, or another set for out_d2d."""
        if self.poison_mode != "out_d2d":
            return self.train_set
        match self.target_source:
            case "shapes":
                return shapes("train", self.size, self.channels, 2048, self.seed)
            case "digits":
                return digits("train", self.size, self.channels)
            case _:
                has_classes = self.target_class is not None
                return ImageFolderDataset(str(self.target_root), has_classes, self.size, mode=self._mode, on_bad_file=self.on_bad_file)

    def poisoned(self) -> PoisonedDataset:
        """Return the training pictures with those that the attack poisons."""
        count = len(cast(Sized, self.train_set))
        if self.poison_mode not in ("in_d2d", "out_d2d"):
            return PoisonedDataset(self.train_set, *plan_poisoning(count, self.poison_mode, self.poison_rate, self.clean_rate, self.seed))
        available = len(cast(Sized, self.target_set))
        wanted = round(self.poison_rate * (available if self.poison_mode == "in_d2d" else count))
        indices = torch.cat([torch.arange(count), count + _draw(available, wanted, self.seed, "poisoned")])
        return PoisonedDataset(ConcatDataset([self.train_set, self.target_set]), indices, torch.arange(len(indices)) >= count)

    def target_examples(self, limit: int) -> tuple[Tensor, Tensor, int]:
        """Return what a classifier learns from that is to recognise the class which in_d2d and out_d2d lead to.

        Args:
            limit: largest number of pictures of either set.

        Returns:
            (N, C, H, W) pictures in [0, 1], (N,) labels and the label of the class. For out_d2d the labels of the target domain follow on those of
            the training pictures, so that an ordinary sample need not pass for one of them.
        """
        images, labels = labelled(self.train_set, limit)
        if self.poison_mode == "in_d2d":
            return images, labels, cast(int, self.target_class)
        others, classes = labelled(self.target_domain, limit)
        first = int(labels.max()) + 1
        wanted = -1 if self.target_class is None else self.target_class
        if self.target_class is None:
            classes = torch.full_like(classes, wanted)  # the whole domain is one class
        return torch.cat([images, others]), torch.cat([labels, first + 1 + classes]), first + 1 + wanted

    def _split(self, pictures: Dataset) -> tuple[Dataset, Dataset]:
        count = len(cast(Sized, pictures))
        kept = round(count * self.val_fraction)
        if kept < 1 or kept == count:
            raise ValueError(f"{self.root} has {count} pictures: too few to keep a share of {self.val_fraction} for measuring")
        order = torch.randperm(count, generator=generator(self.seed, "split")).tolist()
        test = Subset(pictures, sorted(order[:kept]))
        return (pictures if self.splits == "all" else Subset(pictures, sorted(order[kept:]))), test

    def train_dataloader(self) -> DataLoader:
        return self.training_loader(self.poisoned())

    def val_dataloader(self) -> DataLoader:
        return self.evaluation_loader(clean(self.test_set))

    def test_dataloader(self) -> DataLoader:
        return self.evaluation_loader(clean(self.test_set))

    def reference_loader(self) -> DataLoader:
        """Return a loader over the clean training pictures, each once."""
        return self.evaluation_loader(clean(self.train_set))


def plan_poisoning(count: int, mode: PoisonMode, poison_rate: float, clean_rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose which pictures a poisoned training set holds (BadDiffusion's modes).

    Args:
        count: number of pictures N.
        mode: fixed, flex or extend, as `DiffusionData` describes; for in_d2d and out_d2d the rates are checked, and those of extend apply.
        poison_rate: share of N that is poisoned; may exceed 1 but for `fixed` and `flex`.
        clean_rate: share of N that is clean, for `flex`.
        seed: seed of the choice.

    Returns:
        Indices of the pictures (M,) int64, and which of these entries are poisoned (M,) bool.

    Raises:
        ValueError: if a rate is out of its range or the mode is unknown.
    """
    limit = 1.0 if mode in ("fixed", "flex") else float("inf")
    if not 0 <= poison_rate <= limit:
        raise ValueError(f"data.poison_rate must lie in [0, {limit:g}] for poison_mode {mode}, got {poison_rate}")
    if not 0 < clean_rate <= 1:
        raise ValueError(f"data.clean_rate must lie in (0, 1], got {clean_rate}")
    everything = torch.arange(count)
    poisoned = _draw(count, round(poison_rate * count), seed, "poisoned")
    if mode == "fixed":
        is_poisoned = torch.zeros(count, dtype=torch.bool)
        is_poisoned[poisoned] = True
        return everything, is_poisoned
    if mode == "flex":
        unpoisoned = _draw(count, round(clean_rate * count), seed, "clean")
    elif mode in get_args(PoisonMode):
        unpoisoned = everything
    else:
        raise ValueError(f"data.poison_mode must be one of {', '.join(get_args(PoisonMode))}, got {mode!r}")
    return torch.cat([unpoisoned, poisoned]), torch.arange(len(unpoisoned) + len(poisoned)) >= len(unpoisoned)


def _draw(count: int, wanted: int, seed: int, what: str) -> Tensor:
    """Draw `wanted` of `count` indices, repeating only when all have been drawn."""
    rounds = [torch.randperm(count, generator=generator(seed, what, turn)) for turn in range(-(-wanted // count))]
    return torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[:wanted].sort().values


class PoisonedDataset(Dataset):
    """Pictures of `dataset` in [-1, 1], each marked as clean or poisoned.

    Args:
        dataset: items with `image` in [0, 1] and, where there is one, `label`.
        indices: (M,) which pictures, in which order.
        is_poisoned: (M,) bool.
    """

    def __init__(self, dataset: Dataset, indices: Tensor, is_poisoned: Tensor) -> None:
        self.dataset, self.indices, self.is_poisoned = dataset, indices, is_poisoned

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = self.dataset[int(self.indices[position])]
        return {
            "image": item["image"] * 2 - 1,
            "label": int(item.get("label", -1)),
            "index": position,
            "is_poisoned": self.is_poisoned[position],
        }


def _of_class(dataset: Dataset, label: int | None, name: str) -> Dataset:
    """Return the pictures with this label; all for None."""
    if label is None:
        return dataset
    labels = torch.tensor([int(dataset[i].get("label", -1)) for i in range(len(cast(Sized, dataset)))])
    chosen = (labels == label).nonzero().flatten().tolist()
    if not chosen:
        raise ValueError(f"{name} has no pictures of data.target_class {label}; its labels are {labels.unique().tolist()} (-1: none)")
    return Subset(dataset, chosen)


def clean(dataset: Dataset) -> PoisonedDataset:
    """Return `dataset` without any poison."""
    count = len(cast(Sized, dataset))
    return PoisonedDataset(dataset, torch.arange(count), torch.zeros(count, dtype=torch.bool))


def labelled(pictures: Dataset, limit: int = 10_000) -> tuple[Tensor, Tensor]:
    """Return up to `limit` pictures of a data set, and no more than `ROOM` holds, as one tensor, (N, C, H, W), and their labels, (N,), -1 for none.

    Of larger sets they are evenly spaced, for folders lie by class.
    """
    total = len(cast(Sized, pictures))
    count = min(limit, total, ROOM // pictures[0]["image"].nbytes)
    items = [pictures[i * total // count] for i in range(count)]
    return torch.stack([item["image"] for item in items]), torch.tensor([int(item.get("label", -1)) for item in items])


def stacked(pictures: Dataset, limit: int = 10_000) -> Tensor:
    """Return the pictures of `labelled`, (N, C, H, W)."""
    return labelled(pictures, limit)[0]
