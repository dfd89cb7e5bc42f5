"""Parity through images: the same secret in pictures of tiles, so that students have to learn to see it as well."""

from __future__ import annotations

from dataclasses import replace

from projects.rco.recipes import Recipe
from projects.rco.reproduction.comparing import comparison, means_of
from projects.rco.reproduction.worlds import KD, LABELS, PLAIN, QUICK, Line, World
from projects.rco.walking import Walk
from shared.tables import Rows

EEI, FIVE, JUMP, GREEDY = "EEI-3", "EEI-5", "one in the jump, and the end", "greedy, delta 0.8"
TILES = World({"source": "tiles", "secret": 4}, "tiles_800", "tiles_8", 18, Recipe(lr=0.05, weight_decay=1e-4))
"""Four secret tiles out of forty: of five, teachers on images do not learn reliably in as many epochs."""
SMALL = replace(QUICK, data={**QUICK.data, "source": "tiles", "bits": 16}, teacher="tiles_32", student="tiles_4")
"""So small that only the way is tried."""
LINES = {
    LABELS: Line(walk=None),
    PLAIN: Line(KD),
    EEI: Line(Walk(anchors=3)),
    FIVE: Line(Walk(anchors=5)),
    JUMP: Line(Walk("phase")),
    GREEDY: Line(Walk("greedy")),
}


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the outcomes hold that were expected of parity, here on images."""
    accuracy = means_of(means)
    return {
        "the teachers learn it: 0.95": means_of(means, "teacher")[PLAIN] >= 0.95,
        "KD by the converged teacher alone stays at 0.70 or below": accuracy[PLAIN] <= 0.70,
        **{f"{name}: 0.90 or above": accuracy[name] >= 0.90 for name in (EEI, FIVE, JUMP, GREEDY)},
        "EEI-3 gains at least 0.25": accuracy[EEI] - accuracy[PLAIN] >= 0.25,
    }


TABLE = comparison(
    "tiles",
    "Parity through images: a student of 8 units under a teacher of 800",
    "a route helps a student as well that has to learn at the same time what it sees",
    {"tiles": TILES},
    LINES,
    expectations,
    quick=SMALL,
    quick_lines=(PLAIN, EEI, GREEDY),
    hidden=("on training set", "updates", "passes", "MB"),
)
