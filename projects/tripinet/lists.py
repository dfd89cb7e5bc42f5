"""The forms in which users hold their pictures: a folder of pairs, a JSON list, a text list, and a mixture or named sets of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from projects.tripinet.pairs import Picture, by_stem, check_there, files_in, paired, rule_of
from projects.tripinet.sources import sources_of
from shared.data.files import BadFileError, read_json

_UNKNOWN = "manipulated"
_NO_MASK = ("none", "negative", "")
_FORMS = "a folder with Tp and Gt, a JSON list, a text list (.txt), or a mixture or named sets in JSON"


def read_lists(path: Path) -> dict[str, list[Picture]]:
    """Read pictures in whatever form they are listed.

    Args:
        path: a folder, a `.json` or a `.txt` file; what a file names is relative to the file's folder.

    Returns:
        The pictures of each set: several for a mixture and for named sets, else one named by the path's last part.

    Raises:
        BadFileError: if a list is damaged.
        FileNotFoundError: if files are missing.
        ValueError: if images and masks do not go together.
    """
    if path.is_dir():
        return {path.name: read_folder(path)}
    _check_file(path)
    if path.suffix.lower() == ".txt":
        return {path.stem: read_text_list(path)}
    if path.suffix.lower() != ".json":
        raise BadFileError(f"{path} is no list that is known: expected {_FORMS}; name it so")
    content = _json(path)
    if isinstance(content, dict):
        return _named(path, content)
    entries = _pairs(path, content)
    return _mixture(path, entries) if _is_mixture(entries) else {path.stem: _json_list(path, entries)}


def read_folder(root: Path) -> list[Picture]:
    """Read `Tp/*` with masks `Gt/*` of the same stem, which may carry `_gt`, `_mask`, `_edgemask` or `forged`; pictures in `Au` are authentic.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if images and masks are not equally many, or do not go together by name.
    """
    expected = f"{root}/Tp/<name>.* with masks {root}/Gt/<name>.png, and authentic pictures in {root}/Au if there are any"
    images, masks = files_in(root / "Tp", expected), by_stem(files_in(root / "Gt", expected))
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images in {root / 'Tp'}, but {len(masks)} masks in {root / 'Gt'}: there must be one mask an image")
    forged = [Picture(image, mask, _UNKNOWN, root.name, sources_of(image), rule_of(mask)) for image, mask in paired(images, masks)]
    real = files_in(root / "Au", expected) if (root / "Au").is_dir() else []
    return forged + [Picture(image, dataset=root.name, sources=sources_of(image)) for image in real]


def read_json_list(file: Path) -> list[Picture]:
    """Read `[["image", "mask"], ["image", "Negative"], ...]`, "Negative" being authentic.

    Raises:
        BadFileError: if the file is not like that.
        FileNotFoundError: if files are missing.
    """
    return _json_list(file, _pairs(file, _json(file)))


def read_mixture(file: Path) -> dict[str, list[Picture]]:
    """Read `[["ManiDataset", "folder"], ["JsonDataset", "list.json"], ...]`.

    Returns:
        The pictures of each set, named by their path in the file.

    Raises:
        BadFileError: if the file is not like that.
        FileNotFoundError: if files are missing.
        ValueError: if images and masks do not go together.
    """
    return _mixture(file, _pairs(file, _json(file)))


def read_named(file: Path) -> dict[str, list[Picture]]:
    """Read `{"name": "folder", "other": "list.json", ...}`, as IMDL-BenCo names what it tests on in `test_datasets.json`.

    Returns:
        The pictures of each set, by its name.

    Raises:
        BadFileError: if the file is not like that.
        FileNotFoundError: if files are missing.
        ValueError: if images and masks do not go together.
    """
    return _named(file, _json(file))


def read_text_list(file: Path) -> list[Picture]:
    """Read lines of `image mask label`, `image mask edge label`, or `image,mask[[,original],jpg]`; "None" stands for no mask, label 0 for authentic.

    Labels above 0 number manipulations in a way that each list has of its own, and are all read as `manipulated`. Edge masks follow from the masks,
    and the last field of CAT-Net's form, a copy in JPEG, is left aside; the original is what its pictures share. Empty lines are passed over.

    Raises:
        BadFileError: if a line has another form.
        FileNotFoundError: if files are missing.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadFileError(f"{file} is not UTF-8 (at byte {error.start}): save it as UTF-8") from error
    pictures = [_from_line(line.strip(), file, f"{file}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    return _checked(pictures, file)


def _from_line(line: str, file: Path, where: str) -> Picture:
    fields = [field.strip() for field in line.split(",")] if "," in line else line.split()
    is_labelled = fields[-1].isdigit()
    if "," in line and len(fields) in (2, 3, 4) and not is_labelled:
        return _picture(file, fields[0], fields[1], fields[2] if len(fields) == 4 else "")
    if len(fields) not in (3, 4) or not is_labelled:
        forms = "'image mask label', 'image mask edge label' or 'image,mask[[,original],jpg]'"
        raise BadFileError(f"{where}: {line!r} is not like {forms} with a number as label; correct it, or use commas if names have spaces")
    is_forged = int(fields[-1]) > 0
    if is_forged and fields[1].lower() in _NO_MASK:
        raise BadFileError(f"{where}: label {fields[-1]} says that {fields[0]} is manipulated, but it has no mask; name one, or write label 0")
    return _picture(file, fields[0], fields[1] if is_forged else "")


def _picture(file: Path, image: str, mask: str, original: str = "") -> Picture:
    """Make a picture of the paths that a list names, and of the original that it was made of, if the list names one."""
    path = file.parent / image.replace("\\", "/")
    sources = sources_of(path) | ({str(file.parent / original.replace("\\", "/"))} if original else set())
    if mask.lower() in _NO_MASK:
        return Picture(path, dataset=file.stem, sources=sources)
    truth = file.parent / mask.replace("\\", "/")
    return Picture(path, truth, _UNKNOWN, file.stem, sources, rule_of(truth))


def _checked(pictures: list[Picture], file: Path) -> list[Picture]:
    if not pictures:
        raise BadFileError(f"{file} names no pictures: add some")
    check_there(pictures, file)
    return pictures


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected {_FORMS}; correct the path")


def _json(file: Path) -> Any:
    _check_file(file)
    return read_json(file, "correct it")


def _pairs(file: Path, content: Any) -> list[list[str]]:
    example = f'{file} is not like [["image", "mask"], ["image", "Negative"], ...]'
    is_pair = lambda entry: isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)  # noqa: E731
    if not isinstance(content, list):
        raise BadFileError(f"{example}: it holds {type(content).__name__}; correct it")
    if bad := [number for number, entry in enumerate(content) if not is_pair(entry)]:
        raise BadFileError(f"{example}: entry {bad[0]} is {json.dumps(content[bad[0]])[:80]}; correct it")
    return content


def _json_list(file: Path, entries: list[list[str]]) -> list[Picture]:
    return _checked([_picture(file, image, mask) for image, mask in entries], file)


_MEMBERS = {"ManiDataset": read_folder, "JsonDataset": read_json_list}


def _is_mixture(entries: list[list[str]]) -> bool:
    return bool(entries) and entries[0][0] in _MEMBERS


def _mixture(file: Path, entries: list[list[str]]) -> dict[str, list[Picture]]:
    sets: dict[str, list[Picture]] = {}
    for kind, name in entries:
        if kind not in _MEMBERS:
            raise BadFileError(f"{file}: {kind!r} is no kind of set; write {' or '.join(_MEMBERS)}")
        if name in sets:
            raise BadFileError(f"{file} names {name} twice: remove one of the two")
        sets[name] = _MEMBERS[kind](file.parent / name)
    return sets


def _named(file: Path, content: Any) -> dict[str, list[Picture]]:
    if not isinstance(content, dict) or not content or not all(isinstance(place, str) for place in content.values()):
        raise BadFileError(f'{file} is not like {{"name": "folder", "other": "list.json", ...}}; correct it')
    places = {name: file.parent / place for name, place in content.items()}
    return {name: read_folder(place) if place.is_dir() else read_json_list(place) for name, place in places.items()}
