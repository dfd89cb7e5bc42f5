"""Clean and poisoned sets told apart (claim 6): twenty small sets of each kind."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from projects.dvae.detection import THRESHOLD, Detector, score_set
from projects.dvae.fitting import subset
from projects.dvae.reproduction import worlds
from projects.dvae.workshop import Workshop
from shared.seeding import generator
from shared.tables import Job, Rows, Table

IMAGES = 500
ATTACKS = ("lsp", "ops", "ar", "lsp", "ops")
"""Of the poisoned sets, in turn."""
SETS = 20
SEED_OF_SETS = 1000
"""Sets are drawn from other seeds than those that the threshold was chosen on."""


def rows(workshop: Workshop, attack: str, number: int) -> Rows:
    """Score one small set."""
    seed = SEED_OF_SETS + number
    images = workshop.poisoned(attack, seed)
    chosen = torch.randperm(len(images), generator=generator(seed, "small set"))[:IMAGES]
    detector = Detector()
    if workshop.is_quick:
        detector = replace(detector, purifier=replace(detector.purifier, epochs=(1,)), recipe=replace(detector.recipe, epochs=1))
    scores = score_set(subset(images, chosen), detector, seed)
    return [{"set": "clean" if attack == "clean" else "poisoned", "attack": attack, "seed": number} | asdict(scores) | {"amplify": scores.amplify}]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each set; each seed is a further round of sets, and one round is enough."""
    workshop = worlds.detection(folder, quick)
    numbers = [0] if quick else [SETS * round_ + number for round_ in seeds for number in range(SETS)]
    return [Job(f"{attack}", number, rows, (workshop, attack)) for number in numbers for attack in ("clean", ATTACKS[number % len(ATTACKS)])]


def tabulate(found: Rows) -> Rows:
    """Turn the scores of sets into rates of errors, by attack and for all."""
    from sklearn.metrics import roc_auc_score

    clean = [row for row in found if row["set"] == "clean"]
    lines = []
    for attack in ("all", *dict.fromkeys(row["attack"] for row in found if row["set"] == "poisoned")):
        poisoned = [row for row in found if row["set"] == "poisoned" and attack in ("all", row["attack"])]
        truth = [0] * len(clean) + [1] * len(poisoned)
        line = {"poison": attack, "seed": 0, "clean sets": len(clean), "poisoned sets": len(poisoned)}
        for score in ("separability", "amplify"):
            line[f"AUROC {score}"] = float(roc_auc_score(truth, [row[score] for row in (*clean, *poisoned)]))
        line["called poisoned, clean"] = sum(row["separability"] > THRESHOLD for row in clean) / len(clean)
        line["called clean, poisoned"] = sum(row["separability"] <= THRESHOLD for row in poisoned) / len(poisoned)
        line["highest of clean"] = max(row["separability"] for row in clean)
        lines.append(line | {"lowest of poisoned": min(row["separability"] for row in poisoned)})
    return lines


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether separability tells the sets apart."""
    value = summary[0]["AUROC separability"]["mean"]
    return {f"AUROC of separability over all sets at least 0.95 ({value:.3f})": value >= 0.95}


TABLE = Table("detection", "A poisoned set can be told from a clean one.", ("poison",), jobs, expectations, seeds=1, tabulate=tabulate)
