"""A purifier trained on a set in memory, without a command line: what detection, the benchmark and `reproduce` do many times."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from projects.dvae.module import Purifier
from projects.dvae.purification import Purified
from projects.dvae.sets import BareSet, ImageSet, identity
from shared.data.base import training_loader
from shared.distributed import UnpaddedSampler
from shared.quiet import quiet_trainer, silence


def subset(images: ImageSet, rows: Tensor) -> ImageSet:
    """Return some images of a set, as a set of their own."""
    clean = None if images.clean is None else images.clean[rows]
    return ImageSet(images.images[rows], images.labels[rows], images.class_names, clean=clean)


class SetData(L.LightningDataModule):
    """One training set as a purifier's data."""

    def __init__(self, images: ImageSet, batch_size: int, seed: int) -> None:
        super().__init__()
        self.train_set, self.batch_size, self.seed = images, min(batch_size, len(images)), seed
        self.class_names, self.image_shape = images.class_names, images.image_shape

    def train_dataloader(self) -> DataLoader:
        return training_loader(BareSet(self.train_set), self.batch_size, self.seed, collate_fn=identity)

    def ordered_loader(self) -> DataLoader:
        """Return a loader of every image once, in order."""
        return DataLoader(self.train_set, batch_size=256, sampler=UnpaddedSampler(self.train_set), collate_fn=identity)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Settings:
    """How a purifier is trained.

    Attributes:
        rates: target rate of each stage, in nats a latent position.
        epochs: epochs of each stage.
        width: channels of the encoder's first stage.
        batch_size: images of a step.
        options: further options of `Purifier`.
    """

    rates: tuple[float, ...] = (1.0, 3.0)
    epochs: tuple[int, ...] = (60, 60)
    width: int = 64
    batch_size: int = 128
    options: dict[str, Any] = field(default_factory=dict)


def fit_purifier(images: ImageSet, settings: Settings, seed: int, folder: Path | None = None) -> Purifier:
    """Train a purifier on a set; returns it in evaluation mode, on the CPU.

    Args:
        images: the set.
        settings: how.
        seed: of weights, order and noise.
        folder: for what a stage leaves to the next; None takes a temporary one.
    """
    channels, *size = images.images.shape[1:]
    module = Purifier(
        classes=len(images.class_names),
        size=list(size),
        channels=channels,
        width=settings.width,
        rates=list(settings.rates),
        epochs=list(settings.epochs),
        seed=seed,
        **settings.options,
    )
    with tempfile.TemporaryDirectory() as temporary, silence():
        trainer = quiet_trainer(sum(settings.epochs), 5.0, default_root_dir=folder or temporary, devices=1)
        trainer.fit(module, datamodule=SetData(images, settings.batch_size, seed))
    return module.eval().cpu()


def purify_set(module: Purifier, images: ImageSet) -> dict[str, Tensor]:
    """Return what purification makes of a set in memory: x1, x2, ... as (N, C, H, W) uint8, p1, p2, ... as float32."""
    parts: list[Purified] = []
    for start in range(0, len(images), 256):
        parts.append(module.purify(images.__getitems__(list(range(start, min(start + 256, len(images)))))))
    joined: dict[str, Tensor] = {}
    for name in parts[0].named():
        values = torch.cat([part.named()[name] for part in parts])
        joined[name] = (values * 255).round().byte() if name.startswith("x") else values
    return joined
