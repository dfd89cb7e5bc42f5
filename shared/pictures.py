"""What people look at: heat maps over pictures, sheets of pictures, masks and maps, overviews with titles, and curves over strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 128
"""Least height of a picture in a sheet, in pixels."""
THUMBNAIL = 256
"""Longest side of a picture in an overview, in pixels."""
OVERLAY = 1600
"""Longest side of an overlay, in pixels."""


def heat(probability: Tensor) -> Tensor:
    """Colour probabilities in [0, 1], (..., H, W) -> (..., 3, H, W) in [0, 1], from black over red to pale yellow."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["inferno"](np.arange(256))[:, :3]).float()
    return colours[(probability.clamp(0, 1) * 255).round().long()].movedim(-1, -3)


def outline(mask: Tensor, width: int = 1) -> Tensor:
    """Return the pixels next to the inner border of a mask, (1, H, W) bool -> (1, H, W) bool; the picture's own border is none."""
    inside = -F.max_pool2d(-mask[None].float(), 2 * width + 1, 1, width)
    return mask & (inside[0] == 0)


def overlay(image: Tensor, probability: Tensor, threshold: float) -> Tensor:
    """Lay a map over a picture: the picture in grey where nothing is found, red where something is, and the region above the threshold outlined.

    Args:
        image: (3, H, W) uint8.
        probability: (1, H, W) in [0, 1].
        threshold: probability above which a pixel counts as found.

    Returns:
        (3, H, W) in [0, 1].
    """
    grey = image.float().mean(0, keepdim=True) / 255
    strength = 0.5 * probability.clamp(0, 1)
    shown = (1 - strength) * grey + strength * torch.tensor([1.0, 0.1, 0.05])[:, None, None]
    width = max(1, round(min(image.shape[1:]) / 400))
    return torch.where(outline(probability > threshold, width), torch.tensor([1.0, 0.9, 0.2])[:, None, None], shown)


def shrunk(layers: Tensor, longest: int) -> Tensor:
    """Scale (C, H, W) down, by averaging, until its longest side is so many pixels; smaller ones stay as they are."""
    scale = longest / max(layers.shape[1:])
    size = [max(1, round(side * scale)) for side in layers.shape[1:]]
    return F.interpolate(layers[None], size=size, mode="bilinear", antialias=True)[0] if scale < 1 else layers


def laid_over(image: Tensor, probability: Tensor, threshold: float) -> Tensor:
    """Return the `overlay` of a map, both scaled down where a side exceeds `OVERLAY`; (3, h, w) uint8."""
    return (overlay(shrunk(image, OVERLAY), shrunk(probability, OVERLAY), threshold) * 255).round().byte()


def levels(probability: np.ndarray, bits: Literal[8, 16] = 16) -> np.ndarray:
    """Return probabilities as the nearest of 256 or 65536 levels, the highest of them for 1, in uint8 or uint16."""
    scaled = probability * np.float32(2**bits - 1)
    return np.rint(scaled, out=scaled).astype(np.uint8 if bits == 8 else np.uint16)


def beside(layers: Sequence[Tensor]) -> np.ndarray:
    """Set layers of a picture, (1 or 3, H, W) uint8 each, side by side with white gaps, all of the size of the first one's thumbnail; (h, w, 3)."""
    first = shrunk(layers[0], THUMBNAIL)
    small = [first, *(F.interpolate(layer[None], size=first.shape[1:], mode="bilinear", antialias=True)[0] for layer in layers[1:])]
    gap = torch.full((3, first.shape[1], max(2, first.shape[2] // 64)), 255, dtype=torch.uint8)
    parted = [part for layer in small for part in (gap, layer.expand(3, -1, -1))][1:]
    return torch.cat(parted, dim=2).permute(1, 2, 0).numpy()


def overview(thumbnails: Sequence[tuple[str, np.ndarray]], columns: int = 3, heading: str = "") -> Figure:
    """Draw thumbnails under their titles.

    Args:
        thumbnails: title and pixels, (H, W, 3) uint8, of each; at least one.
        columns: thumbnails beside each other at most.
        heading: of the whole.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(thumbnails))
    rows = [thumbnails[start : start + columns] for start in range(0, len(thumbnails), columns)]
    heights = [0.5 + 4.2 * min(1.0, max(pixels.shape[0] / pixels.shape[1] for _, pixels in row)) for row in rows]
    figure = Figure(figsize=(4.4 * columns, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, height_ratios=heights, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, pixels) in zip(axes.flat, thumbnails, strict=False):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9, parse_math=False)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def shortened(name: str, length: int = 40) -> str:
    """Return the end of a name that is too long for a title."""
    return name if len(name) <= length else "..." + name[3 - length :]


def sheet(rows: Sequence[Tensor]) -> Tensor:
    """Return a sheet, (3, height, width) in [0, 1], of rows of as many pictures of one size; small ones are enlarged.

    Args:
        rows: (B, 1 or 3, H, W) each, floats in [0, 1] or uint8.
    """
    scaled = [row.float() / 255 if row.dtype == torch.uint8 else row.float() for row in rows]
    pictures = torch.cat([row.expand(-1, 3, -1, -1) for row in scaled])
    enlarged = F.interpolate(pictures, scale_factor=max(1, -(-SIDE // pictures.shape[2])), mode="nearest")
    return make_grid(enlarged, nrow=len(rows[0]), padding=3, pad_value=1)


def curves(measured: dict[str, list[tuple[float, float]]], clean: float, label: str) -> Figure:
    """Draw a measure over the strength of each degradation, one panel each; the dashed line is that of untouched pictures.

    Args:
        measured: pairs of strength and measure, by degradation and its unit.
        clean: the measure of untouched pictures.
        label: of the measure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(measured), 3), layout="constrained")
    axes = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axis, (name, pairs) in zip(axes, measured.items(), strict=True):
        axis.axhline(clean, color="grey", linestyle="--", linewidth=1, label="untouched")
        axis.plot([f"{strength:g}" for strength, _ in pairs], [value for _, value in pairs], marker="o")
        axis.set(xlabel=name, ylim=(0, 1))
    axes[0].set_ylabel(label)
    axes[0].legend(frameon=False)
    return figure
