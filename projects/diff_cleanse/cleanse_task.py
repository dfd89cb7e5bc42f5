"""The verb `cleanse`: from a pipeline folder to a cleansed one that loads the same way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Subset

from projects.diff_cleanse.cleanse import RECIPES, CleanReport, Recipe, cleanse
from projects.diff_cleanse.data import clean, stacked
from projects.diff_cleanse.inspection import Trigger
from projects.diff_cleanse.module import find_pipeline, settings_of
from projects.diff_cleanse.pictures import picture_grid
from projects.diff_cleanse.scan import scan
from projects.diff_cleanse.scan_report import ScanReport
from shared.backbones.unets import load_pipeline, replace_unet
from shared.loggers import artefact_folder, log_image, log_table
from shared.messages import shown_path
from shared.runs import claim_folder, digest, remove, write_json
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.diff_cleanse.data import DiffusionData
    from shared.cli import ProjectTrainer


def cleanse_pipeline(
    trainer: ProjectTrainer,
    data: DiffusionData,
    pipeline: str | Path,
    trigger: str | None,
    pictures: Literal["generated", "data"],
    recipe: Recipe,
    seed: int,
    rescan: bool,
    out: str | None,
) -> CleanReport | ScanReport:
    """Cleanse a pipeline folder and write the outcome among the trainer's artefacts, as `pipeline`, and into `out`.

    Args:
        trainer: tunes, on its device and processes.
        data: clean pictures, if `pictures` is `data`.
        pipeline: folder written by `save_pretrained`, or a run's name.
        trigger: the trigger.safetensors of a scan; None scans first, and stops where the scan finds no backdoor.
        pictures: what to tune on: those the model draws itself, or `data`'s training pictures.
        recipe: how.
        seed: seed of everything random.
        rescan: scan the outcome with other seeds.
        out: a further folder for the cleansed pipeline.

    Returns:
        The report; that of the scan if there was nothing to cleanse.

    Raises:
        FileNotFoundError, ValueError: if the pipeline or the trigger cannot be read, or they do not belong together.
    """
    folder, artefacts = find_pipeline(pipeline), artefact_folder(trainer)
    wanted = [claim_folder(out, "cleaning.json", folder)] if out else []
    unet, config = load_pipeline(folder)
    unet.to(trainer.strategy.root_device)
    tell = (lambda line: print(line, flush=True)) if trainer.is_global_zero else None
    if trainer.is_forced and trainer.is_global_zero:
        remove(artefacts / "parts")
        remove(artefacts / "scan" / "parts")
    if trigger is None:
        kept = artefacts / "scan" if trainer.is_global_zero else None
        found = scan(unet, config, recipe=recipe.scan, model_hash=digest(folder), seed=seed, out=kept, progress=tell)
        if found.verdict != "backdoored":
            if tell is not None:
                tell(f"the scan says {found.verdict}: nothing is cleansed (--trigger FILE of a scan does it all the same)")
            return found
        chosen = Trigger.of(found.leading)
    else:
        chosen = Trigger.load(trigger)
    options: dict[str, Any] = {}
    if pictures == "data":
        data.channels, data.size, width = chosen.pattern.shape
        if width != data.size:
            raise ValueError("--pictures data reads square pictures, which this model does not make: take --pictures generated")
        data.prepare_data()
        data.setup()
        if tell is not None:
            place = f" in {data.root}" if data.hparams["root"] else ""
            tell(f"tuning on pictures of --data.source {data.source}{place}")
        order = torch.randperm(len(data.train_set), generator=generator(seed, "pictures")).tolist()  # type: ignore[arg-type]
        mixed = Subset(data.train_set, order)  # folders lie by class, and the first pictures score the channels
        options = {"pictures": clean(mixed), "reference": stacked(data.test_set), "num_workers": data.num_workers}
    parts = artefacts / "parts"
    report = cleanse(unet, config, chosen, recipe=recipe, seed=seed, trainer=trainer, rescan=rescan, parts=parts, progress=tell, **options)
    if trainer.is_global_zero:
        _write(trainer, report, folder, [artefacts / "pipeline", *wanted])
    return report


def _write(trainer: ProjectTrainer, report: CleanReport, source: Path, folders: list[Path]) -> None:
    """Write the cleansed pipeline with cleaning.json, the table and the pictures, and say how it went."""
    content = report.to_dict() | {"source": {"folder": str(source), "hash": digest(source)}}
    if (settings := settings_of(source, trainer.run)) is not None:  # `test` of the cleansed pipeline finds the attack there
        shutil.copyfile(settings, folders[0].parent / "config.yaml")
    for folder in folders:
        replace_unet(source, report.unet, folder)
        write_json(folder / "cleaning.json", content)
    log_table(trainer, "cleansing", report.rows)
    for name in ("triggered_before", "triggered_after", "clean_before", "clean_after"):
        log_image(trainer, name, picture_grid(report.pictures[name]))
    print(f"\n{describe(report)}\nthe cleansed pipeline: {shown_path(folders[-1])}")
    if report.recipe.mode == "cut":
        print(f"its network is smaller than its settings say: load it with shared.backbones.unets.load_pipeline({shown_path(folders[-1])!r})")
    print()


def describe(report: CleanReport) -> str:
    """Say in a few lines what was removed, what it cost, and what the new scan says."""
    before, after, pruned = report.rows[0], report.rows[-1], report.pruned
    lines = [
        f"pruned {pruned['channels']:.1%} of the channels, {pruned['parameters']:.1%} of the parameters; tuned on {report.tuned_on['used']} pictures",
        f"triggered samples that show the target ({report.trigger.sampler}): {before['near_target']:.0%} before, {after['near_target']:.0%} after",
        f"Fréchet distance of clean samples: {before['fd']:.2f} before, {after['fd']:.2f} after",
    ]
    if report.survives:
        lines.append("THE TRIGGER STILL WORKS: try larger --shares or more --steps; do not use this pipeline")
    if report.rescan is not None:
        lines.append(f"a new scan with other seeds: {report.rescan.verdict} (score {report.rescan.leading.score:.2f})")
    return "\n".join(lines)


def make_recipe(name: str, **changes: Any) -> Recipe:
    """Return a recipe of `RECIPES` with changes; those that are None are none.

    Raises:
        ValueError: for an unknown recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    return replace(RECIPES[name], **{option: value for option, value in changes.items() if value is not None})
