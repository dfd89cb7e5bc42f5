"""Which experts, and how many, on few images (claim 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.moe_ffd.pretraining import pretrain
from projects.moe_ffd.reproduction import worlds
from projects.moe_ffd.reproduction.worlds import ADAPTATIONS, EPOCHS, FULL, LARGE, SCARCE
from shared.tables import Job, Rows, Table

RANKS = [2, 3, 4, 5, 6, 7, 8]
EXPERTS = {1: [8], 3: [2, 5, 8], 5: [2, 4, 5, 6, 8], 7: RANKS}
"""Ranks of the LoRA experts, by their number; all have the same largest rank."""
KINDS = {"cv": "vanilla", "cd": "central", "ad": "angular", "rd": "radial", "scd": "second-order central"}
VARIANTS: dict[str, dict[str, Any]] = {
    "both mixtures": LARGE,
    "LoRA mixture alone": LARGE | {"kinds": []},
    "adapter mixture alone": LARGE | {"ranks": []},
    **{f"{count} LoRA expert{'s' if count > 1 else ''}": LARGE | {"ranks": ranks} for count, ranks in EXPERTS.items()},
    **{f"one adapter, {name}": LARGE | {"ranks": [], "kinds": [kind]} for kind, name in KINDS.items()},
    "frozen norms": LARGE | {"trains_norm1": False},
    FULL: ADAPTATIONS[FULL],
}
WIDE = "tiny_wide"
BACKBONES = {name: VARIANTS[name] for name in ("both mixtures", FULL)}
"""Variants that are compared on a wider backbone as well."""


def rows(variant: str, options: dict[str, Any], images: int, epochs: int, seed: int) -> Rows:
    """Train a variant and judge it; AUC of frames."""
    module = worlds.train(options, images, epochs, seed)
    return [{"variant": variant, "seed": seed, "trained (%)": worlds.trainable_share(module)} | worlds.judge(module, seed)]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each variant and seed; a wider backbone is pretrained first, and kept in the folder."""
    if quick:
        return [Job("both mixtures", seeds[0], rows, ("both mixtures", LARGE, 64, 1))]
    wide = {"backbone": WIDE, "weights": str(pretrain(folder, backbone=WIDE))}
    variants = VARIANTS | {f"{name}, wide backbone": options | wide for name, options in BACKBONES.items()}
    return [Job(name, seed, rows, (name, options, SCARCE, EPOCHS[SCARCE])) for seed in seeds for name, options in variants.items()]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the paper's ablation comes out as it reports it."""
    found = {row["variant"]: row["unseen"]["mean"] for row in summary}
    both, single = found["both mixtures"], max(value for name, value in found.items() if name.startswith("one adapter"))
    return {
        "both mixtures generalise better than LoRA experts alone": both > found["LoRA mixture alone"],
        "both mixtures generalise better than adapters alone": both > found["adapter mixture alone"],
        "five convolutions generalise better than the best single one": found["adapter mixture alone"] > single,
        "more LoRA experts generalise better": found["7 LoRA experts"] > found["1 LoRA expert"],
        f"both mixtures generalise better than {FULL}": both > found[FULL],
        "also on a wider backbone": found["both mixtures, wide backbone"] > found[f"{FULL}, wide backbone"],
    }


TABLE = Table("ablation", "Each mixture and each kind of expert adds something.", ("variant",), jobs, expectations, seeds=5)
