"""What stopping early saves, and that it decides as all draws do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from projects.drs.certification import Plan
from projects.drs.reproduction.matched import HALVES, SIGMA, WHOLE
from projects.drs.reproduction.models import Models, Variant
from shared.smoothing import Budget
from shared.smoothing.anytime import lower_sequence

CLAIM = "Confidence sequences settle a grid of radii with a fraction of the draws, and err at most alpha often however often one looks."
GRID = (0.25, 0.5, 0.75, 1.0)
DRAWS, SELECTION, ALPHA = 100_000, 100, 0.001
QUICK_DRAWS = 1500
IMAGES = 24
VARIANTS = (Variant("RS", WHOLE), Variant("DRS", HALVES))
TYPE_ONE_RUNS, TYPE_ONE_ALPHA = 10_000, 0.05


def rows(models: Models, variant: Variant, seed: int) -> list[dict[str, Any]]:
    """Certify the same images with all draws and with early stopping, and compare what they decide at the radii of the grid."""
    module, _ = models.train(variant, seed)
    sigma = module.hparams["sigma"]
    radii = tuple(SIGMA * step for step in GRID)
    images, _labels = models.images(seed, IMAGES)
    draws = QUICK_DRAWS if models.is_quick else DRAWS
    full = models.certify(module, images, Plan(sigma, draws, SELECTION, ALPHA, seed=seed))
    early = models.certify(module, images, Plan(sigma, draws, SELECTION, ALPHA, radii=radii, seed=seed))
    stopped = [pair for pair in zip(full, early, strict=True) if pair[1].draws < draws]
    same = [[a.certificate.radius >= r for r in radii] == [b.certificate.radius >= r for r in radii] for a, b in stopped]
    used = sum(result.draws for result in early) / len(early)
    seconds = [sum(result.seconds for result in part) / len(part) for part in (full, early)]
    return [
        {
            "model": variant.name,
            "seed": seed,
            "draws_mean": used,
            "draws_saved": draws / used,
            "time_saved": seconds[0] / seconds[1],
            "stopped": len(stopped) / len(early),
            "same_decisions": sum(same) / len(same) if same else 1.0,
            "type_one": type_one(seed, models.is_quick),
        }
    ]


def type_one(seed: int, is_quick: bool) -> float:
    """Return how often the sequence at alpha = 0.05 ever exceeds the true probability 1/2, looked at as the engine does up to 100,000 draws."""
    looks = np.array(Budget(draws=DRAWS, radii=(1.0,)).looks())
    runs = TYPE_ONE_RUNS // (10 if is_quick else 1)
    steps = np.random.default_rng(seed).binomial(np.diff(looks, prepend=0), 0.5, (runs, len(looks)))
    hits = torch.from_numpy(steps.cumsum(1))
    return float((lower_sequence(hits, torch.from_numpy(looks), TYPE_ONE_ALPHA) > 0.5).any(1).double().mean())


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""
    return {
        "stopping early takes at most a third of the draws": all(row["draws_saved"]["mean"] >= 3 for row in summary),
        "it decides as all draws do wherever it stops": all(row["same_decisions"]["mean"] == 1 for row in summary),
        f"the sequence is false at most alpha = {TYPE_ONE_ALPHA} often": all(row["type_one"]["mean"] <= TYPE_ONE_ALPHA for row in summary),
    }
