"""The verb `predict`: what catches the eye in a user's own pictures, as maps, cut-outs and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.hodinet.depth import polarity
from projects.hodinet.gates import check_gates, interactions
from projects.hodinet.layouts import MissingDepth
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.pairs import Pair, find_pairs, read_pair
from projects.hodinet.quality import depth_quality
from projects.hodinet.results import SALIENT, Bits, Judged, Results
from projects.hodinet.samples import Reading
from shared.checkpoints import weights_digest
from shared.data.files import read_levels
from shared.data.inputs import spelt
from shared.data.selection import evenly_spaced
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import Interval, shown_path
from shared.pictures import beside, levels, overview, shortened, shrunk
from shared.regions import find_regions
from shared.results import report_left_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer
    from shared.data.folders import OnBadFile

AGAINST = -0.1
"""Correlation of map and depth below which depth seems to be the other way round."""
SHOWN, PRINTED = 12, 20
"""Pictures in the overview, and pictures that are printed."""
_LOOKED_AT = 512  # longest side of the layers whose correlation is taken, in pixels


@dataclass(frozen=True)
class Options:
    """What a user asks for.

    Attributes:
        invert: the depth has far = 1; None leaves that to the reader.
        bits: of maps.
        cutout: probability above which a pixel is kept in the cut-out; None takes the map as its alpha.
        missing_depth: what befalls pictures without depth.
        explain: draws the gates of the fusion.
    """

    invert: bool | None = None
    bits: Bits = 8
    cutout: float | None = None
    missing_depth: MissingDepth = "refuse"
    explain: bool = False


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row a picture, the figures that head the run's page, and 0 or `shared.results.LEFT_OUT`."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int = 0


def predict(
    trainer: ProjectTrainer,
    module: SaliencyDetection,
    reader: Reading,
    path: str,
    depth: str | None = None,
    options: Options | None = None,
    on_bad_file: OnBadFile = "refuse",
) -> Predicted:
    """Judge a user's pictures and write what is found; what is written stays complete if a later picture fails, and is not done again.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network.
        reader: how depth is read.
        path: see `find_pairs`.
        depth: see `find_pairs`.
        options: what is asked for.
        on_bad_file: see `find_pairs`.

    Raises:
        FileNotFoundError, BadFileError: see `find_pairs`.
        ValueError: see `find_pairs`; or if an option does not fit, a picture needs more memory than there is, or its map is not finite.
        OSError: if a result cannot be written.
    """
    options = options or Options()
    _check(module, options)
    pairs, bad = find_pairs(path, depth, reader, has_depth(module), options.missing_depth, options.invert, on_bad_file)
    module.to(trainer.strategy.root_device).eval()
    folder = artefact_folder(trainer)
    given = {name: value for name, value in module.hparams.items() if not name.endswith("_weights")}
    settings = repr((weights_digest(module), sorted(given.items()), trainer.precision, reader, options))
    results = Results(folder / "maps", settings, options.bits, options.cutout, module.hparams.placement)
    found = {} if trainer.is_forced else {pair: content for pair in pairs if (content := results.earlier(pair))}
    if found:
        print(f"{len(found)} of {len(pairs)} pictures were done already by an earlier run (--force does them again)")
    progress = Interval()
    for number, (pair, content) in enumerate(_judge_all(trainer, module, reader, options.explain, results, [p for p in pairs if p not in found]), 1):
        found[pair] = content
        if number <= PRINTED:
            print(f"  {sentence(content)}", flush=True)
        elif progress.is_over():
            print(f"  picture {len(found)} of {len(pairs)}", flush=True)
    ordered = {pair: found[pair] for pair in pairs}
    rows = [row(content) for content in ordered.values()]
    log_table(trainer, "predictions", rows)
    log_figure(trainer, "overview", draw_overview(ordered, reader, results, has_depth(module)))
    print(f"{len(rows)} pictures, the table: {shown_path(folder / 'predictions.csv')}; maps, cut-outs and overlays: {shown_path(results.folder)}")
    if doubtful := sum(is_doubtful(one) for one in rows):
        print(f"in {doubtful} of {len(rows)} pictures what is found is farther than the rest: look whether near is bright in their depth (--invert)")
    summary = {"pictures": len(rows), "with objects": sum(one["objects"] > 0 for one in rows)}
    left_out, exit_code = report_left_out(trainer, bad)
    return Predicted(rows, summary | left_out, exit_code)


def has_depth(module: SaliencyDetection) -> bool:
    """Tell whether a network has a stream of depth."""
    return "depth" in module.net.encoders


def _check(module: SaliencyDetection, options: Options) -> None:
    if options.cutout is not None and not 0 <= options.cutout < 1:
        raise ValueError(f"--cutout is a probability from 0 to below 1, or null for soft borders, not {options.cutout}")
    if options.explain:
        check_gates(module)


def _judge_all(
    trainer: ProjectTrainer, module: SaliencyDetection, reader: Reading, explain: bool, results: Results, pairs: Sequence[Pair]
) -> Iterator[tuple[Pair, dict[str, Any]]]:
    """Judge pictures, and yield each with what was written of it; the next is read meanwhile, and the last one written: three are in memory."""
    writing: tuple[Pair, Future[dict[str, Any]]] | None = None
    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(1) as writers:
        coming = [readers.submit(read_pair, pair, reader) for pair in pairs[:1]]
        for number, pair in enumerate(pairs):
            image, depth = coming.pop().result()
            coming += [readers.submit(read_pair, following, reader) for following in pairs[number + 1 : number + 2]]
            with trainer.precision_plugin.forward_context():
                judged = examine(module, pair, image, depth, explain, reader.thermal)
            if writing is not None:
                yield writing[0], writing[1].result()
            writing = pair, writers.submit(results.write, pair, judged)
        if writing is not None:
            yield writing[0], writing[1].result()


# ---- what is said of one picture


def examine(module: SaliencyDetection, pair: Pair, image: Tensor, depth: Tensor, explain: bool = False, thermal: bool = False) -> Judged:
    """Judge a picture, and describe what is found; see `judge` and `describe`."""
    began = time.monotonic()
    probability = judge(module, image, depth, pair.given.name)
    milliseconds = 1000 * (time.monotonic() - began)
    known = depth if pair.depth is not None else None
    found = describe(image, probability, known, thermal)
    used = "none" if not has_depth(module) else "zeros" if pair.depth is None else spelt(pair.depth)
    turned = {"depth": used, "invert": None if known is None else pair.invert}
    stages = interactions(module, image, depth) if explain else []
    return Judged(image, depth, probability, stages, turned | found | {"milliseconds": round(milliseconds, 1)})


def judge(module: SaliencyDetection, image: Tensor, depth: Tensor, name: str) -> Tensor:
    """Judge one picture.

    Args:
        module: in evaluation mode, on its device.
        image: (3, H, W) uint8.
        depth: (1, H, W) in [0, 1].
        name: of the picture, for messages.

    Returns:
        (1, H, W) float32 probabilities on the CPU.

    Raises:
        ValueError: if it needs more memory than there is, or the map is not finite.
    """
    try:
        probability = module(image[None], depth[None])[0].cpu()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise  # on a CPU, PyTorch has no error of its own for that
        advice = "judge it at a smaller --model.size, or as it was trained"
        raise ValueError(f"{name}: its {image.shape[1]} x {image.shape[2]} pixels need more memory than there is; {advice}") from error
    if not probability.isfinite().all():
        raise ValueError(f"{name}: the network's map is not finite; use --trainer.precision 32, or another checkpoint")
    return probability


def describe(image: Tensor, probability: Tensor, depth: Tensor | None, thermal: bool = False) -> dict[str, Any]:
    """Say in plain values what a map shows.

    Args:
        image: (3, H, W) uint8.
        probability: (1, H, W).
        depth: (1, H, W) in [0, 1], near = 1; None if there is none.
        thermal: depth is a thermal picture, which is never the other way round.

    Returns:
        `salient`, the part of the picture above one half; the number of `objects`, connected regions above one half (8 neighbours) that cover 0.02 %
        of the picture, and the `largest` 20 of them; `confidence`, the mean probability of what each pixel is taken for, from 0.5 to 1;
        `depth_quality`, see there; and `polarity`, the correlation of map and depth, None where it is not defined.
    """
    mask = (probability[0] > SALIENT).numpy()
    count, largest = find_regions(mask, probability[0].numpy())
    quality = None if depth is None else round(depth_quality(image, depth), 4)
    correlation = math.nan if depth is None or thermal else polarity(shrunk(depth, _LOOKED_AT), shrunk(probability, _LOOKED_AT))
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "salient": float(mask.mean()),
        "objects": count,
        "confidence": float((probability - SALIENT).abs().mean(dtype=torch.float64)) + SALIENT,
        "depth_quality": quality,
        "polarity": round(correlation, 4) if math.isfinite(correlation) else None,
        "largest": largest,
    }


def row(content: dict[str, Any]) -> dict[str, Any]:
    """Return a picture's row of the table from the content of its JSON file."""
    names = ("depth", "invert", "depth_quality", "polarity", "salient", "objects", "confidence", "height", "width", "milliseconds")
    map_file = Path("maps", content["file"]).with_name(content["files"]["map"]).as_posix()
    return {"input": content["file"]} | {name: content[name] for name in names} | {"map": map_file}


def is_doubtful(content: dict[str, Any]) -> bool:
    """Tell whether what was found in a picture is clearly farther than the rest, so that its depth seems to be the other way round."""
    return content["objects"] > 0 and content["polarity"] is not None and content["polarity"] < AGAINST


def sentence(content: dict[str, Any]) -> str:
    """Say in a line what was found in a picture, from the content of its JSON file."""
    objects = "nothing salient" if not content["objects"] else f"{counted(content['objects'])}, {content['salient']:.1%} of its pixels"
    quality = {"zeros": "; no depth, 0 everywhere", "none": ""}.get(content["depth"], f"; depth quality {content['depth_quality'] or 0:.2f}")
    advice = f"; what is found is farther than the rest: try --invert {str(not content['invert']).lower()}" if is_doubtful(content) else ""
    return f"{content['file']}: {objects}{quality}{advice}"


def counted(objects: int) -> str:
    """Return a number of objects in words."""
    return f"{objects} object{'s' * (objects != 1)}"


def draw_overview(found: dict[Pair, dict[str, Any]], reader: Reading, results: Results, with_depth: bool) -> Figure:
    """Draw pictures, evenly spread, beside their depth and their overlays, from files.

    Args:
        found: content of the JSON files.
        reader: how depth is read.
        results: where the overlays lie.
        with_depth: whether depth is shown.
    """
    pairs, thumbnails = list(found), []
    for pair in (pairs[place] for place in evenly_spaced(len(pairs), SHOWN)):
        image, depth = read_pair(pair, reader)
        near = [torch.from_numpy(levels(depth.numpy(), 8))] if with_depth else []
        content = found[pair]
        title = f"{shortened(pair.given.name)}\n{counted(content['objects'])}, {content['salient']:.1%} of its pixels"
        thumbnails.append((title, beside([image, *near, read_levels(results.file(pair, "-overlay.png"))])))
    shown = f"{len(thumbnails)} of {len(found)} pictures" if len(thumbnails) < len(found) else ""
    return overview(thumbnails, 2 if with_depth else 3, shown)
