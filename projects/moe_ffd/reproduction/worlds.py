"""Drawn faces and the adaptations that are compared on them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from projects.moe_ffd.model import count_parameters
from projects.moe_ffd.module import FaceForgeryDetection
from shared.forgery.data import ForgeryData
from shared.forgery.detection import fit_detector, score
from shared.forgery.faces import MANIPULATIONS, faces
from shared.forgery.metrics import auroc, roc
from shared.forgery.sets import ForgerySet

SEEN, UNSEEN = MANIPULATIONS[0], MANIPULATIONS[1:]
COMMON: dict[str, Any] = {"schedule": "onecycle", "lr": 2e-3, "lr_gate": None, "self_index": 4, "balance_lora": 0.1, "balance_adapter": 0.01}
"""Options of all detectors on the small backbone: fewer rows are routed, so that balance weighs less."""
SMALL: dict[str, Any] = {"ranks": [1, 2, 4], "bottleneck": 4}
LARGE: dict[str, Any] = {"ranks": [2, 4, 6, 8], "bottleneck": 8}
FULL, PROBE, MOE_SMALL, MOE = "full fine-tuning", "linear probe", "MoE-FFD, small", "MoE-FFD"
ADAPTATIONS: dict[str, dict[str, Any]] = {
    FULL: {"adaptation": "full", "lr": 3e-4},
    PROBE: {"adaptation": "probe", "lr": 3e-3},
    "LoRA alone": {"adaptation": "lora", "rank": 8},
    "adapter alone": {"adaptation": "adapter", "kind": "cv"},
    MOE_SMALL: SMALL,
    MOE: LARGE,
    "MoE-FFD, weighted router": LARGE | {"lora_router": "weighted", "adapter_router": "weighted"},
}
SCARCE, AMPLE = 160, 800
EPOCHS = {SCARCE: 24, AMPLE: 8}
TESTED = 600
"""Test frames of each manipulation, one of each video, so that the AUC of one set is sure to about 0.02."""


def train(options: dict[str, Any], images: int, epochs: int, seed: int) -> FaceForgeryDetection:
    """Train a detector on faces of which half are swaps; each shows somebody drawn anew."""
    data = ForgeryData(length=images, augmentation="flip", seed=seed, test_sets=[SEEN], test_length=2, video_frames=1)
    return fit_detector(FaceForgeryDetection(seed=seed, **(COMMON | options)), data, epochs)


def judge(module: FaceForgeryDetection, seed: int) -> dict[str, float]:
    """Return the frame AUC of every manipulation, on people of whom nothing was learnt, and the mean over the unseen ones."""
    found = {name: auroc(roc(*score(module, test_faces(name, seed)).columns)) for name in MANIPULATIONS}
    return found | {"unseen": sum(found[name] for name in UNSEEN) / len(UNSEEN)}


@lru_cache(maxsize=len(MANIPULATIONS))
def test_faces(manipulation: str, seed: int) -> ForgerySet:
    """Draw the faces that detectors of a seed are judged on; kept for the next one."""
    return faces("test", TESTED, manipulation, seed, video_frames=1)


def trainable_share(module: FaceForgeryDetection) -> float:
    """Return the part of all parameters that is trained, in %."""
    counts = count_parameters(module.net)
    return 100 * counts["trainable"] / counts["total"]
