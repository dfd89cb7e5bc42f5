"""Convolution, norm and ReLU, and the switch of norms."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import nn

Norm = Literal["batch", "group", "frozen"]
"""Batch norm; group norm, for batches of one or two; or batch norm that keeps the statistics of loaded weights, and group norm elsewhere."""
GROUPS = 8


def check_norm(norm: str) -> None:
    """Refuse what is no norm.

    Raises:
        ValueError: if there is no such norm.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"no norm {norm!r}: choose among {', '.join(get_args(Norm))}")


def build_norm(norm: Norm, channels: int) -> nn.Module:
    """Build the norm of C channels that no weights are loaded into: group norm of at most 8 groups unless it is `batch`."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def cbr(kernel_size: int, in_channels: int, out_channels: int, norm: Norm = "batch", stride: int = 1) -> nn.Sequential:
    """Build convolution without bias, norm and ReLU, (B, I, H, W) -> (B, O, H / stride, W / stride), rounded up."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(convolution, build_norm(norm, out_channels), nn.ReLU(inplace=True))


def group_norms_(module: nn.Module) -> nn.Module:
    """Replace all batch norms inside a module by group norms of the same scale and shift, in place; return the module."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = nn.GroupNorm(math.gcd(GROUPS, child.num_features), child.num_features)
                norm.load_state_dict({"weight": child.weight, "bias": child.bias})
                setattr(parent, name, norm)
    return module
