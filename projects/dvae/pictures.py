"""Sheets of small pictures in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SHOWN = 10
"""Columns of a sheet."""
SIDE = 64
"""Least height of a picture in a sheet, in pixels."""
GAIN = 4
"""Factor by which perturbations are shown enlarged, around grey."""


def sheet(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of pictures, each (N, C, H, W) in [0, 1], the first ten side by side: (C, rows · h, 10 · w), enlarged without smoothing."""
    joined = torch.cat([row[:SHOWN].permute(1, 2, 0, 3).flatten(2) for row in rows], dim=1).clamp(0, 1)
    factor = max(1, -(-SIDE // rows[0].shape[2]))
    return F.interpolate(joined[None].float(), scale_factor=factor, mode="nearest")[0]


def around_grey(perturbation: Tensor) -> Tensor:
    """Show perturbations of images in [0, 1]: grey is none."""
    return 0.5 + GAIN * perturbation
