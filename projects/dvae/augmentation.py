"""The usual augmentations of training images, for whole batches at once."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.data.memory import to_unit

Augment = Literal["crop_flip", "resize_flip", "shift1", "none"]
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)


def augment(images: Tensor, how: Augment, random: torch.Generator) -> Tensor:
    """Augment a batch.

    Args:
        images: uint8 (B, C, H, W).
        how: crop_flip (CIFAR's: padded by black pixels, 4 for 32 pixels, cut out anew and mirrored by chance), resize_flip (ImageNet's: a part of 8
            to 100 % of the area, stretched to the whole, and mirrored by chance), shift1 (moved by up to a pixel, the border repeated) or none.
        random: generator on the images' device.

    Returns:
        (B, C, H, W) in [0, 1], in memory with channels last.
    """
    if how == "resize_flip":
        return resize_and_flip(to_unit(images), draw_parts(len(images), images.shape[2] / images.shape[3], random))
    if how == "none":
        moved = images
    else:
        padding = 1 if how == "shift1" else max(1, max(images.shape[2:]) // 8)
        moves = torch.randint(-padding, padding + 1, (len(images), 2), generator=random, device=images.device)
        flips = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if how == "crop_flip":
            flips = torch.randint(2, (len(images),), generator=random, device=images.device).bool()
        moved = move_and_flip(images, moves, flips, repeat=how == "shift1")
    return to_unit(moved.contiguous(memory_format=torch.channels_last))


def move_and_flip(images: Tensor, moves: Tensor, flips: Tensor, repeat: bool) -> Tensor:
    """Look at images through a window that is moved, and mirror some.

    Args:
        images: (B, C, H, W) of any type.
        moves: (B, 2) int64: rows and columns that the window is moved by.
        flips: (B,) bool.
        repeat: beyond the border its pixels are repeated; False: they are black.

    Returns:
        (B, C, H, W), of the same type.
    """
    height, width = images.shape[2:]
    across = torch.arange(width, device=images.device)
    rows = moves[:, 0, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = moves[:, 1, None] + torch.where(flips[:, None], width - 1 - across, across)  # (B, W)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = images.permute(0, 2, 3, 1)[number, near_rows[:, :, None], near_columns[:, None, :]]  # (B, H, W, C)
    if not repeat:
        inside = (rows == near_rows)[:, :, None] & (columns == near_columns)[:, None, :]
        moved = moved * inside[..., None]
    return moved.permute(0, 3, 1, 2)


def draw_parts(count: int, shape: float, random: torch.Generator) -> Tensor:
    """Draw parts of images and whether they are mirrored.

    The area is uniform in 8 to 100 %, the logarithm of the aspect in 3/4 to 4/3; a side that would be longer than the image's is as long.

    Args:
        count: B.
        shape: height of the images over their width.
        random: generator.

    Returns:
        (B, 5): height and width of the part and the position of its centre down and across, in units in which the image is from -1 to 1, and ±1.
    """
    drawn = torch.rand((count, 5), generator=random, device=random.device)
    area = AREA[0] + (AREA[1] - AREA[0]) * drawn[:, 0]
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = (low + (high - low) * drawn[:, 1]).exp() * shape  # width over height, of a part of the square that the image is stretched to
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=1).clamp(max=1)  # (B, 2)
    centres = (1 - sides) * (2 * drawn[:, 2:4] - 1)
    return torch.cat([sides, centres, torch.where(drawn[:, 4:] < 0.5, -1.0, 1.0)], dim=1)


def resize_and_flip(images: Tensor, parts: Tensor) -> Tensor:
    """Stretch parts of images to whole images by bilinear interpolation.

    Args:
        images: (B, C, H, W).
        parts: (B, 5) of `draw_parts`.

    Returns:
        (B, C, H, W).
    """
    zero = torch.zeros_like(parts[:, 0])
    height, width, down, across, mirror = parts.unbind(1)
    rows = torch.stack([torch.stack([mirror * width, zero, across], 1), torch.stack([zero, height, down], 1)], 1)  # (B, 2, 3)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 has no places between the pixels of a large image
        grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    images = images.contiguous(memory_format=torch.channels_last)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
