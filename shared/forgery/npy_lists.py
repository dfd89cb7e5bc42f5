"""Lists of frames in NumPy files, rows of [path, label], as DFD-NAS shares its sets."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

from shared.data.arrays import read_npy
from shared.data.files import BadFileError
from shared.forgery.listing import Clips, check_there
from shared.forgery.sets import REAL, Clip, Video, natural
from shared.forgery.splits import identities

SPLITS = ("train", "val", "test")


def npy_lists(root: Path, dataset: str) -> Clips:
    """Read `<dataset>/{train,val,test}.npy`, those that there are.

    Paths are relative to the list's folder, or absolute; labels are 0 real and 1 fake. Frames of one folder are a video; but where a folder holds all
    frames of a class, or both classes, each of its frames is a video of its own.

    Raises:
        BadFileError: if a list is damaged, would execute code, or has other columns or labels.
        FileNotFoundError: if there is no list, or frames that it names are missing.
    """
    folder = root / dataset
    files = {split: folder / f"{split}.npy" for split in SPLITS if (folder / f"{split}.npy").is_file()}
    if not files:
        raise FileNotFoundError(f"no train.npy, val.npy or test.npy in {folder}: expected lists of [path, label]")
    return {split: _clips(_rows(file), file, dataset) for split, file in files.items()}


def _rows(file: Path) -> list[tuple[str, int]]:
    """Return the paths and labels of a list."""
    rows = read_npy(file, "it is no NumPy file of strings, as np.save(file, rows.astype(str)) writes one")
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "US" or len(rows) == 0:
        raise BadFileError(f"{file} holds an array of {rows.dtype} of shape {rows.shape}: expected strings in rows of [path, label]")
    found = [(str(path), str(label)) for path, label in rows.astype(str)]
    if wrong := [label for _, label in found if label not in ("0", "1")]:
        raise BadFileError(f"{file}: {wrong[0]!r} is no label; write 0 for real, 1 for fake")
    return [(path.replace("\\", "/"), int(label)) for path, label in found]


def _clips(rows: list[tuple[str, int]], file: Path, dataset: str) -> list[Clip]:
    check_there((str(file.parent / path) for path, _ in rows), file)
    folders: dict[PurePosixPath, set[int]] = defaultdict(set)
    for path, label in rows:
        folders[PurePosixPath(path).parent].add(label)
    alone = {label for label in (0, 1) if sum(label in labels for labels in folders.values()) == 1}
    videos: dict[Video, list[str]] = defaultdict(list)
    for path, label in rows:
        place = PurePosixPath(path).parent
        name = str(PurePosixPath(path).with_suffix("") if label in alone or len(folders[place]) > 1 else place)
        videos[Video(dataset, "fake" if label else REAL, name, identities(dataset, name))].append(str(file.parent / path))
    return [Clip(video, tuple(sorted(paths, key=natural))) for video, paths in videos.items()]
