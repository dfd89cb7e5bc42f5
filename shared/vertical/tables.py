"""Tables of numbers in text files."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.data.files import BadFileError, first_few
from shared.vertical.records import Records

_DELIMITERS = ",;\t"
_COUNTED = 3  # numbers from 0 on that are no record
_UNNAMED = re.compile(r"(Unnamed: \d+)?")  # pandas' column of row numbers, as it is written, and as it is written again


@dataclass(frozen=True)
class Cells:
    """The text of a table.

    Attributes:
        path: its file, for messages.
        names: names of the columns.
        lines: line of the file that each row ends on, from 1.
        rows: the cells of each row, without spaces around them.
    """

    path: Path
    names: list[str]
    lines: list[int]
    rows: list[list[str]]

    def column(self, place: int) -> list[str]:
        """Return the cells of a column."""
        return [row[place] for row in self.rows]

    def records(self, columns: Sequence[int], label: int) -> Records:
        """Take some columns as (N, D) float64 and one as labels, by their places; ids are the lines of the file.

        Raises:
            BadFileError: naming the lines and columns where a value is missing, not finite, or text.
        """
        table, wrong = self._read(columns)
        wrong[label] = {row: "no label" for row, cell in enumerate(self.column(label)) if is_missing(cell)}
        self._refuse(wrong, "fill or remove these lines, turn text into numbers, or name the other columns in data.columns")
        labels, class_names = numbered(self.column(label))
        names = tuple(self.names[column] for column in columns)
        return Records(table, labels, class_names, names, tuple(f"line {line}" for line in self.lines))

    def numbers(self, columns: Sequence[int]) -> Tensor:
        """Take some columns, by their places, as (N, D) float64.

        Raises:
            BadFileError: naming the lines and columns where a value is missing, not finite, or text.
        """
        table, wrong = self._read(columns)
        self._refuse(wrong, "fill or remove these lines, or turn text into numbers")
        return table

    def _read(self, columns: Sequence[int]) -> tuple[Tensor, dict[int, dict[int, str]]]:
        """Return the numbers, and what is wrong with each cell that is none, by column and row."""
        read = {column: _numbers(self.column(column)) for column in columns}
        table = torch.tensor([values for values, _ in read.values()], dtype=torch.float64).T.contiguous()
        return table, {column: complaints for column, (_, complaints) in read.items()}

    def _refuse(self, wrong: Mapping[int, Mapping[int, str]], mend: str) -> None:
        """Raise an error that names the cells in which something is wrong and the mend, unless there are none."""
        told = sorted((self.lines[row], f"column {self.names[column]!r}: {what}") for column, rows in wrong.items() for row, what in rows.items())
        if told:
            shown = first_few([f"line {line}, {what}" for line, what in told])
            raise BadFileError("\n  ".join([f"{self.path} holds {len(told)} values that cannot be used:", *shown, mend]))


def read_table(path: Path, label: int | str = -1, columns: Sequence[int | str] | None = None) -> Records:
    """Read a table of numbers and a column of labels, separated by commas, semicolons or tabs.

    Names are in the first line, unless there is a number in it; columns are then called by their place, from 0. Labels may be text or numbers.
    A column without a name is refused unless others are chosen: the row numbers that pandas writes tell the order of the records.

    Args:
        path: file in UTF-8.
        label: name or place of the column of labels; -1 is the last one.
        columns: names or places of the D columns of numbers, in the order of the result; others may hold anything. None is all but the label.

    Returns:
        Table (N, D) float64; classes in the order of their numbers, or of the alphabet.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: naming the lines and columns where a value is missing, not finite, or text; or if lines differ in length, none is a record,
            the first one counts the columns, or one has no name.
        ValueError: if there is no such column, one is wanted twice, or more than half of the labels differ.
    """
    cells = read_cells(path)
    names = cells.names
    place = column_places(names, [label])[0]
    if len(names) < 2:
        raise ValueError(f"{path} has only the column {names[0]!r}: expected numbers and a label, separated by commas, semicolons or tabs")
    others = [column for column in range(len(names)) if column != place] if columns is None else column_places(names, columns)
    if place in others:
        raise ValueError(f"column {names[place]!r} of {path} is that of the labels, which no party holds: take it out of the columns")
    if columns is None:
        refuse_unnamed(path, [names[column] for column in others], "write it with index=False, or choose the columns of numbers by data.columns")
    records = cells.records(others, place)
    refuse_many_labels(f"column {names[place]!r} of {path}", len(records.class_names), len(records))
    return records


def refuse_unnamed(path: Path, names: Sequence[str], mend: str) -> None:
    """Raise a BadFileError if a column of a file has no name, as that of the row numbers which pandas writes, or has one that pandas made up."""
    if unnamed := [name for name in names if _UNNAMED.fullmatch(name)]:
        raise BadFileError(f"{path} has a column without a name ({unnamed[0]!r}), as that of the row numbers which pandas writes: {mend}")


def refuse_many_labels(what: str, classes: int, records: int) -> None:
    """Raise a ValueError that names a column if more than half of its labels differ, as those of an identifier or of a measurement do."""
    if 2 * classes > records:
        raise ValueError(f"{what} holds {classes} different labels in {records} records: choose that of labels, or add records")


def read_cells(path: Path, expected: str = "a table of numbers with a column of labels, such as a .csv file") -> Cells:
    """Read the text of a table, whose first line holds names unless there is a number in it; see `read_table`.

    Args:
        path: file in UTF-8.
        expected: what should lie there, for the error message.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it cannot be read, lines differ in length, names are used twice, none is a record, or the first line counts the columns.
    """
    read = read_lines(path, expected)
    numbers = [cell for cell in read[0][1] if _is_number(cell)]
    if numbers == [str(place) for place in range(max(len(numbers), _COUNTED))]:
        told = f"the first line of {path} counts its columns, {', '.join(numbers[:_COUNTED])} ..., as pandas does where they have no names"
        raise BadFileError(f"{told}: name them in words, or put a line of names above it if it is a record")
    has_names = not numbers
    names = read[0][1] if has_names else [str(place) for place in range(len(read[0][1]))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadFileError(f"{path} has several columns named {', '.join(map(repr, first_few(twice)))}: give each its own name")
    return even_cells(path, names, read[has_names:])


def read_lines(path: Path, expected: str) -> list[tuple[int, list[str]]]:
    """Return the number and the cells of each line of a table that is not empty; see `read_cells`."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected {expected}; correct data.root")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=first.count), skipinitialspace=True)
            read = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFileError(f"cannot read {path} as a table: {error}; save it as CSV in UTF-8") from error
    if not read:
        raise BadFileError(f"{path} is empty: expected {expected}")
    return read


def even_cells(path: Path, names: list[str], rows: Sequence[tuple[int, list[str]]]) -> Cells:
    """Put names and numbered rows together, where there are rows and each has as many cells as there are names.

    Raises:
        BadFileError: if not.
    """
    if not rows:
        raise BadFileError(f"{path} holds names of columns, but no records: add some")
    if uneven := [f"line {line}: {len(cells)}" for line, cells in rows if len(cells) != len(names)]:
        raise BadFileError("\n  ".join([f"{path} has {len(names)} columns, but some lines have more or fewer:", *first_few(uneven), "mend them"]))
    return Cells(path, names, [line for line, _ in rows], [cells for _, cells in rows])


def numbered(cells: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Number the labels of a column, (N,) int64 and their names, in the order of their numbers or of the alphabet; 1 and 1.0 are the same one."""
    are_numbers = all(map(_is_number, cells))
    spelt = [str(float(cell)).removesuffix(".0") for cell in cells] if are_numbers else list(cells)
    names = sorted(set(spelt), key=float) if are_numbers else sorted(set(spelt))
    number = {name: place for place, name in enumerate(names)}
    return torch.tensor([number[name] for name in spelt]), tuple(names)


def column_places(names: Sequence[str], wanted: Sequence[int | str]) -> list[int]:
    """Find columns by name, or by place, from 0, or from the end where it is negative.

    Raises:
        ValueError: if there is no such column, or one is wanted twice.
    """
    places: list[int] = []
    for column in wanted:
        if isinstance(column, str) and column in names:
            places.append(names.index(column))
        elif not isinstance(column, str) and -len(names) <= column < len(names):
            places.append(column % len(names))
        else:
            known = ", ".join(first_few([repr(name) for name in names], 40))
            raise ValueError(f"there is no column {column!r}: choose a place from 0 to {len(names) - 1}, or one of {known}")
    if twice := sorted({names[place] for place in places if places.count(place) > 1}):
        raise ValueError(f"columns {', '.join(map(repr, first_few(twice)))} are given twice: each belongs to one party")
    return places


def _numbers(cells: Sequence[str]) -> tuple[list[float], dict[int, str]]:
    """Convert a column; returns the numbers, and what is wrong with each cell that is none, by its row."""
    values, wrong = [], {}
    for row, cell in enumerate(cells):
        values.append(float(cell) if _is_number(cell) else math.nan)
        if not math.isfinite(values[-1]):
            is_text = not is_missing(cell) and not _is_number(cell)
            wrong[row] = f"the text {cell[:40]!r}" if is_text else f"{cell!r} is not finite" if _is_number(cell) else "no value"
    return values, wrong


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return cell.lower() in ("", "nan", "na", "n/a", "null", "none")
