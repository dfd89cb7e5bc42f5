"""The verb `compare`: found cells beside random ones, ordinary convolutions and hand-made networks, trained and tested alike."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from projects.forgery_nas.data import MARK, SearchData
from projects.forgery_nas.drawings import scores_over_parameters
from projects.forgery_nas.genotype import RELEASED, Genotype, histogram, random_genotype
from projects.forgery_nas.inference import count
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.operations import with_theta
from shared.distributed import in_one_process
from shared.forgery.detection import fit_detector, score
from shared.forgery.metrics import auroc, roc, video_scores
from shared.jobs import kept
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown, summarise
from shared.seeding import derive_seed, generator

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

RANDOM = "random"
HAND_MADE = ("meso4", "mobilenetv3_small_100", "efficientnet_b0")


@dataclass(frozen=True)
class Compared:
    """What `compare` returns: a row a network, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def compare(trainer: ProjectTrainer, module: ForgeryNetTraining, data: SearchData, cells: int, seeds: int, networks: Sequence[str]) -> Compared:
    """Train the found cells and others on the same frames for as long, test them, and say which part of the random cells the found ones beat.

    Args:
        trainer: the trainer, with its device, run and number of epochs.
        module: whose genotype was found; the others are trained with its options.
        data: the data.
        cells: number of random cells of the search space.
        seeds: trainings of each network.
        networks: hand-made networks, see `build_baseline`.

    Raises:
        ValueError: if the model is a hand-made network, there is no such network, or a number is too small.
    """
    in_one_process(trainer)
    if cells < 0 or seeds < 1:
        raise ValueError(f"compare takes 0 or more random cells and trains each network once or more: not --cells {cells} and --trainings {seeds}")
    if module.genotype is None:
        raise ValueError("compare sets found cells beside others: set model.network searched and model.genotype")
    data.prepare_data()
    entries = _entries(module, module.genotype, cells, networks)
    built = [ForgeryNetTraining(**{**module.hparams, **entry["options"]}) for entry in entries]  # before any work: all options must fit
    costs = [count(one.net, one.hparams.size) for one in built]
    rows = []
    for entry, cost in zip(entries, costs, strict=True):
        found = [_measured(trainer, module, data, entry["options"], module.hparams.seed + seed) for seed in range(seeds)]
        [mean] = summarise([{"network": entry["network"], **row} for row in found], by=("network",))
        row = {"network": entry["network"], "kind": entry["kind"], "parameters": cost.parameters, "macs": cost.macs}
        rows.append(row | {name: value["mean"] if isinstance(value, dict) else value for name, value in mean.items() if name != "network"})
        print(f"{entry['network']}: " + ", ".join(f"{name} {rows[-1][name]:.3f}" for name in (*data.test_names, "mean")), flush=True)
    return _report(trainer, data, rows)


def _entries(module: ForgeryNetTraining, genotype: Genotype, cells: int, networks: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is compared: name, kind, and options that differ from the module's."""
    space = module.search.operations
    numbers = generator(module.search.seed, "forgery_nas compare")
    nodes = len(genotype.normal)
    names = {name for counts in histogram(genotype).values() for name in counts}
    plain = genotype.replaced({name: with_theta(name, 0.0) for name in names})
    given = "released" if genotype == RELEASED else "searched"
    found: list[tuple[str, str, Genotype]] = [(given, "given", genotype)]
    if plain != genotype:
        found.append((f"{given}, theta 0", "plain convolutions", plain))
    if genotype != RELEASED:
        found.append(("released", "released", RELEASED))
    found += [(f"random {number}", RANDOM, random_genotype(space, numbers, nodes)) for number in range(cells)]
    entries = [{"network": name, "kind": kind, "options": {"genotype": cell.to_json()}} for name, kind, cell in found]
    return entries + [{"network": name, "kind": "hand-made", "options": {"network": name}} for name in networks]


def _measured(trainer: ProjectTrainer, module: ForgeryNetTraining, data: SearchData, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Train a network and return its AUC of videos of every test set, the mean, and the seconds that training took; kept for --resume."""

    def make() -> dict[str, float]:
        learnt = copy.copy(data)
        learnt.seed = seed
        began = time.perf_counter()
        device = {"accelerator": trainer.strategy.root_device.type, "precision": trainer.precision}
        one = ForgeryNetTraining(**{**module.hparams, **options, "seed": seed})
        one = fit_detector(one, learnt, trainer.max_epochs or 1, gradient_clip_val=trainer.gradient_clip_val, **device)
        seconds = time.perf_counter() - began
        one.to(trainer.strategy.root_device)
        tested = zip(data.test_names, data.test_sets, strict=True)
        found = {name: auroc(roc(*video_scores(score(one, frames)).columns)) for name, frames in tested}
        return found | {"mean": fmean(found[name] for name in not_searched(data.test_names)), "seconds": seconds}

    return kept(artefact_folder(trainer) / "networks" / f"{derive_seed(str(sorted(options.items())), seed):x}.json", make).value


def not_searched(names: Sequence[str]) -> list[str]:
    """Return the test sets that networks are ranked by: those that the search did not see, or all if it saw every one."""
    return [name for name in names if not name.endswith(MARK)] or list(names)


def _report(trainer: ProjectTrainer, data: SearchData, rows: list[dict[str, Any]]) -> Compared:
    """Write and draw the table, and say where the found cells stand among the random ones."""
    searched, random = rows[0]["mean"], [row["mean"] for row in rows if row["kind"] == RANDOM]
    log_table(trainer, "networks", rows)
    log_figure(trainer, "networks", scores_over_parameters(rows, "mean", "AUC of videos, mean over unsearched sets"))
    print(markdown([{name: row[name] for name in ("network", "parameters", "macs", *data.test_names, "mean", "seconds")} for row in rows]))
    print(f"AUC of videos; mean: of {', '.join(not_searched(data.test_names))}; the table: {shown_path(artefact_folder(trainer) / 'networks.csv')}")
    summary = {"compare/searched": round(searched, 4)}
    if random:
        percentile = 100 * fmean((searched > other) + 0.5 * (searched == other) for other in random)
        summary |= {"compare/random": round(fmean(random), 4), "compare/percentile": round(percentile, 1)}
        beside, verdict = fmean(random), "above" if searched > fmean(random) else "not above"
        print(f"{rows[0]['network']} cells, {searched:.3f}, are {verdict} the mean of {len(random)} random ones, {beside:.3f}, and beat", end=" ")
        print(f"{percentile:.0f} % of them; with fewer than five trainings, differences below 0.03 mean nothing")
    return Compared(rows, summary)
