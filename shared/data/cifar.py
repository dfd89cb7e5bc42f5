"""CIFAR-10 and CIFAR-100 from the folders of pickles that their archives unpack to, read without running anything a pickle asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.files import BadFileError, blamed
from shared.data.pickles import StoredArray, as_text, read_pickle


@dataclass(frozen=True)
class _Layout:
    folder: str
    archive: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    labels: str
    names: str

    def files(self, splits: tuple[str, ...]) -> list[str]:
        return [name for split in splits for name in self.splits[split]]


_LAYOUTS = {
    10: _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        splits={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        meta="batches.meta",
        labels="labels",
        names="label_names",
    ),
    100: _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        splits={"train": ("train",), "test": ("test",)},
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
}
_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


class CifarDataset(Dataset):
    """CIFAR-10 or CIFAR-100 with fine labels; items are `{"image": (3, 32, 32) float32 in [0, 1], "label": int, "index": int}`.

    Args:
        root: `cifar-10-batches-py` or `cifar-100-python` as unpacked from the archive, or the folder it lies in.
        classes: 10 or 100.
        splits: which files to read, one after the other: "train" and "test".

    Attributes:
        images: (N, 3, 32, 32) uint8, all images at once.
        labels: (N,) int64.
        class_names: name of each label.

    Raises:
        FileNotFoundError: if files are missing; names each, the tree that should lie there and the archive to fetch.
        BadFileError: if a file is damaged, or asks for anything but arrays, numbers and text.
        ValueError: if there are no such classes or splits.
    """

    def __init__(self, root: str | Path, classes: Literal[10, 100] = 10, splits: tuple[str, ...] = ("train",)) -> None:
        if classes not in _LAYOUTS:
            raise ValueError(f"classes must be 10 or 100, got {classes!r}")
        if not splits or any(split not in ("train", "test") for split in splits):
            raise ValueError(f"splits of CIFAR are 'train' and 'test', got {splits!r}")
        layout = _LAYOUTS[classes]
        folder = _find(Path(root).expanduser(), layout, splits)
        self.class_names = _read_names(folder / layout.meta, layout, classes)
        batches = [_read_batch(folder / name, layout, classes) for name in layout.files(splits)]
        self.images: Tensor = torch.from_numpy(np.concatenate([batch.pixels for batch in batches]).reshape(-1, 3, 32, 32))
        self.labels: Tensor = torch.tensor([label for batch in batches for label in batch.labels])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index].float() / 255, "label": int(self.labels[index]), "index": index}


class _Batch(NamedTuple):
    pixels: np.ndarray  # (N, 3072) uint8: planes of red, green and blue, each row by row
    labels: list[int]


def _find(root: Path, layout: _Layout, splits: tuple[str, ...]) -> Path:
    folder = root if root.name == layout.folder else root / layout.folder
    needed = [layout.meta, *layout.files(splits)]
    if not folder.is_dir() and any((root / name).is_file() for name in needed):
        folder = root  # unpacked under another name
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        tree = ", ".join([layout.meta, *layout.files(("train", "test"))])
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: expected {layout.folder}/ with the files {tree}; "
            f"fetch {layout.archive} from {_HOME}, unpack it, and give the folder as root"
        )
    return folder


def _read_names(path: Path, layout: _Layout, classes: int) -> list[str]:
    names = _read(path, layout).get(layout.names)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, bytes | str) for name in names):
        raise BadFileError(f"{path} does not hold {classes} {layout.names}; {_mend(layout)}")
    with blamed(path, _mend(layout)):
        return [as_text(name) for name in names]


def _read_batch(path: Path, layout: _Layout, classes: int) -> _Batch:
    content = _read(path, layout)
    data, labels = content.get("data"), content.get(layout.labels)
    if not isinstance(data, StoredArray) or not isinstance(labels, list):
        raise BadFileError(f"{path} does not hold 'data' and '{layout.labels}', but {sorted(content)}; {_mend(layout)}")
    try:
        pixels = data.build()
    except (ValueError, TypeError) as error:
        raise BadFileError(f"{path}: 'data' is no array of uint8 ({error}); {_mend(layout)}") from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or len(pixels) != len(labels):
        raise BadFileError(f"{path} holds data of shape {pixels.shape} and {len(labels)} labels, expected (N, 3072) and N; {_mend(layout)}")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise BadFileError(f"{path} holds labels that are not whole numbers from 0 to {classes - 1}; {_mend(layout)}")
    return _Batch(pixels, labels)


def _read(path: Path, layout: _Layout) -> dict[str, Any]:
    """Read the dictionary in one file, its keys as text."""
    content = read_pickle(path, "CIFAR file", _mend(layout))
    if not isinstance(content, dict) or not all(isinstance(key, bytes | str) for key in content):
        raise BadFileError(f"{path} is damaged: it holds no dictionary with names; {_mend(layout)}")
    with blamed(path, _mend(layout)):
        return {as_text(key): value for key, value in content.items()}


def _mend(layout: _Layout) -> str:
    return f"unpack {layout.archive} from {_HOME} anew"
