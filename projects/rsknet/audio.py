"""Recordings from files: found, checked before any work, read in part and brought to the wanted rate; and written.

Files come from outside: length, sample rate and number of channels are bounded before anything is decoded, and memory grows only with what is
returned.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from shared.data.files import BadFileError, first_few
from shared.data.inputs import Input, find_files, named
from shared.runs import atomic

if TYPE_CHECKING:
    from soundfile import SoundFile

Channel = Literal["mean"] | int
"""Which channel is read: one by its number, from 0, or the mean of all."""

EXTENSIONS = (".aif", ".aiff", ".flac", ".ogg", ".opus", ".wav")
"""Endings of recordings, in lower case."""
UNREAD = (".aac", ".m4a", ".mp3", ".mp4")
"""Endings of recordings that must be converted: AAC, as VoxCeleb2 comes, is unknown to libsndfile, and in MP3 it does not find a part exactly."""
MAX_SECONDS = 4 * 3600
"""Longest recording that is read."""
RATES = (4000, 192000)
"""Lowest and highest sample rate that is read, in Hz."""
MAX_CHANNELS = 64
"""Most channels that are read."""

_LOUDEST = 16.0  # beyond this, samples of a float file are certainly not in [-1, 1]
_PIECE = 10  # seconds that are decoded at a time
_CROSSINGS = 48  # of the resampling filter on either side of its middle: flat to 0.88 of the lower half rate, 90 dB down from 1.0 on
_BETA = 8.96  # Kaiser window for 90 dB


@dataclass(frozen=True)
class Info:
    """What a file's header says.

    Attributes:
        rate: sample rate in Hz.
        samples: samples of each channel.
        channels: number of channels.
    """

    rate: int
    samples: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.rate

    def samples_at(self, rate: int) -> int:
        """Return the number of samples after resampling."""
        return -(-self.samples * rate // self.rate)


def info(path: str | Path) -> Info:
    """Return what a file's header says.

    Raises:
        BadFileError: if the file is not a recording, empty, longer than `MAX_SECONDS`, or has a sample rate outside `RATES` or too many channels.
        FileNotFoundError: if there is no such file.
    """
    with _opened(path) as (_, header):
        return header


def read(path: str | Path, rate: int, start: int = 0, samples: int | None = None, channel: Channel = "mean") -> Tensor:
    """Read a recording, or a part of it, at a sample rate; of a part, only what it needs is decoded.

    Args:
        path: a file in one of the formats of `EXTENSIONS`; what is inside decides, not the ending.
        rate: wanted sample rate in Hz; the file is resampled if it has another.
        start: where to begin, in samples at the wanted rate.
        samples: how many to read, at the wanted rate; None reads to the end.
        channel: number of a channel, from 0, or "mean" for the mean of all.

    Returns:
        (N,) float32, in [-1, 1] but for what a float file or the resampling adds. A part equals the same part of the whole.

    Raises:
        BadFileError: see `info`; or if the content is damaged, or has values that are not finite or far beyond [-1, 1].
        FileNotFoundError: if there is no such file.
        ValueError: if the part is not inside the recording, or there is no such channel.
    """
    with _opened(path) as (sound, header):
        total = header.samples_at(rate)
        end = total if samples is None else start + samples
        if not 0 <= start <= end <= total:
            raise ValueError(f"{path} has {total} samples at {rate} Hz, which do not hold those from {start} to {end}")
        if channel != "mean" and not 0 <= channel < header.channels:
            raise ValueError(f"{path} has {header.channels} channels, numbered from 0: there is no channel {channel}")
        waveform = np.empty(end - start, dtype=np.float32)
        for first in range(start, end, _PIECE * rate):
            last = min(first + _PIECE * rate, end)
            waveform[first - start : last - start] = _part(sound, header, rate, first, last, channel)
    return torch.from_numpy(waveform)


def write(path: str | Path, waveform: Tensor, rate: int) -> None:
    """Write a waveform (N,) in [-1, 1] with 16 bits, as WAV or FLAC by the ending; values beyond are clipped.

    Raises:
        ValueError: if the ending is another, or the waveform has another shape, no samples, or values that are not finite.
        OSError: if the disk is full; there is no file then, and an earlier one is left as it was.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in (".flac", ".wav"):
        raise ValueError(f"cannot write {path}: recordings are written as .wav or .flac; choose one of these endings")
    if waveform.dim() != 1 or not len(waveform) or not torch.isfinite(waveform).all():
        raise ValueError(f"cannot write {path}: expected a waveform (N,) of finite values, got shape {tuple(waveform.shape)}")
    levels = (waveform.detach().cpu().double() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    content = io.BytesIO()
    soundfile.write(content, levels.numpy(), rate, subtype="PCM_16", format=path.suffix[1:].upper())
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def find_audio(path: str | Path, minimum_seconds: float = 0.025, allow_silence: bool = True) -> list[Input]:
    """Find the recordings that a user names, and decode each of them once, before any work.

    Args:
        path: a file, a folder with its sub-folders, or a pattern; see `shared.data.inputs.find_pictures`.
        minimum_seconds: see `check`.
        allow_silence: see `check`.

    Raises:
        FileNotFoundError: if there is nothing.
        BadFileError: naming all files that cannot be used.
        ValueError: if a pattern has `..` after a wildcard.
    """
    base, files = find_files(path, EXTENSIONS, "recording", "recordings", "inbox/*.wav")
    check(files, minimum_seconds, allow_silence)
    return named(files, base)


def passed_over(path: str | Path) -> list[Path]:
    """Return the recordings in a folder, or matching a pattern, that `find_audio` leaves out, since they must be converted first: MP3 and AAC."""
    try:
        return find_files(path, UNREAD, "recording", "recordings", "inbox/*.m4a")[1]
    except FileNotFoundError:
        return []


def check(paths: Sequence[Path], minimum_seconds: float = 0.025, allow_silence: bool = True, decode: bool = True) -> None:
    """Look at every file before any work, and name all that cannot be used.

    Args:
        paths: the files.
        minimum_seconds: shorter recordings are refused.
        allow_silence: whether recordings may be silent (zero) throughout, and so have no voice.
        decode: whether the content is looked at too, beside the header.

    Raises:
        BadFileError: one for all bad files: missing, damaged, too short or long, of an odd sample rate, with values that are not finite.
    """
    with ThreadPoolExecutor() as pool:  # libsndfile runs outside Python's lock
        bad = [complaint for complaint in pool.map(lambda path: _complaint(path, minimum_seconds, allow_silence, decode), paths) if complaint]
    if bad:
        raise BadFileError("\n  ".join([f"{len(bad)} of {len(paths)} recordings cannot be used:", *first_few(bad)]))


def _complaint(path: Path, minimum_seconds: float, allow_silence: bool, decode: bool) -> str:
    """Say why a file cannot be used; empty if it can."""
    try:
        with _opened(path) as (sound, header):
            if header.seconds < minimum_seconds:
                raise BadFileError(f"{path} is {header.seconds:.3f} s long, but at least {minimum_seconds:g} s are needed (remove it)")
            loudest, step = 0.0, _PIECE * header.rate
            for first in range(0, header.samples if decode else 0, step):
                part = _part(sound, header, header.rate, first, min(first + step, header.samples), "mean")
                loudest = max(loudest, float(np.abs(part).max()))
            if decode and not allow_silence and loudest == 0:
                what = "all its samples are zero" if header.channels == 1 else "the mean of its channels is zero"
                raise BadFileError(f"{path} is silent: {what}, so there is no voice in it (replace or remove the file)")
    except (BadFileError, OSError) as error:
        return str(error)
    return ""


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[SoundFile, Info]]:
    """Open a recording and check its header; what the decoder finds wrong inside the context becomes a `BadFileError`."""
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recording {path}: correct the path")
    try:
        with soundfile.SoundFile(path) as sound:
            if sound.format == "MP3" or not sound.seekable():  # GSM in WAV is not
                name = "an MP3" if sound.format == "MP3" else f"a {sound.subtype_info}"
                raise BadFileError(f"cannot read {path}: parts of {name} file cannot be read exactly ({_converting(path)})")
            header = Info(sound.samplerate, sound.frames, sound.channels)
            if reason := _misfit(header):
                raise BadFileError(f"cannot read {path}: {reason}")
            yield sound, header
    except (soundfile.SoundFileError, TypeError) as error:  # a TypeError for .raw files, which have no header
        raise BadFileError(
            f"cannot read {path}: it is not a recording, damaged, or in a format that libsndfile does not know ({_mend(path)})"
        ) from error


def _mend(path: Path) -> str:
    return _converting(path) if path.suffix.lower() in UNREAD else "replace or remove the file"


def _converting(path: Path) -> str:
    return f"convert it: ffmpeg -i {path.name} -ac 1 -ar 16000 {path.stem}.{'flac' if path.suffix.lower() == '.wav' else 'wav'}"


def _misfit(header: Info) -> str:
    low, high = RATES
    if header.samples < 1:
        return "it holds no samples (replace or remove the file)"
    if not low <= header.rate <= high:
        return f"its sample rate of {header.rate} Hz is not from {low} to {high} Hz (resample or remove the file)"
    if header.seconds > MAX_SECONDS:
        return f"it is {header.seconds / 3600:.1f} hours long, more than the limit of {MAX_SECONDS / 3600:g} (cut it into parts)"
    if header.channels > MAX_CHANNELS:
        return f"it has {header.channels} channels, more than the limit of {MAX_CHANNELS} (keep those with the voice)"
    return ""


def _part(sound: SoundFile, header: Info, rate: int, first: int, last: int, channel: Channel) -> np.ndarray:
    """Samples `first` to `last` at the wanted rate; around them, as much is decoded as the filter reaches."""
    from scipy.signal import resample_poly

    if header.rate == rate:
        return _decoded(sound, first, last, channel)
    up, down = rate // math.gcd(rate, header.rate), header.rate // math.gcd(rate, header.rate)
    reach = -(-_CROSSINGS * max(up, down) // up) + 1
    begin = max(0, (first * down // up - reach) // down) * down  # where an input sample falls on an output sample
    end = min(header.samples, last * down // up + reach)
    samples = resample_poly(_decoded(sound, begin, end, channel), up, down, window=_filter(up, down))
    offset = first - begin // down * up
    return samples[offset : offset + last - first]


def _decoded(sound: SoundFile, begin: int, end: int, channel: Channel) -> np.ndarray:
    if sound.tell() != begin:
        sound.seek(begin)
    samples = sound.read(end - begin, dtype="float32", always_2d=True)
    if len(samples) < end - begin:
        raise BadFileError(f"cannot read {sound.name}: it ends after {begin + len(samples)} of its samples (replace or remove the file)")
    chosen = samples.mean(axis=1) if channel == "mean" else samples[:, channel]
    if not np.abs(samples).max(initial=0) <= _LOUDEST:  # also if it is not a number
        raise BadFileError(f"cannot read {sound.name}: its values are not finite, or far beyond [-1, 1] (scale or remove the file)")
    return chosen


@lru_cache(maxsize=4)
def _filter(up: int, down: int) -> np.ndarray:
    """Low-pass filter at `up` times the file's rate."""
    from scipy.signal import firwin

    longest = max(up, down)
    return firwin(2 * _CROSSINGS * longest + 1, 0.94 / longest, window=("kaiser", _BETA)).astype(np.float32)
