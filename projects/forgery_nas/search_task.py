"""The verb `search`: cells for the user's own data by one of five strategies of equal cost, with a log that can be looked at."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from projects.forgery_nas.data import SearchData
from projects.forgery_nas.drawings import importance_map, operation_histogram
from projects.forgery_nas.genotype import CELLS, Genotype, draw, histogram, to_dot
from projects.forgery_nas.inference import count, say_cost
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.network import ForgeryNet
from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.search import ArchitectureSearch
from projects.forgery_nas.strategies import Budget, Found, evolve, pc_darts, random_search, search_cost, uniform, weight_sharing_random
from shared.callbacks import ResumePoint
from shared.checkpoints import load_checkpoint
from shared.distributed import in_one_process
from shared.forgery.augmentation import TrainingFrames
from shared.forgery.detection import fit_detector, score
from shared.forgery.metrics import auroc, roc
from shared.forgery.sets import ForgerySet
from shared.jobs import kept
from shared.loggers import artefact_folder, continue_logs, log_figure, log_table
from shared.messages import shown_path
from shared.runs import write_json, write_text
from shared.seeding import derive_seed, generator

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

Strategy = Literal["pruning", "pcdarts", "random", "evolution", "weight_sharing"]
SCORED = 2048
"""Frames of each set that candidates are scored on."""
SCORED_PATHS = 64
"""Paths of the supernet that weight sharing chooses among."""


@dataclass(frozen=True)
class Searched:
    """What `search` returns: the cells, what they were chosen from, and the figures that head the run's page."""

    genotype: Genotype
    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def search(trainer: ProjectTrainer, module: ForgeryNetTraining, data: SearchData, strategy: Strategy) -> Searched:
    """Search for cells and write genotype.json, its picture, what the choice was made from, and what it cost.

    Args:
        trainer: the trainer, with its device and run.
        module: whose `search` says how to search; candidates of random search and evolution are trained with its other options.
        data: whose roles say who learns the weights and who chooses.
        strategy: pruning, pcdarts, random, evolution or weight_sharing.

    Raises:
        ValueError: if the options do not fit the data, or candidates cost more than the search.
    """
    data.is_search = True
    data.prepare_data()
    folder, steps = artefact_folder(trainer), len(cast(dict[str, DataLoader], data.train_dataloader())["train"])
    budget = Budget(search_cost(module.search, steps, data.batch_size))
    if strategy in ("random", "evolution"):
        in_one_process(trainer)
        found = _by_training(trainer, module, data, strategy, budget, folder)
        genotype, rows = found.genotype, found.rows
    else:
        options = {"pcdarts": pc_darts, "weight_sharing": uniform}.get(strategy, lambda given: given)(module.search)
        searched = _by_gradient(trainer, data, options, folder)
        budget.spend(min(budget.images, search_cost(options, steps, data.batch_size)), searched.seconds)
        if strategy == "weight_sharing":
            found = _by_paths(trainer, searched, data, budget)
            genotype, rows = found.genotype, found.rows
        else:
            genotype, rows = searched.genotype, searched.history
            _draw_candidates(trainer, searched)
    summary = {"search/seconds": round(budget.seconds, 1), "search/images": budget.used}
    if trainer.is_global_zero:
        _report(trainer, module, strategy, genotype, rows, summary)
    return Searched(genotype, rows, summary)


# ---- strategies


def _by_gradient(trainer: ProjectTrainer, data: SearchData, options: SearchOptions, folder: Path) -> ArchitectureSearch:
    """Train a supernet, from where an interrupted search stopped."""
    searched, point = ArchitectureSearch(options), ResumePoint(folder, trainer.save_every)
    others = [callback for callback in trainer.callbacks if not isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
    trainer.callbacks = [*others, point, _Stages()]  # type: ignore[attr-defined] # Lightning's own would keep the supernet a second time
    trainer.fit_loop.max_epochs = options.length
    trainer.gradient_clip_val = None  # the search clips by itself
    if resumes := point.path.is_file():
        continue_logs(trainer, int(load_checkpoint(point.path)["global_step"]))
    L.Trainer.fit(trainer, searched, data.train_dataloader(), ckpt_path=str(point.path) if resumes else None)
    return searched


def _by_training(trainer: ProjectTrainer, module: ForgeryNetTraining, data: SearchData, strategy: str, budget: Budget, folder: Path) -> Found:
    """Train candidates one by one; those that an interrupted search trained are not trained again."""
    options, learnt = module.search, copy.copy(data)
    learnt.is_search, learnt.train_set = False, data.roles.weights[0]
    cost = options.candidate_epochs * len(learnt.train_set)
    if not 0 < cost <= budget.images:
        raise ValueError(
            f"a candidate trained for model.search.candidate_epochs {options.candidate_epochs} costs {cost} images, and the search has "
            f"{budget.images}: take from 1 to {budget.images // len(learnt.train_set)} epochs, or a longer search by model.search.epochs"
        )
    chosen = [scored_frames(part, options.seed) for part in data.roles.architecture]
    device = trainer.strategy.root_device

    def evaluate(genotype: Genotype) -> float:
        shape = {"genotype": genotype.to_json(), "channels": options.channels, "layers": options.layers, "reductions": options.reductions}
        candidate = ForgeryNetTraining(**{**module.hparams, **shape, "network": "searched", "weights": None, "seed": options.seed})
        accelerator = {"accelerator": device.type, "precision": trainer.precision}
        candidate = fit_detector(candidate, learnt, options.candidate_epochs, gradient_clip_val=trainer.gradient_clip_val, **accelerator)
        candidate.to(device)
        found = sum(auroc(roc(*score(candidate, frames).columns)) for frames in chosen) / len(chosen)
        print(f"  candidate of AUC {found:.3f}", flush=True)
        return found

    seconds: list[float] = []

    def remembered(genotype: Genotype) -> float:
        found = kept(folder / "candidates" / f"{derive_seed(genotype.to_json()):x}.json", lambda: evaluate(genotype))
        seconds.append(found.seconds)
        return found.value

    find = random_search if strategy == "random" else evolve
    found = find(remembered, cost, budget, options.operations, generator(options.seed, "forgery_nas", strategy), options.nodes)
    budget.seconds = sum(seconds)  # of those that an earlier start trained too
    return found


def _by_paths(trainer: ProjectTrainer, searched: ArchitectureSearch, data: SearchData, budget: Budget) -> Found:
    """Score random cells as paths of a supernet that was trained on uniformly drawn ones, on the first set that chooses."""
    searched.to(trainer.strategy.root_device)
    frames = scored_frames(data.roles.architecture[0], searched.options.seed)
    parts = (frames.__getitems__(part.tolist()) for part in torch.arange(len(frames)).split(data.batch_size))
    batches = [(part["image"].to(searched.device), part["label"].to(searched.device)) for part in parts]
    return weight_sharing_random(searched, batches, SCORED_PATHS, budget, generator(searched.options.seed, "forgery_nas paths"))


def scored_frames(part: TrainingFrames, seed: int) -> ForgerySet:
    """Draw the frames of a set that candidates are scored on: as they are, with its self-blended fakes, and in an order that mixes the classes.

    Norms of shared weights use a batch's own statistics, which would hide the class in a batch of one.
    """
    order = torch.randperm(len(part), generator=generator(seed, "forgery_nas scored"))[:SCORED]
    own = part.frames
    if len(part) == len(own):
        return own.subset(order)
    blends = [replace(video, manipulation="self_blend") for video in own.videos]
    batch = TrainingFrames(own, self_blended=True, seed=part.seed).__getitems__(order.tolist())
    return ForgerySet(batch["image"], [*own.videos, *blends], batch["video"])


# ---- what is written


class _Stages(L.Callback):
    """Draws what is left, and how important it is, after each pruning."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._drawn = len(cast(ArchitectureSearch, pl_module).history)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        searched = cast(ArchitectureSearch, pl_module)
        if len(searched.history) > self._drawn:
            self._drawn = len(searched.history)
            _draw_importance(trainer, searched, trainer.global_step)


def _draw_importance(trainer: L.Trainer, searched: ArchitectureSearch, step: int | None = None) -> None:
    table, label = searched.net.table, f"importance, level {searched.options.level}"
    log_figure(trainer, "importance", importance_map(searched.scores(), table.alive, table.space, label), step)


def _draw_candidates(trainer: ProjectTrainer, searched: ArchitectureSearch) -> None:
    """Draw what a gradient search knew of every candidate at its end."""
    table, space = searched.net.table, searched.net.table.space
    log_figure(trainer, "alpha", importance_map(searched.net.probabilities(), table.alive, space, "softmax(alpha)"))
    _draw_importance(trainer, searched)


def _report(
    trainer: ProjectTrainer,
    module: ForgeryNetTraining,
    strategy: str,
    genotype: Genotype,
    rows: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Write the genotype, its pictures, the log of the search and its cost, and say how to train what was found."""
    file = artefact_folder(trainer) / "genotype.json"
    write_text(file, genotype.to_json() + "\n")
    write_text(file.with_suffix(".dot"), to_dot(genotype))
    log_figure(trainer, "genotype", draw(genotype))
    write_json(file.with_name("history.json"), rows)
    short = [{name: value for name, value in row.items() if name not in ("genotype", "dropped")} for row in rows]
    log_table(trainer, "stages" if "alive" in rows[0] else "candidates", short)
    counts = histogram(genotype)
    names = [name for name in module.search.operations if name != "none"]
    log_figure(trainer, "operations", operation_histogram(counts, names))
    log_table(trainer, "operations", [{"operation": name} | {cell: counts[cell][name] for cell in CELLS} for name in names])
    given = module.hparams
    net = ForgeryNet(genotype, given.channels, given.layers, reductions=given.reductions, head=given.head)
    cost = count(net, given.size)
    summary |= {"search/parameters": cost.parameters, "search/macs": cost.macs}
    log_table(trainer, "cost", [{"strategy": strategy} | {name.removeprefix("search/"): value for name, value in summary.items()}])
    say_cost(net, given.size)
    settings = shown_path(trainer.run.config_file)  # of the same data and sizes, and with the sets that the search saw
    print(f"train it: lightning run projects/forgery_nas/cli.py fit --config {settings} --model.genotype {shown_path(file)}")
