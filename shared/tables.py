"""What `reproduce` is made of: tables, their jobs over settings and seeds, and the results with what was expected of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.data.files import read_json
from shared.jobs import Kept, default_jobs, kept, run_jobs
from shared.messages import shown_path
from shared.results import markdown, publish, summarise, write_results
from shared.runs import Run, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """The rows of a setting and a seed, which are made once and kept.

    Attributes:
        name: of the setting, for messages and the file.
        seed: the seed.
        make: a function of a module, of `arguments` and the seed.
        arguments: what it is given first; picklable.
    """

    name: str
    seed: int
    make: Callable[..., Rows]
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} of seed {self.seed}"


@dataclass(frozen=True)
class Table:
    """A table of `reproduce`.

    Attributes:
        title: what is compared.
        claim: the paper's claim in a sentence.
        by: columns that name a line.
        jobs: makes the jobs from what the project calls its workshop, the seeds and whether the run is quick.
        expectations: says of the means which of the expected outcomes hold.
        seeds: customary number of seeds.
        tabulate: turns the rows of all jobs into rows by seed.
        figures: draws what belongs to the table, by name, from the means.
    """

    title: str
    claim: str
    by: tuple[str, ...]
    jobs: Callable[[Any, list[int], bool], list[Job]]
    expectations: Callable[[Rows], dict[str, bool]]
    seeds: int = 3
    tabulate: Callable[[Rows], Rows] = lambda rows: rows
    figures: Callable[[Rows], dict[str, Figure]] = lambda rows: {}


def make_table(
    run: Run, name: str, table: Table, workshop: Any, seeds: int | None = None, quick: bool = False, jobs: int | None = None
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Make a table; returns and writes the results, and draws its figures. What an interrupted run made is not made again.

    Args:
        run: run folder; rows are kept in its artefacts.
        name: of the table, for its files.
        table: the table.
        workshop: what its jobs are made with.
        seeds: number of seeds, from 0; None takes the customary number.
        quick: one seed and few jobs, to see that everything runs; nothing is expected of it.
        jobs: jobs in work at the same time; None takes as many as there are cores.

    Raises:
        ValueError: if `seeds` is less than 1, or rows of an interrupted run were made with other settings.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds is {seeds}: give the number of seeds, from 1; null takes {table.seeds}")
    chosen, count = [0] if quick else list(range(seeds or table.seeds)), 1 if quick else jobs or default_jobs()
    folder = run.artefacts("reproduce") / ("quick" if quick else "rows") / name
    if is_dataclass(workshop):
        check_settings(folder, workshop)
    found = run_jobs(_call, [(folder, job) for job in table.jobs(workshop, chosen, quick)], count, lambda item: str(item[1]))
    summary = summarise(table.tabulate([row for part in found for row in part.value]), by=table.by)
    seconds = sum(part.seconds for part in found) / count
    expectations = {} if quick else table.expectations(summary)
    results = write_results(run, table.title, table.claim, summary, chosen, seconds, expectations, name)
    return results, {} if quick else table.figures(results["rows"])


def check_settings(folder: Path, workshop: Any) -> None:
    """Write down what rows or sets kept in a folder are made with, and refuse to go on with those of other settings.

    Args:
        folder: where they are kept; the settings stand there in settings.json.
        workshop: dataclass of the settings; its own `folder` is no setting, for runs may be moved.

    Raises:
        ValueError: if there are some of other settings; names what differs.
    """
    file = folder / "settings.json"
    ours = json.loads(json.dumps(asdict(workshop) | {"folder": None}, default=str))  # as it is read back
    if not file.is_file():
        write_json(file, ours)
        return
    theirs = read_json(file, "remove the run, and begin anew")
    if differing := [name for name, value in ours.items() if theirs.get(name) != value]:
        what = f"what is kept in {shown_path(folder)} was made with another {', '.join(differing)}"
        raise ValueError(f"{what}: go on with the options of the first call, or begin another run without --resume")


def reproduce(
    trainer: ProjectTrainer,
    cli: str,
    tables: Mapping[str, Table],
    table: str = "all",
    seeds: int | None = None,
    jobs: int | None = None,
    quick: bool = False,
    write: bool = False,
    workshop: Any = None,
) -> None:
    """Make a table, or all of them, print them, and publish them in the project's README if `write` is set.

    Args:
        trainer: the trainer, with its run.
        cli: the project's cli.py.
        tables: by name.
        table: name of a table, or all.
        seeds: number of seeds, from 0; None takes the customary number.
        jobs: jobs in work at the same time; None takes as many as there are cores.
        quick: one seed and few jobs, to see that everything runs.
        write: put them into the README.
        workshop: what the jobs are made with; None is a folder for what they keep.
    """
    made_with = trainer.run.artefacts("reproduce") / "kept" if workshop is None else workshop
    show_tables(trainer, cli, tables, lambda name: make_table(trainer.run, name, tables[name], made_with, seeds, quick, jobs), table, seeds, write)


def show_tables(
    trainer: ProjectTrainer,
    cli: str,
    names: Iterable[str],
    make: Callable[[str], tuple[dict[str, Any], dict[str, Figure]]],
    table: str = "all",
    seeds: int | None = None,
    write: bool = False,
) -> None:
    """Make a table, or all of them, in any way, and print and publish them as `reproduce` does.

    Args:
        trainer: the trainer, with its run.
        cli: the project's cli.py.
        names: of all tables.
        make: makes the results and the figures of a table, see `make_table`.
        table: name of a table, or all.
        seeds: number of seeds that was asked for.
        write: put them into the README.
    """
    project = Path(cli).parent
    for name in names if table == "all" else [table]:
        results, figures = make(name)
        print(markdown(results["rows"]), flush=True)
        options = ("" if table == "all" else f" {table}") + (f" --seeds {seeds}" if seeds else "")
        publish(trainer, results, figures, project if write else None, f"lightning run projects/{project.name}/cli.py reproduce{options}", name)


def _call(item: tuple[Path, Job]) -> Kept[Rows]:
    folder, job = item
    return kept(folder / f"{job.name}-{job.seed}.json", lambda: job.make(*job.arguments, job.seed))
