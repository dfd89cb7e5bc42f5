"""Pictures of training."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.sampling import sample_many
from shared.loggers import log_image


def picture_grid(images: Tensor, columns: int = 8, width: int = 480) -> Tensor:
    """Lay (N, C, H, W) pictures in [0, 1] out in rows, enlarged by whole pixels to about `width`; returns (C, H', W')."""
    from torchvision.utils import make_grid

    zoom = max(1, width // (columns * images.shape[-1]))
    enlarged = images.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=1.0)


class SampleGrid(L.Callback):
    """After each validation, draws the same 32 samples by DDIM: from clean noise, and under an attack from noise that wears the trigger."""

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        starts = {"samples_clean": None}
        if pl_module.hparams["attack"] != "none":
            starts["samples_triggered"] = lambda eps: pl_module.schedule.starting_noise(eps, pl_module.trigger, "exact")  # type: ignore[dict-item]
        shape = tuple(pl_module.target.shape)  # type: ignore[operator, union-attr]
        for name, start in starts.items():
            steps = pl_module.hparams["eval_steps"]
            drawn = sample_many(pl_module.ema, pl_module.schedule, range(32), shape, 32, seed=0, start=start, device=pl_module.device, steps=steps)  # type: ignore[arg-type]
            log_image(trainer, name, picture_grid(to_unit_range(next(drawn))), step=trainer.global_step)
