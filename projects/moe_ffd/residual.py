"""Training the residual of a singular value decomposition of the attention weights, after Effort (ICML 2025): a baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualLinear(nn.Module):
    """A linear layer whose largest singular components are frozen, while the smallest ones are trained; at first it equals the layer it is made of.

    The decomposition's regularisers of the published method (orthogonality, norm) are left out.

    Args:
        linear: the layer; its bias stays frozen.
        parts: weights that stand one below the other, 3 for queries, keys and values; each is decomposed by itself.
        rank: components of each part that are trained.

    Raises:
        ValueError: if `rank` is not from 1 to the number of components.
    """

    def __init__(self, linear: nn.Linear, parts: int = 1, rank: int = 1) -> None:
        super().__init__()
        weight = linear.weight.detach().unflatten(0, (parts, -1))  # (P, O, I)
        if not 1 <= rank <= min(weight.shape[1:]):
            raise ValueError(f"the rank of a residual must be from 1 to {min(weight.shape[1:])}, not {rank}")
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        self.left = nn.Parameter(left[:, :, -rank:].contiguous())  # (P, O, rank)
        self.values = nn.Parameter(values[:, -rank:].clone())  # (P, rank)
        self.right = nn.Parameter(right[:, -rank:].contiguous())  # (P, rank, I)
        self.main = nn.Parameter((weight - self._residual()).detach().flatten(0, 1), requires_grad=False)
        self.bias = linear.bias

    def _residual(self) -> Tensor:
        return torch.bmm(self.left * self.values[:, None], self.right)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.main + self._residual().flatten(0, 1), self.bias)
