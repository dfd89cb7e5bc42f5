"""What `reproduce` shows: four tables, each over seeds, with what was expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.diff_cleanse.reproduction import criteria, detection, removal, samplers
from projects.diff_cleanse.reproduction.criteria import CriteriaJob
from projects.diff_cleanse.reproduction.detection import DetectionJob
from projects.diff_cleanse.reproduction.removal import RemovalJob
from projects.diff_cleanse.reproduction.samplers import SamplerJob
from projects.diff_cleanse.reproduction.zoo import CLEAN, Zoo
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
        claim: the paper's claim in a sentence.
        by: columns that name a line.
        jobs: makes the jobs from the zoo, the seeds, the folder of their rows and whether the run is quick.
        expectations: says which of the expected outcomes hold.
        seeds: customary number of seeds.
        tabulate: turns the rows of all jobs into rows by seed.
    """

    title: str
    claim: str
    by: tuple[str, ...]
    jobs: Callable[[Zoo, list[int], Path, bool], list[Any]]
    expectations: Callable[[Rows], dict[str, bool]]
    seeds: int = 3
    tabulate: Callable[[Rows], Rows] = lambda rows: rows


def _sampler_jobs(zoo: Zoo, seeds: list[int], rows: Path, quick: bool) -> list[SamplerJob]:
    return [SamplerJob(zoo, name, seed, rows) for seed, name in product(seeds, samplers.MEMBERS)]


def _detection_jobs(zoo: Zoo, seeds: list[int], rows: Path, quick: bool) -> list[DetectionJob]:
    if quick:
        return [DetectionJob(zoo, member, seeds[0], rows) for member in (CLEAN, detection.BACKDOORED[0])]
    others = [DetectionJob(zoo, member, seeds[0], rows) for member in detection.other_models(zoo.folder)]
    return [*(DetectionJob(zoo, member, seed, rows) for seed, member in product(seeds, detection.members())), *others]


def _removal_jobs(zoo: Zoo, seeds: list[int], rows: Path, quick: bool) -> list[RemovalJob]:
    return [RemovalJob(zoo, member, seed, rows) for seed, member in product(seeds, removal.ATTACKS[:1] if quick else removal.ATTACKS)]


def _criteria_jobs(zoo: Zoo, seeds: list[int], rows: Path, quick: bool) -> list[CriteriaJob]:
    return [CriteriaJob(zoo, member, seed, rows) for seed, member in product(seeds, criteria.ATTACKS[:1] if quick else criteria.ATTACKS)]


TABLES: dict[str, Table] = {
    "samplers": Table("samplers", samplers.CLAIM, ("model", "noise", "sampler", "clipping"), _sampler_jobs, samplers.expectations),
    "removal": Table("removal", removal.CLAIM, ("attack", "repair"), _removal_jobs, removal.expectations),
    "criteria": Table("criteria", criteria.CLAIM, ("attack", "criterion"), _criteria_jobs, criteria.expectations, seeds=5),
    "detection": Table("detection", detection.CLAIM, ("method",), _detection_jobs, detection.expectations, tabulate=detection.tabulate),
}


def reproduce_table(
    run: Run, name: str, model: dict[str, Any], data: dict[str, Any], steps: int, seeds: int | None, quick: bool, jobs: int | None
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Make a table; returns and writes the results, and draws its figures.

    What an interrupted run made is not made again; the time says what all of it took.

    Args:
        run: run folder; models and rows are kept in its artefacts.
        name: a key of `TABLES`.
        model: settings of the clean model.
        data: settings of the data.
        steps: training steps of the clean model.
        seeds: number of seeds, from 0; None takes the customary number.
        quick: one seed, a twentieth of the training and few models, to see that everything runs.
        jobs: models in work at the same time; None takes as many as there are cores.
    """
    table, folder = TABLES[name], run.artefacts("reproduce")
    kept_rows = folder / ("quick" if quick else "rows")
    chosen, jobs = [0] if quick else list(range(seeds or table.seeds)), 1 if quick else jobs or default_jobs()
    zoo = Zoo(folder, model, data, steps, quick)
    trained = run_jobs(_call, [CleanJob(zoo, seed, kept_rows) for seed in chosen], jobs, _name)
    found = run_jobs(_call, table.jobs(zoo, chosen, kept_rows / name, quick), jobs, _name)
    rows = table.tabulate([row for part in found for row in part.value])
    summary = summarise(rows, by=table.by)
    seconds = sum(part.seconds for part in (*trained, *found)) / jobs
    results = write_results(run, table.title, table.claim, summary, chosen, seconds, {} if quick else table.expectations(summary), name)
    return results, _figures(name, results["rows"], kept_rows)


def _figures(name: str, summary: Rows, rows: Path) -> dict[str, Figure]:
    if name == "samplers":
        return {"asr": samplers.plot(summary), "samples": samplers.show_samples(rows / "samplers" / "seed-0")}
    return {"removal": removal.plot(summary)} if name == "removal" else {}


@dataclass(frozen=True)
class CleanJob:
    """The clean model of a seed, which the others are forks of."""

    zoo: Zoo
    seed: int
    rows: Path
    name: str = CLEAN.name

    def __call__(self) -> Kept[str]:
        return kept(self.rows / f"{self.name}-{self.seed}.json", lambda: self.zoo.train(CLEAN, self.seed).name)


def _call(job: Callable[[], Kept[Any]]) -> Kept[Any]:
    return job()


def _name(job: Any) -> str:
    return f"{getattr(job, 'name', None) or job.member.name} of seed {job.seed}"
