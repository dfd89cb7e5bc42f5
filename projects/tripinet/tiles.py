"""Maps of whole pictures, and of pictures too large for that, tile by tile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projects.tripinet.model import TriPINet

ALIGNMENT = 32
"""Tiles begin at multiples of the largest stride, which are also multiples of the 8 x 8 blocks of JPEG."""


@torch.inference_mode()
def predict_whole(net: TriPINet, image: Tensor) -> Tensor:
    """Return the logits of one picture, (3, H, W) uint8 or floats from 0 to 255 -> (H, W) float32 on the CPU.

    Args:
        net: in evaluation mode.
        image: the picture, on any device.
    """
    return net(image[None].to(next(net.parameters()).device), sides=False).sides[0][0, 0].float().cpu()


@torch.inference_mode()
def predict_tiles(net: TriPINet, image: Tensor, size: int = 512, overlap: int = 128, batch: int = 4) -> Tensor:
    """Return the logits of one picture, (3, H, W) -> (H, W) float32 on the CPU, from overlapping tiles that are blended.

    Besides the picture and the map, memory holds `batch` tiles' features, whatever the picture's size. Where two tiles overlap, each one's logits
    fade in along a squared sine; a quarter of the overlap next to a tile's edge, where its padding shows most, counts for nothing. The weights of all
    tiles sum to 1 at every pixel. Tiles equal the whole picture, except within the reach of the network's convolutions, for a network of local parts.
    What looks at a whole picture looks at its own tile here: the streams `dct_*` and `fft`, attention, and the excitation of the decoder.

    Args:
        net: in evaluation mode.
        image: the picture, uint8 or floats from 0 to 255, on any device, with sides of 32 pixels at least.
        size: side of the tiles, in pixels; those at the right and the bottom are smaller.
        overlap: pixels that two tiles share, at most half of `size`.
        batch: tiles computed at once.

    Raises:
        ValueError: if sizes are no multiples of 32, the tiles overlap by more than half or not at all, or the picture has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < ALIGNMENT:
        raise ValueError(f"one picture has the shape (3, H, W) with sides of {ALIGNMENT} pixels at least, not {tuple(image.shape)}")
    if size % ALIGNMENT or overlap % ALIGNMENT or not 0 < overlap <= size // 2:
        raise ValueError(f"tiles have sides of multiples of {ALIGNMENT} and overlap by at most half of that, not {size} and {overlap}")
    if batch < 1:
        raise ValueError(f"at least one tile is computed at once, not {batch}")
    height, width = image.shape[1:]
    logits = torch.zeros(height, width)
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for top, bottom in spans(height, size, overlap):
        for left, right in spans(width, size, overlap):
            places.setdefault((bottom - top, right - left), []).append((top, left))
    device = next(net.parameters()).device
    for (rows, columns), corners in places.items():
        for start in range(0, len(corners), batch):
            chosen = corners[start : start + batch]
            tiles = torch.stack([image[:, top : top + rows, left : left + columns] for top, left in chosen]).to(device)
            for (top, left), tile in zip(chosen, net(tiles, sides=False).sides[0].float().cpu(), strict=True):
                fade = _fade(top, rows, height, overlap)[:, None] * _fade(left, columns, width, overlap)
                logits[top : top + rows, left : left + columns] += fade * tile[0]
    return logits


def spans(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Return where tiles begin and end along a side of some length; neighbours share `overlap` pixels, and the last one may be shorter."""
    starts = range(0, max(1, length - overlap), size - overlap)
    return [(start, min(start + size, length)) for start in starts]


def _fade(start: int, length: int, whole: int, overlap: int) -> Tensor:
    margin = overlap // 4
    steps = (torch.arange(overlap) + 0.5 - margin) / (overlap - 2 * margin)
    rise = (math.pi / 2 * steps.clamp(0, 1)).sin().square()
    weights = torch.ones(length)
    if start > 0:
        weights[:overlap] = rise
    if start + length < whole:
        weights[length - overlap :] = rise.flip(0)
    return weights
