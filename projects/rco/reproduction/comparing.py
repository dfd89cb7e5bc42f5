"""What the tables have in common: students of one world, a line each, beside each other over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from projects.rco.reproduction.worlds import QUICK, Line, World, rows_of
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison(
    name: str,
    title: str,
    claim: str,
    worlds: Mapping[str, World],
    lines: Mapping[str, Line],
    expectations: Callable[[Rows], dict[str, bool]],
    quick: World = QUICK,
    quick_lines: tuple[str, ...] = (),
    seeds: int = 5,
    hidden: tuple[str, ...] = (),
    figures: Callable[[Rows], dict[str, Figure]] | None = None,
) -> Table:
    """Return a table of students who differ in how they are taught.

    Args:
        name: of the table.
        title: what is compared.
        claim: the paper's claim in a sentence.
        worlds: by the name of the setting; a table of one setting does not show its name.
        lines: the students, by name.
        expectations: says of the means which of the expected outcomes hold.
        quick: world of a trial.
        quick_lines: students of a trial; none are the first three.
        seeds: customary number of seeds.
        hidden: columns that are not shown.
        figures: draws what belongs to the table; None draws the accuracy of each line and seed under the table's name.
    """
    by = ("setting", "line") if len(worlds) > 1 else ("line",)
    tried = {line: lines[line] for line in quick_lines or list(lines)[:3]}

    def jobs(kept: Path, chosen: list[int], is_quick: bool) -> list[Job]:
        settings = {next(iter(worlds)): quick} if is_quick else worlds
        shown = tried if is_quick else dict(lines)
        return [
            Job(f"{place}", seed, _rows, (setting, world, shown, kept)) for seed in chosen for place, (setting, world) in enumerate(settings.items())
        ]

    def tabulate(found: Rows) -> Rows:
        ordered = [row for setting in worlds for row in with_seeds(found, ("setting", "line")) if row["setting"] == setting]
        return [
            {column: value for column, value in row.items() if column not in hidden and (column != "setting" or len(worlds) > 1)} for row in ordered
        ]

    return Table(title, claim, by, jobs, expectations, seeds, tabulate, figures or partial(_drawn, name))


def _rows(setting: str, world: World, lines: Mapping[str, Line], folder: Path, seed: int) -> Rows:
    return [{"setting": setting} | row for row in rows_of(world, lines, folder, seed)]


def with_seeds(found: Rows, by: tuple[str, ...]) -> Rows:
    """Add what figures and expectations need beside means.

    Args:
        found: a row a line and seed.
        by: columns that name a line.

    Returns:
        The rows with `_N`, the accuracy of seed N; `_median`, that of the line's congruence losses; and `_least`, the fewest anchors in the jump.
    """
    seeds = sorted({row["seed"] for row in found})
    lines: dict[tuple[Any, ...], Rows] = {}
    for row in found:
        lines.setdefault(tuple(row[column] for column in by), []).append(row)
    for line in lines.values():
        losses, inside = ([row[column] for row in line if row[column] is not None] for column in ("congruence", "in the jump"))
        for row in line:
            row |= {"_median": median(losses) if losses else None, "_least": min(inside, default=None)}
            row |= {f"_{seed}": row["accuracy"] if seed == row["seed"] else None for seed in seeds}
    return found


def mean(row: dict[str, Any], column: str) -> float:
    """Return the mean in a cell of a table of means."""
    return float(row[column]["mean"])


def means_of(rows: Rows, column: str = "accuracy") -> dict[str, float]:
    """Return the means of a column by line."""
    return {row["line"]: mean(row, column) for row in rows if row[column] is not None}


def points(rows: Rows) -> list[dict[str, Any]]:
    """Return what `draw_comparison` takes of a table of means."""
    return [
        {
            "name": row["line"],
            "accuracy": [value["mean"] for name, value in row.items() if name[0] == "_" and name[1:].isdigit() and value],
            "congruence": row["congruence"],
        }
        for row in rows
    ]


def _drawn(name: str, rows: Rows) -> dict[str, Figure]:
    from projects.rco.figures import draw_comparison

    return {name: draw_comparison(points(rows))}
