"""The verbs `certify` and `predict`: a trained module smoothed and run over images under a Lightning Trainer, which deals them over the processes."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from projects.drs.module import DualSmoothing
from shared.distributed import rank
from shared.seeding import derive_seed
from shared.smoothing import Budget, CertificationLog, SmoothedClassifier, Smoothing

Precision = Literal["float32", "bfloat16", "float16"]
CertificateName = Literal["auto", "joint", "main", "pooled", "runner_up"]


@dataclass(frozen=True)
class Plan:
    """What a certification is made with; everything that its results depend on besides the weights and the images.

    Args:
        sigma: standard deviation of the noise of each branch, in units of [0, 1] images.
        draws: draws of each branch that are counted (n), or the most where radii or a tolerance end them earlier.
        selection: draws of each branch that choose the class (n0).
        alpha: failure probability of a certificate.
        certificate: joint, main or pooled (two branches), runner_up, or auto: joint for two branches, main for more, Cohen's for one.
        radii: stop as soon as it is settled which of these radii are certified.
        tolerance: stop as soon as the radius is within this of the highest it could become.
        sound_grid: draw noise on the grid of 8-bit images, so that the certificate holds in floating point, too.
        precision: floating type of weights and images.
        seed: seed of the noise.
    """

    sigma: float
    draws: int = 10_000
    selection: int = 100
    alpha: float = 0.001
    certificate: CertificateName = "auto"
    radii: tuple[float, ...] = ()
    tolerance: float | None = None
    sound_grid: bool = False
    precision: Precision = "float32"
    seed: int = 0

    def smooth(self, model: DualSmoothing, device: torch.device, batch_size: int | None = None) -> SmoothedClassifier:
        """Smooth a trained module's classifier.

        Args:
            model: the module; a copy of its networks is used.
            device: where to compute.
            batch_size: copies of images in a forward pass; None: 256, or 2048 on a GPU.
        """
        dtype = getattr(torch, self.precision)
        net = deepcopy(model.net).to(device, dtype).eval().requires_grad_(False)
        branches = len(net.split)
        rule: Any = {1: "main", 2: "joint"}.get(branches, "main") if self.certificate == "auto" else self.certificate
        smoothing = Smoothing((self.sigma,) * branches, rule, self.alpha)
        return SmoothedClassifier(
            net.branches(),
            net.classes,
            smoothing,
            Budget(self.selection, self.draws, tuple(self.radii), self.tolerance),
            key=derive_seed(self.seed, "certify"),
            law="grid" if self.sound_grid else "gaussian",
            batch_size=batch_size or (2048 if device.type == "cuda" else 256),
            device=device,
            dtype=dtype,
            channels_last=device.type == "cuda",
        )

    @property
    def label(self) -> str:
        """A name for folders, such as `sigma0.354-n10000`."""
        return f"sigma{self.sigma:.4g}-n{self.draws}" + ("-early" if self.radii or self.tolerance else "")


class Certification(L.LightningModule):
    """Certifies a set of images into a log, each process its share; what the log holds already is not done again.

    Args:
        model: the trained module.
        plan: noise, budget and certificate.
        loader: the images, dealt over the processes.
        folder: where the log lies.
        about: what the weights and the images are, as plain values; the log refuses to go on with others.
        batch_size: copies of images in a forward pass.
    """

    def __init__(self, model: DualSmoothing, plan: Plan, loader: DataLoader, folder: Path, about: dict[str, Any], batch_size: int | None) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer images than processes
        self.model, self.plan, self.loader, self.folder, self.about, self.batch_size_ = model, plan, loader, folder, about, batch_size

    def predict_dataloader(self) -> DataLoader:
        return self.loader

    def on_predict_start(self) -> None:
        classifier = self.plan.smooth(self.model, self.device, self.batch_size_)
        self.log_file = CertificationLog(self.folder, classifier.settings | self.about, rank())
        self.stream = classifier.stream()
        self.labels: dict[int, int] = {}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for index, image, label in zip(batch["index"].tolist(), batch["image"], batch["label"].tolist(), strict=True):
            if index in self.log_file.done:
                continue
            while self.stream.is_full:
                self._advance()
            self.labels[index] = label
            self.stream.add(index, image)

    def on_predict_epoch_end(self) -> None:
        while not self.stream.is_empty:
            self._advance()
        self.log_file.close()
        self.trainer.strategy.barrier("certify")

    def _advance(self) -> None:
        with torch.autocast(self.device.type, enabled=False):  # the trainer's precision is not the plan's
            for result in self.stream.advance():
                self.log_file.append(result.row(self.labels.pop(result.index)))


def as_plain(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(plan).items()}
