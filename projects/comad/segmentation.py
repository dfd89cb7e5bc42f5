"""Soft and hard segmentation of pictures into the components of a vocabulary."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.comad.vocabulary import Metric

CRF = Callable[[Tensor, Tensor], Tensor]
"""Maps probabilities, (B, K, H, W), and pictures, (B, 3, H, W) uint8, to sharper probabilities."""


def similarity_maps(features: Tensor, centres: Tensor, metric: Metric = "cosine") -> Tensor:
    """Compare tokens with the centres: s_k = cos(q_k, f_ij), less its mean over the picture, and not below 0 (step 1).

    With the metric `euclidean` it is s_k = -|f_ij - q_k|^2 / 2, whose softmax is the posterior of Gaussians of deviation 1 around the centres.

    Args:
        features: (B, C, h, w).
        centres: (K, C) q_k.
        metric: that of the vocabulary.

    Returns:
        (B, K, h, w) float32, in [0, 2]; at most 0 with `euclidean`.

    Raises:
        ValueError: if the features have other channels than the centres.
    """
    maps = _compared(features, centres, metric)
    return maps.clamp_min(0) if metric == "cosine" else maps


def soft_maps(features: Tensor, centres: Tensor, size: int | tuple[int, int], metric: Metric = "cosine") -> Tensor:
    """Return the softmax over components of the similarity maps, enlarged bilinearly with aligned corners (steps 1-3).

    Args:
        features: (B, C, h, w).
        centres: (K, C).
        size: side, or height and width, of the maps in pixels.
        metric: that of the vocabulary.

    Returns:
        (B, K, H, W) float32 of sum 1 over k, from which the CRF starts. They are nearly flat with `cosine`, whose similarities differ by 1 at most.

    Raises:
        ValueError: if the features have other channels than the centres.
    """
    return _enlarged(similarity_maps(features, centres, metric), size).softmax(1)


def hard_maps(maps: Tensor) -> Tensor:
    """Return the component of each pixel, (B, K, H, W) -> (B, H, W) int64: the one with the largest map (step 4)."""
    return maps.argmax(1)


@torch.no_grad()
def segment(features: Tensor, images: Tensor, centres: Tensor, crf: CRF | None, metric: Metric = "cosine") -> Tensor:
    """Segment pictures into heat maps Q.

    Args:
        features: (B, C, h, w) of the pictures.
        images: (B, 3, H, W) uint8.
        centres: (K, C).
        crf: sharpens the soft maps by the pictures' edges. With None the heat maps are the hard maps, 0 or 1, for soft maps are too flat
            for thresholds; they are of the similarities before these are cut off at 0, which would leave nothing to compare where all are below.
        metric: that of the vocabulary.

    Returns:
        (B, K, H, W) float32 in [0, 1] with sum 1 over k.

    Raises:
        ValueError: if the features have other channels than the centres.
    """
    size = images.shape[2], images.shape[3]
    centres = centres.to(features.device)
    with torch.autocast(features.device.type, enabled=False):  # only networks run in less than float32
        if crf is not None:
            return crf(soft_maps(features, centres, size, metric), images)
        labels = hard_maps(_enlarged(_compared(features, centres, metric), size))
        return F.one_hot(labels, len(centres)).movedim(-1, 1).float()


def palette(k: int) -> Tensor:
    """Return k colours, (k, 3) uint8: hues around the circle, in turn bright and dark."""
    colours = [colorsys.hsv_to_rgb(number / k, 0.55 if number % 2 else 0.9, 1.0 if number % 2 else 0.75) for number in range(k)]
    return (torch.tensor(colours) * 255).round().to(torch.uint8)


def colour_coded(labels: Tensor, k: int, images: Tensor | None = None, strength: float = 0.6) -> Tensor:
    """Paint the component of each pixel in its colour of the palette, over the picture in grey if there is one.

    Args:
        labels: (B, H, W) components in 0..k-1.
        k: components.
        images: (B, 3, H, W) uint8.
        strength: part of the colour in the mixture with the picture, in [0, 1].

    Returns:
        (B, 3, H, W) uint8.
    """
    colours = palette(k).to(labels.device)[labels].movedim(-1, 1)
    if images is None:
        return colours
    grey = images.float().mean(1, keepdim=True)
    return (strength * colours + (1 - strength) * grey).round().to(torch.uint8)


def _compared(features: Tensor, centres: Tensor, metric: Metric) -> Tensor:
    """Return, (B, K, h, w), the cosines of tokens with the centres less their means over the picture, or the negative halves of squared distances."""
    if features.shape[1] != centres.shape[1]:
        raise ValueError(f"the features have {features.shape[1]} channels and the vocabulary {centres.shape[1]}: it was fitted to other features")
    tokens, centres = features.float(), centres.to(features.device, torch.float32)
    if metric == "euclidean":
        products = torch.einsum("bchw,kc->bkhw", tokens, centres)
        return products - (tokens.square().sum(1, keepdim=True) + centres.square().sum(1)[:, None, None]) / 2
    cosines = torch.einsum("bchw,kc->bkhw", F.normalize(tokens, dim=1), F.normalize(centres, dim=1))
    return cosines - cosines.mean((2, 3), keepdim=True)


def _enlarged(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=True)
