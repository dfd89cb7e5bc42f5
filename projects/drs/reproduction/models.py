"""The small models that claims are tried on: trained when asked for, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.drs.certification import Plan
from projects.drs.data import CertificationData, stack
from projects.drs.module import DualSmoothing
from projects.drs.released import write_checkpoint
from shared.checkpoints import load_checkpoint
from shared.jobs import kept
from shared.smoothing.engine import Result

QUICK_EPOCHS = 1
QUICK_IMAGES = 8


@dataclass(frozen=True)
class Variant:
    """A model, and how it is trained.

    Attributes:
        name: what tables call it.
        settings: options of `DualSmoothing` in which it differs from the run's.
        epochs: of its training; None for those of the run.
        parent: the variant whose network all its branches start from.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    parent: Variant | None = None

    @property
    def folder(self) -> str:
        """The name in file names."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())


@dataclass(frozen=True)
class Models:
    """Trains variants, and certifies with them.

    Attributes:
        folder: where they are kept.
        model: options of `DualSmoothing`.
        data: options of `CertificationData`.
        epochs: of training.
        is_quick: little training and few images.
    """

    folder: Path
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    epochs: int
    is_quick: bool

    def datamodule(self, seed: int) -> CertificationData:
        """Return the data of a seed."""
        data = CertificationData(**(dict(self.data) | {"seed": seed}))
        data.setup()
        return data

    def build(self, variant: Variant, seed: int) -> DualSmoothing:
        """Build a variant's module, with random weights."""
        return DualSmoothing(**(dict(self.model) | {"weights": None, "seed": seed} | dict(variant.settings)))

    def train(self, variant: Variant, seed: int) -> tuple[DualSmoothing, float]:
        """Return a variant's trained module, and the seconds that its training took with that of its parents."""
        path = self.folder / ("quick" if self.is_quick else "models") / f"{variant.folder}-{seed}.ckpt"
        before = 0.0
        module = self.build(variant, seed)
        if variant.parent is not None:
            parent, before = self.train(variant.parent, seed)
            for network in module.net.networks:
                network.load_state_dict(parent.net.networks[0].state_dict())

        def make() -> None:
            self._fit(module, variant, seed)
            write_checkpoint(module.state_dict(), path)

        seconds = kept(path.with_suffix(".json"), make).seconds
        module.load_state_dict(load_checkpoint(path)["state_dict"])
        return module.eval(), before + seconds

    def _fit(self, module: DualSmoothing, variant: Variant, seed: int) -> None:
        import lightning as L

        epochs = QUICK_EPOCHS if self.is_quick else variant.epochs or self.epochs
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        data = self.datamodule(seed)
        limits: dict[str, Any] = {"limit_val_batches": 0, "limit_train_batches": 8 if self.is_quick else 1.0}
        trainer = L.Trainer(default_root_dir=self.folder, max_epochs=epochs, devices=1, accelerator="auto", **limits, **quiet)
        trainer.fit(module, datamodule=data)

    def images(self, seed: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the images that are certified, (N, C, H, W), and their labels, (N,)."""
        return stack(self.datamodule(seed).certified_set(), min(limit or QUICK_IMAGES, QUICK_IMAGES) if self.is_quick else limit)

    def certify(self, module: DualSmoothing, images: Tensor, plan: Plan) -> list[Result]:
        """Certify images with a trained module."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return plan.smooth(module, device).certify(images)
