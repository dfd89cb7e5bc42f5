"""The model that clients and server hold in parts: a bottom net h_m at each client, a head at the server (equation 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from projects.vafl.bottoms import Bottom
from projects.vafl.heads import Head
from projects.vafl.perturbed import Noise


class VerticalModel(nn.Module):
    """F(theta_0, theta): the clients' nets and the server's head.

    Args:
        bottoms: one a client.
        head: takes their outputs side by side.
    """

    def __init__(self, bottoms: Sequence[Bottom], head: Head) -> None:
        super().__init__()
        self.bottoms, self.head = nn.ModuleList(bottoms), head

    def embed(self, blocks: Sequence[Tensor], noises: Sequence[Noise | None] | None = None) -> Tensor:
        """Return the embeddings of all clients side by side, (B, sum of p_m), without noise unless it is given for each client."""
        chosen = noises or [None] * len(blocks)
        return torch.cat([bottom(block, noise) for bottom, block, noise in zip(self.bottoms, blocks, chosen, strict=True)], dim=1)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Map one (B, ...) block a client to (B, classes) logits, without noise."""
        return self.head(self.embed(blocks))
