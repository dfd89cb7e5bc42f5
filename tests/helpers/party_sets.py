"""Writers of miniatures of MNIST and Linnaeus 5, as their archives unpack."""

from __future__ import annotations

import gzip
import struct

import numpy as np
from PIL import Image

CLASSES = ("berry", "bird", "dog", "flower", "other")


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(raw, count=6, pack=True):
    """Write a miniature MNIST; returns the arrays by the beginning of the file names."""
    raw.mkdir(parents=True)
    draw, arrays = np.random.default_rng(0), {}
    for name, number in (("train", count), ("t10k", count - 2)):
        arrays[name] = draw.integers(0, 256, (number, 28, 28), dtype=np.uint8), draw.permutation(10)[:number].astype(np.uint8)
        for array, kind in zip(arrays[name], ("images-idx3", "labels-idx1"), strict=True):
            file = raw / f"{name}-{kind}-ubyte"
            file.write_bytes(idx(array))
            if pack:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
    return arrays


def write_linnaeus(root, size=(8, 8), classes=CLASSES, splits=("train", "test")):
    """Write pictures whose colour tells split and class."""
    for number, split in enumerate(splits):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", size, (40 * label, 100 * number, 90)).save(folder / f"{index + 1}_{size[0]}.jpg", quality=100)
