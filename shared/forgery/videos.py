"""Frames of video files, through PyAV, which brings FFmpeg along; it comes with an extra and is imported when the first video is opened."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.data.files import MAX_PIXELS, BadFileError
from shared.data.selection import evenly_spaced

EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
"""Endings of video files, in lower case."""

_log = logging.getLogger(__name__)


class VideoFrames(NamedTuple):
    """Frames of one video: `images` (T, 3, H, W) uint8, their numbers among all frames, and their times in seconds, (T,) each."""

    images: Tensor
    numbers: Tensor
    times: Tensor


def is_video(path: str | Path) -> bool:
    """Tell by the ending whether a file is a video."""
    return Path(path).suffix.lower() in EXTENSIONS


def read_video(path: str | Path, count: int = 32, max_pixels: int = MAX_PIXELS) -> VideoFrames:
    """Read evenly spaced frames of a video, turned as they are meant to be seen; they are spaced by number, whatever time lies between them.

    Memory holds the frames that are returned and one more. The whole video up to the last of them is decoded, so that the frames are exact. Damaged
    parts are left out with a warning. Where the size changes on the way, all frames are brought to the first one's.

    Args:
        path: the file.
        count: frames to read; all of them if the video has fewer.
        max_pixels: larger frames are refused.

    Raises:
        ValueError: if PyAV is not installed, or `count` is below 1.
        FileNotFoundError: if there is no such file.
        BadFileError: if it is not a video, damaged, or too large.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video {path}: correct the path")
    total = _count_frames(path)
    wanted = evenly_spaced(total, count)
    images: list[Tensor] = []
    numbers: list[int] = []
    times: list[float] = []
    with _opened(path) as (container, stream):
        if stream.width * stream.height > max_pixels:
            raise ValueError(f"its frames of {stream.width} x {stream.height} pixels are more than the limit of {max_pixels}; make it smaller")
        for number, frame in enumerate(_decoded(container, stream, path)):
            if number == wanted[len(numbers)]:
                if not numbers:
                    width, height = frame.width, frame.height
                images.append(_upright(frame, width, height))
                numbers.append(number)
                times.append(float(frame.time or 0.0))
                if len(numbers) == len(wanted):
                    break
    if not images:
        raise BadFileError(f"cannot read {path}: not one of its frames can be decoded (replace or remove the file)")
    return VideoFrames(torch.stack(images), torch.tensor(numbers), torch.tensor(times))


def _decoded(container: Any, stream: Any, path: str | Path) -> Iterator[Any]:
    """Decode packet by packet, so that a damaged one does not end the video."""
    import av

    damaged = 0
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                damaged += 1
    finally:
        if damaged:
            _log.warning("%s: %d damaged parts of the video are left out", path, damaged)


def _upright(frame: Any, width: int, height: int) -> Tensor:
    """Convert a frame to uint8 of a size, and undo its rotation: (3, height, width), or (3, width, height) if it lies on its side."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), round(frame.rotation / 90) % 4)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _count_frames(path: str | Path) -> int:
    """Count the frames by the video's packets, without decoding; what its header says is often wrong."""
    with _opened(path) as (container, stream):
        total = sum(packet.size > 0 for packet in container.demux(stream))
    if total == 0:
        raise BadFileError(f"cannot read {path}: it has no frames (replace or remove the file)")
    return total


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a video; whatever goes wrong with its content inside the context becomes a `BadFileError`."""
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: install the extra with `uv sync --extra forgery`, or give a folder of frames") from error
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:  # a list of addresses in a file opens nothing
            if not container.streams.video:
                raise ValueError("it holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except BadFileError:
        raise
    except Exception as error:  # a damaged video makes PyAV raise almost anything
        raise BadFileError(f"cannot read {path}: {error} (replace or remove the file)") from error
