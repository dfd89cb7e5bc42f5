"""The vertical federation under Lightning: its nets, and the centralised baseline's training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

from projects.vafl import bottoms, heads
from projects.vafl.federation import Setting
from projects.vafl.model import VerticalModel
from projects.vafl.perturbed import Noise
from projects.vafl.settings import Delays, Protection, Protocol
from projects.vafl.steps import StepSizes
from shared.seeding import derive_seed

VIEW_OUTPUTS, SERIES_OUTPUTS, MLP_OUTPUTS = 512, 16, 16
"""Entries of an embedding where none are given: of a view's vector, of a series, of an MLP (the last is ours)."""


class VerticalFederation(L.LightningModule):
    """A net at each client and a head at the server, trained by whoever comes, in simulated time or in processes of their own.

    Args:
        shapes: shape of a record's block at each client; the data tell it.
        classes: number of classes; the data tell it.
        bottom: the clients' nets: linear, mlp, views (convolutions for (V, C, H, W) blocks), series (LSTMs for (T, F) blocks), or auto.
        embedding: entries p_m of a client's embedding (of a view's vector, for views); null is the number of classes for head sum, else 512 for views
            and 16 for the others.
        hidden: widths below the last layer of an mlp, or channels of the convolutions for views; null is none, or the paper's six.
        head: the server's net: sum (of the embeddings and a bias), concat (layers on all of them), weighted (layers on a weighted sum of equally long
            vectors), or auto: sum for linear nets, weighted for views, else concat.
        head_hidden: widths of the head's hidden layers; null is 256 and 100 for weighted, else none.
        lr: eta_m, step size of the clients.
        server_lr: eta_0, step size of the server; null is lr t / M where it waits for t of M clients.
        step_rule: constant, or how step sizes change: sqrt:total=10000, decay:offset=100, stale:power=0.5.
        l2: coefficient of each client's regulariser, l2/2 |theta_m|^2.
        protocol: who waits for whom, and what is uploaded.
        delays: how long things take.
        protection: what hides the records.
        seconds: simulated (or, in processes, real) seconds of training; null is until trainer.max_steps updates of the server.
        every: such seconds between two evaluations.
        seed: of the nets' weights, the batches, the delays and the simulated noise.

    Attributes:
        model: the nets.
        absent: (sum of p_m,) mean embedding of the training records, which stands for a client that is missing at a test.
    """

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name
    absent: Tensor

    def __init__(
        self,
        shapes: list[list[int]],
        classes: int,
        bottom: bottoms.Kind = "auto",
        embedding: int | None = None,
        hidden: list[int] | None = None,
        head: heads.Kind | str = "auto",
        head_hidden: list[int] | None = None,
        lr: float = 2.0,
        server_lr: float | None = None,
        step_rule: str = "constant",
        l2: float = 1e-3,
        protocol: Protocol = Protocol(),  # noqa: B008 - frozen
        delays: Delays = Delays(),  # noqa: B008
        protection: Protection = Protection(),  # noqa: B008
        seconds: float | None = 100.0,
        every: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["protocol", "delays", "protection"])
        self.protocol, self.delays, self.protection = protocol, delays, protection
        for name in ("lr", "every"):
            if not 0 < self.hparams[name] < math.inf:
                raise ValueError(f"model.{name} must be positive, got {self.hparams[name]}")
        if seconds is not None and seconds <= 0:
            raise ValueError(f"model.seconds must be positive, got {seconds}: leave it null to train until trainer.max_steps")
        if l2 < 0:
            raise ValueError(f"model.l2 must be 0 or more, got {l2}")
        if protocol.algorithm == "centralised" and protection.epsilon is not None:
            raise ValueError("protection.epsilon is a budget of uploads, of which centralised training has none: leave it null")
        self.classes = classes
        self.model = build_model(shapes, classes, bottom, embedding, hidden, head, head_hidden, protection.clip, seed)
        self.register_buffer("absent", torch.zeros(sum(self.model.head.widths)))
        self.metrics = metrics(classes, "val/")
        self.test_metrics = self.metrics.clone(prefix="test/")
        self.noisy_metrics = metrics(classes, "test/noisy_")
        self.missing_metrics = torch.nn.ModuleList(metrics(classes, f"test/without_{party}_") for party in range(len(shapes)))

    def setting(self, batch: int) -> Setting:
        """Return what all parts agree on, with `batch` records a client's batch."""
        own = self.hparams
        return Setting(self.protocol, self.delays, self.protection, batch, own.lr, own.server_lr, own.step_rule, own.l2, own.seed)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Map one (B, ...) block a client to (B, classes) logits, without noise."""
        return self.model(blocks)

    # ---- the centralised baseline

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        noises = self._noises("train", self.global_step)
        logits = self.model.head(self.model.embed(batch["blocks"], noises))
        loss = F.cross_entropy(logits, batch["label"])
        self.log("train/loss", loss, batch_size=len(batch["label"]), prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        own = self.hparams
        rules = [StepSizes.parse(own.step_rule, lr) for lr in (own.lr, own.lr if own.server_lr is None else own.server_lr)]
        groups = [{"params": list(self.model.bottoms.parameters()), "weight_decay": own.l2}, {"params": list(self.model.head.parameters())}]
        optimiser = torch.optim.SGD(groups, lr=1.0)  # the rules give step sizes, not factors: `cap` of sqrt is one, too
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, [rule.at for rule in rules])
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Forget the mean embedding, which the weights' next test finds anew."""
        self.absent.zero_()

    def on_test_start(self) -> None:
        """After a centralised training, whose checkpoints are written before it ends, find the mean embedding of the training records."""
        if (data := self.trainer.datamodule) is not None:  # type: ignore[attr-defined]
            self.ensure_absent(data.train.blocks)

    def ensure_absent(self, blocks: Sequence[Tensor]) -> None:
        """Set `absent` by these training records, unless it is set."""
        if not self.absent.any():
            self.keep_absent([block.to(self.device) for block in blocks])

    @torch.no_grad()
    def keep_absent(self, blocks: Sequence[Tensor]) -> None:
        """Set `absent` to the mean embedding of these training records."""
        rows = torch.arange(len(blocks[0])).split(1024)
        self.absent.copy_(torch.cat([self.model.embed([block[part] for block in blocks]) for part in rows]).mean(0))

    def embed_some(self, blocks: Sequence[Tensor | None]) -> Tensor:
        """Return the embeddings of all clients side by side, (B, sum of p_m), where `absent` stands for those whose block is None."""
        count = next(len(block) for block in blocks if block is not None)
        shares = self.absent.split(self.model.head.widths)
        parts = zip(self.model.bottoms, blocks, shares, strict=True)
        return torch.cat([share.expand(count, -1) if block is None else bottom(block) for bottom, block, share in parts], dim=1)

    # ---- evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._judge(self.metrics, self(batch["blocks"]), batch["label"])

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        blocks, labels = batch["blocks"], batch["label"]
        embeddings = self.model.embed(blocks)
        logits = self.model.head(embeddings)
        self._judge(self.test_metrics, logits, labels)
        self.log("test/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        if (noises := self._noises("test", batch_idx)) is not None:
            self._judge(self.noisy_metrics, self.model.head(self.model.embed(blocks, noises)), labels)
        ends = torch.tensor(self.model.head.widths).cumsum(0).tolist()
        for end, width, own in zip(ends, self.model.head.widths, self.missing_metrics, strict=True):
            without = embeddings.clone()
            without[:, end - width : end] = self.absent[end - width : end]
            self._judge(own, self.model.head(without), labels)  # type: ignore[arg-type]

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return {"index": batch["index"], "label": batch["label"], "probabilities": self(batch["blocks"]).softmax(1)}

    def _judge(self, collection: MetricCollection, logits: Tensor, labels: Tensor) -> None:
        update(collection, logits, labels)
        self.log_dict(dict(collection.items()), batch_size=len(labels), prog_bar=collection.prefix == "val/")

    def _noises(self, what: str, number: int) -> list[Noise | None] | None:
        """Return a fresh noise for each client, another one in each process, or None where the setting has none."""
        own, parties = self.protection, range(len(self.model.bottoms))
        key = (what, number, self.global_rank) if self.global_rank else (what, number)
        return [own.noise(self.hparams.seed, "noise", party, *key) for party in parties] if own.is_noisy else None


def build_model(
    shapes: Sequence[Sequence[int]],
    classes: int,
    bottom: bottoms.Kind,
    embedding: int | None,
    hidden: Sequence[int] | None,
    head: str,
    head_hidden: Sequence[int] | None,
    clip: float | None,
    seed: int,
) -> VerticalModel:
    """Build the nets of all parts; see `VerticalFederation` for the arguments, and the errors that they raise."""
    kind = bottoms.kind_of(shapes[0], hidden or ()) if bottom == "auto" else bottom
    if head == "auto":
        head = {"linear": "sum", "views": "weighted"}.get(kind, "concat")
    usual = classes if head == "sum" else {"views": VIEW_OUTPUTS, "series": SERIES_OUTPUTS}.get(kind, MLP_OUTPUTS)
    outputs = embedding or usual
    nets = [bottoms.build_bottom(kind, shape, outputs, hidden or (), derive_seed(seed, "client", party), clip) for party, shape in enumerate(shapes)]
    layers = ((256, 100) if head == "weighted" else ()) if head_hidden is None else head_hidden
    return VerticalModel(nets, heads.build_head(head, [net.outputs for net in nets], classes, layers, seed, outputs))  # type: ignore[arg-type]


class Auroc(BinaryAUROC):
    """Area under the ROC curve; NaN of samples of one class, which have none (torchmetrics says 0, as of the worst order)."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as in BinaryAUROC itself
        seen = torch.cat([labels.flatten() for labels in self.target]) if isinstance(self.target, list) else self.target
        return super().compute() if len(seen.unique()) == 2 else torch.full((), torch.nan, device=seen.device)


def metrics(classes: int, prefix: str) -> MetricCollection:
    """Return the metrics of a stage: accuracy, and with two classes the area under the ROC curve, NaN if only one of them is there."""
    found: dict[str, Any] = {"accuracy": MulticlassAccuracy(classes, average="micro")}
    return MetricCollection(found | ({"auroc": Auroc()} if classes == 2 else {}), prefix=prefix, compute_groups=False)


def update(collection: MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Let each metric see a batch: classes by their probabilities."""
    probabilities = logits.softmax(1)
    for name, metric in collection.items(keep_base=True):
        metric.update(probabilities[:, 1] if name == "auroc" else probabilities, labels)
