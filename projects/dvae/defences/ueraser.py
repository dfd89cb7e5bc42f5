"""UEraser (Qin et al. 2023): train on the worst of several strong augmentations of every image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import TrivialAugmentWide

from projects.dvae.batches import to_bytes
from projects.dvae.defences.base import Defence
from shared.data.memory import to_unit

DRAWS = 5
PROBABILITY = 0.5
"""Of each of the plasmas and of the shuffle."""


def plasma(shape: tuple[int, int, int, int], roughness: Tensor, random: torch.Generator) -> Tensor:
    """Draw clouds: noise on grids of 2, 3, 5, 9, ... points a side, each enlarged to the image and `roughness` times as strong as the one before.

    The published augmentation has the diamond-square algorithm, whose octaves these are; no order of pixels is needed here.

    Args:
        shape: (B, C, H, W).
        roughness: (B,) in (0, 1).
        random: generator, on the device of `roughness`.

    Returns:
        (B, C, H, W), every channel from exactly 0 to exactly 1.
    """
    count, channels, height, width = shape
    clouds = torch.zeros(shape, device=roughness.device)
    for octave in range(math.ceil(math.log2(max(height, width, 2))) + 1):
        side = 2**octave + 1
        noise = torch.rand((count, channels, side, side), generator=random, device=roughness.device)
        enlarged = F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=True)
        clouds += roughness[:, None, None, None] ** octave * enlarged
    lowest, highest = clouds.amin((2, 3), keepdim=True), clouds.amax((2, 3), keepdim=True)
    return (clouds - lowest) / (highest - lowest)


def _uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random, device=random.device)


def plasma_brightness(images: Tensor, random: torch.Generator) -> Tensor:
    """Add a plasma in [-i, i] of intensity i ~ U(0.5, 1) and roughness U(0.3, 0.7) to (B, C, H, W) images in [0, 1]."""
    clouds = plasma(_shape(images), _uniform(len(images), 0.3, 0.7, random), random)
    intensity = _uniform(len(images), 0.5, 1.0, random)[:, None, None, None]
    return (images + intensity * (2 * clouds - 1)).clamp(0, 1)


def plasma_contrast(images: Tensor, random: torch.Generator) -> Tensor:
    """Multiply the distance to middle grey by a plasma in [0, 4] of roughness U(0.3, 0.7), of (B, C, H, W) images in [0, 1]."""
    clouds = plasma(_shape(images), _uniform(len(images), 0.3, 0.7, random), random)
    return ((images - 0.5) * 4 * clouds + 0.5).clamp(0, 1)


def shuffle_channels(images: Tensor, random: torch.Generator) -> Tensor:
    """Permute the channels of every image, (B, C, H, W), by a permutation of its own."""
    order = torch.rand(images.shape[:2], generator=random, device=images.device).argsort(1)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def _shape(images: Tensor) -> tuple[int, int, int, int]:
    count, channels, height, width = images.shape
    return count, channels, height, width


def trivially_augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Put every image through one operation of TrivialAugment (Müller & Hutter 2021), (B, C, H, W) in [0, 1] -> the same on the 8-bit grid."""
    seed = int(torch.randint(2**62, (), generator=random, device=random.device))
    augment = TrivialAugmentWide()
    exact = torch.autocast(images.device.type, enabled=False)  # bfloat16 would move pixels and round colours
    with torch.random.fork_rng(devices=[]), exact:  # torchvision draws from the global generator
        torch.default_generator.manual_seed(seed)
        return to_unit(torch.stack([augment(image) for image in to_bytes(images)]))


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Draw an augmentation for every image: plasma brightness, plasma contrast and a shuffle of channels by chance, then TrivialAugment."""
    for change in (plasma_brightness, plasma_contrast, shuffle_channels):
        is_chosen = torch.rand(len(images), generator=random, device=images.device) < PROBABILITY
        images = torch.where(is_chosen[:, None, None, None], change(images, random), images)
    return trivially_augment(images, random)


class UEraser(Defence):
    """The loss of every image is the largest over five augmentations in the first part of the training, and that of one augmentation afterwards.

    Args:
        share: part of the epochs with the largest of five; published: 50 of 200 for CIFAR-10, 30 of 300 for CIFAR-100, and 1 for UEraser-max.

    Raises:
        ValueError: for a share outside [0, 1].
    """

    def __init__(self, share: float = 0.25) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"the share of ueraser must lie in [0, 1], got {share:g}")
        self.share = share
        self.name = f"ueraser:{share:g}"

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor, random: torch.Generator, progress: float) -> Tensor:
        draws = DRAWS if progress < self.share else 1
        each = [F.cross_entropy(network(augment(images, random)), labels, reduction="none") for _ in range(draws)]
        return torch.stack(each).amax(0).mean()
