"""Logs of certificates: part files that survive a kill, and the merged table in the columns that people's scripts read.

<folder>/part-0000.jsonl   one process's rows in order of arrival; the first line holds the settings and their hash
<folder>/partial-0000.json the votes so far of the images that one process is working on, replaced now and then
<folder>/certify.tsv       idx, label, predict, radius, correct, time, sorted by idx (Cohen et al. 2019), radius cut to three significant digits
<folder>/certify.jsonl     the same rows with full radii, counts, bounds and how they were drawn
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from shared.runs import write_text
from shared.smoothing.bounds import floored

VERSION = 1
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
_SYNC_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """What was found for one image.

    Args:
        index: index in the data set.
        label: true class.
        predicted: certified class, -1 for an abstention.
        radius: certified radius as a full double, 0 for an abstention.
        seconds: time that it took.
        details: counts, bounds, draws and whatever else says how the radius came about; plain numbers, text and lists.
    """

    index: int
    label: int
    predicted: int
    radius: float
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_correct(self) -> bool:
        """Whether a class is certified and is the label."""
        return self.predicted >= 0 and self.predicted == self.label

    def line(self, rounding: bool = False) -> str:
        """Return the row in Cohen's columns.

        Args:
            rounding: round the radius to the nearest three digits as the original does, which may over-claim, instead of cutting it.
        """
        radius = f"{self.radius:.3}" if rounding else floored(self.radius)
        took = datetime.timedelta(seconds=round(self.seconds, 6))
        return f"{self.index}\t{self.label}\t{self.predicted}\t{radius}\t{int(self.is_correct)}\t{took}"


@dataclass(frozen=True)
class Partial:
    """Where an image stands that is not settled yet.

    Args:
        index: index in the data set.
        done: draws of each branch so far, those of the selection first.
        looks: how often the counts were looked at.
        selection: votes of each branch by class, without zeros; "invalid" are those of logits that are not finite.
        estimation: the same of the draws that are counted.
        seconds: time so far.
        best_draws: draws of each branch that the best certificate so far counts; 0 before there is one.
        best: the votes that it counts.
    """

    index: int
    done: int
    looks: int
    selection: list[dict[str, int]]
    estimation: list[dict[str, int]]
    seconds: float
    best_draws: int
    best: list[dict[str, int]]


def sparse(counts: Tensor) -> list[dict[str, int]]:
    """Return the votes of each branch by class, without zeros; "invalid" are those of logits that are not finite."""
    last = counts.shape[1] - 1
    return [{"invalid" if c == last else str(c): n for c, n in enumerate(row) if n} for row in counts.tolist()]


def dense(rows: Sequence[Mapping[str, int]], classes: int) -> Tensor:
    """Return the (branches, K + 1) votes that `sparse` wrote."""
    counts = torch.zeros(len(rows), classes + 1, dtype=torch.int64)
    for row, votes in zip(counts, rows, strict=True):
        for name, number in votes.items():
            row[classes if name == "invalid" else int(name)] = number
    return counts


def config_hash(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits for the settings that results depend on: all that is given, whatever its order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class CertificationLog:
    """Rows of one process, appended and flushed one by one; a later run with any number of processes goes on from all of them.

    Args:
        folder: where the parts lie.
        settings: plain values that results depend on (sigma, n, alpha, seed, weights; not the batch size or the number of processes).
        rank: number of this process.
        partial_seconds: votes of unsettled images are written when they were not for so long: what a kill costs at most.

    Attributes:
        done: indices of the data set that some part already holds.
        partials: what processes before left unsettled, by index.

    Raises:
        ValueError: if a part was made with other settings; the message names those that differ.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], rank: int = 0, partial_seconds: float = 20.0) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self.hash = config_hash(settings)
        self.done = {row.index for row in self._rows()}
        self.partials = {index: found for index, found in self._unsettled().items() if index not in self.done}
        self.path, self._partial_path = self.folder / f"part-{rank:04d}.jsonl", self.folder / f"partial-{rank:04d}.json"
        self._file = self._open()
        self._synced = self._kept = time.monotonic()
        self._partial_seconds = partial_seconds

    def _open(self) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = _whole_lines(self.path) if self.path.is_file() else []
        file = self.path.open("a", encoding="utf-8", newline="\n")
        file.truncate(sum(len(line.encode()) + 1 for line in whole))  # drops a torn last line
        if not whole:
            file.write(json.dumps({"version": VERSION, "hash": self.hash, "settings": self.settings}) + "\n")
            file.flush()
        return file

    def append(self, row: Row) -> None:
        """Write a row at once; it is on the disk at the latest half a minute later.

        Raises:
            ValueError: if the image is in the log already.
        """
        if row.index in self.done:
            raise ValueError(f"image {row.index} is in {self.folder} already")
        self._file.write(json.dumps(asdict(row)) + "\n")
        self._file.flush()
        self.done.add(row.index)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def keep(self, partials: Callable[[], Iterable[Partial]], at_once: bool = False) -> None:
        """Write where the images in the works stand, if it is time; whoever gets them in a later run goes on from there.

        Args:
            partials: called if it is time, returns the images of this process, `Stream.partials`.
            at_once: it is time.
        """
        if not at_once and time.monotonic() - self._kept < self._partial_seconds:
            return
        # what earlier processes left is written again: its file may be replaced by this one, its image may be another process's to do
        held = self.partials | {partial.index: partial for partial in partials()}
        images = [asdict(partial) for partial in held.values() if partial.index not in self.done]
        if images or self._partial_path.exists():
            write_text(self._partial_path, json.dumps({"version": VERSION, "hash": self.hash, "images": images}))
        self._kept = time.monotonic()

    def _unsettled(self) -> dict[int, Partial]:
        found: dict[int, Partial] = {}
        for path in self.folder.glob("partial-*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            for partial in (Partial(**image) for image in content["images"] if content["hash"] == self.hash):
                if partial.index not in found or partial.done > found[partial.index].done:
                    found[partial.index] = partial
        return found

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Bring everything to the disk and close the part."""
        self._sync()
        self._file.close()

    def __enter__(self) -> CertificationLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def merge(self, rounding: bool = False, indices: Collection[int] | None = None) -> Path:
        """Write certify.tsv and certify.jsonl from all parts, sorted by index, each in one piece or not at all; call it on one process.

        Votes of unsettled images are removed once all these are settled.

        Args:
            rounding: see `Row.line`.
            indices: images that the table is to hold, where a run asked for fewer than runs before; None: all that are settled.

        Returns:
            The path of certify.tsv.
        """
        settled = {row.index: row for row in self._rows()}
        rows = [settled[index] for index in sorted(settled) if indices is None or index in indices]
        header = json.dumps({"version": VERSION, "hash": self.hash, "settings": self.settings})
        write_text(self.folder / "certify.jsonl", "\n".join([header, *(json.dumps(asdict(row)) for row in rows)]) + "\n")
        write_text(self.folder / "certify.tsv", table(rows, rounding))
        if not self._unsettled().keys() - settled.keys():
            for path in self.folder.glob("partial-*.json"):
                path.unlink()
        return self.folder / "certify.tsv"

    def _rows(self) -> list[Row]:
        return [row for path in sorted(self.folder.glob("part-*.jsonl")) for row in self._read(path)]

    def _read(self, path: Path) -> list[Row]:
        lines = _whole_lines(path)
        if not lines:
            return []
        header = json.loads(lines[0])
        if header["hash"] != self.hash:
            old, new = header["settings"], self.settings
            differing = ", ".join(f"{name} {old.get(name)!r} != {new.get(name)!r}" for name in sorted(old | new) if old.get(name) != new.get(name))
            raise ValueError(f"{path} was made with other settings ({differing}): choose another folder, or remove it to begin anew")
        return [Row(**json.loads(line)) for line in lines[1:]]


def table(rows: Iterable[Row], rounding: bool = False) -> str:
    """Return a table in Cohen's columns, header first; see `Row.line`."""
    return "\n".join(["\t".join(COLUMNS), *(row.line(rounding) for row in rows)]) + "\n"


def prediction_table(rows: Iterable[Row]) -> str:
    """Return a table of predictions in Cohen's columns: idx, label, predict, correct, time; see `Prediction.rows`."""
    cells = (row.line().split("\t") for row in rows)
    return "\n".join("\t".join([*line[:3], *line[4:]]) for line in (COLUMNS, *cells)) + "\n"


def read_rows(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Read the settings and the rows of a certify.jsonl or a part."""
    lines = _whole_lines(Path(path))
    return json.loads(lines[0])["settings"], [Row(**json.loads(line)) for line in lines[1:]]


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that were written to their end: what follows the last newline is torn."""
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    return whole.split("\n") if whole else []
