"""Pictures that look alike: a hash of what a picture looks like, which copies that were scaled or compressed share but for a few bits.

The hash is our own: ten lines of a cosine transform, where a package for it would bring wavelets and a second reader of image files.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from shared.data.files import read_image

_SIDE, _KEPT = 32, 8
_FLAT = 1 / 255  # standard deviation, below which a picture has nothing to hash
_ROWS = 1024


def look_hash(path: Path) -> int:
    """Hash what a picture looks like: the signs, about their median, of its 63 lowest cosine coefficients but the mean, at 32 x 32 pixels of grey.

    Returns:
        63 bits; 0 for a picture without structure, which is like no other.
    """
    grey = read_image(path, "L")[None]
    small = F.interpolate(grey, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)[0, 0].double().numpy()
    if small.std() < _FLAT:
        return 0
    frequencies, places = np.arange(_KEPT)[:, None], np.arange(_SIDE) + 0.5
    cosines = np.cos(np.pi * frequencies * places / _SIDE)
    lowest = (cosines @ small @ cosines.T).ravel()[1:]
    return int("".join("1" if value > np.median(lowest) else "0" for value in lowest), 2)


def are_alike(one: Path, other: Path, distance: int) -> bool:
    """Tell whether the hashes of two pictures differ in at most `distance` bits."""
    hashes = look_hash(one), look_hash(other)
    return 0 not in hashes and (hashes[0] ^ hashes[1]).bit_count() <= distance


def alike(paths: Sequence[Path], others: Sequence[Path], distance: int) -> dict[int, int]:
    """Find pictures that look like one of some others; every picture is read once.

    Args:
        paths: the pictures.
        others: what they are compared with.
        distance: bits of 63 in which the hashes of two pictures that look alike differ at most; 4 finds copies that were scaled or compressed, and
            those of unrelated pictures differ in about 32.

    Returns:
        The place in `others` of the first that looks alike, by the place in `paths`.
    """
    return near(look_hashes(paths), look_hashes(others), distance) if paths and others else {}


def look_hashes(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """Return the `look_hash` of each picture, (N,)."""
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        return np.array(list(pool.map(look_hash, paths)), dtype=np.uint64)


def near(hashes: NDArray[np.uint64], others: NDArray[np.uint64], distance: int) -> dict[int, int]:
    """Find hashes, (N,), that differ from one of `others`, (M,), in at most `distance` bits; see `alike`."""
    found: dict[int, int] = {}
    for start in range(0, len(hashes), _ROWS):
        rows = hashes[start : start + _ROWS, None]
        is_near = (np.bitwise_count(rows ^ others) <= distance) & (rows != 0) & (others != 0)
        found |= {start + int(row): int(is_near[row].argmax()) for row in is_near.any(1).nonzero()[0]}
    return found
