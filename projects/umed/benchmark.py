"""The verb `bench`: protections by exploiters by defences by seeds, every cell made once and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projects.umed.baselines import Budget
from projects.umed.data import ProtectionData
from projects.umed.defences import parse_defence
from projects.umed.exploiters import EXPLOITERS
from projects.umed.fitting import Settings
from projects.umed.module import Protector
from projects.umed.tasks import RecipeName, recipe_for
from projects.umed.workshop import CLEAN, UMED, Workshop
from shared.distributed import in_one_process
from shared.jobs import run_jobs
from shared.loggers import log_table
from shared.results import markdown
from shared.tables import Job, Rows, Table, check_settings, make_table

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

METHODS = (CLEAN, UMED, "checkerboard")
NETWORKS = ("unet", "attention_unet")
DEFENCES = ("none", "jpeg:50", "blur:1")
FROM_DATA = ("channels", "classes", "size", "epsilon", "seed")
"""Options of the generators that the data or the comparison decides."""


def cell(workshop: Workshop, method: str, exploiter: str, defence: str, seed: int) -> Rows:
    """Train an exploiter with a defence on what a method publishes; one row, in %."""
    outcome = workshop.exploit(method, seed, exploiter, defence)
    signature = None if outcome.signature_dice is None else 100 * outcome.signature_dice
    figures = {"dsc": 100 * outcome.last, "best": 100 * outcome.best, "training": 100 * outcome.train_dice, "signature": signature}
    return [{"method": method, "exploiter": exploiter, "defence": defence, "seed": seed} | figures]


def prepare(item: tuple[Workshop, str, int]) -> None:
    """Make the sets that several cells need, before they are asked for side by side."""
    workshop, method, seed = item
    workshop.protected(method, seed)
    if workshop.has_signature(method):
        workshop.protected(method, seed, "test")


def bench(
    trainer: ProjectTrainer,
    model: Protector,
    data: ProtectionData,
    methods: list[str] | None,
    exploiters: list[str] | None,
    defences: list[str] | None,
    seeds: int,
    jobs: int | None,
    recipe: RecipeName,
) -> dict[str, Any]:
    """Make the table, print it, and log it.

    Raises:
        ValueError: for an unknown method, exploiter or defence, or settings other than those of a call that it goes on with, before anything is
            trained.
    """
    in_one_process(trainer)
    options = {name: value for name, value in data.hparams.items() if name not in ("batch_size", "num_workers", "seed", "_class_path")}
    given = {name: value for name, value in model.hparams.items() if name not in FROM_DATA and name in Protector.__init__.__annotations__}
    settings = Settings(trainer.max_epochs or 1, data.batch_size, given)
    chosen = recipe_for(data, "unet", recipe, None)
    budget = Budget.quick() if chosen.width == "small" else Budget()
    workshop = Workshop(trainer.run.artefacts("bench") / "kept", options, settings, chosen, model.hparams.epsilon, budget=budget)
    rows, networks, columns = methods or list(METHODS), exploiters or list(NETWORKS), defences or list(DEFENCES)
    if unknown := [name for name in rows if name not in workshop.methods]:
        raise ValueError(f"--methods {', '.join(unknown)}: choose among {', '.join(workshop.methods)}")
    if unknown := [name for name in networks if name not in EXPLOITERS]:
        raise ValueError(f"--exploiters {', '.join(unknown)}: choose among {', '.join(EXPLOITERS)}")
    for name in columns:
        parse_defence(name)
    check_settings(workshop.folder, workshop)

    def cells(workshop: Workshop, numbers: list[int], quick: bool) -> list[Job]:
        each = [(method, network, defence) for method in rows for network in networks for defence in columns]
        return [Job("-".join(names).replace(":", ""), seed, cell, (workshop, *names)) for seed in numbers for names in each]

    run_jobs(prepare, [(workshop, method, seed) for seed in range(seeds) for method in rows], jobs, lambda item: f"{item[1]} of seed {item[2]}")
    table = Table(
        "protections", "Which protection holds against which exploiter and defence.", ("method", "exploiter", "defence"), cells, lambda rows: {}
    )
    results, _ = make_table(trainer.run, "bench", table, workshop, seeds, jobs=jobs)
    print(markdown(results["rows"]))
    flat = [{name: value["mean"] if isinstance(value, dict) else value for name, value in row.items()} for row in results["rows"]]
    log_table(trainer, "bench", flat)
    return results
