"""Published sets as they are downloaded, each a folder of its name in `root`, with its own rule for masks."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from projects.tripinet.pairs import MaskRule, Picture, by_stem, check_there, files_in, paired
from projects.tripinet.sources import sources_of
from shared.data.files import BadFileError, blamed, list_images
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
    """Read `Tp/{Sp,CM}/*`, `Au/*` with masks `CASIA 1.0 groundtruth/{Sp,CM}/<stem>_gt.png`; what has no mask is left out.

    The archive has them in `CASIA 1.0 dataset`, with a second `Tp` in `Modified Tp`, whose names were corrected to those of the masks: it is taken if
    it is there. `CASIA 1.0 groundtruth` may be called `groundtruth`. The first edition's authentic pictures are in CASIA v2 too: replace them as
    CASIAv1plus does, or `leaks` takes their copies out of training.
    """
    masks = _first(root, "CASIA 1.0 groundtruth", "groundtruth", "CASIA 1.0 dataset/CASIA 1.0 groundtruth")
    root = _first(root, "CASIA 1.0 dataset", ".")
    tampered = _first(root, "Modified Tp/Tp", "Modified Tp", "Tp")
    forged: list[Picture] = []
    for part, kind in (("Sp", "splice"), ("CM", "copymove")):
        expected = f"{tampered}/{part}/<name>.jpg with masks {masks}/{part}/<name>_gt.png"
        images = [path for path in files_in(tampered / part, expected) if path.stem not in NO_MASK]
        forged += _forged(images, masks / part, kind, "casia_v1", expected, lacking="skip")
    return forged + _authentic(root / "Au", "casia_v1")


def casia_v2(root: Path) -> list[Picture]:
    """Read `Tp/*`, `Au/*` with masks `CASIA 2 Groundtruth/<stem>_gt.png`; what has no mask is left out, and the name tells the kind.

    `Tp` and `Au` may lie in `CASIA2.0_revised`, whose names were corrected to those of the masks, or in `CASIA 2.0`, and the masks in
    `CASIA2.0_Groundtruth`, in `Gt` as the corrected ones are shared, or in `groundtruth` or `Groundtruth`.
    """
    folder = _first(root, "CASIA 2 Groundtruth", "CASIA2.0_Groundtruth", "Gt", "groundtruth", "Groundtruth")
    root = _first(root, "CASIA2.0_revised", "CASIA 2.0", ".")
    expected = f"{root}/Tp/Tp_*.jpg|tif with masks {folder}/Tp_*_gt.png, and authentic pictures {root}/Au/Au_*.jpg"
    images = files_in(root / "Tp", expected)
    pairs = paired(images, by_stem(files_in(folder, expected)), "skip")
    kinds = {"Tp_D": "splice", "Tp_S": "copymove"}
    forged = [Picture(image, mask, kinds.get(image.stem[:4], "manipulated"), "casia_v2", sources_of(image)) for image, mask in pairs]
    return forged + _authentic(root / "Au", "casia_v2")


def columbia(root: Path) -> list[Picture]:
    """Read `4cam_splc/*.tif`, `4cam_auth/*.tif` with masks `4cam_splc/edgemask/<stem>_edgemask.jpg` in three colours, green being spliced.

    Either folder may hold one of its name, as some programs unpack the archives.
    """
    expected = f"{root}/4cam_splc/<name>.tif with masks {root}/4cam_splc/edgemask/<name>_edgemask.jpg"
    spliced, folder = (_first(root, f"{name}/{name}", name) for name in ("4cam_splc", "4cam_auth"))
    masks = _first(root, f"{spliced.relative_to(root)}/edgemask", "4cam_splc/edgemask")
    forged = _forged(files_in(spliced, expected), masks, "splice", "columbia", expected, "green")
    # the authentic pictures' own edgemask/ holds no pictures
    return forged + [picture for picture in _authentic(folder, "columbia") if picture.image.parent == folder]


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

    `IsTarget` tells what was manipulated; a target without a mask is left out. The list's base file, where given, is the scene: there are many
    near-duplicates of each, and an authentic control, which the list names too.
    """
    lists = sorted((root / "reference" / "manipulation").glob("*.csv"))
    if len(lists) != 1:
        raise FileNotFoundError(f"{len(lists)} lists in {root}/reference/manipulation: expected NC2016-manipulation-ref.csv, and {root}/probe/*.jpg")
    with blamed(lists[0], "take the one of the set"), lists[0].open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="|")
        columns = reader.fieldnames or []
        if missing := [name for name in ("ProbeFileName", "ProbeMaskFileName", "IsTarget") if name not in columns]:
            raise BadFileError(f"{lists[0]} has no column {', '.join(missing)}: its first line must name them, with | between columns")
        rows = {row["ProbeFileName"]: {name: cell or "" for name, cell in row.items()} for row in reader if row["ProbeFileName"]}
    if bare := [name for name, row in rows.items() if row["IsTarget"] == "Y" and not row["ProbeMaskFileName"]]:
        _log.warning(
            "%d of %d manipulated pictures have no mask in %s and are left out: %s",
            len(bare),
            sum(row["IsTarget"] == "Y" for row in rows.values()),
            lists[0],
            ", ".join(bare[:3]),
        )
    pictures = [_probe(root, row) for name, row in rows.items() if name not in bare]
    check_there(pictures, lists[0])
    return sorted(pictures, key=lambda picture: -picture.label)


def _probe(root: Path, row: dict[str, str]) -> Picture:
    """Read a line of NIST16's list."""
    image, is_target = root / row["ProbeFileName"], row["IsTarget"] == "Y"
    scenes = [row.get("BaseFileName"), row.get("CorrespondingControlFileName"), "" if is_target else row["ProbeFileName"]]
    sources = frozenset(f"nist16/{scene}" for scene in scenes if scene)
    if not is_target:
        return Picture(image, dataset="nist16", sources=sources)
    kind = next((kind for column, kind in _NIST_KINDS.items() if row.get(column) == "Y"), "manipulated")
    return Picture(image, root / row["ProbeMaskFileName"], kind, "nist16", sources, "inverted")


def imd2020(root: Path) -> list[Picture]:
    """Read a folder a case: `<case>/<name>.*` with masks `<case>/<name>_mask.png`, and originals `<case>/*_orig.*`; a case is one scene.

    Copies of pictures that CAT-Net makes in `0jpg` are passed over.
    """
    expected = f"{root}/<case>/<name>.jpg with masks {root}/<case>/<name>_mask.png, and originals {root}/<case>/<name>_orig.jpg"
    cases: dict[Path, list[Path]] = {}
    for path in (path for path in list_images(root, expected) if path.parent.name != "0jpg"):
        cases.setdefault(path.parent, []).append(path)
    forged, real = [], []
    for case, paths in cases.items():
        sources = frozenset({f"imd2020/{case.name}"})
        masks = by_stem(path for path in paths if path.stem.endswith("_mask"))
        images = [path for path in paths if not path.stem.endswith(("_mask", "_orig"))]
        forged += [Picture(image, mask, "manipulated", "imd2020", sources) for image, mask in paired(images, masks)]
        real += [Picture(path, dataset="imd2020", sources=sources) for path in paths if path.stem.endswith("_orig")]
    return forged + real


_DEFACTO_KINDS = {"splic": "splice", "copymove": "copymove", "inpaint": "inpaint"}


def defacto(root: Path) -> list[Picture]:
    """Read `<part>_img/img/*` with masks `<part>_annotations/probe_mask/*`, and authentic pictures of COCO in `coco`.

    Parts are `copymove`, `inpainting` and `splicing_1` to `splicing_7`, and may lie in folders such as `defacto-splicing`, as on Kaggle. The lists of
    MVSS-Net have other names for the same folders, such as `Copy-Move-images` with `Copy-Move-annotations`, or `Splicing-images-2` with
    `Splicing-annotations-2`.
    """
    expected = f"{root}/copymove_img/img/<name>.tif with masks {root}/copymove_annotations/probe_mask/<name>.jpg (likewise splicing_1, inpainting)"
    forged: list[Picture] = []
    for folder in sorted([*root.glob("*/img"), *root.glob("*/*/img")]):
        part = folder.parent.name
        masks = folder.parent.parent / re.sub("images|img", "annotations", part) / "probe_mask"
        kind = next((kind for beginning, kind in _DEFACTO_KINDS.items() if part.lower().replace("-", "").startswith(beginning)), "manipulated")
        forged += _forged(files_in(folder, expected), masks, kind, "defacto", expected)
    if not forged:
        raise FileNotFoundError(f"no pictures in {root}: expected {expected}")
    return forged + _authentic(root / "coco", "defacto")


def fantastic_reality(root: Path) -> list[Picture]:
    """Read `ColorFakeImages/*`, `ColorRealImages/*` with masks `SegmentationFake/<stem>.npz`, whose `arr_0` is positive where spliced.

    The three may lie in `dataset`, as in the archive.
    """
    root = _first(root, "dataset", ".")
    expected = f"{root}/ColorFakeImages/<name>.jpg with masks {root}/SegmentationFake/<name>.npz"
    pairs = paired(files_in(root / "ColorFakeImages", expected), by_stem((root / "SegmentationFake").glob("*.npz")))
    forged = [Picture(image, mask, "splice", "fantastic_reality", sources_of(image), "array") for image, mask in pairs]
    return forged + _authentic(root / "ColorRealImages", "fantastic_reality")


def tampcoco(root: Path) -> list[Picture]:
    """Read `{sp,cm,bcm,bcmc}_images/*` with masks in `{sp,cm,bcm}_masks`: bcmc's are those of bcm.

    The mask of `69_<a>_aligned_Q75.jpg_<b>_aligned_Q75.jpg_RS1.08_aligned_Q75.jpg` is `69_<a>.png_<b>.png_RS1.08.png`.
    """
    expected = f"{root}/sp_images/70_<host>.jpg_<donor>.jpg.jpg with masks {root}/sp_masks/70_<host>.png_<donor>.png.png (likewise cm, bcm and bcmc)"
    forged: list[Picture] = []
    for folder in sorted(root.glob("*_images")):
        part = folder.name.removesuffix("_images")
        images = files_in(folder, expected)
        there = {path.name: path for path in files_in(root / f"{'bcm' if part == 'bcmc' else part}_masks", expected)}
        names = {image.stem: re.sub(r"_aligned_Q\d+", "", image.name).replace(".jpg", ".png") for image in images}
        pairs = paired(images, {stem: there[name] for stem, name in names.items() if name in there})
        kind = "splice" if part == "sp" else "copymove"
        forged += [Picture(image, mask, kind, "tampcoco", sources_of(image)) for image, mask in pairs]
    if not forged:
        raise FileNotFoundError(f"no pictures in {root}: expected {expected}")
    return forged


def compraise(root: Path) -> list[Picture]:
    """Read the authentic JPEG files of compRAISE, in sub-folders or not."""
    return [Picture(path, dataset="compraise") for path in list_images(root, f"{root}/<name>.jpg, all of them authentic")]


def dso1(root: Path) -> list[Picture]:
    """Read `splicing-NN.png` and `normal-NN.png` in `DSO-1`, with masks of the same name in `DSO-1-Fake-Images-Masks`, black where spliced.

    The two may lie in `tifs-database`, as in the archive.
    """
    root = _first(root, "tifs-database", ".")
    expected = f"{root}/DSO-1/splicing-01.png and normal-01.png with masks {root}/DSO-1-Fake-Images-Masks/splicing-01.png"
    images = files_in(root / "DSO-1", expected)
    spliced = [path for path in images if path.stem.startswith("splicing")]
    forged = _forged(spliced, root / "DSO-1-Fake-Images-Masks", "splice", "dso1", expected, "inverted")
    return forged + [Picture(path, dataset="dso1") for path in images if path.stem.startswith("normal")]


def cocoglide(root: Path) -> list[Picture]:
    """Read `fake/glide_inpainting_val2017_<number>_up.png` with masks `mask/<class>_<number>_mask.png`, and `real/<class>_<number>.png`.

    The number is that of the picture in COCO.
    """
    expected = f"{root}/fake/glide_inpainting_val2017_<number>_up.png with masks {root}/mask/<class>_<number>_mask.png, and {root}/real"
    number = lambda path: path.stem.removesuffix("_mask").rpartition("_")[2]  # noqa: E731
    masks = {f"glide_inpainting_val2017_{number(path)}_up": path for path in files_in(root / "mask", expected)}
    pairs = paired(files_in(root / "fake", expected), masks)
    forged = [Picture(image, mask, "inpaint", "cocoglide", sources_of(image)) for image, mask in pairs]
    return forged + [replace(picture, sources=frozenset({f"coco/{number(picture.image)}"})) for picture in _authentic(root / "real", "cocoglide")]


def _first(root: Path, *names: str) -> Path:
    """Return the first of the folders that is there; the first of all if none is."""
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


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
