"""What tells fake pictures from real ones although it is no forgery: format and size of their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from shared.data.files import BadFileError, image_size
from shared.data.selection import evenly_spaced
from shared.forgery.evaluation import ks_distance
from shared.forgery.sets import REAL, Clip

_SAMPLE = 32  # videos of each kind whose sizes are looked at
_LEAST = 0.5  # distance of two distributions, from which on one number tells three quarters of both classes right
_JPEG = {".jpeg": ".jpg"}


def confounds(clips: Sequence[Clip]) -> list[str]:
    """Say in what each manipulation's files differ from the real ones, so that a detector may learn that instead of the forgery.

    Formats are told by the ending of one frame a video, sizes by the shorter side of one frame of up to 32 videos; frames that cannot be read are
    passed over. A difference counts where it alone would tell three quarters of both classes right, and is none of chance (Kolmogorov's and
    Smirnov's test at 1 %; of very few videos, where it tells all of them right).

    Args:
        clips: the videos of one part of a set.

    Returns:
        Lines such as `Deepfakes: .jpg where real ones are .png`; none if there are no real videos.
    """
    frames: dict[str, list[str]] = {}
    for clip in clips:
        frames.setdefault(clip.video.manipulation, []).extend(clip.frames[len(clip.frames) // 2 :][:1])
    formats = {kind: [_JPEG.get(ending, ending) for ending in (Path(path).suffix.lower() for path in paths)] for kind, paths in frames.items()}
    known = sorted({ending for endings in formats.values() for ending in endings})
    sides = {kind: _sides(paths) for kind, paths in frames.items()}
    lines = []
    for kind in sorted(frames.keys() - {REAL}):
        if _differ([known.index(one) for one in formats.get(REAL, [])], [known.index(one) for one in formats[kind]]):
            lines.append(f"{kind}: {_commonest(formats[kind])} where real ones are {_commonest(formats[REAL])}")
        if _differ(sides.get(REAL, []), sides[kind]):
            lines.append(f"{kind}: {_median(sides[kind])} pixels where real ones have {_median(sides[REAL])} (shorter side, median)")
    return lines


def _sides(paths: Sequence[str]) -> list[int]:
    found = []
    for place in evenly_spaced(len(paths), _SAMPLE):
        try:
            found.append(min(image_size(paths[place])))
        except (BadFileError, FileNotFoundError):  # is named when its turn to be read comes
            continue
    return found


def _differ(real: Sequence[int], fake: Sequence[int]) -> bool:
    """Tell whether numbers of real and of fake pictures lie apart, by more than chance would have it."""
    if not real or not fake:
        return False
    chance = 1.63 * math.sqrt(1 / len(real) + 1 / len(fake))  # the 1 % point of the distance
    return ks_distance(torch.tensor(real), torch.tensor(fake)) >= max(_LEAST, min(1.0, chance))


def _commonest(values: Sequence[str]) -> str:
    return max(sorted(set(values)), key=values.count)


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
