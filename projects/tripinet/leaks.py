"""What training and test pictures share: names, sources, and pictures that look alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from projects.tripinet.pairs import Picture
from shared.data.looks import alike, are_alike
from shared.data.selection import OnLeak, without_leaks

_SAME_NAME = 12  # bits; a forgery and its original differ in more than two copies do, and any two pictures in about 32
_EDITIONS = ("casia_v1", "casia_v2")  # share authentic pictures, whose names do not tell so
_COPY = 4  # bits; copies that were scaled or compressed differ in no more


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
            picture is then read once. None compares sources only, those of the same name, such as 001, by whether they look alike at all, and
            pictures of one edition of CASIA with those of the other by 4, for both hold the same authentic ones.

    Returns:
        One leak for each training picture that has any, in their order, by the first reason that holds.
    """
    stems: dict[str, list[Picture]] = {}
    for picture in test:
        stems.setdefault(picture.image.stem, []).append(picture)
    sources = {source: picture for picture in test for source in picture.sources}
    looks = _looks(train, test, distance)
    found = []
    for number, picture in enumerate(train):
        shared = next((sources[source] for source in sorted(picture.sources) if source in sources), None)
        namesake = next((one for one in stems.get(picture.image.stem, ()) if are_alike(picture.image, one.image, _SAME_NAME)), None)
        if namesake is not None:
            found.append(Leak(picture, namesake, "name"))
        elif shared is not None:
            found.append(Leak(picture, shared, "source"))
        elif number in looks:
            found.append(Leak(picture, test[looks[number]], "look"))
    return found


def _looks(train: Sequence[Picture], test: Sequence[Picture], distance: int | None) -> dict[int, int]:
    """Return the place of a test picture that looks alike by that of the training picture; without a distance, between CASIA's editions only."""
    if distance is not None:
        return alike([picture.image for picture in train], [picture.image for picture in test], distance)
    found: dict[int, int] = {}
    for edition, other in (_EDITIONS, _EDITIONS[::-1]):
        learnt = [number for number, picture in enumerate(train) if picture.dataset == edition]
        judged = [number for number, picture in enumerate(test) if picture.dataset == other]
        near = alike([train[number].image for number in learnt], [test[number].image for number in judged], _COPY)
        found |= {learnt[one]: judged[same] for one, same in near.items()}
    return found


def guard(
    train: Sequence[Picture], test: Sequence[Picture], on_leak: OnLeak = "remove", distance: int | None = None, split: str = "training"
) -> list[Picture]:
    """Keep test pictures from being learnt.

    Args:
        train: pictures to learn from.
        test: pictures to judge by.
        on_leak: "remove" removes the training pictures that leak, with a warning, "refuse" raises, "keep" only warns.
        distance: see `leaks`.
        split: what the pictures to learn from are, for messages: those of validation, too, are kept from what is tested.

    Returns:
        The training pictures that remain.

    Raises:
        ValueError: if there is a leak and `on_leak` is "refuse", or if nothing remains.
    """
    found = leaks(train, test, distance)
    said = f"{len(found)} of {len(train)} {split} pictures share something with test pictures"
    none_remain = f"all {len(train)} {split} pictures share something with test pictures: learn from another set, or set data.on_leak: keep"
    leaking = {leak.train.image: f"{leak.train.image} and {leak.test.image} (same {leak.why})" for leak in found}
    return without_leaks(train, leaking, said, on_leak, "divide them otherwise, or set data.on_leak to remove", none_remain)
