"""Pieces of photographs, an offline world that is a pure function of (seed, split)."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.data.files import read_levels
from shared.data.offline import photograph_file
from shared.vertical.records import TEST_FRACTION, Records, Split, check_split, divided

PATCHED = ("china.jpg", "flower.jpg")
"""Photographs that `photo_patches` cuts up, in the order of the labels; scikit-learn brings them."""


def photo_patches(split: Split, seed: int = 0, size: int = 16) -> Records:
    """Square pieces of two photographs on a grid, 1040 of each at 16 pixels, of which a fifth is for test.

    Pieces of the two splits share no pixel, but neighbours look alike.

    Args:
        split: train or test.
        seed: seed of the split and of the order.
        size: height and width of the pieces, in pixels.

    Returns:
        Pictures (N, 3, size, size) uint8; the label is the photograph's place in `PATCHED`.

    Raises:
        FileNotFoundError: if a photograph is not installed.
        ValueError: if a piece is larger than a photograph, or `split` is unknown.
    """
    check_split(split)
    pieces = [_pieces(read_levels(photograph_file(name)), size) for name in PATCHED]
    labels = torch.arange(len(pieces)).repeat_interleave(torch.tensor([len(some) for some in pieces]))
    names = tuple(name.partition(".")[0] for name in PATCHED)
    return divided(Records(torch.cat(pieces), labels, names), split, TEST_FRACTION, seed, "cafe", "patches")


def _pieces(photograph: Tensor, size: int) -> Tensor:
    """Cut (C, H, W) into squares row by row, (N, C, size, size); what is left at the right and lower borders is dropped."""
    channels, height, width = photograph.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"pieces must have 1 to {min(height, width)} pixels a side, got {size}")
    rows, columns = height // size, width // size
    grid = photograph[:, : rows * size, : columns * size].reshape(channels, rows, size, columns, size)
    return grid.permute(1, 3, 0, 2, 4).reshape(-1, channels, size, size)
