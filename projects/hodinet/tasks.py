"""Pictures drawn during training, and what the verb `test` writes and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.hodinet.data import SaliencyData, WholePictures
from projects.hodinet.layouts import LAYOUTS
from projects.hodinet.metrics import PROTOCOLS
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.samples import SampleFiles
from projects.hodinet.tables import HEADINGS, to_latex, to_markdown
from shared.data.selection import evenly_spaced
from shared.distributed import gather_objects
from shared.examples import ValidationExamples
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.pictures import heat, sheet
from shared.runs import atomic

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

SHOWN, SIDE = 6, 256
"""Pictures of a sheet, and the side of the squares that they are scaled down to, in pixels."""


@dataclass(frozen=True)
class Tested:
    """What `test` returns: a row a test set and protocol, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class Examples(ValidationExamples):
    """Logs some validation pictures, evenly spread."""

    def draw(self, module: SaliencyDetection, pictures: WholePictures) -> Tensor:
        return examples(module, pictures, evenly_spaced(len(pictures), SHOWN))


def examples(module: SaliencyDetection, pictures: WholePictures, places: Sequence[int]) -> Tensor:
    """Return a sheet of some pictures of a set: colour, depth (near is bright), mask, and map, all scaled to one square."""
    rows: list[list[Tensor]] = [[], [], [], []]
    shown = [pictures[place] for place in places]
    side = min(SIDE, max(min(one["image"].shape[1:]) for one in shown))
    for one in shown:
        found = module(one["image"][None], one["depth"][None]).cpu()
        layers = (one["image"] / 255, one["depth"], one["mask"].float(), found[0])
        for row, layer in zip(rows, layers, strict=True):
            row.append(torch.nn.functional.interpolate(layer[None], (side, side), mode="area")[0])
    images, depths, masks, maps = (torch.stack(row) for row in rows)
    return sheet([images, depths, masks, heat(maps[:, 0])])


def remarks(module: SaliencyDetection, data: SaliencyData) -> list[str]:
    """Say of settings of a training what is allowed, and seldom meant."""
    given, said = module.hparams, []
    for stream in module.net.encoders:
        if not given[stream].startswith("tiny") and given[f"{stream}_weights"] is None:
            where = f"a local file of ImageNet weights goes into model.{stream}_weights"
            said.append(f"the {given[stream]} encoder of {stream} starts from random weights: {where}")
    if given.size is not None and given.size != data.size:
        said.append(f"training squares have {data.size} pixels a side, but pictures are judged at model.size {given.size}: set both alike")
    return said


def report_test(trainer: ProjectTrainer, module: SaliencyDetection, data: SaliencyData, weights: str | None = None) -> Tested:
    """Write and print what was measured on the test sets; to be called by all processes.

    Args:
        trainer: of the verb.
        module: the network.
        data: whose test sets were measured.
        weights: the checkpoint that was tested; None is what was just trained.

    Raises:
        ValueError: if there are none, and the verb is not `fit`, which may do without.
    """
    learnt = trained_on(trainer, data, weights)
    if not data.test_names:
        message = f"there are no test pictures in {data.root}: put some there, as {LAYOUTS.get(data.source, LAYOUTS['spnet'])}"
        if trainer.verb != "fit":
            raise ValueError(message)
        if trainer.is_global_zero:
            print(message)
        return Tested([], {"trained_on": learnt})
    measured = {name: sorted(gather_objects(own)) for name, own in module.measured.items()}
    rows: list[dict[str, Any]] = [
        {"set": name, "protocol": protocol, "pictures": len(measured[name]), **metrics.compute()}
        for name, by_protocol in module.tested.items()
        for protocol, metrics in by_protocol.items()
    ]
    standard = [row for row in rows if row["protocol"] == "pysod"]
    means = {f"test/{name}": round(sum(row[name] for row in standard) / len(standard), 4) for name in ("s_measure", "f_max", "e_max", "mae")}
    curves = {name: by_protocol["pysod"].curves() for name, by_protocol in module.tested.items()}
    if trainer.is_global_zero:
        sets = dict(zip(data.test_names, data.test_pictures, strict=True))
        pictures = [{"set": name, "picture": picture_name(sets[name], one.place), **one.numbers} for name in sets for one in measured[name]]
        log_table(trainer, "sets", rows)
        log_table(trainer, "pictures", pictures)
        write_latex(trainer, rows, learnt)
        print(to_markdown([{name: row[name] for name in ("set", "pictures", *HEADINGS)} for row in standard]))
        log_figure(trainer, "curves", draw_curves(curves))
        module.to(trainer.strategy.root_device)  # Lightning has taken it away
        for name, own in sets.items():
            worst = sorted(measured[name], key=lambda one: one.numbers["s_measure"])[:SHOWN]
            log_table(trainer, f"curves_{name}", [dict(zip(curves[name], line, strict=True)) for line in zip(*curves[name].values(), strict=True)])
            for what, places in (("examples", evenly_spaced(len(own), SHOWN)), ("failures", [one.place for one in worst])):
                with trainer.precision_plugin.forward_context():
                    log_image(trainer, f"{what}_{name}", examples(module, own, places))
        print("the worst pictures of each set stand in failures_*.png, tables for papers in tables.tex, those of the protocol group256 too")
    return Tested(rows, {"trained_on": learnt} | means)


def trained_on(trainer: ProjectTrainer, data: SaliencyData, weights: str | None = None) -> str:
    """Name the sets that weights have learnt from, which are not those of other data that they are tested on; empty if they are not the run's own."""
    if trainer.verb == "fit":
        return ", ".join(data.train_names)
    if weights is not None and Path(weights).resolve().parent != trainer.run.checkpoints.resolve():
        return ""
    trainings = [stage for stage in trainer.run.manifest()["stages"] if stage["verb"] == "fit"]
    return trainings[-1]["summary"].get("trained_on", "") if trainings else ""


def picture_name(pictures: WholePictures, place: int) -> str:
    """Return the stem of a picture's file, or the number of a scene."""
    read = pictures.pictures
    return read.samples[place].image.stem if isinstance(read, SampleFiles) else str(place)


def write_latex(trainer: ProjectTrainer, rows: Sequence[dict[str, Any]], learnt: str) -> None:
    """Write `tables.tex`: a table for each protocol, which says what was learnt, if that is known."""
    tables = []
    for protocol in PROTOCOLS:
        own = [{name: row[name] for name in ("set", "pictures", *HEADINGS)} for row in rows if row["protocol"] == protocol]
        caption = f"Protocol {protocol}" + (f"; trained on {learnt}." if learnt else ".")
        tables.append(to_latex(own, caption, f"tab:{protocol}"))
    with atomic(artefact_folder(trainer) / "tables.tex") as temporary:
        temporary.write_text("\n".join(tables), encoding="utf-8")


def draw_curves(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw precision over recall, and F over thresholds, a line a test set; see `SaliencyMetrics.curves`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, own in curves.items():
        left.plot(own["recall"], own["precision"], label=name)
        right.plot(own["threshold"], own["f"], label=name)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="threshold", ylabel=r"$F_\beta$, $\beta^2 = 0.3$", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, fontsize="small")
    return figure
