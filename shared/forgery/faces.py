"""Procedural faces, real and forged in three ways, that need no files.

Whatever is drawn depends on (seed, split, class, number) alone: a smaller set is the beginning of a larger one, sets with different
manipulations have the same real frames, and their fakes the same people and poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shared.data.offline import Split
from shared.forgery.blending import SELF_BLEND, add_camera_noise, blend, jpeg, move_colours, resample, self_blend, smooth
from shared.forgery.painting import CANVAS, POSE, TEXTURE, TRAITS, People, Poses, between, eye_band, inner_face, mouth_region, paint_faces
from shared.forgery.sets import REAL, ForgerySet, Video, check_kinds
from shared.seeding import derive_seed, generator

MANIPULATIONS = ("swap", "reenact", "self_blend")
"""Another person's face in its place; another mouth and gaze; parts of the image blended with itself."""

PEOPLE: dict[str, range] = {"train": range(80), "test": range(80, 120), "val": range(120, 140)}
"""People of each split; nobody is in two."""

_SHOWN = 0.75  # part of the canvas that is cut out in the end: 48 of 64 pixels
_LONGEST, _SHORTEST = 8, 4  # frames of a video, where their number is drawn
_CHANCES = POSE + 2 + 4 + SELF_BLEND  # pose, expression, settings of the blend, self-blend
_BATCH = 256


class _Draw(NamedTuple):
    """What B frames are drawn from: `people` and `others` (B,) numbers, `chance` (B, 31), `noise` (B, 2, 3, S + 2, S + 2), `quality` (B,)."""

    people: Tensor
    others: Tensor
    chance: Tensor
    noise: Tensor
    quality: Tensor


def faces(
    split: Split, count: int, manipulation: str | Sequence[str] = "swap", seed: int = 0, size: int = 48, video_frames: int | None = None
) -> ForgerySet:
    """Draw faces, half of them forged; real and fake frames alternate.

    Frames of one person in different poses form a video; the last ones may be cut short. Every frame, of either class, has a camera's noise and
    goes through JPEG of a quality from 75 to 98 last.

    Args:
        split: train, val and test hold different people.
        count: number of frames, at least 2.
        manipulation: one of `MANIPULATIONS`, or several, which take turns from one fake video to the next.
        seed: seed of everything, also of what the people look like.
        size: height and width in pixels, at least 16; lengths grow with it.
        video_frames: frames of each video; None draws 4 to 8 for each.

    Returns:
        The set, in memory.

    Raises:
        ValueError: if an argument is out of its range.
    """
    kinds = [manipulation] if isinstance(manipulation, str) else list(manipulation)
    check_kinds(kinds, MANIPULATIONS)
    if split not in PEOPLE or count < 2 or size < 16 or not kinds:
        raise ValueError(f"faces need split train, val or test, 2 frames, 16 pixels and a manipulation, got {split!r}, {count}, {size} and {kinds}")
    if video_frames is not None and video_frames < 1:
        raise ValueError(f"videos of faces need at least one frame, got {video_frames}")
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    video = torch.empty(count, dtype=torch.int64)
    videos: list[Video] = []
    for label in (0, 1):
        rows = torch.arange(label, count, 2)
        numbers = _video_numbers(split, label, len(rows), seed, video_frames)
        video[rows] = len(videos) + numbers
        found = [_video(split, label, number, kinds[number % len(kinds)], seed) for number in range(int(numbers[-1]) + 1)]
        videos += found
        for kind in {one.manipulation for one in found}:
            chosen = torch.tensor([found[number].manipulation == kind for number in numbers.tolist()]).nonzero()[:, 0]
            for some in chosen.split(_BATCH):
                images[rows[some]] = _frames(split, kind, some.tolist(), numbers[some].tolist(), seed, size)
    return ForgerySet(images, videos, video)


def _video_numbers(split: str, label: int, count: int, seed: int, frames: int | None) -> Tensor:
    """Return (count,) the number of the video that each frame of a class belongs to."""
    if frames is not None:
        return torch.arange(count) // frames
    lengths: list[int] = []
    while sum(lengths) < count:
        lengths.append(_SHORTEST + derive_seed(seed, "faces length", split, label, len(lengths)) % (_LONGEST - _SHORTEST + 1))
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[:count]


def _who(split: str, label: int, number: int, seed: int) -> tuple[int, int]:
    """Return the person of a video, and another one of the same split, whose face a swap takes."""
    people = PEOPLE[split]
    first = derive_seed(seed, "faces person", split, label, number) % len(people)
    second = (first + 1 + derive_seed(seed, "faces other", split, label, number) % (len(people) - 1)) % len(people)
    return people[first], people[second]


def _video(split: str, label: int, number: int, kind: str, seed: int) -> Video:
    person, other = _who(split, label, number, seed)
    shown = {person, other} if label and kind == "swap" else {person}
    identities = frozenset(f"person {one:03d}" for one in shown)
    return Video("faces", kind if label else REAL, f"{split}-{number:04d}", identities)


def _frames(split: str, kind: str, places: list[int], videos: list[int], seed: int, size: int) -> Tensor:
    """Draw frames of one kind by their places among those of their class, (B, 3, size, size) uint8."""
    canvas = round(size / _SHOWN)
    drawn = _draw(split, int(kind != REAL), places, videos, seed, canvas)
    unit = canvas / CANVAS
    images = _forge(kind, drawn, seed, canvas, unit)
    edge = (canvas - size) // 2
    levels = (images[:, :, edge : edge + size, edge : edge + size] * 255).round().byte()
    return jpeg(levels, drawn.quality)


def _draw(split: str, label: int, places: list[int], videos: list[int], seed: int, canvas: int) -> _Draw:
    pairs = torch.tensor([_who(split, label, number, seed) for number in videos])
    chance, quality = torch.empty(len(places), _CHANCES), torch.empty(len(places), dtype=torch.int64)
    noise = torch.empty(len(places), 2, 3, canvas + 2, canvas + 2)
    for row, place in enumerate(places):
        random = generator(seed, "faces frame", split, label, place)
        chance[row] = torch.rand(_CHANCES, generator=random)
        quality[row] = torch.randint(75, 99, (), generator=random)
        torch.randn(noise.shape[1:], generator=random, out=noise[row])
    return _Draw(pairs[:, 0], pairs[:, 1], chance, noise, quality)


def _people(numbers: Tensor, seed: int, unit: float) -> People:
    chance, texture = torch.empty(len(numbers), TRAITS), torch.empty(len(numbers), 1, TEXTURE, TEXTURE)
    for row, number in enumerate(numbers.tolist()):
        random = generator(seed, "faces traits", number)
        chance[row] = torch.rand(TRAITS, generator=random)
        texture[row] = torch.randn(1, TEXTURE, TEXTURE, generator=random)
    return People(chance, texture, unit)


def _forge(kind: str, drawn: _Draw, seed: int, canvas: int, unit: float) -> Tensor:
    """Draw (B, 3, canvas, canvas) frames in [0, 1] of one kind, `REAL` among them."""
    people, poses = _people(drawn.people, seed, unit), Poses(drawn.chance[:, :POSE], unit)
    images = add_camera_noise(paint_faces(people, poses, canvas), drawn.noise[:, 0])
    expression, settings, rest = drawn.chance[:, POSE:].split([2, 4, SELF_BLEND], 1)
    match kind:
        case "swap":
            others = paint_faces(_people(drawn.others, seed, unit), poses, canvas)
            mask = inner_face(people, poses).mask(canvas, unit * between(2, 4, settings[:, 0]))
            return swap(images, add_camera_noise(others, drawn.noise[:, 1]), mask, settings[:, 1:3])
        case "reenact":
            moved = poses.with_expression(expression)
            mask = mouth_region(people, moved).mask(canvas, unit * between(1, 2.5, settings[:, 0]))
            return reenact(images, add_camera_noise(paint_faces(people, moved, canvas), drawn.noise[:, 1]), mask)
        case "self_blend":
            regions = [inner_face(people, poses), mouth_region(people, poses), eye_band(people, poses)]
            return self_blend(images, regions, rest, unit)
    return images


def swap(target: Tensor, source: Tensor, mask: Tensor, chance: Tensor) -> Tensor:
    """Put another person's face into images: resampled by 0.45 to 0.65, its colour moved by 60 to 100 % towards the target's, blended.

    Args:
        target: (B, 3, S, S) in [0, 1].
        source: (B, 3, S, S) in [0, 1]: the other person in the same pose.
        mask: (B, 1, S, S) in [0, 1].
        chance: (B, 2) in [0, 1): the resampling and the colour.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    coarse = resample(source, between(0.45, 0.65, chance[:, 0]))
    return blend(target, move_colours(coarse, target, mask, between(0.6, 1.0, chance[:, 1])), mask).clamp(0, 1)


def reenact(target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Put another expression into images: smoothed by a Gaussian of 0.8 pixels, with the faint checkerboard of a decoder (0.012), blended.

    An earlier one smoothed by 0.6; with the noise drawn here, 0.8 is as hard to see as it reports.

    Args:
        target: (B, 3, S, S) in [0, 1].
        source: (B, 3, S, S) in [0, 1]: the same person with another mouth and yaw.
        mask: (B, 1, S, S) in [0, 1].

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    place = torch.arange(target.shape[-1])
    checkerboard = 0.012 * (1 - 2.0 * ((place[:, None] + place[None, :]) % 2))
    return blend(target, smooth(source, 0.8) + checkerboard, mask).clamp(0, 1)
