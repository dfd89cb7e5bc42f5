"""Pictures drawn during training, and what the verb `test` writes and prints (section 5 of the sheet)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor

from projects.hodinet.data import SaliencyData, WholePictures
from projects.hodinet.metrics import PROTOCOLS, SaliencyMetrics
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.samples import SampleFiles
from projects.hodinet.tables import HEADINGS, to_latex, to_markdown
from shared.distributed import gather_objects
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.pictures import heat, sheet
from shared.runs import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

SHOWN, SIDE = 6, 256
"""Pictures of a sheet, and the side of the squares that they are scaled down to, in pixels."""


@dataclass(frozen=True)
class Tested:
    """What `test` returns: a row a test set and protocol, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class Examples(L.Callback):
    """Logs a sheet of validation pictures after epochs that double in number, and after the last one."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not trainer.sanity_checking and trainer.is_global_zero and (epoch & (epoch - 1) == 0 or epoch == trainer.max_epochs):
            pictures = trainer.datamodule.val_set  # type: ignore[attr-defined]
            log_image(trainer, "examples", examples(cast(SaliencyDetection, pl_module), pictures, spread(len(pictures))), epoch)


def spread(count: int) -> list[int]:
    """Return places evenly spread over a set of so many pictures."""
    return [count * number // SHOWN for number in range(min(SHOWN, count))]


def examples(module: SaliencyDetection, pictures: WholePictures, places: Sequence[int]) -> Tensor:
    """Return a sheet of some pictures of a set: colour, depth (near is bright), mask, and map, each scaled to a square."""
    rows: list[list[Tensor]] = [[], [], [], []]
    for place in places:
        one = pictures[place]
        found = module(one["image"][None], one["depth"][None]).cpu()
        side = min(SIDE, *one["image"].shape[1:])
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


def report_test(trainer: ProjectTrainer, module: SaliencyDetection, data: SaliencyData) -> Tested:
    """Write and print what was measured on the test sets; to be called by all processes."""
    rows: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for (name, by_protocol), own in zip(module.tested.items(), data.test_pictures, strict=True):
        measured = sorted(gather_objects(module.measured[name]))
        rows += [{"set": name, "protocol": protocol, "pictures": len(measured), **metrics.compute()} for protocol, metrics in by_protocol.items()]
        pictures += [{"set": name, "picture": picture_name(own, one.place), **one.numbers} for one in measured]
        curves = by_protocol["pysod"].curves()
        if trainer.is_global_zero:
            worst = sorted(measured, key=lambda one: one.numbers["s_measure"])[:SHOWN]
            log_image(trainer, f"examples_{name}", examples(module, own, spread(len(own))))
            log_image(trainer, f"failures_{name}", examples(module, own, [one.place for one in worst]))
            log_table(trainer, f"curves_{name}", [dict(zip(curves, line, strict=True)) for line in zip(*map(list, curves.values()), strict=True)])
    figure = draw_curves({name: by_protocol["pysod"] for name, by_protocol in module.tested.items()})
    standard = [row for row in rows if row["protocol"] == "pysod"]
    summary = {f"test/{name}": round(sum(row[name] for row in standard) / len(standard), 4) for name in ("s_measure", "f_max", "e_max", "mae")}
    if trainer.is_global_zero:
        log_table(trainer, "sets", rows)
        log_table(trainer, "pictures", pictures)
        log_figure(trainer, "curves", figure)
        write_latex(trainer, rows, data)
        print(to_markdown([{name: row[name] for name in ("set", "pictures", *HEADINGS)} for row in standard]))
        print("the worst pictures of each set stand in failures_*.png, tables for papers in tables.tex, those of the protocol group256 too")
    return Tested(rows, summary)


def picture_name(pictures: WholePictures, place: int) -> str:
    """Return the stem of a picture's file, or the number of a scene."""
    read = pictures.pictures
    return read.samples[place].image.stem if isinstance(read, SampleFiles) else str(place)


def write_latex(trainer: ProjectTrainer, rows: Sequence[dict[str, Any]], data: SaliencyData) -> None:
    """Write `tables.tex`: a table for each protocol, which says what was learnt."""
    tables = []
    for protocol in PROTOCOLS:
        own = [{name: row[name] for name in ("set", "pictures", *HEADINGS)} for row in rows if row["protocol"] == protocol]
        caption = f"Protocol {protocol}; trained on {', '.join(data.train_names) or 'nothing of these files'}."
        tables.append(to_latex(own, caption, f"tab:{protocol}"))
    with atomic(artefact_folder(trainer) / "tables.tex") as temporary:
        temporary.write_text("\n".join(tables), encoding="utf-8")


def draw_curves(measured: dict[str, SaliencyMetrics]) -> Figure:
    """Draw precision over recall, and F over thresholds, a line a test set; all processes must call it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, metrics in measured.items():
        curves = metrics.curves()
        left.plot(curves["recall"], curves["precision"], label=name)
        right.plot(curves["threshold"], curves["f"], label=name)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="threshold", ylabel=r"$F_\beta$, $\beta^2 = 0.3$", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, fontsize="small")
    return figure
