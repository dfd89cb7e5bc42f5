"""Perturbations of images in five levels: six of the seven of DeeperForensics' code, and a true JPEG.

perturbed = perturb(images, "noise", level=3, indices=batch["index"])

Strengths are those of images that detectors usually see, of 224 pixels or more; in smaller ones blur and pixelation shrink in proportion, so that
as much of the picture is lost, and so do blocks. What is random about an image depends on
(seed, perturbation, level, its index) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.data.memory import through_jpeg, to_unit
from shared.poisons import to_levels
from shared.seeding import generator

LEVELS = (1, 2, 3, 4, 5)
"""The mildest to the strongest."""

USUAL = 224
"""Shorter side of images, in pixels, from which on blur and pixelation have their full strength."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (BT.601)."""

FROM_YCBCR = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""Red, green and blue from brightness and the two differences of colour, of full range (JPEG)."""


@dataclass(frozen=True)
class Perturbation:
    """A perturbation.

    Attributes:
        unit: what its strength is, for tables and figures.
        strengths: strength of each of the five levels.
        apply: maps (N, 3, H, W) uint8 images, a strength and a generator for each image to (N, 3, H, W) uint8.
    """

    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, float, list[torch.Generator]], Tensor]


def perturb(images: Tensor, name: str, level: int, indices: Tensor | Sequence[int], seed: int = 0) -> Tensor:
    """Perturb images.

    Args:
        images: (N, 3, H, W) uint8, on any device.
        name: a key of `PERTURBATIONS`.
        level: 1 to 5.
        indices: (N,) numbers of the images within their set.
        seed: seed of what is random.

    Returns:
        (N, 3, H, W) uint8 on the same device.

    Raises:
        ValueError: if there is no such perturbation or level, the images are no colour images of 8 bits or too small, or indices do not go with them.
    """
    if name not in PERTURBATIONS:
        raise ValueError(f"no perturbation {name!r}: choose of {', '.join(PERTURBATIONS)}")
    if level not in LEVELS:
        raise ValueError(f"levels of a perturbation are 1 to 5, got {level}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if len(indices) != len(images):
        raise ValueError(f"{len(images)} images with {len(indices)} indices: there must be one an image")
    chosen = PERTURBATIONS[name]
    generators = [generator(seed, name, level, int(index)) for index in indices]
    return chosen.apply(images, chosen.strengths[level - 1], generators)


def saturation(images: Tensor, part: float, generators: list[torch.Generator]) -> Tensor:
    """Scale both differences of colour about grey by `part`, in [0, 1]; brightness stays."""
    colours = to_unit(images)
    grey = (colours * colours.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return to_levels(grey + part * (colours - grey))


def contrast(images: Tensor, part: float, generators: list[torch.Generator]) -> Tensor:
    """Multiply values by `part`, in [0, 1]."""
    return to_levels(to_unit(images) * part)


def blocks(images: Tensor, count: float, generators: list[torch.Generator]) -> Tensor:
    """Lay `count` grey squares over each image, at random places.

    They have 8 pixels a side, and there are `count` for each full 256 pixels of the shorter side; below 256, where that is none, there are `count`
    squares that shrink with the image instead, to no less than 2 pixels.
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    side = 8 if shorter >= 256 else max(2, round(8 * shorter / 256))
    if shorter < side:
        raise ValueError(f"images of {height} x {width} pixels are too small for blocks of {side}")
    number = int(count) * max(1, shorter // 256)
    perturbed = images.clone()
    for image, own in zip(perturbed, generators, strict=True):
        chance = torch.rand(number, 2, generator=own)
        corners = (chance * torch.tensor([height - side + 1, width - side + 1])).long()
        for top, left in corners.tolist():
            image[:, top : top + side, left : left + side] = 128
    return perturbed


def noise(images: Tensor, variance: float, generators: list[torch.Generator]) -> Tensor:
    """Add white noise of so much variance, in units of [0, 1] images, to brightness and both differences of colour: 8 to 57 levels of 255."""
    white = torch.stack([torch.randn(images.shape[1:], generator=own) for own in generators]).to(images.device)
    coloured = torch.einsum("rc,nchw->nrhw", white.new_tensor(FROM_YCBCR), variance**0.5 * white)
    return to_levels(to_unit(images) + coloured)


def blur(images: Tensor, kernel: float, generators: list[torch.Generator]) -> Tensor:
    """Filter by a Gaussian of `kernel` pixels a side, an odd number, and a standard deviation of a sixth of it; the border is mirrored.

    Below 224 pixels the deviation shrinks with the image, and the kernel to the odd number of pixels that holds it.
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    width = kernel * _share_of_usual(images)
    side = max(3, 2 * round((width - 1) / 2) + 1)
    if min(images.shape[2:]) <= side // 2:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]} pixels are too small for a blur over {side}")
    return gaussian_blur(images, [side, side], [width / 6, width / 6])


def pixelation(images: Tensor, factor: float, generators: list[torch.Generator]) -> Tensor:
    """Shrink images by `factor` and enlarge them again, linearly and without smoothing; DeeperForensics calls it JPEG compression.

    Below 224 pixels what the factor exceeds 1 by shrinks with the image.
    """
    size = images.shape[2:]
    smaller = [max(1, int(side / (1 + (factor - 1) * _share_of_usual(images)))) for side in size]
    shrunk = F.interpolate(to_unit(images), size=smaller, mode="bilinear", align_corners=False)
    return to_levels(F.interpolate(shrunk, size=tuple(size), mode="bilinear", align_corners=False))


def _share_of_usual(images: Tensor) -> float:
    return min(1.0, min(images.shape[2:]) / USUAL)


def jpeg(images: Tensor, quality: float, generators: list[torch.Generator]) -> Tensor:
    """Compress images as JPEG of `quality`, 1 to 100, and read them back."""
    return through_jpeg(images, int(quality))


PERTURBATIONS: dict[str, Perturbation] = {
    "saturation": Perturbation("part of the colour", (0.4, 0.3, 0.2, 0.1, 0.0), saturation),
    "contrast": Perturbation("part of the brightness", (0.85, 0.725, 0.6, 0.475, 0.35), contrast),
    "blocks": Perturbation("grey blocks", (16, 32, 48, 64, 80), blocks),
    "noise": Perturbation("variance", (0.001, 0.002, 0.005, 0.01, 0.05), noise),
    "blur": Perturbation("kernel in pixels", (7, 9, 13, 17, 21), blur),
    "pixelation": Perturbation("factor", (2, 3, 4, 5, 6), pixelation),
    "jpeg": Perturbation("quality", (90, 75, 60, 45, 30), jpeg),
}
"""By name; recompression of videos, DeeperForensics' seventh, needs a video encoder and is not among them."""
