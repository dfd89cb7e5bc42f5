"""Sets of samples, in memory or in files, and parts of them; whole batches are {"input": (B, ...), "label": (B,) int64, "index": (B,) int64}."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from shared.data.crops import centre_crop, random_crops
from shared.data.files import read_levels
from shared.data.folders import fit_square
from shared.seeding import derive_seed, generator

Batch = dict[str, Tensor]


class Samples(Dataset):
    """Samples in memory.

    Args:
        inputs: (N, ...) float32, or images as bytes (N, C, H, W).
        labels: (N,) int64.

    Raises:
        ValueError: if there are not as many labels as inputs.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        if len(inputs) != len(labels):
            raise ValueError(f"{len(inputs)} inputs with {len(labels)} labels: there must be one label a sample")
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.inputs[index], "label": int(self.labels[index]), "index": index}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return {"input": self.inputs[rows], "label": self.labels[rows], "index": rows}


class Files(Dataset):
    """Image files, read as bytes (3, size, size) when their turn comes.

    Key i + e N stands for sample i of N in epoch e; only random crops differ between epochs.

    Args:
        paths: the files.
        labels: (N,) int64.
        size: side of the squares, in pixels.
        has_border: resizes the shorter side to 8/7 of `size` and cuts out the centre, as ImageNet networks are tested; else the whole central
            square is taken.
        crop_seed: takes random resized crops, half of them mirrored, each a function of (crop_seed, epoch, sample); None takes the centre.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int, has_border: bool = True, crop_seed: int | None = None) -> None:
        self.paths, self.labels, self.size, self.has_border, self.crop_seed = paths, labels, size, has_border, crop_seed
        self._random, self._centre = random_crops(size), centre_crop(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, place = divmod(key, len(self))
        image = read_levels(self.paths[place])
        image = self._view(image) if self.crop_seed is None else self._crop(image, derive_seed(self.crop_seed, "crop", epoch, place))
        return {"input": image, "label": int(self.labels[place]), "index": place}

    def recropped(self, seed: int) -> Files:
        """Return these files with random crops."""
        return Files(self.paths, self.labels, self.size, self.has_border, seed)

    def _view(self, image: Tensor) -> Tensor:
        if self.has_border:
            return self._centre(image)
        return (fit_square(image.float() / 255, self.size) * 255).round().byte()

    def _crop(self, image: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would set the accelerators' generators too
            return self._random(image)


class Part(Dataset):
    """Some samples of a set, counted anew; see `Files` for keys.

    Args:
        dataset: the set, with `labels`.
        chosen: (n,) int64, places of the samples.
    """

    def __init__(self, dataset: Dataset, chosen: Tensor) -> None:
        self.dataset, self.chosen = dataset, chosen

    @property
    def labels(self) -> Tensor:
        """(n,) int64."""
        return labels_of(self.dataset)[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, place = divmod(key, len(self))
        return self.dataset[int(self.chosen[place]) + epoch * size_of(self.dataset)] | {"index": place}

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        read: Callable | None = getattr(self.dataset, "__getitems__", None)
        if read is None:
            return default_collate([self[key] for key in keys])
        places = torch.as_tensor(keys, dtype=torch.int64)
        return whole(read(self.chosen[places].tolist())) | {"index": places}


def whole(batch: Any) -> Batch:
    """Collate samples, unless the set gave a whole batch."""
    return batch if isinstance(batch, dict) else default_collate(batch)


def size_of(dataset: Dataset) -> int:
    """Return the number of samples."""
    return len(dataset)  # type: ignore[arg-type]


def labels_of(dataset: Dataset) -> Tensor:
    """Return the labels of a set that has the attribute `labels`, (N,) int64."""
    return torch.as_tensor(cast(Any, dataset).labels, dtype=torch.int64)


def held_out_count(held_out: int | float, total: int) -> int:
    """Return how many of `total` training samples are held out: so many, or that part of them if it is below 1.

    Raises:
        ValueError: if none would be left to learn.
    """
    count = held_out if isinstance(held_out, int) else max(1, round(held_out * total)) if held_out else 0
    if count >= total:
        raise ValueError(f"data.held_out {held_out} leaves none of {total} training samples to learn: make it smaller")
    return count


def divide(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out some samples, of each class in proportion to its size (largest remainders).

    Args:
        labels: (N,) int64, at least 0.
        count: number of samples that are held out, in [0, N).
        seed: seed of the choice.

    Returns:
        Places of the others, rising, and of those held out, in random order so that the first ones are a fair sample too.
    """
    sizes = torch.bincount(labels)
    exact = sizes * count / len(labels)
    quotas = exact.floor().long()
    quotas[(exact - quotas).argsort(descending=True, stable=True)[: count - int(quotas.sum())]] += 1
    random = generator(seed, "held out")
    order = torch.randperm(len(labels), generator=random)
    chosen = torch.cat([order[labels[order] == number][:quota] for number, quota in enumerate(quotas.tolist())])
    is_held = torch.zeros(len(labels), dtype=torch.bool)
    is_held[chosen] = True
    return (~is_held).nonzero()[:, 0], order[is_held[order]]
