"""What training and test pictures share: names, sources, and pictures that look alike (sections 4 and 11 of the sheet).

The hash is our own: ten lines of a cosine transform, where a package for it would bring wavelets and a second reader of image files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from projects.tripinet.pairs import Picture
from shared.data.files import first_few, read_image
from shared.forgery.splits import OnLeak

_SIDE, _KEPT = 32, 8
_FLAT = 1 / 255  # standard deviation, below which a picture has nothing to hash
_SAME_NAME = 12  # bits; a forgery and its original differ in more than two copies do, and any two pictures in about 32
_ROWS = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leak:
    """A training picture that a test picture betrays.

    Attributes:
        train: the training picture.
        test: the test picture.
        why: `name`, `source` or `look`.
    """

    train: Picture
    test: Picture
    why: str


def leaks(train: Sequence[Picture], test: Sequence[Picture], distance: int | None = None) -> list[Leak]:
    """Find training pictures that share their name, a source, or their look with a test picture.

    Args:
        train: pictures to learn from.
        test: pictures to judge by.
        distance: bits of 63 in which the hashes of two pictures that look alike differ at most; 4 finds copies that were scaled or compressed. Every
            picture is then read once. None compares sources only, and those of the same name, such as 001, by whether they look alike at all.

    Returns:
        One leak for each training picture that has any, in their order, by the first reason that holds.
    """
    stems: dict[str, list[Picture]] = {}
    for picture in test:
        stems.setdefault(picture.image.stem, []).append(picture)
    sources = {source: picture for picture in test for source in picture.sources}
    looks = _alike(train, test, distance) if distance is not None and train and test else {}
    found = []
    for number, picture in enumerate(train):
        shared = next((sources[source] for source in sorted(picture.sources) if source in sources), None)
        namesake = next((one for one in stems.get(picture.image.stem, ()) if _are_alike(picture, one)), None)
        if namesake is not None:
            found.append(Leak(picture, namesake, "name"))
        elif shared is not None:
            found.append(Leak(picture, shared, "source"))
        elif number in looks:
            found.append(Leak(picture, test[looks[number]], "look"))
    return found


def guard(train: Sequence[Picture], test: Sequence[Picture], on_leak: OnLeak = "remove", distance: int | None = None) -> list[Picture]:
    """Keep test pictures from being learnt.

    Args:
        train: pictures to learn from.
        test: pictures to judge by.
        on_leak: "remove" removes the training pictures that leak, with a warning, "refuse" raises, "keep" only warns.
        distance: see `leaks`.

    Returns:
        The training pictures that remain.

    Raises:
        ValueError: if there is a leak and `on_leak` is "refuse", or if nothing remains.
    """
    found = leaks(train, test, distance)
    if not found:
        return list(train)
    examples = [f"{leak.train.image} and {leak.test.image} (same {leak.why})" for leak in found]
    said = f"{len(found)} of {len(train)} training pictures share something with test pictures:"
    if on_leak == "refuse":
        raise ValueError("\n  ".join([said, *first_few(examples), "divide them otherwise, or set data.on_leak to remove"]))
    _log.warning("%s %s; they are %s", said, "; ".join(first_few(examples, 3)), "kept" if on_leak == "keep" else "removed")
    if on_leak == "keep":
        return list(train)
    leaking = {leak.train.image for leak in found}
    kept = [picture for picture in train if picture.image not in leaking]
    if not kept:
        raise ValueError(f"all {len(train)} training pictures share something with test pictures: learn from another set, or set data.on_leak: keep")
    return kept


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


def _are_alike(one: Picture, other: Picture) -> bool:
    hashes = look_hash(one.image), look_hash(other.image)
    return 0 not in hashes and (hashes[0] ^ hashes[1]).bit_count() <= _SAME_NAME


def _alike(train: Sequence[Picture], test: Sequence[Picture], distance: int) -> dict[int, int]:
    """Map the numbers of training pictures to that of a test picture that looks like them."""
    hashes, held_out = (_hashes(pictures) for pictures in (train, test))
    alike: dict[int, int] = {}
    for start in range(0, len(hashes), _ROWS):
        rows = hashes[start : start + _ROWS]
        differ = np.bitwise_count(rows[:, None] ^ held_out)
        near = (differ <= distance) & (rows[:, None] != 0) & (held_out != 0)
        alike |= {start + int(row): int(near[row].argmax()) for row in near.any(1).nonzero()[0]}
    return alike


def _hashes(pictures: Sequence[Picture]) -> NDArray[np.uint64]:
    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(lambda picture: look_hash(picture.image), pictures)), dtype=np.uint64)
