"""What modules do around their steps: schedules of the learning rate, weights that must be finite, and evaluation for a while."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

Schedule = Literal["step", "onecycle"]
"""The learning rate times a factor after every epoch; or up and down again once, over all steps."""


def scheduled(module: L.LightningModule, optimizer: torch.optim.Optimizer, schedule: Schedule, gamma: float) -> OptimizerLRScheduler:
    """Return what `configure_optimizers` returns for an optimiser of one learning rate.

    Args:
        module: in training, with its trainer.
        optimizer: of its parameters.
        schedule: see `Schedule`.
        gamma: the factor of `step`.

    Raises:
        ValueError: if the training has no end, which `onecycle` falls to.
    """
    if schedule == "step":
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma)}
    steps = module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError("model.schedule onecycle falls to its end: set trainer.max_epochs or trainer.max_steps, or choose the schedule step")
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def check_finite(module: L.LightningModule, option: str = "model.lr") -> None:
    """Refuse to judge by, or to keep, weights that are no numbers.

    Raises:
        ValueError: if the training has diverged.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        raise ValueError(f"the training diverged before step {module.global_step}: lower {option}, or set trainer.gradient_clip_val")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Set a network to evaluation for a while, and each part back: in training mode norms take the batch's statistics, and keep them."""
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training
