"""Training and testing of a found network, or of a hand-made one in its place."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from projects.forgery_nas.baselines import Baseline, build_baseline
from projects.forgery_nas.genotype import Genotype, load_genotype
from projects.forgery_nas.maps import map_sheet
from projects.forgery_nas.metrics import batch_auroc
from projects.forgery_nas.network import ForgeryNet, Head
from projects.forgery_nas.norms import measure_norms
from projects.forgery_nas.options import SearchOptions
from shared.forgery.detection import Batch, ForgeryDetection
from shared.seeding import derive_seed, generator

SEARCHED = "searched"


def _read(genotype: str) -> Genotype:
    return Genotype.from_json(genotype) if genotype.lstrip().startswith("{") else load_genotype(genotype)


class ForgeryNetTraining(ForgeryDetection):
    """Trains a network of searched cells to tell forged faces from real ones, or a hand-made network to compare with.

    Its statistics of batch norms are measured anew on training frames before each validation: running averages begin at a variance of 1, while that
    of the features is about 1e-3, and would need some 80 steps to forget it.

    Args:
        network: searched, or a hand-made one: meso4, mesoinception4, or timm's name of a convolutional network, such as legacy_xception,
            efficientnet_b0 or mobilenetv3_small_100. Only size, weights, norm_batches, seed and the options of SGD matter to those.
        genotype: the cells: released (the authors'), a JSON file, or JSON itself.
        channels: C of the first cell's nodes; it doubles at each reduction cell.
        layers: number of cells.
        reductions: numbers of the reduction cells, from 0; null for the last one of every quarter, or half in networks of fewer than 8 cells.
        head: last (the authors' code) or pyramid (all stages, merged from coarse to fine).
        drop_path: probability of dropping an operation, which rises to this from 0 during training.
        auxiliary: whether an auxiliary head helps in training; the last features must be 8 x 8 or larger, but for the pyramid's.
        auxiliary_weight: weight of its loss.
        weights: file of weights of a network of timm; null for random ones.
        size: side of the images in pixels.
        lr: learning rate of SGD, which falls to 0 by a cosine.
        momentum: of SGD.
        weight_decay: L2 regularisation of SGD.
        norm_batches: batches of training frames that statistics of norms are measured on; 0 leaves their running averages.
        seed: seed of the weights.
        search: options of the verb search, see `SearchOptions`; they do not matter to training.
    """

    def __init__(
        self,
        network: str = SEARCHED,
        genotype: str = "released",
        channels: int = 36,
        layers: int = 12,
        reductions: list[int] | None = None,
        head: Head = "last",
        drop_path: float = 0.2,
        auxiliary: bool = False,
        auxiliary_weight: float = 0.4,
        weights: str | None = None,
        size: int = 64,
        lr: float = 0.025,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        norm_batches: int = 20,
        seed: int = 0,
        search: SearchOptions = SearchOptions(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__()
        self.search = search
        if lr <= 0 or min(momentum, weight_decay, auxiliary_weight, norm_batches) < 0:
            raise ValueError("model: lr is positive, and momentum, weight_decay, auxiliary_weight and norm_batches are 0 or more")
        if network == SEARCHED and weights is not None:
            raise ValueError("model.weights is for networks of timm: leave it out of searched ones")
        self.save_hyperparameters(ignore="search")
        found = _read(genotype) if network == SEARCHED else None
        if found:
            self.hparams.genotype = found.to_json()  # so that a checkpoint needs no other file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "forgery_nas weights"))
            self.net: ForgeryNet | Baseline = (
                ForgeryNet(found, channels, layers, drop_path=drop_path, auxiliary=auxiliary, head=head, reductions=reductions)
                if found
                else build_baseline(network, size, weights)
            )
        self._settled_at = 0  # the step at which the norms' statistics were last measured

    @property
    def genotype(self) -> Genotype | None:
        """The cells; none of a hand-made network."""
        return Genotype.from_json(self.hparams.genotype) if isinstance(self.net, ForgeryNet) else None

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images, uint8 or floats in [0, 1], to (B,) probabilities of being fake, float32."""
        return self.net(images).float().softmax(1)[:, 1]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        labels, net = batch["label"], self.net
        torch.manual_seed(derive_seed(self.hparams.seed, "forgery_nas step", self.global_step, self.global_rank))  # a resumed run drops the same
        if isinstance(net, ForgeryNet):
            net.drop_path = self.hparams.drop_path * self.global_step / self.trainer.estimated_stepping_batches
        logits = net(batch["image"]).float()
        loss = F.cross_entropy(logits, labels)
        measured = {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}
        if isinstance(net, ForgeryNet) and net.auxiliary_logits is not None:
            auxiliary = torch.stack([F.cross_entropy(level.float(), labels) for level in net.auxiliary_logits]).mean()
            measured["auxiliary_loss"] = auxiliary
            loss = loss + self.hparams.auxiliary_weight * auxiliary
        self.log_dict({f"train/{name}": value.detach() for name, value in measured.items()}, batch_size=len(labels), sync_dist=True)
        return loss

    def on_fit_start(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and data.size != self.hparams.size:
            raise ValueError(f"the data have {data.size} pixels and the network is for {self.hparams.size}: set data.size and model.size alike")

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._settle()

    def on_train_end(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Measure the norms' statistics on frames that are drawn by the step, so that neither a resumed run nor another process has others.

        Raises:
            ValueError: if the training has diverged.
        """
        if self._settled_at == self.global_step:
            return
        self._settled_at = self.global_step
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters()):
            raise ValueError(f"the training diverged before step {self.global_step}: lower model.lr, or set trainer.gradient_clip_val")
        loader: Any = self.trainer.train_dataloader
        frames, batch_size = loader.dataset, loader.batch_size * self.trainer.world_size
        order = torch.randperm(len(frames), generator=generator(self.hparams.seed, "forgery_nas norms", self.global_step))
        keys = self.current_epoch * len(frames) + order[: self.hparams.norm_batches * batch_size]
        if len(keys):
            measure_norms(self.net, (frames.__getitems__(part.tolist())["image"].to(self.device) for part in keys.split(batch_size)))

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        batched = {name: batch_auroc(scored) for name, scored in self.tested().items()}
        for row in self.test_rows:
            row["batch_auroc"] = batched.get(row["set"], fmean(batched.values()))

    def explanation(self, images: Tensor) -> Tensor:
        """Return the images, and below each one what in the last cell's features speaks for a fake, see `map_sheet`."""
        return map_sheet(self.net, images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        optimizer = torch.optim.SGD(self.parameters(), given.lr, given.momentum, weight_decay=given.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
