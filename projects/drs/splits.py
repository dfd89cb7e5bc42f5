"""How an image is split into interleaved sub-images (Xia et al. 2024, section on dual smoothing), and how a sub-image is shown to a network.

Any partition of the pixels keeps the certificate, and so does any network input that is a function of one noised sub-image alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.seeding import generator

SplitName = Literal["whole", "checkerboard", "checkerboard_ref", "column", "row", "block", "random", "phases"]
Embedding = Literal["packed_nearest", "checkerboard_maxpool", "packed_native"]


@dataclass(frozen=True)
class Split:
    """A partition of the pixels, the same for all channels.

    Attributes:
        name: which one.
        parts: for each sub-image the (h, w) int64 positions, counted row by row, of its pixels; packed without holes.
        height: rows of the image.
        width: columns of the image.
    """

    name: SplitName
    parts: tuple[Tensor, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.parts)

    def take(self, branch: int) -> Callable[[Tensor], Tensor]:
        """Return the function that cuts out a sub-image, (B, C, H, W) -> (B, C, h, w)."""
        positions = self.parts[branch]

        def cut(images: Tensor) -> Tensor:
            if images.shape[2:] != (self.height, self.width):
                raise ValueError(f"the split is of images of {self.height} x {self.width} pixels, not {images.shape[2]} x {images.shape[3]}")
            return images.flatten(2)[:, :, positions.to(images.device).flatten()].unflatten(2, positions.shape)

        return cut


def make_split(name: SplitName, height: int, width: int, seed: int = 0) -> Split:
    """Split an image.

    Args:
        name: "checkerboard": of every 2 x 2 block the two diagonal pixels go left, the others right; "checkerboard_ref": with the first pair of
            every row exchanged, as the published weights expect; "column", "row": even and odd ones; "block": left and right half; "random": of every
            pair of pixels in a row one, by a coin; "phases": the four pixels of every 2 x 2 block to four sub-images; "whole": no split.
        height: rows of the image.
        width: columns of the image.
        seed: seed of "random".

    Raises:
        ValueError: if the name is unknown, or the height or width is odd where that leaves holes.
    """
    grid = torch.arange(height * width).view(height, width)
    if name == "whole":
        return Split(name, (grid,), height, width)
    needs_even = {"row": (height,), "phases": (height, width), "checkerboard": (height, width), "checkerboard_ref": (height, width)}.get(
        name, (width,)
    )
    if any(side % 2 for side in needs_even):
        raise ValueError(f"the split {name!r} needs an even height and width, got {height} x {width}: pad or resize the images")
    if name == "row":
        return Split(name, (grid[0::2], grid[1::2]), height, width)
    if name == "block":
        return Split(name, (grid[:, : width // 2], grid[:, width // 2 :]), height, width)
    if name == "phases":
        return Split(name, tuple(grid[i::2, j::2] for i in range(2) for j in range(2)), height, width)
    pairs, first = grid.view(height, width // 2, 2), _first_of_pair(name, height, width // 2, seed)
    left = pairs.gather(2, first[:, :, None])[:, :, 0]
    right = pairs.gather(2, 1 - first[:, :, None])[:, :, 0]
    return Split(name, (left, right), height, width)


def _first_of_pair(name: SplitName, height: int, pairs: int, seed: int) -> Tensor:
    """Return which pixel of each pair in a row goes left, (H, W / 2) of 0 and 1."""
    odd_rows = (torch.arange(height) % 2)[:, None].expand(height, pairs)
    if name == "checkerboard":
        return odd_rows
    if name == "checkerboard_ref":
        return torch.cat([odd_rows[:, :1], 1 - odd_rows[:, 1:]], dim=1)
    if name == "column":
        return torch.zeros(height, pairs, dtype=torch.int64)
    if name == "random":
        return torch.randint(2, (height, pairs), generator=generator(seed, "split"))
    raise ValueError(f"no split {name!r}: choose whole, checkerboard, checkerboard_ref, column, row, block, random or phases")


def source_of(split: Split, branch: int, embedding: Embedding, channels: int) -> Tensor:
    """Say which element of a packed sub-image each element of the network's input takes.

    Args:
        split: the split.
        branch: number of the sub-image.
        embedding: "packed_nearest" enlarges the packed sub-image to (H, W) by the nearest pixel; "packed_native" leaves it as it is;
            "checkerboard_maxpool" puts the pixels back in their places, with zeros between them (which `BlockMax` then adds to).
        channels: channels of the image.

    Returns:
        (C, H', W') int64 positions in the flattened (C, h, w) sub-image, -1 for none.
    """
    h, w = split.parts[branch].shape
    plane = torch.arange(h * w).view(h, w)
    if embedding == "packed_nearest":
        rows, columns = torch.arange(split.height) * h // split.height, torch.arange(split.width) * w // split.width
        plane = plane[rows[:, None], columns]
    elif embedding == "checkerboard_maxpool":
        full = torch.full((split.height * split.width,), -1)
        full[split.parts[branch].flatten()] = plane.flatten()
        plane = full.view(split.height, split.width)
    elif embedding != "packed_native":
        raise ValueError(f"no embedding {embedding!r}: choose packed_nearest, checkerboard_maxpool or packed_native")
    offsets = torch.arange(channels)[:, None, None] * h * w
    return torch.where(plane >= 0, plane + offsets, -1)


class BlockMax(nn.Module):
    """Adds to every kept pixel the largest of its 2 x 2 block, (B, C, H, W) -> (B, C, H, W), as the published CIFAR code does.

    With two kept pixels z_i and z_j in a block, z_i becomes z_i + max(z_i, z_j, 0): the zeros of the others count. Others stay 0.

    Args:
        is_kept: (H, W) bool, which pixels the sub-image has.
    """

    is_kept: Tensor

    def __init__(self, is_kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("is_kept", is_kept, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        largest = F.interpolate(F.max_pool2d(images, 2), scale_factor=2, mode="nearest")
        return (images + largest) * self.is_kept
