"""Detectors trained and judged on sets in memory, without a command line: what `robustness` and `reproduce` do many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from projects.moe_ffd.module import FaceForgeryDetection
from shared.forgery.data import ForgeryData
from shared.forgery.metrics import Scored
from shared.forgery.sets import ForgerySet
from shared.quiet import quiet_trainer, silence


@dataclass(frozen=True)
class Settings:
    """How a detector is trained.

    Attributes:
        epochs: epochs.
        options: options of `FaceForgeryDetection`.
    """

    epochs: int = 8
    options: dict[str, Any] = field(default_factory=dict)


def fit_detector(data: ForgeryData, settings: Settings, seed: int, **options: Any) -> FaceForgeryDetection:
    """Train a detector and return it as it is after the last epoch, in evaluation mode, on the CPU; options are those of `L.Trainer`."""
    data.setup()
    module = FaceForgeryDetection(seed=seed, **settings.options)
    with silence():
        quiet_trainer(settings.epochs, limit_val_batches=0, **options).fit(module, data.train_dataloader(), data.val_dataloader())
    return module.eval().cpu()


@torch.inference_mode()
def score(
    module: FaceForgeryDetection,
    images: ForgerySet,
    batch_size: int = 128,
    change: Callable[[Tensor, Tensor], Tensor] = lambda images, indices: images,
) -> Scored:
    """Score every frame of a set in evaluation mode, on the module's device.

    Args:
        module: the detector.
        images: the set.
        batch_size: frames that are scored together.
        change: what is done to (B, 3, H, W) uint8 frames with the numbers (B,) before they are scored.
    """
    module.eval()
    scores = []
    for indices in torch.arange(len(images)).split(batch_size):
        batch = images.__getitems__(indices.tolist())
        scores.append(module(change(batch["image"], batch["index"]).to(module.device)).cpu())
    return Scored(torch.cat(scores), images.labels, images.video)
