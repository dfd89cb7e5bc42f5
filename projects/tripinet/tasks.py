"""Pictures drawn during training, and what the verb `test` writes and prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from projects.tripinet.calibration import calibration_error
from projects.tripinet.data import ManipulationData, WholePictures
from projects.tripinet.metrics import Row, mean_of_known
from projects.tripinet.module import ManipulationLocalisation
from shared.data.selection import evenly_spaced
from shared.examples import ValidationExamples
from shared.loggers import log_image, log_table
from shared.pictures import heat, overlay, sheet
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SHOWN = 6
"""Pictures of a sheet."""
COLUMNS = ("set", "images", "pixel_f1", "pixel_f1_best", "pixel_f1_dataset", "pixel_auc", "pixel_iou", "image_auc", "false_alarms", "pixel_ece")


@dataclass(frozen=True)
class Tested:
    """What `test` returns: a row a test set, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class Examples(ValidationExamples):
    """Logs some validation pictures; the module has decided by then how its maps are read."""

    def draw(self, module: ManipulationLocalisation, pictures: WholePictures) -> torch.Tensor:
        return examples(module, pictures)


def examples(module: ManipulationLocalisation, pictures: WholePictures) -> torch.Tensor:
    """Return a sheet of pictures evenly spread over a set, their masks, maps, and overlays, each cut to its middle and the size of the smallest."""
    chosen = [pictures[place] for place in evenly_spaced(len(pictures), SHOWN)]
    side = [min(512, *(one["image"].shape[axis] for one in chosen)) for axis in (1, 2)]
    rows: list[list[torch.Tensor]] = [[], [], []]
    for one in chosen:
        probability = module(one["image"][None])[0].cpu()
        top, left = ((whole - part) // 2 for whole, part in zip(one["image"].shape[1:], side, strict=True))
        for layers, layer in zip(rows, (one["image"], one["mask"], probability), strict=True):
            layers.append(layer[:, top : top + side[0], left : left + side[1]])
    images, masks, maps = (torch.stack(layers) for layers in rows)
    laid = torch.stack([overlay(image, one, module.decision.pixel_threshold) for image, one in zip(images, maps, strict=True)])
    return sheet([images, masks.float(), heat(maps[:, 0]), laid])


def remarks(module: ManipulationLocalisation, data: ManipulationData) -> list[str]:
    """Say of settings of a training what is allowed, and seldom meant."""
    given, said = module.hparams, []
    if given.encoder != "tiny" and given.weights is None:
        said.append(f"the {given.encoder} encoders start from random weights: a local file of ImageNet weights goes into model.weights")
    if "block_dct" in module.streams and data.source != "procedural" and not data.options.align:
        said.append("the stream block_dct looks at JPEG's blocks: set data.align to cut squares along them")
    if "block_dct" in module.streams and data.options.augmentation == "benco":
        said.append("data.augmentation benco rescales pictures, which moves JPEG's blocks that the stream block_dct looks at: flips keeps them")
    return said


def report_test(trainer: ProjectTrainer, module: ManipulationLocalisation, data: ManipulationData) -> Tested:
    """Write and print what was measured on the test sets; to be called by all processes."""
    rows: list[dict[str, Any]] = []
    parts: dict[str, list[dict[str, Any]]] = {what: [] for what in ("kind", "size", "format")}
    for name, measured in module.measured.items():
        measures, counts = measured.compute(), module.histograms[name].gathered()
        errors = {"pixel_ece": calibration_error(counts, float(module.decision.temperature)), "pixel_ece_uncalibrated": calibration_error(counts)}
        rows.append({"set": name, **measures, **alarms(module, measured.gathered_rows()), **errors})
        for what, found in parts.items():
            found += [{"set": name, what: part, **values} for part, values in measured.compute_by(what).items()]
    judged = [row for row in rows if (data.source, row["set"]) != ("procedural", "control")] or rows
    summary = {
        f"test/{name}": round(mean_of_known([row[name] for row in judged if name in row]), 4) for name in ("pixel_f1", "pixel_auc", "image_auc")
    }
    if trainer.is_global_zero:
        module.to(trainer.strategy.root_device)  # testing ends with the module on the CPU, which takes minutes for pictures of many megapixels
        log_table(trainer, "sets", rows := even(rows))
        for what, found in parts.items():
            if len({row[what] for row in found}) > 1:
                log_table(trainer, f"by_{what}", even(found))
        for name, pictures in zip(data.test_names, data.test_pictures, strict=True):
            log_image(trainer, f"examples_{name}", examples(module, pictures))
        print(markdown([{column: row[column] for column in COLUMNS if column in row} for row in rows]))
        print(f"{module.decision.false_alarms()}; a pixel is called manipulated above {module.decision.pixel_threshold:.2g}")
    return Tested(rows, summary)


def even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give all rows the columns of the one that has most, with None for what they lack or what is not defined for them."""
    columns = max(rows, key=len)
    return [{name: None if row.get(name) != row.get(name) else row.get(name) for name in columns} for row in rows]


def alarms(module: ManipulationLocalisation, rows: list[Row]) -> dict[str, float]:
    """Return the parts of manipulated and of authentic pictures that are called manipulated by the calibrated score; NaN without any."""
    decision, temperature = module.decision, float(module.decision.temperature)
    called: dict[int, list[bool]] = {0: [], 1: []}
    for row in rows:
        raw = temperature * float(torch.tensor(row.score, dtype=torch.float64).logit(eps=1e-12))
        called[row.label].append(decision.score(raw) > 0.5)
    return {name: sum(found) / len(found) if found else float("nan") for name, found in (("detected", called[1]), ("false_alarms", called[0]))}
