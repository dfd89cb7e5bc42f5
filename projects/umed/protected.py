"""The folder that is published: lossless PNG files on the original integer grid, masks beside them, and what was measured on them.

| file | holds |
|---|---|
| `images/<name>.png` | the protected image under its old name and sub-folders, grey or colour and 8 or 16 bits as it was; a JPEG keeps its stem |
| `masks/<name>.png` | its mask: 0 and 255 for one class, else the levels 0..K |
| `manifest.json` | how it was made, the means, and for each image its original name, depth, window, quality and the hashes of its files |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from projects.umed.quality import SSIM_WINDOW, max_change, psnr, ssim, touched_region
from projects.umed.sets import FileSet, MaskedSet, Original, PictureItem, SegmentationSet, mask_code
from shared.data.files import BadFileError, first_few, read_json
from shared.runs import atomic, claim_folder, digest, remove, write_json

MANIFEST = "manifest.json"
"""The file that tells a protected folder."""

VERSION = 1
NOTICE = "These images were altered to protect them against training. They are not for diagnosis: keep the originals. Masks are true."

Perturb = Callable[[Tensor, Tensor], Tensor]
"""Maps (B, C, H, W) uint8 images in their windows and (B, H, W) int64 masks to (B, C, H, W) perturbations, float in units of [0, 1] images."""

_PROGRESS = "progress.jsonl"
_QUALITIES = ("psnr", "psnr_roi", "ssim", "max_change", "max_change_levels")


def write_protected(
    folder: str | Path,
    images: MaskedSet,
    perturb: Perturb,
    about: Mapping[str, Any],
    radius: int | None,
    batch_size: int = 16,
    source: Path | str | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Protect every original image of a set and store it; what an interrupted call of the same set and settings stored is kept.

    Args:
        folder: absent, empty, or a protected folder; one of another set or settings is replaced.
        images: the set.
        perturb: makes the perturbations; images of one size are given together.
        about: what made them, for the manifest: method, epsilon (in grey levels), texture, seed, generator (hash of the weights). Values are JSON.
        radius: reach of the contour band in pixels, which the quality in the region of interest is measured with; None: 3 in 256 pixels of each
            image's longer side, at least 1.
        batch_size: images that are perturbed together.
        source: folder that the originals lie in, which must not be the one that is written.
        progress: called with the number of images that are stored.

    Returns:
        The manifest.

    Raises:
        ValueError: if the folder holds something else, or two images would have the same name.
        OSError: if there is no room left.
    """
    path = claim_folder(folder, MANIFEST, source)
    files = stored_names(images.names)
    head = {"version": VERSION, "kind": "umed protected set", "notice": NOTICE} | dict(about)
    head |= {"radius": radius, "count": len(images), "channels": images.image_shape[0], "classes": images.classes, "class_names": images.class_names}
    head["key"] = hashlib.sha256(json.dumps([head, files, images.fingerprint()], sort_keys=True).encode()).hexdigest()[:16]
    done = _begin(path, head)
    if len(done) == len(images) and not (path / _PROGRESS).exists():
        return read_manifest(path)
    todo = [index for index in range(len(images)) if files[index] not in done]
    progress(len(done))
    with ThreadPoolExecutor(4) as pool, (path / _PROGRESS).open("a", encoding="utf-8") as log:
        for first in range(0, len(todo), batch_size):
            indices = todo[first : first + batch_size]
            originals = dict(zip(indices, pool.map(images.original, indices), strict=True))
            for same in _by_shape(originals):
                made = _protect([originals[index] for index in same], perturb, radius, images.image_shape[0])
                jobs = [
                    pool.submit(_store, path, files[index], images.groups[index], images.classes, *record)
                    for index, record in zip(same, made, strict=True)
                ]
                for record in (job.result() for job in jobs):
                    done[record["file"]] = record
                    log.write(json.dumps(record) + "\n")
                log.flush()
                progress(len(done))
    records = [done[file] for file in files]
    manifest = head | {"complete": True, "mean": _means(records), "images": records}
    write_json(path / MANIFEST, manifest)
    remove(path / _PROGRESS)
    return manifest


def read_protected(folder: str | Path, size: int | None = None, check: bool = True) -> SegmentationSet:
    """Read a protected folder into memory.

    Args:
        folder: what `write_protected` wrote.
        size: side of the square that images are stretched to, which weakens fine perturbations; None keeps their sizes, which must be equal.
        check: compares every file with its hash in the manifest.

    Raises:
        FileNotFoundError: if the folder is none, or files are missing; names them.
        BadFileError: if the manifest or files were changed; names them.
        ValueError: if it is not complete, or sizes differ and `size` is None.
    """
    return protected_files(folder, size, check).load()


def protected_files(folder: str | Path, size: int | None = None, check: bool = True) -> FileSet:
    """Return a protected folder as a set that is read from its files as it is used; see `read_protected`."""
    path = Path(folder).expanduser()
    manifest = read_manifest(path)
    if not manifest["complete"]:
        raise ValueError(f"{path} is not complete: run the command that writes it again with --resume")
    if check:
        verify_files(path, manifest)
    code = mask_code(manifest["classes"])
    items = [
        PictureItem(
            record["file"], path / "images" / record["file"], (path / "masks" / record["file"],), code, record["group"], tuple(record["window"])
        )
        for record in manifest["images"]
    ]
    return FileSet(path, items, size, manifest["channels"], manifest["classes"], manifest["class_names"])


def verify_files(folder: str | Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Compare the files of a protected folder with the hashes in its manifest.

    Raises:
        FileNotFoundError: if files are missing; names them.
        BadFileError: if files were changed; names them.
    """
    path = Path(folder).expanduser()
    manifest = read_manifest(path) if manifest is None else manifest
    expected = {path / kind / record["file"]: record[f"{kind}_hash"] for record in manifest["images"] for kind in ("images", "masks")}
    missing = [str(file) for file in expected if not file.is_file()]
    if missing:
        lines = [f"{len(missing)} of {len(expected)} files are missing in the protected folder {path}:", *first_few(missing)]
        raise FileNotFoundError("\n  ".join([*lines, "restore them, or protect the set anew"]))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(digest, expected))
    changed = [str(file) for (file, known), now in zip(expected.items(), found, strict=True) if known != now]
    if changed:
        lines = [f"{len(changed)} of {len(expected)} files in the protected folder {path} were changed since they were written:", *first_few(changed)]
        raise BadFileError("\n  ".join([*lines, "re-encoded images may have lost their protection: restore them, or protect the set anew"]))


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return what `manifest.json` of a protected folder says.

    Raises:
        FileNotFoundError: if there is none.
        BadFileError: if it is damaged, or names files outside of the folder.
    """
    path = Path(folder).expanduser() / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no protected set in {folder}: it has no {MANIFEST}; name a folder that protect wrote")
    manifest = read_json(path, "it is damaged: protect the set anew")
    needed = {"version", "kind", "key", "count", "channels", "classes", "class_names", "complete", "images"}
    if not isinstance(manifest, dict) or not needed <= manifest.keys() or manifest["version"] != VERSION:
        raise BadFileError(f"{path} is no manifest of a protected set of version {VERSION}: protect the set anew")
    if not isinstance(manifest["images"], list) or not all(_is_record(record) for record in manifest["images"]):
        raise BadFileError(f"{path} describes a file wrongly, or one outside of the folder: protect the set anew")
    channels, classes = manifest["channels"], manifest["classes"]
    if channels not in (1, 3) or not isinstance(classes, int) or not 0 < classes < 256 or not isinstance(manifest["class_names"], list):
        raise BadFileError(f"{path} says wrongly how many channels or classes there are, or what these are called: protect the set anew")
    return manifest


def stored_names(names: Sequence[str]) -> list[str]:
    """Give each image its path in the protected folder: the old one ending in .png, with the old ending before it where names would be the same.

    Raises:
        ValueError: if two would still be the same.
    """
    stems = [PurePosixPath(name.removesuffix(".gz")).with_suffix("").as_posix() for name in names]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    found = [f"{name if stem in shared else stem}.png" for name, stem in zip(names, stems, strict=True)]
    if len(set(found)) < len(found):
        raise ValueError(f"two images would both be stored as {Counter(found).most_common(1)[0][0]}: rename one of them")
    return found


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not {"file", "window", "group", "images_hash", "masks_hash"} <= record.keys():
        return False
    if not isinstance(record["file"], str) or not isinstance(record["window"], list):
        return False
    path = PurePosixPath(record["file"])
    return not path.is_absolute() and ".." not in path.parts and "\\" not in record["file"]


def _begin(folder: Path, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Take up the folder if it is of the same set and settings, else begin anew; returns the records of what is stored."""
    try:
        found = read_manifest(folder)
    except (FileNotFoundError, BadFileError):
        found = None
    if found is not None and found["key"] == head["key"]:
        records = found["images"] if found["complete"] else list(_progress(folder / _PROGRESS))
        done = {record["file"]: record for record in records if _is_stored(folder, record)}
        if found["complete"] and len(done) == len(records):
            return done
    else:
        remove(folder)
        done = {}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / _PROGRESS) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in done.values()), encoding="utf-8")
    write_json(folder / MANIFEST, dict(head) | {"complete": False, "images": []})
    return done


def _progress(path: Path) -> Iterator[dict[str, Any]]:
    """Read what was stored before an interruption, which may have cut the last line."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if _is_record(record):
            yield record


def _is_stored(folder: Path, record: Mapping[str, Any]) -> bool:
    files = {folder / kind / record["file"]: record[f"{kind}_hash"] for kind in ("images", "masks")}
    return all(file.is_file() and digest(file) == known for file, known in files.items())


def _by_shape(originals: Mapping[int, Original]) -> list[list[int]]:
    found: dict[torch.Size, list[int]] = {}
    for index, original in originals.items():
        found.setdefault(original.levels.shape, []).append(index)
    return list(found.values())


def _protect(originals: Sequence[Original], perturb: Perturb, radius: int | None, channels: int) -> list[tuple[Original, Tensor, dict[str, Any]]]:
    """Perturb images of one size, of which `channels` are shown to the generators, on their grids, and measure them in their windows."""
    images, masks = torch.stack([original.as_bytes(channels) for original in originals]), torch.stack([original.mask for original in originals])
    delta = perturb(images, masks).detach().cpu()
    if delta.shape != images.shape or not delta.isfinite().all():
        raise ValueError(f"perturbations of shape {tuple(delta.shape)} for images of shape {tuple(images.shape)}, or values that are not finite")
    stored = [original.add(row) for original, row in zip(originals, delta, strict=True)]
    return list(zip(originals, stored, _qualities(originals, stored, touched_region(masks, radius)), strict=True))


def _qualities(originals: Sequence[Original], stored: Sequence[Tensor], regions: Tensor) -> list[dict[str, Any]]:
    """Measure stored images of one size in their windows."""
    clean, levels = torch.stack([original.levels for original in originals]), torch.stack(list(stored))
    span = torch.tensor([original.window[1] - original.window[0] for original in originals], dtype=torch.float64)
    columns = {
        "psnr": psnr(clean, levels, span=span).tolist(),
        "psnr_roi": [None if math.isnan(value) else value for value in psnr(clean, levels, regions, span).tolist()],
        "ssim": ssim(clean, levels, span).tolist() if min(levels.shape[2:]) >= SSIM_WINDOW else [None] * len(levels),
        "max_change": (max_change(clean, levels) * 255 / span).tolist(),  # in grey levels of 255 in the window
        "max_change_levels": max_change(clean, levels).tolist(),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _store(folder: Path, file: str, group: str, classes: int, original: Original, levels: Tensor, quality: Mapping[str, Any]) -> dict[str, Any]:
    """Write an image and its mask, and return what the manifest says of them."""
    pixels = levels.permute(1, 2, 0).numpy().astype(np.uint8 if original.bits == 8 else np.uint16)
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    mask = (original.mask * (255 if classes == 1 else 1)).numpy().astype(np.uint8)
    for kind, array in (("images", pixels), ("masks", mask)):
        with atomic(folder / kind / file) as temporary:
            Image.fromarray(array).save(temporary, "PNG")
    about = {"file": file, "original": original.name, "group": group, "bits": original.bits, "window": list(original.window)}
    about |= {"scale": original.scale, "offset": original.offset, "height": levels.shape[1], "width": levels.shape[2]}
    return about | dict(quality) | {f"{kind}_hash": digest(folder / kind / file) for kind in ("images", "masks")}


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Average the qualities over the images with foreground, as the others are as they were; of changes the largest is given."""
    means: dict[str, float | None] = {}
    for name in _QUALITIES:
        values = [record[name] for record in records if record["psnr_roi"] is not None and record[name] is not None]
        means[name] = None if not values else max(values) if name.startswith("max") else sum(values) / len(values)
    return means
