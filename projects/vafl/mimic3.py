"""In-hospital mortality of the public MIMIC-III benchmark: episodes of irregular measurements made into 48 hours of 76 numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shared.data.files import BadFileError, blamed, first_few
from shared.vertical.records import Records, Split
from shared.vertical.tables import read_lines

HOURS = 48
"""Steps of a stay, one an hour."""

_NORMAL: dict[str, str] = {
    "Capillary refill rate": "0.0",
    "Diastolic blood pressure": "59.0",
    "Fraction inspired oxygen": "0.21",
    "Glascow coma scale eye opening": "4 Spontaneously",
    "Glascow coma scale motor response": "6 Obeys Commands",
    "Glascow coma scale total": "15",
    "Glascow coma scale verbal response": "5 Oriented",
    "Glucose": "128.0",
    "Heart Rate": "86",
    "Height": "170.0",
    "Mean blood pressure": "77.0",
    "Oxygen saturation": "98.0",
    "Respiratory rate": "19",
    "Systolic blood pressure": "118.0",
    "Temperature": "36.6",
    "Weight": "81.0",
    "pH": "7.4",
}
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "Capillary refill rate": ("0.0", "1.0"),
    "Glascow coma scale eye opening": (
        "To Pain", "3 To speech", "1 No Response", "4 Spontaneously", "None", "To Speech", "Spontaneously", "2 To pain",
    ),
    "Glascow coma scale motor response": (
        "1 No Response", "3 Abnorm flexion", "Abnormal extension", "No response", "4 Flex-withdraws", "Localizes Pain", "Flex-withdraws",
        "Obeys Commands", "Abnormal Flexion", "6 Obeys Commands", "5 Localizes Pain", "2 Abnorm extensn",
    ),
    "Glascow coma scale total": ("11", "10", "13", "12", "15", "14", "3", "5", "4", "7", "6", "9", "8"),
    "Glascow coma scale verbal response": (
        "1 No Response", "No Response", "Confused", "Inappropriate Words", "Oriented", "No Response-ETT", "5 Oriented",
        "Incomprehensible sounds", "1.0 ET/Trach", "4 Confused", "2 Incomp sounds", "3 Inapprop words",
    ),
}  # fmt: skip

VARIABLES = tuple(_NORMAL)
"""The 17 variables in the benchmark's order, spelt as there, with what it takes for a value that was never measured."""

HOLDERS: dict[str, tuple[str, ...]] = {
    "circulation": ("Heart Rate", "Systolic blood pressure", "Diastolic blood pressure", "Mean blood pressure", "Capillary refill rate"),
    "breathing": ("Respiratory rate", "Oxygen saturation", "Fraction inspired oxygen", "pH"),
    "nerves": tuple(name for name in VARIABLES if name.startswith("Glascow")),
    "laboratory and bedside": ("Glucose", "Temperature", "Weight", "Height"),
}
"""Variables of each of the four parties, by who measures them: the paper does not say how it splits them."""

_TREE = "in-hospital-mortality/{train,test}/ with listfile.csv (stay,y_true) and <subject>_episode<k>_timeseries.csv"


def _widths() -> dict[str, int]:
    return {name: len(_CATEGORIES.get(name, ("",))) for name in VARIABLES}


def _starts() -> dict[str, int]:
    widths = list(_widths().values())
    return dict(zip(VARIABLES, np.cumsum([0, *widths[:-1]]).tolist(), strict=True))


WIDTH = sum(_widths().values()) + len(VARIABLES)
"""Numbers of an hour, 76: 12 measured ones, 47 of categories, and for each variable whether it was measured in that hour."""

CONTINUOUS = tuple(start for name, start in _starts().items() if name not in _CATEGORIES)
"""Places among them of the variables that are numbers, which are standardised; the others are 0 or 1."""


def party_columns() -> list[list[int]]:
    """Return each party's places among the 76: its variables, then whether each was measured."""
    starts, widths, masks = _starts(), _widths(), WIDTH - len(VARIABLES)
    return [
        [start for name in names for start in range(starts[name], starts[name] + widths[name])] + [masks + VARIABLES.index(name) for name in names]
        for names in HOLDERS.values()
    ]


def read_stays(root: Path, split: Split) -> Records:
    """Read the stays of a split, discretised but not standardised.

    Args:
        root: in-hospital-mortality, or the folder it lies in.
        split: train or test.

    Returns:
        (N, 48, 76) float32 in the order of listfile.csv; the label is 1 for those who died in hospital; ids are the names of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        BadFileError: if a file cannot be used; says which line.
    """
    folder = (root / "in-hospital-mortality" if (root / "in-hospital-mortality").is_dir() else root) / split
    stays = _listed(folder / "listfile.csv")
    if absent := [stay for stay in stays if not (folder / stay).is_file()]:
        few = ", ".join(first_few(absent))
        raise FileNotFoundError(f"{folder} lacks {len(absent)} files that its listfile.csv names: {few}; run the benchmark's extraction anew")
    features = torch.empty(len(stays), HOURS, WIDTH)
    for row, stay in enumerate(stays):
        features[row] = torch.from_numpy(discretised(folder / stay))
    return Records(features, torch.tensor(list(stays.values())), ("lived", "died"), ids=tuple(stays))


def refuse_shared_patients(train: Sequence[str], test: Sequence[str]) -> None:
    """Raise a BadFileError if stays of one patient, told by the names of their files, are in both splits."""
    both = {stay.split("_")[0] for stay in train} & {stay.split("_")[0] for stay in test}
    if both:
        raise BadFileError(f"patients {', '.join(first_few(sorted(both)))} have stays in both train and test: run the benchmark's split anew")


def discretised(path: Path) -> np.ndarray:
    """Make one file of measurements into hours as the benchmark does: the last value within an hour, carried forward until there is another.

    Args:
        path: CSV with Hours and the variables, in any order; empty cells were not measured. Rows after 48 hours are left out.

    Returns:
        (48, 76) float32: variables in the benchmark's order, categories one-hot, then the 17 masks.

    Raises:
        BadFileError: if a column or value is not the benchmark's; it refuses these too.
    """
    lines = read_lines(path, "a timeseries of the benchmark")
    header = lines[0][1]
    if sorted(header) != sorted(("Hours", *VARIABLES)):
        differing = sorted(set(header) ^ {"Hours", *VARIABLES}) or ["one twice"]
        raise BadFileError(f"{path} must have the columns Hours and the {len(VARIABLES)} variables, differing: {', '.join(first_few(differing))}")
    measured: dict[tuple[int, str], np.ndarray] = {}
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise BadFileError(f"{path}, line {line}: {len(cells)} cells under {len(header)} names; extract it anew")
        values = dict(zip(header, cells, strict=True))
        hour = _hour(path, line, values.pop("Hours"))
        if hour is not None:
            measured |= {(hour, name): _coded(path, line, name, cell) for name, cell in values.items() if cell}
    return _filled(measured)


def _filled(measured: dict[tuple[int, str], np.ndarray]) -> np.ndarray:
    """Lay values out over the hours, given by hour and variable, (48, 76)."""
    steps, masks = np.zeros((HOURS, WIDTH), np.float32), WIDTH - len(VARIABLES)
    for number, (name, start) in enumerate(_starts().items()):
        value = _coded(Path(), 0, name, _NORMAL[name])
        for hour in range(HOURS):
            found = measured.get((hour, name))
            value = value if found is None else found
            steps[hour, start : start + len(value)] = value
            steps[hour, masks + number] = found is not None
    return steps


def _hour(path: Path, line: int, cell: str) -> int | None:
    """Return the hour that a row belongs to, or None if it lies beyond the last one; a full hour closes the one before it."""
    try:
        time = float(cell)
    except ValueError:
        time = math.nan
    if not time >= 0:
        raise BadFileError(f"{path}, line {line}: {cell!r} hours is no time after admission; extract it anew")
    return int(time - 1e-6) if time <= HOURS + 1e-6 else None


def _coded(path: Path, line: int, name: str, cell: str) -> np.ndarray:
    """Turn a cell into a number, (1,), or the one-hot code of its category."""
    try:
        if name not in _CATEGORIES:
            value = float(cell)
            if math.isfinite(value):
                return np.array([value], np.float32)
        else:
            return np.eye(len(_CATEGORIES[name]), dtype=np.float32)[_category(name, cell)]
    except ValueError:
        pass
    raise BadFileError(f"{path}, line {line}: {cell!r} is no {name} that the benchmark knows; correct or empty the cell")


def _category(name: str, cell: str) -> int:
    """Return the place of a category; 15.0 is 15, as some versions of pandas write it."""
    known = _CATEGORIES[name]
    return known.index(cell) if cell in known else [_as_number(value) for value in known].index(float(cell))


def _as_number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _listed(path: Path) -> dict[str, int]:
    """Return the label of each stay."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected {_TREE}; correct data.root")
    with blamed(path, "run the benchmark's extraction anew"), path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"stay", "y_true"} <= set(rows[0]):
        raise BadFileError(f"{path} must begin with the line stay,y_true and hold a stay a line; run the benchmark's extraction anew")
    if bad := [row["stay"] for row in rows if row["y_true"] not in ("0", "1") or not row["stay"]]:
        raise BadFileError(f"{path} must say 0 or 1 for each stay, but not for {', '.join(map(str, first_few(bad)))}; run the extraction anew")
    stays = {row["stay"]: int(row["y_true"]) for row in rows}
    if len(stays) < len(rows):
        raise BadFileError(f"{path} names {len(rows) - len(stays)} stays twice: remove these lines")
    return stays
