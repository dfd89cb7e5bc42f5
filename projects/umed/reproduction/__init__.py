"""What `reproduce` shows: three tables over seeds, with what was expected of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from projects.umed.reproduction import ablation, baselines, protection
from shared.results import markdown, publish
from shared.tables import make_table

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

TABLES = {"protection": protection.TABLE, "ablation": ablation.TABLE, "baselines": baselines.TABLE}


def reproduce(trainer: ProjectTrainer, table: str, seeds: int | None, jobs: int | None, quick: bool, write: bool) -> None:
    """Make a table, or all of them, print them, and publish them in the README if `write` is set."""
    for name in TABLES if table == "all" else [table]:
        folder = trainer.run.artefacts("reproduce") / "kept"
        results, figures = make_table(trainer.run, name, TABLES[name], folder, seeds, quick, jobs)
        print(markdown(results["rows"]), flush=True)
        options = ("" if table == "all" else f" {table}") + (f" --seeds {seeds}" if seeds else "")
        command = f"lightning run projects/umed/cli.py reproduce{options}"
        publish(trainer, results, figures, Path(__file__).parents[1] if write else None, command, name)
