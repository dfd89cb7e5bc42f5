"""Pictures that a training shows of what it has learnt so far."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from shared.loggers import log_image


def is_due(trainer: L.Trainer) -> bool:
    """Say after a validation whether this process shows pictures of it: the first one, after epochs that double in number, and after the last one."""
    epoch = trainer.current_epoch + 1
    return not trainer.sanity_checking and trainer.is_global_zero and (epoch & (epoch - 1) == 0 or epoch == trainer.max_epochs)


class ValidationExamples(L.Callback):
    """Logs a sheet of validation pictures as `examples`, whenever `is_due`; a subclass draws it."""

    def draw(self, module: Any, pictures: Any) -> Tensor:
        """Return the sheet, (3, H, W) in [0, 1], of a module and the validation set."""
        raise NotImplementedError

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_due(trainer):
            log_image(trainer, "examples", self.draw(pl_module, trainer.datamodule.val_set), trainer.current_epoch + 1)  # type: ignore[attr-defined]
