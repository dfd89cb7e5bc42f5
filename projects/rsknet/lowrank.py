"""Linear layers whose weight is a product of two thin matrices, W = W2 W1: as free layers, from a trained layer, or semi-orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.layers import at_least_float32


class LowRankLinear(nn.Module):
    """Linear layer of limited rank, (..., D) to (..., E): W2 (E x k) after W1 (k x D) with nothing between, k (D + E) weights in place of D E.

    Args:
        inputs: D.
        outputs: E.
        rank: k, from 1 to the lesser of D and E.
        bias: whether the second factor adds a bias.

    Raises:
        ValueError: if the rank is out of its range.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        _check_rank(inputs, outputs, rank)
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs, bias=bias)

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.first(values))


@torch.no_grad()
def factorise(linear: nn.Linear, rank: int) -> LowRankLinear:
    """Return the layer of the given rank nearest to a trained one in the Frobenius norm: its truncated singular value decomposition.

    Each factor takes the square roots of the singular values, so that both start fine-tuning at one size. The bias is kept.

    Raises:
        ValueError: if the rank is below 1 or above the lesser of inputs and outputs.
    """
    result = LowRankLinear(linear.in_features, linear.out_features, rank, bias=linear.bias is not None).to(linear.weight)
    U, singular, Vh = torch.linalg.svd(at_least_float32(linear.weight), full_matrices=False)
    roots = singular[:rank].sqrt()
    result.first.weight.copy_(roots[:, None] * Vh[:rank])
    result.second.weight.copy_(U[:, :rank] * roots)
    if linear.bias is not None:
        result.second.bias.copy_(linear.bias)
    return result


@torch.no_grad()
def energy(linear: nn.Linear, rank: int) -> float:
    """Return the part of the sum of squared singular values that the nearest layer of this rank keeps, in [0, 1]; see `factorise`."""
    _check_rank(linear.in_features, linear.out_features, rank)
    squares = torch.linalg.svdvals(at_least_float32(linear.weight)).square()
    return float(squares[:rank].sum() / squares.sum())


@torch.no_grad()
def semi_orthogonal_step(weight: Tensor) -> None:
    """Move a matrix in place a step towards orthogonal rows of one length, M M^T = a^2 I, as in the factorised TDNN (Povey et al. 2018).

    M <- M - 4 nu / a^2 (P - a^2 I) M with P = M M^T: a step down on tr(Q Q^T), Q = P - a^2 I. The scale a^2 = tr(P P^T) / tr(P) floats with the
    matrix. nu = 1/8 converges quadratically near the end; it is halved where k tr(P P^T) / tr(P)^2, which ends at 1, is above 1.02 and again above
    1.1 (as in Kaldi), since singular values far above a would otherwise grow. Call it on `LowRankLinear.first.weight` every few optimiser steps.

    Args:
        weight: (k, D) with k <= D.

    Raises:
        ValueError: if the matrix has more rows than columns.
    """
    if weight.ndim != 2 or weight.shape[0] > weight.shape[1]:
        raise ValueError(f"only a matrix with no more rows than columns can have orthogonal rows, got shape {tuple(weight.shape)}")
    M = at_least_float32(weight)
    P = M @ M.T
    square = P.square().sum() / P.trace()  # a^2
    spread = float(square * len(P) / P.trace())
    nu = 1 / 8 if spread <= 1.02 else 1 / 16 if spread <= 1.1 else 1 / 32
    weight.copy_(M - 4 * nu * (P @ M / square - M))


def _check_rank(inputs: int, outputs: int, rank: int) -> None:
    if not 1 <= rank <= min(inputs, outputs):
        raise ValueError(f"the rank of a layer of {inputs} inputs and {outputs} outputs lies from 1 to {min(inputs, outputs)}, got {rank}")
