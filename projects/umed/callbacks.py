"""Pictures that are logged during training: what is done to a few images, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from projects.umed.perturb import regions
from shared.loggers import log_image

if TYPE_CHECKING:
    from projects.umed.module import Protector

SHOWN = 8
"""Columns of a sheet."""
SIDE = 96
"""Least height of a picture in a sheet, in pixels."""
BAND, INTERIOR = (1.0, 0.55, 0.1), (0.15, 0.5, 1.0)
"""Colours, red green blue, that the contour band and the interior are painted with."""


class Protections(L.Callback):
    """Logs a few images in columns: clean, protected, |δ| as a part of epsilon, and the clean image with band and interior painted over it.

    Args:
        every: epochs between two sheets; 0 makes one, after the last epoch.
    """

    def __init__(self, every: int = 0) -> None:
        self.every = every

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every and (trainer.current_epoch + 1) % self.every == 0:
            self._log(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, None)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int | None) -> None:
        if trainer.is_global_zero:
            examples = trainer.datamodule.val_set  # type: ignore[attr-defined]
            batch = examples.__getitems__(range(min(SHOWN, len(examples))))
            log_image(trainer, "protection", protection_sheet(cast("Protector", pl_module), batch["image"], batch["mask"]), epoch)


@torch.no_grad()
def protection_sheet(module: Protector, images: Tensor, masks: Tensor) -> Tensor:
    """Return a sheet, (3, height, width) in [0, 1], of (B, C, H, W) uint8 images and their (B, H, W) masks."""
    stored, clean = module.protect(images, masks), images.float() / 255
    change = (stored.float() - images.float()).abs().amax(1, keepdim=True) / module.hparams.epsilon
    found = regions(masks, module.radius, module.hparams.classes)
    painted = clean.expand(-1, 3, -1, -1)
    for where, colour in ((found.band, BAND), (found.interior, INTERIOR)):
        painted = torch.where(where, 0.5 * painted + 0.5 * torch.tensor(colour)[:, None, None], painted)
    rows = [picture.expand(-1, 3, -1, -1) for picture in (clean, stored.float() / 255, change, painted)]
    enlarged = F.interpolate(torch.cat(rows).clamp(0, 1), scale_factor=max(1, -(-SIDE // images.shape[2])), mode="nearest")
    return make_grid(enlarged, nrow=len(images), padding=3, pad_value=1)
