"""What `reproduce` shows: four tables over seeds, with what was expected of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.drs.reproduction import halves, matched, rules, stopping
from projects.drs.reproduction.models import Models, Variant
from shared.jobs import Kept, default_jobs, kept, run_jobs
from shared.results import summarise, write_results
from shared.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of `reproduce`.

    Attributes:
        title: what is compared.
        claim: what is claimed, in a sentence.
        by: columns that name a line.
        variants: the models that it needs; the first are enough for a quick run.
        rows: makes the rows of a variant and a seed.
        expectations: says which of the expected outcomes hold.
        seeds: customary number of seeds.
        data: options of the data in which it differs from the run.
    """

    title: str
    claim: str
    by: tuple[str, ...]
    variants: tuple[Variant, ...]
    rows: Callable[[Models, Variant, int], Rows]
    expectations: Callable[[Rows], dict[str, bool]]
    seeds: int = 3
    data: dict[str, Any] | None = None


_RULES = Variant("rules")
TABLES = {
    "matched": Table("matched ceilings", matched.CLAIM, ("model", "certificate"), matched.VARIANTS, matched.rows, matched.expectations, 5),
    "halves": Table(
        "partitions", halves.CLAIM, ("split",), tuple(map(halves.variant, halves.SPLITS)), halves.rows, halves.expectations, 3, halves.DATA
    ),
    "rules": Table(
        "rules", rules.CLAIM, ("rule", "setting"), (_RULES,), lambda models, _, seed: rules.rows(seed, models.is_quick), rules.expectations, 5
    ),
    "stopping": Table("early stopping", stopping.CLAIM, ("model",), stopping.VARIANTS, stopping.rows, stopping.expectations),
}


@dataclass(frozen=True)
class Job:
    """The rows of one variant and seed."""

    table: str
    models: Models
    variant: Variant
    seed: int
    rows: Path

    def __call__(self) -> Kept[Rows]:
        path = self.rows / f"{self.variant.folder}-{self.seed}.json"
        return kept(path, lambda: TABLES[self.table].rows(self.models, self.variant, self.seed))


def reproduce_table(
    run: Run, name: str, model: dict[str, Any], data: dict[str, Any], epochs: int | None, seeds: int | None, quick: bool, jobs: int | None
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Make a table; what an interrupted run made is not made again, and the time says what all of it took.

    Args:
        run: run folder; models and rows are kept in its artefacts.
        name: a key of `TABLES`.
        model: options of `DualSmoothing`.
        data: options of `CertificationData`.
        epochs: of training.
        seeds: number of seeds, from 0; None takes the customary number.
        quick: one seed, little training and few images.
        jobs: models in work at the same time; None takes as many as there are cores.

    Returns:
        The results, which are written into the run folder, too, and the figures that belong to them, by name.
    """
    table, folder = TABLES[name], run.artefacts("reproduce")
    chosen, jobs = [0] if quick else list(range(seeds or table.seeds)), 1 if quick else jobs or default_jobs()
    models = Models(folder, model, data | (table.data or {}), epochs or 1, quick)
    variants = table.variants[:2] if quick else table.variants
    work = [Job(name, models, variant, seed, folder / "rows" / name) for seed, variant in product(chosen, variants)]
    found = run_jobs(_call, work, jobs, lambda job: f"{job.variant.name} of seed {job.seed}")
    summary = summarise([row for part in found for row in part.value], table.by)
    seconds = sum(part.seconds for part in found) / jobs
    results = write_results(run, table.title, table.claim, summary, chosen, seconds, {} if quick else table.expectations(summary), name)
    return results, {name: matched.plot(summary)} if name == "matched" and not quick else {}


def _call(job: Callable[[], Kept[Rows]]) -> Kept[Rows]:
    return job()
