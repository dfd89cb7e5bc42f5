"""Short trainings without the command line, and what every module owes."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from shared.quiet import quiet_trainer, silence


class Watch(L.Callback):
    """Notes the loss and the learning rate of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def fit_quietly(module: L.LightningModule, data: L.LightningDataModule, epochs: int = 1, clip: float | None = None, **options: Any) -> L.Trainer:
    """Train on the CPU without a word; returns the Trainer."""
    trainer = quiet_trainer(epochs, clip, accelerator="cpu", **options)
    with silence():
        trainer.fit(module, datamodule=data)
    return trainer


def check_seeded(build: Callable[[int], torch.nn.Module]) -> None:
    """Check that a network's weights are a function of its seed alone, and that building it leaves the global generator alone."""
    torch.manual_seed(1)
    first = build(3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    again, other = build(3).state_dict(), build(4).state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in again.items())
    assert not all(torch.equal(weight, first[name]) for name, weight in other.items())
