"""Training of a victim on a set, with a defence, and what it is worth on clean test images."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from projects.dvae.augmentation import Augment, augment
from projects.dvae.batches import Pixels, check_set
from projects.dvae.defences.base import Defence
from projects.dvae.victims import SMALL, VICTIMS, build_victim
from shared.data.memory import MemoryData, to_unit
from shared.distributed import rank
from shared.quiet import quiet_trainer, silence
from shared.runs import atomic
from shared.seeding import derive_seed, generator

Schedule = Literal["cosine", "steps"]


@dataclass(frozen=True)
class Recipe:
    """How a victim is trained, by SGD; the defaults are the paper's for CIFAR-10.

    Attributes:
        victim: one of `VICTIMS`.
        epochs: epochs.
        batch_size: images of a step over all processes together; an incomplete last batch is left out.
        lr: learning rate.
        momentum: momentum.
        weight_decay: weight decay.
        clip: norm that gradients are cut down to.
        schedule: cosine (to 0 over the epochs) or steps (a tenth after 75 and again after 90 % of the epochs).
        augment: crop_flip (CIFAR), resize_flip (ImageNet), shift1 (by up to a pixel) or none.
    """

    victim: str = "resnet18"
    epochs: int = 60
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    schedule: Schedule = "cosine"
    augment: Augment = "crop_flip"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be trained."""
        for name, value, known in (
            ("victim", self.victim, tuple(VICTIMS)),
            ("schedule", self.schedule, get_args(Schedule)),
            ("augment", self.augment, get_args(Augment)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.epochs < 1 or self.batch_size < 2 or self.lr <= 0 or self.clip <= 0:
            raise ValueError(f"epochs, lr and clip must be positive and batch_size at least 2, got {self}")

    @classmethod
    def paper(cls, victim: str = "resnet18", classes: int = 10, size: int = 32, defence: str = "none") -> Recipe:
        """Return the published recipe of a victim, a number of classes, a size of images in pixels and a defence.

        Adversarial training has 100 epochs and steps; UEraser has 200 (300 beyond ten classes) and a learning rate of 0.01.
        """
        batch_size = 96 if victim == "densenet121" else 128
        recipe = cls(victim, 60 if classes <= 10 else 100, batch_size, augment="crop_flip" if size <= SMALL else "resize_flip")
        kind = defence.partition(":")[0]
        if kind == "at":
            return replace(recipe, epochs=100, schedule="steps")
        if kind == "ueraser":
            return replace(recipe, epochs=200 if classes <= 10 else 300, lr=0.01)
        return recipe

    @classmethod
    def quick(cls, victim: str = "cnn", epochs: int = 30, lr: float = 0.02, augment: Augment = "shift1") -> Recipe:
        """Return a recipe for the offline sets on a CPU: batches of 64."""
        return cls(victim, epochs, 64, lr, augment=augment)


@dataclass(frozen=True)
class Outcome:
    """What a victim learnt.

    Attributes:
        last: top-1 accuracy on the test images after the last epoch: the figure to report.
        peak: the best accuracy of any epoch. It is chosen on test images, so it flatters; poisoned training often peaks early.
        peak_epoch: the first epoch that had it, counted from 1.
        curve: accuracy after every epoch.
        confusion: (K, K) counts after the last epoch, a row for every true class.
        defence_seconds: time of the defence's map of the training set.
        seconds: time of the training, with its evaluations.
    """

    last: float
    peak: float
    peak_epoch: int
    curve: list[float]
    confusion: list[list[int]]
    defence_seconds: float
    seconds: float

    @classmethod
    def of(cls, curve: list[float], confusion: Tensor, defence_seconds: float, seconds: float) -> Outcome:
        """Summarise a training by its accuracies and its last (K, K) confusion matrix."""
        peak = max(curve)
        return cls(curve[-1], peak, curve.index(peak) + 1, curve, confusion.tolist(), defence_seconds, seconds)


class Victim(L.LightningModule):
    """Trains a classifier with a defence, and evaluates it on clean images.

    Batches have `image` uint8 (B, C, H, W), `label` (B,) and `index` (B,). What is random in a step is a function of (seed, step, process).

    Args:
        recipe: network, optimiser and augmentation.
        defence: gives the loss.
        classes: number of classes K.
        channels: channels of the images.
        size: longer side of the images in pixels.
        seed: seed of weights, augmentation and defence.

    Attributes:
        curve: accuracy after every epoch so far.
        confusion: (K, K) counts after the last one.
    """

    def __init__(self, recipe: Recipe, defence: Defence, classes: int, channels: int = 3, size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.recipe, self.defence, self.seed = recipe, defence, seed
        net = build_victim(recipe.victim, classes, channels, size, derive_seed(seed, "victim"))
        self.net = net.to(memory_format=torch.channels_last)
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.confusion_matrix = MulticlassConfusionMatrix(classes)
        self.curve: list[float] = []
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, K) logits of (B, C, H, W) images in [0, 1]."""
        return self.net(images)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        random = generator(self.seed, "train", self.global_step, rank(), device=self.device)
        images = augment(batch["image"], self.recipe.augment, random)
        loss = self.defence.loss(self.net, images, batch["label"], random, self.current_epoch / self.recipe.epochs)
        self.log("train/loss", loss, batch_size=len(images), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(to_unit(batch["image"]).contiguous(memory_format=torch.channels_last))
        self.accuracy.update(logits, batch["label"])
        self.confusion_matrix.update(logits, batch["label"])
        self.log("val/accuracy", self.accuracy, prog_bar=True, batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        self.curve.append(float(self.accuracy.compute()))
        self.confusion = self.confusion_matrix.compute().cpu()
        self.confusion_matrix.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.recipe
        optimizer = torch.optim.SGD(self.parameters(), given.lr, given.momentum, weight_decay=given.weight_decay)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if given.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.epochs)
        else:
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [given.epochs * 3 // 4, given.epochs * 9 // 10])
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def train_victim(
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    classes: int,
    recipe: Recipe,
    defence: Defence,
    seed: int,
    folder: Path | None = None,
    defend_test: bool = False,
    **options: Any,
) -> Outcome:
    """Train a victim on a set, with a defence, and evaluate it on the clean test images after every epoch.

    Args:
        images: uint8 (N, C, H, W), poisoned or purified.
        labels: (N,) integers in [0, K).
        test_images: uint8 (M, C, H, W).
        test_labels: (M,).
        classes: K.
        recipe: how it is trained.
        defence: maps the set or gives the loss.
        seed: seed of everything that is random.
        folder: where `outcome.json` and the victim's weights, `victim.pt`, are written; None keeps nothing.
        defend_test: map the test images, too, which is not the protocol; for grey, jpeg, bdr and blur.
        **options: arguments of `L.Trainer` (accelerator, devices, precision, logger, callbacks, ...).

    Returns:
        The accuracies and times, the same in all processes.

    Raises:
        ValueError: if the sets do not fit each other, the classes, the batch or the defence.
    """
    _check(images, labels, test_images, test_labels, classes)
    started = time.perf_counter()
    defended = defence.transform_set(images, labels, seed)
    test = defence.transform_test(test_images) if defend_test else test_images
    mapped = time.perf_counter()
    victim = Victim(recipe, defence, classes, images.shape[1], max(images.shape[2:]), seed)
    sets = MemoryData(Pixels(defended, labels), Pixels(test, test_labels), min(recipe.batch_size, len(images)), seed)
    with silence():
        quiet_trainer(recipe.epochs, recipe.clip, **options).fit(victim, datamodule=sets)
    outcome = Outcome.of(victim.curve, victim.confusion, mapped - started, time.perf_counter() - mapped)
    if folder is not None and rank() == 0:
        _write(folder, victim, outcome)
    return outcome


def _check(images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, classes: int) -> None:
    for split, some, their in (("training", images, labels), ("test", test_images, test_labels)):
        try:
            check_set(some, their)
        except ValueError as error:
            raise ValueError(f"{split} set: {error}") from error
        if int(their.max()) >= classes:
            raise ValueError(f"the {split} set has a label {int(their.max())}, but there are {classes} classes")
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(f"training images are {tuple(images.shape[1:])} and test images {tuple(test_images.shape[1:])}: bring them to one shape")


def _write(folder: Path, victim: Victim, outcome: Outcome) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "victim.pt") as path:
        torch.save(victim.net.state_dict(), path)
    with atomic(folder / "outcome.json") as path:
        path.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
