"""What users have on disk: ImageNet as its archives unpack, folders of classes, and vectors in an .npz file."""

from __future__ import annotations

import csv
import re
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from projects.rco.sets import Samples
from shared.data.arrays import read_npz
from shared.data.files import BadFileError, blamed, check_images, first_few, list_images
from shared.data.folders import ImageFolderDataset, OnBadFile

_WNID = re.compile(r"n\d{8}")
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.JPEG", re.IGNORECASE)  # with its class in the name where it comes from Hugging Face
_KITS = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data")
_ANSWERS = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"  # of Kaggle's archive, three folders above ILSVRC/Data/CLS-LOC


class Listing(NamedTuple):
    """Image files with their labels, and the names of the labels."""

    paths: list[Path]
    labels: Tensor
    class_names: list[str]


def imagenet_classes(root: Path) -> list[str]:
    """Return the WordNet ids of the sub-folders of `train`, sorted: the order of the labels.

    Raises:
        FileNotFoundError: if there are none.
    """
    folder = root / "train"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _WNID.fullmatch(entry.name)) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"no ImageNet in {root}: expected {root}/train/<wnid>/<wnid>_<number>.JPEG with <wnid> such as n01440764")
    return names


def read_imagenet(root: Path) -> tuple[Listing, Listing]:
    """List the training and the validation images of ImageNet-1k.

    Validation images lie in `val/<wnid>/`, or in `val/` itself; then their names tell their classes (`ILSVRC2012_val_00000001_n01751748.JPEG`), or
    the development kit must lie beside, as `ILSVRC2012_devkit_t12/data/`, or Kaggle's `LOC_val_solution.csv` beside or at most three folders above.

    Raises:
        FileNotFoundError: if images or the kit are missing.
        BadFileError: if the kit does not fit the images.
        ValueError: if validation images are of classes that training images are not.
    """
    names = imagenet_classes(root)
    train = _by_wnid(root / "train", names)
    paths = list_images(root / "val", f"{root}/val/<wnid>/*.JPEG, or {root}/val/ILSVRC2012_val_00000001.JPEG ... and the development kit")
    flat = [path for path in paths if _FLAT.fullmatch(path.name) and path.parent == root / "val"]
    sorted_in = [path for path in paths if _WNID.fullmatch(path.relative_to(root / "val").parts[0])]
    if bool(flat) == bool(sorted_in):
        found = f"{len(flat)} images in {root}/val itself and {len(sorted_in)} in folders of classes"
        raise FileNotFoundError(f"{found}: expected all in {root}/val/<wnid>/, or all in {root}/val as ILSVRC2012_val_00000001.JPEG, ...")
    wnids = _flat_wnids(root, flat) if flat else [path.relative_to(root / "val").parts[0] for path in sorted_in]
    if unknown := sorted(set(wnids) - set(names)):
        raise ValueError(f"{root}/val has the classes {', '.join(first_few(unknown, 5))}, which {root}/train lacks: unpack their training images")
    return train, _labelled(flat or sorted_in, wnids, names)


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes of a folder, sorted, without listing its files; empty if it is missing."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")) if folder.is_dir() else []


def read_folder(root: Path, on_bad_file: OnBadFile) -> tuple[Listing, Listing]:
    """List `train/<class>/*` and `test/<class>/*`, having decoded all images once.

    Raises:
        FileNotFoundError: if a folder is missing, or a class has no image.
        BadFileError: if images cannot be read, see `shared.data.files.check_images`.
        ValueError: if test images are of classes that training images are not, or a class has no readable training image.
    """
    train, test = (ImageFolderDataset(root / split, has_classes=True) for split in ("train", "test"))
    if unknown := sorted(set(test.class_names) - set(train.class_names)):
        raise ValueError(f"{root}/test has the classes {', '.join(first_few(unknown, 5))}, which {root}/train lacks: add them there, or remove them")
    listings = []
    for folder, images in ((root / "train", train), (root / "test", test)):
        paths = check_images(images.paths, on_bad_file)
        listings.append(_labelled(paths, [path.relative_to(folder).parts[0] for path in paths], train.class_names))
    if len(train.class_names) < 2:
        raise ValueError(f"{root}/train has the class {train.class_names[0]} alone: a classifier tells two or more apart, a folder each")
    seen = set(listings[0].labels.tolist())
    if lost := [name for label, name in enumerate(train.class_names) if label not in seen]:
        raise ValueError(f"no image of the classes {', '.join(first_few(lost, 5))} in {root}/train can be read: replace them, or remove the folders")
    return listings[0], listings[1]


def read_vectors(path: Path) -> tuple[Samples, Samples]:
    """Read training and test vectors from one .npz file with `x_train` (N, n), `y_train` (N,), `x_test` and `y_test`.

    Returns:
        Training and test samples, float32 as they are, without standardisation.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it is damaged, holds Python objects, lacks an array, or one has a wrong shape, type or value; says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected an .npz file with x_train (N, n), y_train (N,), x_test and y_test; correct data.root")
    with blamed(path):
        arrays = read_npz(path)
        train, test = (_samples(arrays, split) for split in ("train", "test"))
        _check_pair(train, test)
    return train, test


# ---- ImageNet


def _by_wnid(folder: Path, names: list[str]) -> Listing:
    paths = [path for path in list_images(folder, f"{folder}/<wnid>/*.JPEG") if _WNID.fullmatch(path.relative_to(folder).parts[0])]
    wnids = [path.relative_to(folder).parts[0] for path in paths]
    if empty := sorted(set(names) - set(wnids)):
        raise FileNotFoundError(f"no images in {', '.join(first_few(empty, 5))} of {folder}: unpack their archives, or remove the folders")
    return _labelled(paths, wnids, names)


def _labelled(paths: list[Path], wanted: list[str], names: list[str]) -> Listing:
    number = {name: label for label, name in enumerate(names)}
    return Listing(paths, torch.tensor([number[name] for name in wanted], dtype=torch.int64), names)


def _flat_wnids(root: Path, paths: list[Path]) -> list[str]:
    """Take the classes from names that all end in them, from Kaggle's list, or from the kit, whose answers are in the order of numbers from 1."""
    told = [_FLAT.fullmatch(path.name)[2] for path in paths]  # type: ignore[index]
    if all(told):
        return told
    places = [root.resolve(), *root.resolve().parents[:3]]
    if solution := next((place / _SOLUTION for place in places if (place / _SOLUTION).is_file()), None):
        return _solved_wnids(solution, paths)
    kit = next((root / name for name in _KITS if (root / name / _ANSWERS).is_file()), None)
    if kit is None or not (kit / "meta.mat").is_file():
        raise FileNotFoundError(
            f"the images of {root}/val lie in no folders of classes, and {root}/{_KITS[0]}/ with {_ANSWERS} and meta.mat is missing: "
            f"unpack ILSVRC2012_devkit_t12.tar.gz there, put Kaggle's {_SOLUTION} there, or move the images to val/<wnid>/"
        )
    wnids = _synsets(kit / "meta.mat")
    with blamed(kit / _ANSWERS, "unpack ILSVRC2012_devkit_t12.tar.gz anew"):
        answers = (kit / _ANSWERS).read_text(encoding="utf-8").split()
    found = []
    for path in paths:
        number = int(_FLAT.fullmatch(path.name)[1])  # type: ignore[index]
        answer = answers[number - 1] if 1 <= number <= len(answers) else ""
        if not answer.isdigit() or int(answer) not in wnids:
            what = f"line {number} of {kit / _ANSWERS} ({answer or 'not there'})"
            raise BadFileError(f"{path} has no class: {what} is no class of meta.mat; unpack ILSVRC2012_devkit_t12.tar.gz anew")
        found.append(wnids[int(answer)])
    return found


def _solved_wnids(file: Path, paths: list[Path]) -> list[str]:
    """Look up the classes in Kaggle's list, `ImageId,PredictionString` with the class and boxes of objects, such as `n01751748 111 108 462 368`."""
    with blamed(file, "take it from Kaggle's archive anew"), file.open(encoding="utf-8-sig", newline="") as lines:
        told = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
    if missing := [path.name for path in paths if path.stem not in told]:
        raise BadFileError(f"{file} does not list {', '.join(first_few(missing))}: take it from Kaggle's archive anew, or remove the images")
    return [told[path.stem] for path in paths]


def _synsets(path: Path) -> dict[int, str]:
    """Map ILSVRC2012_ID to WordNet id, for the synsets without children, which are the classes."""
    from scipy.io import loadmat

    try:
        table: Any = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(table) if int(row["num_children"]) == 0}
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise BadFileError(f"cannot read the synsets of {path} ({error}); unpack ILSVRC2012_devkit_t12.tar.gz anew") from error


# ---- vectors


def _samples(file: dict[str, Any], split: str) -> Samples:
    names = (f"x_{split}", f"y_{split}")
    if missing := [name for name in names if name not in file]:
        raise ValueError(f"it lacks {' and '.join(missing)}, and holds {', '.join(first_few(sorted(file))) or 'nothing'}; add them")
    x, y = (file[name] for name in names)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise ValueError(f"{names[0]} is {x.dtype} of shape {x.shape}, expected numbers of shape (N, n); convert it")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise ValueError(f"{names[1]} is {y.dtype} of shape {y.shape}, expected whole numbers of shape ({len(x)},), one a row of {names[0]}")
    inputs = x.astype(np.float32)
    if rows := np.flatnonzero(~np.isfinite(inputs).all(axis=1)).tolist():
        raise ValueError(f"{names[0]} has NaN or infinite values in {len(rows)} rows, such as {', '.join(map(str, rows[:5]))}: repair or remove them")
    if rows := np.flatnonzero(y < 0).tolist():
        raise ValueError(f"{names[1]} has negative labels in {len(rows)} rows, such as {', '.join(map(str, rows[:5]))}: number classes from 0")
    return Samples(torch.from_numpy(inputs), torch.from_numpy(y.astype(np.int64)))


def _check_pair(train: Samples, test: Samples) -> None:
    if train.inputs.shape[1] != test.inputs.shape[1]:
        raise ValueError(f"x_train has {train.inputs.shape[1]} columns and x_test {test.inputs.shape[1]}: they must have the same")
    present = set(train.labels.tolist())
    missing = list(islice((label for label in range(max(present) + 1) if label not in present), 6))  # not all of them: a label may be huge
    if missing or int(train.labels.max()) < 1:
        what = f"no row of class {', '.join(first_few(map(str, missing), 5))}" if missing else "one class only"
        raise ValueError(f"y_train has {what}: number the classes 0, 1, ... without a gap, at least two")
    if int(test.labels.max()) > int(train.labels.max()):
        raise ValueError(f"y_test has the class {int(test.labels.max())}, which y_train lacks: add training rows, or remove those test rows")
