"""Sparse parity: students who cannot learn from the converged teacher, and learn from its route (section 9 of the sheet)."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from projects.rco.reproduction.worlds import KD, LABELS, PLAIN, QUICK, SLOW, Line, World, rows_of
from projects.rco.walking import Walk
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EEI, JUMP, GREEDY = "EEI-3", "one in the jump, and the end", "greedy, delta 0.8"
EVERY, REVERSED, BEFORE = "every epoch", "EEI-3 reversed", "epoch 3, and the end"
LINES = {
    LABELS: Line(walk=None),
    PLAIN: Line(KD),
    EVERY: Line(Walk("one_by_one")),
    EEI: Line(Walk(anchors=3)),
    "EEI-5": Line(Walk(anchors=5)),
    JUMP: Line(Walk("phase")),
    GREEDY: Line(Walk("greedy")),
    "random, 3": Line(Walk("random", anchors=3)),
    BEFORE: Line(Walk("explicit", epochs=[3])),
    REVERSED: Line(Walk(anchors=3, order="reversed")),
    "half-way state alone": Line(Walk("single")),
    "an assistant of width 100": Line(KD, assistant="mlp_100"),
}
"""Students of the first setting; those of the baselines `half-way state alone` and `assistant` are of other papers."""
QUICK_LINES = (PLAIN, EEI, GREEDY)


def rows(world: World, lines: dict[str, Line], folder: Path, seed: int) -> Rows:
    """Return the rows of a seed."""
    return rows_of(world, lines, folder, seed)


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a seed."""
    world, lines = (QUICK, {name: LINES[name] for name in QUICK_LINES}) if is_quick else (SLOW, LINES)
    return [Job("parity", seed, rows, (world, lines, kept)) for seed in seeds]


def mean(row: dict[str, Any], column: str) -> float:
    """Return the mean in a cell of a table of means."""
    return float(row[column]["mean"])


def by_line(means: Rows, column: str = "line") -> dict[str, dict[str, Any]]:
    """Return the lines of a table of means by name."""
    return {row[column]: row for row in means}


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


def tabulate(found: Rows) -> Rows:
    """Add the seeds to the rows of lines."""
    return with_seeds(found, ("line",))


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the outcomes hold that section 9 sets for the first setting."""
    row = by_line(means)
    accuracy = {name: mean(line, "accuracy") for name, line in row.items()}
    middle = {name: mean(row[name], "_median") for name in (PLAIN, EEI, JUMP)}
    return {
        "KD by the converged teacher alone stays at 0.70 or below": accuracy[PLAIN] <= 0.70,
        "EEI-3 reaches 0.90": accuracy[EEI] >= 0.90,
        "and gains at least 0.25": accuracy[EEI] - accuracy[PLAIN] >= 0.25,
        "its congruence loss to the converged teacher is at least 5 times lower, in the median": 5 * middle[EEI] <= middle[PLAIN],
        "two anchors suffice if one lies in the jump: 0.90": accuracy[JUMP] >= 0.90,
        "and their congruence loss is at least 5 times lower than KD's, in the median": 5 * middle[JUMP] <= middle[PLAIN],
        "two anchors do not if the first lies before it: 0.70 or below": accuracy[BEFORE] <= 0.70,
        "the reversed order does not work: 0.70 or below": accuracy[REVERSED] <= 0.70,
        "the greedy search puts at least one anchor into the jump, for every seed": mean(row[GREEDY], "_least") >= 1,
        "and reaches 0.90": accuracy[GREEDY] >= 0.90,
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw the accuracy of each line's seeds, and the congruence losses."""
    from projects.rco.figures import draw_comparison

    return {"parity": draw_comparison(points(means, "line"))}


def points(means: Rows, by: str) -> list[dict[str, Any]]:
    """Return what `draw_comparison` takes of a table of means."""
    return [
        {
            "name": row[by],
            "accuracies": [value["mean"] for name, value in row.items() if name[0] == "_" and name[1:].isdigit() and value],
            "congruence": row["congruence"] and mean(row, "congruence"),
        }
        for row in means
    ]


TABLE = Table(
    "Sparse parity: a student of 16 units under a teacher of 800",
    "a student that fails under the converged teacher learns from the states that the teacher went through, in their order",
    ("line",),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
    figures=figures,
)
