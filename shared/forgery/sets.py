"""Frames of real and manipulated videos as one kind of data set, held in memory or read when their turn comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.files import read_image
from shared.data.selection import evenly_spaced

REAL = "real"
"""The kind of frames that nobody manipulated; every other kind is a manipulation's name."""


@dataclass(frozen=True)
class Video:
    """A video, or a single image.

    Args:
        dataset: name of the data set.
        manipulation: name of the manipulation, or `REAL`.
        name: name of the video within both.
        identities: people, or videos that stand for them, whose faces or heads are seen; empty where that is not known.
    """

    dataset: str
    manipulation: str
    name: str
    identities: frozenset[str] = frozenset()

    @property
    def label(self) -> int:
        """0 for real, 1 for fake."""
        return int(self.manipulation != REAL)

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells videos apart: names alone do not, since four manipulations of a video share one."""
        return self.dataset, self.manipulation, self.name


@dataclass(frozen=True)
class Clip:
    """A video with all its frames in order of time, each a file's path or a key of a store."""

    video: Video
    frames: tuple[str, ...]


class Frames(Protocol):
    """Frames by their number."""

    def __len__(self) -> int:
        """Return the number of frames."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the frames with the numbers (B,), as (B, 3, H, W) uint8."""


Reader = Callable[[list[str], int], Frames]
"""Makes what reads frames, from their names and the side of the square that they are stretched to."""


class FrameFiles:
    """Image files, each brought to a square by stretching, as the reference does.

    Args:
        paths: the files.
        size: side of the square, in pixels.
    """

    def __init__(self, paths: Sequence[str], size: int) -> None:
        self.paths, self.size = list(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return torch.stack([stretched(read_image(self.paths[index]), self.size) for index in indices.tolist()])


def stretched(image: Tensor, size: int) -> Tensor:
    """Bring a (3, H, W) image in [0, 1] to (3, size, size) uint8, bilinearly with anti-aliasing; the same for both classes and for every format."""
    return stretched_levels((image * 255).round().byte(), size)


def stretched_levels(levels: Tensor, size: int) -> Tensor:
    """Bring a (3, H, W) uint8 image to (3, size, size), as `stretched` does."""
    if levels.shape[1:] == (size, size):
        return levels
    return F.interpolate(levels[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0]


class ForgerySet(Dataset):
    """Labelled frames; batches are `image` (B, 3, H, W) uint8, `label` (B,), `video` (B,) and `index` (B,), all three int64.

    Args:
        frames: (N, 3, H, W) uint8, or a reader of such.
        videos: the videos.
        video: (N,) int64, which of them each frame belongs to.

    Attributes:
        labels: (N,) int64, 0 real and 1 fake.

    Raises:
        ValueError: if there are not as many numbers of videos as frames, or none, or if one is out of range.
    """

    def __init__(self, frames: Tensor | Frames, videos: Sequence[Video], video: Tensor) -> None:
        if len(frames) != len(video) or len(video) == 0:
            raise ValueError(f"{len(frames)} frames with {len(video)} numbers of videos: there must be one a frame, and at least one frame")
        if int(video.min()) < 0 or int(video.max()) >= len(videos):
            raise ValueError(f"numbers of videos lie in {int(video.min())}..{int(video.max())}, but there are {len(videos)} videos")
        self.frames, self.videos, self.video = frames, list(videos), video
        self.labels = torch.tensor([one.label for one in self.videos])[video]

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return {"image": self.frames[index], "label": self.labels[index], "video": self.video[index], "index": index}

    @property
    def manipulations(self) -> list[str]:
        """Kind of each frame, `REAL` or a manipulation's name."""
        kinds = [one.manipulation for one in self.videos]
        return [kinds[number] for number in self.video.tolist()]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Manipulations that occur, sorted, without `REAL`."""
        return tuple(sorted(set(self.manipulations) - {REAL}))

    def examples(self, count: int) -> list[int]:
        """Return the places of up to `count` frames to show, half of them real, evenly over the videos."""
        places = [(self.labels == label).nonzero()[:, 0].tolist() for label in (0, 1)]
        wanted = (count - count // 2, count // 2)
        return [own[place] for own, number in zip(places, wanted, strict=True) if number for place in evenly_spaced(len(own), number)]

    def subset(self, indices: Sequence[int] | Tensor) -> ForgerySet:
        """Return some frames, with the videos they belong to."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        kept, video = self.video[index].unique(return_inverse=True)
        frames = self.frames[index] if isinstance(self.frames, Tensor) else _Chosen(self.frames, index)
        return ForgerySet(frames, [self.videos[number] for number in kept.tolist()], video)

    def select(self, manipulations: Sequence[str]) -> ForgerySet:
        """Return the real frames and those of some manipulations.

        Raises:
            ValueError: if a manipulation does not occur.
        """
        check_kinds(manipulations, self.kinds)
        wanted = {REAL, *manipulations}
        return self.subset([index for index, kind in enumerate(self.manipulations) if kind in wanted])


def frames_of(
    clips: Sequence[Clip],
    count: int,
    size: int,
    real_count: int | None = None,
    repeat: bool = False,
    reader: Reader = FrameFiles,
) -> ForgerySet:
    """Take evenly spaced frames of every video.

    Args:
        clips: the videos.
        count: frames of each.
        size: side of the square that frames are stretched to, in pixels.
        real_count: frames of each real video; None is `count`. The reference balances the classes so: 80 for real, 20 for each of four fakes.
        repeat: takes frames of short videos several times.
        reader: makes what reads them, from their names and `size`.

    Raises:
        ValueError: if there are no frames, or a count is below 1.
    """
    names: list[str] = []
    video: list[int] = []
    for number, clip in enumerate(clips):
        wanted = count if clip.video.label or real_count is None else real_count
        chosen = evenly_spaced(len(clip.frames), wanted, repeat) if clip.frames else []
        names += [clip.frames[place] for place in chosen]
        video += [number] * len(chosen)
    if not names:
        raise ValueError("there are no frames to take: every video is empty, or there is none")
    return ForgerySet(reader(names, size), [clip.video for clip in clips], torch.tensor(video))


class _Chosen:
    """Some of the frames of a reader, in a given order."""

    def __init__(self, frames: Frames, index: Tensor) -> None:
        self.frames, self.index = frames, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.frames[self.index[indices]]


def identity(batch: Any) -> Any:
    """Collate function for sets that make whole batches."""
    return batch


def check_kinds(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names of manipulations that are not there.

    Raises:
        ValueError: with the names that there are.
    """
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ValueError(f"no manipulation {', '.join(unknown)}; there are: {', '.join(sorted(known)) or 'none'}")


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts names as people count: `frame 2.png` before `frame 10.png`, whatever else is in them."""
    parts = re.split(r"(\d+)", Path(name).stem)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)
