"""CelebA's aligned faces, as TrojDiff reads them."""

from __future__ import annotations

from pathlib import Path

from shared.data.files import ImageMode, blamed, first_few
from shared.data.folders import ImageFolderDataset, OnBadFile

TRAIN, TEST = 0, 2
"""Numbers of these parts in `list_eval_partition.txt`; 1 is validation."""
BOX = (25, 57, 153, 185)
"""Left, top, right and bottom of the square of 128 pixels around row 121 and column 89."""
ATTRIBUTES = ("Heavy_Makeup", "Mouth_Slightly_Open", "Smiling")
_LAYOUT = "img_align_celeba/000001.jpg ... with list_eval_partition beside the folder, and list_attr_celeba for classes, as .txt or .csv"
_FOLDERS = ("", "Img", "Eval", "Anno")  # the last three as CelebA's authors hand it out
_MEND = "download the list again, or remove pictures that are not CelebA's"


def celeba(root: Path, size: int, mode: ImageMode, on_bad_file: OnBadFile) -> tuple[ImageFolderDataset, list[int]]:
    """Read CelebA: its usual square of 128 pixels from each aligned face, resized.

    Labels are eight classes of three attributes, as TrojDiff has them: 4 for heavy make-up, 2 for a mouth slightly open and 1 for smiling, added up;
    -1 for all without `list_attr_celeba`. The lists are .txt as the authors wrote them, or .csv as Kaggle has them; faces may be stored anew as .png.

    Args:
        root: folder with `img_align_celeba/` and the lists, or with `Img`, `Eval` and `Anno` that these lie in.
        size: side of the pictures in pixels.
        mode: colour or grey.
        on_bad_file: see `ImageFolderDataset`.

    Returns:
        The faces, and the part that each belongs to: `TRAIN`, 1 for validation, or `TEST`.

    Raises:
        FileNotFoundError: if the folder or `list_eval_partition` is missing.
        ValueError: if a list is damaged or lacks a face, or a part is empty.
    """
    partition, attributes = (_list_file(root, name) for name in ("list_eval_partition", "list_attr_celeba"))
    if partition is None:
        raise FileNotFoundError(f"no {root}/list_eval_partition.txt: expected {_LAYOUT}; correct data.root, or put the list there")
    folder = next((root / name / "img_align_celeba" for name in _FOLDERS if (root / name / "img_align_celeba").is_dir()), root / "img_align_celeba")
    faces = ImageFolderDataset(folder, size=size, box=BOX, mode=mode, on_bad_file=on_bad_file)
    with blamed(partition, _MEND):
        lines = _lines(partition)
        part_of = {name: int(part) for name, part in lines[partition.suffix == ".csv" :]}
        parts = _of_each(faces, part_of)
    if missing := [name for name, part in (("training", TRAIN), ("test", TEST)) if part not in parts]:
        raise ValueError(f"{root} has no {' and no '.join(missing)} pictures of those in {partition.name}: add them to img_align_celeba")
    if attributes is not None:
        with blamed(attributes, _MEND):
            names, *rows = _lines(attributes)[attributes.suffix == ".txt" :]
            columns = [names.index(name) - len(names) for name in ATTRIBUTES]  # from the end: Kaggle's names have one for the pictures, too
            label_of = {row[0]: sum((row[column] == "1") << place for place, column in enumerate(columns[::-1])) for row in rows}
            faces.labels = _of_each(faces, label_of)
    return faces, parts


def _list_file(root: Path, name: str) -> Path | None:
    places = (root / folder / f"{name}{ending}" for ending in (".txt", ".csv") for folder in _FOLDERS)
    return next((place for place in places if place.is_file()), None)


def _of_each(faces: ImageFolderDataset, table: dict[str, int]) -> list[int]:
    known = {name.rpartition(".")[0]: value for name, value in table.items()}
    if strangers := [path.name for path in faces.paths if path.stem not in known]:
        raise ValueError(f"it does not list {', '.join(first_few(strangers))}")
    return [known[path.stem] for path in faces.paths]


def _lines(file: Path) -> list[list[str]]:
    """Return the fields of each line that is not empty."""
    separator = "," if file.suffix == ".csv" else None
    return [[cell.strip() for cell in line.split(separator)] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
