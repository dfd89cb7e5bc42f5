"""A schedule by name, or from a user's log of which records made each batch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from projects.cafe.schedules import epochs, malicious, uniform
from shared.data.arrays import read_npy
from shared.data.files import BadFileError

SPARE = 1.2
"""Rounds that are drawn by default, as a multiple of the fewest that can tell all records apart; random rounds repeat a little of each other."""
MOST_ENTRIES = 2**32
"""Largest T N of a schedule that is read, a byte each."""
Drawn = Literal["uniform", "epochs", "malicious"]
"""Schedules that are drawn; any other name is a file's."""
_NAMES = ", ".join(get_args(Drawn))
_FORMS = "a .csv, .json or .npy file of batches"


class _Round(NamedTuple):
    """Members of a round, and where errors say that they stand: the line of each, or `place` for all of them."""

    place: str
    members: list[int]
    lines: Sequence[int] = ()

    def of(self, position: int) -> str:
        return f"line {self.lines[position]}" if self.lines else self.place


def make_schedule(name: str, records: int, batch: int, rounds: int | None = None, seed: int = 0) -> Tensor:
    """Return a schedule by name, or one that a file holds.

    By default there are enough rounds to tell all records apart, where that is possible:

    - malicious: N.
    - uniform: 1.2 N, and more where K is near 0 or N, until each record has probably been in a batch and out of one: N (ln N + 4) / min(K, N - K).
    - epochs: 1.2 N in whole passes. If K divides N, however, the P batches of a pass add up to all records, so that each pass after the first adds
      only P - 1 to the rank, and 1.2 (N - 1) P / (P - 1) rounds are taken. A pass of one batch is a uniform round.

    Args:
        name: uniform, epochs or malicious, see `schedules`, or the path of a file, see `read_schedule`, for which `batch` and `seed` do not count.
        records: N.
        batch: K, records in a batch.
        rounds: T; None takes all of a file and otherwise the number above. Malicious rounds are repeated after the N-th.
        seed: seed of all rounds.

    Returns:
        (T, N) bool, row t holding the members of round t.

    Raises:
        FileNotFoundError: if `name` is neither a schedule nor a file.
        BadFileError: see `read_schedule`.
        ValueError: if the batch does not fit, there is no round, or the file has fewer rounds.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"there must be at least one round, got {rounds}")
    if name == "uniform":
        return uniform(records, batch, rounds or _uniform_rounds(records, batch), seed)
    if name == "epochs":
        return epochs(records, batch, rounds or _epoch_rounds(records, batch), seed)
    if name == "malicious":
        schedule = malicious(records, batch)
        return schedule.repeat(-(-(rounds or records) // records), 1)[:rounds]
    if not Path(name).expanduser().is_file():
        raise FileNotFoundError(f"no schedule {name!r}: expected {_NAMES}, or {_FORMS}, but there is no file of this name")
    schedule = read_schedule(name, records)
    if rounds is not None and rounds > len(schedule):
        raise ValueError(f"{name} holds {len(schedule)} rounds, fewer than the {rounds} asked for: lower the number, or leave it out for all of them")
    return schedule[:rounds]


def read_schedule(path: str | Path, records: int | None = None) -> Tensor:
    """Read a log of which records made each batch. Records are numbered from 0.

    CSV: a round a line, its records separated by commas; or, with the header `round,record`, a pair a line in any order, the rounds then being taken
    by rising number, where gaps do not matter. JSON: a list of rounds, each a list of records. NumPy: a (T, N) matrix of 0 and 1, or (T, K) records.
    A .npy file of zeros and ones alone is always taken for a matrix: as records it could only be about number 0 and 1.

    Args:
        path: a .csv (or .txt), .json or .npy file.
        records: N; None takes the largest number and one, or the width of a matrix.

    Returns:
        (T, N) bool, row t holding the members of round t.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it is empty or cannot be read, or a round is empty, or an entry is no whole number, negative, not below N, or twice in a
            round; it names the line, or the round, counted from 0.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected {_FORMS}")
    readers = {".csv": _read_csv, ".txt": _read_csv, ".json": _read_json, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        raise BadFileError(f"{path} ends in {path.suffix or 'nothing'!r}: expected {_FORMS}")
    rounds, width = readers[path.suffix.lower()](path)
    if not rounds:
        raise BadFileError(f"{path} is empty: expected a round at least")
    if width is not None and records not in (None, width):
        raise BadFileError(f"{path} is a matrix of 0 and 1 for {width} records, but there are {records}: give it one column a record")
    known = width if records is None else records
    for each in rounds:
        _check(path, each, known)
    records = 1 + max(max(each.members) for each in rounds) if known is None else known
    if len(rounds) * records > MOST_ENTRIES:
        raise BadFileError(f"{path} holds {len(rounds)} rounds of records up to number {records - 1}, too many to hold: number the records from 0")
    schedule = torch.zeros(len(rounds), records, dtype=torch.bool)
    for row, each in zip(schedule, rounds, strict=True):
        row[each.members] = True
    return schedule


def _uniform_rounds(records: int, batch: int) -> int:
    """Return 1.2 N, or what it takes to have each record once in and once out of a batch, with a chance of about 1 - e^-4 (coupon collector)."""
    rarer = min(batch, records - batch)
    collected = records / rarer * (math.log(records) + 4) if rarer > 0 else 0
    return math.ceil(max(SPARE * records, collected))


def _epoch_rounds(records: int, batch: int) -> int:
    """Return rounds enough for shuffled passes, see `make_schedule`; passes of one batch are uniform ones."""
    a_pass = records // batch if batch > 0 else 1
    if a_pass <= 1:
        return _uniform_rounds(records, batch)
    fewest = (records - 1) * a_pass / (a_pass - 1) if records % batch == 0 else records
    return math.ceil(SPARE * fewest / a_pass) * a_pass


def _read_csv(path: Path) -> tuple[list[_Round], None]:
    lines = _text(path).rstrip().splitlines()
    if lines and sorted(cell.strip().lower() for cell in lines[0].split(",")) == ["record", "round"]:
        return _read_pairs(path, lines), None
    rows = [line.rstrip(", \t") for line in lines]  # spreadsheets fill short rows up with commas
    return [_Round(f"line {at}", _numbers(path, f"line {at}", row.split(",") if row else [])) for at, row in enumerate(rows, 1)], None


def _read_pairs(path: Path, lines: list[str]) -> list[_Round]:
    """Gather the members of each round from pairs, below a header that says which comes first."""
    order = -1 if lines[0].lstrip().lower().startswith("record") else 1
    rounds: dict[int, list[tuple[int, int]]] = {}
    for at, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        pair = _numbers(path, f"line {at}", line.split(","))
        if len(pair) != 2:
            raise BadFileError(f"{path}, line {at}: {len(pair)} numbers, but the header says {lines[0].strip()!r}: give two a line")
        number, record = pair[::order]
        rounds.setdefault(number, []).append((at, record))
    return [_Round(f"round {number}", [record for _, record in found], [at for at, _ in found]) for number, found in sorted(rounds.items())]


def _read_json(path: Path) -> tuple[list[_Round], None]:
    text = _text(path)
    try:
        content = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"cannot read {path} as JSON: {error}; expected a list of rounds, each a list of records") from error
    if not isinstance(content, list):
        raise BadFileError(f"{path} is no list: expected a list of rounds, each a list of records")
    for number, members in enumerate(content):
        if not isinstance(members, list):
            raise BadFileError(f"{path}, round {number}: {str(members)[:40]!r} is no list of records")
    return [_Round(f"round {number}", _numbers(path, f"round {number}", members)) for number, members in enumerate(content)], None


def _read_npy(path: Path) -> tuple[list[_Round], int | None]:
    array = read_npy(path, "write it by numpy.save, of numbers")
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise BadFileError(
            f"{path} holds an array {array.shape} of {array.dtype}: expected numbers (T, N), 0 and 1, or (T, K), the records of each round"
        )
    is_matrix = bool(((array == 0) | (array == 1)).all())
    if not is_matrix and array.dtype.kind == "f":
        broken = np.argwhere(~(np.abs(array) < 2**53) | (array % 1 != 0))  # NaN is not below anything
        if len(broken):
            raise BadFileError(f"{path}, round {broken[0, 0]}: {array[tuple(broken[0])]} is no record number: give whole numbers from 0")
    rows = [np.flatnonzero(row) if is_matrix else row.astype(np.int64) for row in array]
    return [_Round(f"round {number}", row.tolist()) for number, row in enumerate(rows)], array.shape[1] if is_matrix else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(f"cannot read {path} as text: {error}; save it in UTF-8") from error


def _numbers(path: Path, place: str, entries: Sequence[object]) -> list[int]:
    """Return whole numbers as such, from text too."""
    wrong = [entry for entry in entries if isinstance(entry, bool) or not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", str(entry))]
    if wrong:
        raise BadFileError(f"{path}, {place}: {str(wrong[0]).strip()[:40]!r} is no record number: give whole numbers from 0, separated by commas")
    return [int(str(entry)) for entry in entries]


def _check(path: Path, each: _Round, records: int | None) -> None:
    """Refuse a round that is empty, or has a member that cannot be or is there already."""
    if not each.members:
        raise BadFileError(f"{path}, {each.place}: a round without records: leave it out, and its gradients too")
    seen: set[int] = set()
    for position, member in enumerate(each.members):
        if member < 0:
            raise BadFileError(f"{path}, {each.of(position)}: the record number {member} is negative: number the records from 0")
        if records is not None and member >= records:
            raise BadFileError(f"{path}, {each.of(position)}: there is no record {member}: the {records} records have the numbers 0 to {records - 1}")
        if member in seen:
            raise BadFileError(f"{path}, {each.of(position)}: record {member} is in {each.place} twice: a batch has each record once")
        seen.add(member)
