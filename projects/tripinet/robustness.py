"""Degradations of test pictures, before any preprocessing, along which curves of the F1 are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.memory import through_jpeg
from shared.seeding import generator


@dataclass(frozen=True)
class Degradation:
    """A degradation.

    Attributes:
        unit: what its strength is, for tables and figures.
        strengths: the strengths of the benchmark, the mildest one first.
        apply: maps (3, H, W) uint8, a strength and where chance comes from to (3, H', W') uint8.
    """

    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, float, torch.Generator], Tensor]


def degrade(image: Tensor, name: str, strength: float, index: int, seed: int = 0) -> Tensor:
    """Degrade a picture.

    Args:
        image: (3, H, W) uint8.
        name: a key of `DEGRADATIONS`.
        strength: in the unit of the degradation.
        index: number of the picture within its set.
        seed: seed of the noise, which depends on (seed, name, strength, index) alone.

    Returns:
        (3, H, W) uint8; smaller if it was resized, and a map of it belongs resized to the mask.

    Raises:
        ValueError: if there is no such degradation.
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"no degradation {name!r}: choose one of {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS[name].apply(image, strength, generator(seed, name, str(strength), index))


def jpeg(image: Tensor, quality: float, chance: torch.Generator) -> Tensor:
    """Compress as JPEG."""
    return through_jpeg(image[None], round(quality))[0]


def blur(image: Tensor, kernel: float, chance: torch.Generator) -> Tensor:
    """Filter by a Gaussian of so many pixels, whose sigma is 0.3 ((k - 1) / 2 - 1) + 0.8, as OpenCV has it."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    return gaussian_blur(image, [round(kernel)] * 2, [sigma, sigma])


def noise(image: Tensor, variance: float, chance: torch.Generator) -> Tensor:
    """Add white noise of so much variance, in squared levels of 255, to every value."""
    return (image + variance**0.5 * torch.randn(image.shape, generator=chance)).round().clamp(0, 255).byte()


def resize(image: Tensor, factor: float, chance: torch.Generator) -> Tensor:
    """Resize bilinearly, with anti-aliasing."""
    size = [max(1, round(factor * side)) for side in image.shape[1:]]
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


_STEPS = (3.0, 7.0, 11.0, 15.0, 19.0, 23.0)

DEGRADATIONS = {
    "jpeg": Degradation("quality", (100, 90, 80, 70, 60, 50), jpeg),
    "blur": Degradation("kernel, pixels", _STEPS, blur),
    "noise_variance": Degradation("variance, squared levels", _STEPS, noise),
    "noise_deviation": Degradation("standard deviation, levels", _STEPS, lambda image, sigma, chance: noise(image, sigma**2, chance)),
    "resize": Degradation("factor", (0.78, 0.25), resize),
}
"""Degradations by name; the benchmark's numbers of noise are variances, and SAFIRE takes the same ones as deviations."""
