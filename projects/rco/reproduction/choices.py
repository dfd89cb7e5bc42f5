"""How many anchors, which ones, how long each teaches, and how they are stored."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from projects.rco.reproduction.comparing import comparison, means_of
from projects.rco.reproduction.worlds import FAST, KD, PLAIN, SLOW, Line
from projects.rco.walking import Walk
from shared.tables import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = (1, 2, 3, 4, 5, 10, 20)
DELTAS = (0.2, 0.4, 0.8, 1.6, 3.2)
HALF = "EEI-5 in half precision"
ANCHORS = (
    {PLAIN if number == 1 else f"EEI-{number}": Line(Walk(anchors=number)) for number in NUMBERS}
    | {HALF: Line(Walk(anchors=5), half=True)}
    | {f"greedy, delta {delta:g}": Line(Walk("greedy", delta=delta)) for delta in DELTAS}
)
MIRROR, LONG, RESTART, LONG_KD = "EEI-3, mirror, 18 epochs", "EEI-3, mirror, 54 epochs", "EEI-3, restart, 3 x 18 epochs", "KD, 54 epochs"
BUDGETS = {
    PLAIN: Line(KD),
    MIRROR: Line(Walk(anchors=3)),
    LONG_KD: Line(KD, epochs=54),
    LONG: Line(Walk(anchors=3), epochs=54),
    RESTART: Line(Walk(anchors=3, budget="restart")),
}


def _of_anchors(means: Rows) -> dict[str, bool]:
    accuracy, number = means_of(means), means_of(means, "anchors")
    return {
        "five anchors do better than two, and these no worse than one by more than 0.05": accuracy["EEI-5"]
        > accuracy["EEI-2"]
        >= accuracy[PLAIN] - 0.05,
        "anchors in half precision do as well, within 0.02": abs(accuracy[HALF] - accuracy["EEI-5"]) <= 0.02,
        "a smaller delta takes more anchors": all(
            number[f"greedy, delta {small:g}"] >= number[f"greedy, delta {large:g}"] for small, large in itertools.pairwise(DELTAS)
        ),
    }


def _of_budgets(means: Rows) -> dict[str, bool]:
    accuracy = means_of(means)
    return {
        "EEI-3 gains at the same number of updates": accuracy[MIRROR] > accuracy[PLAIN],
        "restarted legs gain over KD of as many updates in all": accuracy[RESTART] > accuracy[LONG_KD],
        "KD does not make up for it by training three times as long": accuracy[LONG_KD] < accuracy[MIRROR],
    }


def _number(means: Rows) -> dict[str, Figure]:
    from projects.rco.figures import draw_number

    return {"anchors": draw_number([row for row in means if row["line"] == PLAIN or (row["line"][:3] == "EEI" and row["line"] != HALF)])}


TABLE = comparison(
    "anchors",
    "How many anchors, and which",
    "a few anchors are enough if they are well chosen",
    {"lr 0.02, width 16, 20 epochs": SLOW},
    ANCHORS,
    _of_anchors,
    quick_lines=(PLAIN, "EEI-2", "greedy, delta 0.2"),
    hidden=("on training set", "updates", "passes"),
    figures=_number,
)
BUDGET = comparison(
    "budgets",
    "One training for all anchors, or one for each",
    "the gain is not one of longer training",
    {"lr 0.05, width 12, 18 epochs": FAST},
    BUDGETS,
    _of_budgets,
    hidden=("on training set", "in the jump", "MB"),
)
