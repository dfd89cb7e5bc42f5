"""The verb `predict`: what is wrong in a user's own pictures, in words, pictures and tables."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.comad.data import resized
from projects.comad.examples import Example, Examples, examine_examples, find_examples
from projects.comad.inspector import Examined, Inspector
from projects.comad.module import ComponentInspection
from projects.comad.naming import as_rows, deviations
from projects.comad.results import SHOWN_AT_LEVEL, Entry, Looked, Results, fingerprint
from projects.comad.segmentation import hard_maps
from shared.data.files import image_size, read_levels
from shared.data.inputs import Input, find_pictures
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import Interval, shown_path
from shared.pictures import beside, overview, shortened
from shared.results import report_left_out
from shared.runs import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer
    from shared.data.folders import OnBadFile

SHOWN, PRINTED = 12, 20
"""Pictures in the overview, and pictures that are printed."""
TOGETHER, PIXELS = 8, 2**25
"""Pictures that are inspected at once, and pixels of their files together, at most; a larger picture is inspected alone."""
STRETCHED = 0.05
"""Part by which proportions may differ from those of the pictures that were learnt before it is said."""
BULKY = ("scores", "components", "relations", "findings", "inspector")
"""What of a picture is kept in its JSON file only, so that memory hardly grows with the number of pictures."""


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row a picture, the figures that head the run's page, and 0 or `shared.results.LEFT_OUT`."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int = 0


def predict(
    trainer: ProjectTrainer, module: ComponentInspection, path: str, examples: str | None = None, on_bad_file: OnBadFile = "refuse"
) -> Predicted:
    """Inspect a user's pictures and write what is found; what is written stays complete if a later picture fails, and is not done again.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: with its inspector, on the device.
        path: see `find_pictures`.
        examples: folder of labelled anomalies by which alarms are given a kind, see `find_examples`.
        on_bad_file: refuse files that cannot be read, or skip them.

    Raises:
        FileNotFoundError, BadFileError, ValueError: see `find_pictures` and `find_examples`.
        OSError: if a result cannot be written.
    """
    pictures, bad = find_pictures(path, on_bad_file)
    inspector, folder = module.inspector, artefact_folder(trainer)
    labelled = find_examples(examples) if examples is not None else []
    known = [(example.kind, digest(example.given.file)) for example in labelled]
    settings = repr((fingerprint(inspector.state()), trainer.precision, known))
    results = Results(folder / "pictures", settings, legend(inspector))
    found = {} if trainer.is_forced else {given: kept(content) for given in pictures if (content := results.earlier(given))}
    if found:
        print(f"{len(found)} of {len(pictures)} pictures were done already by an earlier run (--force does them again)")
    progress = Interval()
    coming = [given for given in pictures if given not in found]
    compared = _examined(trainer, module, labelled) if coming and labelled else None
    for number, (given, content) in enumerate(_inspect_all(trainer, module, results, coming, compared), 1):
        found[given] = kept(content)
        if number <= PRINTED:
            print(f"  {sentence(content)}", flush=True)
        elif progress.is_over():
            print(f"  picture {len(found)} of {len(pictures)}", flush=True)
    contents = [found[given] for given in pictures]
    rows = [row(content) for content in contents]
    log_table(trainer, "predictions", rows)
    log_figure(trainer, "overview", draw_overview(found, results))
    alarms, breaches = sum(one["verdict"] == "alarm" for one in rows), sum(bool(one["rules"]) for one in rows)
    print(f"{alarms} of {len(rows)} pictures alarm{f'; rules are broken in {breaches}' if inspector.judgement.rules else ''}")
    print(f"the table: {shown_path(folder / 'predictions.csv')}; components, heat maps and measures: {shown_path(results.folder)}")
    if note := proportions_note(inspector, contents):
        print(note)
    summary = {"pictures": len(rows), "alarms": alarms, "rules broken": breaches}
    left_out, exit_code = report_left_out(trainer, bad)
    return Predicted(rows, summary | left_out, exit_code)


def _examined(trainer: ProjectTrainer, module: ComponentInspection, labelled: Sequence[Example]) -> Examples:
    groups = grouped([example.given for example in labelled])
    batches = ([read_levels(given.file) for given in group] for group in groups)
    with trainer.precision_plugin.forward_context():
        return examine_examples(module.inspector, [example.kind for example in labelled], batches, module.device)


def _inspect_all(
    trainer: ProjectTrainer, module: ComponentInspection, results: Results, pictures: Sequence[Input], examples: Examples | None
) -> Iterator[tuple[Input, dict[str, Any]]]:
    """Inspect pictures, and yield each with what was written of it; the next ones are read meanwhile, and the last ones written."""
    groups = grouped(pictures)
    writing: list[tuple[Input, Future[dict[str, Any]]]] = []
    with ThreadPoolExecutor(TOGETHER) as readers, ThreadPoolExecutor(TOGETHER) as writers:
        coming = [readers.submit(read_levels, given.file) for first in groups[:1] for given in first]
        for number, group in enumerate(groups):
            images = [image.result() for image in coming]
            coming = [readers.submit(read_levels, given.file) for following in groups[number + 1 : number + 2] for given in following]
            with trainer.precision_plugin.forward_context():
                looked = look(module, images, examples)
            yield from ((given, content.result()) for given, content in writing)
            writing = [(given, writers.submit(results.write, given, one, headline(one.found))) for given, one in zip(group, looked, strict=True)]
        yield from ((given, content.result()) for given, content in writing)


def grouped(pictures: Sequence[Input]) -> list[list[Input]]:
    """Divide pictures, in order, into groups of at most `TOGETHER` with at most `PIXELS`, so that large ones do not fill the memory."""
    groups: list[list[Input]] = []
    taken = 0
    for given in pictures:
        pixels = math.prod(image_size(given.file))
        taken += pixels
        if not groups or len(groups[-1]) == TOGETHER or taken > PIXELS:
            groups.append([])
            taken = pixels
        groups[-1].append(given)
    return groups


# ---- what is said of pictures


@torch.inference_mode()
def look(module: ComponentInspection, images: Sequence[Tensor], examples: Examples | None = None) -> list[Looked]:
    """Inspect pictures, (3, H, W) uint8 of any size, and describe what is found; with examples, also the `kind` of those that alarm."""
    inspector, began = module.inspector, time.monotonic()
    examined = inspector.examine(torch.stack([resized(image, inspector.size) for image in images]).to(module.device))
    described = describe(inspector, examined)
    if examples is not None:
        kinds = examples.name(inspector, examined.measures)
        described = [found | {"kind": kind if found["verdict"] == "alarm" else None} for found, kind in zip(described, kinds, strict=True)]
    strength = strengths(inspector, inspector.maps(examined)["fused"])
    labels = hard_maps(examined.levels).cpu()
    milliseconds = round(1000 * (time.monotonic() - began) / len(images), 1)
    return [
        Looked(image, labels[place], strength[place], found | {"height": image.shape[1], "width": image.shape[2], "milliseconds": milliseconds})
        for place, (image, found) in enumerate(zip(images, described, strict=True))
    ]


def strengths(inspector: Inspector, fused: Tensor) -> Tensor:
    """Return fused anomaly maps, (B, 1, H, W), on one scale for all pictures: `SHOWN_AT_LEVEL` at the inspector's `map_level`, and 1 at most."""
    level = max(inspector.map_level, torch.finfo(torch.float32).tiny)
    return (fused * (SHOWN_AT_LEVEL / level)).clamp(0, 1)


def describe(inspector: Inspector, examined: Examined) -> list[dict[str, Any]]:
    """Say in plain values what is found in B pictures.

    Returns:
        Of each picture `verdict`, alarm or good; the fused `score`, and the `threshold` above which it alarms; the `parts` that are fused, and the
        `part` that adds most; the `component` and the `measure` that stand out most, None if none does; `text`, that in words with the rules that
        are broken; the `rules` that are broken; `findings`, all that stands out; `scores` by part, those that are fused `normalised` too;
        `components` and `relations`, see `measured`; `map_level`, at which heat maps are outlined; and whose `inspector` says so. Undefined values
        are None.
    """
    verdicts, judgement = inspector.judge(examined), inspector.judgement
    normalised = inspector.fusion.normalised({part: examined.scores[part] for part in judgement.parts})
    described = []
    for place, (measures, findings) in enumerate(zip(measured(inspector, examined), verdicts.findings, strict=True)):
        shares = {part: float(values[place]) for part, values in normalised.items()}
        worst = findings[0] if findings else None
        described.append(
            {
                "verdict": "alarm" if verdicts.alarms[place] else "good",
                "score": float(verdicts.scores[place]),
                "threshold": inspector.threshold,
                "parts": list(judgement.parts),
                "part": max(shares, key=lambda part: shares[part]),
                "component": None if worst is None else " and ".join(judgement.called(k) for k in worst.components),
                "measure": None if worst is None else worst.measure,
                "text": verdicts.texts[place],
                "rules": [asdict(rule) | {"value": value, "text": text} for rule, value, text in verdicts.broken[place]],
                "findings": as_rows(findings),
                "scores": {part: {"score": float(values[place]), "normalised": shares.get(part)} for part, values in examined.scores.items()},
                **measures,
                "map_level": inspector.map_level,
                "inspector": inspector.about | {"changes": list(judgement.changes)},
            }
        )
    return described


def measured(inspector: Inspector, examined: Examined) -> list[dict[str, Any]]:
    """Tell how each measure compares with those of training, where area counts pixels of a picture at the inspector's size.

    Returns:
        Of each picture `components`, each with its number, `name`, `weight` and `measures`; and `relations` of two `components`. A measure has its
        `value`, the `usual` one, which is the training pictures' median, and the `deviation` from their mean, by their standard deviation.
    """
    columns, z, raw, usual = deviations(examined.measures, inspector.scorer.training)
    weights, judgement = inspector.weights, inspector.judgement
    tables = []
    for deviation, value in zip(z.tolist(), raw.tolist(), strict=True):
        compared = [
            {"measure": column.measure, "value": _defined(own), "usual": _defined(middle), "deviation": _defined(far)}
            for column, own, middle, far in zip(columns, value, usual.tolist(), deviation, strict=True)
        ]
        components = [
            {
                "component": k,
                "name": judgement.called(k),
                "weight": 1.0 if weights is None else float(weights[k]),
                "measures": [one for one, column in zip(compared, columns, strict=True) if column.components == (k,)],
            }
            for k in examined.measures.components
        ]
        pairs = [{"components": list(column.components)} | one for one, column in zip(compared, columns, strict=True) if len(column.components) > 1]
        tables.append({"components": components, "relations": pairs})
    return tables


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def headline(content: dict[str, Any]) -> str:
    """Say the verdict with its score, and the kind if there is one, from the content of a picture's JSON file."""
    score, threshold = f"{content['score']:.1f}", f"{content['threshold']:.1f}"
    if content["verdict"] == "good":
        return f"good {score} (alarm over {threshold})"
    mostly = f", mostly {content['part']}" if len(content["parts"]) > 1 else ""
    return f"ALARM {score} over {threshold}{mostly}" + (f", kind {content['kind']}" if "kind" in content else "")


def sentence(content: dict[str, Any]) -> str:
    """Say in a line what was found in a picture, from the content of its JSON file."""
    return f"{content['file']}: {headline(content)}: {content['text']}"


def row(content: dict[str, Any]) -> dict[str, Any]:
    """Return a picture's row of the table from the content of its JSON file."""
    names = ("verdict", "kind", "score", "threshold", "part", "component", "measure", "text")
    rules = "; ".join(rule["text"] for rule in content["rules"])
    beside_it = Path("pictures", content["file"])
    files = {name: beside_it.with_name(file).as_posix() for name, file in content["files"].items()}
    written = {"components": files["components"], "heat": files["heat"], "json": f"{beside_it.as_posix()}.json"}
    said = {name: content[name] for name in names if name in content}  # a kind only with labelled examples
    return {"file": content["file"]} | said | {"rules": rules, "milliseconds": content["milliseconds"]} | written


def kept(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a picture's JSON file without what is bulky."""
    return {name: value for name, value in content.items() if name not in BULKY}


def legend(inspector: Inspector) -> list[Entry]:
    """Say what each cluster is, with its weight unless it is 1."""
    judgement, weights, entries = inspector.judgement, inspector.weights, []
    for k in range(inspector.recipe.k):
        is_component = k in inspector.metrology.components
        called = judgement.names.get(k, "component") if is_component else "background"
        weight = 1.0 if weights is None else float(weights[k])
        entries.append(Entry(k, is_component, f"{k}  {called}" + (f", weight {weight:g}" if weight != 1 else "")))
    return entries


def proportions_note(inspector: Inspector, contents: Sequence[dict[str, Any]]) -> str:
    """Say how many pictures have other proportions than those that were learnt, if these are known; nothing if none has."""
    height, width = inspector.about.get("original_size", (math.nan, math.nan))
    learnt = width / height
    ratios = [content["width"] / content["height"] for content in contents]
    other = [ratio for ratio in ratios if abs(ratio / learnt - 1) > STRETCHED]
    if not other:
        return ""
    shown = f"width by height {other[0]:.2f}, those that were learnt {learnt:.2f}"
    return f"{len(other)} of {len(contents)} pictures have other proportions ({shown}), so that their components are distorted: crop them alike"


def draw_overview(found: dict[Input, dict[str, Any]], results: Results) -> Figure:
    """Draw pictures, alarms first, the highest scores foremost, beside their components and heat maps, from files.

    Args:
        found: content of the JSON files.
        results: where the pictures lie.
    """
    ordered = sorted(found, key=lambda given: (found[given]["verdict"] != "alarm", -found[given]["score"]))[:SHOWN]
    thumbnails = []
    for given in ordered:
        content = found[given]
        painted = read_levels(results.file(given, "-components.png"))[:, : content["height"], : content["width"]]  # without the legend
        title = [f"{shortened(given.name)}: {headline(content)}", *textwrap.wrap(content["text"], 60)[:2]]
        thumbnails.append(("\n".join(title), beside([read_levels(given.file), painted, read_levels(results.file(given, "-heat.png"))])))
    alarms = sum(content["verdict"] == "alarm" for content in found.values())
    heading = f"{alarms} of {len(found)} pictures alarm" + (f"; the {len(ordered)} to look at first" if len(ordered) < len(found) else "")
    return overview(thumbnails, 2, heading)
