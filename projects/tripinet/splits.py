"""Parts into which pictures are divided, and what they must hold."""

from __future__ import annotations

from collections.abc import Sequence

from projects.tripinet.pairs import AUTHENTIC, Picture
from shared.forgery.sets import REAL, Clip, Video
from shared.forgery.splits import divide


def divided(pictures: Sequence[Picture], fraction: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """Divide pictures so that no source is in both parts; see `shared.forgery.splits.divide`.

    Raises:
        ValueError: if all of them share sources, so that they cannot be divided.
    """
    by_path = {str(picture.image): picture for picture in pictures}
    try:
        parts = divide(clips(pictures), fraction, seed)
    except ValueError as error:
        raise ValueError(f"{len(pictures)} pictures of {pictures[0].dataset} share their sources and cannot be divided: add some") from error
    first, second = ([by_path[clip.video.name] for clip in part] for part in parts)
    return first, second


def clips(pictures: Sequence[Picture]) -> list[Clip]:
    """Return pictures as what `shared.forgery` divides and compares: a clip of one frame each."""
    kind = {AUTHENTIC: REAL}
    return [Clip(Video(one.dataset, kind.get(one.kind, one.kind), str(one.image), one.sources), (str(one.image),)) for one in pictures]


def check_manipulated(what: str, pictures: Sequence[Picture], mend: str) -> None:
    """Check that there is a manipulated picture.

    Args:
        what: name of the part, for the message.
        pictures: its pictures.
        mend: what to do if there is none.

    Raises:
        ValueError: if there is none.
    """
    if not any(picture.label for picture in pictures):
        raise ValueError(f"none of the {len(pictures)} {what} pictures is manipulated; {mend}")
