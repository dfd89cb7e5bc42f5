"""Training of the D-VAEs, stage after stage, and what they make of the set that they were trained on."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from projects.dvae.losses import energy_hinge, kl_divergence, rate_hinge, reconstruction_loss, separation_loss
from projects.dvae.model import DVAE, Embedding, EmbedMode, Norm, Perturbation
from projects.dvae.purification import Purified, cosine, psnr, purify, subtract_stages
from shared.distributed import own_rows
from shared.loggers import artefact_folder
from shared.seeding import generator
from shared.training import evaluating

if TYPE_CHECKING:
    from projects.dvae.data import PurificationData

_log = logging.getLogger(__name__)


class Purifier(L.LightningModule):
    """Separates class-dependent perturbations from the images of a training set by D-VAEs, which are trained on that very set.

    Every stage has a D-VAE of its own: the first is trained on the set as it is, the next on what is left after the first one's perturbation has
    been subtracted. Stages follow each other within one training, each with its own rate, epochs and cosine schedule.

    Args:
        classes: number of classes K.
        size: height and width of the images in pixels; one number for squares.
        channels: 1 for grey images, 3 for colour.
        width: channels of the encoder's first stage; published: 64.
        levels: halvings of the resolution: 1 (published for 32 x 32) or 3 (for 224 x 224).
        latent: channels of the latent; by default 4 times the width. Published: 256.
        norm: normalisation in the decoders: instance or batch.
        embedding: label embedding: spatial (one for each position), broadcast (one vector) or none.
        embed_mode: the embedding is added (add) to the second decoder's input, or concatenated (concat).
        perturbation: what the second decoder is given with the embedding: sample (z), features (the stem's) or class (nothing: class-wise).
        embedding_grid: side of a coarser grid of spatial embeddings; by default the latent's.
        rates: target kd of each stage, in nats a latent position; published: 1 and 3 for CIFAR-10.
        rate_weight: weight λ of the rate; by default 0.01, and 0.5 for targets below 1.
        epochs: epochs of each stage; trainer.max_epochs must be their sum.
        energy_floor: mean square of p̂ above which the energy hinge acts; null leaves the hinge out, which stands in the released code only.
        energy_start: part of a stage's epochs after which the hinge begins; published: 10 of 60.
        lr: learning rate of Adam; falls to 0 along a cosine in every stage.
        seed: seed of weights and noise.
    """

    find_unused_parameters = True
    """Each stage leaves the other stages' parameters without gradients: several processes must allow for it."""

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        classes: int = 10,
        size: int | list[int] = 16,
        channels: int = 3,
        width: int = 64,
        levels: int = 1,
        latent: int | None = None,
        norm: Norm = "instance",
        embedding: Embedding = "spatial",
        embed_mode: EmbedMode = "add",
        perturbation: Perturbation = "sample",
        embedding_grid: int | None = None,
        rates: list[float] | None = None,
        rate_weight: float | None = None,
        epochs: list[int] | None = None,
        energy_floor: float | None = 0.002,
        energy_start: float = 10 / 60,
        lr: float = 5e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rates, epochs = [1.0, 3.0] if rates is None else rates, [60, 60] if epochs is None else epochs
        if len(rates) != len(epochs) or not rates:
            raise ValueError(f"model.rates and model.epochs have one value a stage, got {len(rates)} and {len(epochs)} values")
        if min(rates) <= 0 or min(epochs) < 1:
            raise ValueError(f"model.rates must be positive and model.epochs at least 1, got {rates} and {epochs}")
        self.save_hyperparameters()
        self.image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
        options: dict[str, Any] = {"channels": channels, "width": width, "levels": levels, "latent": latent, "norm": norm, "embedding": embedding}
        options |= {"embed_mode": embed_mode, "perturbation": perturbation, "embedding_grid": embedding_grid}
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        self.nets = nn.ModuleList(DVAE(classes, self.image_size, **options) for _ in rates)
        torch.set_rng_state(state)
        self.nets.to(memory_format=torch.channels_last)
        self.trained_on: str | None = None
        """Fingerprint of the set that it was trained on, where that is known."""
        self._left: np.ndarray | None = None
        self._left_stage = 0
        self._measured: dict[str, MeanMetric] = {}

    @property
    def stages(self) -> list[DVAE]:
        """The D-VAE of each stage."""
        return cast(list[DVAE], list(self.nets))

    def stage_of(self, epoch: int) -> tuple[int, int]:
        """Return the stage, from 0, that an epoch of the whole training belongs to, and the epoch's number in that stage."""
        for stage, count in enumerate(self.hparams.epochs):
            if epoch < count:
                return stage, epoch
            epoch -= count
        return len(self.hparams.epochs) - 1, self.hparams.epochs[-1]

    # ---- training

    def on_fit_start(self) -> None:
        total, given = sum(self.hparams.epochs), self.trainer.max_epochs
        if given != total and self.trainer.max_steps == -1:
            raise ValueError(f"trainer.max_epochs is {given}, but model.epochs {self.hparams.epochs} are {total} together: make them equal")
        if (data := getattr(self.trainer, "datamodule", None)) is not None:
            self.check_set(data)
            self.trained_on = data.fingerprint() if hasattr(data, "fingerprint") else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained_on"] = self.trained_on

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_on = checkpoint.get("trained_on")

    def check_set(self, data: PurificationData) -> None:
        """Refuse a set of other classes or shape than the networks are made for, and warn of one that they were not trained on.

        Raises:
            ValueError: naming the option to change.
        """
        if len(data.class_names) != self.hparams.classes:
            raise ValueError(f"the data has {len(data.class_names)} classes: set model.classes to that, not {self.hparams.classes}")
        shape = (self.hparams.channels, *self.image_size)
        if tuple(data.image_shape) != shape:
            raise ValueError(f"the data's images are {tuple(data.image_shape)}, the model's {shape}: set model.channels and model.size to the data's")
        if self.trained_on is not None and self.trained_on != data.fingerprint():
            _log.warning("the D-VAEs were trained on another set than this one: a perturbation is found in the very set that it is learnt from")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        stage, epoch = self.stage_of(self.current_epoch)
        images, net = self._stage_images(batch, stage), self.stages[stage]
        noise = self._training_noise(net, images)
        found = net(images, batch["label"], noise)
        rate = kl_divergence(found.latent.mean, found.latent.log_variance)
        reconstruction = reconstruction_loss(found.reconstruction, images)
        separation = separation_loss(found.reconstruction, found.perturbation, images)
        loss = reconstruction + separation + rate_hinge(rate, self.hparams.rates[stage], self.hparams.rate_weight)
        if self.hparams.energy_floor is not None and epoch > self.hparams.energy_start * self.hparams.epochs[stage]:
            loss = loss + energy_hinge(found.perturbation, self.hparams.energy_floor)
        values: dict[str, Any] = {"loss": loss, "rate": rate, "reconstruction": reconstruction, "separation": separation}
        values |= {"perturbation_rms": found.perturbation.detach().square().mean().sqrt(), "stage": float(stage + 1)}
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=len(images), sync_dist=True)
        return loss

    def _training_noise(self, net: DVAE, images: Tensor) -> Tensor:
        """Draw noise for the global batch from (seed, step), and take this process's rows."""
        random = generator(self.hparams.seed, "train", self.global_step, device=self.device)
        shape = (len(images) * self.trainer.world_size, *net.noise_shape(*images.shape[2:]))
        return own_rows(torch.randn(shape, generator=random, device=self.device))

    def _stage_images(self, batch: dict[str, Tensor], stage: int) -> Tensor:
        """Return the images that a stage is trained on: the set's, or what the stages before it have left of them."""
        if stage == 0:
            images = batch["image"]
        else:
            if self._left is None or self._left_stage != stage:
                self._left, self._left_stage = self._subtract_from_all(stage), stage
            rows = torch.from_numpy(self._left[batch["index"].cpu().numpy()])
            images = rows.to(batch["image"]) / 255
        return images.contiguous(memory_format=torch.channels_last)

    def _subtract_from_all(self, stage: int) -> np.ndarray:
        """Purify the whole set with the stages before `stage`, every process its share, into one file of bytes, (N, C, H, W)."""
        data: PurificationData = self.trainer.datamodule  # type: ignore[attr-defined]
        loader = data.ordered_loader()
        path = artefact_folder(self.trainer) / f"stage-{stage}.npy"
        shape = (len(data.train_set), self.hparams.channels, *data.image_shape[1:])
        if self.trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()
        self.trainer.strategy.barrier("the file is there")
        left = np.load(path, mmap_mode="r+")
        with evaluating(self):
            for batch in loader:
                images, labels = batch["image"].to(self.device), batch["label"].to(self.device)
                rest = subtract_stages(self.stages[:stage], images, labels, batch["index"], self.hparams.seed)
                left[batch["index"].numpy()] = (rest * 255).round().byte().cpu().numpy()
        left.flush()
        self.trainer.strategy.barrier("all rows are written")
        return np.load(path, mmap_mode="r")

    def on_fit_end(self) -> None:
        self._left = None
        if self.trainer.is_global_zero:
            for path in Path(artefact_folder(self.trainer)).glob("stage-*.npy"):
                path.unlink()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

        def factor(epoch: int) -> float:
            stage, inner = self.stage_of(epoch)
            return 0.5 * (1 + math.cos(math.pi * inner / self.hparams.epochs[stage]))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "epoch"}}

    # ---- what became of the set

    def purify(self, batch: dict[str, Tensor]) -> Purified:
        """Purify a batch of the training set, in evaluation mode, whatever the module's own."""
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        with evaluating(self):
            return purify(self.stages, images, batch["label"], batch["index"], self.hparams.seed)

    def on_test_start(self) -> None:
        self.check_set(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._measured = {}

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        found = self.purify(batch)
        values = {f"rate_{stage}": rate for stage, rate in enumerate(found.rates, 1)}
        reference = batch.get("clean", batch["image"])
        values |= {f"psnr_x{number}": psnr(images, reference) for number, images in enumerate(found.products, 1)}
        values |= {f"rms_p{number}": p.square().flatten(1).mean(1).sqrt() for number, p in enumerate(found.perturbations, 1)}
        if "clean" in batch:
            true = batch["image"] - batch["clean"]
            poisoned = true.flatten(1).abs().amax(1) > 0
            values["cosine"] = cosine(found.perturbations[0][poisoned], true[poisoned])
            values["psnr_input"] = psnr(batch["image"], batch["clean"])
        for name, value in values.items():
            metric = self._measured.setdefault(name, MeanMetric().to(self.device))
            metric.update(value)

    def on_test_epoch_end(self) -> None:
        found = {name: metric.compute() for name, metric in self._measured.items()}
        self.log_dict({f"test/{name}": value for name, value in found.items() if value.isfinite()})  # the cosine of a set without poison is none
