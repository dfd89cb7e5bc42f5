"""What the modules are made of: convolution with norm and ReLU, and resizing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 4


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build a 1 x 1 convolution with its bias and a batch norm, CB1 before its ReLU, (B, I, h, w) -> (B, O, h, w)."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))


def cbr(in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> nn.Sequential:
    """Build convolution with its bias, batch norm and ReLU, (B, I, h, w) -> (B, O, h, w); CB1 by default."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, C, h, w) maps at another size (H, W), bilinearly, the corners of the pixels not aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
