"""The verb `distil`: a light network learns an inspector's heat maps, and an inspector learns to measure by it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from projects.comad import store
from projects.comad.data import InspectionData
from projects.comad.features import NoFeatures
from projects.comad.figures import legend, take_examples
from projects.comad.inspection import COMMAND, check_pictures
from projects.comad.inspector import PATCHES, Inspector
from projects.comad.judgement import Judgement
from projects.comad.learning import Kept, Pass, calibrate
from projects.comad.light import LightSegmenter, balancing, soft_cross_entropy
from projects.comad.metrics import ComponentOverlap
from projects.comad.module import ComponentInspection
from projects.comad.results import fingerprint
from projects.comad.segmentation import colour_coded, hard_maps
from shared.data.base import training_loader
from shared.data.selection import evenly_spaced
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.quiet import silence
from shared.runs import remove
from shared.training import check_finite, scheduled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

LIGHT = "light.safetensors"
"""File of a run's light inspector."""
BATCH = 8
"""Pictures of a training step, as SALAD takes them."""
EXAMPLES, TIMED = 4, 7
"""Validation pictures that are shown, and calls that are timed."""
_INCHES = 2.6  # width of a picture


@dataclass(frozen=True)
class Distilled:
    """What `distil` returns: a row a component, the file, and what heads the run's page."""

    rows: list[dict[str, Any]]
    file: Path
    summary: dict[str, Any]


class Teaching(Pass):
    """Keeps pictures and the heat maps that the inspector gives of them."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        places = batch["index"].tolist()
        if not self.kept.has("levels", places):
            self.kept.put("image", places, batch["image"])
            self.kept.put("levels", places, self.inspector.segment(batch["image"]))


class Lessons(Dataset):
    """Pictures with the heat maps that were kept of them: {"image": (3, H, W) uint8, "levels": (K, H, W) uint8}.

    Args:
        kept: what `Teaching` kept.
        count: pictures.
    """

    def __init__(self, kept: Kept, count: int) -> None:
        self.kept, self.count = kept, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: self.kept.get(name, [index])[0] for name in ("image", "levels")}


class Distillation(L.LightningModule):
    """Trains a light network to give heat maps.

    Pictures are not altered: an inspector's maps of altered ones would be others, and turned or moved ones break the rules of the product.

    Args:
        light: the network.
        components: clusters that are components, whose overlap with the inspector's counts.
        weights: (K,) weights of clusters in the loss; None for 1.
        lr: largest learning rate of AdamW, which rises and falls once.
        weight_decay: decoupled weight decay of AdamW.

    Attributes:
        overlaps: (K,) intersection over union of each cluster's pixels with the inspector's in the pictures of validation; NaN where it has none.
    """

    weights: Tensor | None

    def __init__(
        self, light: LightSegmenter, components: Sequence[int], weights: Tensor | None = None, lr: float = 1e-2, weight_decay: float = 1e-4
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.light, self.components, self.lr, self.weight_decay = light, list(components), lr, weight_decay
        self.overlaps = torch.full((light.k,), math.nan)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = soft_cross_entropy(self.light.logits(batch["image"]), batch["levels"], self.weights)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._counted = ComponentOverlap(self.light.k, self.light.k)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._counted.update(hard_maps(self.light.logits(batch["image"])), hard_maps(batch["levels"]))

    def on_validation_epoch_end(self) -> None:
        check_finite(self)
        pixels = self._counted.pixels.double()
        same = pixels.diagonal()
        self.overlaps = same / (pixels.sum(0) + pixels.sum(1) - same)
        self.log("val/miou", self.overlaps[self.components].nanmean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return scheduled(self, optimizer, "onecycle", 1.0)


def distil(
    trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData, epochs: int, patches: bool = False, out: str | None = None
) -> Distilled:
    """Train a network on the inspector's heat maps of the training pictures, and write an inspector that uses it.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the inspector; the light one is in its place afterwards.
        data: the pictures that it was fitted to; those of validation set scales and threshold.
        epochs: passes through the training pictures.
        patches: keeps the patch memory.
        out: file of the light inspector; None is light.safetensors in the run.

    Raises:
        FileNotFoundError, BadFileError: if the pictures are not there, or cannot be read.
        ValueError: if the inspector cannot be distilled, the pictures are others, or the file must not be replaced.
        OSError: if something cannot be written.
    """
    full = module.inspector
    check_teacher(full, epochs, patches)
    target = check_target(Path(out).expanduser() if out else trainer.run.path / LIGHT)
    data.prepare_data()
    data.setup()
    for pictures, what in ((data.train_set, "training"), (data.val_set, "validation")):
        if not len(pictures):
            raise ValueError(f"there are no {what} pictures of {data.name}: give the data that the inspector was fitted to")
    check_pictures(full, data, take_examples(full, data.train_set, trainer.strategy.root_device))
    lessons, shown = _lessons(trainer, module, data)
    light = train(trainer, full, lessons, shown, epochs, data.seed)
    lighter = lightened(full, light.light, patches)
    print("3/4 measures", flush=True)
    learn_components(trainer, lighter, lessons, full.metrology.keep)
    print(f"4/4 scores of {len(shown)} good pictures of validation", flush=True)
    module.inspector, module.features, module.structural = lighter, lighter.features, lighter.structural
    calibrate(trainer, module, data)
    return _report(trainer, full, lighter, light.overlaps, lessons, shown, target)


def check_teacher(inspector: Inspector, epochs: int, patches: bool) -> None:
    """Check, before any work, that an inspector can be distilled.

    Raises:
        ValueError: if it is light already, nothing would be left to judge by, there is no patch memory to keep, or there is nothing to train.
    """
    if epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {epochs}")
    if inspector.light is not None:
        raise ValueError("the inspector is a light one already: give the one that it was distilled from, by --inspector or --run")
    if patches and inspector.memory is None:
        raise ValueError("the inspector has no patch memory that --patches could keep: leave that out")
    if not patches and inspector.judgement.parts == (PATCHES,):
        raise ValueError("the inspector judges by the patch memory alone, so that nothing would be left: keep that by --patches true")


def check_target(path: Path) -> Path:
    """Check, before any work, that a light inspector may be written as a file: it may replace a light one, and nothing else.

    Raises:
        ValueError: if there is a folder, or something else than a light inspector.
        OSError: if it cannot be written.
    """
    return store.check_target(path, LIGHT, lambda state: "holds an inspector that is not light" if state.get("light") is None else "")


def train(trainer: L.Trainer, inspector: Inspector, lessons: Lessons, shown: Lessons, epochs: int, seed: int) -> Distillation:
    """Train a light network for an inspector.

    Args:
        trainer: what it was set to train does not count.
        inspector: says how many clusters there are, which are components, and the seed of the network.
        lessons: pictures to learn, whose order `seed` deals.
        shown: pictures of validation.
        epochs: passes through the pictures.
        seed: of their order.
    """
    light = LightSegmenter(inspector.recipe.k, seed=inspector.recipe.seed)
    print(f"2/4 a network of {sum(weights.numel() for weights in light.parameters()):,} parameters learns them in {epochs} epochs", flush=True)
    shares = sum(levels[0].float().mean((1, 2)) for levels in lessons.kept.all("levels", len(lessons)))
    task = Distillation(light, inspector.metrology.components, balancing(torch.as_tensor(shares)))
    trainer.fit_loop.max_epochs, trainer.num_sanity_val_steps, trainer.log_every_n_steps = epochs, 0, 1  # type: ignore[attr-defined]
    others = [callback for callback in trainer.callbacks if not isinstance(callback, ModelCheckpoint | ModelSummary)]  # type: ignore[attr-defined]
    trainer.callbacks = others  # type: ignore[attr-defined]
    validation = DataLoader(shown, batch_size=BATCH)
    with silence():
        L.Trainer.fit(trainer, task, training_loader(lessons, min(BATCH, len(lessons)), seed), validation)
    task.eval()
    return task


def lightened(inspector: Inspector, light: LightSegmenter, patches: bool) -> Inspector:
    """Return an inspector that judges as another does and sees components by a light network; it has to learn to measure, and to be calibrated.

    Components keep their numbers, names, weights and rules.

    Args:
        inspector: the other.
        light: the network.
        patches: keeps the patch memory, with its features; else its score is fused no more.
    """
    recipe = replace(inspector.recipe, metric=inspector.metric, structural=inspector.recipe.structural and patches)
    judgement: Judgement = replace(inspector.judgement, parts=tuple(part for part in inspector.judgement.parts if patches or part != PATCHES))
    shares = patches and inspector.structural is None
    lighter = Inspector(inspector.features if shares else NoFeatures(), recipe, judgement, inspector.structural if patches else None)
    lighter.centres, lighter.light, lighter.memory = inspector.centres, light, inspector.memory if patches else None
    lighter.about = inspector.about | {"distilled": {"features": inspector.features.name, "crf": inspector.recipe.crf}}
    return lighter


def learn_components(trainer: L.Trainer, inspector: Inspector, lessons: Lessons, keep: Tensor) -> None:
    """Let metrology learn what components measure in the network's maps of the training pictures.

    Raises:
        ValueError: if the network shows a component nowhere.
    """
    device, kept, count = trainer.strategy.root_device, lessons.kept, len(lessons)
    for place in range(count):
        with trainer.precision_plugin.forward_context():
            kept.put("distilled", [place], inspector.segment(lessons[place]["image"][None].to(device)))
    try:
        inspector.learn_components(kept.each("distilled", count), kept.each("image", count), keep)
    except ValueError as error:
        raise ValueError(f"the network has not learnt every component ({error}): train it longer, by --epochs") from error


def milliseconds(inspector: Inspector, image: Tensor) -> float:
    """Return the median time of segmenting a picture, (1, 3, H, W) uint8, on its device."""
    wait = torch.cuda.synchronize if image.is_cuda else lambda: None
    seconds = []
    for _ in range(2 + TIMED):
        wait()
        began = time.perf_counter()
        with torch.inference_mode():
            inspector.segment(image)
        wait()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[2:])


def draw_maps(inspector: Inspector, images: Tensor, rows: Sequence[tuple[str, Tensor]]) -> Figure:
    """Draw pictures, (E, 3, H, W) uint8, above their components in colour by several segmentations, with a legend.

    Args:
        inspector: whose clusters they are.
        images: the pictures.
        rows: of each segmentation its name and (E, K, H, W) levels.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, (height, width) = len(images), inspector.size
    figure = Figure(figsize=(_INCHES * count, (1 + len(rows)) * _INCHES * height / width + 0.8), layout="constrained")
    axes = figure.subplots(1 + len(rows), count, squeeze=False)
    painted = [("picture", images), *((name, colour_coded(hard_maps(levels), levels.shape[1], images)) for name, levels in rows)]
    for row, (name, pictures) in zip(axes, painted, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=9)
    handles = [Patch(facecolor=colour, label=label) for colour, label in legend(inspector)]
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * count), frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
    return figure


def _lessons(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData) -> tuple[Lessons, Lessons]:
    """Let the inspector segment the pictures of training and validation; what an interrupted verb has segmented is not segmented again."""
    inspector, options = module.inspector, {name: value for name, value in data.hparams.items() if name not in ("batch_size", "num_workers")}
    folder = artefact_folder(trainer) / "kept" / fingerprint([inspector.state(), repr(sorted(options.items())), str(trainer.precision)])
    print(f"1/4 components of {len(data.train_set)} training pictures and {len(data.val_set)} of validation", flush=True)
    found = []
    for name, pictures, loader in (("train", data.train_set, data.train_dataloader()), ("validation", data.val_set, data.val_dataloader())):
        kept = Kept(folder / name)
        task = Teaching(inspector, [module.features], kept)
        L.Trainer.predict(trainer, task, dataloaders=loader, return_predictions=False)
        found.append(Lessons(kept, len(pictures)))
    return found[0], found[1]


def _report(
    trainer: ProjectTrainer, full: Inspector, lighter: Inspector, overlaps: Tensor, lessons: Lessons, shown: Lessons, target: Path
) -> Distilled:
    """Time both segmentations, write the file, the table and the figure, and print what came of it."""
    device, components = trainer.strategy.root_device, lighter.metrology.components
    full.features.to(device)  # Lightning takes networks off it when a pass ends
    images, levels = ([shown[place][name] for place in evenly_spaced(len(shown), EXAMPLES)] for name in ("image", "levels"))
    with trainer.precision_plugin.forward_context():
        slow, fast = (milliseconds(one, images[0][None].to(device)) for one in (full, lighter))
        seen = lighter.segment(torch.stack(images).to(device)).cpu()
    rows = [{"component": k, "name": lighter.judgement.names.get(k, ""), "iou": round(float(overlaps[k]), 4)} for k in components]
    miou = float(overlaps[list(components)].nanmean())
    lighter.about["distilled"] |= {"miou": round(miou, 4), "milliseconds": [round(slow, 2), round(fast, 2)]}
    lighter.save(target)
    remove(lessons.kept.folder.parent.parent)
    log_table(trainer, "light", rows)
    log_figure(trainer, "light", draw_maps(lighter, torch.stack(images), [("inspector", torch.stack(levels)), ("light network", seen)]))
    megabytes = target.stat().st_size / 2**20
    print(f"{len(components)} components overlap with the inspector's by {miou:.3f} in {len(shown)} pictures of validation (mean IoU):")
    print("  " + ", ".join(f"{lighter.judgement.called(k)} {float(overlaps[k]):.3f}" for k in components))
    print(f"segmenting a picture takes {fast:.1f} ms instead of {slow:.1f} on {device} ({slow / fast:.1f} times as fast)")
    print(f"{shown_path(target)}: {megabytes:.2f} MB; it judges by {', '.join(lighter.judgement.parts)}")
    print(f"use it: {COMMAND} predict PICTURES --inspector {shown_path(target)}", flush=True)
    summary = {"light/miou": round(miou, 4), "light/milliseconds": round(fast, 2), "light/speed-up": round(slow / fast, 2), "light/file": target.name}
    return Distilled(rows, target, summary)
