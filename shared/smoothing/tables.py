"""Reads certification tables as they were published: Cohen's columns and their variants, with what is odd about them noted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.smoothing.log import Row, read_rows

_NAMES = {"idx": "index", "label": "label", "predict": "predicted", "radius": "radius", "radius proved": "radius", "correct": "stated_correct"}
_TIMES = ("time", "time_forward")
_DURATION = re.compile(r"(?:(\d+) days?, )?(\d+):(\d{2}):(\d{2}(?:\.\d+)?)")


@dataclass(frozen=True)
class Table:
    """A certification table, one row an image.

    Attributes:
        index: (N,) int64 indices in the data set.
        label: (N,) int64 true classes.
        predicted: (N,) int64 classes, -1 for abstentions.
        radius: (N,) float64; NaN in tables of predictions, which have none.
        stated_correct: (N,) float64, the column as it stands, which some codes fill with a running total.
        seconds: (N,) float64; NaN where there is no time.
        digits: (N,) float64, value of the last digit that the radius was written with.
        notes: what was left out or odd.
    """

    index: Tensor
    label: Tensor
    predicted: Tensor
    radius: Tensor
    stated_correct: Tensor
    seconds: Tensor
    digits: Tensor
    notes: list[str] = field(default_factory=list)

    @property
    def is_correct(self) -> Tensor:
        """(N,) whether a class is certified and is the label; made from these columns, not read from the file."""
        return (self.predicted == self.label) & (self.predicted >= 0)

    def __len__(self) -> int:
        return len(self.index)


def read_table(path: str | Path) -> Table:
    """Read a tab-separated certification table: Cohen's, ANCER's, ISS's, adaptive ensembles', DRS's, ours.

    Both ends of line, a byte order mark, no last newline, a cut last line, further columns, summary lines at the end, and times in seconds or as
    `h:mm:ss` will do.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the header lacks idx, label or predict, or no row can be read.
    """
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    names = [name.strip() for name in lines[0][1].split("\t")] if lines else []
    if missing := [name for name in ("idx", "label", "predict") if name not in names]:
        raise ValueError(
            f"{path} is no certification table: its first line lacks {', '.join(missing)} (expected idx, label, predict, radius, correct, time)"
        )
    rows, notes = [], []
    for number, line in lines[1:]:
        row = _parse(names, line)
        if row is None:
            notes.append(f"line {number} is no row: {line[:60]!r}")
        else:
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} has a header but no row that can be read{': ' + notes[0] if notes else ''}")
    names = ["index", "label", "predicted", "radius", "stated_correct", "seconds", "digits"]
    return Table(**{name: _column(rows, name) for name in names}, notes=notes)


def read_sidecar(path: str | Path) -> tuple[dict[str, Any], list[Row]] | None:
    """Read the log that `CertificationLog.merge` wrote beside a table: settings and rows; None if there is none.

    Args:
        path: the table; its log has the same name and ends in .jsonl.

    Raises:
        ValueError: if the file is damaged, or no log of ours.
    """
    log = Path(path).with_suffix(".jsonl")
    if log == Path(path) or not log.is_file():
        return None
    try:
        return read_rows(log)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{log} is no log of ours, or damaged ({error}): move it away to take the table alone") from error


def _column(rows: list[dict[str, float]], name: str) -> Tensor:
    dtype = torch.int64 if name in ("index", "label", "predicted") else torch.float64
    return torch.tensor([row[name] for row in rows], dtype=dtype)


def _parse(names: list[str], line: str) -> dict[str, Any] | None:
    cells = line.split("\t")
    if len(cells) != len(names):
        return None
    row: dict[str, Any] = {"radius": float("nan"), "stated_correct": float("nan"), "seconds": float("nan"), "digits": 0.0}
    try:
        for name, cell in zip(names, cells, strict=True):
            if name in _NAMES:
                convert: Callable[[str], float] = float if name in ("radius", "radius proved", "correct") else int
                row[_NAMES[name]] = convert(cell.strip())
            elif name in _TIMES:
                row["seconds"] = parse_time(cell.strip())
            if _NAMES.get(name) == "radius":
                row["digits"] = last_digit(cell.strip())
    except ValueError:
        return None
    return row


def parse_time(text: str) -> float:
    """Return the seconds of a time as `0:00:15.344139`, `1 day, 2:03:04` or `15.4`.

    Raises:
        ValueError: if it is none of these.
    """
    if match := _DURATION.fullmatch(text):
        days, hours, minutes, seconds = match.groups()
        return int(days or 0) * 86_400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return float(text)


def last_digit(text: str) -> float:
    """Return what the last of three significant digits is worth: 0.01 in "1.9" and "1.92", 0.001 in "0.95"; less if there are more."""
    value = abs(float(text))
    if value == 0:
        return 0.0
    decimals = len(text.partition("e")[0].partition(".")[2])
    place = torch.tensor(value, dtype=torch.float64).log10().floor().item()
    return min(10.0 ** (place - 2), 10.0**-decimals)  # trailing zeros are not written
