"""Pictures of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import lightning as L
import torch
from torch import Tensor

from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.sampling import sample_many
from shared.loggers import log_image

if TYPE_CHECKING:
    from projects.diff_cleanse.module import DiffusionTraining

SHOWN = 32


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
        model = cast("DiffusionTraining", pl_module)
        self._draw(trainer, model, "samples_clean", None)
        if model.hparams.attack != "none":
            self._draw(trainer, model, "samples_triggered", lambda eps: model.schedule.starting_noise(eps, model.trigger, "exact"))

    @staticmethod
    def _draw(trainer: L.Trainer, model: DiffusionTraining, name: str, start: Callable[[Tensor], Tensor] | None) -> None:
        channels, height, width = model.target.shape
        options = {"device": model.device, "start": start, "steps": min(model.hparams.eval_steps, len(model.schedule))}
        [images] = sample_many(model.ema, model.schedule, range(SHOWN), (channels, height, width), SHOWN, **options)
        log_image(trainer, name, picture_grid(to_unit_range(images)), step=trainer.global_step)
