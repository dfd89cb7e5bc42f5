"""Rules that published codes certify by and that claim too much, each beside ours on the same votes: how often the radius exceeds the true one.

Branch classifiers are half-spaces, whose votes are Bernoulli with known probabilities and whose true radius is known in closed form; counts are drawn
from binomials, but for "split after denoising", which runs the engine on real noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.smoothing import Branch, Budget, SmoothedClassifier, Smoothing
from shared.smoothing.anytime import lower_sequence
from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile
from shared.smoothing.joint import fisher_sum

CLAIM = "Rules found in published codes certify false radii more often than alpha; ours does not."
RUNS = 20_000
ALPHA = 0.05


@dataclass(frozen=True)
class Case:
    """A flawed rule beside ours.

    Attributes:
        rule: what is wrong.
        setting: draws and probabilities that show it.
        rates: from a seed and a number of runs, how often the flawed rule and ours claim more than is true.
    """

    rule: str
    setting: str
    rates: Callable[[int, int], tuple[float, float]]


def relooked(seed: int, runs: int) -> tuple[float, float]:
    """Clopper-Pearson looked at 200 times, the best radius kept; the true probability is 1/2, so nothing may be certified. Ours: the sequence."""
    looks, step = 200, 100
    hits = np.random.default_rng(seed).binomial(step, 0.5, (runs, looks)).cumsum(1)
    draws = torch.arange(1, looks + 1) * step
    counts = torch.from_numpy(hits)
    flawed = (clopper_pearson_lower(counts, draws, ALPHA) > 0.5).any(1)
    ours = (lower_sequence(counts, draws, ALPHA) > 0.5).any(1)
    return _share(flawed), _share(ours)


def unsplit(seed: int, runs: int) -> tuple[float, float]:
    """Each branch's own radius at the full alpha, as the published code prints them, claimed together. Ours: alpha / 2 each."""
    draws, p = 1000, float(clopper_pearson_lower(torch.tensor(950), 1000, ALPHA)) - 1e-9  # where Clopper-Pearson spends all of alpha
    counts = _counts(seed, runs, draws, (p, p))

    def false(alpha: float) -> float:
        return _share((clopper_pearson_lower(counts, draws, alpha) > p).any(1))

    return false(ALPHA), false(ALPHA / 2)


def quadratic(seed: int, runs: int) -> tuple[float, float]:
    """R = sqrt(R_l^2 + R_r^2) of the CIFAR-10 code. Ours: the joint form."""
    return _combined(seed, runs, 1000, (0.99, 0.6), lambda a: torch.linalg.vector_norm(a.clamp_min(0), dim=1))


def clipped(seed: int, runs: int) -> tuple[float, float]:
    """Branches below one half count as 0 instead of negatively: (R_l^+ + R_r^+) / sqrt 2. Ours: the joint form."""
    return _combined(seed, runs, 1000, (0.99, 0.3), lambda a: a.clamp_min(0).sum(1) / math.sqrt(2))


def scaled(seed: int, runs: int) -> tuple[float, float]:
    """200 draws whose hits and number are multiplied by 500 before Clopper-Pearson. Ours: the 200 draws that were made."""
    p, draws, factor = 0.9, 200, 500
    counts = torch.from_numpy(np.random.default_rng(seed).binomial(draws, p, runs))
    flawed = clopper_pearson_lower(counts * factor, draws * factor, ALPHA) > p
    return _share(flawed), _share(clopper_pearson_lower(counts, draws, ALPHA) > p)


def denoised_whole(seed: int, runs: int) -> tuple[float, float]:
    """The whole noised image is denoised, then split: each vote depends on all of delta, but sqrt(2) is claimed. Ours: the shared-noise radius.

    The denoiser here keeps the projection onto one direction of the whole image; both branches then are the same half-space of it.
    """
    sigma, margin, draws = 0.5, 0.6, 400

    def classify(images: Tensor) -> Tensor:
        projected = images.flatten(1).sum(1) / math.sqrt(images[0].numel())
        return torch.stack([margin - projected, projected - margin], dim=1)

    def certified(rule: Any) -> Tensor:
        smoothing = Smoothing((sigma, sigma), rule, ALPHA)
        votes = SmoothedClassifier(
            [Branch(classify), Branch(classify)], 2, Smoothing((sigma, sigma), "shared", ALPHA), Budget(20, draws), seed, batch_size=4096
        )
        results = votes.certify(torch.zeros(runs, 1, 2, 4))
        return torch.tensor([smoothing.certify(result.estimation[:, :-1], draws, 0).radius for result in results])

    return _share(certified("main") > margin), _share(certified("shared") > margin)  # the half-space lies at the distance of its margin


CASES = (
    Case("Clopper-Pearson looked at 200 times", "n to 20,000, p = 0.5", relooked),
    Case("alpha for each branch", "n = 1000, p at a step of the bound", unsplit),
    Case("sqrt(R_l² + R_r²)", "n = 1000, p = (0.99, 0.6)", quadratic),
    Case("negative branches count as 0", "n = 1000, p = (0.99, 0.3)", clipped),
    Case("counts multiplied by 500", "200 draws, p = 0.9", scaled),
    Case("split after denoising", "n = 400, one half-space", denoised_whole),
)


def rows(quick: bool, seed: int) -> list[dict[str, Any]]:
    """Return a row for each case."""
    found = []
    for case in CASES:
        runs = RUNS // (100 if quick else 1)
        if case.rates is denoised_whole:
            runs //= 10
        flawed, ours = case.rates(seed, runs)
        found.append({"rule": case.rule, "setting": case.setting, "seed": seed, "alpha": ALPHA, "false_flawed": flawed, "false_ours": ours})
    return found


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""
    flawed = {row["rule"]: row["false_flawed"]["mean"] > ALPHA for row in summary}
    return {f"'{rule}' is false more often than alpha": held for rule, held in flawed.items()} | {
        "ours is false at most alpha often in every case": all(row["false_ours"]["mean"] <= ALPHA for row in summary)
    }


def _combined(seed: int, runs: int, draws: int, p: tuple[float, float], combine: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Compare a combination of the branches' quantiles with ours, in units of sigma; the truth is (a_l + a_r) / sqrt 2."""
    counts = _counts(seed, runs, draws, p)
    truth = float(normal_quantile(torch.tensor(p, dtype=torch.float64)).sum()) / math.sqrt(2)
    flawed = combine(normal_quantile(clopper_pearson_lower(counts, draws, ALPHA))) > max(truth, 0.0)
    pairs, times = counts.unique(dim=0, return_counts=True)
    claimed = torch.tensor([fisher_sum(pair, draws, ALPHA) / math.sqrt(2) for pair in pairs])
    ours = float((times * (claimed.clamp_min(0) > max(truth, 0.0))).sum()) / runs
    return _share(flawed), ours


def _counts(seed: int, runs: int, draws: int, p: tuple[float, float]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).binomial(draws, p, (runs, 2)))


def _share(events: Tensor) -> float:
    return float(events.double().mean())
