"""Where a perturbation may be and how strong: contour band and interior, local texture, and what the two generators' outputs make of them."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.poisons.bounds import add_on_grid

TextureMode = Literal["count", "code", "transitions"]
"""Measures of texture from a local binary pattern: its ones / 8, its value / 255, or its changes around the circle / 8."""

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""
_CIRCLE = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""(row, column) of the neighbours of bits 0 to 7: from the right counter-clockwise, as scikit-image counts them."""


class Regions(NamedTuple):
    """What is perturbed of each image; the two are disjoint.

    Attributes:
        band: (B, 1, H, W) bool, the contour band B.
        interior: (B, 1, H, W) bool, the interior I.
    """

    band: Tensor
    interior: Tensor


def default_radius(size: int) -> int:
    """Return the band's reach in pixels for images of `size` pixels: 3 at 256, at least 1."""
    return max(1, round(size / 85))


def regions(masks: Tensor, radius: int | None, classes: int = 1) -> Regions:
    """Split the region of interest into its contour band B = dilate(M, r) - erode(M, r) and its interior I = M - B.

    Structuring elements are squares of side 2r + 1. What lies outside of the image is background to the dilation and foreground to the erosion: where
    the frame cuts an object there is no band. The bands of several classes are joined, so that borders between classes are contours too, and what is
    left of the classes' interiors without that band is the interior.

    Args:
        masks: (B, H, W) whole numbers or bool, 0 for the background and 1..K for the classes.
        radius: r in pixels, at least 1; None takes `default_radius` of the masks' longer side.
        classes: foreground classes K; with 1, all that is not 0 is foreground.

    Raises:
        ValueError: if the shape is another or an argument is below 1.
    """
    if masks.ndim != 3 or (radius is not None and radius < 1) or classes < 1:
        raise ValueError(f"regions are of (B, H, W) masks, with radius and classes of at least 1, got {tuple(masks.shape)}, {radius} and {classes}")
    reach = default_radius(max(masks.shape[1:])) if radius is None else radius
    band = torch.zeros(len(masks), 1, *masks.shape[1:], dtype=torch.bool, device=masks.device)
    interior = band.clone()
    for number in range(1, classes + 1):
        inside = masks[:, None] > 0 if classes == 1 else masks[:, None] == number
        dilated, eroded = _dilate_and_erode(inside, reach)
        band |= dilated & ~eroded
        interior |= eroded
    return Regions(band, interior & ~band)


def _dilate_and_erode(inside: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Dilate and erode (B, 1, H, W) bool; nothing comes in from outside, which so is empty to both the mask and its complement."""
    both = _spread(_spread(torch.cat([inside, ~inside], 1), radius, 2), radius, 3)
    return both[:, :1], ~both[:, 1:]


def _spread(marked: Tensor, radius: int, axis: int) -> Tensor:
    """Mark all within `radius` of a marked place along an axis, which is max-pooling; each round triples the reach, so there are about log3 r."""
    reach, length = 0, marked.shape[axis]
    while reach < min(radius, length):
        step = min(2 * reach + 1, radius - reach, length)
        spread = marked.clone()
        spread.narrow(axis, step, length - step).logical_or_(marked.narrow(axis, 0, length - step))
        spread.narrow(axis, 0, length - step).logical_or_(marked.narrow(axis, step, length - step))
        marked, reach = spread, reach + step
    return marked


def grey(images: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601) of (B, 3, H, W) images, or grey images as they are, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue


def binary_pattern(luma: Tensor) -> list[Tensor]:
    """Return the local binary pattern of (B, 1, H, W), bit n = [f(p_n) >= f(p0)], as eight (B, 1, H, W) bool.

    The neighbours are the 8 pixels around p0. Those beyond the image are the border repeated; scikit-image takes 0 there, and for eight neighbours
    interpolates the four at the corners at a distance of 1.
    """
    height, width = luma.shape[2:]
    padded = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    return [padded[:, :, 1 + row : 1 + row + height, 1 + column : 1 + column + width] >= luma for row, column in _CIRCLE]


@torch.no_grad()
def local_texture(images: Tensor, mode: TextureMode = "count") -> Tensor:
    """Measure the texture at each pixel, T(p), from the local binary pattern of the grey image.

    A flat place is 1 in the modes count and code, since equal neighbours count as ones, and 0 in the mode transitions.

    Args:
        images: (B, C, H, W) clean images, C being 1 or 3.
        mode: measure of the pattern.

    Returns:
        (B, 1, H, W) in [0, 1], without gradients.

    Raises:
        ValueError: if the mode is not known.
    """
    if mode not in get_args(TextureMode):
        raise ValueError(f"texture is measured by {', '.join(get_args(TextureMode))}, not by {mode!r}")
    bits = binary_pattern(grey(images))
    if mode == "transitions":
        bits = [bit ^ bits[number - 1] for number, bit in enumerate(bits)]
    total = torch.zeros_like(bits[0], dtype=torch.uint8)  # 255 at most
    for number, bit in enumerate(bits):
        total += bit.view(torch.uint8) << number if mode == "code" else bit.view(torch.uint8)
    return total.to(images.dtype) / (255 if mode == "code" else 8)


def local_mean(values: Tensor, side: int) -> Tensor:
    """Return the mean of (B, C, H, W) over the side x side pixels around each, `side` being odd; beyond the border values are repeated."""
    reach = side // 2
    return F.avg_pool2d(F.pad(values, (reach, reach, reach, reach), mode="replicate"), side, stride=1)


def compose(contour: Tensor | None, texture: Tensor | None, found: Regions, strength: Tensor | None, epsilon: float) -> Tensor:
    """Join the generators' outputs: δ_c = ε tanh(c) B and δ_t = clip(ε tanh(t), -ε T, ε T) I.

    B and I are disjoint, so that the sum is at most ε.

    Args:
        contour: (B, C, H, W) output c of the contour generator; None leaves δ_c out.
        texture: (B, C, H, W) output t of the texture generator; None leaves δ_t out.
        found: band and interior.
        strength: (B, 1, H, W) texture T in [0, 1]; None clips by ε alone, which tanh never exceeds.
        epsilon: bound ε in units of [0, 1] images.

    Returns:
        (B, C, H, W) δ in units of [0, 1] images, 0 outside of B and I.

    Raises:
        ValueError: if both outputs are None.
    """
    parts = []
    if contour is not None:
        parts.append(epsilon * contour.tanh() * found.band)
    if texture is not None:
        bounded = texture.tanh()
        if strength is not None:
            # forwards it is the clip; backwards gradients pass, else what is once clipped never changes again
            bounded = bounded.clamp(-strength, strength).detach() + (bounded - bounded.detach())
        parts.append(epsilon * bounded * found.interior)
    if not parts:
        raise ValueError("without a contour and without a texture output there is no perturbation")
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def protect_images(images: Tensor, delta: Tensor) -> Tensor:
    """Add δ, in units of [0, 1] images, to (B, C, H, W) uint8 images as they will be stored: rounded, and clipped at 0 and 255.

    Raises:
        ValueError: if the images are not uint8, or the shapes differ.
    """
    if images.dtype != torch.uint8 or images.shape != delta.shape:
        given = f"{images.dtype} of shape {tuple(images.shape)}, and a perturbation of shape {tuple(delta.shape)}"
        raise ValueError(f"images are uint8 as they are stored, with a perturbation of their shape, got {given}")
    return add_on_grid(images, delta)
