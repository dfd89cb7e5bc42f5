"""Training of the generators against the surrogate, by turns, and what they make of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from projects.umed.augmentation import SurrogateAugmentation
from projects.umed.losses import segmentation_loss, soft_dice
from projects.umed.metrics import dice
from projects.umed.model import GENERATOR_WIDTHS, WIDTHS, Clip, ContourGenerator, Convolution, Perturbator, TextureGenerator, UNet
from projects.umed.perturb import TextureMode, protect_images
from projects.umed.quality import SSIM_WINDOW, max_change, psnr, ssim, touched_region
from shared.distributed import own_rows
from shared.seeding import derive_seed, generator

if TYPE_CHECKING:
    from projects.umed.data import ProtectionData

Batch = dict[str, Tensor]

_CACHED = 2**17
"""Pixels that a CPU perturbs together: more of them leave its cache and take longer."""
_TOGETHER = 2**22
"""Pixels that other devices perturb together, which takes some 3 GB of their memory."""


class Protector(L.LightningModule):
    """Learns perturbations of contour and interior that make the masks trivial to predict, so that nothing else is left to be learnt.

    Generators and surrogate lower one and the same loss in turns: `gen_steps` steps of the generators, then `sur_steps` of the surrogate.

    Args:
        channels: channels C of the images, 1 or 3.
        classes: foreground classes K of the masks.
        size: side of the images that it is trained on, in pixels; any other size can be protected as well.
        epsilon: largest change of a pixel, in grey levels of 255; published: 4.
        radius: reach of the contour's band in pixels; null takes 3 in 256 pixels of each image's longer side, at least 1.
        contour: whether the contour is perturbed.
        interior: whether the interior is perturbed.
        texture: measure of local texture: count (published code), code or transitions.
        clip: bound of the interior's perturbation: texture (epsilon times the local texture) or fixed (epsilon).
        convolution: encoder of the contour generator: cdc (with central differences) or plain.
        generator_widths: channels of the generators' levels; by default 16, 32, 64, 128.
        surrogate_widths: channels of the surrogate's levels; by default 32, 64, 128, 256, 512.
        gen_steps: steps of the generators in a turn; published: 4.
        sur_steps: steps of the surrogate in a turn; published: 1.
        lr_generator: learning rate of the generators' Adam.
        lr_surrogate: learning rate of the surrogate's Adam.
        decay_generator: weight decay of the generators' Adam.
        decay_surrogate: weight decay of the surrogate's Adam.
        augmentations: what the surrogate's images go through: any of blur, jpeg, affine, flip.
        augmentation_probability: how often an image goes through one of them.
        exchange: how often, from 0 to 1, a perturbation is laid on another image of the batch in training, so that it alone tells the mask.
            Published: 0, where generators come to strengthen what already tells it, such as dark lesions, from which exploiters learn as well.
        high_pass: side of a window in pixels, odd, whose mean is taken off perturbations, so that they cannot make a lesion darker as a whole, which
            exploiters would learn together with anatomy; 3 leaves fine patterns, 7 also such as survive a blur. Published: 0, nothing is taken off.
        blur_sigma: range of the blur's standard deviation in pixels.
        jpeg_quality: range of JPEG's quality.
        round_in_training: rounds perturbations in training as they will be stored; gradients pass straight through.
        seed: seed of weights and augmentation.
    """

    find_unused_parameters = True
    """Each step leaves one side's parameters without gradients: several processes must allow for it."""

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        channels: int = 1,
        classes: int = 1,
        size: int = 32,
        epsilon: float = 4.0,
        radius: int | None = None,
        contour: bool = True,
        interior: bool = True,
        texture: TextureMode = "count",
        clip: Clip = "texture",
        convolution: Convolution = "cdc",
        generator_widths: list[int] | None = None,
        surrogate_widths: list[int] | None = None,
        gen_steps: int = 4,
        sur_steps: int = 1,
        lr_generator: float = 1e-4,
        lr_surrogate: float = 1e-4,
        decay_generator: float = 1e-5,
        decay_surrogate: float = 5e-4,
        augmentations: list[str] | None = None,
        augmentation_probability: float = 0.5,
        exchange: float = 0.0,
        high_pass: int = 0,
        blur_sigma: list[float] | None = None,
        jpeg_quality: list[int] | None = None,
        round_in_training: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if gen_steps < 1 or sur_steps < 1 or not 0.5 <= epsilon <= 127:
            raise ValueError(f"model.gen_steps and sur_steps are at least 1, epsilon in 0.5 to 127 levels: got {gen_steps}, {sur_steps}, {epsilon}")
        if not 0 <= exchange <= 1:
            raise ValueError(f"model.exchange is a probability, in 0 to 1, got {exchange}")
        self.save_hyperparameters()
        self.automatic_optimization = False
        widths = list(GENERATOR_WIDTHS) if generator_widths is None else generator_widths
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "umed weights"))
            outer = ContourGenerator(channels, widths, convolution) if contour else None
            inner = TextureGenerator(channels, widths) if interior else None
            self.perturbator = Perturbator(outer, inner, epsilon / 255, radius, classes, texture, clip, high_pass)
            self.surrogate = UNet(channels, classes + 1, WIDTHS if surrogate_widths is None else surrogate_widths, norm="instance")
        ranges: dict[str, Any] = {} if blur_sigma is None else {"sigma": blur_sigma}
        ranges |= {} if jpeg_quality is None else {"quality": jpeg_quality}
        self.augment = SurrogateAugmentation(augmentations or [], augmentation_probability, **ranges)
        self.iterations = 0
        """Training steps taken, which say whose turn it is. Lightning's global step is the same number, but of optimiser steps."""
        names = ["psnr", "surrogate_dice"]
        self.val_metrics = MetricCollection({name: MeanMetric() for name in names}, prefix="val/")
        self.test_metrics = MetricCollection({name: MeanMetric() for name in [*names, "psnr_roi", "ssim", "max_change"]}, prefix="test/")

    # ---- what it does for its user

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Map (B, C, H, W) clean images in [0, 1] and (B, H, W) masks to δ in the same units."""
        return self.perturbator(images, masks)

    @torch.no_grad()
    def delta(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return δ of (B, C, H, W) uint8 images and (B, H, W) masks of any size, in units of [0, 1] images, on the module's device.

        Raises:
            ValueError: if images or masks are not what the generators were made for.
        """
        self.check_images(images, masks)
        training = self.perturbator.training
        self.perturbator.eval()
        height, width = images.shape[2:]
        count = max(1, (_CACHED if self.device.type == "cpu" else _TOGETHER) // (height * width))
        parts = zip(images.to(self.device).split(count), masks.to(self.device).split(count), strict=True)
        found = torch.cat([self(levels.float() / 255, inside) for levels, inside in parts])
        self.perturbator.train(training)
        return found

    def protect(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return (B, C, H, W) uint8 images as they are published, on the device of the given ones; masks stay what they are."""
        return protect_images(images, self.delta(images, masks).to(images.device))

    def check_images(self, images: Tensor, masks: Tensor) -> None:
        """Refuse images of another type, or number of channels, and masks of another shape.

        Raises:
            ValueError: naming what does not fit.
        """
        channels = self.hparams.channels
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] != channels:
            raise ValueError(f"the generators protect (B, {channels}, H, W) images of uint8, got {tuple(images.shape)} of {images.dtype}")
        if masks.shape != (len(images), *images.shape[2:]) or masks.is_floating_point():
            raise ValueError(
                f"images of {tuple(images.shape)} need whole-number masks of {(len(images), *images.shape[2:])}, got {tuple(masks.shape)}"
            )

    def check_set(self, data: ProtectionData) -> None:
        """Refuse data of other channels or classes than the networks are made for.

        Raises:
            ValueError: naming the option to change.
        """
        if data.image_shape[0] != self.hparams.channels:
            raise ValueError(f"the data's images have {data.image_shape[0]} channels: set model.channels to that, not {self.hparams.channels}")
        if data.class_count != self.hparams.classes:
            raise ValueError(f"the data has {data.class_count} foreground classes: set model.classes to that, not {self.hparams.classes}")

    # ---- training

    def is_generator_turn(self, iteration: int) -> bool:
        """Whether the training step number `iteration`, from 0, is the generators': `gen_steps` of theirs are followed by `sur_steps`."""
        return iteration % (self.hparams.gen_steps + self.hparams.sur_steps) < self.hparams.gen_steps

    def on_fit_start(self) -> None:
        if (data := getattr(self.trainer, "datamodule", None)) is not None:
            self.check_set(data)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, masks = batch["image"].float() / 255, batch["mask"]
        generators, surrogate = cast(list[LightningOptimizer], self.optimizers())
        is_generators = self.is_generator_turn(self.iterations)
        optimizer = generators if is_generators else surrogate
        self.toggle_optimizer(optimizer)  # the other side is frozen
        self.perturbator.train(is_generators)
        self.surrogate.train(not is_generators)  # in its own step only: generators must not use a batch's statistics
        with torch.set_grad_enabled(is_generators):
            delta = self(images, masks)
            grounds = self._grounds(batch["image"])
            protected = (grounds.float() / 255 + delta).clamp(0, 1)
            if self.hparams.round_in_training:
                stored = protect_images(grounds, delta.detach()).float() / 255
                protected = protected + (stored - protected).detach()
        protected, masks = self.augment(protected, masks, self._chance(len(images)))
        logits = self.surrogate(protected)
        # where nothing is perturbed, generators have nothing to learn: such images count 0, which keeps the work of all processes alike
        loss = segmentation_loss(logits, masks, (batch["mask"] > 0).flatten(1).any(1) if is_generators else None)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.iterations += 1
        self.log("train/generator_loss" if is_generators else "train/surrogate_loss", loss.detach(), batch_size=len(images), sync_dist=True)
        self.log("train/dice", 1 - soft_dice(logits.detach(), masks).mean(), batch_size=len(images), sync_dist=True, prog_bar=True)

    def _grounds(self, images: Tensor) -> Tensor:
        """Return what perturbations are laid on: the images, or by chance the one before each in this process's batch."""
        if not self.hparams.exchange:
            return images
        random = generator(self.hparams.seed, "umed exchange", self.iterations)
        drawn = own_rows(torch.rand(len(images) * self.trainer.world_size, generator=random))
        return torch.where((drawn < self.hparams.exchange).to(images.device)[:, None, None, None], images.roll(1, 0), images)

    def _chance(self, count: int) -> Tensor:
        """Draw the augmentation's numbers for the global batch from (seed, iteration), and take this process's rows."""
        random = generator(self.hparams.seed, "umed augmentation", self.iterations)
        return own_rows(self.augment.draw(count * self.trainer.world_size, random))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iterations"] = self.iterations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.iterations = checkpoint.get("iterations", 0)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = self.hparams
        return [
            torch.optim.Adam(self.perturbator.parameters(), rates.lr_generator, weight_decay=rates.decay_generator),
            torch.optim.Adam(self.surrogate.parameters(), rates.lr_surrogate, weight_decay=rates.decay_surrogate),
        ]

    # ---- evaluation, on the integers that are stored

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def on_test_start(self) -> None:
        self.check_set(self.trainer.datamodule)  # type: ignore[attr-defined]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> None:
        """Measure quality, and the overlap in % of the surrogate's masks with the true ones, on protected images with foreground."""
        clean, masks = batch["image"], batch["mask"]
        stored = self.protect(clean, masks)
        found = self.surrogate.eval()(stored.float() / 255).argmax(1)
        full = (masks > 0).flatten(1).any(1)
        values = {"psnr": psnr(clean, stored)[full], "surrogate_dice": 100 * dice(found, masks, self.hparams.classes).nanmean(1)[full]}
        if metrics is self.test_metrics:
            values["psnr_roi"] = psnr(clean, stored, touched_region(masks, self.hparams.radius))[full]
            values["max_change"] = max_change(clean, stored)[full].double()
            if min(clean.shape[2:]) >= SSIM_WINDOW:
                values["ssim"] = ssim(clean, stored)[full]
        for name, value in values.items():
            metric = metrics[f"{metrics.prefix}{name}"]
            cast(MeanMetric, metric).update(value.float())
        self.log_dict({f"{metrics.prefix}{name}": metrics[f"{metrics.prefix}{name}"] for name in values}, batch_size=len(clean))
