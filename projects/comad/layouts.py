"""Inspection sets as they lie on disk: MVTec LOCO AD, CAD-SD, VisA, and folders of the user's own.

catalogue = read_loco(Path("mvtec_loco_anomaly_detection"), "pushpins")
catalogue = read_folders(Path("parts"), FOLDERS)        # train/good, validation/good, test/<kind>
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from projects.comad.defects import CONFIG, Defect, DefectType, read_config, read_defect
from shared.data.files import BadFileError, blamed, first_few, image_size, list_images

Split = Literal["train", "validation", "test"]

Group = Literal["good", "logical", "structural", "other"]
"""Good; a rule of the whole is broken; a place looks wrong; wrong, and nobody said how."""

GOOD = "good"
"""Name of the kind without defects."""

LOCO_KINDS: dict[str, Group] = {GOOD: "good", "logical_anomalies": "logical", "structural_anomalies": "structural"}
"""Folders of MVTec LOCO AD's test pictures."""

CATEGORIES = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")
"""Categories of MVTec LOCO AD."""

CAD_SD = {"train": "train/good", GOOD: "test/good", "scratch": "test/scratch", "paint": "test/paint", "over": "test/over", "lack": "test/lack"}
"""Folders of CAD-SD, unless they are numbered or the user names others: `train`, perhaps `validation`, and kinds of test pictures."""

CAD_SD_NUMBERED = {
    GOOD: "test/0_good",
    "scratch": "test/1_scratch",
    "paint": "test/2_paint",
    "over": "test/3_over-coupling",
    "lack": "test/4_lacking",
}
"""Folders of its test pictures as the authors' code reads them."""

VISA_TABLE = "split_csv/1cls.csv"
"""VisA's table of the pictures to learn from and to test, below the root."""

GROUPS: dict[str, Group] = {
    "scratch": "structural", "paint": "structural", "over": "logical", "lack": "logical", "logical": "logical", "structural": "structural",
    **LOCO_KINDS,
}  # fmt: skip
"""Groups of kinds whose names tell."""

PICTURES: dict[str, dict[str, int]] = {
    "breakfast_box": {"train": 351, "validation": 62, "good": 102, "logical_anomalies": 83, "structural_anomalies": 90},
    "juice_bottle": {"train": 335, "validation": 54, "good": 94, "logical_anomalies": 142, "structural_anomalies": 94},
    "pushpins": {"train": 372, "validation": 69, "good": 138, "logical_anomalies": 91, "structural_anomalies": 81},
    "screw_bag": {"train": 360, "validation": 60, "good": 122, "logical_anomalies": 137, "structural_anomalies": 82},
    "splicing_connectors": {"train": 360, "validation": 60, "good": 119, "logical_anomalies": 108, "structural_anomalies": 85},
    "cad_sd": {"train": 400, "good": 210, "scratch": 41, "paint": 41, "over": 44, "lack": 40},
}
"""Numbers of pictures that the sets were published with: of splits, and of the test's kinds."""

_LOCO_TREE = "<category>/{train,validation,test}/good, test/{logical,structural}_anomalies, ground_truth/ and " + CONFIG
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture in a file.

    Attributes:
        path: the file.
        split: train, validation or test.
        kind: `good`, or the folder of test pictures that it lies in.
        group: see `Group`.
        masks: one file for each defect; empty where nobody marked them.
    """

    path: Path
    split: Split
    kind: str = GOOD
    group: Group = "good"
    masks: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Kind and name of the file without its ending, such as `logical_anomalies/000`."""
        return f"{self.kind}/{self.path.stem}"

    def defects(self, types: Mapping[int, DefectType] | None) -> list[Defect]:
        """Read the masks at the picture's original size; see `projects.comad.defects.read_defect`."""
        size = image_size(self.path) if self.masks else (0, 0)
        return [read_defect(path, size, types) for path in self.masks]


@dataclass(frozen=True)
class Catalogue:
    """What lies on disk of one product.

    Attributes:
        name: of the product.
        pictures: all of them, by split, kind and name.
        types: what pixel values of masks mean; None if masks only say where.
    """

    name: str
    pictures: list[Picture]
    types: dict[int, DefectType] | None = None

    def of(self, split: Split) -> list[Picture]:
        """Return the pictures of a split."""
        return [picture for picture in self.pictures if picture.split == split]


def read_loco(root: Path, category: str | None = None) -> Catalogue:
    """Find the pictures and masks of a category of MVTec LOCO AD, or of another set in its layout.

    Args:
        root: folder of the categories, or of the category.
        category: folder in the root; None takes the root itself, or the only category in it.

    Raises:
        FileNotFoundError: if a folder or `defects_config.json` is missing, or a folder holds no picture; the message says what is expected.
        BadFileError: if anomalous pictures have no mask, or the configuration is damaged.
        ValueError: if there are several categories and none was named.
    """
    folder = _category(root, category)
    types = read_config(folder / CONFIG)
    pictures = [Picture(path, "train") for path in _listed(folder / "train" / GOOD, _LOCO_TREE)]
    pictures += [Picture(path, "validation") for path in _listed(folder / "validation" / GOOD, _LOCO_TREE)]
    for kind, group in LOCO_KINDS.items():
        masks = {} if group == "good" else _masks(folder / "ground_truth" / kind)
        found = _tested(folder / "test" / kind, kind, group, masks, _LOCO_TREE)
        if bare := [str(picture.path) for picture in found if group != "good" and not picture.masks]:
            mend = f"put one PNG for each defect into {folder}/ground_truth/{kind}/<name of the picture>/"
            raise BadFileError("\n  ".join([f"{len(bare)} anomalous pictures have no masks:", *first_few(bare), mend]))
        pictures += found
    compare(folder.name, folder.name, pictures)
    return Catalogue(folder.name, pictures, types)


def read_visa(root: Path, category: str | None = None) -> Catalogue:
    """Find the pictures and masks of a product of VisA as it is published, `<category>/Data/{Images/{Normal,Anomaly},Masks/Anomaly}`.

    Its table for one class says which pictures are learnt and tested; anomalous ones are of the kind `bad`, whose group is not told.

    Args:
        root: folder of the products and of the table, or of one product.
        category: the product; None takes the root itself.

    Raises:
        FileNotFoundError: if the table, the category or its pictures are missing.
        BadFileError: if the table is damaged, or files that it names are missing.
        ValueError: if no category was named.
    """
    if category is None and (root.resolve().parent / VISA_TABLE).is_file():
        root, category = root.resolve().parent, root.resolve().name
    table, tree = root / VISA_TABLE, f"{root}/<category>/Data/Images/Normal/<name>.JPG"
    if not table.is_file():
        raise FileNotFoundError(f"no file {table}: it comes with VisA; put it there, beside {tree}, or correct data.root")
    rows = _visa_rows(table)
    products = sorted({product for product, *_ in rows})
    if category is None:
        raise ValueError(f"{root} holds several categories: choose one with data.category ({', '.join(products)})")
    if category not in products:
        raise FileNotFoundError(f"no category {category} in {table}: there are {', '.join(first_few(products, 20))}; correct data.category")
    own = [row[1:] for row in rows if row[0] == category]
    there = {path.relative_to(root).as_posix(): path for path in list_images(root / category, tree)}
    if missing := [name for *_, image, mask in own for name in (image, mask) if name and name not in there]:
        raise BadFileError("\n  ".join([f"{len(missing)} files that {table} names are not in {root}:", *first_few(missing), "put them there"]))
    good = [Picture(there[image], "train" if split == "train" else "test") for split, label, image, _ in sorted(own) if label == "normal"]
    bad = [Picture(there[image], "test", "bad", "other", (there[mask],)) for _, label, image, mask in sorted(own) if label == "anomaly"]
    return Catalogue(category, [*good, *bad])


def _visa_rows(table: Path) -> list[list[str]]:
    """Read the product, split, label, picture and mask of each row of VisA's table."""
    known = (("train", "normal", False), ("test", "normal", False), ("test", "anomaly", True))
    with blamed(table, "take it from VisA's archive again"):
        lines = csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines())
        rows = [[line.get(column) or "" for column in ("object", "split", "label", "image", "mask")] for line in lines]
        if bad := next((row for row in rows if (row[1], row[2], bool(row[4])) not in known), None):
            raise ValueError(f"the row {','.join(bad)} is no normal picture of train or test, nor an anomaly of test with its mask")
    return rows


def read_folders(root: Path, folders: Mapping[str, str] | None = None, groups: Mapping[str, Group] | None = None) -> Catalogue:
    """Find pictures in folders of any names.

    Masks are read where there are some: `ground_truth/<kind>/<name>.png`, `<name>_mask.png`, or a folder `<name>/` with one file for each defect.

    Args:
        root: folder of all.
        folders: folder below the root of `train`, perhaps of `validation`, and of each kind of test pictures, `good` being those without defects;
            None is train/good, validation/good if it is there, and each folder in test; or, without a folder train, good and every other folder.
        groups: of kinds; others are as in `GROUPS`, and "other" if they are not there.

    Raises:
        FileNotFoundError: if a folder is missing or holds no picture.
        ValueError: if there is no folder for train, or a group is not known.
    """
    folders = _found(root) if folders is None else dict(folders)
    if "train" not in folders:
        raise ValueError(f"data.folders names no folder 'train' (good pictures to learn from), but {', '.join(folders) or 'nothing'}: add it")
    known = {**GROUPS, **(groups or {})}
    if bad := sorted({str(group) for group in known.values()} - {"good", "logical", "structural", "other"}):
        raise ValueError(f"data.groups must be good, logical, structural or other, got {bad[0]!r}")
    tree = f"{root}/{{{','.join(folders.values())}}}/<name>.png"
    pictures: list[Picture] = []
    for name, folder in folders.items():
        if name in ("train", "validation"):
            split: Split = "train" if name == "train" else "validation"
            pictures += [Picture(path, split) for path in _listed(root / folder, tree)]
        else:
            masks = {} if name == GOOD else _masks(root / "ground_truth" / Path(folder).name)
            pictures += _tested(root / folder, name, known.get(name, "other"), masks, tree)
    return Catalogue(root.name, pictures)


def cad_sd_folders(root: Path) -> dict[str, str]:
    """Return the folders of CAD-SD: numbered ones if they are there, and `train/0_good` or `train/good` with them."""
    if not (root / CAD_SD_NUMBERED[GOOD]).is_dir():
        return CAD_SD
    return {"train": "train/0_good" if (root / "train/0_good").is_dir() else "train/good", **CAD_SD_NUMBERED}


def check_sizes(pictures: Iterable[Picture], types: Mapping[int, DefectType] | None) -> None:
    """Read all masks, and compare their sizes with those of their pictures.

    Raises:
        BadFileError: with all that is wrong, file by file.
    """

    def complaint(picture: Picture) -> str:
        try:
            picture.defects(types)
        except (BadFileError, FileNotFoundError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        bad = [said for said in pool.map(complaint, pictures) if said]
    if bad:
        raise BadFileError("\n  ".join([f"{len(bad)} pictures have masks that cannot be used:", *first_few(bad)]))


# ---- folders


def _category(root: Path, category: str | None) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: correct data.root, or put the data there as {root}/{_LOCO_TREE}")
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and (path / "train").is_dir())
    if category is None and ((root / "train").is_dir() or not there):
        return root
    if category is None and len(there) > 1:
        raise ValueError(f"{root} holds several categories: choose one with data.category ({', '.join(there)})")
    folder = root / (category or there[0])
    folder = folder / folder.name if (folder / folder.name / "train").is_dir() else folder  # as some unpack it
    if not folder.is_dir():
        raise FileNotFoundError(f"no category {category} in {root}: there are {', '.join(there) or 'none'}; expected {root}/{_LOCO_TREE}")
    return folder


def _found(root: Path) -> dict[str, str]:
    """Return the folders that lie in a root, as `read_folders` takes them."""
    if (root / "train" / GOOD).is_dir():
        validation = {"validation": f"validation/{GOOD}"} if (root / "validation" / GOOD).is_dir() else {}
        return {"train": f"train/{GOOD}", **validation, **{name: f"test/{name}" for name in _kinds(root / "test")}}
    if (root / GOOD).is_dir():
        return {"train": GOOD, **{name: name for name in _kinds(root) if name != GOOD}}
    categories = [path.name for path in (sorted(root.iterdir()) if root.is_dir() else ()) if (path / "train" / GOOD).is_dir()]
    mend = f"; choose one of its categories with data.root {root}/<category>: {', '.join(first_few(categories))}" if categories else ""
    if (root / VISA_TABLE).is_file() or (root / "Data" / "Images").is_dir():
        mend = "; VisA as it is published is read by data.source visa"
    raise FileNotFoundError(f"no good pictures in {root}: expected {root}/train/good and perhaps test/<kind>, or {root}/good and perhaps bad{mend}")


def _kinds(folder: Path) -> list[str]:
    """Return the names of the folders of a folder that may hold pictures."""
    names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
    return sorted(name for name in names if not name.startswith(".") and name not in ("train", "validation", "test", "ground_truth"))


def _listed(folder: Path, tree: str) -> list[Path]:
    """List the pictures of a folder.

    Raises:
        FileNotFoundError: if it is missing, or holds none.
        ValueError: if two have the same name but for the ending.
    """
    paths = list_images(folder, tree)
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(f"{stems[path.stem]} and {path} have the same name but for the ending: remove one of them")
        stems[path.stem] = path
    return paths


def _masks(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the masks of each picture of a kind, by its name."""
    found: dict[str, list[Path]] = {}
    for path in list_images(folder) if folder.is_dir() else ():
        name = path.parent.name if path.parent != folder else path.stem.removesuffix("_mask")
        found.setdefault(name, []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}


def _tested(folder: Path, kind: str, group: Group, masks: Mapping[str, tuple[Path, ...]], tree: str) -> list[Picture]:
    pictures = [Picture(path, "test", kind, group, masks.get(path.stem, ())) for path in _listed(folder, tree)]
    if spare := sorted(masks.keys() - {picture.path.stem for picture in pictures}):
        _log.warning("%d masks of %s belong to no picture there: %s", len(spare), folder, ", ".join(first_few(spare, 3)))
    return pictures


def compare(name: str, published: str, pictures: Sequence[Picture]) -> None:
    """Warn where a set has not the number of pictures that it was published with, so that numbers cannot stand beside published ones.

    Args:
        name: of the set, for the warning.
        published: key of `PICTURES`; nothing is said of sets that are not there.
        pictures: what was found.
    """
    counts = Counter(picture.kind if picture.split == "test" else picture.split for picture in pictures)
    for part, count in PICTURES.get(published, {}).items():
        if counts[part] != count:
            _log.warning("%s has %d pictures of %s, and was published with %d: numbers do not compare", name, counts[part], part, count)
