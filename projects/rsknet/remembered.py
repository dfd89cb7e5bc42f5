"""Which speakers a network has learnt from: its checkpoint remembers them by digests, so that it is not calibrated or tested on them later."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from shared.checkpoints import load_checkpoint

VOXCELEB1 = tuple(f"id{number}" for number in range(10001, 11252))
"""Names of the speakers of VoxCeleb1."""


def digests(speakers: Iterable[str]) -> list[str]:
    """Return 16 hexadecimal digits for each name."""
    return [hashlib.blake2b(speaker.encode(), digest_size=8).hexdigest() for speaker in speakers]


def refuse_known(known: Collection[str], speakers: Collection[str], what: str) -> None:
    """Refuse speakers whom a network has learnt from.

    Args:
        known: digests of the speakers learnt from.
        speakers: names of those at hand.
        what: what they are at hand for.

    Raises:
        ValueError: naming a few of them.
    """
    remembered, names = set(known), sorted(set(speakers))
    both = [name for name, digest in zip(names, digests(names), strict=True) if digest in remembered]
    if both:
        raise ValueError(
            f"the network was trained on {len(both)} of the {what}, such as {', '.join(both[:3])}, and would seem better than it is: take others, "
            "or the data.seed and data.held_speakers of its training; rename them if they are other people"
        )


def known_to(checkpoint: str | Mapping[str, Any]) -> list[str]:
    """Return the digests of the speakers that a network has learnt from, those of its training and of the trainings before that it began with.

    Args:
        checkpoint: path of a checkpoint, or what lies in it; none are known if it does not say.
    """
    found = load_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    return [*found.get("speakers", []), *found.get("earlier", [])]
