"""Readers of the layouts in which segmentation sets are shared: each finds the items of the splits that there are, or of `all`."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from projects.umed.sets.files import Item, PictureItem
from projects.umed.sets.masks import MaskCode
from shared.data.files import BadFileError, first_few, list_images

Items = dict[str, list[Item]]
"""Items by `train`, `val` and `test`, where the layout has these, else all of them under `all`."""

Region = Literal["infection", "lung"]


def busi(root: Path, with_normal: bool = False) -> Items:
    """Read BUSI, `{benign,malignant,normal}/<class> (<n>).png` with `_mask.png` and further lesions in `_mask_1.png`, ..., joined.

    Args:
        root: the folder that holds the three, or the folder above it.
        with_normal: keeps the images without a lesion, whose masks are empty.

    Raises:
        FileNotFoundError: if there are none, or an image has no mask; names them.
        ValueError: if a mask belongs to no image.
    """
    root = _below(root, "Dataset_BUSI_with_GT", "benign")
    items: list[Item] = []
    missing: list[str] = []
    strays: set[Path] = set()
    for kind in ("benign", "malignant", "normal"):
        files = list_images(root / kind, f"{root}/{kind}/{kind} (1).png beside {kind} (1)_mask.png") if (root / kind).is_dir() else []
        masks: dict[str, list[Path]] = {}
        for path in sorted(files, key=lambda path: _natural(path.stem)):
            if _BUSI_MASK.search(path.stem):
                masks.setdefault(_BUSI_MASK.sub("", path.stem), []).append(path)
        for path in sorted((path for path in files if not _BUSI_MASK.search(path.stem)), key=lambda path: _natural(path.stem)):
            own = tuple(masks.pop(path.stem, ()))
            if kind == "normal":
                items += [PictureItem(f"{kind}/{path.name}", path, (), MaskCode(), path.stem)] if with_normal else []
            elif own:
                items.append(PictureItem(f"{kind}/{path.name}", path, own, MaskCode(), path.stem))
            else:
                missing.append(f"{path}: no {path.stem}_mask.png beside it")
        strays |= {path for paths in masks.values() for path in paths}
    _refuse(missing, root, "images have no mask")
    _no_strays(strays)
    return {"all": _some(items, root, "benign/benign (1).png with benign (1)_mask.png, malignant/... and normal/...")}


_BUSI_MASK = re.compile(r"_mask(_\d+)?$")


def kvasir(root: Path) -> Items:
    """Read Kvasir-SEG, `images/<id>.jpg` and `masks/<id>.jpg`, whose masks are JPEG and foreground above 127."""
    root = _below(root, "Kvasir-SEG", "images")
    return {"all": _pairs(root / "images", root / "masks", MaskCode("threshold"))}


def isic(root: Path) -> Items:
    """Read ISIC-2018 task 1, `ISIC2018_Task1-2_*_Input/<id>.jpg` and `ISIC2018_Task1_*_GroundTruth/<id>_segmentation.png`; strays are ignored.

    Each folder may lie in one of the same name.
    """
    found: Items = {}
    for split, name in (("train", "Training"), ("val", "Validation"), ("test", "Test")):
        images, masks = root / f"ISIC2018_Task1-2_{name}_Input", root / f"ISIC2018_Task1_{name}_GroundTruth"
        if not images.is_dir():
            continue
        images, masks = _repeated(images), _repeated(masks)
        items: list[Item] = []
        missing = []
        for path in sorted(path for path in images.iterdir() if re.fullmatch(r"ISIC_\d+\.jpe?g", path.name, re.IGNORECASE)):
            mask = masks / f"{path.stem}_segmentation.png"
            items.append(PictureItem(f"{images.name}/{path.name}", path, (mask,), MaskCode(), path.stem))
            missing += [] if mask.is_file() else [f"{path}: no {mask}"]
        _refuse(missing, root, "images have no mask")
        found[split] = _some(items, images, "ISIC_0000000.jpg and so on")
    if "train" not in found:
        folders = "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg and ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png"
        raise FileNotFoundError(f"no ISIC-2018 in {root}: expected {root}/{folders}; correct data.root")
    return _named(found)


def covid(root: Path, region: Region = "infection") -> Items:
    """Read COVID-QU-Ex, `{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,infection masks,lung masks}/*.png`.

    Args:
        root: the folder that holds the three splits, or one of the two above it.
        region: infection, whose masks are empty but for COVID-19, or lung, of the larger `Lung Segmentation Data` where that is there.

    Raises:
        ValueError: if `region` is unknown.
        FileNotFoundError: if a split is missing, or an image has no mask; names it.
    """
    if region not in ("infection", "lung"):
        raise ValueError(f"data.region must be infection or lung, got {region!r}")
    larger = "Lung Segmentation Data"
    root = _below(root, larger if region == "lung" and (root / larger).is_dir() else "Infection Segmentation Data", "Train")
    found: Items = {}
    for split, name in (("train", "Train"), ("val", "Val"), ("test", "Test")):
        kinds = [kind for kind in ("COVID-19", "Non-COVID", "Normal") if (root / name / kind / "images").is_dir()]
        if not kinds:
            raise FileNotFoundError(
                f"no images in {root / name}: expected {root}/{name}/COVID-19/images/*.png and {region} masks/*.png; correct data.root"
            )
        found[split] = [
            item
            for kind in kinds
            for item in _pairs(root / name / kind / "images", root / name / kind / f"{region} masks", MaskCode(), f"{name}/{kind}/")
        ]
    return found


def glas(root: Path) -> Items:
    """Read GlaS, `{train,testA,testB}_<n>.bmp` with `_anno.bmp`, which numbers the glands; groups are the patients of `Grade.csv`, where there.

    Folders `{Train,Val,Test}_Folder` are read as those of `monuseg` are; they tell no patients.
    """
    if (split := _below(root, "GlaS", "Train_Folder") / "Train_Folder").is_dir():
        return _split_folders(split.parent)
    unpacked = sorted(path.name for path in root.glob("Warwick?QU?Dataset*") if path.is_dir())  # with spaces or underscores, dated or not
    root = _below(root, unpacked[0], "train_1.bmp") if unpacked else root
    patients = _patients(root / "Grade.csv")
    found: Items = {"train": [], "test": []}
    missing = []
    for path in sorted(root.glob("*.bmp") if root.is_dir() else [], key=lambda path: _natural(path.stem)):
        if match := re.fullmatch(r"(train|testA|testB)_\d+", path.stem):
            mask = path.with_name(f"{path.stem}_anno.bmp")
            group = patients.get(path.stem, path.stem)
            found["train" if match[1] == "train" else "test"].append(PictureItem(path.name, path, (mask,), MaskCode("nonzero"), group))
            missing += [] if mask.is_file() else [f"{path}: no {mask.name} beside it"]
    _refuse(missing, root, "images have no annotation")
    expected = "train_1.bmp with train_1_anno.bmp, testA_1.bmp and so on, or Train_Folder/{img,labelcol}/"
    return {split: _some(items, root, expected) for split, items in found.items()}


def monuseg(root: Path) -> Items:
    """Read MoNuSeg as UCTransNet hands it on, `{Train,Val,Test}_Folder/{img,labelcol}/<name>`; what is not 0 in a mask is a nucleus."""
    return _split_folders(_below(root, "MoNuSeg", "Train_Folder"))


def _split_folders(root: Path) -> Items:
    places = {split: root / f"{split.capitalize()}_Folder" for split in ("train", "val", "test")}
    there = {split: path for split, path in places.items() if split == "train" or path.is_dir()}
    return _named({split: _pairs(path / "img", path / "labelcol", MaskCode("nonzero"), f"{path.name}/") for split, path in there.items()})


def folder(root: Path, code: MaskCode, window: tuple[float, float] | None = None) -> Items:
    """Read `images/` and `masks/` with the same names but for the ending, in root or in its folders train, val and test.

    Masks may have `_mask` or `_segmentation` behind their names, and lie in `masks/0/`, as the packs of UNet++, UNeXt and EGE-UNet have them.

    Args:
        root: the folder.
        code: how classes are written in the masks.
        window: levels that 0 and 1 stand for; None is the usual range of 8 bits, and the 1st to 99th percentile of each image of 16.
    """
    splits = {split: root / split for split in ("train", "val", "test") if (root / split / "images").is_dir()}
    if "train" not in splits:
        return {"all": _pairs(root / "images", root / "masks", code, window=window)}
    return _named({split: _pairs(path / "images", path / "masks", code, f"{split}/", window) for split, path in splits.items()})


def _pairs(images: Path, masks: Path, code: MaskCode, prefix: str = "", window: tuple[float, float] | None = None) -> list[Item]:
    """Pair files that have the same path but for the ending and a word behind the names of masks; each image is its own group.

    Raises:
        FileNotFoundError: if a folder is missing or empty, or an image has no mask; names it.
        ValueError: if masks have no image, or two have the same name but for the ending.
    """
    if masks.is_dir() and not (images / "0").is_dir() and [path.name for path in masks.iterdir() if not path.name.startswith(".")] == ["0"]:
        masks /= "0"
    tree = f"{images}/<name>.png and {masks}/<name>.png"
    files, found = list_images(images, tree), _by_stem(masks, list_images(masks, tree))
    pairs = [(name, path, _mask_of(name.with_suffix("").as_posix(), found)) for path in files for name in [path.relative_to(images)]]
    _refuse([f"{path}: no {masks / name.with_suffix('.*')}" for name, path, mask in pairs if mask is None], images.parent, "images have no mask")
    _no_strays(set(found.values()) - {mask for _, _, mask in pairs if mask is not None})
    return [
        PictureItem(prefix + name.as_posix(), path, (mask,), code, prefix + name.with_suffix("").as_posix(), window)
        for name, path, mask in pairs
        if mask is not None
    ]


def _mask_of(name: str, found: Mapping[str, Path]) -> Path | None:
    return next((found[name + word] for word in ("", "_mask", "_segmentation", "_anno") if name + word in found), None)


def _by_stem(root: Path, paths: Sequence[Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name but for the ending: remove one of them")
        found[name] = path
    return found


def _named(found: Items) -> Items:
    """Call a layout `all` if only its training part is there."""
    return {"all": found["train"]} if set(found) == {"train"} else found


def _below(root: Path, folder: str, mark: str) -> Path:
    """Return the folder that holds `mark`: the one that was named, or the one below it that the archive unpacks to, once or twice."""
    places = [root, root / folder, root / folder / folder]
    return next((place for place in places if (place / mark).exists()), places[1] if places[1].is_dir() else root)


def _repeated(folder: Path) -> Path:
    """Return the folder of the same name in a folder, where there is one, as archives of Kaggle have it."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _some(items: list[Item], root: Path, expected: str) -> list[Item]:
    if not items:
        what = "does not exist" if not root.exists() else "holds no images of this layout"
        raise FileNotFoundError(f"{root} {what}: expected {expected}; correct data.root or data.source")
    return items


def _refuse(complaints: list[str], root: Path, what: str) -> None:
    if complaints:
        advice = "add the missing files, or remove those they would belong to"
        raise FileNotFoundError("\n  ".join([f"{len(complaints)} {what} in {root}:", *first_few(complaints), advice]))


def _no_strays(masks: set[Path]) -> None:
    if masks:
        lines = first_few(sorted(str(path) for path in masks))
        raise ValueError("\n  ".join([f"{len(masks)} masks belong to no image:", *lines, "add the images, or remove the masks"]))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort `benign (2)` before `benign (10)`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


def _patients(path: Path) -> dict[str, str]:
    """Read which patient each image of GlaS is of; empty without the table."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = [
                {(key or "").strip().lower(): (value or "").strip() for key, value in row.items() if isinstance(value, str)}
                for row in csv.DictReader(file)
            ]
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadFileError(f"{path} is no table of GlaS ({error}): replace it, or remove it to split by image") from error
    return {row["name"]: f"patient {row['patient id']}" for row in rows if row.get("name") and row.get("patient id")}
