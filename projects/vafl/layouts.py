"""Real data sets as they lie on the disk: Parkinson's speech, twelve views of ModelNet40, and the files of real parties."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from projects.vafl.worlds import VIEWS
from shared.data.files import EXTENSIONS, BadFileError, first_few, read_image
from shared.data.folders import fit_square
from shared.seeding import derive_seed, generator
from shared.vertical.records import Records, Split, check_split
from shared.vertical.tables import Cells, column_places, even_cells, is_missing, numbered, read_lines, refuse_many_labels, refuse_unnamed

SPEECH = "pd_speech_features.csv"
_SPEECH_TREE = f"{SPEECH} of UCI's Parkinson's Disease Classification, with the columns id, gender, 752 features, class"
_VIEWS = ("modelnet40v1", "modelnet40_images_new_12x")
_VIEWS_TREE = "modelnet40v1/<class>/{train,test}/<object>_<001..012>.jpg, or modelnet40_images_new_12x/ with <object>.obj.shaded_v<001..012>.png"
_VIEW = re.compile(r"(?P<object>.+?)(\.obj\.shaded_v|_)(?P<view>\d+)")
_PARTY = re.compile(r"party-(\d+)\.csv")
_PARTIES_TREE = "labels.csv with the columns id, label, and party-0.csv, party-1.csv ... with the columns id and numbers"


# ---- Parkinson's disease


def read_speech(root: Path) -> tuple[Records, list[str]]:
    """Read recordings of speech, three a subject, with or without the line of groups above the names.

    Args:
        root: pd_speech_features.csv, or the folder it lies in.

    Returns:
        Table (N, 753) float64 of gender and 752 features, the label being 0 for healthy, 1 for Parkinson's disease; and the subject of each record.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if columns are missing, values are no numbers, or a subject has two labels.
    """
    cells = _speech_cells(root / SPEECH if root.is_dir() else root)
    id_place, label_place = column_places(cells.names, ["id", "class"])
    records = cells.records([place for place in range(len(cells.names)) if place not in (id_place, label_place)], label_place)
    if records.class_names != ("0", "1"):
        raise BadFileError(f"{cells.path} must have the classes 0 (healthy) and 1 (Parkinson's disease), but has {', '.join(records.class_names)}")
    subjects = [_spelt(cell) for cell in cells.column(id_place)]
    labels = records.labels.tolist()
    if both := sorted({subject for subject, label in zip(subjects, labels, strict=True) if label} & _healthy(subjects, labels)):
        raise BadFileError(f"{cells.path} has subjects of both classes, {', '.join(first_few(both))}: correct the column class")
    ids = tuple(f"subject {subject}, {line}" for subject, line in zip(subjects, records.ids, strict=True))
    return Records(records.features, records.labels, ("healthy", "Parkinson's disease"), records.feature_names, ids), subjects


def by_subject(records: Records, subjects: Sequence[str], split: Split, test_fraction: float, seed: int) -> Records:
    """Cut records into train and test so that all of a subject are in one of them.

    Args:
        records: all records.
        subjects: subject of each.
        split: the part to return, in the records' order.
        test_fraction: part of the subjects for test, at least one, in (0, 1).
        seed: seed of the choice of subjects.

    Raises:
        ValueError: if there are fewer than two subjects, or `split` is unknown.
    """
    check_split(split)
    known = sorted(set(subjects))
    if len(known) < 2:
        raise ValueError(f"there is {len(known)} subject, which cannot be divided into training and test subjects: add some")
    tested = min(max(1, round(test_fraction * len(known))), len(known) - 1)
    order = torch.randperm(len(known), generator=generator(seed, "vafl", "subjects")).tolist()
    chosen = {known[place] for place in (order[:tested] if split == "test" else order[tested:])}
    return records.take(torch.tensor([row for row, subject in enumerate(subjects) if subject in chosen]))


def _speech_cells(path: Path) -> Cells:
    lines = read_lines(path, _SPEECH_TREE)
    for above, (_, names) in enumerate(lines[:2]):
        if {"id", "class"} <= set(names):
            return even_cells(path, _unlike(names), lines[above + 1 :])
    raise BadFileError(f"{path} has no line of names with id and class among its first two: expected {_SPEECH_TREE}")


def _unlike(names: Sequence[str]) -> list[str]:
    """Number the repetitions of names."""
    return [name if names.index(name) == place else f"{name} {names[:place].count(name) + 1}" for place, name in enumerate(names)]


def _healthy(subjects: Sequence[str], labels: Sequence[int]) -> set[str]:
    return {subject for subject, label in zip(subjects, labels, strict=True) if not label}


def _spelt(cell: str) -> str:
    return cell.removesuffix(".0")


# ---- ModelNet40


def read_views(root: Path, split: Split, size: int) -> Records:
    """Read the twelve views of each object of ModelNet40, in grey, centre squares brought to one size.

    Args:
        root: modelnet40v1 or modelnet40_images_new_12x, or the folder that one lies in.
        split: train or test.
        size: height and width that views are brought to, in pixels.

    Returns:
        (N, 12, 1, size, size) uint8, classes in alphabetical order; ids are <class>/<object>.

    Raises:
        FileNotFoundError: if folders are missing, or a class has no objects.
        BadFileError: if a view cannot be read, objects lack views, or an object is in both splits.
    """
    classes = _view_classes(next((root / name for name in _VIEWS if (root / name).is_dir()), root))
    found = {name: _objects(folder / split) for name, folder in classes.items()}
    for name, folder in classes.items():
        if both := sorted(found[name].keys() & _objects(folder / ("test" if split == "train" else "train")).keys()):
            raise BadFileError(f"{folder} has the same objects in train and test, {', '.join(first_few(both))}: remove them from one")
    wanted = [(label, f"{name}/{thing}", views) for label, (name, objects) in enumerate(found.items()) for thing, views in sorted(objects.items())]
    _refuse_missing_views(wanted)
    pixels = torch.empty(len(wanted), VIEWS, 1, size, size, dtype=torch.uint8)

    def read(row: int) -> None:
        views = wanted[row][2]
        for place, number in enumerate(sorted(views)):
            pixels[row, place] = (fit_square(read_image(views[number], "L"), size) * 255).round().byte()

    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        list(pool.map(read, range(len(wanted))))
    return Records(pixels, torch.tensor([label for label, _, _ in wanted]), tuple(found), ids=tuple(name for _, name, _ in wanted))


def _view_classes(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: expected {_VIEWS_TREE}; correct data.root")
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    lacking = [name for name, path in folders.items() if not ((path / "train").is_dir() and (path / "test").is_dir())]
    if not folders or lacking:
        what = f"the classes {', '.join(first_few(lacking))} lack train or test" if folders else "it has no folders of classes"
        raise FileNotFoundError(f"{root} does not hold views: {what}; expected {_VIEWS_TREE}; correct data.root")
    return folders


def _objects(folder: Path) -> dict[str, dict[int, Path]]:
    """Return the files of a folder by object and view."""
    objects: dict[str, dict[int, Path]] = {}
    for path in folder.iterdir():
        match = _VIEW.fullmatch(path.stem)
        if match and path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            objects.setdefault(match["object"], {})[int(match["view"])] = path
    if not objects:
        raise FileNotFoundError(f"no views in {folder}: expected {_VIEWS_TREE}; fill the folder, or remove the class")
    return objects


def _refuse_missing_views(wanted: Sequence[tuple[int, str, dict[int, Path]]]) -> None:
    expected = set(range(1, VIEWS + 1))
    wrong = [f"{name}: views {', '.join(map(str, sorted(expected ^ views.keys())))}" for _, name, views in wanted if views.keys() != expected]
    if wrong:
        mend = "render the missing views, or remove these objects"
        raise BadFileError("\n  ".join([f"{len(wrong)} objects do not have the views 1 to {VIEWS}, missing or too many:", *first_few(wrong), mend]))


# ---- the files of real parties


def party_count(root: Path) -> int:
    """Return how many parties' files lie in a folder, counted to the highest number; 0 where there are none."""
    numbers = [int(match[1]) for path in (root.iterdir() if root.is_dir() else ()) if (match := _PARTY.fullmatch(path.name))]
    return max(numbers, default=-1) + 1


def read_labels(root: Path) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """Read labels.csv: sorted ids, labels (N,) int64 in that order, and the names of the classes.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if a column or a label is missing, or an id is used twice.
        ValueError: if more than half of the labels differ.
    """
    cells, ids, order = _identified(root / "labels.csv")
    if "label" not in cells.names:
        raise BadFileError(f"{cells.path} has no column label: expected {_PARTIES_TREE}")
    column = cells.column(cells.names.index("label"))
    if empty := [f"line {line}" for line, cell in zip(cells.lines, column, strict=True) if is_missing(cell)]:
        raise BadFileError(f"{cells.path} lacks labels in {', '.join(first_few(empty))}: fill them, or remove these lines")
    labels, class_names = numbered(column)
    refuse_many_labels(f"column 'label' of {cells.path}", len(class_names), len(ids))
    return ids, labels[order], class_names


def read_party(root: Path, party: int, columns: Sequence[str] | None = None) -> tuple[list[str], Tensor]:
    """Read party-<m>.csv: sorted ids, and the numbers (N, D) float64 in that order.

    Args:
        root: folder of the file.
        party: m.
        columns: names of the D columns of numbers, in the order of the result; None takes all but id, as they stand.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if a value is no number, a column is missing or has no name, or an id is used twice.
    """
    cells, ids, order = _identified(root / f"party-{party}.csv")
    places = [place for place, name in enumerate(cells.names) if name != "id"] if columns is None else places_of(cells, columns)
    if not places:
        raise BadFileError(f"{cells.path} has the column id only: expected {_PARTIES_TREE}")
    refuse_unnamed(cells.path, [cells.names[place] for place in places], "write it with index=False")
    return ids, cells.numbers(places)[order]


def party_columns(root: Path, party: int) -> list[str]:
    """Return the names of the columns of numbers in party-<m>.csv, each once."""
    names = [name for name in read_lines(root / f"party-{party}.csv", _PARTIES_TREE)[0][1] if name != "id"]
    return _unlike(names)


def places_of(cells: Cells, columns: Sequence[str]) -> list[int]:
    """Find the columns of training records in a table of new ones, whatever their order there.

    Raises:
        BadFileError: if some are missing.
    """
    names = _unlike(cells.names)
    if lacking := [name for name in columns if name not in names]:
        raise BadFileError(f"{cells.path} lacks columns of the training records, {', '.join(map(repr, first_few(lacking)))}: add them")
    return [names.index(name) for name in columns]


def is_tested(name: str, seed: int, test_fraction: float) -> bool:
    """Tell whether a record is for test, from its id and the seed alone, so that parties agree without a word."""
    return derive_seed(seed, "vafl", "test", name) < test_fraction * 2**63


def _identified(path: Path) -> tuple[Cells, list[str], list[int]]:
    """Return the cells of a file, its ids in alphabetical order, and the row of each."""
    lines = read_lines(path, _PARTIES_TREE)
    names = lines[0][1]
    if names.count("id") != 1:
        raise BadFileError(f"the first line of {path} must name the columns, one of them id: expected {_PARTIES_TREE}")
    cells = even_cells(path, names, lines[1:])
    ids = cells.column(names.index("id"))
    if empty := [f"line {line}" for line, name in zip(cells.lines, ids, strict=True) if not name]:
        raise BadFileError(f"{path} lacks ids in {', '.join(first_few(empty))}: fill them, or remove these lines")
    if len(set(ids)) < len(ids):
        twice = sorted(name for name, count in Counter(ids).items() if count > 1)
        raise BadFileError(f"{path} has ids twice, {', '.join(first_few(twice))}: each record must have its own")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return cells, [ids[row] for row in order], order
