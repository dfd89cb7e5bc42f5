"""RGB-D sets as they are downloaded: five layouts that the names of folders and lists tell apart, and folders of the user's own.

samples = read_layout(Path("datasets"))     # all that lies there, whatever its layout

Files are paired by stem: several peers pair them in sorted order, and one missing file then shifts all that follow.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from projects.hodinet.lists import read_names, read_pairs
from shared.data.files import BadFileError, first_few, list_images
from shared.data.folders import OnBadFile

Layout = Literal["group", "spnet", "caver", "vst", "mobilesal", "folder"]
"""Names of the layouts, see `LAYOUTS`."""

Modality = Literal["depth", "thermal"]
"""What goes with pictures: folders `depth` or, of RGB-T sets, `T` or `thermal`."""

MissingDepth = Literal["refuse", "zeros"]
"""What befalls pictures without a depth map: they are refused, or their depth is 0 everywhere."""

Inverted = Collection[str] | Literal["all"] | None
"""Sets whose depth has far = 1, by the names that tables give them; None are those in the layout of the group, who publish them so."""

LAYOUTS: dict[str, str] = {
    "group": "train_{images,depth,masks}/ and <set>/test_{images,depth,masks}/",
    "spnet": "TrainDataset/{RGB,depth,GT}/ and TestDataset/<set>/{RGB,depth,GT}/, or RGBD_for_train/ and RGBD_for_test/<set>/",
    "caver": "<set>/{Image,Depth,Mask}/ with lists of names for NJUD_FULL and NLPR_FULL, and <set>/{Train,Test}/{RGB,depth,GT}/",
    "vst": "<set>/{trainset,testset}/{RGB,depth,GT}/ or <set>/{RGB,depth,GT}/, <set> also as NJU2K_TRAIN",
    "mobilesal": "<set>/{<name>.jpg,<name>_gt.png,<name>_depth.png} and <set>.txt or <set>_{train,test}.txt with a picture and its mask a line",
    "folder": "{train,test}/{RGB,depth,GT}/, or {RGB,depth,GT}/ to test on",
}
"""What lies in the root."""

PICTURES: dict[str, dict[str, tuple[int, ...]]] = {
    "NJU2K": {"train": (1485,), "test": (500, 498, 485)},
    "NLPR": {"train": (700,), "test": (300,)},
    "DUT-RGBD": {"train": (800,), "test": (400,)},
    "STERE": {"test": (1000,)},
    "STERE-797": {"test": (797,)},
    "SIP": {"test": (929,)},
    "DES": {"test": (135,)},
    "LFSD": {"test": (100,)},
    "SSD": {"test": (80,)},
    "COME15K": {"train": (8025,)},
    "COME-E": {"test": (4600,)},
    "COME-H": {"test": (3000,)},
}
"""Numbers of pictures that the sets were published with; NJU2K and STERE in several releases."""

DEPTH_ENDING = re.compile(r"_depth$", re.IGNORECASE)
"""What may stand behind the stems of depth maps, as in some releases of RGBD135."""

_NAMES = {
    "NJU2K": ("njud", "njudfull", "nju2kfull", "nju2000"),
    "NLPR": ("nlprfull",),
    "DUT-RGBD": ("dut", "dutlfdepth"),
    "STERE": ("stereo", "stere1000", "stereo1000"),
    "STERE-797": ("stereo797",),
    "DES": ("rgbd135", "desrgbd135"),
    "SSD": ("ssd80", "ssd100"),
    "COME15K": ("come", "come8k"),
}
_STEMS = {"NJU2K": r"(?<!\d)\d{6}_left$", "NLPR": r"(?<!\d)\d{1,2}_\d\d-\d\d-\d\d$", "DUT-RGBD": r"^(dut\D*)?\d+$"}
_IMAGES, _MASKS = ("rgb", "image", "images", "img", "imgs", "rgb_left", "imgs_right"), ("gt", "mask", "masks", "gt_right")
_MODALITIES: dict[Modality, tuple[str, ...]] = {"depth": ("depth", "depths"), "thermal": ("t", "thermal")}
_SPLIT = re.compile(r"(train|test|val)(?:ing|id|idation)?(?:data)?(?:set)?")  # a word of a folder's name
_SHORT = {"tr": "train", "te": "test"}
_USED = ({"train"}, {"test"})  # what the name of a folder tells whose pictures are read
_FILLING = {"for", "in", "data", "dataset", "set", "rgbd", "fast", "ori"}  # words beside it that name no set
_MERGED = re.compile(r"nju.*nlpr|nlpr.*nju")
_DEEPEST = 3  # folders between the root and those of pictures
_Files = dict[str, Path]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A picture with its depth and mask, in files.

    Attributes:
        image: the picture.
        depth: its depth map; None counts as 0 everywhere.
        mask: its mask; None where nobody marked what is salient.
        dataset: name of its set, as tables have it.
        split: `train` or `test`.
        stem: name of the picture, without its ending.
        layout: the layout it was found in.
    """

    image: Path
    depth: Path | None
    mask: Path | None
    dataset: str
    split: str
    stem: str
    layout: Layout = "folder"


@dataclass(frozen=True)
class _Place:
    """Folders of pictures, of depth and of masks, with what their names tell; a set "" is told by stems.

    Files by the stem of their picture are those that a list names; None are all that lie in the folders.
    """

    layout: Layout
    dataset: str
    split: str
    images: Path
    depths: Path | None
    masks: Path | None
    files: tuple[_Files, _Files, _Files] | None = None


def set_name(folder: str) -> str:
    """Return the name that tables give to a set, for any of those that folders give to it: NJU2K for NJUD_FULL, STERE for STEREO-1000."""
    letters = re.sub(r"[^a-z0-9]", "", folder.lower())
    for name in (*PICTURES, *_NAMES):
        if letters == re.sub(r"[^a-z0-9]", "", name.lower()) or letters in _NAMES.get(name, ()):
            return name
    return re.sub(r"[^\w.-]+", "_", folder).strip("._") or "set"


def is_inverted(sample: Sample, inverted: Inverted, thermal: bool) -> bool:
    """Tell whether the depth of a picture has far = 1; a thermal picture has so only where it is asked for."""
    if inverted is None:
        return sample.layout == "group" and not thermal
    return inverted == "all" or sample.dataset in inverted


def read_layout(
    root: Path,
    layout: Layout | Literal["auto"] = "auto",
    modality: Modality = "depth",
    missing_depth: MissingDepth = "refuse",
    on_bad_file: OnBadFile = "refuse",
    with_masks: bool = True,
) -> list[Sample]:
    """Read all that lies in a folder in some layout, or in any.

    Args:
        root: the folder.
        layout: one of `LAYOUTS`; "auto" takes every one that is there.
        modality: what goes with the pictures.
        missing_depth: what befalls pictures without a depth map.
        on_bad_file: "refuse" raises one error that lists the pictures whose depth or mask is missing; "skip" leaves them out with a warning.
        with_masks: False reads masks where there are some, and does without them elsewhere.

    Returns:
        Samples, by set, split and stem.

    Raises:
        BadFileError: if files are missing and `on_bad_file` is "refuse", or if all of a folder are.
        FileNotFoundError: if the root, or a folder in it, is missing, or holds no image; the message says what is expected.
        ValueError: if an option is not known, two files have the same stem, or two folders hold the same set.
    """
    for name, value, known in (
        ("modality", modality, Modality),
        ("missing_depth", missing_depth, MissingDepth),
        ("on_bad_file", on_bad_file, OnBadFile),
    ):
        if value not in get_args(known):
            raise ValueError(f"data.{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    places = _places(root, layout, modality, missing_depth, with_masks)
    samples: dict[tuple[str, str, str], Sample] = {}
    for place in places:
        for sample in _samples(place, root, missing_depth, on_bad_file, with_masks):
            key = (sample.dataset, sample.split, sample.stem)
            if key in samples:
                raise ValueError(
                    f"{samples[key].image} and {sample.image} are both {sample.stem} of {sample.dataset} ({sample.split}): remove one of them"
                )
            samples[key] = sample
    return [samples[key] for key in sorted(samples)]


def by_set(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each set, known sets first in their order."""
    sets: dict[str, list[Sample]] = {}
    for sample in samples:
        sets.setdefault(sample.dataset, []).append(sample)
    order = list(PICTURES)
    return {name: sets[name] for name in sorted(sets, key=lambda name: (order.index(name) if name in order else len(order), name))}


# ---- folders


def _places(root: Path, layout: Layout | Literal["auto"], modality: Modality, missing_depth: MissingDepth, with_masks: bool) -> list[_Place]:
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}: choose one of auto, {', '.join(LAYOUTS)}")
    trees = "\n  ".join(f"{name}: {root}/{tree}" for name, tree in LAYOUTS.items() if layout in ("auto", name))
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: correct data.root, or put the sets there as\n  {trees}")
    found = [*_walk(root, root, modality, 0), *(_side_by_side(root) if modality == "depth" else ())]
    chosen = [place for place in found if layout in ("auto", place.layout)]
    if not chosen:
        others = ", ".join(sorted({place.layout for place in found}))
        there = f"it holds {others}" if found else f"there: {', '.join(first_few(sorted(path.name for path in root.iterdir()))) or 'nothing'}"
        raise FileNotFoundError(f"no pictures with {modality} and masks in {root} ({there}){_unlisted(root)}; expected\n  {trees}")
    for place in chosen:
        _check_place(place, modality, missing_depth, with_masks)
    return chosen


def _walk(folder: Path, root: Path, modality: Modality, depth: int) -> Iterator[_Place]:
    """Find the folders of pictures in a folder and those in it."""
    folders = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    used: set[Path] = set()
    for prefix in ("", "train_", "test_"):
        images, depths, masks = (
            next((folders[prefix + name] for name in names if prefix + name in folders), None)
            for names in (_IMAGES, (*_MODALITIES[modality],), _MASKS)
        )
        if images is not None and (depths is not None or masks is not None):
            used |= {path for path in (images, depths, masks) if path is not None}
            if (place := _named(folder.relative_to(root).parts, prefix, root, images, depths, masks)) is not None:
                yield place
            else:
                _log.warning("%s is left out: it is neither for training nor for testing, and its pictures may be of test sets", folder)
    for path in folders.values():
        if path not in used and depth < _DEEPEST:
            yield from _walk(path, root, modality, depth + 1)


def _named(parts: Sequence[str], prefix: str, root: Path, images: Path, depths: Path | None, masks: Path | None) -> _Place | None:
    """Say what the names of folders tell: layout, set and split; that of the root does too if it is a split, and then its parent names the set.

    Returns:
        None for pictures of no split that is used: those of `val`, and of BBS-Net's `test_in_train`, lie in other folders too.
    """
    own = root.resolve().name
    if _splits_in(own) in _USED and _set_in(own) != own:
        parts, own = [own, *parts], root.resolve().parent.name
    splits = [told for told in map(_splits_in, parts) if told]
    if any(told not in _USED for told in splits):
        return None
    words = {part.lower() for part in parts}
    names = [name for name in map(_set_in, parts) if name is not None]
    split = prefix.rstrip("_") or (min(splits[0]) if splits else "test")
    layout: Layout = "vst" if names or words & {"trainset", "testset"} else "folder"
    if prefix:
        layout = "group"
    elif any(_set_in(part) is None and part.lower() not in ("trainset", "testset", "train", "test") for part in parts):
        layout = "spnet"
    elif names and (words & {"train", "test"} or images.name == "Image"):
        layout = "caver"
    is_merged = split == "train" and (_MERGED.search(names[-1].lower()) is not None if names else layout in ("group", "spnet"))
    return _Place(layout, "" if is_merged else set_name(names[-1] if names else own), split, images, depths, masks)


def _splits_in(folder: str) -> set[str]:
    """Return the splits that a folder's name tells: train for `TrainDataset`, `RGBD_for_train` and `NJU2K_TRAIN`."""
    return {split for word in re.split(r"[^a-z0-9]+", folder.lower()) if (split := _split_of(word))}


def _split_of(word: str) -> str | None:
    match = _SPLIT.fullmatch(word)
    return match[1] if match else _SHORT.get(word)


def _set_in(folder: str) -> str | None:
    """Return the name of a set in a folder's name, `NJU2K` of `NJU2K_TRAIN`; None if it only tells the split."""
    if not _splits_in(folder):
        return folder
    words = [word for word in re.split(r"[^A-Za-z0-9]+", folder) if word and not _split_of(word.lower())]
    if all(word.lower() in _FILLING for word in words):
        return None
    return "-".join(words) if set_name("-".join(words)) in PICTURES else folder


def _side_by_side(root: Path) -> list[_Place]:
    """Find pictures that lie beside their masks and depth, by lists in the root such as `NJU2K_NLPR_train.txt`.

    Lists of pictures in other folders, such as `RGB/1.jpg GT/1.png`, belong to other layouts and are passed over.

    Raises:
        BadFileError: if a line of such a list is damaged, or pictures of a list are missing or in lists of both splits.
    """
    lists = {path: lines for path in sorted(root.glob("*.txt")) if (lines := read_pairs(path))}
    there = {path.relative_to(root).as_posix(): path for path in list_images(root)} if lists else {}
    beside = {name.rpartition("/")[0] for name, path in there.items() if DEPTH_ENDING.search(path.stem)}
    used: dict[str, tuple[str, Path]] = {}
    found: dict[tuple[str, Path], tuple[_Files, _Files, _Files]] = {}
    for path, lines in lists.items():
        if not any(image.rpartition("/")[0] in beside for image, _ in lines):
            continue
        split = "train" if "train" in _splits_in(path.stem) else "test"
        if missing := [image for image, _ in lines if image not in there]:
            raise BadFileError(f"{len(missing)} of {len(lines)} pictures that {path} names are not in {root}: {', '.join(first_few(missing, 3))}")
        for image, mask in lines:
            other = used.setdefault(image, (split, path))
            if other[0] != split:
                raise BadFileError(f"{image} is for {other[0]} in {other[1]} and for {split} in {path}: keep one of these lists")
            files = found.setdefault((split, there[image].parent), ({}, {}, {}))
            for own, name in zip(files, (image, f"{image.rpartition('.')[0]}_depth.png", mask), strict=True):
                if name in there:
                    own[there[image].stem] = there[name]
    return [_Place("mobilesal", set_name(folder.name), split, folder, folder, folder, files) for (split, folder), files in found.items()]


def _unlisted(root: Path) -> str:
    """Say what pictures that lie beside their depth want; empty without any."""
    depths = (depth for pattern in ("*_depth.png", "*/*_depth.png") for depth in sorted(root.glob(pattern)))
    folder = next((depth.parent for depth in depths if depth.with_name(depth.name.replace("_depth.png", ".jpg")).is_file()), None)
    if folder is None:
        return ""
    lists = f"lists such as {folder.name}_test.txt, with a picture and its mask a line"
    return f"; in {folder} pictures lie beside their depth: they need {lists}, in the folder above, which is then data.root"


def _check_place(place: _Place, modality: Modality, missing_depth: MissingDepth, with_masks: bool) -> None:
    where = place.images.parent
    if place.masks is None and with_masks:
        raise FileNotFoundError(f"no masks beside {place.images}: expected a folder GT, Mask or {place.split}_masks in {where}")
    if place.depths is None and missing_depth == "refuse":
        other = "thermal" if modality == "depth" else "depth"
        mend = f"put the maps there, set data.modality: {other} for a set of that kind, or do without them with data.missing_depth: zeros"
        raise FileNotFoundError(f"no {modality} beside {place.images}: expected a folder {' or '.join(_MODALITIES[modality])} in {where}; {mend}")


# ---- files


def _samples(place: _Place, root: Path, missing_depth: MissingDepth, on_bad_file: OnBadFile, with_masks: bool) -> list[Sample]:
    """Pair the files of a place, and give each its set and split."""
    images, depths, masks = place.files or (_by_stem(folder) for folder in (place.images, place.depths, place.masks))
    depths = {stem if stem in images else DEPTH_ENDING.sub("", stem): path for stem, path in depths.items()}
    splits = dict.fromkeys(images, place.split) if place.files else _listed(place, root, images)
    needed = {"depth map": depths} if missing_depth == "refuse" else {}
    needed |= {"mask": masks} if place.masks and with_masks else {}
    lacking = {stem: what for what, files in needed.items() for stem in splits if stem not in files}
    if lacking:
        _complain(place, lacking, images, len(splits), on_bad_file)
    if spare := sorted((set(depths) | set(masks)) - set(images)):
        _log.warning("%d depth maps or masks beside %s belong to no picture there: %s", len(spare), place.images, ", ".join(first_few(spare, 3)))
    good = [stem for stem in splits if stem not in lacking]
    return [Sample(images[stem], depths.get(stem), masks.get(stem), place.dataset or set_of(stem), splits[stem], stem, place.layout) for stem in good]


def _complain(place: _Place, lacking: dict[str, str], images: dict[str, Path], count: int, on_bad_file: OnBadFile) -> None:
    lines = [f"{images[stem]} has no {what} of its stem" for stem, what in lacking.items()]
    said = f"{len(lines)} of {count} pictures of {place.images} are not complete"
    if on_bad_file == "refuse" or len(lines) == count:
        mend = "add the files, or leave the pictures out with data.on_bad_file: skip"
        raise BadFileError("\n  ".join([f"{said}:", *first_few(lines), mend]))
    _log.warning("%s and are left out, the first because %s", said, lines[0])


def _by_stem(folder: Path | None) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in list_images(folder, f"{folder}/<name>.png or .jpg") if folder is not None else ():
        if path.stem in files:
            raise ValueError(f"{files[path.stem]} and {path} have the same name but for the ending: remove one of them")
        files[path.stem] = path
    return files


def set_of(stem: str) -> str:
    """Tell from its name which set a picture of a merged training folder is of."""
    return next((name for name, pattern in _STEMS.items() if re.search(pattern, stem, re.IGNORECASE)), "other")


def _listed(place: _Place, root: Path, images: dict[str, Path]) -> dict[str, str]:
    """Return the split of each picture: by lists of names such as `njud_train_jw_name_list.lst` in the root, where there are some.

    Raises:
        FileNotFoundError: if a set that holds both splits comes without lists.
        BadFileError: if a list names pictures that are not there, or both lists the same one.
    """
    folder = place.images.parent
    word = folder.name.lower().removesuffix("_full")
    pattern = re.compile(rf"{re.escape(word)}_(train|test).*\.(lst|txt)")
    lists = {match[1]: path for path in sorted(root.iterdir()) if (match := pattern.fullmatch(path.name.lower()))}
    if not lists:
        if folder.name.lower().endswith("_full"):
            names = f"{word}_train_jw_name_list.lst and {word}_test_jw_name_list.lst"
            raise FileNotFoundError(f"{folder} holds pictures of both splits: put {names}, with a name a line, into {root}")
        return dict.fromkeys(images, place.split)
    splits: dict[str, str] = {}
    for split, path in lists.items():
        named = read_names(path)
        if missing := [name for name in named if name not in images]:
            raise BadFileError(
                f"{len(missing)} of {len(named)} pictures that {path} names are not in {place.images}: {', '.join(first_few(missing, 3))}"
            )
        if twice := sorted(splits.keys() & set(named)):
            raise BadFileError(f"{len(twice)} pictures are in both lists {' and '.join(map(str, lists.values()))}: {', '.join(first_few(twice, 3))}")
        splits |= dict.fromkeys(named, split)
    return splits
