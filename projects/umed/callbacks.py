"""Pictures that are logged during training: what is done to a few images, and where."""

from __future__ import annotations

from collections.abc import Iterable
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
LARGEST = 256
"""Largest side of what is shown of an image, in its own pixels: of larger ones the part around the foreground."""
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


def protection_sheet(module: Protector, images: Tensor, masks: Tensor) -> Tensor:
    """Return a `change_sheet` of (B, C, H, W) uint8 images with (B, H, W) masks, and what the module would publish of them."""
    return change_sheet(module, images, module.protect(images, masks), masks)


def change_sheet(module: Protector, clean: Iterable[Tensor], stored: Iterable[Tensor], masks: Iterable[Tensor]) -> Tensor:
    """Draw a column for each image: clean, stored, |δ| as a part of epsilon, and the clean image with band and interior painted over it.

    Args:
        module: what made the perturbations, which knows epsilon and the band's reach.
        clean: (C, H, W) uint8 images, of any sizes.
        stored: as `clean`, what is published of each.
        masks: (H, W) mask of each.

    Returns:
        (3, height, width) in [0, 1].
    """
    columns = [_column(module, *each) for each in zip(clean, stored, masks, strict=True)]
    height, width = (max(column.shape[axis] for column in columns) for axis in (2, 3))
    padded = [F.pad(column, (0, width - column.shape[3], 0, height - column.shape[2]), value=1) for column in columns]
    return make_grid(torch.stack(padded, 1).flatten(0, 1), nrow=len(padded), padding=3, pad_value=1)


def _column(module: Protector, clean: Tensor, stored: Tensor, mask: Tensor) -> Tensor:
    """Return the four pictures of an image, (4, 3, height, width), each pixel a square of whole pixels."""
    found = regions(mask[None], module.hparams.radius, module.hparams.classes)
    change = (stored.float() - clean.float()).abs().amax(0, keepdim=True) / module.hparams.epsilon
    painted = clean.float().expand(3, -1, -1) / 255
    for where, colour in ((found.band[0], BAND), (found.interior[0], INTERIOR)):
        painted = torch.where(where, 0.5 * painted + 0.5 * torch.tensor(colour)[:, None, None], painted)
    rows = [picture.expand(3, -1, -1) for picture in (clean.float() / 255, stored.float() / 255, change.clamp(max=1), painted)]
    shown = torch.stack(rows)[..., _part((mask > 0).any(1)), _part((mask > 0).any(0))]
    return F.interpolate(shown, scale_factor=max(1, -(-SIDE // shown.shape[2])), mode="nearest")


def _part(marked: Tensor) -> slice:
    """Return at most `LARGEST` places of an axis, around the middle of the marked ones."""
    places = marked.nonzero()
    middle = int(places.float().mean()) if len(places) else len(marked) // 2
    first = max(0, min(middle - LARGEST // 2, len(marked) - LARGEST))
    return slice(first, first + LARGEST)
