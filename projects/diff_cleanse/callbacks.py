"""Pictures of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import lightning as L
import torch

from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.pictures import picture_grid
from shared.loggers import log_image

if TYPE_CHECKING:
    from projects.diff_cleanse.module import DiffusionTraining

SHOWN = 32


class SampleGrid(L.Callback):
    """After each validation, draws the same 32 samples by DDIM: from clean noise, and under an attack from triggered noise (TrojDiff: by its own)."""

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        model = cast("DiffusionTraining", pl_module)
        self._draw(trainer, model, "samples_clean", is_triggered=False)
        if model.hparams.attack != "none":
            self._draw(trainer, model, "samples_triggered", is_triggered=True)

    @staticmethod
    def _draw(trainer: L.Trainer, model: DiffusionTraining, name: str, is_triggered: bool) -> None:
        from projects.diff_cleanse.tasks import Setting, Subject

        subject = Subject.of(model)
        setting = Setting(subject.sampler("ddim", is_triggered), min(model.hparams.eval_steps, len(model.schedule)), is_triggered)
        log_image(trainer, name, picture_grid(to_unit_range(subject.draw(setting, range(SHOWN), seed=0))), step=trainer.global_step)
