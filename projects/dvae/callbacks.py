"""Pictures that are logged during training: what the D-VAE takes for the picture, and what for the perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor

from projects.dvae.pictures import SHOWN, around_grey, sheet
from shared.loggers import log_image
from shared.training import evaluating

if TYPE_CHECKING:
    from projects.dvae.module import Purifier


class Separations(L.Callback):
    """Logs at the end of each stage a few images in columns: the image, x̂, p̂, the image less p̂, and where known the clean image and p."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Purifier) -> None:  # type: ignore[override]
        stage, inner = pl_module.stage_of(trainer.current_epoch)
        if inner != pl_module.hparams["epochs"][stage] - 1 or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        batch = next(iter(data.ordered_loader()))
        batch = {name: value[:SHOWN].to(pl_module.device) for name, value in batch.items()}
        with evaluating(pl_module):
            log_image(trainer, f"separation_{stage + 1}", separation_sheet(pl_module, batch, stage))


@torch.no_grad()
def separation_sheet(module: Purifier, batch: dict[str, Tensor], stage: int) -> Tensor:
    """Return a sheet of a batch after `stage`, from 0."""
    from projects.dvae.purification import sample_noise, subtract_stages

    net, seed = module.stages[stage], module.hparams["seed"]
    images = subtract_stages(module.stages[:stage], batch["image"], batch["label"], batch["index"], seed)
    found = net(images, batch["label"], sample_noise(net, images, batch["index"], seed, "purify", stage))
    rows = [images, found.reconstruction, around_grey(found.perturbation), images - found.perturbation]
    if "clean" in batch:
        rows += [batch["clean"], around_grey(batch["image"] - batch["clean"])]
    return sheet(rows)
