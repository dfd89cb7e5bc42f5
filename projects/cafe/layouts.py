"""Linnaeus 5, or a user's own pictures, as they lie on the disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from shared.data.files import BadFileError, first_few
from shared.data.folders import ImageFolderDataset
from shared.vertical.records import Records, Split

_LINNAEUS = "<root>/{train,test}/<class>/*.jpg"


def read_linnaeus(root: Path, split: Split, size: int | None = None) -> Records:
    """Read Linnaeus 5, or a user's own pictures, from train/<class> and test/<class>; any size, centre squares are taken.

    Args:
        root: folder that holds train and test, or whose only folder does, such as "Linnaeus 5 64X64".
        split: train or test.
        size: side in pixels that pictures are brought to; None is the shorter side of the first training picture.

    Returns:
        Pictures (N, 3, size, size) uint8; labels are the places of the training classes in alphabetical order, ids the files below `root`.

    Raises:
        FileNotFoundError: if folders are missing, or a class has no pictures.
        BadFileError: if a picture cannot be read, or the test pictures are of other classes.
    """
    root = _linnaeus_root(root)
    train = ImageFolderDataset(root / "train", has_classes=True)
    size = size or min(train[0]["image"].shape[1:])
    dataset = ImageFolderDataset(root / split, has_classes=True, size=size, on_bad_file="refuse")
    if dataset.class_names != train.class_names:
        differing = sorted(set(dataset.class_names) ^ set(train.class_names))
        raise BadFileError(f"{root}/train and {root}/test have different classes ({', '.join(first_few(differing))}): give both the same folders")
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        images = list(pool.map(lambda index: (dataset[index]["image"] * 255).round().byte(), range(len(dataset))))
    files = tuple(path.relative_to(root).as_posix() for path in dataset.paths)
    return Records(torch.stack(images), torch.tensor(dataset.labels), tuple(dataset.class_names), ids=files)


def _linnaeus_root(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: expected {_LINNAEUS}; correct data.root")
    inside = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    for folder in (root, *(inside if len(inside) == 1 else ())):
        if all((folder / split).is_dir() for split in ("train", "test")):
            return folder
    raise FileNotFoundError(f"{root} does not hold the folders train and test: expected {_LINNAEUS}; correct data.root")
