"""The teacher under Lightning: an ordinary training, whose states `AnchorRecorder` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from projects.rco.judging import Collected, measures
from projects.rco.networks import build_network
from projects.rco.recipes import Recipe
from shared.losses import MarginSoftmax
from shared.seeding import derive_seed
from shared.training import check_finite

MARGIN, SCALE = 0.5, 64.0
"""Of the soft-max over faces (Deng et al. 2019)."""


class Teacher(L.LightningModule):
    """A network trained by labels: a classifier, or an embedding under a margin soft-max.

    Args:
        network: name of the network.
        shape: of an input.
        classes: K.
        embedding: length d of the embedding; None trains a classifier.
        recipe: how it is trained; its schedule is over the trainer's epochs.
        margin: m of the additive angular margin, in radians; of embeddings.
        scale: s, what their cosines are multiplied by.
        seed: of the weights.
    """

    def __init__(
        self,
        network: str,
        shape: list[int],
        classes: int,
        embedding: int | None = None,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        margin: float = MARGIN,
        scale: float = SCALE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "rco teacher"))
            self.net = build_network(network, shape, embedding or classes)
            self.head = None if embedding is None else MarginSoftmax(embedding, classes, "aam", margin, scale)
        self.about: dict[str, Any] = {
            "network": network,
            "shape": list(shape),
            "outputs": embedding or classes,
            "embeds": embedding is not None,
            "seed": seed,
        }
        """What a route tells of the network, so that it can be built again."""
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, ...) inputs to (B, K) logits or (B, d) embeddings."""
        return self.net(inputs)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        outputs, labels = self.net(batch["input"]), batch["label"]
        loss = F.cross_entropy(outputs if self.head is None else self.head(outputs, labels), labels)
        scores = (outputs if self.head is None else self.head.cosines(outputs)).detach()  # without the margin
        found = {"train/loss": loss.detach(), "train/accuracy": (scores.argmax(1) == labels).float().mean()}
        self.log_dict(found, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(labels))  # known when the recorder writes
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # before the epoch's state is stored
            check_finite(self, "model.teaching.lr")

    def on_validation_epoch_start(self) -> None:
        self.collected = Collected(self.classes)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        outputs = self.net(batch["input"])
        self.collected.add(batch, outputs if self.head is None else self.head.cosines(outputs))

    def on_validation_epoch_end(self) -> None:
        found = measures(self.collected.gathered(self.device))
        self.log_dict({f"val/{name}": value for name, value in found.items()}, prog_bar=True, sync_dist=True)  # equal in all processes

    def on_test_epoch_start(self) -> None:
        self.collected = Collected(self.about["outputs"])

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.collected.add(batch, self.net(batch["input"]))

    def on_test_epoch_end(self) -> None:
        protocol = None if self.head is None else self.trainer.datamodule.protocol  # type: ignore[attr-defined]
        found = measures(self.collected.gathered(self.device), protocol)
        self.log_dict({f"test/{name}": value for name, value in found.items()}, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, epochs = self.recipe.optimizer(self.parameters()), cast(int, self.trainer.max_epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: self.recipe.factor(epoch, epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(self, "model.teaching.lr")
