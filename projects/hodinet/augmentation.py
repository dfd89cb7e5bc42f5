"""What training pictures go through: picture, depth and mask move alike, and only the picture changes its colours."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

Augmentation = Literal["none", "flip", "group"]
"""Nothing; mirrored in half of the cases; or this with the windows, turns and colours of the group's public code."""

_BORDER = 30  # pixels
_TURNED, _ANGLE = 0.2, 15
_COLOURS = ((ImageEnhance.Brightness, 0.5, 1.5), (ImageEnhance.Contrast, 0.5, 1.5), (ImageEnhance.Color, 0, 2), (ImageEnhance.Sharpness, 0, 3))


class Layers(NamedTuple):
    """A picture, (3, H, W) uint8; its depth, (1, H, W) float32 in [0, 1]; and its mask, (1, H, W) uint8 of 0 and 1."""

    image: Tensor
    depth: Tensor
    mask: Tensor


def augment(layers: Layers, size: int, augmentation: Augmentation, chance: torch.Generator) -> Layers:
    """Augment a picture and bring it to a square.

    With `group` these are done: a centred window, up to 30 pixels smaller in each direction, but by an eighth at most; mirroring (probability 0.5); a
    turn by up to 15 degrees (0.2), outside of which picture, depth and mask are 0; and factors of brightness and contrast from 0.5 to 1.5, of colour
    up to 2 and of sharpness up to 3. Colours change after the resizing, which takes a fraction of the time.

    Args:
        layers: picture, depth and mask of one height and width.
        size: side S of the square, in pixels.
        augmentation: what is done.
        chance: where all numbers come from.

    Returns:
        Layers of S x S pixels.

    Raises:
        ValueError: if the augmentation is not known.
    """
    if augmentation not in get_args(Augmentation):
        raise ValueError(f"data.augmentation must be one of {', '.join(get_args(Augmentation))}, got {augmentation!r}")
    if augmentation == "none":
        return resized(layers, size)
    if augmentation == "group":
        layers = _window(layers, chance)
    height, width = layers.image.shape[1:]
    layers = resized(layers, size)
    if _draw(chance) < 0.5:
        layers = Layers(*(layer.flip(2) for layer in layers))
    if augmentation == "flip":
        return layers
    if _draw(chance) < _TURNED:
        layers = turned(layers, math.radians(_ANGLE * (2 * _draw(chance) - 1)), width / height)
    return layers._replace(image=_colours(layers.image, chance))


def resized(layers: Layers, size: int) -> Layers:
    """Stretch to a square of `size` pixels; the mask is cut at a half again."""
    image, depth, share = (_stretched(layer, size) for layer in (layers.image, layers.depth, layers.mask.float()))
    return Layers(image, depth.clamp(0, 1), (share > 0.5).byte())


def turned(layers: Layers, angle: float, ratio: float) -> Layers:
    """Turn a picture that was stretched to a square about its middle, as if it were turned before.

    Args:
        layers: of S x S pixels.
        angle: in radians; positive turns against the clock.
        ratio: width by height of the picture that was stretched.

    Returns:
        Layers of the same size; what comes from outside is 0, and the mask is cut at a half again.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    inverse = torch.tensor([[[cosine, -sine / ratio, 0], [sine * ratio, cosine, 0]]])  # where each place of the result lies in the square
    grid = F.affine_grid(inverse, [1, 1, *layers.image.shape[1:]], align_corners=False)
    stack = torch.cat([layers.image.float(), layers.depth, layers.mask.float()])[None]  # (1, 5, S, S)
    image, depth, share = F.grid_sample(stack, grid, align_corners=False)[0].split((3, 1, 1))
    return Layers(image.round().byte(), depth, (share > 0.5).byte())


def _window(layers: Layers, chance: torch.Generator) -> Layers:
    sides = layers.image.shape[1:]
    kept = [side - int(_draw(chance) * (min(_BORDER, side // 8) + 1)) for side in sides]
    rows, columns = (slice((side - own) // 2, (side - own) // 2 + own) for side, own in zip(sides, kept, strict=True))
    return Layers(*(layer[:, rows, columns] for layer in layers))


def _stretched(layer: Tensor, size: int) -> Tensor:
    if layer.shape[1:] == (size, size):
        return layer
    return F.interpolate(layer[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0]


def _colours(image: Tensor, chance: torch.Generator) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for change, low, high in _COLOURS:
        picture = change(picture).enhance(low + (high - low) * _draw(chance))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _draw(chance: torch.Generator) -> float:
    return float(torch.rand((), generator=chance))
