"""Denoised smoothing: a denoiser before the classifier makes networks that never saw noise fit to be smoothed.

base = Denoised(DiffusionDenoiser.from_pipeline(folder, sigma=0.25), classifier, size=224)
smoothed = SmoothedClassifier(base, classes=10, smoothing=Smoothing(sigmas=(0.25,)), budget=Budget())

The certificate is that of the classifier behind the denoiser. It holds for every denoiser that is a function of the noised image alone, of whatever
quality; one that draws noise of its own, by a generator that the image's key does not determine, is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Prediction = Literal["epsilon", "sample", "v_prediction"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction")


def resized(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) images to squares, or to (H, W), by bicubic interpolation with antialiasing; those that fit are returned as they are."""
    sides = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == sides:
        return images
    return F.interpolate(images, sides, mode="bicubic", antialias=True, align_corners=False)


class Denoised(nn.Module):
    """A classifier behind a denoiser, (B, C, H, W) noised images -> (B, K) logits (Salman et al. 2020, arXiv 2003.01908).

    Args:
        denoiser: maps noised images, in the scale of [0, 1] images, to denoised ones.
        classifier: maps images in [0, 1] to logits; its normalisation is its first layer.
        size: side or (H, W) that the classifier needs; other denoised images are resized bicubically, as Carlini et al. 2023 do. None: it takes any.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module, size: int | tuple[int, int] | None = None) -> None:
        super().__init__()
        self.denoiser, self.classifier, self.size = denoiser, classifier, size

    def forward(self, noised: Tensor) -> Tensor:
        """Denoise, resize and classify."""
        denoised = self.denoiser(noised)
        logits: Tensor = self.classifier(denoised if self.size is None else resized(denoised, self.size))
        return logits


class DiffusionDenoiser(nn.Module):
    """Denoises by a diffusion model's prediction of the clean image, in one step (Carlini et al. 2023, arXiv 2206.10550).

    With u = 2 x - 1 the image under noise of deviation sigma is u + 2 sigma e. At the first step t of the schedule whose noise is as strong,
    sqrt((1 - abar_t) / abar_t) >= 2 sigma, the network gets x_t = sqrt(abar_t) (u + 2 sigma e), and its prediction of u is the denoised image, cut to
    [-1, 1]. That is the paper's algorithm. A schedule seldom has a step of exactly this strength; x_t then holds a little less noise than the network
    expects, and the rest is not made up. (The published code draws the noise of step t itself, from a generator without a seed: radii in terms of the
    weaker sigma hold for it, too, but votes cannot be repeated.)

    Args:
        unet: maps (B, C, H, W) and (B,) int64 steps to (B, C, H, W), or to an object that has this as `.sample`, as diffusers' `UNet2DModel`. Of 2 C
            channels the last C are a learned variance, which is left out.
        alphas_cumprod: (T,) abar_t, decreasing.
        sigma: standard deviation of the noise, in units of [0, 1] images: that of the smoothing.
        prediction: what the network predicts: the noise (epsilon), u (sample) or sqrt(abar) e - sqrt(1 - abar) u (v_prediction).
        size: side that the network needs; other images are resized bicubically for it, and come back at this side. Resized noise is no longer white,
            so images of this side are denoised better. None: it takes any.

    Attributes:
        step: t.

    Raises:
        ValueError: if sigma is not positive or beyond the schedule's end, or there is no such prediction.
    """

    def __init__(self, unet: nn.Module, alphas_cumprod: Tensor, sigma: float, prediction: Prediction = "epsilon", size: int | None = None) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"a network predicts one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        self.unet, self.sigma, self.prediction, self.size = unet, sigma, prediction, size
        self.step = noise_step(alphas_cumprod, sigma)
        abar = float(alphas_cumprod[self.step])
        self._signal, self._noise = abar**0.5, (1 - abar) ** 0.5

    @classmethod
    def from_pipeline(cls, folder: str | Path, sigma: float) -> DiffusionDenoiser:
        """Take U-Net and schedule from a folder of an unconditional diffusers pipeline.

        Args:
            folder: what `save_pretrained` wrote; see `shared.backbones.unets.load_pipeline`.
            sigma: standard deviation of the smoothing noise.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the files are damaged or of another kind, or sigma is beyond the schedule's end.
        """
        from diffusers import DDPMScheduler

        from shared.backbones.unets import load_pipeline

        unet, settings = load_pipeline(folder)
        shared = {name: value for name, value in settings.items() if name in _SCHEDULE}
        abar = DDPMScheduler(**shared).alphas_cumprod
        side = unet.config.sample_size
        if side is not None and not isinstance(side, int) and len(set(side)) > 1:
            raise ValueError(f"the U-Net in {folder} draws pictures of {side[0]} x {side[1]}: only square ones are resized to")
        size = side if side is None or isinstance(side, int) else side[0]
        return cls(unet, abar, sigma, settings.get("prediction_type", "epsilon"), size)

    def forward(self, noised: Tensor) -> Tensor:
        """Denoise (B, C, H, W) images x + e in the scale of [0, 1] to (B, C, H, W) in [0, 1].

        Raises:
            ValueError: if the network does not take or return as many channels.
        """
        images = noised if self.size is None else resized(noised, self.size)
        x_t = self._signal * (2 * images - 1)
        predicted = self._predict(x_t)
        if self.prediction == "epsilon":
            clean = (x_t - self._noise * predicted) / self._signal
        elif self.prediction == "v_prediction":
            clean = self._signal * x_t - self._noise * predicted
        else:
            clean = predicted
        return (clean.clamp(-1, 1) + 1) / 2

    def _predict(self, x_t: Tensor) -> Tensor:
        channels = x_t.shape[1]
        takes = getattr(getattr(self.unet, "config", None), "in_channels", channels)
        if takes != channels:
            raise ValueError(f"the U-Net takes {takes} channels, the images have {channels}: take a U-Net of such images, or convert them before")
        found = self.unet(x_t, torch.full((len(x_t),), self.step, device=x_t.device))
        predicted: Tensor = found if isinstance(found, Tensor) else found.sample
        if predicted.shape[1] not in (channels, 2 * channels):
            raise ValueError(
                f"the U-Net returns {predicted.shape[1]} channels for images of {channels}: it must be as many, or twice as many (a learned variance)"
            )
        return predicted[:, :channels]


_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""Settings of a diffusers scheduler that abar follows from; whatever its class, the network was trained with these."""


def noise_step(alphas_cumprod: Tensor, sigma: float) -> int:
    """Return the first step t with sqrt((1 - abar_t) / abar_t) >= 2 sigma, at which images in [-1, 1] are as noisy as those in [0, 1] under sigma.

    Args:
        alphas_cumprod: (T,) abar_t in [0, 1], decreasing.
        sigma: standard deviation, in units of [0, 1] images.

    Raises:
        ValueError: if sigma is not positive, abar does not decrease, or no step is as noisy.
    """
    abar = alphas_cumprod.detach().to("cpu", torch.float64)
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if abar.ndim != 1 or bool((abar.diff() > 0).any()) or not bool(((abar >= 0) & (abar <= 1)).all()):
        raise ValueError("alphas_cumprod must be one falling row of numbers in [0, 1]: products of the alphas, not the alphas or the betas")
    levels = ((1 - abar) / abar).sqrt()
    levels = levels[levels.isfinite()]  # of a last step that is noise alone nothing can be denoised
    enough = (levels >= 2 * sigma).nonzero()
    if not len(enough):
        raise ValueError(
            f"sigma = {sigma} is beyond the end of the schedule, whose {len(abar)} steps reach {float(levels.max()) / 2:.4g}: "
            "take a smaller sigma, or a model that was trained with more noise"
        )
    return int(enough[0])


def _noised(images: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, device=images.device if generator is None else generator.device)
    return images + sigma * noise.to(images)


def denoising_loss(denoiser: Callable[[Tensor], Tensor], images: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Mean squared error of denoised images, mean |D(x + e) - x|^2 (Salman et al. 2020, MSE objective).

    Args:
        denoiser: D, in training.
        images: (B, C, H, W) in [0, 1].
        sigma: standard deviation of the noise e.
        generator: source of the noise; None is torch's own.

    Returns:
        Scalar, the mean over all elements.
    """
    return F.mse_loss(denoiser(_noised(images, sigma, generator)), images)


def stability_loss(
    denoiser: Callable[[Tensor], Tensor], classifier: nn.Module, images: Tensor, sigma: float, generator: torch.Generator | None = None
) -> Tensor:
    """Cross-entropy of denoised images to the class that the classifier gives the clean ones, CE(f(D(x + e)), argmax f(x)) (Salman et al. 2020).

    It needs no true labels, and makes the denoiser keep what this very classifier looks at.

    Args:
        denoiser: D, in training.
        classifier: f, frozen and in evaluation mode; gradients pass through it to the denoiser.
        images: (B, C, H, W) in [0, 1].
        sigma: standard deviation of the noise e.
        generator: source of the noise; None is torch's own.

    Returns:
        Scalar.

    Raises:
        ValueError: if the classifier is in training mode.
    """
    if classifier.training:
        raise ValueError("the classifier is frozen: call classifier.eval() and classifier.requires_grad_(False) first")
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    return F.cross_entropy(classifier(denoiser(_noised(images, sigma, generator))), labels)
