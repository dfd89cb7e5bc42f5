"""Recordings that can be read in parts, crops of them to learn from, and batches of whole ones to embed."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from projects.rsknet import audio
from projects.rsknet.augmentation import SPEEDS, Augmentation, change_speed, source_samples, speed_label
from projects.rsknet.sounds import repeated
from shared.data.base import Loader
from shared.data.files import BadFileError
from shared.data.folders import OnBadFile
from shared.distributed import UnpaddedSampler, world_size
from shared.seeding import derive_seed

TOGETHER = 60.0
"""Seconds of recordings, with their padding, that are embedded at a time; a longer one is embedded alone."""

_Item = TypeVar("_Item")
_CODE = ("utf-8", "surrogateescape")  # as names of files that are not UTF-8 are held
_log = logging.getLogger(__name__)
_CHUNK = 64  # headers that a thread reads at a time


class Strings(Sequence[_Item]):
    """N strings or paths in one piece of memory, which the processes that read files share: they would copy a list's items as they count uses.

    Args:
        items: what to keep.
        kind: what an item is made by, str or Path.
    """

    def __init__(self, items: Iterable[_Item], kind: Callable[[str], _Item]) -> None:
        content, ends = bytearray(), array("q", [0])
        for item in items:
            content += str(item).encode(*_CODE)
            ends.append(len(content))
        self._content, self._ends, self._kind = bytes(content), np.array(ends), kind

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[_Item]:
        for start, end in pairwise(self._ends.tolist()):
            yield self._kind(self._content[start:end].decode(*_CODE))

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[each] for each in place]
        return self._kind(self._content[self._ends[place] : self._ends[place + 1]].decode(*_CODE))


def numbered(speakers: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """Number speakers in the order of their names: returns these, and the (N,) int32 number of each given one."""
    given = list(speakers)
    names = sorted(set(given))
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.fromiter((numbers[each] for each in given), np.int32, len(given))


class Recordings(Protocol):
    """N recordings by number.

    Attributes:
        names: (N,) as lists name them.
        rate: samples a second that they are read at.
    """

    names: Sequence[str]
    rate: int

    def __len__(self) -> int: ...

    def samples(self, index: int) -> int:
        """Return the length of a recording at `rate`."""

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Return the lengths of several."""

    def read(self, index: int, start: int = 0, samples: int | None = None) -> Tensor:
        """Return (n,) float32 in [-1, 1] from `start` on; None reads to the end."""


class FileRecordings:
    """Recordings in files, read as they are used; a name of a file may end in `#from-to`, in seconds, for a part of it.

    Args:
        files: by name, or names and files.
        rate: samples a second.
        cuts: parts in seconds, by the names that have one.
    """

    def __init__(
        self, files: Mapping[str, Path] | Sequence[tuple[str, Path]], rate: int, cuts: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        pairs = list(files.items()) if isinstance(files, Mapping) else files
        self.names: Sequence[str] = Strings((name for name, _ in pairs), str)
        self.files: Sequence[Path] = Strings((file for _, file in pairs), Path)
        self.rate, self._cuts = rate, {} if cuts is None else dict(cuts)
        self._lengths = torch.full((len(pairs),), -1).share_memory_()  # a header is read once, by whichever process needs it first

    def __len__(self) -> int:
        return len(self.names)

    def samples(self, index: int) -> int:
        if self._lengths[index] < 0:
            first, last = self._span(index)
            whole = audio.info(self.files[index]).samples_at(self.rate)
            self._lengths[index] = max(0, (whole if last is None else min(last, whole)) - first)
        return int(self._lengths[index])

    def lengths(self, indices: Sequence[int]) -> list[int]:
        places = torch.from_numpy(np.asarray(indices, np.int64))
        unknown = places[self._lengths[places] < 0].tolist()
        parts = [unknown[start : start + _CHUNK] for start in range(0, len(unknown), _CHUNK)]
        with ThreadPoolExecutor() as pool:  # the disk is waited for together
            list(pool.map(lambda part: [self.samples(index) for index in part], parts))
        return self._lengths[places].tolist()

    def read(self, index: int, start: int = 0, samples: int | None = None) -> Tensor:
        first, last = self._span(index)
        if last is not None:
            last = first + self.samples(index)
            samples = last - first - start if samples is None else min(last - first - start, samples)
        return audio.read(self.files[index], self.rate, first + start, samples)

    def _span(self, index: int) -> tuple[int, int | None]:
        cut = self._cuts.get(self.names[index])
        return (0, None) if cut is None else (round(cut[0] * self.rate), round(cut[1] * self.rate))


class DrawnRecordings:
    """Recordings in memory.

    Args:
        names: (N,).
        waveforms: (N, samples).
        rate: samples a second.
    """

    def __init__(self, names: Sequence[str], waveforms: Tensor, rate: int) -> None:
        self.names, self.waveforms, self.rate = names, waveforms, rate

    def __len__(self) -> int:
        return len(self.names)

    def samples(self, index: int) -> int:
        return self.waveforms.shape[1]

    def lengths(self, indices: Sequence[int]) -> list[int]:
        return [self.waveforms.shape[1]] * len(indices)

    def read(self, index: int, start: int = 0, samples: int | None = None) -> Tensor:
        return self.waveforms[index, start : None if samples is None else start + samples]


class Crops(Dataset):
    """Random crops with their speakers' numbers, {"waveform": (n,), "label": int}; index i + e N stands for recording i of N in epoch e.

    A recording shorter than the crop is repeated. Which part, which speed and what is added depend on (seed, epoch, i) alone.

    Args:
        recordings: N recordings.
        speakers: (N,) who speaks.
        seconds: length of a crop.
        seed: of the choices.
        augmentation: what is added, or None.
        is_perturbed: plays a crop at one of `SPEEDS`, as a speaker of its own at each.
        on_bad_file: "refuse" raises at a recording that cannot be read, "skip" takes the next one of its speaker, with a warning.

    Raises:
        ValueError: if there is not one speaker for each recording.

    Attributes:
        labels: (N,) number of each speaker.
        classes: number of labels.
    """

    def __init__(
        self,
        recordings: Recordings,
        speakers: Sequence[str],
        seconds: float,
        seed: int,
        augmentation: Augmentation | None,
        is_perturbed: bool,
        on_bad_file: OnBadFile = "refuse",
    ) -> None:
        if len(speakers) != len(recordings):
            raise ValueError(f"{len(recordings)} recordings have {len(speakers)} speakers: each needs one, and a name of its own")
        self.recordings, self.seed, self.augmentation = recordings, seed, augmentation
        self.samples = round(seconds * recordings.rate)
        self.speeds = SPEEDS if is_perturbed else SPEEDS[:1]
        names, self.labels = numbered(speakers)
        self.speakers = len(names)
        self.classes = self.speakers * len(self.speeds)
        self.on_bad_file, self._bad = on_bad_file, set[int]()

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self))
        for instead in self._of_its_speaker(place):
            try:
                return self._crop(epoch, instead)
            except BadFileError as error:
                if self.on_bad_file == "refuse":
                    raise
                _log.warning("%s; another recording of its speaker is taken", error)
                self._bad.add(instead)
        raise BadFileError(f"no recording of the speaker of {self.recordings.names[place]} can be read: remove the speaker")

    def _of_its_speaker(self, place: int) -> Iterator[int]:
        """Yield a recording, and if that is of no use the following ones of its speaker, but for those that are known to be bad."""
        yield from () if place in self._bad else (place,)
        own = np.flatnonzero(self.labels == self.labels[place])
        yield from (int(other) for other in np.roll(own, -1 - int(np.searchsorted(own, place))) if other not in self._bad)

    def _crop(self, epoch: int, place: int) -> dict[str, Any]:
        rng = np.random.default_rng(derive_seed(self.seed, "crop", epoch, place))
        speed = int(rng.integers(len(self.speeds)))
        wanted = source_samples(self.samples, self.speeds[speed])
        there = self.recordings.samples(place)
        start = int(rng.integers(max(there - wanted, 0) + 1))
        waveform = repeated(self.recordings.read(place, start, min(wanted, there)), wanted)
        waveform = repeated(change_speed(waveform, self.speeds[speed]), self.samples)
        if self.augmentation is not None:
            waveform = self.augmentation(waveform, rng)
        return {"waveform": waveform, "label": speed_label(int(self.labels[place]), speed, self.speakers)}


class Whole(Dataset):
    """Whole recordings, {"waveform": (n,), "index": int}.

    Args:
        recordings: N recordings.
        longest: samples that are kept of each, from the middle; None for all.
        indices: the recordings to take; None for all.
    """

    def __init__(self, recordings: Recordings, longest: int | None = None, indices: Sequence[int] | None = None) -> None:
        self.recordings, self.longest = recordings, longest
        self.indices = range(len(recordings)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def lengths(self) -> list[int]:
        """Samples of each."""
        return [min(samples, self.longest or 2**62) for samples in self.recordings.lengths(self.indices)]

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = self.indices[place]
        spare = max(0, self.recordings.samples(index) - self.lengths[place])
        return {"waveform": self.recordings.read(index, spare // 2, self.lengths[place]), "index": index}


class Batches(Dataset):
    """Batches of about equally long recordings, the longest first: {"waveform": (B, N), "length": (B,) samples, "index": (B,)}.

    Shorter recordings have zeros behind them. A batch has as many recordings as fit into `samples` with this padding.

    Args:
        whole: the recordings.
        samples: of a batch, with its padding.
        most: recordings of a batch.
    """

    def __init__(self, whole: Whole, samples: int, most: int) -> None:
        self.whole, self.places = whole, list[list[int]]()
        lengths = whole.lengths
        for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
            batch = self.places[-1] if self.places else []
            if not batch or len(batch) == most or (len(batch) + 1) * lengths[batch[0]] > samples:
                self.places.append([])
            self.places[-1].append(place)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        items = [self.whole[place] for place in self.places[number]]
        waveforms = [item["waveform"] for item in items]
        return {
            "waveform": pad_sequence(waveforms, batch_first=True),
            "length": torch.tensor([len(waveform) for waveform in waveforms]),
            "index": torch.tensor([item["index"] for item in items]),
        }


def whole_loader(
    recordings: Recordings, seconds: float | None = None, indices: Sequence[int] | None = None, most: int = 50, **options: Any
) -> Loader:
    """Return a loader of whole recordings in `Batches`, dealt over the processes without padding: each gets one batch or more.

    Args:
        recordings: what to read.
        seconds: keeps so much from the middle of each; None keeps all.
        indices: the recordings to take; None for all.
        most: recordings of a batch.
        **options: further arguments of the loader.

    Raises:
        ValueError: if there are fewer recordings than processes.
    """
    whole = Whole(recordings, None if seconds is None else round(seconds * recordings.rate), indices)
    share = len(whole) // world_size()
    if not share:
        raise ValueError(f"{len(whole)} recordings do not go round {world_size()} processes: add recordings, or use fewer devices")
    batches = Batches(whole, round(TOGETHER * recordings.rate), min(most, share))
    return Loader(batches, batch_size=None, sampler=UnpaddedSampler(batches), **options)
