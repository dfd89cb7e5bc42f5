"""Training pictures that look like test pictures: NJU2K and STERE both come from stereo pairs of the web."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from projects.hodinet.layouts import Sample
from shared.data.looks import look_hashes, near
from shared.data.selection import OnLeak, without_leaks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicates:
    """What two parts share.

    Attributes:
        train: training pictures that look like a test picture, each with the first such.
        test: test pictures that look like a training picture, each with the first such.
    """

    train: list[tuple[Sample, Sample]]
    test: list[tuple[Sample, Sample]]


def find_duplicates(train: Sequence[Sample], test: Sequence[Sample], distance: int) -> Duplicates:
    """Find pictures of either part that look like one of the other; every picture is read once.

    Args:
        train: pictures to learn from.
        test: pictures to judge by.
        distance: bits of 63 in which the hashes of pictures that look alike differ at most; 4 finds copies that were scaled or compressed.
    """
    hashes, others = (look_hashes([sample.image for sample in samples]) for samples in (train, test))
    return Duplicates(
        [(train[number], test[other]) for number, other in near(hashes, others, distance).items()],
        [(test[number], train[other]) for number, other in near(others, hashes, distance).items()],
    )


def duplicates_table(found: Duplicates, test: Sequence[Sample]) -> list[dict[str, Any]]:
    """Count, for each test set, its pictures and those that look like a training picture."""
    sizes, twice = Counter(sample.dataset for sample in test), Counter(sample.dataset for sample, _ in found.test)
    return [{"set": name, "pictures": size, "duplicates": twice[name], "part": twice[name] / size} for name, size in sizes.items()]


def guard(train: Sequence[Sample], test: Sequence[Sample], distance: int, on_duplicate: OnLeak = "remove") -> list[Sample]:
    """Keep pictures that look like test pictures from being learnt.

    Args:
        train: pictures to learn from.
        test: pictures to judge by.
        distance: see `find_duplicates`.
        on_duplicate: "remove" removes such training pictures with a warning, "refuse" raises, "keep" only warns.

    Returns:
        The training pictures that remain.

    Raises:
        ValueError: if there are some and `on_duplicate` is "refuse", or if nothing remains.
    """
    found = find_duplicates(train, test, distance)
    counts = ", ".join(f"{row['duplicates']} of {row['pictures']} of {row['set']}" for row in duplicates_table(found, test) if row["duplicates"])
    said = f"{len(found.train)} of {len(train)} training pictures look like test pictures ({counts})"
    none_remain = f"all {len(train)} training pictures look like test pictures: learn from other sets, or set data.on_duplicate: keep"
    twice = {sample.image: f"{sample.image} and {other.image}" for sample, other in found.train}
    return without_leaks(train, twice, said, on_duplicate, "remove them, or set data.on_duplicate to remove or keep", none_remain)
