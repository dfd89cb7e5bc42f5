"""Cutout (DeVries & Taylor 2017), MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.dvae.defences.base import Defence

ROUNDS = 2
PROBABILITY = 0.5


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Mark the pixels of boxes.

    Args:
        boxes: (B, 4) int64: top, bottom, left, right; the bottom row and the right column are outside. Parts beyond the image are cut off.
        height: H.
        width: W.

    Returns:
        (B, 1, H, W) bool.
    """
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)  # (B, H), (B, W)
    return (down[:, :, None] & across[:, None, :])[:, None]


def draw_boxes(heights: Tensor, widths: Tensor, height: int, width: int, random: torch.Generator) -> Tensor:
    """Draw boxes of given (B,) int64 heights and widths with centres uniform over the image, (B, 4); they may reach beyond it."""
    rows = torch.randint(height, heights.shape, generator=random, device=heights.device)
    columns = torch.randint(width, widths.shape, generator=random, device=widths.device)
    top, left = rows - heights // 2, columns - widths // 2
    return torch.stack([top, top + heights, left, left + widths], dim=1)


class Cutout(Defence):
    """Blackens a square of half the image's shorter side, 16 x 16 at 32 x 32, at a random place in every training image."""

    name = "cutout"

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor, random: torch.Generator, progress: float) -> Tensor:
        height, width = images.shape[2:]
        side = torch.full((len(images),), min(height, width) // 2, device=images.device)
        boxes = draw_boxes(side, side, height, width, random)
        return F.cross_entropy(network(images.masked_fill(inside_boxes(boxes, height, width), 0.0)), labels)


class Mixture(NamedTuple):
    """Mixed images (B, C, H, W); labels (R + 1, B) and their weights (R + 1, B), which add up to 1 for every image."""

    images: Tensor
    labels: Tensor
    weights: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy to the mixed labels, averaged over images, of (B, K) logits."""
        each = torch.stack([F.cross_entropy(logits, labels, reduction="none") for labels in self.labels])
        return (self.weights * each).sum(0).mean()


def mix_up(images: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """Blend images, λ x + (1 - λ) x', with (B,) shares λ."""
    weights = shares[:, None, None, None]
    return weights * images + (1 - weights) * others


def mixing_boxes(shares: Tensor, height: int, width: int, random: torch.Generator) -> Tensor:
    """Draw boxes, (B, 4), that cover a part 1 - λ of an image before they are cut off at its border; none for λ = 1."""
    ratio = (1 - shares).sqrt()
    return draw_boxes((height * ratio).long(), (width * ratio).long(), height, width, random)


def cut_mix(images: Tensor, others: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Put boxes of other images over images.

    Args:
        images: (B, C, H, W).
        others: (B, C, H, W).
        boxes: (B, 4) as of `inside_boxes`.

    Returns:
        (B, C, H, W), and the share of each image that is still its own, (B,).
    """
    inside = inside_boxes(boxes, *images.shape[2:])
    return torch.where(inside, others, images), 1 - inside.float().mean((1, 2, 3))


class Mixing(Defence):
    """MixUp or CutMix: twice, and each time with probability 1/2, an image is mixed with another of its batch; λ ~ Beta(1, 1).

    Args:
        name: mixup or cutmix.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def mix(self, images: Tensor, labels: Tensor, random: torch.Generator) -> Mixture:
        """Mix a batch, images (B, C, H, W) and labels (B,), with itself."""
        mixed, found, weights = images, [labels], [torch.ones_like(labels, dtype=images.dtype)]
        for _ in range(ROUNDS):
            partners = torch.randperm(len(images), generator=random, device=images.device)
            share = torch.rand(len(images), generator=random, device=images.device)  # Beta(1, 1)
            is_mixed = torch.rand(len(images), generator=random, device=images.device) < PROBABILITY
            share = torch.where(is_mixed, share, 1.0)
            if self.name == "mixup":
                mixed = mix_up(mixed, images[partners], share)
            else:
                mixed, share = cut_mix(mixed, images[partners], mixing_boxes(share, images.shape[2], images.shape[3], random))
            weights = [weight * share for weight in weights] + [1 - share]
            found.append(labels[partners])
        return Mixture(mixed, torch.stack(found), torch.stack(weights))

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor, random: torch.Generator, progress: float) -> Tensor:
        mixture = self.mix(images, labels, random)
        return mixture.loss(network(mixture.images))
