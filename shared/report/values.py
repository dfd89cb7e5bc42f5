"""How numbers, durations, moments and tables are written in a report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared.results import shown

MEASURED = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(\s?%)?(\s*(±|\+/-).*)?$|^[-+]?(nan|inf)$|^-$", re.IGNORECASE)
LONG_DECIMAL = re.compile(r"^[-+]?\d*\.\d+([eE][-+]?\d+)?$")


@dataclass(frozen=True)
class Table:
    """Cells as they are shown.

    Args:
        columns: column names.
        rows: cells, each row as long as `columns`.
        aligned: for each column, whether it holds numbers for the most part and is aligned to the right.
        caption: name of the table.
        link: address of the file that the table comes from, relative to the page; empty if there is none.
        note: what is not shown.
    """

    columns: list[str]
    rows: list[list[str]]
    aligned: list[bool]
    caption: str = ""
    link: str = ""
    note: str = ""


def make_table(columns: Sequence[object], rows: Sequence[Sequence[object]], caption: str = "", link: str = "", note: str = "") -> Table:
    """Format cells and align columns; rows of other lengths than the header's are filled up with empty cells."""
    width = max([len(columns), *(len(row) for row in rows)])
    written = [[text(cell) for cell in row] + [""] * (width - len(row)) for row in rows]
    aligned = [sum(1 if MEASURED.match(row[i]) else -1 for row in written if row[i]) > 0 for i in range(width)]
    return Table([str(column) for column in columns] + [""] * (width - len(columns)), written, aligned, caption, link, note)


def text(value: Any) -> str:
    """Write a value from JSON, YAML or CSV for a reader; decimal numbers with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, dict) and {"mean", "std", "n"} <= value.keys():
        return shown(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return number(float(value)) if len(value) > 5 and LONG_DECIMAL.match(value) else value
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False, default=str)


def number(value: float) -> str:
    """Write a number with four significant digits, but whole below ten million."""
    if not math.isfinite(value):
        return str(value)
    if 1e4 <= abs(value) < 1e7 or (value == int(value) and abs(value) < 1e7):
        return f"{value + 0.0:.0f}"  # adding zero takes the sign off a negative zero
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def duration(seconds: float | None) -> str:
    """Write a duration in seconds as `12.3 s`, `4 min 05 s` or `2 h 07 min`; empty if it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(iso: str) -> str:
    """Write an ISO time as `22 November 2026, 04:46 UTC`; anything else stays as it is."""
    try:
        time = datetime.fromisoformat(iso)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return iso
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def size(count: float) -> str:
    """Write a number of bytes as `512 B`, `3.4 kB`, `12 MB`, ..."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
