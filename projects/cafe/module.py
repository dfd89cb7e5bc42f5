"""The federated classifier under Lightning: what is trained, by uploads that a defence may have changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from projects.cafe.closed import DEAD
from projects.cafe.federation import CHUNK, Federation, adam, update, uploads
from projects.cafe.nets import BottomNet, ServerNet, conv_bottom, settle_norms, tabular_bottom
from projects.cafe.protection import NONE, Protection
from shared.runs import digest
from shared.seeding import derive_seed

if TYPE_CHECKING:
    from projects.cafe.data import FederatedRecords

SETTLING = 512
"""Records that batch norms are set by."""


class FederatedClassifier(L.LightningModule):
    """A bottom net a party and the server's linear top net, trained by what the parties upload.

    Args:
        shapes: shape of a record's block at each party; the data tell it.
        classes: number of classes; the data tell it.
        bottom: the parties' nets as file.py:function, a function of a block's shape and a seed that returns a torch module, which is run; null builds
            them by the options below.
        widths: channels of the stages of 5 x 5 convolution and pooling; not used for tables.
        stages: number of stages, the last width repeated; null is one for each width.
        first: outputs of the first fully connected layer, d2.
        hidden: outputs of the second; null is half of first.
        outputs: outputs of each party's net.
        batch_norm: puts batch norms after convolutions, with fixed statistics.
        rectified: puts a ReLU after the outputs, as the reference does; null is true for pictures and false for tables.
        reference_loss: applies softmax twice, as the reference does.
        lr: learning rate of Adam.
        defence: what parties do to their gradients: none, fake:mode=pair, noise:std=1e-3, prune:keep=0.1, private:clip=1,noise_multiplier=1.
        seed: of the nets' weights and the defence.

    Attributes:
        federation: the model.
        protection: the defence.
        norms: (parties, N) of v of the attacked records, at each validation.
        validations: epochs that were over then.
    """

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        shapes: list[list[int]],
        classes: int,
        bottom: str | None = None,
        widths: list[int] = [32, 64],  # noqa: B006 - never changed
        stages: int | None = None,
        first: int = 64,
        hidden: int | None = None,
        outputs: int = 10,
        batch_norm: bool = False,
        rectified: bool | None = None,
        reference_loss: bool = False,
        lr: float = 1e-3,
        defence: str = NONE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shapes = [list(shape) for shape in shapes]
        self.save_hyperparameters()
        if lr <= 0:
            raise ValueError(f"model.lr must be positive, got {lr}")
        self.automatic_optimization = False  # what is taken a step with are uploads, not the gradient of a loss
        self.protection = Protection.parse(defence, seed)
        self.federation = Federation(self._bottoms(), ServerNet(len(shapes), self._outputs, classes, seed), reference_loss).eval()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.norms: list[Tensor] = []
        self.validations: list[float] = []
        self._settled = False

    def _bottoms(self) -> list[BottomNet]:
        own, self._outputs = self.hparams, self.hparams.outputs
        shapes = [tuple(shape) for shape in own.shapes]
        if own.bottom is not None:
            from projects.cafe.foreign import build_bottoms

            bottoms = build_bottoms(own.bottom, shapes, own.seed)
            with torch.no_grad():
                self._outputs = bottoms[0](torch.zeros(1, *shapes[0])).shape[1]
            return bottoms
        return [self._bottom(shape, derive_seed(own.seed, "party", party)) for party, shape in enumerate(shapes)]

    def _bottom(self, shape: Sequence[int], seed: int) -> BottomNet:
        own = self.hparams
        is_picture = len(shape) == 3
        rectified = is_picture if own.rectified is None else own.rectified
        if own.batch_norm and not is_picture:
            raise ValueError("model.batch_norm is for pictures, whose nets have convolutions: leave it out with tables")
        if not is_picture:
            hidden = own.first // 2 if own.hidden is None else own.hidden
            return tabular_bottom(math.prod(shape), (own.first, hidden), own.outputs, seed, rectified)
        channels, *size = shape
        return conv_bottom(channels, (size[0], size[1]), own.widths, own.first, own.outputs, seed, own.stages, own.hidden, own.batch_norm, rectified)

    def net_digest(self) -> str:
        """Return the digest of the file that builds the parties' own nets, empty without one: edited code can have the same weights."""
        file = Path(str(self.hparams.bottom or "").rpartition(":")[0])
        return digest(file) if file.is_file() else ""

    def setup(self, stage: str | None = None) -> None:
        """Fix the statistics of batch norms by training records, once."""
        self.settle(self.trainer.datamodule)  # type: ignore[attr-defined]

    def settle(self, data: FederatedRecords) -> None:
        """Set batch norms, if there are any, to the statistics of training records, unless a checkpoint has set them."""
        if self.hparams.batch_norm and self.hparams.bottom is None and not self._settled:
            data.setup()
            some = data.train_records.take(torch.arange(min(SETTLING, len(data.train_records))))
            for bottom, block in zip(self.federation.bottoms, data.blocks(some.values()), strict=True):
                settle_norms(bottom, block)
        self._settled = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["norms"], checkpoint["validations"] = self.norms, self.validations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.norms, self.validations = list(checkpoint["norms"]), list(checkpoint["validations"])
        self._settled = True

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Map one (B, ...) block a party to (B, classes) logits."""
        return self.federation(blocks)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        blocks, labels, number = batch["blocks"], batch["label"], self.global_step
        if number % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_batch(blocks, labels)
        uploaded = uploads(self.federation, blocks, labels, number, self.protection.defence, self.protection.local)
        update(self.federation, cast("torch.optim.Optimizer", self.optimizers()), uploaded)

    @torch.no_grad()
    def _log_batch(self, blocks: Sequence[Tensor], labels: Tensor) -> None:
        logits = self(blocks)
        values = {"train/loss": self.federation.loss(logits, labels), "train/accuracy": (logits.argmax(1) == labels).float().mean()}
        self.log_dict(values, batch_size=len(labels), prog_bar=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log how many of the attacked records still leave a gradient: what the loss no longer moves cannot be recovered."""
        data: FederatedRecords = self.trainer.datamodule  # type: ignore[attr-defined]
        norms = torch.cat([self._norms(data, rows) for rows in torch.arange(len(data.attacked)).split(CHUNK)], dim=1)
        first = self.norms[0] if self.norms else norms
        self.log("val/readable", float((norms > DEAD * first.max()).all(0).double().mean()))
        if self.trainer.sanity_checking and self.norms:
            return  # a checkpoint has restored them, those of this epoch too
        self.norms.append(norms)
        self.validations.append(self.current_epoch + float(not self.trainer.sanity_checking))

    def _norms(self, data: FederatedRecords, rows: Tensor) -> Tensor:
        """Return the norms of v of some attacked records, (parties, n)."""
        some = data.attacked.take(rows)
        found = self.federation.middle_gradients([block.to(self.device) for block in data.blocks(some.values())], some.labels.to(self.device))
        return torch.stack([gradients.norm(dim=1) for gradients in found]).cpu()

    def on_fit_end(self) -> None:
        """Draw how the gradients that records leave fade."""
        if self.norms:
            from projects.cafe.figures import draw_norms
            from shared.loggers import log_figure

            log_figure(self.trainer, "gradients", draw_norms(self.norms, self.validations, DEAD * float(self.norms[0].max())))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        logits, labels = self(batch["blocks"]), batch["label"]
        self.accuracy.update(logits, labels)
        self.log(f"{stage}/accuracy", self.accuracy, batch_size=len(labels), prog_bar=True)
        self.log(f"{stage}/loss", self.federation.loss(logits, labels), batch_size=len(labels))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return {"index": batch["index"], "label": batch["label"], "probabilities": self(batch["blocks"]).softmax(1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(self.federation, self.hparams.lr)
