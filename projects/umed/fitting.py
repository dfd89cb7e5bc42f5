"""Generators trained on a set in memory, without a command line: what the benchmark and `reproduce` do many times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from projects.umed.module import Protector
from projects.umed.sets import SegmentationSet
from shared.data.memory import MemoryData, chunks
from shared.quiet import quiet_trainer, silence


@dataclass(frozen=True)
class Settings:
    """How generators are trained.

    Attributes:
        epochs: epochs.
        batch_size: images of a step.
        options: further options of `Protector`.
    """

    epochs: int = 100
    batch_size: int = 8
    options: dict[str, Any] = field(default_factory=dict)


def fit_protector(images: SegmentationSet, settings: Settings, seed: int) -> Protector:
    """Train generators on a set; returns them in evaluation mode, on the CPU."""
    channels, height, width = images.image_shape
    module = Protector(channels=channels, classes=images.classes, size=max(height, width), seed=seed, **settings.options)
    with silence():
        data = MemoryData(images, images, min(settings.batch_size, len(images)), seed)
        quiet_trainer(settings.epochs, limit_val_batches=0).fit(module, data.train_dataloader(), data.val_dataloader())
    return module.eval().cpu()


def protect_set(module: Protector, images: SegmentationSet) -> SegmentationSet:
    """Return a set with its images as they would be published."""
    made = torch.empty_like(images.images)
    for part in chunks(images.images):
        made[part] = module.protect(images.images[part], images.mask_bytes[part].long())
    return images.with_images(made)
