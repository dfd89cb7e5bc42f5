"""What the parts of ComAD's segmentation do: number of clusters, metric, choice of tokens, CRF, and filter of components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.comad.drawing import COMPONENTS
from projects.comad.inspector import Inspector
from projects.comad.metrics import count_errors
from projects.comad.pieces import label_planes
from projects.comad.reproduction import worlds
from projects.comad.reproduction.worlds import Size
from projects.comad.traysim import COUNTS, Kind, Tray
from shared.seeding import generator
from shared.tables import Job, Rows, Table

TINY, RANDOM = "tiny.yaml", "random tokens"
VARIANTS: dict[str, dict[str, Any]] = {
    TINY: {},
    "k 5": {"k": 5},
    "k 12": {"k": 12},
    "k by silhouette": {"choose_k": "silhouette"},
    "cosine": {"metric": "cosine"},
    RANDOM: {},
    "vote": {"filter": "vote"},
    "CRF": {"crf": True},
    "cosine, CRF": {"metric": "cosine", "crf": True},
}
"""What is other than in tiny.yaml: k 8, Euclidean, k-centre tokens, the filter `first`, no CRF. Soft maps without a CRF never pass that filter."""
ALONE: dict[str, Any] = {"structural": "none", "parts": ["logical"]}
"""Nothing but ComAD is asked for."""


class RandomTokens(Inspector):
    """An inspector whose vocabulary is fitted to as many tokens of each picture, but chosen by chance."""

    def sample(self, features: Tensor, first: int) -> Tensor:
        kept = []
        for number, tokens in enumerate(features.flatten(2).mT, start=first):
            count = max(1, int(self.recipe.fraction * len(tokens)))
            kept.append(tokens[torch.randperm(len(tokens), generator=generator(self.recipe.seed, "random tokens", number))[:count]])
        return torch.cat(kept)


def unfitted(name: str, seed: int) -> Inspector:
    """Return the inspector of a variant."""
    plain = worlds.build(seed, **(ALONE | VARIANTS[name])).inspector
    return RandomTokens(plain.features, plain.recipe, plain.judgement) if name == RANDOM else plain


def drawn_numbers(trays: list[Tray]) -> Tensor:
    """Count the pieces of each sort of `COUNTS` that were drawn, (N, 4)."""
    pixels = torch.stack([tray.components for tray in trays])
    planes = [[label_planes((picture == COMPONENTS.index(sort)).numpy()[None])[1] for sort in COUNTS] for picture in pixels]
    return torch.tensor(planes)


def counted_numbers(inspector: Inspector, trays: list[Tray], matched: dict[int, int]) -> Tensor:
    """Count the pieces of the clusters that match these sorts, (N, 4); none where that is no component."""
    numbers = torch.cat([inspector.examine(images).measures.number for images in worlds.batches(trays)])
    counted = torch.zeros(len(trays), len(COUNTS), dtype=torch.int64)
    for column, sort in enumerate(COUNTS):
        cluster = matched.get(COMPONENTS.index(sort))
        if cluster in inspector.metrology.components:
            counted[:, column] = numbers[:, inspector.metrology.components.index(cluster)]
    return counted


def rows(name: str, size: Size, seed: int) -> Rows:
    """Fit a variant and return its row."""
    inspector = worlds.learn(unfitted(name, seed), size, seed)
    kinds: tuple[Kind, ...] = ("good", *worlds.LOGICAL)
    trays = {kind: worlds.draw("test", kind, size.tested, seed) for kind in kinds}
    matched, overlaps = worlds.overlap(inspector, trays["good"]).compute()
    pieces = [*trays["good"], *trays["missing"], *trays["extra"]]
    errors = count_errors(counted_numbers(inspector, pieces, matched), drawn_numbers(pieces))
    assert inspector.centres is not None
    return [
        {
            "vocabulary": name,
            "seed": seed,
            "clusters": float(len(inspector.centres)),
            "components": float(len(inspector.metrology.components)),
            "mIoU": float(overlaps.nanmean()),
            "count error": float(errors.mean()),
            "logical mean": worlds.aurocs({kind: worlds.scores(inspector, own)["logical"] for kind, own in trays.items()})["logical mean"],
        }
    ]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each variant and seed, the slow ones first."""
    if quick:
        return [Job(name, seeds[0], rows, (name, worlds.QUICK)) for name in (TINY, RANDOM)]
    slow_first = sorted(VARIANTS, key=lambda name: not VARIANTS[name].get("crf", False))
    return [Job(name, seed, rows, (name, worlds.FULL)) for seed in seeds for name in slow_first]


def tabulate(found: Rows) -> Rows:
    """Return rows in the order of `VARIANTS`."""
    return sorted(found, key=lambda row: list(VARIANTS).index(row["vocabulary"]))


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which of tiny.yaml's choices pay."""
    means = {row["vocabulary"]: {column: row[column]["mean"] for column in ("mIoU", "logical mean")} for row in summary}
    return {
        "k-centre tokens give a larger mIoU than random ones": means[TINY]["mIoU"] > means[RANDOM]["mIoU"],
        "features without weights are better compared by distance than by cosine": means[TINY]["mIoU"] > means["cosine"]["mIoU"],
        "components need no CRF on these features: it adds at most .02 to the logical mean": means["CRF"]["logical mean"]
        <= means[TINY]["logical mean"] + 0.02,
    }


TABLE = Table(
    "Vocabulary: overlap of components with drawn ones, pieces that are counted wrongly a sort, and logical mean of ComAD",
    "A k-means over few tokens of each good picture finds the components of a product.",
    ("vocabulary",),
    jobs,
    expectations,
    tabulate=tabulate,
)
