"""Real data sets as they lie on the disk: MNIST, CIFAR-10, Linnaeus 5, and a user's own table (section 4 of the sheet)."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from projects.cafe.worlds import Records, Split
from shared.data.cifar import CifarDataset
from shared.data.files import BadFileError, first_few
from shared.data.folders import ImageFolderDataset

_MNIST = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}
_MOST_BYTES = 2**32  # of an idx file, unpacked
_LINNAEUS = "<root>/{train,test}/<class>/*.jpg"
_DELIMITERS = ",;\t"


def read_mnist(root: Path, split: Split) -> Records:
    """Read MNIST, or a set in its format, from idx files, compressed or not.

    Args:
        root: folder that holds MNIST/raw, as torchvision stores it, or MNIST, or raw itself.
        split: train (60000) or test (10000).

    Returns:
        Pictures (N, 1, 28, 28) uint8; the label is the digit.

    Raises:
        FileNotFoundError: if a file is missing; the message names all four.
        BadFileError: if a file is damaged, or the two do not fit.
    """
    images_file, labels_file = (_mnist_file(root, name) for name in _MNIST[split])
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise BadFileError(f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels: fetch both anew")
    if len(labels) == 0 or labels.max() > 9:
        found = f"the label {labels.max()}" if len(labels) else "no label"
        raise BadFileError(f"{labels_file} holds {found}, expected digits 0 to 9: fetch it anew")
    return Records(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), tuple("0123456789"))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes: 0, 0, 8, the number of dimensions, each of them as four bytes, most significant first, then the bytes.

    Args:
        path: the file; one that ends in .gz is unpacked on the way.
        dimensions: that it must have.

    Returns:
        Array uint8.

    Raises:
        BadFileError: if it is damaged or of another type.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _idx_content(path, cast(BinaryIO, file), dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFileError(f"cannot unpack {path}: {error}; fetch it anew") from error


def read_cifar10(root: Path, split: Split) -> Records:
    """Read CIFAR-10 from cifar-10-batches-py, running nothing that its pickles may ask for.

    Args:
        root: that folder, or the one it lies in.
        split: train (50000) or test (10000).

    Returns:
        Pictures (N, 3, 32, 32) uint8.

    Raises:
        FileNotFoundError: if a file is missing.
        BadFileError: if a file is damaged.
    """
    stored = CifarDataset(root, 10, (split,))
    return Records(stored.images, stored.labels, tuple(stored.class_names))


def read_linnaeus(root: Path, split: Split, size: int | None = None) -> Records:
    """Read Linnaeus 5, or a user's own pictures, from train/<class> and test/<class>; any size, centre squares are taken.

    Args:
        root: folder that holds train and test, or whose only folder does, such as "Linnaeus 5 64X64".
        split: train or test.
        size: side in pixels that pictures are brought to; None is the shorter side of the first training picture.

    Returns:
        Pictures (N, 3, size, size) uint8; labels are the places of the training classes in alphabetical order.

    Raises:
        FileNotFoundError: if folders are missing, or a class has no pictures.
        BadFileError: if a picture cannot be read, or the test pictures are of other classes.
    """
    root = _linnaeus_root(root)
    train = ImageFolderDataset(root / "train", has_classes=True)
    size = size or min(train[0]["image"].shape[1:])
    dataset = ImageFolderDataset(root / split, has_classes=True, size=size, on_bad_file="refuse")
    if dataset.class_names != train.class_names:
        differing = sorted(set(dataset.class_names) ^ set(train.class_names))
        raise BadFileError(f"{root}/train and {root}/test have different classes ({', '.join(first_few(differing))}): give both the same folders")
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        images = list(pool.map(lambda index: (dataset[index]["image"] * 255).round().byte(), range(len(dataset))))
    return Records(torch.stack(images), torch.tensor(dataset.labels), tuple(dataset.class_names))


def read_table(path: Path, label: int | str = -1, columns: Sequence[int | str] | None = None) -> Records:
    """Read a table of numbers and a column of labels, separated by commas, semicolons or tabs.

    Names are in the first line, unless there is a number in it; columns are then called by their place, from 0. Labels may be text or numbers.

    Args:
        path: file in UTF-8.
        label: name or place of the column of labels; -1 is the last one.
        columns: names or places of the D columns of numbers, in the order of the result; others may hold anything. None is all but the label.

    Returns:
        Table (N, D) float64; classes in the order of their numbers, or of the alphabet.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: naming the lines and columns where a value is missing, not finite, or text; or if lines differ in length, or none is a record.
        ValueError: if there is no such column, one is wanted twice, or more than half of the labels differ.
    """
    names, lines, rows = _table_cells(path)
    place = column_places(names, [label])[0]
    if len(names) < 2:
        raise ValueError(f"{path} has only the column {names[0]!r}: expected numbers and a label, separated by commas, semicolons or tabs")
    others = [column for column in range(len(names)) if column != place] if columns is None else column_places(names, columns)
    if place in others:
        raise ValueError(f"column {names[place]!r} of {path} is that of the labels, which no party holds: take it out of the columns")
    cells = list(zip(*rows, strict=True))
    read = {column: _numbers(cells[column]) for column in others}
    wrong = {column: complaints for column, (_, complaints) in read.items()}
    wrong[place] = {row: "no label" for row, cell in enumerate(cells[place]) if _is_missing(cell)}
    _refuse_cells(path, names, lines, wrong)
    table = torch.tensor([values for values, _ in read.values()], dtype=torch.float64).T.contiguous()
    labels, class_names = _classes(cells[place])
    if 2 * len(class_names) > len(rows):
        raise ValueError(f"column {names[place]!r} of {path} holds {len(class_names)} different labels in {len(rows)} records: choose that of labels")
    return Records(table, labels, class_names, tuple(names[column] for column in others))


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


# ---- MNIST


def _mnist_file(root: Path, name: str) -> Path:
    for folder in (root / "MNIST" / "raw", root / "raw", root):
        for file in (folder / f"{name}.gz", folder / name):
            if file.is_file():
                return file
    tree = ", ".join(f"{known}.gz" for names in _MNIST.values() for known in names)
    raise FileNotFoundError(f"{root} lacks {name}.gz: expected {root}/MNIST/raw/ with {tree}, as torchvision stores them; correct data.root")


def _idx_content(path: Path, file: BinaryIO, dimensions: int) -> np.ndarray:
    if file.read(4) != bytes((0, 0, 8, dimensions)):
        raise BadFileError(f"{path} is no idx file of bytes with {dimensions} dimensions, judging by its first four bytes; fetch it anew")
    header = file.read(4 * dimensions)
    shape = np.frombuffer(header[: len(header) // 4 * 4], ">u4").astype(int).tolist()
    expected = math.prod(shape)
    if len(shape) < dimensions or expected > _MOST_BYTES:
        raise BadFileError(f"{path} has a damaged beginning, which says that an array of shape {shape} follows; fetch it anew")
    content = file.read(expected + 1)
    if len(content) != expected:
        found = "more" if len(content) > expected else "fewer"
        raise BadFileError(f"{path} should hold an array of shape {shape}, but has {found} bytes; fetch it anew")
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


# ---- Linnaeus 5


def _linnaeus_root(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: expected {_LINNAEUS}; correct data.root")
    inside = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    for folder in (root, *(inside if len(inside) == 1 else ())):
        if all((folder / split).is_dir() for split in ("train", "test")):
            return folder
    raise FileNotFoundError(f"{root} does not hold the folders train and test: expected {_LINNAEUS}; correct data.root")


# ---- tables


def _table_cells(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Return the names of the columns, and the line number and the cells of each row; empty lines are skipped."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a table of numbers with a column of labels, such as a .csv file; correct data.root")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=first.count), skipinitialspace=True)
            read = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFileError(f"cannot read {path} as a table: {error}; save it as CSV in UTF-8") from error
    if not read:
        raise BadFileError(f"{path} is empty: expected a table of numbers with a column of labels")
    has_names = not any(_is_number(cell) for cell in read[0][1])
    names = read[0][1] if has_names else [str(place) for place in range(len(read[0][1]))]
    rows = read[has_names:]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadFileError(f"{path} has several columns named {', '.join(map(repr, first_few(twice)))}: give each its own name")
    if not rows:
        raise BadFileError(f"{path} holds names of columns, but no records: add some")
    if uneven := [f"line {line}: {len(cells)}" for line, cells in rows if len(cells) != len(names)]:
        raise BadFileError("\n  ".join([f"{path} has {len(names)} columns, but some lines have more or fewer:", *first_few(uneven), "mend them"]))
    return names, [line for line, _ in rows], [cells for _, cells in rows]


def _numbers(cells: Sequence[str]) -> tuple[list[float], dict[int, str]]:
    """Convert a column; returns the numbers, and what is wrong with each cell that is none, by its row."""
    values, wrong = [], {}
    for row, cell in enumerate(cells):
        values.append(float(cell) if _is_number(cell) else math.nan)
        if not math.isfinite(values[-1]):
            is_text = not _is_missing(cell) and not _is_number(cell)
            wrong[row] = f"the text {cell[:40]!r}" if is_text else f"{cell!r} is not finite" if _is_number(cell) else "no value"
    return values, wrong


def _refuse_cells(path: Path, names: Sequence[str], lines: Sequence[int], wrong: Mapping[int, Mapping[int, str]]) -> None:
    """Raise an error that names the cells in which something is wrong, given by column and row, unless there are none."""
    told = sorted((lines[row], f"column {names[column]!r}: {what}") for column, rows in wrong.items() for row, what in rows.items())
    if told:
        shown = first_few([f"line {line}, {what}" for line, what in told])
        mend = "fill or remove these lines, turn text into numbers, or name the other columns in data.columns"
        raise BadFileError("\n  ".join([f"{path} holds {len(told)} values that cannot be used:", *shown, mend]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_missing(cell: str) -> bool:
    return cell.lower() in ("", "nan", "na", "n/a", "null", "none")


def _classes(cells: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Number the labels of a column; 1 and 1.0 are the same one."""
    are_numbers = all(map(_is_number, cells))
    spelt = [str(float(cell)).removesuffix(".0") for cell in cells] if are_numbers else list(cells)
    names = sorted(set(spelt), key=float) if are_numbers else sorted(set(spelt))
    number = {name: place for place, name in enumerate(names)}
    return torch.tensor([number[name] for name in spelt]), tuple(names)
