"""Which of the pictures and frames that there are are taken: evenly spaced ones, and those that share nothing with what is tested."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from shared.data.files import first_few

OnLeak = Literal["remove", "refuse", "keep"]
"""What befalls training samples that share something with the test set."""

_log = logging.getLogger(__name__)


class _Pictured(Protocol):
    @property
    def image(self) -> Path: ...


_Picture = TypeVar("_Picture", bound=_Pictured)


def evenly_spaced(count: int, wanted: int, repeat: bool = False) -> list[int]:
    """Choose samples at equal distances: floor(i count / wanted) for i = 0, 1, ..., wanted - 1.

    The picks of public code for forged faces are these where `wanted` divides `count`; otherwise its last ones lie before the end.

    Args:
        count: samples that there are, such as the frames of a video.
        wanted: samples to choose.
        repeat: chooses samples several times where there are fewer than wanted; otherwise each one once.

    Returns:
        Numbers of samples, rising.

    Raises:
        ValueError: if `wanted` is below 1.
    """
    if wanted < 1:
        raise ValueError(f"at least one frame a video must be wanted, got {wanted}")
    wanted = wanted if repeat else min(wanted, count)
    return [place * count // wanted for place in range(wanted)]


def without_leaks(train: Sequence[_Picture], leaking: Mapping[Path, str], said: str, on_leak: OnLeak, mend: str, none_remain: str) -> list[_Picture]:
    """Keep pictures that share something with test pictures from being learnt.

    Args:
        train: pictures to learn from.
        leaking: what to say of each one that shares something, by its file.
        said: of all of them together.
        on_leak: "remove" removes them with a warning, "refuse" raises, "keep" only warns.
        mend: what to do about it, where they are refused.
        none_remain: what to say where all are removed.

    Returns:
        The training pictures that remain.

    Raises:
        ValueError: if there are some and `on_leak` is "refuse", or if nothing remains.
    """
    if not leaking:
        return list(train)
    examples = list(leaking.values())
    if on_leak == "refuse":
        raise ValueError("\n  ".join([f"{said}:", *first_few(examples), mend]))
    _log.warning("%s: %s; they are %s", said, "; ".join(first_few(examples, 3)), "kept" if on_leak == "keep" else "removed")
    if on_leak == "keep":
        return list(train)
    kept = [picture for picture in train if picture.image not in leaking]
    if not kept:
        raise ValueError(none_remain)
    return kept
