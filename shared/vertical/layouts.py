"""Sets of pictures as they lie on the disk: MNIST and its kin, and CIFAR-10."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from shared.data.cifar import CifarDataset
from shared.data.files import BadFileError
from shared.vertical.records import Records, Split

_MNIST = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}
_MOST_BYTES = 2**32  # of an idx file, unpacked


FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""Names of Fashion-MNIST's labels."""


def read_mnist(root: Path, split: Split, name: str = "MNIST", class_names: tuple[str, ...] = tuple("0123456789")) -> Records:
    """Read MNIST, or a set in its format, from idx files, compressed or not; train-images.idx3-ubyte is as good as train-images-idx3-ubyte.

    Args:
        root: folder that holds <name>/raw, as torchvision stores it, or <name>, or raw itself.
        split: train (60000) or test (10000).
        name: folder that torchvision makes: MNIST, or FashionMNIST.
        class_names: name of each label.

    Returns:
        Pictures (N, 1, 28, 28) uint8.

    Raises:
        FileNotFoundError: if a file is missing; the message names all four.
        BadFileError: if a file is damaged, or the two do not fit.
    """
    images_file, labels_file = (_mnist_file(root, name, file) for file in _MNIST[split])
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise BadFileError(f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels: fetch both anew")
    if len(labels) == 0 or labels.max() > 9:
        found = f"the label {labels.max()}" if len(labels) else "no label"
        raise BadFileError(f"{labels_file} holds {found}, expected digits 0 to 9: fetch it anew")
    return Records(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), class_names)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes: 0, 0, 8, the number of dimensions, each of them as four bytes, most significant first, then the bytes.

    Args:
        path: the file; one that ends in .gz is unpacked on the way.
        dimensions: that it must have.

    Returns:
        Array uint8.

    Raises:
        BadFileError: if it is damaged or of another type.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _idx_content(path, cast(BinaryIO, file), dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFileError(f"cannot unpack {path}: {error}; fetch it anew") from error


def read_cifar10(root: Path, split: Split) -> Records:
    """Read CIFAR-10 from cifar-10-batches-py, running nothing that its pickles may ask for.

    Args:
        root: that folder, or the one it lies in.
        split: train (50000) or test (10000).

    Returns:
        Pictures (N, 3, 32, 32) uint8.

    Raises:
        FileNotFoundError: if a file is missing.
        BadFileError: if a file is damaged.
    """
    stored = CifarDataset(root, 10, (split,))
    return Records(stored.images, stored.labels, tuple(stored.class_names))


def _mnist_file(root: Path, name: str, stem: str) -> Path:
    for folder in (root / name / "raw", root / name, root / "raw", root):
        for file in (folder / f"{spelt}{ending}" for spelt in (stem, stem.replace("-idx", ".idx")) for ending in (".gz", "")):
            if file.is_file():
                return file
    tree = ", ".join(f"{known}.gz" for names in _MNIST.values() for known in names)
    raise FileNotFoundError(f"{root} lacks {stem}.gz: expected {root}/{name}/raw/ with {tree}, as torchvision stores them; correct data.root")


def _idx_content(path: Path, file: BinaryIO, dimensions: int) -> np.ndarray:
    if file.read(4) != bytes((0, 0, 8, dimensions)):
        raise BadFileError(f"{path} is no idx file of bytes with {dimensions} dimensions, judging by its first four bytes; fetch it anew")
    header = file.read(4 * dimensions)
    shape = np.frombuffer(header[: len(header) // 4 * 4], ">u4").astype(int).tolist()
    expected = math.prod(shape)
    if len(shape) < dimensions or expected > _MOST_BYTES:
        raise BadFileError(f"{path} has a damaged beginning, which says that an array of shape {shape} follows; fetch it anew")
    content = file.read(expected + 1)
    if len(content) != expected:
        found = "more" if len(content) > expected else "fewer"
        raise BadFileError(f"{path} should hold an array of shape {shape}, but has {found} bytes; fetch it anew")
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)
