"""What is added to a local embedding: noise inside the net, and the clip that makes its sensitivity known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.seeding import generator


@dataclass(frozen=True)
class Noise:
    """All draws of one forward of a client's net; the same Noise on the same batch gives the same embeddings.

    Args:
        seed: seed of the draws; a fresh one for every upload.
        std: c, standard deviation of the normal Z_L on the last pre-activation.
        hidden: c_l, standard deviation of the uniform Z_l on the pre-activation of each layer l < L, in order; the last entry holds for all
            further layers, and none means no noise there.

    Raises:
        ValueError: if a standard deviation is negative or not finite.
    """

    seed: int
    std: float = 0.0
    hidden: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for value in (self.std, *self.hidden):
            if not 0 <= value < math.inf:
                raise ValueError(f"the noise has a standard deviation of {value}: give finite numbers that are at least 0")

    def draws(self) -> Draws:
        """Start one forward."""
        return Draws(self)


SILENT = Noise(0)
"""No noise at all."""


class Draws:
    """The draws of one forward, made layer by layer by one generator.

    They are made on the CPU in float32 whatever the net's device and type, so that all of these agree.
    """

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._layer = 0
        self._chance: torch.Generator | None = None

    def hidden(self, pre: Tensor) -> Tensor:
        """Add Z_l ~ U[-sqrt(3) c_l, sqrt(3) c_l] to the pre-activation, (B, ...), of the next layer below the last."""
        stds = self._noise.hidden
        std = stds[min(self._layer, len(stds) - 1)] if stds else 0.0
        self._layer += 1
        if not std:
            return pre
        return pre + torch.rand(pre.shape, generator=self._generator()).mul_(2).sub_(1).mul_(math.sqrt(3) * std).to(pre)

    def last(self, pre: Tensor) -> Tensor:
        """Add Z_L ~ N(0, c^2) to the last pre-activation, (B, ...)."""
        if not self._noise.std:
            return pre
        return pre + torch.randn(pre.shape, generator=self._generator()).mul_(self._noise.std).to(pre)

    def _generator(self) -> torch.Generator:
        if self._chance is None:
            self._chance = generator(self._noise.seed, "noise")
        return self._chance


def clip_rows(pre: Tensor, bound: float) -> Tensor:
    """Scale each record's last pre-activation to an L2 norm of at most `bound`, before the noise: its sensitivity is then known.

    Args:
        pre: (B, ...) pre-activations; the norm is over all but the first dimension.
        bound: C, in the units of the embedding.

    Returns:
        (B, ...) pre-activations, the same where the norm is at most C; zero where it is not finite, as in a training that diverges.
    """
    pre = pre.nan_to_num()
    norms = torch.linalg.vector_norm(pre.flatten(1), dim=1)
    scales = (norms / bound).clamp_min(1).reciprocal()  # 1 within the bound, with a gradient of zero even at the origin
    return pre * scales.view(-1, *[1] * (pre.dim() - 1))
