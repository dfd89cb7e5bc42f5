"""Sparse parity: students who cannot learn from the converged teacher, and learn from its route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from projects.rco.reproduction.comparing import comparison, mean, means_of, points
from projects.rco.reproduction.worlds import FAST, KD, LABELS, NO_GAP, PLAIN, SLOW, Line
from projects.rco.walking import Walk
from shared.tables import Rows

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
"""Students of the first setting; the last two lines are baselines of other papers."""
EARLY, CONTROL = "lr 0.05, width 12, 18 epochs", "30 bits, 4 secret, 12 epochs (no gap)"
SHOWN = (LABELS, PLAIN, EVERY, EEI, JUMP, GREEDY)


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the outcomes hold that were expected of the first setting."""
    accuracy, row = means_of(means), {line["line"]: line for line in means}
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


def expectations_of_settings(means: Rows) -> dict[str, bool]:
    """Say whether the outcomes hold that were expected of the other settings."""
    early, control = (means_of([row for row in means if row["setting"] == setting]) for setting in (EARLY, CONTROL))
    return {
        "early jump: KD stays at 0.70 or below": early[PLAIN] <= 0.70,
        "early jump: EEI-3 reaches 0.90": early[EEI] >= 0.90,
        "early jump: the greedy search reaches 0.90": early[GREEDY] >= 0.90,
        "no gap: KD reaches 0.95": control[PLAIN] >= 0.95,
        "no gap: EEI-3 gains nothing, within 0.05": abs(control[EEI] - control[PLAIN]) <= 0.05,
    }


def _early(means: Rows) -> dict[str, Figure]:
    from projects.rco.figures import draw_comparison

    return {"settings": draw_comparison(points([row for row in means if row["setting"] == EARLY]))}


TABLE = comparison(
    "parity",
    "Sparse parity: a student of 16 units under a teacher of 800",
    "a student that fails under the converged teacher learns from the states that the teacher went through, in their order",
    {"lr 0.02, width 16, 20 epochs": SLOW},
    LINES,
    expectations,
    quick_lines=(PLAIN, EEI, GREEDY),
)
SETTINGS = comparison(
    "settings",
    "Sparse parity in two other settings",
    "what a route gains depends on the gap between teacher and student: where there is none, it gains nothing",
    {EARLY: FAST, CONTROL: NO_GAP},
    {name: LINES[name] for name in SHOWN},
    expectations_of_settings,
    quick_lines=(PLAIN, EEI, GREEDY),
    figures=_early,
)
