"""What a silenced component does: a weight of 0 for what is scratched ends its alarms, and others go on (claim 5).

Scratches lie on one surface only. On the grain their pixels stay in the grain's cluster, whose colours vary anyway. On the floor they do not: they
look like the rims of things, which have a cluster of their own, and most pixels of that are floor, too. So a surface is all clusters that are mostly
drawn as it, and each of them is silenced; `background.weight=0` alone leaves the rims, and with them the alarms of a scratched floor.

The good level is that of good trays under the same weights. It is not the nominal 5 %, and varies, for only 40 trays of validation set the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from projects.comad.inspector import Inspector
from projects.comad.reproduction import worlds
from projects.comad.reproduction.worlds import Found, Size
from projects.comad.traysim import SURFACES
from shared.tables import Job, Rows, Table

SCORES: dict[str, tuple[str, ...]] = {"fused": ("logical", "position", "patches"), "patch memory": ("patches",)}
TOLERANCE = 0.05
"""Alarm rate by which scratched trays may exceed good ones; with 400 trays each, two deviations of the difference of two rates of 10 % are 0.04."""
FULL = worlds.FULL._replace(tested=80)


def alarm_rates(inspector: Inspector, found: Found) -> dict[str, float]:
    """Return the part of the trays of each set that alarm when `validation` sets scales and threshold."""
    inspector.calibrate_with(found["validation"])
    return {name: float((inspector.fuse(values) > inspector.threshold).double().mean()) for name, values in found.items()}


def weighed(inspector: Inspector, weights: Mapping[int, float], pictures: Mapping[str, list[Tensor]]) -> Found:
    """Return scores of sets of pictures under weights of clusters."""
    inspector.judged_by(replace(inspector.judgement, weights=dict(weights)))
    return {name: worlds.joined([inspector.examine(images) for images in batches]) for name, batches in pictures.items()}


def rows(kept: Path, size: Size, seed: int) -> Rows:
    """Return alarm rates before and after each surface is silenced."""
    inspector = worlds.fitted(kept, size, seed)
    meanings = worlds.meanings(inspector, worlds.draw("train", "good", size.tested, seed))
    sets = {name: worlds.draw("test", name, size.tested, seed) for name in ("good", "missing")}
    common = {name: worlds.batches(trays) for name, trays in sets.items()}
    common["validation"] = worlds.batches(worlds.draw("validation", "good", size.validation, seed))
    scratched = {on: worlds.batches(worlds.draw("test", "scratch", size.tested, seed, on)) for on in SURFACES}
    unweighed = weighed(inspector, {}, common | scratched)
    made = []
    for on in SURFACES:
        silenced = {cluster: 0.0 for cluster, meaning in enumerate(meanings) if meaning == on}
        found = {"before": unweighed, "after": weighed(inspector, silenced, common | {on: scratched[on]})}
        for score, parts in SCORES.items():
            inspector.judged_by(replace(inspector.judgement, parts=parts))
            rates = {when: alarm_rates(inspector, values) for when, values in found.items()}
            columns = {
                f"{name} {when}": rates[when][on if name == "scratched" else name] for name in ("scratched", "good", "missing") for when in rates
            }
            made.append({"silenced": on, "score": score, "seed": seed, **columns})
    return made


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    return [Job("adjusting", seed, rows, (kept, worlds.QUICK if quick else FULL)) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether scratches are silenced, of which there must be alarms before, and other anomalies are not."""
    held = {}
    for row in summary:
        about = f"{row['silenced']} silenced, {row['score']}"
        rate = {column: row[column]["mean"] for column in row if column not in ("silenced", "score")}
        held[f"(5) {about}: before, at least half of the scratches alarm"] = rate["scratched before"] >= 0.5
        held[f"(5) {about}: scratches alarm as good trays do, within {TOLERANCE}"] = rate["scratched after"] <= rate["good after"] + TOLERANCE
        if row["score"] == "fused":
            held[f"(5) {about}: missing pieces alarm as before, within {TOLERANCE}"] = rate["missing after"] >= rate["missing before"] - TOLERANCE
    return held


TABLE = Table(
    "Silenced surfaces: part of the trays that alarm before and after (claim 5)",
    "A weight of 0 for the scratched component drops its scratch alarms to the level of good trays, and missing pieces elsewhere are still found.",
    ("silenced", "score"),
    jobs,
    expectations,
    seeds=5,
)
