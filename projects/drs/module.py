"""Training of the branches' classifiers under noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from projects.drs.losses import consistency, cross_entropy, negative_margin, noised_logits, smooth_adversary, smoothmix
from projects.drs.model import DualClassifier
from projects.drs.splits import Embedding, SplitName, make_split
from shared.checkpoints import describe_mismatch, load_tensors
from shared.data.crops import crop_and_flip, draw_shifts
from shared.distributed import own_rows
from shared.seeding import generator

Recipe = Literal["gaussian", "consistency", "smoothmix", "smoothadv", "macer"]
BRANCH_NAMES = ("left", "right", "third", "fourth")


class DualSmoothing(L.LightningModule):
    """Trains a classifier of every sub-image under Gaussian noise: dual randomized smoothing, or randomized smoothing if `split` is whole.

    All branches are trained in one run, each by its own loss; their networks share nothing unless `shared_network` is set. Noise is drawn for the
    global batch from (seed, step), and each process takes its rows.

    Args:
        split: whole (randomized smoothing), checkerboard, checkerboard_ref (for the published weights), column, row, block, random or phases (four).
        split_seed: seed of the split `random`.
        embedding: packed_nearest (enlarged by the nearest pixel), checkerboard_maxpool (in place, plus the block's maximum) or packed_native.
        backbone: small, resnet20, resnet110 (CIFAR's) or a timm model such as resnet50.
        size: side of the images in pixels.
        channels: channels of the images.
        classes: number of classes K.
        statistics: mean and deviation that images are normalised by, after the noise: half, digits, cifar10 or imagenet.
        ensemble: networks of each branch, trained apart; their logits are averaged.
        shared_network: one network for all branches.
        sigma: standard deviation of the noise of each branch, in units of [0, 1] images.
        weights: file that training starts from: weights of this whole module, or of one network of whole images, for all branches to start from.
        recipe: gaussian, consistency, smoothmix, smoothadv or macer.
        draws: noises of each image and step; published: gaussian 1, consistency 2 (4 under dual smoothing), smoothmix 2, smoothadv 1 to 8.
        regularisation: weight of the recipe's second term: lambda of consistency (15), eta of smoothmix (5), 0.5 of macer.
        entropy: weight of the mean prediction's entropy in consistency.
        attack_steps: steps T to an adversary, for smoothmix and smoothadv.
        attack_size: l2 length of a step of smoothmix; smoothadv's is 2 epsilon / T.
        attack_epsilon: radius of smoothadv's l2 ball; grows from 0 over the warm-up.
        one_step: smoothmix: take the images after the first step, of at most `attack_size`, for the images from the end of the warm-up on.
        warmup_epochs: epochs over which eta of smoothmix, or smoothadv's ball, grows.
        augment: none, or crop (CIFAR's: random crops with 4 pixels of padding, and mirroring).
        optimizer: adam or sgd (momentum 0.9).
        lr: learning rate.
        weight_decay: weight decay.
        schedule: multistep (times gamma at each milestone) or onecycle.
        milestones: epochs after which the learning rate falls.
        gamma: factor by which it falls.
        seed: seed of weights, noise and augmentation.
    """

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        split: SplitName = "checkerboard",
        split_seed: int = 0,
        embedding: Embedding = "packed_nearest",
        backbone: str = "small",
        size: int = 16,
        channels: int = 1,
        classes: int = 10,
        statistics: str = "half",
        ensemble: int = 1,
        shared_network: bool = False,
        sigma: float = 0.35355339,
        weights: str | None = None,
        recipe: Recipe = "gaussian",
        draws: int = 1,
        regularisation: float = 15.0,
        entropy: float = 0.75,
        attack_steps: int = 4,
        attack_size: float = 1.0,
        attack_epsilon: float = 1.0,
        one_step: bool = False,
        warmup_epochs: int = 10,
        augment: Literal["none", "crop"] = "none",
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["multistep", "onecycle"] = "multistep",
        milestones: list[int] | None = None,
        gamma: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check()
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        parts = make_split(split, size, size, split_seed)
        self.net = DualClassifier(parts, embedding, backbone, classes, channels, statistics, ensemble, shared_network)
        torch.set_rng_state(state)
        self.class_names: list[str] = []  # of the data that it was trained on
        self.val_accuracy, self.test_accuracy = (MulticlassAccuracy(classes, average="micro") for _ in range(2))
        self.test_branches = nn.ModuleList(MulticlassAccuracy(classes, average="micro") for _ in range(len(parts)))

    def _check(self) -> None:
        given = self.hparams
        if given.sigma <= 0:
            raise ValueError(f"model.sigma must be positive, got {given.sigma}")
        if given.recipe not in ("gaussian", "consistency", "smoothmix", "smoothadv", "macer"):
            raise ValueError(f"model.recipe must be gaussian, consistency, smoothmix, smoothadv or macer, got {given.recipe!r}")
        if given.draws < 1 or (given.recipe in ("consistency", "smoothmix") and given.draws < 2):
            raise ValueError(f"model.draws must be at least 1, and 2 for consistency and smoothmix, got {given.draws} for {given.recipe}")
        if given.recipe in ("smoothmix", "smoothadv") and given.attack_steps < 1:
            raise ValueError(f"model.attack_steps must be at least 1 for {given.recipe}, got {given.attack_steps}")

    def forward(self, noised: Tensor, branch: int) -> Tensor:
        """Return a branch's (B, K) logits for (B, C, h, w) noised sub-images."""
        return self.net.classifier(branch)(noised)

    def setup(self, stage: str) -> None:
        """Load the weights to start from; what was trained or begun already needs that file no more."""
        if stage == "fit" and self.hparams.weights is not None and not self.trainer.ckpt_path:
            load_start(self.net, self.hparams.weights)

    def on_fit_start(self) -> None:
        if (data := getattr(self.trainer, "datamodule", None)) is not None:
            self.class_names = []
            self.check_classes(data.class_names)
            self.class_names = list(data.class_names)

    def on_test_start(self) -> None:
        if (data := getattr(self.trainer, "datamodule", None)) is not None:
            self.check_classes(data.class_names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = self.class_names

    def check_classes(self, found: Sequence[str]) -> None:
        """Check that labels of data with these class names mean what the networks have learned.

        Raises:
            ValueError: if there are more or fewer classes, or others than in training.
        """
        if len(found) != self.hparams.classes:
            raise ValueError(f"the data has {len(found)} classes: set model.classes to that, not {self.hparams.classes}")
        if self.class_names and list(found) != self.class_names:
            differing = [f"{theirs} for {ours}" for theirs, ours in zip(found, self.class_names, strict=True) if theirs != ours]
            raise ValueError(
                f"the model learned other classes ({', '.join(differing[:8])}): its labels are not these; rename them, or take other data"
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch["image"], batch["label"]
        total = len(images) * self.trainer.world_size
        random = generator(self.hparams.seed, "train", self.global_step, batch_idx, device=self.device)
        if self.hparams.augment == "crop":
            images = crop_and_flip(images, own_rows(draw_shifts(total, 4, random)), 4)
        losses = []
        for branch, classify in self.net.members():
            part = self.net.split.take(branch)(images)
            drawn = torch.randn(total, self.hparams.draws, *part.shape[1:], generator=random, device=self.device)
            losses.append(self._loss(classify, part, labels, self.hparams.sigma * own_rows(drawn).transpose(0, 1), random))
        loss = torch.stack(losses).sum()
        self.log("train/loss", loss / len(losses), prog_bar=True, batch_size=len(images), sync_dist=True)
        return loss

    def _loss(self, classify: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, random: torch.Generator) -> Tensor:
        """Return the recipe's loss of one network, for (B, C, h, w) sub-images and (m, B, C, h, w) noise."""
        given, warm = self.hparams, min(1.0, (self.current_epoch + 1) / max(1, self.hparams.warmup_epochs))
        if given.recipe == "smoothadv":
            epsilon = given.attack_epsilon * warm
            path = self._attack(classify, images, labels, noise, 2 * epsilon / given.attack_steps, epsilon)
            return cross_entropy(noised_logits(classify, path[-1], noise), labels)
        path = []
        if given.recipe == "smoothmix":
            path = self._attack(classify, images, labels, noise, given.attack_size, None)
            if given.one_step and warm >= 1:
                images = path[0]
        logits = noised_logits(classify, images, noise)
        loss = cross_entropy(logits, labels)
        if given.recipe == "consistency":
            return loss + consistency(logits, given.regularisation, given.entropy)
        if given.recipe == "macer":
            return loss + given.regularisation * negative_margin(logits, labels)
        if given.recipe == "smoothmix":
            shares = own_rows(torch.rand(len(images) * self.trainer.world_size, generator=random, device=self.device) / 2)
            return loss + warm * given.regularisation * smoothmix(classify, logits, images, path[-1], labels, noise, shares)
        return loss

    def _attack(self, classify: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, step: float, epsilon: float | None) -> list[Tensor]:
        """Search adversaries in evaluation mode, as published: running statistics are to be those of training batches."""
        classify.eval()
        path = smooth_adversary(classify, images, labels, noise, self.hparams.attack_steps, step, epsilon)
        classify.train()
        return path

    def _noised_probabilities(self, batch: dict[str, Tensor], stage: str) -> list[Tensor]:
        """Return every branch's (B, K) probabilities under one noise, which belongs to the sample: the same for any batches and processes."""
        found = []
        for branch in range(len(self.net.split)):
            part = self.net.split.take(branch)(batch["image"])
            drawn = [torch.randn(part.shape[1:], generator=generator(self.hparams.seed, stage, branch, index)) for index in batch["index"].tolist()]
            found.append(self(part + self.hparams.sigma * torch.stack(drawn).to(part), branch).softmax(1))
        return found

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        fused = torch.stack(self._noised_probabilities(batch, "val")).mean(0)
        self.val_accuracy.update(fused, batch["label"])
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(fused))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        each = self._noised_probabilities(batch, "test")
        self.test_accuracy.update(torch.stack(each).mean(0), batch["label"])
        self.log("test/accuracy", self.test_accuracy, batch_size=len(each[0]))
        metrics = cast(list[MulticlassAccuracy], list(self.test_branches))
        for name, metric, probabilities in zip(BRANCH_NAMES, metrics, each, strict=False):
            metric.update(probabilities, batch["label"])
            self.log(f"test/accuracy_{name}", metric, batch_size=len(probabilities))

    def configure_callbacks(self) -> list[L.Callback]:
        from projects.drs.callbacks import SubImages

        return [SubImages()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        options = {"lr": given.lr, "weight_decay": given.weight_decay}
        parameters = self.net.parameters()
        optimizer = torch.optim.Adam(parameters, **options) if given.optimizer == "adam" else torch.optim.SGD(parameters, momentum=0.9, **options)
        if given.schedule == "onecycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, int(self.trainer.estimated_stepping_batches))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, given.milestones or [], given.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": steps, "interval": "epoch"}}


def load_start(net: DualClassifier, path: str | Path) -> None:
    """Load weights to start from: those of a whole module (a checkpoint of `fit`, or what `convert` wrote), or of one network for all branches.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the weights fit neither; the message lists how they differ.
    """
    tensors = {name.removeprefix("net."): tensor for name, tensor in load_tensors(path).items() if not name.startswith(("val_", "test_"))}
    if not describe_mismatch(net.state_dict(), tensors):
        net.load_state_dict(tensors)
        return
    single = {name.removeprefix("networks.0."): tensor for name, tensor in tensors.items()}
    if differences := describe_mismatch(net.networks[0].state_dict(), single):
        raise ValueError(f"the weights in {path} fit neither this model nor one of its networks; beside one network:\n{differences}")
    for network in net.networks:
        network.load_state_dict(single)
