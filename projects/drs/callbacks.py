"""A picture logged during training: what each branch's network sees of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor

from shared.loggers import log_image
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.drs.module import DualSmoothing

SHOWN = 8


class SubImages(L.Callback):
    """Logs, at the start of training, a few images in a row above what every branch sees of them: the noised sub-image as it is embedded."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: DualSmoothing, batch: dict[str, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        if trainer.global_step == 0 and trainer.is_global_zero:
            log_image(trainer, "sub_images", sub_images(pl_module, batch["image"][:SHOWN]))


@torch.no_grad()
def sub_images(module: DualSmoothing, images: Tensor) -> Tensor:
    """Return rows of pictures: the images, and below them what each branch sees, (C, rows · H, N · W) in [0, 1]."""
    rows = [images]
    for branch in range(len(module.net.split)):
        part = module.net.split.take(branch)(images)
        noise = torch.randn(part.shape, generator=generator(module.hparams["seed"], "shown", branch)).to(part)
        seen = module.net.seen(branch, part + module.hparams["sigma"] * noise)
        rows.append(torch.nn.functional.interpolate(seen, size=images.shape[2:], mode="nearest"))
    return torch.cat([row.permute(1, 2, 0, 3).flatten(2) for row in rows], dim=1).clamp(0, 1)
