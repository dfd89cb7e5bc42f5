"""The verb `predict`: where a user's own pictures were manipulated, in files to open and to go on with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from projects.tripinet.module import ManipulationLocalisation, Tiles
from projects.tripinet.pairs import read_pixels
from shared.checkpoints import weights_digest
from shared.data.inputs import Input, find_pictures
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import Interval, shown_path
from shared.pictures import beside, laid_over, levels, overview, shortened
from shared.regions import LEAST_AREA, find_regions
from shared.results import report_left_out
from shared.runs import atomic, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer
    from shared.data.folders import OnBadFile

Maps = Literal["png", "npy"]
"""Format of probability maps: PNG of 16 bits, 65535 being 1, or NPY of float32."""

PREPROCESSING = "RGB levels 0..255, not resized, EXIF orientation applied, transparent pixels over white"
SHOWN, PRINTED = 12, 20
"""Pictures in the overview, and pictures that are printed."""


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row a picture, the figures that head the run's page, and 0 or `shared.results.LEFT_OUT`."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int = 0


@dataclass(frozen=True)
class Thumbnail:
    """A picture beside its overlay, (H, W, 3) uint8, for the overview."""

    row: dict[str, Any]
    pixels: np.ndarray


def predict(
    trainer: ProjectTrainer,
    module: ManipulationLocalisation,
    path: str,
    tiles: Tiles,
    flips: bool,
    maps: Maps,
    on_bad_file: OnBadFile = "refuse",
) -> Predicted:
    """Judge a user's pictures one after the other and write what is found; what is written stays complete if a later picture fails.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network and what validation decided.
        path: see `find_pictures`.
        tiles: when pictures are judged tile by tile.
        flips: judges pictures mirrored as well.
        maps: format of the maps.
        on_bad_file: refuse files that cannot be read, or skip them.

    Raises:
        FileNotFoundError, BadFileError: see `find_pictures`.
        ValueError: if a picture needs more memory than there is, or its map is not finite.
        OSError: if a result cannot be written.
    """
    inputs, bad = find_pictures(path, on_bad_file)
    module.to(trainer.strategy.root_device).eval()
    folder, weights = artefact_folder(trainer), weights_digest(module)
    rows: list[dict[str, Any]] = []
    best: list[Thumbnail] = []
    progress = Interval()
    for number, given in enumerate(inputs, 1):
        image = read_pixels(given.file)
        with trainer.precision_plugin.forward_context():
            probability, raw = judge(module, image, given.name, tiles, flips)
        found = describe(module, probability, raw)
        how = {"judged": method(module, image.shape[1:], tiles, flips), "preprocessing": PREPROCESSING, "weights": weights}
        map_file, laid = _write(folder / "maps", given, image, probability, found | how, maps)
        kept = ("verdict", "score", "alarms_above", "area", "regions", "max", "height", "width")
        rows.append({"input": given.name} | {name: found[name] for name in kept} | {"map": map_file.relative_to(folder).as_posix()})
        best = sorted([*best, Thumbnail(rows[-1], beside([image, laid]))], key=lambda one: -one.row["score"])[:SHOWN]
        if number <= PRINTED:
            print(f"  {sentence(rows[-1])}", flush=True)
        elif progress.is_over():
            print(f"  picture {number} of {len(inputs)}", flush=True)
    log_table(trainer, "predictions", rows)
    log_figure(trainer, "overview", draw_overview(best, len(rows)))
    print(f"{len(rows)} pictures, the table: {shown_path(folder / 'predictions.csv')}; maps, masks and overlays: {shown_path(folder / 'maps')}")
    print(module.decision.false_alarms())
    print("a map is evidence to look at, not proof: pictures unlike those of validation, or saved again since, can deceive it either way")
    summary = {"pictures": len(rows), "manipulated": sum(row["verdict"] == "manipulated" for row in rows)}
    left_out, exit_code = report_left_out(trainer, bad)
    return Predicted(rows, summary | left_out, exit_code)


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


def method(module: ManipulationLocalisation, size: Sequence[int], tiles: Tiles, flips: bool) -> dict[str, Any]:
    """Say how `ManipulationLocalisation.judge` judges a picture of some (height, width): whole or in tiles of which size, and in how many mirrors."""
    (height, width), given = size, module.hparams
    tiling = {"tile": given.tile, "overlap": given.overlap} if module.is_tiled(height, width, tiles) else {"tile": None}
    return tiling | {"mirrors": 4 if flips else 1}


def sentence(row: dict[str, Any]) -> str:
    """Say in a line what was found in a picture, from its row of the table."""
    alarms = "" if row["alarms_above"] is None else f" ({row['alarms_above']:.1%} of authentic validation pictures score as high)"
    return f"{row['input']}: {row['verdict']}, score {row['score']:.2f}{alarms}, {row['area']:.1%} of its pixels marked"


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
    laid = laid_over(image, probability, found["pixel_threshold"])
    overlay_file = save(laid.permute(1, 2, 0).numpy(), "-overlay.png")
    files = {"map": map_file.name, "mask": mask_file.name, "overlay": overlay_file.name}
    write_json(named(".json"), {"file": given.name} | found | files)
    return map_file, laid


def draw_overview(thumbnails: Sequence[Thumbnail], total: int) -> Figure:
    """Draw pictures beside their overlays, with names and scores.

    Args:
        thumbnails: at least one.
        total: number of pictures that were judged.
    """
    titled = [(f"{shortened(one.row['input'])}\n{one.row['verdict']}, score {one.row['score']:.2f}", one.pixels) for one in thumbnails]
    heading = f"the {len(thumbnails)} highest scores of {total} pictures" if total > len(thumbnails) else ""
    return overview(titled, heading=heading)
