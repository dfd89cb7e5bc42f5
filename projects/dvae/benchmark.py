"""The verb `bench`: attacks by defences by seeds, one victim, every cell made once and kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from projects.dvae.data import PurificationData
from projects.dvae.fitting import Settings
from projects.dvae.module import Purifier
from projects.dvae.training import Recipe
from projects.dvae.workshop import GIVEN, Workshop
from shared.distributed import in_one_process
from shared.jobs import run_jobs
from shared.loggers import log_table
from shared.results import markdown
from shared.tables import Job, Rows, Table, check_settings, make_table

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

ATTACKS = ("clean", "lsp", "ops", "ar")
DEFENCES = ("none", "grey", "jpeg:10", "bdr:2", "op", "dvae:x2", "dvae:x3")
SECOND = "dvae:second"
"""The last stage of a purifier alone, trained on the poisoned set itself."""


def cell(workshop: Workshop, attack: str, defence: str, seed: int) -> Rows:
    """Train a victim on a set after an attack and a defence; one row."""
    if defence.startswith("dvae:"):
        product = "x2" if defence == SECOND else defence.removeprefix("dvae:")
        made = _purified(workshop, attack, defence, seed)
        if product not in made:
            raise ValueError(f"no product {product!r} of the purifier: it makes {', '.join(sorted(made))}")
        outcome, defence_seconds = workshop.train(made[product], seed), float(made["seconds"])
    else:
        outcome = workshop.train(workshop.poisoned(attack, seed).images, seed, defence)
        defence_seconds = outcome.defence_seconds
    figures = {"last": outcome.last, "peak": outcome.peak, "defence_s": round(defence_seconds, 2), "training_s": round(outcome.seconds, 2)}
    return [{"attack": attack, "defence": defence, "seed": seed} | figures]


def _purified(workshop: Workshop, attack: str, defence: str, seed: int) -> dict[str, Tensor]:
    settings = workshop.settings
    if defence != SECOND:
        return workshop.purified(attack, seed)
    return workshop.purified(attack, seed, settings=replace(settings, rates=settings.rates[-1:], epochs=settings.epochs[-1:]), name="second")


def _purifier(defence: str) -> str:
    """Return a name for the purifier that a defence needs, empty for none."""
    return defence if defence == SECOND else "dvae" if defence.startswith("dvae:") else ""


def _prepare(item: tuple[Workshop, str, str, int]) -> None:
    """Make the set and the products that several cells need, before they are asked for side by side."""
    workshop, attack, purifier, seed = item
    workshop.poisoned(attack, seed)
    if purifier:
        _purified(workshop, attack, purifier, seed)


def bench(
    trainer: ProjectTrainer,
    model: Purifier,
    data: PurificationData,
    attacks: list[str] | None,
    defences: list[str] | None,
    victim: str,
    seeds: int,
    jobs: int | None,
    recipe: Literal["auto", "paper", "quick"],
) -> dict[str, Any]:
    """Make the table, print it, and log it.

    Raises:
        ValueError: for an unknown attack, defence or victim, before anything is trained.
    """
    in_one_process(trainer)
    is_quick = recipe == "quick" or (recipe == "auto" and data.source in ("digits", "textures"))
    given = model.hparams
    kept = (
        "norm",
        "embedding",
        "embed_mode",
        "perturbation",
        "embedding_grid",
        "levels",
        "latent",
        "rate_weight",
        "energy_floor",
        "energy_start",
        "lr",
    )
    settings = Settings(tuple(given.rates), tuple(given.epochs), given.width, data.batch_size, {name: given[name] for name in kept})
    chosen = Recipe.quick(victim) if is_quick else Recipe.paper(victim, given.classes)
    options = {name: value for name, value in data.options().items() if name not in ("batch_size", "num_workers", "seed")}
    radii: dict[str, float] = {} if data.poison_radius is None else {data.poison: data.poison_radius}
    kept_in, effort = trainer.run.artefacts("bench") / "kept", "quick" if is_quick else "paper"
    workshop = Workshop(kept_in, options, settings, chosen, radii, data.poison_rate, data.poison_choice, effort, is_paper=not is_quick)
    rows = attacks or list(ATTACKS if data.perturbation is None else ("clean", GIVEN))
    columns = defences or list(DEFENCES)
    check(workshop, data, rows, columns)
    check_settings(workshop.folder, workshop)

    def cells(workshop: Workshop, numbers: list[int], quick: bool) -> list[Job]:
        return [Job(f"{a}-{d}".replace(":", ""), seed, cell, (workshop, a, d)) for seed in numbers for a in rows for d in columns]

    made = [(workshop, a, d, seed) for seed in range(seeds) for a in rows for d in dict.fromkeys(map(_purifier, columns))]
    run_jobs(_prepare, made, jobs, lambda item: f"{item[1]} and {item[2] or 'its set'} of seed {item[3]}")
    table = Table("defences", "Which defence restores clean-test accuracy under which attack.", ("attack", "defence"), cells, lambda rows: {})
    results, _ = make_table(trainer.run, "bench", table, workshop, seeds, jobs=jobs)
    print(markdown(results["rows"]))
    flat = [{name: value["mean"] if isinstance(value, dict) else value for name, value in row.items()} for row in results["rows"]]
    log_table(trainer, "bench", flat)
    return results


def check(workshop: Workshop, data: PurificationData, attacks: list[str], defences: list[str]) -> None:
    """Refuse unknown attacks and defences."""
    from projects.dvae.poisons import ATTACKS as KNOWN

    if unknown := [name for name in attacks if name not in ("clean", GIVEN, *KNOWN)]:
        raise ValueError(f"--attacks {', '.join(unknown)}: choose among clean, {GIVEN}, {', '.join(KNOWN)}")
    if GIVEN in attacks and data.poison == "none" and data.perturbation is None:
        raise ValueError(f"--attacks {GIVEN}: give the poison with --data.perturbation FILE or --data.poison NAME")
    products = [f"x{number}" for number in range(1, len(workshop.settings.rates) + 2)]
    known = [*(f"dvae:{product}" for product in products), SECOND]
    for name in defences:
        if name.startswith("dvae"):
            if name not in known:
                raise ValueError(f"--defences {name}: the purifier's are {', '.join(known)}")
        else:
            workshop.defence(name)
