"""The losses of rate-constrained variational autoencoders: tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOW_RATE = 1.0
"""Target below which the rate weighs more, in nats a latent position."""


def rate_of_each(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the rate of each image, (B,) in nats a latent position, from (B, D, h, w) means and logarithms of variances; in float32 at least."""
    if mean.dtype in (torch.bfloat16, torch.float16):
        mean, log_variance = mean.float(), log_variance.float()
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean((1, 2))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Rate of a latent grid: KL(N(mean, variance) || N(0, 1)).

    Args:
        mean: (B, D, h, w) means of the posterior.
        log_variance: (B, D, h, w) logarithms of its variances.

    Returns:
        Scalar in nats a latent position: the sum over channels, averaged over images and positions. A sum over an image is h · w times as large.
    """
    return rate_of_each(mean, log_variance).mean()


def rate_hinge(rate: Tensor, target: float, weight: float | None = None) -> Tensor:
    """Penalty on a rate above its target, λ · max(KLD, kd): below `target` it has no gradient, so training ends near it.

    Args:
        rate: scalar of `kl_divergence`.
        target: kd, in nats a latent position.
        weight: λ; None takes the released one, 0.01 from a target of 1 on and 0.5 below.
    """
    factor = (0.01 if target >= LOW_RATE else 0.5) if weight is None else weight
    return factor * rate.clamp(min=target)


def energy_hinge(perturbation: Tensor, floor: float = 0.002) -> Tensor:
    """Penalty on the mean square of a perturbation above `floor`, max(mean(p̂²), floor); 0.002 is a root mean square of 11.4 / 255.

    It stands in the released code, not in the paper's text.
    """
    return (perturbation**2).mean().clamp(min=floor)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean square error over every element, of (B, C, H, W) images."""
    return F.mse_loss(reconstruction, images)


def separation_loss(reconstruction: Tensor, perturbation: Tensor, images: Tensor) -> Tensor:
    """MSE(clip(x̂ + p̂, 0, 1), x): what the rate keeps out of x̂, the label has to explain; its gradient flows into both decoders."""
    return F.mse_loss((reconstruction + perturbation).clamp(0, 1), images)


def subtract(images: Tensor, perturbation: Tensor) -> Tensor:
    """Take a perturbation off images, clip(x - p̂, 0, 1), and round to the grid of 8-bit files.

    The released code truncates there, which darkens every image by half a level.
    """
    return on_grid(images - perturbation)


def on_grid(images: Tensor) -> Tensor:
    """Clip to [0, 1] and round to multiples of 1/255, as files of 8 bits hold them; in float32 at least, as half precision cannot."""
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    return torch.round(exact.clamp(0, 1) * 255) / 255
