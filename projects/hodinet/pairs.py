"""A user's own pictures with their depth: found in files, folders, patterns and layouts, paired, and read."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from projects.hodinet.depth import ARRAY
from projects.hodinet.layouts import DEPTH_ENDING, MissingDepth, Modality, Sample, is_inverted, read_layout
from projects.hodinet.samples import Reading
from shared.data.files import EXTENSIONS, BadFileError, first_few, image_size, read_levels
from shared.data.folders import OnBadFile
from shared.data.inputs import Input, find_pictures, sort_out, spelt

_THREADS = 2  # depth maps in memory at once, while they are checked


@dataclass(frozen=True)
class Pair:
    """A picture to judge.

    Attributes:
        given: the picture, with the name that results are written under.
        depth: its depth map; None counts as 0 everywhere.
        invert: the map has far = 1.
    """

    given: Input
    depth: Path | None
    invert: bool = False


def read_pair(pair: Pair, reader: Reading) -> tuple[Tensor, Tensor]:
    """Read a picture, (3, H, W) uint8, and its depth, (1, H, W) in [0, 1] with near = 1."""
    image = read_levels(pair.given.file)
    return image, reader.read(pair.depth, pair.invert, (image.shape[1], image.shape[2]))


# ---- what goes together


def find_pairs(
    path: str,
    depth: str | None,
    reader: Reading,
    needed: bool = True,
    missing: MissingDepth = "refuse",
    invert: bool | None = None,
    on_bad_file: OnBadFile = "refuse",
) -> tuple[list[Pair], list[dict[str, str]]]:
    """Find the pictures to judge with their depth, and decode all of them once, before any work.

    Args:
        path: a picture, a folder or a pattern, see `shared.data.inputs.find_pictures`. A folder that holds one of `projects.hodinet.layouts.LAYOUTS`
            stands for the pictures and depth maps there, unless `depth` is given.
        depth: the file of depth of one picture, or a folder of maps: `<folder>/a/1.png` for the picture `a/1.jpg` below `path`, or else the only map
            of that stem; `_depth` may stand behind the stem.
        reader: how depth is read.
        needed: False leaves depth out.
        missing: refuses pictures without a depth map, or takes zeros for it.
        invert: the maps have far = 1; None leaves that to the reader.
        on_bad_file: refuse pictures that cannot be read, or whose depth cannot be used, or skip them.

    Returns:
        The pictures, and `file` and `reason` of each one that was left out.

    Raises:
        FileNotFoundError: if there is nothing.
        BadFileError: naming the files that cannot be used, if `on_bad_file` is refuse or if none can, and all pictures without depth.
        ValueError: if it is not clear which depth belongs to a picture.
    """
    samples = [] if depth is not None else _layout(Path(path).expanduser(), "thermal" if reader.thermal else "depth")
    if samples:
        root = Path(path).expanduser()
        pairs = [_of_layout(sample, root, reader) for sample in samples]
        pictures, bad = sort_out([pair.given for pair in pairs], on_bad_file)
        readable = set(pictures)
        pairs = [pair for pair in pairs if pair.given in readable]
    else:
        pictures, bad = find_pictures(path, on_bad_file)
        pairs = [Pair(given, own, reader.inverted == "all") for given, own in _with_depth(pictures, path, depth if needed else None)]
    if not needed:
        return [Pair(pair.given, None) for pair in pairs], bad
    if invert is not None:
        pairs = [Pair(pair.given, pair.depth, invert) for pair in pairs]
    if missing == "refuse":
        _refuse_missing(pairs, depth)
    usable, without = _check_depth(pairs, reader, on_bad_file)
    return usable, bad + without


def _layout(root: Path, modality: Modality) -> list[Sample]:
    try:
        return read_layout(root, "auto", modality, "zeros", with_masks=False) if root.is_dir() else []
    except FileNotFoundError:
        return []  # a plain folder of pictures


def _of_layout(sample: Sample, root: Path, reader: Reading) -> Pair:
    given = Input(sample.image, spelt(sample.image.relative_to(root)))
    return Pair(given, sample.depth, is_inverted(sample, reader.inverted, reader.thermal))


def _with_depth(pictures: Sequence[Input], path: str, depth: str | None) -> list[tuple[Input, Path | None]]:
    if depth is None:
        return [(given, None) for given in pictures]
    root = Path(depth).expanduser()
    if root.is_file():
        if len(pictures) != 1:
            raise ValueError(f"{depth} is the depth of one picture, but {path} holds {len(pictures)}: give the folder of their maps with --depth")
        return [(pictures[0], root)]
    if not root.is_dir():
        raise FileNotFoundError(f"no depth {depth}: give the depth map of one picture, or the folder of maps, with --depth")
    inside = root.resolve()
    pictures = [given for given in pictures if not given.file.resolve().is_relative_to(inside)] or pictures
    return _paired(pictures, root)


def _paired(pictures: Sequence[Input], folder: Path) -> list[tuple[Input, Path | None]]:
    """Pair pictures with the maps in a folder: by path below the folder, or by stem where only one picture and one map have it."""
    names = glob.glob("**/*", root_dir=folder, recursive=True)  # noqa: PTH207 - follows links to folders, as the search for pictures does
    maps = sorted(name for name in names if name.lower().endswith((*EXTENSIONS, ARRAY)) and (folder / name).is_file())
    if not maps:
        raise FileNotFoundError(f"no depth maps in {folder}: expected files ending in {', '.join((*EXTENSIONS, ARRAY))}")
    by_path = _unambiguous([spelt(Path(name)) for name in maps], "depth maps")
    files = dict(zip((spelt(Path(name)) for name in maps), maps, strict=True))
    _unambiguous([given.name for given in pictures], "pictures")
    by_path = {DEPTH_ENDING.sub("", bare): name for bare, name in by_path.items()} | by_path
    stems = Counter(Path(bare).name for bare in by_path)
    others = Counter(Path(given.name).stem for given in pictures)
    by_stem = {Path(bare).name: name for bare, name in by_path.items()}

    def find(given: Input) -> Path | None:
        stem = Path(given.name).stem
        alone = by_stem.get(stem) if stems[stem] == others[stem] == 1 else None
        name = by_path.get(_bare(given.name), alone)
        return None if name is None else folder / files[name]

    return [(given, find(given)) for given in pictures]


def _bare(name: str) -> str:
    return name[: len(name) - len(Path(name).suffix)]


def _unambiguous(names: Sequence[str], what: str) -> dict[str, str]:
    """Return names by themselves without their endings.

    Raises:
        ValueError: if two are the same without.
    """
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(_bare(name), name)) != name:
            raise ValueError(
                f"the {what} {other} and {name} have the same name but for the ending, so it is not clear what goes together: remove one"
            )
    return found


def _refuse_missing(pairs: Sequence[Pair], depth: str | None) -> None:
    lacking = [str(pair.given.file) for pair in pairs if pair.depth is None]
    if lacking:
        where = "give the map, or the folder of maps, with --depth" if depth is None else f"put maps of the same names into {depth}"
        mend = f"{where}, or take 0 everywhere with --missing_depth zeros"
        raise BadFileError("\n  ".join([f"{len(lacking)} of {len(pairs)} pictures have no depth map:", *first_few(lacking), mend]))


def _check_depth(pairs: Sequence[Pair], reader: Reading, on_bad_file: OnBadFile) -> tuple[list[Pair], list[dict[str, str]]]:
    with ThreadPoolExecutor(_THREADS) as pool:  # decoders run outside Python's lock
        complaints = list(pool.map(_complaint(reader), pairs))
    bad = [complaint for complaint in complaints if complaint]
    if bad and (on_bad_file == "refuse" or len(bad) == len(pairs)):
        mend = "replace them, or leave the pictures out with --data.on_bad_file skip"
        raise BadFileError("\n  ".join([f"{len(bad)} of {len(pairs)} depth maps cannot be used:", *first_few(bad), mend]))
    both = list(zip(pairs, complaints, strict=True))
    return [pair for pair, reason in both if not reason], [{"file": pair.given.name, "reason": reason} for pair, reason in both if reason]


def _complaint(reader: Reading) -> Callable[[Pair], str]:
    """Return what says why the depth of a picture cannot be read; empty if it can."""

    def complaint(pair: Pair) -> str:
        try:
            reader.read(pair.depth, pair.invert, image_size(pair.given.file))
        except (BadFileError, FileNotFoundError) as error:
            return str(error)
        return ""

    return complaint
