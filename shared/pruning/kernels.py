"""Sums over the slices of weights, and slicing along two dimensions at once: in plain torch, and on CUDA as Triton kernels with the same results.

Triton is imported only when a tensor lies on a CUDA device (or, in tests, when TRITON_INTERPRET=1 was set before Triton was first imported).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor

Criterion = Literal["absolute", "square", "product_absolute", "product", "fisher"]
_FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "absolute": lambda w, _: w.abs(),
    "square": lambda w, _: w.square(),
    "product_absolute": lambda w, g: (w * g).abs_(),
    "product": lambda w, g: w * g,
    "fisher": lambda w, g: w.square() * g,
}
_CODES = {name: code for code, name in enumerate(_FORMULAS)}
_CHUNK = 1 << 17  # elements that are combined at once on a CPU: what its cache holds


def channel_sums(weight: Tensor, other: Tensor, criterion: Criterion, dims: Collection[int], groups: int = 1) -> dict[int, Tensor]:
    """Sum a function of a weight and a second tensor over the slices along its first two dimensions, reading both once.

    Args:
        weight: (D0,) or (D0, D1, ...), any floating dtype.
        other: the same shape: its gradient, its mean squared gradient, or the weight itself where the criterion uses none.
        criterion: |w|, w², |w · g|, w · g or w² · g.
        dims: dimensions wanted, of 0 and 1.
        groups: groups of a grouped convolution (D0 outputs, D1 = inputs / groups); the sums along dimension 1 then have `groups` · D1 positions.

    Returns:
        float32 (D0,) for dimension 0 and (groups · D1,) for dimension 1, as wanted, on the weight's device.
    """
    if weight.is_cuda:
        return triton_channel_sums(weight, other, criterion, dims, groups)
    return torch_channel_sums(weight, other, criterion, dims, groups)


def torch_channel_sums(weight: Tensor, other: Tensor, criterion: Criterion, dims: Collection[int], groups: int = 1) -> dict[int, Tensor]:
    """Do what `channel_sums` does in plain torch, a part of the weight at a time so that it stays in the cache."""
    formula = _FORMULAS[criterion]
    inner = weight.shape[1] if weight.ndim > 1 else 1
    w, g = weight.reshape(len(weight), -1), other.reshape(len(weight), -1)
    per_group = len(weight) // groups
    rows = max(1, min(per_group, _CHUNK // max(1, w.shape[1])))
    sums: list[Tensor] = []
    columns = torch.zeros(groups, w.shape[1], device=w.device)
    for group in range(groups):
        for start in range(group * per_group, (group + 1) * per_group, rows):
            part = slice(start, min(start + rows, (group + 1) * per_group))
            values = formula(w[part].float(), g[part].float())
            if 0 in dims:
                sums.append(values.sum(1))
            if 1 in dims:
                columns[group] += values.sum(0)
    wanted = {0: torch.cat(sums)} if 0 in dims else {}
    return wanted | ({1: columns.view(groups * inner, -1).sum(1)} if 1 in dims else {})


def triton_channel_sums(weight: Tensor, other: Tensor, criterion: Criterion, dims: Collection[int], groups: int = 1) -> dict[int, Tensor]:
    """Do what `channel_sums` does with one kernel launch a dimension; sums run in a fixed order, so results repeat exactly."""
    outer, inner, rest = len(weight), weight.shape[1] if weight.ndim > 1 else 1, math.prod(weight.shape[2:])
    w, g = weight.contiguous(), other.contiguous()
    kernel = _kernels()["sums"]
    code, results = _CODES[criterion], {}
    if 0 in dims:
        results[0] = torch.empty(outer, dtype=torch.float32, device=w.device)
        # slice i: `inner · rest` elements in one piece
        kernel[(outer,)](w, g, results[0], 1, inner * rest, 0, 1, inner * rest, 0, code, BLOCK=1024)
    if 1 in dims:
        results[1] = torch.empty(groups * inner, dtype=torch.float32, device=w.device)
        # slice (group, j): outer / groups pieces of `rest` elements, `inner · rest` apart
        per_group = outer // groups
        kernel[(groups * inner,)](w, g, results[1], inner, per_group * inner * rest, rest, per_group, rest, inner * rest, code, BLOCK=1024)
    return results


def gather(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    """Return the slices of a tensor at the given positions of each given dimension, in the same layout of memory.

    Args:
        tensor: any shape.
        keep: (N,) int64 positions by dimension, on the tensor's device.
    """
    if tensor.is_cuda and set(keep) == {0, 1} and tensor.is_contiguous():
        return triton_gather(tensor, keep[0], keep[1])
    channels_last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    for dim in sorted(keep):  # rows first: they are copied whole
        tensor = tensor.index_select(dim, keep[dim])
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor


def triton_gather(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return `tensor[rows][:, columns]` in one pass over the result."""
    rest = math.prod(tensor.shape[2:])
    result = torch.empty((len(rows), len(columns), *tensor.shape[2:]), dtype=tensor.dtype, device=tensor.device)
    per_row = len(columns) * rest
    grid = (len(rows), math.ceil(per_row / 1024))
    _kernels()["gather"][grid](tensor, rows, columns, result, tensor.shape[1], rest, per_row, BLOCK=1024)
    return result


@functools.cache
def _kernels() -> dict[str, Any]:
    from shared.pruning import triton_kernels

    return {"sums": triton_kernels.slice_sums, "gather": triton_kernels.gather_two}
