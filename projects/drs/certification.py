"""The verbs `certify` and `predict`: a trained module smoothed and run over images under a Lightning Trainer, which deals them over the processes."""

from __future__ import annotations

import secrets
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from projects.drs.denoising import Denoising, denoised_branches
from projects.drs.model import DualClassifier
from projects.drs.module import DualSmoothing
from projects.drs.released import read_denoiser
from shared.distributed import gather_objects, rank
from shared.seeding import derive_seed
from shared.smoothing import Branch, Budget, CertificationLog, SmoothedClassifier, Smoothing
from shared.smoothing.denoised import DiffusionDenoiser
from shared.smoothing.fast import CPU_BATCH, folded

Precision = Literal["float32", "bfloat16", "float16"]
GPU_BATCH = 2048
CertificateName = Literal["auto", "joint", "main", "pooled", "selected", "runner_up"]


@dataclass(frozen=True)
class Plan:
    """What a certification is made with; everything that its results depend on besides the weights and the images.

    Args:
        sigma: standard deviation of the noise of each branch, in units of [0, 1] images.
        draws: draws of each branch that are counted (n), or the most where radii or a tolerance end them earlier.
        selection: draws of each branch that choose the class (n0).
        alpha: failure probability of a certificate.
        certificate: joint, main, pooled or selected (two branches), runner_up, or auto: joint for two branches, main for more, Cohen's for one.
        radii: stop as soon as it is settled which of these radii are certified.
        tolerance: stop as soon as the radius is within this of the highest it could become.
        sound_grid: draw noise on the grid of 8-bit images, so that the certificate holds in floating point, too.
        precision: floating type of weights and images.
        is_compiled: compile the networks first.
        denoiser: folder of a diffusion model's pipeline, whose one step of denoising comes before the classifiers, or file of a published DnCNN.
        denoising: of each sub-image (`per_branch`) or of the whole image (`shared`), which has a certificate of its own.
        seed: seed of the noise.

    Raises:
        ValueError: if denoising and certificate do not go together.
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
    is_compiled: bool = False
    denoiser: str | None = None
    denoising: Denoising = "per_branch"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.is_shared and self.certificate != "auto":
            raise ValueError(
                f"the certificate {self.certificate!r} needs votes that depend on one sub-image each: with one denoiser for the whole image leave "
                "--certificate at auto (the radius for shared noise), or take --denoising per_branch"
            )

    @property
    def is_shared(self) -> bool:
        """Whether all branches see one denoised image, and so one noise."""
        return self.denoiser is not None and self.denoising == "shared"

    def smooth(self, model: DualSmoothing, device: torch.device, batch_size: int | None = None) -> SmoothedClassifier:
        """Smooth a trained module's classifier.

        Args:
            model: the module; a copy of its networks is used.
            device: where to compute.
            batch_size: copies of images in a forward pass; None: what is good on a CPU, or 2048 on a GPU.
        """
        dtype = getattr(torch, self.precision)
        net = deepcopy(model.net).requires_grad_(False)
        for number, network in enumerate(net.networks):
            net.networks[number] = folded(network)
        net.to(device).networks.to(dtype).to(memory_format=torch.channels_last)  # sub-images are placed and normalised in float32
        branches = len(net.split)
        automatic = "shared" if self.is_shared else "joint" if branches == 2 else "main"
        rule: Any = automatic if self.certificate == "auto" else self.certificate
        return SmoothedClassifier(
            net.branches() if self.denoiser is None else self._denoised(net, model.hparams.channels, device, dtype),
            net.classes,
            Smoothing((self.sigma,) * branches, rule, self.alpha),
            Budget(self.selection, self.draws, self.radii, self.tolerance),
            key=derive_seed(self.seed, "certify"),
            law="grid" if self.sound_grid else "gaussian",
            batch_size=(GPU_BATCH if device.type == "cuda" else CPU_BATCH) if batch_size is None else batch_size,
            device=device,
            dtype=dtype,
            channels_last=True,
            compile=self.is_compiled,
        )

    def _denoised(self, net: DualClassifier, channels: int, device: torch.device, dtype: torch.dtype) -> list[Branch]:
        path = Path(str(self.denoiser)).expanduser()
        denoiser = folded(read_denoiser(path, channels)) if path.is_file() else DiffusionDenoiser.from_pipeline(path, self.sigma)
        branches = denoised_branches(net, denoiser.requires_grad_(False).to(device, dtype), self.denoising)
        for branch in branches:
            cast(nn.Module, branch.classifier).to(device, dtype)
        return branches


class Certification(L.LightningModule):
    """Certifies a set of images into a log, each process its share; what the log holds already is not done again.

    Args:
        classifier: the smoothed classifier, on the trainer's device.
        loader: the images, dealt over the processes.
        folder: where the log lies.
        settings: all that results depend on, as plain values; the log refuses to go on with others.
    """

    def __init__(self, classifier: SmoothedClassifier, loader: DataLoader, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer images than processes
        self.classifier, self.loader, self.folder, self.settings = classifier, loader, folder, settings
        self._log: CertificationLog | None = None

    def predict_dataloader(self) -> DataLoader:
        return self.loader

    def on_predict_start(self) -> None:
        self._log = CertificationLog(self.folder, self.settings, rank())
        self._stream = self.classifier.stream()
        self._labels: dict[int, int] = {}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert self._log is not None
        for index, image, label in zip(batch["index"].tolist(), batch["image"], batch["label"].tolist(), strict=True):
            if index in self._log.done:
                continue
            while self._stream.is_full:
                self._advance()
            self._labels[index] = label
            self._stream.add(index, image, self._log.partials.get(index))

    def on_predict_epoch_end(self) -> None:
        while not self._stream.is_empty:
            self._advance()
        self.close()
        self.trainer.strategy.barrier("certify")

    def _advance(self) -> None:
        assert self._log is not None
        if self.trainer.received_sigterm:
            raise SIGTERMException
        with torch.autocast(self.device.type, enabled=False):  # the trainer's precision is not the plan's
            for result in self._stream.advance():
                self._log.append(result.row(self._labels.pop(result.index)))
        self._log.keep(self._stream.partials)

    def close(self) -> None:
        """Keep the votes of images in the works, so that a run that was stopped goes on inside them, and close the log."""
        if self._log is not None:
            self._log.keep(self._stream.partials, at_once=True)
            self._log.close()
            self._log = None

    def merge(self, indices: set[int]) -> Path:
        """Write certify.tsv and certify.jsonl of these images from the parts of all processes; call it on one."""
        with CertificationLog(self.folder, self.settings) as log:
            return log.merge(indices=indices)


class Prediction(L.LightningModule):
    """Predicts images by the smoothed classifier, each process its share.

    Args:
        classifier: the smoothed classifier, on the trainer's device.
        loader: the images, dealt over the processes.
        draws: draws of an image, over all branches.
        alpha: failure probability of a prediction.
        seed: seed of the noise; None draws a fresh key.
    """

    def __init__(self, classifier: SmoothedClassifier, loader: DataLoader, draws: int, alpha: float, seed: int | None) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.classifier, self.loader, self.draws, self.alpha = classifier, loader, draws, alpha
        self._seed = secrets.randbits(62) if seed is None else seed
        self._rows: list[dict[str, Any]] = []

    def predict_dataloader(self) -> DataLoader:
        return self.loader

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            for index, image, label in zip(batch["index"].tolist(), batch["image"], batch["label"].tolist(), strict=True):
                found = self.classifier.predict(image[None], self.alpha, self.draws, derive_seed(self._seed, "predict", index))
                top = found.counts[0].topk(2)
                self._rows.append(
                    {
                        "index": index,
                        "label": label,
                        "predict": int(found.classes[0]),
                        "share": int(top.values[0]) / self.draws,
                        "second": int(top.indices[1]),
                        "share_second": int(top.values[1]) / self.draws,
                        "p_value": float(found.p_values[0]),
                    }
                )

    def gathered(self) -> list[dict[str, Any]]:
        """Return the rows of all processes, in order of the images."""
        return sorted(gather_objects(self._rows), key=lambda row: row["index"])
