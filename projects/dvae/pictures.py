"""Sheets of small pictures in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

SHOWN = 10
"""Columns of a sheet."""
SIDE = 64
"""Least height of a picture in a sheet, in pixels."""
GAIN = 4
"""Factor by which perturbations are shown enlarged, around grey."""


def sheet(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of pictures, each (N, C, H, W) in [0, 1], the first ten side by side, enlarged without smoothing, as one (C, height, width)."""
    shown = [row[:SHOWN].clamp(0, 1).float() for row in rows]
    factor = max(1, -(-SIDE // rows[0].shape[2]))
    return make_grid(F.interpolate(torch.cat(shown), scale_factor=factor, mode="nearest"), nrow=len(shown[0]), padding=3, pad_value=1)


def around_grey(perturbation: Tensor) -> Tensor:
    """Show perturbations of images in [0, 1]: grey is none."""
    return 0.5 + GAIN * perturbation
