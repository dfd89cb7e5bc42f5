"""The second-order relation of all places and what is read out of it, without storing it (steps 1 to 4)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from shared.layers import at_least_float32

ROOT_EPSILON = 1e-12
"""Added to the relation under its root."""
NORM_EPSILON = 1e-12
"""Least norm that the relation is divided by."""
CHUNK_ENTRIES = {"cpu": 2**19}
OTHER_ENTRIES = 2**22
"""Entries of the relation that are held at once, on a CPU what its caches hold and on other devices what keeps them busy."""


def relation_readout(r: Tensor, d: Tensor, values: Tensor | None = None, chunk: int | None = None, pool: int = 1) -> Tensor:
    """Return A = V M', where M' is the signed root of M = r^T d / C, divided by its norm over all places of a picture.

    Only some columns of M, the places of depth, are held at once, and the backward pass computes them again: memory grows with N rather than
    N^2. As A is linear in M', the norm is summed up along the way and divided by at the end, so that the result is that of
    `relation_readout_literal`. All is computed in float32 at least, for the entries of M' underflow in half precision.

    Args:
        r: (B, C, h, w) of colour, N = h w places.
        d: (B, C, h', w') of depth, M = h' w' places.
        values: V, (B, D, h, w) of colour; None takes r.
        chunk: columns of M that are held at once; None chooses by the number of places, and 0 stores all of M.
        pool: side of the squares that r and V are averaged over first, which leaves N / pool^2 places; 1 leaves them as they are.

    Returns:
        (B, D, M).

    Raises:
        ValueError: if `chunk` is negative.
    """
    if chunk is not None and chunk < 0:
        raise ValueError(f"a chunk has 1 column at least, and 0 stores all, but not {chunk}")
    sources = [r] if values is None else [r, values]
    if pool > 1:
        sources = [F.avg_pool2d(source, pool, ceil_mode=True, count_include_pad=False) for source in sources]
    *colours, depths = (at_least_float32(maps).flatten(2) for maps in (*sources, d))
    with _without_autocast(d.device.type):
        if chunk == 0 or torch.compiler.is_exporting():  # a stored graph has no loop over chunks
            return relation_readout_literal(colours[0], depths, colours[-1])
        return _Readout.apply(colours[0], depths, colours[-1], chunk or chunk_columns(r.shape[0], colours[0].shape[2], d.device.type))


def chunk_columns(batch: int, places: int, device: str) -> int:
    """Return how many columns of a relation of N places are held at once, at least one.

    Args:
        batch: B.
        places: N.
        device: type of the device, such as `cpu`.
    """
    return max(1, CHUNK_ENTRIES.get(device, OTHER_ENTRIES) // (batch * places))


def relation_readout_literal(r: Tensor, d: Tensor, values: Tensor) -> Tensor:
    """Return A by the module's four steps as they stand, (B, C, N), (B, C, M) and (B, D, N) -> (B, D, M); M is stored."""
    relation = torch.bmm(r.mT, d) / r.shape[1]  # (B, N, M)
    rooted = relation.sign() * (relation.abs() + ROOT_EPSILON).sqrt()
    return torch.bmm(values, F.normalize(rooted.flatten(1), eps=NORM_EPSILON).view_as(rooted))


class _Readout(torch.autograd.Function):
    """`relation_readout_literal`, columns by columns."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, d: Tensor, values: Tensor, chunk: int) -> Tensor:
        scaled = r.mT / r.shape[1]  # (B, N, C)
        square, gathered = values.new_zeros(len(values)), values.new_empty(*values.shape[:2], d.shape[2])
        for columns, part in zip(d.split(chunk, dim=2), gathered.split(chunk, dim=2), strict=True):
            root, sign = _signed_root(torch.bmm(scaled, columns))
            root.mul_(sign)
            square += torch.linalg.vector_norm(root, dim=(1, 2)).square()
            part.copy_(torch.bmm(values, root))  # into what stands already: small blocks between large ones would keep freed memory from being used
        norm = square.sqrt().clamp_min(NORM_EPSILON)[:, None, None]
        gathered.div_(norm)
        ctx.save_for_backward(r, d, values, gathered, norm)
        ctx.chunk = chunk
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With U = G / norm and s = sign(M): dM = (V^T U) |s| / (2 |root|) - <G, A> s / (2 norm^2)."""
        r, d, values, gathered, norm = ctx.saved_tensors
        with _without_autocast(r.device.type):
            scaled, upper = r.mT / r.shape[1], gradient / norm
            along_norm = (upper * gathered).sum((1, 2), keepdim=True) / (2 * norm)
            d_r, d_d, d_values = torch.zeros_like(r), torch.empty_like(d), torch.zeros_like(values)
            for columns, above, part in zip(*(maps.split(ctx.chunk, dim=2) for maps in (d, upper, d_d)), strict=True):
                root, sign = _signed_root(torch.bmm(scaled, columns))
                d_relation = torch.bmm(values.mT, above).div_(root).mul_(sign).div_(2).sub_(along_norm).mul_(sign)
                d_values.baddbmm_(above, root.mul_(sign).mT)
                d_r.baddbmm_(columns, d_relation.mT, alpha=1 / r.shape[1])
                part.copy_(torch.bmm(scaled.mT, d_relation))
        return d_r, d_d, d_values, None


def _without_autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _signed_root(relation: Tensor) -> tuple[Tensor, Tensor]:
    sign = relation.sign()
    return relation.abs_().add_(ROOT_EPSILON).sqrt_(), sign
