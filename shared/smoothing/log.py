"""Logs of certificates: part files that survive a kill, and the merged table in the columns that people's scripts read.

<folder>/part-0000.jsonl   one process's rows in order of arrival; the first line holds the settings and their hash
<folder>/certify.tsv       idx, label, predict, radius, correct, time, sorted by idx (Cohen et al. 2019), radius cut to three significant digits
<folder>/certify.jsonl     the same rows with full radii, counts, bounds and how they were drawn
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

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
        """Whether the certified class is the label."""
        return self.predicted == self.label

    def line(self, rounding: bool = False) -> str:
        """Return the row in Cohen's columns.

        Args:
            rounding: round the radius to the nearest three digits as the original does, which may over-claim, instead of cutting it.
        """
        radius = f"{self.radius:.3}" if rounding else floored(self.radius)
        took = datetime.timedelta(seconds=round(self.seconds, 6))
        return f"{self.index}\t{self.label}\t{self.predicted}\t{radius}\t{int(self.is_correct)}\t{took}"


def config_hash(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits for the settings that results depend on: all that is given, whatever its order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class CertificationLog:
    """Rows of one process, appended and flushed one by one; a later run with any number of processes goes on from all of them.

    Args:
        folder: where the parts lie.
        settings: plain values that results depend on (sigma, n, alpha, seed, weights; not the batch size or the number of processes).
        rank: number of this process.

    Attributes:
        done: indices of the data set that some part already holds.

    Raises:
        ValueError: if a part was made with other settings; the message names those that differ.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self.hash = config_hash(settings)
        self.done = {row.index for row in self._rows()}
        self.path = self.folder / f"part-{rank:04d}.jsonl"
        self._file = self._open()
        self._synced = time.monotonic()

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

    def merge(self, rounding: bool = False) -> Path:
        """Write certify.tsv and certify.jsonl from all parts, sorted by index, each in one piece or not at all; call it on one process.

        Args:
            rounding: see `Row.line`.

        Returns:
            The path of certify.tsv.
        """
        rows = sorted({row.index: row for row in self._rows()}.values(), key=lambda row: row.index)
        header = json.dumps({"version": VERSION, "hash": self.hash, "settings": self.settings})
        write_text(self.folder / "certify.jsonl", "\n".join([header, *(json.dumps(asdict(row)) for row in rows)]) + "\n")
        write_text(self.folder / "certify.tsv", table(rows, rounding))
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


def read_rows(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Read the settings and the rows of a certify.jsonl or a part."""
    lines = _whole_lines(Path(path))
    return json.loads(lines[0])["settings"], [Row(**json.loads(line)) for line in lines[1:]]


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that were written to their end: what follows the last newline is torn."""
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    return whole.split("\n") if whole else []
