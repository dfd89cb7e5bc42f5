"""How much is left after perturbations of the test images (claim 6)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from projects.moe_ffd.reproduction import worlds
from projects.moe_ffd.reproduction.worlds import AMPLE, EPOCHS, MOE, SEEN
from shared.forgery.detection import score
from shared.forgery.metrics import auroc, roc
from shared.forgery.perturbations import PERTURBATIONS, perturb
from shared.tables import Job, Rows, Table

LEVELS = (0, 1, 3, 5)
FALLING = ("blur", "noise", "jpeg")
CHANCE, TOLERANCE = 0.5, 0.01
"""An AUC below chance counts as chance: the perturbation has turned the scores round."""


def rows(images: int, epochs: int, seed: int) -> Rows:
    """Train a detector and measure the AUC of frames of the seen manipulation at each level; level 0 changes nothing."""
    module = worlds.train(worlds.ADAPTATIONS[MOE], images, epochs, seed)
    test = worlds.test_faces(SEEN, seed)
    made = []
    for name in PERTURBATIONS:
        row: dict[str, object] = {"perturbation": name, "seed": seed}
        for level in LEVELS:
            row[f"level {level}"] = auroc(roc(*score(module, test, change=partial(_perturbed, name=name, level=level)).columns))
        made.append(row)
    return made


def _perturbed(images: Tensor, indices: Tensor, name: str, level: int) -> Tensor:
    return perturb(images, name, level, indices) if level else images


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    settings = (64, 1) if quick else (AMPLE, EPOCHS[AMPLE])
    return [Job("all", seed, rows, settings) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the AUC falls with the level, as far as chance, up to what the number of test frames allows."""
    held = {}
    for row in summary:
        if row["perturbation"] in FALLING:
            means = [max(CHANCE, row[f"level {level}"]["mean"]) for level in LEVELS]
            held[f"{row['perturbation']}: the AUC falls with the level"] = all(later <= earlier + TOLERANCE for earlier, later in pairwise(means))
    return held


TABLE = Table("robustness", "The AUC falls with blur, noise and compression.", ("perturbation",), jobs, expectations, seeds=5)
