"""Pictures of many samples at once."""

from __future__ import annotations

from torch import Tensor


def picture_grid(images: Tensor, columns: int = 8, width: int = 480) -> Tensor:
    """Lay (N, C, H, W) pictures in [0, 1] out in rows, enlarged by whole pixels to about `width`; returns (C, H', W')."""
    from torchvision.utils import make_grid

    zoom = max(1, width // (columns * images.shape[-1]))
    enlarged = images.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=1.0)
