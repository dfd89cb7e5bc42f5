"""The five difference convolutions of the adapter experts, each folded into one plain kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SUPPORT = {"cv": 3, "cd": 3, "ad": 3, "rd": 5, "scd": 5}
"""Side of the folded kernel by kind: vanilla, central, angular, radial and second-order central difference."""
KINDS = tuple(SUPPORT)
CYCLE = (0, 1, 2, 5, 8, 7, 6, 3)
"""The neighbours of the centre, clockwise, by the row-major number of a tap in a 3 x 3 kernel."""
RING = (0, 1, 2, 3, 5, 6, 7, 8)
"""The neighbours of the centre, row by row."""


def check_kind(kind: str, self_index: int = 0) -> None:
    """Refuse what `folding_matrix` does not know.

    Raises:
        ValueError: if there is no such kind, or `self_index` is neither 0 nor 4.
    """
    if kind not in SUPPORT:
        raise ValueError(f"no convolution {kind!r}: choose among {', '.join(KINDS)}")
    if self_index not in (0, 4):
        raise ValueError(f"self_index is 0 (numbering of the reference) or 4 (the centre), not {self_index}")


def folding_matrix(kind: str, self_index: int = 0) -> Tensor:
    """Return the linear map from the nine weights of a kind to the 25 taps of a 5 x 5 kernel, (9, 5, 5), whole numbers as float32.

    Args:
        kind: one of `KINDS`.
        self_index: which weight of `rd` and `scd` multiplies the pixel itself. 0 is the reference's numbering, where ring weight j belongs to
            neighbour j = 1 to 8 row by row; with 4, the other eight weights belong to the neighbours where they lie. The others' is always 4.

    Raises:
        ValueError: see `check_kind`.
    """
    check_kind(kind, self_index)
    taps = torch.zeros(9, 5, 5)

    def add(weight: int, position: int, value: float, reach: int = 1) -> None:
        taps[weight, 2 + reach * (position // 3 - 1), 2 + reach * (position % 3 - 1)] += value

    add(self_index if SUPPORT[kind] == 5 else 4, 4, 1)
    if kind in ("cv", "cd"):
        for i in RING:
            add(i, i, 1)
            if kind == "cd":
                add(i, 4, -1)
    elif kind == "ad":
        for i, following in zip(CYCLE, CYCLE[1:] + CYCLE[:1], strict=True):
            add(i, i, 1)
            add(i, following, -1)
    else:
        order = 1 if kind == "rd" else 2
        for weight, neighbour in zip((i for i in range(9) if i != self_index), RING, strict=True):
            add(weight, neighbour, 1, reach=2)
            add(weight, neighbour, -order)
            add(weight, 4, order - 1)
    return taps


def fold(weight: Tensor, kind: str, self_index: int = 0) -> Tensor:
    """Fold (..., 3, 3) weights of a kind into the plain kernel (..., S, S) that does the same, S = `SUPPORT[kind]`; of any dtype, on any device.

    Raises:
        ValueError: if the weights are not 3 x 3; see also `check_kind`.
    """
    if weight.shape[-2:] != (3, 3):
        raise ValueError(f"a difference convolution has 3 x 3 weights, not {tuple(weight.shape[-2:])}")
    taps = folding_matrix(kind, self_index).to(weight)
    if SUPPORT[kind] == 3:
        taps = taps[:, 1:4, 1:4]
    return torch.tensordot(weight.flatten(-2), taps, dims=1)


def difference_conv2d(features: Tensor, weight: Tensor, bias: Tensor | None, kind: str, self_index: int = 0) -> Tensor:
    """Apply a difference convolution with zero padding, (B, I, H, W) -> (B, O, H, W).

    Args:
        features: (B, I, H, W).
        weight: (O, I, 3, 3).
        bias: (O,) or None.
        kind: `cv`: sum_i w_i x(p + o_i); `cd`: w_4 x(p) + sum_i w_i [x(p + o_i) - x(p)]; `ad`: w_4 x(p) + sum over the clockwise cycle of
            w_i [x(p + o_i) - x(p + o_next(i))]; `rd`: w_self x(p) + sum_j w_j [x(p + 2 r_j) - x(p + r_j)];
            `scd`: w_self x(p) + sum_j w_j [x(p + 2 r_j) - 2 x(p + r_j) + x(p)].
        self_index: see `folding_matrix`.
    """
    return F.conv2d(features, fold(weight, kind, self_index), bias, padding=SUPPORT[kind] // 2)


def begin_as_identity(weight: Tensor) -> None:
    """Set (..., C, C, 3, 3) weights to the identity over channels at the centre tap and to zero elsewhere, in place.

    The convolution is then an identity, except for `rd` and `scd` with `self_index` 0, whose centre weight belongs to the left neighbour.
    """
    with torch.no_grad():
        weight.zero_()
        weight[..., 1, 1].copy_(torch.eye(weight.shape[-3]).expand_as(weight[..., 1, 1]))
