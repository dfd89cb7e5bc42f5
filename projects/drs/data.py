"""Labelled images to train on and to certify."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from shared.data.base import DataModule
from shared.data.cifar import CifarDataset
from shared.data.crops import centre_crop, on_grid, random_crops
from shared.data.files import ImageMode
from shared.data.folders import ImageFolderDataset, OnBadFile
from shared.data.offline import Split, TensorImages, digits, shapes
from shared.distributed import UnpaddedSampler


class CertificationData(DataModule):
    """Images in [0, 1] with labels; batches are `image` (B, C, H, W), `label` (B,) and `index` (B,), the index in the whole split.

    Args:
        source: `digits` and `shapes` need no files; `cifar10`, `imagenet` and `folder` read those in `root`.
        root: folder of the data set.
        batch_size: images of one training step over all processes together.
        num_workers: processes that read images for each training process.
        seed: seed of the order of samples and of drawn images.
        size: side of the images in pixels; ImageNet's are resized to 8/7 of it and cut to their centre, a folder's central squares resized to it.
        channels: 1 for grey images, 3 for colour.
        split: part that is certified, `test` or `train`.
        skip: certify every so manyth image of the split.
        start: index of the first image that may be certified.
        stop: index before which to stop; None goes to the end.
        limit: most images that are certified.
        on_bad_file: `refuse` stops at images that cannot be read, `skip` leaves them out and says how many; for `folder`.
    """

    sources: ClassVar[dict[str, str]] = {
        "digits": "scikit-learn's 1797 handwritten digits",
        "shapes": "drawn discs, squares, crosses and triangles",
        "cifar10": "cifar-10-batches-py/ in root",
        "imagenet": "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG in root",
        "folder": "train/<class>/* and test/<class>/* in root",
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
        split: str = "test",
        skip: int = 1,
        start: int = 0,
        stop: int | None = None,
        limit: int | None = None,
        on_bad_file: OnBadFile = "refuse",
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.size, self.channels, self.split, self.on_bad_file = size, channels, split, on_bad_file
        self.skip, self.start, self.stop, self.limit = skip, start, stop, limit
        if channels not in (1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {channels}")
        if split not in ("train", "test"):
            raise ValueError(f"data.split must be train or test, got {split!r}")
        if skip < 1 or start < 0 or (limit is not None and limit < 1):
            raise ValueError(f"data.skip and data.limit must be at least 1 and data.start at least 0, got {skip}, {limit} and {start}")
        if source == "cifar10" and (size, channels) != (32, 3):
            raise ValueError(
                f"CIFAR-10 has images of 32 x 32 pixels in colour: set data.size to 32 and data.channels to 3, not {size} and {channels}"
            )
        if source == "imagenet" and channels != 3:
            raise ValueError("ImageNet is in colour: set data.channels to 3")

    def prepare_data(self) -> None:
        """Check that the files are there, before any work is done."""
        if self.source not in ("digits", "shapes"):
            self.setup()

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train_set"):
            self.train_set, self.test_set, self.class_names = self._datasets()

    def _datasets(self) -> tuple[Dataset, Dataset, list[str]]:
        train: Any
        test: Dataset
        parts: tuple[Split, Split] = ("train", "test")
        match self.source:
            case "digits":
                train, test = (_of_8_bits(digits(split, self.size, self.channels)) for split in parts)
            case "shapes":
                train = _of_8_bits(shapes("train", self.size, self.channels, 2048, self.seed))
                test = _of_8_bits(shapes("test", self.size, self.channels, 512, self.seed))
            case "cifar10":
                train, test = CifarDataset(self.root, 10, ("train",)), CifarDataset(self.root, 10, ("test",))
            case _:
                folders = [self.root / "train", self.root / ("val" if self.source == "imagenet" else "test")]
                return self._folders(*folders)
        return train, test, list(train.class_names)

    def _folders(self, *folders: Path) -> tuple[Dataset, Dataset, list[str]]:
        mode: ImageMode = "RGB" if self.channels == 3 else "L"
        is_imagenet = self.source == "imagenet"
        options: dict[str, Any] = {"mode": mode} if is_imagenet else {"mode": mode, "size": self.size, "on_bad_file": self.on_bad_file}
        train, test = (ImageFolderDataset(folder, has_classes=True, **options) for folder in folders)
        if train.class_names != test.class_names:
            differing = sorted(set(train.class_names) ^ set(test.class_names))
            raise ValueError(f"{folders[0]} and {folders[1]} have different classes: {', '.join(differing[:8])} are in one of them only")
        if is_imagenet:
            return Transformed(train, random_crops(self.size)), Transformed(test, centre_crop(self.size)), train.class_names
        return Transformed(train, on_grid), Transformed(test, on_grid), train.class_names

    def train_dataloader(self) -> DataLoader:
        return self.training_loader(self.train_set)

    def val_dataloader(self) -> DataLoader:
        return self.evaluation_loader(self.test_set)

    def test_dataloader(self) -> DataLoader:
        return self.evaluation_loader(self.test_set)

    def certified_set(self) -> Dataset:
        """Return the images to certify; their `index` is that in the whole split.

        Raises:
            ValueError: if skip, start and stop leave none.
        """
        images = self.test_set if self.split == "test" else self._training_images()
        count = len(cast(Sized, images))
        end = count if self.stop is None else min(count, self.stop)
        chosen = [number for number in range(self.start, end) if number % self.skip == 0][: self.limit]
        if not chosen:
            raise ValueError(f"data.start {self.start}, data.stop {self.stop} and data.skip {self.skip} leave none of {count} images to certify")
        return Subset(images, chosen)

    def _training_images(self) -> Dataset:
        """Return the training images as they are, without random crops."""
        if self.source == "imagenet" and isinstance(self.train_set, Transformed):
            return Transformed(self.train_set.dataset, centre_crop(self.size))
        return self.train_set

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for the images that `certified_set` chooses from: pixels, or names and contents of files (ImageNet: sizes)."""
        images = self.test_set if self.split == "test" else self._training_images()
        inner: Any = images.dataset if isinstance(images, Transformed) else images
        described = hashlib.sha256(f"{self.size} {self.channels}".encode())
        if isinstance(inner, ImageFolderDataset):
            for path in inner.paths:
                content = path.stat().st_size if self.source == "imagenet" else hashlib.sha256(path.read_bytes()).hexdigest()
                described.update(f"{path.parent.name}/{path.name} {content}\n".encode())
        else:
            for tensor in (inner.images, inner.labels):
                described.update(tensor.contiguous().numpy().tobytes())
        return described.hexdigest()[:16]

    def certification_loader(self) -> DataLoader:
        """Return a loader of the images to certify, each once, dealt over the processes without padding."""
        images = self.certified_set()
        return DataLoader(images, batch_size=16, sampler=UnpaddedSampler(cast(Sized, images)), num_workers=self.num_workers)


class Transformed(Dataset):
    """Images of a data set after a transform."""

    def __init__(self, dataset: ImageFolderDataset, transform: Callable[[Tensor], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        return item | {"image": self.transform(item["image"])}


def _of_8_bits(images: TensorImages) -> TensorImages:
    return TensorImages(on_grid(images.images), images.labels, images.class_names)


def stack(dataset: Dataset, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Return up to `limit` images of a data set, (N, C, H, W), and their labels, (N,)."""
    items = [dataset[number] for number in range(min(limit or len(cast(Sized, dataset)), len(cast(Sized, dataset))))]
    return torch.stack([item["image"] for item in items]), torch.tensor([item["label"] for item in items])
