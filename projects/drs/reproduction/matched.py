"""DRS beside randomized smoothing at one ceiling: sigma / sqrt 2 against sigma, and beside an ensemble at the same number of forward passes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from projects.drs.certification import Plan
from projects.drs.reproduction.models import Models, Variant
from shared.smoothing import Smoothing
from shared.smoothing.certificates import Certificate, Rule, choose_class
from shared.smoothing.engine import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Dual smoothing certifies more than randomized smoothing whose highest possible radius is the same."
SIGMA = 0.5
DRAWS, SELECTION, ALPHA = 1000, 100, 0.001
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
WHOLE = {"split": "whole", "embedding": "packed_native", "sigma": SIGMA}
HALVES = {"split": "checkerboard", "embedding": "packed_nearest", "sigma": SIGMA / math.sqrt(2)}
PRETRAINED = Variant("whole images, pre-trained", WHOLE | {"sigma": SIGMA / math.sqrt(2)}, epochs=15)
VARIANTS = (
    Variant("RS", WHOLE),
    Variant("RS, ensemble of 2", WHOLE | {"ensemble": 2}),
    Variant("DRS", HALVES),
    Variant("DRS, one network", HALVES | {"shared_network": True}),
    Variant("DRS, pre-trained", HALVES, epochs=5, parent=PRETRAINED),
    Variant("DRS, sub-images as they are", HALVES | {"embedding": "packed_native"}),
    Variant("DRS, maximum of the block", HALVES | {"embedding": "checkerboard_maxpool"}),
    Variant("four phases", HALVES | {"split": "phases", "sigma": SIGMA / 2}),
    Variant("DRS at RS's sigma", HALVES | {"sigma": SIGMA}),
)
CERTIFICATES: dict[int, tuple[Rule, ...]] = {1: ("main",), 2: ("main", "pooled", "joint", "selected"), 4: ("main",)}


def rows(models: Models, variant: Variant, seed: int) -> list[dict[str, Any]]:
    """Train a variant, certify the test images once, and turn the same counts into a row for each certificate."""
    module, seconds = models.train(variant, seed)
    sigma, branches, passes = module.hparams["sigma"], len(module.net.split), len(module.net.split) * module.net.ensemble
    images, labels = models.images(seed)
    results = models.certify(module, images, Plan(sigma, DRAWS, SELECTION, ALPHA, seed=seed))
    found = []
    for rule in CERTIFICATES[branches]:
        smoothing = Smoothing((sigma,) * branches, rule, ALPHA)
        certificates = [certificate(smoothing, result) for result in results]
        radii = torch.tensor([c.radius * (c.predicted == int(label)) for c, label in zip(certificates, labels, strict=True)], dtype=torch.float64)
        row: dict[str, Any] = {"model": variant.name, "certificate": {1: "Cohen"}.get(branches, rule), "seed": seed, "acr": float(radii.mean())}
        row |= {f"r={r:g}": float(((radii >= r) & (radii > 0)).double().mean()) for r in RADII}
        row |= {"abstains": sum(c.is_abstention for c in certificates) / len(certificates), "ceiling": ceiling(smoothing, branches)}
        found.append(row | {"passes": float(passes), "training_s": seconds})
    return found


def certificate(smoothing: Smoothing, result: Result) -> Certificate:
    """Turn the votes behind a result into the certificate of another rule."""
    selection, counted = result.selection[:, :-1], result.estimation[:, :-1]
    top = choose_class(selection)
    return smoothing.decided(selection, DRAWS, top).certify(counted, DRAWS, top)


def ceiling(smoothing: Smoothing, branches: int) -> float:
    """Return the radius when all draws hit."""
    everything = torch.tensor([[DRAWS, 0]] * branches)
    return smoothing.decided(everything, DRAWS, 0).certify(everything, DRAWS, 0).radius


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""

    def mean(column: str, model: str, certificate: str) -> float:
        return next(row[column]["mean"] for row in summary if (row["model"], row["certificate"]) == (model, certificate))

    rs, ensemble = mean("acr", "RS", "Cohen"), mean("acr", "RS, ensemble of 2", "Cohen")
    published, joint = mean("acr", "DRS", "main"), mean("acr", "DRS", "joint")
    raised = mean("ceiling", "DRS at RS's sigma", "main") / mean("ceiling", "RS", "Cohen")
    return {
        f"in the paper's form, DRS certifies more than RS at one ceiling (ACR {published:.3f} and {rs:.3f})": published > rs,
        "these two are within 0.04, as the theory of a matched filter says": abs(published - rs) <= 0.04,
        f"in the paper's form, DRS certifies more than two averaged RS networks at as many forward passes ({ensemble:.3f})": published > ensemble,
        f"with the joint certificate it does ({joint:.3f})": joint > ensemble,
        "the joint certificate raises the ACR of the paper's form": joint > published,
        "pooled and joint raise the ceiling of the paper's form": min(mean("ceiling", "DRS", rule) for rule in ("pooled", "joint"))
        > mean("ceiling", "DRS", "main"),
        f"at RS's sigma the ceiling is {raised:.3f} times RS's (1.394 expected at n = 1000)": abs(raised - 1.394) < 0.005,
    }


def plot(summary: list[dict[str, Any]]) -> Figure:
    """Draw certified accuracy over the radius for the main variants."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for model, certificate in (("RS", "Cohen"), ("RS, ensemble of 2", "Cohen"), ("DRS", "main"), ("DRS", "joint"), ("four phases", "main")):
        row = next(row for row in summary if (row["model"], row["certificate"]) == (model, certificate))
        means, spreads = ([row[f"r={r:g}"][part] for r in RADII] for part in ("mean", "std"))
        label = f"{model}" + ("" if certificate == "Cohen" else f", {certificate}") + f" (ACR {row['acr']['mean']:.3f})"
        axes.errorbar(RADII, means, spreads, marker="o", markersize=3, capsize=2, linewidth=1.2, label=label)
    axes.set(xlabel="l2 radius (images in [0, 1])", ylabel="certified accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
