"""Published sets as they are downloaded, each a folder of its name in `root`, with its own rule for masks (section 4 of the sheet)."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path

from projects.tripinet.pairs import MaskRule, Picture, by_stem, check_there, files_in, paired
from projects.tripinet.sources import sources_of
from shared.data.files import BadFileError, list_images
from shared.data.folders import OnBadFile

NO_MASK = ("Sp_D_NRN_A_cha0011_sec0011_0542",)
"""The tampered picture of CASIA v1 that was published without a mask."""

_log = logging.getLogger(__name__)


def read_set(name: str, root: Path) -> list[Picture]:
    """Read one of `SETS` from the folder of its name.

    Args:
        name: a key of `SETS`.
        root: the folder of all sets.

    Returns:
        Its pictures, the manipulated ones first.

    Raises:
        BadFileError: if a list of the set is damaged.
        FileNotFoundError: if folders or files are missing; the message says what is expected where.
        ValueError: if there is no such set, or images and masks do not go together.
    """
    if name not in SETS:
        raise ValueError(f"no set {name!r}: choose one of {', '.join(SETS)}, or give the path of a folder or list of your own")
    folder = root / name
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"no folder {name} in {root} (there: {there}): put the set there, or link to it")
    return SETS[name](folder)


def casia_v1(root: Path) -> list[Picture]:
    """Read `Tp/Sp/*`, `Tp/CM/*`, `Au/*` with masks `groundtruth/{Sp,CM}/<stem>_gt.png`; what has no mask is left out.

    The first edition's authentic pictures are in CASIA v2 too: replace them as CASIAv1plus does.
    """
    forged: list[Picture] = []
    for part, kind in (("Sp", "splice"), ("CM", "copymove")):
        expected = f"{root}/Tp/{part}/<name>.jpg with masks {root}/groundtruth/{part}/<name>_gt.png"
        images = [path for path in files_in(root / "Tp" / part, expected) if path.stem not in NO_MASK]
        forged += _forged(images, root / "groundtruth" / part, kind, "casia_v1", expected, lacking="skip")
    return forged + _authentic(root / "Au", "casia_v1")


def casia_v2(root: Path) -> list[Picture]:
    """Read `Tp/*`, `Au/*` with masks `CASIA 2 Groundtruth/<stem>_gt.png`; what has no mask is left out, and the name tells the kind."""
    folder = root / "CASIA 2 Groundtruth"
    expected = f"{root}/Tp/Tp_*.jpg|tif with masks {folder}/Tp_*_gt.png, and authentic pictures {root}/Au/Au_*.jpg"
    images = files_in(root / "Tp", expected)
    pairs = paired(images, by_stem(files_in(folder, expected)), "skip")
    kinds = {"Tp_D": "splice", "Tp_S": "copymove"}
    forged = [Picture(image, mask, kinds.get(image.stem[:4], "manipulated"), "casia_v2", sources_of(image)) for image, mask in pairs]
    return forged + _authentic(root / "Au", "casia_v2")


def columbia(root: Path) -> list[Picture]:
    """Read `4cam_splc/*.tif`, `4cam_auth/*.tif` with masks `4cam_splc/edgemask/<stem>_edgemask.jpg` in three colours, green being spliced."""
    expected = f"{root}/4cam_splc/<name>.tif with masks {root}/4cam_splc/edgemask/<name>_edgemask.jpg"
    images = files_in(root / "4cam_splc", expected)
    forged = _forged(images, root / "4cam_splc" / "edgemask", "splice", "columbia", expected, "green")
    return forged + _authentic(root / "4cam_auth", "columbia")


def coverage(root: Path) -> list[Picture]:
    """Read `image/<number>t.tif` with masks `mask/<number>forged.tif`, and the originals `image/<number>.tif`; a number is one scene."""
    expected = f"{root}/image/<number>t.tif with masks {root}/mask/<number>forged.tif, and originals {root}/image/<number>.tif"
    images = files_in(root / "image", expected)
    masks = by_stem(path for path in files_in(root / "mask", expected) if path.stem.endswith("forged"))
    scene = lambda path: frozenset({f"coverage/{path.stem.removesuffix('t')}"})  # noqa: E731
    pairs = paired([path for path in images if path.stem.endswith("t")], {f"{number}t": mask for number, mask in masks.items()})
    forged = [Picture(image, mask, "copymove", "coverage", scene(image)) for image, mask in pairs]
    return forged + [Picture(path, dataset="coverage", sources=scene(path)) for path in images if not path.stem.endswith("t")]


_NIST_KINDS = {"IsManipulationTypeRemoval": "inpaint", "IsManipulationTypeSplice": "splice", "IsManipulationTypeCopyClone": "copymove"}


def nist16(root: Path) -> list[Picture]:
    """Read `probe/*` and its masks, black where manipulated, as the list `reference/manipulation/*.csv` with `|` between columns names them.

    The list's base file, where given, is the scene: there are many near-duplicates of each.
    """
    lists = sorted((root / "reference" / "manipulation").glob("*.csv"))
    if len(lists) != 1:
        raise FileNotFoundError(f"{len(lists)} lists in {root}/reference/manipulation: expected NC2016-manipulation-ref.csv, and {root}/probe/*.jpg")
    with lists[0].open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="|")
        columns = reader.fieldnames or []
        if missing := [name for name in ("ProbeFileName", "ProbeMaskFileName") if name not in columns]:
            raise BadFileError(f"{lists[0]} has no column {', '.join(missing)}: its first line must name them, with | between columns")
        rows = {row["ProbeFileName"]: row for row in reader if row["ProbeFileName"]}
    pictures = []
    for name, row in rows.items():
        mask = row["ProbeMaskFileName"]
        sources = frozenset({f"nist16/{row['BaseFileName']}"} if row.get("BaseFileName") else ())
        kind = next((kind for column, kind in _NIST_KINDS.items() if row.get(column) == "Y"), "manipulated") if mask else "authentic"
        pictures.append(Picture(root / name, root / mask if mask else None, kind, "nist16", sources, "inverted"))
    check_there(pictures, lists[0])
    return sorted(pictures, key=lambda picture: -picture.label)


def imd2020(root: Path) -> list[Picture]:
    """Read a folder a case: `<case>/<name>.*` with masks `<case>/<name>_mask.png`, and originals `<case>/*_orig.*`; a case is one scene."""
    expected = f"{root}/<case>/<name>.jpg with masks {root}/<case>/<name>_mask.png, and originals {root}/<case>/<name>_orig.jpg"
    cases: dict[Path, list[Path]] = {}
    for path in list_images(root, expected):
        cases.setdefault(path.parent, []).append(path)
    forged, real = [], []
    for case, paths in cases.items():
        sources = frozenset({f"imd2020/{case.name}"})
        masks = by_stem(path for path in paths if path.stem.endswith("_mask"))
        images = [path for path in paths if not path.stem.endswith(("_mask", "_orig"))]
        forged += [Picture(image, mask, "manipulated", "imd2020", sources) for image, mask in paired(images, masks)]
        real += [Picture(path, dataset="imd2020", sources=sources) for path in paths if path.stem.endswith("_orig")]
    return forged + real


def defacto(root: Path) -> list[Picture]:
    """Read `<kind>*images/img/*` with masks `<kind>*annotations/probe_mask/*`, and authentic pictures of COCO in `coco`."""
    expected = f"{root}/copymove_images/img/<name>.tif with masks {root}/copymove_annotations/probe_mask/<name>.jpg (likewise splicing, inpainting)"
    kinds = {"splic": "splice", "copymove": "copymove", "inpaint": "inpaint"}
    forged: list[Picture] = []
    for folder in sorted(root.glob("*images/img")):
        part = folder.parent.name.removesuffix("images")
        kind = next((kind for beginning, kind in kinds.items() if part.startswith(beginning)), "manipulated")
        forged += _forged(files_in(folder, expected), root / f"{part}annotations" / "probe_mask", kind, "defacto", expected)
    if not forged:
        raise FileNotFoundError(f"no pictures in {root}: expected {expected}")
    return forged + _authentic(root / "coco", "defacto")


def fantastic_reality(root: Path) -> list[Picture]:
    """Read `ColorFakeImages/*`, `ColorRealImages/*` with masks `SegmentationFake/<stem>.npz`, whose `arr_0` is positive where spliced."""
    expected = f"{root}/ColorFakeImages/<name>.jpg with masks {root}/SegmentationFake/<name>.npz"
    pairs = paired(files_in(root / "ColorFakeImages", expected), by_stem((root / "SegmentationFake").glob("*.npz")))
    forged = [Picture(image, mask, "splice", "fantastic_reality", sources_of(image), "array") for image, mask in pairs]
    return forged + _authentic(root / "ColorRealImages", "fantastic_reality")


def tampcoco(root: Path) -> list[Picture]:
    """Read `{sp,cm,bcm,bcmc}_images/*` with masks `{sp,cm,bcm,bcmc}_masks/*` of the same stem."""
    expected = f"{root}/sp_images/<name>.jpg with masks {root}/sp_masks/<name>.png (likewise cm, bcm and bcmc)"
    forged: list[Picture] = []
    for folder in sorted(root.glob("*_images")):
        part = folder.name.removesuffix("_images")
        kind = "splice" if part == "sp" else "copymove"
        forged += _forged(files_in(folder, expected), root / f"{part}_masks", kind, "tampcoco", expected)
    if not forged:
        raise FileNotFoundError(f"no pictures in {root}: expected {expected}")
    return forged


def compraise(root: Path) -> list[Picture]:
    """Read the authentic JPEG files of compRAISE, in sub-folders or not."""
    return [Picture(path, dataset="compraise") for path in list_images(root, f"{root}/<name>.jpg, all of them authentic")]


def dso1(root: Path) -> list[Picture]:
    """Read `splicing-NN.png` and `normal-NN.png` in `DSO-1`, with masks of the same name in `DSO-1-Fake-Images-Masks`."""
    expected = f"{root}/DSO-1/splicing-01.png and normal-01.png with masks {root}/DSO-1-Fake-Images-Masks/splicing-01.png"
    images = files_in(root / "DSO-1", expected)
    spliced = [path for path in images if path.stem.startswith("splicing")]
    forged = _forged(spliced, root / "DSO-1-Fake-Images-Masks", "splice", "dso1", expected)
    return forged + [Picture(path, dataset="dso1") for path in images if path.stem.startswith("normal")]


def cocoglide(root: Path) -> list[Picture]:
    """Read `fake/*` with masks `mask/*` of the same stem, and `real/*`."""
    expected = f"{root}/fake/<name>.png with masks {root}/mask/<name>.png, and {root}/real/<name>.png"
    forged = _forged(files_in(root / "fake", expected), root / "mask", "inpaint", "cocoglide", expected)
    return forged + _authentic(root / "real", "cocoglide")


def _forged(
    images: list[Path], masks: Path, kind: str, dataset: str, expected: str, rule: MaskRule = "half", lacking: OnBadFile = "refuse"
) -> list[Picture]:
    pairs = paired(images, by_stem(files_in(masks, expected)), lacking)
    return [Picture(image, mask, kind, dataset, sources_of(image), rule) for image, mask in pairs]


def _authentic(folder: Path, dataset: str) -> list[Picture]:
    """Read authentic pictures, if there are any: scores of images need them, maps do not."""
    if not folder.is_dir():
        _log.warning("%s has no authentic pictures: put them into %s for scores of images and false alarms", dataset, folder)
        return []
    return [Picture(path, dataset=dataset, sources=sources_of(path)) for path in list_images(folder)]


SETS: dict[str, Callable[[Path], list[Picture]]] = {
    "casia_v1": casia_v1,
    "casia_v2": casia_v2,
    "columbia": columbia,
    "coverage": coverage,
    "nist16": nist16,
    "imd2020": imd2020,
    "defacto": defacto,
    "fantastic_reality": fantastic_reality,
    "tampcoco": tampcoco,
    "compraise": compraise,
    "dso1": dso1,
    "cocoglide": cocoglide,
}
"""Readers of published sets by the name of their folder in `root`."""
