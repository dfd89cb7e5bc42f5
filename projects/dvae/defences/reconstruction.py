"""The controls of the paper's figure: the set as a rate-constrained VAE or an autoencoder with a narrow bottleneck, trained on it, gives it back."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from projects.dvae.batches import check_set, ordered_loader, to_bytes, training_loader
from projects.dvae.defences.base import Budget, Defence
from projects.dvae.losses import kl_divergence, rate_hinge, reconstruction_loss
from projects.dvae.model import BottleneckAutoencoder, RateVAE
from shared.data.memory import to_unit
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed, generator

SMALL = 64
"""Largest side, in pixels, for which the latent has half the images' resolution; above it is an eighth."""


class Reconstruction(L.LightningModule):
    """Trains a network to give images back, and gives them back.

    Args:
        net: the network, a `RateVAE` or a `BottleneckAutoencoder`.
        rate: kd of the VAE, in nats a latent position; None for an autoencoder.
        budget: how it is trained.
        seed: seed of the noise.
    """

    def __init__(self, net: nn.Module, rate: float | None, budget: Budget, seed: int) -> None:
        super().__init__()
        self.net, self.rate, self.budget, self.seed = net.to(memory_format=torch.channels_last), rate, budget, seed

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = self._images(batch)
        if self.rate is None:
            return reconstruction_loss(self.net(images), images)
        random = generator(self.seed, "vae", "train", self.global_step, device=self.device)
        noise = torch.randn((len(images), *self._noise_shape(images)), generator=random, device=self.device)
        reconstruction, latent = self.net(images, noise)
        rate = kl_divergence(latent.mean, latent.log_variance)
        self.log("train/rate", rate)
        return reconstruction_loss(reconstruction, images) + rate_hinge(rate, self.rate)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = self._images(batch)
        if self.rate is None:
            return to_bytes(self.net(images)).cpu()
        shape = self._noise_shape(images)
        noise = [torch.randn(shape, generator=generator(self.seed, "vae", "predict", index)) for index in batch["index"].tolist()]
        return to_bytes(self.net(images, torch.stack(noise).to(images))[0]).cpu()

    def _images(self, batch: dict[str, Tensor]) -> Tensor:
        return to_unit(batch["image"]).contiguous(memory_format=torch.channels_last)

    def _noise_shape(self, images: Tensor) -> tuple[int, int, int]:
        assert isinstance(self.net, RateVAE)
        return self.net.noise_shape(*images.shape[2:])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), self.budget.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.budget.epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class _Reconstructed(Defence):
    """Trains a network on the set, on one device, and returns what it makes of it."""

    def __init__(self, budget: Budget, rate: float | None) -> None:
        self.budget, self.rate = budget, rate

    def build(self, channels: int, levels: int) -> nn.Module:
        """Build the network with random weights."""
        raise NotImplementedError

    def transform_set(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        check_set(images, labels)
        height, width = images.shape[2:]
        levels = 1 if max(height, width) <= SMALL else 3
        if height % 2**levels or width % 2**levels:
            raise ValueError(f"the defence {self.name!r} needs sides that divide by {2**levels}, got images of {height} x {width} pixels")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, self.name))
            net = self.build(images.shape[1], levels)
        module = Reconstruction(net, self.rate, self.budget, seed)
        trainer = quiet_trainer(self.budget.epochs, clip=5.0)
        loaders: Any = training_loader(images, labels, self.budget.batch_size, seed), ordered_loader(images, labels, self.budget.batch_size)
        with silence():
            trainer.fit(module, loaders[0])
            parts: Any = trainer.predict(module, loaders[1])
        return torch.cat(parts)


class VAE(_Reconstructed):
    """A rate-constrained VAE; it samples at inference, too.

    Args:
        rate: target kd in nats a latent position.
        budget: how it is trained.

    Raises:
        ValueError: if the rate is not positive.
    """

    def __init__(self, rate: float = 1.0, budget: Budget | None = None) -> None:
        if rate <= 0:
            raise ValueError(f"the rate of vae must be positive, got {rate:g}")
        super().__init__(budget or Budget(), rate)
        self.name = f"vae:{rate:g}"

    def build(self, channels: int, levels: int) -> nn.Module:
        return RateVAE(channels, self.budget.width, levels, latent=256 if levels == 3 else None)


class Autoencoder(_Reconstructed):
    """An autoencoder with a narrow bottleneck and no rate.

    Args:
        bottleneck: channels of the bottleneck, 1 to 512.
        budget: how it is trained.

    Raises:
        ValueError: for a number of channels outside.
    """

    def __init__(self, bottleneck: float = 8, budget: Budget | None = None) -> None:
        if bottleneck not in range(1, 513):
            raise ValueError(f"the bottleneck of ae must be a whole number from 1 to 512, got {bottleneck:g}")
        super().__init__(budget or Budget(), None)
        self.bottleneck = int(bottleneck)
        self.name = f"ae:{self.bottleneck}"

    def build(self, channels: int, levels: int) -> nn.Module:
        return BottleneckAutoencoder(self.bottleneck, channels, self.budget.width, levels)
