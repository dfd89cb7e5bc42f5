"""The mean of the weights after each of the last epochs, which peers test with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification
    from shared.runs import Run


class EpochAverage(Callback):
    """Ends a training with the mean of the network's weights after each of the last epochs; a run's `best.ckpt` is written anew with it.

    The statistics of batch norms are averaged too; whole numbers are those of the last epoch. Only the running mean is kept, and it travels with
    checkpoints. The weights after an epoch are taken when the next one begins, or the training ends: a training that goes on from a checkpoint
    of an epoch's last step, after which Lightning leaves out the end of that epoch, takes them all the same.

    Args:
        last: number of epochs, or all if there are fewer.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, last: int) -> None:
        if last < 1:
            raise ValueError(f"the mean is over one epoch or more, not {last}")
        self.last = last
        self.count = self.step = 0
        self.mean: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "step": self.step, "mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count, self.step = state_dict["count"], state_dict["step"]
        self.mean = {name: value.cpu() for name, value in state_dict["mean"].items()}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: SpeakerVerification) -> None:  # type: ignore[override]
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        left = math.ceil((trainer.estimated_stepping_batches - trainer.global_step) / steps)
        if trainer.global_step % steps == 0 and left < self.last:
            self._take(trainer, pl_module)

    on_train_start = on_train_epoch_start  # type: ignore[assignment]  # going on after an epoch's last step need not begin with the beginning of an epoch

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: SpeakerVerification) -> None:  # type: ignore[override]
        self._take(trainer, pl_module)
        if not self.count:
            return
        pl_module.net.load_state_dict(trainer.strategy.broadcast(self.mean))  # batch norms may have seen other recordings in other processes
        run: Run | None = getattr(trainer, "run", None)
        if run is not None:
            trainer.save_checkpoint(Path(run.checkpoints) / "best.ckpt")

    def _take(self, trainer: L.Trainer, pl_module: SpeakerVerification) -> None:
        """Put the present weights into the mean, unless they are the first ones or in it already."""
        if trainer.global_step == self.step:
            return
        self.count, self.step = self.count + 1, trainer.global_step
        present = {name: value.detach().to("cpu", copy=True) for name, value in pl_module.net.state_dict().items()}
        for name, value in self.mean.items():
            if value.is_floating_point():
                present[name] = value + (present[name] - value) / self.count
        self.mean = present
