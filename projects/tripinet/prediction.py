"""The verb `predict`: where a user's own pictures were manipulated, in files to open and to go on with (sections 2.6, 10 and 11)."""

from __future__ import annotations

import glob
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from projects.tripinet.module import ManipulationLocalisation, Tiles
from projects.tripinet.pairs import read_pixels
from shared.checkpoints import weights_digest
from shared.data.files import EXTENSIONS, check_images, list_images
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.pictures import overlay
from shared.runs import atomic, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

Maps = Literal["png", "npy"]
"""Format of probability maps: PNG of 16 bits, 65535 being 1, or NPY of float32."""

PREPROCESSING = "RGB levels 0..255, not resized, EXIF orientation applied, transparent pixels over white"
REGIONS, LEAST_AREA = 20, 0.0002
"""Regions that are described at most, the largest first, and the least part of the picture that one covers."""
OVERLAY, THUMBNAIL = 1600, 256
"""Longest sides of overlays and of pictures in the overview, in pixels; larger ones are scaled down."""
SHOWN, PRINTED = 12, 20
"""Pictures in the overview, and pictures that are printed."""
_SECONDS = 10.0


@dataclass(frozen=True)
class Input:
    """A picture to judge.

    Attributes:
        file: where it lies.
        name: its path below what the user gave, under which results are written; bytes that are no UTF-8 are spelt out.
    """

    file: Path
    name: str


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row a picture, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Thumbnail:
    """A picture beside its overlay, (H, W, 3) uint8, for the overview."""

    row: dict[str, Any]
    pixels: np.ndarray


def find_pictures(path: str | Path) -> list[Input]:
    """Find the pictures to judge and decode each of them once, before any work.

    Args:
        path: a file, whatever its ending; a folder, of which all pictures are taken, those of sub-folders too; or a pattern with `*`, `?`, `[]` and
            `**`, of which files with the endings of pictures are taken. What lies there under that very name is no pattern. `~` is the home folder.

    Raises:
        FileNotFoundError: if there is nothing.
        BadFileError: naming all files that cannot be read as pictures of at most 64 million pixels.
        ValueError: if a pattern has `..` after a wildcard, which gives no names to write results under.
    """
    root = Path(path).expanduser()
    if root.is_file():
        base, files = root.parent, [root]
    elif root.exists() or not glob.has_magic(str(root)):
        base, files = root, list_images(root, "a picture, a folder of pictures, or a pattern such as 'inbox/*.jpg'")
    else:
        base, files = _matches(root)
    return [Input(file, _spelt(file.relative_to(base))) for file in check_images(files)]


def _spelt(path: Path) -> str:
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the folder in which a pattern's wildcards begin, and the pictures that it matches, sorted."""
    first = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    if ".." in pattern.parts[first:]:
        raise ValueError(f"the pattern {pattern} has '..' after a wildcard: write it without")
    base = Path(*pattern.parts[:first])
    found = sorted(file for file in set(base.glob(str(Path(*pattern.parts[first:])))) if not _is_hidden(file.relative_to(base)))
    pictures = [file for file in found if file.suffix.lower() in EXTENSIONS and file.is_file()]
    if not pictures:
        seen = f"only {shown_path(found[0])} and the like, which have other endings or are folders" if found else "nothing"
        raise FileNotFoundError(f"no picture matches {pattern}, but {seen}: expected files ending in {', '.join(EXTENSIONS)}; capital letters count")
    return base, pictures


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def predict(trainer: ProjectTrainer, module: ManipulationLocalisation, path: str, tiles: Tiles, flips: bool, maps: Maps) -> Predicted:
    """Judge a user's pictures one after the other and write what is found; what is written stays complete if a later picture fails.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network and what validation decided.
        path: see `find_pictures`.
        tiles: when pictures are judged tile by tile.
        flips: judges pictures mirrored as well.
        maps: format of the maps.

    Raises:
        FileNotFoundError, BadFileError: see `find_pictures`.
        ValueError: if a picture needs more memory than there is, or its map is not finite.
        OSError: if a result cannot be written.
    """
    inputs = find_pictures(path)
    module.to(trainer.strategy.root_device).eval()
    folder, weights = artefact_folder(trainer), weights_digest(module)
    rows: list[dict[str, Any]] = []
    best: list[Thumbnail] = []
    printed = time.monotonic()
    for number, given in enumerate(inputs, 1):
        image = read_pixels(given.file)
        with trainer.precision_plugin.forward_context():
            probability, raw = judge(module, image, given.name, tiles, flips)
        found = describe(module, probability, raw)
        how = {"judged": method(module, image.shape[1:], tiles, flips), "preprocessing": PREPROCESSING, "weights": weights}
        map_file, laid = _write(folder / "maps", given, image, probability, found | how, maps)
        kept = ("verdict", "score", "alarms_above", "area", "regions", "max", "height", "width")
        rows.append({"input": given.name} | {name: found[name] for name in kept} | {"map": map_file.relative_to(folder).as_posix()})
        best = sorted([*best, Thumbnail(rows[-1], _pair(image, laid))], key=lambda one: -one.row["score"])[:SHOWN]
        if number <= PRINTED:
            print(f"  {sentence(rows[-1])}", flush=True)
        elif time.monotonic() - printed >= _SECONDS:
            printed = time.monotonic()
            print(f"  picture {number} of {len(inputs)}", flush=True)
    log_table(trainer, "predictions", rows)
    log_figure(trainer, "overview", overview(best, len(rows)))
    print(f"{len(rows)} pictures, the table: {shown_path(folder / 'predictions.csv')}; maps, masks and overlays: {shown_path(folder / 'maps')}")
    print(module.decision.false_alarms())
    print("a map is evidence to look at, not proof: pictures unlike those of validation, or saved again since, can deceive it either way")
    return Predicted(rows, {"pictures": len(rows), "manipulated": sum(row["verdict"] == "manipulated" for row in rows)})


# ---- what is said of one picture


@torch.inference_mode()
def judge(module: ManipulationLocalisation, image: Tensor, name: str, tiles: Tiles = "auto", flips: bool = False) -> tuple[Tensor, float]:
    """Judge one picture, see `ManipulationLocalisation.judge`.

    Args:
        module: in evaluation mode, on its device.
        image: (3, H, W) uint8.
        name: of the picture, for messages.
        tiles: when it is judged tile by tile.
        flips: judges it mirrored as well.

    Returns:
        Calibrated probabilities (1, H, W) float32 on the CPU, and the picture's score before scaling.

    Raises:
        ValueError: if it needs more memory than there is, or the map is not finite.
    """
    try:
        judged = module.judge(image[None], tiles, flips)
        probability, raw = module.decision.probabilities(judged.logits)[0].cpu(), float(judged.raw[0])
    except (MemoryError, torch.OutOfMemoryError) as error:
        advice = "judge it in tiles (--tiles always), or in smaller ones (--model.tile)"
        raise ValueError(f"{name}: its {image.shape[1]} x {image.shape[2]} pixels need more memory than there is; {advice}") from error
    if not (math.isfinite(raw) and probability.isfinite().all()):
        raise ValueError(f"{name}: the network's map is not finite; use --trainer.precision 32, or another checkpoint")
    return probability, raw


def describe(module: ManipulationLocalisation, probability: Tensor, raw: float) -> dict[str, Any]:
    """Say in plain values what a map shows.

    Args:
        module: with its decision.
        probability: (1, H, W) calibrated probabilities.
        raw: the picture's score before scaling.

    Returns:
        `verdict`, which never says authentic; the calibrated `score`; `alarms_above`, the part of authentic pictures that score as high, None where
        validation had none; `max` and `mean` of the map; `area`, the part of the picture above `pixel_threshold`; the number of connected `regions`
        (8 neighbours) that cover 0.02 % of the picture; and the `largest` 20 of them.
    """
    decision = module.decision
    score, alarms = decision.score(raw), decision.alarms_above(raw)
    mask = (probability[0] > decision.pixel_threshold).numpy()
    count, largest = find_regions(mask, probability[0].numpy())
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "verdict": "manipulated" if score > 0.5 else "no trace found",
        "score": score,
        "alarms_above": None if math.isnan(alarms) else alarms,
        "max": float(probability.max()),
        "mean": float(probability.mean(dtype=torch.float64)),
        "area": float(mask.mean()),
        "pixel_threshold": decision.pixel_threshold,
        "regions": count,
        "least_region": LEAST_AREA,
        "largest": largest,
    }


def find_regions(mask: np.ndarray, probability: np.ndarray) -> tuple[int, list[dict[str, Any]]]:
    """Find connected regions that cover at least 0.02 % of a picture; pixels that touch at a corner are connected.

    Args:
        mask: (H, W) bool.
        probability: (H, W).

    Returns:
        Their number, and the largest 20 of them: box from `left` and `top` to `right` and `bottom`, which lie outside, `pixels`, `mean` probability.
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels[mask], minlength=1)
    large = np.flatnonzero(areas >= max(1.0, LEAST_AREA * mask.size))
    boxes = ndimage.find_objects(labels)
    described = []
    for label in large[np.argsort(-areas[large], kind="stable")][:REGIONS]:
        rows, columns = boxes[label - 1]
        mean = probability[rows, columns][labels[rows, columns] == label].mean(dtype=np.float64)
        box = {"left": columns.start, "top": rows.start, "right": columns.stop, "bottom": rows.stop}
        described.append(box | {"pixels": int(areas[label]), "mean": float(mean)})
    return len(large), described


def method(module: ManipulationLocalisation, size: Sequence[int], tiles: Tiles, flips: bool) -> dict[str, Any]:
    """Say how `ManipulationLocalisation.judge` judges a picture of some (height, width): whole or in tiles of which size, and in how many mirrors."""
    (height, width), given = size, module.hparams
    tiling = {"tile": given.tile, "overlap": given.overlap} if module.is_tiled(height, width, tiles) else {"tile": None}
    return tiling | {"mirrors": 4 if flips else 1}


def sentence(row: dict[str, Any]) -> str:
    """Say in a line what was found in a picture, from its row of the table."""
    alarms = "" if row["alarms_above"] is None else f" ({row['alarms_above']:.1%} of authentic validation pictures score as high)"
    return f"{row['input']}: {row['verdict']}, score {row['score']:.2f}{alarms}, {row['area']:.1%} of its pixels"


# ---- files


def _write(folder: Path, given: Input, image: Tensor, probability: Tensor, found: dict[str, Any], maps: Maps) -> tuple[Path, Tensor]:
    """Write map, mask, overlay and, last, the JSON file `<name>.json` of a picture; return the map's file and the overlay, (3, h, w) uint8."""
    from PIL import Image

    def named(ending: str) -> Path:
        return folder / f"{given.name}{ending}"  # with the picture's ending, so that 1.png and 1.jpg are kept apart

    def save(array: np.ndarray, ending: str) -> Path:
        with atomic(named(ending)) as temporary:
            if maps == "npy" and ending == "-map.npy":
                np.save(temporary, array)
            else:
                Image.fromarray(array).save(temporary, compress_level=1)
        return named(ending)

    level = probability[0].numpy()
    map_file = save(level, "-map.npy") if maps == "npy" else save(levels(level), "-map.png")
    mask_file = save(np.where(level > found["pixel_threshold"], np.uint8(255), np.uint8(0)), "-mask.png")
    laid = _overlay(image, probability, found["pixel_threshold"])
    overlay_file = save(laid.permute(1, 2, 0).numpy(), "-overlay.png")
    files = {"map": map_file.name, "mask": mask_file.name, "overlay": overlay_file.name}
    write_json(named(".json"), {"file": given.name} | found | files)
    return map_file, laid


def levels(probability: np.ndarray) -> np.ndarray:
    """Return probabilities as uint16 with 65535 for 1."""
    scaled = probability * np.float32(65535)
    return np.rint(scaled, out=scaled).astype(np.uint16)


def _overlay(image: Tensor, probability: Tensor, threshold: float) -> Tensor:
    """Lay the map over the picture, both scaled down where a side exceeds `OVERLAY`; (3, h, w) uint8."""
    laid = overlay(_shrunk(image, OVERLAY), _shrunk(probability, OVERLAY), threshold)
    return (laid * 255).round().byte()


def _shrunk(layers: Tensor, longest: int) -> Tensor:
    """Scale (C, H, W) down, by averaging, until its longest side is so many pixels; smaller ones stay as they are."""
    scale = longest / max(layers.shape[1:])
    size = [max(1, round(side * scale)) for side in layers.shape[1:]]
    return F.interpolate(layers[None], size=size, mode="bilinear", antialias=True)[0] if scale < 1 else layers


def _pair(image: Tensor, laid: Tensor) -> np.ndarray:
    """Set a picture beside its overlay, with a white gap, both scaled down to the size of thumbnails."""
    small = [_shrunk(layers, THUMBNAIL) for layers in (image, laid)]
    gap = torch.full((3, small[0].shape[1], max(2, small[0].shape[2] // 64)), 255, dtype=torch.uint8)
    return torch.cat([small[0], gap, small[1]], dim=2).permute(1, 2, 0).numpy()


def overview(thumbnails: Sequence[Thumbnail], total: int) -> Figure:
    """Draw pictures beside their overlays, with names and scores.

    Args:
        thumbnails: at least one.
        total: number of pictures that were judged.
    """
    import matplotlib.pyplot as plt

    columns = min(3, len(thumbnails))
    rows = [thumbnails[start : start + columns] for start in range(0, len(thumbnails), columns)]
    heights = [0.5 + 4.2 * min(1.0, max(one.pixels.shape[0] / one.pixels.shape[1] for one in row)) for row in rows]
    size = (4.4 * columns, sum(heights) + 0.3)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, one in zip(axes.flat, thumbnails, strict=False):
        axis.imshow(one.pixels)
        name = one.row["input"] if len(one.row["input"]) <= 40 else "..." + one.row["input"][-37:]
        axis.set_title(f"{name}\n{one.row['verdict']}, score {one.row['score']:.2f}", fontsize=9, parse_math=False)
    if total > len(thumbnails):
        figure.suptitle(f"the {len(thumbnails)} highest scores of {total} pictures", fontsize=10)
    return figure
