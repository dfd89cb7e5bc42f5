"""A route under other losses, and digits."""

from __future__ import annotations

from dataclasses import replace

from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from projects.rco.reproduction.comparing import comparison, means_of
from projects.rco.reproduction.worlds import FAST, KD, LABELS, PLAIN, PURE, QUICK, Line, World
from projects.rco.walking import Walk
from shared.tables import Rows

FOUR = World({"easy": 1}, "mlp_800", "mlp_12", FAST.epochs, FAST.recipe)
"""Four classes, the parity and the sign of a further coordinate, so that there is something to tell of classes that are not the target."""
EEI = Walk(anchors=3)
LOSSES = {
    "KD": PURE,
    "DKD": Loss("dkd", tau=1.0, ce=0.0, dkd_beta=0.5, dkd_warmup=0),  # of 0.5, 1, 2, 4 and 8 the best on seed 100
    "DIST": Loss("dist", tau=1.0, ce=0.0),
    "hint": Loss("kd+hint", tau=1.0, ce=0.0, weights={"kd": 1.0, "hint": 2.0}, hint_stage=0),  # with the customary 200 it diverges
    "mimic": Loss("mimic"),
    "CRD": Loss("kd+crd", tau=1.0, ce=0.0, weights={"kd": 1.0}),
}
PAIRED = {f"{name}{route}": Line(walk, loss) for name, loss in LOSSES.items() for route, walk in (("", KD), (" + EEI-3", EEI))}


def _of_losses(means: Rows) -> dict[str, bool]:
    accuracy = means_of(means)
    both = accuracy["DKD + EEI-3"]
    gains = {f"a route gains with {name}": accuracy[f"{name} + EEI-3"] > accuracy[name] for name in LOSSES}
    return {
        "RCO + DKD is at least as good as RCO, within 0.01": both >= accuracy["KD + EEI-3"] - 0.01,
        "and as DKD": both >= accuracy["DKD"] - 0.01,
    } | gains


TABLE = comparison(
    "losses",
    "Other losses, with the converged teacher alone and along the route",
    "a route combines with other losses",
    {"4 classes, lr 0.05, width 12, 18 epochs": FOUR},
    PAIRED,
    _of_losses,
    quick=replace(QUICK, data={**QUICK.data, "easy": 1}),
    quick_lines=("KD", "DKD + EEI-3", "hint + EEI-3"),
    hidden=("on training set", "in the jump", "updates", "MB", "anchors"),
)

DIGITS = World({"source": "digits", "noise": 0.3, "held_out": 0.1}, "mlp_64", "mlp_4", 30, Recipe(lr=0.02, weight_decay=1e-4))


def _of_digits(means: Rows) -> dict[str, bool]:
    accuracy = means_of(means)
    spread = max(float(row["accuracy"]["std"]) for row in means)
    return {"digits: EEI-4 and KD differ by less than the spread over seeds (no effect)": abs(accuracy["EEI-4"] - accuracy[PLAIN]) < spread}


DIGIT = comparison(
    "digits",
    "Digits with noise, a student of 4 units",
    "reported as it is: no effect was expected",
    {"digits": DIGITS},
    {LABELS: Line(walk=None), PLAIN: Line(KD), "EEI-4": Line(Walk(anchors=4)), "every epoch": Line(Walk("one_by_one"))},
    _of_digits,
    quick=replace(DIGITS, epochs=4),
    hidden=("in the jump", "MB"),
)
