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
_LAYOUT = "img_align_celeba/000001.jpg ... with list_eval_partition.txt beside the folder, and list_attr_celeba.txt for classes"
_MEND = "download the list again, or remove pictures that are not CelebA's"


def celeba(root: Path, size: int, mode: ImageMode, on_bad_file: OnBadFile) -> tuple[ImageFolderDataset, list[int]]:
    """Read CelebA: its usual square of 128 pixels from each aligned face, resized.

    Labels are eight classes of three attributes, as TrojDiff has them: 4 for heavy make-up, 2 for a mouth slightly open and 1 for smiling, added up;
    -1 for all without `list_attr_celeba.txt`.

    Args:
        root: folder with `img_align_celeba/` and the lists.
        size: side of the pictures in pixels.
        mode: colour or grey.
        on_bad_file: see `ImageFolderDataset`.

    Returns:
        The faces, and the part that each belongs to: `TRAIN`, 1 for validation, or `TEST`.

    Raises:
        FileNotFoundError: if the folder or `list_eval_partition.txt` is missing.
        ValueError: if a list is damaged or lacks a face, or a part is empty.
    """
    partition, attributes = root / "list_eval_partition.txt", root / "list_attr_celeba.txt"
    if not partition.is_file():
        raise FileNotFoundError(f"no {partition}: expected {_LAYOUT}; correct data.root, or put the list there")
    faces = ImageFolderDataset(root / "img_align_celeba", size=size, box=BOX, mode=mode, on_bad_file=on_bad_file)
    with blamed(partition, _MEND):
        part_of = {name: int(part) for name, part in (line.split() for line in _lines(partition))}
        parts = _of_each(faces, part_of)
    if missing := [name for name, part in (("training", TRAIN), ("test", TEST)) if part not in parts]:
        raise ValueError(f"{root} has no {' and no '.join(missing)} pictures of those in {partition.name}: add them to img_align_celeba")
    if attributes.is_file():
        with blamed(attributes, _MEND):
            _, names, *rows = (line.split() for line in _lines(attributes))
            columns = [1 + names.index(name) for name in ATTRIBUTES]
            label_of = {row[0]: sum((row[column] == "1") << place for place, column in enumerate(columns[::-1])) for row in rows}
            faces.labels = _of_each(faces, label_of)
    return faces, parts


def _of_each(faces: ImageFolderDataset, table: dict[str, int]) -> list[int]:
    if strangers := [path.name for path in faces.paths if path.name not in table]:
        raise ValueError(f"it does not list {', '.join(first_few(strangers))}")
    return [table[path.name] for path in faces.paths]


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
